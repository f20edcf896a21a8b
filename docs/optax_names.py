"""Each public name of optax, with its place in optfn and the arguments that differ.

Names, positions and defaults are compared by their signatures; what a signature cannot say is
written here by hand, and an argument that differs without a reason here is an error.
"""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import optax
import optax.contrib
import optax.schedules
import optax.tree

import optfn
from optfn.core.optax_names import ELSEWHERE, LEFT, PLANNED

MODULES = {
    "optax": optax,
    "optax.contrib": optax.contrib,
    "optax.schedules": optax.schedules,
    "optax.transforms": optax.transforms,
    "optax.microbatching": optax.microbatching,
    "optax.second_order": optax.second_order,
    "optax.losses": optax.losses,
    "optax.projections": optax.projections,
    "optax.perturbations": optax.perturbations,
    "optax.tree": optax.tree,
}

# Arguments that no function here has.
NOT_HERE = {"mask_compatible_extra_args": "the kind of each extra argument is declared"}

_SEED = "`seed`, a number that can be swept; `key` by name, too, of a key or a number"

# Arguments that only one of the two libraries has, and what optfn does.
OTHER_ARGUMENTS = {
    "muon": (
        "adam_b1 adam_b2 adam_eps_root adam_weight_decay adam_learning_rate "
        "debias dtype shape_scale views rest",
        "`rest` is the optimizer of all other leaves, such as `optfn.adamw(...)`, with a rate of "
        "its own; `views` says how leaves are matrices, which embeddings and heads are not unless "
        "it says so, and `muon_weight_dimension_numbers` says it as in optax; `debias=True` "
        "corrects the average as optax does; `dtype` is that of the products; `shape_scale` is the "
        "factor of the shape",
    ),
    "scale_by_muon": (
        "debias dtype views",
        "`views` says how leaves are matrices, or `weight_dimension_numbers` as in optax; "
        "`debias=True` corrects the average as optax does; "
        "`dtype` is that of the products",
    ),
    "galore": (
        "side views rest",
        "`views` says how leaves are matrices, which embeddings and heads are not unless it says "
        "so, and `weight_dimension_numbers` says it as in optax; `side` is the one that is "
        "projected; `rest` is the optimizer of all other leaves",
    ),
    "scale_by_galore": (
        "weight_dimension_numbers side views",
        "`views` says how leaves are matrices, or `weight_dimension_numbers`, by name, as in "
        "optax; `side` is the one that is projected",
    ),
    "apply_updates": ("rounding key", "additions, for params in fewer bits than float32"),
    "ema": ("nesterov", "an addition, which looks ahead by one more step"),
    "nadam": ("nesterov", "always; without it this is `adam`"),
    "nadamw": ("nesterov", "always; without it this is `adamw`"),
    "scale_by_factored_rms": ("decay_rate_fn", "`decay_rate` may be a schedule"),
    "sophia": (
        "hessian_diagonal_fn verbose print_win_rate_every_n_steps",
        "the estimator is a transform; nothing is printed",
    ),
    "hutchinson_estimator_diag_hessian": ("random_seed", "a number, or a key, which becomes one"),
    "global_norm": ("axis_name", "an addition, for arrays in parts inside `shard_map`"),
    "noisy_sgd": ("key seed", _SEED),
    "add_noise": ("key seed", _SEED),
    "schedule_free": (
        "r keep_average",
        "`r` is the power of t in the weights; `keep_average` is for `b1=0`, which is NaN in optax",
    ),
    "schedule_free_sgd": ("keep_average", "for `b1=0`, which is NaN in optax"),
    "schedule_free_adamw": ("keep_average", "for `b1=0`, which is NaN in optax"),
    "reduce_on_plateau": ("direction", '`"max"` to maximize; optax\'s is for losses'),
    "lbfgs": ("linesearch", "optfn's own stage, with `increase_factor=4`"),
    "scale_by_zoom_linesearch": ("verbose", "nothing is printed; the state says why it failed"),
    "scale_by_backtracking_linesearch": ("verbose", "nothing is printed"),
    "freeze": (
        "transform",
        "`freeze(mask)` is optax's stage; around an optimizer it also keeps no state for frozen "
        "leaves",
    ),
    "monitor": (
        "measures transform metrics norms",
        "around an optimizer, or `optfn.monitor(optfn.chain(), metrics)` as a stage; functions "
        "take gradients, updates and params and return scalars",
    ),
}

