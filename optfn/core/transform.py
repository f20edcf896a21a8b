"""The transform: a pure `(init, update)` pair over pytrees that is itself a pytree."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Literal, NamedTuple, Self, final

import jax
import jax.numpy as jnp

from optfn.core.data import Data, as_number, kind_of, static
from optfn.core.dtypes import cast, compute_dtype, dtype_of
from optfn.core.placement import beside, replicated
from optfn.core.schedule import Schedule, as_schedule
from optfn.core.tree import PyTree, at, describe, flatten_like, is_leaf, leaf_paths

ExtraKind = Literal["scalar", "tree", "function", "key"]

MAX_STEP = jnp.iinfo(jnp.int32).max


class State(NamedTuple):
    """What the next update needs.

    Attributes:
        step: int32 scalar, how many updates were made; it saturates at 2**31 - 1.
        slots: the state of every stateful stage, by stage name.
    """

    step: jax.Array
    slots: dict[str, Any]


class Context(NamedTuple):
    """What a stage may look at beside the updates and its own slots.

    Attributes:
        params: the params in their stored dtype, or None if the caller gave none.
        step: int32 scalar, 0 at the first update.
        extra_args: the caller's keyword arguments, all of them declared by some stage.
    """

    params: PyTree | None
    step: jax.Array
    extra_args: Mapping[str, Any]


class Transform(Data):
    """An optimizer, or a stage of one: a frozen dataclass whose numbers are pytree leaves.

    A number may be given as a schedule, that is, any function of the step count. Subclass this for
    a rule that needs the whole tree (a global norm, a line search): list the hyperparameters as
    fields and implement `apply` and, if there is state, `init_slots`. For a rule about one array
    subclass `Leafwise` instead.

    Class attributes a subclass may set:
        extra_args: the keyword arguments of `update` that the stage needs, each with its kind:
            `"scalar"`, `"tree"` (like the params), `"function"` (of the params) or `"key"`.
        needs_params: whether `update` must be given the params.
    """

    extra_args: ClassVar[Mapping[str, ExtraKind]] = {}
    needs_params: ClassVar[bool] = False
    _given_name: str | None = static(default=None, init=False)

    # What an implementer writes.

    def init_slots(self, params: PyTree) -> Any:
        """The state this stage starts with, or None if its type has none."""
        return None

    def apply(self, updates: PyTree, slots: Any, ctx: Context) -> tuple[PyTree, Any]:
        """The new updates, of the same structure and shapes, and the new slots.

        The updates come in the compute dtype, and schedules of this stage are resolved.
        """
        raise NotImplementedError(f"{type(self).__name__} must define apply.")

    def inner(self, slots: Any, step: Any, label: Any) -> tuple[Any, Any]:
        """Where an inner transform finds its named slots and its step, given this one's slots.

        A wrapper that may not run its inner transform owns an inner `State` and answers with that.

        Args:
            slots: this transform's slots.
            step: this transform's step.
            label: the key of the inner transform, where several are held in a dict.
        """
        return slots, step

    @property
    def stateful(self) -> bool:
        """Whether there are slots: a fact of the types, never of a value."""
        return type(self).init_slots is not Transform.init_slots

    def why_not_root(self) -> str | None:
        """Why this stage alone makes no optimizer, or None if it does."""
        return None

    # What a user calls.

    @final
    def init(self, params: PyTree) -> State:
        """The state before the first update.

        Args:
            params: a pytree of real or complex floating point arrays; `None` leaves are left out.
                `jax.ShapeDtypeStruct` leaves give a state of `ShapeDtypeStruct`s.
        """
        self._check_root()
        leaves = jax.tree.leaves(params)
        if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves):
            return _abstract_init(self, params)
        params = jax.tree.map(jnp.asarray, params)
        return State(beside(jnp.zeros((), jnp.int32), leaves), self.init_named(params))

    @final
    def update(
        self, updates: PyTree, state: State, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, State]:
        """Turns gradients into updates to be added to the params.

        Args:
            updates: the gradients, a pytree like the params.
            state: from `init` or from the last `update`.
            params: the current params; some stages need them, all accept them.
            **extra_args: what the stages declare, and nothing else.

        Returns:
            The updates, of the structure, shapes and dtypes that came in, and the next state, of
            the structure, shapes and dtypes of the last.

        Raises:
            TypeError: an extra argument that no stage declares, or a declared one missing.
            ValueError: trees or shapes that do not fit each other.
        """
        wide, state = advance(self, updates, state, params, extra_args)
        return cast_like(wide, updates), state

    @property
    def name(self) -> str | None:
        """The key of this stage's slots; None where the inner stages stand for themselves."""
        return self._given_name or type(self).__name__

    def declared_extra_args(self) -> dict[str, ExtraKind]:
        """The extra arguments that `update` takes: this stage's and the inner transforms'."""
        declared = dict(self.extra_args)
        for _, value in self.fields("child"):
            for inner in transforms_in(value):
                declared |= inner.declared_extra_args()
        return declared

    def named(self, name: str) -> Self:
        """The same stage under another name: its key in the state and in `hyperparameters`."""
        if not isinstance(name, str) or not name or "." in name or "/" in name:
            raise ValueError(
                f"a stage's name must be a string without '.' and '/', found {name!r}."
            )
        return self.rebuilt(_given_name=name)

    def __iter__(self) -> Iterator[Callable]:
        """Unpacks as the pair `init, update`."""
        yield self.init
        yield self.update

    def __repr__(self) -> str:
        text = super().__repr__()
        return f"{text}.named({self._given_name!r})" if self._given_name else text

    # What a wrapper calls on its inner transforms.

    @final
    def init_named(self, params: PyTree) -> dict[str, Any]:
        """`{name: slots}`, without an entry for stages that have no state."""
        slots = self.init_slots(params)
        if self.name is None:
            return slots or {}
        return {} if slots is None else {self.name: slots}

    @final
    def apply_named(
        self, updates: PyTree, slots: Mapping[str, Any], ctx: Context
    ) -> tuple[PyTree, dict[str, Any]]:
        """`apply` on this transform's entries of `slots`; gives back these entries, renewed."""
        own = slots if self.name is None else slots.get(self.name)
        if self.stateful and own is None:
            raise ValueError(
                f"the state has no slots for '{self.name}', only for {sorted(slots)}: was it made "
                "by another optimizer?"
            )
        new_updates, new = self.ready(ctx).apply(updates, own, ctx)
        new_updates = _check_same_form(new_updates, updates, self.name or type(self).__name__)
        if self.name is None:
            return new_updates, new or {}
        return new_updates, {} if new is None else {self.name: new}

    @final
    def ready(self, ctx: Context) -> Self:
        """This stage with the schedules of its own resolved at the step of `ctx`."""
        if self.needs_params and ctx.params is None:
            raise ValueError(f"{self.name} needs the params: call update(grads, state, params).")
        resolved = self.resolve(ctx.step)
        for name, value in resolved.fields("number"):
            if jnp.ndim(value):
                raise ValueError(
                    f"{self.name}.{name} has shape {jnp.shape(value)}, but a hyperparameter is a "
                    "scalar: to run many values at once, vmap over the optimizer with in_axes(tx)."
                )
        return resolved

    def resolve(self, step: Any) -> Self:
        """This stage with every schedule of its own replaced by the value at `step`."""
        changes = {
            name: value(step)
            for name, value in self.fields("number")
            if isinstance(value, Schedule)
        }
        return self.rebuilt(**changes) if changes else self

    def _as_number(self, value: Any, where: str) -> Any:
        if callable(value) and not isinstance(value, Transform):
            return as_schedule(value, where)
        return as_number(value, where)

    def _normalise(self, value: Any, field: Any, where: str) -> Any:
        if kind_of(field) == "child":
            for transform in transforms_in(value):
                check_transform_type(transform, where)
            return value
        return super()._normalise(value, field, where)

    def _check_root(self) -> None:
        reason = self.why_not_root()
        if reason:
            raise ValueError(reason)


