"""Values per leaf and mismatches of trees, against references that recurse over containers."""

import collections
import re

import hypothesis
import jax
import jax.numpy as jnp
import pytest
from hypothesis import strategies as st

import optfn
from optfn.core.tree import PerLeaf, flatten_like, leaf_paths, mismatch

Pair = collections.namedtuple("Pair", "left right")
LEAF = object()

# Without a deadline: the first example pays for imports and traces.
many = hypothesis.settings(max_examples=200, deadline=None)


def containers(leaves, max_leaves=12):
    """Trees of dicts, lists, tuples and named tuples, empty ones too."""

    def nodes(children):
        return st.one_of(
            st.dictionaries(st.sampled_from("abcd"), children, max_size=3),
            st.lists(children, max_size=3),
            st.lists(children, max_size=3).map(tuple),
            st.builds(Pair, children, children),
        )

    return st.recursive(leaves, nodes, max_leaves=max_leaves)


def children(tree):
    """The children of a container by key in flattening order, or None for a leaf."""
    if isinstance(tree, dict):
        return sorted(tree.items())
    if isinstance(tree, (list, tuple)):
        return list(enumerate(tree))
    return [] if tree is None else None


def rebuilt(tree, new):
    """A container like `tree` with these children."""
    if isinstance(tree, dict):
        return dict(zip(sorted(tree), new, strict=True))
    if isinstance(tree, Pair):
        return Pair(*new)
    return None if tree is None else type(tree)(new)


def count(tree):
    inner = children(tree)
    return 1 if inner is None else sum(count(child) for _, child in inner)


@st.composite
def prefixes(draw, tree):
    """A prefix of `tree` with drawn values for leaves, and the value of every leaf of `tree`."""
    inner = children(tree)
    # None is no leaf and can stand for itself only.
    if inner is None or (tree is not None and draw(st.integers(0, 3)) == 0):
        value = draw(st.sampled_from([True, False, 0, 1, 2.5, "label"]))
        return value, [value] * count(tree)
    drawn = [draw(prefixes(child)) for _, child in inner]
    return rebuilt(tree, [prefix for prefix, _ in drawn]), [v for _, vs in drawn for v in vs]


trees = containers(st.sampled_from([LEAF, LEAF, LEAF, None]))
trees_and_prefixes = trees.flatmap(lambda tree: st.tuples(st.just(tree), prefixes(tree)))


@many
@hypothesis.given(trees_and_prefixes)
def test_a_prefix_gives_its_value_to_every_leaf_below(drawn):
    tree, (prefix, expected) = drawn
    values = PerLeaf.of(prefix, "here").values(tree)
    assert list(zip(map(type, values), values, strict=True)) == [(type(v), v) for v in expected]


def first_misfit(prefix, tree, path=()):
    """The path at which `prefix` is no prefix of `tree`, or None."""
    wanted = children(prefix)
    if wanted is None:
        return None
    if type(prefix) is not type(tree):
        return path
    found = dict(children(tree))
    for key in sorted(found.keys() ^ dict(wanted).keys(), key=str):
        return (*path, key)
    return next(filter(None, (first_misfit(p, found[k], (*path, k)) for k, p in wanted)), None)


@many
@hypothesis.given(trees, trees)
def test_what_is_no_prefix_is_refused(prefix, tree):
    prefix = jax.tree.map(lambda _: True, prefix)
    values = PerLeaf.of(prefix, "here")
    if first_misfit(prefix, tree) is None:
        assert values.values(tree) == [True] * count(tree)
    else:
        with pytest.raises(ValueError, match=r"^here does not fit the params: .*\.$"):
            values.values(tree)


NOTHING = object()


def follow(path, tree):
    """What stands at a path as a message writes it, or NOTHING."""
    for key in path.split("/") if path else []:
        names = dict(zip(tree._fields, tree, strict=True)) if isinstance(tree, Pair) else None
        inner = names or {str(k): child for k, child in children(tree) or []}
        if key not in inner:
            return NOTHING
        tree = inner[key]
    return tree


