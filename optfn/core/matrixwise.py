"""The lift of a rule for one matrix to all matrices of all leaves."""

from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from typing import Any, ClassVar, final

import jax
import jax.numpy as jnp
from jax import lax

from optfn.core.data import per_leaf
from optfn.core.leafwise import Leafwise, StaticRules, check_names_slots, run
from optfn.core.matrix_axes import MatrixAxes, matrices
from optfn.core.placement import Along, is_along, is_sharded, replicate, split_like
from optfn.core.randomness import as_keys, is_key, keys_of, without_keys
from optfn.core.tracing import LOOP, in_loops
from optfn.core.tree import PyTree
from optfn.core.turns import Turn
from optfn.core.whole_matrices import Split, are_split, for_each, of_stack, on_whole_matrices


class Matrixwise(Leafwise):
    """A rule about one matrix, applied to every matrix in every leaf.

    A subclass lists its hyperparameters as fields and defines `update_matrix` and, if it has state,
    `Slots` and `init_matrix`, as a `Leafwise` does for arrays. A matrix has the outputs of a layer
    as rows and its inputs as columns. Leaves that are no matrices have no slots and pass unchanged,
    unless it defines `update_rest`.

    A slot like the matrix is stored as an array like the param. Another one is returned as an
    `Along`, with 0 for the rows and 1 for the columns, and stored with the stack's axes in front.

    Class attributes a subclass may set, besides those of `Leafwise`:
        many_products: its work is many products of a matrix, against which copies of it, of its
            slots and its param are little. Many small matrices of one shape then share a loop of
            the program, which compiles faster.

    Args:
        views: how each leaf is a matrix or a stack of them: a `MatrixAxes` per leaf, as a tree (a
            prefix is enough), a function `(path, leaf) -> MatrixAxes` or a function
            `params -> tree`; `matrices({pattern: MatrixAxes})` says it by path, and reads names and
            shapes for the rest. None is `matrices()`: by name and shape.
    """

    costly: ClassVar[bool] = True
    many_products: ClassVar[bool] = False

    views: Any = per_leaf(default=None, none_is=matrices(), of=MatrixAxes, kw_only=True)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        check_names_slots(cls, "init_matrix", Matrixwise)

    def init_matrix(self, param: jax.Array) -> Any:
        """The `Slots` for one matrix."""
        raise NotImplementedError(f"{type(self).__name__} has Slots and must define init_matrix.")

    def update_matrix(
        self, g: jax.Array, slots: Any, param: Any, t: jax.Array, /
    ) -> tuple[jax.Array, Any]:
        """The new update and slots of one matrix; the arguments are as in `update_leaf`."""
        raise NotImplementedError(f"{type(self).__name__} must define update_matrix.")

    def update_rest(self, g: jax.Array) -> jax.Array:
        """The new update of a leaf that is no matrix."""
        return g

    @final
    def init_leaf(self, param: jax.Array) -> Any:
        if not self.views.is_matrix:
            return self.Slots(*[None] * len(self.Slots._fields))
        stack = self.views.split(replicate(param))
        made = _over_stack(self._init_along, stack.ndim - 2)(stack)

        def stored(slot):
            if _is_like_matrix(slot, stack.shape[-2:]):
                return self.views.join(slot.value, param.shape)
            return Along(slot.value, self.views.along(slot.axes, param.shape))

        return _map_slots(stored, made)

    @final
    def update_leaf(
        self, g: jax.Array, slots: Any, param: Any, t: jax.Array, **extra: Any
    ) -> tuple[jax.Array, Any]:
        if not g.size:
            return g, slots
        if not self.views.is_matrix:
            return self.update_rest(g), slots
        stack = self.views.split(replicate(g))
        form = slots
        if self.Slots is not None:
            one = jax.ShapeDtypeStruct(stack.shape[-2:], stack.dtype)
            form = jax.eval_shape(self._init_along, one)

        def seen(slot, stored):
            like = _is_like_matrix(slot, stack.shape[-2:])
            return self.views.split(replicate(stored)) if like else replicate(stored)

        def stored(slot, new, old):
            like = _is_like_matrix(slot, stack.shape[-2:])
            return self._joined(new, old) if like else new

        param = None if param is None else self.views.split(replicate(param))
        is_shared = {k: k == "turn" or self.extra_args.get(k) == "function" for k in extra}
        own = {k: v for k, v in extra.items() if not is_shared[k]}
        shared = {k: v for k, v in extra.items() if k not in own}

        def rule(g, slots, param, own):
            update_matrix: Any = self.update_matrix
            return update_matrix(g, slots, param, t, **own, **shared)

        own = self._split_extra(own, stack.shape[:-2])
        split = _map_slots(seen, form, slots)
        u, new = _over_stack(rule, stack.ndim - 2)(stack, split, param, own)
        return split_like(self._joined(u, g), g), _map_slots(stored, form, new, slots)

    def _joined(self, stack: jax.Array, like: jax.Array) -> jax.Array:
        """The array of these matrices, which lies as `like` does, also under automatic axes."""
        x = self.views.join(stack, like.shape)
        if self.views.block is None:
            return x
        # Through blocks the compiler finds no sharding, but through an operation on both it does.
        like = replicate(like)
        return jnp.where(like == like, x, x)

    def _init_along(self, param: jax.Array) -> Any:
        """The slots of one matrix, each with its axes."""
        made = self.init_matrix(param)
        return jax.tree.map(lambda slot: Along.of(slot, param), made, is_leaf=is_along)

    @final
    def is_refreshed(self, g: jax.Array) -> bool:
        return self.views.is_matrix and bool(g.size)

    @final
    def runs_alone(self, updates: PyTree) -> bool:
        leaves = jax.tree.leaves(updates)
        if self.many_products and any(in_loops(leaves)):
            return True
        # Views cost a look at every path, so they are asked for on a mesh alone.
        return any(map(is_sharded, leaves)) and any(
            map(are_split, leaves, self.views.values(updates))
        )

    @final
    def run_together(
        self, own_rules: Sequence[tuple[Any, ...]], args: Sequence[tuple[Any, ...]]
    ) -> dict[int, tuple[Any, ...]]:
        args = list(args)
        kinds: dict[Any, list[int]] = {}
        looped = in_loops([leaf_args[0] for leaf_args in args])
        for i, (own,) in enumerate(own_rules):
            g = args[i][0]
            if are_split(g, own.views) and not own._has_keys_of_blocks(args[i]):
                args[i] = own._with_extras_of_matrices(args[i])
                if own._lie_alike(args[i]):
                    kinds.setdefault((own._spread, id(own), own._kind(args[i])), []).append(i)
            elif looped[i] and self.many_products and own.views.is_matrix:
                kinds.setdefault((own._in_loops, id(own), own._kind(args[i])), []).append(i)
        done = {}
        for (together, *_), leaves in kinds.items():
            new = together([args[i] for i in leaves])
            done |= dict(zip(leaves, new, strict=False))
        return done

    def _has_keys_of_blocks(self, args: tuple[Any, ...]) -> bool:
        """Whether it draws for blocks, whose keys are not for matrices; these are gathered."""
        return self.views.block is not None and any(map(is_key, jax.tree.leaves(args[4])))

    def _with_extras_of_matrices(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The arguments of a leaf, with its turn and its keys for each of its matrices."""
        g, *others, (extra,) = args
        extra = dict(extra)
        if extra.get("turn") is not None:
            extra["turn"] = Turn(*(for_each(number, g, self.views) for number in extra["turn"]))
        stack = [g.shape[axis] for axis in self.views.axes(g.shape)[0]]
        for name, value in extra.items():
            if is_key(value):
                extra[name] = for_each(keys_of(value, stack), g, self.views)
        return g, *others, [extra]

    def _kind(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The form of a leaf's arrays, and how they are split."""
        arrays, treedef = jax.tree.flatten(_arrays(args))
        return treedef, self._splits(args), tuple((x.shape, x.dtype) for x in arrays)

    def _lie_alike(self, args: tuple[Any, ...]) -> bool:
        """Whether each device has the same matrices of the stack of every array."""
        return len({split.of_stack for split in self._splits(args)}) == 1

    def _splits(self, args: tuple[Any, ...]) -> tuple[Split, ...]:
        shape = args[0].shape
        stack, _, _ = self.views.axes(shape)
        return tuple(
            Split.of(x, stack if x.shape == shape else range(len(stack)))
            for x in jax.tree.leaves(_arrays(args))
        )

    def _spread(self, leaves: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        """The new updates and slots of leaves of one kind, each device doing a share of them."""
        g, slots, *_ = first = leaves[0]
        forms, treedef = jax.tree.flatten(_arrays(first))
        stacked = self.rebuilt(views=of_stack(self.views, g.ndim))
        static, numbers = StaticRules.split((stacked,), True)
        takes_turns = first[4][0].get("turn") is not None

        def rule(shared, *stacks):
            numbers, t = shared

            def at_once(stacks):
                g, slots, param, extra = treedef.unflatten(map(as_keys, stacks, forms))
                return jax.tree.leaves(run(static.rules(numbers), g, slots, param, t, extra))

            # Of a stack everything is computed if one matrix is due.
            return lax.map(at_once, stacks) if takes_turns else at_once(stacks)

        rows = (map(without_keys, jax.tree.leaves(_arrays(args))) for args in leaves)
        columns = list(zip(*rows, strict=True))
        results = 1 + len(jax.tree.leaves(slots))  # the update and the slots
        new = on_whole_matrices(rule, columns, self._splits(first), results, (numbers, first[3]))
        return _as_results(zip(*new, strict=True), slots)

    def _in_loops(self, leaves: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        """The new updates and slots of leaves of one kind, as far as they fill loops."""
        _, slots, _, t, _ = leaves[0]
        treedef = jax.tree.structure(_arrays(leaves[0]))

        def rule(arrays):
            g, slots, param, extra = treedef.unflatten(arrays)
            return jax.tree.leaves(run((self,), g, slots, param, t, extra))

        rows = [jax.tree.leaves(_arrays(args)) for args in leaves]
        done = []
        for start in range(0, len(rows) - LOOP + 1, LOOP):
            columns = zip(*rows[start : start + LOOP], strict=True)
            new = lax.map(rule, [jnp.stack(column) for column in columns])
            done += zip(*new, strict=True)
        return _as_results(done, slots)

    def _split_extra(self, extra: dict[str, Any], stack: tuple[int, ...]) -> dict[str, Any]:
        """The keyword arguments of each matrix of a stack of this shape."""

        def per_matrix(name, value):
            match self.extra_args.get(name, "key"):
                case "tree":
                    return self.views.split(replicate(value))
                case "scalar":
                    return jnp.broadcast_to(value, stack)
                case _:
                    return keys_of(value, stack)

        return {name: per_matrix(name, value) for name, value in extra.items()}


def _over_stack(rule: Callable[..., Any], depth: int) -> Callable[..., Any]:
    """A rule for one matrix, over the axes of a stack in front."""
    return reduce(lambda inner, _: jax.vmap(inner), range(depth), rule)


def _is_like_matrix(slot: Along, sides: tuple[int, ...]) -> bool:
    """Whether a slot, of one matrix or stacked, has an entry for every entry of a matrix."""
    return slot.axes == (0, 1) and slot.value.shape[-2:] == tuple(sides)


def _map_slots(function: Callable[..., Any], form: Any, *others: Any) -> Any:
    return jax.tree.map(function, form, *others, is_leaf=is_along)


def _as_results(arrays: Iterable[Sequence[jax.Array]], slots: list[Any]) -> list[tuple[Any, ...]]:
    """For each leaf the new update, and its new slots in the form of the old ones."""
    form = jax.tree.structure(slots)
    return [(u, jax.tree.unflatten(form, own)) for u, *own in arrays]


def _arrays(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """What a leaf has of its own, beside the number of the update, which is the same for all."""
    g, slots, param, _, extra = args
    return g, slots, param, extra