def advance(
    tx: Transform, updates: PyTree, state: State, params: PyTree | None, extra_args: dict
) -> tuple[PyTree, State]:
    """One update with the result left in the compute dtype."""
    tx._check_root()
    _check_extra_args(tx, extra_args)
    if not isinstance(state, State):
        raise TypeError(
            f"state must be the State that init returns, found {type(state).__name__}; "
            "the order is update(grads, state, params)."
        )
    wide = _widen_updates(updates, params)
    wide, slots = tx.apply_named(wide, state.slots, Context(params, state.step, extra_args))
    _check_slot_names(state.slots, slots)
    step = jnp.where(state.step < MAX_STEP, state.step + 1, MAX_STEP)
    return wide, State(step, slots)


def cast_like(tree: PyTree, like: PyTree) -> PyTree:
    """Every leaf of `tree` in the dtype of its counterpart."""
    return jax.tree.map(lambda x, y: cast(x, dtype_of(y)), tree, like)


def check_transform_type(value: Any, where: str) -> None:
    """Refuses what is not an optfn transform, and names the way to make one of it."""
    if isinstance(value, Transform):
        return
    hint = "; use from_optax(...) for an optax transformation" if hasattr(value, "update") else ""
    raise TypeError(f"{where} must be an optfn transform, found {type(value).__name__}{hint}.")


