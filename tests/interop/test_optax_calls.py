"""Calls that optax takes and that differ in form only: they do here what they do there."""

import gc
import inspect
import pickle
import weakref

import cases
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import optfn

PARAMS = {"w": jnp.asarray([[1.0, -2.0], [0.5, 0.25], [-1.5, 3.0]]), "b": jnp.asarray([0.5, 2.0])}
GRADS = jax.tree.map(lambda p: jnp.cos(3 * p) + 0.25, PARAMS)


# Without a state.

EVERY = cases.OPTIMIZERS | cases.STAGES | {"add_noise": optfn.add_noise(1.0, 0.5)}
HUTCHINSON = {"hutchinson": optfn.hutchinson_estimator_diag_hessian()}
NOTHING = [None, (), {}, optax.EmptyState(), (optax.EmptyState(), optax.EmptyState())]


def given(name):
    extra = cases.EXTRA_ARGS.get(name, {})
    return extra(GRADS, PARAMS) if callable(extra) else extra


def update(tx, state, name):
    return tx.update(GRADS, state, PARAMS, **given(name))


@pytest.mark.parametrize("name", EVERY)
def test_what_depends_on_no_state_needs_none(name):
    """And what depends on the step, by a schedule or by random numbers, does."""
    tx = EVERY[name]
    if "across" in name:
        return
    first = jax.eval_shape(tx.init, PARAMS)
    if jax.tree.leaves(first.slots):
        with pytest.raises(TypeError, match="must be the State that init returns"):
            update(tx, None, name)
        return
    found = [update(tx, optfn.State(jnp.int32(count), {}), name)[0] for count in (0, 7)]
    differ = not all(map(np.array_equal, *map(jax.tree.leaves, found)))
    if differ:
        with pytest.raises(TypeError, match="must be the State that init returns"):
            update(tx, None, name)
        return
    for nothing in NOTHING:
        updates, state = update(tx, nothing, name)
        assert state is nothing
        chex.assert_trees_all_equal(updates, found[0])


def test_a_state_of_another_kind_is_no_empty_one():
    for state in (PARAMS, 0, jnp.zeros(())):
        with pytest.raises(TypeError, match="must be the State that init returns"):
            optfn.clip(1.0).update(GRADS, state)
    tx = optfn.hutchinson_estimator_diag_hessian()
    with pytest.raises(TypeError, match="must be the State that init returns"):
        tx.update(GRADS, None, PARAMS, obj_fn=cases.loss)


# Keys for seeds.

SEEDS = {"seed", "random_seed"}
ARGUMENTS = {"learning_rate": 0.1, "eta": 1.0, "gamma": 0.5}
ARGUMENTS |= {"transform": optfn.adam(0.1), "codec": optfn.storage.int8()}


def parameters(function):
    return inspect.signature(function).parameters


def is_public_transform(value):
    is_class = inspect.isclass(value) and issubclass(value, optfn.Transform)
    return is_class or cases.gives_a_transform(value)


PUBLIC = {k: v for k, v in vars(optfn).items() if not k.startswith("_") and is_public_transform(v)}
SEEDED = {name: SEEDS & parameters(f).keys() for name, f in PUBLIC.items()}
SEEDED = {name: found.pop() for name, found in SEEDED.items() if found}


def seeded(name, **seed):
    needed = [k for k, p in parameters(PUBLIC[name]).items() if p.default is p.empty]
    return PUBLIC[name](**{k: ARGUMENTS[k] for k in needed if k in ARGUMENTS}, **seed)


def numbers(tx):
    return list(map(np.asarray, jax.tree.leaves(tx)))


@pytest.mark.parametrize("name", SEEDED)
def test_a_random_key_is_a_seed(name):
    own = SEEDED[name]
    key, other = jax.random.key(3), jax.random.key(4)
    typed, raw = seeded(name, **{own: key}), seeded(name, **{own: jax.random.key_data(key)})
    chex.assert_trees_all_equal(numbers(typed), numbers(raw))
    changed = numbers(seeded(name, **{own: other}))
    seeds = [x for x, y in zip(numbers(typed), changed, strict=True) if x != y]
    assert seeds
    assert all(0 <= x < 2**24 and float(x).is_integer() for x in seeds)
    whole = seeded(name, **{own: int(seeds[0])})
    assert [float(x) for x in numbers(whole)] == [float(x) for x in numbers(typed)]
    traced = jax.jit(lambda key: numbers_of(seeded(name, **{own: key})))(key)
    assert float(seeds[0]) in list(map(float, traced))


