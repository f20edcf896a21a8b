"""Optimizers from and to plain data: every one of them, there and back, and what is refused."""

import json
import re
from typing import Any

import cases
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import test_schedules
from hypothesis import strategies as st

import optfn
from optfn import projections, schedules, storage
from optfn.config import names

FUNCTIONS = ("decays", "not_the_scale", "by_shape", "is_bias", "not_every_third", "layers_above")
FUNCTIONS += ("leaf_rate",)
for function in FUNCTIONS:
    optfn.configurable(getattr(cases, function))


@optfn.configurable
def halve(step):
    return 0.5**step


@optfn.configurable
class shrink(optfn.Leafwise):
    """A stage as a stranger writes it."""

    by: Any = 0.5
    twice: bool = optfn.static(default=False)

    def update_leaf(self, g, slots, param, t):
        return self.by * g, slots


@optfn.configurable(name="my_sgd")
def sgd_of_mine(learning_rate, *, damping=0.5):
    return optfn.chain(shrink(damping), optfn.sgd(learning_rate))


MATRIX_AXES = optfn.MatrixAxes(rows=(-2, -1), columns=-3, block=4)
MORE = {
    "apollo_mini": optfn.apollo_mini(0.01),
    "array": optfn.adam(jnp.float32(1 / 3)),
    "bfloat16": optfn.adam(jnp.asarray([1 / 3, 0.1], jnp.bfloat16)),
    "weak array": optfn.adam(jnp.asarray(1 / 3)),
    "weak arrays": optfn.adam(jnp.stack([jnp.asarray(0.1), jnp.asarray(0.2)])),
    "NumPy array": optfn.adam(np.asarray(1 / 3)),
    "infinite array": optfn.adam(jnp.asarray([jnp.inf, -jnp.inf, 1e-30, jnp.nan])),
    "empty array": optfn.adam(jnp.zeros(0)),
    "empty arrays": optfn.adam(jnp.zeros((0, 3)), b1=np.zeros((3, 0))),
    "infinities": optfn.chain(optfn.clip(float("inf")), optfn.scale(-float("inf"))),
    "small and large": optfn.adam(5e-324, eps=1.7976931348623157e308, b1=-0.0, b2=1 / 3),
    "stacked": optfn.stack([optfn.adam(0.1 * k, b1=1 - 0.1**k) for k in range(9)]),
    "as arrays": optfn.as_arrays(optfn.adamw(schedules.linear(0.1, 0.0, 9))),
    "empty chain": optfn.chain(),
    "named chains": optfn.chain(
        optfn.chain(optfn.scale_by_adam(), optfn.chain(optfn.trace(0.9)).named("c")).named("b"),
        optfn.clip(0.1).named("d"),
    ).named("a"),
    "by path": optfn.adamw(0.1, mask=optfn.by_path({"z/**": True, "**/a": False}, default=True)),
    "labels by path that are numbers": optfn.partition(
        {"1e-3": optfn.sgd(0.1), "inf": optfn.lion(0.1)}, optfn.by_path({"a": "1e-3"}, "inf")
    ),
    "views": optfn.muon(0.1, views=optfn.matrices({"a/*": MATRIX_AXES, "b": optfn.NO_MATRIX})),
    "nested masks": optfn.masked(optfn.adam(0.1), {"a": [True, (False,)], "b": None}),
    "labels that are words": optfn.partition(
        {"name": optfn.sgd(0.1), "1e-3": optfn.set_to_zero()}, {"name": "name", "tuple": "1e-3"}
    ),
    "partitions in partitions": optfn.partition(
        {"x": optfn.freeze(optfn.sgd(0.1), {"w": True}).named("y"), "z": optfn.lion(0.1)},
        {"a": "x", "b": ["z", "x"]},
    ),
    "numbers by path": optfn.adamw(
        optfn.by_path({"z/**": optfn.times(0.1), "a": 1e-4}, schedules.linear(0.1, 0.0, 9)),
        weight_decay=optfn.by_path({"**": jnp.float32(1 / 3)}),
    ),
    "groups": optfn.param_groups(
        optfn.muon(schedules.linear(0.1, 0.0, 9)),
        {"b": {"learning_rate": optfn.times(schedules.linear(0.0, 1.0, 9)), "weight_decay": 1}},
    ),
    "codecs": optfn.store(
        optfn.adam(0.1),
        {"mu": storage.fp8(form="e5m2"), "scale_by_adam.nu": storage.int4(group=32)},
        {"w": True, "b": False},
        rounding="stochastic",
        seed=7,
    ),
    "in the host's memory": optfn.offload(optfn.adam(0.1), leaves={"w": True, "b": False}),
    "dtypes": optfn.accumulate(optfn.adam(0.1, mu_dtype=jnp.bfloat16), 2, accumulator_dtype="f4"),
    "a function": optfn.sgd(halve, momentum=schedules.constant(0.9)),
    "a class of one's own": optfn.chain(shrink(0.1, True), optfn.sgd(0.1)),
    "a function of one's own": sgd_of_mine(0.1, damping=0.3),
    **{repr(schedule): schedule for schedule in test_schedules.CASES},
    **{name: getattr(storage, name)() for name in ("bf16", "f16", "fp8", "int4", "int8", "split")},
    "sets": optfn.projected(
        optfn.sgd(0.1),
        optfn.by_path(
            {
                "a": projections.box(0, schedules.linear(1, 2, 9)),
                "b": projections.l2_sphere(2.0, axis=0),
                "c": projections.orthogonal(),
                "d": projections.l1_ball(),
                "e": halve,
            },
            default=projections.simplex(axis=-1),
        ),
    ),
    "by_slot": storage.by_slot({"signed": storage.int8(), "non_negative": storage.factored()}),
}
EVERY = cases.OPTIMIZERS | cases.STAGES | MORE


