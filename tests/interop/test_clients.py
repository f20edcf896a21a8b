"""Client libraries that take an optimizer of optax's: the optimizer is all that changes.

The oracle is the same program with optax's optimizer.
"""

import warnings

import beartype
import flowjax.train
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import optimistix
import pytest
import typeguard
from flowjax.bijections import Affine
from flowjax.distributions import StandardNormal, Transformed
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal

import optfn
from optfn import schedules

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import blackjax
    import jaxopt

PAIRS = {
    "adam": (optfn.adam(0.1), optax.adam(0.1)),
    "chain": (
        optfn.chain(
            optfn.clip_by_global_norm(1.0),
            optax.trace(0.5),
            optfn.scale_by_learning_rate(schedules.linear(0.1, 0.01, 20)),
        ),
        optax.chain(
            optax.clip_by_global_norm(1.0),
            optax.trace(0.5),
            optax.scale_by_learning_rate(optax.linear_schedule(0.1, 0.01, 20)),
        ),
    ),
}


@pytest.fixture(autouse=True)
def their_own_broadcasts():
    """The libraries' own code broadcasts ranks, which the tests of optfn's forbid."""
    with jax.numpy_rank_promotion("allow"):
        yield


RNG = np.random.default_rng(0)
DATA = jnp.asarray(RNG.normal(2.0, 1.0, (20, 2)), jnp.float32)


def parabola(y, args=1.0):
    return jnp.sum((y - args) ** 2)


def numpyro_svi(tx):
    def model(data):
        mean = numpyro.sample("mean", dist.Normal(0.0, 3.0))
        numpyro.sample("x", dist.Normal(mean, 1.0), obs=data)

    svi = SVI(model, AutoNormal(model), tx, Trace_ELBO())
    result = svi.run(jax.random.key(0), 20, DATA, progress_bar=False, stable_update=True)
    return result.params, result.losses


def optimistix_minimiser(tx):
    solver = optimistix.OptaxMinimiser(tx, rtol=1e-3, atol=1e-3)
    best = optimistix.BestSoFarMinimiser(solver)
    ends = [
        optimistix.minimise(parabola, s, jnp.zeros(2), 1.0, max_steps=20, throw=False)
        for s in (solver, best)
    ]
    return [end.value for end in ends]


def flowjax_fit_to_data(tx):
    flow = Transformed(StandardNormal((2,)), Affine(jnp.zeros(2), jnp.ones(2)))
    _, losses = flowjax.train.fit_to_data(
        jax.random.key(0), flow, DATA, optimizer=tx, max_epochs=3, batch_size=6, show_progress=False
    )
    return losses


def blackjax_meanfield_vi(tx):
    vi = blackjax.meanfield_vi(lambda x: -parabola(x), tx, num_samples=4)
    step, state = jax.jit(vi.step), vi.init(jnp.zeros(2))
    for key in jax.random.split(jax.random.key(0), 5):
        state, _ = step(key, state)
    return state.mu, state.rho


def blackjax_svgd(tx):
    sampler = blackjax.svgd(jax.grad(lambda x: -parabola(x)), tx)
    step, state = jax.jit(sampler.step), sampler.init(DATA[:4])
    for _ in range(5):
        state = step(state)
    return state.particles


def jaxopt_solver(tx):
    solver = jaxopt.OptaxSolver(fun=parabola, opt=tx, maxiter=20)
    return solver.run(jnp.zeros(2)).params


CLIENTS = [
    numpyro_svi,
    optimistix_minimiser,
    flowjax_fit_to_data,
    blackjax_meanfield_vi,
    blackjax_svgd,
    jaxopt_solver,
]


@pytest.mark.parametrize("name", ["adam", pytest.param("chain", marks=pytest.mark.newest)])
@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.__name__)
def test_the_optimizer_is_all_that_changes(client, name):
    ours, theirs = map(client, PAIRS[name])
    # What numbers rounded in another order make of twenty steps of 0.1.
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5), ours, theirs)


@pytest.mark.parametrize("tx", [optfn.lbfgs(), optfn.polyak_sgd()], ids=["lbfgs", "polyak_sgd"])
def test_optimistix_hands_over_what_the_optimizer_needs(tx):
    solver = optimistix.OptaxMinimiser(tx, rtol=1e-4, atol=1e-4)
    end = optimistix.minimise(parabola, solver, jnp.zeros(2), 1.0, max_steps=100)
    np.testing.assert_allclose(end.value, jnp.ones(2), atol=1e-3)


def trained_by_annotation(tx: optax.GradientTransformation):
    return tx.init(jnp.zeros(2))


def trained_with_extra_args(tx: optax.GradientTransformationExtraArgs):
    return tx.init(jnp.zeros(2))


@pytest.mark.parametrize("check", [beartype.beartype, typeguard.typechecked])
@pytest.mark.parametrize("train", [trained_by_annotation, trained_with_extra_args])
def test_checked_signatures_take_it(check, train):
    train = check(train)
    for tx in (optfn.adam(0.1), optfn.chain(optax.clip(1.0)), optfn.accumulate(optfn.sgd(0.1), 2)):
        train(tx)
    with pytest.raises((beartype.roar.BeartypeCallHintViolation, typeguard.TypeCheckError)):
        train((tx.init, tx.update))
