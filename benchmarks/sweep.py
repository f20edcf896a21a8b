"""What a sweep saves against training trial after trial, and how good its pick is.

The digits, a network with one hidden layer, Adam at 256 random points of learning rate and b1, each
for 1,000 steps with 10 evaluations. All ways train the same points from the same initial params on
the same batches.

- speed: seconds of all trials. Each way runs in a fresh process: cold with compilation but without
  imports, then warm with another seed. The ways take turns; a ratio is the median over rounds of
  the ratio within a round. Ways without a target are measured once.
- peer: seconds of 64 and of 256 trials against the fairest peer, one compiled segment under Optuna
  with its own pruner, measured in the same way; and the best scores of both over ten seeds.
- quality: ASHA's picks from shuffled orders of the points, against a full run; first width only.
- optimism: the mean test loss of the pick on fresh seeds, less the reported one, with and without
  `Confirm`; first width only.
- memory: the peak memory of the process with 2,000 trials and with 200.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import digits
import numpy as np
from harness import Report, in_fresh_process, interleaved, listed, parser, progress, ratio, shown
from sweep_quality import FRESH_SEEDS, Pick, PickScores, peak_mebibytes, picks, truths
from sweep_ways import WAYS, Cost, Study, bests, measure

PARTS = ("speed", "peer", "quality", "optimism", "memory")

# What each link of the chain adds to the one before.
CHAIN = {
    "fresh jit": "a fresh jit for every point",
    "argument": "hyperparameters as an argument",
    "argument + ASHA": "ASHA",
    "lanes {} + ASHA": "lanes",
}

# How many times as fast as another way the lanes must be, cold and warm, by width.
TARGETS = {
    ("lanes {} + ASHA", "fresh jit"): ({32: 40.0, 128: 20.0}, {}),
    ("lanes {} + ASHA", "argument + ASHA"): ({32: 0.85, 128: 0.85}, {32: 1.1, 128: 1.1}),
    ("lanes {}", "argument"): ({32: 0.9}, {32: 1.4}),
}

# The most of the fairest peer's seconds, cold and warm, by the number of trials.
PEER = "argument + Optuna"
PEER_SHARES = {64: (0.9, 0.8), 256: (0.75, 0.5)}
QUICK_SHARES = {32: PEER_SHARES[64]}
PEER_SEEDS = 10

TOP_SHARE = 0.03
EXCESS = 0.1
ORDERS_SHARE = 0.9
STEPS_SHARE = 0.45
CONFIRMATIONS = [{"top": 8, "seeds": 4}, {"top": 16, "seeds": 2}]  # the first is the default
OPTIMISM_LEFT = 0.5
MEMORY_GROWTH = 1.1

Start = Callable[..., Any]
Costs = dict[str, list[list[Cost]]]
Bests = dict[str, list[float]]


def held(mode: str) -> list[str]:
    """The ways that are links of the chain or have targets."""
    names = [*CHAIN, *(name for pair in TARGETS for name in pair)]
    return list(dict.fromkeys(name.format(mode) for name in names))


def measure_all(start: Start, study: Study, ways: Sequence[str], rounds: int) -> Costs:
    """The cold cost of each way in each round, and the warm one if it has one."""
    costs: Costs = {name: [] for name in ways}

    def timer(name: str) -> float:
        cost = start(measure, name, study)
        costs[name].append(cost)
        progress(f"  {name}: " + ", ".join(f"{c.seconds:.2f} s" for c in cost))
        return cost[0].seconds

    interleaved({name: partial(timer, name) for name in ways}, rounds)
    return costs


def seconds(costs: Costs, again: bool) -> dict[str, list[float]]:
    """The cold or warm seconds by way and round."""
    return {
        name: [cost[again].seconds for cost in rounds]
        for name, rounds in costs.items()
        if len(rounds[0]) > again
    }


def report_speed(report: Report, study: Study, costs: Costs, mode: str) -> None:
    width, cold, warm = study.width, seconds(costs, False), seconds(costs, True)
    chain = [(name.format(mode), what) for name, what in CHAIN.items()]
    chain = [(name, what) for name, what in chain if name in costs]
    rows = []
    for i, (name, what) in enumerate(chain):
        before = [f"{ratio(cold, chain[j][0], name):.2f}" for j in (max(i - 1, 0), 0)]
        rows.append(shown([what, f"{statistics.median(cold[name]):.2f}", *before]))
    report.add_table(
        f"The chain, width {width}",
        f"Cold seconds of {study.trials} trials x {study.steps} steps, each link with those before "
        "it, and the speedup against the link before and against the first.",
        ["link", "seconds", "against before", "against first"],
        rows,
    )
    rows = []
    for name, rounds in costs.items():
        row = [name]
        for again, times in enumerate((cold, warm)):
            if name not in times:
                row += ["", "", ""]
                continue
            compiled = round(statistics.median(cost[again].compilations for cost in rounds))
            cell = str(compiled)
            if again and name.startswith("lanes"):
                what = f"width {width}, {name}: {compiled} compilations warm (target 0)."
                cell += f" {report.judge(not compiled, what)}"
            low, high = min(times[name]), max(times[name])
            row += [f"{statistics.median(times[name]):.2f}", f"{low:.2f} to {high:.2f}", cell]
        steps = statistics.median(cost[0].steps for cost in rounds) / study.steps
        rows.append(shown([*row, f"{steps:.3f}", f"{rounds[0][0].best:.4f}"]))
    scaled = [
        f"{name} from {-(-study.trials // way.one_of)} trials"
        for name, way in WAYS.items()
        if way.one_of > 1
    ]
    report.add_table(
        f"Every way, width {width}",
        f"Seconds of {study.trials} trials, medians over the rounds and their range; compilations; "
        "steps of all lanes, idle ones included, as a share of a full run's (cold); "
        f"the best test loss (cold). Scaled to all trials: {', '.join(scaled)}; among fewer "
        "trials, fewer are pruned. Ways without a target are measured once.",
        [
            "way",
            *(f"{when}{kind}" for when in ("cold", "warm") for kind in (" s", " range", " comp.")),
            "steps",
            "best",
        ],
        rows,
    )
    rows = []
    for (name, peer), targets in TARGETS.items():
        name, row = name.format(mode), [f"{name.format(mode)} / {peer}"]
        for when, times, target in zip(("cold", "warm"), (cold, warm), targets, strict=True):
            if name not in times or peer not in times:
                row.append("")
                continue
            found = ratio(times, peer, name)
            cell = f"{found:.2f}"
            if width in target:
                what = f"width {width}, {row[0]}, {when}: {found:.2f} (target {target[width]:g})."
                cell += f" {report.judge(found >= target[width], what)}"
            row.append(cell)
        rows.append(shown(row))
    report.add_table(
        f"Lanes against others, width {width}",
        "Speedups. " + said_targets(width),
        ["", "cold", "warm"],
        rows,
    )


def said_targets(width: int) -> str:
    """The targets in words."""
    parts = [
        f"{name.format('').replace('  ', ' ').strip()} against {peer}: "
        + " and ".join(
            f"{target[width]:g} {when}"
            for when, target in zip(("cold", "warm"), targets, strict=True)
            if width in target
        )
        for (name, peer), targets in TARGETS.items()
        if any(width in target for target in targets)
    ]
    return f"Targets: {'; '.join(parts)}." if parts else "No targets at this width."


def report_peer(
    report: Report, study: Study, costs: Costs, bests: Bests, shares: tuple[float, float]
) -> None:
    (ours, peer), rows = costs, []
    name = f"width {study.width}, {study.trials} trials"
    for again, (when, target) in enumerate(zip(("cold", "warm"), shares, strict=True)):
        steps = [statistics.mean(cost[again].steps for cost in costs[way]) for way in costs]
        pairs = zip(costs[ours], costs[peer], strict=True)
        found = statistics.median(a[again].seconds / b[again].seconds for a, b in pairs)
        found *= max(1.0, steps[1] / steps[0])
        what = f"{name}, {when}: {found:.2f} of the peer's seconds (target {target})."
        verdict = report.judge(found <= target, what)
        times = [statistics.median(cost[again].seconds for cost in costs[way]) for way in costs]
        row = [when, *(f"{time:.2f}" for time in times), f"{found:.2f} {verdict}"]
        rows.append(shown([*row, *(f"{count / study.steps:.3f}" for count in steps)]))
    report.add_table(
        f"Against the fairest peer, {name}",
        f"Seconds of {ours} and of {peer}, medians over {len(costs[ours])} rounds; the median of "
        "the share of the peer's in the same round, times the peer's steps over the lanes' where "
        "these are fewer; steps of all lanes, idle ones included, as a share of a full run's. "
        f"Targets: {shares[0]} of the peer's seconds cold and {shares[1]} warm.",
        ["", "lanes", "peer", "share", "steps, lanes", "steps, peer"],
        rows,
    )
    logs = [math.log(a / b) for a, b in zip(bests[ours], bests[peer], strict=True)]
    mean = math.exp(statistics.mean(logs))
    better = sum(log < 0 for log in logs)
    what = f"{name}: the best score is {mean:.3f} of the peer's over {len(logs)} seeds (target 1)."
    row = [f"{statistics.mean(bests[way]):.4f}" for way in (ours, peer)]
    row += [f"{mean:.3f} {report.judge(round(mean, 3) <= 1, what)}"]
    row += [str(better), str(len(logs) - better)]
    report.add_table(
        f"Best scores of both, {name}",
        f"The best test loss of a whole run, over {len(logs)} seeds, each with points, initial "
        "params and batches of its own: the means, and the geometric mean of the share of the "
        "peer's, target at most 1; in how many seeds the lanes' is lower.",
        ["lanes", "peer", "share", "lower", "not lower"],
        [shown(row)],
    )


def report_quality(report: Report, study: Study, found: list[Pick]) -> None:
    most = max(1, int(TOP_SHARE * study.trials))
    near = statistics.mean(pick.place <= most for pick in found)
    good = statistics.mean(pick.excess <= EXCESS for pick in found)
    steps = max(pick.steps for pick in found)
    differing = sum(pick.differing for pick in found)
    where = f"width {study.width}, {len(found)} orders"
    places = np.array([pick.place for pick in found])
    rows = [
        [
            f"pick among the first {TOP_SHARE:.0%} of the full run",
            f"{near:.0%} of orders, places {np.median(places):g} to {places.max()}",
            report.judge(near >= ORDERS_SHARE, f"{where}: pick in the top 3 % in {near:.0%}."),
        ],
        [
            f"its test loss at most {EXCESS:.0%} above the best",
            f"{good:.0%} of orders, at worst {max(pick.excess for pick in found):.0%} above",
            report.judge(good >= ORDERS_SHARE, f"{where}: pick within 10 % in {good:.0%}."),
        ],
        [
            "steps of all lanes, as a share of the full run",
            f"{statistics.median(pick.steps for pick in found):.3f}, at most {steps:.3f}",
            report.judge(steps <= STEPS_SHARE, f"{where}: {steps:.3f} of the steps."),
        ],
        [
            "scores that differ from the full run's",
            str(differing),
            report.judge(not differing, f"{where}: {differing} scores differ."),
        ],
    ]
    report.add_table(
        f"Quality of ASHA, width {study.width}",
        f"{len(found)} shuffled orders of the same {study.trials} points, against a full run of "
        f"all. Targets: in {ORDERS_SHARE:.0%} of the orders a pick among the first "
        f"{TOP_SHARE:.0%}, and at most {EXCESS:.0%} above the best; at most {STEPS_SHARE} of the "
        "steps; every score equal to the full run's in every bit.",
        ["", "found", ""],
        [shown(row) for row in rows],
    )


def report_optimism(report: Report, study: Study, found: list[list[PickScores]]) -> None:
    names = ["none", *(f"top {c['top']}, {c['seeds']} seeds" for c in CONFIRMATIONS)]
    columns = list(zip(*found, strict=True))
    means = [statistics.mean(one.optimism for one in column) for column in columns]
    rows = []
    for name, column, mean in zip(names, columns, means, strict=True):
        error = statistics.stdev(one.optimism for one in column) / len(column) ** 0.5
        reported, fresh, steps = (statistics.mean(values) for values in zip(*column, strict=True))
        left = abs(mean) / abs(means[0])
        verdict = "" if name == "none" else f"{left:.2f}"
        if name == names[1]:
            what = (
                f"width {study.width}, {name}: confirmation leaves {left:.2f} of the optimism "
                f"(target {OPTIMISM_LEFT})."
            )
            verdict += f" {report.judge(left <= OPTIMISM_LEFT, what)}"
        share = steps / (study.trials * study.steps)
        row = [name, f"{reported:.4f}", f"{fresh:.4f}", f"{mean:.4f} ± {error:.4f}", verdict]
        rows.append(shown([*row, f"{share:.3f}"]))
    report.add_table(
        f"Optimism of the reported score, width {study.width}",
        "The reported test loss of the pick, its mean on "
        f"{len(FRESH_SEEDS)} fresh seeds, and the difference with its standard error: means over "
        f"{len(found)} seeds of the sweep. Target, for the default: confirmation leaves at most "
        f"{OPTIMISM_LEFT} of the optimism. Steps are those of all lanes, as a share of a full "
        "run's.",
        ["confirmation", "reported", "fresh", "optimism", "left", "steps"],
        rows,
    )


def report_memory(report: Report, lanes: int, peaks: dict[int, float]) -> None:
    few, many = sorted(peaks)
    growth = peaks[many] / peaks[few]
    what = f"peak memory with {many} trials: {growth:.2f} of that with {few}."
    verdict = report.judge(growth <= MEMORY_GROWTH, what)
    rows = [[str(few), f"{peaks[few]:.0f}", ""], [str(many), f"{peaks[many]:.0f}", ""]]
    rows[1][2] = f"{growth:.3f} {verdict}"
    report.add_table(
        "Memory",
        f"Peak MiB of a process that trains the trials in {lanes} lanes. Target: a growth of at "
        f"most {MEMORY_GROWTH}.",
        ["trials", "MiB", "growth"],
        [shown(row) for row in rows],
    )


def here(function: Callable, *args: Any) -> Any:
    """Instead of a fresh process, which takes longer to start than a quick run."""
    return function(*args)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--only", type=listed(PARTS))
    options.add_argument("--widths", type=lambda text: [int(x) for x in text.split(",")])
    options.add_argument("--ways", type=listed(WAYS))
    options.add_argument("--mode", choices=("auto", "vmap", "map"), help="the lanes' mode to judge")
    options.add_argument("--rounds", type=int)
    args = options.parse_args()
    quick = args.quick
    start = here if quick else in_fresh_process
    images = digits.images()
    mode = args.mode or ("map" if quick else "auto")
    ways = args.ways or (held(mode) if quick else list(WAYS))
    others = [name for name in ways if name not in held(mode)]
    ways = [name for name in ways if name in held(mode)]
    widths = args.widths or ([8] if quick else [32, 128])
    trials, steps, lanes = (32, 20, 32) if quick else (256, 1000, 64)
    studies = [
        Study(digits.task(images, width), width, trials, steps, steps // 10) for width in widths
    ]
    report = Report("Sweeps")
    parts = args.only or PARTS
    for study in studies:
        progress(f"width {study.width}")
        if "speed" in parts:
            costs = measure_all(start, study, ways, args.rounds or (1 if quick else 3))
            costs |= measure_all(start, study, others, 1)
            report_speed(report, study, costs, mode)
        for count, shares in (QUICK_SHARES if quick else PEER_SHARES).items():
            if "peer" in parts:
                fewer, pair = study._replace(trials=count), (f"lanes {mode} + ASHA", PEER)
                costs = measure_all(start, fewer, pair, args.rounds or (1 if quick else 3))
                seeds = range(2 if quick else PEER_SEEDS)
                found = {name: start(bests, name, fewer, seeds) for name in pair}
                report_peer(report, fewer, costs, found, shares)
    study = studies[0]
    if "quality" in parts:
        report_quality(report, study, start(picks, study, 2 if quick else 20, mode))
    if "optimism" in parts:
        found = start(truths, study, 2 if quick else 24, mode, CONFIRMATIONS)
        report_optimism(report, study, found)
    if "memory" in parts:
        short = study if quick else study._replace(steps=100, segment=10)
        counts = (40, 80) if quick else (200, 2000)
        peaks = {
            count: start(peak_mebibytes, short._replace(trials=count), lanes) for count in counts
        }
        report_memory(report, lanes, peaks)
    report.publish(args.record)


if __name__ == "__main__":
    main()
