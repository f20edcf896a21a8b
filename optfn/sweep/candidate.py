"""What a lane trains: an optimizer, and the task's own hyperparameters."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from optfn.core.hyperparameters import stack_values
from optfn.core.randomness import is_key
from optfn.core.transform import Transform
from optfn.sweep.held_numbers import with_numbers

MOST_STRUCTURES = 32


class Candidate(NamedTuple):
    """A point of the space as a lane sees it.

    Its numbers are scalars for one lane, and arrays `[lanes, ...]` after `stack_candidates`.

    Attributes:
        made: the optimizer, a pytree of its numbers; its functions may be those of another trial.
        task: the hyperparameters of the task itself, by name.
        held: the numbers that its functions hold instead, by place; none where they are its own.
    """

    made: Transform
    task: dict[str, ArrayLike]
    held: dict[int, ArrayLike] | tuple[()] = ()

    @property
    def tx(self) -> Transform:
        """The optimizer."""
        return with_numbers(self.made, self.held) if isinstance(self.held, dict) else self.made


def stack_candidates(candidates: Sequence[Candidate], repeats: int = 1) -> Candidate:
    """Candidates of one structure as one, with numbers `[places * repeats, ...]`.

    Args:
        candidates: `[places]`, with numbers `[...]`.
        repeats: the lanes of a place.
    """

    def stack(*numbers: ArrayLike) -> jax.Array | np.ndarray:
        stacked = stack_values(*numbers)
        repeat = jnp.repeat if is_key(stacked) else np.repeat
        return repeat(stacked, repeats, axis=0)

    return jax.tree.map(stack, *candidates)


def structure_key(candidate: Candidate) -> Any:
    """The key of candidates that share a compiled program: their tree, shapes and dtypes."""
    leaves, treedef = jax.tree.flatten(candidate)
    return treedef, tuple((jnp.shape(x), getattr(x, "dtype", None)) for x in leaves)


class Structures:
    """The structures of candidates seen so far, by number."""

    def __init__(self) -> None:
        self.numbers: dict[Any, int] = {}

    def number_of(self, candidate: Candidate, training: Any = None) -> int:
        """The number of the candidate's structure, in the training run of its task.

        Raises:
            ValueError: there would be more than 32 structures, each of them compiled.
        """
        key = training, structure_key(candidate)
        if key not in self.numbers and len(self.numbers) == MOST_STRUCTURES:
            raise ValueError(
                f"the optimizers and tasks have {MOST_STRUCTURES + 1} different structures, and "
                "each would be compiled. A function made for each trial counts as another "
                "structure where it needs its numbers before the program runs, in an `if` or as "
                "a size: make it outside of the one that makes the optimizer, and let numbers that "
                "may be traced go along in jax.tree_util.Partial(function, number)."
            )
        return self.numbers.setdefault(key, len(self.numbers))
