"""Reading, replacing and batching the numbers of an optimizer."""

import difflib
from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from optfn.core.data import Data, as_number
from optfn.core.numbers_by_path import NumberByPath
from optfn.core.randomness import is_key
from optfn.core.transform import Transform, check_transform_type, readable_state
from optfn.core.walk import replace_stages

T = TypeVar("T")


class HyperparameterNameError(KeyError, ValueError):
    """A name that no hyperparameter has, or several have."""

    __str__ = ValueError.__str__


class ByName(dict):
    """A pytree of values by qualified name; `d["b"]` finds `d["a.b"]` where that is unique."""

    what: ClassVar[str]

    def __init_subclass__(cls) -> None:
        jax.tree_util.register_pytree_with_keys(
            cls,
            lambda d: (tuple((jax.tree_util.DictKey(k), d[k]) for k in d), tuple(d)),
            lambda names, values: cls(zip(names, values, strict=True)),
        )

    def __missing__(self, name: str) -> Any:
        return self[_find(name, list(self), self.what)]

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or len(_ending(str(name), list(self))) == 1

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self else default  # noqa: SIM401


class Hyperparameters(ByName):
    """Values by qualified name; `h["b1"]` finds `h["scale_by_adam.b1"]` where that is unique."""

    what = "hyperparameter"


def hyperparameters(tx: optax.GradientTransformation, state: optax.OptState) -> Hyperparameters:
    """The values that the next update will use, with every schedule evaluated.

    These are what the user sets. What an optimizer finds itself, such as the rate of `prodigy`, is
    in `metrics(tx, state)`.

    Args:
        tx: an optimizer.
        state: its state; schedules in a wrapper with its own inner state use that state's step.

    Returns:
        A dict from qualified names like `"scale_by_adam.b1"` to scalars. A short name works as a
        key where it is unique: `hyperparameters(tx, state)["learning_rate"]`. It is a pytree, so a
        jitted step can return it.
    """
    tx = check_transform_type(tx, "hyperparameters(tx, state): tx")
    state = readable_state(state)
    return hyperparameters_at(tx, state.slots, state.step)


def hyperparameters_at(tx: Transform, slots: Any, step: Any) -> Hyperparameters:
    """`hyperparameters` of an inner transform, given its named slots and its step."""
    resolved = replace_stages(tx, slots, step, _resolved)
    return Hyperparameters(zip(_names(resolved), jax.tree.leaves(resolved), strict=True))


def replace(tx: T, /, **values: Any) -> T:
    """A copy of the optimizer with new numbers, which a function compiled for the old one takes.

    Args:
        tx: an optimizer or a schedule.
        **values: new values by name. A name may be short where it is unique (`b1`), or qualified
            (`**{"scale_by_adam.b1": 0.95}`). The arguments of a schedule have their own names:
            `**{"learning_rate.peak_value": 1e-3}`.

    Raises:
        ValueError: a name is unknown or ambiguous, or names a schedule instead of a number.
    """
    leaves, treedef = jax.tree.flatten(tx)
    names = _names(tx)
    for name, value in values.items():
        i = names.index(_find(name, names))
        leaves[i] = _in_form_of(leaves[i], as_number(value, f"replace({name}=...)"))
    return jax.tree.unflatten(treedef, leaves)


def as_arrays(tx: T) -> T:
    """The same optimizer with every number a float32 array.

    For functions that trace arrays only and treat Python floats as constants: `eqx.filter_jit`,
    `nnx.data`. Also under `jax.transfer_guard("disallow")`, which refuses Python floats as operands
    of a jitted function, as they go to the device at each call. Leaves that are not real numbers,
    such as the keys and switches of a foreign schedule, are unchanged.
    """

    def as_array(x: Any) -> Any:
        dtype = jnp.dtype(type(x)) if isinstance(x, (float, int)) else getattr(x, "dtype", None)
        real = dtype and any(jnp.issubdtype(dtype, kind) for kind in (jnp.floating, jnp.integer))
        return jnp.asarray(x, jnp.float32) if real else x

    return jax.tree.map(as_array, tx)


def stack(optimizers: Sequence[T]) -> T:
    """One optimizer whose numbers are arrays `[n]`, from n optimizers of the same structure.

    `jax.vmap` over it runs all n in one program.
    """
    optimizers = list(optimizers)
    if not optimizers:
        raise ValueError("stack(...) needs at least one optimizer.")
    first = jax.tree.structure(optimizers[0])
    for i, other in enumerate(optimizers):
        if jax.tree.structure(other) != first:
            raise ValueError(
                f"stack(...): optimizer {i} is built of other parts than optimizer 0: "
                f"{other} against {optimizers[0]}."
            )

    def stacked(*values: Any) -> jax.Array:
        if is_key(values[0]):
            return stack_values(*values)
        return jnp.stack([jnp.asarray(x, float) for x in values])  # whatever their dtypes

    return jax.tree.map(stacked, *optimizers)


def stack_values(*values: Any) -> Any:
    """The values of one number as one array, on the host unless some are traced or random keys."""
    if is_key(values[0]) or any(map(_is_traced, values)):
        return jnp.stack(values)
    dtype = getattr(values[0], "dtype", jnp.result_type(float))
    return np.stack([np.asarray(x, dtype) for x in values])


