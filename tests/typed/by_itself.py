"""Optimizers by themselves: init and update, steps, schedules, masks, labels, own stages."""

import enum
from typing import Any, NamedTuple, assert_type

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optfn
from optfn import schedules

Params = dict[str, jax.Array]


def updated(params: Params, grads: Params) -> tuple[optax.Params, optfn.State]:
    tx = optfn.adamw(1e-3, weight_decay=0.1)
    assert_type(tx, optfn.chain)
    state = tx.init(params)
    assert_type(state, optfn.State)
    updates, state = tx.update(grads, state, params)
    assert_type(state, optfn.State)
    params = optfn.apply_updates(params, updates)
    step: jax.Array = state.step
    count: jax.Array = state.count
    slots: dict[str, Any] = state.slots
    del step, count, slots
    return params, state


def with_optaxs_state(
    params: Params, grads: Params, opt_state: optax.OptState
) -> tuple[Params, optax.OptState]:
    tx = optfn.adam(1e-3)
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state  # pyright: ignore[reportReturnType]


@jax.jit
def compiled(
    tx: optfn.Transform, grads: Params, state: optfn.State, params: Params
) -> tuple[Params, optfn.State]:
    params, state = optfn.step(tx, params, grads, state)
    return params, state


def rates() -> list[optfn.Transform]:
    return [
        optfn.sgd(0.1),
        optfn.sgd(1),
        optfn.sgd(np.float32(0.1)),
        optfn.sgd(jnp.float32(0.1), momentum=0.9, nesterov=True),
        optfn.sgd(schedules.warmup_cosine(peak_value=1e-3, warmup_steps=10, total_steps=100)),
        optfn.sgd(schedules.join([schedules.linear(0.0, 1.0, 10), schedules.constant(1.0)], [10])),
        optfn.sgd(optax.cosine_decay_schedule(1e-3, 100)),
        optfn.sgd(lambda count: 0.1 / (count + 1)),
        optfn.adam(1e-3, b1=schedules.linear(0.8, 0.9, 10)),
    ]


class Group(enum.Enum):
    SLOW = "slow"
    FAST = "fast"


def by_path(path: str, leaf: jax.Array) -> bool:
    return path.endswith("kernel") and leaf.ndim > 1


def as_in_optax(params: optax.Params) -> Any:
    return jax.tree.map(lambda leaf: jnp.ndim(leaf) > 1, params)


def masks_and_labels() -> list[optax.GradientTransformation]:
    slow, fast = optfn.adam(1e-4), optfn.adam(1e-3)
    return [
        optfn.adamw(1e-3, mask={"w": True, "b": False}),
        optfn.adamw(1e-3, mask=True),
        optfn.adamw(1e-3, mask=by_path),
        optfn.adamw(1e-3, mask=as_in_optax),
        optfn.adamw(1e-3, mask=lambda path, leaf: leaf.ndim > 1),
        optfn.adamw(1e-3, mask=lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params)),
        optfn.adamw(1e-3, mask=optfn.by_path({"**/kernel": True}, default=False)),
        optfn.partition({"slow": slow, "fast": fast}, {"w": "slow", "b": "fast"}),
        optfn.partition({0: slow, 1: fast}, {"w": 0, "b": 1}),
        optfn.partition({Group.SLOW: slow, Group.FAST: fast}, lambda path, leaf: Group.SLOW),
        optfn.partition({"all": slow}, labels=lambda params: jax.tree.map(lambda _: "all", params)),
        optfn.freeze(fast, lambda path, leaf: path.startswith("embed")),
        optfn.masked(optfn.clip(1.0), by_path),
    ]


class Mean(NamedTuple):
    mean: Any


class scale_by_mean(optfn.Leafwise):
    """A rule for one array."""

    decay: Any = 0.9

    def init_leaf(self, param: jax.Array) -> Mean:
        return Mean(jnp.zeros_like(param))

    def update_leaf(self, g: jax.Array, slots: Mean, param: jax.Array | None, t: jax.Array) -> Any:
        mean = self.decay * slots.mean + g
        return mean, Mean(mean)


class doubled(optfn.Wrapper):
    """A wrapper without slots of its own."""

    def apply(self, updates: Any, slots: Any, ctx: optfn.Context) -> tuple[Any, Any]:
        updates, slots = self.transform.apply_named(updates, slots, ctx)
        return jax.tree.map(lambda u: 2 * u, updates), slots


def own_stages() -> list[optax.GradientTransformation]:
    return [
        scale_by_mean(),
        scale_by_mean(decay=0.5),
        doubled(optfn.sgd(0.1)),
        doubled(transform=optax.sgd(0.1)),
        optfn.chain(scale_by_mean(0.5).named("mean"), optfn.scale_by_learning_rate(0.1)),
    ]


def read(tx: optfn.Transform, state: optfn.State, params: Params) -> float:
    rate = optfn.hyperparameters(tx, state)["learning_rate"]
    tx = optfn.replace(tx, learning_rate=0.5)
    first, second = tx
    del first, second
    assert_type(optfn.metrics(tx, state), optfn.Metrics)
    optfn.evaluation_params(tx, state, params)
    optfn.reset(tx, state, params, "head")
    return float(rate)
