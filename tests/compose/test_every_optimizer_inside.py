"""Every optimizer inside of wrappers that, set so, leave it as it is: by default in one of them."""

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optfn
from optfn.testing.checks import Subject, _check_fixed_point, example_grads


def always(step, **extra_args):
    return True


WRAPPERS = {
    "accumulate": lambda tx: optfn.accumulate(tx, 1),
    "skip_nonfinite": optfn.skip_nonfinite,
    "skip_spikes": optfn.skip_spikes,
    "loss_scale": lambda tx: optfn.loss_scale(tx, 1.0, growth_factor=1.0),
    "conditionally_mask": lambda tx: optfn.conditionally_mask(
        tx, always, forward_extra_args=tuple(tx.declared_extra_args())
    ),
    "partition": lambda tx: optfn.partition({"all": tx, "none": optfn.sgd(1.0)}, "all"),
    "freeze": lambda tx: optfn.freeze(tx, False),
    "monitor": optfn.monitor,
    "own_step": optfn.own_step,
    "lookahead": lambda tx: optfn.lookahead(tx, sync_period=1, slow_step_size=1.0),
    "ema_of_params": lambda tx: optfn.ema_of_params(tx, decay=0.0),
    "mean_of_params": lambda tx: optfn.mean_of_params(tx, start=99),
    "projected": lambda tx: optfn.projected(tx, optfn.projections.l2_ball(1e30)),
    "chain": lambda tx: optfn.chain(optfn.clip_by_global_norm(1e30), tx),
    "named chain": lambda tx: optfn.chain(tx).named("inner"),
    "twice": lambda tx: optfn.skip_nonfinite(optfn.accumulate(optfn.freeze(tx, False), 1)),
    "apply_if_finite": lambda tx: optfn.apply_if_finite(tx, 5),
}


# They must see every gradient.
KEEPS_GRADIENTS = {
    *("accumulate", "skip_nonfinite", "apply_if_finite", "skip_spikes", "loss_scale", "twice"),
}
# It evaluates at its own slow params, whatever is inside.
EVALUATES_ELSEWHERE = {"lookahead"}
REFUSED = {wrapper: {"loss_scale"} for wrapper in KEEPS_GRADIENTS}
# It would change the updates of those that must be last.
REFUSED["lookahead"] = {
    *("lookahead", "ema_of_params", "mean_of_params"),
    *("compensated", "master", "projected"),
}


REFUSED["projected"] = REFUSED["lookahead"]


SHARES = 5


def params_in(dtype=jnp.float32):
    return {"w": jnp.asarray([[1.0, -2.0], [0.5, 0.25], [-1.5, 3.0]], dtype), "s": dtype(2)}


def in_share(share):
    """Of the optimizers, of every kind: each, and the wrappers to put it into, in turn."""
    for i, name in enumerate(sorted(cases.OPTIMIZERS)[share::SHARES]):
        wrappers = list(WRAPPERS)[share::SHARES]
        takes_it = [wrapper for wrapper in wrappers if name not in REFUSED.get(wrapper, set())]
        first = i % len(takes_it)
        yield name, takes_it[first:] + takes_it[:first]


def subject(name, wrap=lambda tx: tx):
    return Subject(wrap(cases.OPTIMIZERS[name]), cases.EXTRA_ARGS.get(name, {}))


def end(one, seeds):
    """Params and state after steps with the gradients of these seeds; None is a gradient of NaN."""
    params = params_in()
    state = one.tx.init(params)
    for seed in seeds:
        grads = example_grads(params, seed or 0)
        if seed is None:
            grads = jax.tree.map(lambda g: g * jnp.nan, grads)
        updates, state = one.update(grads, state, params)
        params = one.moved(params, updates)
    return params, optfn.evaluation_params(one.tx, state, params)


# Op by op, and a whole share in one test, since what is compiled is then the same for all of it.
@pytest.mark.parametrize("share", range(SHARES))
def test_what_is_inside_is_as_it_is_alone(share):
    """Two steps, bit for bit, and for what skips a step between them with a gradient of NaN."""
    for name, wrappers in in_share(share):
        check_inside(name, wrappers[:1])


@pytest.mark.slow
@pytest.mark.parametrize("share", range(SHARES))
def test_inside_of_the_other_wrappers_of_its_share_too(share):
    for name, wrappers in in_share(share):
        check_inside(name, wrappers[1:])


def check_inside(name, wrappers):
    with jax.disable_jit():
        alone = end(subject(name), (0, 1))
    for wrapper in wrappers:
        check_pair(name, wrapper, alone)


def check_pair(name, wrapper, alone):
    one, what = subject(name, WRAPPERS[wrapper]), f"{name} in {wrapper}"
    with jax.disable_jit():
        found = end(one, (0, None, 1) if wrapper in KEEPS_GRADIENTS else (0, 1))
    expected = (alone[0], alone[0]) if wrapper in EVALUATES_ELSEWHERE else alone
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y, what), found, expected)
    _check_fixed_point(one, f"{what}, bfloat16", params_in(jnp.bfloat16), jnp.bfloat16)
