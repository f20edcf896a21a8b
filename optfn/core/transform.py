"""The transform: a pure `(init, update)` pair over pytrees that is itself a pytree."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import reduce, singledispatch
from operator import or_
from typing import Any, ClassVar, Literal, NamedTuple, Self, cast, final

import jax
import jax.numpy as jnp
import optax

from optfn.core.arguments import Argument
from optfn.core.data import Data, as_number, batch_shape, kept, static
from optfn.core.dtypes import cast_numbers, own_dtype
from optfn.core.holes import merge, seen_in
from optfn.core.inputs import (
    check_all_are_there,
    check_floating,
    checked_extra_args,
    to_arrays,
    widened,
)
from optfn.core.layout import Layout
from optfn.core.optax_form import OptaxForm
from optfn.core.outputs import as_stored, cast_like, check_same_form, check_slot_names
from optfn.core.placement import replicated, shapes_in_place
from optfn.core.schedule import Schedule, has_schedule, is_schedule, number_or_schedule
from optfn.core.slot_paths import param_of
from optfn.core.slots import zero_slot
from optfn.core.small_rates import Seen, warn_of_small_rates
from optfn.core.state import Context, State
from optfn.core.tree import PyTree, bare
from optfn.core.updates_kind import Updates, check_root

ExtraKind = Literal["scalar", "tree", "function", "tree function", "key", "any"]


class Inner(NamedTuple):
    """An inner transform with its slots, its step and its params.

    Attributes:
        transform: the inner transform.
        label: its key where a dict holds it, else the name of the field.
        names: the part of its qualified names between the outer transform's name and its own.
        is_group: whether a dict holds it, like the groups of a partition.
        slots: its named slots.
        step: the step it runs at.
        params: its params, with None for the other leaves; None if no params were given.
    """

    transform: "Transform"
    label: str
    names: tuple[str, ...]
    is_group: bool
    slots: Any
    step: Any
    params: PyTree

    @property
    def place(self) -> tuple[Any, Any, PyTree]:
        """The inner transform's slots, step and params."""
        return self.slots, self.step, self.params


