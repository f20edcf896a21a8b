"""Reading, replacing and batching the numbers of an optimizer."""

import pickle

import cases
import chex
import equinox as eqx
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from core.stages import every_kth
from hypothesis import strategies as st

import optfn
from optfn import schedules

PARAMS = {"w": jnp.asarray([[1.0, -2.0], [0.5, 3.0]]), "b": jnp.asarray([0.25, -1.0])}
GRADS = jax.tree.map(lambda p: 0.5 * p + 0.1, PARAMS)


def values_of(tx, step=0):
    return optfn.hyperparameters(tx, tx.init(PARAMS)._replace(step=jnp.int32(step)))


# Names.


def test_values_have_qualified_names():
    tx = optfn.chain(optfn.clip_by_global_norm(1), optfn.adamw(0.1, weight_decay=0.01))
    assert values_of(tx) == {
        "clip_by_global_norm.max_norm": 1.0,
        "scale_by_adam.b1": 0.9,
        "scale_by_adam.b2": 0.999,
        "scale_by_adam.eps": 1e-8,
        "scale_by_adam.eps_root": 0.0,
        "add_decayed_weights.weight_decay": 0.01,
        "scale_by_learning_rate.learning_rate": 0.1,
    }


def test_names_follow_named_stages_labels_and_wrappers():
    tx = optfn.partition(
        {
            "rest": optfn.freeze(optfn.chain(optfn.trace(3)).named("inner"), False),
            "matrices": optfn.chain(every_kth(optfn.sgd(1)), optfn.scale(2).named("mine")),
        },
        {"w": "matrices", "b": "rest"},
    ).named("groups")
    assert values_of(tx) == {
        "groups.matrices.every_kth.scale_by_learning_rate.learning_rate": 1.0,
        "groups.matrices.mine.step_size": 2.0,
        "groups.rest.freeze.inner.trace.decay": 3.0,
    }


def test_stateless_stages_of_one_name_are_numbered():
    tx = optfn.chain(optfn.scale(1), optfn.clip(9), optfn.scale(2), optfn.scale(3).named("last"))
    assert values_of(tx) == {
        "scale[0].step_size": 1.0,
        "clip.max_delta": 9.0,
        "scale[1].step_size": 2.0,
        "last.step_size": 3.0,
    }
    assert values_of(optfn.replace(tx, **{"scale[1].step_size": 5.0}))["scale[1].step_size"] == 5.0


class alternate(optfn.Transform):
    """Two inner transforms in fields of their own, which take turns: each has its own State."""

    first: optfn.Transform = optfn.child()
    second: optfn.Transform = optfn.child()

    def init_slots(self, params):
        return {"first": self.first.init(params), "second": self.second.init(params)}

    def apply(self, updates, slots, ctx):
        def turn(name):
            updates_of = getattr(self, name).update(updates, slots[name], ctx.params)
            return updates_of[0], {**slots, name: updates_of[1]}

        return jax.lax.cond(ctx.step % 2 == 0, lambda: turn("first"), lambda: turn("second"))

    def inner(self, slots, step, label):
        return slots[label].slots, slots[label].step


def test_two_inner_transforms_of_one_name_keep_all_their_values():
    tx = alternate(optfn.sgd(1.0), optfn.sgd(2.0))
    values = values_of(tx)
    assert sorted(values.values()) == [1.0, 2.0]
    for name, value in values.items():
        assert values_of(optfn.replace(tx, **{name: 5.0})) == values | {name: 5.0}, value
    with pytest.raises(ValueError, match="'learning_rate' is ambiguous"):
        optfn.replace(tx, learning_rate=5.0)


def test_two_inner_transforms_are_read_at_their_own_steps():
    rate = schedules.linear(10.0, 0.0, 10)
    tx = alternate(optfn.sgd(rate), optfn.sgd(rate))
    state, seen = tx.init(PARAMS), []
    for _ in range(4):
        seen.append([float(x) for x in optfn.hyperparameters(tx, state).values()])
        _, state = tx.update(GRADS, state)
    assert seen == [[10, 10], [9, 10], [9, 9], [8, 9]]


