"""How many steps and seconds optimizers need to train a transformer on text.

The transformer is that of `examples/train_text.py`. The rate of each optimizer, and its decay where
it has one, is tuned by one equal sweep: as many points, over as wide a range, trained for as many
steps, and none ended early. The best point is then trained from fresh seeds, the same for all, so
that params start alike and batches are alike. Steps are timed in turns. Matrix optimizers leave the
rest to their own default, and Muon's kin, whose default has a rate of its own, to the tuned AdamW.

With `--results FOLDER` each optimizer's measurements are kept there, and not made again.
"""

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from harness import (
    Interval,
    Report,
    interleaved,
    kept,
    listed,
    on_fresh_seeds,
    parser,
    progress,
    ratio,
    shown,
    spread,
    timer,
)

import optfn
from optfn import schedules, sweep
from optfn.sweep.candidate import Candidate

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
train_text = import_module("train_text")

PEER = "adamw"
TIMED_STEPS = 20  # two refreshes of what is refreshed at every tenth step


class Settings(NamedTuple):
    """The settings of all runs.

    Attributes:
        layers: of the transformer.
        batch_size: windows of text.
        steps: of a run.
        evaluations: of a run, evenly spread.
        trials: of a sweep.
        seeds: fresh ones, of the best trial.
        rounds: in which steps are timed.
    """

    layers: int = 2
    batch_size: int = 8
    steps: int = 300
    evaluations: int = 15
    trials: int = 16
    seeds: int = 3
    rounds: int = 10


QUICK = Settings(1, 4, steps=8, evaluations=4, trials=2, seeds=2, rounds=1)


class Tuned(NamedTuple):
    """An optimizer, as a function of what is tuned.

    Attributes:
        make: the optimizer of a `learning_rate`, the peak of its schedule, and of other values.
        space: the values that are tuned.
    """

    make: Callable[..., optfn.Transform]
    space: dict[str, Any]


def optimizers(steps: int, rest: optfn.Transform) -> dict[str, Tuned]:
    """The optimizers by name; rates range over two decades about the usual ones.

    Args:
        steps: of a run.
        rest: for the leaves that are no matrices, where a default has a rate of its own.
    """

    warmup = steps // 20

    def scheduled(function: Callable, **fixed: Any) -> Callable[..., optfn.Transform]:
        def make(learning_rate: Any, **values: Any) -> optfn.Transform:
            rate = schedules.warmup_cosine(learning_rate, warmup, steps)
            return function(rate, **values, **fixed)

        return make

    def muonh(rate: Any) -> optfn.Transform:
        direction = optfn.scale_by_muon(views=views)
        on_sphere = optfn.chain(direction, optfn.hyperball(rate, views=views))
        return optfn.partition_matrices(on_sphere, rest, views)

    def with_decay(usual_rate: float, lowest_decay: float = 1e-3) -> dict[str, Any]:
        decays = sweep.LogUniform(lowest_decay, 1e3 * lowest_decay)
        return {"learning_rate": about(usual_rate), "weight_decay": decays}

    views = train_text.VIEWS
    muon = scheduled(optfn.muon, views=views, rest=rest)
    normuon = scheduled(optfn.normuon, views=views, rest=rest)
    schedule_free = partial(optfn.schedule_free_adamw, warmup_steps=warmup, b2=0.99)
    grafting = optfn.scale_by_adam(b2=0.99)
    shampoo = scheduled(optfn.shampoo, precondition_frequency=10, grafting=grafting, views=views)
    # Without a constraint, or with one.
    of_scion = {"learning_rate": about(3e-4), "weight_decay": [0.0, 1.0]}
    return {
        "adamw": Tuned(scheduled(optfn.adamw, b2=0.99), with_decay(3e-3)),
        "lion": Tuned(scheduled(optfn.lion), with_decay(3e-4, 1e-2)),
        # Its slow average is to be shorter than a run.
        "ademamix": Tuned(scheduled(optfn.ademamix, b2=0.99, b3=0.99), with_decay(1e-3)),
        "schedule_free_adamw": Tuned(schedule_free, with_decay(1e-2)),
        "muon": Tuned(muon, with_decay(2e-2)),
        "normuon": Tuned(normuon, with_decay(2e-2)),
        "muonh": Tuned(scheduled(muonh), {"learning_rate": about(1e-2)}),
        "soap": Tuned(scheduled(optfn.soap, views=views), with_decay(3e-3)),
        "kl_soap": Tuned(scheduled(optfn.kl_soap, views=views), with_decay(3e-3)),
        "shampoo": Tuned(shampoo, with_decay(3e-3)),
        "kron": Tuned(scheduled(optfn.kron, views=views), with_decay(1e-3)),
        "scion": Tuned(scheduled(optfn.scion, views=views), of_scion),
    }