class Transform(Data, OptaxForm):
    """An optimizer, or a stage of one: a frozen dataclass whose numbers are pytree leaves.

    A number may be a schedule, that is, any function of the step count. Subclass this for a rule
    that needs the whole tree (a global norm, a line search): list the hyperparameters as fields and
    implement `apply` and, if there is state, `init_slots`. For a rule about one array subclass
    `Leafwise` instead.

    Class attributes a subclass may set:
        extra_args: the keyword arguments of `update` that the stage needs, each with its kind:
            `"scalar"`, `"tree"` (like the params), `"function"` (of the params), `"tree function"`
            (of the params, to a tree like them), `"key"` or `"any"`, which the stage checks itself.
        needs_params: whether `update` must be given the params.
        elementwise: whether each entry of the updates depends only on scalars and on the entries at
            the same position, in the same way in every leaf, provided that the inner transforms are
            elementwise and each per-leaf value is the same for all leaves. `flatten` requires it. A
            subclass does not inherit it.
        splittable: whether inside `across` it computes from parts of arrays what it does from whole
            ones, provided that the inner transforms do: each sum or maximum over a leaf or the tree
            is taken by `global_norm` or another of the library's functions. Whatever is
            elementwise is splittable. A subclass does not inherit it.
        random: whether it draws random numbers.
    """

    elementwise: ClassVar[bool] = False
    splittable: ClassVar[bool] = False
    extra_args: ClassVar[Mapping[str, ExtraKind]] = {}
    needs_params: ClassVar[bool] = False
    random: ClassVar[bool] = False
    _given_name: str | None = static(default=None, init=False)

    # What an implementer writes.

    def init_slots(self, params: PyTree) -> Any:
        """The initial slots, or None for a stateless type."""
        return None

    def apply(self, updates: PyTree, slots: Any, ctx: Context) -> tuple[PyTree, Any]:
        """The new updates, of the same structure and shapes, and the new slots.

        The updates are in the compute dtype, and this stage's numbers in the real compute dtype,
        with schedules resolved.
        """
        raise NotImplementedError(f"{type(self).__name__} must define apply.")

    def inner(self, slots: Any, step: Any, label: str) -> tuple[Any, Any]:
        """The named slots and the step of an inner transform.

        The default looks for the inner slots, by name or as a `State`, in the field `inner` of this
        transform's slots, or else takes these slots themselves.

        Args:
            slots: this transform's slots, as they are at its own `step`.
            label: the inner transform's key where a dict holds it, else the name of the field.
        """
        return inner_of(_held_in(slots), step)

    def with_inner(self, slots: Any, label: str, new: Any) -> Any:
        """The inverse of `inner`: this transform's slots with `new` named slots of an inner one."""
        held = _held_in(slots)
        renewed = with_inner_of(held, new)
        return renewed if held is slots else slots._replace(inner=renewed)

    def inner_params(self, params: PyTree, label: Any) -> PyTree:
        """The params of an inner transform, None for other leaves; `label` as in `inner`."""
        return params

    def schedule_step(self, slots: Any, step: Any) -> Any:
        """The step at which this transform's own schedules are read: by default its own, `step`.

        Override it in a wrapper whose schedules count the inner optimizer's steps.
        """
        return step

    def evaluation_params(self, params: PyTree, slots: Any, step: Any) -> PyTree:
        """The params to evaluate at, given the params at which gradients are taken.

        The default asks the inner transforms; a wrapper that averages overrides it. Users call the
        function `evaluation_params(tx, state, params)`.
        """
        for inner in self.inner_transforms(slots, step):
            seen = self.inner_params(params, inner.label)
            found = inner.transform.evaluation_params_named(seen, inner.slots, inner.step)
            params = merge(found, params, seen_in(seen, params))
        return params

    def measurements(self, slots: Any) -> Mapping[str, jax.Array]:
        """The metrics in the slots: scalars by name. Users call `metrics(tx, state)`."""
        return {}

    @property
    def contents(self) -> list["Transform"]:
        """The direct inner transforms."""
        return [inner for _, value in self.fields("child") for inner in transforms_in(value)]

    def updates_kind(self, incoming: Updates) -> Updates:
        """Which way the updates point, given which way the incoming updates point.

        By default a stage keeps the direction, and a wrapper joins those of its inner transforms.
        Override it in a stage that applies a rate or flips the sign, and in a wrapper whose
        updates are not just the inner ones.
        """
        kinds = [inner.updates_kind(incoming) for inner in self.contents]
        return reduce(or_, kinds) if kinds else incoming

    @property
    def stateful(self) -> bool:
        """Whether there are slots: it depends on types only, never on a value."""
        return type(self).init_slots is not Transform.init_slots

    # What a user calls.

    @final
    @kept
    def init(self, params: PyTree) -> State:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The state before the first update.

        Args:
            params: a pytree of real or complex floating point arrays; `None` leaves are ignored.
                `jax.ShapeDtypeStruct` leaves give a state of `ShapeDtypeStruct`s.

        Warns:
            UserWarning: a constant learning rate is too small to move params of 16 bits near 1.
        """
        leaves = jax.tree.leaves(params)
        if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves):
            return abstract(self.init, params)
        params = to_arrays(params, "the param")
        warn_of_small_rates(params, lambda: _stages_of(self, params))
        return self.init_state(params)

    @final
    @kept
    def update(  # pyright: ignore[reportIncompatibleVariableOverride]
        self,
        updates: PyTree,
        state: optax.OptState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, State]:
        """Turns gradients into updates to be added to the params.

        Args:
            updates: the gradients, a pytree like the params.
            state: from `init` or from the last `update`. Where nothing depends on a state, as in
                `clip(1.0)`, whatever holds no array will do, such as None, and comes back.
            params: the current params; some stages need them, all accept them.
            **extra_args: the extra arguments that the stages declare. Others are ignored, except by
                optax's transformations, which get all.

        Returns:
            The updates, with the structure, shapes and dtypes of the gradients, and the next state,
            with those of the last state.

        Raises:
            TypeError: an extra argument that a stage declares is missing.
            ValueError: trees or shapes do not match.
        """
        updates = to_arrays(updates, "the gradient")
        needless = not isinstance(state, State) and _is_empty(state) and _needs_no_state(self)
        own = State(jnp.zeros((), jnp.int32), {}) if needless else state
        wide, new = advance(self, updates, own, params, extra_args)
        return cast_like(wide, updates), cast(State, state) if needless else new

    @property
    def name(self) -> str | None:
        """The key of this stage's slots; None where the inner stages use their own keys."""
        return self._given_name or type(self).__name__

    def declared_extra_args(self) -> dict[str, ExtraKind]:
        """The extra arguments that `update` takes: this stage's and the inner transforms'."""
        declared = dict(self.extra_args)
        for inner in self.contents:
            for name, kind in inner.declared_extra_args().items():
                if declared.setdefault(name, kind) != kind:
                    raise ValueError(
                        f"the extra argument '{name}' is declared as '{declared[name]}' and as "
                        f"'{kind}'; one name has one kind."
                    )
        return declared

    def named(self, name: str) -> Self:
        """The same stage under another name, its key in the state and in `hyperparameters`."""
        if not isinstance(name, str) or not name or "." in name or "/" in name:
            raise ValueError(
                f"a stage's name must be a string without '.' and '/', found {name!r}."
            )
        return self.rebuilt(_given_name=name)

    def __repr__(self) -> str:
        text = super().__repr__()
        return f"{text}.named({self._given_name!r})" if self._given_name else text

    # What a wrapper calls on its inner transforms.

    @final
    def init_state(self, params: PyTree) -> State:
        """`init` in a wrapper that owns a `State`, of arrays and without a warning."""
        check_root(self)
        return State(zero_slot(jnp.int32, params), self.init_named(params))

    @final
    def init_named(self, params: PyTree) -> dict[str, Any]:
        """`{name: slots}`, without entries for stateless stages."""
        self.check_scalars()
        if self._needs_floats:
            check_floating("the param", params)
        return self._by_name(self.init_slots(params))

    @final
    def apply_named(
        self, updates: PyTree, slots: Mapping[str, Any] | None, ctx: Context
    ) -> tuple[PyTree, dict[str, Any]]:
        """`apply` on this transform's entries of `slots`; returns updates and new entries."""
        own = self._own(slots)
        if self._needs_floats:
            check_floating("the gradient", updates)
        with types_expected(self.name, own):
            stage = self.resolved_at(ctx._replace(step=self.schedule_step(own, ctx.step)))
            if self._computes_itself:
                stage = _with_numbers_in(own_dtype(updates), stage)
            new_updates, new = stage.apply(updates, own, ctx)
        if self._computes_itself:
            new = as_stored(new, own)
        new_updates = check_same_form(new_updates, updates, self.name or type(self).__name__)
        if not self.stateful and jax.tree.leaves(new):
            raise ValueError(f"{type(self).__name__}.apply gave slots; define init_slots as well.")
        return new_updates, self._by_name(new)

    @final
    def inner_transforms(self, slots: Any, step: Any, params: PyTree = None) -> list[Inner]:
        """The direct inner transforms, each with its slots, its step and its params.

        They follow from this transform's own, of which the params may be left out.
        """
        found = []
        for transform, label, names, is_group in _labelled(self):
            seen = None if params is None else self.inner_params(params, label)
            own = self.inner(slots, step, label)
            found.append(Inner(transform, label, names, is_group, *own, seen))
        return found

    @final
    def slots_among(self, named: Mapping[str, Any] | None) -> Any:
        """This transform's slots among the named ones; None if it has none."""
        return named if self.name is None else (named or {}).get(self.name)

    @final
    def evaluation_params_named(self, params: PyTree, slots: Any, step: Any) -> PyTree:
        """`evaluation_params` with this transform's entry of `slots`."""
        return self.evaluation_params(params, self._own(slots), step)

    def _own(self, slots: Mapping[str, Any] | None) -> Any:
        """`slots_among`, or an error if this transform has state and its slots are missing."""
        own = self.slots_among(slots)
        if own is None and self.stateful and self.name is not None:
            raise ValueError(
                f"the state has no slots for '{self.name}', only for {sorted(slots or {})}: was it "
                "made by another optimizer?"
            )
        return own

    def _by_name(self, slots: Any) -> dict[str, Any]:
        """The inverse of `slots_among`, without an entry for a stateless transform."""
        if self.name is None:
            return slots or {}
        return {self.name: slots} if self.stateful and slots is not None else {}

    @property
    def _needs_floats(self) -> bool:
        """Whether integer leaves are refused here; inner transforms do so for themselves."""
        return not any(True for _ in self.fields("child"))

    @final
    def resolved_at(self, ctx: Context) -> Self:
        """This stage with its own schedules resolved at the step of `ctx`."""
        if self.needs_params and ctx.params is None:
            raise ValueError(f"{self.name} needs the params: call update(grads, state, params).")
        self.check_scalars()
        resolved = self.resolve(ctx.step)
        resolved.check_scalars()
        return resolved

    def resolve(self, step: Any) -> Self:
        """This stage with each of its own schedules replaced by its value at `step`.

        An override may replace whatever else depends on the step, inner transforms included.
        """
        changes = {
            name: _values_at(value, step, f"{self.name}.{name}")
            for name, value in self.fields("number", "numbers")
            if has_schedule(value)
        }
        return self.rebuilt(**changes) if changes else self

    @property
    def _computes_itself(self) -> bool:
        """Whether `apply_named` must cast its numbers and slots."""
        return self.name is not None

    def check_scalars(self) -> None:
        """Refuses arrays as numbers, because they would broadcast against the params."""
        for name, value in self.fields("number"):
            shape = batch_shape(value)
            if shape:
                raise ValueError(
                    f"{self.name}.{name} has shape {shape}, but a hyperparameter is a scalar: to "
                    "run many values at once, vmap over the optimizer with in_axes(tx)."
                )

    def _as_number(self, value: Any, where: Any) -> Any:
        is_transform = isinstance(value, Transform)  # which may be callable
        return as_number(value, where) if is_transform else number_or_schedule(value, where)

    def _as_child(self, value: Any, where: Any) -> Any:
        if isinstance(value, Mapping):
            return {label: as_transform(inner, where) for label, inner in value.items()}
        if type(value) in (list, tuple):
            return tuple(as_transform(inner, where) for inner in value)
        return as_transform(value, where)


