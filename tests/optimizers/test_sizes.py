"""Stages about the size of updates, some against that of the params, on arrays of every rank."""

import jax
import numpy as np
import optax
import pytest

import optfn

rng = np.random.default_rng(0)
SHAPES = [(), (1,), (4,), (3, 4), (1, 4), (2, 3, 4), (2, 2, 3, 4)]
PARAMS = {str(shape): np.float32(rng.normal(size=shape)) for shape in SHAPES}
GRADS = {name: 3 * np.float32(rng.normal(size=p.shape)) for name, p in PARAMS.items()}


def norm(x, **kwargs):
    return np.sqrt(np.sum(abs(x) ** 2, **kwargs))


def centralized(g, p):
    return g - g.mean(axis=tuple(range(1, g.ndim)), keepdims=True) if g.ndim > 1 else g


def clipped_by_unit(g, p):
    """The slices of one output: along the last axis of a matrix or a convolution's kernel."""
    axes = {2: (0,), 3: (0,), 4: (0, 1, 2)}.get(g.ndim)
    axes = None if max(g.shape, default=1) == g.size else axes
    limit = 0.1 * np.maximum(norm(p, axis=axes, keepdims=True), 1e-3)
    return g * np.minimum(1, limit / norm(g, axis=axes, keepdims=True))


STAGES = {
    "scale_by_param_block_norm": ((), lambda g, p: g * max(norm(p), 1e-3)),
    "scale_by_param_block_rms": ((), lambda g, p: g * max(norm(p) / p.size**0.5, 1e-3)),
    "clip_by_block_rms": ((1.0,), lambda g, p: g / max(1, norm(g) / g.size**0.5)),
    "adaptive_grad_clip": ((0.1,), clipped_by_unit),
    "centralize": ((), centralized),
}


@pytest.mark.parametrize("name", STAGES)
def test_stages_do_what_they_say_and_what_optax_does(name):
    """At a few roundings of float32. optax has no norm of a scalar."""
    arguments, definition = STAGES[name]
    for library in (optfn, optax):
        keys = PARAMS.keys() - ({"()"} if library is optax else set())
        params, grads = ({k: tree[k] for k in keys} for tree in (PARAMS, GRADS))
        tx = getattr(library, name)(*arguments)
        found, _ = tx.update(grads, tx.init(params), params)
        for key, g in grads.items():
            wanted = definition(g.astype(float), params[key].astype(float))
            np.testing.assert_allclose(found[key], wanted, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("size", [1e-25, 1.0, 1e25])
def test_normalized_updates_have_one_norm(size):
    grads = jax.tree.map(lambda g: np.float32(size) * g, GRADS)
    tx = optfn.normalize_by_update_norm(2.0, eps=0.0)
    updates, _ = tx.update(grads, tx.init(grads))
    flat = np.concatenate([np.ravel(u) for u in jax.tree.leaves(updates)])
    np.testing.assert_allclose(norm(flat.astype(float)), 2.0, rtol=1e-6)
    if size == 1:
        theirs, _ = optax.normalize_by_update_norm(2.0, eps=0.0).update(grads, optax.EmptyState())
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6), updates, theirs)


def test_units_may_be_given():
    tx = optfn.adaptive_grad_clip(0.1, axis=(1,))
    g, p = GRADS["(3, 4)"], PARAMS["(3, 4)"]
    found, _ = tx.update(g, tx.init(p), p)
    limit = 0.1 * norm(p, axis=1, keepdims=True)
    wanted = g * np.minimum(1, limit / norm(g, axis=1, keepdims=True))
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