def about(rate: float) -> sweep.LogUniform:
    return sweep.LogUniform(rate / 10, 10 * rate)


def task(settings: Settings) -> sweep.Task:
    """Next characters of help texts; the score is the loss on the last tenth of them."""
    text = train_text.help_texts()
    model = train_text.Transformer(text.vocabulary, settings.layers)

    def batch(key: jax.Array, tokens: jax.Array) -> jax.Array:
        last = len(tokens) - train_text.CONTEXT
        starts = jax.random.randint(key, (settings.batch_size,), 0, last)
        return train_text.windows(tokens, starts)

    def loss(params: Any, batch: jax.Array) -> jax.Array:
        return train_text.loss_fn(params, model, batch)

    starts = jnp.linspace(0, len(text.test) - train_text.CONTEXT - 1, 64).astype(int)
    return sweep.Task(
        lambda key: model.init(key, jnp.zeros((1, train_text.CONTEXT), jnp.int32)),
        loss,
        data=text.train,
        batch=batch,
        evaluate=lambda params, held_out: {"test_loss": loss(params, held_out)},
        held_out=train_text.windows(text.test, starts),
        minimize="test_loss",
    )


class Outcome(NamedTuple):
    """What is measured of an optimizer, but for the time of a step.

    Attributes:
        point: the best values of the sweep.
        edges: those of them that were the lowest or highest of the sweep.
        diverged: how many trials of the sweep did.
        ages: the steps at which losses were taken.
        losses: for each fresh seed the test losses at these; nan after a run that diverged.
        duration: the seconds that all of this took.
    """

    point: dict[str, float]
    edges: list[str]
    diverged: int
    ages: list[int]
    losses: list[list[float]]
    duration: float


def measure(name: str, settings: Settings, rest: optfn.Transform) -> dict[str, Any]:
    """The outcome of an optimizer, as a dict."""
    began = time.perf_counter()
    make, space = optimizers(settings.steps, rest)[name]
    tuning = sweep.run(
        task(settings),
        make,
        space,
        trials=settings.trials,
        steps=settings.steps,
        segment=settings.steps // settings.evaluations,
        search=sweep.sobol(),
        policy=sweep.run_all(),
        mode="map" if jax.default_backend() == "cpu" else "vmap",
        progress=lambda done: progress(f"  {done}"),
    )
    best = tuning.best()
    progress(f"  fresh seeds of {best.values}")
    again = on_fresh_seeds(tuning, settings.seeds)
    jax.clear_caches()  # no program is used twice
    return Outcome(
        point=best.values,
        edges=[name for name in best.values if at_edge(name, best.values[name], tuning.points)],
        diverged=int(np.isin(tuning.status, ("diverged", "not_finite")).sum()),
        ages=again.ages.tolist(),
        losses=again.curves["test_loss"].tolist(),
        duration=time.perf_counter() - began,
    )._asdict()


def at_edge(name: str, value: float, points: Sequence[Mapping[str, float]]) -> bool:
    """Whether no trial had a lower value, or none a higher one, of several."""
    tried = {point[name] for point in points}
    return len(tried) > 2 and value in (min(tried), max(tried))


def tuned(name: str, points: Mapping[str, Mapping[str, float]], steps: int) -> optfn.Transform:
    """An optimizer at its point, with AdamW at its point for the rest."""
    nothing = optfn.adamw(0.0)
    adamw = optimizers(steps, nothing)[PEER].make(**points[PEER])
    return optimizers(steps, adamw)[name].make(**points[name])