def transforms_in(value: Any) -> list:
    """The contents of a `child` field: one transform, a tuple or a dict of them."""
    if isinstance(value, Mapping):
        return list(value.values())
    return list(value) if type(value) in (list, tuple) else [value]


def _check_extra_args(tx: Transform, extra_args: Mapping[str, Any]) -> None:
    accepted = tx.declared_extra_args()
    wanted = ", ".join(sorted(accepted)) or "none"
    unknown = sorted(set(extra_args) - set(accepted))
    if unknown:
        raise TypeError(
            f"update() got the extra argument '{unknown[0]}', which no stage declares; "
            f"declared: {wanted}."
        )
    missing = sorted(set(accepted) - set(extra_args))
    if missing:
        raise TypeError(f"update() misses the extra argument '{missing[0]}'; declared: {wanted}.")


def _widen_updates(updates: PyTree, params: PyTree | None) -> PyTree:
    """The updates in their compute dtype, checked against the params."""
    leaves, treedef = jax.tree.flatten(updates)
    if params is None:
        others: list[Any] = [None] * len(leaves)
    else:
        others = flatten_like(params, updates, "params", "updates")
    wide = []
    for i, (leaf, param) in enumerate(zip(leaves, others, strict=True)):
        dtype = dtype_of(leaf)
        if params is None:
            wide.append(_widen(leaf, dtype))
            continue
        if not is_leaf(param) or jnp.shape(param) != jnp.shape(leaf):
            found = f"shape {jnp.shape(param)}" if is_leaf(param) else describe(param)
            raise ValueError(
                f"{at(leaf_paths(updates)[i])} updates have shape {jnp.shape(leaf)}, params have "
                f"{found}; each gradient must have the shape of its param."
            )
        wide.append(_widen(leaf, dtype, dtype_of(param)))
    return treedef.unflatten(wide)


def _widen(leaf: Any, dtype: Any, *others: Any) -> jax.Array:
    """Integers are left for the stage that meets them to refuse: they may be frozen."""
    if not jnp.issubdtype(dtype, jnp.inexact):
        return leaf
    return cast(leaf, compute_dtype(dtype, *(x for x in others if jnp.issubdtype(x, jnp.inexact))))


def _check_same_form(new: PyTree, old: PyTree, name: str) -> PyTree:
    """`new` in the dtypes of `old`, or an error that names the stage that changed the form."""
    leaves, treedef = jax.tree.flatten(old)
    new_leaves = flatten_like(new, old, f"the updates from {name}", "the updates to it")
    out = []
    for i, (x, y) in enumerate(zip(new_leaves, leaves, strict=True)):
        if jnp.shape(x) != jnp.shape(y):
            raise ValueError(
                f"{name} {at(leaf_paths(old)[i])} turned updates of shape {jnp.shape(y)} into "
                f"shape {jnp.shape(x)}."
            )
        out.append(cast(x, y.dtype))
    return treedef.unflatten(out)


def _check_slot_names(old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    if old.keys() != new.keys():
        raise ValueError(
            f"the state has slots {sorted(old)}, this optimizer's are {sorted(new)}: "
            "was the state made by another optimizer?"
        )


def _abstract_init(tx: Transform, params: PyTree) -> State:
    """The state's shapes and dtypes; a slot of its param's shape has its param's sharding."""
    by_path = dict(jax.tree_util.tree_flatten_with_path(params)[0])
    elsewhere = replicated(by_path.values())

    def place(path: tuple, slot: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        sharding = elsewhere
        for start in range(len(path) + 1):
            param = by_path.get(path[start:])
            if param is not None and param.shape == slot.shape:
                sharding = getattr(param, "sharding", None)
                break
        return jax.ShapeDtypeStruct(slot.shape, slot.dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(place, jax.eval_shape(tx.init, params))
