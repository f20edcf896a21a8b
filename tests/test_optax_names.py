"""The table of optax's names misses none, and says of none what is not so."""

import optax_names
import pytest

import optfn
from optfn import schedules

LEFT = set().union(*optax_names.LEFT.values())


def test_every_name_of_optax_has_a_place():
    """A name that a newer optax adds is an error here."""
    assert all(optax_names.place(name) for name in optax_names.names())
    with pytest.raises(KeyError, match="no place"):
        optax_names.place("adamuon")


def test_a_name_has_one_place():
    assert not optax_names.ELSEWHERE.keys() & optax_names.PLANNED
    assert not LEFT & (optax_names.ELSEWHERE.keys() | optax_names.PLANNED)
    here = {name for name in optax_names.PLANNED | LEFT if hasattr(optfn, name)}
    assert not here


def test_every_place_exists():
    for target in optax_names.ELSEWHERE.values():
        owner, _, name = target.rpartition(".")
        assert hasattr(schedules if owner else optfn, name), target


def test_no_name_is_listed_that_optax_has_not():
    listed = optax_names.ELSEWHERE.keys() | optax_names.PLANNED | LEFT
    assert listed <= set(optax_names.names())
