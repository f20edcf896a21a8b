"""What holds for all of ``optfn.testing.problems``, checked by computing it.

Spectra, minimizers and identities are checked in float64. Whether a target can be reached is
checked in float32, as that is how the problems are mostly used. What one problem states about
itself is checked in the files beside this one, one for each module of problems.
"""

import jax
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from problem_tools import negate_all, prepare_starts, starts

from optfn.testing import problems
from optfn.testing.checks import enable_x64
from optfn.testing.problems import Problem

each = pytest.mark.parametrize("problem", problems.ALL, ids=lambda problem: problem.name)

# Some of the minimizers of the problems that have many, with the least curvature of all.
OF_MANY = {
    "saddle": [np.array([-1.0, 0.0]), np.array([1.0, 0.0])],
    "monkey_saddle": [np.array([-1.0, 0.0]), *np.array([[1, 3**0.5], [1, -(3**0.5)]]) / 2],
    "himmelblau": [np.array([3.0, 2.0])],
    "scale_invariant": [np.full(10, 10**-0.5)],
    "rayleigh": [np.eye(10)[0], -np.eye(10)[0]],
    "factorization": [np.diag([2.0, 1.0, 0.0, 0.0])[:, :2]],
    "deep_chain": [np.ones(10)],
}
CASES = [
    (problem, minimizer)
    for problem in problems.ALL
    for minimizer in OF_MANY.get(problem.name, [problem.minimizer])
    if minimizer is not None
]

# Where the target departs from the rule: another radius, another measure, or no minimizer.
RADIUS = dict.fromkeys(("noisy_least_squares", "heavy_tails", "rare_gradients"), 0.1)
OTHER_MEASURE = ("badly_scaled", "layer_scales", "powell", "kinks", "minimax")
AT_INFINITY = {
    "classifier": np.log(2) / 64,
    "recurrent": np.log(2) / 64,
    "attention": np.log(2) / 64,
    "separable": 1e-3,
}


def each_minimizer(*, without=()):
    cases = [(problem, minimizer) for problem, minimizer in CASES if problem.name not in without]
    names = [problem.name for problem, _ in cases]
    return pytest.mark.parametrize(("problem", "minimizer"), cases, ids=names)


# Each of these is one program for all problems, which compiles faster than one for each.


@pytest.fixture(scope="module", autouse=True)
def prepared():
    prepare_starts(problems.ALL)


def start_of(problem):
    return jax.tree.map(lambda leaf: leaf[0], starts(problem)[0])


@pytest.fixture(scope="module")
def rebuilt():
    """By name: the problem built again, and the value at the start from each of the two."""
    again = {problem.name: getattr(problems, problem.name)() for problem in problems.ALL}

    @jax.jit
    def evaluate(params):
        return {
            p.name: (p.value(params[p.name]), again[p.name].value(params[p.name]))
            for p in problems.ALL
        }

    values = evaluate({problem.name: start_of(problem) for problem in problems.ALL})
    return {name: (problem, *values[name]) for name, problem in again.items()}


@each
def test_name_is_that_of_the_function_and_rebuilding_changes_nothing(problem, rebuilt):
    again, first, second = rebuilt[problem.name]
    assert again.name == problem.name
    assert (again.optimum, again.target) == (problem.optimum, problem.target)
    assert first == second


def test_all_holds_every_problem_once():
    factories = set(problems.__all__) - {"ALL", "Problem"}
    assert sorted(problem.name for problem in problems.ALL) == sorted(factories)
    assert all(isinstance(problem, Problem) for problem in problems.ALL)


@each
def test_docstring_and_difficulty_are_there(problem):
    docstring = getattr(problems, problem.name).__doc__
    assert "ptimum" in docstring or "nfimum" in docstring
    assert problem.difficulty.endswith(".")


@each
def test_target_is_above_the_optimum_and_below_every_start(problem):
    _, values, _, _ = starts(problem)
    assert problem.optimum < problem.target < values.min()


@each
def test_functions_transform_without_a_change_of_structure(problem):
    params, values, losses, grads = starts(problem)
    assert values.shape == losses.shape == (64,)
    assert jax.tree.map(np.shape, grads) == jax.tree.map(np.shape, params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((losses, grads)))


