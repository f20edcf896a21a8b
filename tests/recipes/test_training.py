"""Recipes train: on images of digits each is better than the plain form of its optimizer.

In its setting, from the same start, on the same batches, at the same peak rate, in the mean of
two seeds. `gan` and `rl_adam` say what they are for; nothing here has one loss to compare them by.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

import optfn
from optfn import recipes

pytestmark = pytest.mark.slow

SEEDS, WIDTH = 2, 16


@pytest.fixture(autouse=True)
def as_people_write():
    """The models add biases to rows, as those of people do."""
    with jax.numpy_rank_promotion("allow"):
        yield


@cache
def data():
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    images = ((images - images.mean()) / images.std())[order].reshape(-1, 8, 8)
    return jnp.asarray(images, jnp.float32), jnp.asarray(labels[order])


def dense(key, rows, columns):
    return jax.random.normal(key, (rows, columns)) * rows**-0.5


def transformer(key):
    """One block over the eight rows of an image."""
    keys = jax.random.split(key, 6)
    return {
        "embed": {"kernel": dense(keys[0], 8, WIDTH), "pos_embedding": jnp.zeros((8, WIDTH))},
        "block": {
            "norm": {"scale": jnp.ones(WIDTH)},
            "qkv": {"kernel": dense(keys[1], WIDTH, 3 * WIDTH)},
            "out": {"kernel": dense(keys[2], WIDTH, WIDTH)},
            "up": {"kernel": dense(keys[3], WIDTH, 2 * WIDTH), "bias": jnp.zeros(2 * WIDTH)},
            "down": {"kernel": dense(keys[4], 2 * WIDTH, WIDTH)},
        },
        "head": {"kernel": dense(keys[5], WIDTH, 10), "bias": jnp.zeros(10)},
    }


def classify(params, images):
    def norm(x):
        scale = params["block"]["norm"]["scale"]
        return scale * x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)

    block = {k: x["kernel"] for k, x in params["block"].items() if "kernel" in x}
    x = images @ params["embed"]["kernel"] + params["embed"]["pos_embedding"]
    q, k, v = jnp.split(norm(x) @ block["qkv"], 3, -1)
    weights = jax.nn.softmax(jnp.einsum("bid,bjd->bij", q, k) * WIDTH**-0.5)
    x = x + weights @ v @ block["out"]
    x = x + jax.nn.gelu(norm(x) @ block["up"] + params["block"]["up"]["bias"]) @ block["down"]
    return norm(x).mean(1) @ params["head"]["kernel"] + params["head"]["bias"]


def batch_normed(key):
    keys = jax.random.split(key, 3)
    return {
        "layer_0": {"kernel": dense(keys[0], 64, 32)},
        "batch_norm_0": {"scale": jnp.ones(32), "bias": jnp.zeros(32)},
        "layer_1": {"kernel": dense(keys[1], 32, 32)},
        "batch_norm_1": {"scale": jnp.ones(32), "bias": jnp.zeros(32)},
        "head": {"kernel": dense(keys[2], 32, 10), "bias": jnp.zeros(10)},
    }


def classify_in_batches(params, images):
    x = images.reshape(len(images), 64)
    for i in range(2):
        x = x @ params[f"layer_{i}"]["kernel"]
        own = params[f"batch_norm_{i}"]
        x = (x - x.mean(0)) * jax.lax.rsqrt(x.var(0) + 1e-5)
        x = jax.nn.relu(own["scale"] * x + own["bias"])
    return x @ params["head"]["kernel"] + params["head"]["bias"]


def cross_entropy(model, params, images, labels, key=None):
    logits = model(params, images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


@partial(jax.jit, static_argnums=(0, 1))
def trained(loss, steps, tx, params, images, labels):
    """Of each seed the params at the end, and those to evaluate at."""

    def one(params, key):
        def step(carry, key):
            params, state = carry
            rows = jax.random.randint(key, (32,), 0, len(images))
            grads = jax.grad(loss)(params, images[rows], labels[rows], key)
            return optfn.step(tx, params, grads, state), None

        keys = jax.random.split(key, steps)
        (params, state), _ = jax.lax.scan(step, (params, tx.init(params)), keys)
        return params, optfn.evaluation_params(tx, state, params)

    return jax.vmap(one)(params, jax.random.split(jax.random.key(1), SEEDS))


def starts(init):
    return jax.vmap(init)(jax.random.split(jax.random.key(0), SEEDS))


def score(loss, steps, tx, params, train, test):
    """The mean loss over seeds and images that were not trained on."""
    _, params = trained(loss, steps, tx, params, *train)
    keys = jax.random.split(jax.random.key(2), SEEDS)
    return float(jax.jit(jax.vmap(lambda p, key: loss(p, *test, key)))(params, keys).mean())


CLASSIFY, IN_BATCHES = (partial(cross_entropy, f) for f in (classify, classify_in_batches))
FROM_THE_START = {
    "transformer_adamw": (
        transformer,
        CLASSIFY,
        recipes.transformer_adamw(2e-2, total_steps=200),
        optfn.adamw(2e-2),
    ),
    "wsd": (
        transformer,
        CLASSIFY,
        recipes.transformer_adamw(2e-2, total_steps=200, schedule="wsd"),
        optfn.adamw(2e-2),
    ),
    "transformer_muon": (
        transformer,
        CLASSIFY,
        recipes.transformer_muon(2e-2, total_steps=200),
        optfn.muon(0.02),  # at its own rates
    ),
    "vit": (transformer, CLASSIFY, recipes.vit(2e-2, total_steps=200), optfn.adamw(2e-2)),
    "resnet_sgd": (
        batch_normed,
        IN_BATCHES,
        recipes.resnet_sgd(0.1, total_steps=200),
        optfn.sgd(0.1),
    ),
}


@pytest.mark.parametrize("name", FROM_THE_START)
def test_from_the_start(name):
    init, loss, recipe, plain = FROM_THE_START[name]
    images, labels = data()
    train, test = (images[:1200], labels[:1200]), (images[1200:], labels[1200:])
    found = [score(loss, 200, tx, starts(init), train, test) for tx in (recipe, plain)]
    assert found[0] < 0.95 * found[1], found


@cache
def of_five_digits():
    """Of each seed the params of a model that has seen the digits 0 to 4."""
    images, labels = data()
    old = labels < 5
    params, _ = trained(
        CLASSIFY, 200, optfn.adam(3e-3), starts(transformer), images[old], labels[old]
    )
    return params


def few():
    """Ten images of each of the ten digits, and others to test on."""
    images, labels = data()
    rows = np.concatenate([np.flatnonzero(labels == digit)[:10] for digit in range(10)])
    rest = np.setdiff1d(np.arange(len(labels)), rows)
    return (images[rows], labels[rows]), (images[rest], labels[rest])


def test_fine_tuning():
    layers = ["embed/**", "block/**", "head/**"]
    recipe = recipes.finetune(2e-2, total_steps=200, layers=layers, frozen=1, layer_decay=0.5)
    params = of_five_digits() | {"head": starts(transformer)["head"]}
    found = [score(CLASSIFY, 200, tx, params, *few()) for tx in (recipe, optfn.adamw(2e-2))]
    assert found[0] < 0.95 * found[1], found


ADAPTED = ("block/qkv", "block/out", "block/up", "block/down", "head")


def with_adapters(params):
    """Adapters of rank 4 beside the kernels."""
    keys = dict(zip(ADAPTED, jax.random.split(jax.random.key(0), len(ADAPTED)), strict=True))
    kernels = {name: kernel_of(params, name) for name in ADAPTED}
    return {
        "model": params,
        "adapters": {
            name: {"lora_a": dense(keys[name], len(x), 4), "lora_b": jnp.zeros((4, x.shape[1]))}
            for name, x in kernels.items()
        },
    }


def kernel_of(params, name):
    for entry in (*name.split("/"), "kernel"):
        params = params[entry]
    return params


def adapted(params, images, labels, key=None):
    def merged(path, p):
        *outer, name = (entry.key for entry in path)
        own = params["adapters"].get("/".join(outer)) if name == "kernel" else None
        return p if own is None else p + own["lora_a"] @ own["lora_b"]

    return CLASSIFY(jax.tree_util.tree_map_with_path(merged, params["model"]), images, labels)


def test_adapters():
    params = jax.vmap(with_adapters)(of_five_digits())
    recipe = recipes.lora(1e-3, total_steps=200)
    plain = optfn.freeze(optfn.adam(1e-3), optfn.by_path({"model/**": True}, default=False))
    found = [score(adapted, 200, tx, params, *few()) for tx in (recipe, plain)]
    assert found[0] < 0.95 * found[1], found


def denoiser(key):
    keys = jax.random.split(key, 3)
    return {
        "in": {"kernel": dense(keys[0], 65, 64), "bias": jnp.zeros(64)},
        "mid": {"kernel": dense(keys[1], 64, 64), "bias": jnp.zeros(64)},
        "out": {"kernel": dense(keys[2], 64, 64), "bias": jnp.zeros(64)},
    }


def noise_left(params, images, labels, key):
    """The mean squared error of the noise that is predicted, at levels of all sizes."""
    x = images.reshape(len(images), 64)
    level_key, noise_key = jax.random.split(key)
    angle = jax.random.uniform(level_key, (len(x), 1)) * jnp.pi / 2
    noise = jax.random.normal(noise_key, x.shape)
    h = jnp.concatenate([jnp.cos(angle) * x + jnp.sin(angle) * noise, angle], 1)
    for name in ("in", "mid"):
        h = jax.nn.gelu(h @ params[name]["kernel"] + params[name]["bias"])
    return jnp.mean((h @ params["out"]["kernel"] + params["out"]["bias"] - noise) ** 2)


def test_noise():
    images, labels = data()
    train, test = (images[:1200], labels[:1200]), (images[1200:], labels[1200:])
    recipe = recipes.diffusion(1e-2, warmup_steps=100, ema_decay=0.98)
    found = [
        score(noise_left, 600, tx, starts(denoiser), train, test)
        for tx in (recipe, optfn.adam(1e-2))
    ]
    assert found[0] < 0.95 * found[1], found