# Parts that lead to a number and parts that are one, so that no name is in the middle of another.
inner_parts = st.lists(st.sampled_from(["a", "b", "ab", "a[0]"]), max_size=3)
numbers = st.sampled_from(["x", "x1", "ax"])
names = st.builds(lambda parts, last: ".".join([*parts, last]), inner_parts, numbers)


@hypothesis.settings(max_examples=500, deadline=None)
@hypothesis.given(st.lists(names, min_size=1, max_size=6, unique=True), names)
def test_a_short_name_is_the_end_of_exactly_one_name_or_an_error(names, query):
    values = optfn.Hyperparameters({name: i for i, name in enumerate(names)})
    ends = [n for n in names if n.split(".")[-len(query.split(".")) :] == query.split(".")]
    if query in names:
        assert values[query] == names.index(query)
    elif len(ends) == 1:
        assert values[query] == names.index(ends[0])
    else:
        with pytest.raises((KeyError, ValueError)) as error:
            values[query]
        assert f"'{query}'" in str(error.value)
        for name in ends:
            assert name in str(error.value)


# Values.


def test_schedules_are_read_at_the_next_update():
    tx = optfn.adamw(
        schedules.piecewise_constant([1.0, 0.5], [2]), weight_decay=lambda step: 0.1 * step
    )
    state, seen = tx.init(PARAMS), []
    for _ in range(4):
        values = optfn.hyperparameters(tx, state)
        seen.append([float(values["learning_rate"]), float(values["weight_decay"])])
        _, state = tx.update(GRADS, state, PARAMS)
    np.testing.assert_allclose(seen, [[1, 0], [1, 0.1], [0.5, 0.2], [0.5, 0.3]], rtol=1e-6)
    assert values["learning_rate"].shape == ()


def test_what_is_read_is_what_the_update_uses():
    tx = optfn.sgd(schedules.cosine_restarts(1.0, 3))
    state = tx.init(PARAMS)
    for _ in range(7):
        rate = optfn.hyperparameters(tx, state)["learning_rate"]
        updates, state = tx.update(GRADS, state)
        np.testing.assert_allclose(updates["w"], -rate * GRADS["w"], rtol=1e-6)


def test_reading_inside_a_jitted_step():
    """The result is a pytree, so a step may return it."""
    tx = optfn.adam(schedules.linear(1.0, 0.0, 10))

    @jax.jit
    def step(tx, state):
        values = optfn.hyperparameters(tx, state)
        return tx.update(GRADS, state)[1], values, values["learning_rate"]

    _, values, rate = step(tx, tx.init(PARAMS)._replace(step=jnp.int32(5)))
    assert type(values) is optfn.Hyperparameters
    assert set(values) == set(values_of(tx))
    np.testing.assert_allclose([values["learning_rate"], rate], 0.5)


def test_values_are_a_dict_that_survives_a_round_trip():
    values = values_of(optfn.adam(0.1))
    assert isinstance(values, dict)
    for again in (pickle.loads(pickle.dumps(values)), jax.tree.map(lambda x: x, values)):
        assert type(again) is optfn.Hyperparameters
        assert again == values
        assert again["learning_rate"] == 0.1
    paths = jax.tree_util.tree_flatten_with_path(values)[0]
    assert [jax.tree_util.keystr(path, simple=True) for path, _ in paths] == list(values)


def test_short_names_work_in_every_way_a_dict_is_asked():
    values = values_of(optfn.adam(0.1))
    assert values["learning_rate"] == 0.1
    assert values.get("learning_rate") == 0.1
    assert "learning_rate" in values
    assert "learning_speed" not in values
    assert values.get("learning_speed") is None
    both = values_of(optfn.chain(optfn.scale_by_adam(), optfn.scale_by_lion()))
    assert "b1" not in both
    assert both.get("b1") is None