def time_steps(
    points: Mapping[str, Mapping[str, float]], settings: Settings
) -> dict[str, list[float]]:
    """The seconds of a step by optimizer and round; "again" is AdamW a second time."""
    of_text = task(settings)
    params = jax.jit(of_text.init)(jax.random.key(0))
    timers = {}
    for name in points:
        progress(f"  compiling a step of {name}")
        tx = tuned(name, points, settings.steps)
        carry, *rest = (params, tx.init(params)), jax.random.key(1), of_text.data
        program = advance.lower(tx, carry, *rest, task=of_text).compile()
        for again in [name, "again"] if name == PEER else [name]:
            own = jax.tree.map(jnp.copy, carry)  # it is donated
            timers[again] = timer(partial(_go_on, program, tx, *rest), own, TIMED_STEPS)
    return interleaved(timers, settings.rounds)


def _go_on(program: Any, tx: Any, key: jax.Array, data: Any, carry: Any) -> Any:
    return program(tx, carry, key, data)


@partial(jax.jit, static_argnames="task", donate_argnames="carry")
def advance(tx: Any, carry: Any, key: jax.Array, data: Any, *, task: sweep.Task) -> Any:
    """The carry of a run after `TIMED_STEPS` more steps."""

    def step(carry: Any, key: jax.Array) -> tuple[Any, None]:
        return task.advance(Candidate(tx, {}), carry, task.whole_batch(key, data, {}), key)[0], None

    return jax.lax.scan(step, carry, jax.random.split(key, TIMED_STEPS))[0]


def steps_to(target: float, ages: Sequence[int], losses: Sequence[float]) -> float:
    """The step at which the loss, a line between evaluations, first is the target; inf if never."""
    reached = np.flatnonzero(np.asarray(losses) <= target)
    if not len(reached):
        return float("inf")
    i = int(reached[0])
    if i == 0:
        return float(ages[0])
    share = (losses[i - 1] - target) / (losses[i - 1] - losses[i])
    return ages[i - 1] + share * (ages[i] - ages[i - 1])


class Race(NamedTuple):
    """How an optimizer does against AdamW, seed by seed.

    Attributes:
        final: its final losses.
        above: how far these are above AdamW's.
        steps: after which its loss is AdamW's final one; infinite where it never is.
        later: than AdamW it is there, in steps of AdamW.
    """

    final: np.ndarray
    above: np.ndarray
    steps: np.ndarray
    later: np.ndarray

    @classmethod
    def of(cls, own: Outcome, peer: Outcome, cost: float) -> "Race":
        """Of two optimizers, where a step of the first costs so many of the other."""
        targets = [losses[-1] for losses in peer.losses]

        def all_steps(runner: Outcome) -> np.ndarray:
            pairs = zip(targets, runner.losses, strict=True)
            return np.array([steps_to(target, runner.ages, losses) for target, losses in pairs])

        final, steps = np.array([losses[-1] for losses in own.losses]), all_steps(own)
        return cls(final, final - targets, steps, cost * steps - all_steps(peer))


def add_races(
    report: Report, outcomes: Mapping[str, Outcome], seconds: Mapping[str, Sequence[float]]
) -> None:
    """The table of final losses, and of steps and seconds to AdamW's."""
    of_a_step = statistics.median(seconds[PEER])
    rows = []
    for name, own in outcomes.items():
        cost = ratio(seconds, name, PEER)
        final, above, steps, later = Race.of(own, outcomes[PEER], cost)
        reached = int(np.isfinite(steps).sum())
        end = Interval.of(above).verdict("better", "worse")
        speed = Interval.of(later).verdict("faster", "slower")
        cells = [f"by {reached} of {len(steps)} seeds", f"{cost:.2f}", ""]
        if reached == len(steps):
            cells[0] = Interval.of(steps).shown(0)
            cells[2] = Interval.of(of_a_step * cost * steps).shown(1)
        if name == PEER:
            end = speed = ""
        elif end != "better" or speed != "faster":
            report.judge(False, f"{name}: final loss {end}, by the second {speed}.")
        losses = [Interval.of(x).shown(3) for x in (final, above)]
        rows.append((Interval.of(final).mean, shown([name, *losses, end, *cells, speed])))
    control = spread([ratio(seconds, "again", PEER)])
    report.add_table(
        "To AdamW's loss",
        "Final test losses in nats per character, how far they are above AdamW's of the same seed, "
        "and the steps and seconds after which AdamW's final loss of the same seed is reached. "
        "Means over the seeds, and 95 % intervals by Student's t; a tie is where the interval of "
        "the difference to AdamW holds 0; slower is also what never gets there. A step's time is "
        f"relative to AdamW's, {1e3 * of_a_step:.1f} ms, the median over rounds in which all take "
        f"turns; AdamW timed twice differs by a factor of {control:.3f}. Rates, but for "
        "Schedule-Free's, fall to 0 at the last step: a run planned to end where AdamW's loss is "
        "reached would reach it sooner.",
        [
            *("optimizer", "final loss", "above AdamW's", ""),
            *("steps to AdamW's loss", "a step's time", "seconds to AdamW's loss", ""),
        ],
        [row for _, row in sorted(rows)],
    )


