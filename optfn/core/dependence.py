"""What an update depends on, read from its program: its own entry, its array or the whole tree."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from optfn.core.transform import Transform
from optfn.core.tree import PyTree

# Operations whose results take each entry from the entries in its place alone.
NAMES = """
    abs acos acosh add and asin asinh atan atan2 atanh bessel_i0e bessel_i1e bitcast_convert_type
    cbrt ceil clamp complex conj convert_element_type copy copy_p cos cosh digamma div eq erf
    erf_inv erfc exp exp2 expm1 floor ge gt igamma igammac imag integer_pow is_finite le lgamma log
    log1p logistic lt max min mul ne neg nextafter not optimization_barrier or pow pvary real
    reduce_precision rem reshape round rsqrt select_n shift_left shift_right_arithmetic
    shift_right_logical sign sin sinh sqrt square squeeze stop_gradient sub tan tanh xor
"""
POINTWISE = set(NAMES.split())
# Of these an array of more dimensions may need more.
LAYOUT = {"reshape", "squeeze", "broadcast_in_dim", "convert_element_type"}


class Sources(NamedTuple):
    """The arrays that something is made of: entry by entry, and otherwise."""

    own: frozenset = frozenset()
    whole: frozenset = frozenset()


def needs_its_arrays(tx: Transform) -> str | None:
    """Why the same numbers cut into other arrays would get other updates; None if they would not.

    They get the same where each entry is treated alone, and where a sum is over all arrays. This
    is read from the programs of two updates of two arrays, for each transform that `tx` is made of.
    What cannot be read, such as a loop, counts as a look at whole arrays.
    """
    parts = list(_parts(tx))
    for part in parts:
        for name, value in part.fields("per_leaf"):
            if value is not None and not value.is_one:
                return f"{part.name} has a value for each leaf ({name})"
        if "function" in part.declared_extra_args().values():
            return f"{part.name} calls a function of the params"
    for part in parts:
        program = _two_updates(part, {"a": (3, 5), "b": (2,)})
        outs = _sources(program.jaxpr, [Sources(frozenset(x)) for x in "ab" * 3])
        for name, out in zip("ab", outs, strict=True):
            if name in out.whole and out.whole != {"a", "b"}:
                return f"{part.name} looks at each array as a whole"
        other = _two_updates(part, {"a": (11,), "b": (6,)})
        if list(_operations(program.jaxpr)) != list(_operations(other.jaxpr)):
            return f"{part.name} looks at the shapes of arrays"
    return None


def _parts(tx: Transform) -> Iterator[Transform]:
    yield tx
    for inner in tx.contents:
        yield from _parts(inner)


def _two_updates(tx: Transform, shapes: dict[str, tuple]) -> Any:
    """The program from params and two gradients to the second updates."""

    def run(params: PyTree, *grads: PyTree) -> PyTree:
        state, updates = tx.init(params), None
        kinds = {"scalar": jnp.ones(()), "key": jax.random.key(0)}
        for g in grads:
            extra = {name: kinds.get(kind, g) for name, kind in tx.declared_extra_args().items()}
            updates, state = tx.update(g, state, params, **extra)
        return updates

    tree = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    return jax.make_jaxpr(run)(tree, tree, tree)


def _sources(jaxpr: Any, args: list[Sources]) -> list[Sources]:
    """What the results of a program are made of, given what its arguments are."""
    known = dict(zip(jaxpr.invars, args, strict=True))

    def read(atom: Any) -> Sources:
        return Sources() if isinstance(atom, Literal) else known.get(atom, Sources())

    for eqn in jaxpr.eqns:
        known |= zip(eqn.outvars, _results(eqn, list(map(read, eqn.invars))), strict=True)
    return list(map(read, jaxpr.outvars))


def _results(eqn: Any, args: list[Sources]) -> list[Sources]:
    own = frozenset().union(*(x.own for x in args))
    whole = frozenset().union(*(x.whole for x in args))
    inner = list(_programs(eqn))
    name = eqn.primitive.name
    if name == "cond":
        chosen = Sources(frozenset(), args[0].own | args[0].whole)
        branches = [_sources(program, args[1:]) for program in inner]
        return [
            Sources(
                frozenset().union(*(x.own for x in out)),
                chosen.whole.union(*(x.whole for x in out)),
            )
            for out in zip(*branches, strict=True)
        ]
    if inner and name not in ("while", "scan") and len(inner[0].invars) == len(args):
        return _sources(inner[0], args)
    spread = name == "broadcast_in_dim" and not eqn.invars[0].aval.shape
    if not (name in POINTWISE or spread):
        own, whole = frozenset(), own | whole
    return [Sources(own, whole)] * len(eqn.outvars)


def _programs(eqn: Any) -> Iterator[Any]:
    """The programs inside of an equation."""
    for value in eqn.params.values():
        for x in value if isinstance(value, (tuple, list)) else [value]:
            x = getattr(x, "jaxpr", x)
            if hasattr(x, "eqns"):
                yield x


def _operations(jaxpr: Any) -> Iterator[tuple]:
    """The operations of a program with the numbers in them, in order."""
    for eqn in jaxpr.eqns:
        inner = list(_programs(eqn))
        for program in inner:
            yield from _operations(program)
        if not inner and eqn.primitive.name not in LAYOUT:
            numbers = [x.val for x in eqn.invars if isinstance(x, Literal)]
            yield eqn.primitive.name, *(str(x) for x in numbers if np.ndim(x) == 0)