@pytest.mark.parametrize("error", [KeyError, ValueError])
def test_a_name_that_is_none_is_an_error_of_a_dict_with_a_plain_sentence(error):
    with pytest.raises(error) as caught:
        values_of(optfn.sgd(0.1))["learning_rat"]
    assert str(caught.value) == (
        "no hyperparameter is named 'learning_rat'. Did you mean 'learning_rate'? "
        "There are: scale_by_learning_rate.learning_rate."
    )


# Replacing.


@pytest.mark.parametrize("name", sorted((cases.OPTIMIZERS | cases.STAGES).keys() - {"centralize"}))
def test_every_number_can_be_replaced_by_its_name_and_no_other_changes(name):
    tx = (cases.OPTIMIZERS | cases.STAGES)[name]
    flat = optfn.Hyperparameters(zip(names_of(tx), jax.tree.leaves(tx), strict=True))
    assert len(flat) == len(jax.tree.leaves(tx))
    for i, number in enumerate(flat):
        new = optfn.replace(tx, **{number: 0.123})
        assert jax.tree.structure(new) == jax.tree.structure(tx)
        expected = jax.tree.leaves(tx)
        expected[i] = 0.123
        assert jax.tree.leaves(new) == expected


def names_of(tx):
    """The names that `replace` knows, from its own message."""
    with pytest.raises(ValueError) as error:
        optfn.replace(tx, no_such_name=1)
    return str(error.value).split("There are: ")[1].rstrip(".").split(", ")


def test_a_schedule_has_names_of_its_own():
    tx = optfn.chain(
        optfn.adamw(schedules.warmup_cosine(0.1, 10, 100), weight_decay=lambda step: 0.1),
        optfn.scale(schedules.join([schedules.constant(1.0), schedules.linear(1, 0, 9)], [5])),
        optfn.clip(schedules.piecewise_constant(jnp.asarray([1.0, 2.0]), [4])),
    )
    rate = "scale_by_learning_rate.learning_rate"
    # The lambda is no pytree: it has no numbers.
    assert names_of(tx) == [
        "scale_by_adam.b1",
        "scale_by_adam.b2",
        "scale_by_adam.eps",
        "scale_by_adam.eps_root",
        *(f"{rate}.{x}" for x in ("peak_value", "warmup_steps", "total_steps", "init_value")),
        *(f"{rate}.{x}" for x in ("end_value", "exponent")),
        "scale.step_size.schedules.0.value",
        *(f"scale.step_size.schedules.1.{x}" for x in ("init_value", "end_value")),
        *(f"scale.step_size.schedules.1.{x}" for x in ("transition_steps", "transition_begin")),
        "scale.step_size.boundaries.0",
        "clip.max_delta.values",
        "clip.max_delta.boundaries.0",
    ]
    new = optfn.replace(tx, **{"learning_rate.peak_value": 0.5, "warmup_steps": 20})
    assert new.stages[2].learning_rate.peak_value == 0.5
    assert new.stages[2].learning_rate.warmup_steps == 20.0
    schedule = optfn.replace(schedules.cosine(1.0, 10), total_steps=20)
    assert schedule.total_steps == 20.0


def test_the_numbers_of_a_foreign_module_have_names():
    class Rate(eqx.Module):
        peaks: dict

        def __call__(self, step):
            return self.peaks["late"][1] * step

    tx = optfn.sgd(Rate({"early": jnp.asarray(1.0), "late": [0.0, jnp.asarray(2.0)]}))
    new = optfn.replace(tx, **{"peaks.late.1": 5.0})
    assert values_of(new, step=3)["learning_rate"] == 15.0