def add_tuning(report: Report, outcomes: Mapping[str, Outcome], settings: Settings) -> None:
    """The table of what the sweeps found."""
    spaces = optimizers(settings.steps, optfn.adamw(0.0))
    rows = []
    for name, own in outcomes.items():
        cells = []
        for value in ("learning_rate", "weight_decay"):
            edge = " (edge)" if value in own.edges else ""
            space = spaces[name].space.get(value)
            cells.append(f"{own.point[value]:.2g}{edge}" if space else "none")
            cells.append("" if space is None else range_of(space))
        rows.append([name, *cells, str(own.diverged), f"{own.duration:.0f}"])
    report.add_table(
        "Tuning",
        f"{settings.trials} points of Sobol's sequence for each optimizer, one seed each, all of "
        f"{settings.steps} steps. A value that is the lowest or highest of those tried is marked; "
        "a better one may be outside. Seconds are those of the sweep and the fresh seeds, "
        "compilations included.",
        ["optimizer", "rate", "range", "decay", "range", "diverged", "seconds"],
        rows,
    )


def range_of(space: Any) -> str:
    if isinstance(space, sweep.LogUniform):
        return f"{space.low:g} to {space.high:g}"
    return " or ".join(f"{option:g}" for option in space)


def main() -> None:
    names = list(optimizers(100, optfn.adamw(0.0)))
    new = parser(__doc__)
    new.add_argument("--optimizers", type=listed(names), help="instead of all; AdamW is always")
    new.add_argument("--results", type=Path, metavar="FOLDER", help="keeps what is measured")
    args = new.parse_args()
    settings = QUICK if args.quick else Settings()
    chosen = args.optimizers or (["muonh"] if args.quick else names)
    outcomes: dict[str, Outcome] = {}
    rest = optfn.adamw(0.0)
    for name in dict.fromkeys([PEER, *chosen]):
        progress(name)
        found = kept(args.results, name, settings._asdict(), measure, name, settings, rest)
        outcomes[name] = Outcome(**found)
        shown([name, str(found["point"]), f"{found['duration']:.0f} s"])
        rest = tuned(PEER, {PEER: outcomes[PEER].point}, settings.steps)
    progress("seconds of a step")
    points = {name: outcome.point for name, outcome in outcomes.items()}
    of_times = settings._asdict() | {"points": points}
    seconds = kept(args.results, "seconds", of_times, time_steps, points, settings)
    report = Report("A transformer on text")
    report.tables.append(
        "## Conditions\n\n"
        f"The transformer of `examples/train_text.py`, {settings.layers} layers of width "
        f"{train_text.WIDTH}, on batches of {settings.batch_size} windows of {train_text.CONTEXT} "
        f"characters, {settings.steps} steps, {settings.seeds} fresh seeds. Rates rise for a "
        "twentieth of the steps and fall to 0 by a cosine; that of Schedule-Free rises and stays. "
        "Second moments of AdamW, AdEMAMix, Schedule-Free and of Shampoo's grafting have a decay "
        "of 0.99, AdEMAMix's slow average 0.99, as runs are short; Shampoo's roots are made at "
        "every tenth step; all else is at its default.\n"
    )
    add_races(report, outcomes, seconds)
    add_tuning(report, outcomes, settings)
    report.publish(args.record)


if __name__ == "__main__":
    main()