def advance(
    tx: Transform,
    updates: PyTree,
    state: optax.OptState,
    params: PyTree | None,
    extra_args: Mapping[str, Any],
) -> tuple[PyTree, State]:
    """`update`, but the result stays in the compute dtype, as a wrapper or `step` needs it."""
    check_root(tx)
    state = check_state_type(state, "; the order is update(grads, state, params)")
    kinds = tx.declared_extra_args()
    check_all_are_there(extra_args, kinds)
    updates = to_arrays(updates, "the gradient")
    params = None if params is None else to_arrays(params, "the param")
    count = jnp.asarray(state.step, jnp.int32)
    wide = widened(updates, params)
    extra_args = checked_extra_args(extra_args, kinds, wide)
    layout = Layout(wide, params, state.slots)
    params = None if params is None else layout.enter(params)
    ctx = Context(params, count, layout.enter_extra(extra_args, kinds))
    wide, slots = tx.apply_named(layout.enter(wide), state.slots, ctx)
    check_slot_names(state.slots, slots)
    return layout.leave(wide), State(ctx.next_step, slots)


def as_transform(value: optax.GradientTransformation, where: str = "the optimizer") -> Transform:
    """A transform from what users put in the place of one; `where` names it in errors."""
    return converted(value, where)


@singledispatch
def converted(value: Any, where: Any) -> Transform:
    """`as_transform`; modules that know another kind of optimizer register its conversion."""
    return check_transform_type(value, where)


