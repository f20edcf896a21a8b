"""The lift: what a rule about one array sees, how often it is traced, and what becomes of slots."""

import re
from typing import Any, ClassVar, NamedTuple

import cases
import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from core.stages import add_noise, newton

import optfn
from optfn import schedules
from optfn.testing.checks import Subject


class Kept(NamedTuple):
    first: Any
    second: Any


class recorder(optfn.Leafwise):
    """Adds its number times t, and records what the rule sees."""

    number: float = 2.0
    weight: Any = optfn.per_leaf(default=1.0)

    Slots = Kept
    needs_params = True
    calls: ClassVar = []

    def init_leaf(self, param):
        self.calls.append((self.weight, param, None, None, None, self.number))
        return Kept(param, jnp.zeros(()))

    def update_leaf(self, g, slots, param, t):
        self.calls.append((self.weight, g, slots, param, t, self.number))
        return g + self.number * t, Kept(slots.first + g, slots.second + 1)


class recorder_of_one_operation(recorder):
    elementary = True


@pytest.fixture
def calls():
    """The calls of recorded rules; an inner jit remembers, so the caches are cleared first."""
    jax.clear_caches()
    recorder.calls.clear()
    return recorder.calls


def abstract(tx, params, grads=None):
    """Traces one update, as `jit` does, without compiling it."""
    state = jax.eval_shape(tx.init, params)
    recorder.calls.clear()
    return jax.eval_shape(tx.update, params if grads is None else grads, state, params)


def leaves(n, shape=(2, 3), dtype=jnp.float32, start=0):
    return {f"leaf{start + i}": jax.ShapeDtypeStruct(shape, dtype) for i in range(n)}


# How often a rule is traced.


def test_four_hundred_equal_leaves_are_one_trace(calls):
    abstract(recorder(), leaves(400))
    assert len(calls) == 1


def test_one_trace_per_distinct_shape_and_dtype(calls):
    params = leaves(20) | leaves(20, (3, 2), start=20) | leaves(20, dtype=jnp.bfloat16, start=40)
    abstract(recorder(), params)
    assert len(calls) == 3


def test_one_trace_per_distinct_value_of_a_per_leaf_field(calls):
    params = leaves(30)
    weights = {name: float(i % 2) for i, name in enumerate(params)}
    abstract(recorder(weight=weights), params)
    assert sorted(call[0] for call in calls) == [0.0, 1.0]


def test_consecutive_rules_are_traced_together(calls):
    names = "abc"
    abstract(optfn.chain(*(recorder().named(name) for name in names)), leaves(50))
    assert len(calls) == len(names)
    params = leaves(3)
    stages = [optfn.scale_by_adam(), optfn.add_decayed_weights(0.1), optfn.trace(0.9)]
    tx = optfn.chain(*stages)
    state = jax.eval_shape(tx.init, params)
    program = jax.make_jaxpr(tx.update)(params, state, params)
    inner = [eqn.params["jaxpr"] for eqn in program.eqns if calls_a_rule(eqn)]
    assert len(inner) == 3
    assert len(set(map(id, inner))) == 1


def calls_a_rule(eqn):
    """Whether it calls a function on arrays; the step, a scalar, has functions of its own."""
    return "jaxpr" in eqn.params and any(v.aval.ndim for v in eqn.outvars)


def calls_in(tx, params):
    """How many inner functions the traced update calls."""
    state = jax.eval_shape(tx.init, params)
    return sum(map(calls_a_rule, jax.make_jaxpr(tx.update)(params, state, params).eqns))


def test_rare_shapes_are_traced_in_place(calls):
    """A call of a jitted function costs more than tracing a rule twice."""
    params = leaves(2) | leaves(1, (4,), start=2)
    abstract(recorder(), params)
    assert len(calls) == 3
    assert not calls_in(recorder(), params)
    assert calls_in(recorder(), leaves(3)) == 3


