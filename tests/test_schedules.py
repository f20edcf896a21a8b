"""Schedules against their oracles, optax's schedules, the lecture's tables and their own laws."""

import dataclasses
import functools
import inspect
import re

import equinox as eqx
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
from hypothesis import strategies as st

import optfn
from optfn import schedules
from optfn.core import optax_names

# Short ones, so that all steps up to the last edge, and beyond, can be looked at. No part of them
# ends on a rounded half step, where an argument's derivative would be that of a jump.
CASES = [
    schedules.constant(0.3),
    schedules.linear(0.1, 0.01, 10),
    schedules.linear(0.0, 0.2, 7, 3),
    schedules.polynomial(0.3, 0.05, 2.0, 20),
    schedules.polynomial(0.3, 0.05, 0.5, 20, 4),
    schedules.exponential(0.2, 1, 0.95),
    schedules.exponential(0.2, 11, 0.5, 5),
    schedules.exponential(0.2, 11, 0.5, staircase=True),
    schedules.exponential(0.2, 11, 0.5, 5, True, 0.06),
    schedules.exponential(0.2, 7, 1.2, end_value=0.9),
    schedules.linear_half_life(0.5, 0.95, 10),
    schedules.inverse_time(0.2, 1.0),
    schedules.inverse_time(0.2, 0.5, transition_steps=7, staircase=True),
    schedules.inverse_sqrt(0.2),
    schedules.inverse_sqrt(0.2, k=3),
    schedules.piecewise_constant((0.3, 0.1, 0.2), (4, 9)),
    schedules.piecewise_linear((0.1, 0.3, 0.02), (4, 17)),
    schedules.piecewise_cosine((0.1, 0.3, 0.02), (4, 17)),
    schedules.cosine(0.2, 30),
    schedules.cosine(0.2, 30, end_value=0.05),
    schedules.cosine(0.2, 30, end_value=0.05, exponent=1.5),
    schedules.cosine_restarts(0.2, 9),
    schedules.cosine_restarts(0.2, 5, end_value=0.01, steps_factor=2.0, value_factor=0.5),
    schedules.cosine_restarts(0.2, 7, end_value=0.01, steps_factor=1.25, value_factor=0.8),
    schedules.cosine_restarts(
        0.2, 7, end_value=0.01, steps_factor=1.25, value_factor=0.8, warmup_steps=2
    ),
    schedules.one_cycle(peak_value=0.2, total_steps=47),
    schedules.one_cycle(
        peak_value=0.2,
        total_steps=47,
        pct_start=0.25,
        pct_final=0.8,
        div_factor=10.0,
        final_div_factor=100.0,
        anneal="linear",
    ),
    schedules.warmup_constant(0.2, 7),
    schedules.warmup_constant(0.2, 7, init_value=0.01),
    schedules.warmup_cosine(0.2, 5, 40),
    schedules.warmup_cosine(0.2, 5, 40, init_value=0.01, end_value=0.02, exponent=2.5),
    schedules.warmup_linear(0.2, 5, 40, init_value=0.01, end_value=0.02),
    schedules.wsd(0.2, 5, 12, 40, init_value=0.01, end_value=0.02),
    schedules.wsd(0.2, 5, 12, 40, init_value=0.01, end_value=0.02, tail="cosine"),
    schedules.wsd(0.2, 5, 12, 40, init_value=0.01, end_value=0.02, tail="sqrt"),
    schedules.cool_down(schedules.inverse_sqrt(0.2), decay_steps=12, total_steps=40),
    schedules.cool_down(
        schedules.warmup_constant(0.2, 5),
        decay_steps=12,
        total_steps=40,
        end_value=0.02,
        tail="cosine",
    ),
    schedules.power_cool(0.2, 5, 12, 40),
    schedules.power_cool(
        0.2,
        5,
        12,
        40,
        power=-0.7,
        transition_begin=9,
        init_value=0.01,
        end_value=0.02,
        tail="sqrt",
    ),
    schedules.ema_warmup(0.77),
    schedules.ema_power_law(6.94),
    schedules.join((schedules.linear(0.0, 0.2, 5), schedules.exponential(0.2, 1, 0.9)), (5,)),
    schedules.per_epoch(schedules.inverse_time(0.2, 1.0), 4),
    schedules.per_epoch(schedules.exponential(0.2, 1, 0.95), 4, first_epoch=1),
]

