"""What the devices of a mesh tell each other in a compiled program."""

import re
from math import prod
from typing import Any, NamedTuple

KINDS = "all-to-all|all-gather|all-reduce|collective-permute|reduce-scatter"


class Collective(NamedTuple):
    """A collective operation.

    Attributes:
        kind: such as `"all-gather"`.
        bytes: of its results on each device.
    """

    kind: str
    bytes: int


def collectives(compiled: Any) -> list[Collective]:
    """The collective operations of a compiled program, in the order of its text.

        compiled = jax.jit(step).lower(*args).compile()
        Counter(kind for kind, _ in collectives(compiled))

    Each stands once, also in a loop or a branch.

    Args:
        compiled: what `jax.jit(...).lower(...).compile()` gives.
    """
    found = re.findall(rf"= (.*?) ({KINDS})(?:-start)?\(", compiled.as_text() or "")
    return [Collective(kind, _bytes(results)) for results, kind in found]


def _bytes(results: str) -> int:
    """Of types such as `(f32[8,16], u32[2])`."""
    bits = 0
    for name, shape in re.findall(r"(\w+)\[([\d,]*)\]", results):
        width = re.search(r"\d+", name)
        bits += (int(width[0]) if width else 8) * prod(map(int, filter(None, shape.split(","))))
    return bits // 8
