"""What the README and the docs say is executed, top to bottom, and their outputs compared."""

import contextlib
import io
import re
from pathlib import Path

import jax
import pytest
from donation import watched

ROOT = Path(__file__).parent.parent
NAMES = (
    *("write_an_optimizer", "coming_from_optax", "checkpoints", "groups", "averages"),
    *("wrappers", "minimize", "sweeps", "write_a_policy", "frameworks", "sharding", "matrix"),
    *("memory", "configs", "recipes", "rates", "width_transfer"),
)
PAGES = ["README.md", *(f"docs/{name}.md" for name in NAMES)]
BLOCK = re.compile(r"^```(python|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES)
def test_code_prints_what_the_page_says(page, monkeypatch):
    blocks = BLOCK.findall((ROOT / page).read_text())
    assert any(kind == "text" for kind, _ in blocks)
    if any("_cache_size" in text for _, text in blocks):
        jax.clear_caches()  # the page counts from none
    with watched(monkeypatch) as donating:
        _execute(page, blocks)
    assert donating or "donate_arg" not in "".join(text for _, text in blocks)
    for step in donating:
        step.check()


def _execute(page, blocks):
    namespace: dict = {"__name__": "docs"}
    printed = ""
    for i, (kind, text) in enumerate(blocks):
        if kind == "text":
            assert _tidy(printed) == _tidy(text), f"{page}, block {i}"
            printed = ""
        else:
            assert not printed.strip(), f"{page}, block {i - 1} printed what the page does not show"
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile(text, f"{page}, block {i}", "exec"), namespace)
            printed = out.getvalue()
    assert not printed.strip()


def _tidy(text):
    return [" ".join(line.split()) for line in text.strip().splitlines()]


def test_links_lead_somewhere():
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]:
        for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            if "://" not in link:
                assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_tests_that_the_docs_name_exist():
    files = list((ROOT / "tests").rglob("*.py"))
    known = {path.name for path in files}.union(
        *(re.findall(r"^ *def (test_\w+)\(", path.read_text(), re.MULTILINE) for path in files)
    )
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]:
        named = set(re.findall(r"`(test_\w+(?:\.py)?)`", page.read_text()))
        assert named <= known, f"{page.name} names {', '.join(sorted(named - known))}"
