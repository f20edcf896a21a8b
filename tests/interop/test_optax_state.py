"""A run that optax began goes on here as it would have there, and back."""

import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optfn
from optfn import schedules
from optfn.interop.optax_stages import COUNTS, FIRST

sys.path.append(str(Path(__file__).parents[1] / "optimizers"))
from algorithms import CASES, OPTAX, RATE, assert_within, in_optax

STEPS = 10
# optax's path is another one; tests/optimizers/test_optax.py says how.
OTHER_THERE = {"rprop", "adan", "lbfgs"}
SHARED = [c for c in CASES if c.algorithm in OPTAX or in_optax(c.algorithm)]

PARAMS = {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}
DATA = jnp.asarray(np.random.default_rng(0).normal(size=(6, 3)), jnp.float32)
MASK = {"w": True, "b": False}
LABELS = {"w": "x", "b": "y"}
HERE, THERE = schedules.linear(0.1, 0.01, 15), optax.linear_schedule(0.1, 0.01, 15)


def loss(params):
    error = DATA @ params["w"] + params["b"][None] - jnp.sin(DATA[:, :2])
    return jnp.mean(error**2) + 0.1 * jnp.sum(params["w"] ** 4)


def not_every_third(step):
    return step % 3 != 2


def groups(library, rate):
    return library.partition({"x": library.adam(rate), "y": library.sgd(0.1, 0.9)}, LABELS)


WRAPPED = {
    "chain and mask": (
        optfn.chain(optfn.clip_by_global_norm(1.0), optfn.adamw(HERE, mask=MASK)),
        optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(THERE, mask=MASK)),
    ),
    "masked": (
        optfn.chain(optfn.masked(optfn.trace(0.9), MASK), optfn.sgd(0.1)),
        optax.chain(optax.masked(optax.trace(0.9), MASK), optax.sgd(0.1)),
    ),
    "inject_hyperparams": (optfn.adam(HERE), optax.inject_hyperparams(optax.adam)(THERE)),
    "MultiSteps": (
        optfn.accumulate(optfn.adam(HERE), 3),
        optax.MultiSteps(optax.adam(THERE), 3).gradient_transformation(),
    ),
    "MultiSteps with sums": (
        optfn.accumulate(optfn.adam(HERE), 3, use_grad_mean=False),
        optax.MultiSteps(optax.adam(THERE), 3, use_grad_mean=False).gradient_transformation(),
    ),
    "partition": (groups(optfn, HERE), groups(optax, THERE)),
    "apply_if_finite": (
        optfn.apply_if_finite(optfn.adam(HERE), 5),
        optax.apply_if_finite(optax.adam(THERE), 5),
    ),
    "all around another": (
        optfn.skip_nonfinite(optfn.accumulate(groups(optfn, HERE), 2)),
        optax.apply_if_finite(
            optax.MultiSteps(groups(optax, THERE), 2).gradient_transformation(), 5
        ),
    ),
    "ema": (
        optfn.chain(optfn.sgd(0.1), optfn.ema(0.9)),
        optax.chain(optax.sgd(0.1), optax.ema(0.9)),
    ),
    "schedule_free": (
        optfn.schedule_free(optfn.adam(0.1, b1=0.0), 0.1),
        optax.contrib.schedule_free(optax.adam(0.1, b1=0.0), 0.1),
    ),
    "mechanize": (optfn.mechanize(optfn.adam(0.1)), optax.contrib.mechanize(optax.adam(0.1))),
    "sam": (
        optfn.sam(optfn.adam(0.1), optfn.chain(optfn.normalize(), optfn.sgd(0.01)), 3),
        optax.contrib.sam(
            optax.adam(0.1),
            optax.chain(optax.contrib.normalize(), optax.sgd(0.01)),
            3,
            reset_state=False,
        ),
    ),
    "reduce_on_plateau": (
        optfn.chain(optfn.sgd(0.1), optfn.reduce_on_plateau(0.5, 2)),
        optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau(0.5, 2)),
    ),
    "conditionally_transform": (
        optfn.chain(optfn.conditionally_transform(optfn.ema(0.9), not_every_third), optfn.sgd(0.1)),
        optax.chain(optax.conditionally_transform(optax.ema(0.9), not_every_third), optax.sgd(0.1)),
    ),
    "conditionally_mask": (
        optfn.conditionally_mask(optfn.adam(HERE), not_every_third),
        optax.conditionally_mask(optax.adam(THERE), not_every_third),
    ),
    "lbfgs": (
        optfn.lbfgs(0.5, memory_size=4, linesearch=None),
        optax.lbfgs(0.5, memory_size=4, linesearch=None),
    ),
    "zoom": (
        optfn.chain(optfn.sgd(1.0), optfn.scale_by_zoom_linesearch(9)),
        optax.chain(optax.sgd(1.0), optax.scale_by_zoom_linesearch(9)),
    ),
    "backtracking": (
        optfn.chain(optfn.sgd(1.0), optfn.scale_by_backtracking_linesearch(5, store_grad=True)),
        optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(5, store_grad=True)),
    ),
    "muon": (
        optfn.muon(0.05, eps=1e-8, debias=True, rest=optfn.adam(0.1, nesterov=True)),
        optax.contrib.muon(0.05, adam_learning_rate=0.1),
    ),
    # At the next one the signs of its basis would be any.
    "galore before its second basis": (
        optfn.galore(0.1, rank=1, update_proj_gap=99),
        optax.contrib.galore(0.1, rank=1, update_proj_gap=99),
    ),
    "factored": (
        optfn.adafactor(0.1, min_dim_size_to_factor=2, momentum=0.9),
        optax.adafactor(0.1, min_dim_size_to_factor=2, momentum=0.9),
    ),
    "low precision here": (
        optfn.store(optfn.adam(0.1), optfn.storage.split(), leaves=True),
        optax.adam(0.1),
    ),
}
QUICK = ("chain and mask", "schedule_free")


