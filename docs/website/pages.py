"""Pages whose code is executed: they say what their code prints, and show what it draws."""

import contextlib
import io
import re
import sys
from pathlib import Path

BLOCK = re.compile(r"^```(python|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FENCED = re.compile(r"^(```+|~~~+).*?^\1$", re.MULTILINE | re.DOTALL)
IMAGE = re.compile(r"!\[[^\]]*\]\(([^)]+)\)")


class PageError(Exception):
    """A page says something else than its code does."""


def blocks(text: str) -> list[tuple[str, str]]:
    """The code of a page and what it prints, in order: `("python" or "text", lines)`."""
    return BLOCK.findall(text)


def images(text: str) -> list[str]:
    """The pictures that a page shows."""
    return IMAGE.findall(FENCED.sub("", text))


def execute(page: str, text: str) -> None:
    """Runs a page's code from top to bottom; each output must be what the page shows after it.

    Pictures are written to the working directory, and those that the page shows must be there.

    Args:
        page: its name, for messages.
        text: the page itself, in Markdown.

    Raises:
        PageError: an output is not what the page shows, or a picture is not drawn.
    """
    namespace: dict = {"__name__": "docs"}
    printed = ""
    for i, (kind, block) in enumerate(blocks(text)):
        if kind == "text":
            _compare(f"{page}, block {i}", printed, block)
            printed = ""
        else:
            _compare(f"{page}, the output of block {i - 1}", printed, "")
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile(block, f"{page}, block {i}", "exec"), namespace)
            printed = out.getvalue()
    _compare(f"{page}, the last output", printed, "")
    # Those of other folders are drawn by other pages.
    drawn = [image for image in images(text) if "/" not in image]
    missing = [image for image in drawn if not Path(image).exists()]
    if missing:
        raise PageError(f"{page} shows {', '.join(missing)}, which its code does not draw.")


def _compare(where: str, printed: str, shown: str) -> None:
    if _tidy(printed) != _tidy(shown):
        raise PageError(f"{where}: the code prints\n{printed}\nand the page shows\n{shown}")


def _tidy(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.strip().splitlines()]


if __name__ == "__main__":
    execute(sys.argv[1], Path(sys.argv[1]).read_text())
