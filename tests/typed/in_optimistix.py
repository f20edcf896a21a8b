"""Optimizers in optimistix's and numpyro's signatures."""

from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
import optimistix
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal

import optfn
from optfn import schedules


def parabola(y: jax.Array, args: Any) -> jax.Array:
    return jnp.sum((y - 1) ** 2)


def minimised(y0: jax.Array) -> list[jax.Array]:
    solvers = [
        optimistix.OptaxMinimiser(optfn.adam(1e-1), rtol=1e-4, atol=1e-4),
        optimistix.OptaxMinimiser(
            optfn.sgd(schedules.linear(0.1, 0.0, 100)),
            rtol=1e-4,
            atol=1e-4,
            norm=optimistix.rms_norm,
        ),
        optimistix.OptaxMinimiser(
            optfn.chain(optax.clip(1.0), optfn.adam(0.1)), rtol=1e-4, atol=1e-4
        ),
    ]
    values = [optimistix.minimise(parabola, solver, y0).value for solver in solvers]
    best = optimistix.BestSoFarMinimiser(solvers[0])
    return [*values, optimistix.minimise(parabola, best, y0).value]


def model() -> None:
    numpyro.sample("x", dist.Normal(0.0, 1.0))


def inferred() -> SVI:
    return SVI(model, AutoNormal(model), optfn.adam(1e-2), Trace_ELBO())
