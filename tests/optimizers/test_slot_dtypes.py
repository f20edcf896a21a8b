"""optax's arguments that name the dtype of a slot, for every function that has one there."""

import inspect
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import optfn
from optfn.core.data import storage_dtype, storage_fields
from optfn.core.moments import FirstMoment
from optfn.core.optax_names import ELSEWHERE, LEFT, PLANNED
from optfn.core.transform import Transform

MODULES = (optax, optax.contrib, optax.transforms)


def found_in_optax():
    """The first function of every name, with its argument for a dtype."""
    found = {}
    for name, function in (entry for module in MODULES for entry in vars(module).items()):
        if callable(function) and not name.startswith("_"):
            arguments = parameters(function)
            dtypes = [argument for argument in arguments if "dtype" in argument]
            if dtypes and name not in found:
                (argument,) = dtypes
                found[name] = function, argument
    return found


def parameters(function):
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):  # a type alias
        return {}


THERE = found_in_optax()
# Those whose work another function does here.
NOT_HERE = {*ELSEWHERE, *PLANNED, *(name for names in LEFT.values() for name in names)}
NAMES = sorted(THERE.keys() - NOT_HERE)
REQUIRED = {"learning_rate": 0.05, "decay": 0.9}
OPTIONS = {
    "sgd": {"momentum": 0.9},
    "adafactor": {"learning_rate": 0.05, "momentum": 0.9},
    "scale_by_distance_over_gradients": {"reps_rel": 0.1},
    "schedule_free_adamw": {"learning_rate": 0.1},
}
# What differs by default.
HERE = {"muon": {"debias": True}, "scale_by_muon": {"debias": True}}
AXES = {"w": optax.contrib.MuonDimensionNumbers()}
THERE_ALONE = {"scale_by_muon": {"weight_dimension_numbers": AXES}}
STEPS = 10


def loss(params):
    """Its Hessian is diagonal, which Hutchinson's estimate gives whatever its signs are."""
    return sum(jnp.sum(jnp.arange(1, x.size + 1).reshape(x.shape) * x**2) for x in params.values())


def options(name, library):
    arguments = parameters(THERE[name][0])
    required = {k: REQUIRED[k] for k in REQUIRED if k in arguments}
    if "base_optimizer" in arguments:
        required["base_optimizer"] = library.sgd(0.05)
    needed = {k: v for k, v in required.items() if arguments[k].default is inspect.Parameter.empty}
    return needed | OPTIONS.get(name, {})


def here(name, dtype):
    """optfn's, with the dtype as the argument."""
    given = options(name, optfn) | HERE.get(name, {})
    return getattr(optfn, name)(**given, **({THERE[name][1]: dtype} if dtype else {}))


def there(name, dtype):
    function, argument = THERE[name]
    given = options(name, optax) | THERE_ALONE.get(name, {})
    return function(**given, **({argument: dtype} if dtype else {}))


def params_of(name):
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.normal(size=(4, 6)), jnp.float32)}
    if "muon" not in name:  # whose other leaves have another optimizer here
        params["b"] = jnp.asarray(rng.normal(size=6), jnp.float32)
    return params


def dtypes_of(tree):
    return [x.dtype for x in jax.tree.leaves(tree)]


def updated(tx, params, state):
    """The forms of the updates and of the next state."""
    return jax.eval_shape(lambda p, s: tx.update(p, s, p, obj_fn=loss), params, state)


def changed(one, two):
    """The names and sizes of the arrays that differ in their dtypes."""
    pairs = zip(jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(two), strict=True)
    return [(path, x.size) for (path, x), y in pairs if x.dtype != y.dtype]


def is_second_moment(path):
    return any(getattr(key, "name", None) == "nu" for key in path)


@cache
def states_of_optax(name):
    params = params_of(name)
    return [jax.eval_shape(there(name, dtype).init, params) for dtype in ("bfloat16", None)]


def narrow_in_optax(name):
    # AdEMAMix's second moment is among those that start in it, and leaves it at the first update.
    return [entry for entry in changed(*states_of_optax(name)) if not is_second_moment(entry[0])]


def test_all_that_are_not_here_are_elsewhere():
    assert len(NAMES) >= 25
    assert all(hasattr(optfn, name) for name in NAMES)
    elsewhere = {"MultiSteps", "inject_hyperparams", "inject_stateful_hyperparams"}
    assert THERE.keys() - NAMES == elsewhere | {"measure_with_ema", "optimistic_adam"}


@pytest.mark.parametrize("name", NAMES)
def test_the_argument_has_optax_s_place(name):
    function, argument = THERE[name]
    ours, theirs = (list(parameters(f).values()) for f in (getattr(optfn, name), function))
    (place,) = (i for i, p in enumerate(theirs) if p.name == argument)
    assert [p.kind for p in theirs if p.name == argument] == [
        p.kind for p in ours if p.name == argument
    ]
    if theirs[place].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD:
        assert [p.name for p in ours[: place + 1]] == [p.name for p in theirs[: place + 1]]


