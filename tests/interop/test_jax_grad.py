"""`jax.grad` with respect to the optimizer: hypergradients through a whole run.

The oracles are central differences in double precision, all of them in one vmapped call, and the
same run without the params whose gradient is always zero.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optfn
from optfn import schedules

START = np.array([1.0, -2.0, 0.5])
CURVATURES = np.array([2.0, 3.0, 0.0])  # the last entry has no part in the loss


def end_of_run(tx, params, curvatures):
    def loss(params):
        return jnp.sum(curvatures * jnp.square(params))

    def step(carry, _):
        params, state = carry
        return optfn.step(tx, params, jax.grad(loss)(params), state), None

    (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=4)
    return loss(params)


hypergradient = jax.jit(jax.grad(end_of_run))


@jax.jit
def ends_of_runs(batch, params, curvatures):
    return jax.vmap(end_of_run, (optfn.in_axes(batch), None, None))(batch, params, curvatures)


# The usual optimizers, and twins with epsilons so large that differences do not drown in rounding.
RATE = schedules.warmup_cosine(0.1, 1.5, 6.5, init_value=0.02, end_value=0.03)
TWINS = {
    "sgd": (
        optfn.sgd(0.1, momentum=0.9, nesterov=True),
        optfn.sgd(0.1, momentum=0.5, nesterov=True),
    ),
    "adamw": (optfn.adamw(RATE), optfn.adamw(RATE, 0.8, 0.95, 0.01, 0.02, weight_decay=0.1)),
    "nadam": (
        optfn.adam(0.1, nesterov=True),
        optfn.adam(0.1, 0.8, 0.95, 0.01, 0.02, nesterov=True),
    ),
    "amsgrad": (optfn.amsgrad(0.1), optfn.amsgrad(0.1, 0.8, 0.95, 0.01, 0.02)),
    "rmsprop": (
        optfn.rmsprop(0.1, centered=True, momentum=0.9),
        optfn.rmsprop(0.1, 0.8, 0.02, 0.1, centered=True, momentum=0.5),
    ),
    "rmsprop, eps outside the root": (
        optfn.rmsprop(0.1, eps_in_sqrt=False),
        optfn.rmsprop(0.1, 0.8, 0.02, 0.1, eps_in_sqrt=False),
    ),
    "adagrad": (optfn.adagrad(0.1, 0.0), optfn.adagrad(0.3, 0.05, 0.02)),
    "lion": (optfn.lion(0.1), optfn.lion(0.1, weight_decay=0.2)),
    "clipping": (
        optfn.chain(optfn.clip_by_global_norm(1.5), optfn.sgd(0.1)),
        optfn.chain(optfn.clip_by_global_norm(3.0), optfn.sgd(0.2)),
    ),
}
twins = pytest.mark.parametrize(("usual", "smooth"), TWINS.values(), ids=TWINS)


@twins
def test_hypergradients_equal_finite_differences(usual, smooth, x64):
    leaves, treedef = jax.tree.flatten(smooth)
    values = np.asarray(leaves, float)
    h = 1e-5 * np.maximum(values, 0.1)
    neighbours = values + np.concatenate([np.diag(h), -np.diag(h)])

    ends = ends_of_runs(treedef.unflatten(list(neighbours.T)), START, CURVATURES)
    above, below = np.split(np.asarray(ends), 2)
    found = np.asarray(jax.tree.leaves(hypergradient(smooth, START, CURVATURES)))

    # Differences err by h^2 and by the rounding of the loss, about 1e-15, over h.
    np.testing.assert_allclose(found, (above - below) / (2 * h), rtol=1e-7, atol=1e-8)


def leaves_of(tree):
    leaves = np.asarray(jax.tree.leaves(tree))
    assert np.isfinite(leaves).all()
    return leaves


@twins
def test_a_param_without_a_gradient_changes_no_hypergradient(usual, smooth, x64):
    found = hypergradient(usual, START, CURVATURES)
    expected = hypergradient(usual, START[:-1], CURVATURES[:-1])
    np.testing.assert_allclose(leaves_of(found), leaves_of(expected), rtol=1e-9)


@twins
def test_a_run_without_any_gradient_has_zero_hypergradients(usual, smooth, x64):
    assert not leaves_of(hypergradient(usual, START, 0 * CURVATURES)).any()
