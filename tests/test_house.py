"""The order of the house: imports go one way, classes are small, policies stand on their own."""

import ast
import re
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "optfn").rglob("*.py"))

# From the ground up; a layer imports itself and those before it.
LAYERS = (
    ("core",),
    ("linalg",),
    ("schedules", "projections", "transforms", "microbatching", "privacy"),
    ("storage",),
    ("compose",),
    ("optimizers",),
    ("fits", "width_transfer", "config", "interop", "recipes"),
    ("__init__",),
    ("sweep", "testing"),
)
CLASS_LINES = {"sweep": 300, "core": 320}


def module(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


TREES = {module(path): ast.parse(path.read_text()) for path in FILES}


def imports(name):
    """The modules of optfn that a module imports, also inside of its functions."""
    found = set()
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inner & TREES.keys() or {node.module}
    return {other for other in found & TREES.keys() if other != name}


def layer(name):
    part = [*name.split("."), "__init__"][1]
    return next(i for i, names in enumerate(LAYERS) if part in names)


def test_no_module_imports_in_a_circle():
    TopologicalSorter({name: imports(name) for name in TREES}).prepare()


def test_no_layer_imports_a_higher_one():
    upward = [(a, b) for a in TREES for b in imports(a) if layer(a) < layer(b)]
    assert not upward


def test_importing_the_library_does_not_import_the_sweeps():
    seen, left = set(), {"optfn"}
    while left:
        seen |= left
        left = set().union(*map(imports, left)) - seen
    assert not any(layer(name) == layer("optfn.sweep") for name in seen)


def test_what_training_does_not_need_is_loaded_when_it_is_asked_for():
    code = """
import sys, optfn
assert not {"optfn.sweep", "optfn.testing"} & sys.modules.keys()
assert optfn.sweep.LogUniform(1e-3, 1.0) and optfn.testing.check_transform
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_scheduler_knows_no_lanes():
    parts = {"engine", "lane", "stream"}
    assert not {name.rpartition(".")[2] for name in imports("optfn.sweep.scheduler")} & parts


@pytest.mark.parametrize("part", CLASS_LINES)
def test_a_class_is_one_idea(part):
    lengths = {
        f"{name}.{node.name}": node.end_lineno - node.lineno + 1
        for name, tree in TREES.items()
        if name.startswith(f"optfn.{part}")
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }
    assert {name: n for name, n in lengths.items() if n > CLASS_LINES[part]} == {}


def test_nothing_asks_for_a_policy_by_its_class():
    policies = {
        node.name: name
        for name, tree in TREES.items()
        if name.startswith("optfn.sweep.policies")
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and node.name not in ("Policy", "Copy", "Verdict")
    }
    assert {"asha", "pbt", "hyperband", "run_all", "from_optuna"} <= policies.keys()
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            asked = set()
            if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                "isinstance",
                "issubclass",
            ):
                asked = names_in(node.args[1])
            elif isinstance(node, ast.Compare) and "type(" in ast.unparse(node):
                asked = names_in(node)
            elif isinstance(node, ast.MatchClass):
                asked = names_in(node.cls)
            assert not [p for p in asked & policies.keys() if policies[p] != name], name


def names_in(tree):
    nodes = list(ast.walk(tree))
    return {x.id for x in nodes if isinstance(x, ast.Name)} | {
        x.attr for x in nodes if isinstance(x, ast.Attribute)
    }


GONE = ("finishes", "finishes_inside", "why_not_root", "stands_last", "of_unknown_side")
GONE += ("check_finished", "check_nothing_last")


def test_one_algebra_is_in_the_place_of_the_guards():
    for path in FILES:
        assert not re.findall(rf"\b({'|'.join(GONE)})\b", path.read_text()), path


def test_the_oldest_versions_that_are_claimed_are_those_that_are_tested():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    oldest = [claim.replace(">=", "==") for claim in project["dependencies"]]
    assert project["optional-dependencies"]["test-oldest"][: len(oldest)] == oldest
    text = " ".join((ROOT / "README.md").read_text().split())
    for claim in project["dependencies"]:
        assert claim.startswith("jaxlib") or claim.replace(">=", " ") in text