@pytest.mark.parametrize("name", NAMES)
def test_slots_start_in_the_dtype_and_keep_it(name):
    """As many numbers as in optax, in every dtype, and none of complex params."""
    params = params_of(name)
    plain = jax.eval_shape(here(name, None).init, params)
    for dtype in (jnp.bfloat16, jnp.float16, jnp.float8_e4m3fn):
        tx = here(name, dtype)
        state = jax.eval_shape(tx.init, params)
        asked = changed(state, plain)
        assert sum(size for _, size in asked) == sum(size for _, size in narrow_in_optax(name))
        named = dict(jax.tree_util.tree_leaves_with_path(state))
        assert {named[path].dtype for path, _ in asked} == {np.dtype(dtype)}
        _, after = jax.eval_shape(
            lambda p, s, tx=tx: tx.update(p, s, p, obj_fn=loss), params, state
        )
        assert dtypes_of(after) == dtypes_of(state)
    complex_params = jax.tree.map(lambda x: x.astype(jnp.complex64), params)
    states = [jax.eval_shape(here(name, d).init, complex_params) for d in ("bfloat16", None)]
    assert dtypes_of(states[0]) == dtypes_of(states[1])


@pytest.mark.parametrize("name", NAMES)
def test_a_wider_dtype_is_kept_too(name, x64):
    params = params_of(name)
    tx = here(name, "float64")
    state = jax.eval_shape(tx.init, params)
    assert changed(state, jax.eval_shape(here(name, None).init, params))
    updates, after = updated(tx, params, state)
    assert dtypes_of(after) == dtypes_of(state)
    assert dtypes_of(updates) == dtypes_of(params)


@pytest.mark.parametrize("name", NAMES)
def test_the_path_is_optax_s(name):
    """Against optax with the same argument, and against optax in float32 that is rounded between.

    The second is what happens here: computed in float32, rounded where it is stored. optax also
    multiplies in bfloat16: two roundings of 2^-9 at each of ten steps. Schedule-Free there rounds
    between the parts of a step, and has a test of its own.
    """
    params = params_of(name)
    ours, theirs, wide = here(name, "bfloat16"), there(name, "bfloat16"), there(name, None)
    rounds = {path for path, _ in narrow_in_optax(name)}

    def rounded(state):
        def bf16(path, x):
            return jax.lax.reduce_precision(x, 8, 7) if path in rounds else x

        return jax.tree_util.tree_map_with_path(bf16, state)

    @jax.jit
    def step(g, runs):
        new, updates = [], []
        for tx, (p, state) in zip((ours, theirs, wide), runs, strict=True):
            u, state = tx.update(g, state, p, **({"obj_fn": loss} if "sophia" in name else {}))
            state = rounded(state) if tx is wide else state
            updates.append(u)
            new.append((optax.apply_updates(p, u), state))
        return updates, new

    runs = [(params, tx.init(params)) for tx in (ours, theirs, wide)]
    runs[2] = runs[2][0], rounded(runs[2][1])
    rng = np.random.default_rng(1)
    for _ in range(STEPS):
        g = {k: jnp.asarray(rng.normal(size=x.shape), jnp.float32) + 0.5 for k, x in params.items()}
        with jax.numpy_rank_promotion("allow"):  # as optax needs
            (u, of_optax, of_rounded), runs = step(g, runs)
        for k, x in u.items():
            largest = float(abs(of_optax[k]).max())
            assert np.isfinite(largest)
            np.testing.assert_allclose(x, of_optax[k], 0, 2 * STEPS * 2**-9 * largest)
            if not name.startswith("schedule_free"):
                np.testing.assert_allclose(x, of_rounded[k], 0, 1e-4 * largest)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_an_average_does_not_drift_from_a_rounded_iterate(dtype):
    """x, which is computed from y and z, is the average of z as stored, whatever that loses."""
    b, rate, steps = 0.9, 0.01, 200
    tx = optfn.schedule_free(optfn.sgd(rate), rate, b, state_dtype=dtype)
    rng = np.random.default_rng(2)
    params = jnp.asarray(rng.normal(size=64), jnp.float32)
    grads = jnp.asarray(rng.normal(size=(steps, 64)), jnp.float32)

    @jax.jit
    def run(params):
        def step(carry, g):
            p, state = carry
            u, state = tx.update(g, state, p)
            p = optfn.apply_updates(p, u)
            z = state.slots["schedule_free"].z
            return (p, state), (z, optfn.evaluation_params(tx, state, p))

        return jax.lax.scan(step, (params, tx.init(params)), grads)[1]

    z, x = jax.tree.map(np.asarray, run(params))
    stored = np.asarray(params.astype(dtype))
    for n, g in enumerate(np.asarray(grads)):
        moved = stored.astype(np.float32) - np.float32(rate) * g
        stored = moved.astype(stored.dtype)
        np.testing.assert_array_equal(z[n], stored)
    # Weights are equal, as the rate is.
    wanted = np.cumsum(z.astype(np.float64), axis=0) / np.arange(1, steps + 1)[:, None]
    np.testing.assert_allclose(x, wanted, 0, 1e-5)


