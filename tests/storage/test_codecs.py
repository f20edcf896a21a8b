"""Every codec against what it promises: its bound, its zeros, its fixed points, its means."""

from functools import cache, partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from optfn import storage

CODECS = {
    "bf16": storage.bf16(),
    "f16": storage.f16(),
    "fp8 e4m3": storage.fp8(),
    "fp8 e5m2": storage.fp8(form="e5m2"),
    "int8": storage.int8(),
    "int8 bfloat16 scales": storage.int8(32, scale_dtype="bfloat16"),
    "int8 float16 scales": storage.int8(scale_dtype="float16"),
    "int8 columns": storage.int8(axis=0, scale_dtype="float32"),
    "int4": storage.int4(),
    "split": storage.split(),
    "by_slot": storage.by_slot({"signed": storage.int8(), "non_negative": storage.bf16()}),
}
KINDS = ["signed", "non_negative"]
# Of one axis to four; a last group that is filled; no even groups for four bits; one entry; none.
SHAPES = [(33,), (4, 64), (35, 3), (2, 3, 1, 80), (1,), (3, 0)]
MAX = float(np.finfo(np.float32).max)
TINY = float(np.finfo(np.float32).tiny)
# From where on float32 holds the digits of the smallest entries of a group.
FULL = {"f16": 1e-13, "fp8 e5m2": 1e-18, "int8 float16 scales": 1e-6}


def of_kind(x, kind):
    return abs(x) if kind == "non_negative" else x


@jax.jit
def round_trips(x):
    """By codec and kind: what is stored, what is read, what is stored then, and the bound.

    One program for all codecs.
    """
    found = {}
    for name, codec in CODECS.items():
        for kind in KINDS:
            own = of_kind(x, kind)
            stored = codec.encode(own, kind)
            read = storage.decode(stored)
            again = storage.encode_like(stored, read)
            found[name, kind] = stored, read, again, codec.error_bound(own, kind)
    return found


def seen(x):
    """What `round_trips` gives, as NumPy arrays, beside the array of each kind."""
    x = np.asarray(x, np.float32)
    found = jax.device_get(round_trips(x))
    return [(name, kind, of_kind(x, kind), *rest) for (name, kind), rest in found.items()]


@st.composite
def arrays(draw):
    """Entries of one size or of many, some of them zero."""
    shape = draw(st.sampled_from(SHAPES))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    size = draw(st.floats(-36, 37))
    spread = draw(st.sampled_from([0, 1, 10]))
    exponents = np.clip(size + spread * rng.standard_normal(shape), -36.9, 37.9)
    x = rng.choice([-1, 1], shape) * rng.uniform(0.1, 1, shape) * 10.0**exponents
    if draw(st.booleans()):  # few digits, so that there are ties
        x = np.ldexp(np.round(16 * np.frexp(x)[0]) / 16, np.frexp(x)[1])
    return np.float32(np.where(rng.uniform(size=shape) < draw(st.sampled_from([0, 0.3, 1])), 0, x))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(arrays())
def test_a_round_trip_stays_inside_the_bound_and_is_a_fixed_point(x):
    for name, kind, own, stored, read, again, bound in seen(x):
        assert read.dtype == jnp.float32 and read.shape == own.shape, name
        with np.errstate(invalid="ignore"):
            error = np.where(np.isinf(bound), 0, np.abs(np.float64(read) - np.float64(own)))
        assert (error <= np.float64(bound)).all(), (name, kind)
        beyond = np.isinf(bound)
        assert not beyond.any() or name == "int8 float16 scales" or abs(own).max() > 1 / TINY
        assert (read[own == 0] == 0)[~beyond[own == 0]].all(), (name, kind)
        if kind == "non_negative":
            assert (read[own != 0] >= TINY).all(), name
        elif not beyond.any():
            assert (np.sign(read) * np.sign(own) >= 0).all(), name
        if (abs(own[own != 0]) > FULL.get(name, 1e-27)).all() and not beyond.any():
            chex.assert_trees_all_equal(again, stored)


