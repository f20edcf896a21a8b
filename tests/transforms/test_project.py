"""Params that stay nonnegative."""

import hypothesis
import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import strategies as st

import optfn

TX = optfn.keep_params_nonnegative()
NUMBERS = st.floats(0, 2.0**15, width=32)


@jax.jit
def update(p, g):
    updates, _ = TX.update(g, optfn.State(jnp.int32(0), {}), p)
    return updates, p + updates, optfn.step(TX, p, g, optfn.State(jnp.int32(0), {}))[0]


@hypothesis.given(
    hnp.arrays(np.float32, 4, elements=NUMBERS),
    hnp.arrays(np.float32, 4, elements=st.floats(-(2.0**15), 2.0**15, width=32)),
    st.sampled_from([jnp.float32, jnp.bfloat16, jnp.float16]),
    st.booleans(),
)
@hypothesis.settings(max_examples=100, deadline=None)
def test_params_are_never_below_zero_and_reach_it(p, g, dtype, wide):
    """With float32 gradients and with the params' own, by `update` and by `step`."""
    dtype = np.dtype(dtype)
    p, g = p.astype(dtype), g.astype(np.float32 if wide else dtype)
    updates, added, stepped = map(np.asarray, update(p, g))
    moved = p.astype(float) + g.astype(float)
    cut = moved <= 0
    for result in (added, stepped):
        assert (result >= 0).all()
        np.testing.assert_array_equal(result[cut], 0)
    # XLA takes denormal numbers for zero.
    tiny = float(jnp.finfo(dtype).tiny)
    np.testing.assert_allclose(updates[~cut].astype(float), g[~cut], rtol=0, atol=tiny)


def test_it_is_optax_s_projection():
    rng = np.random.default_rng(0)
    p = {"w": np.float32(np.abs(rng.normal(size=20))), "n": None}
    g = {"w": np.float32(rng.normal(size=20)), "n": None}
    ours, _ = TX.update(g, TX.init(p), p)
    theirs, _ = optax.keep_params_nonnegative().update(g, optax.EmptyState(), p)
    np.testing.assert_array_equal(ours["w"], theirs["w"])
    assert (ours["w"] != g["w"]).any() and (ours["w"] == g["w"]).any()


def test_it_finds_the_nonnegative_least_squares():
    """Against the conditions of optimality: the gradient is 0 inside and not negative at 0."""
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(20, 6)), rng.normal(size=20)
    tx = optfn.chain(optfn.sgd(1 / np.linalg.norm(a, 2) ** 2), TX)

    @jax.jit
    def solve(x):
        def step(carry, _):
            x, state = carry
            return optfn.step(tx, x, a.T @ (a @ x - b), state), None

        return jax.lax.scan(step, (x, tx.init(x)), None, 500)[0][0]

    x = np.asarray(solve(jnp.ones(6)), float)
    slope = a.T @ (a @ x - b)
    assert 0 < (x == 0).sum() < 6
    np.testing.assert_allclose(slope[x > 0], 0, atol=1e-4)
    assert (slope[x == 0] > 0).all()


def test_negative_params_go_to_zero_nans_are_seen_and_parts_are_cut_alone():
    p = jnp.asarray([-1.0, 2.0, jnp.nan, 1.0])
    g = jnp.asarray([-5.0, jnp.nan, 1.0, -jnp.inf])
    np.testing.assert_array_equal(update(p, g)[1], [0, jnp.nan, jnp.nan, 0])
    z = jnp.asarray([1 + 2j, 3 + 0j])
    np.testing.assert_array_equal(update(z, jnp.asarray([-2 - 1j, 1 - 1j]))[1], [1j, 4])


def test_it_needs_the_params():
    with pytest.raises(ValueError, match="keep_params_nonnegative needs the params"):
        TX.update(jnp.ones(2), TX.init(jnp.ones(2)))
