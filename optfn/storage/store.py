"""`store`: the state of any optimizer in low precision."""

import zlib
from typing import Any, get_args

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from optfn.core.boxes import boxed_like, holds_one
from optfn.core.data import part, per_leaf, static
from optfn.core.dtypes import is_narrow
from optfn.core.memory import in_memory_of, to_device
from optfn.core.placement import Along, place, put_like
from optfn.core.randomness import key_at, seed
from optfn.core.rounding import Rounding
from optfn.core.slot_kinds import Kind, slot_kinds
from optfn.core.state import Context, State, StoredAs
from optfn.core.transform import abstract, check_state_type, check_transform_type
from optfn.core.tree import PyTree, bare, in_form_of, location_of, mismatch, path_string
from optfn.core.wrapper import Wrapper
from optfn.storage.codecs import Codec, as_codec, decode, encode_like
from optfn.storage.offload import check_not_inside
from optfn.storage.selection import Slot, slots_in
from optfn.storage.selection import is_stored as _is_stored


class store(Wrapper):
    """Keeps the slots of an optimizer in low precision, and computes in float32.

        tx = optfn.store(optfn.adamw(1e-3), storage.int8())  # 2.125 bytes a param, not 8
        tx = optfn.store(optfn.adamw(1e-3), {"mu": storage.bf16(), "nu": storage.int8()})

    Each slot is read, updated and stored again, leaf by leaf in a compiled step. Rules say which of
    their slots may be rounded: averages of gradients and of their squares. What must be exact stays
    as it is: counters, factors and bases of matrices, copies and averages of params. So do complex
    slots. The params themselves are not touched: see `compensated` and `master`.

    By default the slots of vectors and of fewer than 4096 entries stay in float32: norms and biases
    take little memory, and their digits matter.

    Inside `shard_map` it stands outside of `across`, as groups are of this device's part.

    Slots keep their names and the optimizer its hyperparameters. `convert_state` gives the state of
    a run that goes on with another storage.

    Args:
        transform: the optimizer, or a stage of one.
        codec: a codec, or a dict of codecs by the name or the kind of a slot, as in `by_slot`.
        leaves: which params have their slots stored, a bool per leaf; True for all.
        rounding: `"nearest"`, or `"stochastic"`, which is right in the mean: an average moves,
            however little it moves at a step. Random numbers take time on a CPU.
        seed: of stochastic rounding, a whole number below 2^24.

    Raises:
        ValueError: at `init`, if a name in the dict is no slot of the optimizer.
    """

    codec: Codec = part(converter=as_codec)
    leaves: Any = per_leaf(default=None, of=bool)
    rounding: str = static(default="nearest", choices=get_args(Rounding), kw_only=True)
    seed: Any = seed()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_inside(self.transform, "store", "decodes")

    @property
    def name(self) -> str | None:
        return self._given_name

    def init_slots(self, params: PyTree) -> Any:
        if any(isinstance(x, Tracer) for x in jax.tree.leaves((self, params))):
            return self._first_slots(params)
        # In one program no slot is ever there in float32.
        slots = _first_slots_jitted(self, params)
        return jax.tree.map(_put, slots, abstract(self._first_slots, jax.tree.map(_shape, params)))

    def apply(self, updates: PyTree, slots: Any, ctx: Context) -> tuple[PyTree, Any]:
        if ctx.stored_as is None:  # one around this has read them
            self._check_stored(slots, updates, ctx.params)
        ctx = ctx._replace(stored_as=_stored_as(slots) or ctx.stored_as)
        updates, new = self.transform.apply_named(updates, _opened(slots), ctx)
        key = None
        if self.rounding == "stochastic":
            key = key_at(self.seed, ctx.step, "store(seed=...)")
        return updates, stored_like(slots, new, key)

    def inner(self, slots: Any, step: Any, label: str) -> tuple[Any, Any]:
        return _opened(slots), step

    def with_inner(self, slots: Any, label: str, new: Any) -> Any:
        return stored_like(slots, new)

    def _first_slots(self, params: PyTree) -> Any:
        """The first slots, each stored by its codec."""
        slots = self.transform.init_named(params)
        all_slots = slots_in(slots, params, self.leaves)
        if jax.tree.leaves(params):
            rounded = [slot.name for slot in all_slots if slot.kind is not None]
            self.codec.check_names(list(dict.fromkeys(rounded)), "store(codec=...)")
        leaves, treedef = jax.tree.flatten(slots, is_leaf=lambda x: _is_stored(x) or holds_one(x))
        zero = _zero_of(params)

        def stored(own: Any, slot: Slot) -> Any:
            chosen = self._choice(slot)
            if chosen is None:
                return own
            codec, kind = chosen
            x = slot.value
            axes = tuple(range(x.ndim))
            x = place(Along(x + zero, axes), x)
            parts = codec.encode(x, kind)
            placed = jax.tree.map(lambda y: Along(place(Along(y, axes), x), axes), parts)
            return boxed_like(own, placed)

        return treedef.unflatten(map(stored, leaves, all_slots))

    def _choice(self, slot: Slot) -> tuple[Codec, Kind] | None:
        """The codec and the kind of a slot that is to be stored and is not."""
        return self._codec_of(slot) if _can_be_stored(slot.value) else None

    def _codec_of(self, slot: Slot) -> tuple[Codec, Kind] | None:
        """The codec and the kind of a slot that is to be stored."""
        if slot.kind is None or not slot.is_chosen:
            return None
        codec = self.codec.for_slot(slot.name, slot.kind)
        return codec and (codec, slot.kind)

    def _check_stored(self, slots: Any, updates: PyTree, params: PyTree | None) -> None:
        """Refuses the state of an optimizer that stores otherwise, which would stay as it is."""
        if params is not None or self.leaves is None or self.leaves.function is None:
            _check_forms.eval_shape(self, slots, updates if params is None else params)

    def _check_forms(self, slots: Any, params: PyTree) -> None:
        """`_check_stored`, where it is known which params have their slots stored."""
        found = slots_in(slots, params, self.leaves)
        if not any(map(self._is_other, found)):
            return
        # What is inside may store some of them itself.
        form = _first_slots_jitted.eval_shape(self, params)
        for slot, own in zip(found, slots_in(form, params, self.leaves), strict=False):
            if self._is_other(slot) and _is_narrow(own.value) and _form(slot) != _form(own):
                shape = jax.eval_shape(_read, slot.value).shape
                raise ValueError(
                    f"store(...): the state's {slot.name} of shape {shape} is "
                    f"{_form_name(slot)}, wanted {_form_name(own)} as in the state that init "
                    "gives: was it made by an optimizer that stores otherwise? "
                    "convert_state(tx, state, params) gives the state to go on with."
                )

    def _is_other(self, slot: Slot) -> bool:
        """Whether the codec would have stored a slot otherwise."""
        chosen = self._codec_of(slot)
        if chosen is None:
            return False
        codec, kind = chosen
        x = jax.eval_shape(_read, slot.value)
        if not _can_be_stored(x):
            return False
        stored = _encoded.eval_shape(codec, jax.ShapeDtypeStruct(x.shape, x.dtype), kind)
        return _is_narrow(stored) and _form(slot) != _form(slot._replace(value=stored))


