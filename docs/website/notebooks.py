"""Makes notebooks of pages: the same text and code, and the pictures where they are drawn."""

import json
import re

from website.pages import BLOCK, IMAGE


def notebook(text: str) -> str:
    """A page as a notebook of version 4, without outputs."""
    cells, at = [], 0
    for match in BLOCK.finditer(text):
        cells += _markdown(text[at : match.start()])
        if match[1] == "python":
            cells.append(_cell("code", match[2], outputs=[], execution_count=None))
        at = match.end()
    cells += _markdown(text[at:])
    for i, cell in enumerate(cells):
        cell["id"] = f"cell-{i}"
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return json.dumps(
        {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}, indent=1
    )


def _markdown(text: str) -> list[dict]:
    """A cell of the text without its pictures, which a notebook shows under their code."""
    text = re.sub(r"\n{3,}", "\n\n", IMAGE.sub("", text)).strip()
    return [_cell("markdown", text)] if text else []


def _cell(kind: str, source: str, **more) -> dict:
    return {"cell_type": kind, "metadata": {}, "source": source.rstrip("\n"), **more}
