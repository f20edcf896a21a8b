"""The facts that ``optfn.testing.problems.noisy`` states, checked by computing them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problem_tools import draw, hessian, negate, spectrum, starts

from optfn.testing import problems

NOISY = [problem for problem in problems.ALL if problem.noisy is not None]
FINITE_VARIANCE = [problem for problem in NOISY if problem.name != "heavy_tails"]


def ids(case):
    return getattr(case, "name", "")


# What holds for all of them.


def test_the_noisy_problems_are_those_of_the_module():
    assert {problem.name for problem in NOISY} == {
        "noisy_least_squares",
        "interpolation",
        "sparse",
        "heavy_tails",
        "rare_gradients",
    }


@pytest.mark.parametrize("problem", NOISY, ids=ids)
def test_without_its_noise_it_is_the_quadratic(problem, x64):
    dim = problem.minimizer.size
    x = 1 + np.random.default_rng(0).normal(size=dim)
    assert problem.value(x) == pytest.approx(problem.optimum + problems.quadratic(dim).value(x))
    np.testing.assert_allclose(hessian(problem, x), np.eye(dim), atol=1e-12)
    with jax.enable_x64(False):
        np.testing.assert_array_equal(starts(problem)[0], starts(problems.quadratic(dim))[0])


@pytest.mark.parametrize("problem", FINITE_VARIANCE, ids=ids)
@pytest.mark.parametrize("offset", [0.0, -3.0])
def test_noise_has_zero_mean(problem, offset, x64):
    params = problem.minimizer + offset * np.linspace(0.5, 1, problem.minimizer.size)
    exact = jax.jit(jax.value_and_grad(problem.value))(params)
    for draws, mean in zip(draw(problem, params), exact, strict=True):
        standard_error = draws.std(axis=0) / len(draws) ** 0.5
        if offset:
            assert (standard_error > 0).all()
        assert (abs(draws.mean(axis=0) - mean) <= 4 * standard_error + 1e-12).all()


@pytest.mark.parametrize("problem", NOISY, ids=ids)
def test_noise_remains_at_the_minimizer_or_vanishes_there(problem, x64):
    _, gradients = draw(problem, problem.minimizer, draws=100)
    remains = problem.name not in ("interpolation", "sparse")
    assert (abs(gradients).max() > 1e-12) == remains


# Least squares.


@pytest.mark.parametrize(("dim", "batch", "noise"), [(10, 16, 1.0), (5, 4, 0.3)])
def test_noise_remains_at_the_minimizer_where_curvature_is_unit(dim, batch, noise, x64):
    problem = problems.noisy_least_squares(dim, batch=batch, noise=noise)
    np.testing.assert_allclose(spectrum(problem, problem.minimizer), 1.0)
    _, gradients = draw(problem, problem.minimizer)
    mean_square = (gradients**2).sum(axis=1).mean()
    np.testing.assert_allclose(mean_square, noise**2 * dim / batch, rtol=0.1)


def test_noise_ball_of_a_fixed_rate_is_as_stated():
    problem = problems.noisy_least_squares()
    for rate in (0.016, 0.064):
        values = negate(problem, optax.sgd(rate), 1000, seeds=32)[:, 400:]
        excess = values.mean() - problem.optimum
        assert excess == pytest.approx(rate / 4 * 10 / 16, rel=0.15)
        assert (excess > problem.target - problem.optimum) == (rate > 0.032)


def test_falling_rate_leaves_the_noise_ball():
    problem = problems.noisy_least_squares()
    values = negate(problem, optax.sgd(lambda count: 1 / (4 + count)), 1000)
    assert (values[:, -100:] < problem.target).all()


def test_least_squares_needs_more_samples_than_dimensions():
    with pytest.raises(ValueError, match="samples"):
        problems.noisy_least_squares(dim=8, samples=8)


def test_noise_of_interpolation_goes_with_the_distance(x64):
    problem = problems.interpolation()
    direction = np.random.default_rng(0).normal(size=10)
    _, near = draw(problem, problem.minimizer + direction, draws=500)
    _, far = draw(problem, problem.minimizer + 7 * direction, draws=500)
    np.testing.assert_allclose(far, 7 * near)
    assert near.std() > 0.5


def test_interpolation_rules_out_the_rate_that_suits_the_curvature():
    problem = problems.interpolation()
    assert (negate(problem, optax.sgd(1.0), 30)[:, -1] > 1e6).all()
    values = negate(problem, optax.sgd(0.05), 1000)
    assert (values[:, -1] < 1e-9).all()


# Sparse gradients.


def test_sparse_gradients_are_ten_times_too_large_where_seen(x64):
    problem = problems.sparse()
    x = 1 + np.linspace(1, 2, 50)
    _, gradients = draw(problem, x, draws=200)
    seen = gradients != 0
    np.testing.assert_array_equal(seen.sum(axis=1), 5)
    np.testing.assert_allclose(gradients[seen], np.tile(10 * (x - 1), (200, 1))[seen])
    assert seen.any(axis=0).all()


def test_each_coordinate_is_right_when_it_is_first_seen():
    """At the rate batch / dim; so the value falls with the share of those unseen."""
    values = negate(problems.sparse(), optax.sgd(0.1), 30, seeds=64)
    shares = values.mean(axis=0) / values[:, 0].mean() * 0.9
    np.testing.assert_allclose(shares, 0.9 ** np.arange(1, 31), rtol=0.25)


def test_averages_go_on_moving_coordinates_that_are_unseen():
    problem = problems.sparse()
    tx = optax.adam(0.1)
    x, keys = jnp.zeros(50), jax.random.split(jax.random.key(0))
    state, path = tx.init(x), []
    for key in keys:
        grads = jax.grad(problem.loss)(x, key)
        updates, state = tx.update(grads, state, x)
        path.append((np.asarray(grads != 0), np.asarray(updates)))
        x = x + updates
    (first, _), (second, updates) = path
    assert (first & ~second).any()
    assert (abs(updates[first & ~second]) > 0.05).all()


# Heavy tails.


def test_heavy_tails_are_of_the_stated_law(x64):
    problem = problems.heavy_tails()
    x = 1 + np.random.default_rng(0).normal(size=10)
    losses, gradients = draw(problem, x)
    noise = gradients - (x - 1)
    np.testing.assert_allclose(losses - float(problem.value(x)), noise @ (x - 1), atol=1e-8)
    sizes = abs(noise).ravel()
    assert (noise > 0).mean() == pytest.approx(0.5, abs=4 * 0.5 / sizes.size**0.5)
    for threshold in (0.5, 1.0, 10.0, 100.0):
        share = (1 + threshold) ** -1.5
        tolerance = 4 * (share / sizes.size) ** 0.5
        assert (sizes > threshold).mean() == pytest.approx(share, abs=tolerance)
    assert 0.1 < sizes.max() / sizes.size ** (1 / 1.5) < 10


def test_heavy_tails_undo_what_plain_descent_achieved():
    """With the same falling rate that finds the minimizer if the gradients are clipped."""
    problem = problems.heavy_tails()

    def rate(count):
        return 1.5 / (10 + count)

    plain = negate(problem, optax.sgd(rate), 3000)[:, -500:]
    clipped = negate(problem, optax.chain(optax.clip(1.0), optax.sgd(rate)), 3000)[:, -500:]
    assert np.median(plain) > 10 * np.median(clipped)


# Rare gradients.


def test_most_gradients_are_misleading(x64):
    problem = problems.rare_gradients()
    d = 10**-0.5
    assert problem.value(problem.minimizer + d) == pytest.approx(0.5)
    _, gradients = draw(problem, problem.minimizer + d)
    rare = abs(gradients) > 1e-12
    assert rare.mean() == pytest.approx(0.1, abs=4 * (0.1 / rare.size) ** 0.5)
    _, gradients = draw(problem, problem.minimizer)
    rare = gradients > 0
    np.testing.assert_allclose(gradients[~rare], -d)
    np.testing.assert_allclose(gradients[rare], 9 * d)


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.sign_sgd(0.01),
        optax.chain(optax.clip(0.3), optax.sgd(0.02)),
        optax.rmsprop(0.01, decay=0.5),
    ],
    ids=["sign", "clipped", "short-lived squares"],
)
def test_who_weighs_rare_gradients_less_ends_at_the_wrong_point(optimizer):
    values = negate(problems.rare_gradients(), optimizer, 2000)[:, -1000:]
    assert values.mean() > 0.25
    assert values.min() > problems.rare_gradients().target


@pytest.mark.parametrize(
    ("build", "arguments"),
    [
        (problems.interpolation, (8, 8)),
        (problems.sparse, (5, 6)),
        (problems.sparse, (5, 0)),
        (problems.heavy_tails, (10, 1.0)),
        (problems.heavy_tails, (10, 2.5)),
        (problems.rare_gradients, (4, 0.0)),
    ],
)
def test_impossible_noise_is_refused(build, arguments):
    with pytest.raises(ValueError, match="need"):
        build(*arguments)
