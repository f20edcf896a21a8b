"""Sophia, and estimates of the Hessian's diagonal for it."""

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.typing import DTypeLike

from optfn.compose.chain import chain
from optfn.core.control_flow import refreshed
from optfn.core.data import child, storage_dtype
from optfn.core.dtypes import cast, dtype_of, is_complex, own_dtype, widen
from optfn.core.each_leaf import each_leaf
from optfn.core.moments import average, debias
from optfn.core.numerics import propagate_nan
from optfn.core.randomness import key_at, leaf_keys, seed
from optfn.core.slot_kinds import Signed
from optfn.core.slots import zeros_of
from optfn.core.state import Context
from optfn.core.transform import Transform, as_transform
from optfn.core.tree import PyTree
from optfn.core.updates_kind import Updates
from optfn.transforms.clip import clip_entries
from optfn.transforms.decay import add_decayed_weights
from optfn.transforms.scale import scale_by_learning_rate


class hutchinson_estimator_diag_hessian(Transform):
    """Hutchinson's estimate of the diagonal of the Hessian, from one product with random signs.

        u = z * (H z)        z of +1 and -1 with equal odds

    `update` takes the loss, a function of the params, as the keyword argument `obj_fn`; the
    incoming updates do not matter. For a complex param the estimate is the mean of the curvatures
    along the real and the imaginary axis.

    Args:
        random_seed: the seed of the signs, a whole number below 2^24 or a random key.

    Raises:
        ValueError: `update` was not given the params.

    Source: Hutchinson 1989.
    """

    needs_params = True
    random = True
    extra_args: ClassVar = {"obj_fn": "function"}

    random_seed: Any = seed()

    def apply(self, updates: PyTree, slots: Any, ctx: Context) -> tuple[PyTree, Any]:
        key = key_at(self.random_seed, ctx.step, f"{self.name}.random_seed")
        leaves, treedef = jax.tree.flatten(ctx.params)
        keys = leaf_keys(key, self.name, ctx.params)
        signs = treedef.unflatten([_signs(k, p) for k, p in zip(keys, leaves, strict=True)])
        _, product = jax.jvp(jax.grad(ctx.extra_args["obj_fn"]), (ctx.params,), (signs,))
        return each_leaf(_signed, updates, product, signs)[0], slots


HUTCHINSON = hutchinson_estimator_diag_hessian()


def _signs(key: jax.Array, param: jax.Array) -> jax.Array:
    if jnp.iscomplexobj(param):
        return lax.complex(*map(_signs, jax.random.split(key), (param.real, param.imag)))
    # Not `rademacher`, which compares float64 numbers where x64 is on.
    up = jax.random.bits(key, param.shape, jnp.uint8) < 128
    return jnp.where(up, 1, -1).astype(param.dtype)


def _signed(g, product, signs):
    # For a complex param jax's gradient is the conjugate of the direction uphill.
    if jnp.iscomplexobj(signs):
        return (lax.complex((product * signs).real / 2, jnp.zeros_like(signs.real)),)
    return (product * signs,)


class given_hessian_diagonal(Transform):
    """An estimate of the Hessian's diagonal that the caller supplies.

    `update` takes it as the keyword argument `hessian_diag`, a tree like the params. It is required
    at every step, and used at those where `scale_by_sophia` needs an estimate.
    """

    elementwise = True
    extra_args: ClassVar = {"hessian_diag": "tree"}

    def apply(self, updates: PyTree, slots: Any, ctx: Context) -> tuple[PyTree, Any]:
        given = ctx.extra_args["hessian_diag"]
        for g, h in zip(jax.tree.leaves(updates), jax.tree.leaves(given), strict=False):
            if is_complex(dtype_of(h)) and not is_complex(g.dtype):
                raise TypeError(f"a complex value cannot be stored as {g.dtype.name}.")
        return each_leaf(_given, updates, given)[0], slots


def _given(g, hessian):
    return (cast(hessian, g.dtype),)


class Curvature(NamedTuple):
    """The averages of the gradient and of the Hessian's diagonal, and the estimator's slots."""

    mu: Signed
    nu: Signed
    estimator: Any


