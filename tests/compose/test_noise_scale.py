"""The gradient noise scale, estimated and exact."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optfn

RNG = np.random.default_rng(0)
X = np.float32(RNG.normal(size=(64, 3)))
Y = np.float32(X @ [1.0, -2.0, 0.5] + 0.7 * RNG.normal(size=64) + 0.3)
PARAMS = {"w": jnp.asarray([0.8, -1.5, 0.4]), "b": jnp.asarray(0.1)}


def loss(params, batch):
    x, y = batch
    return jnp.mean((x @ params["w"] + params["b"] - y) ** 2)


def gradients_in_float64():
    """Of every example, and the Hessian of the whole loss."""
    rows = np.concatenate([np.ones((64, 1)), X], axis=1).astype(np.float64)
    at = np.asarray([0.1, 0.8, -1.5, 0.4], np.float32).astype(np.float64)
    return 2 * (rows @ at - Y)[:, None] * rows, 2 * rows.T @ rows / 64


def test_exact_is_the_definition():
    g, hessian = gradients_in_float64()
    mean, covariance = g.mean(0), np.cov(g.T, bias=True)
    found = optfn.exact_noise_scale(loss, PARAMS, (X, Y))
    wanted = optfn.NoiseScale(
        np.trace(covariance) / (mean @ mean),
        np.trace(hessian @ covariance) / (mean @ hessian @ mean),
        mean @ mean,
        np.trace(covariance),
    )
    np.testing.assert_allclose(found, wanted, rtol=2e-5)
    assert optfn.exact_noise_scale(loss, PARAMS, (X, Y), curvature=False).curved is None


def test_curved_is_the_batch_size_of_half_the_progress():
    """The best step along a mean of B gradients gains 1 / (1 + curved / B) of the noiseless."""
    g, hessian = gradients_in_float64()
    mean, covariance = g.mean(0), np.cov(g.T, bias=True)
    size = float(optfn.exact_noise_scale(loss, PARAMS, (X, Y)).curved)
    rates = np.linspace(0, 1, 10_001)

    def gain(batch):
        bend = mean @ hessian @ mean + np.trace(hessian @ covariance) / batch
        return (rates * (mean @ mean) - rates**2 * bend / 2).max()

    assert gain(size) / gain(np.inf) == pytest.approx(0.5, rel=1e-3)


@jax.jit
def measured(tx, grads, params=PARAMS):
    """The metrics after each gradient."""

    def step(state, g):
        updates, state = tx.update(g, state, params)
        return state, (updates, optfn.metrics(tx, state))

    return jax.lax.scan(step, tx.init(params), grads)[1]


def batches(count, size, seed=0):
    """Gradients of `count` batches of examples at the same params."""
    rows = np.random.default_rng(seed).integers(0, 64, (count, size))
    x, y = jnp.asarray(X), jnp.asarray(Y)
    return jax.jit(jax.vmap(lambda rows: jax.grad(loss)(PARAMS, (x[rows], y[rows]))))(rows)


def test_one_group_is_the_two_batch_sizes_of_the_paper():
    grads = batches(4, 8)
    rows = np.concatenate([np.asarray(grads["b"])[:, None], grads["w"]], axis=1, dtype=np.float64)
    small, large = (rows**2).sum(1).mean(), (rows.mean(0) ** 2).sum()
    # B_small = 8 and B_big = 32, in appendix A.1.
    signal = (32 * large - 8 * small) / (32 - 8)
    noise = (small - large) / (1 / 8 - 1 / 32)
    updates, told = measured(optfn.gradient_noise_scale(8, every=4, decay=0.5), grads)
    jax.tree.map(np.testing.assert_array_equal, updates, grads)
    assert not np.stack([told[k][:3] for k in ("noise_scale", "signal", "noise")]).any()
    found = [told[k][3] for k in ("signal", "noise", "noise_scale")]
    np.testing.assert_allclose(found, [signal, noise, noise / signal], rtol=1e-5)


@pytest.mark.parametrize(("size", "every"), [(4, 2), (16, 3), (2, 8)])
def test_the_estimate_comes_to_the_exact_value(size, every):
    """Over 4,000 groups, whose averages have a standard error of about 2 %."""
    tx = optfn.gradient_noise_scale(size, every=every, decay=0.9995)
    _, told = measured(tx, batches(4000 * every, size))
    exact = optfn.exact_noise_scale(loss, PARAMS, (X, Y))
    np.testing.assert_allclose(told["noise_scale"][-1], exact.simple, rtol=0.1)
    np.testing.assert_allclose(told["signal"][-1], exact.signal, rtol=0.1)
    np.testing.assert_allclose(told["noise"][-1], exact.noise, rtol=0.1)


def test_before_accumulation_it_sees_the_micro_gradients():
    noise = optfn.gradient_noise_scale(8, every=4)
    grads = batches(8, 8)
    tx = optfn.chain(noise, optfn.accumulate(optfn.sgd(0.1), 4))
    updates, told = measured(tx, grads)
    _, alone = measured(noise, grads)
    np.testing.assert_array_equal(
        told["gradient_noise_scale.noise_scale"], alone["gradient_noise_scale.noise_scale"]
    )
    np.testing.assert_allclose(updates["w"][3], -0.1 * np.mean(grads["w"][:4], axis=0), rtol=1e-5)


def test_what_is_not_finite_is_left_out():
    grads = batches(4, 8)
    spoiled = jax.tree.map(lambda g: jnp.insert(g, 2, jnp.nan, axis=0), grads)
    tx = optfn.gradient_noise_scale(8, every=4)
    _, told = measured(tx, spoiled)
    _, clean = measured(tx, grads)
    assert not told["noise"][3] and told["noise"][4] == clean["noise"][3]


def test_without_a_signal_it_is_infinite_and_without_noise_zero():
    sides = {k: jnp.stack([jnp.ones_like(p), -jnp.ones_like(p)]) for k, p in PARAMS.items()}
    _, told = measured(optfn.gradient_noise_scale(1), sides)
    assert told["noise_scale"][1] == np.inf and told["signal"][1] < 0
    same = jax.tree.map(jnp.abs, sides)
    _, told = measured(optfn.gradient_noise_scale(1), same)
    assert told["noise_scale"][1] == 0 and told["signal"][1] == 4


def test_the_examples_of_a_batch_are_its_unit():
    grads = batches(2, 8)
    one, many = (measured(optfn.gradient_noise_scale(b), grads)[1] for b in (1, 8))
    np.testing.assert_allclose(many["noise"][1], 8 * one["noise"][1], rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: optfn.gradient_noise_scale(0),
            "gradient_noise_scale(batch_size=...) must be at least 1, found 0.0.",
        ),
        (
            lambda: optfn.gradient_noise_scale(8, every=1),
            "gradient_noise_scale(every=...) must be at least 2, found 1.0.",
        ),
        (
            lambda: optfn.gradient_noise_scale(8, decay=2.0),
            "gradient_noise_scale(decay=...) must be from 0 to 1, found 2.0.",
        ),
        (
            lambda: optfn.exact_noise_scale(loss, PARAMS, (X, Y[:3])),
            "exact_noise_scale(data=...) must be arrays with the same number of examples in front, "
            "found [3, 64].",
        ),
    ],
)
def test_wrong_input_gets_a_sentence(call, message):
    with pytest.raises(ValueError) as caught:
        call()
    assert str(caught.value) == message
