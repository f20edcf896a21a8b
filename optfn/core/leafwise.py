"""The lift: turns a rule for one array into a transform of pytrees."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import Field, replace
from functools import partial
from typing import Any, ClassVar, final

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from optfn.core import boxes
from optfn.core.data import kind_of, storage_fields
from optfn.core.dtypes import (
    cast,
    cast_numbers,
    compute_dtype,
    dtype_of,
    read,
    real_dtype,
    storage_of,
)
from optfn.core.inputs import check_floating
from optfn.core.leaf_order import Turn, after, in_order
from optfn.core.mapped import part_axes
from optfn.core.numbers_by_path import NumberByPath
from optfn.core.paths import by_path
from optfn.core.placement import Along, fresh, is_along, place, put_like
from optfn.core.randomness import key_at, leaf_keys
from optfn.core.state import Context
from optfn.core.tracing import common, traced_once
from optfn.core.transform import Transform, untyped
from optfn.core.tree import (
    PerLeaf,
    PyTree,
    describe,
    difference_hint,
    flatten_like,
    is_leaf,
    leaf_location,
)
from optfn.core.turns import turns


class Leafwise(Transform):
    """A rule about one array, applied to every leaf.

    A subclass lists its hyperparameters as fields and defines `update_leaf` and, if it has state,
    `Slots` (a NamedTuple type) and `init_leaf`. Inside the rule every number is a scalar array of
    the real compute dtype, arrays are at least float32, and a `per_leaf` field is this leaf's own
    value, also of a number that users give as a `by_path`. The state holds one `Slots` whose fields
    are trees like the params. A slot starts in the dtype that a field `storage_dtype(slot)` names,
    or else in that of `init_leaf`, and keeps it.

    Class attributes a subclass may set, besides those of `Transform`:
        Slots: the type of the slots; None means stateless.
        elementary: the rule is about one operation, so tracing it once per shape gains nothing.
        decays_params: the params enter the updates by a decay in proportion to them, and in no
            other way.
        costly: the rule computes much more than it reads, so nothing computes it twice.
        refreshes: the rule computes something costly every few steps: `update_leaf` gets the
            keyword argument `turn`, with which `is_due` says when.
        random: the rule draws random numbers: it has a number field `seed`, and `update_leaf`
            gets the keyword argument `key`, folded from the seed, the step, the stage's name and
            the leaf's path. Two such stages of the same name in different wrappers need different
            seeds to draw different numbers.
    """

    Slots: ClassVar[Any] = None
    elementary: ClassVar[bool] = False
    decays_params: ClassVar[bool] = False
    costly: ClassVar[bool] = False
    refreshes: ClassVar[bool] = False

    def init_leaf(self, param: jax.Array) -> Any:
        """The `Slots` for one param, given in the compute dtype."""
        raise NotImplementedError(f"{type(self).__name__} has Slots and must define init_leaf.")

    def update_leaf(
        self, g: jax.Array, slots: Any, param: Any, t: jax.Array, /
    ) -> tuple[jax.Array, Any]:
        """The new update and slots of one leaf.

        Declared extra args are keyword arguments; a `"tree"` is this leaf's entry, and a `"key"`
        is folded for this leaf. So is the `turn` of a rule that `refreshes`.

        Args:
            g: the gradient, or the update from the stage before.
            slots: this leaf's `Slots`, None if stateless.
            param: the param if the rule `needs_params`, else None.
            t: the number of this update, 1 at the first.
        """
        raise NotImplementedError(f"{type(self).__name__} must define update_leaf.")

    def draws_at(self, step: jax.Array) -> jax.Array:
        """The step whose key a random rule gets: an earlier one draws again what was drawn then."""
        return step

    def is_refreshed(self, g: jax.Array) -> bool:
        """Whether a rule that `refreshes` does so for this leaf."""
        return True

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_each_number(self)

    def _normalise(self, value: Any, field: Field, where: Any) -> Any:
        if kind_of(field) == "number" and not field.metadata.get("is_one"):
            if type(value) is by_path:
                return NumberByPath.of(value, where)
            if isinstance(value, NumberByPath):
                return value
        return super()._normalise(value, field, where)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        is_lift = getattr(cls.init_leaf, "__final__", False)
        if not is_lift:
            check_names_slots(cls, "init_leaf", Leafwise)
        unknown = storage_fields(cls).keys() - set(getattr(cls.Slots, "_fields", ()))
        if unknown:
            raise TypeError(f"{cls.__name__} has no slots {sorted(unknown)} to store in a dtype.")
        if cls.random and "key" in cls.extra_args:
            raise TypeError(f"{cls.__name__} is random: it gets its key without declaring one.")

    @final
    def init_slots(self, params: PyTree) -> Any:
        if self.Slots is None:
            for _, value in _per_leaf(self):
                value.values(params)
            return None
        leaves = jax.tree.leaves(params)
        slots, taken = [], {id(x): x for x in (*leaves, *jax.tree.leaves(self))}
        check_floating("the param", params)
        rules = [rule for (rule,) in _specialise((self.resolve(0),), params, leaves)]
        often = common([(id(r), x.shape, x.dtype) for r, x in zip(rules, leaves, strict=True)])
        asks = any(asked_dtypes(self).values())
        for i, (rule, leaf) in enumerate(zip(rules, leaves, strict=True)):
            # A program makes no wide copy of a leaf or a slot of low precision; else one for a rare
            # shape would be compiled beside those for zeros that other stages use too.
            low = leaf.dtype != compute_dtype(leaf.dtype) or asks
            at_once = (often[i] or low) and not isinstance(leaf, Tracer)
            with _naming((self,), params, i):
                slots.append(
                    _first_slots_jitted(rule, leaf) if at_once else _first_slots(rule, leaf, taken)
                )
        return self._in_boxes(slots, params)

    def _in_boxes(self, slots: list[list[Any]], params: PyTree) -> Any:
        """The slots of every param, as trees like the params."""
        positions, treedef = jax.tree.flatten(params, is_leaf=boxes.holds_one)
        columns = zip(*slots, strict=True) if slots else [()] * len(self.Slots._fields)
        return self.Slots(
            *(treedef.unflatten(map(boxes.boxed_like, positions, column)) for column in columns)
        )

    def runs_alone(self, updates: PyTree) -> bool:
        """Whether it is not traced together with the rules beside it."""
        return False

    def run_together(
        self, own_rules: Sequence[tuple[Any, ...]], args: Sequence[tuple[Any, ...]]
    ) -> dict[int, tuple[Any, ...]]:
        """What a lift does for several leaves at once: by leaf the new update and slots of `run`.

        Args:
            own_rules: this rule for each leaf, alone in a tuple.
            args: the other arguments of `run` for each leaf.
        """
        return {}

    @final
    def apply(self, updates: PyTree, slots: Any, ctx: Context) -> tuple[PyTree, Any]:
        updates, new = apply_run((self,), updates, {self.name: slots}, ctx)
        return updates, new.get(self.name)

    @property
    def stateful(self) -> bool:
        return self.Slots is not None

    @property
    def _computes_itself(self) -> bool:
        return False  # `apply_run` casts both, leaf by leaf


def asked_dtypes(rule: Leafwise) -> dict[str, str | None]:
    """The names of the dtypes that users asked for, by slot."""
    return {slot: getattr(rule, field) for slot, field in storage_fields(rule).items()}


def check_names_slots(cls: type[Leafwise], method: str, base: type[Any]) -> None:
    """Refuses a rule that defines how its slots start without naming their type."""
    if cls.Slots is None and getattr(cls, method) is not getattr(base, method):
        raise TypeError(f"{cls.__name__} defines {method}, so it must name the type of its Slots.")


def _first_slots(rule: Leafwise, leaf: jax.Array, taken: dict[int, Any]) -> list[Any]:
    """The slots of one param, each in a buffer of its own.

    Args:
        rule: the rule for this leaf.
        leaf: the param.
        taken: arrays whose buffers are not for slots, by identity; the slots are added to it.
    """
    wide = cast(leaf, compute_dtype(leaf.dtype))
    new = rule.init_leaf(wide)
    _check_slots(rule, "init_leaf", new)
    asked = asked_dtypes(rule)
    taken[id(wide)] = wide

    def placed(name, slot):
        slot = Along.of(slot, leaf)
        if asked.get(name) is not None:
            dtype = storage_of(dtype_of(slot.value), asked[name])
            slot = replace(slot, value=cast(slot.value, dtype))
        if id(slot.value) in taken:
            slot = replace(slot, value=fresh(slot.value))
        taken[id(slot.value)] = slot.value
        return replace(slot, value=place(slot, leaf))

    return [
        jax.tree.map(partial(placed, name), slot, is_leaf=is_along)
        for name, slot in zip(rule.Slots._fields, new, strict=True)
    ]


def _first_values(rule: Leafwise, param: jax.Array) -> list[Any]:
    """The slots of one param, without their places."""

    def value(slot):
        return slot.value if is_along(slot) else slot

    return [jax.tree.map(value, slot, is_leaf=is_along) for slot in rule.init_leaf(param)]


@jax.jit
def _first_slots_jitted(rule: Leafwise, leaf: jax.Array) -> list[Any]:
    """`_first_slots` in one program."""
    return _first_slots(rule, leaf, {})


def apply_run(
    rules: Sequence[Leafwise], updates: PyTree, slots: Mapping[Any, Any], ctx: Context
) -> tuple[PyTree, dict[Any, Any]]:
    """Applies consecutive rules leaf by leaf, tracing them once per distinct kind of leaf.

    Args:
        rules: the stages.
        updates: a tree in the compute dtype.
        slots: by stage name.
        ctx: the context.
    """
    rules = tuple(rule.resolved_at(ctx) for rule in rules)
    leaves, treedef = jax.tree.flatten(updates)
    params: list = [None] * len(leaves)
    targets = params
    if ctx.params is not None:
        targets = flatten_like(ctx.params, updates, "params", "updates")
    if any(rule.needs_params for rule in rules):
        params = targets
    check_floating("the gradient", updates)
    own_rules = _specialise(rules, updates if ctx.params is None else ctx.params, leaves)
    columns = [
        _columns([own[k] for own in own_rules], rule, slots.get(rule.name), updates)
        for k, rule in enumerate(rules)
    ]
    extras = [
        _extras(rule, [own[k] for own in own_rules], updates, ctx) for k, rule in enumerate(rules)
    ]
    # Not step + 1: if the step is donated, one increment is its only reader and needs no copy.
    next_step = ctx.next_step
    count = {dtype: next_step.astype(dtype) for dtype in {real_dtype(x.dtype) for x in leaves}}

    kinds = [_kind(*leaf) for leaf in zip(own_rules, leaves, params, strict=True)]
    elementary = all(rule.elementary for rule in rules)
    traced = isinstance(ctx.step, Tracer)
    once = [not elementary and often for often in traced_once(kinds, traced)]
    distinct = {id(own): own for own in own_rules}
    split = {key: StaticRules.split(own, traced) for key, own in distinct.items()}

    args = [
        (
            leaf,
            [c[i] for c in columns],
            params[i],
            count[real_dtype(leaf.dtype)],
            [e[i] for e in extras],
        )
        for i, leaf in enumerate(leaves)
    ]
    done = rules[0].run_together(own_rules, args) if len(rules) == 1 else {}
    costly = any(rule.costly or rule.refreshes for rule in rules)
    ordered = in_order(leaves, [leaf_args[1] for leaf_args in args], ctx)
    flag: Any = np.zeros((), bool)
    new_leaves, new_slots = [], []
    for i, own in enumerate(own_rules):
        with _naming(rules, updates, i):
            if i in done:
                leaf, slot = done[i]
            elif (how := ordered[i]) is not None:
                turn = Turn(flag, ctx.step, targets[i])
                in_turn = _run_in_turn_jitted if once[i] else _run_in_turn
                keeps = costly or how == "formats"
                leaf, slot, flag = in_turn(part_axes(), keeps, turn, *split[id(own)], *args[i])
            elif once[i]:
                leaf, slot = _run_jitted(part_axes(), *split[id(own)], *args[i])
            else:
                leaf, slot = run(own, *args[i])
        new_leaves.append(leaf)
        new_slots.append(slot)

    return treedef.unflatten(new_leaves), {
        rule.name: _as_trees(slots[rule.name], [slot[k] for slot in new_slots])
        for k, rule in enumerate(rules)
        if rule.stateful
    }


def run(
    rules: Sequence[Leafwise],
    update: jax.Array,
    slots: list[Any],
    param: Any,
    t: Any,
    extras: list[Any],
) -> tuple[jax.Array, list[Any]]:
    """All the rules on one leaf."""
    compute = update.dtype
    wide_param = None if param is None else cast(param, compute_dtype(dtype_of(param), compute))
    new = []
    for rule, stored, extra in zip(rules, slots, extras, strict=True):
        wide = stored
        if rule.Slots is not None:
            wide = rule.Slots(*(jax.tree.map(lambda x: read(x, compute), s) for s in stored))
        update_leaf: Any = rule.update_leaf
        returned = update_leaf(update, wide, wide_param if rule.needs_params else None, t, **extra)
        result, slot = _check_returned(rule, returned)
        _check_shape(rule, "the update", result, update)
        update = cast(result, compute)
        if rule.Slots is not None:
            names = rule.Slots._fields
            slot = [_store(rule, *entry) for entry in zip(names, slot, stored, strict=True)]
        new.append(slot)
    return update, new


class StaticRules:
    """The static part of rules for `_run_jitted`: their treedef and the numbers known to it.

    Inside a trace, known numbers become constants of the outer program anyway; as constants of the
    inner program they are not operands of its calls. Outside a trace all numbers are operands, so
    that a new value does not compile again.
    """

    def __init__(self, treedef: Any, numbers: tuple[Any, ...]):
        self.treedef, self.numbers = treedef, numbers
        self._hash = hash((treedef, numbers))

    @classmethod
    def split(cls, rules: tuple[Leafwise, ...], traced: bool) -> tuple["StaticRules", list[Any]]:
        leaves, treedef = jax.tree.flatten(rules)
        known = [traced and isinstance(x, np.generic) for x in leaves]
        numbers = tuple(x if k else None for x, k in zip(leaves, known, strict=True))
        return cls(treedef, numbers), [x for x, k in zip(leaves, known, strict=True) if not k]

    def rules(self, operands: list[Any]) -> tuple[Leafwise, ...]:
        rest = iter(operands)
        leaves = [next(rest) if number is None else number for number in self.numbers]
        return self.treedef.unflatten(leaves)

    def __eq__(self, other: object) -> bool:
        return self is other or (
            isinstance(other, StaticRules)
            and (self.treedef, self.numbers) == (other.treedef, other.numbers)
        )

    def __hash__(self) -> int:
        return self._hash


def _run_in_turn(
    axes: tuple[Any, ...],
    keeps: bool,
    turn: Turn,
    known: StaticRules,
    operands: list[Any],
    *args: Any,
) -> tuple[jax.Array, list[Any], jax.Array]:
    """`run` of one leaf after another, and the flag for which the next one waits."""
    rules = known.rules(operands)
    update, *rest = args
    update = after(turn.before, update)
    new_update, slots = run(rules, update, *rest)
    flag = turn.flag(new_update)
    if keeps:
        return new_update, after(flag, slots), flag
    # Computing them anew is less work than holding them in float32.
    _, slots = run(rules, after(flag, update), *rest)
    return new_update, slots, flag


_run_in_turn_jitted = jax.jit(_run_in_turn, static_argnums=(0, 1, 3))


@partial(jax.jit, static_argnums=(0, 1))
def _run_jitted(
    axes: tuple[Any, ...], known: StaticRules, operands: list[Any], *args: Any
) -> tuple[jax.Array, list[Any]]:
    return run(known.rules(operands), *args)


def _store(rule: Leafwise, name: str, new: Any, old: Any) -> Any:
    """A new slot with the structure and dtypes of the old one, and where it lay."""

    def store(x, y):
        _check_shape(rule, f"its slot {name}", x, y)
        return put_like(cast(x, y.dtype), y)

    return jax.tree.map(store, new, old)


def _check_returned(rule: Leafwise, returned: Any) -> tuple[Any, Any]:
    if not (type(returned) is tuple and len(returned) == 2):
        raise TypeError(
            f"{rule.name}.update_leaf must return (update, slots), found {type(returned).__name__}."
        )
    if rule.Slots is not None:
        _check_slots(rule, "update_leaf", returned[1])
    return returned


def _check_slots(rule: Leafwise, method: str, slots: Any) -> None:
    if not isinstance(slots, rule.Slots):
        raise TypeError(
            f"{rule.name}.{method} must give slots of type {rule.Slots.__name__}, found "
            f"{type(slots).__name__}."
        )


def _check_shape(rule: Leafwise, what: str, new: Any, old: Any) -> None:
    if jnp.shape(new) != jnp.shape(old):
        raise ValueError(
            f"{rule.name} turned {what} of shape {jnp.shape(old)} into shape {jnp.shape(new)}: "
            "does the state belong to params of these shapes?"
        )


def _specialise(
    rules: Sequence[Leafwise], tree: PyTree, leaves: Sequence[jax.Array]
) -> list[tuple[Leafwise, ...]]:
    """The rules for each leaf, with the leaf's per-leaf values and numbers in its dtype."""
    own = [
        [(k, name, value.values(tree)) for name, value in _per_leaf(rule)]
        for k, rule in enumerate(rules)
    ]
    own = [entry for entries in own for entry in entries]
    made: dict[Any, tuple[Leafwise, ...]] = {}
    out = []
    for i, leaf in enumerate(leaves):
        dtype = real_dtype(compute_dtype(leaf.dtype))
        key = (dtype, *(values[i] for _, _, values in own))
        if key not in made:
            new = [cast_numbers(rule, dtype) for rule in rules]
            for k, name, values in own:
                field = getattr(new[k], name)
                value = field.at(values[i]) if isinstance(field, NumberByPath) else values[i]
                new[k] = new[k].rebuilt(**{name: value})
            made[key] = tuple(new)
        out.append(made[key])
    return out


