"""The walk over an optimizer together with its state, to read or replace parts of either."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from optfn.core.transform import Transform
from optfn.core.tree import PyTree


class Place(NamedTuple):
    """A stage or a group that has slots.

    Attributes:
        names: from the outermost stage to this one; joined by dots they are its qualified name.
        stage: the stage, or None for a group (the transform under a label), whose stages follow.
        slots: its slots.
        step: the step it runs at.
        params: its params, with None for the other leaves.
    """

    names: tuple[str, ...]
    stage: Transform | None
    slots: Any
    step: Any
    params: PyTree


def walk(
    tx: Transform, named: Any, step: Any, params: PyTree = None, outer: tuple[str, ...] = ()
) -> Iterator[Place]:
    """Every stage and every group that has slots, the outer before the inner.

    Args:
        tx: a transform.
        named: slots by name, among them its own.
        step: its step.
        params: its params; if None, so are the params of every place.
        outer: the names of the stages and groups around it.
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
    """The named slots with each place's slots replaced by `renew(place)`, the innermost first.

    Slots that `renew` returns unchanged are not put back into their wrapper.
    """
    slots = tx.slots_among(named)
    if slots is None:
        return named
    if tx.name is not None:
        outer = (*outer, tx.name)
    for i in range(len(tx.contents)):
        inner = tx.inner_transforms(slots, step, params)[i]  # with the slots renewed so far
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
    """The transform with `replace(stage, slots, step)` for each stage, the outermost first."""
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
        elif type(value) is tuple:
            changes[field] = tuple(next(new) for _ in value)
        else:
            changes[field] = next(new)
    return tx.rebuilt(**changes)
