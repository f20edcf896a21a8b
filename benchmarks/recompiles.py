"""What trying many learning rates costs in traces, compilations and seconds, here and in optax.

In optfn the optimizer is an argument of the compiled step, or data of a module argument. In optax
it is closed over, or `inject_hyperparams` carries its numbers in the state, which is the fair peer.
Traces are counted in the step function, compilations by JAX's monitoring. The seconds are for
making each optimizer and one step with it on eight numbers, a lower bound for any model.
"""

import time
from collections.abc import Callable
from functools import partial, wraps
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from harness import TREES, Report, compilations, parser, progress, shown

import optfn

PARAMS = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), TREES["one_8"]())
GRADS = jax.tree.map(lambda x: x / 2, PARAMS)


def optfn_warmup(learning_rate: Any) -> Any:
    return optfn.adam(optfn.schedules.warmup_cosine(learning_rate, 10, 100))


def optax_warmup(learning_rate: Any) -> Any:
    return optax.adam(optax.warmup_cosine_decay_schedule(0.0, learning_rate, 10, 100))


class Form(NamedTuple):
    """How a learning rate is given."""

    number: Callable
    ours: Callable = optfn.adam
    theirs: Callable = optax.adam


FORMS = {
    "float": Form(float),
    "NumPy scalar": Form(np.float32),
    "array": Form(jnp.float32),
    "schedule peak": Form(float, optfn_warmup, optax_warmup),
}

# A way takes the counter of traces and the form, and returns a function that takes a step with a
# learning rate.

Counter = Callable[[Callable], Callable]
Way = Callable[[Counter, Form], Callable[[Any], Any]]


def ours_as_argument(jit: Callable, prepare: Callable, counted: Counter, form: Form) -> Callable:
    step, state = jit(counted(optfn.step)), optfn.adam(0.1).init(PARAMS)
    return lambda rate: step(prepare(form.ours(rate)), PARAMS, GRADS, state)


class Training(nnx.Module):
    """A training run whose optimizer is data."""

    def __init__(self, tx: Any):
        self.tx = nnx.data(tx)
        self.params = nnx.data(PARAMS)
        self.state = nnx.data(tx.init(PARAMS))


def ours_in_module(counted: Counter, form: Form) -> Callable:
    def step(training: Training) -> None:
        training.params, training.state = optfn.step(
            training.tx, training.params, GRADS, training.state
        )

    jitted, training = nnx.jit(counted(step)), Training(optfn.as_arrays(form.ours(0.1)))

    def use(rate: Any) -> Any:
        training.tx = nnx.data(optfn.as_arrays(form.ours(rate)))
        jitted(training)
        return training.params

    return use


def optax_step(tx: Any, params: Any, grads: Any, state: Any) -> tuple[Any, Any]:
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state


def theirs_closed_over(jit: Callable, counted: Counter, form: Form) -> Callable:
    state = form.theirs(0.1).init(PARAMS)
    return lambda rate: jit(counted(partial(optax_step, form.theirs(rate))))(PARAMS, GRADS, state)


def theirs_injected(jit: Callable, counted: Counter, form: Form) -> Callable:
    tx = optax.inject_hyperparams(form.theirs)(learning_rate=0.1)
    step = jit(counted(partial(optax_step, tx)))
    state: Any = tx.init(PARAMS)

    def use(rate: Any) -> Any:
        hyperparams = state.hyperparams | {"learning_rate": rate}
        return step(PARAMS, GRADS, state._replace(hyperparams=hyperparams))

    return use


OURS: dict[str, Way] = {
    "optfn, jax.jit, argument": partial(ours_as_argument, jax.jit, lambda tx: tx),
    "optfn, eqx.filter_jit, argument as_arrays": partial(
        ours_as_argument, eqx.filter_jit, optfn.as_arrays
    ),
    "optfn, nnx.jit, argument": partial(ours_as_argument, nnx.jit, lambda tx: tx),
    "optfn, nnx.jit, module data as_arrays": ours_in_module,
}
THEIRS: dict[str, Way] = {
    "optax, jax.jit, closed over": partial(theirs_closed_over, jax.jit),
    "optax, jax.jit, inject_hyperparams": partial(theirs_injected, jax.jit),
    "optax, eqx.filter_jit, inject_hyperparams": partial(theirs_injected, eqx.filter_jit),
    "optax, nnx.jit, inject_hyperparams": partial(theirs_injected, nnx.jit),
}


class Cost(NamedTuple):
    traces: int
    compilations: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.traces} / {self.compilations} / {self.seconds:.2f} s"


def cost(way: Way, form: Form, rates: np.ndarray) -> Cost:
    """The cost of a step with each of these rates, starting with empty caches."""
    traces = 0

    def counted(step: Callable) -> Callable:
        @wraps(step)
        def wrapper(*args):
            nonlocal traces
            traces += 1
            return step(*args)

        return wrapper

    jax.clear_caches()
    use = way(counted, form)
    compiled_before, start = compilations(), time.perf_counter()
    for rate in rates:
        jax.block_until_ready(use(form.number(rate)))
    return Cost(traces, compilations() - compiled_before, time.perf_counter() - start)


def main() -> None:
    args = parser(__doc__).parse_args()
    rates = np.geomspace(1e-4, 1e-2, 3 if args.quick else 50)
    report = Report(f"{len(rates)} learning rates: optfn and optax")
    rows = []
    for name, way in (OURS | THEIRS).items():
        progress(name)
        row = [name]
        for form_name, form in FORMS.items():
            try:
                found = cost(way, form, rates)
            except jax.errors.TracerBoolConversionError as error:
                row.append(f"refused: {type(error).__name__}")
                continue
            row.append(str(found))
            if name in OURS:
                report.judge(found.traces == 1, f"{name}, {form_name}: {found.traces} traces.")
        rows.append(shown(row))
    report.add_table(
        "Traces / compilations / seconds",
        f"For {len(rates)} learning rates, given in four forms. Target: one trace for optfn. optax "
        "refuses where its schedule cannot be traced in the peak.",
        ["", *FORMS],
        rows,
    )
    report.publish(args.record)


if __name__ == "__main__":
    main()