def test_rules_of_one_operation_are_traced_in_place(calls):
    assert not calls_in(recorder_of_one_operation(), leaves(10))
    assert not calls_in(optfn.sgd(0.1), leaves(10))
    # In a run with a rule that is not, they are traced with it.
    assert calls_in(optfn.adam(0.1), leaves(10)) == 10


@pytest.mark.parametrize("convert", [lambda tx: tx, optfn.as_arrays], ids=["floats", "arrays"])
def test_new_numbers_are_no_new_trace_of_an_eager_update(convert, calls):
    params = {name: jnp.ones((2, 3)) for name in leaves(2)}
    for number in (1.0, 2.0, 3.0):
        tx = convert(recorder(number))
        state = tx.init(params)
        calls.clear()
        updates, _ = tx.update(params, state, params)
        np.testing.assert_allclose(updates["leaf0"], 1 + number)
        assert len(calls) == (1 if number == 1.0 else 0)


def test_new_numbers_are_no_new_trace_of_the_rule(calls):
    params = {name: jnp.ones((2, 3)) for name in leaves(5)}
    update = jax.jit(lambda tx, *args: tx.update(*args))
    for number in (1.0, 2.0, jnp.float32(3.0)):
        tx = optfn.as_arrays(recorder(number))
        state = tx.init(params)
        calls.clear()
        updates, _ = update(tx, params, state, params)
        np.testing.assert_allclose(updates["leaf0"], 1 + float(number))
        assert len(calls) == (1 if number == 1.0 else 0)


# What a rule sees.


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32, jnp.complex64])
def test_a_rule_computes_in_at_least_float32(dtype, calls):
    params = {"w": jnp.ones(3, dtype)}
    tx = recorder(number=0.999)
    wide = jnp.complex64 if dtype == jnp.complex64 else jnp.float32

    updates, state = tx.update(params, tx.init(params), params)

    (_, initial, *_, at_init), (_, g, slots, param, t, number) = calls
    assert initial.dtype == g.dtype == slots.first.dtype == param.dtype == wide
    assert t.dtype == jnp.float32
    assert t.shape == ()
    # In bfloat16 it would be 1.
    assert at_init.dtype == number.dtype == jnp.float32
    assert updates["w"].dtype == dtype
    assert state.slots["recorder"].first["w"].dtype == wide


def test_a_rule_sees_the_param_only_if_it_asks_for_it(calls):
    """Also beside one that asks."""

    class asks_for_nothing(recorder):
        needs_params = False

    params = {"w": jnp.ones(3)}
    tx = optfn.chain(asks_for_nothing(), recorder())
    tx.update(params, tx.init(params), params)
    seen = [param is None for _, _, slots, param, *_ in calls if slots is not None]
    assert seen == [True, False]


def test_mixed_precision_computes_in_the_wider_one(calls):
    params, grads = {"w": jnp.ones(3, jnp.bfloat16)}, {"w": jnp.ones(3, jnp.float16)}
    tx = recorder()
    updates, _ = tx.update(grads, tx.init(params), params)
    _, g, _, param, *_ = calls[-1]
    assert g.dtype == param.dtype == jnp.float32
    assert updates["w"].dtype == jnp.float16


def test_schedules_are_numbers_inside_a_rule(calls):
    params = {"w": jnp.ones(3, jnp.bfloat16)}
    tx = recorder(number=schedules.linear(1.0, 2.0, 2))
    state = tx.init(params)
    for value in (1.0, 1.5):
        updates, state = tx.update(params, state, params)
        number = calls[-1][-1]
        assert (number.dtype, number.shape) == (jnp.float32, ())
        np.testing.assert_allclose(updates["w"], 1 + value * state.step, rtol=2**-8)


def test_t_is_one_at_the_first_update():
    params = {"w": jnp.zeros(2)}
    tx = recorder(number=1.0)
    state = tx.init(params)
    for t in (1, 2, 3):
        updates, state = tx.update(params, state, params)
        assert updates["w"][0] == t
        assert state.slots["recorder"].second["w"] == t


WEIGHTS = {"a": {"kernel": 2.0, "bias": 3.0}, "b": 4.0}