def form(tree):
    leaves, treedef = jax.tree.flatten(tree)
    return treedef, [(x.shape, x.dtype) for x in leaves]


def both_ways(here, there, run, params):
    """The updates after the move and those without it, each way."""
    for first, second, move in (
        (there, here, lambda s, p: optfn.from_optax_state(here, s, p)),
        (here, there, lambda s, p: optfn.to_optax_state(here, s, there, p)),
    ):
        (p, state), _ = run(first, params, first.init(params), 0)
        _, wanted = run(first, p, state, 1)
        moved = move(state, p)
        assert form(moved) == form(second.init(params))
        _, found = run(second, p, moved, 1)
        yield found, wanted


@partial(jax.jit, static_argnums=(0, 3))
def train(tx, params, state, half):
    needs_more = not isinstance(tx, optfn.Transform) and "sam" in tx.update.__qualname__

    def step(carry, _):
        params, state = carry
        value, grad = jax.value_and_grad(loss)(params)
        extra = {} if needs_more else {"value": value, "grad": grad, "value_fn": loss}
        update = tx.update if needs_more else optax.with_extra_args_support(tx).update
        updates, state = update(grad, state, params, **extra)
        return (optax.apply_updates(params, updates), state), updates

    return jax.lax.scan(step, (params, state), None, STEPS)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] if n not in QUICK else []) for n in WRAPPED],
)
def test_it_goes_on_as_it_was(name):
    here, there = WRAPPED[name]
    # What rounding does to a search, to a stored slot, to a triangle and to a polynomial.
    slack = {"zoom": 10, "low precision here": 50, "lbfgs": 5, "muon": 5}.get(name, 1)
    for found, wanted in both_ways(here, there, lambda *x: train(*x[:3], 0), PARAMS):
        jax.tree.map(
            partial(np.testing.assert_allclose, rtol=2e-5 * slack, atol=1e-6 * slack), found, wanted
        )


def of_case(case):
    """The params, and what the updates take, in single precision."""
    params, grads = case.problem(1e3)
    given = {"grads": grads, "extra": case.extra_args}

    def single(path, x):
        left_out = case.optax_real and "complex" in jax.tree_util.keystr(path)
        dtype = np.complex64 if np.iscomplexobj(x) else np.float32
        return None if left_out else jnp.asarray(x, dtype)

    given = jax.tree.map(lambda x: x[: 2 * STEPS], given)
    return [jax.tree_util.tree_map_with_path(single, x) for x in (params, given)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [c for c in SHARED if c.algorithm not in (*OTHER_THERE, "noisy_sgd")], ids=repr
)
def test_every_shared_optimizer_goes_on_as_it_was(case):
    params, given = of_case(case)

    @partial(jax.jit, static_argnums=0)
    def run(tx, params, state, half):
        part = jax.tree.map(lambda x: x.reshape(2, STEPS, *x.shape[1:])[half], given)

        def step(carry, now):
            params, state = carry
            updates, state = tx.update(now["grads"], state, params, **now["extra"])
            return (optfn.apply_updates(params, updates), state), updates

        return jax.lax.scan(step, (params, state), part)

    for found, wanted in both_ways(case.here(), case.there(), run, params):
        for name, updates in wanted.items():
            if updates is None:
                continue
            g = np.maximum.accumulate(abs(np.asarray(given["grads"][name])), axis=0)[STEPS:]
            bound = 2e-5 * abs(np.asarray(updates)) + 1e-5 * RATE * (g if case.linear else 1)
            if case.options.get("centered"):
                bound += 1e-3 * RATE
            if case.differences:
                bound += 2.0**-20 * np.maximum(1, g if case.linear else 1)
            assert_within(2 * case.optax_slack * bound, found[name], updates, name)


def filled(state, rng, key=None):
    """A state after seven updates, of numbers that are all different."""
    if hasattr(state, "_fields"):
        return state._replace(**{k: filled(getattr(state, k), rng, k) for k in state._fields})
    if isinstance(state, dict):
        return {k: filled(x, rng, key) for k, x in state.items()}
    if isinstance(state, tuple | list):
        return type(state)(filled(x, rng, key) for x in state)
    if key in COUNTS:
        return jnp.asarray(7 + FIRST.get(key, 0), jnp.int32)
    if state.dtype == bool:
        return key == "last_finite"
    if state.shape == (1,) or key in HYPERPARAMETERS:  # or nothing in the place of an array
        return state
    whole = np.issubdtype(state.dtype, np.integer)
    drawn = rng.integers(1, 3, state.shape) if whole else rng.uniform(0.1, 1, state.shape)
    return jnp.asarray(drawn, state.dtype)


