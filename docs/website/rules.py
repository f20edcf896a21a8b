"""Mathematics from the rules that docstrings have as text.

    mu <- b1 * mu + (1 - b1) * g        u = g / (sqrt(nu) + eps),  and 0 where nu is 0

becomes formulas with words behind them. What is not understood stays as the text it was.
"""

import re
from collections.abc import Iterable

GREEK = ("alpha", "beta", "gamma", "delta", "eta", "lambda", "mu", "nu", "rho", "tau")
# Arguments whose letters are the field's own.
LETTERS = {
    "learning_rate": r"\eta",
    "weight_decay": r"\lambda",
    "eps": r"\varepsilon",
    "epsilon": r"\varepsilon",
    "b1": r"\beta_1",
    "b2": r"\beta_2",
    "b3": r"\beta_3",
}
# What is an operator of mathematics when it stands before a parenthesis.
FUNCTIONS = ("sqrt", "max", "min", "sign", "clip", "mean", "cbrt", "triu", "orthogonalize", "sum")

TOKEN = re.compile(
    r"(?P<number>\d+(?:\.\d+)?)"
    r"|(?P<name>[A-Za-z][A-Za-z0-9]*(?:_[A-Za-z0-9]+)*)"
    r"|(?P<symbol><-|\|\||[-+*/^()<>|=,\[\]_'])"
    r"|(?P<space>\s+)"
)


class NotARuleError(Exception):
    """The text is none of the formulas that are understood here."""


class Rules:
    """Reads the rules of one docstring.

    Args:
        arguments: the names of the arguments that the docstring describes.
    """

    def __init__(self, arguments: Iterable[str] = ()):
        self.arguments = set(arguments)
        self.used: dict[str, str] = {}

    def block(self, lines: list[str]) -> list[str]:
        """LaTeX of each line, whose formulas are separated by two spaces or more."""
        self.arguments |= _assigned(lines)
        return [r" \qquad ".join(map(self._segment, re.split(r"\s{2,}", line))) for line in lines]

    def formula(self, text: str) -> str:
        """LaTeX of one formula.

        Raises:
            NotARuleError: it is none.
        """
        self.arguments |= _assigned([text])
        tokens = _tokens(text)
        for (kind, name, _), (_, following, space) in zip(
            tokens, [*tokens[1:], ("", "", True)], strict=True
        ):
            if kind == "name" and self._is_word(name, "" if space else following):
                raise NotARuleError(text)
        return _Parser(tokens, self._letter).statement()

    def legend(self) -> dict[str, str]:
        """By its LaTeX, each letter that stands for an argument with another name."""
        return dict(self.used)

    def _segment(self, text: str) -> str:
        """A formula with words behind it; if it is no formula, words alone."""
        mathematics, words = self._split(text)
        try:
            parts = [self.formula(mathematics)] if mathematics else []
        except NotARuleError:
            parts, words = [], text
        return r"\quad ".join(parts + ([_text(words)] if words else []))

    def _split(self, text: str) -> tuple[str, str]:
        """Before and from the first word on."""
        for match in TOKEN.finditer(text):
            if match["name"] and self._is_word(match["name"], text[match.end() :]):
                before = re.sub(r"\s+an?\s*$|^an?\s*$", "", text[: match.start()])
                return before.rstrip().rstrip(",;:"), text[len(before) :].strip()
        if ";" in text or "`" in text:
            at = min(text.find(mark) for mark in ";`" if mark in text)
            return text[:at].rstrip(), text[at:].lstrip("; ")
        return text.rstrip(",.:"), ""

    def _is_word(self, name: str, following: str = "") -> bool:
        """Whether a name is a word of the language, not of mathematics."""
        if name in self.arguments or name in GREEK or name in LETTERS or len(name) == 1:
            return False
        if name.partition("_")[0] in FUNCTIONS and following.startswith("("):
            return False
        return name.isalpha() and not (len(name) == 2 and name[0].isupper())

    def _letter(self, name: str) -> str:
        letter = _letter(name)
        if name in LETTERS:
            self.used[letter] = name
        return letter


def _assigned(lines: list[str]) -> set[str]:
    """The names on the left of an arrow or an equation."""
    return set(re.findall(r"(?:^|\s)([A-Za-z]\w*)(?:\[\w\])? (?:<-|=) ", "\n".join(lines)))


def _tokens(text: str) -> list[tuple[str, str, bool]]:
    """Kind, text, and whether a space comes before."""
    found, at, space = [], 0, False
    while at < len(text):
        match = TOKEN.match(text, at)
        if match is None or match.lastgroup is None:
            raise NotARuleError(text)
        if match.lastgroup == "space":
            space = True
        else:
            found.append((match.lastgroup, match[0], space))
            space = False
        at = match.end()
    return found


