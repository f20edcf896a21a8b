"""Whether a rule is traced once for all leaves of a kind, or leaf by leaf."""

from collections import Counter
from collections.abc import Hashable, Sequence

# Calling a jitted function costs about as much as tracing a few operations.
COMMON = 3


def traced_once(kinds: Sequence[Hashable], traced: bool) -> list[bool]:
    """For each leaf, whether an inner `jit` traces its rule once for all leaves of its kind.

    Inside a trace a rare kind is traced in place. Outside a trace the `jit` avoids dispatching
    every operation.

    Args:
        kinds: the kind of each leaf.
        traced: whether the leaves are inside a trace.
    """
    return [not traced or often for often in common(kinds)]


def common(kinds: Sequence[Hashable]) -> list[bool]:
    """For each leaf, whether there are several of its kind."""
    count = Counter(kinds)
    return [count[kind] >= COMMON for kind in kinds]