def form(leaf):
    weak = getattr(leaf, "weak_type", None)
    return type(leaf), getattr(leaf, "dtype", None), np.shape(leaf), weak, np.signbit(leaf).tolist()


@pytest.mark.parametrize("name", EVERY)
def test_what_is_written_builds_the_same(name):
    tx = EVERY[name]
    config = optfn.to_config(tx)
    # JSON knows no infinity, and files may sort the keys.
    text, sorted_text = (json.dumps(config, allow_nan=False, sort_keys=x) for x in (False, True))
    assert repr(optfn.from_config(json.loads(text))) == repr(tx)
    again = optfn.from_config(json.loads(sorted_text))
    assert type(again) is type(tx)
    assert jax.tree.structure(again) == jax.tree.structure(tx)
    assert list(map(form, jax.tree.leaves(again))) == list(map(form, jax.tree.leaves(tx)))
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(tx), strict=True):
        np.testing.assert_array_equal(a, b)
    assert optfn.to_config(again) == config


def test_every_factory_is_written_in_a_case():
    """A factory without a class of its own is written as the stages that it makes."""

    def named(config):
        if isinstance(config, dict):
            yield from [config["name"]] if isinstance(config.get("name"), str) else []
            config = list(config.values())
        if isinstance(config, list):
            for inner in config:
                yield from named(inner)

    seen = {name for tx in EVERY.values() for name in named(optfn.to_config(tx))}
    classes = {name for name, x in names.factories().items() if isinstance(x, type)}
    rare = {"given_hessian_diagonal", "on_mesh", "hutchinson_estimator_diag_hessian"}
    assert classes - seen <= rare