@pytest.mark.parametrize(
    "weight",
    [WEIGHTS, lambda path, leaf: {"a/kernel": 2.0, "a/bias": 3.0, "b": 4.0}[path]],
    ids=["tree", "function"],
)
def test_a_rule_gets_its_leafs_own_value_of_a_per_leaf_field(weight, calls):
    params = {"a": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}, "b": jnp.ones(2)}
    shapes = {2.0: (2, 2), 3.0: (2,), 4.0: (2,)}
    tx = recorder(weight=weight)
    state = tx.init(params)
    assert {call[0]: call[1].shape for call in calls} == shapes
    calls.clear()
    tx.update(params, state, params)
    assert {call[0]: call[1].shape for call in calls} == shapes


# Double precision.


def avals(jaxpr):
    """Every value of a program, inner ones too."""
    for eqn in jaxpr.eqns:
        yield from (v.aval for v in (*eqn.invars, *eqn.outvars))
        for inner in jax.tree.leaves(eqn.params, is_leaf=lambda x: hasattr(x, "eqns")):
            yield from avals(inner) if hasattr(inner, "eqns") else ()


def program_of(tx, params, extra_args=None):
    subject = Subject(tx, extra_args or {})
    state = jax.eval_shape(tx.init, params)
    return jax.make_jaxpr(subject.update)(params, state, params).jaxpr


@pytest.mark.newest
@pytest.mark.parametrize("name", cases.OPTIMIZERS | cases.STAGES)
def test_with_x64_on_a_float32_update_is_not_wide(name, x64):
    tx = (cases.OPTIMIZERS | cases.STAGES)[name]
    params = leaves(3) | leaves(1, (), start=3) | leaves(1, (4,), jnp.bfloat16, start=4)
    if name in cases.STAGES:
        tx = optfn.chain(tx, optfn.scale(1.0))
    program = program_of(tx, params, cases.EXTRA_ARGS.get(name))
    wide = [x for x in avals(program) if x.dtype == jnp.float64]
    assert not [x for x in wide if x.shape], wide
    if not any(isinstance(x, optfn.Schedule) for x in parts(tx)):
        # A weak scalar takes on the dtype of what it meets.
        assert all(x.weak_type for x in wide)


def parts(tx):
    """All nodes of an optimizer."""
    found = [tx]
    for _, value in tx.fields("number", "child"):
        inner = value.values() if isinstance(value, dict) else value
        for x in inner if type(value) in (tuple, dict) else [value]:
            found += parts(x) if isinstance(x, optfn.Transform) else [x]
    return found


@pytest.mark.parametrize(
    "rate",
    [0.1, np.float64(0.1), np.asarray(0.1), lambda step: 0.1 * (step + 1), schedules.cosine(1, 9)],
    ids=["float", "scalar", "array", "function", "schedule"],
)
def test_with_x64_on_no_form_of_a_number_makes_an_update_wide(rate, x64):
    params = {"w": jnp.ones(3, jnp.float32)}
    tx = optfn.chain(optfn.clip_by_global_norm(rate), optfn.adam(rate, b1=rate))
    state = tx.init(params)
    for as_data in (tx, jax.tree.map(jnp.asarray, tx)):
        program = jax.make_jaxpr(lambda tx, *args: tx.update(*args))(as_data, params, state, params)
        assert not [x for x in avals(program.jaxpr) if x.dtype == jnp.float64 and x.shape]
    updates, after = tx.update(params, state, params)
    chex.assert_trees_all_equal_shapes_and_dtypes((updates, after), (params, state))


def test_float64_params_compute_in_float64(x64, calls):
    params = {"w": jnp.ones(3)}
    tx = recorder(number=0.1)
    updates, state = tx.update(params, tx.init(params), params)
    *_, t, number = calls[-1]
    assert t.dtype == number.dtype == jnp.float64
    assert updates["w"][0] == 1.1
    assert state.slots["recorder"].first["w"].dtype == jnp.float64


