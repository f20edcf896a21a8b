"""The benchmarks run and count rightly; how fast anything is, is for their records to tell."""

import argparse
import inspect
import math
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from legs import LEGS

import optfn

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
harness, step_time, every_optimizer = map(
    import_module, ("harness", "step_time", "every_optimizer")
)

# Forms of cells.
COUNT = r"[\d,]+ [+-][\d,]+"
NUMBER = r"\d+(\.\d+)?"
JUDGED = r"\d+\.\d+ (pass|MISS)"


def run(script: str, *options: str) -> str:
    """The report that a script prints."""
    command = [sys.executable, "-W", "error", str(BENCHMARKS / script), *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def table(report: str, heading: str) -> list[list[str]]:
    """The cells of the table under a heading, without its header."""
    section = report.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def matches(row: list[str], *patterns: str) -> bool:
    return all(re.fullmatch(p, cell) for p, cell in zip(patterns, row, strict=True))


# The numbers.


@pytest.mark.parametrize("algorithm", step_time.ALGORITHMS)
def test_compiled_facts_are_no_worse_than_optax(algorithm):
    for how, (ours, theirs, counting) in step_time.measure_facts(algorithm, "tiny").items():
        assert not step_time.excess(ours, theirs, counting), how


def test_the_last_digit_of_a_float32_is_no_difference():
    base = step_time.Facts(643_939_712, 447, 0)
    assert not step_time.excess(base._replace(bytes_accessed=base[0] + 64), base)
    assert step_time.excess(base._replace(bytes_accessed=base[0] + 128), base)
    assert step_time.excess(base._replace(fusions=448), base) == ["fusions +1"]
    assert step_time.excess(base._replace(temporaries=8), base) == ["temporaries +8"]


def test_only_the_step_counter_is_an_excuse():
    """It is one fusion of scalars, and where optax counts its steps too there is no excuse."""
    counting = {a: step_time.measure_facts(a, "one_8")["closed over"][2] for a in ("sgd", "adam")}
    assert counting["adam"] == (0, 0, 0)
    assert 0 < counting["sgd"].bytes_accessed <= 32
    assert counting["sgd"][1:] == (1, 0)


def test_facts_of_known_programs():
    """One pass over three arrays; and two results each of which needs the other's old value."""

    def negate(params, grads, state):
        return params - grads, state

    def exchange(params, grads, state):
        return params - state, params + grads

    shape = jax.ShapeDtypeStruct((64,), jnp.float32)
    size = 64 * 4
    facts = step_time.facts_of(step_time.Variant(lambda params: (), negate), shape)
    assert facts == (3 * size, 1, 0) or facts == (3 * size, 0, 0)
    facts = step_time.facts_of(step_time.Variant(lambda params: params, exchange), shape)
    assert facts.temporaries == 2 * size
    assert facts.bytes_accessed >= 10 * size


def test_the_targets_are_those_that_were_set():
    assert step_time.trace_target("amsgrad", "equal_16") == 0.5
    assert step_time.trace_target("adamw", "gpt2") == 0.7
    assert step_time.trace_target("sgd", "gpt2") == 1.3
    assert step_time.trace_target("lion", "distinct") == 1.5
    assert step_time.trace_target("adam", "one_16m") is None


def test_trees_are_what_their_names_say():
    leaves = {name: jax.tree.leaves(make()) for name, make in harness.TREES.items()}
    sizes = {name: sum(math.prod(leaf.shape) for leaf in tree) for name, tree in leaves.items()}
    assert sizes["one_16m"] == 2**24
    assert [leaf.shape for leaf in leaves["equal_64x64"]] == [(64, 64)] * 400
    assert [leaf.shape for leaf in leaves["equal_16"]] == [(16,)] * 400
    assert len({leaf.shape for leaf in leaves["distinct"]}) == len(leaves["distinct"]) == 400
    # GPT-2 has 12 width^2 + 13 width numbers a layer, two embeddings and a last norm.
    assert sizes["gpt2"] == 12 * (12 * 128**2 + 13 * 128) + (50257 + 1024) * 128 + 2 * 128


def test_interleaved_takes_turns_in_changing_order():
    turns = []

    def timer(name, seconds):
        return lambda: turns.append(name) or seconds

    seconds = harness.interleaved({"a": timer("a", 1.0), "b": timer("b", 2.0)}, 20)
    assert seconds == {"a": [1.0] * 20, "b": [2.0] * 20}
    rounds = list(zip(turns[::2], turns[1::2], strict=True))
    assert set(rounds) == {("a", "b"), ("b", "a")}


def test_ratio_compares_within_a_round():
    """A round that is slow for both and one that is slow for the peer alone change nothing."""
    seconds = {"a": [2.0, 300.0, 2.0], "b": [1.0, 150.0, 100.0]}
    assert harness.ratio(seconds, "a", "b") == 2.0


def test_spread_is_the_largest_factor_either_way():
    assert harness.spread([0.8, 1.1]) == pytest.approx(1.25)
    assert harness.spread([0.95, 1.25]) == pytest.approx(1.25)
    assert harness.spread([1.0]) == 1.0


def test_fresh_process_tells_the_error():
    with pytest.raises(RuntimeError, match="KeyError: 'no such tree'"):
        harness.in_fresh_process(step_time.measure_facts, "sgd", "no such tree")


def test_a_choice_names_what_it_does_not_know():
    choice = harness.listed(["oak", "elm"])
    assert choice("elm,oak") == ["elm", "oak"]
    with pytest.raises(argparse.ArgumentTypeError, match="'ash' is none of oak, elm"):
        choice("oak,ash")


def test_what_was_measured_is_kept_with_its_settings(tmp_path):
    calls = []

    def measure(*args):
        calls.append(args)
        return {"losses": [[1.5, math.nan], [0.25, math.inf]]}

    folder = tmp_path / "results"
    first = harness.kept(folder, "adam", {"steps": 3}, measure, 1, 2)
    again = harness.kept(folder, "adam", {"steps": 3}, measure, 1, 2)
    np.testing.assert_array_equal(first["losses"], again["losses"])
    assert calls == [(1, 2)] and [path.name for path in folder.iterdir()] == ["adam.json"]
    with pytest.raises(ValueError, match=r"adam.json has the settings {'steps': 3}, wanted"):
        harness.kept(folder, "adam", {"steps": 4}, measure)
    harness.kept(None, "adam", {"steps": 3}, measure)
    assert len(calls) == 2


def test_report_says_first_what_fell_short(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/some/where/script.py", "--record=/some/where/else.md", "x"])
    report = harness.Report("Title")
    cells = [report.judge(True, "good"), report.judge(False, "bad")]
    report.add_table("Table", "Note.", ["one", "two"], [cells])
    report.publish(tmp_path / "record.md")
    text = (tmp_path / "record.md").read_text()
    assert capsys.readouterr().out.strip() == text.strip()
    assert table(text, "Table") == [["pass", "MISS"]]
    assert text.index("- bad") < text.index("## Table")
    assert "good" not in text
    assert "`python benchmarks/script.py --record=else.md x`" in text
    assert "some" not in text


# The scripts.


@pytest.fixture(scope="module")
def step_time_report():
    return run("step_time.py", "--quick", "--algorithms", "adam")


@pytest.mark.slow
def test_step_time_names_its_conditions(step_time_report):
    assert "`python benchmarks/step_time.py --quick --algorithms adam`" in step_time_report
    for part in ("Date: 20", "Python 3.", "jax ", "jaxlib ", "optax ", "optfn ", "cores"):
        assert part in step_time_report.split("## What fell short")[0]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["closed over", "as data"])
def test_step_time_reports_facts(step_time_report, how):
    (row,) = table(step_time_report, f"Compiled facts, hyperparameters {how}")
    assert matches(row, "tiny", "adam", COUNT, COUNT, COUNT, "pass|MISS|counter")


@pytest.mark.slow
def test_step_time_reports_seconds(step_time_report):
    (row,) = table(step_time_report, "Step time")
    assert matches(row, "tiny", "adam", NUMBER, NUMBER, JUDGED, JUDGED)
    (row,) = table(step_time_report, "Trace and lowering")
    assert matches(row, "tiny", "adam", NUMBER, "none", NUMBER, NUMBER)
    (row,) = table(step_time_report, "Dispatch")
    assert matches(row, "adam", *[NUMBER] * 6, JUDGED, JUDGED)


@pytest.mark.slow
def test_step_time_says_every_miss_first(step_time_report):
    short = step_time_report.split("## What fell short")[1].split("\n## ")[0]
    assert short.count("\n- ") == max(1, step_time_report.count("MISS"))


@pytest.mark.slow
def test_recompiles_counts_traces_and_compilations():
    """In optfn one trace whatever the form; in optax one for each rate, if it is closed over."""
    heading = "Traces / compilations / seconds"
    rows = {row[0]: row[1:] for row in table(run("recompiles.py", "--quick"), heading)}
    for name, cells in rows.items():
        counts = [tuple(re.findall(r"(\d+) /", cell)) for cell in cells]
        if name.startswith("optfn"):
            assert counts == [("1", "1")] * 4, name
    closed_over = [cell.split()[0] for cell in rows["optax, jax.jit, closed over"]]
    assert closed_over == ["3"] * 4
    *numbers, peak = rows["optax, jax.jit, inject_hyperparams"]
    assert [cell.split()[0] for cell in numbers] == ["1"] * 3
    assert peak == "refused: TracerBoolConversionError"


def test_every_shared_optimizer_is_measured():
    """But for those that need more than gradients and a loss, and those of matrices."""
    shared = {name for name, leg in LEGS.items() if getattr(optax, name, None) or leg.optax}
    elsewhere = {"noisy_sgd", "sophia", "lbfgs", "muon", "galore"}
    assert shared - elsewhere == set(every_optimizer.OPTIMIZERS)


@pytest.mark.slow
def test_lbfgs_reports_evaluations_and_seconds():
    text = run("lbfgs.py", "--quick")
    (row,) = table(text, "Evaluations")
    reached = "[0-2]/2"
    counts = [r"\d+|nan"] * 3
    judged = rf"{JUDGED}|none to compare"
    assert matches(row, "beale", *counts, f"{reached} (pass|MISS)", *[reached] * 2, *[judged] * 2)
    (row,) = table(text, "Seconds")
    assert matches(row, "beale", NUMBER, JUDGED, NUMBER, JUDGED)
    (row,) = table(text, "Leaves")
    assert matches(row, NUMBER, NUMBER, JUDGED)


@pytest.mark.slow
def test_minimize_reports_evaluations_values_and_conditions():
    assert len(import_module("minimize").PROBLEMS) >= 40
    *rows, all_of_them = table(run("minimize.py", "--quick"), "Evaluations")
    reached = "[0-2]/2"
    judged = f"{NUMBER} (pass|MISS)"
    for row, name in zip(rows, ("hs5", "beale"), strict=True):
        assert row[0] == name and re.fullmatch(rf"{reached} (pass|MISS)", row[3])
        assert re.fullmatch(judged, row[6]) and float(row[7]) <= 1.1e-6
    assert all_of_them[0] == "all"


@pytest.mark.slow
def test_every_optimizer_reports_steps_and_traces_and_their_means():
    text = run("every_optimizer.py", "--quick")
    rows = table(text, "Every optimizer")
    for row, name in zip(rows, ("adam", "polyak_sgd"), strict=True):
        assert matches(row, "tiny", name, NUMBER, NUMBER, JUDGED, JUDGED)
    for row, what in zip(table(text, "Geometric means"), ("time", "trace"), strict=True):
        assert matches(row, what, NUMBER, JUDGED)


# The problems.


@pytest.mark.slow
def test_problems_tells_who_solves_what():
    """From every seed, at the best rate; and first who does not."""
    options = ("--optimizers", "sgd,polyak_sgd,sophia,schedule_free_sgd,dog")
    report = run("problems.py", "--quick", *options)
    assert "small sweep, equal for all: 4 rates from 1e-4 to 10" in report
    rows = {tuple(row[:2]): row[2:] for row in table(report, "Every problem")}
    assert len(rows) == 2 * 5
    assert matches(rows["quadratic", "sgd"], "2/2", NUMBER, f"{NUMBER}( \\(edge\\))?")
    assert matches(rows["quadratic", "sophia"], "0/2", "", "")
    solved = {row[0]: row[1:] for row in table(report, "Optimizers")}
    assert matches(solved["sgd"], "1 MISS", NUMBER)
    assert matches(solved["sophia"], "0 MISS", "")
    assert "- sgd: 1 of 2 not solved: sparse." in report.split("## Conditions")[0]


def test_best_rate_serves_most_seeds_and_then_soonest():
    module = import_module("problems")
    values = np.array([0.01, 0.1, 1.0, 10.0])
    hits = np.array([[0, 3, 4], [9, 7, 8], [5, 6, 60], [0, 0, 0]])
    found = module.best(hits, values)
    assert found == (3, True, 6.0, 1.0, False)
    assert module.best(hits[:1], values[:1]) == (2, False, 3.5, 0.01, True)
    assert module.best(hits[3:], values[3:]) == (0, False, math.inf, 10.0, True)


def test_problems_sweeps_every_optimizer_of_the_tables():
    module = import_module("problems")
    named = {name.split()[0] for name in cases.OPTIMIZERS}
    functions = {name for name in named if inspect.isfunction(getattr(optfn, name, None))}
    # L-BFGS and L-BFGS-B have benchmarks of their own, and MuonClip is Muon without attention.
    assert functions - {"lbfgs", "lbfgsb", "muon_clip"} == set(module.OPTIMIZERS)
    of_matrices = {n for n in functions if ".matrix." in getattr(optfn, n).__module__}
    assert of_matrices - {"muon_clip"} == set(module.OF_MATRICES)


def test_problems_know_which_have_matrices():
    """A vector has none, and neither has a tree of vectors."""
    module = import_module("problems")
    with_matrices = {problem.name for problem in module.ALL if module.has_matrices(problem)}
    assert with_matrices == {"factorization", "classifier", "recurrent", "attention"}


@pytest.mark.slow
def test_problems_measures_matrix_optimizers_where_there_are_matrices(tmp_path):
    """And keeps what it measured, which another call reads."""
    options = ("--quick", "--optimizers", "adam,muon", "--problems", "quadratic,factorization")
    report = run("problems.py", *options, "--results", str(tmp_path))
    assert run("problems.py", *options, "--results", str(tmp_path)) == report
    rows = [tuple(row[:2]) for row in table(report, "Every problem")]
    assert rows == [("quadratic", "adam"), ("factorization", "adam"), ("factorization", "muon")]
    assert [row[0] for row in table(report, "Optimizers")] == ["adam"]
    compared = table(report, "Optimizers on problems with matrices")
    assert {row[0] for row in compared} == {"adam", "muon"}


@pytest.mark.slow
def test_flatten_reports_steps_traces_and_compilations():
    (row,) = table(run("flatten.py", "--quick"), "Flattened against plain")
    assert matches(row, "tiny", "adam", *[NUMBER] * 7)


# Storage.


@pytest.mark.slow
def test_storage_reports_steps_and_training(tmp_path):
    options = ("--quick", "--only", "steps,digits", "--results", str(tmp_path))
    report = run("storage.py", *options)
    storages = ["float32", "bf16", "bf16, stochastic", "int8", "fp8", "int4", "int8, 24-bit params"]
    steps = table(report, "Steps on tiny")
    assert [row[0] for row in steps] == [*storages, "bfloat16 params, stochastic"]
    assert float(steps[0][1]) == 1
    assert [row[0] for row in table(report, "Training: digits")] == [
        name for name in storages if name != "bf16"
    ]
    assert run("storage.py", *options) == report


# A device.


@pytest.mark.slow
def test_device_reports_all_that_it_measures():
    report = run("device.py", "--quick", "--only", "steps,muon,storage")
    assert table(report, "Steps against optax")[0][0] == "adamw on tiny"
    assert table(report, "Muon against optax")[0][0] == "muon on tiny"
    rows = table(report, "Stored state on tiny")
    assert rows[0][0] == "float32" and rows[-1][0] == "int8, in the host"


# Text.


def test_text_tunes_the_optimizers_that_transformers_are_trained_with():
    """All of them, each matrix optimizer on the same matrices, at any point of its space."""
    module = import_module("text")
    every = module.optimizers(20, optfn.adamw(1e-3))
    assert set(every) == {
        *("adamw", "lion", "ademamix", "schedule_free_adamw", "muon", "normuon", "muonh"),
        *("soap", "kl_soap", "shampoo", "kron", "scion"),
    }
    of_text = module.task(module.QUICK)
    params = jax.eval_shape(of_text.init, jax.random.key(0))
    matrices = {}
    for name, (make, space) in every.items():
        session = module.sweep.sobol().start(space, 2, 0)
        for point in session.ask(2):
            summary = optfn.summary(make(**point), params)
        matrices[name] = {row.path for row in summary.rows if row.view is not None}
    plain = {"adamw", "lion", "ademamix", "schedule_free_adamw"}
    assert not any(matrices[name] for name in plain)
    of_layers = {path for path in matrices["muon"] if path.endswith("kernel")}
    assert of_layers == matrices["muon"] and len(of_layers) == 6
    assert all(matrices[name] >= of_layers for name in every.keys() - plain)


def test_text_finds_the_step_of_a_loss():
    """Between evaluations on a line, and infinite where a run does not get there or diverges."""
    steps_to = import_module("text").steps_to
    assert steps_to(2.0, [10, 20, 30], [3.0, 2.5, 1.5]) == 25.0
    assert steps_to(3.0, [10, 20, 30], [3.0, 2.5, 1.5]) == 10.0
    assert steps_to(2.0, [10, 20, 30], [1.0, 9.0, 1.0]) == 10.0
    assert steps_to(1.0, [10, 20, 30], [3.0, 2.5, 1.5]) == math.inf
    assert steps_to(1.0, [10, 20, 30], [3.0, math.nan, math.nan]) == math.inf


def test_text_calls_a_tie_what_the_interval_allows():
    """Of two values the half width is 12.7 standard errors, of three 4.30."""
    Interval = import_module("text").Interval
    assert Interval.of([1.0, 3.0]) == pytest.approx((2.0, 12.706), rel=1e-4)
    assert Interval.of([1.0, 2.0, 3.0]) == pytest.approx((2.0, 4.3027 / 3**0.5), rel=1e-4)
    verdicts = {
        (1.0, 2.0, 3.0): "tie",
        (-1.2, -1.0, -0.8): "better",
        (0.8, 1.0, 1.2): "worse",
        (1.0, math.inf, 1.0): "worse",
        (1.0, math.nan, 1.0): "worse",
        (0.0, 0.0, 0.0): "tie",
    }
    for values, verdict in verdicts.items():
        assert Interval.of(values).verdict("better", "worse") == verdict, values


def test_text_races_seed_by_seed():
    """Against AdamW of the same seed, with steps as costly as they are."""
    module = import_module("text")

    def outcome(*losses):
        return module.Outcome({}, [], 0, [10, 20], losses, 0.0)

    race = module.Race.of(outcome([2.0, 1.0], [5.0, 1.0]), outcome([3.0, 2.0], [4.0, 3.0]), 1.5)
    np.testing.assert_array_equal(race.above, [-1.0, -2.0])
    np.testing.assert_array_equal(race.steps, [10.0, 15.0])
    np.testing.assert_array_equal(race.later, [1.5 * 10 - 20, 1.5 * 15 - 20])


@pytest.mark.slow
def test_text_races_and_keeps_what_it_measured(tmp_path):
    options = ("--quick", "--optimizers", "muonh", "--results", str(tmp_path))
    report = run("text.py", *options)
    assert run("text.py", *options) == report
    interval = rf"-?{NUMBER} ± {NUMBER}"
    rows = {row[0]: row[1:] for row in table(report, "To AdamW's loss")}
    zero = "0.000 ± 0.000"
    assert matches(rows["adamw"], interval, zero, "", interval, NUMBER, interval, "")
    cells = "better|tie|worse", f"{interval}|by [01] of 2 seeds", NUMBER, f"({interval})?"
    assert matches(rows["muonh"], interval, interval, *cells, "faster|tie|slower")
    tuned = {row[0]: row[1:] for row in table(report, "Tuning")}
    assert tuned["adamw"][1] == "0.0003 to 0.03" and tuned["muonh"][2:4] == ["none", ""]


# Sweeps.


@pytest.fixture(scope="module")
def sweep_report():
    return run("sweep.py", "--quick")


@pytest.mark.slow
def test_sweep_reports_the_chain(sweep_report):
    rows = table(sweep_report, "The chain, width 8")
    assert [row[0] for row in rows] == [
        "a fresh jit for every point",
        "hyperparameters as an argument",
        "ASHA",
        "lanes",
    ]
    assert all(matches(row[1:], *[NUMBER] * 3) for row in rows)
    assert rows[0][2:] == ["1.00", "1.00"]


@pytest.mark.slow
def test_sweep_trains_the_same_every_way(sweep_report):
    """To the four digits that are shown."""
    rows = {row[0]: row for row in table(sweep_report, "Every way, width 8")}
    assert set(rows) == {
        *("fresh jit", "argument", "argument + ASHA"),
        *("lanes map", "lanes map + ASHA"),
    }
    assert rows["argument"][-1] == rows["lanes map"][-1]
    assert rows["argument"][-2] == rows["lanes map"][-2] == "1.000"


@pytest.mark.slow
def test_sweep_compiles_nothing_for_another_seed(sweep_report):
    """With ASHA it may: to leave idle lanes behind is another program."""
    rows = {row[0]: row for row in table(sweep_report, "Every way, width 8")}
    assert rows["lanes map"][6] == "0 pass"
    assert re.fullmatch(r"\d+ (pass|MISS)", rows["lanes map + ASHA"][6])


@pytest.mark.slow
def test_sweep_reports_the_fairest_peer(sweep_report):
    rows = table(sweep_report, "Against the fairest peer, width 8, 32 trials")
    assert [row[0] for row in rows] == ["cold", "warm"]
    assert all(matches(row[1:], NUMBER, NUMBER, JUDGED, NUMBER, NUMBER) for row in rows)
    (row,) = table(sweep_report, "Best scores of both, width 8, 32 trials")
    assert matches(row, NUMBER, NUMBER, JUDGED, r"\d", r"\d")
    assert int(row[3]) + int(row[4]) == 2


@pytest.mark.slow
def test_sweep_reports_quality_optimism_and_memory(sweep_report):
    rows = table(sweep_report, "Quality of ASHA, width 8")
    assert len(rows) == 4 and all(row[2] in ("pass", "MISS") for row in rows)
    signed = r"-?\d+\.\d+"
    plain, *confirmed = table(sweep_report, "Optimism of the reported score, width 8")
    assert matches(plain, "none", NUMBER, NUMBER, rf"{signed} ± {NUMBER}", "", NUMBER)
    for row, verdict in zip(confirmed, (JUDGED, NUMBER), strict=True):  # the default is judged
        assert matches(row[1:], NUMBER, NUMBER, rf"{signed} ± {NUMBER}", verdict, NUMBER)
        assert float(row[3].split()[0]) == pytest.approx(float(row[2]) - float(row[1]), abs=2e-4)
    few, many = table(sweep_report, "Memory")
    assert matches(few, "40", NUMBER, "") and matches(many, "80", NUMBER, JUDGED)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fresh jit + Optuna", "injected + ASHA"])
def test_sweep_ways_that_quick_leaves_out(name):
    """They too come to where the loop comes, with the same policy."""
    digits, ways = import_module("digits"), import_module("sweep_ways")
    study = ways.Study(digits.task(digits.images(), 8), 8, 20, 20, 2)
    (cost, *_) = ways.measure(name, study)
    peer = ways.in_turns(ways.argument, False, study)
    assert cost.best >= 0.999 * peer(digits.points(study.trials, 0), 0).best
    assert 2 <= cost.steps <= 20
