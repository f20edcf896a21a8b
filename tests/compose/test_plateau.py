"""The factor that falls on a plateau: its definition, torch's and optax's."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optax_faults import wrong_in_optax

import optfn

LENGTH = 40
NAN = math.nan


@jax.jit
def states(tx, values):
    """The slots after each value."""

    def step(state, value):
        updates, state = tx.update({"w": jnp.ones(2, values.dtype)}, state, value=value)
        return state, (state.slots["reduce_on_plateau"], updates["w"])

    return jax.lax.scan(step, tx.init({"w": jnp.ones(2, values.dtype)}), values)[1]


def scales(values, **arguments):
    """In double precision, and with the numbers as arguments: two programs for all tests."""
    with jax.enable_x64(True):
        slots, updates = states(optfn.reduce_on_plateau(**arguments), np.asarray(values, float))
        np.testing.assert_array_equal(updates[:, 0], slots.scale)
        return np.asarray(slots.scale)


def by_definition(
    values, factor, patience, rtol, atol, cooldown, accumulation_size, min_scale, direction
):
    scale, best, bad, rest, out, group = 1.0, None, 0, 0, [], []
    for value in values:
        group.append(value)
        if len(group) == accumulation_size:
            mean, group = sum(group) / len(group), []
            needed = 0.0 if best is None else rtol * abs(best) + atol
            if best is None:
                improved = not math.isnan(mean)
            elif direction == "min":
                improved = mean < best - needed
            else:
                improved = mean > best + needed
            best = mean if improved else best
            bad = 0 if improved or rest else bad + 1
            rest = max(rest - 1, 0)
            if bad == patience:
                scale, bad, rest = max(factor * scale, min_scale), 0, cooldown
        out.append(scale)
    return out


def by_torch(values, mode, factor, patience, threshold, threshold_mode, cooldown, min_lr):
    """`ReduceLROnPlateau` of torch 2 at the rate 1, with eps=0."""
    best = math.inf if mode == "min" else -math.inf
    rate, bad, cooling, out = 1.0, 0, 0, []
    for a in values:
        if threshold_mode == "rel":
            share = 1.0 - threshold if mode == "min" else threshold + 1.0
            better = a < best * share if mode == "min" else a > best * share
        else:
            better = a < best - threshold if mode == "min" else a > best + threshold
        if better:
            best, bad = a, 0
        else:
            bad += 1
        if cooling > 0:
            cooling, bad = cooling - 1, 0
        if bad > patience:
            rate = max(rate * factor, min_lr)
            cooling, bad = cooldown, 0
        out.append(rate)
    return out


# Values in quarters, so that limits are met exactly and nothing hangs on how they are rounded.
ANY = st.integers(-40, 40).map(lambda n: n / 4) | st.just(NAN)
POSITIVE = st.integers(1, 40).map(lambda n: n / 4) | st.just(NAN)


def sequences(values):
    return st.lists(values, min_size=LENGTH, max_size=LENGTH)


COMMON = {
    "factor": st.sampled_from([0.1, 0.5]),
    "patience": st.integers(1, 6),
    "cooldown": st.integers(0, 4),
}
TOLERANCES = st.sampled_from([0.0, 0.125, 0.5])
DIRECTIONS = st.sampled_from(["min", "max"])


@settings(max_examples=60, deadline=None)
@given(
    values=sequences(ANY),
    arguments=st.fixed_dictionaries(
        COMMON
        | {"rtol": TOLERANCES | st.just(1.0), "atol": TOLERANCES}
        | {"accumulation_size": st.sampled_from([1, 2, 4]), "direction": DIRECTIONS}
        | {"min_scale": st.sampled_from([0.0, 0.05])}
    ),
)
def test_the_factor_falls_as_defined(values, arguments):
    np.testing.assert_allclose(scales(values, **arguments), by_definition(values, **arguments))


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    common=st.fixed_dictionaries(COMMON),
    threshold=TOLERANCES,
    mode=DIRECTIONS,
    kind=st.sampled_from(["rel", "abs"]),
)
def test_it_is_torch_s_but_for_one_value_of_patience(data, common, threshold, mode, kind):
    """With relative thresholds where the values are positive."""
    values = data.draw(sequences(POSITIVE if kind == "rel" else ANY))
    tolerances = (threshold, 0.0) if kind == "rel" else (0.0, threshold)
    rtol, atol = tolerances
    found = scales(values, **common, rtol=rtol, atol=atol, min_scale=0.01, direction=mode)
    patience = common["patience"] - 1
    others = common["factor"], patience, threshold, kind, common["cooldown"], 0.01
    np.testing.assert_allclose(found, by_torch(values, mode, *others))


def optax_s(values, **arguments):
    """The factors and the updates of optax's, after each value."""
    theirs = optax.contrib.reduce_on_plateau(**arguments)

    def step(state, value):
        updates, state = theirs.update(jnp.ones(2), state, value=value)
        return state, (state.scale, updates[0])

    return jax.jit(lambda v: jax.lax.scan(step, theirs.init(jnp.ones(2)), v)[1])(values)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("cooldown", [0, 5])
