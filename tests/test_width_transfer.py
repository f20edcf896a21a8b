"""From a narrow model to a wide one: muP's table, measured and applied."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optfn
from optfn import MatrixAxes, schedules
from optfn.width_transfer import RATE_FACTORS

TIMES = 4  # as wide as the base


def shapes(width, heads=2):
    return {
        "embedding": (5, width),
        "first": {"kernel": (3, width), "bias": (width,)},
        "norm": {"scale": (width,)},
        "query": {"kernel": (width, heads, width // heads), "bias": (heads, width // heads)},
        "out": {"kernel": (heads, width // heads, width)},
        "mlp": {"kernel": (width, 2 * width)},
        "head": {"kernel": (width, 5), "bias": (5,)},
    }


def structs(tree):
    return jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32),
        tree,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def transfer_of(width=8 * TIMES, base=8, heads=2):
    return optfn.width_transfer(structs(shapes(width, heads)), structs(shapes(base)))


KINDS = {
    "embedding": "input",
    "first/kernel": "input",
    "first/bias": "vector",
    "norm/scale": "vector",
    "query/kernel": "hidden",
    "query/bias": "vector",
    "out/kernel": "hidden",
    "mlp/kernel": "hidden",
    "head/kernel": "output",
    "head/bias": "same",
}
# muP: the tables 3 and 8 of Yang et al. 2022, with every factor in scale and rate.
SCALE = {"hidden": TIMES**-0.5, "input": 1, "output": 1 / TIMES, "vector": 1, "same": 1}
SGD = {"hidden": 1, "input": TIMES, "output": 1 / TIMES, "vector": TIMES, "same": 1}
ADAM = {"hidden": 1 / TIMES, "input": 1, "output": 1 / TIMES, "vector": 1, "same": 1}


def test_every_leaf_has_its_row_of_the_table():
    found = {grown.path: grown for grown in transfer_of().leaves}
    assert {path: grown.kind for path, grown in found.items()} == KINDS
    for path, kind in KINDS.items():
        grown = found[path]
        assert grown.initial_scale == pytest.approx(SCALE[kind])
        assert RATE_FACTORS["gradient"](grown.inputs, grown.outputs) == SGD[kind]
        assert RATE_FACTORS["sign"](grown.inputs, grown.outputs) == ADAM[kind]


def test_heads_may_grow_in_number_or_in_size():
    for heads in (2, 8):
        found = {grown.path: grown for grown in transfer_of(heads=heads).leaves}
        for name in ("query", "out"):
            grown = found[f"{name}/kernel"]
            assert (grown.kind, grown.inputs, grown.outputs) == ("hidden", TIMES, TIMES)


def test_a_narrower_model_has_the_inverse():
    wide, narrow = transfer_of(32, 8), transfer_of(8, 32)
    for one, other in zip(wide.leaves, narrow.leaves, strict=True):
        assert one.kind == other.kind
        assert one.initial_scale * other.initial_scale == pytest.approx(1)


def by_kind(transfer, tree):
    """The factors by the kind of their leaves; those of a kind agree."""
    found = {}
    for grown, factor in zip(transfer.leaves, jax.tree.leaves(tree), strict=True):
        assert found.setdefault(grown.kind, factor) == pytest.approx(factor), grown.path
    return found


WARM = schedules.warmup_cosine(0.1, 100, 1000)
FOUND = {
    "momentum": (optfn.sgd(WARM, 0.9), SGD),
    "clipped adamw": (
        optfn.chain(optfn.clip_by_global_norm(1.0), optfn.adamw(WARM, weight_decay=0.1)),
        ADAM,
    ),
    "muon": (optfn.muon(0.02, weight_decay=0.1), ADAM | {"hidden": 1}),
}
SLOWLY = {
    "sgd with decay": (optfn.chain(optfn.add_decayed_weights(0.1), optfn.sgd(0.1)), SGD),
    "lion": (optfn.lion(1e-3), ADAM),
    "rmsprop": (optfn.rmsprop(1e-3), ADAM),
    "adagrad": (optfn.adagrad(0.1), ADAM),
    "adafactor": (optfn.adafactor(1e-3, multiply_by_parameter_scale=False), ADAM),
    "adan": (optfn.adan(1e-3), ADAM),
    "cautious": (optfn.chain(optfn.cautious(optfn.scale_by_adam()), optfn.sgd(0.1)), ADAM),
    "soap": (optfn.soap(3e-3), ADAM | {"hidden": 1}),
    "muon with the size of Adam's steps": (
        optfn.muon(3e-3, consistent_rms=0.2),
        ADAM | {"hidden": TIMES**-0.5},
    ),
}


def few_of(width):
    """A leaf of each kind."""
    every = shapes(width)
    return structs(
        {
            "embedding": every["embedding"],
            "first": {"bias": (width,)},
            "mlp": every["mlp"],
            "head": every["head"],
        }
    )


def check_found(tx, wanted):
    transfer = optfn.width_transfer(few_of(8 * TIMES), few_of(8))
    assert by_kind(transfer, transfer.rate_factors(tx)) == pytest.approx(wanted)


@pytest.mark.parametrize("name", FOUND)
def test_what_steps_are_like_is_found_out(name):
    check_found(*FOUND[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOWLY)
def test_what_steps_are_like_is_found_out_for_more(name):
    check_found(*SLOWLY[name])


@pytest.mark.parametrize("tx", [optfn.adam(0.1, eps=4e-3), optfn.madgrad(0.1)])
def test_steps_between_the_kinds_are_refused(tx):
    """As of Adam where eps is nearly as large as gradients, and those of a cube root."""
    transfer = optfn.width_transfer(few_of(8 * TIMES), few_of(8))
    with pytest.raises(ValueError, match="follow no power of the width"):
        transfer.rate_factors(tx)


def test_steps_may_be_said():
    transfer = transfer_of()
    assert by_kind(transfer, transfer.rate_factors(optfn.adam(0.1), steps="gradient")) == SGD
    labels = optfn.by_path({"**/kernel": "orthogonal"}, default="sign")
    found = transfer.rate_factors(optfn.adam(0.1), steps=labels)
    assert found["mlp"]["kernel"] == 1 and found["head"]["kernel"] == TIMES**-0.5
    assert found["embedding"] == 1


def test_the_base_itself_is_left_alone():
    params = jax.tree.map(lambda s: jnp.ones(s.shape), structs(shapes(8)))
    transfer = optfn.width_transfer(params, params)
    again = transfer.init(params)
    assert all(x is y for x, y in zip(*map(jax.tree.leaves, (params, again)), strict=True))
    assert set(jax.tree.leaves(transfer.rate_factors(optfn.lbfgs()))) == {1.0}


def drawn(width, scale):
    """Params of a width, with entries of size `scale`."""
    rng = np.random.default_rng(width)
    return jax.tree.map(
        lambda s: jnp.asarray(scale * rng.normal(size=s.shape), s.dtype), few_of(width)
    )


def test_init_gives_the_scale_whatever_the_initializer_was():
    base = drawn(8, 0.5)
    for scale in (3.0, 0.02):
        params = drawn(32, scale)
        transfer = optfn.width_transfer(params, base)
        made = jax.jit(transfer.init)(params)
        for grown, own, x, before in zip(
            transfer.leaves, *map(jax.tree.leaves, (base, made, params)), strict=True
        ):
            if grown.kind in ("vector", "same"):
                np.testing.assert_array_equal(x, before)
            else:
                size = np.sqrt(np.mean(np.square(own))) * SCALE[grown.kind]
                np.testing.assert_allclose(np.sqrt(np.mean(np.square(x))), size, rtol=1e-5)
                x, before = np.ravel(x), np.ravel(before)
                np.testing.assert_allclose(x / x[0], before / before[0], rtol=1e-4)
    zero = jax.tree.map(jnp.zeros_like, params)
    assert not any(x.any() for x in jax.tree.leaves(transfer.init(zero)))


@pytest.mark.parametrize(
    ("base", "shape", "path", "kind"),
    [
        ((3, 8, 8), (3, 16, 16), "layers/mlp/kernel", "hidden"),  # a stack
        ((3, 8), (3, 16), "layers/mlp/bias", "vector"),
        ((3, 5, 8), (3, 5, 16), "layers/first/kernel", "input"),
        ((3, 3, 4, 8), (3, 3, 8, 16), "conv/kernel", "hidden"),
        ((3, 3, 1, 8), (3, 3, 1, 16), "conv/kernel", "input"),
        ((4, 2, 4, 8), (4, 4, 4, 16), "layers/out/kernel", "hidden"),
        ((8, 2, 4), (32, 4, 8), "query/kernel", "hidden"),
        ((8, 5), (16, 5), "head/weight", "input"),  # Equinox: its outputs are first
        ((5, 8), (5, 16), "head/weight", "output"),
        ((5, 8), (5, 16), "tok/weight", "input"),
        ((5, 8), (5, 16), "token_embedding/weight", "input"),
        ((5, 8), (5, 16), "unembed/weight", "output"),
        ((8, 4, 3, 3), (16, 8, 3, 3), "conv/weight", "hidden"),
        ((), (), "scale", "same"),
    ],
)
def test_axes_are_read_off_the_shapes(base, shape, path, kind):
    def tree(shape):
        return functools.reduce(
            lambda inner, name: {name: inner},
            path.split("/")[::-1],
            jax.ShapeDtypeStruct(shape, jnp.float32),
        )

    (grown,) = optfn.width_transfer(tree(shape), tree(base)).leaves
    assert (grown.path, grown.kind) == (path, kind)
    both = math.prod(shape) / math.prod(base)
    assert grown.inputs * grown.outputs == both
    if kind == "hidden":
        assert grown.inputs == grown.outputs


def test_views_say_it_where_shapes_do_not():
    view = MatrixAxes(rows=-1, columns=(-4, -3, -2))
    base, params = ({"conv": jax.ShapeDtypeStruct((3, 3, n, 5), jnp.float32)} for n in (4, 8))
    with pytest.raises(ValueError, match=r"'conv' grew from \(3, 3, 4, 5\) to .*: which axes are"):
        optfn.width_transfer(params, base)
    (grown,) = optfn.width_transfer(params, base, optfn.matrices({"conv": view})).leaves
    assert (grown.kind, grown.inputs, grown.outputs) == ("output", 2, 1)
    deeper = {"conv": jax.ShapeDtypeStruct((6, 3, 4, 5), jnp.float32)}
    stack = optfn.matrices({"conv": MatrixAxes(rows=-1, columns=-2)})
    with pytest.raises(ValueError, match="Axes of neither must not grow"):
        optfn.width_transfer(deeper, base, stack)


def test_a_param_may_be_a_number_of_python():
    base, params = ({"scale": 1.0, "w": jnp.ones((n, n))} for n in (4, 8))
    assert optfn.width_transfer(params, base).init(params)["scale"] == 1.0


def test_it_prints_who_gets_what():
    lines = repr(transfer_of()).splitlines()
    assert lines[0].split() == [
        *("param", "base", "shape", "kind", "initial", "scale"),
        *("rate,", "gradient", "rate,", "sign", "rate,", "orthogonal"),
    ]
    row = next(line.split() for line in lines if line.startswith("mlp/kernel"))
    assert row == [
        "mlp/kernel",
        *["8", "x", "16"],
        *["32", "x", "64"],
        "hidden",
        "0.5",
        "1",
        "0.25",
        "1",
    ]


def wrong(tx, **kwargs):
    wide, base = ({"w": jax.ShapeDtypeStruct((n, n), jnp.float32)} for n in (8, 4))
    return lambda: optfn.width_transfer(wide, base).optimizer(tx, **kwargs)


UNEQUAL = [structs({"mlp": {"kernel": s}}) for s in ((4, 4), (8, 16))]
SEEN = structs(shapes(8)) | {"head": {"kernel": jax.ShapeDtypeStruct((8, 5), jnp.float32)}}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            wrong(optfn.polyak_sgd(0.1)),
            "out what steps are like from gradients alone, but the optimizer also needs value. "
            "Say it: steps='gradient' or steps='sign' or steps='orthogonal'",
        ),
        (
            wrong(optfn.accumulate(optfn.adam(0.1), 100)),
            "takes no step in its first 8 updates, as one inside of accumulate",
        ),
        (
            wrong(optfn.adam(0.1), steps="adam"),
            "must be one of 'gradient', 'sign', 'orthogonal', found 'adam' at 'w'.",
        ),
        (wrong(optfn.lamb(0.1), steps="sign"), 'or say decay="tied".'),
        (
            lambda: optfn.width_transfer(*UNEQUAL[::-1]).optimizer(optfn.adam(0.1)),
            "the inputs of 'mlp/kernel' grew 2 times, its outputs 4 times",
        ),
        (
            lambda: optfn.width_transfer(structs(shapes(8)), SEEN),
            "base_params and params are different trees: ",
        ),
        (
            lambda: optfn.width_transfer({"w": jnp.ones((4, 4))}, {"w": jnp.ones(4)}),
            "'w' has shape (4, 4), and (4,) in base_params; widths alone may differ.",
        ),
        (
            lambda: optfn.width_transfer({"w": jnp.ones((4, 4))}, structs({"w": (2, 2)})).init(
                {"w": jnp.ones((4, 4))}
            ),
            "the base has a shape alone at 'w'; give width_transfer the arrays of the base",
        ),
        (
            lambda: optfn.width_transfer({"w": jnp.ones((4, 4))}, {"w": jnp.ones((2, 2))}).init(
                {"w": jnp.ones((8, 8))}
            ),
            "'w' has shape (8, 8), the transfer is for (4, 4).",
        ),
    ],
)
def test_wrong_input_gets_a_sentence(call, message):
    with pytest.raises(ValueError) as caught:
        call()
    assert message in str(caught.value)


def test_optax_needs_a_tied_decay():
    transfer = transfer_of()
    with pytest.raises(ValueError, match="the params may enter from_optax"):
        transfer.optimizer(optax.adamw(0.1), steps="sign")
    tx = transfer.optimizer(optax.adamw(0.1), steps="sign", decay="tied")
    assert isinstance(tx, optfn.with_leaf_rates)