def convert_state(tx: optax.GradientTransformation, state: optax.OptState, params: PyTree) -> State:
    """The state of a run that goes on with another storage: from float32 to 8 bits, and back.

        tx = optfn.store(tx, storage.int8())
        state = optfn.convert_state(tx, state, params)

    Formats are known by themselves, so the optimizer that made the state is not needed. What was
    rounded away does not come back.

    Args:
        tx: the optimizer to go on with, which differs from the old one in storage alone: in `store`
            around it or its parts, or in optax's arguments such as `mu_dtype`.
        state: the state after the last step of the old one.
        params: the params after it.

    Raises:
        ValueError: the state is of another optimizer or of other params.
    """
    where = "convert_state(tx, state, params)"
    tx = check_transform_type(tx, f"{where}: tx")
    state = check_state_type(state)
    if params is None:
        raise ValueError(f"{where}: params must be given, found None.")
    form = jax.eval_shape(tx.init, params)
    wanted = jax.eval_shape(read, form.slots)
    slots = read(jax.tree.map(to_device, state.slots))
    reason = mismatch(wanted, slots, "the optimizer's", "the given")
    if reason is None:
        paths = jax.tree_util.tree_flatten_with_path(wanted)[0]
        for (path, own), given in zip(paths, jax.tree.leaves(slots), strict=True):
            if own.shape != given.shape:
                reason = f"{location_of(path)} it has shape {given.shape}, wanted {own.shape}"
                break
    if reason is not None:
        raise ValueError(f"{where}: the state does not fit: {reason}.")
    first = tx.init(params).slots
    return State(state.step, jax.tree.map(in_memory_of, stored_like(first, slots), first))


