"""What optax calls otherwise in its states is found by its name, and is the same."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import optfn
from optfn.core.optax_fields import ELSEWHERE, SAME

PARAMS = {"w": jnp.asarray([[1.0, -2.0, 0.3], [0.5, 0.7, -1.1]])}
MASK = {"w": True}


def loss(params):
    return jnp.sum(jnp.sin(params["w"]) ** 2)


def early(step):
    return step < 2


def momentum(library):
    return library.sgd(0.1, momentum=0.9)


# By stage: what makes it of a library, in which a contrib has the same names as the rest.
MADE = {
    "accumulate": lambda x: getattr(x, "MultiSteps", None) or x.accumulate,
    "apply_if_finite": lambda x: x.apply_if_finite,
    "conditionally_mask": lambda x: x.conditionally_mask(x.trace(0.9), early),
    "conditionally_transform": lambda x: x.conditionally_transform(x.trace(0.9), early),
    "freeze": lambda x: x.freeze(x.trace(0.9), {"w": False}) if x is optfn else masked(x),
    "masked": lambda x: masked(x),
    "mechanize": lambda x: contrib(x).mechanize(momentum(x)),
    "scale_by_adan": lambda x: x.scale_by_adan(),
    "scale_by_ademamix": lambda x: contrib(x).ademamix(0.1),
    "scale_by_cocob": lambda x: contrib(x).cocob(),
    "scale_by_dadapt_adamw": lambda x: contrib(x).dadapt_adamw(),
    "scale_by_distance_over_gradients": lambda x: x.scale_by_distance_over_gradients(),
    "scale_by_dog": lambda x: contrib(x).dog(),
    "scale_by_dowg": lambda x: contrib(x).dowg(),
    "scale_by_galore": lambda x: contrib(x).galore(0.1, 2),
    "scale_by_lbfgs": lambda x: x.scale_by_lbfgs(),
    "scale_by_momo": lambda x: contrib(x).momo(),
    "scale_by_momo_adam": lambda x: contrib(x).momo_adam(),
    "scale_by_prodigy": lambda x: contrib(x).prodigy(),
    "scale_by_simplified_ademamix": lambda x: contrib(x).simplified_ademamix(0.1),
    "schedule_free": lambda x: contrib(x).schedule_free_adamw(0.1),
    "skip_nonfinite": lambda x: x.apply_if_finite if x is optax else x.skip_nonfinite,
}


AROUND = ("accumulate", "apply_if_finite", "skip_nonfinite")


def contrib(library):
    return getattr(library, "contrib", library) if library is optax else library


def masked(library):
    return library.masked(library.trace(0.9), MASK)


def made(stage, library):
    made = MADE[stage](library)
    return made(momentum(library), 3) if stage in AROUND else made


@partial(jax.jit, static_argnums=0)
def state_after(update, state):
    """The state after two updates."""
    params = PARAMS
    for _ in range(2):
        value, grads = jax.value_and_grad(loss)(params)
        steps, state = update(grads, state, params, value=value)
        params = optax.apply_updates(params, steps)
    return state


def run(stage, library):
    tx = made(stage, library)
    update = tx.update if stage == "accumulate" else optax.with_extra_args_support(tx).update
    with jax.numpy_rank_promotion("allow"):  # as optax needs it
        return state_after(update, tx.init(PARAMS))


OFTEN = ("accumulate", "apply_if_finite", "masked", "mechanize", "schedule_free", "skip_nonfinite")


STAGES = [x if x in OFTEN else pytest.param(x, marks=pytest.mark.slow) for x in MADE]


@pytest.mark.parametrize("stage", STAGES)
def test_what_optax_calls_otherwise_is_the_same(stage):
    theirs, ours = (run(stage, library) for library in (optax, optfn))
    for name in SAME[stage]:
        found, expected = (optax.tree.get(state, name) for state in (ours, theirs))
        assert found is not None
        if isinstance(found, optfn.State):  # which has one count for all stages
            found, expected = found.slots, [x for x in jax.tree.leaves(expected) if x.ndim]
        if name == "projector":  # singular vectors have a sign of their own
            found, expected = jax.tree.map(jnp.abs, (found, expected))
        pairs = zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True)
        for x, y in pairs:
            np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-6, err_msg=name)


def test_every_stage_is_compared():
    assert MADE.keys() == SAME.keys() - {"lookahead"}  # which is of pairs in optax


def test_the_state_inside_of_a_wrapper_is_one():
    """So that what optax's users write of it goes on, as `state.inner_state.trace` does."""
    state = masked(optfn).init(PARAMS)
    assert state.inner_state.trace is state.slots["masked"]["trace"].trace
    assert state.inner_state.count is state.count


def test_what_several_stages_have_is_not_read_from_the_first():
    two = {label: optfn.mechanize(optfn.sgd(0.1)) for label in ("a", "b")}
    state = optfn.partition(two, {"w": "a", "v": "b"}).init({"w": jnp.ones(2), "v": jnp.ones(3)})
    with pytest.raises(KeyError, match="2 stages have what optax calls 'm': read it from"):
        optax.tree.get(state, "m")
    nested = optfn.masked(optfn.masked(optfn.trace(0.9), MASK), MASK).init(PARAMS)
    assert nested.inner_state.inner_state.trace["w"].shape == (2, 3)


def test_what_is_not_the_same_says_where_to_look():
    for stage, names in ELSEWHERE.items():
        assert not SAME.get(stage, {}).keys() & names.keys()
    state = optfn.accumulate(optfn.sgd(0.1), 3).init(PARAMS)
    with pytest.raises(KeyError, match="no 'acc_grads': what optax calls so is here 'sum, not yet"):
        optax.tree.get(state, "acc_grads")
    with pytest.raises(AttributeError, match=r"'hyperparams': .* 'optfn\.hyperparameters"):
        _ = state.hyperparams
    with pytest.raises(AttributeError, match="the hyperparameter seed"):
        _ = optfn.noisy_sgd(0.1).init(PARAMS).rng_key
    injected = optax.inject_hyperparams(optfn.sgd)(learning_rate=0.1).init(PARAMS)
    assert optax.tree.get((state, injected), "learning_rate") == np.float32(0.1)
    # Whatever another part of the state has is found there.
    fast = optfn.lookahead(optfn.sgd(0.1), 5, 0.5).init(PARAMS)
    assert fast.fast_state is fast.slots["lookahead"].fast
    both = optax.chain(optfn.skip_nonfinite(optfn.sgd(0.1)), optax.trace(0.9)).init(PARAMS)
    assert optax.tree.get(both, "trace") is not None
    assert optax.tree.get(both, "mini_step") is None
    assert optax.tree.get(both, "notfinite_count") == 0