ADAMW: dict[str, Any] = {"name": "adamw", "learning_rate": 1e-3}
WARM = {"schedule": "warmup_cosine", "peak_value": 3e-4, "warmup_steps": 10, "total_steps": 99}
BY_HAND: list[tuple[Any, Any]] = [
    (ADAMW, optfn.adamw(1e-3)),
    (ADAMW | {"learning_rate": "1e-3"}, optfn.adamw(1e-3)),  # as YAML reads it
    (ADAMW | {"learning_rate": WARM}, optfn.adamw(schedules.warmup_cosine(3e-4, 10, 99))),
    (ADAMW | {"mask": {"w": True, "b": False}}, optfn.adamw(1e-3, mask={"w": True, "b": False})),
    (ADAMW | {"mask": {"function": "decays"}}, optfn.adamw(1e-3, mask=cases.decays)),
    (
        ADAMW | {"mask": {"name": "by_path", "patterns": {"**/b": False}, "default": True}},
        optfn.adamw(1e-3, mask=optfn.by_path({"**/b": False}, True)),
    ),
    (
        ADAMW | {"clip_by_global_norm": 1.0, "accumulate": {"every": 4}, "ema_of_params": None},
        optfn.accumulate(optfn.chain(optfn.clip_by_global_norm(1.0), optfn.adamw(1e-3)), 4),
    ),
    (
        ADAMW | {"chain": [{"name": "zero_nans"}, {"name": "clip", "max_delta": 1}]},
        optfn.chain(optfn.zero_nans(), optfn.clip(1), optfn.adamw(1e-3)),
    ),
    (
        ADAMW | {"store": {"name": "storage.int8"}, "centralize": {}},
        optfn.store(optfn.chain(optfn.centralize(), optfn.adamw(1e-3)), storage.int8()),
    ),
    (
        [{"name": "clip", "max_delta": "inf"}, ADAMW],
        optfn.chain(optfn.clip(float("inf")), optfn.adamw(1e-3)),
    ),
    (
        {
            "name": "partition",
            "transforms": {"slow": [{"name": "clip", "max_delta": 1}, ADAMW], "fast": ADAMW},
            "labels": {"name": "by_path", "patterns": [["a", "slow"]], "default": "fast"},
        },
        optfn.partition(
            {"slow": optfn.chain(optfn.clip(1), optfn.adamw(1e-3)), "fast": optfn.adamw(1e-3)},
            optfn.by_path({"a": "slow"}, "fast"),
        ),
    ),
    (
        {"name": "muon", "learning_rate": 0.1, "views": {"a": {"name": "NO_MATRIX"}}},
        optfn.muon(0.1, views={"a": optfn.NO_MATRIX}),
    ),
    (
        {"name": "schedules.per_epoch", "steps_per_epoch": 9, "schedule": WARM},
        schedules.per_epoch(schedules.warmup_cosine(3e-4, 10, 99), 9),
    ),
    (
        {"name": "my_sgd", "learning_rate": 0.1, "clip": 2},
        optfn.chain(optfn.clip(2), sgd_of_mine(0.1)),
    ),
    (
        {"name": "sgd", "learning_rate": {"schedule": "custom", "function": {"function": "halve"}}},
        optfn.sgd(halve),
    ),
    (
        ADAMW | {"groups": {"head/**": {"learning_rate": {"times": "1e1"}, "b1": "9.5e-1"}}},
        optfn.param_groups(
            optfn.adamw(1e-3), {"head/**": {"learning_rate": optfn.times(10), "b1": 0.95}}
        ),
    ),
    (  # of what is named, before anything stands around it
        ADAMW | {"clip": 1, "accumulate": 2, "groups": [["b", {"b1": WARM}], ["a", {"b1": 0}]]},
        optfn.accumulate(
            optfn.chain(
                optfn.clip(1),
                optfn.param_groups(
                    optfn.adamw(1e-3),
                    {"b": {"b1": schedules.warmup_cosine(3e-4, 10, 99)}, "a": {"b1": 0}},
                ),
            ),
            2,
        ),
    ),
    (ADAMW | {"groups": None}, optfn.adamw(1e-3)),
    (
        {"name": "sgd", "learning_rate": {"name": "by_path", "patterns": {"a": "1e-3"}}},
        optfn.sgd(optfn.by_path({"a": 1e-3})),
    ),
]