def test_the_bounds_are_tight():
    rng = np.random.default_rng(0)
    x = np.float32(rng.uniform(-1, 1, (512, 64)))
    x[:, ::32] = 1
    for name, kind, own, _, read, _, bound in seen(x):
        assert 0.5 <= (abs(np.float64(read) - own) / bound).max() <= 1, (name, kind)


# What the docstrings say, for a largest entry of 1: the error at an entry, for entries of either
# sign and of their roots.
SAID = {
    "bf16": (lambda x: 2.0**-8 * x, None),
    "f16": (lambda x: 2.0**-11 * x, lambda r: 2.0**-11 * r),
    "fp8 e4m3": (lambda x: x / 16, lambda r: r / 31),
    "fp8 e5m2": (lambda x: x / 8, lambda r: r / 15),
    "int8": (lambda x: np.where(x < 1 / 253, 1 / 504, 1 / 127), lambda r: 1 / 510 + 0 * r),
    "int4": (lambda x: np.where(x < 1 / 13, 1 / 25, 1 / 7), lambda r: 1 / 30 + 0 * r),
    "split": (lambda x: 2.0**-15.8 * x, None),
}


def test_the_errors_are_what_the_docstrings_say():
    x = np.float32(np.linspace(2.0**-9, 1, 2**15).reshape(-1, 2**6))
    x[:, ::32] = 1
    for name, kind, own, _, read, _, _ in seen(x):
        signed, roots = SAID.get(name, (None, None))
        if kind == "signed" and signed:
            assert (abs(read - own) <= 1.004 * signed(own)).all(), name
        if kind == "non_negative" and roots:
            enough = own >= 1 / 900
            error = abs(np.sqrt(read) - np.sqrt(own))[enough]
            assert (error <= 1.001 * roots(np.sqrt(own))[enough]).all(), name


def test_what_is_not_finite_is_seen():
    for bad in (np.nan, np.inf, -np.inf):
        x = np.ones((4, 64), np.float32)
        x[1, 5] = bad
        for name, _, _, _, read, _, _ in seen(x):
            assert not np.isfinite(read[1, 5]), name
            others = np.delete(read, 5, 1) if name == "int8 columns" else np.delete(read, 1, 0)
            assert np.isfinite(others).all(), name


def test_a_negative_second_moment_is_seen():
    x = np.ones((4, 64), np.float32)
    x[1, 5] = -1
    read = jax.jit(lambda x: storage.decode(storage.int8().encode(x, "non_negative")))(x)
    assert np.isnan(read[1, 5])


def test_the_ends_of_the_range():
    x = np.zeros((4, 64), np.float32)
    x[0], x[1], x[2], x[3] = float(jnp.finfo(jnp.bfloat16).max), TINY, -0.0, 2 * TINY
    x[3, ::2] = 1e-40
    for name, kind, own, _, read, _, bound in seen(x):
        if name == "int8 columns":
            continue
        if np.isinf(bound[0]).any():  # scales end at 8.5e37, those of float16 at 65504
            assert (~np.isfinite(read[0]) | (abs(read[0] / own[0] - 1) < 1 / 4)).all(), name
        else:
            assert (abs(np.float64(read[0]) - own[0]) <= bound[0]).all(), name
            assert name in ("bf16", "split", "by_slot") or kind == "non_negative"
        assert (abs(read[1] - TINY) <= bound[1]).all(), name
        assert (read[2] == 0).all(), name
        assert (abs(np.float64(read) - own) <= bound)[3].all(), name  # denormals count as zeros
        if kind == "non_negative":
            assert (read[1] >= TINY).all() and (read[3, 1::2] >= TINY).all(), name
    for name, _, own, _, read, _, bound in seen(np.full((4, 64), 1e-40)):
        assert (abs(np.float64(read) - own) <= bound).all(), name
    # Beyond the largest bfloat16, for scales 8.5e37, is infinity: no entry is finite and wrong.
    for _, _, _, _, read, _, bound in seen(np.full((4, 64), MAX)):
        assert (np.isinf(bound) | np.isfinite(read)).all()