class scale_by_sophia(Transform):
    """The direction of Sophia: Newton's step on the Hessian's diagonal, with clipped entries.

        mu <- b1 * mu + (1 - b1) * g
        u = clip(mu_hat / max(gamma * nu, eps), clip_threshold)
        nu <- b2 * nu + (1 - b2) * h        after every `update_interval`-th step from the first on

    with h from the estimator, which runs only then; in the lanes of a `vmap`, when it is due in any
    of them. Where the curvature is small, negative or not yet estimated, u is the sign of mu.

    Args:
        b1: decay of the average gradient, a number or a schedule.
        b2: decay of the average curvature, a number or a schedule.
        eps: the smallest divisor.
        gamma: a factor on the curvature, a number or a schedule. A larger one clips fewer entries;
            the authors keep the share of unclipped entries between a tenth and a half.
        clip_threshold: the largest entry of u, a number or a schedule; inf does not clip.
        update_interval: the steps between two estimates, a number or a schedule.
        hessian_diagonal_fn: the estimator: a transform whose updates are the estimate. Hutchinson's
            takes the keyword argument `obj_fn`, the loss as a function of the params.
        mu_dtype: the dtype in which mu is stored; None is float32, or wider for wider params.

    Source: Liu et al. 2024.
    """

    elementwise = True

    b1: Any = 0.965
    b2: Any = 0.99
    eps: Any = 1e-8
    gamma: Any = 0.01
    clip_threshold: Any = 1.0
    update_interval: Any = 10
    hessian_diagonal_fn: Transform = child(default=HUTCHINSON, converter=as_transform)
    mu_dtype: Any = storage_dtype("mu", default=None)

    def init_slots(self, params: PyTree) -> Curvature:
        estimator = self.hessian_diagonal_fn.init_named(params)
        mu = zeros_of(params, dtype=self.mu_dtype)
        return Curvature(mu, zeros_of(params, real=True), estimator)

    def inner(self, slots: Any, step: Any, label: str) -> tuple[Any, Any]:
        return slots.estimator, step

    def with_inner(self, slots: Any, label: str, new: Any) -> Curvature:
        return slots._replace(estimator=new)

    def apply(self, updates: PyTree, slots: Any, ctx: Context) -> tuple[PyTree, Any]:
        t = ctx.next_step.astype(own_dtype(updates))
        numbers = self.b1, t, self.gamma, self.eps, self.clip_threshold
        u, mu = each_leaf(_clipped_newton, updates, slots.mu, slots.nu, numbers=numbers)

        def estimated():
            h, estimator = self.hessian_diagonal_fn.apply_named(updates, slots.estimator, ctx)
            return each_leaf(_average_curvature, h, nu, numbers=(self.b2,))[0], estimator

        interval = jnp.maximum(jnp.asarray(self.update_interval), 1).astype(jnp.int32)
        due = ctx.step % interval == 0
        nu = jax.tree.map(lambda x, g: widen(x, g.dtype), slots.nu, updates)
        nu, estimator = refreshed(due, estimated, (nu, slots.estimator))
        return u, Curvature(mu, nu, estimator)

    def updates_kind(self, incoming: Updates) -> Updates:
        return incoming  # the updates of the estimator are an estimate


def _clipped_newton(g, mu, nu, b1, t, gamma, eps, limit):
    mu = average(b1, mu, g)
    newton = debias(mu, b1, t) / jnp.maximum(gamma * nu, eps)
    return propagate_nan(clip_entries(newton, limit), mu), mu


def _average_curvature(h, nu, b2):
    return (average(b2, nu, h.real),)


def sophia(
    learning_rate: Any,
    b1: Any = 0.965,
    b2: Any = 0.99,
    eps: Any = 1e-8,
    weight_decay: Any = 1e-4,
    weight_decay_mask: Any = None,
    gamma: Any = 0.01,
    clip_threshold: Any = 1.0,
    update_interval: Any = 10,
    hessian_diagonal_fn: optax.GradientTransformation = HUTCHINSON,
    mu_dtype: DTypeLike | None = None,
) -> chain:
    """Sophia: clipped Newton steps on the diagonal of the Hessian, for language models.

    Estimating the curvature, every tenth step, costs about as much as a gradient. With the
    default estimator `update` takes the loss of the batch as the keyword argument `obj_fn`, a
    function of the params. The rule is `scale_by_sophia`, then
    p <- p - learning_rate * (u + weight_decay * p).

    Args:
        learning_rate: a number or a schedule.
        b1: decay of the average gradient.
        b2: decay of the average curvature.
        eps: the smallest divisor.
        weight_decay: a number or a schedule.
        weight_decay_mask: where to decay, a bool per leaf; see `add_decayed_weights`.
        gamma: a factor on the curvature.
        clip_threshold: the largest entry of u; None does not clip.
        update_interval: the steps between two estimates.
        hessian_diagonal_fn: the estimator; see `scale_by_sophia`.
        mu_dtype: the dtype in which the average gradient is stored; see `scale_by_sophia`.

    Source: Liu et al. 2024.
    """
    limit = float("inf") if clip_threshold is None else clip_threshold
    return chain(
        scale_by_sophia(b1, b2, eps, gamma, limit, update_interval, hessian_diagonal_fn, mu_dtype),
        add_decayed_weights(weight_decay, weight_decay_mask),
        scale_by_learning_rate(learning_rate),
    )