# Jitted, so that what was found once is known without a trace.
_first_slots_jitted = jax.jit(store._first_slots)
_check_forms = jax.jit(store._check_forms)
_encoded = jax.jit(lambda codec, x, kind: codec.encode(x, kind), static_argnums=2)


def _form(slot: Slot) -> tuple:
    """What tells one way of storing a slot from another."""
    return type(slot.value) if _is_stored(slot.value) else None, *_dtypes(slot.value)


def _form_name(slot: Slot) -> str:
    kind, *dtypes = _form(slot)
    names = " and ".join(dtype.name for dtype in dtypes)
    return names if kind is None else f"{kind.__name__} ({names})"


def _dtypes(x: Any) -> list:
    return [part.dtype for part in jax.tree.leaves(x)]


def _zero_of(params: PyTree) -> jax.Array:
    """0, which XLA does not know: what it knows it would encode while it compiles, for minutes."""
    floating = (x for x in jax.tree.leaves(params) if jnp.issubdtype(x.dtype, jnp.floating))
    least = min((x for x in floating if x.size), key=lambda x: x.size, default=jnp.zeros(()))
    known = jnp.max(least).astype(jnp.float32)
    return 0 * jnp.where(jnp.isfinite(known), known, 0)


def _shape(param: jax.Array) -> jax.ShapeDtypeStruct:
    sharding = param.sharding if param.committed else None
    return jax.ShapeDtypeStruct(param.shape, param.dtype, sharding=sharding)


def _put(x: jax.Array, place: jax.ShapeDtypeStruct) -> jax.Array:
    its = place.sharding
    return x if its is None or x.sharding == its else jax.device_put(x, its)


def read(slots: Any) -> Any:
    """The slots in float32, or wider where they are stored so."""
    return jax.tree.map(_read, slots, is_leaf=_is_stored)


def _opened(slots: Any) -> Any:
    """The slots as stages see them: what may be rounded in float32, what is exact as it is."""
    leaves, treedef = jax.tree.flatten(slots, is_leaf=_is_stored)
    kinds = slot_kinds(slots, _is_stored)
    return treedef.unflatten(
        x if kind is None else _read(x) for x, kind in zip(leaves, kinds, strict=True)
    )


def stored_like(stored: Any, slots: Any, key: jax.Array | None = None) -> Any:
    """Other slots, stored as these are.

    Args:
        stored: slots as they stand in a state.
        slots: slots as `read` gives them.
        key: rounds stochastically, with a key for each slot by its path; None rounds to nearest.
    """
    paths, treedef = jax.tree_util.tree_flatten_with_path(stored, is_leaf=_is_stored)

    def store_one(path: tuple, old: Any, new: Any) -> Any:
        if _box(old) is not None:
            return in_form_of(store_one(path, bare(old), bare(new)), old)
        if not _is_narrow(old):
            return new
        own_key = None
        if key is not None:
            own_key = jax.random.fold_in(key, zlib.crc32(path_string(path).encode()))
        return jax.tree.map(put_like, _encode(old, new, own_key), old)

    leaves = treedef.flatten_up_to(slots)
    return treedef.unflatten(
        store_one(path, old, new) for (path, old), new in zip(paths, leaves, strict=True)
    )


def _stored_as(slots: Any) -> StoredAs | None:
    leaves = jax.tree.leaves(slots, is_leaf=_is_stored)
    if any(map(_is_stored, leaves)):
        return "formats"
    return "dtypes" if any(map(_is_narrow, leaves)) else None


def _can_be_stored(x: Any) -> bool:
    """Whether it is an array of floats of which there are several, and not stored already."""
    floating = not _is_narrow(x) and jnp.issubdtype(x.dtype, jnp.floating)
    return floating and x.ndim > 0 and x.size > 0


def _is_narrow(x: Any) -> bool:
    """Whether it is a format, or an array of fewer bits than float32."""
    return _is_stored(x) or is_narrow(x.dtype)


def _read(x: Any) -> Any:
    box = _box(x)
    if box is not None:
        return in_form_of(_decode(bare(x)), box)
    return _decode(x) if _is_narrow(x) else x


def _box(x: Any) -> Any:
    """The box of the first part of a format, None if it is in none."""
    first = jax.tree.leaves(x, is_leaf=holds_one)[0] if _is_stored(x) else None
    return first if holds_one(first) else None


# One trace for each kind of slot.
_decode = jax.jit(decode)
_encode = jax.jit(encode_like)
