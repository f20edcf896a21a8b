"""Which way updates point, and how each transform changes it, as an algebra."""

import enum
from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from operator import or_
from typing import Protocol


class Updates(enum.Flag):
    """Which way updates point. `a | b` is a beside b, as one leaf has a and another b.

    Attributes:
        NOTHING: zero updates, which are fine beside all others.
        DIRECTION: uphill, as gradients are.
        STEP: downhill, to be added to the params.
        UNKNOWN: uphill or downhill, as after a factor of any sign.
        LAST: a step that nothing may change, as an average is kept of the params it leads to, or as
            they are in a set.
    """

    NOTHING = 0
    DIRECTION = enum.auto()
    STEP = enum.auto()
    UNKNOWN = enum.auto()
    LAST = enum.auto()

    @property
    def is_mixed(self) -> bool:
        """Whether a direction is beside another kind: no single sign turns both into steps."""
        return Updates.DIRECTION in self and self != Updates.DIRECTION

    def turned(self) -> "Updates":
        """After a minus sign, as of a learning rate. Unknown updates count as a direction."""
        return reduce(or_, (TURNED.get(kind, kind) for kind in self), Updates.NOTHING)

    def scaled(self) -> "Updates":
        """After a factor of any sign: unknown, but a step beside a direction stays mixed."""
        both = Updates.DIRECTION | Updates.STEP
        return self if not self or both in self else Updates.UNKNOWN

    def kept(self) -> "Updates":
        """After an average of the params that the step leads to is taken."""
        return self | Updates.LAST if self.is_mixed else Updates.LAST


def partly(inner: Updates, incoming: Updates) -> Updates:
    """For some leaves, or at some steps, `inner`; for the others what came in.

    What came in of an unknown side counts as a direction beside steps, as `turned` has it.
    """
    if inner & (Updates.STEP | Updates.LAST) and Updates.UNKNOWN in incoming:
        incoming = (incoming & ~Updates.UNKNOWN) | Updates.DIRECTION
    return inner | incoming


def either(kinds: Iterable[Updates]) -> Updates:
    """Of groups that each answer for their own leaves: unknown where directions stand beside steps.

    What is mixed inside a group remains mixed.
    """
    kinds = list(kinds)
    joined = reduce(or_, kinds, Updates.NOTHING)
    if not joined.is_mixed or any(kind.is_mixed for kind in kinds):
        return joined
    return (joined & ~Updates.DIRECTION) | Updates.UNKNOWN


TURNED = {
    Updates.DIRECTION: Updates.STEP,
    Updates.STEP: Updates.DIRECTION,
    Updates.UNKNOWN: Updates.STEP,
}


class Part(Protocol):
    """The part of a transform's interface that this module uses."""

    @property
    def name(self) -> str | None: ...

    @property
    def contents(self) -> Sequence["Part"]: ...

    def updates_kind(self, incoming: Updates) -> Updates: ...


def check_root(tx: Part) -> None:
    """Refuses an optimizer whose updates are mixed."""

    def is_mixed(part: Part) -> bool:
        return _kind_of(part).is_mixed

    if is_mixed(tx):
        name = type(_to_blame(tx, is_mixed)).__name__
        raise ValueError(
            f"{name}(...) alone is no optimizer: beside its other updates, directions such as raw "
            "gradients would become updates, uphill. Use freeze(transform, mask) to leave params "
            "as they are, conditionally_mask(...) to leave them at some steps, partition(...) for "
            f"several whole optimizers, or put {name} before the learning rate of a chain. (A "
            "transform of your own whose updates are steps says so by updates_kind.)"
        )


def check_not_last(tx: Part, where: str, changer: str) -> None:
    """Refuses a `LAST` step, which `changer` would change."""

    def is_last(part: Part) -> bool:
        return Updates.LAST in _kind_of(part)

    if is_last(tx):
        last = _name_of(_to_blame(tx, is_last))
        raise ValueError(
            f"{where}: {changer} would change the updates of {last}, which keeps params that they "
            f"lead to: put {last} around the whole optimizer, or last in its chain."
        )


def check_steps(tx: Part, where: str) -> None:
    """Refuses a direction or a `LAST` step inside a wrapper that changes steps."""
    check_not_last(tx, where, where.partition("(")[0])
    if Updates.DIRECTION in _kind_of(tx):
        raise ValueError(
            f"{where} must be a whole optimizer, whose updates go downhill; end it with "
            "scale_by_learning_rate(...) or negate()."
        )


def makes_steps(tx: Part) -> bool:
    """Whether the transform turns a direction into a step."""
    return _kind_of(tx) == Updates.STEP


def check_side_known(tx: Part, where: str, deed: str) -> None:
    """Refuses updates that are neither all directions nor all steps; the wrapper must know which.

    Args:
        tx: the transform inside.
        where: the wrapper and its argument, as in `"cautious(transform=...)"`.
        deed: what that part does or does not do, for the message.
    """
    wrapper = where.partition("(")[0]
    check_not_last(tx, where, wrapper)

    def is_unknown(part: Part) -> bool:
        return _kind_of(part) not in (Updates.NOTHING, Updates.DIRECTION, Updates.STEP)

    if is_unknown(tx):
        raise ValueError(
            f"{wrapper} cannot tell whether {_name_of(_to_blame(tx, is_unknown))} {deed}: wrap the "
            "direction alone, or end it with scale_by_learning_rate(...) or negate()."
        )


def _kind_of(tx: Part) -> Updates:
    """Which way the updates of a transform of gradients point."""
    kind = tx.updates_kind(Updates.DIRECTION)
    if not isinstance(kind, Updates):
        raise TypeError(
            f"{type(tx).__name__}.updates_kind(incoming) must give an optfn.Updates, found "
            f"{kind!r}."
        )
    return kind


def _to_blame(tx: Part, is_so: Callable[[Part], bool]) -> Part:
    """The innermost part for which `is_so` holds."""
    return next((_to_blame(part, is_so) for part in tx.contents if is_so(part)), tx)


def _name_of(tx: Part) -> str:
    return tx.name or type(tx).__name__
