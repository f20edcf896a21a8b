"""Params of 16 bits whose lost digits the state keeps."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from optfn.core.data import child, static
from optfn.core.dtypes import cast, compute_dtype, is_narrow
from optfn.core.holes import merge, seen_in
from optfn.core.inputs import matched
from optfn.core.slots import placed
from optfn.core.state import Context
from optfn.core.transform import Transform, as_transform, check_transform_type, readable_state
from optfn.core.tree import PyTree, bare, in_form_of, leaf_location, leaf_paths
from optfn.core.updates_kind import Updates
from optfn.core.walk import walk
from optfn.storage.formats import rest_of, with_rest


class FullPrecision(NamedTuple):
    """What narrow params lack, None for params of 32 bits and more; and the inner slots."""

    rest: PyTree
    inner: Any


class _FullPrecision(Transform):
    """An optimizer of params in float32, for which params of 16 bits stand.

    A subclass says in which form the state keeps what they lack. `rest` is of one array.

    An update leads to a param of 16 bits near the target. Where that is between half and twice the
    old param, their difference has the digits of the param, so every dtype holds it. Otherwise it
    is rounded to them if the rest has room for what is lost, so that `update` in the dtype of the
    params and `step` lead to the same one.
    """

    needs_params = True

    transform: Transform = child(converter=as_transform)

    def rest(self, target: jax.Array, param: jax.Array) -> jax.Array:
        """What is kept of `target`, in float32, beside a param that was rounded from it."""
        raise NotImplementedError

    def full(self, param: jax.Array, rest: jax.Array) -> jax.Array:
        """The param in float32."""
        return _wide(param) + _wide(rest)

    def rest_dtype(self, dtype: Any) -> Any:
        """The dtype of the rest of a param of this dtype; it tells of which params a state is."""
        raise NotImplementedError

    @property
    def has_room(self) -> bool:
        """Whether a rest may be more than half a digit of the param."""
        return True

    def init_slots(self, params: PyTree) -> FullPrecision:
        def first(param: jax.Array) -> jax.Array | None:
            return self.rest(_wide(param), param) if _is_narrow(param) else None

        return FullPrecision(placed(first, params), self.transform.init_named(_widened(params)))

    def apply(
        self, updates: PyTree, slots: FullPrecision, ctx: Context
    ) -> tuple[PyTree, FullPrecision]:
        full = self.full_params(ctx.params, slots)
        updates, inner = self.transform.apply_named(updates, slots.inner, ctx._replace(params=full))
        moved, rests = [], []
        leaves, treedef = jax.tree.flatten(updates)
        params, wide = (matched(x, updates, "params", "updates") for x in (ctx.params, full))
        for update, param, own in zip(leaves, params, wide, strict=True):
            if _is_narrow(param):
                target = own + cast(update, own.dtype)
                update, param = self._landing(param, target)
                rests.append(self.rest(target, param))
            moved.append(update)
        rest = jax.tree.unflatten(jax.tree.structure(slots.rest), rests)
        return treedef.unflatten(moved), FullPrecision(rest, inner)

    def _landing(self, param: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The update that brings a narrow param near to a target, and the param it leads to."""
        update = _wide(cast(target, param.dtype)) - _wide(param)
        if self.has_room:
            update = _wide(cast(update, param.dtype))
        return update, cast(_wide(param) + update, param.dtype)

    def updates_kind(self, incoming: Updates) -> Updates:
        return super().updates_kind(incoming).kept()

    def inner_params(self, params: PyTree, label: Any) -> PyTree:
        return _widened(params)

    def evaluation_params(self, params: PyTree, slots: FullPrecision, step: Any) -> PyTree:
        full = self.full_params(params, slots)
        found = self.transform.evaluation_params_named(full, slots.inner, step)
        return jax.tree.map(lambda x, param: cast(x, param.dtype), found, params)

    def full_params(self, params: PyTree, slots: FullPrecision) -> PyTree:
        """The params in float32, or wider where they are wider."""
        leaves, treedef = jax.tree.flatten(params)
        rests = jax.tree.leaves(slots.rest)
        narrow = [i for i, param in enumerate(leaves) if _is_narrow(param)]
        names = leaf_paths(params)
        own, kept = [names[i] for i in narrow], leaf_paths(slots.rest)
        if own != kept:
            raise ValueError(
                f"{self.name} keeps what the params of 16 bits {_listed(kept)} lack, found such "
                f"params {_listed(own)}: was the state made from params of these dtypes?"
            )
        for i, rest in zip(narrow, rests, strict=True):
            param, dtype = leaves[i], self.rest_dtype(leaves[i].dtype)
            if rest.dtype != dtype or rest.shape != param.shape:
                raise ValueError(
                    f"{leaf_location(params, i)} {self.name} keeps what the param lacks as "
                    f"{rest.dtype.name}{list(rest.shape)}, of a {param.dtype.name} param it is "
                    f"{jnp.dtype(dtype).name}{list(param.shape)}: was the state made from params "
                    "of these dtypes?"
                )
            leaves[i] = self.full(param, rest)
        return treedef.unflatten(leaves)