# Parts without length. A schedule over no steps stays where it is; a part of one is over.
EMPTY = [
    schedules.linear(0.1, 0.01, 0),
    schedules.polynomial(0.3, 0.05, 2.0, 0),
    schedules.exponential(0.2, 1, 0.0, end_value=0.1),
    schedules.exponential(0.2, 0, 0.5, end_value=0.3),
    schedules.exponential(0.2, 0, 0.5, staircase=True),
    schedules.inverse_time(0.2, 0.5, transition_steps=0),
    schedules.polynomial(0.3, 0.05, 0.0, 10),
    schedules.linear_half_life(0.5, 0.95, 0),
    schedules.piecewise_constant((0.3, 0.1, 0.2), (0, 0)),
    schedules.piecewise_constant((0.3,), ()),
    schedules.piecewise_linear((0.1, 0.3, 0.02), (0, 17)),
    schedules.piecewise_linear((0.1, 0.3, 0.02), (4, 4)),
    schedules.piecewise_linear((0.1,), ()),
    schedules.piecewise_cosine((0.1, 0.3, 0.02), (0, 0)),
    schedules.cosine(0.2, 0, end_value=0.05),
    schedules.cosine_restarts(0.2, 1),
    schedules.cosine_restarts(0.2, 1, end_value=0.01, value_factor=0.0),
    schedules.cosine_restarts(0.2, 3, end_value=0.01, warmup_steps=3),
    schedules.one_cycle(peak_value=0.2, total_steps=0),
    schedules.one_cycle(peak_value=0.2, total_steps=1),
    schedules.one_cycle(peak_value=0.2, total_steps=3, pct_start=0.0, pct_final=1.0),
    schedules.one_cycle(peak_value=0.2, total_steps=1, anneal="linear"),
    schedules.one_cycle(
        peak_value=0.2, total_steps=10, pct_start=0.0, pct_final=1.0, anneal="linear"
    ),
    schedules.warmup_constant(0.2, 0, init_value=0.1),
    schedules.warmup_cosine(0.2, 0, 10),
    schedules.warmup_cosine(0.2, 10, 10, init_value=0.01, end_value=0.02),
    schedules.warmup_cosine(0.2, 0, 0),
    schedules.warmup_linear(0.2, 0, 10),
    schedules.warmup_linear(0.2, 10, 5),
    schedules.wsd(0.2, 0, 0, 0),
    schedules.wsd(0.2, 0, 0, 10, tail="sqrt"),
    schedules.wsd(0.2, 5, 0, 5, tail="cosine"),
    schedules.wsd(0.2, 0, 10, 10, tail="sqrt"),
    schedules.cool_down(schedules.constant(0.1), decay_steps=0, total_steps=5),
    schedules.cool_down(
        schedules.linear(0.2, 0.1, 9), decay_steps=10, total_steps=6, tail="linear"
    ),
    schedules.power_cool(0.2, 0, 0, 0),
    schedules.power_cool(0.2, 0, 0, 10, tail="cosine"),
    schedules.power_cool(0.2, 6, 12, 15, transition_begin=2),
    schedules.from_points({0: 0.1, 4: 0.3}),
    schedules.from_points([(3, 0.1), (3, 0.2), (9, 0.3)]),
    schedules.from_points([(3, 0.1), (9, 0.3)], "cosine"),
    schedules.from_points([(3, 0.1), (9, 0.3), (9, 0.2)], "step"),
    schedules.join((schedules.constant(0.1), schedules.linear(0.2, 0.1, 0)), (0,)),
    schedules.join((schedules.constant(0.1),), ()),
    schedules.per_epoch(schedules.inverse_time(0.0, 0.0), 1),
]

# Every step of the cases, and some far after their end. Always as many, since another number of
# steps is another program.
STEPS = np.array([*range(61), 100, 1000, 10_000])
EDGES_OF_OPTAX = np.array([*range(55), 84, 85, 86, 98, 99, 100, 101, 102, 200])
TO_THE_LAST_STEP = np.where(STEPS == 100, 2**31 - 1, STEPS)


def by_schedule(cases):
    return pytest.mark.parametrize("schedule", cases, ids=lambda schedule: type(schedule).__name__)


each = by_schedule(CASES)
each_with_empty = by_schedule(CASES + EMPTY)


# The schedule is an argument: one compilation for all that are built alike.
@jax.jit
def values(schedule, steps):
    values.traces += 1
    return schedule(steps)


values.traces = 0


@jax.jit
def slopes(schedule, steps):
    """The derivatives at each step: those of a sum, by arguments that each step has of its own."""
    own = jax.tree.map(lambda x: jnp.broadcast_to(x, steps.shape), schedule)
    return jax.grad(lambda schedule: schedule(steps).sum())(own)


def oracle_of(schedule):
    """The oracle with the arguments of a schedule, a function of one step."""

    def plain(argument):
        if isinstance(argument, optfn.Schedule):
            return oracle_of(argument)
        return tuple(map(plain, argument)) if isinstance(argument, tuple) else argument

    arguments = {f.name: plain(getattr(schedule, f.name)) for f in dataclasses.fields(schedule)}
    return functools.partial(getattr(oracles, f"schedule_{type(schedule).__name__}"), **arguments)


def expected(schedule, steps=STEPS):
    return np.array([oracle_of(schedule)(step) for step in np.asarray(steps).tolist()])


def assert_equal_in_x64(found, schedule, steps=STEPS):
    """At 1e-12, or at a few roundings of the largest value where two large ones cancel."""
    wanted = expected(schedule, steps)
    np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-15 * abs(wanted).max())


def test_every_schedule_is_among_the_cases():
    classes = {
        name
        for name, value in vars(schedules).items()
        if isinstance(value, type) and value.__module__ == schedules.__name__ and name[0] != "_"
    }
    assert {type(schedule).__name__ for schedule in CASES} == classes


@each_with_empty
def test_equals_the_oracle(schedule, x64):
    assert_equal_in_x64(values(schedule, STEPS), schedule)


@pytest.fixture(scope="module")
def constants():
    """The values of schedules that are constants of a program: of one, to compile it once."""
    schedules = {id(schedule): schedule for schedule in CASES + EMPTY}
    return jax.jit(lambda steps: {i: jax.vmap(x)(steps) for i, x in schedules.items()})(STEPS)


@each_with_empty
def test_a_constant_of_the_program_equals_an_argument(schedule, constants):
    """Float32, where a compiler that divides by multiplying would show."""
    closed_over = constants[id(schedule)]
    one_by_one = jnp.stack([schedule(step) for step in STEPS[:60:20]])
    scale = abs(expected(schedule)).max()
    np.testing.assert_allclose(closed_over, values(schedule, STEPS), rtol=1e-6, atol=1e-6 * scale)
    np.testing.assert_allclose(closed_over[:60:20], one_by_one, rtol=1e-6, atol=1e-6 * scale)
    assert closed_over.dtype == one_by_one.dtype == jnp.float32


@pytest.mark.parametrize(
    "halving",
    [
        lambda steps: schedules.exponential(1.0, steps, 0.5, staircase=True),
        lambda steps: schedules.per_epoch(schedules.exponential(1.0, 1, 0.5), steps),
    ],
    ids=["staircase", "per_epoch"],
)
def test_stairs_fall_at_whole_multiples_of_any_length(halving):
    """Multiplied by the rounded reciprocal of 41, 41 is less than 1."""
    lengths, stairs = range(1, 200), np.arange(20)
    wanted = 0.5 ** np.repeat(stairs, 2)  # at the first and at the last step of each stair

    def steps(length):
        return np.stack([stairs * length, (stairs + 1) * length - 1], axis=1).ravel()

    wrong = [n for n in lengths if not np.allclose(values(halving(n), steps(n)), wanted, rtol=1e-5)]
    assert wrong == [], "as an argument"

    lengths = (3, 7, 10, 41, 47, 55, 61, 82, 83, 97, 109)
    constants = jax.jit(lambda: [jax.vmap(halving(n))(jnp.asarray(steps(n))) for n in lengths])()
    found = zip(lengths, constants, strict=True)
    assert [n for n, x in found if not np.allclose(x, wanted, rtol=1e-5)] == [], "as a constant"