def check_transform_type(value: Any, where: Any) -> Transform:
    """The value, if it is an optfn transform; else an error that says how to convert it."""
    if isinstance(value, Transform):
        return value
    found, hint = type(value).__name__, ""
    if isinstance(value, optax.GradientTransformation):
        hint = "; use from_optax(...) for an optax transformation"
    elif callable(value) and hasattr(value, "__name__"):
        found, hint = f"{found} {value.__name__}", f"; call it, as in {value.__name__}(...)"
    elif hasattr(value, "init") and hasattr(value, "update"):
        hint = "; optax.GradientTransformation(init, update) makes a pair of functions one"
    elif found == "DictConfig":
        hint = ": Hydra took an optimizer apart, which _convert_: all prevents"
    where = Argument(str(where), value)
    raise TypeError(f"{where} must be an optfn transform, found {found}{hint}.")


def check_state_type(value: Any, hint: str = "") -> State:
    """The value, if it is a `State`."""
    if not isinstance(value, State):
        raise TypeError(
            f"state must be the State that init returns, found {type(value).__name__}"
            f"{restored_hint(value) or hint}."
        )
    return value


def readable_state(value: Any) -> State:
    """A state to read from: checked, and out of the boxes in which Flax keeps arrays."""
    check_state_type(value)
    return bare(value)


def restored_hint(value: Any) -> str:
    """What to do with a state without its types, as checkpoints come back without a target."""
    fields = value.keys() == set(State._fields) if isinstance(value, Mapping) else None
    entries = value if type(value) in (list, tuple) and len(value) == 2 else ()
    return RESTORED if fields or any(isinstance(x, Mapping) for x in entries[1:]) else ""