@pytest.mark.parametrize(("config", "wanted"), BY_HAND, ids=lambda x: repr(x)[:60])
def test_what_people_write(config, wanted):
    before = json.dumps(config)
    made = optfn.from_config(config)
    assert repr(made) == repr(wanted)
    assert jax.tree.structure(made) == jax.tree.structure(wanted)
    assert json.dumps(config) == before


WRONG: list[tuple[Any, str]] = [
    (ADAMW | {"name": "AdamW "}, r"config\.name .* found 'AdamW '; did you mean 'adamw'\?"),
    (ADAMW | {"name": None}, r"config\.name .* found None\. There are: .*adamw"),
    ({"name": "os.system", "command": "true"}, r"config\.name .* found 'os\.system'\. There are"),
    ({"name": "from_optax", "transformation": 1}, r"config\.name must be"),
    ({"name": "minimize", "fun": 1}, r"config\.name must be"),
    ({"name": "warmup_cosine"}, "did you mean 'schedules.warmup_cosine'"),
    ({"name": "adamw"}, r"config lacks 'learning_rate': adamw takes learning_rate, b1"),
    (ADAMW | {"weight_decy": 1}, r"config\.weight_decy: .* did you mean 'weight_decay'\? There"),
    (ADAMW | {"lr": 1}, r"config\.lr: adamw has no argument 'lr'\. There are: learning_rate"),
    (ADAMW | {7: 1}, r"config\.7: adamw has no argument 7\."),
    (ADAMW | {"learning_rate": "fast"}, r"config\.learning_rate: .* number"),
    (ADAMW | {"learning_rate": {"value": 1}}, r"config\.learning_rate: .* found dict"),
    (
        ADAMW | {"learning_rate": WARM | {"schedule": "warmup_cosin"}},
        r"config\.learning_rate\.schedule must be a schedule, .* 'warmup_cosine'\?",
    ),
    (ADAMW | {"learning_rate": {"schedule": "sgdr_schedule"}}, "optax's sgdr_schedule is"),
    (ADAMW | {"mask": {"name": True}}, r"config\.mask\.name .*A key 'name' .*{'literal': {"),
    (ADAMW | {"mask": {"w": 1}}, r"config\.mask: .* at 'w' must be a bool"),
    (ADAMW | {"mask": {"function": "decay"}}, r"config\.mask\.function .* did you mean 'decays'"),
    (ADAMW | {"mask": {"function": "decays", "w": True}}, r"config\.mask\.w: .*literal"),
    (ADAMW | {"clip_by_global_norm": "x"}, r"config\.clip_by_global_norm\.max_norm: "),
    (ADAMW | {"clip": {"max_dleta": 1}}, r"config\.clip\.max_dleta: .* did you mean 'max_delta'"),
    (ADAMW | {"clip": 1, "centralize": {}}, "'clip' and 'centralize' are stages, .* 'chain'"),
    (ADAMW | {"accumulate": 2, "store": 1}, "'accumulate' and 'store' are wrappers"),
    (ADAMW | {"sgd": 0.1}, r"config\.sgd would stand in front .* an optimizer itself"),
    (ADAMW | {"centralize": True}, r"config\.centralize takes no arguments: write {}, found True"),
    (ADAMW | {"named": "a.b"}, r"config\.named: "),
    ([ADAMW, {"learning_rate": 1}], r"config\[1\] must be a transform"),
    ({"name": "chain", "stages": ADAMW}, r"config\.stages must be a list"),
    ({"name": "store", "transform": ADAMW, "codec": "int8"}, r"write {'name': 'storage\.int8'}"),
    (
        {"name": "accumulate", "transform": "adam", "every": 2},
        r"config\.transform: .*'name': 'adam'",
    ),
    ({"name": "by_path", "patterns": ["a"]}, r"config\.patterns must be a dict or pairs"),
    (
        {"name": "chain", "stages": [{"name": "clip", "max_delta": None}]},
        r"config\.stages\[0\]\.max_delta",
    ),
    ({"learning_rate": 1}, "config must have a 'name'"),
    ([], "config must have a 'name'"),
    ("adamw", "config must be a dict with a name"),
    (ADAMW | {"learning_rate": {"array": ["a"]}}, r"config\.learning_rate\.array must be numbers"),
    (ADAMW | {"learning_rate": {"array": [1.0], "dtype": "float64"}}, "needs jax_enable_x64"),
    (
        ADAMW | {"learning_rate": {"array": [1.0], "shape": [2]}},
        r"array must be numbers of a dtype",
    ),
    (ADAMW | {"groups": {"a": {"bl": 1}}}, r"config\.groups: .* 'bl'\. There are: b1, b2"),
    (ADAMW | {"groups": {"a": 1}}, r"config\.groups\.a must be a dict of hyperparameters, found 1"),
    (ADAMW | {"groups": 1}, r"config\.groups must be a dict or pairs of its entries, found 1"),
    (ADAMW | {"groups": {"a": {"b1": {"times": "x"}}}}, r"config\.groups\.a\.b1\.times: .*number"),
    (ADAMW | {"b1": {"times": 2}}, r"config\.b1: .* must be a number or an array, found times"),
    (
        WARM | {"groups": {"a": {"b1": 1}}},
        r"param_groups\(transform=...\) must be an optfn transform",
    ),
]


