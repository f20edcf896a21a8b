"""`chain`: stages in sequence."""

from collections import Counter
from functools import partial
from itertools import groupby, pairwise
from typing import Any, cast

import optax

from optfn.core.data import child
from optfn.core.leafwise import Leafwise, apply_run
from optfn.core.state import Context
from optfn.core.transform import Transform, as_transform
from optfn.core.tree import PyTree
from optfn.core.updates_kind import Updates, check_not_last


class chain(Transform):
    """Applies stages in order: the updates of one stage are the gradients of the next.

    Nested chains are flattened, unless named: `chain(...).named("x")` is one stage. The state holds
    one entry for each stateful stage, under the stage's name, so adding, removing or moving a
    stateless stage (a clip, a weight decay, a rate) leaves the checkpoint tree as it was.

    Args:
        *stages: transforms, optax's too.

    Raises:
        TypeError: a stage is not a transform.
        ValueError: two stages share a name and both hold state or draw random numbers (name one);
            or a stage follows one that must be last, such as `ema_of_params` or `lookahead`.
    """

    elementwise = True

    stages: tuple[Transform, ...] = child()

    def __init__(self, *stages: optax.GradientTransformation):
        flat = []
        for i, stage in enumerate(stages):
            stage = as_transform(stage, f"chain(...), stage {i},")
            flat += stage.stages if isinstance(stage, chain) and stage.name is None else [stage]
        object.__setattr__(self, "stages", tuple(flat))
        for stage, behind in pairwise(flat):
            check_not_last(stage, "chain(...)", behind.name or repr(behind))
        # Moments would be swapped on restore, and two stages would draw the same noise.
        distinct = Counter(s.name for s in flat if s.stateful or s.random)
        name, count = next(iter(distinct.most_common(1)), (None, 0))
        if count > 1:
            kind = "stateful" if any(s.stateful for s in flat if s.name == name) else "random"
            raise ValueError(
                f"chain(...) has {count} {kind} stages named '{name}': give one of them its own "
                f"name, as in {name}(...).named('second')."
            )

    @property
    def name(self) -> str | None:
        return self._given_name

    @property
    def stateful(self) -> bool:
        return any(stage.stateful for stage in self.stages)

    def init_slots(self, params: PyTree) -> dict[str, Any]:
        return {k: v for stage in self.stages for k, v in stage.init_named(params).items()}

    def apply(self, updates: PyTree, slots: Any, ctx: Context) -> tuple[PyTree, Any]:
        old, new = slots or {}, {}
        for is_leafwise, group in groupby(self.stages, partial(_is_in_a_run, updates)):
            if is_leafwise:
                updates, renewed = apply_run(
                    cast(tuple[Leafwise, ...], tuple(group)), updates, old, ctx
                )
                new |= renewed
            else:
                for stage in group:
                    updates, renewed = stage.apply_named(updates, old, ctx)
                    new |= renewed
        return updates, new

    def updates_kind(self, incoming: Updates) -> Updates:
        for stage in self.stages:
            incoming = stage.updates_kind(incoming)
        return incoming

    def _arguments(self) -> list[str]:
        return list(map(repr, self.stages))


def _is_in_a_run(updates: PyTree, stage: Transform) -> bool:
    return isinstance(stage, Leafwise) and not stage.runs_alone(updates)
