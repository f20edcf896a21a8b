"""Outside of `jit` no public call compiles anew when it is called again."""

import inspect

import cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import test_schedules

import optfn
from optfn import schedules
from optfn.core.numerics import WORTH_A_BRANCH

PARAMS = {"w": jnp.ones((3, 2))}
GRADS = {"w": jnp.full((3, 2), 0.1)}
WIDER = {"w": jnp.ones((6, 2))}
MANY = jnp.ones(WORTH_A_BRANCH)
MORE = {
    "apollo_mini": optfn.apollo_mini(0.01),
    "partition_matrices": optfn.partition_matrices(optfn.sgd(0.1), optfn.adam(0.1)),
    "param_groups": optfn.param_groups(optfn.sgd(0.1, 0.9), {"w": {"learning_rate": 0.05}}),
    "scale_by_kron": optfn.scale_by_kron(),
    "scale_by_muon": optfn.scale_by_muon(),
    "scale_by_psgd_pro": optfn.scale_by_psgd_pro(),
    "set_to_zero": optfn.set_to_zero(),
    "from_optax": optfn.from_optax(optax.trace(0.9)),
    "given_hessian_diagonal": optfn.sophia(
        0.1, hessian_diagonal_fn=optfn.given_hessian_diagonal(), update_interval=2
    ),
}
EVERY = cases.OPTIMIZERS | cases.STAGES | MORE
EXTRA_ARGS = cases.EXTRA_ARGS | {"given_hessian_diagonal": {"hessian_diag": GRADS}}

programs = 0


def count(event, duration, **kwargs):
    global programs
    programs += event == "/jax/core/compile/backend_compile_duration"


jax.monitoring.register_event_duration_secs_listener(count)


def programs_of_the_third(call):
    """How many programs the third of three calls compiles."""
    for _ in range(3):
        before = programs
        jax.block_until_ready(call())
    return programs - before


def test_the_count_sees_a_program_of_every_call():
    assert programs_of_the_third(lambda: jax.jit(lambda x: x + 1)(1.0)) == 1


@pytest.mark.parametrize("name", EVERY)
def test_an_update_does_not_compile_again(name):
    tx, extra_args = EVERY[name], EXTRA_ARGS.get(name, {})
    state = tx.init(PARAMS)

    def update():
        nonlocal state
        # A fresh function each time, as in a loop around a closure of the batch.
        given = extra_args(GRADS, PARAMS) if callable(extra_args) else dict(extra_args)
        for k, value in given.items():
            given[k] = (lambda p, f=value: f(p)) if callable(value) else value
        updates, state = tx.update(GRADS, state, PARAMS, **given)
        return updates, tx.init(PARAMS)

    assert programs_of_the_third(update) == 0


# Under an outer derivative outside of `jit` too.
DECIDE = ["clip_by_global_norm", "accumulate", "conditionally_mask", "sam", "sophia"]


@pytest.mark.parametrize("name", DECIDE)
def test_the_derivative_of_an_update_does_not_compile_again(name):
    tx, given = EVERY[name], EXTRA_ARGS.get(name, {})
    state = tx.init(PARAMS)

    def total(grads):
        return jnp.sum(tx.update(grads, state, PARAMS, **given)[0]["w"])

    assert programs_of_the_third(lambda: jax.grad(total)(GRADS)) == 0


# Every other public function.

TX = optfn.adam(schedules.linear(0.1, 0.05, 9))
OPTAX = optax.adam(optax.linear_schedule(0.1, 0.05, 9))
TORCH = {"w": {"step": 1, "exp_avg": np.ones((3, 2)), "exp_avg_sq": np.ones((3, 2))}}
CONFIG = optfn.to_config(optfn.as_arrays(TX))
STATE = TX.init(PARAMS)
SCALED = optfn.loss_scale(TX)
MASTER = optfn.master(TX)
X, ROWS = jnp.ones(2), jnp.ones((4, 2))
KEY = jax.random.key(0)
microbatched = optfn.microbatch(jax.grad(lambda p, rows: jnp.mean(rows @ p)), 1, 2)
concatenated = optfn.microbatch(
    lambda rows: rows + 1, 0, 1, accumulator="concat", num_real_microbatches=2
)


def squares(params, rows):
    return jnp.mean((rows @ params) ** 2)


def evaluated_and_found():
    """Before the first update the function is evaluated, and later the state is read."""
    tx, value_and_grad = EVERY["lbfgs"], optfn.value_and_grad_from_state(lambda p: cases.bowl(p))
    state = tx.init(PARAMS)
    value, grad = value_and_grad(PARAMS, state=state)
    given = {"value": value, "grad": grad, "value_fn": lambda p: cases.bowl(p)}
    updates, state = tx.update(grad, state, PARAMS, **given)
    return value_and_grad(optfn.apply_updates(PARAMS, updates), state=state)


