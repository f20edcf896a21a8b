"""qk_clip against loops over heads, the logits that it bounds, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optfn
from optfn import MatrixAxes

EMBED, HEADS, SIZE = 5, 3, 2


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def attention(*stack, keys=HEADS, seed=0):
    """The params of Flax's attention, or of a stack of them."""
    part = {
        name: {
            "kernel": normal(*stack, EMBED, heads, SIZE, seed=seed + i),
            "bias": normal(*stack, heads, SIZE, seed=seed + i + 10),
        }
        for i, (name, heads) in enumerate({"query": HEADS, "key": keys, "value": keys}.items())
    }
    return part | {"out": {"kernel": normal(*stack, HEADS, SIZE, EMBED, seed=seed + 3)}}


def logits(block, x):
    """q k of every head and group of heads."""
    query, key = (
        np.einsum("te,ehd->thd", x, block[name]["kernel"]) + block[name]["bias"]
        for name in ("query", "key")
    )
    key = np.repeat(key, query.shape[1] // key.shape[1], axis=1)
    return np.einsum("qhd,khd->hqk", query, key)


def clipped(params, tx, max_logits):
    grads = jax.tree.map(jnp.ones_like, params)
    updates, _ = tx.update(grads, tx.init(params), params, max_logits=max_logits)
    return jax.tree.map(lambda p, u: np.asarray(p + u), params, updates)


def shrunk(block, max_logits, threshold, alpha):
    """The rule, head by head."""
    new = {name: dict(part) for name, part in block.items()}
    for h, s in enumerate(max_logits):
        gamma = min(1.0, threshold / s)
        for name, power in (("query", alpha), ("key", 1 - alpha)):
            kernel, bias = (new[name][k].copy() for k in ("kernel", "bias"))
            kernel[:, h], bias[h] = kernel[:, h] * gamma**power, bias[h] * gamma**power
            new[name] = {"kernel": kernel, "bias": bias}
    return new


STILL, MOVING = optfn.sgd(0.0), optfn.sgd(0.25)


def near(found, wanted, rtol=1e-12):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-14), found, wanted
    )


@pytest.mark.parametrize("alpha", [0.5, 0.2, 1.0])
def test_updates_lead_to_the_clipped_params(alpha, x64):
    params = {"blocks_0": {"attention": attention(), "mlp": {"kernel": normal(3, 3)}}}
    largest = np.array([40.0, 5.0, 100.0])
    found = clipped(params, optfn.qk_clip(MOVING, 20.0, alpha), {"blocks_0/attention": largest})
    stepped = jax.tree.map(lambda p: p - 0.25, params)
    wanted = shrunk(stepped["blocks_0"]["attention"], largest, 20.0, alpha)
    near(found, {"blocks_0": {"attention": wanted, "mlp": stepped["blocks_0"]["mlp"]}})


@pytest.mark.parametrize("keys", [HEADS, 1])
def test_the_logits_fall_to_the_threshold_and_others_stay(keys, x64):
    """Of every head alone, where each has a key of its own and where all share one."""
    block, x = attention(keys=keys), normal(7, EMBED, seed=99)
    before = logits(block, x)
    largest = before.max(axis=(1, 2))
    threshold = float(np.sort(largest)[1]) - 0.1
    new = clipped(block, optfn.qk_clip(STILL, threshold), jnp.asarray(largest))
    after = logits(new, x)
    np.testing.assert_allclose(after.max(axis=(1, 2)), np.minimum(largest, threshold), rtol=1e-12)
    gamma = np.minimum(1, threshold / largest)
    np.testing.assert_allclose(after, before * gamma[:, None, None], rtol=1e-12, atol=1e-12)


def test_a_stack_equals_its_slices(x64):
    stacked, largest = {"layers": attention(2)}, np.array([[40.0, 5, 100], [1, 2, 30]])
    tx = optfn.qk_clip(MOVING, 20.0)
    found = clipped(stacked, tx, {"layers": largest})["layers"]
    for i in range(2):
        one = jax.tree.map(lambda x, i=i: x[i], stacked["layers"])
        near(jax.tree.map(lambda x, i=i: x[i], found), clipped(one, tx, largest[i]))


@pytest.mark.parametrize("axis", [-1, -2])
def test_heads_may_be_joined_with_their_entries(axis, x64):
    """As in Equinox, `(heads * size, embed)`, and in a dense layer of Flax."""
    block, largest = attention(), np.array([40.0, 5.0, 100.0])

    def join(block):
        kernels = {k: v["kernel"].reshape(EMBED, -1) for k, v in block.items() if k != "out"}
        joined = {k: {"weight": w if axis == -1 else w.T} for k, w in kernels.items()}
        for name, part in joined.items():
            part["bias"] = block[name]["bias"].reshape(-1)
        return joined

    tx = optfn.qk_clip(MOVING, 20.0, 0.3, head_axis=axis)
    near(
        clipped(join(block), tx, largest),
        join(clipped(block, optfn.qk_clip(MOVING, 20.0, 0.3), largest)),
    )