def test_transitions_of_any_length_end_at_their_end():
    """In float32 under jit, 37 * (1 / 37) is more than 1, and what is left a negative number."""
    for n in range(1, 200):
        found = values(schedules.polynomial(1.0, 0.5, 1.7, n), np.arange(n, n + 5))
        assert (found == 0.5).all(), n


@pytest.mark.parametrize("t", [10**5, 10**6, 10**7, 10**8])
@pytest.mark.parametrize("gamma", [0.0, 6.94, 16.97])
def test_a_power_law_near_one_is_right_to_a_rounding(gamma, t):
    steps = np.arange(t - 1, t + 500)
    wanted = -np.expm1((gamma + 1) * np.log1p(-1 / (steps + 1.0)))
    found = 1 - np.float64(values(schedules.ema_power_law(gamma), steps))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2**-24)


# optax: every schedule of it, with its positional arguments.


RISING_AND_FALLING = [
    {
        "init_value": 0.01,
        "peak_value": 0.2,
        "warmup_steps": 3,
        "decay_steps": 11,
        "end_value": 0.02,
    },
    {"init_value": 0.02, "peak_value": 0.1, "warmup_steps": 0, "decay_steps": 20},
    {"init_value": 0.0, "peak_value": 0.3, "warmup_steps": 5, "decay_steps": 25, "end_value": 0.01},
]

# By each name of optax: calls by position.
IN_OPTAX = {
    "constant_schedule": [(0.3,)],
    "linear_schedule": [
        (0.1, 0.01, 37),
        (0.1, 0.01, 37, 5),
        (0.1, 0.4, 7, -3),
        (1.0, 0.0, 0),
        (1.0, 0.0, -2, 4),
    ],
    "polynomial_schedule": [
        (
            0.3,
            0.05,
            1.7,
            32,
        ),  # Of 37 steps optax makes NaN under jit: 1 - 37 * (1 / 37) is negative.
        (0.3, 0.05, 2, 32, 9),
        (0.3, 0.05, 0.5, 16, -9),
        (0.3, 0.05, 0, 16),
        (10.0, 20.0, 1, 0),
        (10.0, 20.0, 3, -1, 4),
    ],
    "exponential_decay": [
        (1.0, 1000, 0.96),
        (0.2, 11, 0.9),
        (0.2, 11, 0.9, 7),
        (0.2, 11, 0.9, -7),
        (0.2, 11, 0.9, 0, True),
        (0.2, 11, 0.9, 7, True),
        (0.2, 11, 0.9, 7, False, 0.15),
        (0.2, 11, 0.5, 7, True, 0.06),
        (0.2, 11, 1.5, 7, False, 1.1),
        (0.2, 11, 1.0, 0, False, 0.1),
        (0.1, 11, 0.5, 4, False, 0.3),  # The bound holds from the start.
        (1.0, 0, 0.5),
        (1.0, -1, 0.5, 0, False, 2.0),
        (1.0, 2, 0.0),
        (1.0, 2, 0.0, 3, True, 2.0),
    ],
    "cosine_decay_schedule": [
        (0.2, 37),
        (0.2, 37, 0.25),
        (0.2, 37, 0.25, 2.5),
        (0.2, 37, 1.5, 0.5),
    ],
    "warmup_constant_schedule": [(0.0, 0.2, 7), (0.1, 0.2, 1)],
    "warmup_cosine_decay_schedule": [
        (0.0, 0.2, 7, 47),
        (0.01, 0.2, 7, 47, 0.02),
        (0.01, 0.2, 7, 47, 0.02, 3.0),
        (0.01, 0.2, 0, 47, 0.3, 0.5),
        (0.1, 0.0, 7, 47),
    ],
    "warmup_exponential_decay_schedule": [
        (0.0, 0.2, 7, 5, 0.9),
        (0.0, 0.2, 0, 5, 0.9),
        (0.01, 0.2, 7, 5, 0.9, 4, True, 0.1),
        (0.01, 0.2, 7, 0, 0.9),
        (0.01, 0.2, 7, 5, 0.0),
    ],
    "cosine_onecycle_schedule": [
        (47, 0.2),
        (50, 0.2, 0.25, 10.0, 100.0),
        (50, 0.2, 0.0),
        (100, 0.1, 0.5),
    ],
    "linear_onecycle_schedule": [
        (47, 0.2),
        (50, 0.2, 0.25, 0.8, 10.0, 100.0),
        (100, 0.1, 0.5),
    ],
    "piecewise_constant_schedule": [(0.4, {5: 0.5, 23: 0.1}), (0.4, {}), (0.4, {0: 0.5})],
    "piecewise_interpolate_schedule": [
        ("linear", 0.1, {5: 4.0, 23: 0.1}),
        ("cosine", 0.1, {5: 4.0, 23: 0.1, 31: 2.0}),
        ("cosine", 0.1, {0: 4.0, 23: 0.1}),
        ("linear", 0.1, {}),
    ],
    "join_schedules": [
        ([optax.constant_schedule(0.1), optax.linear_schedule(0.2, 0.1, 9)], [5]),
        ([optax.constant_schedule(0.1)], []),
        (
            [optax.linear_schedule(0.0, 0.1, 5), *3 * [optax.cosine_decay_schedule(0.1, 9)]],
            [5, 9, 9],
        ),
    ],
    "sgdr_schedule": [(RISING_AND_FALLING,), (RISING_AND_FALLING[:1],)],
}