def test_replace_takes_qualified_and_short_names_and_none_at_all():
    tx = optfn.chain(optfn.scale_by_adam(), optfn.scale_by_lion(), optfn.scale(1.0))
    new = optfn.replace(tx, **{"scale_by_lion.b1": 0.5}, eps=1e-3, step_size=2)
    assert values_of(new)["scale_by_lion.b1"] == 0.5
    assert values_of(new)["scale_by_adam.b1"] == 0.9
    assert values_of(new)["eps"] == 1e-3
    assert values_of(new)["step_size"] == 2.0
    assert values_of(tx)["step_size"] == 1.0
    assert values_of(optfn.replace(tx)) == values_of(tx)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("b1", "'b1' is ambiguous; say which: scale_by_adam.b1, scale_by_lion.b1."),
        ("eps_rot", "no hyperparameter is named 'eps_rot'. Did you mean 'eps_root'? There are: "),
        ("scale_by_adam.b3", "no hyperparameter is named 'scale_by_adam.b3'."),
        ("learning_rat", "Did you mean 'learning_rate'?"),
        ("scale_by_adma.b1", "Did you mean 'scale_by_adam.b1'?"),
        ("by_adam.b1", "no hyperparameter is named 'by_adam.b1'."),
        ("zzz", "There are: scale_by_adam.b1, scale_by_adam.b2, scale_by_adam.eps, "),
        (
            "learning_rate",
            "'learning_rate' is no number but a schedule or a transform; its own numbers are: "
            "scale_by_learning_rate.learning_rate.init_value, ",
        ),
        ("scale_by_adam", "'scale_by_adam' is no number but a schedule or a transform"),
    ],
)
def test_a_name_that_does_not_lead_to_one_number(name, message):
    rate = schedules.cosine(0.1, 10)
    tx = optfn.chain(optfn.scale_by_adam(), optfn.scale_by_lion(), optfn.sgd(rate))
    with pytest.raises(ValueError) as error:
        optfn.replace(tx, **{name: 0.5})
    assert message in str(error.value)


def test_a_number_in_one_group_and_a_schedule_in_the_other_are_ambiguous():
    """Replacing only the number would silently leave the other group as it is."""
    tx = optfn.partition(
        {"a": optfn.sgd(0.1), "b": optfn.sgd(schedules.cosine(0.1, 10))}, {"w": "a", "b": "b"}
    )
    with pytest.raises(ValueError, match=r"learning_rate.*ambiguous"):
        optfn.replace(tx, learning_rate=0.5)


OLD = {
    "float": 0.1,
    "float32": jnp.float32(0.1),
    "weak": jnp.asarray(0.1),
    "float16": jnp.float16(0.1),
    "NumPy": np.asarray(0.1, np.float32),
    "float64 NumPy": np.asarray(0.1),
}
NEW = [0.5, 1, np.float64(0.5), np.asarray(0.5), jnp.asarray(0.5), jnp.float16(0.5), jnp.int32(1)]


@pytest.mark.parametrize("old", OLD)
def test_a_replaced_number_is_served_by_the_same_program(old):
    """Dtype and weak type stay those of the old leaf, whatever the new value came as."""
    traces = []

    @jax.jit
    def update(tx, state):
        traces.append(None)
        return tx.update(GRADS, state)[0]["b"]

    tx = optfn.sgd(OLD[old])
    state = tx.init(PARAMS)
    update(tx, state)
    for value in NEW:
        new = optfn.replace(tx, learning_rate=value)
        np.testing.assert_allclose(update(new, state), -float(value) * GRADS["b"], rtol=1e-6)
    assert len(traces) == 1


@pytest.mark.parametrize("old", [jnp.asarray(1), jnp.int32(1), np.asarray(1)])
def test_a_replaced_integer_array_does_not_lose_the_fraction_silently(old):
    tx = optfn.sgd(old)
    try:
        new = optfn.replace(tx, learning_rate=0.5)
    except (TypeError, ValueError) as error:
        assert "learning_rate" in str(error)
    else:
        assert values_of(new)["learning_rate"] == 0.5


