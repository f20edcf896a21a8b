"""Recipes: the numbers they name, which leaves they are for in every framework, and what is not."""

import inspect
import json
import re

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import optfn
from optfn import recipes, schedules
from optfn.recipes import decays

LAYERS = ["embed/**", "block/**", "head/**"]
EVERY = {
    "transformer_adamw": recipes.transformer_adamw(total_steps=100),
    "transformer_muon": recipes.transformer_muon(total_steps=100),
    "vit": recipes.vit(total_steps=120),
    "resnet_sgd": recipes.resnet_sgd(total_steps=90),
    "finetune": recipes.finetune(total_steps=100, layers=LAYERS, frozen=1),
    "lora": recipes.lora(total_steps=100),
    "gan": recipes.gan(),
    "rl_adam": recipes.rl_adam(total_steps=100),
    "diffusion": recipes.diffusion(warmup_steps=10),
}
Shape = jax.ShapeDtypeStruct
PARAMS = {
    "embed": {"embedding": Shape((9, 4), jnp.float32)},
    "block": {
        "norm": {"scale": Shape((4,), jnp.float32)},
        "dense": {"kernel": Shape((4, 4), jnp.float32), "bias": Shape((4,), jnp.float32)},
    },
    "head": {"kernel": Shape((4, 9), jnp.float32)},
}
ADAPTED = {
    "dense": {"kernel": Shape((4, 8), jnp.float32)},
    "adapter": {"lora_a": Shape((4, 2), jnp.float32), "lora_b": Shape((2, 8), jnp.float32)},
}
PLAYERS = {"generator": PARAMS, "discriminator": PARAMS}
OF = {"lora": ADAPTED, "gan": PLAYERS}


def rows(name, params=None):
    params = OF.get(name, PARAMS) if params is None else params
    return {row.path: row for row in optfn.summary(EVERY[name], params).rows}


def test_every_recipe_is_here():
    made = {k for k, x in vars(recipes).items() if inspect.isfunction(x) and k != "decays"}
    assert made == EVERY.keys()
    for name in made:
        text = inspect.getdoc(getattr(recipes, name)) or ""
        assert "Source: " in text, name
        for argument in inspect.signature(getattr(recipes, name)).parameters:
            assert re.search(rf"\b{argument}\b.*:", text), (name, argument)


@pytest.mark.parametrize("name", EVERY)
def test_a_recipe_is_an_optimizer_like_any_other(name):
    tx = EVERY[name]
    params = OF.get(name, PARAMS)

    def step(tx, params, grads):
        return optfn.step(tx, params, grads, tx.init(params))

    jax.eval_shape(step, tx, params, params)
    config = json.loads(json.dumps(optfn.to_config(tx), allow_nan=False))
    again = optfn.from_config(config)
    assert repr(again) == repr(tx)
    assert jax.tree.structure(again) == jax.tree.structure(tx)
    assert jax.tree.leaves(again) == jax.tree.leaves(tx)


def test_a_recipe_is_a_name_in_a_config():
    config = {"name": "recipes.finetune", "total_steps": 100, "layers": LAYERS, "frozen": 1}
    assert repr(optfn.from_config(config)) == repr(EVERY["finetune"])
    config = {"name": "recipes.transformer_adamw", "learning_rate": "6e-4", "total_steps": 100}
    assert repr(optfn.from_config(config)) == repr(EVERY["transformer_adamw"])
    with pytest.raises(ValueError, match=r"did you mean 'recipes.transformer_adamw'\?"):
        optfn.from_config({"name": "recipes.transformer_adam", "total_steps": 100})
    with pytest.raises(ValueError, match=r"config lacks 'total_steps': vit takes learning_rate"):
        optfn.from_config({"name": "recipes.vit"})


# Who gets what.