def test_stochastic_rounding_is_right_in_the_mean():
    n = 4000
    rng = np.random.default_rng(1)
    # Of the largest entry an eighth and more: a square near zero is raised to the least there is.
    x = np.float32(rng.uniform(1 / 8, 1, (2, 32)) * [[1], [-1]])
    x[:, 0] = 1, -1  # a scale that no dtype rounds

    @partial(jax.jit, static_argnums=(0, 1))
    def mean_and_deviation(name, kind, keys):
        own = of_kind(x, kind)
        codec = CODECS[name]
        read = jax.vmap(lambda key: storage.decode(codec.encode(own, kind, key)))(keys)
        return jnp.mean(read - own[None], 0), jnp.std(read, 0)

    for name in ("bf16", "f16", "fp8 e4m3", "int8", "int4", "split"):
        for kind in KINDS[: 1 if name in ("bf16", "split") else 2]:
            keys = jax.random.split(jax.random.key(0), n)
            error, deviation = mean_and_deviation(name, kind, keys)
            assert (np.abs(error) <= 5 * deviation / n**0.5 + 1e-6).all(), (name, kind)
            # All entries together show what is wrong with one in the variable that is rounded.
            outward = np.mean(np.asarray(error) * np.sign(of_kind(x, kind)))
            assert abs(outward) <= 5 * np.mean(deviation**2) ** 0.5 / (n * x.size) ** 0.5 + 1e-7
            assert (deviation > 0).mean() > 0.5, (name, kind)


@cache
def example(shape, dtype=np.float32):
    return np.asarray(np.random.default_rng(len(shape)).standard_normal(shape), dtype)


@pytest.mark.parametrize("name", CODECS)
def test_shapes_and_lanes(name):
    codec, x = CODECS[name], example((3, 4, 64))

    @jax.jit
    def run(x, scalar):
        one_by_one = jnp.stack([storage.decode(codec.encode(part)) for part in x])
        lanes = jax.vmap(lambda x: storage.decode(codec.encode(x)))(x)
        read = storage.decode(codec.encode(scalar))
        return one_by_one, lanes, codec.encode(x), read, codec.error_bound(scalar)

    one_by_one, lanes, stored, read, bound = run(x, np.float32(3))
    np.testing.assert_allclose(lanes, one_by_one, rtol=1e-6)
    chex.assert_trees_all_equal_shapes_and_dtypes(jax.eval_shape(codec.encode, x), stored)
    assert abs(read - 3) <= bound < 0.02


@pytest.mark.parametrize("kind", KINDS)
def test_in_double_precision(kind, x64):
    x = of_kind(example((4, 64), np.float64), kind)

    @jax.jit
    def run(x, key):
        found = {}
        for name, codec in CODECS.items():
            read = storage.decode(codec.encode(x, kind))
            random = storage.decode(codec.encode(x, kind, key))
            found[name] = read, random, codec.error_bound(x, kind)
        return found

    for read, random, bound in run(x, jax.random.key(0)).values():
        assert read.dtype == random.dtype == jnp.float32
        assert (abs(np.float64(read) - x) <= bound + 2.0**-24 * abs(x)).all()
        assert (abs(np.float64(random) - x) <= 2.5 * bound + 2.0**-24 * abs(x)).all()


@pytest.mark.parametrize("name", [n for n in CODECS if n != "int8 columns"])
def test_groups_that_lie_within_shards_need_no_collective(name):
    mesh = jax.make_mesh((4, 2), ("rows", "columns"), axis_types=(AxisType.Explicit,) * 2)
    codec, x = CODECS[name], example((8, 1024))
    place = NamedSharding(mesh, P("rows", "columns"))
    where = jax.typeof
    with jax.set_mesh(mesh):
        sharded = jax.device_put(x, place)

        @jax.jit
        def run(x):
            stored = codec.encode(x, "non_negative")
            read = storage.decode(stored)
            for part in (*jax.tree.leaves(stored), read):
                assert where(part).sharding.spec == P("rows", "columns"), where(part)
            return storage.encode_like(stored, 2 * read), read

        compiled = run.lower(abs(sharded)).compile()
        text = compiled.as_text()
        assert not any(op in text for op in ("all-gather", "all-reduce", "all-to-all", "permute"))
        _, read = compiled(abs(sharded))
    alone = jax.jit(lambda x: storage.decode(codec.encode(x, "non_negative")))(abs(x))
    np.testing.assert_array_equal(np.asarray(read), np.asarray(alone))