@pytest.mark.parametrize(("config", "message"), WRONG, ids=lambda x: repr(x)[:60])
def test_what_is_wrong_is_said_with_its_place(config, message):
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        optfn.from_config(config)
    assert str(caught.value).startswith("config")


# Numbers that are wrong wherever they stand, and names that are none.
NO_NUMBER = ("much", True, {"not": "it"}, {"name": "identityy"}, [{"schedule": 3}])
RIGHT = [optfn.to_config(tx) for tx in cases.OPTIMIZERS.values()]
RIGHT += [config for config, _ in BY_HAND]


def numbers_and_names(config, path=()):
    """The paths of all numbers that are arguments, and of all keys and names."""
    if isinstance(config, dict):
        is_call = "name" in config or "schedule" in config
        for key, value in config.items():
            if key in ("name", "schedule", "function") and isinstance(value, str):
                yield (*path, key), "name"
            elif is_call and isinstance(value, float):
                yield (*path, key), "number"
            if is_call and key not in ("name", "schedule"):
                yield (*path, key), "key"
            yield from numbers_and_names(value, (*path, key))
    elif isinstance(config, list):
        for i, value in enumerate(config):
            yield from numbers_and_names(value, (*path, i))


@hypothesis.settings(max_examples=150, deadline=None, derandomize=True)
@hypothesis.given(st.data())
def test_a_right_config_made_wrong_gives_a_sentence(data):
    config = json.loads(json.dumps(data.draw(st.sampled_from(RIGHT))))
    path, kind = data.draw(st.sampled_from(sorted(numbers_and_names(config), key=repr)))
    *above, last = path
    place = config
    for key in above:
        place = place[key]
    if kind == "number":
        place[last] = data.draw(st.sampled_from(NO_NUMBER))
    elif kind == "name":
        text = place[last]
        cut = data.draw(st.integers(0, len(text)))
        place[last] = text[:cut] + data.draw(st.sampled_from("qQ_!")) + text[cut:]
    else:
        place[f"{last}{data.draw(st.sampled_from('qQ_!'))}"] = place.pop(last)
    with pytest.raises((ValueError, TypeError)) as caught:
        optfn.from_config(config)
    message = str(caught.value)
    assert re.match(r"config[.\[: ]", message), message
    assert message.endswith("."), message


