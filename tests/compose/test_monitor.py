"""Measuring what an optimizer does, without changing it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optfn
from optfn import schedules

PARAMS = {"w": jnp.asarray([[1.0, -2.0], [0.5, 3.0]]), "b": jnp.asarray([0.25, -1.0])}
RATE = schedules.linear(0.1, 0.0, 8)
STEPS = 6
ADAM = optfn.adam(0.1)


def by_ndim(path, leaf):
    return "matrix" if leaf.ndim > 1 else "vector"


def largest(grads, updates, params):
    return jnp.stack([jnp.abs(u).max() for u in jax.tree.leaves(updates)]).max()


def shift(grads, updates, params):
    """Tells all three apart."""
    return jnp.sum(100 * grads["b"] + 10 * updates["b"] + params["b"])


def grads_of(steps, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    return {
        k: scale * rng.normal(size=(steps, *p.shape)).astype(np.float32) for k, p in PARAMS.items()
    }


@jax.jit
def run(tx, grads, params=PARAMS):
    """Updates, params and metrics of each step, and the last state."""

    def step(carry, g):
        params, state = carry
        updates, state = tx.update(g, state, params)
        params = optfn.apply_updates(params, updates)
        return (params, state), (updates, params, optfn.metrics(tx, state))

    (_, state), told = jax.lax.scan(step, (params, tx.init(params)), grads)
    return *told, state


def norm(tree):
    return np.sqrt(sum(np.sum(np.asarray(x, np.float64) ** 2) for x in jax.tree.leaves(tree)))


def norms(trees):
    """Of trees of a run, step by step."""
    steps = len(jax.tree.leaves(trees)[0])
    return np.asarray([norm(jax.tree.map(lambda x, i=i: x[i], trees)) for i in range(steps)])


def assert_same_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


CLIPPED = optfn.chain(optfn.clip_by_global_norm(1.5), optfn.adamw(RATE))
INNER = {
    "adamw behind a clip": CLIPPED,
    "clips among rules": optfn.chain(
        optfn.scale(2.0), optfn.clip_by_block_rms(0.5), optfn.trace(0.9),
        optfn.adaptive_grad_clip(0.1), optfn.ema(0.5), optfn.clip(0.3), optfn.sgd(RATE),
    ),
    "partition": optfn.partition({"matrix": optfn.adam(RATE), "vector": CLIPPED}, by_ndim),
    "accumulate": optfn.accumulate(CLIPPED, 2),
    "an average": optfn.schedule_free_adamw(0.1),
}  # fmt: skip


# It changes nothing.


@pytest.mark.parametrize("name", INNER)
def test_updates_and_inner_state_are_the_same_bits(name):
    tx, grads = INNER[name], grads_of(STEPS)
    updates, params, _, state = run(optfn.monitor(tx), grads)
    own_updates, own_params, _, own = run(tx, grads)
    assert_same_bits((updates, params), (own_updates, own_params))
    assert_same_bits(state.slots["monitor"].inner, own.slots)


def test_evaluation_params_and_hyperparameters_are_those_inside():
    tx = optfn.schedule_free_adamw(0.1)
    monitored = optfn.monitor(tx)
    _, params, _, state = run(monitored, grads_of(STEPS))
    last = jax.tree.map(lambda x: np.asarray(x)[-1], params)
    own = optfn.State(state.step, state.slots["monitor"].inner)
    evaluation_params = jax.jit(optfn.evaluation_params)
    assert_same_bits(evaluation_params(monitored, state, last), evaluation_params(tx, own, last))
    inside = {f"monitor.{k}": v for k, v in optfn.hyperparameters(tx, own).items()}
    assert dict(optfn.hyperparameters(monitored, state)) == inside


def test_derivatives_are_those_without_it_and_finite():
    """With a zero gradient and zero params, where a norm has no slope."""
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)

    def loss(tx, start):
        params, _ = optfn.step(tx, start, start, tx.init(start))
        return sum(jnp.sum(p + p**2) for p in jax.tree.leaves(params))

    slope = jax.jit(jax.grad(loss))
    for start in (zeros, PARAMS):
        own, inside = slope(CLIPPED, start), slope(optfn.monitor(CLIPPED), start)
        assert np.isfinite(jax.tree.leaves(inside)).all()
        assert_same_bits(jax.tree.leaves(own), jax.tree.leaves(inside))


# What it measures.


def test_norms_are_those_of_gradients_updates_and_params_before_the_step():
    grads = grads_of(STEPS)
    updates, params, told, _ = run(optfn.monitor(CLIPPED), grads)
    before = jax.tree.map(lambda p, new: np.concatenate([p[None], new[:-1]]), PARAMS, params)
    # Sums of six squares and a root, in float32.
    close = functools.partial(np.testing.assert_allclose, rtol=1e-6)
    close(told["grad_norm"], norms(grads))
    close(told["update_norm"], norms(updates))
    close(told["param_norm"], norms(before))
    close(told["update_ratio"], norms(updates) / norms(before))


def test_groups_leave_the_metrics_alone():
    """So a state that was saved without groups fits."""
    tx = optfn.monitor(optfn.adam(0.1))
    grouped = optfn.param_groups(tx, {"b": {"learning_rate": optfn.times(2)}})
    _, state = grouped.update(PARAMS, tx.init(PARAMS), PARAMS)
    assert optfn.metrics(grouped, state)["learning_rate"] == np.float32(0.1)
    assert jax.tree.structure(state) == jax.tree.structure(tx.init(PARAMS))


def test_learning_rate_is_the_one_that_was_used():
    """The updates of a sign are as large as it."""
    tx = optfn.monitor(optfn.sign_sgd(RATE))
    updates, _, told, state = run(tx, grads_of(STEPS))
    np.testing.assert_array_equal(told["learning_rate"], np.abs(updates["b"][:, 0]))
    assert told["learning_rate"][0] == np.float32(0.1)
    assert told["learning_rate"][-1] > optfn.hyperparameters(tx, state)["learning_rate"]


def test_factor_and_hits_of_a_clip():
    grads = grads_of(STEPS)
    sizes = norms(grads)
    bound = float(np.median(sizes))
    _, _, told, _ = run(optfn.monitor(optfn.chain(optfn.clip_by_global_norm(bound), ADAM)), grads)
    hit = sizes > bound
    assert 0 < hit.sum() < STEPS
    expected = np.where(hit, bound / sizes, 1)
    np.testing.assert_allclose(told["clip_by_global_norm.factor"], expected, rtol=1e-6)
    assert (told["clip_by_global_norm.factor"][~hit] == 1).all()
    np.testing.assert_array_equal(told["clip_by_global_norm.hits"], np.cumsum(hit))
    assert told["clip_by_global_norm.hits"].dtype == jnp.int32


@pytest.mark.parametrize(
    ("make", "low", "high"),
    [
        (optfn.clip, 0.1, 1e3),
        (optfn.clip_by_block_rms, 0.1, 1e3),
        (optfn.clip_by_global_norm, 0.1, 1e3),
        (optfn.adaptive_grad_clip, 0.01, 1e3),
    ],
)
def test_each_clip_is_looked_at_where_it_stands(make, low, high):
    """Behind a stage that doubles, and two of one name apart by number."""
    grads = jax.tree.map(jnp.asarray, grads_of(1))
    name = make.__name__
    tx = optfn.monitor(optfn.chain(optfn.scale(2.0), make(high), make(low), optfn.sgd(0.1)))
    *_, told, _ = run(tx, grads)
    assert (told[f"{name}[0].factor"], told[f"{name}[0].hits"]) == (1, 0)
    doubled = jax.tree.map(lambda g: 2 * np.asarray(g)[0], grads)
    clip = make(low)
    clipped, _ = jax.jit(clip.update)(doubled, clip.init(PARAMS), PARAMS)
    expected = norm(clipped) / norm(doubled)
    assert expected < 0.9
    np.testing.assert_allclose(told[f"{name}[1].factor"], [expected], rtol=1e-6)
    assert told[f"{name}[1].hits"] == 1


def test_a_clip_alone_is_looked_at_and_one_in_another_wrapper_is_not():
    assert "clip.factor" in names_of(optfn.monitor(optfn.clip(1.0)))
    inside = optfn.accumulate(optfn.chain(optfn.clip(1.0), ADAM), 2)
    assert not any("factor" in name for name in names_of(optfn.monitor(inside)))


def names_of(tx):
    return optfn.metrics(tx, tx.init(PARAMS))


@pytest.mark.parametrize("size", [1e25, 1e-25])
def test_norms_are_right_in_any_range(size):
    grads = grads_of(STEPS, scale=np.float32(size))
    sizes = norms(grads)
    bound = 0.5 * float(sizes.min())
    *_, told, _ = run(optfn.monitor(optfn.chain(optfn.clip_by_global_norm(bound), ADAM)), grads)
    np.testing.assert_allclose(told["grad_norm"], sizes, rtol=1e-6)
    np.testing.assert_allclose(told["clip_by_global_norm.factor"], bound / sizes, rtol=1e-6)
    np.testing.assert_array_equal(told["clip_by_global_norm.hits"], range(1, STEPS + 1))


def test_zero_params_and_a_zero_gradient_give_finite_values():
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    *_, told, _ = run(optfn.monitor(CLIPPED), grads_of(STEPS, scale=np.float32(0)), zeros)
    assert not told["update_ratio"].any() and not told["grad_norm"].any()
    assert (told["clip_by_global_norm.factor"] == 1).all()
    assert not told["clip_by_global_norm.hits"].any()


def test_a_nan_is_seen_and_is_no_hit():
    grads = grads_of(2)
    grads["b"][1, 0] = np.nan
    *_, told, _ = run(optfn.monitor(optfn.chain(optfn.clip(0.1), ADAM)), grads)
    assert np.isnan(told["grad_norm"][1]) and np.isnan(told["clip.factor"][1])
    np.testing.assert_array_equal(told["clip.hits"], [1, 1])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.complex64])
def test_values_are_float32_in_other_dtypes(dtype):
    params = jax.tree.map(lambda p: p.astype(dtype), PARAMS)
    grads = jax.tree.map(lambda g: jnp.asarray(g, dtype), grads_of(1))
    *_, told, _ = run(optfn.monitor(ADAM), grads, params)
    assert {x.dtype for x in told.values()} == {jnp.dtype("float32")}
    wide = jax.tree.map(lambda g: g.astype(jnp.complex64).real, grads)
    np.testing.assert_allclose(told["grad_norm"], norms(wide), rtol=1e-6)


def test_integer_params_that_are_frozen_do_not_count():
    params = {"w": jnp.ones(3), "n": jnp.arange(4)}
    grads = {"w": jnp.ones(3), "n": np.zeros(4, jax.dtypes.float0)}
    tx = optfn.monitor(optfn.freeze(ADAM, {"w": False, "n": True}))
    _, state = tx.update(grads, tx.init(params), params)
    told = optfn.metrics(tx, state)
    np.testing.assert_allclose([told["grad_norm"], told["param_norm"]], np.sqrt(3), rtol=1e-6)


def test_an_empty_tree_has_norm_zero():
    tx = optfn.monitor(optfn.chain(optfn.clip(1.0), ADAM))
    params = {"nothing": None}
    _, state = tx.update(params, tx.init(params), params)
    told = optfn.metrics(tx, state)
    assert (told["grad_norm"], told["update_ratio"], told["clip.factor"]) == (0, 0, 1)


def test_metrics_of_ones_own():
    tx = optfn.monitor(optfn.sgd(0.5), {"largest": largest, "shift": shift})
    grads = grads_of(2)
    updates, params, told, _ = run(tx, grads)
    sizes = np.stack([np.abs(u).reshape(2, -1).max(1) for u in jax.tree.leaves(updates)])
    np.testing.assert_array_equal(told["largest"], sizes.max(0))
    before = np.stack([PARAMS["b"], params["b"][0]])
    expected = (100 * grads["b"] + 10 * updates["b"] + before).sum(1)
    np.testing.assert_allclose(told["shift"], expected, rtol=1e-5)


def test_without_norms_no_array_is_read():
    """No sum or maximum is left in the program; the rate is."""

    def primitives(tx):
        state = jax.eval_shape(tx.init, PARAMS)
        return str(jax.make_jaxpr(tx.update)(PARAMS, state, PARAMS))

    assert "reduce_" in primitives(optfn.monitor(INNER["partition"]))
    tx = optfn.monitor(optfn.chain(optfn.clip(1.0), optfn.adamw(RATE)), norms=False)
    assert "reduce_" not in primitives(tx)
    assert list(names_of(tx)) == ["monitor.scale_by_learning_rate.learning_rate"]


# Where it stands.


def test_as_a_stage_it_measures_what_passes_as_optaxs_snapshot_does():
    tx = optfn.chain(
        optfn.scale_by_adam(),
        optfn.monitor(optfn.chain()).named("direction"),
        optfn.monitor(optfn.clip(0.5)).named("clipped"),
        optfn.scale_by_learning_rate(0.1),
    )
    theirs = optax.chain(
        optax.scale_by_adam(), optax.snapshot("direction", optax.tree.norm), optax.clip(0.5)
    )
    grads = grads_of(3)
    _, _, told, _ = run(tx, grads)
    state, update = theirs.init(PARAMS), jax.jit(theirs.update)
    for i in range(3):
        _, state = update(jax.tree.map(lambda g, i=i: g[i], grads), state)
        expected = optax.tree.get(state, "direction")
        # The directions differ by the rounding of 1 - b2.
        np.testing.assert_allclose(told["direction.update_norm"][i], expected, rtol=2e-5)
        np.testing.assert_array_equal(told["direction.grad_norm"], told["clipped.grad_norm"])


def test_norms_of_groups_are_measured_by_monitors_in_a_partition():
    tx = optfn.partition(
        {"matrix": optfn.monitor(optfn.adam(RATE)), "vector": optfn.monitor(optfn.sgd(0.2))},
        by_ndim,
    )
    grads = grads_of(2)
    *_, told, _ = run(tx, grads)
    for label, leaf in (("matrix", "w"), ("vector", "b")):
        found = told[f"partition.{label}.monitor.grad_norm"]
        np.testing.assert_allclose(found, norms({leaf: grads[leaf]}), rtol=1e-6)
    rate = "monitor.scale_by_learning_rate.learning_rate"
    assert told[f"matrix.{rate}"][1] == RATE(1)
    with pytest.raises(KeyError, match=r"'grad_norm' is ambiguous; say which: partition\."):
        told["grad_norm"]


def test_inside_accumulation_it_measures_the_steps_taken():
    grads = grads_of(4)
    grads["b"][1, 0] = np.nan
    *_, told, _ = run(optfn.accumulate(optfn.monitor(optfn.sgd(RATE)), 2), grads)
    mean = jax.tree.map(lambda g: (g[:1] + g[2:3]) / 2, grads)
    # The third gradient completes the first step, and the fourth is waiting.
    expected = np.concatenate([[0, 0], *[norms(mean)] * 2])
    np.testing.assert_allclose(told["accumulate.monitor.grad_norm"], expected, rtol=1e-6)
    np.testing.assert_allclose(told["learning_rate"], [0, 0, RATE(0), RATE(0)])
    np.testing.assert_array_equal(told["accumulate.skipped"], [0, 1, 1, 1])


@pytest.mark.parametrize("wrap", [optfn.skip_nonfinite, optfn.skip_spikes, optfn.loss_scale])
def test_skipped_steps_are_told_whether_inside_or_outside(wrap):
    grads = grads_of(4)
    grads["w"][1:3, 0, 0] = np.inf
    for tx in (optfn.monitor(wrap(ADAM)), wrap(optfn.monitor(ADAM)), wrap(ADAM)):
        *_, told, _ = run(tx, grads)
        np.testing.assert_array_equal(told["skipped"], [0, 1, 2, 2])
        if wrap is optfn.loss_scale:
            np.testing.assert_array_equal(told["scale"], np.exp2([15, 14, 13, 13]))


def test_two_optimizers_of_one_wrapper_are_told_apart():
    tx = optfn.sam(optfn.monitor(optfn.sgd(0.1)), optfn.monitor(optfn.sgd(0.01)))
    names = [f"sam.{field}.monitor.grad_norm" for field in ("adv_optimizer", "optimizer")]
    assert [name for name in names_of(tx) if name.endswith("grad_norm")] == names


def test_names_have_one_order_from_the_start():
    """A pytree's dict keys are part of its structure: before and after a step they must agree."""
    tx = optfn.monitor(optfn.chain(optfn.clip(1.0), ADAM), {"a": largest, "z": shift})
    state = tx.init(PARAMS)
    before = optfn.metrics(tx, state)
    _, state = jax.jit(tx.update)(PARAMS, state, PARAMS)
    after = optfn.metrics(tx, state)
    assert jax.tree.structure(before) == jax.tree.structure(after)
    assert list(after) == sorted(after)
    assert not any(before.values())