# Slots.


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("name", ["adamw", "lion", "amsgrad", "rmsprop centered", "adagrad"])
def test_slots_of_low_precision_params_are_float32(name, dtype):
    state = jax.eval_shape(cases.OPTIMIZERS[name].init, {"w": jax.ShapeDtypeStruct((3,), dtype)})
    assert {slot.dtype for slot in jax.tree.leaves(state.slots)} == {jnp.dtype(jnp.float32)}


class keeps_the_same_twice(recorder):
    def init_leaf(self, param):
        return Kept(param, param)


class keeps_constants(recorder):
    def init_leaf(self, param):
        zero = np.zeros(param.shape, np.float32)
        return Kept(zero, zero)


class keeps_one_scalar(recorder):
    zero = jnp.zeros(())

    def init_leaf(self, param):
        return Kept(param, self.zero)


@pytest.mark.parametrize("rule", [keeps_the_same_twice, keeps_constants, keeps_one_scalar])
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jitted"])
def test_every_slot_has_a_buffer_of_its_own(rule, transform):
    """One that is shared, with another slot or with the param, could not be donated."""
    params = {"w": jnp.asarray([1.0, jnp.nan, -0.0]), "b": jnp.ones((2, 2)), "s": jnp.ones(())}
    state = transform(rule().init)(params)
    arrays = jax.tree.leaves((params, state))
    assert len({x.unsafe_buffer_pointer() for x in arrays}) == len(arrays)
    first = state.slots[rule.__name__].first
    expected = params if rule is not keeps_constants else jax.tree.map(jnp.zeros_like, params)
    chex.assert_trees_all_equal(first, expected)
    np.testing.assert_array_equal(np.signbit(first["w"]), np.signbit(expected["w"]))


@pytest.mark.parametrize(
    "second",
    [
        lambda p: None,
        lambda p: [p, p.sum(0)],
        lambda p: (p, ()),
        lambda p: {"left": p @ p.T, "right": None},
        lambda p: Kept(p, [p]),
    ],
    ids=["None", "list", "tuple", "dict", "named tuple"],
)
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jitted"])
def test_a_slot_may_be_any_tree(second, transform):
    """A list of factors, a dict of statistics, or nothing where an option is off."""

    class factored(recorder):
        def init_leaf(self, param):
            return Kept(param, second(param))

        def update_leaf(self, g, slots, param, t):
            return g, Kept(slots.first + g, jax.tree.map(lambda x: 2 * x, slots.second))

    params = {"a": {"w": jnp.ones((2, 3))}, "b": [jnp.ones((1, 2)), None]}
    state = transform(factored().init)(params)
    kept = jax.tree.map(second, params)
    assert jax.tree.structure(state.slots["factored"].second) == jax.tree.structure(kept)
    for _ in range(2):
        _, after = transform(factored().update)(params, state, params)
        chex.assert_trees_all_equal_structs(after, state)
        chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
        state = after
    expected = jax.tree.map(lambda x: 4 * x, kept)
    chex.assert_trees_all_close(state.slots["factored"].second, expected, rtol=1e-6)


def test_slots_of_another_shape_than_the_params_are_kept():
    params = {"w": jnp.ones((2, 3)), "b": jnp.ones(2)}
    state = recorder().init(params)
    assert {slot.shape for slot in jax.tree.leaves(state.slots["recorder"].second)} == {()}
    _, state = recorder().update(params, state, params)
    assert jax.tree.leaves(state.slots["recorder"].second) == [1.0, 1.0]


# Extra arguments.


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_extra_trees_and_scalars_are_seen_in_the_compute_dtype(dtype):
    """They are numbers the rule computes with, like the gradient."""
    seen = []

    class looks(newton):
        def update_leaf(self, g, slots, param, t, *, curvature, damping):
            seen.append((curvature, damping))
            return g, slots

    params = {"w": jnp.ones(3, dtype)}
    looks().update(params, looks().init(params), curvature=params, damping=jnp.ones((), dtype))
    assert [x.dtype for x in seen[0]] == [jnp.float32, jnp.float32]


