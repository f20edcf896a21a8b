"""The walk over an optimizer together with its state, for all that reads or renews a part of it."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from optfn.core.transform import Transform
from optfn.core.tree import PyTree


class Place(NamedTuple):
    """A stage or a group that has slots.

    Attributes:
        names: from the outermost stage to this one; a qualified name is these with dots.
        stage: None for a group, which is what stands under a label; its own stages follow.
        slots: its own.
        step: the one it runs at.
        params: those that it is for, with None for the others.
    """

    names: tuple[str, ...]
    stage: Transform | None
    slots: Any
    step: Any
    params: PyTree


def walk(
    tx: Transform, named: Any, step: Any, params: PyTree = None, outer: tuple[str, ...] = ()
) -> Iterator[Place]:
    """Every stage and every group that has slots, each before those inside of it.

    Args:
        tx: a transform.
        named: the slots by name, of it and perhaps of others.
        step: its step.
        params: its params; without them, those of all places are None.
        outer: the names of what it is inside of.
    """
    slots = tx.slots_among(named)
    if slots is None:
        return
    if tx.name is not None:
        outer = (*outer, tx.name)
        yield Place(outer, tx, slots, step, params)
    for inner in tx.inner_transforms(slots, step, params):
        names = (*outer, *inner.names)
        if inner.is_group and inner.slots:
            yield Place(names, None, *inner.place)
        yield from walk(inner.transform, *inner.place, names)


def renew_slots(
    tx: Transform,
    named: Any,
    step: Any,
    params: PyTree,
    renew: Callable[[Place], Any],
    outer: tuple[str, ...] = (),
) -> Any:
    """The named slots with `renew(place)` for those of each place, from the innermost on.

    What `renew` gives back as it was stays as it was: it is not put back into its wrapper.
    """
    slots = tx.slots_among(named)
    if slots is None:
        return named
    if tx.name is not None:
        outer = (*outer, tx.name)
    for i in range(len(tx.contents)):
        inner = tx.inner_transforms(slots, step, params)[i]  # in slots renewed so far
        names = (*outer, *inner.names)
        new = renew_slots(inner.transform, *inner.place, renew, names)
        if inner.is_group and inner.slots:
            new = renew(Place(names, None, new, inner.step, inner.params))
        if new is not inner.slots:
            slots = tx.with_inner(slots, inner.label, new)
    if tx.name is None:
        return slots
    new = renew(Place(outer, tx, slots, step, params))
    return named if new is named[tx.name] else {**named, tx.name: new}


def replace_stages(
    tx: Transform, named: Any, step: Any, replace: Callable[[Transform, Any, Any], Transform]
) -> Transform:
    """The transform with `replace(stage, slots, step)` for each stage, from the outermost on."""
    slots = tx.slots_among(named)
    tx = replace(tx, slots, step)
    new = (
        replace_stages(inner.transform, inner.slots, inner.step, replace)
        for inner in tx.inner_transforms(slots, step)
    )
    changes: dict[str, Any] = {}
    for field, value in tx.fields("child"):
        if isinstance(value, Mapping):
            changes[field] = {label: next(new) for label in value}
        elif isinstance(value, tuple):
            changes[field] = tuple(next(new) for _ in value)
        else:
            changes[field] = next(new)
    return tx.rebuilt(**changes)
