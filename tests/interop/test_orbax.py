"""Orbax: a run is saved and goes on bit for bit, also after its optimizer was changed."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import optfn
from optfn import schedules

SAVED_AT, END = 3, 7

RNG = np.random.default_rng(0)
PARAMS = {"w": RNG.normal(size=(3, 2)).astype(np.float32), "b": np.ones(2, jnp.bfloat16)}
GRADS = jax.tree.map(lambda p: RNG.normal(size=(END, *p.shape)).astype(p.dtype), PARAMS)


def matrices_and_rest():
    return optfn.partition(
        {"matrices": optfn.adamw(0.1), "rest": optfn.sgd(0.1, momentum=0.9)},
        lambda path, leaf: "matrices" if leaf.ndim > 1 else "rest",
    )


# Optimizers, and how many gradients go into one of their updates.
OPTIMIZERS = {
    "a bare stage": (optfn.scale_by_adam(), 1),
    "a chain": (optfn.adamw(0.1), 1),
    "a partition": (matrices_and_rest(), 1),
    "stored": (optfn.store(optfn.adamw(0.1), optfn.storage.int8(), leaves=True), 1),
    "an accumulated optimizer": (matrices_and_rest(), 2),
}
each = pytest.mark.parametrize(("tx", "every"), OPTIMIZERS.values(), ids=OPTIMIZERS)


def accumulated(tx, every):
    return tx if every == 1 else optax.MultiSteps(tx, every)


def part(start, end):
    return jax.tree.map(lambda g: g[start:end], GRADS)


def run(tx, params, state, grads):
    def step(carry, grads):
        params, state = carry
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.jit(lambda *carry: jax.lax.scan(step, carry, grads)[0])(params, state)


def save(path, tree):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, tree)


def restore(path, target=None):
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(path, target)


def saved_and_resumed(first, then, path):
    """The end of a run that changes its optimizer between saving and restoring."""
    save(path, run(first, PARAMS, first.init(PARAMS), part(0, SAVED_AT)))
    abstract = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), PARAMS)
    restored = restore(path, (abstract, jax.eval_shape(then.init, abstract)))
    return run(then, *restored, part(SAVED_AT, END))


@each
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tx, every, tmp_path):
    tx = accumulated(tx, every)
    resumed = saved_and_resumed(tx, tx, tmp_path / "run")
    uninterrupted = run(tx, PARAMS, tx.init(PARAMS), GRADS)
    jax.tree.map(np.testing.assert_array_equal, resumed, uninterrupted)


@each
def test_a_run_resumes_with_a_clip_and_a_schedule_added(tx, every, tmp_path):
    """The rate falls to a fifth at the checkpoint, and the clip is too wide ever to clip.

    The oracle is one run with a schedule of optax, which has counted its steps from the start.
    """
    boundary = SAVED_AT // every
    factor = schedules.piecewise_constant([1.0, 0.2], [boundary])
    extended = optfn.chain(optfn.clip_by_global_norm(1e6), tx, optfn.scale(factor))
    oracle = optax.chain(tx, optax.scale_by_schedule(lambda t: jnp.where(t < boundary, 1.0, 0.2)))
    plain, extended, oracle = (accumulated(tx, every) for tx in (tx, extended, oracle))

    params, _ = saved_and_resumed(plain, extended, tmp_path / "run")
    expected, _ = run(oracle, PARAMS, oracle.init(PARAMS), GRADS)

    # Different programs may round differently, in the last place.
    np.testing.assert_allclose(params["w"], expected["w"], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(*(np.asarray(p["b"], float) for p in (params, expected)), rtol=2**-7)


def test_init_of_abstract_params_is_a_target(tmp_path):
    tx = optfn.adamw(0.1)
    abstract = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), PARAMS)
    _, state = run(tx, PARAMS, tx.init(PARAMS), GRADS)
    save(tmp_path / "state", state)
    jax.tree.map(
        np.testing.assert_array_equal, restore(tmp_path / "state", tx.init(abstract)), state
    )


def test_a_checkpoint_without_its_optimizer_is_a_dict_of_names(tmp_path):
    """What one can find in a file of which nothing else is known."""
    save(tmp_path / "state", matrices_and_rest().init(PARAMS))
    found = jax.tree.leaves_with_path(restore(tmp_path / "state"))
    assert {jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in found} == {
        "count",
        "slots/partition/matrices/scale_by_adam/mu/w",
        "slots/partition/matrices/scale_by_adam/nu/w",
        "slots/partition/rest/trace/trace/b",
    }


@pytest.mark.parametrize("convert", [lambda tx: tx, optfn.as_arrays], ids=["floats", "arrays"])
def test_the_optimizer_is_saved_as_data(convert, tmp_path):
    """A rate that was changed by hand comes back with the run."""
    tx = convert(optfn.adamw(schedules.warmup_cosine(0.1, 10, 100)))
    save(tmp_path / "tx", optfn.replace(tx, **{"learning_rate.peak_value": 0.03}))
    restored = restore(tmp_path / "tx", tx)
    state = restored.init(PARAMS)._replace(step=jnp.int32(10))
    rate = optfn.hyperparameters(restored, state)["learning_rate"]
    np.testing.assert_allclose(rate, 0.03, rtol=1e-6)


def test_a_state_is_restored_onto_a_mesh(tmp_path):
    """Saved by one device, it comes back where `init` of the sharded params would have put it."""
    mesh = jax.make_mesh((8,), ("data",))
    params = {"w": np.ones((8, 2), np.float32), "b": np.ones(2, np.float32)}
    specs = {"w": PartitionSpec("data"), "b": PartitionSpec()}
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
    abstract = jax.tree.map(
        lambda p, sharding: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=sharding),
        params,
        shardings,
    )
    tx = optfn.adamw(0.1)
    save(tmp_path / "state", tx.init(jax.tree.map(jnp.asarray, params)))

    state = restore(tmp_path / "state", tx.init(abstract))

    def assert_placed_alike(x, y):
        assert x.sharding.is_equivalent_to(y.sharding, x.ndim)

    jax.tree.map(assert_placed_alike, state, tx.init(jax.device_put(params, shardings)))
