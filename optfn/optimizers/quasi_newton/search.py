"""The base class of line searches, with the line they search and the state they leave."""

from collections.abc import Callable, Mapping
from functools import partial, reduce
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from optfn.core.dtypes import cast, own_dtype
from optfn.core.numerics import dot, tree_scale, tree_sum
from optfn.core.outputs import cast_like
from optfn.core.signatures import parameters_of
from optfn.core.slots import scalar_slot, zero_slot, zeros_of
from optfn.core.state import Context
from optfn.core.transform import Transform
from optfn.core.tree import PyTree
from optfn.core.updates_kind import Updates
from optfn.optimizers.quasi_newton.box import Box


class Evaluations(NamedTuple):
    """How often a function's value and its gradient were evaluated, int32."""

    value: jax.Array
    grad: jax.Array


class LineSearchInfo(NamedTuple):
    """What became of a line search; the next one does not need it.

    Attributes:
        num_linesearch_steps: the number of rates it tried, int32.
        num_gradients: the number of gradients it took, int32.
        failed: whether its conditions do not hold at the new params.
    """

    num_linesearch_steps: jax.Array
    num_gradients: jax.Array
    failed: jax.Array

    @property
    def evaluations(self) -> Evaluations:
        """What the search needed; it evaluates the function once for each rate."""
        return Evaluations(self.num_linesearch_steps, self.num_gradients)


class LineSearchState(NamedTuple):
    """The point where a line search ended and the next update starts.

    Attributes:
        learning_rate: the factor on the direction; 0 if no step was good.
        value: the function's value at the new params; infinite before the first update.
        grad: the gradient there as jax gives it, for complex params the conjugate of the direction
            uphill, in the compute dtype; None if it is not kept.
        info: what became of the last search.
    """

    learning_rate: jax.Array
    value: jax.Array
    grad: PyTree
    info: LineSearchInfo


class Line(NamedTuple):
    """A function along a direction, from the params at the rate 0.

    Attributes:
        value_fn: the function of the params.
        params: the start of the line.
        direction: a tree like the params.
        value: the function's value at the params.
        grad: the uphill gradient there.
        slope: the slope along the direction there; if it is not below 0 there is nothing to search.
        box: what bounds the params; None if nothing does. They and the end at the rate 1 are in it.
    """

    value_fn: Callable[..., Any]
    params: PyTree
    direction: PyTree
    value: jax.Array
    grad: PyTree
    slope: jax.Array
    box: Box | None = None

    @property
    def only_evaluates(self) -> jax.Array:
        """Whether there is nothing to search, but the value at the params is unknown: infinite."""
        return ~(self.slope < 0) & (self.value == jnp.inf)

    def at(self, rate: jax.Array) -> PyTree:
        """The params that `apply_updates` will give, but for rounding in the box."""
        moved = _moved(self.params, tree_scale(rate, self.direction))
        return moved if self.box is None else self.box.project(moved)

    def largest_rate(self, most: Any) -> jax.Array:
        """The largest rate to search, at most `most`: inside the box, or without one, any."""
        most = jnp.asarray(most, self.slope.dtype)
        if self.box is None:
            return most
        room = cast(self.box.room(self.params, self.direction), most.dtype)
        return jnp.minimum(most, jnp.maximum(past_rounding(room), 1))

    def slope_of(self, grad: PyTree) -> jax.Array:
        return tree_sum(jax.tree.map(dot, grad, self.direction))