@pytest.mark.parametrize(
    ("path", "shape", "expected"),
    [
        ("params/Dense_0/kernel", (4, 4), True),
        ("params/Conv_0/kernel", (3, 3, 4, 8), True),
        ("params/layers/mlp/kernel", (12, 4, 8), True),
        ("params/layers/mlp/bias", (12, 8), False),
        ("params/MultiHeadDotProductAttention_0/query/bias", (4, 8), False),
        ("params/LayerNorm_0/scale", (4,), False),
        ("params/layers/LayerNorm_0/scale", (12, 4), False),
        ("params/BatchNorm_0/bias", (4,), False),
        ("params/embed/embedding", (9, 4), True),
        ("params/lm_head/kernel", (4, 9), True),
        ("params/pos_embedding", (1, 16, 4), False),
        ("params/position_embedding/embedding", (16, 4), False),
        ("params/posembed_input/pos_embedding", (1, 16, 4), False),
        ("params/cls", (1, 1, 4), False),
        ("params/cls/predictions/transform/dense/kernel", (4, 4), True),
        ("absolute_pos_embed", (1, 16, 4), False),
        ("attention/relative_position_bias_table", (9, 4), False),
        ("relation_pose/kernel", (4, 4), True),
        ("wpe/embedding", (16, 4), False),
        ("wte/embedding", (9, 4), True),
        ("post_attention/kernel", (4, 4), True),
        ("layers/0/weight", (4, 4), True),
        ("blocks/norm1/weight", (12, 4), False),
        ("blocks/ln_f/weight", (12, 4), False),
        ("blocks/bn1/weight", (12, 4), False),
        ("normalized_mlp/dense/weight", (4, 4), True),
        ("linen/weight", (4, 4), True),
        ("mlp/~/linear_0/w", (4, 4), True),
        ("mlp/~/linear_0/b", (4,), False),
        ("layer_norm/offset", (12, 4), False),
        ("embed/embeddings", (9, 4), True),
        ("temperature", (), False),
        ("", (4, 4), True),
    ],
)
def test_what_decays_in_the_names_of_every_framework(path, shape, expected):
    assert decays(path, Shape(shape, jnp.float32)) is expected


