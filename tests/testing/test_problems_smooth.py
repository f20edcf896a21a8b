"""The facts that ``optfn.testing.problems.smooth`` states, checked by computing them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
from jax.flatten_util import ravel_pytree
from problem_tools import hessian, negate, spectrum, starts

from optfn.testing import problems

# Quadratics.


def test_quadratic_has_unit_curvature(x64):
    np.testing.assert_allclose(spectrum(problems.quadratic(7), jnp.zeros(7)), 1.0)


@pytest.mark.parametrize("build", [problems.ill_conditioned, problems.rotated])
@pytest.mark.parametrize(("dim", "condition"), [(2, 10.0), (10, 1e3), (25, 1e6)])
def test_spectrum_spans_the_condition_number(build, dim, condition, x64):
    eigenvalues = spectrum(build(dim, condition), jnp.zeros(dim))
    np.testing.assert_allclose(eigenvalues, np.geomspace(1 / condition, 1, dim), atol=1e-14)


def test_only_the_rotated_hessian_has_entries_off_the_diagonal(x64):
    def coupling(problem):
        hessian = np.asarray(jax.jit(jax.hessian(problem.value))(jnp.zeros(10)))
        return abs(hessian - np.diag(np.diag(hessian))).max()

    assert coupling(problems.ill_conditioned()) == 0
    assert coupling(problems.rotated()) > 0.1


def test_gradient_descent_cannot_tell_the_rotation_but_adam_can():
    aligned, rotated = problems.ill_conditioned(), problems.rotated()
    sgd, adam = optax.sgd(1.9), optax.adam(0.1)
    np.testing.assert_allclose(negate(rotated, sgd, 200), negate(aligned, sgd, 200), rtol=1e-4)
    assert (negate(aligned, adam, 200)[:, -1] < aligned.target).all()
    assert (negate(rotated, adam, 200)[:, -1] > rotated.target).all()


@pytest.mark.parametrize("build", [problems.ill_conditioned, problems.rotated])
@pytest.mark.parametrize("arguments", [(1,), (10, 0.5)])
def test_impossible_spectra_are_refused(build, arguments):
    with pytest.raises(ValueError, match="condition"):
        build(*arguments)


# Units.


UNITS = {"badly_scaled": np.geomspace(1e-4, 1e4, 9), "layer_scales": np.repeat([1e-2, 1, 1e2], 4)}


@pytest.mark.parametrize("name", UNITS)
def test_curvatures_are_those_of_the_units(name, x64):
    problem = getattr(problems, name)()
    curvatures = hessian(problem, problem.minimizer)
    np.testing.assert_allclose(np.diag(curvatures), 1 / UNITS[name] ** 2)
    np.testing.assert_array_equal(curvatures, np.diag(np.diag(curvatures)))
    if name == "badly_scaled":
        assert np.linalg.cond(curvatures) == pytest.approx(1e16)


@pytest.mark.parametrize("name", UNITS)
def test_target_is_the_value_at_distance_one_hundredth_in_own_units(name, x64):
    problem = getattr(problems, name)()
    flat, unravel = ravel_pytree(problem.minimizer)
    np.testing.assert_allclose(flat, UNITS[name])
    directions = np.random.default_rng(0).normal(size=(20, flat.size))
    directions *= 0.01 / np.linalg.norm(directions, axis=1, keepdims=True)
    values = jax.vmap(lambda y: problem.value(unravel(flat * (1 + y))))(directions)
    np.testing.assert_allclose(values, problem.target, rtol=1e-6)


def test_badly_scaled_starts_are_those_of_the_quadratic_in_own_units():
    start, scaled = problems.quadratic(9), problems.badly_scaled()
    in_own_units = np.asarray(starts(scaled)[0]) / UNITS["badly_scaled"]
    np.testing.assert_allclose(in_own_units, starts(start)[0], rtol=1e-5)


@pytest.mark.parametrize("rate", [1e-4, 1.0, 1e4])
def test_no_fixed_rate_of_equal_steps_serves_all_units(rate):
    problem = problems.badly_scaled()
    assert (negate(problem, optax.sign_sgd(rate), 1000) > problem.target).all()


def test_adam_finds_the_units_if_its_rate_suits_the_largest():
    problem = problems.badly_scaled()
    values = negate(problem, optax.adam(1e4), 600)
    assert (values[:, 0] > 1e12).all()
    assert (values[:, -1] < problem.target).all()
    assert (negate(problem, optax.adam(1.0), 600) > problem.target).all()


def test_gradients_of_layers_are_the_larger_the_smaller_the_weights():
    params, _, _, grads = starts(problems.layer_scales())
    for name, unit in (("layer_0", 1e-2), ("layer_1", 1.0), ("layer_2", 1e2)):
        distance = (params[name] - unit) / unit
        assert float(distance.std()) == pytest.approx(0.5, rel=0.15)
        np.testing.assert_allclose(grads[name] * unit, distance, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("build", "arguments"),
    [
        (problems.badly_scaled, (1,)),
        (problems.badly_scaled, (9, -1.0)),
        (problems.layer_scales, (0,)),
        (problems.layer_scales, (4, (1.0, 0.0))),
        (problems.layer_scales, (4, ())),
    ],
)
def test_impossible_units_are_refused(build, arguments):
    with pytest.raises(ValueError, match="need"):
        build(*arguments)


# The classics.


def test_rosenbrock_is_the_standard_one_and_separates_into_pairs(x64):
    x = jax.random.normal(jax.random.key(0), (6,))
    pairs = [scipy.optimize.rosen(np.asarray(pair)) for pair in x.reshape(3, 2)]
    np.testing.assert_allclose(problems.rosenbrock().value(x[:2]), pairs[0])
    np.testing.assert_allclose(problems.rosenbrock(6).value(x), sum(pairs))
    assert problems.rosenbrock().value(jnp.array([-1.2, 1.0])) == pytest.approx(24.2)


def test_rosenbrock_valley_is_narrow_and_its_floor_flat(x64):
    problem = problems.rosenbrock(4)
    eigenvalues = spectrum(problem, problem.minimizer)
    assert eigenvalues[-1] / eigenvalues[0] == pytest.approx(2508, abs=1)
    floor = jax.vmap(lambda u: problems.rosenbrock().value(jnp.array([u, u**2])))
    np.testing.assert_allclose(floor(jnp.array([-1.0, 0.0, 1.0])), [4.0, 1.0, 0.0])


@pytest.mark.parametrize("dim", [0, 1, 3])
def test_rosenbrock_refuses_incomplete_pairs(dim):
    with pytest.raises(ValueError, match="even"):
        problems.rosenbrock(dim)


def test_powell_is_the_standard_one_and_singular_at_the_minimum(x64):
    problem = problems.powell()
    assert problem.value(jnp.array([3.0, -1.0, 0.0, 1.0])) == 215
    np.testing.assert_array_equal(starts(problem)[0], np.tile([3.0, -1.0, 0.0, 1.0], (64, 1)))
    eigenvalues = spectrum(problem, np.zeros(4))
    np.testing.assert_allclose(eigenvalues, [0, 0, 20, 202], atol=1e-12)
    assert 2 / eigenvalues[-1] == pytest.approx(0.0099, abs=1e-5)


def test_powell_has_no_other_stationary_point(x64):
    """It is convex, a sum of even powers of four independent linear functions."""
    functions = [[1, 10, 0, 0], [0, 0, 1, -1], [0, 1, -2, 0], [1, 0, 0, -1]]
    assert np.linalg.matrix_rank(functions) == 4
    point = np.random.default_rng(0).normal(size=4)
    a, b, c, d = functions @ point
    value = problems.powell().value(jnp.asarray(point))
    assert value == pytest.approx(a**2 + 5 * b**2 + c**4 + 10 * d**4)


def test_powell_target_is_the_least_value_at_distance_one_tenth(x64):
    problem = problems.powell()

    def least(radius):
        on_sphere = jax.jit(
            jax.value_and_grad(lambda x: 1e6 * problem.value(radius * x / jnp.linalg.norm(x)))
        )
        found = [
            scipy.optimize.minimize(on_sphere, start, jac=True, options={"maxiter": 2000}).fun
            for start in np.random.default_rng(0).normal(size=(10, 4))
        ]
        return min(found) / 1e6

    assert problem.target == pytest.approx(least(0.1), rel=5e-3)
    assert least(0.01) == pytest.approx(1e-4 * problem.target, rel=0.02)


def test_powell_value_falls_with_the_square_of_the_steps():
    values = negate(problems.powell(), optax.sgd(4e-3), 8000, seeds=1)[0]
    assert values[3999] / values[7999] == pytest.approx(4, rel=0.15)
