"""Routing: different transforms for different leaves.

The leaves of other groups are None in a transform's view of the trees, so it holds no state for
them and spends nothing on them.
"""

import enum
import functools
from collections.abc import Mapping
from typing import Any

import optax

from optfn.compose.chain import chain
from optfn.core.data import child, per_leaf
from optfn.core.holes import merge, view
from optfn.core.slots import no_updates
from optfn.core.state import Context
from optfn.core.transform import Transform, as_transform
from optfn.core.tree import PyTree, leaf_paths
from optfn.core.updates_kind import Updates, either, partly
from optfn.core.wrapper import Wrapper


def _by_text(
    transforms: Mapping[Any, optax.GradientTransformation],
    where: str = "partition(transforms=...)",
) -> dict[str, Transform]:
    if not isinstance(transforms, Mapping) or not transforms:
        raise TypeError(f"{where} must be a dict {{label: transform}}.")
    by_text = {_text(label): as_transform(tx, where) for label, tx in transforms.items()}
    if len(by_text) < len(transforms):
        raise ValueError(f"{where}: two labels read the same in {list(transforms)}.")
    return by_text


class partition(Transform):
    """Routes each leaf of the params to one of several transforms, by label.

    For "Muon for matrices, AdamW for the rest", and for groups with their own learning rates.

        partition({"decay": adamw(1e-3), "plain": adam(1e-3)},
                  lambda path, leaf: "decay" if leaf.ndim > 1 else "plain")

    Args:
        transforms: a dict from labels (strings, whole numbers or members of an enum) to
            transforms. A label may have no leaves.
        labels: a label per leaf: a tree of labels (a prefix is enough), a function
            `(path, leaf) -> label`, or a function `params -> tree`; optax's name for it,
            `param_labels`, is taken too.

    Raises:
        ValueError: at `init` and `update`, if no transform has the label of a leaf.
    """

    elementwise = True

    transforms: Mapping[str, Transform] = child(converter=_by_text)
    labels: Any = per_leaf(also_called="param_labels")

    def __post_init__(self) -> None:
        if self.labels is None:
            raise TypeError("partition(labels=...) must be a tree or a function, found None.")
        super().__post_init__()

    @property
    def stateful(self) -> bool:
        return any(transform.stateful for transform in self.transforms.values())

    def init_slots(self, params: PyTree) -> Any:
        labels = self._labels(params)
        slots = {}
        for label, transform in self.transforms.items():
            if transform.stateful:
                slots[label] = transform.init_named(view(params, [x == label for x in labels]))
        return slots

    def apply(self, updates: PyTree, slots: Any, ctx: Context) -> tuple[PyTree, Any]:
        labels = self._labels(updates if ctx.params is None else ctx.params)
        new, result = {}, updates
        for label, transform in self.transforms.items():
            mine = [x == label for x in labels]
            inner_ctx = view_context(ctx, mine, updates, transform)
            inner, _ = self.inner(slots, ctx.step, label)
            own, kept = transform.apply_named(view(updates, mine), inner, inner_ctx)
            if transform.stateful:
                new[label] = kept
            result = merge(own, result, mine)
        return result, new

    def updates_kind(self, incoming: Updates) -> Updates:
        return either(tx.updates_kind(incoming) for tx in self.transforms.values())

    def inner(self, slots: Any, step: Any, label: str) -> tuple[Any, Any]:
        return (slots or {}).get(label, {}), step

    def with_inner(self, slots: Any, label: str, new: Any) -> Any:
        return {**slots, label: new} if label in slots else slots

    def inner_params(self, params: PyTree, label: str) -> PyTree:
        return view(params, [x == label for x in self._labels(params)])

    def _labels(self, tree: PyTree) -> list[str]:
        given = self.labels.values(tree)
        labels = list(map(_text, given))
        unknown = {
            path: label
            for path, label, text in zip(leaf_paths(tree), given, labels, strict=True)
            if text not in self.transforms
        }
        if unknown:
            first = ", ".join(f"'{path}' is {label!r}" for path, label in list(unknown.items())[:5])
            raise ValueError(
                f"{self.name}: {len(unknown)} leaves have a label that is none of "
                f"{sorted(self.transforms)}: {first}."
            )
        return labels


