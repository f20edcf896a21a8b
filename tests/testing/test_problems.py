"""The facts that ``optfn.testing.problems`` states about its problems, checked by computing them.

Spectra, minimizers and identities are checked in float64. Whether a target can be reached is
checked in float32, as that is how the problems are mostly used.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
from jax.flatten_util import ravel_pytree

from optfn.testing import problems
from optfn.testing.problems import Problem

each = pytest.mark.parametrize("problem", problems.ALL, ids=lambda problem: problem.name)
each_minimizer = pytest.mark.parametrize(
    ("problem", "minimizer"),
    [(p, p.minimizer) for p in problems.ALL if p.minimizer is not None]
    + [(p, np.array([sign, 0.0])) for p in problems.ALL if p.name == "saddle" for sign in (-1, 1)],
    ids=lambda case: case.name if isinstance(case, Problem) else "",
)


def spectrum(problem, params):
    """The eigenvalues, in ascending order, of the Hessian of the noiseless objective."""
    return np.linalg.eigvalsh(jax.jit(jax.hessian(problem.value))(params))


@functools.cache
def starts(problem):
    """For 64 keys, in float32: the starts, their values, and the losses and gradients there."""

    @jax.jit
    @jax.vmap
    def evaluate(key):
        params = problem.init(key)
        return params, problem.value(params), *jax.value_and_grad(problem.loss)(params, key)

    with jax.enable_x64(False):
        return evaluate(jax.random.split(jax.random.key(0), 64))


def descend(problem, optimizer, steps, seeds=8):
    """Noiseless values, of shape (seeds, steps), after every step down the loss in float32."""

    @jax.jit
    @jax.vmap
    def run(params, key):
        def step(carry, count):
            params, state = carry
            grads = jax.grad(problem.loss)(params, jax.random.fold_in(key, count))
            updates, state = optimizer.update(grads, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), problem.value(params)

        return jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(steps))[1]

    keys = jax.random.split(jax.random.key(1), 64)
    params = starts(problem)[0]
    return np.asarray(run(*jax.tree.map(lambda leaf: leaf[:seeds], (params, keys))))


# What holds for all problems.


@each
def test_name_is_that_of_the_function_and_rebuilding_changes_nothing(problem):
    rebuilt = getattr(problems, problem.name)()
    assert rebuilt.name == problem.name
    assert (rebuilt.optimum, rebuilt.target) == (problem.optimum, problem.target)

    start = jax.tree.map(lambda leaf: leaf[0], starts(problem)[0])
    first, second = jax.jit(lambda x: (problem.value(x), rebuilt.value(x)))(start)
    assert first == second


def test_all_holds_every_problem_once():
    factories = set(problems.__all__) - {"ALL", "Problem"}
    assert sorted(problem.name for problem in problems.ALL) == sorted(factories)


@each
def test_target_is_above_the_optimum_and_below_every_start(problem):
    _, values, _, _ = starts(problem)
    assert problem.optimum < problem.target < values.min()


@each
def test_functions_transform_without_a_change_of_structure(problem):
    params, values, losses, grads = starts(problem)
    assert values.shape == losses.shape == (64,)
    assert jax.tree.map(jnp.shape, grads) == jax.tree.map(jnp.shape, params)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((losses, grads)))


@each
def test_starts_have_the_default_dtype_and_values_that_of_the_params(problem):
    def dtypes(function, *args):
        return {leaf.dtype.name for leaf in jax.tree.leaves(jax.eval_shape(function, *args))}

    key = jax.random.key(0)
    narrow = jax.eval_shape(problem.init, key)
    for enabled, default in ((False, "float32"), (True, "float64")):
        with jax.enable_x64(enabled):
            params = jax.eval_shape(problem.init, key)
            assert dtypes(problem.init, key) == {default}
            assert dtypes(jax.value_and_grad(problem.loss), params, key) == {default}
            assert dtypes(jax.value_and_grad(problem.value), params) == {default}
            assert dtypes(jax.value_and_grad(problem.loss), narrow, key) == {"float32"}
            assert dtypes(jax.value_and_grad(problem.value), narrow) == {"float32"}


@each_minimizer
def test_minimizer_attains_the_optimum_and_is_stationary(problem, minimizer, x64):
    value, gradient = jax.jit(jax.value_and_grad(problem.value))(minimizer)
    assert value == pytest.approx(problem.optimum, abs=1e-13)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-13)


@each_minimizer
def test_target_is_the_least_value_at_the_stated_distance(problem, minimizer, x64):
    radius = 0.1 if problem.name == "noisy_least_squares" else 0.01
    least = problem.optimum + spectrum(problem, minimizer)[0] * radius**2 / 2
    np.testing.assert_allclose(problem.target, least, rtol=1e-3)


@each
def test_random_search_finds_nothing_below_the_optimum(problem, x64):
    start = jax.tree.map(lambda leaf: leaf[0], starts(problem)[0])
    center, unravel = ravel_pytree(start if problem.minimizer is None else problem.minimizer)
    directions = np.random.default_rng(0).normal(size=(3000, center.size))
    samples = np.asarray(center) + np.geomspace(1e-3, 1e2, 3000)[:, None] * directions
    values = jax.jit(jax.vmap(lambda sample: problem.value(unravel(sample))))(samples)
    assert values.min() >= problem.optimum


@pytest.mark.parametrize(
    ("name", "optimizer", "steps"),
    [
        ("quadratic", optax.sgd(1.0), 1),
        ("ill_conditioned", optax.sgd(1.9), 4000),
        ("ill_conditioned", optax.adam(0.1), 300),
        ("rotated", optax.sgd(1.9), 4000),
        ("rotated", optax.adam(0.03), 4000),
        ("rosenbrock", optax.sgd(2e-3), 6000),
        ("rosenbrock", optax.adam(0.1), 1500),
        ("beale", optax.sgd(0.03), 600),
        ("beale", optax.adam(0.1), 600),
        ("saddle", optax.sgd(0.5), 100),
        ("saddle", optax.adam(0.1), 300),
        ("plateau", optax.sgd(1.9), 600),
        ("plateau", optax.adam(0.1), 300),
        ("noisy_least_squares", optax.adam(0.01), 1000),
        ("classifier", optax.adam(0.1), 100),
    ],
)
def test_target_is_reached_from_every_seed(name, optimizer, steps):
    problem = next(problem for problem in problems.ALL if problem.name == name)
    assert (descend(problem, optimizer, steps) <= problem.target).any(axis=1).all()


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
    np.testing.assert_allclose(descend(rotated, sgd, 200), descend(aligned, sgd, 200), rtol=1e-4)
    assert (descend(aligned, adam, 200)[:, -1] < aligned.target).all()
    assert (descend(rotated, adam, 200)[:, -1] > rotated.target).all()


@pytest.mark.parametrize("build", [problems.ill_conditioned, problems.rotated])
@pytest.mark.parametrize("arguments", [(1,), (10, 0.5)])
def test_impossible_spectra_are_refused(build, arguments):
    with pytest.raises(ValueError, match="condition"):
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
    values = descend(problems.saddle(offset=offset), optax.sgd(0.5), 100)
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
    values = descend(problem, optax.sgd(1.0), 800, seeds=1)[0]
    assert np.argmax(values <= problem.target) == pytest.approx(10**4 / 16, rel=0.1)


# Noise.


def draw(problem, params, draws=10_000):
    """Losses and gradients at ``params`` under as many keys as ``draws``."""
    keys = jax.random.split(jax.random.key(1), draws)
    losses, gradients = jax.jit(jax.vmap(jax.value_and_grad(problem.loss), (None, 0)))(params, keys)
    return np.asarray(losses), np.asarray(gradients)


@pytest.mark.parametrize("offset", [0.0, -3.0])
def test_noise_has_zero_mean(offset, x64):
    problem = problems.noisy_least_squares()
    params = problem.minimizer + offset
    exact = jax.jit(jax.value_and_grad(problem.value))(params)
    for draws, mean in zip(draw(problem, params), exact, strict=True):
        standard_error = draws.std(axis=0) / len(draws) ** 0.5
        assert (standard_error > 0).all()
        assert (abs(draws.mean(axis=0) - mean) < 4 * standard_error).all()


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
        values = descend(problem, optax.sgd(rate), 1000, seeds=32)[:, 400:]
        excess = values.mean() - problem.optimum
        assert excess == pytest.approx(rate / 4 * 10 / 16, rel=0.15)
        assert (excess > problem.target - problem.optimum) == (rate > 0.032)


def test_falling_rate_leaves_the_noise_ball():
    problem = problems.noisy_least_squares()
    values = descend(problem, optax.sgd(lambda count: 1 / (4 + count)), 1000)
    assert (values[:, -100:] < problem.target).all()


def test_least_squares_needs_more_samples_than_dimensions():
    with pytest.raises(ValueError, match="samples"):
        problems.noisy_least_squares(dim=8, samples=8)


# The classifier.


def test_zero_network_is_stationary_at_log_two(x64):
    problem = problems.classifier()
    zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(problem.init, jax.random.key(0)))
    value, gradient = jax.jit(jax.value_and_grad(problem.value))(zeros)
    assert value == pytest.approx(np.log(2))
    for leaf in jax.tree.leaves(gradient):
        np.testing.assert_allclose(leaf, 0.0, atol=1e-15)


def test_no_linear_classifier_comes_close(x64):
    problem = problems.classifier(hidden=2)

    @jax.jit
    @jax.value_and_grad
    def linear(weights):  # tanh is the identity where its input is tiny
        kernel, bias = weights[:4].reshape(2, 2), weights[4:]
        hidden = {"kernel": 1e-5 * jnp.eye(2), "bias": jnp.zeros(2)}
        return problem.value({"hidden": hidden, "output": {"kernel": kernel / 1e-5, "bias": bias}})

    solution = scipy.optimize.minimize(linear, np.ones(6), jac=True, options={"gtol": 1e-6})
    assert solution.success  # and it is convex, so this is the least value
    assert solution.fun > 0.65 > problem.target


def test_infimum_is_approached_by_growing_weights(x64):
    problem = problems.classifier()

    @jax.jit
    def train(params):
        def step(_, params):
            return jax.tree.map(jnp.subtract, params, jax.grad(problem.value)(params))

        params = jax.lax.fori_loop(0, 200, step, params)
        grown = {**params, "output": jax.tree.map(lambda leaf: 100 * leaf, params["output"])}
        return problem.value(params), problem.value(grown)

    trained, grown = train(problem.init(jax.random.key(0)))
    assert 0 <= grown < 1e-12 < trained < problem.target


@pytest.mark.parametrize("samples", [0, 6])
def test_classifier_refuses_unbalanced_clusters(samples):
    with pytest.raises(ValueError, match="multiple of 4"):
        problems.classifier(samples=samples)