# Runs of many kinds.


def test_a_sweep_measures_every_run():
    txs = optfn.stack([optfn.monitor(optfn.sgd(rate)) for rate in (0.1, 0.2, 0.4)])
    lanes = jax.jit(jax.vmap(run, in_axes=(optfn.in_axes(txs), None)))
    updates, _, told, _ = lanes(txs, grads_of(2))
    np.testing.assert_array_equal(told["learning_rate"][:, 0], np.float32([0.1, 0.2, 0.4]))
    for i in range(3):
        own = jax.tree.map(lambda u, i=i: u[i], updates)
        np.testing.assert_allclose(told["update_norm"][i], norms(own), rtol=1e-6)


def test_donating_the_state_leaves_the_optimizer_and_the_metrics_params():
    """Values have buffers of their own: neither the rate's array nor a param's."""

    def scale(grads, updates, params):
        return params["scale"]

    params = {"scale": jnp.asarray(2.0)}
    tx = optfn.as_arrays(optfn.monitor(optfn.sgd(0.5), {"scale": scale}))
    _, state = tx.update(params, tx.init(params), params)
    jax.jit(lambda state: jax.tree.map(jnp.negative, state), donate_argnums=0)(state)
    assert [x.item() for x in (*jax.tree.leaves(tx), params["scale"])] == [0.5, 2.0]


