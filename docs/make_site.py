"""Builds the site: `python docs/make_site.py`, from a checkout with `optfn[docs]`.

It runs the tutorial and the examples, draws the pictures, reads the docstrings, and writes pages to
`build/site/html`. It needs no network. Every warning is an error, and so is a link that leads
nowhere.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path.insert(0, str(DOCS))

from website import gallery, links, notebooks, pages, reference

# Of the pages in `docs/`, those that explain rather than help. All others are guides, in the order
# of `website/sections/guides.md`; one that is not named there comes after the others.
ABOUT = ("conformance", "design", "optax_table", "versioning")
OTHERS = {"CHANGELOG": "changes", "CONTRIBUTING": "contributing", "SECURITY": "security"}
TUTORIAL = sorted(page for page in DOCS.glob("tutorial/*.md") if page.stem != "index")
LINK = re.compile(r"\]\(([^)#\s]+)(#[^)\s]*)?\)")


def places() -> dict[Path, str]:
    """Where each page goes in the site."""
    found = {
        ROOT / "README.md": "index.md",
        DOCS / "index.md": "index.md",
        ROOT / "optfn/__init__.py": "reference/index.rst",
    }
    for page in DOCS.glob("*.md"):
        if page.stem != "index":
            found[page] = f"{'about' if page.stem in ABOUT else 'guides'}/{page.name}"
    for page in DOCS.glob("tutorial/*.md"):
        found[page] = f"tutorial/{page.name}"
    for page in ROOT.glob("benchmarks/records/*.md"):
        found[page] = f"about/records/{page.name}"
    for page, name in OTHERS.items():
        found[ROOT / f"{page}.md"] = f"about/{name}.md"
    for section in DOCS.glob("website/sections/*.md"):
        found[section] = f"{section.stem}/index.md"
    return found


def with_links(page: Path, text: str, where: dict[Path, str]) -> str:
    """The text of a page with its links led to where their pages are in the site.

    Raises:
        ValueError: a link leads to a file that is not in the site.
    """

    def moved(match: re.Match) -> str:
        link, place = match[1], match[2] or ""
        if "://" in link or link in pages.images(text):
            return match[0]
        target = (page.parent / link).resolve()
        if target.is_relative_to(ROOT / "examples"):
            to = f"examples/{target.stem}.rst"
        elif target in where:
            to = where[target]
        else:
            raise ValueError(f"{page.relative_to(ROOT)} links to {link}, which is not in the site.")
        return f"]({os.path.relpath(to, Path(where[page]).parent)}{place})"

    parts, at = [], 0
    for fenced in pages.FENCED.finditer(text):
        parts += [LINK.sub(moved, text[at : fenced.start()]), fenced[0]]
        at = fenced.end()
    return "".join([*parts, LINK.sub(moved, text[at:])])


def with_all_guides(text: str, where: dict[Path, str]) -> str:
    """The list of guides with those that it does not name."""
    guides = {Path(place).stem for place in where.values() if place.startswith("guides/")}
    more = sorted(guides - {"index"} - set(text.split()))
    head, end, tail = text.rpartition("```")
    return "".join([head, *(f"{name}\n" for name in more), end, tail])


def copy_pages(source: Path) -> None:
    """The pages that are written by hand, with a notebook of each page of the tutorial."""
    where = places()
    for page, place in where.items():
        if page.name in ("README.md", "__init__.py"):
            continue
        text = with_links(page, page.read_text(), where)
        if place == "guides/index.md":
            text = with_all_guides(text, where)
        target = source / place
        target.parent.mkdir(parents=True, exist_ok=True)
        if page in TUTORIAL:
            target.with_suffix(".ipynb").write_text(notebooks.notebook(page.read_text()))
            text += f"\n\nThis page as a [notebook]({page.stem}.ipynb).\n"
        target.write_text(text)


def jobs(source: Path) -> dict[str, tuple[list[str], Path]]:
    """What is run, the longest first: a command and the directory that it runs in."""
    python = [sys.executable, "-m"]
    found = {}
    for page in [*reversed(TUTORIAL), DOCS / "index.md"]:
        folder = source / places()[page]
        found[str(page.relative_to(ROOT))] = ([*python, "website.pages", str(page)], folder.parent)
    for part in range(2):
        command = [*python, "website.bowls", str(source / "reference/bowls"), str(part), "2"]
        found[f"bowls, part {part + 1}"] = (command, ROOT)
    for example in gallery.EXAMPLES:
        command = [*python, "website.gallery", example.stem, str(source / "examples")]
        found[f"examples/{example.name}"] = (command, ROOT)
    return found


def run(name: str, command: list[str], folder: Path) -> None:
    """Runs one job, and says how long it took.

    Raises:
        SystemExit: it failed.
    """
    start = time.perf_counter()
    paths = [str(ROOT), str(DOCS), os.environ.get("PYTHONPATH", "")]
    # Most jobs compile more than they compute.
    flags = "--xla_backend_optimization_level=1 --xla_llvm_disable_expensive_passes=true"
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "JAX_PLATFORMS": "cpu",
        "MPLBACKEND": "agg",
        "COLUMNS": "100",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stdout}\n{done.stderr}")
    print(f"{time.perf_counter() - start:6.1f} s  {name}", flush=True)


def timed(name: str, function: Callable[[], None]) -> None:
    start = time.perf_counter()
    function()
    print(f"{time.perf_counter() - start:6.1f} s  {name}", flush=True)


def sphinx(source: Path, target: Path) -> None:
    """Raises SystemExit at any warning."""
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-j", "auto"]
    command += ["-c", str(DOCS / "website"), str(source), str(target)]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{DOCS}", "JAX_PLATFORMS": "cpu"}
    if subprocess.run(command, env=environment).returncode:
        raise SystemExit("Sphinx has warnings, which are errors here.")


def check_links(site: Path) -> None:
    if found := links.broken(site):
        raise SystemExit("Links that lead nowhere:\n" + "\n".join(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "build/site")
    parser.add_argument("--pages-only", action="store_true", help="run and draw nothing again")
    options = parser.parse_args()
    source, site = options.output.resolve() / "source", options.output.resolve() / "html"
    start = time.perf_counter()
    if not options.pages_only:
        shutil.rmtree(options.output, ignore_errors=True)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            waiting = [pool.submit(run, name, *job) for name, job in jobs(source).items()]
            for one in waiting:
                one.result()
    timed("copying pages", lambda: copy_pages(source))
    timed("gallery", lambda: gallery.write(source / "examples"))
    timed("reference", lambda: reference.write(source / "reference"))
    timed("Sphinx", lambda: sphinx(source, site))
    timed("links", lambda: check_links(site))
    print(f"{time.perf_counter() - start:6.1f} s  {site / 'index.html'}")


if __name__ == "__main__":
    main()