def _per_leaf(rule: Leafwise) -> Iterator[tuple[str, PerLeaf]]:
    """The fields that differ from leaf to leaf: the values, or the labels of numbers by path."""
    for name, value in rule.fields("per_leaf"):
        if value is not None:
            yield name, value
    for name, value in rule.fields("number"):
        if isinstance(value, NumberByPath):
            yield name, value.labels


def _check_each_number(rule: Leafwise) -> None:
    """Refuses what the rule would refuse for one of the numbers by path alone."""
    given = {name: x.each() for name, x in rule.fields("number") if isinstance(x, NumberByPath)}
    first = {name: numbers[0] for name, numbers in given.items()}
    for name, numbers in given.items():
        for number in numbers:
            replace(rule, **(first | {name: number}))


def _kind(rules: tuple[Leafwise, ...], update: jax.Array, param: Any) -> tuple[Any, ...]:
    """Leaves of one kind share one trace."""
    return id(rules), update.shape, update.dtype, None if param is None else dtype_of(param)


def _columns(own: Sequence[Any], rule: Leafwise, slots: Any, updates: PyTree) -> list[Any]:
    """The slots leaf by leaf."""
    if rule.Slots is None:
        return [None] * len(jax.tree.leaves(updates))
    if not isinstance(slots, rule.Slots):
        wanted = f"are {rule.Slots.__name__}"
        if type(slots) in (dict, list, tuple):
            raise untyped(rule.name, slots, wanted)
        found = "missing" if slots is None else type(slots).__name__
        raise ValueError(
            f"the state's slots for '{rule.name}' are {found}, this optimizer's {wanted}: was the "
            "state made by another optimizer?"
        )
    trees = [
        boxes.contents_like(tree, updates, f"the slots {rule.name}.{name}")
        for name, tree in zip(rule.Slots._fields, slots, strict=True)
    ]
    columns = list(zip(*trees, strict=True))
    for i, (column, leaf) in enumerate(zip(columns, jax.tree.leaves(updates), strict=True)):
        if not all(map(is_leaf, column)):
            expected = jax.eval_shape(
                partial(_first_values, own[i]), jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
            )
            hint = difference_hint(updates, slots[0])
            for name, slot, form in zip(rule.Slots._fields, column, expected, strict=True):
                if jax.tree.structure(slot) != jax.tree.structure(form):
                    raise ValueError(
                        f"{leaf_location(updates, i)} updates have an array, the slots "
                        f"{rule.name}.{name} have {describe(slot)}"
                        f"{hint or ': was the state made from other params?'}"
                    )
    return columns


