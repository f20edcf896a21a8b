"""What the README and the docs say is executed, top to bottom, and their outputs compared."""

import re
from pathlib import Path

import jax
import pytest
from donation import watched
from website.notebooks import notebook
from website.pages import FENCED, IMAGE, blocks, execute

ROOT = Path(__file__).parent.parent
NAMES = (
    *("write_an_optimizer", "coming_from_optax", "checkpoints", "groups", "averages"),
    *(
        "wrappers",
        "minimize",
        "sweeps",
        "many_machines",
        "write_a_policy",
        "frameworks",
        "sharding",
        "matrix",
    ),
    *("memory", "configs", "recipes", "rates", "width_transfer"),
)
PAGES = ["README.md", *(f"docs/{name}.md" for name in NAMES)]
# The build of the site runs these too.
TUTORIAL = ("1_lecture", "2_decay", "3_network", "4_tuning", "5_transformer")
SLOW = ["docs/index.md", *(f"docs/tutorial/{name}.md" for name in TUTORIAL)]
PAGES += [pytest.param(page, marks=pytest.mark.slow) for page in SLOW]


@pytest.mark.parametrize("page", PAGES)
def test_code_prints_what_the_page_says(page, monkeypatch, tmp_path):
    text = (ROOT / page).read_text()
    code = "".join(block for kind, block in blocks(text) if kind == "python")
    assert any(kind == "text" for kind, _ in blocks(text))
    if "_cache_size" in code:
        jax.clear_caches()  # the page counts from none
    monkeypatch.chdir(tmp_path)  # where it draws
    with watched(monkeypatch) as donating:
        execute(page, text)
    assert donating or "donate_arg" not in code
    for step in donating:
        step.check()


@pytest.mark.slow
@pytest.mark.parametrize("page", TUTORIAL)
def test_the_notebook_of_a_page_runs(page, tmp_path):
    import nbformat
    from nbclient import NotebookClient

    cells = nbformat.reads(notebook((ROOT / f"docs/tutorial/{page}.md").read_text()), as_version=4)
    nbformat.validate(cells)
    NotebookClient(cells, resources={"metadata": {"path": tmp_path}}).execute()


def test_every_page_of_the_tutorial_is_run():
    assert {path.stem for path in ROOT.glob("docs/tutorial/*.md")} == {"index", *TUTORIAL}


def written_pages():
    return [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("docs/tutorial/*.md")]


def test_links_lead_somewhere():
    for page in written_pages():
        # Pictures are drawn by the code, and missed by `execute`.
        text = IMAGE.sub("", FENCED.sub("", page.read_text()))
        for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
            if "://" not in link:
                assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_tests_that_the_docs_name_exist():
    files = list((ROOT / "tests").rglob("*.py"))
    known = {path.name for path in files}.union(
        *(re.findall(r"^ *def (test_\w+)\(", path.read_text(), re.MULTILINE) for path in files)
    )
    for page in written_pages():
        named = set(re.findall(r"`(test_\w+(?:\.py)?)`", page.read_text()))
        assert named <= known, f"{page.name} names {', '.join(sorted(named - known))}"
