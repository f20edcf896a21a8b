"""Moving a run from torch: the state of its Adam, AdamW and SGD, without torch."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optfn.core.placement import put_like
from optfn.core.state import State
from optfn.core.transform import check_transform_type
from optfn.core.tree import PyTree, leaf_paths
from optfn.core.walk import Place, renew_slots

# By the name of a stage, what torch calls its slots.
NAMES = {
    "scale_by_adam": {"mu": "exp_avg", "nu": "exp_avg_sq"},
    "trace": {"trace": "momentum_buffer"},
}
STEP = "step"


def from_torch_state(
    tx: optax.GradientTransformation,
    torch_state: Mapping[str, Mapping[str, Any]],
    params: PyTree,
    *,
    count: int | None = None,
) -> State:
    """The state with which an optimizer goes on where torch's Adam, AdamW or SGD stopped.

        entries = optimizer.state_dict()["state"]       # by number, as parameters() counts
        names = [name for name, _ in model.named_parameters()]
        torch_state = {
            path_of(name): {k: convert(name, x.numpy()) for k, x in entries[i].items()}
            for i, name in enumerate(names)
        }
        state = optfn.from_torch_state(optfn.adamw(1e-3), torch_state, params)

    where `path_of` and `convert` are what made the params of those of torch, such as
    `"encoder/kernel"` for `"encoder.weight"` and its transpose. A `step` stays as it is.

    torch's SGD is `sgd(rate, momentum)`, with a dampening of 0. Its `weight_decay`, and that of its
    Adam, is added to the gradient: `chain(add_decayed_weights(...), adam(...))`.

    Args:
        tx: the optimizer to go on with.
        torch_state: by the path of a leaf of the params, the entry of torch's state for it, with
            arrays in the layout of the leaf.
        params: the params after the last step of torch's.
        count: the number of updates made, where torch keeps none, as for SGD; it matters to
            schedules alone. None finds it in the entries, and is 0 where there is none.

    Raises:
        TypeError: `torch_state` or an entry of it is no dict.
        ValueError: an entry is missing or has no place, steps differ, among the entries or from
            `count`, or a shape is not its param's; the message names the path.
    """
    tx = check_transform_type(tx, "from_torch_state(tx=...)")
    first = tx.init(params)
    _check_paths(torch_state, leaf_paths(params))
    steps = {path: int(np.asarray(x[STEP])) for path, x in torch_state.items() if STEP in x}
    if len(set(steps.values())) > 1:
        raise ValueError(f"torch_state has entries of several steps: {steps}; here all have one.")
    step = next(iter(steps.values()), count or 0)
    if count is not None and step != count:
        raise ValueError(f"from_torch_state(count=...) is {count}, but torch_state counts {step}.")
    used: set[tuple[str, str]] = {(path, STEP) for path in steps}

    def renewed(place: Place) -> Any:
        if not hasattr(place.slots, "_fields"):
            return place.slots
        names = NAMES.get(type(place.stage).__name__)
        if names is None:
            raise ValueError(
                f"{'.'.join(place.names)} has state that torch's Adam, AdamW and SGD have not."
            )
        new = {}
        for slot, name in names.items():
            old = getattr(place.slots, slot)
            paths = leaf_paths(old)
            used.update((path, name) for path in paths)
            leaves = [
                _array(torch_state, path, name, x)
                for path, x in zip(paths, jax.tree.leaves(old), strict=True)
            ]
            new[slot] = jax.tree.structure(old).unflatten(leaves)
        return place.slots._replace(**new)

    slots = renew_slots(tx, first.slots, first.step, params, renewed)
    for path, entry in torch_state.items():
        for name, value in entry.items():
            if (path, name) not in used and value is not None:
                raise ValueError(f"torch_state['{path}']['{name}'] has no place in {tx!r}.")
    return State(put_like(jnp.asarray(step, jnp.int32), first.step), slots)


def _check_paths(torch_state: Any, paths: list[str]) -> None:
    if not isinstance(torch_state, Mapping):
        raise TypeError(
            "from_torch_state(torch_state=...) must be a dict from paths to entries, found "
            f"{type(torch_state).__name__}."
        )
    unknown = [path for path in torch_state if path not in paths]
    if unknown:
        raise ValueError(
            f"torch_state has an entry for {unknown[0]!r}, which is no leaf of the params; there "
            f"are: {', '.join(map(repr, paths))}."
        )
    for path, entry in torch_state.items():
        if not isinstance(entry, Mapping):
            raise TypeError(
                f"torch_state['{path}'] must be a dict of arrays, found {type(entry).__name__}."
            )


def _array(torch_state: Mapping[str, Any], path: str, name: str, old: jax.Array) -> jax.Array:
    value = torch_state.get(path, {}).get(name)
    if value is None:
        raise ValueError(f"torch_state has no '{name}' for the param '{path}'.")
    if np.shape(value) != old.shape:
        raise ValueError(
            f"torch_state['{path}']['{name}'] has the shape {np.shape(value)}, the param "
            f"{old.shape}: are its axes in the order of the param's?"
        )
    return put_like(jnp.array(value, old.dtype), old)
