"""The parts of an optimizer with their part of its state."""

from collections.abc import Iterator
from typing import Any

from optfn.core.hyperparameters import join
from optfn.core.transform import Transform, transforms_in


def parts(
    tx: Transform, slots: Any, step: Any, prefix: str = ""
) -> Iterator[tuple[str, Transform | None, Any]]:
    """Every stage and every group that has slots, as `(qualified name, stage, its slots)`.

    A group is what stands under a label; it comes without a stage, since its own follow.
    """
    own = slots if tx.name is None else (slots or {}).get(tx.name)
    if own is None:
        return
    prefix = join(prefix, tx.name)
    if tx.name is not None:
        yield prefix, tx, own
    holders = list(tx.fields("child"))
    for field, value in holders:
        here = prefix if len(holders) == 1 else join(prefix, field)
        groups = isinstance(value, dict)
        for label, inner in value.items() if groups else [(field, x) for x in transforms_in(value)]:
            there = join(here, label) if groups else here
            inner_slots, inner_step = tx.inner(own, step, label)
            if groups and inner_slots:
                yield there, None, inner_slots
            yield from parts(inner, inner_slots, inner_step, there)