RESTORED = (
    "; it looks like a checkpoint restored without a target: restore with tx.init(params) as the "
    "target, which gives the parts their types"
)


def untyped(stage: str | None, slots: Any, wanted: str = "are named tuples") -> ValueError:
    """The error for the slots of a stage that have lost their types."""
    found = type(slots).__name__
    return ValueError(
        f"the state's slots for '{stage}' are {found}, this optimizer's {wanted}{RESTORED}."
    )


@contextmanager
def types_expected(stage: str | None, slots: Any) -> Iterator[None]:
    """Where a field of untyped slots is asked for, the error says so."""
    try:
        yield
    except AttributeError as error:
        if error.obj is slots and type(slots) in (dict, list, tuple):
            raise untyped(stage, slots) from error
        raise


def _is_empty(state: Any) -> bool:
    return not jax.tree.leaves(state)


def _needs_no_state(tx: Transform) -> bool:
    """Whether neither slots nor the step make a difference."""
    parts = jax.tree.leaves(tx, is_leaf=lambda x: isinstance(x, Schedule))
    return not (tx.stateful or _draws(tx) or any(isinstance(x, Schedule) for x in parts))


def _draws(tx: Transform) -> bool:
    return tx.random or any(map(_draws, tx.contents))


def _values_at(value: Any, step: Any, where: str) -> Any:
    """A number, or several, with the value of each schedule in its place."""

    def at(x: Any) -> Any:
        return _value_at(x, step, where) if is_schedule(x) else x

    return jax.tree.map(at, value, is_leaf=is_schedule)


def _value_at(schedule: Schedule, step: Any, where: str) -> Any:
    try:
        return schedule(step)
    except Exception as error:
        error.add_note(f"This was the schedule {where}: {schedule!r}.")
        raise


def _with_numbers_in(dtype: Any, stage: Transform) -> Transform:
    """So a constant is rounded as a schedule's value is, and what follows from it too."""
    own = {name: value for name, value in stage.fields("number") if value is not None}
    return stage.rebuilt(**cast_numbers(own, dtype))


def _labelled(tx: Transform) -> Iterator[tuple[Transform, str, tuple[str, ...], bool]]:
    """The first four of every `Inner`."""
    holders = list(tx.fields("child"))
    for field, value in holders:
        outer = () if len(holders) == 1 else (field,)
        if isinstance(value, Mapping):
            for label, transform in value.items():
                yield transform, label, (*outer, label), True
        else:
            for transform in transforms_in(value):
                yield transform, field, outer, False


def _stages_of(tx: Transform, params: PyTree, outer: tuple[str, ...] = ()) -> Iterator[Seen]:
    """The names, the stage and the params of every stage, the outer before the inner."""
    if tx.name is not None:
        outer = (*outer, tx.name)
        yield outer, tx, params
    for inner, label, names, _ in _labelled(tx):
        yield from _stages_of(inner, tx.inner_params(params, label), (*outer, *names))


def inner_of(held: Any, step: Any) -> tuple[Any, Any]:
    """The named slots and the step of an inner transform, held as a `State` or without a step."""
    return (held.slots, held.step) if isinstance(held, State) else (held, step)


def with_inner_of(held: Any, new: Any) -> Any:
    """The inverse of `inner_of`: `held` with new named slots."""
    return held._replace(slots=new) if isinstance(held, State) else new


def _held_in(slots: Any) -> Any:
    """The field `inner` of a wrapper's slots if it holds slots, else the slots themselves."""
    held = None if isinstance(slots, State) else getattr(slots, "inner", None)
    return held if isinstance(held, (dict, State)) else slots


def transforms_in(value: Any) -> list[Any]:
    """The contents of a `child` field: one transform, a tuple or a dict of them."""
    if isinstance(value, Mapping):
        return list(value.values())
    return list(value) if type(value) in (list, tuple) else [value]


def abstract(init: Callable[[PyTree], Any], params: PyTree) -> Any:
    """The shapes and dtypes of what `init` makes of params, and where its arrays will lie."""
    known = jax.tree.map(lambda x: None if isinstance(x, jax.ShapeDtypeStruct) else x, params)
    to_arrays(known, "the param")
    by_path = dict(jax.tree_util.tree_flatten_with_path(params)[0])
    whole = replicated(by_path.values())

    def elsewhere(path: tuple, slot: Any) -> Any:
        own = param_of(path, slot, by_path)
        return whole if own is None else getattr(by_path[own], "sharding", None)

    return shapes_in_place(init, params, elsewhere)