def test_what_cannot_be_written_says_where():
    for tx, message in [
        (optfn.adamw(0.1, mask=lambda path, leaf: True), r"config\.stages\[1\]\.mask .*<lambda>"),
        (optfn.chain(optax.clip(1.0), optfn.sgd(0.1)), r"config\.stages\[0\] is no plain data"),
        (optfn.adamw(0.1, mask={0: True}), r"config\.stages\[1\]\.mask has the key 0"),
        (optfn.sgd(optax.constant_schedule(1.0)), r"learning_rate\.function is the function"),
    ]:
        with pytest.raises(ValueError, match=message):
            optfn.to_config(tx)
    with pytest.raises(TypeError, match="to_config"):
        optfn.to_config(optax.sgd(0.1))
    with pytest.raises(ValueError, match=r"learning_rate is traced"):
        jax.jit(lambda tx: optfn.to_config(tx))(optfn.sgd(0.1))


def test_a_name_stands_for_one_thing():
    assert optfn.configurable(halve) is halve
    with pytest.raises(ValueError, match="'adam' is a name of optfn's"):
        optfn.configurable(name="adam")(halve)
    with pytest.raises(ValueError, match=r"'halve' is .* already"):
        optfn.configurable(name="halve")(lambda step: step)
    for _ in range(2):  # a cell that runs again
        optfn.configurable(name="third")(lambda step: step / 3)
    with pytest.raises(ValueError, match=r"'third' is .* already"):
        optfn.configurable(name="third")(lambda step: step / 4)
    with pytest.raises(TypeError, match="needs a name"):
        optfn.configurable(lambda step: step)
    with pytest.raises(TypeError, match="must be a function"):
        optfn.configurable(3)


def test_what_wraps_is_said_by_the_type_or_the_name_of_its_first_argument():
    """A stage may call its first argument as a field of some wrapper or schedule is called."""

    @optfn.configurable
    def along(direction, strength=0.5):
        return optfn.scale(strength)

    @optfn.configurable
    def faded(schedule):
        return optfn.scale(schedule)

    @optfn.configurable
    def twice(base: optax.GradientTransformation, every=2):
        return optfn.accumulate(base, every)

    @optfn.configurable
    def thrice(inner):
        return optfn.accumulate(inner, 3)

    sgd = optfn.sgd(0.1)
    for entries, wanted in [
        ({"along": "down"}, optfn.chain(optfn.scale(0.5), sgd)),
        ({"along": {"direction": "up", "strength": 2}}, optfn.chain(optfn.scale(2), sgd)),
        ({"faded": WARM}, optfn.chain(optfn.scale(schedules.warmup_cosine(3e-4, 10, 99)), sgd)),
        ({"twice": {}}, optfn.accumulate(sgd, 2)),
        ({"twice": 4}, optfn.accumulate(sgd, 4)),
        ({"thrice": {}}, optfn.accumulate(sgd, 3)),
        (
            {"name": "scale_by_sign", "graft": {"magnitude": {"name": "scale_by_adam"}}},
            optfn.graft(optfn.scale_by_sign(), optfn.scale_by_adam()),
        ),
    ]:
        plain = {} if "name" in entries else {"name": "sgd", "learning_rate": 0.1}
        assert repr(optfn.from_config(plain | entries)) == repr(wanted)


def test_a_second_function_of_a_name_is_a_warning():
    def run(text, file="module.py"):
        exec(compile(text, file, "exec"), {"__name__": "cells", "optfn": optfn})

    def twin(body):
        return f"@optfn.configurable\ndef twin(step):\n    return {body}\n"

    def around(value):
        return (
            "def make(k):\n    @optfn.configurable\n    def other(step):\n        return k * step\n"
            f"make({value})\n"
        )

    # What runs again, changed or moved, and a cell with other text.
    for text, file in [("step", "a.py"), ("step", "a.py"), ("2 * step", "a.py")]:
        run(twin(text), file)
    run(f"\n\n{twin('2 * step')}", "a.py")
    run(f"\n{twin('3 * step')}", "b.py")
    for text in (twin("3 * step"), around(3), around(3)):
        run(text, "b.py")
    with pytest.warns(UserWarning, match="'twin' was another function of cells before"):
        run(f"\n\n{twin('4 * step')}", "b.py")
    with pytest.warns(UserWarning, match="'other' was another function of cells before"):
        run(around(4), "b.py")