def test_logits_come_as_flax_sows_them(x64):
    params = {"a": {"attn": attention()}, "b": attention(seed=5)}
    by_path = {"a/attn": np.array([40.0, 5.0, 100.0]), "b": np.zeros(HEADS)}
    halves = np.array([40.0, 1.0, 2.0]), np.array([3.0, 5.0, 100.0])
    sown = {"a": {"attn": {"max_logits": halves}}, "b": {"max_logits": (np.zeros(HEADS),)}}
    tx = optfn.qk_clip(MOVING, 20.0)
    near(clipped(params, tx, sown), clipped(params, tx, by_path), rtol=0)


def test_muon_clip_is_muon_in_it():
    views = optfn.matrices(
        {
            "**/query/kernel": MatrixAxes((-2, -1), -3),
            "**/key/kernel": MatrixAxes((-2, -1), -3),
            "**/value/kernel": MatrixAxes((-2, -1), -3),
            "**/out/kernel": MatrixAxes(-1, (-3, -2)),
        }
    )
    params = {"x": jax.tree.map(jnp.float32, attention())}
    rest = optfn.adamw(1e-3, b2=0.95, weight_decay=0.1)
    settings = {"weight_decay": 0.1, "nesterov": False, "consistent_rms": 0.2, "rest": rest}
    muon = optfn.muon(1e-3, views=views, **settings)
    ours, theirs = optfn.muon_clip(1e-3, 20.0, views=views), optfn.qk_clip(muon, 20.0)
    largest = {"x": jnp.asarray([40.0, 5.0, 100.0])}
    near(clipped(params, ours, largest), clipped(params, theirs, largest), rtol=0)
    calm = {"x": jnp.ones(HEADS)}
    grads = jax.tree.map(jnp.ones_like, params)
    same, _ = ours.update(grads, ours.init(params), params, max_logits=calm)
    near(same, muon.update(grads, muon.init(params), params)[0], rtol=0)


def test_one_program_serves_all_logits_and_thresholds():
    params = jax.tree.map(jnp.float32, attention())

    @jax.jit
    def step(tx, params, max_logits):
        return tx.update(params, tx.init(params), params, max_logits=max_logits)[0]

    for threshold in (10.0, 20.0):
        for size in (1.0, 100.0):
            step(optfn.qk_clip(MOVING, threshold), params, jnp.full(HEADS, size))
    assert step._cache_size() == 1
    nan = step(optfn.qk_clip(MOVING), params, jnp.asarray([jnp.nan, jnp.inf, 1.0]))
    assert np.isnan(nan["query"]["kernel"][:, :2]).all()
    assert np.isfinite(nan["query"]["kernel"][:, 2]).all()


PARAMS = {"a": attention(), "mlp": {"kernel": normal(3, 3)}}
GOOD = np.ones(HEADS)


@pytest.mark.parametrize(
    ("tx", "max_logits", "message"),
    [
        (optfn.qk_clip(STILL), {"b": GOOD}, r"entry at 'b', where no attention block is: .*'a'"),
        (optfn.qk_clip(STILL), {}, r"no entry for the attention block at 'a'; zeros leave"),
        (optfn.qk_clip(STILL), {"a": 3.0}, r"every head, found one number at 'a'"),
        (optfn.qk_clip(STILL, query="q"), {"a": GOOD}, "nothing in the params holds queries and"),
        (optfn.qk_clip(STILL), {"a": np.ones(2)}, r"at 'a/query/bias' .* length 3, .* the 2 heads"),
        (optfn.qk_clip(STILL), {"a": np.ones((7, 3))}, r"at 'a/query/bias' .* has no axis for the"),
    ],
)
def test_what_does_not_fit_is_refused(tx, max_logits, message):
    with pytest.raises(ValueError, match=message):
        clipped(PARAMS, tx, max_logits)


def test_it_is_for_whole_optimizers():
    with pytest.raises(ValueError, match=r"qk_clip\(transform=...\) must be a whole optimizer"):
        optfn.qk_clip(optfn.scale_by_adam())
    with pytest.raises(TypeError, match="misses the extra argument 'max_logits'"):
        tx = optfn.qk_clip(STILL)
        tx.update(PARAMS, tx.init(PARAMS), PARAMS)
