"""What the tests of the problems share: starts, spectra, runs and draws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree


@functools.partial(jax.jit, static_argnames="problem")
def gradient(problem, params):
    """Of the noiseless objective."""
    return jax.grad(problem.value)(params)


def hessian(problem, params):
    """Of the noiseless objective, as a matrix over all entries of the params."""
    return np.asarray(_hessian(problem, params))


@functools.partial(jax.jit, static_argnames="problem")
def _hessian(problem, params):
    flat, unravel = ravel_pytree(params)
    return jax.hessian(lambda x: problem.value(unravel(x)))(flat)


def spectrum(problem, params):
    """The eigenvalues, in ascending order, of the Hessian of the noiseless objective."""
    return np.linalg.eigvalsh(hessian(problem, params))


_STARTS = {}


def starts(problem):
    """For 64 keys, in float32: the starts, their values, and the losses and gradients there."""
    if problem not in _STARTS:
        prepare_starts([problem])
    return _STARTS[problem]


def prepare_starts(problems):
    """Computes the starts of many problems in one program, which compiles faster than many."""
    with jax.enable_x64(False):
        keys = jax.random.split(jax.random.key(0), 64)
        # Inside the other program the compiler would compute them twice, and round them otherwise.
        params = jax.jit(lambda keys: [jax.vmap(problem.init)(keys) for problem in problems])(keys)

        def evaluate(problem, params, key):
            return problem.value(params), *jax.value_and_grad(problem.loss)(params, key)

        @jax.jit
        def evaluate_all(params, keys):
            every = zip(problems, params, strict=True)
            return [jax.vmap(functools.partial(evaluate, p))(x, keys) for p, x in every]

        found = jax.device_get((params, evaluate_all(params, keys)))
    for problem, start, rest in zip(problems, *found, strict=True):
        _STARTS[problem] = start, *rest


def negate(problem, optimizer, steps, seeds=8):
    """Noiseless values, of shape (seeds, steps), after every step down the loss in float32."""
    (values,) = negate_all([(problem, optimizer, steps)], seeds)
    return values


def negate_all(runs, seeds=8):
    """The same of each problem, optimizer and steps, all in one program."""

    def run(problem, optimizer, steps, params, key):
        def step(carry, count):
            params, state = carry
            # Where there is no noise, do not compile what nobody reads.
            own = key if problem.noisy is None else jax.random.fold_in(key, count)
            grads = jax.grad(problem.loss)(params, own)
            updates, state = optimizer.update(grads, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), problem.value(params)

        return jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(steps))[1]

    @jax.jit
    def run_all(params, keys):
        every = zip(runs, params, strict=True)
        return [jax.vmap(functools.partial(run, *one))(x, keys) for one, x in every]

    keys = jax.random.split(jax.random.key(1), 64)[:seeds]
    params = [jax.tree.map(lambda leaf: leaf[:seeds], starts(run[0])[0]) for run in runs]
    return jax.device_get(run_all(params, keys))


def draw(problem, params, draws=10_000):
    """Losses and gradients at ``params`` under as many keys as ``draws``."""
    keys = jax.random.split(jax.random.key(1), draws)
    losses, gradients = jax.jit(jax.vmap(jax.value_and_grad(problem.loss), (None, 0)))(params, keys)
    return np.asarray(losses), np.asarray(gradients)
