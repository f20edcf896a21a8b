"""The facts that ``optfn.testing.problems.landscapes`` states, checked by computing them."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
from problem_tools import gradient, hessian, negate, spectrum, starts

from optfn.testing import problems


def end_of_descent(problem, params, rate, steps):
    """Where gradient descent arrives from each row of ``params``."""

    @jax.jit
    @jax.vmap
    def run(params):
        return jax.lax.fori_loop(
            0, steps, lambda _, x: x - rate * jax.grad(problem.value)(x), params
        )

    return np.asarray(run(jnp.asarray(params)))


def test_beale_side_valley_falls_outwards_but_never_to_the_target(x64):
    problem = problems.beale()
    u = -(10.0 ** np.arange(1, 6))
    valley = np.stack([u, 1 - 13.875 / 14 / u], axis=1)
    values, gradients = jax.jit(jax.vmap(jax.value_and_grad(problem.value)))(valley)
    assert values[-1] == pytest.approx(0.452, abs=1e-3)
    assert (np.diff(values) < 0).all()
    assert values.min() > 1e4 * problem.target
    assert (abs(gradients[1:, 0]) < abs(gradients[:-1, 0]) / 10).all()


# Saddle and plateau.


def test_saddle_is_strict_and_the_start_is_next_to_its_stable_surface(x64):
    problem = problems.saddle(5, offset=1e-4)
    value, gradient = jax.jit(jax.value_and_grad(problem.value))(np.zeros(5))
    assert value == 0.25
    assert not gradient.any()
    np.testing.assert_allclose(spectrum(problem, np.zeros(5)), [-1, 1, 1, 1, 1])
    first = jax.jit(jax.vmap(problem.init))(jax.random.split(jax.random.key(0), 32))[:, 0]
    assert set(np.asarray(first)) == {-1e-4, 1e-4}


@pytest.mark.parametrize("offset", [1e-3, 1e-6])
def test_gradient_descent_lingers_at_the_saddle(offset):
    # The way out grows by half a step: the value stays near 1/4 until offset * 1.5^steps is large.
    values = negate(problems.saddle(offset=offset), optax.sgd(0.5), 100)
    escape = int(np.log(0.5 / offset) / np.log(1.5))
    np.testing.assert_allclose(values[:, escape // 2 : escape - 5], 0.25, atol=0.01)
    assert (values[:, escape + 10] < 0.05).all()


def test_plateau_gradient_is_tiny_at_the_start_but_points_the_right_way(x64):
    problem = problems.plateau(dim=3)
    start = problem.init(jax.random.key(0))
    gradient = jax.grad(problem.value)(start)
    assert jnp.linalg.norm(start - 1) == pytest.approx(10.0)
    assert jnp.linalg.norm(gradient) == pytest.approx(10 / 51**2)
    np.testing.assert_allclose(gradient / jnp.linalg.norm(gradient), (start - 1) / 10)
    r = jnp.linspace(0, 10, 10001)
    slopes = jax.jit(jax.vmap(jax.grad(problems.plateau(dim=1).value)))(1 + r[:, None])[:, 0]
    assert slopes.max() == pytest.approx(0.46, abs=2e-3)


def test_plateau_takes_the_stated_number_of_steps():
    problem = problems.plateau()
    values = negate(problem, optax.sgd(1.0), 800, seeds=1)[0]
    assert np.argmax(values <= problem.target) == pytest.approx(10**4 / 16, rel=0.1)


# The saddle of the third order.


def test_monkey_saddle_is_flat_to_the_second_order_with_three_ways_down(x64):
    problem = problems.monkey_saddle()
    assert problem.value(np.zeros(2)) == 0.25
    assert not np.asarray(gradient(problem, np.zeros(2))).any()
    assert not hessian(problem, np.zeros(2)).any()
    angles = np.linspace(0, 2 * np.pi, 60, endpoint=False) + 0.01
    circle = 0.01 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    below = np.asarray(jax.vmap(problem.value)(circle)) < 0.25
    assert (below != np.roll(below, 1)).sum() == 6


def test_monkey_saddle_minima_are_as_stated(x64):
    for minimizer in np.array([[-2, 0], [1, 3**0.5], [1, -(3**0.5)]]) / 2:
        np.testing.assert_allclose(spectrum(problems.monkey_saddle(), minimizer), [3, 9])


def test_leaving_the_monkey_saddle_takes_as_long_as_the_start_is_near():
    taken = []
    for offset, steps in ((0.03, 1000), (0.003, 8000)):
        problem = problems.monkey_saddle(offset)
        start, _, _, grads = starts(problem)
        np.testing.assert_allclose(jnp.linalg.norm(start, axis=1), offset, rtol=1e-5)
        assert float(jnp.linalg.norm(grads, axis=1).max()) < 4 * offset**2
        values = negate(problem, optax.sgd(0.15), steps)
        assert (values[:, -1] < 0.2).all()
        taken.append(np.median((values < 0.2).argmax(axis=1)))
    assert taken[1] / taken[0] == pytest.approx(10, rel=0.2)


# Many minima.


def test_himmelblau_has_four_minima_of_the_stated_curvature(x64):
    problem = problems.himmelblau()
    near = [(3, 2), (-2.805, 3.131), (-3.779, -3.283), (3.584, -1.848)]
    system = lambda x: [x[0] ** 2 + x[1] - 11, x[0] + x[1] ** 2 - 7]  # noqa: E731
    minima = [scipy.optimize.fsolve(system, point, xtol=1e-12) for point in near]
    np.testing.assert_allclose(minima, near, atol=1e-3)
    assert max(problem.value(minimum) for minimum in minima) < 1e-20
    least = [spectrum(problem, minimum)[0] for minimum in minima]
    np.testing.assert_allclose(min(least), 54 - 20 * 2**0.5)
    for one, other in itertools.combinations(minima, 2):
        assert problem.value((one + other) / 2) > 10


def test_himmelblau_has_a_maximum_amid_its_minima(x64):
    problem = problems.himmelblau()
    maximum = scipy.optimize.fsolve(
        lambda x: np.asarray(gradient(problem, x)), (-0.271, -0.923), xtol=1e-12
    )
    np.testing.assert_allclose(maximum, (-0.271, -0.923), atol=1e-3)
    assert problem.value(maximum) == pytest.approx(181.6, abs=0.05)
    assert spectrum(problem, maximum)[-1] < 0


def test_himmelblau_starts_lead_to_all_four():
    problem = problems.himmelblau()
    start = starts(problem)[0]
    assert 4 < float(abs(start).max()) <= 5
    ends = end_of_descent(problem, start, 3e-3, 500)
    assert len({tuple(end) for end in ends.round(2)}) == 4


def test_rastrigin_minima_and_basin_are_as_stated(x64):
    problem = problems.rastrigin(1)
    ends = end_of_descent(problem, 1 + np.array([[0.5], [0.503], [1.4]]), 3e-3, 2000)[:, 0] - 1
    np.testing.assert_allclose(ends, [0, 0.995, 0.995], atol=1e-3)
    np.testing.assert_allclose(
        end_of_descent(problem, 1 + np.array([[0.5024], [0.5026]]), 3e-3, 5000)[:, 0] - 1,
        [0, 0.995],
        atol=1e-3,
    )
    assert problem.value(1 + ends[1:2]) == pytest.approx(0.995, abs=1e-4)
    np.testing.assert_allclose(spectrum(problems.rastrigin(), np.ones(5)), 2 + 40 * np.pi**2)
    start = starts(problems.rastrigin())[0]
    assert 0.35 < float(abs(start - 1).max()) <= 0.4


def test_a_step_out_of_the_basin_of_rastrigin_is_final():
    """One step of length 1 a coordinate, and then descent at a rate that finds the minimum."""
    problem = problems.rastrigin()
    schedule = lambda count: jnp.where(count == 0, 1.0, 0.01)  # noqa: E731
    values = negate(problem, optax.adam(schedule), 500)
    assert (values[:, -1] > 10 * problem.target).all()


# The cliff and the wall.


def test_cliff_gradients_are_as_large_as_stated(x64):
    problem = problems.cliff()
    np.testing.assert_allclose(spectrum(problem, np.ones(2)), 21**2)
    assert pytest.approx(0.0045, abs=5e-5) == 2 / 21**2
    steepest = np.asarray(gradient(problem, np.array([1.2, 1.4])))
    assert 3e4 < steepest[0] < steepest[1] < 3e7
    start = starts(problem)[0]
    assert 1.2 <= float(start.min()) < float(start.max()) <= 1.4
    plain = np.array([0.5, -0.5])
    assert problem.value(plain) == pytest.approx(1.0, abs=1e-5)
    assert abs(np.asarray(gradient(problem, plain))).max() < 1e-4


def test_first_step_from_the_cliff_leaves_the_range_of_floats():
    assert np.isinf(negate(problems.cliff(), optax.sgd(2 / 21**2), 1, seeds=64)).all()


def test_barrier_is_a_wall_with_nothing_behind(x64):
    problem = problems.barrier()
    np.testing.assert_allclose(spectrum(problem, problem.minimizer), 10)
    for outside in (0.0, -1.0):
        params = np.full(10, 1.0)
        params[3] = outside
        assert problem.value(params) == np.inf
        assert not np.asarray(gradient(problem, params)).any()
    slopes = np.asarray(gradient(problem, np.linspace(0.5, 1.5, 10)))
    assert 0.8 <= slopes.min() < slopes.max() < 0.94


def test_no_step_leads_back_over_the_barrier():
    values = negate(problems.barrier(), optax.sgd(1.2), 10, seeds=64)
    assert np.isinf(values[:, -1]).all()


@pytest.mark.parametrize(
    ("build", "arguments"), [(problems.cliff, (2, 20)), (problems.barrier, (10, 0.0))]
)
def test_impossible_landscapes_are_refused(build, arguments):
    with pytest.raises(ValueError, match="need"):
        build(*arguments)
