"""The parts of the site: rules become mathematics, and every public name has a place."""

import inspect
import json

import make_site
import pytest
from legs import LEGS
from website import catalog, docstrings, links, notebooks, pages
from website.rules import NotARuleError, Rules

import optfn


@pytest.mark.parametrize(
    ("text", "latex"),
    [
        (
            "mu <- b1 * mu + (1 - b1) * g",
            r"\mu \leftarrow \beta_1\, \mu + \left(1 - \beta_1\right)\, g",
        ),
        ("mu_hat = mu / (1 - b1^t)", r"\hat{\mu} = \frac{\mu}{1 - {\beta_1}^{t}}"),
        ("u = g / sqrt(s + eps)", r"u = \frac{g}{\sqrt{s + \varepsilon}}"),
        ("s <- s + |g|^2", r"s \leftarrow s + {\left|g\right|}^{2}"),
        ("n <- <g, p_start - p>", r"n \leftarrow \langle g,\, p_{\text{start}} - p\rangle"),
        (
            "L <- b2 * L + G R^-1 G^T / 2",
            r"L \leftarrow \beta_2\, L + \frac{G\, {R}^{-1}\, {G}^{T}}{2}",
        ),
        (
            "nu_max <- max(nu_max, nu_hat)",
            r"\nu_{\text{max}} \leftarrow \max\left(\nu_{\text{max}},\, \hat{\nu}\right)",
        ),
    ],
)
def test_a_rule_becomes_mathematics(text, latex):
    assert Rules().formula(text) == latex


@pytest.mark.parametrize("text", ["u = (g", "u = g +", "the sum of g", "u = g ? h", "u = |g"])
def test_what_is_no_rule_is_not_guessed_at(text):
    with pytest.raises(NotARuleError):
        Rules().formula(text)


def test_words_stand_behind_a_formula():
    (line,) = Rules().block(["u = g / s,  and 0 where s is 0"])
    assert line == r"u = \frac{g}{s} \qquad \text{and 0 where s is 0}"


def test_every_optimizer_has_a_rule_in_mathematics():
    for page in catalog.pages():
        for name in set(page.names) & LEGS.keys() if page.module == "optfn" else ():
            parts = [name, *LEGS[name].stages]
            texts = [inspect.getdoc(getattr(optfn, part)) or "" for part in parts]
            rst = "\n".join("\n".join(docstrings.as_rst(t.splitlines(), [])) for t in texts)
            assert "math::" in rst or ":math:`" in rst, name


def test_every_public_name_has_one_place():
    shown = [f"{page.module}.{name}" for page in catalog.pages() for name in page.names]
    assert len(shown) == len(set(shown))
    for module in ("optfn", "optfn.linalg", "optfn.storage", "optfn.sweep"):
        there = vars(inspect.importlib.import_module(module))
        public = {
            f"{module}.{name}"
            for name, value in there.items()
            if not name.startswith("_") and not inspect.ismodule(value)
        }
        assert public == {name for name in shown if name.rpartition(".")[0] == module}


def test_what_docstrings_say_besides_stays_as_it_is():
    lines = [
        "Takes |g| and `a_b`, *all*.",
        "",
        "Args:",
        "    b1: of `x_`, as x_ is.",
        "",
        "Source: me.",
    ]
    assert docstrings.as_rst(lines, []) == [
        r"Takes \|g\| and `a_b`, \*all\*.",
        "",
        "Args:",
        r"    b1: of `x_`, as x\_ is.",
        "",
        "Source: me.",
        "",
    ]


def test_a_page_must_say_what_its_code_prints(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = "```python\nprint(1 + 1)\n```\n```text\n{}\n```\n"
    pages.execute("page", page.format(2))
    with pytest.raises(pages.PageError, match="block 1: the code prints\n2"):
        pages.execute("page", page.format(3))
    with pytest.raises(pages.PageError, match="the last output"):
        pages.execute("page", "```python\nprint(1)\n```\n")
    with pytest.raises(pages.PageError, match=r"shows a\.png, which its code does not draw"):
        pages.execute("page", "![a](a.png)")


def test_a_notebook_has_the_code_and_the_text_of_its_page():
    page = "# Title\n\n```python\nx = 1\n```\n\n```text\n```\n\n![a](a.png)\n\nThe end.\n"
    cells = json.loads(notebooks.notebook(page))["cells"]
    assert [(cell["cell_type"], cell["source"]) for cell in cells] == [
        ("markdown", "# Title"),
        ("code", "x = 1"),
        ("markdown", "The end."),
    ]


def test_links_that_lead_nowhere_are_found(tmp_path):
    pages = {
        "a": '<p id="here"><a href="b.html#there">b</a><a href="#here">a</a>',
        "b": '<a href="c.html">c</a><a href="https://c">c</a><a href="a.html">',
    }
    for name, text in pages.items():
        (tmp_path / f"{name}.html").write_text(text)
    assert links.broken(tmp_path) == [
        "a.html: b.html#there is no place",
        "b.html: c.html is no file",
    ]


def test_a_table_of_a_docstring_becomes_a_table():
    text = "| a | b |\n|---|---|\n| `x` | one |"
    assert docstrings.as_rst(text.splitlines(), []) == [
        ".. list-table::",
        "   :header-rows: 1",
        "",
        "   * - a",
        "     - b",
        "   * - `x`",
        "     - one",
        "",
    ]


def test_a_plural_stands_outside_of_what_is_quoted():
    assert docstrings.escaped("of `leaf`s") == r"of `leaf`\ s"


def test_a_new_page_is_a_guide_by_itself():
    where = make_site.places() | {make_site.DOCS / "new.md": "guides/new.md"}
    text = (make_site.DOCS / "website/sections/guides.md").read_text()
    assert "write_a_policy\nnew\n```" in make_site.with_all_guides(text, where)


def test_a_link_is_led_to_where_its_page_is():
    where, page = make_site.places(), make_site.DOCS / "sweeps.md"
    text = "[a](write_a_policy.md#b) [c](../examples/sweep_text.py) [d](https://d) ![e](e.png)"
    assert make_site.with_links(page, f"{text}\n```\n[x](y)\n```\n", where) == (
        "[a](write_a_policy.md#b) [c](../examples/sweep_text.rst) [d](https://d) ![e](e.png)\n"
        "```\n[x](y)\n```\n"
    )
    with pytest.raises(ValueError, match=r"docs/sweeps\.md links to none\.md"):
        make_site.with_links(page, "[a](none.md)", where)