def numbers_of(tx):
    return [jnp.asarray(x, jnp.float32) for x in jax.tree.leaves(tx)]


KEYS = {"key", "random_seed"}
KEYED = {
    name: sorted(KEYS & parameters(theirs).keys())
    for name in PUBLIC
    if callable(theirs := getattr(optax, name, getattr(optax.contrib, name, None)))
    and KEYS & parameters(theirs).keys()
}


def test_every_key_of_optaxs_is_taken_by_its_name():
    assert {"add_noise", "noisy_sgd", "hutchinson_estimator_diag_hessian"} <= KEYED.keys()
    for name, keywords in KEYED.items():
        for keyword in keywords:
            by_name = seeded(name, **{keyword: 5})
            chex.assert_trees_all_equal(
                numbers(by_name), numbers(seeded(name, **{SEEDED[name]: 5}))
            )


def test_a_seed_by_both_names_is_refused():
    for function in (optfn.add_noise, optfn.noisy_sgd):
        with pytest.raises(
            TypeError, match=rf"{function.__name__}\(seed=..., key=...\) are the same"
        ):
            function(0.1, 0.1, 0.1, seed=1, key=2)


# Extra arguments of optax's transformations.


def scale_by_whatever():
    def update(updates, state, params=None, *, whatever, maybe=1.0, **extra_args):
        del params, extra_args
        return jax.tree.map(lambda u: whatever * maybe * u, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: (), update)


def outer_most(tx):
    return optfn.chain(tx, optfn.scale_by_learning_rate(1.0))


