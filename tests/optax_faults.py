"""What optax 0.2.8 does wrong, asserted for this version alone; a later one may have mended it."""

import contextlib

import optax
import pytest

IS_KNOWN = optax.__version__ == "0.2.8"


def wrong_in_optax(observed):
    assert observed or not IS_KNOWN


def error_in_optax(*args, **kwargs):
    return pytest.raises(*args, **kwargs) if IS_KNOWN else contextlib.suppress(args[0])
