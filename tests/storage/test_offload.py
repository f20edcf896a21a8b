"""`offload`: where slots are, that nothing is computed there, and that updates are the same."""

from typing import Any

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import optfn
from optfn import storage
from optfn.core import memory
from optfn.core.memory import is_in_host

PARAMS = {"w": jnp.ones((64, 96)), "b": jnp.ones(96)}
GRADS = jax.tree.map(lambda p: jnp.sin(jnp.arange(p.size, dtype=p.dtype)).reshape(p.shape), PARAMS)
# A CPU of the oldest jax keeps no array in its "host" memory inside a compiled program.
compiled = pytest.mark.newest

step = jax.jit(optfn.step, donate_argnums=(1, 3))


def memories(state):
    """By leaf whether it is in the host's memory."""
    return jax.tree.map(lambda x: x.sharding.memory_kind == memory.HOST, state)


def in_host(state):
    leaves = jax.tree_util.tree_flatten_with_path(memories(state))[0]
    return {
        jax.tree_util.keystr(path[2:], simple=True, separator="/") for path, yes in leaves if yes
    }


def copies(tree):
    return jax.tree.map(jnp.copy, tree)


INSIDE = {
    "adamw": optfn.adamw(1e-2),
    "store": optfn.store(optfn.adamw(1e-2), storage.int8()),
    "accumulate": optfn.accumulate(optfn.sgd(1e-2, 0.9), 2),
    "schedule_free": optfn.schedule_free_adamw(1e-2),
    "skip_nonfinite": optfn.skip_nonfinite(optfn.adam(1e-2)),
    "muon": optfn.muon(1e-2),
}


@compiled
@pytest.mark.parametrize("name", INSIDE)
def test_it_walks_bit_for_bit_as_the_optimizer_inside(name):
    plain, tx = INSIDE[name], optfn.offload(INSIDE[name])
    params, state = copies(PARAMS), tx.init(PARAMS)
    peer, its = copies(PARAMS), plain.init(PARAMS)
    found = memories(state)
    assert in_host(state) and not any(path[-1] == "b" for path in in_host(state))
    assert memories(jax.jit(tx.init)(PARAMS)) == found
    for _ in range(3):
        params, state = step(tx, params, GRADS, state)
        peer, its = step(plain, peer, GRADS, its)
        assert memories(state) == found
    jax.tree.map(np.testing.assert_array_equal, (params, state), (peer, its))
    ends = optfn.evaluation_params(tx, state, params), optfn.evaluation_params(plain, its, peer)
    jax.tree.map(np.testing.assert_array_equal, *ends)


def test_outside_of_jit():
    tx = optfn.offload(optfn.adamw(1e-2))
    state = tx.init(PARAMS)
    params, after = optfn.step(tx, PARAMS, GRADS, state)
    assert in_host(after) == in_host(state) == {"mu/w", "nu/w"}
    peer, _ = optfn.step(optfn.adamw(1e-2), PARAMS, GRADS, optfn.adamw(1e-2).init(PARAMS))
    jax.tree.map(np.testing.assert_array_equal, params, peer)
    assert not in_host(params)


def host_operations(jaxpr):
    """The operations on arrays in the host's memory, other than to move them."""
    found = set()
    for eqn in jaxpr.eqns:
        inner = [x for x in jax.tree.leaves(eqn.params, is_leaf=_is_jaxpr) if _is_jaxpr(x)]
        found |= set().union(*(host_operations(getattr(x, "jaxpr", x)) for x in inner))
        values = [x.aval for x in (*eqn.invars, *eqn.outvars)]
        host = [getattr(x, "memory_space", None) == jax.memory.Space.Host for x in values]
        if any(host) and not inner and eqn.primitive.name not in ("device_put", "copy"):
            found.add(eqn.primitive.name)
    return found


def _is_jaxpr(x):
    return hasattr(x, "eqns") or hasattr(x, "jaxpr")


SMALL = {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(cases.OPTIMIZERS.keys() - {"across"}))
def test_nothing_is_computed_in_the_memory_of_the_host(name):
    """As far as a trace tells; and each slot stays in its memory."""
    tx = optfn.offload(cases.OPTIMIZERS[name], leaves=True)
    given: Any = cases.EXTRA_ARGS.get(name, {})
    with jax.disable_jit():
        state = tx.init(SMALL)
    given = given(SMALL, SMALL) if callable(given) else given

    def update(state):
        new = tx.update(SMALL, state, SMALL, **given)[1]
        assert jax.tree.map(is_in_host, new) == jax.tree.map(is_in_host, state)
        return new, optfn.evaluation_params(tx, state, SMALL), optfn.metrics(tx, state)

    assert not host_operations(jax.make_jaxpr(update)(state).jaxpr)


def test_a_computation_in_the_memory_of_the_host_is_seen():
    x = memory.to_host(jnp.ones(3))
    assert host_operations(jax.make_jaxpr(lambda x: jax.jit(jnp.negative)(x))(x).jaxpr) == {"neg"}