@each
def test_starts_have_the_default_dtype_and_values_that_of_the_params(problem):
    def dtypes(tree):
        return {leaf.dtype.name for leaf in jax.tree.leaves(tree)}

    def evaluate(params, key):
        return jax.value_and_grad(problem.loss)(params, key), jax.value_and_grad(problem.value)(
            params
        )

    key = jax.eval_shape(lambda: jax.random.key(0))
    narrow = jax.eval_shape(problem.init, key)
    with jax.enable_x64(True):
        wide = jax.eval_shape(problem.init, key)
        of_narrow, of_wide = (jax.eval_shape(evaluate, x, key) for x in (narrow, wide))
    for loss_or_value in (narrow, *jax.eval_shape(evaluate, narrow, key), *of_narrow):
        assert dtypes(loss_or_value) == {"float32"}
    for loss_or_value in (wide, *of_wide):
        assert dtypes(loss_or_value) == {"float64"}


@pytest.fixture(scope="module")
def at_minimizers():
    """In float64, by the identity of the minimizer: the value, the gradient and the Hessian."""

    def evaluate(problem, minimizer):
        value, slope = jax.value_and_grad(problem.value)(minimizer)
        flat, unravel = ravel_pytree(minimizer)
        return value, slope, jax.hessian(lambda x: problem.value(unravel(x)))(flat)

    def evaluate_all(minimizers):
        every = zip(CASES, minimizers, strict=True)
        return [evaluate(problem, minimizer) for (problem, _), minimizer in every]

    minimizers = [minimizer for _, minimizer in CASES]
    with enable_x64(True):
        found = jax.device_get(jax.jit(evaluate_all)(minimizers))
    return {id(minimizer): x for minimizer, x in zip(minimizers, found, strict=True)}


@each_minimizer()
def test_minimizer_attains_the_optimum(problem, minimizer, at_minimizers):
    value, _, _ = at_minimizers[id(minimizer)]
    assert value == pytest.approx(problem.optimum, abs=1e-13)


@each_minimizer(without=("kinks", "minimax"))
def test_minimizer_is_stationary(problem, minimizer, at_minimizers):
    smallest_unit = {"badly_scaled": 1e-4, "layer_scales": 1e-2}.get(problem.name, 1.0)
    for leaf in jax.tree.leaves(at_minimizers[id(minimizer)][1]):
        np.testing.assert_allclose(leaf, 0.0, atol=1e-13 / smallest_unit)


@each_minimizer(without=OTHER_MEASURE)
def test_target_is_the_least_value_at_the_stated_distance(problem, minimizer, at_minimizers):
    eigenvalues = np.linalg.eigvalsh(at_minimizers[id(minimizer)][2])
    least = eigenvalues[eigenvalues > 1e-6 * eigenvalues[-1]][0]
    assert eigenvalues[0] > -1e-9
    expected = problem.optimum + least * RADIUS.get(problem.name, 0.01) ** 2 / 2
    np.testing.assert_allclose(problem.target, expected, rtol=1e-3)


def test_targets_without_a_minimizer_are_as_stated():
    attained = {problem.name for problem, _ in CASES}
    assert attained.isdisjoint(AT_INFINITY)
    assert attained | set(AT_INFINITY) == {problem.name for problem in problems.ALL}
    for name, target in AT_INFINITY.items():
        assert getattr(problems, name)().target == pytest.approx(target)


@pytest.fixture(scope="module")
def least():
    """In float64, by name: the least value of a random search around the minimizer or a start."""
    samples, unravels = {}, {}
    with enable_x64(True):
        for problem in problems.ALL:
            start = start_of(problem)
            center, unravels[problem.name] = ravel_pytree(
                start if problem.minimizer is None else problem.minimizer
            )
            directions = np.random.default_rng(0).normal(size=(3000, center.size))
            distances = np.geomspace(1e-3, 1e2, 3000)[:, None]
            samples[problem.name] = np.asarray(center) + distances * directions

        @jax.jit
        def search(samples):
            return {
                p.name: jax.vmap(lambda x, p=p: p.value(unravels[p.name](x)))(samples[p.name]).min()
                for p in problems.ALL
            }

        return jax.device_get(search(samples))


