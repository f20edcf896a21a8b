"""optax's own type for an optimizer, filled by two methods."""

from collections.abc import Callable, Iterator
from typing import Any, Self

import optax


class OptaxForm(optax.GradientTransformationExtraArgs):
    """The pair that optax's type stands for, taken from the methods `init` and `update`.

    `optax.GradientTransformation` is a NamedTuple of two functions, and libraries and type checkers
    ask for that type. A subclass has methods of these names in their place: as a tuple it has
    length 2 and unpacks into its methods, while the stored entries are empty. Everything else that
    a tuple does by its entries (equality, order, hashes, pickles) would mix up all subclasses, so
    here it goes by identity, as for optax's pairs of closures.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        return tuple.__new__(cls, (None, None))

    def __iter__(self) -> Iterator[Callable[..., Any]]:
        """Unpacks as the pair `init, update`."""
        return iter((self.init, self.update))

    def __getitem__(self, index: Any) -> Any:
        return (self.init, self.update)[index]

    def _replace(self, **functions: Callable[..., Any]) -> optax.GradientTransformationExtraArgs:  # pyright: ignore[reportIncompatibleMethodOverride]
        """A pair of optax's in which `init` or `update` is another function."""
        return optax.GradientTransformationExtraArgs(self.init, self.update)._replace(**functions)

    def __getnewargs__(self) -> tuple[Any, ...]:
        return ()

    by_identity: Any = object
    __eq__, __ne__, __hash__ = by_identity.__eq__, by_identity.__ne__, by_identity.__hash__
    __lt__, __le__ = by_identity.__lt__, by_identity.__le__
    __gt__, __ge__ = by_identity.__gt__, by_identity.__ge__
    del by_identity
