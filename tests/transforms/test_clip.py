"""Clips: by array, of any size, to zero, and with schedules for their thresholds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optfn
from optfn import schedules

rng = np.random.default_rng(0)
GRADS = {
    "matrix": rng.normal(size=(4, 3)).astype(np.float32),
    "complex": (rng.normal(size=5) + 1j * rng.normal(size=5)).astype(np.complex64),
    "small": np.float32([1e-3, -2e-3]),
    "scalar": np.float32(-3.0),
    "empty": np.zeros((0, 2), np.float32),
    # More entries than are worth a branch: another way to the norm.
    "long": rng.normal(size=3000).astype(np.float32),
}


@pytest.mark.parametrize("size", [1e-25, 1.0, 1e25, 1e35])
def test_each_array_gets_a_norm_of_its_own(size):
    grads = jax.tree.map(lambda g: (g * size).astype(g.dtype), GRADS)
    tx = optfn.clip_by_norm(0.5 * size)
    updates, _ = tx.update(grads, tx.init(grads))
    for name, g in grads.items():
        wide = g.astype(np.result_type(g, np.float64))
        norm = np.sqrt(np.sum(np.abs(wide) ** 2))
        wanted = wide * min(1, 0.5 * size / max(norm, 1e-300))
        # A sum of 3000 squares, two divisions and a product in float32.
        np.testing.assert_allclose(updates[name], wanted, rtol=2e-6)
    np.testing.assert_array_equal(updates["small"], grads["small"])


def test_an_array_that_explodes_leaves_the_others():
    tx = optfn.clip_by_norm(1.0)
    grads = {"a": jnp.asarray([3e30, 4e30]), "b": jnp.asarray([jnp.inf, 1.0]), "c": jnp.ones(1)}
    updates, _ = tx.update(grads, tx.init(grads))
    np.testing.assert_allclose(updates["a"], [0.6, 0.8], rtol=1e-6)
    assert jnp.isnan(updates["b"]).all()
    np.testing.assert_array_equal(updates["c"], grads["c"])


CLIPS = {
    "clip": optfn.clip,
    "clip_by_norm": optfn.clip_by_norm,
    "clip_by_global_norm": optfn.clip_by_global_norm,
    "clip_by_block_rms": optfn.clip_by_block_rms,
    "adaptive_grad_clip": optfn.adaptive_grad_clip,
}
THRESHOLDS = np.linspace(0.0, 0.3, 4)


@pytest.mark.parametrize("name", CLIPS)
def test_a_threshold_may_be_a_schedule_that_starts_at_zero(name):
    """Zero gives zeros, also of a zero gradient."""
    make = CLIPS[name]
    scheduled = make(schedules.linear(0.0, 0.3, 3))
    params = {"w": jnp.ones((2, 3)), "b": jnp.zeros(2)}
    grads = {"w": jnp.asarray(rng.normal(size=(2, 3)), jnp.float32), "b": jnp.zeros(2)}

    @jax.jit
    def run(tx, grads):
        def step(state, _):
            updates, state = tx.update(grads, state, params)
            return state, updates

        return jax.lax.scan(step, tx.init(params), None, len(THRESHOLDS))[1]

    over_time = run(scheduled, grads)
    for i, threshold in enumerate(THRESHOLDS):
        updates = jax.tree.map(lambda u: u[0], run(make(threshold), grads))
        jax.tree.map(
            lambda u, v, i=i: np.testing.assert_allclose(u[i], v, rtol=1e-6), over_time, updates
        )
        assert bool(jnp.any(updates["w"])) == (threshold > 0)
    zeros = run(scheduled, jax.tree.map(jnp.zeros_like, grads))
    assert not any(u.any() for u in jax.tree.leaves(zeros))

    # And the gradient by the threshold is finite where it is zero, and the gradient too.
    def total(threshold, grads):
        tx = make(threshold)
        return sum(map(jnp.sum, jax.tree.leaves(tx.update(grads, tx.init(params), params)[0])))

    for g in (grads, jax.tree.map(jnp.zeros_like, grads)):
        assert jnp.isfinite(jax.grad(total)(0.0, g))


def test_clips_by_group_and_by_array_are_those_of_the_leaves():
    params = {"a": [jnp.ones(2), jnp.ones(3)], "b": [jnp.ones(2)]}
    grads = {"a": [jnp.asarray([3.0, 0.0]), jnp.asarray([0.0, 4.0, 0.0])], "b": [jnp.ones(2)]}

    def clipped(tx):
        return tx.update(grads, tx.init(params), params)[0]

    group = optfn.partition(
        {"a": optfn.clip_by_global_norm(1.0), "b": optfn.chain()}, {"a": "a", "b": "b"}
    )
    np.testing.assert_allclose(clipped(group)["a"][0], [0.6, 0.0], rtol=1e-6)
    np.testing.assert_array_equal(clipped(group)["b"][0], grads["b"][0])
    np.testing.assert_allclose(clipped(optfn.clip_by_norm(1.0))["a"][0], [1.0, 0.0], rtol=1e-6)
    both = optfn.partition({"a": optfn.clip_by_norm(1.0), "b": optfn.chain()}, {"a": "a", "b": "b"})
    np.testing.assert_allclose(clipped(both)["a"][1], [0, 1.0, 0], rtol=1e-6)