WRAPPERS = {
    "chain": lambda tx: tx,
    "named chain": lambda tx: optfn.chain(tx).named("inner"),
    "chain of optax's": lambda tx: optax.chain(tx, optax.identity()),
    "partition": lambda tx: optfn.partition({"all": tx}, "all"),
    "freeze": lambda tx: optfn.freeze(tx, False),
    "masked": lambda tx: optfn.masked(tx, True),
    "accumulate": lambda tx: optfn.accumulate(tx, 1),
    "skip_nonfinite": optfn.skip_nonfinite,
    "monitor": optfn.monitor,
    "own_step": optfn.own_step,
    "conditionally_mask": lambda tx: optfn.conditionally_mask(
        tx, lambda step: step < 9, forward_extra_args=True
    ),
    "conditionally_transform": lambda tx: optfn.conditionally_transform(tx, lambda step: step < 9),
    "partition_matrices": lambda tx: optfn.partition_matrices(tx, tx),
    "graft": lambda tx: optfn.graft(tx, optfn.chain()),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("jitted", [False, True])
def test_all_extra_arguments_reach_an_optax_transformation(wrapper, jitted):
    tx = outer_most(WRAPPERS[wrapper](scale_by_whatever()))
    call = jax.jit(tx.update) if jitted else tx.update
    updates, _ = call(GRADS, tx.init(PARAMS), PARAMS, whatever=2.0, maybe=3.0, other=jnp.ones(7))
    if wrapper != "graft":
        chex.assert_trees_all_close(updates, jax.tree.map(lambda g: -6.0 * g, GRADS), rtol=1e-6)
    with pytest.raises(TypeError, match="whatever"):
        tx.update(GRADS, tx.init(PARAMS), PARAMS, other=1.0)


# A stage that freezes.


@pytest.mark.parametrize("mask", [{"w": False, "b": True}, lambda path, leaf: leaf.ndim == 1])
def test_freeze_of_a_mask_is_optaxs_stage(mask):
    theirs = optax.freeze({"w": False, "b": True})
    expected, _ = theirs.update(GRADS, theirs.init(PARAMS), PARAMS)
    for stage in (optfn.freeze(mask), optfn.freeze(mask=mask), optfn.freeze(optfn.chain(), mask)):
        updates, _ = stage.update(GRADS, stage.init(PARAMS), PARAMS)
        chex.assert_trees_all_equal(updates, expected)
    text = repr(optfn.freeze(mask))
    assert text.startswith("freeze(transform=chain(), mask=")


def test_freeze_needs_a_mask():
    for call in (optfn.freeze, lambda: optfn.freeze(optfn.adam(1e-3)), lambda: optfn.freeze(None)):
        with pytest.raises(TypeError, match=r"freeze\(mask=...\) must be a tree or a function"):
            call()


# A method is one object, as an attribute of an optax transformation is.


@pytest.mark.parametrize("name", EVERY)
def test_a_jitted_update_is_found_again(name):
    """`jax.jit` keeps the program of a function as long as that object is there."""
    tx = EVERY[name]
    assert tx.init is tx.init
    assert tx.update is tx.update
    init, update = tx
    assert (init, update) == (tx[0], tx[1])
    assert init is tx.init
    assert update is tx.update
    others = [
        tx.named("other") if "across" not in name else tx,
        jax.tree.unflatten(jax.tree.structure(tx), jax.tree.leaves(tx)),
        jax.tree.map(lambda x: x, tx),
    ]
    for other in others:
        assert other.update.__self__ is other
        assert other.init.__self__ is other


programs = 0


def count(event, duration, **kwargs):
    global programs
    programs += event == "/jax/core/compile/backend_compile_duration"


jax.monitoring.register_event_duration_secs_listener(count)


def test_a_program_is_compiled_once_however_often_its_update_is_jitted():
    jax.clear_caches()  # another file may have compiled it
    tx, before = optfn.adam(0.1), programs
    for _ in range(3):
        state = jax.jit(tx.init)(PARAMS)
        jax.jit(tx.update)(GRADS, state)
    assert programs == before + 2


def test_what_a_transform_keeps_goes_with_it():
    tx = optfn.adam(0.1)
    assert pickle.loads(pickle.dumps(tx)).update.__self__ is not tx.update.__self__
    assert "update" not in tx.__getstate__()
    gone = weakref.ref(tx.update)
    del tx
    gc.collect()
    assert gone() is None


def test_a_traced_transform_keeps_no_tracers():
    tx = optfn.adam(0.1)

    @jax.jit
    def updated(tx, grads):
        return tx.update(grads, tx.init(grads))[0]

    with jax.checking_leaks():
        updated(tx, GRADS)


# Slots as attributes of the state, as of optax's state of a single stage.


@pytest.mark.parametrize("name", cases.OPTIMIZERS)
def test_a_slot_is_an_attribute_where_one_stage_has_it(name):
    if name == "across":
        return
    state = jax.eval_shape(cases.OPTIMIZERS[name].init, PARAMS)
    stages = [x for x in state.slots.values() if hasattr(x, "_fields")]
    fields = [field for stage in stages for field in stage._fields]
    own = {*optfn.State._fields, "step", "index"}
    for stage in stages:
        for field in {*stage._fields} - own:
            if fields.count(field) == 1:
                assert getattr(state, field) is getattr(stage, field)
            else:
                with pytest.raises(AttributeError, match=r"write state\.slots\[stage\]\."):
                    getattr(state, field)
    assert not hasattr(state, "whatever")


def test_flatten_needs_params_only_where_they_are_narrow():
    tx = optfn.flatten(optfn.adam(0.1))
    state = tx.init(PARAMS)
    expected, after = tx.update(GRADS, state, PARAMS)
    updates, new = tx.update(GRADS, state)
    chex.assert_trees_all_equal((updates, new), (expected, after))
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
    with pytest.raises(ValueError, match="flatten needs the params: they are not of"):
        tx.update(narrow, tx.init(narrow))


def test_a_missing_extra_argument_is_told_before_trees_that_do_not_fit():
    tx = optfn.polyak_sgd()
    with pytest.raises(TypeError, match="misses the extra argument 'value'"):
        tx.update((GRADS, GRADS), tx.init(PARAMS), PARAMS)


@pytest.mark.parametrize("name", ["schedule_free", "schedule_free_sgd", "schedule_free_adamw"])
def test_optaxs_eval_params_read_the_state_of_schedule_free(name):
    given = (optfn.sgd(0.1), 0.1) if name == "schedule_free" else (0.1,)
    tx = getattr(optfn, name)(*given)
    params, state = PARAMS, tx.init(PARAMS)
    for _ in range(3):
        params, state = optfn.step(tx, params, GRADS, state)
    found = optax.contrib.schedule_free_eval_params(state, params)
    expected = optfn.evaluation_params(tx, state, params)
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-6)
    assert optax.tree.get(state, "b1") is state.slots["schedule_free"].share


