"""Differentially private gradients: clipped example by example, summed, noised.

They are functions and no stages of an optimizer. `update` maps a tree to one of the same shapes,
those of the params, whereas these take a gradient for each example, with one axis more. What they
return is a gradient as any other, for any optimizer.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optfn.core.dtypes import cast, compute_dtype, real_dtype
from optfn.core.inputs import check_floating, to_arrays
from optfn.core.numerics import norms_along
from optfn.core.randomness import leaf_keys
from optfn.core.tree import PyTree, leaf_paths, location


def private_mean(
    grads: PyTree, l2_norm_clip: Any, noise_multiplier: Any, key: jax.Array, batch_size: Any = None
) -> PyTree:
    """The mean gradient of DP-SGD, of which no example has more than a bounded, noised share.

        sum of g_i * min(1, l2_norm_clip / ||g_i||) + l2_norm_clip * noise_multiplier * n
        ---------------------------------------------------------------------------------
                                           batch_size

    with n standard normal. `noisy_mean` of `per_example_global_norm_clip`; take the two apart for
    a batch whose gradients do not fit into memory, or to clip by layers.

        def step(params, state, batch):
            grads = jax.vmap(jax.grad(loss), in_axes=(None, 0))(params, batch)
            grads = private_mean(grads, 1.0, 1.1, jax.random.fold_in(key, state.step))
            return optfn.step(tx, grads, state, params)

    What privacy that gives after many steps is for an accountant to say, such as dp-accounting.

    Args:
        grads: a tree of gradients [batch, ...], one for each example.
        l2_norm_clip: C, the largest norm of one example's gradient over all leaves together.
        noise_multiplier: the standard deviation of the noise in the sum, in units of C.
        key: a key of `jax.random`, as in `noisy_mean`.
        batch_size: as in `noisy_mean`; None is the number of examples.

    Returns:
        A tree like the params, in float32 or wider.

    Raises:
        ValueError: leaves without an axis of examples or with different numbers of them; no
            examples, and no `batch_size`; a negative number.
        TypeError: gradients that are no floating point numbers; a key that is none.

    Source: Abadi et al. 2016.
    """
    rows = _number_of_examples(_gradients(grads)) if batch_size is None else batch_size
    clipped, _ = per_example_global_norm_clip(grads, l2_norm_clip)
    return noisy_mean(clipped, l2_norm_clip, noise_multiplier, key, rows)


def noisy_mean(
    total: PyTree, l2_norm_clip: Any, noise_multiplier: Any, key: jax.Array, batch_size: Any
) -> PyTree:
    """A sum with Gaussian noise, divided by the batch size.

        (total + l2_norm_clip * noise_multiplier * n) / batch_size        n standard normal

    The noise is added once for the whole batch, to the sum over all of its parts and devices:

        def clipped(params, rows):
            grads = jax.vmap(jax.grad(loss), in_axes=(None, 0))(params, rows)
            return per_example_global_norm_clip(grads, 1.0)

        total, count = microbatch(clipped, argnums=1, microbatch_size=64, accumulator="sum")(
            params, batch
        )
        grads = noisy_mean(total, 1.0, 1.1, key, batch_size)

    The real and the imaginary part of a complex entry get noise of this size each, for the norm is
    that of both.

    Args:
        total: the sum of the clipped gradients, a tree like the params.
        l2_norm_clip: the largest norm of what one example adds to the sum.
        noise_multiplier: the standard deviation of the noise, in units of `l2_norm_clip`.
        key: a key of `jax.random`, of this step alone: two sums with the same noise differ by what
            the noise is to hide. The same on all devices.
        batch_size: what to divide by. Where each example is drawn by chance, as the accounting for
            Poisson sampling has it, this is the expected number: the true one tells of a member.

    Returns:
        A tree like `total`, in float32 or wider.

    Raises:
        ValueError: a `batch_size` of 0, or a negative number.
        TypeError: a sum that is of no floating point numbers; a key that is none.
    """
    total = _gradients(total)
    clip = _scalar(l2_norm_clip, "l2_norm_clip")
    multiplier = _scalar(noise_multiplier, "noise_multiplier")
    # Without a bound there can be no noise, and inf * 0 is NaN.
    deviation = jnp.where(multiplier == 0, 0, clip * multiplier)
    size = _scalar(batch_size, "batch_size", above_zero=True)
    leaves, treedef = jax.tree.flatten(total)
    keys = leaf_keys(_checked_key(key), "noisy_mean", total)

    def noised(x: jax.Array, key: jax.Array) -> jax.Array:
        real = real_dtype(x.dtype)
        return (x + cast(deviation, real) * _standard_normal(key, x)) / cast(size, real)

    return treedef.unflatten([noised(*pair) for pair in zip(leaves, keys, strict=True)])


def per_example_global_norm_clip(grads: PyTree, l2_norm_clip: Any) -> tuple[PyTree, jax.Array]:
    """The sum of the gradients of a batch, each shrunk to a norm of at most `l2_norm_clip`.

        sum of g_i * min(1, l2_norm_clip / ||g_i||)        ||g_i|| over all leaves together

    The norms are those of float32 or wider in any range. An example whose gradient is not finite
    adds nothing, so that the bound on its share holds for it too.

    Args:
        grads: a tree of gradients [batch, ...], one for each example.
        l2_norm_clip: not negative.

    Returns:
        The sum, a tree like the params in float32 or wider, and an int32 scalar: how many examples
        were shrunk or left out.

    Raises:
        ValueError: as `private_mean`.
        TypeError: as `private_mean`.
    """
    grads = _gradients(grads)
    _number_of_examples(grads)
    clip = _scalar(l2_norm_clip, "l2_norm_clip")
    norms = jnp.stack([_norms(g) for g in jax.tree.leaves(grads)], axis=1)
    return _clipped_sum(grads, norms_along(1, norms)[:, 0], clip)


def per_example_layer_norm_clip(
    grads: PyTree, global_l2_norm_clip: Any, uniform: bool = True
) -> tuple[PyTree, PyTree]:
    """The sum of the gradients of a batch, each array of each example shrunk on its own.

        sum of g_i * min(1, C_k / ||g_i||)        ||g_i|| over one array, the k-th of K
        C_k = C / sqrt(K), or C * sqrt(its share of all entries)

    The norm of what an example adds is at most C = `global_l2_norm_clip`, over all arrays. For
    layers whose gradients differ much in size, of which the largest alone would be left otherwise.
    An array that is not finite adds nothing.

    Args:
        grads: a tree of gradients [batch, ...], one for each example.
        global_l2_norm_clip: C, not negative.
        uniform: whether all arrays have the same C_k, or larger ones a larger one.

    Returns:
        The sum, a tree like the params in float32 or wider, and int32 scalars in such a tree: how
        many examples were shrunk or left out.

    Raises:
        ValueError: as `private_mean`.
        TypeError: as `private_mean`.

    Source: McMahan et al. 2018.
    """
    grads = _gradients(grads)
    _number_of_examples(grads)
    clip = _scalar(global_l2_norm_clip, "global_l2_norm_clip")
    leaves, treedef = jax.tree.flatten(grads)
    sizes = [1 if uniform else int(np.prod(g.shape[1:])) for g in leaves]
    parts = [clip * (size / max(sum(sizes), 1)) ** 0.5 for size in sizes]
    results = [_clipped_sum(g, _norms(g), c) for g, c in zip(leaves, parts, strict=True)]
    sums, counts = zip(*results, strict=True)
    return treedef.unflatten(sums), treedef.unflatten(counts)


def _clipped_sum(grads: PyTree, norms: jax.Array, clip: jax.Array) -> tuple[PyTree, jax.Array]:
    within, finite = norms <= clip, jnp.isfinite(norms)
    divisor = jnp.where(within, 1, norms)

    def clipped(g: jax.Array) -> jax.Array:
        def by_row(x):
            return x.reshape(-1, *[1] * (g.ndim - 1))

        real = real_dtype(g.dtype)
        # Not clip / norm first, which may vanish.
        shrunk = g / by_row(cast(divisor, real)) * cast(clip, real)
        kept = jnp.where(by_row(within), g, shrunk)
        return jnp.where(by_row(finite), kept, 0).sum(0)

    return jax.tree.map(clipped, grads), jnp.sum(~(within & finite), dtype=jnp.int32)


def _norms(g: jax.Array) -> jax.Array:
    """The norm of each row."""
    return norms_along(tuple(range(1, g.ndim)), g).reshape(len(g))


def _standard_normal(key: jax.Array, x: jax.Array) -> jax.Array:
    """Like x, with variance 1 in each real number, of which a complex one is two."""
    real = real_dtype(x.dtype)
    if not jnp.iscomplexobj(x):
        return jax.random.normal(key, x.shape, real)
    return jax.lax.complex(*jax.random.normal(key, (2, *x.shape), real))


def _gradients(grads: PyTree) -> PyTree:
    grads = to_arrays(grads, "the gradient")
    check_floating("the gradient", grads)
    return jax.tree.map(lambda g: cast(g, compute_dtype(g.dtype)), grads)


def _number_of_examples(grads: PyTree) -> int:
    first = None
    for path, g in zip(leaf_paths(grads), jax.tree.leaves(grads), strict=True):
        if not g.ndim:
            raise ValueError(
                f"the gradient {location(path)} is a scalar: per-example gradients have a first "
                "axis of examples, as jax.vmap(jax.grad(loss), in_axes=(None, 0)) gives them."
            )
        first = first or (len(g), path)
        if len(g) != first[0]:
            raise ValueError(
                f"the gradient {location(path)} is of {len(g)} examples, {location(first[1])} of "
                f"{first[0]}: per-example gradients have a first axis of examples."
            )
    if first is None:
        raise ValueError("the gradients have no leaves.")
    return first[0]


def _scalar(value: Any, name: str, *, above_zero: bool = False) -> jax.Array:
    if jnp.shape(value):
        raise ValueError(f"{name} must be a scalar, found shape {jnp.shape(value)}.")
    known = isinstance(value, (int, float, np.number))
    if known and not (value > 0 if above_zero else value >= 0):
        wanted = "above 0" if above_zero else "not negative"
        raise ValueError(f"{name} must be {wanted}, found {value}.")
    return jnp.asarray(value, float)


def _checked_key(key: Any) -> jax.Array:
    """A key, typed or of the old form."""
    dtype, shape = getattr(key, "dtype", None), jnp.shape(key)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if (typed and shape == ()) or (dtype == jnp.uint32 and len(shape) == 1):
        return key
    raise TypeError(f"key must be one key of jax.random, found {key!r}.")