# Each is a program on a mesh, and by default every fourth.
ON_MESH = [
    name if i % 4 == 0 else pytest.param(name, marks=pytest.mark.slow)
    for i, name in enumerate(NAMES)
]


@pytest.mark.parametrize("name", ON_MESH)
def test_slots_lie_as_their_params_do(name):
    mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    params = {
        k: jax.device_put(x, NamedSharding(mesh, PartitionSpec(*[None] * (x.ndim - 1), "x")))
        for k, x in params_of(name).items()
    }
    tx, whole = here(name, "bfloat16"), jax.eval_shape(here(name, "bfloat16").init, params_of(name))
    state = tx.init(params)
    _, after = jax.jit(lambda p, s: tx.update(p, s, p, obj_fn=loss))(params, state)
    for (path, x), y, form in zip(
        jax.tree_util.tree_leaves_with_path(state),
        jax.tree.leaves(after),
        jax.tree.leaves(whole),
        strict=True,
    ):
        assert x.dtype == y.dtype == form.dtype
        if x.dtype == jnp.bfloat16:
            param = params[path[-1].key]
            assert x.shape == param.shape
            for found in (x, y):
                assert found.sharding.is_equivalent_to(param.sharding, x.ndim)


@pytest.mark.parametrize("name", NAMES)
def test_spellings_are_one_treedef_and_the_repr_pastes_back(name):
    spelled = [here(name, d) for d in (jnp.bfloat16, "bfloat16", np.dtype(jnp.bfloat16))]
    forms = {jax.tree.structure(tx) for tx in spelled}
    forms.add(jax.tree.structure(eval(repr(spelled[0]), dict(vars(optfn)))))
    assert len(forms) == 1
    with pytest.raises(TypeError, match=rf"{name}\({THERE[name][1]}=\.\.\.\) must be a floating"):
        here(name, "int8")


def test_the_default_optimizer_of_what_is_no_matrix_has_it_too():
    params = {"w": jnp.ones((4, 6)), "b": jnp.ones(6)}
    state = optfn.muon(0.1, mu_dtype="bfloat16").init(params).slots["partition"]
    assert state["matrix"]["ema"].ema["w"].dtype == jnp.bfloat16
    assert state["rest"]["scale_by_adam"].mu["b"].dtype == jnp.bfloat16
    assert state["rest"]["scale_by_adam"].nu["b"].dtype == jnp.float32


def test_the_fields_name_slots():
    """A misspelt slot would be a dtype that nothing has."""
    with pytest.raises(TypeError, match=r"misspelt has no slots \['nu'\] to store in a dtype"):

        class misspelt(optfn.Leafwise):
            nu_dtype: str | None = storage_dtype("nu", default=None)
            Slots = FirstMoment

    for cls in (
        x for x in vars(optfn).values() if isinstance(x, type) and issubclass(x, Transform)
    ):
        assert set(storage_fields(cls).values()) <= {argument for _, argument in THERE.values()}, (
            cls
        )


@pytest.mark.parametrize("name", NAMES)
def test_a_complex_dtype_is_kept_for_real_params_too(name):
    """As many numbers as in optax; what is computed from them is real."""
    params, tx = params_of(name), here(name, jnp.complex64)
    state = jax.eval_shape(tx.init, params)
    asked = changed(state, jax.eval_shape(here(name, None).init, params))
    assert sum(size for _, size in asked) == sum(size for _, size in narrow_in_optax(name))
    named = dict(jax.tree_util.tree_leaves_with_path(state))
    assert {named[path].dtype for path, _ in asked} == {np.dtype(jnp.complex64)}
    updates, after = updated(tx, params, state)
    assert dtypes_of(updates) == dtypes_of(params)
    assert dtypes_of(after) == dtypes_of(state)


@pytest.mark.parametrize(
    "name", ["sgd", "sophia", "schedule_free_sgd", "scale_by_distance_over_gradients"]
)
def test_real_numbers_are_the_same_in_a_complex_dtype(name):
    """And so are the params to evaluate at."""
    params = params_of(name)

    @jax.jit
    def run(params):
        def one(tx):
            p, state = params, tx.init(params)
            for _ in range(3):
                u, state = tx.update(p, state, p, obj_fn=loss)
                p = optfn.apply_updates(p, u)
            return p, optfn.evaluation_params(tx, state, p)

        return one(here(name, "complex64")), one(here(name, "float32"))

    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), *run(params))


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "schedule_free_sgd"])
def test_slots_of_complex_params_are_complex(name):
    params = {"w": jax.ShapeDtypeStruct((4, 6), jnp.complex64)}
    for dtype in (jnp.complex64, "float32"):
        found = dtypes_of(jax.eval_shape(here(name, dtype).init, params))
        assert found == dtypes_of(jax.eval_shape(here(name, None).init, params))
        assert jnp.complex64 in found