REQUIRED = inspect.Parameter.empty

_AS_WIDE = "means float32, or wider for wider params"

# Defaults that differ: optfn's, and why.
OTHER_DEFAULTS = {
    ("freeze", "mask"): (None, "since the first argument may be the mask"),
    ("scale_by_learning_rate", "learning_rate"): (REQUIRED, "optax's None means ascent"),
    **{
        (name, argument): default
        for name in ("muon", "scale_by_muon")
        for argument, default in {
            "ns_coeffs": ("keller_jordan", "which are optax's numbers"),
            "ns_steps": (None, "means five steps of one row, and all rows of a table"),
            "eps": (1e-7, "the author's"),
        }.items()
    },
    ("adafactor", "dtype_momentum"): (None, _AS_WIDE),
    ("scale_by_distance_over_gradients", "param_dtype"): (None, _AS_WIDE),
    ("adadelta", "learning_rate"): (1.0, "as in torch; optax's None means ascent"),
    ("adopt", "clip_value_fn"): (None, "means optax's function, t^(1/4)"),
    ("scale_by_adopt", "clip_value_fn"): (None, "means optax's function, t^(1/4)"),
    ("microbatch", "accumulator"): ("mean", "over the micro-batches that are evaluated"),
    ("conditionally_mask", "forward_extra_args"): ((), "means optax's False"),
    ("conditionally_transform", "forward_extra_args"): ((), "means optax's False"),
}

_PRECONDITIONING = (
    '`preconditioning="schatten4"` and `"rows"` are optax\'s `"schatten"` and `"aol"`, which do '
    'too; there is no `"spectral"`'
)

_BOTH_AVERAGES = (
    "`mu_dtype` is that of the two averages of gradients throughout; in optax all slots start in "
    "it and go on in float32"
)

# What is called alike and means something else.
MEANINGS = {
    "ademamix": _BOTH_AVERAGES,
    "apply_if_finite": "checks the updates beside the gradients",
    "scale_by_ademamix": _BOTH_AVERAGES,
    "muon": _PRECONDITIONING,
    "scale_by_muon": _PRECONDITIONING,
    "Schedule": "a class whose arguments are leaves; any function of the step does too",
    "Updates": "which way updates point; optax's is an alias for a tree",
    "chain": "nested chains are one; two stateful stages of one name are given names",
    "masked": "a stage only; as an optimizer it would apply raw gradients, and raises: "
    "`freeze(tx, not_mask)`, or `optax.masked(tx, mask)` as it is",
    "partition": "labels may be `by_path({pattern: label})`; labels that name no transform raise",
    "lookahead": "the params are the fast ones, and no pairs of both; "
    "`evaluation_params(tx, state, params)` are the slow ones; `optax.lookahead` takes `tx` too",
    "flatten": "refuses a transform that would give other updates for a vector",
    "conditionally_transform": "refuses a whole optimizer, whose raw gradients it would pass on",
    "value_and_grad_from_state": "`value_fn(params)` with the batch closed over",
    "schedules": "with shorter names",
    "transforms": "its names are at the top",
    "microbatching": "its names are at the top",
}


def names() -> Iterator[tuple[str, str]]:
    """The module and the name of each public name, where it is met first."""
    seen = set()
    for module, its in MODULES.items():
        for name in sorted(n for n in vars(its) if not n.startswith("_")):
            value = getattr(its, name)
            # The trees have a clip and a scale of their own.
            key = name if vars(optax).get(name) is value or module not in WHOLE else (its, name)
            if key not in seen:
                seen.add(key)
                yield module, name


