"""Where arrays lie: a slot along its param, the results of an update where its inputs lay.

On a mesh with explicit axes an array's sharding is part of its type, also inside a trace. With
automatic axes only a concrete array has one; inside a trace the compiler chooses, led by what an
array is computed from.

Whether an array is in the device's memory or in the host's is part of its type everywhere, and
another matter (`memory.py`): nothing here changes it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from optfn.core.mapped import largest
from optfn.core.memory import HOST, is_in_host


@partial(jax.tree_util.register_dataclass, data_fields=["value"], meta_fields=["axes"])
@dataclass(frozen=True)
class Along:
    """A new slot, and which axis of its param each of its axes is.

    What `init_leaf` returns for a slot that has not its param's shape, so that the slot is sharded
    as its param is along the axes they share:

        Along(jnp.zeros(rows), (0,))                    one number per row of a matrix
        Along(jnp.zeros((m, *p.shape)), (None, 0, 1))   the last m of a matrix
        Along(jnp.zeros((rows, rows)), (0, None))       a factor, whose columns are whole
        Along(jnp.zeros((rows, columns // 32)), (0, 1)) a number for every 32 entries of a row

    It is not needed where each axis is as long as the param's in its place, or has length 1: that
    is clear from the shape.

    Args:
        value: the slot.
        axes: for each axis of the slot the number of the param's axis, or None for one of its own.
            An axis shorter than the param's holds a number for each of its parts, which are
            equally long. Where the param's sharding would cut a part, that axis is whole.
    """

    value: Any
    axes: tuple[int | None, ...]

    @classmethod
    def of(cls, slot: Any, param: Any) -> "Along":
        """A slot whose axes are given, or clear from its shape; others are its own."""
        if not isinstance(slot, cls):
            shape, axes = jnp.shape(slot), range(jnp.ndim(param))
            pairs = zip(shape, jnp.shape(param), strict=False)
            fits = len(shape) == len(axes) and all(n in (1, whole) for n, whole in pairs)
            return cls(slot, tuple(axes) if fits else (None,) * len(shape))
        shape, axes = jnp.shape(slot.value), slot.axes
        given = [axis for axis in axes if axis is not None]
        known = all(type(axis) is int and 0 <= axis < jnp.ndim(param) for axis in given)
        if len(axes) != len(shape) or not known:
            raise ValueError(
                f"Along(value, axes): axes must name, for each axis of a slot of shape {shape}, an "
                f"axis of the param of shape {jnp.shape(param)} or None, found {axes}."
            )
        return slot

    def shared(
        self, param: Any, spec: Sequence[Any] = (), sizes: Mapping[Any, int] | None = None
    ) -> list[Any]:
        """The slot's axes, with None for those along which it cannot lie as its param does."""
        shared: list[int | None] = []
        for n, axis in zip(jnp.shape(self.value), self.axes, strict=True):
            whole = 0 if axis is None else jnp.shape(param)[axis]
            parts = _parts(spec[axis], sizes or {}) if axis is not None and axis < len(spec) else 1
            divides = n > 1 and whole % n == 0 and n % parts == 0
            shared.append(axis if axis not in shared and (n == whole or divides) else None)
        return shared


def is_along(x: Any) -> bool:
    """Whether it is a slot with its axes, for `is_leaf`."""
    return isinstance(x, Along)


def _parts(names: Any, sizes: Mapping[Any, int]) -> int:
    """Into how many parts these axes of a mesh cut an axis of an array."""
    names = names if isinstance(names, tuple) else (names,)
    return prod(sizes.get(name, 1) for name in names)


def place(slot: Any, param: Any) -> jax.Array:
    """A new slot, strongly typed, where its param lies.

    Args:
        slot: the slot, or an `Along`.
        param: the param.
    """
    slot = Along.of(slot, param)
    value = slot.value if isinstance(slot.value, jax.Array) else fresh(slot.value)
    if value.weak_type:
        value = lax.convert_element_type(value, value.dtype)
    if isinstance(value, Tracer) or isinstance(param, Tracer):
        placed = _traced_along(slot, value, param)
    elif isinstance(param, jax.Array) and param.committed:
        placed = _put(value, sharding_along(slot, param))
    else:
        placed = value
    if (found := _placed.get()) is not None:
        found[id(placed)] = placed, slot, param
    return placed


def stands_for(new: jax.Array, old: jax.Array) -> jax.Array:
    """A slot in the place of one that `place` returned, which lies along the same param."""
    if new is not old and (found := _placed.get()) is not None:
        found[id(new)] = new, Along(old, tuple(range(old.ndim))), old
    return new


def fresh(x: Any) -> jax.Array:
    """A copy in a buffer of its own; outside a trace no program is compiled for it."""
    if isinstance(x, Tracer):
        return jnp.copy(x)
    # Whatever it is told, `device_put` may share the memory of a NumPy array.
    own = x if isinstance(x, jax.Array) else np.array(x)
    return jax.device_put(own, may_alias=False)


def sharding_along(slot: Along, param: Any) -> Any:
    """The sharding of a slot, given a param that has one."""
    its = getattr(param, "sharding", None)
    if not isinstance(its, NamedSharding):
        return its
    alike = jnp.shape(slot.value) == jnp.shape(param) and slot.axes == (*range(jnp.ndim(param)),)
    if alike and AxisType.Explicit not in its.mesh.axis_types:
        return its
    spec = (*its.spec, *[None] * (jnp.ndim(param) - len(its.spec)))
    axes = slot.shared(param, spec, its.mesh.shape)
    return _named(its, [None if axis is None else spec[axis] for axis in axes])


def _named(like: NamedSharding, spec: Sequence[Any]) -> NamedSharding:
    """A sharding on a mesh, written as a compiled program writes it; another would compile anew."""
    if AxisType.Explicit not in like.mesh.axis_types:
        spec = spec[: max((i + 1 for i, name in enumerate(spec) if name is not None), default=0)]
    return NamedSharding(like.mesh, PartitionSpec(*spec), memory_kind=like.memory_kind)


def _traced_along(slot: Along, value: jax.Array, param: Any) -> jax.Array:
    """The slot as an expression that depends on the param, whose sharding the compiler gives it.

    A constant is replicated under automatic axes, also one from `zeros_like`; this is none until
    the compiler has chosen the shardings, and becomes one then. Two such slots share no buffer.
    """
    sharding = jax.typeof(param).sharding
    axes = slot.shared(param, sharding.spec, sharding.mesh.shape)
    shadow = _shadow(param, jnp.shape(value), axes)
    if jnp.ndim(shadow) == 0:
        shadow = largest(shadow)
    its = jax.typeof(shadow).sharding
    if AxisType.Explicit in its.mesh.axis_types and jax.typeof(value).sharding != its:
        value = jax.sharding.reshard(value, its)
    return jnp.where(shadow == shadow, value, value)


def _shadow(param: jax.Array, shape: tuple[Any, ...], axes: Sequence[int | None]) -> jax.Array:
    """An array of this shape, computed from the param by the axes they share."""
    kept = {axis: n for axis, n in zip(axes, shape, strict=True) if axis is not None}
    x = param.real if jnp.iscomplexobj(param) else param
    x = lax.reduce_max(x, [axis for axis in range(x.ndim) if axis not in kept])
    order = sorted(kept)
    for i, axis in enumerate(order):
        if x.shape[i] != kept[axis]:
            parts = (*x.shape[:i], kept[axis], x.shape[i] // kept[axis], *x.shape[i + 1 :])
            x = lax.reduce_max(lax.reshape(x, parts), [i + 1])
    x = lax.transpose(x, [order.index(axis) for axis in kept])
    return lax.broadcast_in_dim(x, shape, [i for i, axis in enumerate(axes) if axis is not None])


# The arrays that `place` returned, by identity, with their slots and params, while a state is
# traced to find where it lies.
_placed: ContextVar[dict[Any, Any] | None] = ContextVar("placed", default=None)


def shapes_in_place(
    init: Callable[..., Any], params: Any, elsewhere: Callable[[tuple[Any, ...], Any], Any]
) -> Any:
    """`jax.eval_shape(init, params)`, with the sharding of each array that `place` has placed.

    Args:
        init: a function of the params.
        params: a tree of `ShapeDtypeStruct`.
        elsewhere: `(path, shape) -> sharding` of the other arrays.
    """
    own, slots, places = jax.tree.leaves(params), {}, []

    def run(params):
        token = _placed.set(slots)
        try:
            state = init(params)
        finally:
            _placed.reset(token)
        by_id = {id(x): param for x, param in zip(jax.tree.leaves(params), own, strict=True)}
        for x in jax.tree.leaves(state):
            in_host = is_in_host(x)
            between = []  # slots of slots, as of an optimizer that runs on projections
            while id(x) in slots:
                _, slot, x = slots[id(x)]
                between.append(slot)
            places.append((between[::-1], by_id.get(id(x)), in_host))
        slots.clear()
        return state

    def where(path: tuple, x: Any, between: list[Along], param: Any, in_host: bool) -> Any:
        if param is None or not between:
            its = elsewhere(path, x)
        else:
            for slot in between:
                its = sharding_along(slot, param)
                param = jax.ShapeDtypeStruct(jnp.shape(slot.value), param.dtype, sharding=its)
            its = param.sharding
        return its.with_memory_kind(HOST) if in_host and its is not None else its

    found, treedef = jax.tree_util.tree_flatten_with_path(jax.eval_shape(run, params))
    return treedef.unflatten(
        jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where(path, x, *place))
        for (path, x), place in zip(found, places, strict=True)
    )


def is_sharded(x: Any) -> bool:
    """Whether an array lies on a mesh: in a trace, whether explicit axes split it."""
    if isinstance(x, Tracer):
        return any(jax.typeof(x).sharding.spec)
    return isinstance(x, jax.Array) and x.committed and isinstance(x.sharding, NamedSharding)


def lies_like(x: Any, y: Any) -> bool:
    """Whether `x` lies where `y` does, as far as a trace can tell."""
    if isinstance(x, Tracer) or isinstance(y, Tracer):
        return jax.typeof(x).sharding.spec == jax.typeof(y).sharding.spec
    if not (isinstance(x, jax.Array) and isinstance(y, jax.Array) and y.committed):
        return True
    return x.committed and x.sharding.is_equivalent_to(_sharding_for(x, y), x.ndim)


def put_like(x: Any, y: Any) -> Any:
    """`x` where `y` lies, which has the same shape; inside a trace with automatic axes, `x`."""
    if lies_like(x, y):
        return x
    if isinstance(x, Tracer) or isinstance(y, Tracer):
        return _retyped(x, jax.typeof(y).sharding)
    return jax.device_put(x, _sharding_for(x, y))


def _sharding_for(x: jax.Array, y: jax.Array) -> Any:
    """The sharding of `y`, in the memory of `x`."""
    kind: Any = x.sharding.memory_kind
    return y.sharding if kind == y.sharding.memory_kind else y.sharding.with_memory_kind(kind)


def _retyped(x: Any, sharding: Any) -> Any:
    """`x` with the explicit axes of a sharding."""
    own = jax.typeof(x).sharding
    if own.spec == sharding.spec:
        return x
    if sharding.mesh.empty:
        sharding = NamedSharding(own.mesh, sharding.spec)
    return jax.sharding.reshard(x, sharding)


def _put(x: jax.Array, sharding: Any) -> jax.Array:
    return x if x.committed and x.sharding == sharding else jax.device_put(x, sharding)


def whole_like(x: Any, ndim: int) -> Any:
    """The sharding of a whole array on the explicit axes that split `x`; None without such axes.

    For products: where the summed axes are split, they must be told where their result lies.
    """
    sharding = jax.typeof(x).sharding
    return (
        NamedSharding(sharding.mesh, PartitionSpec(*[None] * ndim)) if any(sharding.spec) else None
    )


def replicate(x: Any) -> jax.Array:
    """A copy on every device of an array sharded over explicit mesh axes; others unchanged."""
    sharding = jax.typeof(x).sharding
    return jax.sharding.reshard(x, replicated([jax.typeof(x)])) if any(sharding.spec) else x


def split_like(x: jax.Array, other: Any) -> jax.Array:
    """The inverse of `replicate`: `x` sharded like `other`, which has the same shape."""
    return _retyped(x, jax.typeof(other).sharding)


def on_devices_of(x: jax.Array, leaves: Iterable[Any]) -> jax.Array:
    """`x` on the devices that the arrays `leaves` are committed to; unchanged under a trace."""
    arrays = [leaf for leaf in (x, *leaves) if isinstance(leaf, jax.Array)]
    if any(isinstance(array, Tracer) for array in arrays):
        return x
    sharding = replicated(array for array in arrays if array.committed)
    if isinstance(sharding, NamedSharding):
        sharding = _named(sharding, [None] * x.ndim)
    return x if sharding is None else jax.device_put(x, sharding)


def replicated(leaves: Iterable[Any]) -> Any:
    """A sharding replicated over the devices of all leaves that have one; None if they differ."""
    found = {_whole(leaf.sharding) for leaf in leaves if getattr(leaf, "sharding", None)}
    return found.pop() if len(found) == 1 else None


def _whole(sharding: Any) -> Any:
    if isinstance(sharding, NamedSharding):
        return NamedSharding(sharding.mesh, PartitionSpec())
    return sharding
