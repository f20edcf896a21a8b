"""The facts that ``optfn.testing.problems.nonsmooth`` states, checked by computing them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problem_tools import gradient, hessian, negate, starts

from optfn.testing import problems


def on_sphere(problem, special, radius=0.01):
    """Values at many points at this distance from the minimizer, the first along ``special``."""
    directions = np.random.default_rng(0).normal(size=(1000, 10))
    directions = np.concatenate([special[None], directions])
    directions *= radius / np.linalg.norm(directions, axis=1, keepdims=True)
    return np.asarray(jax.vmap(problem.value)(1 + directions))


@pytest.mark.parametrize(("name", "special"), [("kinks", np.eye(10)[0]), ("minimax", np.ones(10))])
def test_target_is_the_least_value_at_distance_one_hundredth(name, special, x64):
    problem = getattr(problems, name)()
    values = on_sphere(problem, special)
    assert values[0] == pytest.approx(problem.target)
    assert values[1:].min() > problem.target


@pytest.mark.parametrize("name", ["kinks", "minimax", "staircase"])
def test_starts_are_those_of_the_quadratic(name):
    np.testing.assert_array_equal(
        starts(getattr(problems, name)())[0], starts(problems.quadratic())[0]
    )


def test_kinks_have_gradients_of_one_size():
    problem = problems.kinks()
    np.testing.assert_array_equal(abs(starts(problem)[3]), 1.0)
    near = np.float32(1) + np.float32(1e-5) * np.arange(1, 11, dtype=np.float32)
    np.testing.assert_array_equal(gradient(problem, near), 1.0)


def test_fixed_rate_steps_to_and_fro_over_the_kinks():
    problem = problems.kinks()
    assert (negate(problem, optax.sgd(0.05), 500) > problem.target).all()


def test_minimax_shows_the_worst_coordinate_alone():
    params, values, _, grads = starts(problems.minimax())
    np.testing.assert_array_equal((grads != 0).sum(axis=1), 1)
    np.testing.assert_array_equal(abs(grads).sum(axis=1), 1.0)
    seen = jnp.take_along_axis(abs(params - 1), abs(grads).argmax(axis=1)[:, None], axis=1)[:, 0]
    np.testing.assert_allclose(seen, values, rtol=1e-6)


def test_minimax_gradients_turn_by_right_angles():
    problem = problems.minimax()

    @jax.jit
    def run(params):
        def step(x, _):
            slope = jax.grad(problem.value)(x)
            return x - 0.01 * slope, slope

        return jax.lax.scan(step, params, length=500)[1]

    slopes = np.asarray(run(starts(problem)[0][0]))[200:]
    turns = (slopes[1:] * slopes[:-1]).sum(axis=1)
    assert not turns.any()


def test_staircase_stays_near_the_quadratic_but_its_gradient_does_not(x64):
    problem = problems.staircase()
    points = 1 + 2 * np.random.default_rng(0).normal(size=(500, 10))
    values, slopes = jax.jit(jax.vmap(jax.value_and_grad(problem.value)))(points)
    q = ((points - 1) ** 2).sum(axis=1) / 2
    below = q - np.asarray(values)
    assert 0 <= below.min() < 0.01
    assert 0.08 < below.max() <= 0.9 * 0.1
    np.testing.assert_allclose(slopes, 0.1 * (points - 1))


def test_staircase_has_its_slope_for_curvature_and_jumps_between(x64):
    problem = problems.staircase()
    np.testing.assert_allclose(hessian(problem, problem.minimizer), 0.1 * np.eye(10))
    edge = np.sqrt(2 * 0.1)  # where q = height
    jump = [problem.value(1 + r * np.eye(10)[0]) for r in (edge - 1e-9, edge + 1e-9)]
    assert jump[1] - jump[0] == pytest.approx(0.9 * 0.1, abs=1e-6)
    assert problem.value(1 + 0.4 * np.eye(10)[0]) == pytest.approx(0.1 * 0.4**2 / 2)


def test_step_of_polyak_overshoots_on_the_staircase(x64):
    problem = problems.staircase()
    x = 1 + np.random.default_rng(0).normal(size=10)
    slope = np.asarray(gradient(problem, x))
    after = x - problem.value(x) / (slope @ slope) * slope
    ratio = np.linalg.norm(after - 1) / np.linalg.norm(x - 1)
    assert ratio == pytest.approx(4, rel=0.05)


@pytest.mark.parametrize("arguments", [(10, 0.0), (10, 1.5), (10, 0.1, 0.0)])
def test_impossible_stairs_are_refused(arguments):
    with pytest.raises(ValueError, match="slope"):
        problems.staircase(*arguments)
