"""The facts that ``optfn.testing.problems.symmetric`` states, checked by computing them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problem_tools import gradient, negate, spectrum, starts

from optfn.testing import problems

# Directions.


def test_only_the_direction_counts_and_sets_the_gradient(x64):
    problem = problems.scale_invariant()
    unit = np.full(10, 10**-0.5)
    for seed, norm in ((0, 0.1), (1, 1.0), (2, 30.0)):
        x = np.random.default_rng(seed).normal(size=10)
        x *= norm / np.linalg.norm(x)
        cosine = x @ unit / norm
        assert problem.value(x) == pytest.approx(1 - cosine)
        slope = np.asarray(gradient(problem, x))
        assert slope @ x == pytest.approx(0, abs=1e-12)
        assert np.linalg.norm(slope) == pytest.approx(np.sqrt(1 - cosine**2) / norm)


def test_rate_that_suits_goes_with_the_square_of_the_norm():
    short, long = (negate(problems.scale_invariant(norm=n), optax.sgd(n**2), 5) for n in (1, 10))
    np.testing.assert_allclose(short, long, rtol=1e-3, atol=1e-6)


def test_every_step_makes_the_weights_longer():
    problem = problems.scale_invariant()
    x = starts(problem)[0]
    np.testing.assert_allclose(jnp.linalg.norm(x, axis=1), 10, rtol=1e-5)
    for _ in range(3):
        stepped = x - 50.0 * jax.vmap(jax.grad(problem.value))(x)
        assert (jnp.linalg.norm(stepped, axis=1) > jnp.linalg.norm(x, axis=1)).all()
        x = stepped


def test_target_is_the_value_at_an_angle_of_one_hundredth():
    assert problems.scale_invariant().target == pytest.approx(1 - np.cos(0.01), rel=1e-4)


def test_rayleigh_is_stationary_at_every_eigenvector(x64):
    """With as many ways down as there are smaller eigenvalues."""
    problem = problems.rayleigh()
    eigenvalues = [0.0, *np.linspace(0.1, 1.0, 9)]
    for k, (vector, eigenvalue) in enumerate(zip(np.eye(10), eigenvalues, strict=True)):
        assert problem.value(-3 * vector) == pytest.approx(eigenvalue)
        np.testing.assert_allclose(gradient(problem, vector), 0, atol=1e-15)
        assert (spectrum(problem, vector) < -1e-9).sum() == k
    np.testing.assert_allclose(jnp.linalg.norm(starts(problem)[0], axis=1), 1, rtol=1e-5)


# Products.


@pytest.mark.parametrize(("found", "value"), [((0.0, 0.0), 17 / 4), ((2.0, 0.0), 1 / 4)])
def test_parts_of_the_factorization_are_saddles(found, value, x64):
    problem = problems.factorization()
    saddle = np.diag([*found, 0, 0])[:, :2]
    assert problem.value(saddle) == pytest.approx(value)
    assert not np.asarray(gradient(problem, saddle)).any()
    assert spectrum(problem, saddle)[0] < -0.5


def test_minimizers_of_the_factorization_are_turned(x64):
    problem = problems.factorization(6)
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(2, 2)))
    minimizer = np.eye(6)[:, :2] * [2.0, 1.0] @ turn
    assert problem.value(minimizer) == pytest.approx(0, abs=1e-28)
    eigenvalues = spectrum(problem, minimizer)
    np.testing.assert_allclose(eigenvalues[:2], [0, 1], atol=1e-12)


def test_descent_of_the_factorization_goes_from_saddle_to_saddle():
    values = negate(problems.factorization(), optax.sgd(0.05), 400)
    for saddle in (17 / 4, 1 / 4):
        assert ((abs(values - saddle) < 0.02 * saddle).sum(axis=1) > 20).all()
    assert (values[:, -1] < problems.factorization().target).all()


def test_gradients_of_the_chain_vanish_with_its_depth():
    for depth in (5, 10, 20):
        params, _, _, grads = starts(problems.deep_chain(depth))
        assert 0.4 <= float(params.min()) < float(params.max()) <= 0.6
        sizes = abs(np.asarray(grads))
        assert np.median(sizes) == pytest.approx(2.0 ** (1 - depth), rel=0.3)


def test_curvature_across_the_minimizers_of_the_chain_is_least_amid_them(x64):
    problem = problems.deep_chain()
    np.testing.assert_allclose(spectrum(problem, np.ones(10)), [0] * 9 + [10], atol=1e-12)
    for seed in range(3):
        logs = np.random.default_rng(seed).normal(size=10)
        minimizer = np.exp(logs - logs.mean())
        assert problem.value(minimizer) == pytest.approx(0, abs=1e-25)
        across = spectrum(problem, minimizer)[-1]
        assert across == pytest.approx((1 / minimizer**2).sum())
        assert across > 10


@pytest.mark.parametrize(
    ("build", "arguments"),
    [
        (problems.scale_invariant, (1,)),
        (problems.scale_invariant, (10, 0.0)),
        (problems.rayleigh, (1,)),
        (problems.rayleigh, (10, 0.0)),
        (problems.factorization, (1,)),
        (problems.deep_chain, (1,)),
    ],
)
def test_impossible_symmetries_are_refused(build, arguments):
    with pytest.raises(ValueError, match="need"):
        build(*arguments)