class LineSearch(Transform):
    """A stage that finds how far to go along the updates, which point downhill.

    `update` takes the keyword arguments `value_fn`, a function of the params, and `value` and
    `grad`, its value and uphill gradient at the params. Further arguments that `value_fn` names,
    such as a batch, are taken from those of `update`. If the updates point uphill, the search
    follows the negative gradient, with no entry larger than 1; if they are zero, the params stay,
    and where their value is infinite, which stands for unknown, it is evaluated.
    Given a `Box` as `box`, which `lbfgsb` declares, it keeps to it.
    """

    needs_params = True
    extra_args: ClassVar = {"value": "scalar", "grad": "tree", "value_fn": "function"}

    @property
    def keeps_grad(self) -> bool:
        """Whether the gradient at the new params is known, and kept."""
        return True

    def search(self, line: Line, last_rate: jax.Array) -> LineSearchState:
        """The best step along a line, in the dtype of its value."""
        raise NotImplementedError

    def init_slots(self, params: PyTree) -> LineSearchState:
        return LineSearchState(
            learning_rate=scalar_slot(1, params),
            value=scalar_slot(jnp.inf, params),
            grad=zeros_of(params) if self.keeps_grad else None,
            info=LineSearchInfo(
                *(zero_slot(dtype, params) for dtype in ("int32", "int32", "bool"))
            ),
        )

    def measurements(self, slots: Any) -> dict[str, jax.Array]:
        return {"effective_learning_rate": slots.learning_rate}

    def apply(self, updates: PyTree, slots: Any, ctx: Context) -> tuple[PyTree, Any]:
        dtype = own_dtype(updates)
        grad = cast_like(ctx.extra_args["grad"], updates)
        value = jnp.asarray(ctx.extra_args["value"], dtype)
        box = ctx.extra_args.get("box")
        box = box if isinstance(box, Box) else None  # `value_fn` may have an argument of that name
        direction, slope = _downhill(ctx.params, updates, grad, box)
        value_fn = _with_its_arguments(ctx.extra_args)
        line = Line(value_fn, ctx.params, direction, value, grad, slope, box)
        found = self.search(line, cast(slots.learning_rate, dtype))
        return tree_scale(found.learning_rate, direction), found._replace(grad=conj(found.grad))

    def updates_kind(self, incoming: Updates) -> Updates:
        return incoming if incoming.is_mixed else Updates.STEP


def _with_its_arguments(extra_args: Mapping[str, Any]) -> Callable[..., Any]:
    """`value_fn` as a function of the params alone, given what else it names among the others."""
    value_fn = extra_args["value_fn"]
    named = {x.name for x in (parameters_of(value_fn) or [])[1:]} - LineSearch.extra_args.keys()
    own = {name: x for name, x in extra_args.items() if name in named}
    return partial(value_fn, **own) if own else value_fn


def _moved(params: PyTree, updates: PyTree) -> PyTree:
    return jax.tree.map(lambda p, u: cast(cast(p, u.dtype) + u, p.dtype), params, updates)


def past_rounding(x: jax.Array) -> jax.Array:
    """A step or a rate that surely reaches the bound; what is past it is projected."""
    return x * (1 + 4 * float(jnp.finfo(x.dtype).eps))


def _downhill(
    params: PyTree, updates: PyTree, grad: PyTree, box: Box | None
) -> tuple[PyTree, jax.Array]:
    """The updates, or the negative gradient if they climb, and the slope along the result."""
    slope = tree_sum(jax.tree.map(dot, grad, updates))
    climbs = slope > 0  # False for NaN, which stays visible.
    short = tree_scale(1 / jnp.maximum(largest(grad), 1), grad)
    if box is not None:
        short = box.projected_gradient(params, short)
    short = jax.tree.map(lax.neg, short)
    steepest = tree_sum(jax.tree.map(dot, grad, short))
    direction = jax.tree.map(lambda u, g: jnp.where(climbs, g, u), updates, short)
    return direction, jnp.where(climbs, steepest, slope)


def largest(tree: PyTree) -> jax.Array:
    """The magnitude of the largest entry; 0 for an empty tree."""
    dtype = own_dtype(tree)
    parts = [jnp.max(jnp.abs(x), initial=0).astype(dtype) for x in jax.tree.leaves(tree)]
    return reduce(jnp.maximum, parts, jnp.zeros((), dtype))


def value_and_grad(
    value_fn: Callable[..., Any], params: PyTree, like: PyTree
) -> tuple[jax.Array, PyTree]:
    """The value in the compute dtype of the tree `like`, and the gradient uphill in its dtypes."""
    value, grad = jax.value_and_grad(value_fn)(params)
    return cast(value, own_dtype(like)), uphill(grad, like)


def uphill(grad: PyTree, like: PyTree) -> PyTree:
    """The direction uphill: jax's gradient, or its conjugate for complex params."""
    return cast_like(conj(grad), like)


def conj(tree: PyTree) -> PyTree:
    """The conjugate: what jax calls the gradient of the direction uphill, and the reverse."""
    return jax.tree.map(lambda x: x.conj() if jnp.iscomplexobj(x) else x, tree)


def searches_in(state: Any) -> list[LineSearchState]:
    """The states of all line searches in an optimizer's state."""
    entries = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, LineSearchState))
    return [x for x in entries if isinstance(x, LineSearchState)]
