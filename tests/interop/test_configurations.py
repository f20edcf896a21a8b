"""Optimizers in configurations: as fields of dataclasses and in Hydra's."""

import dataclasses
import importlib
import re
from pathlib import Path
from typing import Any

import cases
import hydra.errors
import jax
import jax.numpy as jnp
import pytest
from hydra.utils import instantiate

import optfn
from optfn import schedules


@dataclasses.dataclass
class Config:
    tx: Any
    steps: int = 3


@pytest.mark.parametrize("name", cases.OPTIMIZERS | cases.STAGES)
def test_a_dict_of_a_configuration_holds_the_hyperparameters(name):
    tx = (cases.OPTIMIZERS | cases.STAGES)[name]
    config = Config(tx)
    assert isinstance(dataclasses.asdict(config)["tx"], dict)
    assert dataclasses.replace(config, steps=5).tx is tx
    assert vars(config)["tx"] is tx


CHAIN = {
    "_target_": "optfn.chain",
    "_args_": [
        {"_target_": "optax.clip_by_global_norm", "max_norm": 1.0},
        {"_target_": "optfn.adam", "learning_rate": 0.1},
    ],
}
GROUPS = {
    "_target_": "optfn.partition",
    "transforms": {"slow": {"_target_": "optfn.adam", "learning_rate": 0.1}},
    "labels": {"w": "slow"},
}


@pytest.mark.parametrize("given", [CHAIN, GROUPS], ids=["chain", "partition"])
@pytest.mark.parametrize("convert", ["all", "object"])
def test_hydra_makes_it(given, convert):
    tx = instantiate(given | {"_convert_": convert})
    assert isinstance(tx, optfn.Transform)
    state = jax.eval_shape(tx.init, {"w": jnp.ones(3)})
    assert isinstance(state, optfn.State)


def test_hydra_makes_a_single_one_by_default():
    assert instantiate(CHAIN["_args_"][1]).init({"w": jnp.ones(3)}).step == 0


@pytest.mark.parametrize("given", [CHAIN, GROUPS], ids=["chain", "partition"])
def test_what_hydra_took_apart_says_what_to_write(given):
    given = given | {"_args_": [CHAIN["_args_"][1]]} if given is CHAIN else given
    with pytest.raises(hydra.errors.InstantiationException, match="_convert_: all prevents"):
        instantiate(given)


PAGE = (Path(__file__).parents[2] / "docs/configs.md").read_text()
SNIPPETS = re.findall(r"^```py\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
LIBRARIES = ("hydra", "ml_collections", "fiddle", "tyro", "draccus")


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_page_on_configs_says_how_each_library_makes_it(library, tmp_path, monkeypatch):
    snippet = dict(zip(LIBRARIES, SNIPPETS, strict=True))[library]
    assert re.search(rf"^(import|from) {library}", snippet, re.MULTILINE)
    (tmp_path / f"with_{library}.py").write_text(snippet)
    monkeypatch.syspath_prepend(tmp_path)
    tx = importlib.import_module(f"with_{library}").tx
    rate = schedules.linear(1e-3, 0.0, 99)
    wanted = optfn.chain(optfn.clip_by_global_norm(1.0), optfn.adamw(rate, weight_decay=0.1))
    assert repr(tx) == repr(wanted)


def test_what_a_library_of_configs_holds_is_what_was_written():
    from ml_collections import ConfigDict
    from omegaconf import OmegaConf

    tx = optfn.adamw(schedules.linear(0.1, 0.0, 9), mask=optfn.by_path({"**/b": False}, True))
    written = optfn.to_config(tx)
    for held in (OmegaConf.create(written), ConfigDict(written)):
        assert repr(optfn.from_config(held)) == repr(tx)
