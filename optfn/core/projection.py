"""Sets for params to stay in, as data: each gives the nearest point of it."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax

from optfn.core.data import Data, child, show
from optfn.core.dtypes import cast, compute_dtype, real_dtype
from optfn.core.given_function import as_pytree, is_function, show_function
from optfn.core.inputs import is_inexact, matched, to_arrays
from optfn.core.placement import replicate, split_like
from optfn.core.schedule import Schedule, as_schedule
from optfn.core.tree import PyTree, leaf_location


class Projection(Data):
    """A set of arrays; as a function it gives the nearest point of the set.

    To write one, list its numbers as fields and implement `nearest`:

        class zero_mean(optfn.projections.Projection):
            def nearest(self, x):
                return x - jnp.mean(x)

    Numbers may be schedules, read at the step of the optimizer.

    Class attributes a subclass may set:
        entrywise: whether each entry has a set of its own, an interval. Rounding then leads no
            entry out of it.
    """

    entrywise: ClassVar[bool] = False

    def nearest(self, x: jax.Array) -> jax.Array:
        """The nearest array of the set; x and the fields are at least float32."""
        raise NotImplementedError(f"{type(self).__name__} must define nearest(x).")

    def __call__(self, tree: PyTree) -> PyTree:
        """A tree like this one with each array in the set, in its own dtype."""
        tree = to_arrays(tree, "the array")
        leaves, treedef = jax.tree.flatten(tree)
        for i, x in enumerate(leaves):
            try:
                leaves[i] = self._nearest_to(x)
            except Exception as error:
                error.add_note(f"This was {self!r} {leaf_location(tree, i)}.")
                raise
        return treedef.unflatten(leaves)

    def steps_into(self, params: PyTree, updates: PyTree) -> PyTree:
        """Updates that lead to the nearest point to where these lead."""
        moved = jax.tree.map(lambda p, u: cast(p, u.dtype) + u, params, updates)
        return jax.tree.map(self._step, params, updates, moved, self(moved))

    def resolved(self, step: Any) -> "Projection":
        """With the value at a step in the place of every schedule."""
        schedules = [(k, x) for k, x in self.fields("number") if isinstance(x, Schedule)]
        return self.rebuilt(**{name: value(step) for name, value in schedules})

    def _nearest_to(self, x: jax.Array) -> jax.Array:
        name = type(self).__name__
        if not is_inexact(x):
            raise TypeError(f"{name}: only floating point arrays are projected, found {x.dtype}.")
        if not x.size:
            return x
        dtype = compute_dtype(x.dtype)
        numbers = {k: cast(n, real_dtype(dtype)) for k, n in self.fields("number") if n is not None}
        own, wide = self.rebuilt(**numbers), cast(x, dtype)
        found = own.nearest(wide if self.entrywise else replicate(wide))
        if jnp.shape(found) != x.shape:
            raise ValueError(f"{name} made {jnp.shape(found)} of an array of shape {x.shape}.")
        return cast(found if self.entrywise else split_like(found, x), x.dtype)

    def _step(self, p: jax.Array, u: jax.Array, moved: jax.Array, target: jax.Array) -> jax.Array:
        wide = cast(p, u.dtype)
        u = jnp.where(target == moved, u, target - wide)
        if not self.entrywise:
            return u
        # To the next number of the params' dtype, and if their sum is rounded, of the step's.
        landed = cast(wide + u, p.dtype)
        back = self._way_back(landed)
        u = jnp.where(back == 0, u, cast(lax.nextafter(landed, back), u.dtype) - wide)
        back = cast(self._way_back(cast(wide + u, p.dtype)), u.dtype)
        return jnp.where(back == 0, u, lax.nextafter(u, back))

    def _way_back(self, x: jax.Array) -> jax.Array:
        """For each entry infinity, or minus infinity, if the set is that way; 0 inside."""
        wide = cast(x, compute_dtype(x.dtype))
        away = self._nearest_to(wide) - wide
        return cast(jnp.where(away > 0, jnp.inf, jnp.where(away < 0, -jnp.inf, 0)), x.dtype)

    def _as_number(self, value: Any, where: Any) -> Any:
        return as_schedule(value, where) if callable(value) else super()._as_number(value, where)

    def _repr_name(self) -> str:
        name = super()._repr_name()
        return f"projections.{name}" if type(self).__module__.startswith("optfn.") else name


class custom(Projection):
    """Any function that gives a tree the nearest one of a set, as those of `optax.projections`.

    It gets all arrays as one tree; in a tree of projections those for which it stands, with None in
    the places of the others. Numbers inside a function are not leaves, and a new closure is a new
    treedef, which compiles again; the arguments of a `jax.tree_util.Partial` are leaves.

    Args:
        function: `tree -> tree`, of the same structure and shapes.
    """

    function: Any = child()

    def __post_init__(self) -> None:
        object.__setattr__(self, "function", as_pytree(self.function, "custom(function=...)"))

    def __call__(self, tree: PyTree) -> PyTree:
        own, treedef = jax.tree.flatten(tree)
        if not own:
            return tree
        found = to_arrays(self.function(tree), "the projection")
        leaves = matched(found, tree, "the result of the projection", "the params")
        return treedef.unflatten([cast(x, y.dtype) for x, y in zip(leaves, own, strict=True)])

    def __repr__(self) -> str:
        return f"projections.custom({show_function(self.function)})"


def as_projection(value: Any, where: Any) -> Projection:
    """The value if it is a set; a function of a tree becomes `custom`."""
    if isinstance(value, Projection):
        return value
    if is_function(value, where):
        return custom(value)
    raise TypeError(
        f"{where} must be a set of optfn.projections or a function tree -> tree, found "
        f"{type(value).__name__}: {show(value)}."
    )
