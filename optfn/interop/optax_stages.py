"""Which part of optax's state belongs to which stage."""

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from optfn.compose.partition import partition
from optfn.compose.restart import own_step
from optfn.core.state import State
from optfn.core.transform import Inner, Transform
from optfn.core.tree import PyTree

# optax's names for the number of updates, for whether there were none, and for inner states.
COUNTS = ("count", "count_m2", "t", "step", "step_count", "gradient_step")
FIRST = {"step_count": 1}  # before the first update; all others begin at 0
OTHER_COUNT = ("ReduceLROnPlateauState", "count")
NONE_YET = ("is_init_step", "is_initial_step")
ROUND = "steps_since_sync"
INNER = (
    *("inner_state", "inner_opt_state", "base_optimizer_state", "hessian_fn_state"),
    *("opt_state", "adv_state"),
)
# Around others without anything of its own.
TRANSPARENT = ("MaskedState", "InjectHyperparamsState", "InjectStatefulHyperparamsState")
# Random numbers come from a seed here.
KEYS = ("key", "rng_key")
# Slots of the last update alone, which the next one makes anew.
RENEWED = {"rate", "info", "skipped", "gave_up", "has_updated"}
# The groups of optax's muon, which are called otherwise here.
LABELS = {"matrix": "muon", "rest": "adam"}

Path = tuple[Any, ...]


class Part(NamedTuple):
    """A NamedTuple in optax's state with something of its own, and where it stands."""

    path: Path
    state: Any

    @property
    def kind(self) -> str:
        return type(self.state).__name__


class Pair(NamedTuple):
    """A stage with its slots, and the part of optax's state that belongs to it.

    Attributes:
        names: from the outermost stage to this one, as `walk` has them.
        stage: the stage.
        slots: its slots.
        part: the part.
    """

    names: tuple[str, ...]
    stage: Transform
    slots: Any
    part: Part


def show_path(path: Path) -> str:
    """A path as one writes it behind the state."""
    return "state" + "".join(
        f".{key}" if isinstance(key, str) and key.isidentifier() else f"[{key!r}]" for key in path
    )


def parts_of(state: Any, path: Path = ()) -> Iterator[Part]:
    """The parts of a chain, a mask or the like, in order."""
    if type(state) is tuple or type(state) is list:
        for i, inner in enumerate(state):
            yield from parts_of(inner, (*path, i))
    elif type(state).__name__ in TRANSPARENT:
        yield from parts_of(state.inner_state, (*path, "inner_state"))
    elif any(name not in (*COUNTS, *KEYS) for name in getattr(state, "_fields", ())):
        yield Part(path, state)


def counts_in(state: Any, path: Path = ()) -> Iterator[Part]:
    """The counts of updates anywhere in a state, each with its path."""
    for key, inner in children(state):
        if (type(state).__name__, key) != OTHER_COUNT and key in COUNTS:
            yield Part((*path, key), inner - FIRST.get(key, 0))
        else:
            yield from counts_in(inner, (*path, key))


def children(state: Any) -> list[tuple[Any, Any]]:
    """The fields or the entries of a node, with their keys."""
    if hasattr(state, "_fields"):
        return list(zip(state._fields, state, strict=True))
    if isinstance(state, Mapping):
        return list(state.items())
    return list(enumerate(state)) if type(state) in (tuple, list) else []


def at(state: Any, path: Path) -> Any:
    """What stands at a path."""
    for key in path:
        state = dict(children(state))[key]
    return state


def replaced(state: Any, new: Mapping[Path, Any], path: Path = ()) -> Any:
    """The state with other values at some paths."""
    if path in new:
        return new[path]
    if not any(other[: len(path)] == path for other in new):
        return state
    inner = {key: replaced(x, new, (*path, key)) for key, x in children(state)}
    if hasattr(state, "_fields"):
        return state._replace(**inner)
    return type(state)(inner if isinstance(state, Mapping) else inner.values())


def pairs(tx: Transform, state: State, other: Any, params: PyTree) -> list[Pair]:
    """Every stage that has slots with its part of optax's state; an error if they do not fit.

    Args:
        tx: the optimizer.
        state: its state.
        other: optax's.
        params: the params.
    """
    found: list[Pair] = []
    queue = deque(parts_of(other))
    _pair(tx, (state.slots, state.step, params), (), queue, found)
    _check_none_left(queue, "the optimizer")
    return found


def _pair(
    tx: Transform,
    place: tuple[Any, ...],
    outer: tuple[str, ...],
    queue: deque[Part],
    found: list[Pair],
) -> None:
    named, step, params = place
    slots = tx.slots_among(named)
    if slots is None:
        return
    if tx.name is not None:
        outer = (*outer, tx.name)
    inner = tx.inner_transforms(slots, step, params)
    queues = [queue] * len(inner)
    if isinstance(tx, partition):
        queues = _of_groups([x for x in inner if x.slots], _next(queue, outer), outer)
        inner = [x for x in inner if x.slots]
    elif (
        hasattr(slots, "_fields") and not isinstance(tx, own_step) and set(slots._fields) - RENEWED
    ):
        part = _next(queue, outer)
        found.append(Pair(outer, tx, slots, part))
        held = [(key, x) for key, x in children(part.state) if key in INNER]
        if any(x.transform.stateful for x in inner) and not held:
            raise ValueError(
                f"optax's {show_path(part.path)}, a {part.kind}, has no inner state for "
                f"{'.'.join(outer)}."
            )
        queues = [deque(parts_of(x, (*part.path, key))) for key, x in held]
        queues += [deque() for _ in inner[len(queues) :]]
    for x, own in zip(inner, queues, strict=False):
        _pair(x.transform, x.place, (*outer, *x.names), own, found)
        if own is not queue:
            _check_none_left(own, ".".join((*outer, *x.names)))


def _of_groups(groups: list[Inner], part: Part, outer: tuple[str, ...]) -> list[deque[Part]]:
    states = getattr(part.state, "inner_states", None)
    if states is None:
        raise ValueError(
            f"{'.'.join(outer)} has groups, but optax's {show_path(part.path)} is a {part.kind}."
        )
    labels = {str(label): label for label in states}
    queues = []
    for group in groups:
        label = group.label if group.label in labels else LABELS.get(group.label)
        if label not in labels:
            raise ValueError(
                f"{'.'.join(outer)} has a group '{group.label}', but optax's "
                f"{show_path(part.path)}.inner_states has only {sorted(labels)}."
            )
        path = (*part.path, "inner_states", labels[label])
        queues.append(deque(parts_of(states[labels[label]], path)))
    return queues


def _next(queue: deque[Part], names: tuple[str, ...]) -> Part:
    if not queue:
        raise ValueError(f"optax's state has nothing for {'.'.join(names)}.")
    return queue.popleft()


def _check_none_left(queue: deque[Part], where: str) -> None:
    if queue:
        part = queue[0]
        raise ValueError(f"optax's {show_path(part.path)}, a {part.kind}, has no place in {where}.")
