"""Values per leaf that are made of how each leaf is a matrix."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from optfn.core.arguments import Argument
from optfn.core.matrix_axes import MatrixAxes, views_or_rule
from optfn.core.paths import by_path
from optfn.core.tree import PerLeaf, PyTree


def of_views(make: Callable[..., Any], views: Any, name: str, **settings: Any) -> Any:
    """`make(view, leaf, **settings)` for each leaf, in the form of the views.

    Of a tree of views a tree, of a function a function, which is data if the views are: it equals
    another of the same content. Where no paths are asked for, the leaf is None.

    Args:
        make: a function defined once, at the top of a module.
        views: a tree or a function, as a matrix optimizer takes it; None is `matrices()`.
        name: of the public function that is called, for messages and for `repr`.
        **settings: its other arguments.
    """
    views = views_or_rule(views)
    where = Argument(f"{name}(views=...)", views)
    given = PerLeaf.of(views, str(where), MatrixAxes)
    if given.function is None:
        return jax.tree.map(lambda view: make(view, None, **settings), views)
    return (_OfParams if given.is_of_params else _OfLeaf)(
        make, views, name, tuple(settings.items())
    )


@dataclass(frozen=True, repr=False)
class _OfLeaf(by_path):
    """A function of a path and a leaf."""

    make: Callable[..., Any]
    views: Any
    name: str
    settings: tuple[tuple[str, Any], ...]

    def __call__(self, path: str, leaf: Any = None) -> Any:
        return self.make(self.views(path, leaf), leaf, **dict(self.settings))

    def check(self, leaves: Any, places: Any, where: str) -> None:
        if isinstance(self.views, by_path):
            self.views.check(leaves, places, where)

    def __repr__(self) -> str:
        views = getattr(self.views, "__qualname__", self.views)
        return f"{self.name}({', '.join(map(str, (views, *dict(self.settings).values())))})"

    def __getattr__(self, name: str) -> Any:
        """A setting, as configs ask for the arguments of the function."""
        settings = dict(self.__dict__.get("settings", ()))  # none yet while it is unpickled
        if name not in settings:
            raise AttributeError(name)
        return settings[name]


class _OfParams(_OfLeaf):
    """A function of the params."""

    def __call__(self, params: PyTree) -> PyTree:  # pyright: ignore[reportIncompatibleMethodOverride]
        settings = dict(self.settings)
        return jax.tree.map(lambda view: self.make(view, None, **settings), self.views(params))