def test_replace_inside_jit_with_a_traced_optimizer_and_a_traced_value():
    @jax.jit
    def update(tx, rate, state):
        tx = optfn.replace(tx, learning_rate=rate, b1=0.0)
        return tx.update(GRADS, state)[0], optfn.hyperparameters(tx, state)

    tx = optfn.adam(0.1)
    updates, values = update(tx, 0.25, tx.init(PARAMS))
    np.testing.assert_allclose(updates["b"], -0.25 * jnp.sign(GRADS["b"]), rtol=1e-5)
    assert (values["learning_rate"], values["b1"]) == (0.25, 0.0)


def test_replace_is_differentiable():
    tx = optfn.sgd(0.1)
    state = tx.init(PARAMS)
    derivative = jax.grad(
        lambda rate: optfn.replace(tx, learning_rate=rate).update(GRADS, state)[0]["b"][0]
    )(0.3)
    np.testing.assert_allclose(derivative, -GRADS["b"][0])


def test_a_batch_may_take_the_place_of_a_number():
    tx = optfn.replace(optfn.adam(0.1), learning_rate=np.asarray([0.1, 0.2], np.float32))
    updates = jax.vmap(lambda tx: tx.update(GRADS, tx.init(PARAMS))[0]["b"], (optfn.in_axes(tx),))(
        tx
    )
    np.testing.assert_allclose(updates[1], 2 * updates[0], rtol=1e-6)


# Arrays.


@pytest.mark.parametrize("name", cases.OPTIMIZERS)
def test_as_arrays_makes_every_number_a_strong_float32_array(name):
    arrays = optfn.as_arrays(cases.OPTIMIZERS[name])
    assert jax.tree.structure(arrays) == jax.tree.structure(cases.OPTIMIZERS[name])
    for new, old in zip(
        jax.tree.leaves(arrays), jax.tree.leaves(cases.OPTIMIZERS[name]), strict=True
    ):
        assert isinstance(new, jax.Array)
        assert (new.dtype, new.weak_type) == (jnp.float32, False)
        np.testing.assert_allclose(new, old, rtol=1e-7)


def test_as_arrays_lets_other_leaves_of_a_foreign_schedule_be():
    def noisy(key, switch, rate, step):
        return rate * jnp.where(switch, jax.random.uniform(key), 1.0)

    foreign = jax.tree_util.Partial(noisy, jax.random.key(0), True, 0.1)
    before = jax.tree.leaves(optfn.sgd(foreign))
    after = jax.tree.leaves(optfn.as_arrays(optfn.sgd(foreign)))
    assert [x is y for x, y in zip(after, before, strict=True)] == [True, True, False]
    assert after[2].dtype == jnp.float32


def test_as_arrays_leaves_float32_also_with_x64_on(x64):
    leaves = jax.tree.leaves(optfn.as_arrays(optfn.adam(np.float64(0.1))))
    assert {x.dtype for x in leaves} == {jnp.dtype(jnp.float32)}


def test_filter_jit_traces_an_optimizer_of_arrays_once():
    traces = []

    @eqx.filter_jit
    def update(tx, state):
        traces.append(None)
        return tx.update(GRADS, state)[0]

    for rate in (0.1, 0.2, 0.3):
        tx = optfn.as_arrays(optfn.adam(schedules.cosine(rate, 10)))
        update(tx, tx.init(PARAMS))
    assert len(traces) == 1


# Batches.


GRID = [
    optfn.adamw(schedules.warmup_cosine(rate, warmup, 10), b1=b1)
    for rate, warmup, b1 in [(0.1, 1, 0.9), (0.2, 2, 0.8), (0.3, 3, 0.0)]
]


