"""What a jitted function donates must be overwritten where it lies: no buffer of it is copied."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax

ARRAY = r"(\w+\[[\d,]+\])\S*"  # no scalars, whose copies cost nothing


class Donating:
    """A jitted function that donates, and the shapes of its first call; else it is as it was."""

    def __init__(self, jitted: Any):
        self.jitted, self.shapes = jitted, None

    def __call__(self, *args, **kwargs):
        self._note(args, kwargs)
        return self.jitted(*args, **kwargs)

    def lower(self, *args, **kwargs):
        self._note(args, kwargs)
        return self.jitted.lower(*args, **kwargs)

    def __getattr__(self, name):
        return getattr(self.jitted, name)

    def _note(self, args, kwargs):
        self.shapes = self.shapes or jax.tree.map(_shape, (args, kwargs))

    def check(self, prefix: str = "") -> None:
        assert self.shapes, f"{self.jitted} was not called"
        args, kwargs = self.shapes
        check_overwritten(self.jitted.lower(*args, **kwargs).compile(), prefix)


def _shape(x: Any) -> Any:
    """Of an array; numbers and whatever is static stay as they are."""
    if isinstance(x, jax.Array) and isinstance(x.sharding, jax.sharding.NamedSharding):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
    return jax.typeof(x).update(sharding=None) if isinstance(x, jax.Array) else x


@contextmanager
def watched(monkeypatch) -> Iterator[list[Donating]]:
    """Collects what is jitted with donated arguments, but not by a library itself."""
    found, jit = [], jax.jit

    def noting(fun=None, **kwargs):
        if fun is None:
            return partial(noting, **kwargs)
        jitted = jit(fun, **kwargs)
        caller = sys._getframe(1)
        own = caller.f_globals["__name__"].startswith("optfn.")
        own = own or "site-packages" in caller.f_code.co_filename
        if own or not any(name.startswith("donate") for name in kwargs):
            return jitted
        found.append(Donating(jitted))
        return found[-1]

    with monkeypatch.context() as patch:
        patch.setattr(jax, "jit", noting)
        yield found


def check_overwritten(compiled: Any, prefix: str = "") -> None:
    """Each donated array becomes a result, and none is copied before it is overwritten.

    Args:
        compiled: the program.
        prefix: what the names of the arguments begin with whose copies count.
    """
    text = compiled.as_text()
    donated = sum(bool(info.shape) for info in jax.tree.leaves(compiled.args_info) if info.donated)
    overwritten = set(re.findall(r"\{[\d, ]*\}: \((\d+), \{\}", text.splitlines()[0]))
    entry = text[text.index("\nENTRY ") :]
    parameters = re.findall(rf"%(\S+) = {ARRAY} parameter\((\d+)\)", entry)
    held = {name for name, _, number in parameters if number in overwritten}
    assert 0 < donated == len(held), text.splitlines()[0]
    counted = {name for name in held if name.startswith(prefix)}
    copied = counted & set(re.findall(r" copy\(%(\S+)\)", entry))
    assert not copied, f"copied: {', '.join(sorted(copied))}"