def unstack(tx: T) -> list[T]:
    """The inverse of `stack`: the optimizers of a batch, in order."""
    leaves, treedef = jax.tree.flatten(tx)
    axes = treedef.flatten_up_to(in_axes(tx))
    sizes = {np.shape(x)[0] for x, axis in zip(leaves, axes, strict=True) if axis == 0}
    if len(sizes) != 1:
        raise ValueError(f"unstack(...) needs numbers of one common length, found {sorted(sizes)}.")
    return [
        treedef.unflatten(
            [x if axis is None else x[i] for x, axis in zip(leaves, axes, strict=True)]
        )
        for i in range(sizes.pop())
    ]


def in_axes(tx: T) -> T:
    """The `in_axes` of an optimizer for `jax.vmap`: 0 where a number is an array `[n]`, else None.

    `jax.vmap(train, in_axes=(in_axes(tx), None))(tx, data)`. A sequence kept as one array, such as
    a schedule's boundaries, is a batch if its shape is `[n, length]`. An array inside a foreign
    function (`schedules.custom`) counts as a batch.
    """

    def axis(x: Any, ndim: int = 0) -> int | None:
        return 0 if np.ndim(x) > ndim else None

    def axes(node: Any) -> Any:
        if not isinstance(node, Data):
            return axis(node)
        changes = {
            name: jax.tree.map(axes, value, is_leaf=lambda x: isinstance(x, Data))
            for name, value in node.fields("number", "numbers", "child", "part")
        }
        for name, value in node.fields("numbers"):
            if not isinstance(value, tuple):
                changes[name] = axis(value, 1)
        return node.rebuilt(**changes)

    return jax.tree.map(axes, tx, is_leaf=lambda x: isinstance(x, Data))


def _resolved(stage: Transform, slots: Any, step: Any) -> Transform:
    return stage.resolve(stage.schedule_step(slots, step))


def _names(node: Any, prefix: str = "", tag: str = "") -> list[str]:
    """The qualified name of every leaf, in flattening order.

    A transform contributes its name; the field that holds it appears only where a transform has
    several such fields. Siblings of the same name are numbered by `tags`; a number by path has a
    name for each pattern.
    """
    if isinstance(node, Transform) and node.name is not None:
        prefix = join(prefix, node.name + tag)
    if isinstance(node, Data):
        holders = [field for field, _ in node.fields("child")]
        silent = holders if isinstance(node, Transform) and len(holders) == 1 else []
        silent = ["numbers"] if isinstance(node, NumberByPath) else silent
        return [
            name
            for field, value in node.fields("number", "numbers", "child", "part")
            for name in _names(value, prefix if field in silent else join(prefix, field))
        ]
    if isinstance(node, dict):
        return [n for label in sorted(node) for n in _names(node[label], join(prefix, label))]
    if isinstance(node, tuple) and all(isinstance(x, Transform) for x in node):
        return [n for x, tag in zip(node, tags(node), strict=True) for n in _names(x, prefix, tag)]
    if isinstance(node, tuple):
        return [n for i, x in enumerate(node) for n in _names(x, join(prefix, str(i)))]
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(node)[0]]
    return [join(prefix, jax.tree_util.keystr(path, simple=True, separator=".")) for path in paths]


def tags(siblings: Sequence[Transform]) -> list[str]:
    """The suffix for each name: `"[0]"`, `"[1]"`, ... where siblings share it, else empty."""
    repeated = {name for name, k in Counter(x.name for x in siblings).items() if k > 1}
    seen = Counter()
    out = []
    for x in siblings:
        out.append(f"[{seen[x.name]}]" if x.name in repeated else "")
        seen[x.name] += 1
    return out


def join(*parts: str | None) -> str:
    return ".".join(part for part in parts if part)


def _find(name: str, names: list[str], what: str = "hyperparameter") -> str:
    """The one qualified name that equals `name` or ends with it."""
    if name in names:
        return name
    found = _ending(name, names)
    inside = [n for n in names if f".{name}." in f".{n}"]
    if len(found) == 1 and not inside:
        return found[0]
    if found:
        raise HyperparameterNameError(
            f"'{name}' is ambiguous; say which: {', '.join(found + inside)}."
        )
    if inside:
        raise HyperparameterNameError(
            f"'{name}' is no number but a schedule or a transform; its own numbers are: "
            f"{', '.join(inside)}."
        )
    endings = {end for n in names for end in (n, *n.split("."))}
    close = difflib.get_close_matches(name, sorted(endings), 1)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    raise HyperparameterNameError(
        f"no {what} is named '{name}'.{hint} There are: {', '.join(names) or 'none'}."
    )


def _ending(name: str, names: list[str]) -> list[str]:
    return [n for n in names if n.endswith(f".{name}")]


def _in_form_of(old: Any, new: Any) -> Any:
    """`new` with the dtype and weak type of `old`, so that the same compiled program serves it.

    A batch of values may replace a single one. An integer array becomes a float one, whose dtype
    keeps the fraction.
    """
    if jnp.issubdtype(jnp.result_type(old), jnp.integer):
        return jnp.asarray(new, float)
    if isinstance(old, np.ndarray) and not _is_traced(new):
        return np.asarray(new, old.dtype)
    if isinstance(old, float):
        return float(new) if np.ndim(new) == 0 and not _is_traced(new) else jnp.asarray(new, float)
    if getattr(old, "weak_type", False) and np.ndim(new) == 0 and not _is_traced(new):
        return jnp.asarray(float(new))
    return jnp.asarray(new, old.dtype)


def _is_traced(x: Any) -> bool:
    return isinstance(x, Tracer)