CALLS = [
    pytest.param(name, arguments, id=f"{name}-{i}")
    for name, calls in IN_OPTAX.items()
    for i, arguments in enumerate(calls)
]


def test_every_schedule_of_optax_is_called():
    makers = {
        name
        for name, value in vars(optax.schedules).items()
        if inspect.isfunction(value) and not name.startswith(("_", "inject_"))
    }
    assert makers == IN_OPTAX.keys() == optax_names.SCHEDULES.keys()
    for name, calls in IN_OPTAX.items():
        most = len(inspect.signature(getattr(optax, name)).parameters)
        assert max(map(len, calls)) == most, f"no call of {name} has all arguments"


def written_here(name, arguments):
    """What docs/optax_table.md says to write for that call of optax."""
    bound = inspect.signature(getattr(optax, name)).bind(*arguments)
    bound.apply_defaults()
    return eval(optax_names.SCHEDULES[name], {"optfn": optfn, "numpy": np, **bound.arguments})


def values_of_optax(peers):
    """Of all schedules in one program."""
    vmapped = [jax.vmap(lambda step, peer=peer: jnp.asarray(peer(step), float)) for peer in peers]
    return jax.jit(lambda steps: [values(steps) for values in vmapped])(EDGES_OF_OPTAX)


@pytest.fixture(scope="module")
def peers():
    """The values of each call of optax, by its name and the identity of its arguments."""
    calls = [(name, arguments) for name, calls in IN_OPTAX.items() for arguments in calls]
    found = values_of_optax(getattr(optax, name)(*arguments) for name, arguments in calls)
    return {(n, id(arguments)): x for (n, arguments), x in zip(calls, found, strict=True)}


def assert_equals_optax(schedule, wanted):
    """Around every edge, to a few roundings: each has about four, relative to its largest."""
    atol = 8 * 2.0**-24 * abs(wanted).max()
    np.testing.assert_allclose(values(schedule, EDGES_OF_OPTAX), wanted, rtol=3e-6, atol=atol)


@pytest.mark.parametrize(("name", "arguments"), CALLS)
def test_what_the_table_says_equals_optax(name, arguments, peers):
    assert_equals_optax(written_here(name, arguments), peers[name, id(arguments)])


# Where the name alone changes; of one that is no single schedule here, the one it is mistaken for.
RENAMED = {
    "constant_schedule": ["constant"],
    "linear_schedule": ["linear"],
    "polynomial_schedule": ["polynomial"],
    "exponential_decay": ["exponential"],
    "cosine_decay_schedule": ["cosine"],
    "warmup_constant_schedule": ["warmup_constant", "linear"],
    "warmup_cosine_decay_schedule": ["warmup_cosine", "warmup_linear"],
    "warmup_exponential_decay_schedule": ["exponential"],
    "cosine_onecycle_schedule": ["one_cycle"],
    "linear_onecycle_schedule": ["one_cycle"],
    "piecewise_constant_schedule": ["piecewise_constant"],
    "piecewise_interpolate_schedule": ["piecewise_linear", "piecewise_cosine"],
    "join_schedules": ["join"],
    "sgdr_schedule": ["cosine_restarts"],
}


@pytest.mark.parametrize(("name", "arguments"), CALLS)
def test_a_call_by_position_is_right_or_raises(name, arguments, peers):
    for here in RENAMED[name]:
        try:
            schedule = getattr(schedules, here)(*arguments)
        except (TypeError, ValueError) as error:
            if name == "warmup_exponential_decay_schedule":
                continue
            told = here != "warmup_linear"
            assert not told or optax_names.SCHEDULES[name] in str(error), error
        else:
            assert_equals_optax(schedule, peers[name, id(arguments)])


def test_what_is_right_by_position_is_not_refused():
    right = ("constant_schedule", "linear_schedule", "polynomial_schedule", "exponential_decay")
    for name in (*right, "join_schedules"):
        for arguments in IN_OPTAX[name]:
            getattr(schedules, RENAMED[name][0])(*arguments)
    schedules.cosine(*IN_OPTAX["cosine_decay_schedule"][0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: schedules.cosine(1.0, 10, alpha=0.1), "unexpected keyword argument 'alpha'"),
        (lambda: schedules.cosine(1.0, decay_steps=10), "'total_steps'"),
        (lambda: schedules.one_cycle(100, peak_value=0.1), "too many positional arguments"),
        (lambda: schedules.warmup_cosine(0.0, 0.1, 5, decay_steps=50), "'decay_steps'"),
        (lambda: schedules.exponential(0.2, 0.95), "'decay_rate'"),
        (lambda: schedules.exponential(0.2, 0.9, transition_steps=5), "multiple values"),
        (lambda: schedules.cosine_restarts(RISING_AND_FALLING), "'transition_steps'"),
        (lambda: schedules.piecewise_constant(0.1, {5: 0.5}), "found the dict {5: 0.5}"),
    ],
)
def test_a_call_in_the_words_of_optax_says_what_to_write(call, message):
    with pytest.raises(TypeError) as error:
        call()
    assert message in str(error.value)
    assert "optax's" in str(error.value)
    assert "optfn.schedules." in str(error.value)


def test_a_cosine_from_a_peak_of_zero_goes_to_its_end():
    """Where optax, whose end is a share of the peak, stays at zero."""
    theirs = optax.warmup_cosine_decay_schedule(0.2, 0.0, 50, 100, -3.0)
    assert theirs(np.asarray([50, 75, 100])).tolist() == [0, 0, 0]
    ours = schedules.warmup_cosine(0.0, 50, 100, init_value=0.2, end_value=-3.0)
    np.testing.assert_allclose(values(ours, np.asarray([50, 75, 100])), [0, -1.5, -3], atol=1e-6)


