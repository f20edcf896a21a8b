"""Optimizers in Flax's signatures: NNX and Linen."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import nnx, struct
from flax.training.train_state import TrainState

import optfn
from optfn import schedules


class Network(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.linear = nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.linear(x)


def nnx_optimizers(model: Network) -> list[nnx.Optimizer]:
    return [
        nnx.Optimizer(model, optfn.adam(1e-3), wrt=nnx.Param),
        nnx.Optimizer(model, optfn.adamw(schedules.cosine(1e-3, total_steps=10)), wrt=nnx.Param),
        nnx.Optimizer(model, tx=optfn.lookahead(optfn.sgd(0.1), 5, 0.5), wrt=nnx.Param),
        nnx.Optimizer(
            model,
            optfn.chain(optfn.clip_by_global_norm(1.0), optax.sgd(0.1)),
            wrt=nnx.All(nnx.Param, nnx.PathContains("linear")),
        ),
        nnx.ModelAndOptimizer(model, optfn.schedule_free_adamw(1e-3), wrt=nnx.Param),
    ]


@nnx.jit
def nnx_step(model: Network, optimizer: nnx.Optimizer, x: jax.Array) -> jax.Array:
    def loss_fn(model: Network) -> jax.Array:
        return jnp.mean(model(x) ** 2)

    loss, grads = nnx.value_and_grad(loss_fn)(model)
    optimizer.update(model, grads, value=loss)
    return loss


class Layers(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(self.width)(x)


class OurTrainState(struct.PyTreeNode):
    params: optax.Params
    opt_state: optax.OptState
    tx: optax.GradientTransformation = struct.field(pytree_node=False)


def linen_states(model: Layers, params: dict[str, jax.Array]) -> list[TrainState]:
    txs: list[optax.GradientTransformation] = [optfn.adam(1e-3), optax.adam(1e-3)]
    return [TrainState.create(apply_fn=model.apply, params=params, tx=tx) for tx in txs]


def linen_step(state: TrainState, grads: dict[str, jax.Array]) -> TrainState:
    rate = optfn.hyperparameters(state.tx, state.opt_state)["learning_rate"]
    state = state.apply_gradients(grads=grads)
    norms = optfn.metrics(state.tx, state.opt_state)
    averages = optfn.evaluation_params(state.tx, state.opt_state, state.params)
    del rate, norms, averages
    return state.replace(tx=optfn.replace(state.tx, learning_rate=0.1))


def state_of_ours(params: dict[str, jax.Array]) -> OurTrainState:
    tx = optfn.monitor(optfn.adamw(1e-3, mask={"w": True}))
    return OurTrainState(params=params, opt_state=tx.init(params), tx=tx)


def step_of_ours(state: OurTrainState, grads: optax.Updates) -> OurTrainState:
    updates, opt_state = state.tx.update(grads, state.opt_state, state.params)
    params = optfn.apply_updates(state.params, updates)
    return OurTrainState(params=params, opt_state=opt_state, tx=state.tx)
