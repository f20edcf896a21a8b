"""A run that torch began goes on here; its rules are written out in NumPy, as torch has them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optfn

RATE, DECAY = 0.1, 0.05
PARAMS = {"dense": {"kernel": np.ones((2, 3)), "bias": np.ones(3)}}
SHAPES = {"dense/kernel": (2, 3), "dense/bias": (3,)}
PATHS = tuple(SHAPES)
GRADS = [
    {path: np.random.default_rng(i).normal(size=shape) for path, shape in SHAPES.items()}
    for i in range(20)
]


def adamw(p, g, state):
    """torch.optim.AdamW, of one param."""
    step = state.get("step", 0) + 1
    exp_avg = 0.9 * state.get("exp_avg", 0 * p) + 0.1 * g
    exp_avg_sq = 0.999 * state.get("exp_avg_sq", 0 * p) + 0.001 * g**2
    p = p * (1 - RATE * DECAY)
    root = np.sqrt(exp_avg_sq) / np.sqrt(1 - 0.999**step)
    p = p - RATE / (1 - 0.9**step) * exp_avg / (root + 1e-8)
    return p, {"step": step, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}


def sgd(p, g, state):
    """torch.optim.SGD with momentum and weight decay, of one param."""
    g = g + DECAY * p
    buffer = state.get("momentum_buffer")
    buffer = g if buffer is None else 0.9 * buffer + g
    return p - RATE * buffer, {"momentum_buffer": buffer}


HERE = {
    adamw: optfn.adamw(RATE, weight_decay=DECAY),
    sgd: optfn.chain(optfn.add_decayed_weights(DECAY), optfn.sgd(RATE, 0.9)),
}


def as_tree(by_path):
    return {"dense": {path.split("/")[1]: jnp.asarray(x) for path, x in by_path.items()}}


@pytest.mark.parametrize("rule", HERE)
def test_it_goes_on_as_it_was(rule, x64):
    tx = HERE[rule]
    params = {path: PARAMS["dense"][path.split("/")[1]] for path in PATHS}
    state = {path: {} for path in PATHS}
    for i, grads in enumerate(GRADS):
        if i == 10:
            own = as_tree(params)
            moved = optfn.from_torch_state(tx, state, own)
            assert jax.tree.structure(moved) == jax.tree.structure(tx.init(own))
            assert moved.step == (10 if rule is adamw else 0)
        if i >= 10:
            updates, moved = tx.update(as_tree(grads), moved, own)
            own = optfn.apply_updates(own, updates)
        for path in PATHS:
            params[path], state[path] = rule(params[path], grads[path], state[path])
        if i >= 10:
            jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, 1e-9), own, as_tree(params))


def test_what_does_not_fit_is_named():
    params = jax.tree.map(jnp.asarray, PARAMS)
    entry = {"step": 3, "exp_avg": np.zeros((2, 3)), "exp_avg_sq": np.zeros((2, 3))}
    state = {
        "dense/kernel": entry,
        "dense/bias": {k: x if k == "step" else x[0] for k, x in entry.items()},
    }
    adam = optfn.adam(0.1)
    assert optfn.from_torch_state(adam, state, params).step == 3
    for tx, wrong, message in (
        (adam, {"dense.weight": entry}, r"'dense\.weight', which is no leaf .*'dense/kernel'"),
        (adam, {"dense/kernel": entry}, "no 'exp_avg' for the param 'dense/bias'"),
        (adam, state | {"dense/kernel": entry | {"exp_avg": np.zeros((3, 2))}}, "order of the par"),
        (adam, state | {"dense/kernel": entry | {"step": 4}}, "several steps"),
        (adam, state | {"dense/kernel": entry | {"max_exp_avg_sq": 1}}, "'max_exp_avg_sq'. has no"),
        (optfn.sgd(0.1), state, r"\['exp_avg'\] has no place"),
        (optfn.lion(0.1), state, "scale_by_lion has state that torch's"),
    ):
        with pytest.raises(ValueError, match=message):
            optfn.from_torch_state(tx, wrong, params)
    with pytest.raises(ValueError, match=r"count=\.\.\.\) is 4, but torch_state counts 3"):
        optfn.from_torch_state(adam, state, params, count=4)
    with pytest.raises(TypeError, match=r"torch_state\['dense/bias'\] must be a dict of arrays"):
        optfn.from_torch_state(adam, state | {"dense/bias": None}, params)
    with pytest.raises(TypeError, match="a dict from paths"):
        optfn.from_torch_state(adam, [entry], params)