@pytest.mark.parametrize(
    ("slots", "leaves", "expected"),
    [
        ("nu", None, {"nu/w"}),
        (["scale_by_adam.mu", "nu"], None, {"mu/w", "nu/w"}),
        ("non_negative", True, {"nu/w", "nu/b"}),
        (None, {"w": False, "b": True}, {"mu/b", "nu/b"}),
        (None, False, set()),
    ],
)
def test_slots_and_leaves_say_which(slots, leaves, expected):
    tx = optfn.offload(optfn.adamw(1e-3), slots, leaves)
    assert in_host(tx.init(PARAMS)) == expected


@compiled
@pytest.mark.parametrize("explicit", [False, True], ids=["automatic", "explicit"])
def test_on_a_mesh_slots_stay_in_parts(explicit):
    kind = AxisType.Explicit if explicit else AxisType.Auto
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(kind, kind))
    its = NamedSharding(mesh, PartitionSpec("x", "y"))
    with jax.set_mesh(mesh):
        params = {"w": jax.device_put(jnp.ones((64, 256)), its)}
        tx = optfn.offload(optfn.sgd(1e-3, 0.9))
        form = {"w": jax.ShapeDtypeStruct((64, 256), jnp.float32, sharding=its)}
        state = tx.init(params)
        states = [state, jax.jit(tx.init)(params), tx.init(form)]
        states.append(optfn.step(tx, params, params, state)[1])
        after, new = step(tx, copies(params), params, state)
    assert after["w"].sharding == its
    for leaf in jax.tree.leaves([x.slots for x in (*states, new)]):
        assert leaf.sharding == its.with_memory_kind(memory.HOST)


def test_a_run_goes_on_in_the_other_memory_and_starts_anew():
    plain, tx = optfn.adamw(1e-3), optfn.offload(optfn.store(optfn.adamw(1e-3), storage.int8()))
    params, state = optfn.step(plain, PARAMS, GRADS, plain.init(PARAMS))
    kept = optfn.convert_state(tx, state, params)
    assert memories(kept) == memories(tx.init(PARAMS)) and kept.step == 1
    back = optfn.convert_state(plain, kept, params)
    assert not in_host(back)
    again = optfn.reset(tx, kept, params, "scale_by_adam")
    assert memories(again) == memories(kept)


def test_master_params_are_read_from_the_memory_of_the_host():
    params = {"w": jnp.ones((64, 96), jnp.bfloat16)}
    plain = optfn.master(optfn.adam(1e-3))
    found = []
    for tx in (plain, optfn.offload(plain)):
        moved, state = step(tx, copies(params), params, tx.init(params))
        found.append(optfn.master_params(tx, state, moved)["w"])
    assert in_host(state)
    np.testing.assert_array_equal(*found)


COMPUTE = {
    "skip_nonfinite": optfn.skip_nonfinite,
    "apply_if_finite": lambda tx: optfn.apply_if_finite(tx, 5),
    "skip_spikes": optfn.skip_spikes,
    "loss_scale": optfn.loss_scale,
    "store": lambda tx: optfn.store(tx, storage.int8()),
    "lookahead": lambda tx: optfn.lookahead(tx, 2, 0.5, reset_state=True),
    "on_mesh": lambda tx: optfn.on_mesh(
        tx, NamedSharding(jax.make_mesh((1,), ("x",)), PartitionSpec())
    ),
}


@pytest.mark.parametrize("name", COMPUTE)
def test_what_would_compute_with_slots_in_the_host_is_refused(name):
    with pytest.raises(ValueError, match=f"{name}.*put offload around {name}"):
        COMPUTE[name](optfn.chain(optfn.clip(1.0), optfn.offload(optfn.adam(1e-3))))


def test_wrong_input_gets_a_sentence(monkeypatch):
    with pytest.raises(TypeError, match=r"offload\(slots=...\) must be the name of a slot"):
        optfn.offload(optfn.adam(1e-3), {"nu": storage.bf16()})
    with pytest.raises(ValueError, match=r"offload\(slots=...\): 'mv' is no slot.*adam.mu"):
        optfn.offload(optfn.adam(1e-3), "mv").init(PARAMS)
    monkeypatch.setattr(memory, "HOST", "elsewhere")
    with pytest.raises(ValueError, match="cpu has no memory 'elsewhere', only device"):
        optfn.offload(optfn.adam(1e-3)).init(PARAMS)


def test_a_state_that_is_elsewhere_is_noticed(monkeypatch):
    tx = optfn.offload(optfn.adam(1e-3))
    state = optfn.adam(1e-3).init(PARAMS)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with pytest.warns(UserWarning, match="state's scale_by_adam.mu is not in the memory.*convert"):
        tx.update(GRADS, state, PARAMS)
    tx.update(GRADS, optfn.convert_state(tx, state, PARAMS), PARAMS)


def test_one_inside_of_another_is_found_in_its_place():
    tx = optfn.offload(optfn.offload(optfn.adamw(1e-3)))
    its = PARAMS["w"].sharding
    state = tx.init({"w": jax.ShapeDtypeStruct((64, 96), jnp.float32, sharding=its)})
    assert state.slots["scale_by_adam"].mu["w"].sharding.memory_kind == memory.HOST
