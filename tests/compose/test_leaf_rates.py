"""A factor on the learning rate of each leaf, with the decay kept apart or not."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optfn
from optfn import schedules

PARAMS = {"w": jnp.asarray([[1.0, -2.0], [0.5, 3.0]]), "b": jnp.asarray([0.25, -1.0])}
GRADS = {"w": jnp.asarray([[0.3, -0.1], [-0.2, 0.4]]), "b": jnp.asarray([0.1, 0.6])}
FACTORS = {"w": 0.25, "b": 3.0}
RATE = schedules.linear(0.1, 0.05, 8)


@jax.jit
def first(tx):
    return tx.update(GRADS, tx.init(PARAMS), PARAMS)[0]


def assert_near(found, wanted, rtol=1e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-7), found, wanted)


# By an optimizer with this decay.
DECAYING = {
    "adamw": lambda decay: optfn.adamw(RATE, weight_decay=decay),
    "adamw on some": lambda decay: optfn.adamw(
        0.1, weight_decay=decay, mask={"w": True, "b": False}
    ),
    "clipped, with groups": lambda decay: optfn.chain(
        optfn.clip_by_global_norm(0.1),
        optfn.partition(
            {"w": optfn.adamw(0.1, weight_decay=decay), "b": optfn.sgd(0.1)}, {"w": "w", "b": "b"}
        ),
    ),
    "muon": lambda decay: optfn.muon(
        0.02, weight_decay=decay, rest=optfn.adamw(0.1, weight_decay=decay)
    ),
    "soap": lambda decay: optfn.soap(0.02, weight_decay=decay),
    "splus": lambda decay: optfn.splus(0.02, weight_decay=decay),
    "lion": lambda decay: optfn.lion(0.02, weight_decay=decay),
    "stable_adamw": lambda decay: optfn.stable_adamw(0.02, weight_decay=decay),
    "cautious decay": lambda decay: optfn.chain(
        optfn.scale_by_adam(), optfn.add_cautious_decay(decay), optfn.scale_by_learning_rate(0.1)
    ),
    "an L2 penalty": lambda decay: optfn.chain(optfn.add_decayed_weights(decay), optfn.sgd(0.1)),
    "independent": lambda decay: optfn.chain(
        optfn.scale_by_adam(), optfn.descend_with_independent_decay(0.1, 0.1, decay)
    ),
    "corrected": lambda decay: optfn.chain(
        optfn.scale_by_adam(), optfn.descend_with_corrected_decay(0.1, 0.2, decay)
    ),
}


@pytest.mark.parametrize("name", DECAYING)
def test_an_independent_decay_is_what_it_was(name):
    """It takes the same share of the params, or of those after the step."""
    make, after = DECAYING[name], float(name in ("soap", "splus"))
    direction, both = first(make(0.0)), first(make(0.1))

    def expected(f, u, own, p):
        share = (u - own) / (p + after * u)
        return f * u - share * (p + after * f * u)

    found = first(optfn.with_leaf_rates(make(0.1), FACTORS))
    assert_near(found, jax.tree.map(expected, FACTORS, direction, both, PARAMS))
    assert max(abs(both[k] - direction[k]).max() for k in PARAMS) > 1e-5


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_tied_decay_follows_the_rate(name):
    tx = DECAYING[name](0.1)
    found = first(optfn.with_leaf_rates(tx, FACTORS, "tied"))
    assert_near(found, jax.tree.map(jnp.multiply, FACTORS, first(tx)), rtol=1e-6)


def test_it_is_a_rate_of_its_own_for_each_leaf():
    """Over a run: as a partition with an optimizer for each."""
    tx = optfn.with_leaf_rates(optfn.adam(0.1), optfn.by_path({"w": 0.25}, default=3))
    groups = {"w": optfn.adam(0.025), "b": optfn.adam(0.3)}
    apart = optfn.partition(groups, {"w": "w", "b": "b"})

    @jax.jit
    def run(tx):
        def step(carry, _):
            params, state = carry
            grads = jax.tree.map(jnp.sin, params)
            return optfn.step(tx, params, grads, state), None

        return jax.lax.scan(step, (PARAMS, tx.init(PARAMS)), length=5)[0][0]

    assert_near(run(tx), run(apart))


def test_a_factor_of_one_changes_no_bit():
    tx = optfn.adamw(RATE, weight_decay=0.1)
    jax.tree.map(np.testing.assert_array_equal, first(optfn.with_leaf_rates(tx, 1.0)), first(tx))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_params_of_16_bits_keep_their_decay(dtype):
    """A quotient of 16 bits would overflow, or be rounded."""
    params = {"w": jnp.full((4,), 100, dtype), "b": jnp.full((4,), 3, dtype)}
    decay = optfn.chain(
        optfn.scale(0.0), optfn.add_decayed_weights(0.125), optfn.scale_by_learning_rate(1.0)
    )
    tx = optfn.with_leaf_rates(decay, {"w": 2.0**-10, "b": 1 / 7})
    found, wanted = (x.update(params, x.init(params), params)[0] for x in (tx, decay))
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_integer_params_that_are_frozen_pass():
    params = {"w": jnp.ones(3), "n": jnp.arange(4)}
    grads = {"w": jnp.ones(3), "n": np.zeros(4, jax.dtypes.float0)}
    frozen = optfn.freeze(optfn.adamw(0.1), {"w": False, "n": True})
    tx = optfn.with_leaf_rates(frozen, 0.5)
    updates, _ = tx.update(grads, tx.init(params), params)
    assert updates["n"] is grads["n"] or updates["n"].dtype == jax.dtypes.float0
    assert updates["w"].shape == (3,)


READING = {
    "lamb": optfn.lamb(0.1),
    "hyperball": optfn.chain(optfn.scale_by_adam(), optfn.hyperball(0.01)),
    "schedule_free_sgd": optfn.schedule_free_sgd(0.1),
    "mechanize": optfn.mechanize(optfn.sgd(0.1)),
    "monitor": optfn.monitor(optfn.sgd(0.1)),  # whose norms would be of other params
    "metrics": optfn.monitor(optfn.sgd(0.1), {"x": lambda g, u, p: 0.0}, norms=False),
    "sophia": optfn.sophia(0.1),
    "from_optax": optfn.from_optax(optax.adamw(0.1)),
    "in a group": optfn.partition({"x": optfn.lars(0.1)}, "x"),
}


@pytest.mark.parametrize("name", READING)
def test_what_reads_params_otherwise_is_named(name):
    with pytest.raises(ValueError, match="otherwise than by a decay, so its decay cannot be told"):
        optfn.with_leaf_rates(READING[name], 0.5)
    optfn.with_leaf_rates(READING[name], 0.5, "tied")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: first(optfn.with_leaf_rates(optfn.sgd(0.1), {"w": 0.5, "b": 0.0})),
            ValueError,
            "with_leaf_rates(factors=...) at 'b' must be a number above 0, found 0.",
        ),
        (
            lambda: optfn.with_leaf_rates(optfn.sgd(0.1), {"w": 0.5, "b": "high"}),
            TypeError,
            "with_leaf_rates(factors=...)",
        ),
        (
            lambda: optfn.with_leaf_rates(optfn.sgd(0.1), None),
            TypeError,
            "with_leaf_rates(factors=...) must be a tree or a function, found None.",
        ),
        (
            lambda: optfn.with_leaf_rates(optfn.ema_of_params(optfn.sgd(0.1), 0.9), 0.5),
            ValueError,
            "with_leaf_rates would change the updates of ema_of_params",
        ),
        (
            lambda: optfn.with_leaf_rates(optfn.sgd(0.1), 0.5, "free"),
            ValueError,
            "with_leaf_rates(decay=...) must be one of ('independent', 'tied')",
        ),
    ],
)
def test_wrong_input_gets_a_sentence(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)