class Linen(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(9, 4, name="embed")(tokens)
        return nn.Dense(9, name="head")(nn.LayerNorm(name="norm")(x))


class Nnx(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.embed = nnx.Embed(9, 4, rngs=rngs)
        self.norm = nnx.LayerNorm(4, rngs=rngs)
        self.head = nnx.Linear(4, 9, rngs=rngs)


class Equinox(eqx.Module):
    embed: eqx.nn.Embedding
    norm: eqx.nn.LayerNorm
    head: eqx.nn.Linear

    def __init__(self):
        first, second = jax.random.split(jax.random.key(0))
        self.embed = eqx.nn.Embedding(9, 4, key=first)
        self.norm = eqx.nn.LayerNorm(4)
        self.head = eqx.nn.Linear(4, 9, key=second)


def in_haiku(tokens):
    x = hk.Embed(9, 4, name="embed")(tokens)
    return hk.Linear(9, name="head")(hk.LayerNorm(-1, True, True, name="norm")(x))


def models():
    """The params of the same model in four frameworks, as shapes."""
    tokens, key = jnp.zeros(3, jnp.int32), jax.random.key(0)
    linen = jax.eval_shape(Linen().init, key, tokens)
    yield "linen", linen
    yield "linen, params alone", linen["params"]
    state = nnx.state(nnx.eval_shape(Nnx), nnx.Param)
    yield "nnx", nnx.as_pure(state) if hasattr(nnx, "as_pure") else nnx.to_pure_dict(state)
    yield "equinox", jax.eval_shape(lambda: eqx.filter(Equinox(), eqx.is_inexact_array))
    yield "haiku", jax.eval_shape(hk.transform(in_haiku).init, key, tokens)


MODELS = dict(models())
PREFIX = {"linen": "params/"}


@pytest.mark.parametrize("framework", MODELS)
def test_in_every_framework_the_same_leaves_get_the_same(framework):
    params, prefix = MODELS[framework], PREFIX.get(framework, "")
    layers = [f"{prefix}{name}/**" for name in ("embed", "norm", "head")]
    made = {
        "transformer_adamw": EVERY["transformer_adamw"],
        "transformer_muon": EVERY["transformer_muon"],
        "vit": EVERY["vit"],
        "resnet_sgd": EVERY["resnet_sgd"],
        "rl_adam": EVERY["rl_adam"],
        "diffusion": EVERY["diffusion"],
        "finetune": recipes.finetune(total_steps=100, layers=layers, frozen=1),
        "gan": recipes.gan(generator=f"{prefix}embed/**", discriminator="**"),
        "lora": recipes.lora(total_steps=10, a=f"{prefix}norm/**", b=f"{prefix}head/**"),
    }
    assert made.keys() == EVERY.keys()
    for name, tx in made.items():
        found = optfn.summary(tx, params).rows
        assert len(found) == 5
        if name not in ("gan", "lora", "rl_adam", "diffusion"):
            decaying = {r.path for r in found if r.weight_decay is not None}
            trained = {"head"} if name == "finetune" else {"embed", "head"}
            assert {path.split("/")[-2] for path in decaying} == trained
            assert all(len(r.shape) == 2 for r in found if r.path in decaying)
        if name in ("finetune", "lora"):
            assert {r.path.split("/")[-2] for r in found if not r.slots} == {"embed"}


def test_muon_is_for_matrices_with_one_rate_and_one_decay():
    found = rows("transformer_muon")
    assert "newton_schulz" in found["block/dense/kernel"].stages
    for path in ("embed/embedding", "head/kernel", "block/dense/bias", "block/norm/scale"):
        assert "scale_by_adam" in found[path].stages
    names = [n.split(".")[-1] for n in optfn.hyperparameters(*started("transformer_muon"))]
    assert names.count("learning_rate") == names.count("weight_decay") == 1
    adamw = sum(r.state_bytes for r in rows("transformer_adamw").values())
    muon = sum(r.state_bytes for r in found.values())
    assert adamw - muon == found["block/dense/kernel"].bytes
    # A step of both has about the root mean square of Adam's.
    shapes = {"w": Shape((32, 64), jnp.float32)}
    w = jax.random.normal(jax.random.key(0), shapes["w"].shape)
    tx = recipes.transformer_muon(total_steps=100, warmup_steps=0, weight_decay=0.0)
    updates, _ = tx.update({"w": w}, tx.init({"w": w}), {"w": w})
    assert jnp.sqrt(jnp.mean(updates["w"] ** 2)) == pytest.approx(0.2 * 6e-4, rel=0.15)


def started(name):
    tx = EVERY[name]
    with jax.disable_jit():
        return tx, tx.init(jax.tree.map(lambda x: jnp.zeros(x.shape), OF.get(name, PARAMS)))


def test_layers_below_learn_more_slowly_and_the_first_stand_still():
    tx = recipes.finetune(1e-3, total_steps=1000, layers=LAYERS, layer_decay=0.5)
    params = jax.tree.map(lambda x: jnp.ones(x.shape), PARAMS)
    state = tx.init(params)._replace(step=jnp.int32(100))
    updates, _ = tx.update(params, state, params)
    sizes = [float(jnp.abs(updates[x]["kernel"]).max()) for x in ("head",)]
    sizes += [float(jnp.abs(updates["block"]["dense"]["bias"]).max())]
    sizes += [float(jnp.abs(updates["embed"]["embedding"]).max())]
    np.testing.assert_allclose(np.divide(sizes[1:], sizes[0]), [0.5, 0.25], rtol=0.02)
    found = rows("finetune")
    assert found["embed/embedding"].stages == ("freeze: none",)
    assert found["embed/embedding"].state_bytes == 0 < found["head/kernel"].state_bytes


def test_adapters_alone_are_trained_and_b_faster():
    tx = recipes.lora(1e-4, total_steps=100, ratio=8, warmup_steps=0)
    params = jax.tree.map(lambda x: jnp.ones(x.shape), ADAPTED)
    updates, state = tx.update(params, tx.init(params), params)
    a, b = updates["adapter"]["lora_a"], updates["adapter"]["lora_b"]
    np.testing.assert_allclose(a, -1e-4 * jnp.ones_like(a), rtol=1e-4)
    np.testing.assert_allclose(b, -8e-4 * jnp.ones_like(b), rtol=1e-4)
    assert not np.any(updates["dense"]["kernel"])
    assert len(jax.tree.leaves(state)) == 5  # two moments of two adapters, and the step
    for names in (
        ("lora_A", "lora_B"),
        ("kernel_lora_a", "kernel_lora_b"),
        ("w_lora_a", "w_lora_b"),
    ):
        params = {"x": {"y": dict(zip(names, ADAPTED["adapter"].values(), strict=True))}}
        rates = [r.learning_rate for r in optfn.summary(tx, params).rows]
        assert rates == pytest.approx([1e-4, 8e-4])


def test_what_is_called_like_adapters_alone_is_none():
    """Neither the scale beside them nor what holds both."""
    adapters = ADAPTED["adapter"] | {"lora_alpha": Shape((), jnp.float32)}
    tx = recipes.lora(1e-4, total_steps=100, ratio=8, warmup_steps=0)
    found = optfn.summary(tx, {"lora_blocks": adapters}).rows
    rates = {row.path.split("/")[-1]: row.learning_rate for row in found}
    assert (rates["lora_a"], rates["lora_b"]) == pytest.approx((1e-4, 8e-4))
    assert rates["lora_alpha"] is None


# The numbers.


RATES = [
    ("transformer_adamw", {}, 6e-4, 1, 100, 6e-5),
    ("transformer_muon", {}, 6e-4, 1, 100, 6e-5),
    ("transformer_adamw", {"schedule": "linear"}, 6e-4, 1, 100, 6e-5),
    ("transformer_adamw", {"schedule": "wsd"}, 6e-4, 1, 100, 0.0),
    ("vit", {"total_steps": 300}, 1e-3, 5, 300, 1e-5),
    ("resnet_sgd", {"total_steps": 90}, 0.1, 5, 90, 0.0),
    ("finetune", {"layers": LAYERS}, 5e-5, 10, 100, 0.0),
    ("lora", {}, 2e-5, 3, 100, 0.0),
    ("rl_adam", {}, 2.5e-4, 0, 100, 0.0),
]


@pytest.mark.parametrize(("name", "given", "peak", "at", "total", "end"), RATES)
def test_rates_rise_and_fall(name, given, peak, at, total, end):
    tx = getattr(recipes, name)(**{"total_steps": total} | given)
    (rate,) = {
        id(x): x
        for x in jax.tree.leaves(tx, is_leaf=lambda x: isinstance(x, schedules.Schedule))
        if isinstance(x, schedules.Schedule)
    }.values()
    values = rate(jnp.asarray([at, total, 0, total - 1e-3]))
    np.testing.assert_allclose(values[:2], [peak, end], rtol=1e-5, atol=1e-9)
    assert values[2] == (0 if at else pytest.approx(peak))
    if "wsd" in given.values():
        np.testing.assert_allclose(rate(jnp.asarray([80, 85])), [peak, peak / 2], rtol=1e-5)


def steps(tx, params, grads, count=4):
    @jax.jit
    def run(params, grads):
        def step(carry, scale):
            params, state = carry
            updates, state = tx.update(jax.tree.map(lambda g: scale * g, grads), state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, tx.init(params)), jnp.arange(1.0, 1 + count))[0][0]

    return run(params, grads)


def mask(params):
    return jax.tree.map(lambda p: p.ndim > 1, params)


IN_OPTAX = {
    "transformer_adamw": optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(
            optax.warmup_cosine_decay_schedule(0.0, 6e-4, 1, 100, 6e-5),
            0.9,
            0.95,
            1e-8,
            0.0,
            weight_decay=0.1,
            mask=mask,
        ),
    ),
    "vit": optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(
            optax.warmup_cosine_decay_schedule(0.0, 1e-3, 2, 120, 1e-5),
            weight_decay=0.05,
            mask=mask,
        ),
    ),
    "resnet_sgd": optax.chain(
        optax.add_decayed_weights(1e-4, mask),
        optax.sgd(optax.warmup_cosine_decay_schedule(0.0, 0.1, 5, 90, 0.0), 0.9, nesterov=True),
    ),
    "rl_adam": optax.chain(
        optax.clip_by_global_norm(0.5), optax.adam(optax.linear_schedule(2.5e-4, 0, 100), eps=1e-5)
    ),
    "diffusion": optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(optax.linear_schedule(0.0, 2e-4, 10))
    ),
    "gan": optax.multi_transform(
        {"generator": optax.adam(1e-4, 0.0, 0.9), "discriminator": optax.adam(4e-4, 0.0, 0.9)},
        {"generator": "generator", "discriminator": "discriminator"},
    ),
}


