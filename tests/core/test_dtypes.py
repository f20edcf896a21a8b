"""The dtype policy."""

import jax.numpy as jnp
import numpy as np
import pytest

from optfn.core.dtypes import cast, cast_numbers, compute_dtype
from optfn.optimizers.elementwise.adam import scale_by_adam


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        ([], "float32"),
        (["bfloat16"], "float32"),
        (["float8_e4m3fn", "float8_e5m2"], "float32"),
        (["float16", "bfloat16"], "float32"),
        (["bfloat16", "float64"], "float64"),
        (["complex64", "float16"], "complex64"),
        (["complex64", "float64"], "complex128"),
    ],
)
def test_compute_dtype(dtypes, expected, x64):
    assert compute_dtype(*map(jnp.dtype, dtypes)) == expected


def test_cast_is_strong_and_free_where_nothing_changes():
    x = jnp.ones(3)
    assert cast(x, x.dtype) is x
    weak = jnp.asarray(1.0)
    assert weak.weak_type and not cast(weak, weak.dtype).weak_type


def test_known_numbers_are_worked_out_while_tracing():
    """`1 - b1` of a constant costs no operation in the program."""
    rule = cast_numbers(scale_by_adam(b1=0.9, b2=jnp.float32(0.99)), jnp.float32)
    assert isinstance(rule.b1, np.float32)
    assert isinstance(1 - rule.b1, np.float32)
    assert rule.b2.dtype == jnp.float32
    assert rule.nesterov is False
