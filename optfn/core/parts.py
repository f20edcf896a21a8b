"""The parts of an optimizer with their part of its state."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from optfn.core.transform import Transform, transforms_in
from optfn.core.tree import PyTree


class Part(NamedTuple):
    """A stage or a group that has slots.

    Attributes:
        names: from the outermost stage to this one; a qualified name is these with dots.
        stage: None for a group, which is what stands under a label; its own stages follow.
        slots: its own.
        params: those that it is for, with None for the others.
    """

    names: tuple[str, ...]
    stage: Transform | None
    slots: Any
    params: PyTree


def parts(
    tx: Transform, slots: Any, step: Any, params: PyTree = None, outer: tuple[str, ...] = ()
) -> Iterator[Part]:
    """Every stage and every group that has slots; without params, theirs are None."""
    own = slots if tx.name is None else (slots or {}).get(tx.name)
    if own is None:
        return
    if tx.name is not None:
        outer = (*outer, tx.name)
        yield Part(outer, tx, own, params)
    holders = list(tx.fields("child"))
    for field, value in holders:
        here = outer if len(holders) == 1 else (*outer, field)
        groups = isinstance(value, dict)
        for label, inner in value.items() if groups else [(field, x) for x in transforms_in(value)]:
            there = (*here, label) if groups else here
            inner_slots, inner_step = tx.inner(own, step, label)
            seen = None if params is None else tx.inner_params(params, label)
            if groups and inner_slots:
                yield Part(there, None, inner_slots, seen)
            yield from parts(inner, inner_slots, inner_step, seen, there)
