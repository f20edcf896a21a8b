"""What describes the package in several places says the same in each."""

import re
import tomllib
from pathlib import Path

import optfn

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
RECIPE = (ROOT / "packaging/conda-forge/recipe.yaml").read_text()
CITATION = (ROOT / "CITATION.cff").read_text()


def entry(text, key):
    found = re.search(rf'^ *{key}: "?([^"\n]*)"?$', text, re.MULTILINE)
    assert found, key
    return found[1]


def test_the_version_is_the_same_everywhere():
    assert entry(RECIPE, "version") == entry(CITATION, "version") == optfn.__version__
    assert f"## {optfn.__version__} " in (ROOT / "CHANGELOG.md").read_text()


def test_the_recipe_asks_for_what_the_package_asks_for():
    run = RECIPE.partition("  run:\n")[2].partition("\n\n")[0]
    python, *packages = [line.strip(" -") for line in run.splitlines()]
    assert [name.replace(" ", "") for name in packages] == PROJECT["dependencies"]
    assert python == "python >=${{ python_min }}"
    assert PROJECT["requires-python"] == f">={entry(RECIPE, 'python_min')}"
    assert entry(RECIPE, "summary") == PROJECT["description"]
    assert entry(RECIPE, "license") == entry(CITATION, "license") == PROJECT["license"]


def test_workflows_run_the_scripts_that_are_there():
    workflows = "".join(p.read_text() for p in (ROOT / ".github/workflows").glob("*.yml"))
    named = set(re.findall(r"run: (\.ci/\w+)", workflows))
    assert named == {f".ci/{path.name}" for path in (ROOT / ".ci").iterdir()}


def test_the_typed_marker_is_there():
    assert (ROOT / "optfn/py.typed").exists() and "Typing :: Typed" in PROJECT["classifiers"]