def test_cycles_of_sgdr_by_a_rule_are_cosine_restarts():
    cycles = [
        {"init_value": 0.01, "peak_value": 0.2 * 0.5**n, "warmup_steps": 3, "decay_steps": 9 * 2**n}
        for n in range(5)
    ]
    peer = optax.sgdr_schedule([{**cycle, "end_value": 0.01} for cycle in cycles])
    schedule = schedules.cosine_restarts(
        0.2, 9, end_value=0.01, steps_factor=2.0, value_factor=0.5, warmup_steps=3
    )
    (wanted,) = values_of_optax([peer])
    assert_equals_optax(schedule, wanted)


@pytest.mark.parametrize("anneal", ["cosine", "linear"])
def test_one_cycle_turns_at_optax_steps_for_every_length(anneal):
    """The turning points are products in float32 here and in Python's floats there."""
    one_cycle = functools.partial(schedules.one_cycle, peak_value=1.0, anneal=anneal)
    totals = range(1, 300)
    found = np.stack([values(one_cycle(total_steps=n), STEPS) for n in totals])
    wanted = np.stack([expected(one_cycle(total_steps=n)) for n in totals])
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-6)


# Every argument is a leaf.


COUNTS = {
    "transition_steps",
    "total_steps",
    "warmup_steps",
    "decay_steps",
    "boundaries",
    "transition_begin",
    "steps_per_epoch",
    "first_epoch",
}


def variations(schedule):
    """Schedules that differ from this one in one argument each, and all of them as one batch.

    Counts are integers in the batch.
    """
    paths, treedef = jax.tree.flatten_with_path(schedule)
    leaves = [leaf for _, leaf in paths]
    rows, dtypes = [leaves], []
    for i, (path, leaf) in enumerate(paths):
        is_count = bool({getattr(key, "name", None) for key in path} & COUNTS)
        dtypes.append(np.int32 if is_count else np.float64)
        others = (leaf + 1, leaf + 3) if is_count else (1.05 * leaf, 1.1 * leaf)
        rows += [[*leaves[:i], x, *leaves[i + 1 :]] for x in others]
    columns = zip(*rows, strict=True)
    batch = [np.asarray(column, dtype) for column, dtype in zip(columns, dtypes, strict=True)]
    return [treedef.unflatten(row) for row in rows], treedef.unflatten(batch)


@each
def test_vmap_over_the_arguments_equals_a_loop(schedule, x64):
    alone, batch = variations(schedule)
    for row, other in zip(jax.vmap(values, (0, None))(batch, STEPS), alone, strict=True):
        assert_equal_in_x64(row, other)


@each
def test_one_program_serves_every_value(schedule):
    values(schedule, STEPS)
    traces = values.traces
    for factor in (1, 1.05, 1.1):
        other = jax.tree.map(lambda x: factor * x, schedule)  # noqa: B023
        np.testing.assert_allclose(values(other, STEPS)[3], other(3), rtol=1e-6)
    assert values.traces == traces


@each
def test_derivatives_are_those_of_the_oracle(schedule, x64):
    """Between the steps, where no kink is; a count changes the value there too."""
    steps = np.arange(60) + 0.3
    h = 1e-6
    leaves, treedef = jax.tree.flatten(schedule)
    found = jax.tree.leaves(slopes(schedule, steps))
    for i, slope in enumerate(found):
        up, down = (
            expected(jax.tree.unflatten(treedef, [*leaves[:i], x, *leaves[i + 1 :]]), steps)
            for x in (leaves[i] + h, leaves[i] - h)
        )
        # Truncation is h^2 times a third derivative, rounding 2^-53 / h.
        np.testing.assert_allclose(slope, (up - down) / (2 * h), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16, np.uint8])
def test_arguments_of_any_dtype_are_computed_with_in_float32(dtype):
    for schedule in (
        schedules.warmup_linear(2, 20, 10, init_value=1, end_value=3),
        schedules.one_cycle(
            peak_value=2,
            total_steps=200,
            pct_start=1,
            pct_final=1,
            div_factor=8,
            final_div_factor=2,
        ),
        schedules.wsd(2, 30, 20, 40, init_value=1, end_value=3),
    ):
        narrow = jax.tree.map(lambda x: jnp.asarray(x, dtype), schedule)
        np.testing.assert_array_equal(values(narrow, STEPS), values(schedule, STEPS))
        assert jax.eval_shape(narrow, 3).dtype == jnp.float32


# Where the formula says 0 / 0, any number will do.
UNDEFINED = [
    schedules.cosine_restarts(0.2, 0),
    schedules.per_epoch(schedules.exponential(0.2, 1, 0.95), 0),
    schedules.polynomial(0.3, 0.05, -1.0, 10),
    schedules.one_cycle(peak_value=0.2, total_steps=0, anneal="linear"),
]


@by_schedule(CASES + EMPTY + UNDEFINED)
def test_values_and_derivatives_are_finite_everywhere(schedule):
    steps = TO_THE_LAST_STEP
    paths, _ = jax.tree.flatten_with_path(slopes(schedule, steps))
    numbers = {"value": values(schedule, steps)}
    numbers |= {f"derivative by {jax.tree_util.keystr(path)}": slope for path, slope in paths}
    others = {name: steps[~np.isfinite(x)].tolist() for name, x in numbers.items()}
    assert {name: steps for name, steps in others.items() if steps} == {}


def test_a_part_that_is_over_does_not_spoil_derivatives():
    """Long after its end, a growing part of a join has overflowed."""
    find_rate = schedules.exponential(1e-5, 1, 10.0)
    schedule = schedules.join((find_rate, schedules.constant(0.1)), (5,))
    slope = jax.jit(jax.grad(lambda schedule: schedule(1000)))(schedule)
    np.testing.assert_array_equal(jax.tree.leaves(slope), [0, 0, 0, 0, 1, 0])


# Text.


@each_with_empty
def test_repr_is_the_recipe(schedule):
    for original in (
        schedule,
        optfn.as_arrays(schedule),
        jax.tree.map(lambda x: np.array([x, x / 3]), schedule),
    ):
        names = {"schedules": schedules, "jnp": jnp, "np": np}
        copy = eval(repr(original), names)
        assert jax.tree.structure(copy) == jax.tree.structure(original)
        for a, b in zip(jax.tree.leaves(copy), jax.tree.leaves(original), strict=True):
            assert type(a) is type(b)
            np.testing.assert_array_equal(a, b, strict=True)


