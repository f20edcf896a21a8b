"""Differentially private gradients: clipped per example, summed and noised.

These are functions, not stages of an optimizer: the gradients given to `update` have the shapes of
the params, whereas these take per-example gradients, with one more axis. They return an ordinary
gradient, for any optimizer.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optfn.core.dtypes import cast, compute_dtype, real_dtype
from optfn.core.inputs import check_floating, to_arrays
from optfn.core.numerics import Norm, joined, norms_along
from optfn.core.randomness import is_key, leaf_keys
from optfn.core.tree import PyTree, leaf_paths, location


def private_mean(
    grads: PyTree, l2_norm_clip: Any, noise_multiplier: Any, key: jax.Array, batch_size: Any = None
) -> PyTree:
    """The mean gradient of DP-SGD: each example's share is bounded, and noise hides it.

        sum of g_i * min(1, l2_norm_clip / ||g_i||) + l2_norm_clip * noise_multiplier * n
        ---------------------------------------------------------------------------------
                                           batch_size

    with n standard normal. It is `noisy_mean` of `per_example_global_norm_clip`; call these two for
    a batch whose gradients do not fit into memory, or to clip by layer.

        def step(params, state, batch):
            grads = jax.vmap(jax.grad(loss), in_axes=(None, 0))(params, batch)
            grads = private_mean(grads, 1.0, 1.1, jax.random.fold_in(key, state.step))
            return optfn.step(tx, params, grads, state)

    An accountant, such as dp-accounting, computes the privacy after many steps.

    Args:
        grads: a tree of gradients [batch, ...], one for each example.
        l2_norm_clip: C, the largest norm of one example's gradient over all leaves together.
        noise_multiplier: the standard deviation of the noise in the sum, in units of C.
        key: a key of `jax.random`, as in `noisy_mean`.
        batch_size: as in `noisy_mean`; None for the number of examples.

    Returns:
        A tree like the params, in float32 or wider.

    Raises:
        ValueError: a leaf has no axis of examples, or leaves differ in their number; there are no
            examples and no `batch_size`; a number is negative.
        TypeError: gradients are not floating point; `key` is not a random key.

    Source: Abadi et al. 2016.
    """
    rows = _number_of_examples(_gradients(grads)) if batch_size is None else batch_size
    clipped, _ = per_example_global_norm_clip(grads, l2_norm_clip)
    return noisy_mean(clipped, l2_norm_clip, noise_multiplier, key, rows)


def noisy_mean(
    total: PyTree, l2_norm_clip: Any, noise_multiplier: Any, key: jax.Array, batch_size: Any
) -> PyTree:
    """A sum plus Gaussian noise, divided by the batch size.

        (total + l2_norm_clip * noise_multiplier * n) / batch_size        n standard normal

    Add the noise once per batch, to the sum over all micro-batches and devices:

        def clipped(params, rows):
            grads = jax.vmap(jax.grad(loss), in_axes=(None, 0))(params, rows)
            return per_example_global_norm_clip(grads, 1.0)

        total, count = microbatch(clipped, argnums=1, microbatch_size=64, accumulator="sum")(
            params, batch
        )
        grads = noisy_mean(total, 1.0, 1.1, key, batch_size)

    The real and the imaginary part of a complex entry each get noise of this size, since the norm
    is over both.

    Args:
        total: the sum of the clipped gradients, a tree like the params.
        l2_norm_clip: the largest norm of one example's share of the sum.
        noise_multiplier: the standard deviation of the noise, in units of `l2_norm_clip`.
        key: a key of `jax.random`, the same on all devices and used at one step only: with equal
            noise the difference of two sums reveals what the noise hides.
        batch_size: the divisor. With Poisson sampling, the expected batch size: the actual one
            reveals whether an example was drawn.

    Returns:
        A tree like `total`, in float32 or wider.

    Raises:
        ValueError: `batch_size` is 0, or a number is negative.
        TypeError: `total` is not floating point; `key` is not a random key.
    """
    total = _gradients(total)
    clip = _scalar(l2_norm_clip, "l2_norm_clip")
    multiplier = _scalar(noise_multiplier, "noise_multiplier")
    # An infinite clip needs a multiplier of 0, and inf * 0 is NaN.
    deviation = jnp.where(multiplier == 0, 0, clip * multiplier)
    size = _scalar(batch_size, "batch_size", above_zero=True)
    leaves, treedef = jax.tree.flatten(total)
    keys = leaf_keys(_checked_key(key), "noisy_mean", total)

    def noised(x: jax.Array, key: jax.Array) -> jax.Array:
        real = real_dtype(x.dtype)
        return (x + cast(deviation, real) * _standard_normal(key, x)) / cast(size, real)

    return treedef.unflatten([noised(*pair) for pair in zip(leaves, keys, strict=True)])


def per_example_global_norm_clip(grads: PyTree, l2_norm_clip: Any) -> tuple[PyTree, jax.Array]:
    """The sum of per-example gradients, each clipped to a norm of at most `l2_norm_clip`.

        sum of g_i * min(1, l2_norm_clip / ||g_i||)        ||g_i|| over all leaves together

    Norms are in float32 or wider, at any scale. An example whose gradient is not finite adds
    nothing, so the bound holds for it too.

    Args:
        grads: a tree of gradients [batch, ...], one for each example.
        l2_norm_clip: the largest norm of one example's gradient; not negative.

    Returns:
        The sum, a tree like the params in float32 or wider, and an int32 scalar: the number of
        examples clipped or left out.

    Raises:
        ValueError: as `private_mean`.
        TypeError: as `private_mean`.
    """
    grads = _gradients(grads)
    _number_of_examples(grads)
    clip = _scalar(l2_norm_clip, "l2_norm_clip")
    return _clipped_sum(grads, joined([_norms(g) for g in jax.tree.leaves(grads)]), clip)


def per_example_layer_norm_clip(
    grads: PyTree, global_l2_norm_clip: Any, uniform: bool = True
) -> tuple[PyTree, PyTree]:
    """The sum of per-example gradients, each of their leaves clipped separately.

        sum of g_i * min(1, C_k / ||g_i||)        ||g_i|| over one leaf, the k-th of K
        C_k = C / sqrt(K), or C * sqrt(the leaf's share of all entries)

    The norm of an example's share over all leaves is at most C = `global_l2_norm_clip`. For layers
    whose gradients differ much in size: under one global norm only the largest would count. A leaf
    that is not finite adds nothing.

    Args:
        grads: a tree of gradients [batch, ...], one for each example.
        global_l2_norm_clip: C, not negative.
        uniform: True for the same C_k in all leaves, False for a larger C_k in larger leaves.

    Returns:
        The sum, a tree like the params in float32 or wider, and a tree of int32 scalars: the number
        of examples clipped or left out in each leaf.

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


def _clipped_sum(grads: PyTree, norms: Norm, clip: jax.Array) -> tuple[PyTree, jax.Array]:
    within, finite = norms.value <= clip, jnp.isfinite(norms.relative)
    scale, relative = (jnp.where(within, 1, x) for x in norms)

    def clipped(g: jax.Array) -> jax.Array:
        def by_row(x):
            return x.reshape(-1, *[1] * (g.ndim - 1))

        real = real_dtype(g.dtype)
        # Not clip / norm first, which may underflow.
        shrunk = g / by_row(cast(scale, real)) * by_row(cast(clip / relative, real))
        kept = jnp.where(by_row(within), g, shrunk)
        return jnp.where(by_row(finite), kept, 0).sum(0)

    return jax.tree.map(clipped, grads), jnp.sum(~(within & finite), dtype=jnp.int32)


def _norms(g: jax.Array) -> Norm:
    """The norm of each example."""
    return Norm(*(x.reshape(len(g)) for x in norms_along(tuple(range(1, g.ndim)), g)))


def _standard_normal(key: jax.Array, x: jax.Array) -> jax.Array:
    """Normal noise like x, with variance 1 in each real and each imaginary part."""
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
    """The key, if it is one random key, typed or raw."""
    dtype, shape = getattr(key, "dtype", None), jnp.shape(key)
    if (is_key(key) and shape == ()) or (dtype == jnp.uint32 and len(shape) == 1):
        return key
    raise TypeError(f"key must be one key of jax.random, found {key!r}.")