def test_stack_and_unstack_are_inverse():
    batch = optfn.stack(GRID)
    assert jax.tree.structure(batch) == jax.tree.structure(GRID[0])
    assert all(leaf.shape == (3,) for leaf in jax.tree.leaves(batch))
    for one, again in zip(GRID, optfn.unstack(batch), strict=True):
        assert jax.tree.structure(again) == jax.tree.structure(one)
        chex.assert_trees_all_close(again, one, rtol=1e-7)
    assert optfn.stack(iter(GRID[:1])).stages[0].b1.shape == (1,)


def test_a_stack_runs_all_its_optimizers_in_one_program():
    traces = []

    def train(tx, params):
        traces.append(None)
        state = tx.init(params)
        for _ in range(3):
            params, state = optfn.step(tx, params, GRADS, state)
        return params, optfn.hyperparameters(tx, state)

    batch = optfn.stack(GRID)
    params, values = jax.jit(jax.vmap(train, in_axes=(optfn.in_axes(batch), None)))(batch, PARAMS)
    assert len(traces) == 1
    one_by_one = jax.jit(train)
    for lane, tx in enumerate(GRID):
        expected = one_by_one(tx, PARAMS)
        got = jax.tree.map(lambda x, lane=lane: x[lane], (params, values))
        chex.assert_trees_all_close(got, expected, rtol=1e-5)


def test_in_axes_maps_what_is_a_batch_and_nothing_else():
    tx = optfn.adam(schedules.linear(jnp.arange(3.0), 0.0, 10), b1=jnp.asarray(0.9), b2=0.99)
    axes = optfn.in_axes(tx)
    assert axes.stages[0].b1 is None
    assert axes.stages[0].b2 is None
    assert axes.stages[1].learning_rate.init_value == 0
    assert axes.stages[1].learning_rate.end_value is None
    updates = jax.vmap(lambda tx: tx.update(GRADS, tx.init(PARAMS))[0]["b"], (axes,))(tx)
    expected = jnp.outer(jnp.arange(3.0), -jnp.sign(GRADS["b"]))
    np.testing.assert_allclose(updates, expected, rtol=1e-5)


def test_an_array_of_boundaries_is_no_batch():
    """`piecewise_constant` may hold its values as one array."""
    schedule = schedules.piecewise_constant(jnp.asarray([1.0, 2.0, 3.0]), jnp.asarray([10.0, 20.0]))
    tx = optfn.sgd(schedule, momentum=jnp.asarray([0.1, 0.2, 0.3]))
    axes = optfn.in_axes(tx)
    assert axes.stages[0].decay == 0
    assert axes.stages[1].learning_rate.values is None
    assert axes.stages[1].learning_rate.boundaries is None
    assert [x.stages[1].learning_rate.values.shape for x in optfn.unstack(tx)] == [(3,)] * 3
    stacked = optfn.in_axes(optfn.stack([optfn.sgd(schedule), optfn.sgd(schedule)]))
    assert stacked.stages[0].learning_rate.values == 0


def test_what_cannot_be_stacked_is_named():
    with pytest.raises(ValueError, match=r"stack\(...\) needs at least one optimizer"):
        optfn.stack([])
    message = r"stack\(...\): optimizer 1 is built of other parts than optimizer 0"
    with pytest.raises(ValueError, match=message):
        optfn.stack([optfn.adam(0.1), optfn.adam(0.1, nesterov=True)])
    with pytest.raises(ValueError, match=message):
        optfn.stack([optfn.sgd(0.1), optfn.sgd(optax.constant_schedule(0.1))])


def test_what_cannot_be_unstacked_is_named():
    with pytest.raises(ValueError, match=r"numbers of one common length, found \[\]"):
        optfn.unstack(optfn.adam(0.1))
    with pytest.raises(ValueError, match=r"numbers of one common length, found \[2, 3\]"):
        optfn.unstack(optfn.adam(jnp.ones(2), b1=jnp.ones(3)))
