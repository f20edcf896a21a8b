"""Strict settings for all tests: rank promotion raises, warnings are errors, eight CPU devices."""

import gc
import os
from importlib.metadata import version
from itertools import count
from pathlib import Path

# What is imported and collected stays, and is most of what there is: the garbage collector need not
# look through it again and again.
gc.disable()

flags = [os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8"]
# The tests compile thousands of programs and run each a few times: LLVM need not optimize them, nor
# be started for each of many parts of one, as that is most of the time of compiling. The examples
# run with the defaults.
flags += ["--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true"]
flags.append("--xla_cpu_parallel_codegen_split_count=1")
if version("jaxlib").startswith(("0.7.", "0.8.", "0.9.", "0.10.")):
    # Of its two code generators the default one takes twice as long; later versions have one alone,
    # which does not, and refuse the flag.
    flags.append("--xla_cpu_use_fusion_emitters=false")
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join(flags).strip()

import jax
import pytest

from optfn.testing.checks import enable_x64

try:
    from jax._src.interpreters import mlir
except ImportError:
    mlir = None

jax.config.update("jax_numpy_rank_promotion", "raise")
# Without a folder there is no such cache, but its keys are computed.
jax.config.update("jax_enable_compilation_cache", False)


def sharing(make, programs=200):
    """Makes one for so many programs, one after the other."""
    made, calls = None, count()

    def shared():
        nonlocal made
        made = make() if next(calls) % programs == 0 else made
        return made

    return shared


# Each program is lowered in an MLIR context of its own, and to make that takes twice as long as to
# lower a small program in it, and more memory. The function is private to jax: without it all is as
# slow as it was.
if hasattr(mlir, "make_ir_context"):
    mlir.make_ir_context = sharing(mlir.make_ir_context)

TESTS = Path(__file__).parent
# What `pytest -m oldest` runs but for what is marked `newest` or `slow`, and alone imports: others
# need packages that ask for a newer jax.
OLDEST = [TESTS / name for name in ("core", "interop", "testing/test_checks.py")]
# What these compare with is not in the oldest optax, or otherwise there.
NEWEST = [TESTS / "interop" / name for name in ("test_optax_state.py", "test_optax_matrices.py")]


def is_oldest(path: Path) -> bool:
    return any(map(path.is_relative_to, OLDEST)) and path not in NEWEST


def pytest_ignore_collect(collection_path, config):
    if config.option.markexpr == "oldest" and collection_path.suffix == ".py":
        return not is_oldest(collection_path) or None
    return None


def pytest_collection_finish():
    """From here on garbage is collected, of what is made from here on.

    Tracing makes so many objects that by default it would be looked for too often.
    """
    gc.freeze()
    gc.set_threshold(10_000)
    gc.enable()


def pytest_collection_modifyitems(items):
    for item in items:
        left_out = any(item.iter_markers("slow")) or any(item.iter_markers("newest"))
        if is_oldest(item.path) and not left_out:
            item.add_marker("oldest")


@pytest.fixture
def x64():
    """Runs the test in double precision."""
    with enable_x64(True):
        yield


# So many programs a process keeps from one file to the next.
KEPT = 2000
programs = 0


def note_program(event, duration, **kwargs):
    global programs
    programs += event.endswith("backend_compile_duration")


jax.monitoring.register_event_duration_secs_listener(note_program)


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """Drops the compiled programs of the last files, which have many small ones in common.

    Each program holds its trace and several memory maps, of which Linux gives a process 65,530; XLA
    dies without a word where there are no more. (Before 0.8 jax may abort when it drops them.)
    """
    global programs
    yield
    if jax.__version_info__ >= (0, 8) and programs > KEPT:
        jax.clear_caches()
        programs = 0