@many
@hypothesis.given(trees)
def test_paths_lead_to_the_leaves(tree):
    marked = jax.tree.unflatten(jax.tree.structure(tree), range(count(tree)))
    assert [follow(path, marked) for path in leaf_paths(marked)] == list(range(count(tree)))


@many
@hypothesis.given(trees, trees)
def test_a_mismatch_is_found_exactly_where_structures_differ(one, two):
    found = mismatch(one, two, "one", "two")
    assert (found is None) == (jax.tree.structure(one) == jax.tree.structure(two))
    if found is None:
        return
    if only := re.fullmatch(r"only (one|two) has an entry at '(.*)'", found):
        which, path = only.groups()
        here, there = (one, two) if which == "one" else (two, one)
        assert follow(path, here) is not NOTHING
        assert follow(path, there) is NOTHING
    else:
        both = r"at (?:the root|'(.*)') one has (?:an? )?(\w+), two has (?:an? )?(\w+)"
        path, *kinds = re.fullmatch(both, found).groups()
        for tree, kind in zip((one, two), kinds, strict=True):
            node = follow(path or "", tree)
            assert kind == ("array" if node is LEAF else "None" if node is None else _kind(node))


def _kind(node):
    return type(node).__name__


@pytest.mark.parametrize(
    ("tree", "like", "sentence"),
    [
        ({"a": 1}, {"a": 1, "b": 2}, "only grads has an entry at 'b'"),
        ({"a": 1, "b": 2}, {"a": 1}, "only params has an entry at 'b'"),
        ({"a": {"k": None}}, {"a": {"k": 1}}, "at 'a/k' grads has an array, params has None"),
        ({"a": {"k": 1}}, {"a": {"k": None}}, "at 'a/k' grads has None, params has an array"),
        ({"a": [1]}, {"a": (1,)}, "at 'a' grads has a tuple, params has a list"),
        ({"a": [1, 2]}, {"a": [1]}, "only params has an entry at 'a/1'"),
        (Pair(1, 2), (1, 2), "at the root grads has a tuple, params has a Pair"),
        (1, {"a": 1}, "at the root grads has a dict, params has an array"),
    ],
)
def test_a_mismatch_in_words(tree, like, sentence):
    assert mismatch(like, tree, "grads", "params") == sentence


def test_trees_that_do_not_fit_are_refused_by_name():
    with pytest.raises(ValueError) as error:
        flatten_like({"a": 1}, {"a": 1, "b": 2}, "params", "updates")
    sentence = "params and updates are different trees: only updates has an entry at 'b'."
    assert str(error.value) == sentence


# Functions of path and leaf.


def test_a_function_gets_paths_with_slashes_and_the_params_own_leaves():
    seen = {}

    def mask(path, leaf):
        seen[path] = leaf
        return True

    params = {
        "a": {"b": {"kernel": jnp.ones((2, 2), jnp.bfloat16)}},
        "list": [jnp.ones(1), None, Pair(jnp.ones(2), jnp.ones(3))],
    }
    tx = optfn.add_decayed_weights(0.1, mask)
    state = tx.init(params)
    tx.update(params, state, params)
    assert set(seen) == {"a/b/kernel", "list/0", "list/2/left", "list/2/right"}
    assert seen["a/b/kernel"] is params["a"]["b"]["kernel"]


Attention = collections.namedtuple("Attention", "query key value")


def test_a_param_named_value_keeps_its_name():
    seen = []
    tx = optfn.freeze(optfn.sgd(0.1), lambda path, leaf: seen.append(path) or False)
    tx.init({"attention": Attention(jnp.ones(1), jnp.ones(1), jnp.ones(1))})
    assert seen == ["attention/query", "attention/key", "attention/value"]


def test_a_tree_that_is_one_leaf_has_the_empty_path():
    seen = []
    tx = optfn.freeze(optfn.sgd(0.1), lambda path, leaf: seen.append(path) or False)
    tx.init(jnp.ones(3))
    assert seen == [""]


def test_values_are_part_of_the_treedef_and_their_repr_evaluates():
    values = PerLeaf.of({"w": 1.5, "b": (None, "label"), "c": float("-inf")}, "here")
    again = PerLeaf.of(eval(repr(values)), "elsewhere")
    assert again == values
    assert hash(again) == hash(values)