def test_with_x64_on_an_extra_argument_does_not_make_an_update_wide(x64):
    params = {"w": jnp.ones(3, jnp.float32)}
    state = newton().init(params)

    def update(damping):
        return newton().update(params, state, curvature=params, damping=damping)

    program = jax.make_jaxpr(update)(np.float64(0.5))
    assert not [x for x in avals(program.jaxpr) if x.dtype == jnp.float64 and x.shape]


def test_a_key_is_folded_for_every_leaf():
    class dropout(optfn.Leafwise):
        extra_args: ClassVar = {"drop": "key"}

        def update_leaf(self, g, slots, param, t, *, drop):
            return jax.random.normal(drop, g.shape), slots

    params = {"a": jnp.ones(4), "b": {"c": jnp.ones(4)}}
    tx = dropout()

    def run(seed):
        return tx.update(params, tx.init(params), drop=jax.random.key(seed))[0]

    one, again, other = run(0), run(0), run(1)
    chex.assert_trees_all_equal(one, again)
    assert len({float(x[0]) for x in jax.tree.leaves((one, other))}) == 4


# Randomness.


ZEROS = {"a": jnp.zeros(4), "b": {"c": jnp.zeros(4)}, "d": jnp.zeros((2, 2))}


def draws(tx, params, steps=3):
    state, out = tx.init(params), []
    for _ in range(steps):
        updates, state = tx.update(params, state)
        out.append(updates)
    return out


def test_the_same_run_draws_the_same_bits():
    first, again = draws(add_noise(7), ZEROS), draws(add_noise(7), ZEROS)
    chex.assert_trees_all_equal(first, again)
    jitted = jax.jit(lambda params: draws(add_noise(7), params))(ZEROS)
    # The same bits go in; the normal distribution made of them may be fused otherwise.
    chex.assert_trees_all_close(first, jitted, rtol=1e-5)


def test_draws_differ_by_seed_step_and_leaf():
    drawn = [
        np.asarray(leaf).reshape(-1)
        for seed in (0, 1)
        for updates in draws(add_noise(seed), ZEROS)
        for leaf in jax.tree.leaves(updates)
    ]
    assert len(drawn) == 2 * 3 * 3
    assert len({tuple(x) for x in drawn}) == len(drawn)
    # Five standard deviations of the mean of 72 normal numbers.
    assert abs(np.mean(drawn)) < 5 / np.sqrt(72)


def test_a_leafs_draws_do_not_depend_on_the_other_leaves():
    whole = draws(add_noise(3), ZEROS)
    for name in ("a", "d"):
        alone = draws(add_noise(3), {name: ZEROS[name]})
        chex.assert_trees_all_equal([u[name] for u in alone], [u[name] for u in whole])
    frozen = draws(optfn.freeze(add_noise(3), {"a": True, "b": False, "d": True}), ZEROS)
    chex.assert_trees_all_equal([u["b"] for u in frozen], [u["b"] for u in whole])


def test_the_seed_can_be_swept():
    batch = optfn.stack([add_noise(seed) for seed in range(3)])
    swept = jax.vmap(lambda tx: draws(tx, ZEROS), in_axes=(optfn.in_axes(batch),))(batch)
    for lane in range(3):
        one = jax.tree.map(lambda x, lane=lane: x[lane], swept)
        chex.assert_trees_all_close(one, draws(add_noise(lane), ZEROS), rtol=1e-5)


@pytest.mark.parametrize(
    "build",
    [
        lambda: optfn.chain(add_noise(0), add_noise(0)),
        lambda: optfn.chain(add_noise(0), optfn.clip_by_global_norm(1e9), add_noise(0)),
        lambda: optfn.chain(add_noise(0).named("first"), add_noise(0).named("second")),
    ],
    ids=["adjacent", "separated", "named"],
)
def test_two_stages_of_one_seed_do_not_draw_the_same(build):
    """Or they are refused, as two stateful stages of one name are."""
    try:
        tx = build()
    except ValueError as error:
        assert "named" in str(error)
        return
    (updates,) = draws(tx, ZEROS, steps=1)
    # Twice the noise of one of them would be in a ratio of 2 to it, entry by entry.
    for name in ("add_noise", "first", "second"):
        (alone,) = draws(add_noise(0).named(name), ZEROS, steps=1)
        assert not np.allclose(updates["a"], 2 * alone["a"], rtol=1e-4)