HYPERPARAMETERS = ("hyperparams", "ns_coeffs")
# Of these one number follows from another, or a search tells how it went.
OF_A_KIND = ("lbfgs", "noisy_sgd", "zoom", "backtracking", "sam", "galore before its second basis")
PLACES = {repr(c): (c.here, c.there) for c in SHARED if "mask" not in c.options}
PLACES |= {name: (lambda x=x: x[0], lambda x=x: x[1]) for name, x in WRAPPED.items()}


@pytest.mark.parametrize(
    "name",
    [
        # Of an algorithm the default now, and all options among the slow tests.
        pytest.param(n, marks=[] if n in WRAPPED or " " not in n else [pytest.mark.slow])
        for n in PLACES
        if not n.startswith(OF_A_KIND)
    ],
)
def test_every_number_of_the_state_has_a_place(name):
    here, there = (make() for make in PLACES[name])
    state = filled(there.init(PARAMS), np.random.default_rng(0))
    moved = optfn.from_optax_state(here, state, PARAMS)
    back = optfn.to_optax_state(here, moved, there, PARAMS)
    assert jax.tree.structure(back) == jax.tree.structure(state)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4), back, state)


ADAM = optax.adam(0.1)


@pytest.mark.parametrize(
    ("here", "there", "message"),
    [
        (optfn.sgd(0.1), ADAM, r"state\[0\], a ScaleByAdamState, has no place in the optimizer"),
        (optfn.adam(0.1), optax.sgd(0.1), r"has nothing for scale_by_adam\."),
        (
            optfn.adam(0.1),
            optax.lion(0.1),
            r"ScaleByLionState of scale_by_lion, not of",
        ),
        (optfn.adabelief(0.1), ADAM, r"ScaleByAdamState of .*, not of scale_by_belief"),
        (optfn.signum(0.1), ADAM, r"state\[0\]\.nu has no place in ema"),
        (optfn.amsgrad(0.1), ADAM, r"not of scale_by_amsgrad"),
        (groups(optfn, 0.1), ADAM, "partition has groups, but optax's .* is a ScaleByAdamState"),
        (
            optfn.partition({"z": optfn.adam(0.1), "y": optfn.adam(0.1)}, {"w": "z", "b": "y"}),
            groups(optax, 0.1),
            r"a group 'z', but .*inner_states has only \['x', 'y'\]",
        ),
        (optfn.noisy_sgd(0.1), optax.noisy_sgd(0.1, key=1), r"rng_key has no place"),
        (
            optfn.accumulate(optfn.adam(0.1), 2),
            ADAM,
            "a ScaleByAdamState, has no inner state for accumulate",
        ),
        (optfn.lookahead(optfn.adam(0.1), 2, 0.5), ADAM, "no inner state for lookahead"),
        (optfn.lbfgs(memory_size=3), optax.lbfgs(memory_size=4), "remembers"),
    ],
    ids=lambda x: repr(x)[:40],
)
def test_what_has_no_place_is_named(here, there, message):
    with pytest.raises(ValueError, match=message):
        optfn.from_optax_state(here, there.init(PARAMS), PARAMS)
    with pytest.raises(ValueError):
        optfn.to_optax_state(here, here.init(PARAMS), there, PARAMS)


def test_other_params_and_counts_are_named():
    other = ADAM.init({"w": jnp.ones((4, 2)), "b": jnp.ones(2)})
    with pytest.raises(ValueError, match=r"state\[0\]\.mu has the shape \(4, 2\), where \(3, 2\)"):
        optfn.from_optax_state(optfn.adam(0.1), other, PARAMS)
    with pytest.raises(ValueError, match=r"state\[0\]\.mu has 1 arrays, where 2 are wanted"):
        optfn.from_optax_state(optfn.adam(0.1), ADAM.init({"w": jnp.ones((3, 2))}), PARAMS)
    first, second = optax.adam(THERE).init(PARAMS)
    with pytest.raises(ValueError, match=r"state\[0\]\.count counts 0 .* state\[1\]\.count 5"):
        optfn.from_optax_state(optfn.adam(HERE), (first, second._replace(count=5)), PARAMS)
    with pytest.raises(TypeError, match="optax_tx"):
        optfn.to_optax_state(optfn.adam(0.1), optfn.adam(0.1).init(PARAMS), optfn.adam(0.1), PARAMS)


def test_a_count_may_be_given_where_optax_keeps_none():
    state = optfn.from_optax_state(
        optfn.sgd(HERE, 0.9), optax.sgd(0.1, 0.9).init(PARAMS), PARAMS, count=7
    )
    assert state.step == 7 and state.step.dtype == jnp.int32
