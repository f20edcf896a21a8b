"""What does not fit gets a sentence that names the argument, the slot or the param."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optfn
from optfn import storage

TX = optfn.adamw(1e-2)
PARAMS = {"w": jnp.ones((64, 96))}
BF16, F16 = ({"w": jnp.ones((64, 96), dtype)} for dtype in (jnp.bfloat16, jnp.float16))
ONES = jnp.ones(64)
CODECS = [
    *(storage.bf16(), storage.f16(), storage.fp8(), storage.int8(), storage.int4()),
    *(storage.factored(), storage.split(), storage.by_slot({"mu": storage.bf16()})),
]
WRONG_KEY: Any = 3

WRONG = {
    "a class": (lambda: optfn.store(TX, storage.int8), r"store\(codec=.*; call it, as in int8\(\)"),
    "a name": (lambda: optfn.store(TX, "int8"), r"store\(codec=.*write storage.int8\(\)"),
    "a dtype": (lambda: optfn.store(TX, jnp.bfloat16), r"store\(codec=.*write storage.bf16\(\)"),
    "no codec": (
        lambda: optfn.store(TX, {"mu": 8}),
        r"store\(codec=\.\.\.\), 'mu', must be a codec",
    ),
    "no name": (lambda: optfn.store(TX, {1: storage.bf16()}), r"store\(codec=.*string, found 1"),
    "no slot": (
        lambda: optfn.store(TX, {"mv": storage.bf16()}).init(PARAMS),
        r"store\(codec=\.\.\.\): 'mv' is no slot that may be rounded",
    ),
    "fp8": (lambda: storage.fp8("e3m4"), r"fp8\(form=\.\.\.\) must be one of"),
    "decode": (lambda: storage.decode(storage.int8()), r"decode\(stored\) must be what a codec"),
    "decode None": (lambda: storage.decode(None), r"decode\(stored\).*NoneType"),
    "encode_like stored": (
        lambda: storage.encode_like(storage.int8(), ONES),
        r"encode_like\(stored, x, key\): stored must be what",
    ),
    "encode_like shape": (
        lambda: storage.encode_like(storage.int8().encode(ONES), jnp.ones(3)),
        r"x has shape \(3,\), stored is an array of \(64,\)",
    ),
    "encode_like key": (
        lambda: storage.encode_like(storage.int8().encode(ONES), ONES, WRONG_KEY),
        "key must be a random key or None, found int",
    ),
    "offload nothing": (lambda: optfn.offload(TX, ()), r"offload\(slots=\.\.\.\) must be the name"),
    "params": (
        lambda: optfn.convert_state(TX, TX.init(PARAMS), None),
        "params must be given, found None",
    ),
    "shapes": (
        lambda: optfn.convert_state(TX, TX.init(PARAMS), {"w": jnp.ones((3, 2))}),
        r"at 'scale_by_adam/mu/w' it has shape \(64, 96\), wanted \(3, 2\)",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_sentence_says_what_is_wrong(name):
    call, message = WRONG[name]
    with pytest.raises((TypeError, ValueError), match=message):
        call()


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: type(codec).__name__)
def test_every_codec_says_what_it_takes(codec):
    name = type(codec).__name__
    for method in (codec.encode, codec.error_bound):
        for x in (None, 1.0, [1.0], jnp.arange(3), 1j * ONES):
            with pytest.raises(TypeError, match=rf"{name}\.\w+\(x=.*must be an array of real"):
                method(x)
        with pytest.raises(ValueError, match=rf"{name}\.\w+\(kind=.*'non_negative', found 'up'"):
            method(ONES, "up")
    with pytest.raises(TypeError, match=rf"{name}\.encode\(key=\.\.\.\) must be a random key"):
        codec.encode(ONES, "signed", 3)
    codec.encode(np.ones(64, np.float32), key=jax.random.key(0))


def test_the_form_of_fp8_comes_first():
    assert storage.fp8("e5m2").form == "e5m2" and storage.fp8("e5m2", 64).group == 64
    assert eval(repr(storage.fp8("e5m2", 64))).form == "e5m2"


@pytest.mark.parametrize("codec", [storage.bf16(), storage.int8(), {"nu": storage.factored()}])
def test_the_state_of_an_optimizer_that_stores_nothing_is_refused(codec):
    """It would go on in float32, and nobody would notice."""
    stored, state = optfn.store(TX, codec), TX.init(PARAMS)
    slot = "nu" if isinstance(codec, dict) else "mu"
    with pytest.raises(ValueError, match=rf"state's scale_by_adam.{slot}.*convert_state"):
        jax.eval_shape(stored.update, PARAMS, state, PARAMS)
    kept = optfn.convert_state(stored, state, PARAMS)
    jax.eval_shape(stored.update, PARAMS, kept, PARAMS)


def test_what_is_left_in_float32_is_not_refused():
    plain = optfn.adam(1e-2)
    for tx in (
        optfn.store(plain, storage.int8(), False),
        optfn.store(plain, {"mu": storage.factored()}),
        optfn.store(optfn.store(plain, storage.int8()), storage.bf16()),
        optfn.store(plain, storage.int8(), lambda path, leaf: leaf.dtype == jnp.float32),
    ):
        state = jax.eval_shape(tx.init, PARAMS)
        jax.eval_shape(tx.update, PARAMS, state, PARAMS)
    state = jax.eval_shape(tx.init, BF16)  # none of these params is chosen
    jax.eval_shape(tx.update, PARAMS, state)


@pytest.mark.parametrize("make", [optfn.compensated, optfn.master], ids=["compensated", "master"])
def test_params_of_another_dtype_or_name_are_refused(make):
    tx = make(TX)
    state = tx.init(BF16)
    with pytest.raises(ValueError, match=r"at 'w' .* keeps .* of a float16 param"):
        tx.update(F16, state, F16)
    with pytest.raises(ValueError, match=r"at 'w' .* keeps .* of a bfloat16 param"):
        tx.update(BF16, tx.init(F16), BF16)
    with pytest.raises(ValueError, match="'w' lack, found such params 'v'"):
        optfn.master_params(tx, state, {"v": BF16["w"]})
    with pytest.raises(ValueError, match="'w' lack, found such params none"):
        optfn.master_params(tx, state, PARAMS)


# By the storage of the optimizer: the optimizer that made the state, and what is found and wanted.
OTHERWISE = {
    "bf16 for int8": (storage.int8(), optfn.adam(1e-2, mu_dtype="bfloat16"), "bfloat16", "Int8"),
    "stored bf16 for int8": (storage.int8(), optfn.store(TX, storage.bf16()), "bfloat16", "Int8"),
    "int4 for int8": (storage.int8(), optfn.store(TX, storage.int4()), r"Int4 \(.*\)", "Int8"),
    "int8 for bf16": (storage.bf16(), optfn.store(TX, storage.int8()), r"Int8 \(.*\)", "bfloat16"),
    "scales": (
        *(storage.int8(scale_dtype="bfloat16"), optfn.store(TX, storage.int8())),
        *(r"Int8 \(int8 and float32\)", r"Int8 \(int8 and bfloat16\)"),
    ),
}


@pytest.mark.parametrize("name", OTHERWISE)
def test_a_state_that_is_stored_otherwise_is_refused(name):
    codec, made_by, found, wanted = OTHERWISE[name]
    stored, state = optfn.store(optfn.adam(1e-2), codec), made_by.init(PARAMS)
    message = rf"scale_by_adam.mu of shape \(64, 96\) is {found}, wanted {wanted}.*convert_state"
    for params in (PARAMS, None):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(stored.update, PARAMS, state, params)
    kept = optfn.convert_state(stored, state, PARAMS)
    jax.eval_shape(stored.update, PARAMS, kept, PARAMS)


def test_what_is_inside_may_store_its_own_slots():
    for inside in (optfn.adam(1e-2, mu_dtype="bfloat16"), optfn.store(TX, {"mu": storage.int4()})):
        tx = optfn.store(inside, storage.int8())
        state = jax.eval_shape(tx.init, PARAMS)
        jax.eval_shape(tx.update, PARAMS, state, PARAMS)
        plain = jax.eval_shape(TX.init, PARAMS)
        with pytest.raises(ValueError, match=r"mu .* is float32, wanted (bfloat16|Int4)"):
            jax.eval_shape(tx.update, PARAMS, plain, PARAMS)