FUNCTIONS = {
    "abs_sq": lambda: optfn.abs_sq(MANY),
    "apply_updates": lambda: optfn.apply_updates(PARAMS, GRADS),
    "as_arrays": lambda: optfn.as_arrays(TX),
    "child": None,  # a field
    "configurable": None,  # a decorator
    "convert_state": lambda: optfn.convert_state(TX, STATE, PARAMS),
    "current_loss_scale": lambda: optfn.current_loss_scale(SCALED.init(PARAMS)),
    "exact_noise_scale": lambda: optfn.exact_noise_scale(squares, X, ROWS),
    "evaluation_params": lambda: optfn.evaluation_params(TX, STATE, PARAMS),
    "from_config": lambda: optfn.from_config(CONFIG).init(PARAMS),
    "from_optax_state": lambda: optfn.from_optax_state(TX, OPTAX.init(PARAMS), PARAMS),
    "from_torch_state": lambda: optfn.from_torch_state(TX, TORCH, PARAMS),
    "global_norm": lambda: jax.value_and_grad(optfn.global_norm)([MANY, 1.0]),
    "hyperparameters": lambda: optfn.hyperparameters(TX, STATE),
    "in_blocks": None,  # views
    "in_axes": lambda: optfn.in_axes(optfn.stack([TX, TX])),
    "matrices_and_tables": None,  # a view
    "matrix_labels": None,  # labels
    "master_params": lambda: optfn.master_params(MASTER, MASTER.init(PARAMS), PARAMS),
    "metrics": lambda: optfn.metrics(SCALED, SCALED.init(PARAMS)),
    "microbatch": lambda: (microbatched(X, ROWS), concatenated(ROWS)),
    "minimize": lambda: optfn.minimize(cases.bowl, X).x,
    "minimize_residuals": lambda: optfn.minimize_residuals(jnp.sin, X).x,
    "noisy_mean": lambda: optfn.noisy_mean(GRADS, 1.0, 1.0, KEY, 2),
    "numbers": None,  # a field
    "NonNegative": None,  # a type
    "per_example_global_norm_clip": lambda: optfn.per_example_global_norm_clip([ROWS], 1.0),
    "per_example_layer_norm_clip": lambda: optfn.per_example_layer_norm_clip([ROWS], 1.0),
    "per_leaf": None,  # a field
    "private_mean": lambda: optfn.private_mean([ROWS], 1.0, 1.0, KEY),
    "raise_if_gave_up": lambda: optfn.raise_if_gave_up(SCALED.init(PARAMS)),
    "replace": lambda: optfn.replace(TX, b1=0.8).init(PARAMS),
    "reset": lambda: optfn.reset(TX, STATE, PARAMS, "scale_by_adam"),
    "Signed": None,  # a type
    "sqrt": lambda: optfn.sqrt(MANY),
    "stack": lambda: optfn.stack([TX, TX]),
    "start_on_sphere": lambda: optfn.start_on_sphere(PARAMS),
    "static": None,  # a field
    "storage_dtype": None,  # a field
    "summary": lambda: optfn.summary(TX, PARAMS),
    "step": lambda: optfn.step(TX, PARAMS, GRADS, STATE),
    "to_config": lambda: optfn.to_config(TX),
    "to_optax_state": lambda: optfn.to_optax_state(TX, STATE, OPTAX, PARAMS),
    "to_optax": lambda: optfn.to_optax(TX).update(GRADS, STATE, PARAMS),
    "unstack": lambda: optfn.unstack(optfn.stack([TX, TX])),
    "value_and_grad_from_state": evaluated_and_found,
    "width_transfer": lambda: optfn.width_transfer(WIDER, PARAMS).optimizer(TX).init(WIDER),
}


def test_every_public_function_is_here():
    public = {k: v for k, v in vars(optfn).items() if not k.startswith("_")}
    functions = {k for k, v in public.items() if callable(v) and not inspect.isclass(v)}
    made = {k for k in functions if cases.gives_a_transform(public[k])}
    assert functions - made == FUNCTIONS.keys()
    assert made <= {name.split()[0] for name in EVERY}


MATRICES = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4)), jnp.float32)
SQUARES = MATRICES @ MATRICES.mT
LINALG = {
    "adjoint": lambda: optfn.linalg.adjoint(MATRICES),
    "eigenbasis": lambda: optfn.linalg.eigenbasis(SQUARES),
    "inverse_root": lambda: optfn.linalg.inverse_root(SQUARES, 4, 1e-6),
    "inverse_root_newton": lambda: optfn.linalg.inverse_root_newton(SQUARES, 4),
    "leading_vectors": lambda: optfn.linalg.leading_vectors(MATRICES, 2),
    "orthogonalize": lambda: optfn.linalg.orthogonalize(MATRICES, "cubic"),
    "polar": lambda: optfn.linalg.polar(MATRICES),
    "polynomials": None,  # a table
    "power_step": lambda: optfn.linalg.power_step(SQUARES, SQUARES),
    "refined_eigenbasis": lambda: optfn.linalg.refined_eigenbasis(SQUARES, SQUARES),
    "spectral_norm": lambda: optfn.linalg.spectral_norm(MATRICES),
    "spectral_norm_bounds": lambda: optfn.linalg.spectral_norm_bounds(MATRICES),
}


def test_every_function_of_linear_algebra_is_here():
    public = {k: v for k, v in vars(optfn.linalg).items() if not k.startswith("_")}
    assert {k for k, v in public.items() if callable(v) and not inspect.isclass(v)} == LINALG.keys()


@pytest.mark.parametrize("name", [name for name, call in LINALG.items() if call])
def test_linear_algebra_does_not_compile_again(name):
    assert programs_of_the_third(LINALG[name]) == 0


@pytest.mark.parametrize("name", [name for name, call in FUNCTIONS.items() if call])
def test_a_function_does_not_compile_again(name):
    assert programs_of_the_third(FUNCTIONS[name]) == 0


def test_a_schedule_does_not_compile_again():
    public = {x for x in vars(schedules).values() if inspect.isclass(x)}
    public = {x for x in public if issubclass(x, schedules.Schedule) and x.__name__[0] != "_"}
    foreign = schedules.custom(optax.constant_schedule(0.1))
    every = [*test_schedules.CASES, foreign]
    assert public - {optfn.Schedule} == set(map(type, every))
    step = 0

    def values():
        nonlocal step
        step += 1
        return [schedule(step) for schedule in every]

    assert programs_of_the_third(values) == 0