# Any function of the step.


class Learned(eqx.Module):
    """A rate that is a model of its own."""

    log_rate: jax.Array

    def __call__(self, step):
        return jnp.exp(self.log_rate) / (1 + step)


def hyperbola(rate, step):
    return rate / (1 + step)


FUNCTIONS = {
    "optax": (optax.linear_schedule(0.1, 0.0, 10), lambda t: 0.1 * (1 - t / 10)),
    "lambda": (lambda step: 0.1 / (1 + step), lambda t: 0.1 / (1 + t)),
    "table": (lambda step: jnp.asarray([0.3, 0.2, 0.1])[step], lambda t: 0.3 - 0.1 * t),
    "number": (lambda step: 0.1, lambda t: 0.1),
    "partial": (functools.partial(hyperbola, 0.1), lambda t: 0.1 / (1 + t)),
    "Partial": (jax.tree_util.Partial(hyperbola, jnp.asarray(0.1)), lambda t: 0.1 / (1 + t)),
    "module": (Learned(jnp.log(0.1)), lambda t: 0.1 / (1 + t)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_any_function_of_the_step_is_a_learning_rate(name):
    function, rate = FUNCTIONS[name]
    tx = optfn.sgd(function)
    state = tx.init(jnp.zeros(3))
    for t in range(3):
        updates, state = tx.update(jnp.ones(3), state)
        np.testing.assert_allclose(updates, np.full(3, -rate(t)), rtol=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda rate: jax.tree_util.Partial(hyperbola, jnp.asarray(rate)),
        lambda rate: Learned(jnp.log(rate)),
    ],
    ids=["Partial", "module"],
)
def test_arrays_in_a_callable_pytree_are_leaves(make):
    traces = 0

    @jax.jit
    def update(tx):
        nonlocal traces
        traces += 1
        return tx.update(jnp.ones(()), tx.init(jnp.zeros(())))[0]

    for rate in (0.1, 0.2, 0.3):
        tx = optfn.sgd(make(rate))
        assert len(jax.tree.leaves(tx)) == 1
        np.testing.assert_allclose(update(tx), -rate, rtol=1e-6)
    assert traces == 1


@pytest.mark.parametrize(
    "schedule",
    [
        schedules.join((schedules.constant(0.4), lambda step: jnp.asarray([0.3, 0.2])[step]), (1,)),
        schedules.per_epoch(lambda epoch: jnp.asarray([0.4, 0.3, 0.2])[epoch], 1),
    ],
    ids=["join", "per_epoch"],
)
def test_a_function_inside_a_schedule_gets_a_whole_step(schedule):
    """It can look the rate up in a table there too."""
    np.testing.assert_allclose([schedule(t) for t in range(3)], [0.4, 0.3, 0.2], rtol=1e-6)


# Points and tails.


def test_points_are_passed_exactly():
    points = {0: 0.0, 7: 3e-4, 30: 1e-4, 41: 0.0}
    steps, wanted = map(np.asarray, zip(*points.items(), strict=True))
    for kind in ("linear", "cosine", "step"):
        for given in (points, list(points.items()), np.asarray(list(points.items()))):
            found = values(schedules.from_points(given, kind), np.append(steps, 10_000))
            np.testing.assert_array_equal(found, np.float32([*wanted, wanted[-1]]))
    between = values(schedules.from_points(points), np.arange(50))
    np.testing.assert_allclose(between, np.interp(np.arange(50), steps, wanted), atol=1e-10)
    held = values(schedules.from_points(points, "step"), np.arange(50))
    np.testing.assert_allclose(held, np.repeat(wanted, [7, 23, 11, 9]), rtol=1e-6)


def test_points_are_leaves():
    schedule = schedules.from_points({5: 0.1, 10: 0.2}, "cosine")
    assert jax.tree.leaves(schedule) == [0.1, 0.1, 0.2, 5, 10]

    def through(value):
        return schedules.from_points([(0, 0.0), (jnp.asarray(10), value)])(5)

    assert jax.jit(jax.grad(through))(0.2) == 0.5


def test_a_cool_down_of_a_constant_after_a_warm_up_is_wsd():
    for tail in schedules.TAILS:
        wsd = schedules.wsd(0.2, 5, 12, 40, init_value=0.01, end_value=0.02, tail=tail)
        before = schedules.warmup_constant(0.2, 5, init_value=0.01)
        cooled = schedules.cool_down(
            before, decay_steps=12, total_steps=40, end_value=0.02, tail=tail
        )
        np.testing.assert_array_equal(values(cooled, STEPS), values(wsd, STEPS))


def test_a_power_law_does_not_know_the_length_of_the_run():
    short, long = (schedules.power_cool(0.2, 5, 10, total) for total in (40, 4000))
    np.testing.assert_array_equal(values(short, STEPS)[:31], values(long, STEPS)[:31])
    ratio = long(1000) / long(100)
    np.testing.assert_allclose(ratio, 10**-0.51, rtol=1e-5)
    assert short(40) == long(4000) == 0


# The lecture.


def by_epoch(schedule, epochs):
    """The rates in the middle of epochs of 10 steps."""
    return np.asarray([schedule(10 * epoch + 5) for epoch in range(epochs)])


def test_the_lecture_s_decay_by_epoch():
    """Rates 0.1, 0.067, 0.05 and 0.04 in epochs 1 to 4, from a0 = 0.2 with decay rate 1."""
    rates = by_epoch(
        schedules.per_epoch(schedules.inverse_time(0.2, decay_rate=1), 10, first_epoch=1), 4
    )
    assert rates.round(3).tolist() == np.asarray([0.1, 0.067, 0.05, 0.04], np.float32).tolist()


def test_the_lecture_s_other_decays():
    a0, k, epoch = 0.2, 0.5, np.arange(1, 6)

    exponential = schedules.per_epoch(schedules.exponential(a0, 1, 0.95), 10, first_epoch=1)
    np.testing.assert_allclose(by_epoch(exponential, 5), 0.95**epoch * a0, rtol=1e-6)

    root_of_epoch = schedules.per_epoch(schedules.inverse_sqrt(a0, k), 10)
    np.testing.assert_allclose(by_epoch(root_of_epoch, 5), k / np.sqrt(epoch) * a0, rtol=1e-6)

    t = np.arange(1, 60)
    root_of_step = values(schedules.inverse_sqrt(a0, k), t - 1)
    np.testing.assert_allclose(root_of_step, k / np.sqrt(t) * a0, rtol=1e-6)

    staircase = values(schedules.exponential(a0, 20, 0.5, staircase=True), np.arange(60))
    np.testing.assert_allclose(staircase, np.repeat([a0, a0 / 2, a0 / 4], 20), rtol=1e-6)


def test_the_lecture_s_manual_decay_is_a_new_leaf():
    schedule = schedules.constant(0.2)
    assert jax.tree.leaves(optfn.replace(schedule, value=0.05)) == [0.05]


# What holds for all arguments.


everywhere = hypothesis.settings(
    deadline=None, derandomize=True, database=None, max_examples=100, print_blob=False
)
rates = st.floats(1e-6, 10.0)
shares = st.floats(0.0, 1.0)
counts = st.integers(0, 80)
flags = st.booleans()


@st.composite
def decays(draw):
    """A schedule that falls, and the limits between which it stays."""
    low, high = sorted((draw(rates), draw(rates)))
    steps, share, flag = draw(counts), draw(shares), draw(flags)
    start = draw(counts)
    ends = tuple(sorted((steps, start)))
    fall = draw(
        st.sampled_from(
            [
                schedules.constant(high),
                schedules.linear(high, low, steps, start),
                schedules.polynomial(high, low, draw(st.floats(0.25, 4.0)), steps),
                schedules.cosine(high, steps, end_value=low, exponent=0.5 + share),
                schedules.warmup_cosine(high, 0, steps, end_value=low),
                schedules.warmup_linear(high, 0, steps, end_value=low),
                schedules.piecewise_constant((high, (low + high) / 2, low), ends),
                schedules.piecewise_linear((high, (low + high) / 2, low), ends),
                schedules.piecewise_cosine((high, (low + high) / 2, low), ends),
                *(
                    schedules.wsd(high, 0, steps, steps + start, end_value=low, tail=tail)
                    for tail in ("linear", "cosine", "sqrt")
                ),
                schedules.cool_down(
                    schedules.constant(high), decay_steps=steps, total_steps=start, end_value=low
                ),
                schedules.from_points([(ends[0], high), (ends[1], low)], "cosine"),
            ]
        )
    )
    fade = draw(
        st.sampled_from(
            [
                schedules.exponential(high, 1 + steps, share, start, flag),
                schedules.inverse_time(high, share, transition_steps=1 + steps, staircase=flag),
                schedules.inverse_sqrt(high),
                schedules.power_cool(high, 0, steps, steps + start, power=-2 * share),
            ]
        )
    )
    return draw(st.sampled_from([(fall, low, high), (fade, 0.0, high)]))


@everywhere
@hypothesis.given(decays())
def test_a_decay_never_rises_and_keeps_its_limits(drawn):
    """In float32, up to its rounding."""
    schedule, low, high = drawn
    found = np.asarray(values(schedule, STEPS), float)
    slack = 4 * 2.0**-24 * high
    assert np.diff(found).max() <= slack
    assert low - slack <= found.min() <= found.max() <= high + slack


@st.composite
def compositions(draw):
    """A schedule of several parts, which may be empty or out of order."""
    peak, init, end, share = draw(rates), draw(rates), draw(rates), draw(shares)
    warmup, decay, total = draw(counts), draw(counts), draw(counts)
    bounds = tuple(sorted((warmup, decay, total)))
    return draw(
        st.sampled_from(
            [
                schedules.warmup_cosine(peak, warmup, total, init_value=init, end_value=end),
                schedules.warmup_linear(peak, warmup, total, init_value=init, end_value=end),
                *(
                    schedules.wsd(
                        peak, warmup, decay, total, init_value=init, end_value=end, tail=tail
                    )
                    for tail in ("linear", "cosine", "sqrt")
                ),
                schedules.power_cool(
                    peak,
                    warmup,
                    decay,
                    total,
                    power=-2 * share,
                    transition_begin=decay,
                    init_value=init,
                    end_value=end,
                ),
                schedules.cool_down(
                    schedules.inverse_time(peak, share),
                    decay_steps=decay,
                    total_steps=total,
                    end_value=end,
                ),
                schedules.one_cycle(peak_value=peak, total_steps=total, pct_start=share),
                schedules.piecewise_constant((peak, init, end, share), bounds),
                schedules.join(
                    (
                        schedules.linear(init, peak, warmup),
                        schedules.cosine(peak, decay, end_value=end),
                        schedules.exponential(end, 1 + decay, share),
                    ),
                    (warmup, warmup + decay),
                ),
                schedules.per_epoch(
                    schedules.cosine(peak, decay, end_value=end), 1 + total, warmup
                ),
            ]
        )
    )


@everywhere
@hypothesis.given(compositions())
def test_compositions_equal_their_oracles(schedule):
    with jax.enable_x64(True):
        assert_equal_in_x64(values(schedule, STEPS), schedule)


@everywhere
@hypothesis.given(
    period=st.integers(1, 150),
    factor=st.one_of(st.just(1.0), st.floats(1.001, 4.0)),
    value_factor=st.floats(0.0, 1.5),
    end=shares,
    warmup=st.integers(0, 20),
)
def test_cosine_restarts_where_its_oracle_does(period, factor, value_factor, end, warmup):
    """At every step. A start that falls on half a step may be rounded either way."""
    start, length = 0.0, float(period)
    while start < 300:
        hypothesis.assume(abs(start % 1 - 0.5) > 1e-9)
        start, length = start + length, length * factor
    schedule = schedules.cosine_restarts(
        1.0,
        period,
        end_value=end,
        steps_factor=factor,
        value_factor=value_factor,
        warmup_steps=warmup,
    )
    with jax.enable_x64(True):
        steps = np.arange(300)
        found, wanted = values(schedule, steps), expected(schedule, steps)
        np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-12)