def test_random_rules_of_equal_leaves_are_traced_once_and_still_differ():
    calls = []

    class counted(add_noise):
        def update_leaf(self, g, slots, param, t, *, key):
            calls.append(None)
            return super().update_leaf(g, slots, param, t, key=key)

    params = {f"leaf{i}": jnp.zeros(3) for i in range(20)}
    updates, _ = jax.jit(counted().update)(params, counted().init(params))
    assert len(calls) == 1
    assert len({float(u[0]) for u in updates.values()}) == 20


# Errors.


class fails_on_matrices(optfn.Leafwise):
    def update_leaf(self, g, slots, param, t):
        if g.ndim > 1:
            raise RuntimeError("no matrices, please")
        return g, slots


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jitted"])
def test_an_error_in_a_rule_carries_the_stage_and_the_path(transform):
    params = {"layers": [{"bias": jnp.ones(2), "kernel": jnp.ones((2, 2))}]}
    tx = optfn.chain(optfn.clip(1.0), fails_on_matrices().named("mine"))
    with pytest.raises(RuntimeError, match="no matrices, please") as error:
        transform(tx.update)(params, tx.init(params))
    assert "This was in clip then mine, at 'layers/0/kernel'." in error.value.__notes__


def test_an_error_in_init_leaf_carries_them_too():
    class fails_at_init(recorder):
        def init_leaf(self, param):
            raise RuntimeError("no")

    with pytest.raises(RuntimeError) as error:
        fails_at_init().init({"a": {"b": jnp.ones(2)}})
    assert error.value.__notes__ == ["This was in fails_at_init, at 'a/b'."]


def test_a_rule_that_forgot_to_ask_for_its_param_is_told():
    class shrink(optfn.Leafwise):
        def update_leaf(self, g, slots, param, t):
            return g - 0.1 * param, slots

    params = {"w": jnp.ones(2)}
    with pytest.raises(TypeError) as error:
        shrink().update(params, shrink().init(params), params)
    assert error.value.__notes__[-1] == (
        "A rule gets its param only if its class says needs_params = True."
    )


def test_an_error_in_a_per_leaf_function_carries_field_and_path():
    def mask(path, leaf):
        return {"a": True}[path]

    tx = optfn.adamw(0.1, mask=mask)
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    with pytest.raises(KeyError) as error:
        tx.update(params, tx.init(params), params)
    notes = " ".join(getattr(error.value, "__notes__", ()))
    assert re.search(r"adamw.*mask.*'b'", notes), notes


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (lambda g, slots: (g[:1], slots), "turned the update of shape (3,) into shape (1,)"),
        (lambda g, slots: (g[0], slots), "turned the update of shape (3,) into shape ()"),
        (
            lambda g, slots: (g, Kept(slots.first[:1], slots.second)),
            "turned its slot first of shape (3,) into shape (1,)",
        ),
        (
            lambda g, slots: (g, Kept(slots.first, slots.first)),
            "turned its slot second of shape () into shape (3,)",
        ),
    ],
    ids=["update", "scalar update", "slot", "other slot"],
)
def test_a_rule_that_changes_a_shape_is_named(wrong, sentence):
    class shaper(recorder):
        def update_leaf(self, g, slots, param, t):
            return wrong(g, slots)

    params = {"w": jnp.ones(3)}
    with pytest.raises(ValueError, match=re.escape(f"shaper {sentence}")) as error:
        shaper().update(params, shaper().init(params), params)
    assert "This was in shaper, at 'w'." in error.value.__notes__