def test_four_bits_take_half_a_byte_where_an_axis_allows():
    x = jnp.ones((6, 256))
    form = partial(jax.eval_shape, storage.int4().encode)
    assert form(x).codes.shape == (6, 128)
    assert form(x.T).codes.shape == (128, 6)
    assert form(jnp.ones((7, 35))).codes.dtype == jnp.int8


@pytest.mark.parametrize(
    ("codec", "signed", "non_negative"),
    [
        (storage.bf16(), 2, 2),
        (storage.f16(), 2 + 4 / 256, 2 + 4 / 256),
        (storage.fp8(), 1 + 4 / 256, 1 + 4 / 256),
        (storage.int8(), 1 + 4 / 64, 1 + 4 / 64),
        (storage.int4(), 1 / 2 + 4 / 128, 1 / 2 + 4 / 128),
        (storage.split(), 3, 3),
        (storage.factored(), 4, 4 * (256 + 512) / (256 * 512)),
    ],
    ids=str,
)
def test_bytes_of_an_entry(codec, signed, non_negative):
    x = jax.ShapeDtypeStruct((256, 512), jnp.float32)
    for kind, its in zip(KINDS, (signed, non_negative), strict=True):
        stored = jax.eval_shape(partial(codec.encode, kind=kind), x)
        parts = jax.tree.leaves(stored)
        assert sum(part.size * part.dtype.itemsize for part in parts) == its * x.size


def test_a_factored_moment_is_exact_for_rank_one():
    rows, columns = np.arange(1.0, 5), np.arange(2.0, 9)
    one = np.float32(np.outer(rows, columns))
    x = jnp.stack([one, 2 * one])
    stored = storage.factored().encode(x, "non_negative")
    assert sum(part.size for part in stored) == 2 * (4 + 7)
    np.testing.assert_allclose(storage.decode(stored), x, rtol=1e-6)
    assert storage.factored().encode(x, "signed") is x
    read = jax.jit(lambda x: storage.decode(storage.factored().encode(x, "non_negative")))
    np.testing.assert_array_equal(read(np.zeros((3, 4))), 0)
    tiny = np.zeros((3, 4), np.float32)
    tiny[1, 2], tiny[0] = TINY, 1
    assert read(tiny)[1, 2] >= TINY
    tiny[0, 1] = np.nan
    assert np.isnan(read(tiny)[0, 1])


def test_wrong_codecs_get_a_sentence():
    with pytest.raises(ValueError, match=r"group=.*whole number above 0, found 0"):
        storage.int8(0)
    with pytest.raises(ValueError, match=r"int4\(group=...\) must be at least 16, found 8"):
        storage.int4(8)
    with pytest.raises(ValueError, match=r"form.*'e4m3', 'e5m2'.*e3m4"):
        storage.fp8(form="e3m4")
    with pytest.raises(ValueError, match=r"scale_dtype.*'float32', 'float16', 'bfloat16'.*int8"):
        storage.int8(scale_dtype="int8")
    with pytest.raises(TypeError, match=r"axis.*whole number.*found 'rows'"):
        storage.int8(axis="rows")
    with pytest.raises(ValueError, match=r"int8\(axis=...\) is 2, but .* shape \(3, 4\)"):
        storage.int8(axis=2).encode(jnp.ones((3, 4)))
    with pytest.raises(
        ValueError, match=r"kind=.*must be 'signed' or 'non_negative', found 'square'"
    ):
        storage.int8().encode(jnp.ones((3, 4)), "square")
    with pytest.raises(TypeError, match=r"real floating point numbers, found one of complex64"):
        storage.int8().encode(jnp.ones((3, 4), complex))
    with pytest.raises(TypeError, match=r"'mu'.*must be a codec.*found 'bf16'"):
        storage.by_slot({"mu": "bf16"})
    with pytest.raises(TypeError, match=r"call it, as in int8\(\)"):
        storage.by_slot({"mu": storage.int8})
