"""`emorl bench`: every engine does the work it is timed for, the file holds what was measured, and a comparison of two
files says what moved. Times themselves are never tested."""

from __future__ import annotations

import json
import multiprocessing
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import make_bundle
from benchmarks.speed import cases, plan, report, rounds, worker
from benchmarks.speed.bandwidth import step_bytes
from benchmarks.speed.compare import compare, spread
from benchmarks.speed.figures import FORMAT, Figure, Results, read_results, write_results
from benchmarks.speed.rounds import Entrant, take_turns
from benchmarks.speed.targets import TARGETS, judge, judge_main, ratio_text
from benchmarks.speed.worker import InProcess, Worker, WorkerFailed, load
from benchmarks.speed.workload import Setup, Times, Work
from emorl_cli import bench
from emorl_core.errors import InvalidRequest
from tests.modes import closed_files

ROOT = Path(__file__).parent.parent.parent
WORK = Work(requests=2, source=9, new=5, seed=3)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle of the tiny shape, where the suite looks for it."""
    folder = tmp_path_factory.mktemp("models")
    base = folder / "t5-tiny-base"
    make_bundle.write_bundle(folder / "t5-tiny-3", "t5-tiny", objectives=3, rank=cases.RANK, base=base)
    return folder


def test_a_bundle_that_is_made_can_be_read_by_others(models: Path) -> None:
    assert closed_files(models) == []


def setup(models: Path, engine: str, dtype: str = "float32") -> Setup:
    return Setup(engine, str(models / "t5-tiny-3"), dtype, objectives=3, threads=1)


# -- the engines do the same work ------------------------------------------------------------------------------------


def test_this_engine_and_its_steered_peers_make_the_same_tokens(models: Path) -> None:
    """Another text would be another amount of work: these three steer, so with equal weights they agree."""
    made = {engine: load(setup(models, engine)).run(WORK).ids for engine in ("emorl", "published", "peft-mixed")}
    assert made["emorl"] == made["published"] == made["peft-mixed"]
    assert [len(ids) for ids in made["emorl"]] == [WORK.new] * WORK.requests


def test_the_single_models_make_the_same_tokens(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ctranslate2")
    from benchmarks.speed.peers import OneModel

    monkeypatch.setattr(OneModel, "TRIED", (("sdpa", "dynamic"),))
    times = load(setup(models, "one-model")).run(WORK)
    assert times.ids == load(setup(models, "ctranslate2")).run(WORK).ids
    assert len(times.stamps) == WORK.new
    assert list(times.stamps) == sorted(times.stamps)


def test_one_model_keeps_the_fastest_of_the_settings_it_tried(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.speed.peers import OneModel

    seconds = {("sdpa", "dynamic"): 3.0, ("eager", "static"): 1.0}
    monkeypatch.setattr(OneModel, "TRIED", tuple(seconds))
    monkeypatch.setattr(OneModel, "_trial", lambda self, *pair: seconds[pair])
    assert load(setup(models, "one-model")).facts()["settings"] == "eager attention, static cache"


def test_prompts_and_weights_are_of_the_seed_and_weights_can_change_alone() -> None:
    assert WORK.prompts() == Work(2, 9, 5, seed=3).prompts() != WORK.seeded(4).prompts()
    other = replace(WORK, weights_seed=8)
    assert other.prompts() == WORK.prompts()
    assert other.weights(3) != WORK.weights(3)
    assert all(sum(row) == pytest.approx(1.0) and min(row) > 0 for row in WORK.weights(3))
    assert WORK.prompts()[0] != replace(WORK, requests=1).prompts()[0], "a prefill cache would answer it"


def test_times_are_read_as_they_were_taken() -> None:
    times = Times(first=1.0, total=3.0, new=5, stamps=(1.0, 1.5, 2.0, 2.5, 3.0))
    assert times.per_token == 0.5
    assert times.around(3, reach=1) == 0.5


@pytest.mark.slow
def test_a_worker_does_the_same_and_says_in_one_line_what_went_wrong(models: Path) -> None:
    here = load(setup(models, "emorl")).run(WORK).ids
    with Worker(setup(models, "emorl")) as other:
        assert other.call("run", WORK).ids == here
        assert other.resident_bytes() > 0
        with pytest.raises(WorkerFailed, match=r"^emorl: AttributeError: .+ \(worker\.py:\d+\)$"):
            other.call("nonsense")
        assert other.call("run", WORK).ids == here, "a call that failed ends nothing"


def test_an_engine_that_does_not_load_says_why(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker.signal, "signal", lambda *_: None)  # this process keeps its own
    ours, theirs = multiprocessing.Pipe()
    worker._serve(theirs, Setup("emorl", str(models / "nowhere"), "float32", 3, threads=1))
    ok, said = ours.recv()
    assert not ok
    assert said.startswith("BundleError: bundle ")


# -- turns -----------------------------------------------------------------------------------------------------------


def test_engines_take_turns_in_alternating_order_on_equal_work() -> None:
    class Recorder:
        """Stands for a pool and for its workers."""

        def __init__(self) -> None:
            self.asked: list[tuple[str, int]] = []

        def only(self, setups: object) -> None:
            pass

        def __getitem__(self, setup: Setup) -> object:
            return setup

        def run(self, held: Setup, _: Entrant, work: Work) -> Times:
            self.asked.append((held.engine, work.seed))
            return Times(float(len(self.asked)), 2.0, 2)

    pool = Recorder()
    entrants = [Entrant(name, Setup(name, "", "", 1, 1), WORK) for name in "abc"]
    taken = take_turns(pool, entrants, 2, measure=pool.run)  # type: ignore[arg-type]
    assert "".join(name for name, _ in pool.asked) == "cba" + "abc" + "cba"  # the first is the warm-up
    seeds = [seed for _, seed in pool.asked]
    assert seeds[0:1] * 3 + seeds[3:4] * 3 + seeds[6:7] * 3 == seeds
    assert len(set(seeds)) == 3
    assert [[times.first for times in taken[entrant]] for entrant in entrants] == [[4, 9], [5, 8], [6, 7]]


# -- a run -----------------------------------------------------------------------------------------------------------


def _plan(models: Path, out: Path, **options: object) -> plan.Plan:
    defaults = {"shapes": ("t5-tiny",), "dtypes": ("float32",), "cases": ("memory", "again", "prefill"), "rounds": 2}
    return plan.Plan(
        **{**defaults, "peers": (), "threads": 1, "folder": models, "json": out, **options}, in_process=True
    )


def test_a_run_leaves_one_line_with_machine_figures_and_targets(models: Path, tmp_path: Path) -> None:
    out = tmp_path / "run.json"
    results, targets = plan.run(_plan(models, out))
    text = out.read_text()
    document = json.loads(text)
    assert text.count("\n") == 1
    assert set(document) == {"format", "machine", "settings", "figures", "facts", "notes", "targets"}
    assert document["format"] == FORMAT
    assert {"cpu", "cpu_flags", "cores", "threads", "versions", "commit", "measured"} <= set(document["machine"])
    assert all(len(figure["values"]) in (1, 2) for figure in document["figures"])
    assert any("GPU: not measured" in note for note in document["notes"])
    assert len(document["targets"]) == len(TARGETS) + 1
    read = read_results([out])
    assert (read.figures, read.machine, read.facts) == (results.figures, results.machine, results.facts)
    shown = report.terminal(results, targets)
    assert "first token ms" in shown
    assert "emorl, prompt seen before" in shown


def test_a_run_goes_on_with_the_cases_that_its_file_lacks(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run.json"
    plan.run(_plan(models, out, cases=("memory",)))
    begun = []
    for case in plan.CASES:
        monkeypatch.setitem(plan.CASES, case, lambda bench, case=case: begun.append(case))
    plan.run(_plan(models, out, cases=("memory", "again"), resume=True))
    assert begun == ["again"]
    with pytest.raises(InvalidRequest, match="other threads"):
        plan.run(_plan(models, out, resume=True, threads=3))


def test_the_command_measures_and_prints_a_table_and_writes_json_where_it_is_told_to(
    emorl, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "Worker", InProcess)
    argv = ("bench", "--shape", "t5-tiny", "--case", "memory", "--dtype", "float32", "--folder", models)
    for options in ((), ("--json", tmp_path / "new.json")):
        result = emorl(*argv, *options)
        assert result.code == 0
        assert "adapters mb" in result.out
        assert "{" not in result.out
    assert json.loads((tmp_path / "new.json").read_text())["format"] == FORMAT


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--rounds", 0), "--rounds is 0; allowed: a whole number from 1"),
        (("--threads", -1), "--threads is -1"),
        (
            ("--peers", "vllm"),
            "--peers: 'vllm' is unknown; allowed: one-model, published, peft-mixed, ctranslate2, none",
        ),
        (("--json", "there.json"), "exists already"),
        (("--json", "no/such/folder.json"), "its folder does not exist"),
        (("--resume",), "--resume goes on with a file of --json"),
        (("--render", "gone.json"), "gone.json: cannot be read"),
        (("--render", "there.json"), "there.json: has no format emorl-bench/1"),
        (("--compare", "there.json", "there.json", "--threshold", "-1"), "--threshold is -1.0"),
        (("--into", "page.md"), "--into goes with --render"),
    ],
)
def test_refusals(emorl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options, said: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there.json").write_text("{}")
    assert said in emorl("bench", *options).refused()
    assert Path("there.json").read_text() == "{}"


def test_the_command_knows_the_names_of_the_suite() -> None:
    assert tuple(plan.CASES) == bench.CASES
    assert tuple(make_bundle.SHAPES) == bench.SHAPES
    assert cases.PEERS == bench.PEERS


# -- what is made of figures -----------------------------------------------------------------------------------------

OURS = Figure("decode", "emorl", "ms_per_token", (9.0, 10.0, 11.0), "t5-base", "float32", "cpu", 3, 1, 64, 64)
PEER = replace(OURS, engine="one-model", values=(10.0, 10.5, 11.0), objectives=1)


def results(*figures: Figure, **machine: object) -> Results:
    return Results({"cpu": "x", "cores": 2, "threads": 2, "versions": {}, **machine}, {}, list(figures))


def test_a_comparison_tells_movement_from_spread_and_regressions_from_the_rest() -> None:
    old = results(OURS, PEER, replace(OURS, case="long"))
    within = replace(OURS, values=(10.5, 11.5, 12.5))
    assert compare(old, results(within), 0.05).moved == []
    beyond = compare(old, results(replace(OURS, values=(12.0, 13.0, 14.0))), 0.05)
    assert [round(move.worse, 3) for move in beyond.regressions] == [0.3]
    assert len(beyond.missing) == 2
    assert compare(old, results(replace(OURS, values=(12.0, 13.0, 14.0))), 0.5).regressions == []
    assert compare(old, results(replace(OURS, values=(5.0, 6.0, 7.0))), 0.05).regressions == []
    peer = compare(old, results(replace(PEER, values=(20.0, 21.0, 22.0))), 0.05)
    assert (len(peer.moved), peer.regressions) == (1, [])
    assert compare(old, results(OURS, threads=1), 0.05).other_machine


def test_more_tokens_a_second_is_no_regression() -> None:
    old = replace(OURS, metric="tokens_per_s", values=(10.0, 11.0))
    fewer, more = (results(replace(old, values=values)) for values in ((5.0, 5.5), (20.0, 22.0)))
    assert len(compare(results(old), fewer, 0.05).regressions) == 1
    assert compare(results(old), more, 0.05).regressions == []


def test_one_disturbed_round_of_many_hides_nothing() -> None:
    assert spread(replace(OURS, values=(1.0, 1.0, 1.1, 1.0, 90.0))) == (1.0, 1.1)
    assert spread(replace(OURS, values=(1.0, 90.0))) == (1.0, 90.0)


def test_a_regression_ends_the_command_with_one(emorl, tmp_path: Path) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    write_results(old, results(OURS, PEER), [])
    write_results(new, results(replace(OURS, values=(12.0, 13.0, 14.0)), PEER), [])
    slower = emorl("bench", "--compare", old, new)
    assert slower.code == 1
    assert "ms per token: 10.00 (9.00-11.00) -> 13.00 (12.00-14.00), 30.0% worse" in slower.out
    assert "1 regression beyond 5%" in slower.out
    faster = emorl("bench", "--compare", new, old)
    assert faster.code == 0
    assert "no regression" in faster.out


def test_targets_are_ratios_of_medians_with_the_spread_of_the_rounds() -> None:
    rows = judge(results(OURS, PEER), "float32")
    assert (rows[0]["value"], rows[0]["min"], rows[0]["max"]) == (10.0 / 10.5, 9.0 / 10.0, 11.0 / 11.0)
    assert rows[0]["verdict"] == "met"
    assert {row["verdict"] for row in rows[1:]} == {"not measured"}
    slower = replace(OURS, values=(11.5, 11.6, 11.7))
    assert judge(results(slower, PEER), "float32")[0]["verdict"] == "within must"
    assert judge(results(replace(OURS, values=(20.0,)), PEER), "float32")[0]["verdict"] == "not met"
    compiled = judge(results(OURS, PEER, replace(PEER, engine="one-model compiled", values=(8.0,))), "float32")[0]
    assert (compiled["value"], compiled["name"].rpartition(" / ")[2]) == (1.25, "`one-model` (one-model compiled)")
    assert judge(results(OURS, PEER), "bfloat16")[0]["verdict"] == "not measured"
    assert ratio_text({"value": 0.02, "min": 0.01, "max": 0.04}) == "1/50.0 (1/100.0-1/25.0)"


def test_parts_of_a_run_are_rendered_as_one_into_a_page(emorl, tmp_path: Path) -> None:
    parts = [tmp_path / "a.json", tmp_path / "b.json"]
    write_results(parts[0], results(OURS), [])
    write_results(parts[1], results(PEER), [])
    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    for _ in range(2):  # the second time changes nothing
        assert emorl("bench", "--render", *parts, "--into", page).code == 0
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert "| one-model | 1 | 10.50 (10.00-11.00) |" in text
    page.write_text("no marks")
    assert "has not both marks" in emorl("bench", "--render", parts[0], "--into", page).refused()
    write_results(parts[1], results(PEER, cpu="y"), [])
    assert "another machine" in emorl("bench", "--render", *parts).refused()


def test_the_page_shows_the_figures_of_the_file_it_names() -> None:
    results = read_results([ROOT / "benchmarks" / "measured.json"])
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    between = page.partition(report.BEGIN)[2].partition(report.END)[0]
    assert between == f"\n\n{report.markdown(results, judge_main(results))}\n"


def test_bytes_of_a_step_are_those_of_the_matrices(models: Path) -> None:
    """Held against the checkpoint itself: all decoder matrices but cross-attention's k and v, and the tied head."""
    from safetensors import safe_open

    with safe_open(models / "t5-tiny-base" / "model.safetensors", framework="pt") as tensors:
        elements = {name: tensors.get_tensor(name).numel() for name in tensors.keys()}  # noqa: SIM118
    read = [
        count
        for name, count in elements.items()
        if name == "shared.weight"
        or (
            name.startswith("decoder.block")
            and not any(part in name for part in ("norm", "bias", "EncDecAttention.k", "EncDecAttention.v"))
        )
    ]
    assert step_bytes("one-model", "t5-tiny", "float32", objectives=1, rank=8) == 4 * sum(read)
    with safe_open(models / "t5-tiny-3/adapters/empathy/adapter_model.safetensors", framework="pt") as tensors:
        low_rank = sum(
            tensors.get_tensor(name).numel()
            for name in tensors.keys()  # noqa: SIM118
            if "decoder" in name and "EncDecAttention.k" not in name and "EncDecAttention.v" not in name
        )
    assert step_bytes("emorl", "t5-tiny", "bfloat16", objectives=3, rank=8) == 2 * (sum(read) + 3 * low_rank)
