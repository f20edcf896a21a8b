"""Optimizers in configurations: as fields of dataclasses and in Hydra's."""

import dataclasses
from typing import Any

import cases
import hydra.errors
import jax
import jax.numpy as jnp
import pytest
from hydra.utils import instantiate

import optfn


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
