"""Writes the gallery: a page for each example, with what it prints and draws."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

from website.docstrings import escaped

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
# These are quick without `--quick`.
IN_FULL = ("plot_lecture",)


def run(example: Path, folder: Path) -> None:
    """Runs a copy of an example as a user does; `stdout.txt` holds what it prints.

    Raises:
        RuntimeError: it fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    script = shutil.copy(example, folder)
    command = [sys.executable, "-W", "error", script, *_options(example)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")
    (folder / "stdout.txt").write_text(_without_paths(done.stdout, folder))


def _options(example: Path) -> list[str]:
    return [] if example.stem in IN_FULL else ["--quick"]


def _without_paths(text: str, folder: Path) -> str:
    """Paths as they are below `examples/`; in tables lines may be broken within them."""
    return text.replace(f"{folder}/", "examples/")


def write(folder: Path) -> None:
    """Writes the pages beside the folders in which the examples ran."""
    for example in EXAMPLES:
        (folder / f"{example.stem}.rst").write_text(_page(example, folder))
    (folder / "index.rst").write_text(_index(folder))


def _page(example: Path, folder: Path) -> str:
    title, _, text = _docstring(example).partition("\n\n")
    name = example.stem
    command = " ".join(["python", f"examples/{name}.py", *_options(example)])
    parts = [_title(title.rstrip(".")), *map(_paragraph, text.split("\n\n"))]
    parts += [
        f".. image:: {name}/output/{picture.name}\n   :alt: What {name} draws.\n"
        for picture in _pictures(example, folder)
    ]
    parts.append(f"``{command}`` prints:\n\n.. literalinclude:: {name}/stdout.txt\n")
    if _options(example):
        parts.append("This page shows a short run. Without ``--quick`` it takes its time.\n")
    parts += ["The script\n----------\n", f".. literalinclude:: {name}/{name}.py"]
    parts.append("   :language: python\n")
    return "\n".join(parts)


def _docstring(example: Path) -> str:
    return ast.get_docstring(ast.parse(example.read_text())) or ""


def _paragraph(text: str) -> str:
    """Of a docstring; what is indented stays as it is."""
    if text.startswith("    "):
        return f"::\n\n{text}\n"
    return f"{escaped(text)}\n"


def _pictures(example: Path, folder: Path) -> list[Path]:
    return sorted((folder / example.stem / "output").glob("*.png"))


def _index(folder: Path) -> str:
    parts = [
        _title("Examples"),
        "Short scripts, each about one thing. The build of this site runs all of them.\n",
    ]
    if any(_pictures(example, folder) for example in EXAMPLES):
        parts.append(".. container:: wall\n")
    for example in EXAMPLES:
        pictures = _pictures(example, folder)
        if pictures:
            parts.append(
                f"   .. figure:: {example.stem}/output/{pictures[0].name}\n"
                f"      :alt: What {example.stem} draws.\n"
                f"      :target: {example.stem}.html\n\n"
                f"      :doc:`{example.stem}`\n"
            )
    for example in EXAMPLES:
        title = _docstring(example).partition("\n")[0]
        parts.append(f"- :doc:`{example.stem} <{example.stem}>`: {escaped(title)}")
    parts += ["\n.. toctree::\n   :hidden:\n", *(f"   {example.stem}" for example in EXAMPLES), ""]
    return "\n".join(parts)


def _title(text: str) -> str:
    return f"{re.sub(r'`', '', text)}\n{'=' * len(text)}\n"


if __name__ == "__main__":
    run(ROOT / "examples" / f"{sys.argv[1]}.py", Path(sys.argv[2]) / sys.argv[1])
