"""AdamW with 8-bit moments and 24-bit params against a path of `golden/make_storage.py`.

The formats are the same. `FlashAdamW` divides by the scale of a group, XLA multiplies by the
inverse, so a share that lies half way between two codes may become either.
"""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from walk import walked

import optfn
from optfn import storage

with np.load(Path(__file__).parents[1] / "golden" / "storage.npz") as file:
    GOLDEN = dict(file)
META = json.loads(GOLDEN["meta"].item())
P0 = np.float32(GOLDEN["p0"]) / 64
GRADS = np.ldexp(np.float32(GOLDEN["grads"]), GOLDEN["exponents"])


def eight_bit_adamw():
    h = META["hyperparameters"]
    tx = optfn.adamw(h["lr"], *h["betas"], h["eps"], weight_decay=h["weight_decay"])
    return optfn.store(tx, storage.int8(32, scale_dtype="float16"), leaves=True)


def assert_moments(slots, case, steps):
    """All but 5 in 4096 codes are the same, those of the first moment and all scales to the bit."""
    for slot, name, differing in ((slots.mu, "exp_avg", 0), (slots.nu, "exp_avg_sq", 5)):
        stored = f"{case}_{name}"
        np.testing.assert_array_equal(slot.scales, GOLDEN[f"{stored}_scales_{steps}"])
        off = np.int32(slot.codes) - GOLDEN[f"{stored}_quantized_{steps}"]
        assert abs(off).max() <= 1 and (off != 0).sum() <= differing


@pytest.mark.parametrize("steps", [1, 20])
def test_eight_bits(steps):
    params, state = walked(eight_bit_adamw(), jnp.asarray(P0), GRADS[:steps])
    assert_moments(state.slots["scale_by_adam"], "float32", steps)
    off = abs(np.asarray(params) - GOLDEN[f"float32_params_{steps}"])
    assert off.max() < 1e-4 and (off > 1e-6).sum() <= 10


@pytest.mark.parametrize("steps", [1, 20])
def test_eight_bits_and_params_of_24(steps):
    """Here the rest is read as 2^-12 of it less, so that encoding it again changes nothing."""
    tx = optfn.master(eight_bit_adamw())
    params, state = walked(tx, jnp.asarray(P0, jnp.bfloat16), GRADS[:steps])
    slots = state.slots["master"]
    assert_moments(slots.inner["scale_by_adam"], "bfloat16", steps)
    theirs = GOLDEN[f"bfloat16_params_{steps}"], GOLDEN[f"bfloat16_error_bits_{steps}"]
    if steps == 1:
        np.testing.assert_array_equal(np.float32(params), theirs[0])
        np.testing.assert_array_equal(slots.rest, theirs[1])
    half = 2.0 ** (np.floor(np.log2(abs(theirs[0]))) - 8)
    full = np.asarray(optfn.master_params(tx, state, params))
    off = abs(full - (theirs[0] + theirs[1] / 127 * half)) / abs(theirs[0])
    assert off.max() < steps * 2.0**-16 and np.median(off) < 2.0**-16
