"""Whether a rule is traced once for all leaves of a kind, or leaf by leaf."""

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any

from jax.core import Tracer

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


# How many small arrays of one shape a loop of the program goes over, and what is small: up to so
# many entries.
LOOP, SMALL = 8, 2**14


def in_loops(arrays: Sequence[Any]) -> list[bool]:
    """For each array, whether a rule of many products goes over those of its shape in loops.

    An inner `jit` shares a trace, but XLA takes its calls apart and compiles each for itself. A
    loop over several arrays is compiled once. What it reads must lie in a stack, and what it makes
    does. The copies are few bytes against many products, but they take memory, so large arrays stay
    by themselves. The kernel that takes an array out of a stack is another one for each place in
    it, and compiling one takes 15 times as long as finding one that is there already: hence stacks
    of few, and all of one length.
    """
    kinds = [(x.shape, x.dtype) for x in arrays]
    count = Counter(kinds)
    return [
        isinstance(x, Tracer) and count[kind] >= LOOP and x.ndim > 1 and 0 < x.size <= SMALL
        for x, kind in zip(arrays, kinds, strict=True)
    ]
