"""What the benchmarks share: trees, fair comparisons and reports."""

import argparse
import datetime
import importlib.metadata
import json
import math
import multiprocessing
import os
import platform
import random
import re
import shlex
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
from scipy import stats

import optfn
from optfn import sweep

FRESH_SEED = 100

# Trees of shapes, by name.


def leaf(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def many(shapes: Iterable[tuple[int, ...]]) -> dict[str, jax.ShapeDtypeStruct]:
    return {f"layer_{i}": leaf(*shape) for i, shape in enumerate(shapes)}


def gpt2(width: int = 128, layers: int = 12, vocabulary: int = 50257, context: int = 1024) -> dict:
    """The params of GPT-2 small, six times narrower: 148 leaves."""

    def dense(inputs, outputs):
        return {"kernel": leaf(inputs, outputs), "bias": leaf(outputs)}

    def norm():
        return {"scale": leaf(width), "bias": leaf(width)}

    blocks = {
        f"block_{i}": {
            "norm_1": norm(),
            "attention": {"qkv": dense(width, 3 * width), "out": dense(width, width)},
            "norm_2": norm(),
            "mlp": {"up": dense(width, 4 * width), "down": dense(4 * width, width)},
        }
        for i in range(layers)
    }
    embeddings = {"token": leaf(vocabulary, width), "position": leaf(context, width)}
    return {"embeddings": embeddings, **blocks, "norm": norm()}


TREES: dict[str, Callable[[], Any]] = {
    "one_16m": lambda: {"kernel": leaf(2**24)},
    "equal_64x64": lambda: many([(64, 64)] * 400),
    "equal_16": lambda: many([(16,)] * 400),
    "many_16": lambda: many([(16,)] * 4000),
    "distinct": lambda: many([(i, 16) for i in range(1, 401)]),
    "gpt2": gpt2,
    "24 of 256x256": lambda: many([(256, 256)] * 24),
    "8 of 256x1024": lambda: many([(256, 1024)] * 8),
    "48 layers": lambda: many([(64, 64), (64, 256), (256, 64)] * 48),
    "tiny": lambda: many([(8, 8), (8,)] * 3),
    "one_8": lambda: {"kernel": leaf(8)},
}


# Fair comparisons.


def in_fresh_process(function: Callable, *args: Any) -> Any:
    """The result of a module's function in a new interpreter, with empty caches and a new heap."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_call_and_report, function, *args).result()


def _call_and_report(function: Callable, *args: Any) -> Any:
    """Some of JAX's errors cannot be sent between processes; their text can."""
    try:
        return function(*args)
    except Exception:
        raise RuntimeError(traceback.format_exc()) from None


def interleaved(timers: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """The seconds of each timer, round by round.

    Each round has a random order, so that no timer profits from always following the same other.
    """
    order, seconds = list(timers), {name: [] for name in timers}
    shuffle = random.Random(0).shuffle
    for _ in range(rounds):
        shuffle(order)
        for name in order:
            seconds[name].append(timers[name]())
    return seconds


def ratio(seconds: Mapping[str, Sequence[float]], name: str, peer: str) -> float:
    """The median over the rounds of a timer's seconds relative to its peer's in the same round."""
    return statistics.median(a / b for a, b in zip(seconds[name], seconds[peer], strict=True))


def spread(control: Iterable[float]) -> float:
    """The smallest s such that the ratios of equal programs are within [1 / s, s]."""
    return max(math.exp(abs(math.log(x))) for x in control)


def timer(program: Callable[[Any], Any], carry: Any, steps: int) -> Callable[[], float]:
    """A function that trains on and returns the seconds of a step.

    Args:
        program: gives the carry after so many steps, and may take the buffers of the one it gets.
        carry: where it starts.
        steps: how many one call takes.
    """

    def run() -> float:
        nonlocal carry
        began = time.perf_counter()
        carry = jax.block_until_ready(program(carry))
        return (time.perf_counter() - began) / steps

    run()
    return run


def on_fresh_seeds(tuning: sweep.Result, seeds: int) -> sweep.Result:
    """The best trial of a sweep trained again, from so many seeds that are the same for all."""
    trials = [tuning.best().trial] * seeds
    fresh = tuning.train_again(trials, lambda number: (FRESH_SEED + number,))
    while fresh.advance():
        pass
    return sweep.Result.of(fresh, 0.0)


class Interval(NamedTuple):
    """A mean over seeds, and half the width of its 95 % interval by Student's t."""

    mean: float
    half: float

    @classmethod
    def of(cls, values: Any) -> "Interval":
        """Of two values or more; infinite if one is not finite, as when a run diverged."""
        if not np.isfinite(values).all():
            return cls(float("inf"), 0.0)
        error = stats.sem(values)
        return cls(float(np.mean(values)), float(error * stats.t.ppf(0.975, len(values) - 1)))

    def verdict(self, below: str, above: str) -> str:
        """Whether the whole interval is below or above 0, otherwise a tie."""
        if abs(self.mean) <= self.half:
            return "tie"
        return below if self.mean < 0 else above

    def shown(self, digits: int) -> str:
        return f"{self.mean:.{digits}f} ± {self.half:.{digits}f}"


_compiled = 0


def compilations() -> int:
    """How many programs XLA has compiled in this process, by JAX's monitoring."""
    return _compiled


def _count_compilation(event: str, *_: Any, **__: Any) -> None:
    global _compiled
    _compiled += event == "/jax/core/compile/backend_compile_duration"


jax.monitoring.register_event_duration_secs_listener(_count_compilation)


# Command line and reports.


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def shown(row: list[str]) -> list[str]:
    """Shows a row of a table as soon as it is known, and returns it."""
    progress("  " + " | ".join(row))
    return row


def listed(allowed: Iterable[str]) -> Callable[[str], list[str]]:
    """The argparse type of a comma-separated choice."""
    allowed = list(allowed)

    def parse(text: str) -> list[str]:
        names = text.split(",")
        unknown = [name for name in names if name not in allowed]
        if unknown:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(allowed)}")
        return names

    return parse


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark has."""
    new = argparse.ArgumentParser(description=description)
    new.add_argument("--quick", action="store_true", help="a short check, no evidence")
    new.add_argument("--record", type=Path, metavar="PATH", help="write the report to this file")
    return new


def kept(
    folder: Path | None, name: str, settings: Mapping[str, Any], measure: Callable, *args: Any
) -> Any:
    """What `measure(*args)` gives, or what it gave before, if that is in the folder.

    Args:
        folder: where results are, or are to be, kept; None keeps none.
        name: of the result's file.
        settings: those of the measurement, kept with the result, in the form of JSON.
        measure: a function whose result JSON can hold.
        *args: its arguments.

    Raises:
        ValueError: the result in the folder is of other settings.
    """
    if folder is None:
        return measure(*args)
    path = folder / f"{name}.json"
    if path.exists():
        found = json.loads(path.read_text())
        if found["settings"] != settings:
            raise ValueError(
                f"{path} has the settings {found['settings']}, wanted {settings}: take another "
                "folder, or remove the file."
            )
        progress(f"  from {path.name}")
        return found["result"]
    result = measure(*args)
    folder.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps({"settings": settings, "result": result}))
    part.replace(path)  # so that an interruption leaves no half of a file
    return result


class Report:
    """A markdown report that lists missed targets first."""

    def __init__(self, title: str):
        self.title = title
        self.shortfalls: list[str] = []
        self.tables: list[str] = []

    def add_table(self, title: str, note: str, header: Sequence[str], rows: Iterable) -> None:
        lines = [header, ["---"] * len(header), *rows]
        table = "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
        self.tables.append(f"## {title}\n\n{note}\n\n{table}\n")

    def judge(self, holds: bool, what: str) -> str:
        """A cell of a table; a miss is also listed at the top of the report."""
        if not holds:
            self.shortfalls.append(what)
        return "pass" if holds else "MISS"

    def text(self) -> str:
        short = self.shortfalls or ["Nothing: every target was met."]
        return "\n".join(
            [
                f"# {self.title}\n",
                *(f"- {line}" for line in conditions()),
                "\n## What fell short\n",
                *(f"- {line}" for line in short),
                "",
                *self.tables,
            ]
        )

    def publish(self, record: Path | None) -> None:
        """Prints the report, and writes it to `record` if given."""
        text = self.text()
        print(text)
        if record is not None:
            record.write_text(text)


def conditions() -> list[str]:
    """Date, versions, machine and call, without paths and without the machine's name."""
    packages = [f"{name} {importlib.metadata.version(name)}" for name in ("jax", "jaxlib", "optax")]
    versions = [f"Python {platform.python_version()}", *packages, f"optfn {optfn.__version__}"]
    return [
        f"Date: {datetime.date.today()}",
        f"Versions: {', '.join(versions)}",
        f"Machine: {processor()}, {os.cpu_count()} cores, {platform.system()}; "
        f"JAX on {jax.devices()[0].device_kind}",
        f"Call: `{call()}`",
    ]


def processor() -> str:
    """The model of the CPU."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def call() -> str:
    """This run's command line, from the project's root; absolute paths lose their folder."""
    script, *options = sys.argv
    options = [re.sub(r"(^|=)/.*/", r"\1", option) for option in options]
    return shlex.join(["python", f"benchmarks/{Path(script).name}", *options])