def _as_trees(old: Any, per_leaf: list[Any]) -> Any:
    """The inverse of `_columns`: the new slots in the structure of the old ones."""
    columns = zip(*per_leaf, strict=True) if per_leaf else [()] * len(old)
    return type(old)(
        *(
            jax.tree.unflatten(jax.tree.structure(tree), jax.tree.leaves(column))
            for tree, column in zip(old, columns, strict=True)
        )
    )


def _extras(
    rule: Leafwise, own: Sequence[Leafwise], updates: PyTree, ctx: Context
) -> list[dict[str, Any]]:
    """The keyword arguments of `update_leaf`, leaf by leaf."""
    leaves = jax.tree.leaves(updates)
    args = {k: (kind, ctx.extra_args[k]) for k, kind in rule.extra_args.items()}
    whole = {k: value for k, (kind, value) in args.items() if kind == "function"}
    split: dict[str, list] = {
        k: [cast(value, real_dtype(g.dtype)) for g in leaves]
        if kind == "scalar"
        else [
            cast(x, compute_dtype(x.dtype, g.dtype))
            for x, g in zip(jax.tree.leaves(value), leaves, strict=True)
        ]
        for k, (kind, value) in args.items()
        if kind in ("scalar", "tree")
    }
    keys = {k: value for k, (kind, value) in args.items() if kind == "key"}
    if rule.random:
        seed: Any = getattr(rule, "seed")  # noqa: B009
        keys["key"] = key_at(seed, rule.draws_at(ctx.step), f"{rule.name}.seed")
    for k, key in keys.items():
        split[k] = leaf_keys(key, rule.name, updates)
    if rule.refreshes:
        split["turn"] = turns([part.is_refreshed(g) for part, g in zip(own, leaves, strict=True)])
    return [whole | {k: values[i] for k, values in split.items()} for i in range(len(leaves))]


@contextmanager
def _naming(rules: Sequence[Leafwise], tree: PyTree, i: int) -> Iterator[None]:
    """Adds the stage and the leaf's path to any error."""
    try:
        yield
    except Exception as error:
        names = " then ".join(str(rule.name) for rule in rules)
        error.add_note(f"This was in {names}, {leaf_location(tree, i)}.")
        if "NoneType" in str(error) and not all(rule.needs_params for rule in rules):
            error.add_note("A rule gets its param only if its class says needs_params = True.")
        raise
