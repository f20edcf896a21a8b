"""The gradient noise scale: how large a batch is worth its cost."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optfn.core.control_flow import cond
from optfn.core.data import check_within
from optfn.core.each_leaf import each_leaf
from optfn.core.holes import floating, view
from optfn.core.inputs import check_floating, to_arrays
from optfn.core.mapped import total
from optfn.core.numerics import abs_sq, dot, ratio, tree_sum
from optfn.core.slot_kinds import Signed
from optfn.core.slots import scalar_slot, zero_slot, zeros_of
from optfn.core.state import Context
from optfn.core.transform import Transform
from optfn.core.tree import PyTree, flatten_like


class NoiseEstimate(NamedTuple):
    """The gradients of the present group, and averages over the groups before it.

    Attributes:
        sum: the sum of the gradients.
        squares: the sum of their squared norms.
        count: int32 scalar, how many there are.
        signal: the running average of the estimates of |G|^2.
        noise: the running average of the estimates of tr(S).
        weight: the sum of the weights in both averages; 0 before the first group is complete.
    """

    sum: Signed
    squares: jax.Array
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    signal: jax.Array
    noise: jax.Array
    weight: jax.Array


class gradient_noise_scale(Transform):
    """Measures the gradient noise scale, and lets the updates pass unchanged.

    The batch size at which noise and signal are alike. Far below it, a batch of twice the size
    needs half the steps; far above, it saves none:

        noise_scale = tr(S) / |G|^2        G the mean, S the covariance of examples' gradients

    With n gradients of b examples each, at the same params, the squared norms of two batch sizes
    give both, without bias:

        |G|^2  is  (n * |mean of the g|^2 - mean of |g|^2) / (n - 1)
        tr(S)  is  b * n / (n - 1) * (mean of |g|^2 - |mean of the g|^2)

    It stands before an optimizer that accumulates, with the same `every`, where all gradients of a
    group are taken at the same params:

        tx = chain(gradient_noise_scale(batch_size=32, every=8), accumulate(adamw(1e-3), every=8))
        ...
        optfn.metrics(tx, state)["noise_scale"]

    Before an optimizer that steps every time it takes each two gradients in a row for a group. This
    adds what the true gradient changed in a step to the noise: little, if steps are small and
    gradients noisy. A gradient that is not finite is left out. It must see raw gradients: before
    any clip.

    Its metrics are `noise_scale`, in examples, and what it is the ratio of, `signal` and `noise`,
    each averaged over groups; all are 0 before the first group is complete. Where the average of
    |G|^2 is not above 0, as may be while it is of few groups, `noise_scale` is infinite. It holds
    one array like each param and reads the gradients twice.

    Args:
        batch_size: the examples that each gradient is the mean of, a number.
        every: the gradients of a group, a number or a schedule; rounded, and at least 2.
        decay: what is kept of the averages at each group, a number or a schedule. The ratio is of
            averages, since each estimate alone is noisy.

    Raises:
        ValueError: a number is out of its range.

    Source: McCandlish et al. 2018, "An empirical model of large-batch training", appendix A.
    """

    splittable = True

    batch_size: Any
    every: Any = 2
    decay: Any = 0.95

    def __post_init__(self) -> None:
        super().__post_init__()
        limits = {"batch_size": (1, math.inf), "every": (2, math.inf), "decay": (0, 1)}
        for name, limit in limits.items():
            check_within(getattr(self, name), limit, f"gradient_noise_scale({name}=...)")

    def init_slots(self, params: PyTree) -> NoiseEstimate:
        # An integer param can only be frozen; it has no gradient.
        return NoiseEstimate(
            sum=zeros_of(view(params, floating(params))),
            squares=scalar_slot(0, params),
            count=zero_slot(jnp.int32, params),
            signal=scalar_slot(0, params),
            noise=scalar_slot(0, params),
            weight=scalar_slot(0, params),
        )

    def measurements(self, slots: Any) -> dict[str, jax.Array]:
        nothing = slots.weight == 0
        known = slots.signal > 0
        scale = jnp.where(known, slots.noise / jnp.where(known, slots.signal, 1), jnp.inf)
        return {
            "noise_scale": jnp.where(nothing, 0, scale),
            "signal": ratio(slots.signal, slots.weight),
            "noise": ratio(slots.noise, slots.weight),
        }

    def apply(self, updates: PyTree, slots: Any, ctx: Context) -> tuple[PyTree, Any]:
        sums = flatten_like(slots.sum, updates, f"the slots {self.name}.sum", "updates")
        grads = view(updates, [x is not None for x in sums])
        check_floating("the gradient", grads)
        square = _square(grads)
        kept = jnp.isfinite(square)

        def added(new: Any, plus: Any, before: Any) -> jax.Array:
            return jnp.where(kept, jnp.where(slots.count == 0, new, plus), before)

        (plus,) = each_leaf(_plus, grads, slots.sum)
        summed = jax.tree.map(added, grads, plus, slots.sum)
        squares = added(square, slots.squares + square, slots.squares)
        count = slots.count + kept.astype(jnp.int32)
        group = jnp.maximum(jnp.round(self.every), 2)
        due = kept & (count.astype(group.dtype) >= group)
        averages = (slots.signal, slots.noise, slots.weight)

        def renewed(averages: tuple) -> tuple:
            n = jnp.maximum(count, 2).astype(square.dtype)
            of_one, of_mean = squares / n, _square(summed) / n**2
            signal = (n * of_mean - of_one) / (n - 1)
            noise = self.batch_size * n / (n - 1) * (of_one - of_mean)
            new = (signal, noise, jnp.ones_like(signal))
            return tuple(
                (self.decay * x + (1 - self.decay) * y).astype(x.dtype)
                for x, y in zip(averages, new, strict=True)
            )

        averages = cond(due, renewed, lambda averages: averages, averages)
        return updates, NoiseEstimate(summed, squares, jnp.where(due, 0, count), *averages)


def _plus(g, before):
    return (before + g,)


def _square(tree: PyTree) -> jax.Array:
    return tree_sum([total(abs_sq(x)) for x in jax.tree.leaves(tree)])


class NoiseScale(NamedTuple):
    """The noise scale at given params, in examples; scalars.

    Attributes:
        simple: tr(S) / |G|^2, which `gradient_noise_scale` estimates.
        curved: tr(H S) / G^T H G, the batch size at which the best step along the gradient makes
            half of the progress that it makes without noise; `simple` is this for a Hessian H that
            is a multiple of the identity. None if it was not asked for.
        signal: |G|^2, the squared norm of the gradient.
        noise: tr(S), the sum of the variances of its entries over the examples.
    """

    simple: jax.Array
    curved: jax.Array | None
    signal: jax.Array
    noise: jax.Array


def exact_noise_scale(
    loss: Callable[[PyTree, PyTree], jax.Array],
    params: PyTree,
    data: PyTree,
    *,
    curvature: bool = True,
) -> NoiseScale:
    """The gradient noise scale from the gradient of every example, for small problems.

    Exact for batches drawn with replacement from the data. The examples are taken one after the
    other, so it holds a few arrays like the params, and takes as long as a gradient of each example
    and, with `curvature`, a product of the Hessian with each.

        exact_noise_scale(loss, params, (x, y)).simple

    Args:
        loss: `loss(params, batch)`, the mean over the rows of a batch.
        params: where it is measured.
        data: a tree of arrays `[examples, ...]`.
        curvature: whether to measure `curved`, for which the loss needs second derivatives.

    Raises:
        ValueError: the arrays of the data differ in their numbers of examples.

    Source: McCandlish et al. 2018, "An empirical model of large-batch training".
    """
    data = to_arrays(data, "exact_noise_scale(data=...)")
    sizes = {x.shape[0] if x.ndim else 0 for x in jax.tree.leaves(data)}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(
            "exact_noise_scale(data=...) must be arrays with the same number of examples in front, "
            f"found {sorted(sizes) or 'none'}."
        )
    return _exact(loss, to_arrays(params, "the param"), data, curvature)


@partial(jax.jit, static_argnames=("loss", "curvature"))
def _exact(loss: Callable[..., Any], params: PyTree, data: PyTree, curvature: bool) -> NoiseScale:
    mean = jax.grad(loss)(params, data)

    def bent(v: PyTree) -> jax.Array:
        """v^T H v with the Hessian of the whole loss."""
        _, product = jax.jvp(jax.grad(lambda p: loss(p, data)), (params,), (v,))
        return _dot(v, product)

    def of_example(example: PyTree) -> tuple:
        # A batch of one. Differences from the mean lose no digits where noise is small.
        g = jax.grad(loss)(params, jax.tree.map(lambda x: x[None], example))
        g = jax.tree.map(jnp.subtract, g, mean)
        return _dot(g, g), bent(g) if curvature else None

    noise, along = jax.tree.map(jnp.mean, jax.lax.map(of_example, data))
    signal = _dot(mean, mean)
    curved = ratio(along, bent(mean)) if curvature else None
    return NoiseScale(ratio(noise, signal), curved, signal, noise)


def _dot(a: PyTree, b: PyTree) -> jax.Array:
    products = [dot(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)]
    return tree_sum(products)
