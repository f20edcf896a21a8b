"""A Sphinx extension that writes mathematics as MathML, which browsers draw without a script."""

from typing import Any

from docutils.nodes import SkipNode
from docutils.utils.math.latex2mathml import tex2mathml


def _inline(writer: Any, node: Any) -> None:
    writer.body.append(tex2mathml(node.astext()))
    raise SkipNode


def _block(writer: Any, node: Any) -> None:
    lines = node.astext().split("\\\\")
    formulas = "\n".join(tex2mathml(line.strip(), as_block=True) for line in lines)
    writer.body.append(f'<div class="rule">{formulas}</div>\n')
    raise SkipNode


def setup(app: Any) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
