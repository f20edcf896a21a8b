"""NaNs made zero."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
from hypothesis import strategies as st

import optfn

stage = optfn.zero_nans()
update = jax.jit(stage.update)
STATE = stage.init(jnp.zeros(4))


@hypothesis.settings(max_examples=200, deadline=None)
@hypothesis.given(st.lists(st.integers(0, 2**32 - 1), min_size=4, max_size=4))
def test_all_that_is_no_nan_is_kept_bit_for_bit(bits):
    """Signs of zeros, denormals and infinities too."""
    g = np.asarray(bits, np.uint32).view(np.float32)
    updates, state = update(g, STATE)
    wanted = np.where(np.isnan(g), np.float32(0), g)
    np.testing.assert_array_equal(np.asarray(updates).view(np.uint32), wanted.view(np.uint32))
    assert bool(state.slots["zero_nans"].found_nan) == np.isnan(g).any()


def test_it_says_in_which_leaves_and_forgets_by_the_next_step():
    grads = {"a": jnp.asarray([1.0, np.nan]), "b": [jnp.asarray(np.inf)], "none": None}
    grads["c"] = jnp.asarray([complex(np.nan, 1), 2j])
    there = optax.zero_nans()
    ours, state = stage.update(grads, stage.init(grads))
    theirs, their_state = there.update(grads, there.init(grads))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    found = state.slots["zero_nans"].found_nan
    assert jax.tree.map(bool, found) == {"a": True, "b": [False], "c": True, "none": None}
    jax.tree.map(np.testing.assert_array_equal, found, their_state.found_nan)
    _, state = stage.update(ours, state)
    assert not any(jax.tree.leaves(state.slots["zero_nans"].found_nan))


def test_float16_and_a_mask():
    grads = {"a": jnp.asarray([np.nan, 1], jnp.float16), "b": jnp.asarray([np.nan], jnp.bfloat16)}
    tx = optfn.chain(optfn.masked(stage, {"a": True, "b": False}), optfn.scale(1.0))
    updates, _ = tx.update(grads, tx.init(grads))
    np.testing.assert_array_equal(updates["a"], [0, 1])
    assert updates["a"].dtype == jnp.float16
    assert np.isnan(updates["b"]).all()
