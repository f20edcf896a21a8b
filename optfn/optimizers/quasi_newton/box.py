"""The box that bounds make of the params."""

from collections.abc import Callable
from functools import reduce
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from optfn.core.dtypes import cast, dtype_of, own_dtype
from optfn.core.inputs import is_inexact
from optfn.core.numerics import ratio
from optfn.core.placement import split_like
from optfn.core.tree import PyTree, describe, is_leaf, leaf_location, values_of_prefix


class Box(NamedTuple):
    """Lower and upper bounds of every entry, in trees like the params.

    Attributes:
        lower: the lower bounds, -inf where there is none.
        upper: the upper bounds, inf where there is none.
    """

    lower: PyTree
    upper: PyTree

    @classmethod
    def of(cls, bounds: Any, params: PyTree, where: str, what: str) -> Self:
        """From a user's `(lower, upper)`, each a tree like the params, a prefix of it or None.

        Args:
            bounds: the pair.
            params: the params.
            where: the argument that holds the bounds, for messages.
            what: the argument that holds the params, for messages.

        Raises:
            TypeError: it is no such pair, or a bound is no real number.
            ValueError: a side does not fit the params, or a lower bound is above its upper bound.
        """
        if not isinstance(bounds, tuple) or len(bounds) != 2 or _are_pairs(bounds, params):
            raise TypeError(
                f"{where} must be a pair (lower, upper) of trees like {what}, or of prefixes of "
                f"them, found {_found(bounds, params)}"
            )
        sides = []
        for side, name, none in zip(bounds, ("lower", "upper"), (-jnp.inf, jnp.inf), strict=True):
            sides.append(_side(side, none, params, f"the {name} bounds in {where}", what))
        box = cls(*sides)
        box._check_order(where)
        return box

    def _check_order(self, where: str) -> None:
        """Refuses bounds that are known to be crossed; `crossed` tells of the others."""
        pairs = zip(jax.tree.leaves(self.lower), jax.tree.leaves(self.upper), strict=True)
        for i, pair in enumerate(pairs):
            if any(isinstance(bound, Tracer) for bound in pair):
                continue
            lower, upper = map(np.asarray, jax.device_get(pair))
            wrong = ~(lower <= upper)
            if wrong.any():
                raise ValueError(
                    f"{where} {leaf_location(self.lower, i)}: the lower bound {lower[wrong][0]} is "
                    f"not at most the upper bound {upper[wrong][0]}."
                )

    @property
    def crossed(self) -> jax.Array:
        """Whether a lower bound is above its upper bound, or one of them is NaN."""
        return ~_all(lambda lower, upper: lower <= upper, *self)

    def holds(self, x: PyTree) -> jax.Array:
        """Whether a point is in the box; NaN is, for which no bound is to blame."""
        return _all(lambda x, lower, upper: ~((x < lower) | (x > upper)), x, *self)

    def project(self, x: PyTree) -> PyTree:
        """The nearest point of the box, in the dtypes of x."""

        def of_leaf(x, lower, upper):
            return jnp.clip(x, beside(lower, x), beside(upper, x))

        return jax.tree.map(of_leaf, x, *self)

    def projected_gradient(self, x: PyTree, grad: PyTree) -> PyTree:
        """x - P(x - grad), which is zero where no step downhill stays in the box."""

        def of_leaf(g, *leaf):
            x, lower, upper = (beside(y, g) for y in leaf)
            return jnp.clip(g, x - upper, x - lower)  # without the rounding of x - grad

        return jax.tree.map(of_leaf, grad, x, *self)

    def room(self, x: PyTree, direction: PyTree) -> jax.Array:
        """The largest rate at which x + rate * direction is in the box; inf without a bound."""
        dtype = own_dtype(direction)

        def of_leaf(u, *leaf):
            x, lower, upper = (beside(y, u) for y in leaf)
            rates = ratio(jnp.where(u < 0, lower, upper) - x, u)
            return jnp.min(jnp.where(u == 0, jnp.inf, rates), initial=jnp.inf).astype(dtype)

        rates = jax.tree.leaves(jax.tree.map(of_leaf, direction, x, *self))
        return reduce(jnp.minimum, rates, jnp.asarray(jnp.inf, dtype))


def beside(bound: Any, x: jax.Array) -> jax.Array:
    """A bound in the dtype of an array, and where it lies."""
    return split_like(cast(bound, x.dtype), x)


def _are_pairs(bounds: Any, params: PyTree) -> bool:
    """Whether bounds are a pair for each entry of an array, as SciPy takes them."""

    def is_pair(pair: Any) -> bool:
        numbers = (int, float, np.number)
        is_two = isinstance(pair, (tuple, list)) and len(pair) == 2
        return is_two and all(x is None or isinstance(x, numbers) for x in pair)

    might_be = isinstance(bounds, list) or (isinstance(bounds, tuple) and is_leaf(params))
    return might_be and len(bounds) > 0 and all(map(is_pair, bounds))


def _found(bounds: Any, params: PyTree) -> str:
    """What was given in the place of (lower, upper), and what it would be as such a pair."""
    if _are_pairs(bounds, params):
        return (
            "a pair for each entry, as SciPy takes them. These are (lower, upper) by "
            "lower, upper = np.array(pairs, float).T, with -np.inf and np.inf instead of None."
        )
    if hasattr(bounds, "lb") and hasattr(bounds, "ub"):
        return "SciPy's Bounds b, which are (b.lb, b.ub)."
    return f"a tuple of {len(bounds)}." if isinstance(bounds, tuple) else f"{describe(bounds)}."


def _all(holds: Callable[..., Any], *trees: PyTree) -> jax.Array:
    """Whether something holds for every entry."""
    parts = jax.tree.leaves(jax.tree.map(lambda *leaves: holds(*leaves).all(), *trees))
    return reduce(jnp.logical_and, parts, jnp.asarray(True))


def _side(side: PyTree, none: float, params: PyTree, where: str, what: str) -> PyTree:
    """One side of the box, in the dtypes of the params; None stands for no bound."""
    values, prefix = jax.tree.flatten(side, is_leaf=lambda x: x is None)
    leaves, treedef = jax.tree.flatten(params)
    bounds = []
    for i, bound in enumerate(values_of_prefix(values, prefix, params, where, what)):
        param, bound = leaves[i], none if bound is None else bound
        at = f"{where} {leaf_location(params, i)}"
        if jnp.iscomplexobj(param):
            raise TypeError(
                f"{at}: only real params have bounds, found {param.dtype}; give real and imaginary "
                "parts as params of their own."
            )
        if not _is_real(bound):
            found = getattr(bound, "dtype", repr(bound))
            raise TypeError(f"{at}: bounds are real numbers, found {found}.")
        bound = jnp.asarray(bound)
        if bound.shape not in ((), param.shape):
            raise ValueError(f"{at}: it has shape {bound.shape}, {what} has {param.shape}.")
        if is_inexact(param):  # others are frozen, or refused
            bound = cast(bound, param.dtype)
        bounds.append(jnp.broadcast_to(bound, param.shape))
    return treedef.unflatten(bounds)


def _is_real(x: Any) -> bool:
    try:
        return np.issubdtype(dtype_of(x), np.number) and not jnp.iscomplexobj(x)
    except TypeError:
        return False