def test_a_run_goes_on_from_a_state_saved_without_a_monitor():
    tx = optfn.monitor(CLIPPED)
    grads = grads_of(STEPS)
    first, rest = ({k: g[part] for k, g in grads.items()} for part in (slice(3), slice(3, None)))
    _, params, _, old = run(CLIPPED, first)
    new = tx.init(PARAMS).slots["monitor"]._replace(inner=old.slots)
    state = optfn.State(old.step, {"monitor": new})
    assert jax.tree.structure(state) == jax.tree.structure(tx.init(PARAMS))
    params = jax.tree.map(lambda p: p[-1], params)
    _, wanted, _, _ = run(CLIPPED, grads)
    for i in range(3):
        updates, state = jitted_update(tx, jax.tree.map(lambda g, i=i: g[i], rest), state, params)
        params = optfn.apply_updates(params, updates)
    last = jax.tree.map(lambda p: p[-1], wanted)
    # Compiled alone and in a scan: rounding of a few float32 operations.
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), params, last)
    assert int(state.step) == STEPS
    assert optfn.metrics(tx, state)["learning_rate"] == RATE(STEPS - 1)


jitted_update = jax.jit(lambda tx, *args: tx.update(*args))


def test_its_repr_builds_it_again():
    tx = optfn.monitor(optfn.sgd(0.1), {"largest": largest}, norms=False)
    again = eval(repr(tx), vars(optfn) | {"largest": largest})
    assert jax.tree.structure(again) == jax.tree.structure(tx)