# Bad arguments.


BAD = [
    (
        ValueError,
        "cosine(init_value=...) is NaN",
        lambda: schedules.cosine(float("nan"), 10),
    ),
    (
        ValueError,
        "linear(end_value=...) holds a NaN",
        lambda: schedules.linear(0.1, np.array([0.1, np.nan]), 10),
    ),
    (
        ValueError,
        "piecewise_constant(values=...), element 1, is NaN",
        lambda: schedules.piecewise_constant((0.1, float("nan")), (5,)),
    ),
    (
        TypeError,
        "constant(value=...) must be a number or an array, found str: '0.1'",
        lambda: schedules.constant("0.1"),
    ),
    (
        TypeError,
        "constant(value=...) must be a number or an array, found NoneType",
        lambda: schedules.constant(None),
    ),
    (
        TypeError,
        "constant(value=...) is a number, found the bool True",
        lambda: schedules.constant(True),
    ),
    (
        TypeError,
        "constant(value=...) must be a real number, found an array of complex128",
        lambda: schedules.constant(1j * np.ones(2)),
    ),
    (
        TypeError,
        "linear(init_value=...) must be a number or an array, found constant",
        lambda: schedules.linear(schedules.constant(0.1), 0.0, 10),
    ),
    (
        ValueError,
        "piecewise_constant(...): 2 boundaries need 3 values, found 2",
        lambda: schedules.piecewise_constant((0.1, 0.2), (5, 10)),
    ),
    (
        ValueError,
        "piecewise_linear(...): 1 boundaries need 2 values, found 3",
        lambda: schedules.piecewise_linear((0.1, 0.2, 0.3), (5,)),
    ),
    (
        TypeError,
        "piecewise_linear(boundaries=...) must be a sequence of numbers, found float: 5.0",
        lambda: schedules.piecewise_linear((0.1, 0.2), 5),
    ),
    (
        TypeError,
        "piecewise_constant(values=...) must be a number or an array, found dict",
        lambda: schedules.piecewise_constant({5: 0.1}, (5,)),
    ),
    (
        ValueError,
        "join(...): 1 boundaries need 2 schedules, found 1",
        lambda: schedules.join((schedules.constant(0.1),), (5,)),
    ),
    (
        TypeError,
        "element 1, must be a schedule, found float: 0.2; use schedules.constant(0.2)",
        lambda: schedules.join((schedules.constant(0.1), 0.2), (5,)),
    ),
    (
        TypeError,
        "per_epoch(schedule=...) must be a schedule, found float: 0.1",
        lambda: schedules.per_epoch(0.1, 10),
    ),
    (
        TypeError,
        "custom(function=...) must be callable, found 0.1",
        lambda: schedules.custom(0.1),
    ),
    (
        ValueError,
        "wsd(tail=...) must be one of ('linear', 'cosine', 'sqrt'), found str: 'square'",
        lambda: schedules.wsd(0.1, 1, 2, 3, tail="square"),
    ),
    (
        ValueError,
        "power_cool(power=...) must be from -inf to 0, found 0.51.",
        lambda: schedules.power_cool(0.1, 1, 2, 9, power=0.51),
    ),
    (
        ValueError,
        "from_points(interpolate=...) must be 'linear', 'cosine' or 'step', found 'cubic'.",
        lambda: schedules.from_points({0: 0.1}, "cubic"),
    ),
    (
        ValueError,
        "from_points(points=...): steps must ascend from 0, found [5.0, 3.0].",
        lambda: schedules.from_points([(5, 0.1), (3, 0.2)]),
    ),
    (
        ValueError,
        "from_points(points=...): steps must ascend from 0, found [5.0, 3.0].",
        lambda: schedules.from_points(jnp.asarray([[5, 0.1], [3, 0.2]])),
    ),
    (
        ValueError,
        "from_points(points=...) must be pairs (step, value), as in {0: 0.1, 100: 0.01}, found {}.",
        lambda: schedules.from_points({}),
    ),
    (
        TypeError,
        "from_points(points=...) must be pairs (step, value)",
        lambda: schedules.from_points([0.1, 0.2]),
    ),
    (
        TypeError,
        "piecewise_linear(values=...), element 0, must be a number or an array, found str",
        lambda: schedules.from_points({0: "a"}),
    ),
    (
        ValueError,
        "one_cycle(anneal=...) must be one of ('cosine', 'linear'), found str: 'cos'",
        lambda: schedules.one_cycle(peak_value=0.1, total_steps=10, anneal="cos"),
    ),
    (
        TypeError,
        "exponential(staircase=...) is a switch that changes the program",
        lambda: schedules.exponential(0.1, 1, 0.5, staircase=schedules.constant(1.0)),
    ),
    (
        TypeError,
        "it must be True or False, found int: 1",
        lambda: schedules.inverse_time(0.1, 0.5, staircase=1),
    ),
    (
        ValueError,
        "wsd(tail=...) must be one of",
        lambda: schedules.wsd(0.1, 1, 2, 3, tail=schedules.cosine(0.1, 10)),
    ),
    (
        TypeError,
        "sgd(learning_rate=...) must be a number",
        lambda: optfn.sgd(optfn.adam(0.1)),
    ),
]


@pytest.mark.parametrize(
    ("error", "message", "build"), BAD, ids=[message.split("(")[0] for _, message, _ in BAD]
)
def test_bad_arguments_are_named(error, message, build):
    with pytest.raises(error, match=re.escape(message)):
        build()
