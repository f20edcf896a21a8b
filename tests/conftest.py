"""Strict settings for all tests: rank promotion raises, warnings are errors, eight CPU devices."""

import os
from importlib.metadata import version

flags = [os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8"]
if version("jaxlib").startswith("0.10."):
    # Of its two code generators the default one takes twice as long; later versions have one alone,
    # which does not, and refuse the flag. The examples run with the default.
    flags.append("--xla_cpu_use_fusion_emitters=false")
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join(flags).strip()

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def x64():
    """Runs the test in double precision."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module", autouse=True)
def programs_of_its_own():
    """Every program holds tens of memory maps, of which Linux gives a process 65,530.

    XLA dies without a word where there are no more, so no file leaves its programs behind.
    """
    yield
    jax.clear_caches()
