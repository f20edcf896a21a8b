"""Test problems for optimizers, each posing one difficulty.

A benchmark that is hard for five reasons at once says little when an optimizer fails on it. The
problems here isolate the reasons: conditioning, units and orientation; valleys, traps, saddles,
plains and walls; kinks and jumps; symmetries; noise of several kinds; and nets that learn from
data. Each is a :class:`Problem`, a handful of pure functions and the facts needed to judge the
outcome::

    problem = rosenbrock()
    params = problem.init(jax.random.key(0))
    grads = jax.grad(problem.loss)(params, jax.random.key(1))
    solved = problem.value(params) <= problem.target

All functions can be transformed by ``jit``, ``grad`` and ``vmap``. Starting points have JAX's
default float dtype, and values have the dtype of the parameters they are given. Data is drawn with
NumPy from a fixed seed, so a problem is the same wherever it is built.

Targets follow one rule. With ``h`` the smallest curvature (Hessian eigenvalue) at a minimizer,
parameters at distance ``r`` from it have, to second order, a value of at least
``optimum + h * r**2 / 2``. That bound with ``r = 0.01`` is the target, so an optimizer that reaches
it has located the minimizer to two decimals, not merely descended along the steep directions. Where
minimizers form a line or a surface, the curvature along it, which is zero, does not count. A
problem that departs from the rule says why.
"""

from optfn.testing.problems.base import Problem
from optfn.testing.problems.landscapes import (
    barrier,
    beale,
    cliff,
    himmelblau,
    monkey_saddle,
    plateau,
    rastrigin,
    saddle,
)
from optfn.testing.problems.networks import attention, classifier, recurrent, separable
from optfn.testing.problems.noisy import (
    heavy_tails,
    interpolation,
    noisy_least_squares,
    rare_gradients,
    sparse,
)
from optfn.testing.problems.nonsmooth import kinks, minimax, staircase
from optfn.testing.problems.smooth import (
    badly_scaled,
    ill_conditioned,
    layer_scales,
    powell,
    quadratic,
    rosenbrock,
    rotated,
)
from optfn.testing.problems.symmetric import deep_chain, factorization, rayleigh, scale_invariant

__all__ = [
    "ALL",
    "Problem",
    "attention",
    "badly_scaled",
    "barrier",
    "beale",
    "classifier",
    "cliff",
    "deep_chain",
    "factorization",
    "heavy_tails",
    "himmelblau",
    "ill_conditioned",
    "interpolation",
    "kinks",
    "layer_scales",
    "minimax",
    "monkey_saddle",
    "noisy_least_squares",
    "plateau",
    "powell",
    "quadratic",
    "rare_gradients",
    "rastrigin",
    "rayleigh",
    "recurrent",
    "rosenbrock",
    "rotated",
    "saddle",
    "scale_invariant",
    "separable",
    "sparse",
    "staircase",
]

ALL: tuple[Problem, ...] = (
    quadratic(),
    ill_conditioned(),
    rotated(),
    badly_scaled(),
    layer_scales(),
    rosenbrock(),
    powell(),
    beale(),
    saddle(),
    monkey_saddle(),
    plateau(),
    himmelblau(),
    rastrigin(),
    cliff(),
    barrier(),
    kinks(),
    minimax(),
    staircase(),
    scale_invariant(),
    rayleigh(),
    factorization(),
    deep_chain(),
    noisy_least_squares(),
    interpolation(),
    sparse(),
    heavy_tails(),
    rare_gradients(),
    separable(),
    classifier(),
    recurrent(),
    attention(),
)
"""Every problem, with its default parameters."""
