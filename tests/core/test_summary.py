"""The summary of every optimizer, and of a model that is not there."""

import math

import cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optfn
from optfn.core.moments import FirstMoment
from optfn.testing.checks import example_params

EVERY = cases.OPTIMIZERS | cases.STAGES
Shape = jax.ShapeDtypeStruct

MODEL = {
    "embed": {"embedding": Shape((512, 64), jnp.bfloat16)},
    "layers": {
        "q": {"kernel": Shape((4, 64, 8, 8), jnp.bfloat16)},
        "mlp": {"kernel": Shape((4, 64, 256), jnp.bfloat16), "bias": Shape((4, 256), jnp.float32)},
    },
}
VIEWS = optfn.matrices(
    {
        "layers/q/kernel": optfn.MatrixAxes((-2, -1), -3),
        "layers/mlp/kernel": optfn.MatrixAxes(-1, -2),
    }
)


def row(summary, path):
    (found,) = (row for row in summary.rows if row.path == path)
    return found


@pytest.mark.newest
@pytest.mark.parametrize("name", EVERY)
def test_of_every_optimizer(name):
    tx, params = EVERY[name], example_params(jnp.bfloat16)
    found = optfn.summary(tx, params)
    state = jax.eval_shape(tx.init, params)
    wanted = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(state))
    assert found.state_bytes == wanted
    assert found.state_bytes == sum(r.state_bytes for r in found.rows) + sum(found.shared.values())
    assert [r.path for r in found.rows] == ["layer/b", "layer/w", "scale"]
    assert [r.shape for r in found.rows] == [(2,), (3, 2), ()]
    assert (found.params, found.param_bytes) == (9, 18)
    assert all(r.stages for r in found.rows)
    with jax.disable_jit():
        values = optfn.hyperparameters(tx, tx.init(params))
    for kind in ("learning_rate", "weight_decay"):
        known = {float(x) for key, x in values.items() if key.split(".")[-1] == kind}
        own = {getattr(r, kind) for r in found.rows}
        shown = {x for value in own for x in (value if isinstance(value, tuple) else (value,))}
        assert shown - {None} == known
    lines = str(found).split("\n")
    assert all(line == line.rstrip() and len(line) <= 120 and line.isascii() for line in lines)
    # It is the same from shapes and for the state that is the first.
    shapes = jax.tree.map(lambda p: Shape(p.shape, p.dtype), params)
    assert repr(optfn.summary(tx, shapes)) == repr(found)


@pytest.mark.parametrize("name", ["adam", "muon", "galore", "adafactor", "accumulate", "lbfgs"])
def test_counts_the_bytes_of_the_arrays(name):
    params = example_params()
    state = cases.OPTIMIZERS[name].init(params)
    found = optfn.summary(cases.OPTIMIZERS[name], params, state)
    assert found.state_bytes == sum(x.nbytes for x in jax.tree.leaves(state))
    assert repr(found) == repr(optfn.summary(cases.OPTIMIZERS[name], params))


def test_says_who_gets_what():
    rates = optfn.schedules.linear(0.02, 0.01, 10)
    found = optfn.summary(optfn.muon(rates, weight_decay=0.1, views=VIEWS), MODEL)
    kernel, bias = row(found, "layers/mlp/kernel"), row(found, "layers/mlp/bias")
    assert kernel.stages[:3] == ("partition.matrix", "ema", "newton_schulz")
    assert bias.stages[:2] == ("partition.rest", "scale_by_adam")
    assert (kernel.view, bias.view) == (optfn.MatrixAxes(-1, -2), None)
    assert (kernel.learning_rate, bias.learning_rate) == (np.float32(0.02), 3e-4)
    assert (kernel.weight_decay, bias.weight_decay) == (0.1, 0.0)
    assert kernel.slots == {"partition.matrix.ema.ema": 4 * 64 * 256 * 4}
    assert found.shared == {"step": 4}
    text = str(found)
    assert "4 of 256 x 64" in text
    assert "4 of 64 x 64" in text
    assert "1: partition.rest > scale_by_adam" in text


def test_reads_schedules_at_the_steps_of_a_state():
    tx = optfn.accumulate(optfn.sgd(optfn.schedules.linear(1.0, 0.0, 10)), 2)
    params = {"w": jnp.ones(3)}
    state = tx.init(params)
    for _ in range(5):
        _, state = tx.update(params, state)
    assert row(optfn.summary(tx, params), "w").learning_rate == 1.0
    assert row(optfn.summary(tx, params, state), "w").learning_rate == np.float32(0.8)


def test_sees_through_wrappers():
    tx = optfn.chain(
        optfn.masked(optfn.trace(0.9), lambda path, leaf: leaf.ndim > 1),
        optfn.freeze(
            optfn.adamw(1e-3, mask=lambda path, leaf: leaf.ndim > 1),
            lambda path, leaf: path == "scale",
        ),
    )
    found = optfn.summary(tx, example_params())
    matrix, vector, scale = (row(found, path) for path in ("layer/w", "layer/b", "scale"))
    adam = ("freeze", "scale_by_adam", "add_decayed_weights", "scale_by_learning_rate")
    assert matrix.stages == ("masked", "trace", *adam)
    assert vector.stages == ("masked: none", *adam)
    assert scale.stages == ("masked: none", "freeze: none")
    assert (matrix.weight_decay, vector.weight_decay) == (1e-4, None)
    assert (matrix.learning_rate, vector.learning_rate, scale.learning_rate) == (1e-3, 1e-3, None)
    assert (matrix.state_bytes, vector.state_bytes, scale.state_bytes) == (6 * 12, 2 * 8, 0)


def test_of_optax():
    found = optfn.summary(optax.chain(optax.scale_by_adam(), optax.scale(-0.1)), MODEL)
    assert found.bytes_per_param == pytest.approx(8, abs=1e-3)
    assert all(r.state_bytes == 8 * r.size for r in found.rows)
    assert found.shared.keys() == {"step", "from_optax.0.count"}


def test_of_many_runs():
    tx = optfn.stack([optfn.adam(0.1), optfn.adam(0.2)])
    text = str(optfn.summary(optfn.adam(0.1), {}))
    assert "0 params of 0 bytes" in text
    params = {"w": jnp.ones(3)}
    state = jax.vmap(lambda tx: tx.init(params), in_axes=(optfn.in_axes(tx),))(tx)
    found = optfn.summary(tx, params, state)
    np.testing.assert_allclose(row(found, "w").learning_rate, [0.1, 0.2], rtol=1e-6)
    assert "0.1 to 0.2" in str(found)
    assert row(found, "w").state_bytes == 2 * 2 * 12


def test_params_may_be_one_array():
    found = optfn.summary(optfn.adam(0.1), Shape((3, 2), jnp.float32))
    assert (found.rows[0].path, found.rows[0].state_bytes) == ("", 48)
    assert str(found).split("\n")[1].startswith("(the root)")


def test_a_leaf_may_have_several_arrays():
    class Pair(optfn.Leafwise):
        Slots = FirstMoment

        def init_leaf(self, param):
            return self.Slots([jnp.zeros(2), jnp.zeros(3)])

        def update_leaf(self, g, slots, param, t):
            return g, slots

    found = optfn.summary(Pair(), [jnp.ones(1), jnp.ones(1)])
    assert [r.slots for r in found.rows] == [{"Pair.mu": 20}, {"Pair.mu": 20}]