# The modules that stay optax's as a whole.
WHOLE = {
    f"optax.{name}" for name in ("second_order", "losses", "projections", "perturbations", "tree")
}


def kind(module: str, name: str) -> str:
    """`elsewhere`, `planned`, `same` or the reason why the name stays optax's."""
    if module in WHOLE:
        name = module.removeprefix("optax.")
    if name in ELSEWHERE:
        return "elsewhere"
    if name in PLANNED:
        return "planned"
    for reason, those in LEFT.items():
        if name in those:
            return reason
    if hasattr(optfn, name):
        return "same"
    raise KeyError(f"{module}.{name} has no place in optfn/core/optax_names.py.")


def in_optax(name: str) -> Any:
    """The value of that name, in the first module that has it."""
    return next(vars(m)[name] for m in MODULES.values() if name in vars(m))


def parameters(function: Callable) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return {}  # a type alias


def differences(name: str) -> list[str]:
    """What a caller of the optax function of that name has to know of the one in optfn."""
    theirs, ours = (parameters(f) for f in (in_optax(name), getattr(optfn, name)))
    written = [MEANINGS[name]] if name in MEANINGS else []
    if name in ("Updates", "Schedule"):
        return written
    renamed = _renamed(theirs, ours)
    other, instead = OTHER_ARGUMENTS.get(name, ("", ""))
    explained = other.split()
    if explained:
        written.append(f"{_code(explained)}: {instead}")
    for old, new in renamed.items():
        if old not in explained and theirs[old].kind is not inspect.Parameter.VAR_POSITIONAL:
            written.append(f"`{old}` is called `{new}`")
    gone = [k for k in theirs.keys() - ours.keys() - renamed.keys() if k not in explained]
    written += [f"no `{k}`: {NOT_HERE[k]}" for k in sorted(gone)]
    added = ours.keys() - theirs.keys() - set(renamed.values()) - set(explained)
    if added:
        raise KeyError(f"optfn.{name} has the arguments {added}; say why in OTHER_ARGUMENTS.")
    for k in (k for k in theirs if k in ours):
        given = OTHER_DEFAULTS.get((name, k))
        if given is not None:
            default, why = given
            value = "no default" if default is REQUIRED else f"`{default!r}` by default"
            written.append(f"`{k}`: {value}, {why}")
        elif k not in explained and not _equal(theirs[k].default, ours[k].default):
            raise KeyError(f"optfn.{name}({k}=...) has another default; say why.")
    return written + _moved(theirs, ours)


def _renamed(theirs: dict, ours: dict) -> dict[str, str]:
    """Arguments at the same place, of which each library has its own name."""
    pairs = zip(theirs.items(), ours.items(), strict=False)
    return {
        a: b
        for (a, p), (b, q) in pairs
        if a not in ours and b not in theirs and p.kind is q.kind and _equal(p.default, q.default)
    }


def _moved(theirs: dict, ours: dict) -> list[str]:
    """Arguments that another position, or none, is needed for."""
    places = [
        {k: i for i, (k, p) in enumerate(x.items(), 1) if p.kind is p.POSITIONAL_OR_KEYWORD}
        for x in (theirs, ours)
    ]
    moved = [k for k in places[0] if places[1].get(k, places[0][k]) != places[0][k]]
    named = [k for k in places[0] if k in ours and k not in places[1]]
    there, here = (", ".join(str(place.get(k)) for k in moved) for place in places)
    written = [f"{_code(moved)}: argument {here}, in optax {there}"] if moved else []
    return written + ([f"{_code(named)}: by name only"] if named else [])


def _equal(a: Any, b: Any) -> bool:
    return a is b or (type(a) is type(b) and a == b) or (a == b and not callable(a))


def _code(words: list[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)