def _letter(name: str) -> str:
    """LaTeX of a name: letters with their indices, or the word itself."""
    if name in LETTERS:
        return LETTERS[name]
    if name in GREEK:
        return "\\" + name
    base, *indices = name.split("_")
    if indices and indices[-1] == "hat":
        return rf"\hat{{{_letter('_'.join([base, *indices[:-1]]))}}}"
    if match := re.fullmatch(r"([A-Za-z]|[a-z]+)(\d+)", base):
        base, indices = match[1], [match[2], *indices]
    elif re.fullmatch(r"[A-Z][A-Za-z]", base):
        base, indices = base[0], [base[1], *indices]
    if len(base) > 1 and base not in GREEK:
        return rf"\text{{{name}}}"
    letter = "\\" + base if base in GREEK else base
    if not indices:
        return letter
    index = ",".join(i if len(i) <= 2 else rf"\text{{{i}}}" for i in indices)
    return f"{letter}_{{{index}}}"


def _text(words: str) -> str:
    plain = words.replace("`", "").replace("{", "(").replace("}", ")").replace("\\", "")
    return rf"\text{{{plain}}}"


class _Parser:
    """A formula, by recursive descent; each method reads one part and gives its LaTeX."""

    def __init__(self, tokens: list[tuple[str, str, bool]], letter):
        self.tokens, self.at, self.letter = tokens, 0, letter
        self.inside_bars: list[str] = []

    def statement(self) -> str:
        parts = [self.listed()]
        while self.peek() in ("<-", "="):
            sign = r"\leftarrow" if self.take() == "<-" else "="
            parts += [sign, self.listed()]
        if self.at < len(self.tokens):
            raise NotARuleError(self.peek())
        return " ".join(parts)

    def listed(self) -> str:
        parts = [self.sum()]
        while self.peek() == ",":
            self.take()
            parts.append(self.sum())
        return r",\, ".join(parts)

    def sum(self) -> str:
        text = self.product()
        while self.peek() in ("+", "-"):
            text = f"{text} {self.take()} {self.product()}"
        return text

    def product(self) -> str:
        if self.peek() == "-":
            self.take()
            return f"-{self.product()}"
        text, bare = self.power()
        while True:
            if self.peek() == "/":
                self.take()
                below = self.power()[1]
                text = bare = rf"\frac{{{bare}}}{{{below}}}"
            elif self.peek() == "*":
                self.take()
                text = bare = rf"{text}\, {self.power()[0]}"
            elif self.starts_factor():
                text = bare = rf"{text}\, {self.power()[0]}"
            else:
                return text

    def starts_factor(self) -> bool:
        """Whether two things beside each other are multiplied."""
        if self.at == len(self.tokens):
            return False
        kind, text, _ = self.tokens[self.at]
        if text in ("|", "||"):
            return text not in self.inside_bars
        return kind in ("name", "number") or text in ("(", "<")

    def power(self) -> tuple[str, str]:
        """With and without the parentheses around all of it."""
        text, bare = self.atom()
        while self.peek() in ("^", "'", "[", "_"):
            mark = self.take()
            if mark == "'":
                text = bare = f"{{{text}}}'"
            elif mark == "^":
                text = bare = f"{{{text}}}^{{{self.exponent()}}}"
            elif mark == "_":
                text = bare = f"{{{text}}}_{{{self.atom()[1]}}}"
            else:
                text = bare = f"{text}[{self.listed()}]"
                self.expect("]")
        return text, bare

    def exponent(self) -> str:
        sign = self.take() if self.peek() == "-" else ""
        return sign + self.atom()[1]

    def atom(self) -> tuple[str, str]:
        if self.at == len(self.tokens):
            raise NotARuleError("the end")
        kind, text, _ = self.tokens[self.at]
        self.at += 1
        if kind == "number":
            return text, text
        if kind == "name":
            return self.call(text) if self.is_call() else (self.letter(text),) * 2
        if text == "(":
            bare = self.listed()
            self.expect(")")
            return rf"\left({bare}\right)", bare
        if text in ("|", "||"):
            return (self.bars(text),) * 2
        if text == "<":
            bare = self.listed()
            self.expect(">")
            return (rf"\langle {bare}\rangle",) * 2
        raise NotARuleError(text)

    def bars(self, mark: str) -> str:
        self.inside_bars.append(mark)
        inside = self.sum()
        self.inside_bars.pop()
        self.expect(mark)
        return rf"\left|{inside}\right|" if mark == "|" else rf"\left\|{inside}\right\|"

    def is_call(self) -> bool:
        """Whether a parenthesis follows at once."""
        return self.peek() == "(" and not self.tokens[self.at][2]

    def call(self, name: str) -> tuple[str, str]:
        self.expect("(")
        arguments = self.listed()
        self.expect(")")
        if name == "sqrt":
            return (rf"\sqrt{{{arguments}}}",) * 2
        if name == "cbrt":
            return (rf"\left({arguments}\right)^{{1/3}}",) * 2
        base, _, index = name.partition("_")
        if base in ("max", "min"):
            called = "\\" + base
        else:
            called = rf"\operatorname{{{base}}}" if len(base) > 1 else self.letter(base)
        index = f"_{{{index}}}" if index else ""
        return (rf"{called}{index}\left({arguments}\right)",) * 2

    def peek(self) -> str:
        return self.tokens[self.at][1] if self.at < len(self.tokens) else ""

    def take(self) -> str:
        self.at += 1
        return self.tokens[self.at - 1][1]

    def expect(self, text: str) -> None:
        if self.peek() != text:
            raise NotARuleError(f"{self.peek()!r} in the place of {text!r}")
        self.at += 1
