"""Batches from the host, common to all lanes."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from optfn.core.tree import PyTree


@dataclass
class _Batches:
    """The batches of a segment.

    Attributes:
        first: the step of the first batch.
        arrays: pytree `[length, ...]`, with room for the whole segment.
        count: the number of batches so far; the rest of `arrays` is filled with the first one.
        error: the error that ended the batches, if any.
    """

    first: int
    arrays: PyTree = None
    count: int = 0
    error: Exception | None = None

    def add(self, batch: PyTree, length: int) -> None:
        """Copies a batch into its place, since a loader may reuse its arrays."""
        batch = jax.tree.map(np.asarray, batch)
        if not self.count:
            self.arrays = jax.tree.map(lambda x: np.stack([x] * length), batch)
        first = jax.tree.map(lambda x: x[0], self.arrays)
        if _kind(batch) != _kind(first):
            raise ValueError(
                f"the task's stream gave {_shown(batch)} at step {self.first + self.count}, and "
                f"{_shown(first)} at step {self.first}: all must be alike, so leave out a last "
                "one that is smaller."
            )
        for array, x in zip(jax.tree.leaves(self.arrays), jax.tree.leaves(batch), strict=True):
            array[self.count] = x
        self.count += 1


class Stream:
    """The batches of a stream, a segment at a time.

    Args:
        source: a function of the step; an iterable, which is restarted when it ends; or None.
        length: the steps of a segment.
    """

    def __init__(self, source: Any, length: int):
        self.source = source
        self.length = length
        self.ready: dict[int, _Batches] = {}
        self.iterator: Iterator = iter(())
        self.begun = False
        self.position = 0

    def take(self, segment: int, count: int) -> PyTree:
        """The batches of a segment, a pytree `[length, ...]`; None without a stream.

        Args:
            segment: its number.
            count: the number of batches needed, from its first step on.

        Raises:
            ValueError: the stream ended, or its batches are not alike.
            Exception: any error that the stream itself raises.
        """
        if self.source is None:
            return None
        self.prefetch(segment, count)
        batches = self.ready[segment]
        if batches.error is not None and batches.count < count:
            raise batches.error
        return batches.arrays

    def like(self, segment: int) -> PyTree:
        """The shapes `[length, ...]` of a segment's batches, from any batches known."""
        known = [batches.arrays for batches in self.ready.values() if batches.count]
        arrays = known[-1] if known else self.take(segment, 1)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arrays)

    def first_of(self, segment: int) -> PyTree:
        """The first batch of a segment, None where it is not at hand."""
        batches = self.ready.get(segment)
        if batches is None or not batches.count:
            return None
        return jax.tree.map(lambda x: x[0], batches.arrays)

    def prefetch(self, segment: int, count: int) -> None:
        """Reads the batches of a segment, and drops those before the previous segment.

        They may turn out not to be needed, so an error of the stream is kept until `take`.
        """
        if self.source is None:
            return
        self.ready = {i: batches for i, batches in self.ready.items() if i >= segment - 1}
        batches = self.ready.setdefault(segment, _Batches(segment * self.length))
        while batches.count < count and batches.error is None:
            try:
                batches.add(self._at(batches.first + batches.count), self.length)
            except Exception as error:
                batches.error, self.begun = error, False

    def _at(self, step: int) -> PyTree:
        if callable(self.source):
            return self.source(step)
        if not self.begun or step < self.position:
            self.iterator, self.position, self.begun = iter(self.source), 0, True
        for _ in range(self.position, step):
            self._next()
        return self._next()

    def _next(self) -> PyTree:
        for _ in range(2):
            for batch in self.iterator:
                self.position += 1
                return batch
            self.iterator = iter(self.source)
        raise ValueError(
            f"the task's stream ended after {self.position} batches; give a function of the step, "
            "or an iterable that can be restarted."
        )


def _kind(batch: PyTree) -> Any:
    leaves, tree = jax.tree.flatten(batch)
    return tree, [(x.shape, x.dtype) for x in leaves]


def _shown(batch: PyTree) -> str:
    return str(jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", batch)).replace("'", "")
