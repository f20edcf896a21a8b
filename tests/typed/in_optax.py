"""Optimizers where optax's type is asked for, and optax's where ours is."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax
import optax.contrib

import optfn

Params = dict[str, jax.Array]


def train(tx: optax.GradientTransformation, params: Params) -> optax.Params:
    state: optax.OptState = tx.init(params)
    updates, state = tx.update(params, state, params)
    return optax.apply_updates(params, updates)


def train_with_value(tx: optax.GradientTransformationExtraArgs, params: Params) -> optax.OptState:
    state = tx.init(params)
    return tx.update(params, state, params, value=jnp.float32(1.0))[1]


def make(factory: Callable[[float], optax.GradientTransformation]) -> optax.GradientTransformation:
    return factory(1e-3)


FACTORIES: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adam": optfn.adam,
    "sgd": functools.partial(optfn.sgd, momentum=0.9),
    "optax": optax.adam,
}


def choose(name: str) -> optax.GradientTransformation:
    if name == "ours":
        return optfn.adam(1e-3)
    return optax.adam(1e-3) if name == "optax" else optfn.from_optax(optax.adam(1e-3))


def run(params: Params) -> None:
    for tx in (optfn.adam(1e-3), optfn.lion(1e-4), optfn.scale_by_adam(), optfn.clip(1.0)):
        train(tx, params)
        train_with_value(tx, params)
    make(optfn.adam)
    make(lambda rate: optfn.sgd(rate, momentum=0.9))
    train(choose("ours"), params)


def in_wrappers_of_optax() -> Sequence[optax.GradientTransformation]:
    tx = optfn.adam(1e-3)
    several = optax.MultiSteps(optfn.adamw(1e-3), every_k_schedule=4)
    return [
        optax.chain(optax.clip_by_global_norm(1.0), optfn.adam(1e-3)),
        optax.chain(optfn.clip(1.0), optfn.scale_by_adam(), optax.scale(-1e-3)),
        optax.named_chain(("clip", optfn.clip(1.0)), ("adam", tx)),
        several.gradient_transformation(),
        optax.masked(tx, {"w": True, "b": False}),
        optax.masked(tx, lambda params: jax.tree.map(lambda leaf: jnp.ndim(leaf) > 1, params)),
        optax.apply_if_finite(tx, max_consecutive_errors=3),
        optax.partition({"a": tx, "b": optax.sgd(0.1)}, {"w": "a", "b": "b"}),
        optax.flatten(tx),
        optax.lookahead(tx, sync_period=5, slow_step_size=0.5),
        optax.conditionally_mask(tx, lambda step, **_: jnp.less(step, 3)),
        optax.with_extra_args_support(tx),
        optax.contrib.schedule_free(optfn.adam(1e-3, b1=0.0), learning_rate=1e-3),
        optax.contrib.mechanize(tx),
        optfn.to_optax(tx),
    ]


def multi_steps(params: Params) -> optax.MultiStepsState:
    steps = optax.MultiSteps(optfn.adam(1e-3), 2)
    return steps.update(params, steps.init(params), params)[1]


def optax_in_wrappers_of_ours(theirs: optax.GradientTransformation) -> list[optfn.Transform]:
    return [
        optfn.chain(optax.clip(1.0), optfn.adam(1e-3)),
        optfn.chain(theirs, optax.scale(-1e-3)),
        optfn.chain(*[optax.clip(1.0), optfn.scale_by_adam()]),
        optfn.partition({"a": optfn.adam(1e-3), "b": optax.sgd(0.1)}, {"w": "a", "b": "b"}),
        optfn.partition({"a": theirs}, "a"),
        optfn.masked(optax.clip(1.0), {"w": True}),
        optfn.freeze(optax.sgd(0.1), {"w": True}),
        optfn.accumulate(optax.adam(1e-3), 4),
        optfn.skip_nonfinite(optax.adam(1e-3)),
        optfn.lookahead(optax.sgd(0.1), 5, 0.5),
        optfn.ema_of_params(optax.sgd(0.1), 0.99),
        optfn.mean_of_params(optax.sgd(0.1)),
        optfn.mechanize(optax.adam(1e-3)),
        optfn.schedule_free(optax.scale_by_rms(), 1e-3),
        optfn.sam(optax.sgd(0.1), optfn.sgd(0.05)),
        optfn.monitor(optax.sgd(0.1)),
        optfn.own_step(optax.sgd(0.1)),
        optfn.flatten(optfn.adam(1e-3)),
        optfn.conditionally_transform(optax.clip(1.0), lambda step, **_: step < 3),
        optfn.conditionally_mask(optax.sgd(0.1), lambda step, **_: step < 3),
        optfn.cautious(optfn.adam(1e-3)),
    ]


def unpacked(params: Params) -> optax.Params:
    init, update = optfn.adam(1e-3)
    updates, _ = update(params, init(params), params)
    return optfn.apply_updates(params, updates)


def rebuilt() -> optax.GradientTransformation:
    tx = optfn.adam(1e-3)
    return optax.GradientTransformation(tx.init, tx.update)


def isinstance_narrows(tx: optax.GradientTransformation) -> optfn.State | None:
    if isinstance(tx, optfn.Transform):
        return tx.init({"w": jnp.ones(3)})
    return None


def lbfgs(params: jax.Array, fun: Callable[[jax.Array], jax.Array]) -> optax.Params:
    tx = optfn.lbfgs()
    value_and_grad = optfn.value_and_grad_from_state(fun)
    state = tx.init(params)
    value, grad = value_and_grad(params, state=state)
    updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=fun)
    return optax.apply_updates(params, updates)
