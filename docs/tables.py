"""Rewrites the generated tables of the README and the docs: `python docs/tables.py`.

Each is between `<!-- name: python docs/tables.py -->` and `<!-- end -->`; a test compares it with
the output of this script.
"""

import inspect
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import jax
import jax.numpy as jnp
import optax
import optax_names
from legs import LEGS

import optfn
from optfn import storage
from optfn.core.optax_names import ELSEWHERE, PLANNED
from optfn.testing import ConformanceError, check_transform
from optfn.testing.checks import CHECKS

Table = list[list[str]]


def algorithms() -> Table:
    """The optimizers, with their legs and sources."""
    rows = [["algorithm", "stage", "oracle", "optax", "golden", "theorem", "source"]]
    for name, leg in LEGS.items():
        text = f"{inspect.getdoc(getattr(optfn, name))}\n\n"
        source = re.search(r"Source: (.*?)\.?\n\n", text, re.DOTALL)
        assert source, f"the docstring of {name} names no source"
        marks = ["yes" if getattr(leg, kind) else "" for kind in ("oracle", "optax")]
        marks.append(", ".join(leg.golden))
        stages = ", ".join(f"`{stage}`" for stage in leg.stages)
        rows.append([f"`{name}`", stages, *marks, leg.claim, " ".join(source.group(1).split())])
    return rows


def checks() -> Table:
    """The checks, with their docstrings."""
    rows = [["check", "what must hold"]]
    rows += [[f"`{name}`", inspect.getdoc(check) or ""] for name, check in CHECKS.items()]
    return rows


OPTAX = {
    "sgd": optax.sgd(0.05),
    "sgd, momentum": optax.sgd(0.01, 0.9),
    "rmsprop": optax.rmsprop(0.02),
    "adam": optax.adam(0.1),
    "adam, injected": optax.inject_hyperparams(optax.adam)(0.1),
    "lion": optax.lion(0.03),
    "adafactor": optax.adafactor(0.1),
    "prodigy": optax.contrib.prodigy(1.0),
    "schedule_free_adamw": optax.contrib.schedule_free_adamw(0.1),
}


def findings() -> Table:
    """The checks that some of optax's optimizers fail."""
    failed = {}
    for name, tx in OPTAX.items():
        try:
            check_transform(tx)
            failed[name] = set()
        except ConformanceError as error:
            failed[name] = {failure.check for failure in error.failures}
    columns = [check for check in CHECKS if any(check in checks for checks in failed.values())]
    return [["optax", *(f"`{c}`" for c in columns)]] + [
        [name, *("fails" if c in checks else "" for c in columns)]
        for name, checks in failed.items()
    ]


def elsewhere() -> Table:
    """The names of optax that are written otherwise here."""
    rows = [["optax", "optfn"]]
    for name, text in ELSEWHERE.items():
        value = optax_names.in_optax(name)
        call = (
            f"({', '.join(optax_names.parameters(value))})"
            if inspect.isfunction(value) or name == "MultiSteps"
            else ""
        )
        rows.append([f"`{name}{call}`", text])
    return rows


def other_arguments() -> Table:
    """The names that are here too, with arguments that a caller of optax's has to change."""
    written = {name: optax_names.differences(name) for name in _of_kind("same")}
    rows = [[f"`{name}`", "; ".join(text)] for name, text in sorted(written.items()) if text]
    return [["name", "in optfn"], *rows]


def same_arguments() -> Table:
    """The names that are here too, with the same arguments."""
    return _lists({"the same": [n for n in _of_kind("same") if not optax_names.differences(n)]})


def optax_s_own() -> Table:
    """The names that are optax's alone, by what to do about them."""
    reasons: dict[str, list[str]] = {}
    for module, name in optax_names.names():
        reason = optax_names.kind(module, name)
        if reason not in ("same", "elsewhere", "planned"):
            place = "" if module == "optax" else module.removeprefix("optax.") + "."
            reasons.setdefault(reason, []).append(place + name)
    return _lists(reasons | {"not here yet; works through `from_optax`": [*PLANNED]})


def _of_kind(kind: str) -> list[str]:
    return [name for module, name in optax_names.names() if optax_names.kind(module, name) == kind]


def _lists(names: dict[str, list[str]]) -> Table:
    rows = [
        [what, ", ".join(f"`{name}`" for name in sorted(those))] for what, those in names.items()
    ]
    return [["", "names"], *rows]


def memory() -> Table:
    """Bytes of state a param of every optimizer, by how it is stored."""
    codecs = {
        "bf16": storage.bf16(),
        "int8": storage.int8(),
        "int4": storage.int4(),
    }
    rows = [["optimizer", "float32", *codecs, "24-bit params, int8"]]
    for name in LEGS:
        wide, narrow = (
            {"layer": {"kernel": jax.ShapeDtypeStruct((1024, 4096), dtype)}}
            for dtype in (jnp.float32, jnp.bfloat16)
        )
        tx = _with_required(getattr(optfn, name))
        ways = [tx, *(optfn.store(tx, codec) for codec in codecs.values())]
        found = [optfn.summary(way, wide) for way in ways]
        found.append(optfn.summary(optfn.master(optfn.store(tx, storage.int8())), narrow))
        rows.append([f"`{name}`", *(f"{one.bytes_per_param:.2f}" for one in found)])
    return rows


def _with_required(function: Callable) -> optfn.Transform:
    """The optimizer with its defaults."""
    given = {"learning_rate": 1e-3}
    required = [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is parameter.empty and parameter.kind is not parameter.VAR_POSITIONAL
    ]
    return function(**{name: given[name] for name in required})


TABLES: dict[tuple[str, str], Callable[[], Table]] = {
    ("README.md", "algorithms"): algorithms,
    ("docs/conformance.md", "checks"): checks,
    ("docs/conformance.md", "findings"): findings,
    ("docs/memory.md", "memory"): memory,
    ("docs/optax_table.md", "elsewhere"): elsewhere,
    ("docs/optax_table.md", "arguments"): other_arguments,
    ("docs/optax_table.md", "same"): same_arguments,
    ("docs/optax_table.md", "own"): optax_s_own,
}


def markdown(table: Table) -> str:
    header, *rows = table
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def section(page: str, name: str) -> re.Pattern:
    return re.compile(rf"(<!-- {name}: python docs/tables.py -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def main() -> None:
    for (page, name), table in TABLES.items():
        path = ROOT / page
        text = markdown(table())
        path.write_text(
            section(page, name).sub(lambda m, t=text: m[1] + t + m[3], path.read_text())
        )
        print(f"wrote {name} in {page}")


if __name__ == "__main__":
    main()
