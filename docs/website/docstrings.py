"""A Sphinx extension that reads the docstrings of the library.

They are plain text: rules are indented, names stand between backticks, sections are Google's. Here
rules become mathematics, indented code becomes code, and characters that mean something in
reStructuredText alone are kept as they are. Sphinx's napoleon then reads the sections.
"""

import ast
import inspect
import re
from collections.abc import Mapping
from typing import Any

from website.rules import NotARuleError, Rules

SECTION = re.compile(r"^[A-Z][A-Za-z]+:$")
# A step within a sentence, and where it may end.
STEP = re.compile(r"(?<![\w`])[A-Za-z]\w* <- ")
END = re.compile(r"(?=[,.;:](?:\s|$)|\Z)")


def as_rst(lines: list[str], arguments: list[str]) -> list[str]:
    """A docstring in reStructuredText.

    Args:
        lines: its lines, without the indentation of the first.
        arguments: the names of the arguments of what it describes.
    """
    found: list[str] = []
    in_section = False
    for part in _parts(lines):
        if SECTION.match(part[0]):
            in_section = True
        if part[0].startswith("    ") and not in_section:
            found += _indented([line[4:] for line in part], arguments)
        elif len(part) > 2 and all(line.startswith("|") for line in part):
            found += _table(part)
        elif in_section:
            found += map(escaped, part)
        else:
            found += _prose(part, arguments)
        found.append("")
    return found


def _parts(lines: list[str]) -> list[list[str]]:
    """Paragraphs; an indented block is one too, and blank lines are left out."""
    parts: list[list[str]] = []
    before = None
    for line in lines:
        kind = None if not line.strip() else line.startswith("    ")
        if kind is not None:
            section = parts and before is not None and SECTION.match(parts[-1][0])
            if before == kind or section:
                parts[-1].append(line.rstrip())
            else:
                parts.append([line.rstrip()])
        before = kind
    return parts


def _indented(block: list[str], arguments: list[str]) -> list[str]:
    """Rules, or code."""
    if not is_rule(block):
        language = "python" if _is_python(block) else "text"
        return [f".. code-block:: {language}", "", *(f"    {line}" for line in block)]
    rules = Rules(arguments)
    formulas = rules.block(block)
    text = [".. math::", "", *(f"    {line} \\\\" for line in formulas[:-1]), f"    {formulas[-1]}"]
    legend = _legend(rules.legend())
    return text + (["", *legend] if legend else [])


def is_rule(block: list[str]) -> bool:
    """Whether an indented block is mathematics rather than Python."""
    text = "\n".join(block)
    return " <- " in text or (" = " in text and not re.search(r"\w\.\w+\(|\w\(\w+=|#", text))


def _is_python(block: list[str]) -> bool:
    try:
        return bool(ast.parse("\n".join(block)))
    except SyntaxError:
        return False


def _legend(letters: Mapping[str, str]) -> list[str]:
    """A sentence that says which letter is which argument."""
    items = [f":math:`{letter}` is ``{name}``" for letter, name in letters.items()]
    if not items:
        return []
    *most, last = items
    return [f"Here {', '.join(most)} and {last}." if most else f"Here {last}."]


def _table(lines: list[str]) -> list[str]:
    """A table of Markdown."""
    header, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    text = [".. list-table::", "   :header-rows: 1", ""]
    for row in [header, *rows]:
        text += [f"   {'-' if i else '* -'} {escaped(cell)}" for i, cell in enumerate(row)]
    return [line.replace("   - ", "     - ") for line in text]


def _prose(lines: list[str], arguments: list[str]) -> list[str]:
    """A paragraph, with the steps in it as mathematics."""
    text = "\n".join(lines)
    pieces, at, letters = [], 0, {}
    for start in STEP.finditer(text):
        if start.start() < at:
            continue
        # Up to a comma or the end of the sentence, but not to a comma between parentheses.
        for end in END.finditer(text, start.end()):
            rules, step = Rules(arguments), text[start.start() : end.start()]
            try:
                formula = rules.formula(" ".join(step.split()))
            except NotARuleError:
                continue
            pieces += [escaped(text[at : start.start()]), f":math:`{formula}`"]
            at, letters = end.start(), letters | rules.legend()
            break
    return "".join([*pieces, escaped(text[at:])]).split("\n") + _legend(letters)


def escaped(text: str) -> str:
    """Text outside of backticks, where stars, bars and underscores mean nothing."""
    code = re.split(r"(`+[^`]*`+)", text)
    code[::2] = [
        re.sub(r"([*|])(?=\S)|(?<=\S)([*|])|(?<=\w)(_)(?!\w)|^\|", r"\\\g<0>", x) for x in code[::2]
    ]
    # A plural, as in `name`s, does not end what is between backticks without this.
    code[2::2] = [re.sub(r"^(?=\w)", r"\\ ", x) for x in code[2::2]]
    return "".join(code)


def _process(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    lines[:] = as_rst(lines, arguments_of(thing))


def arguments_of(thing: Any) -> list[str]:
    """The names of the arguments of a function or a class."""
    try:
        return list(inspect.signature(thing).parameters)
    except (TypeError, ValueError):
        return []


def setup(app: Any) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", _process, priority=400)  # before napoleon
    return {"parallel_read_safe": True, "parallel_write_safe": True}
