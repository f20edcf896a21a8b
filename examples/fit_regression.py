"""Fits a classifier of tumours by L-BFGS and compares it with SciPy's answer.

Logistic regression on 30 measures of 569 tumours, with several penalties on the weights. The script
prints a table of the fits.

    python examples/fit_regression.py

Look at `fit` first. A whole run is one compiled function, so the fits for all penalties are one
`vmap`, in which each stops independently.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from scipy import optimize
from sklearn.datasets import load_breast_cancer

import optfn

# Gradients as small as this need double precision.
TOLERANCE = 1e-8
PENALTIES = np.geomspace(1e-1, 1e-4, 7)


def load_data():
    """The standardised measures, and 1 for malignant tumours and -1 for others."""
    measures, benign = load_breast_cancer(return_X_y=True)
    measures = (measures - measures.mean(axis=0)) / measures.std(axis=0)
    return jnp.asarray(measures), jnp.asarray(1.0 - 2.0 * benign)


def loss_fn(params, penalty, measures, signs):
    """The mean logistic loss, in nats, plus the penalty."""
    logits = measures @ params["weights"] + params["bias"]
    penalised = penalty * jnp.sum(params["weights"] ** 2) / 2
    return jnp.mean(jnp.logaddexp(0, -signs * logits)) + penalised


def fit(penalty, measures, signs) -> optfn.Minimum:
    start = {"weights": jnp.zeros(measures.shape[1]), "bias": jnp.zeros(())}
    return optfn.minimize(loss_fn, start, args=(penalty, measures, signs), tol=TOLERANCE)


@jax.jit
@jax.value_and_grad
def value_and_grad(vector, penalty, measures, signs):
    params = {"weights": vector[1:], "bias": vector[0]}
    return loss_fn(params, penalty, measures, signs)


def fit_by_scipy(penalty, measures, signs) -> optimize.OptimizeResult:
    def in_numpy(vector):
        return tuple(map(np.asarray, value_and_grad(vector, penalty, measures, signs)))

    options = {"gtol": TOLERANCE, "ftol": 0}
    start = np.zeros(1 + measures.shape[1])
    return optimize.minimize(in_numpy, start, jac=True, method="L-BFGS-B", options=options)


@jax.jit
def accuracy(params, measures, signs):
    """The share of tumours classified correctly."""
    logits = measures @ params["weights"] + params["bias"]
    return jnp.mean(jnp.sign(logits) == signs)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="two penalties only")
    options = parser.parse_args()
    penalties = PENALTIES[:: len(PENALTIES) - 1] if options.quick else PENALTIES

    jax.config.update("jax_enable_x64", True)
    measures, signs = load_data()
    fits = jax.jit(jax.vmap(fit, in_axes=(0, None, None)))(penalties, measures, signs)

    table = Table(title="Malignant or benign, by logistic regression", box=SIMPLE_HEAD)
    for header in ("penalty", "loss\n(nats)", "accuracy\n(%)", "steps", "evaluated"):
        table.add_column(header, justify="right")
    table.add_column("SciPy's", justify="right")
    table.add_column("difference\nof weights", justify="right")
    for i, penalty in enumerate(penalties):
        one = jax.tree.map(lambda x, i=i: x[i], fits)
        theirs = fit_by_scipy(penalty, measures, signs)
        table.add_row(
            f"{penalty:.0e}",
            f"{one.value:.6f}",
            f"{100 * accuracy(one.x, measures, signs):.1f}",
            f"{one.steps}",
            f"{one.evaluations.value}",
            f"{theirs.nfev}",
            f"{abs(one.x['weights'] - theirs.x[1:]).max():.0e}",
        )
    Console().print(table)
    print(fits)


if __name__ == "__main__":
    main()