def test_it_is_optax_s_for_positive_values(size, cooldown):
    rng = np.random.default_rng(size)
    values = np.float32(1 + rng.uniform(size=200) + np.exp(-np.arange(200) / 20))
    arguments = {"factor": 0.5, "patience": 4, "rtol": 1e-2, "atol": 1e-3, "min_scale": 0.02}
    arguments |= {"cooldown": cooldown, "accumulation_size": size}
    wanted_scales, wanted = optax_s(values, **arguments)
    slots, updates = states(optfn.reduce_on_plateau(**arguments), values)
    np.testing.assert_allclose(slots.scale, wanted_scales, rtol=1e-6)
    np.testing.assert_allclose(updates[:, 0], wanted, rtol=1e-6)
    assert slots.scale[-1] < 0.1


def test_a_negative_loss_that_stands_still_is_a_plateau():
    """In optax 0.2.8 and torch it improves for ever: -1 is below (1 - rtol) * -1."""
    values = np.full(LENGTH, -1.0, np.float32)
    assert scales(values, patience=5, rtol=0.01)[-1] < 1e-6
    assert by_torch(values, "min", 0.1, 4, 0.01, "rel", 0, 0.0)[-1] == 1
    theirs = optax_s(values, patience=5, rtol=0.01)[0]
    wrong_in_optax(theirs[-1] == 1)


def test_a_negative_loss_that_falls_is_none():
    assert scales(-(1.1 ** np.arange(LENGTH)), patience=2, rtol=1e-2)[-1] == 1


def test_a_value_that_is_nan_is_no_improvement():
    """Nor does it stay: the next mean is of new values."""
    values = np.where(np.arange(LENGTH) % 4 == 3, NAN, 1 / np.arange(1, LENGTH + 1))
    assert scales(values, patience=2)[-1] == 1
    slots, _ = states(optfn.reduce_on_plateau(accumulation_size=4), np.float32(values))
    assert np.isinf(slots.best_value).all()
    assert np.isfinite(slots.avg_value[3::4]).all()
    assert scales(np.full(LENGTH, NAN), patience=10)[-1] == pytest.approx(1e-4)


def test_the_factor_is_where_users_look_for_it():
    tx = optfn.chain(optfn.adam(0.1), optfn.reduce_on_plateau(0.5, patience=2))
    params = {"w": jnp.ones(2, jnp.bfloat16)}
    state = tx.init(params)
    for _ in range(3):
        _, state = tx.update(params, state, params, value=1.0)
    scale = state.slots["reduce_on_plateau"].scale
    assert scale == 0.5
    assert scale.dtype == jnp.float32
    assert optfn.hyperparameters(tx, state)["patience"] == 2


def test_patiences_and_factors_are_swept_together():
    values = np.ones(LENGTH, np.float32)

    def last(factor, patience):
        tx = optfn.reduce_on_plateau(factor, patience)
        return states(tx, values)[0].scale[-1]

    many = jax.vmap(last)(jnp.asarray([0.5, 0.9]), jnp.asarray([13.0, 5.0]))
    np.testing.assert_allclose(many, [0.5**3, 0.9**7], rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"factor": 1.5}, r"\(factor=...\) must be from 0 to 1, found 1.5"),
        ({"rtol": 2}, r"\(rtol=...\) must be from 0 to 1, found 2.0"),
        ({"min_scale": -1}, r"\(min_scale=...\) must be from 0 to 1, found -1.0"),
        ({"atol": -1}, r"\(atol=...\) must be at least 0, found -1.0"),
        ({"patience": 0}, r"\(patience=...\) must be at least 1, found 0.0"),
        ({"accumulation_size": 0}, r"\(accumulation_size=...\) must be at least 1, found 0.0"),
        ({"cooldown": -1}, r"\(cooldown=...\) must be at least 0, found -1.0"),
        ({"direction": "up"}, r"\(direction=...\) must be one of \('min', 'max'\), found str"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_bad_arguments(arguments, sentence):
    with pytest.raises(ValueError, match=f"reduce_on_plateau{sentence}"):
        optfn.reduce_on_plateau(**arguments)


def test_a_missing_value_is_named():
    tx = optfn.chain(optfn.sgd(0.1), optfn.reduce_on_plateau())
    with pytest.raises(TypeError, match="misses the extra argument 'value'"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))


def test_the_factor_and_what_it_waits_for_are_metrics():
    tx = optfn.chain(optfn.sgd(1.0), optfn.reduce_on_plateau(0.5, patience=2))
    state = tx.init({"w": jnp.ones(2)})
    for value in (3.0, 4.0, 5.0, 6.0):
        _, state = tx.update({"w": jnp.ones(2)}, state, value=jnp.asarray(value))
    told = optfn.metrics(tx, state)
    assert {name.split(".")[-1]: float(value) for name, value in told.items()} == {
        "scale": 0.5,
        "best_value": 3.0,
        "plateau_count": 1.0,
    }
