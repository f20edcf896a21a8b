"""Other hyperparameters for some leaves, in any optimizer."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from difflib import get_close_matches
from functools import partial
from typing import Any

import optax

from optfn.core.leafwise import Leafwise
from optfn.core.numbers_by_path import NumberByPath
from optfn.core.paths import by_path
from optfn.core.transform import Transform, as_transform, transforms_in

WHERE = "param_groups(groups=...)"


def param_groups(
    transform: optax.GradientTransformation, groups: Mapping[str, Mapping[str, Any]]
) -> Transform:
    """The same optimizer with other hyperparameters for the leaves that a pattern matches.

        param_groups(
            adamw(schedules.cosine(1e-3, 1000), weight_decay=0.1),
            {
                "**/bias": {"weight_decay": 0.0},
                "head/**": {"learning_rate": times(10), "b2": 0.99},
                "embed/**": {"learning_rate": 1e-4},
            },
        )

    A number or a schedule takes the place of the optimizer's own; `times(factor)` multiplies the
    optimizer's own, a schedule too, as `lr_mult` and `lr_scale` do elsewhere; of what is by path
    already its default. Each hyperparameter
    is looked up by itself: the first pattern that matches a leaf and names the hyperparameter
    decides, so the bias of a head has both of the values above.

    It writes each value into the stage that it is for, as a `by_path` of numbers:

        adamw(by_path({"head/**": times(10)}, schedules.cosine(1e-3, 1000)), ...)

    So nothing is split: the state, the step count and the stages are those of the optimizer
    without groups, and norms and averages are over all leaves. Every number in it is a
    hyperparameter of its own, such as `learning_rate.embed/**` and
    `learning_rate.head/**.factor`. A leaf on which no stage with the number acts stays as it is, as
    matrices of `muon` do with those of Adam; `summary` shows who gets what.
    For other optimizers, switches or norms by group take `partition`, and to leave params as they
    are `freeze`.

    Args:
        transform: an optimizer or a stage.
        groups: by pattern of paths, as in `by_path`, the values by name. A name may be short,
            `learning_rate`, also where the groups of a partition each have one, or qualified,
            `scale_by_adam.eps`.

    Raises:
        ValueError: no hyperparameter has this name, or several of the same leaf have; or at `init`
            and `update`, if a pattern matches nothing.
        TypeError: a value is not a number; or the hyperparameter is one of the whole tree, such as
            the `max_norm` of `clip_by_global_norm`, or the rate of `prodigy`, which
            `chain(prodigy(), scale(by_path({"head/**": 0.1}, 1.0)))` multiplies.

    Source: the groups of torch.optim and of timm, by path.
    """
    tx = as_transform(transform, "param_groups(transform=...)")
    for pattern, name, value in reversed(_entries(groups)):  # the later are put behind the earlier
        found = False
        for fits in (name.__eq__, partial(_ends_with, name)):  # the whole name before its end
            if not found:
                tx, found = _with_values(tx, fits, {pattern: value})
        if not found:
            raise ValueError(f"{WHERE}: no hyperparameter is named {name!r}.{_hint(tx, name)}")
    return tx


def _entries(groups: Any) -> list[tuple[str, str, Any]]:
    """Pattern, name and value of each number, in order."""
    if not isinstance(groups, Mapping) or not groups:
        raise TypeError(f"{WHERE} must be a dict {{pattern: {{name: value}}}}, found {groups!r}.")
    found = []
    for pattern, values in groups.items():
        if not isinstance(values, Mapping) or not values:
            raise TypeError(
                f"{WHERE}: {pattern!r} must have a dict {{name: value}}, found {values!r}."
            )
        for name, value in values.items():
            if not isinstance(name, str):
                raise TypeError(f"{WHERE}: {pattern!r} must have text for names, found {name!r}.")
            found.append((pattern, name, value))
    return found


def _ends_with(name: str, qualified: str) -> bool:
    return qualified.endswith(f".{name}")


def _with_values(
    tx: Transform,
    fits: Callable[[str], bool],
    values: dict[str, Any],
    outer: tuple[str, ...] = (),
) -> tuple[Transform, list[str]]:
    """The transform with values by pattern, and the qualified names that fit and have them."""
    outer = outer if tx.name is None else (*outer, tx.name)
    changes: dict[str, Any] = {}
    found: list[list[str]] = []
    for field, number in tx.fields("number"):
        qualified = ".".join((*outer, field))
        if number is not None and fits(qualified):
            found.append([qualified])
            changes[field] = _values_and_default(values, number)
    new = _rebuilt(tx, changes, found)
    holders = list(tx.fields("child"))
    for field, inner in holders:
        around = outer if len(holders) == 1 else (*outer, field)
        if isinstance(inner, Mapping):  # of which each leaf is in one
            made = {k: _with_values(x, fits, values, (*around, k)) for k, x in inner.items()}
            found.append([one for _, names in made.values() for one in names])
            new = new.rebuilt(**{field: {k: x for k, (x, _) in made.items()}})
        else:
            several = [_with_values(x, fits, values, around) for x in transforms_in(inner)]
            found += [names for _, names in several]
            renewed = tuple(x for x, _ in several)
            new = new.rebuilt(**{field: renewed if type(inner) is tuple else renewed[0]})
    named = list(filter(None, found))
    if len(named) > 1:
        all_names = ", ".join(one for names in named for one in names)
        raise ValueError(
            f"{WHERE}: a leaf has several numbers of this name: {all_names}. Say which by a "
            "qualified name."
        )
    return (new, named[0]) if named else (tx, [])


def _values_and_default(values: dict[str, Any], number: Any) -> by_path:
    """The values before those that there are by path, or before the one number."""
    if not isinstance(number, NumberByPath):
        return by_path(values, number)
    return by_path(values | {k: x for k, x in number.patterns if k not in values}, number.default)


def _rebuilt(stage: Transform, changes: dict[str, Any], names: list[list[str]]) -> Transform:
    """The stage with these numbers, checked."""
    if not changes:
        return stage
    if not isinstance(stage, Leafwise):
        raise TypeError(
            f"{WHERE}: {names[0][0]} is one number for all leaves: give leaves an optimizer of "
            "their own by partition, or let scale(by_path(...)) follow the optimizer."
        )
    return replace(stage, **changes).rebuilt(_given_name=stage._given_name)


def _hint(tx: Transform, name: str) -> str:
    """What to write in the place of a name that no hyperparameter has."""
    stages = list(_stages(tx))
    if any(name in dict(stage.fields("static", "per_leaf")) for stage in stages):
        return " It changes the program: give leaves an optimizer of their own by partition."
    numbers = (pair for stage in stages for pair in stage.fields("number"))
    there = sorted({field for field, number in numbers if number is not None})
    near = get_close_matches(name, there, 1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"{hint} There are: {', '.join(there) or 'none'}."


def _stages(tx: Transform) -> Iterator[Transform]:
    yield tx
    for inner in tx.contents:
        yield from _stages(inner)