@pytest.mark.parametrize("name", IN_OPTAX)
def test_it_is_what_one_would_write_in_optax(name):
    rng = np.random.default_rng(0)
    params = {"kernel": np.float32(rng.normal(size=(3, 2))), "bias": np.float32(rng.normal(size=2))}
    params = {"generator": params, "discriminator": params}
    grads = jax.tree.map(lambda p: np.float32(0.3 * p + 0.1), params)
    ours, theirs = (steps(tx, params, grads) for tx in (EVERY[name], IN_OPTAX[name]))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-5, atol=1e-7), ours, theirs)


def test_numbers_may_be_traced_and_swept():
    params = {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}

    def moved(rate, total):
        tx = recipes.transformer_adamw(rate, total_steps=total, warmup_steps=0)
        return tx.update(params, tx.init(params), params)[0]["bias"][0]

    rates = jnp.asarray([1e-3, 2e-3])
    np.testing.assert_allclose(jax.vmap(moved)(rates, 100 * rates / 1e-3), -rates, rtol=1e-4)
    slope = jax.grad(
        lambda r: (
            recipes.lora(1e-4, total_steps=9, ratio=r)
            .transform.stages[2]
            .learning_rate.numbers["**/*lora_[bB]/**"]
            .factor
        )
    )(3.0)
    assert slope == 1.0


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: recipes.transformer_adamw(total_steps=10, schedule="cos"),
            "transformer_adamw(schedule=...) must be 'cosine', 'linear' or 'wsd', found 'cos'.",
        ),
        (
            lambda: recipes.vit(total_steps=1e-3),
            "vit(total_steps=...) must be at least 1, found 0.0",
        ),
        (
            lambda: recipes.resnet_sgd(schedules.cosine(0.1, 10), total_steps=9),
            "resnet_sgd(learning_rate=...) must be a number or an array, found cosine: ",
        ),
        (
            lambda: recipes.vit(total_steps=9, weight_decay="0.1"),
            "vit(weight_decay=...) must be a number or an array, found str: '0.1'",
        ),
        (
            lambda: recipes.lora(total_steps=10, warmup_steps=20),
            "lora(warmup_steps=...) must be from 0 to 10, found 20.0",
        ),
        (
            lambda: recipes.vit(total_steps=10, warmup_steps="1"),
            "vit(warmup_steps=...) must be a number or an array, found str: '1'",
        ),
        (
            lambda: recipes.rl_adam(total_steps=0),
            "rl_adam(total_steps=...) must be at least 1, found 0.0",
        ),
        (
            lambda: recipes.rl_adam(total_steps="9"),
            "rl_adam(total_steps=...) must be a number or an",
        ),
        (lambda: recipes.finetune(total_steps=9, layers="head/**"), "must be a list of patterns"),
        (lambda: recipes.finetune(total_steps=9, layers=[]), "must be a list of patterns"),
        (lambda: recipes.finetune(total_steps=9, layers=["a", "a"]), "a pattern stands twice in"),
        (
            lambda: recipes.finetune(total_steps=9, layers=LAYERS, frozen=3),
            "finetune(frozen=...) must be a number of layers from 0 to 2, found 3.",
        ),
        (
            lambda: recipes.finetune(total_steps=9, layers=["embed/**", "head/**"]).init(
                {"embed": jnp.ones(1), "head": jnp.ones(1), "block": jnp.ones(1)}
            ),
            "no pattern matches 'block', and by_path has no default.",
        ),
        (
            lambda: recipes.lora(total_steps=9).init({"dense": {"kernel": jnp.ones((2, 2))}}),
            "freeze(mask=...): no leaf matches '**/*lora_[aA]/**', '**/*lora_[bB]/**'",
        ),
        (
            lambda: recipes.gan().init({"generator": jnp.ones(1), "critic": jnp.ones(1)}),
            "no leaf matches 'discriminator/**'",
        ),
    ],
)
def test_what_is_wrong_is_said(make, sentence):
    with pytest.raises((ValueError, TypeError), match=re.escape(sentence)):
        make()