class compensated(_FullPrecision):
    """Params of 16 bits that lose nothing: the state keeps what each addition rounded away.

        q = p + c,   q <- q + update,   p <- round(q),   c <- round(q - p)

    Kahan's summation: with bfloat16 params c is bfloat16 too, 2 bytes a param, and p and c together
    have 16 digits, or more where c is small. With float16 c is a multiple of 6e-8. Without it
    bfloat16 params that are near 1 stand still at rates below 0.002. `master(tx, bits=24)` needs
    half of the memory.

    It stands around a whole optimizer, which sees p + c in float32. Nothing may change its updates.

    Args:
        transform: the optimizer.

    Raises:
        ValueError: `update` was not given the params.

    Source: Kahan 1965; for training, Zamirai et al. 2020.
    """

    elementwise = True

    def rest(self, target: jax.Array, param: jax.Array) -> jax.Array:
        return cast(target - _wide(param), param.dtype)

    def rest_dtype(self, dtype: Any) -> Any:
        return dtype


class master(_FullPrecision):
    """Params of 16 bits beside more exact ones, which the optimizer trains and the state keeps.

    The model computes with bfloat16 or float16 params; the state has what they lack. With 24 bits
    that is a byte a param: a share of half the last digit, in 127ths, so an error of at most
    2^-15.8 of a bfloat16 param at a step, and 2^-18.8 of a float16 one. With 32 bits it is all that
    float32 has, 4 bytes.

    `master_params(tx, state, params)` gives the params in float32, to save or to evaluate at.
    A param that is set from outside is taken over, up to its last digit: what the old one lacked is
    added to it.

    With 24 bits give gradients in float32, or use `step`: where `update` is given gradients of 16
    bits, a step that more than doubles or halves a param is rounded to these.

    It stands around a whole optimizer, which sees the float32 params. Nothing may change its
    updates. Params of 32 bits and more are left to the optimizer.

    Args:
        transform: the optimizer.
        bits: 24 or 32.

    Raises:
        ValueError: `update` was not given the params.

    Source: Micikevicius et al. 2018; for 24 bits FlashOptim (Gonzalez et al. 2026).
    """

    elementwise = True

    bits: int = static(default=24, choices=(24, 32), kw_only=True)

    @property
    def has_room(self) -> bool:
        return self.bits == 32

    def rest(self, target: jax.Array, param: jax.Array) -> jax.Array:
        if self.bits == 32:
            return target - _wide(param)
        return lax.bitcast_convert_type(rest_of(target, param), self.rest_dtype(param.dtype))

    def full(self, param: jax.Array, rest: jax.Array) -> jax.Array:
        if self.bits == 32:
            return super().full(param, rest)
        return with_rest(param, lax.bitcast_convert_type(rest, jnp.int8))

    def rest_dtype(self, dtype: Any) -> Any:
        if self.bits == 32:
            return jnp.float32
        return jnp.uint8 if dtype == jnp.float16 else jnp.int8


def master_params(
    tx: optax.GradientTransformation, state: optax.OptState, params: PyTree
) -> PyTree:
    """The params in float32 that params of 16 bits stand for, under `master` or `compensated`.

    Save these where a run is handed on, or evaluate at them. A run that goes on needs its state and
    its own params alone.

    Args:
        tx: an optimizer with `master` or `compensated` somewhere in it.
        state: its state after the last step.
        params: the params after the last step.

    Returns:
        A tree like the params; leaves that nobody keeps in full are in float32, or wider.

    Raises:
        ValueError: there is neither a `master` nor a `compensated` in `tx`.
    """
    tx = check_transform_type(tx, "master_params(tx, state, params): tx")
    state = readable_state(state)
    if params is None:
        raise ValueError("master_params(tx, state, params): params must be given, found None.")
    own = bare(params)
    found = [
        (stage, slots, seen)
        for _, stage, slots, _, seen in walk(tx, state.slots, state.step, own)
        if isinstance(stage, _FullPrecision)
    ]
    if not found:
        raise ValueError(
            "master_params(tx, state, params): tx has neither a master(...) nor a compensated(...)."
        )
    full = _widened(own)
    for stage, slots, seen in found:
        full = merge(stage.full_params(seen, slots), full, seen_in(seen, full))
    return in_form_of(full, params)


def _is_narrow(x: Any) -> bool:
    return is_narrow(x.dtype)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return (", ".join(map(repr, names[:3])) or "none") + more


def _wide(x: jax.Array) -> jax.Array:
    return cast(x, compute_dtype(x.dtype))


def _widened(params: PyTree) -> PyTree:
    return jax.tree.map(lambda x: _wide(x) if _is_narrow(x) else x, params)