@each
def test_random_search_finds_nothing_below_the_optimum(problem, least):
    assert least[problem.name] >= problem.optimum


def falling(rate, factor, every=1):
    return optax.exponential_decay(rate, every, factor)


def inverse(rate, offset):
    return lambda count: rate / (offset + count)


RUNS = [
    ("quadratic", optax.sgd(1.0), 1),
    ("ill_conditioned", optax.sgd(1.9), 4000),
    ("ill_conditioned", optax.adam(0.1), 300),
    ("rotated", optax.sgd(1.9), 4000),
    ("rotated", optax.adam(0.03), 4000),
    ("badly_scaled", optax.adam(falling(1e4, 0.1, 100), b2=0.9), 1500),
    ("badly_scaled", optax.adam(1e4), 600),
    ("layer_scales", optax.lamb(falling(0.1, 0.98)), 500),
    ("rosenbrock", optax.sgd(2e-3), 6000),
    ("rosenbrock", optax.adam(0.1), 1500),
    ("powell", optax.sgd(4e-3), 5000),
    ("powell", optax.adam(0.3), 1000),
    ("beale", optax.sgd(0.03), 600),
    ("beale", optax.adam(0.1), 600),
    ("saddle", optax.sgd(0.5), 100),
    ("saddle", optax.adam(0.1), 300),
    ("monkey_saddle", optax.sgd(0.15), 1500),
    ("monkey_saddle", optax.adam(0.03), 500),
    ("plateau", optax.sgd(1.9), 600),
    ("plateau", optax.adam(0.1), 300),
    ("himmelblau", optax.sgd(3e-3), 200),
    ("himmelblau", optax.adam(0.1), 500),
    ("rastrigin", optax.sgd(3e-3), 100),
    ("rastrigin", optax.adam(0.01), 300),
    ("cliff", optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(3e-3)), 500),
    ("barrier", optax.sgd(0.1), 100),
    ("barrier", optax.adam(0.01), 500),
    ("kinks", optax.sgd(falling(0.5, 0.97)), 300),
    ("minimax", optax.sgd(falling(0.3, 0.99)), 800),
    ("staircase", optax.sgd(10.0), 1),
    ("staircase", optax.adam(0.1), 300),
    ("scale_invariant", optax.sgd(50.0), 100),
    ("scale_invariant", optax.adam(0.1), 500),
    ("rayleigh", optax.sgd(0.9), 300),
    ("rayleigh", optax.adam(0.03), 500),
    ("factorization", optax.sgd(0.1), 300),
    ("factorization", optax.adam(0.03), 500),
    ("deep_chain", optax.sgd(0.1), 1000),
    ("deep_chain", optax.adam(0.03), 300),
    ("noisy_least_squares", optax.adam(0.01), 1000),
    ("interpolation", optax.sgd(0.05), 500),
    ("sparse", optax.sgd(0.1), 200),
    ("sparse", optax.adagrad(1.0), 1000),
    ("heavy_tails", optax.chain(optax.clip(1.0), optax.sgd(inverse(1.5, 10))), 3000),
    ("rare_gradients", optax.sgd(inverse(1.0, 20)), 4000),
    ("separable", optax.sgd(2.0), 3000),
    ("separable", optax.adam(0.3), 500),
    ("classifier", optax.adam(0.1), 100),
    ("recurrent", optax.adam(0.03), 1000),
    ("attention", optax.adam(0.03), 500),
]


@pytest.fixture(scope="module")
def runs():
    by_name = {problem.name: problem for problem in problems.ALL}
    return negate_all([(by_name[name], *rest) for name, *rest in RUNS])


@pytest.mark.parametrize("number", range(len(RUNS)), ids=[name for name, *_ in RUNS])
def test_target_is_reached_from_every_seed(number, runs):
    target = getattr(problems, RUNS[number][0])().target
    assert (runs[number] <= target).any(axis=1).all()