SEARCHES = {
    "backtracking": lambda lib: lib.scale_by_backtracking_linesearch(15),
    "zoom": lambda lib: lib.scale_by_zoom_linesearch(15),
}


@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)
@pytest.mark.parametrize("wrap", [lambda tx: tx, lambda tx: optfn.freeze(tx, False)])
def test_arguments_of_the_function_searched_are_passed_through(search, wrap):
    def value_fn(params, batch, weight=1.0):
        return weight * jnp.sum(jnp.square(params["w"] - batch)) + jnp.sum(params["b"] ** 2)

    batch, found = jnp.full(PARAMS["w"].shape, 0.5), []
    value, grad = jax.value_and_grad(value_fn)(PARAMS, batch, 3.0)
    for lib in (optax, optfn):
        tx = lib.chain(lib.sgd(1.0), search(lib))
        tx = wrap(tx) if lib is optfn else tx
        given = {"value": value, "grad": grad, "batch": batch, "weight": 3.0}
        update = jax.jit(
            lambda s, given, tx=tx: tx.update(grad, s, PARAMS, value_fn=value_fn, **given)
        )
        found.append(update(tx.init(PARAMS), given)[0])
    chex.assert_trees_all_close(*found, rtol=1e-5, atol=1e-6)


# Integers.


def counted():
    """A stage that adds to integers, as one that passes counts on may."""
    return optax.stateless(lambda updates, params: jax.tree.map(lambda u: u + 1, updates))


@pytest.mark.parametrize(
    "wrapper",
    ["chain of optax's", "named chain", "partition", "freeze", "skip_nonfinite", "own_step"],
)
def test_integers_reach_a_transformation_of_optaxs_as_they_are(wrapper):
    ints = {"a": jnp.asarray([1, 2]), "b": 3}
    tx = optfn.chain(WRAPPERS[wrapper](counted()))
    updates, _ = tx.update(ints, tx.init(ints), ints)
    chex.assert_trees_all_equal(updates, {"a": jnp.asarray([2, 3]), "b": jnp.asarray(4)})


def test_integers_that_become_fractions_are_refused():
    ints = {"a": jnp.asarray([1, 2])}
    halved = optax.stateless(lambda updates, params: jax.tree.map(lambda u: 0.5 * u, updates))
    for tx in (optfn.from_optax(halved), optfn.partition({"all": halved}, "all")):
        with pytest.raises(TypeError, match=r"int32, of which .* makes float32, whose fraction"):
            tx.update(ints, tx.init(ints), ints)
    # A rule of this library needs floating point itself.
    tx = optfn.chain(counted(), optfn.adam(0.1))
    with pytest.raises(TypeError, match="at 'a' has dtype int32, but only floating point"):
        tx.init(ints)


@pytest.mark.newest
def test_optaxs_monitor_is_a_stage():
    """With its averages, which have a state."""
    measured = {"norm": optax.tree.norm, "mean": optax.measure_with_ema(optax.tree.norm, 0.9)}
    found = []
    for library in (optax, optfn):
        tx = library.chain(library.sgd(0.1), optax.monitor(measured), library.clip(0.01))
        _, state = tx.update(GRADS, tx.init(PARAMS), PARAMS)
        found.append([optax.tree.get(state, name) for name in measured])
    chex.assert_trees_all_close(*found, rtol=1e-6)
    with pytest.raises(TypeError, match=r"monitor\(transform=...\) must be .* optax.monitor\(meas"):
        optfn.monitor(measured)