def _text(label: Any) -> str:
    """A label as it stands in the state and in qualified names."""
    if isinstance(label, enum.Enum):
        return label.name
    if not isinstance(label, (str, int)):
        raise TypeError(
            "partition(...): labels are strings, whole numbers or members of an enum, found "
            f"{label!r}."
        )
    return str(label)


class _Selective(Wrapper):
    """A transform for the leaves that a mask selects."""

    mask: Any = per_leaf(of=bool)
    selects = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mask is None:
            raise TypeError(f"{type(self).__name__}(mask=...) must be a tree or a function.")

    def apply(self, updates: PyTree, slots: Any, ctx: Context) -> tuple[PyTree, Any]:
        mine = self._mine(updates if ctx.params is None else ctx.params)
        own, new = self.transform.apply_named(
            view(updates, mine), slots, view_context(ctx, mine, updates, self.transform)
        )
        return merge(own, self._others(updates), mine), new

    def inner_params(self, params: PyTree, label: str) -> PyTree:
        return view(params, self._mine(params))

    def _mine(self, tree: PyTree) -> list[bool]:
        return [x == self.selects for x in self.mask.values(tree)]

    def _others(self, updates: PyTree) -> PyTree:
        raise NotImplementedError


class masked(_Selective):
    """Applies a stage to the leaves where the mask is True and passes the others on unchanged.

    Only as a stage among others: alone it would pass raw gradients on as updates, as
    `optax.masked` does. To leave params unchanged, use `freeze`.

    Args:
        transform: the stage.
        mask: a bool per leaf: a tree (a prefix is enough), a function `(path, leaf) -> bool` or
            a function `params -> tree`.
    """

    elementwise = True

    def updates_kind(self, incoming: Updates) -> Updates:
        return partly(super().updates_kind(incoming), incoming)

    def _others(self, updates: PyTree) -> PyTree:
        return updates


UNCHANGED = chain()


class freeze(_Selective):
    """Leaves the params where the mask is True unchanged and optimizes the others.

    Frozen leaves get zero updates and hold no state; they may be of integer dtype.

        freeze(adamw(1e-3), mask)
        chain(adamw(1e-3), freeze(mask))        optax's form, a stage that zeroes updates

    Args:
        transform: the optimizer for the leaves that are not frozen.
        mask: True for frozen leaves: a tree (a prefix is enough), a function
            `(path, leaf) -> bool` or a function `params -> tree`.
    """

    elementwise = True
    selects = False

    def __init__(self, transform: Any = UNCHANGED, mask: Any = None):
        if mask is None and not isinstance(transform, optax.GradientTransformation):
            transform, mask = UNCHANGED, transform
        object.__setattr__(self, "transform", transform)
        object.__setattr__(self, "mask", mask)
        self.__post_init__()

    def updates_kind(self, incoming: Updates) -> Updates:
        all_frozen = self.mask.is_one and self.mask.leaves == (True,)
        return Updates.NOTHING if all_frozen else super().updates_kind(incoming)

    def _others(self, updates: PyTree) -> PyTree:
        return no_updates(updates)


def set_to_zero() -> freeze:
    """Zero updates for every leaf, as for a frozen group of a partition.

        partition({"frozen": set_to_zero(), "trained": adamw(1e-3)}, labels)

    The same as `freeze(chain(), True)`: no state, no cost, and leaves of any dtype.
    """
    return freeze(UNCHANGED, True)


def view_context(ctx: Context, mine: list[bool], like: PyTree, transform: Transform) -> Context:
    """The context as the routed transform sees it.

    Extra args that are trees get the same holes, and so do trees that a function of the params
    returns. The function is called with all params: the routed ones it is given and the others as
    they are in `ctx`.
    """
    declared = transform.declared_extra_args()

    def see(kind: str, value: Any) -> Any:
        if kind == "tree":
            return view(value, mine)
        if "function" not in kind or ctx.params is None:
            return value

        @functools.wraps(value)
        def seen(own, *args, **kwargs):
            result = value(merge(own, ctx.params, mine), *args, **kwargs)
            return view(result, mine) if kind == "tree function" else result

        return seen

    return ctx._replace(
        params=None if ctx.params is None else view(ctx.params, mine),
        extra_args={k: see(declared.get(k, ""), value) for k, value in ctx.extra_args.items()},
    )