# Wrong input.


def update(tx, params=PARAMS):
    return tx.update(PARAMS, tx.init(PARAMS), params)


def vector(grads, updates, params):
    return grads["b"]


def imaginary(grads, updates, params):
    return jnp.asarray(1j)


def tree(grads, updates, params):
    return grads


WRONG = {
    "a list": (
        lambda: optfn.monitor(ADAM, [largest]),
        TypeError,
        "monitor(metrics=...) must be a dict {name: function}, found [<function",
    ),
    "no function": (
        lambda: optfn.monitor(ADAM, {"x": 1.0}),
        TypeError,
        "monitor(metrics=...): 'x' must be a function (grads, updates, params) -> scalar, "
        "found 1.0.",
    ),
    "a path": (
        lambda: optfn.monitor(ADAM, {"a/b": largest}),
        ValueError,
        "a name must be a string without '.' and '/'",
    ),
    "a name that is taken": (
        lambda: optfn.monitor(ADAM, {"grad_norm": largest}),
        ValueError,
        "none of grad_norm, update_norm, param_norm, update_ratio; found 'grad_norm'.",
    ),
    "an array": (
        lambda: update(optfn.monitor(ADAM, {"x": vector})),
        TypeError,
        "monitor(metrics=...): 'x' must give a real scalar, found float32[2].",
    ),
    "a complex number": (
        lambda: update(optfn.monitor(ADAM, {"x": imaginary})),
        TypeError,
        "monitor(metrics=...): 'x' must give a real scalar, found complex64[].",
    ),
    "a tree": (
        lambda: update(optfn.monitor(ADAM, {"x": tree})),
        TypeError,
        "monitor(metrics=...): 'x' must give a scalar, found a dict.",
    ),
    "no params": (
        lambda: update(optfn.monitor(ADAM), None),
        ValueError,
        "monitor needs the params: call update(grads, state, params).",
    ),
    "another monitor's state": (
        lambda: optfn.monitor(ADAM, {"x": largest}).update(
            PARAMS, optfn.monitor(ADAM).init(PARAMS), PARAMS
        ),
        ValueError,
        "monitor: the state has the metrics ['grad_norm'",
    ),
    "a stage in place of the optimizer's state": (
        lambda: optfn.metrics(ADAM, PARAMS),
        TypeError,
        "state must be the State that init returns, found dict.",
    ),
    "an optimizer that is none": (
        lambda: optfn.metrics(optax.adam(0.1), ADAM.init(PARAMS)),
        TypeError,
        "metrics(tx=...) must be an optfn transform",
    ),
    "a metric that is none": (
        lambda: names_of(optfn.monitor(ADAM))["grad_nrm"],
        KeyError,
        "no metric is named 'grad_nrm'. Did you mean 'grad_norm'? There are: monitor.grad_norm",
    ),
    "nothing measured": (
        lambda: names_of(ADAM)["grad_norm"],
        KeyError,
        "no metric is named 'grad_norm'. There are: none.",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_gets_a_sentence(name):
    call, error, sentence = WRONG[name]
    with pytest.raises(error) as caught:
        call()
    assert sentence in str(caught.value)
