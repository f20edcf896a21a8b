"""The facts that ``optfn.testing.problems.networks`` states, checked by computing them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
from problem_tools import gradient, hessian, negate, starts

from optfn.testing import problems

NETS = ["classifier", "recurrent", "attention"]


@pytest.mark.parametrize("name", NETS)
def test_zero_network_is_stationary_at_log_two(name, x64):
    problem = getattr(problems, name)()
    zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(problem.init, jax.random.key(0)))
    value, slope = jax.jit(jax.value_and_grad(problem.value))(zeros)
    assert value == pytest.approx(np.log(2))
    for leaf in jax.tree.leaves(slope):
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
    assert abs(grown) < 1e-12 < trained < problem.target


@pytest.mark.parametrize("samples", [0, 6])
def test_classifier_refuses_unbalanced_clusters(samples):
    with pytest.raises(ValueError, match="multiple of 4"):
        problems.classifier(samples=samples)


# Logistic regression.


def test_infimum_of_separable_data_is_approached_along_a_direction(x64):
    problem = problems.separable()
    direction = 0.5 ** np.arange(5) / np.linalg.norm(0.5 ** np.arange(5))
    assert problem.minimizer is None
    for length in (1.0, 10.0, 100.0):
        assert 0 < problem.value(length * direction) <= np.log1p(np.exp(-length * 0.5))


def test_separable_is_convex_and_its_gradient_fades_with_the_value(x64):
    problem = problems.separable()
    points = np.random.default_rng(0).normal(size=(5, 5))
    assert min(np.linalg.eigvalsh(hessian(problem, point))[0] for point in points) > 0
    for length in (0.0, 1.0, 10.0, 50.0):
        x = np.full(5, length)
        assert np.linalg.norm(gradient(problem, x)) <= 5 * problem.value(x)


def test_descent_on_separable_data_is_as_slow_as_stated():
    problem = problems.separable()
    _, values, _, _ = starts(problem)
    assert float(values.mean()) == pytest.approx(np.log(2), abs=0.1)
    values = negate(problem, optax.sgd(1.0), 4000)
    np.testing.assert_allclose(values[:, 1999] / values[:, 3999], 2, rtol=0.15)
    np.testing.assert_allclose(
        negate(problem, optax.sgd(2.0), 2000)[:, -1], values[:, -1], rtol=0.1
    )
    assert problem.target * 10 < np.log(2) / 64 < problem.target * 11


# The recurrent net.


def recurrent_params(feedback, weight, readout):
    """One unit, whose sign the output layer reads."""
    return {
        "cell": {
            "input": jnp.array([weight]),
            "hidden": {"kernel": jnp.array([[feedback]]), "bias": jnp.zeros(1)},
        },
        "output": {"kernel": readout * jnp.array([[-1.0, 1.0]]), "bias": jnp.zeros(2)},
    }


def best_of_one_unit(problem, feedback):
    """The least value over inputs and readouts of many sizes, and either sign."""
    weights, readouts = jnp.meshgrid(jnp.geomspace(0.05, 5, 20), jnp.geomspace(0.1, 1e3, 30))
    values = jax.jit(jax.vmap(lambda w, r: problem.value(recurrent_params(feedback, w, r))))(
        jnp.concatenate([weights.ravel()] * 2),
        jnp.concatenate([readouts.ravel(), -readouts.ravel()]),
    )
    return float(values.min())


def test_one_unit_holds_on_to_the_sign_if_its_feedback_is_strong(x64):
    problem = problems.recurrent(hidden=1)
    assert best_of_one_unit(problem, 3.0) < 1e-6
    assert best_of_one_unit(problem, 0.3) > 0.99 * np.log(2)


def test_without_memory_nothing_is_better_than_chance(x64):
    problem = problems.recurrent()

    @jax.jit
    @jax.vmap
    def forgetful(key):
        params = problem.init(key)
        params["cell"]["hidden"]["kernel"] *= 0
        return problem.value(params)

    values = forgetful(jax.random.split(jax.random.key(0), 200))
    assert np.log(2) < float(values.min()) < 0.8
    assert best_of_one_unit(problems.recurrent(hidden=1), 0.0) > np.log(2) - 1e-12


# Attention.


def attention_params(query, readout):
    """A query for the mark, and the sign as the value."""
    return {
        "query": query * jnp.eye(4)[0],
        "key": jnp.eye(2, 4),
        "value": jnp.eye(2, 4),
        "output": {
            "kernel": readout * jnp.eye(4)[1][:, None] * jnp.array([[-1.0, 1.0]]),
            "bias": jnp.zeros(2),
        },
    }


def test_attention_to_the_mark_tells_its_sign_and_uniform_attention_does_not(x64):
    problem = problems.attention()
    value = jax.jit(lambda query, readout: problem.value(attention_params(query, readout)))
    assert value(100.0, 100.0) < 1e-12
    uniform = [float(value(0.0, readout)) for readout in np.linspace(0, 20, 200)]
    assert 0.25 < min(uniform) < np.log(2)
    assert min(uniform) > 10 * problem.target
    # Where to look alone is no more use.
    assert value(100.0, 0.0) == pytest.approx(np.log(2))


@pytest.mark.parametrize(
    ("build", "arguments"),
    [
        (problems.separable, (0,)),
        (problems.separable, (5, 64, 0.0)),
        (problems.recurrent, (8, 0)),
        (problems.attention, (4, 2)),
    ],
)
def test_impossible_models_are_refused(build, arguments):
    with pytest.raises(ValueError, match="need"):
        build(*arguments)
