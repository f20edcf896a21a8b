"""What optimizers that find their rate report, against what their updates did."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optfn

PARAMS = {"a": jnp.asarray([1.0, -2.0, 3.0]), "b": jnp.asarray([[0.5], [4.0]])}
SCALES = {"a": jnp.asarray([1.0, 2.0, 0.5]), "b": jnp.asarray([[3.0], [0.1]])}
STEPS = 6


@jax.value_and_grad
def loss(params):
    return sum(jnp.sum(SCALES[k] * (x - 0.3) ** 2) for k, x in params.items())


def value_fn(params):
    return sum(jnp.sum(SCALES[k] * (x - 0.3) ** 2) for k, x in params.items())


def run(tx):
    """At every step: params, gradients, updates, the slots before and after, and the metrics."""
    declared = tx.declared_extra_args()

    @jax.jit
    def step(params, state):
        value, grads = loss(params)
        given = {"value": value, "grad": grads, "value_fn": value_fn}
        updates, new = tx.update(grads, state, params, **{k: given[k] for k in declared})
        return grads, updates, new, optfn.metrics(tx, new)

    params, state, seen = PARAMS, tx.init(PARAMS), []
    for _ in range(STEPS):
        grads, updates, new, metrics = step(params, state)
        seen.append((params, grads, updates, state.slots, new.slots, metrics))
        params, state = optfn.apply_updates(params, updates), new
    return seen


def assert_factor(rate, direction, updates):
    """updates = -rate * direction, up to rounding."""
    jax.tree.map(
        lambda d, u: np.testing.assert_allclose(u, -rate * d, rtol=2e-5, atol=1e-7),
        direction,
        updates,
    )


ON_GRADIENTS = {
    "polyak_sgd": (optfn.polyak_sgd(0.7), 1.0),
    "polyak_sgd scaled": (optfn.polyak_sgd(scaling=0.5), 0.5),
    "dog": (optfn.dog(), 1.0),
    "dog from a rate": (optfn.dog(0.5, ("learning_rate", 1e-2)), 0.5),
    "dog by a schedule": (optfn.dog(optfn.schedules.constant(0.5), eps=1e-2), 0.5),
    "dowg": (optfn.dowg(), 1.0),
    "backtracking": (
        optfn.chain(optfn.negate(), optfn.scale_by_backtracking_linesearch(20)),
        1.0,
    ),
    "zoom": (optfn.chain(optfn.negate(), optfn.scale_by_zoom_linesearch(20)), 1.0),
}


@pytest.mark.parametrize("name", ON_GRADIENTS)
def test_the_rate_is_the_update_over_the_gradient(name):
    tx, outer = ON_GRADIENTS[name]
    for _, grads, updates, _, _, metrics in run(tx):
        assert_factor(outer * metrics["effective_learning_rate"], grads, updates)


def test_the_rate_of_prodigy_is_the_update_over_its_direction_with_decay():
    for params, _, updates, _, new, metrics in run(optfn.prodigy(0.5, weight_decay=0.1)):
        (slots,) = new.values()
        scale = metrics["estimated_distance"] * 1e-8
        direction = jax.tree.map(
            lambda m, v, p, scale=scale: m / (jnp.sqrt(v) + scale) + 0.1 * p,
            *(slots.mu, slots.nu, params),
        )
        assert_factor(metrics["effective_learning_rate"], direction, updates)


def test_the_rate_of_d_adaptation_is_that_of_the_newest_gradient():
    for _, grads, updates, old, new, metrics in run(optfn.dadapt_adamw(0.5)):
        (old,), (new,) = old.values(), new.values()
        newest = jax.tree.map(lambda m, n: 0.9 * m - n, old.mu, new.mu)
        jax.tree.map(
            lambda x, g, rate=metrics["effective_learning_rate"]: np.testing.assert_allclose(
                -x, 0.1 * rate * g, rtol=1e-3, atol=1e-12
            ),
            newest,
            grads,
        )
        direction = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + 1e-8), new.mu, new.nu)
        assert_factor(1.0, direction, updates)


def test_the_rate_of_momo_is_the_update_over_the_average():
    for _, _, updates, _, new, metrics in run(optfn.momo(10.0)):
        (slots,) = new.values()
        assert_factor(metrics["effective_learning_rate"], slots.mu, updates)


def test_the_rate_of_momo_adam_is_the_update_over_its_direction():
    for t, (_, _, updates, _, new, metrics) in enumerate(run(optfn.momo_adam(10.0)), 1):
        (slots,) = new.values()
        direction = jax.tree.map(
            lambda m, v, t=t: m / (jnp.sqrt(v / (1 - 0.999**t)) + 1e-8), slots.mu, slots.nu
        )
        assert_factor(metrics["effective_learning_rate"], direction, updates)


def test_the_rate_of_mechanize_is_the_distance_gone_over_the_steps_inside():
    gone = jax.tree.map(jnp.zeros_like, PARAMS)
    for params, grads, updates, _, _, metrics in run(optfn.mechanize(optfn.sgd(1.0), s_init=1e-3)):
        gone = jax.tree.map(jnp.add, gone, grads)
        moved = jax.tree.map(lambda p, u, start: p + u - start, params, updates, PARAMS)
        jax.tree.map(
            lambda g, m, rate=metrics["effective_learning_rate"]: np.testing.assert_allclose(
                m, -rate * g, rtol=1e-3, atol=1e-6
            ),
            gone,
            moved,
        )


DISTANCES = {
    "dog": optfn.dog(),
    "dowg": optfn.dowg(),
    "prodigy": optfn.prodigy(),
    "dadapt_adamw": optfn.dadapt_adamw(),
}


@pytest.mark.parametrize("name", DISTANCES)
def test_the_distance_starts_as_the_estimate_and_never_falls(name):
    tx = DISTANCES[name]
    first = optfn.metrics(tx, tx.init(PARAMS))
    assert first["effective_learning_rate"] == 0 and first["estimated_distance"] > 0
    found = [float(metrics["estimated_distance"]) for *_, metrics in run(tx)]
    assert found == sorted(found) and found[0] >= first["estimated_distance"]
    if name.startswith("do"):
        # The largest distance from the start at which a gradient was taken.
        params = run(tx)[-1][0]
        apart = optfn.global_norm(jax.tree.map(jnp.subtract, params, PARAMS))
        np.testing.assert_allclose(found[-1], apart, rtol=1e-4)


def test_what_is_found_inside_wrappers_and_groups_is_reported_by_their_names():
    tx = optfn.accumulate(
        optfn.partition({"x": optfn.dog(), "y": optfn.prodigy()}, {"a": "x", "b": "y"}), 1
    )
    metrics = run(tx)[-1][-1]
    for group, stage in (("x", "scale_by_dog"), ("y", "scale_by_prodigy")):
        for quantity in ("estimated_distance", "effective_learning_rate"):
            assert metrics[f"accumulate.partition.{group}.{stage}.{quantity}"] > 0
