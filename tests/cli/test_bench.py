"""`emorl bench`: every engine does the work it is timed for, the file holds what was measured, and a comparison of two
files says what moved. Times themselves are never tested."""

from __future__ import annotations

import json
import multiprocessing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import make_bundle
from benchmarks.speed import cases, causal_base, plan, processes, report, rounds, worker
from benchmarks.speed.bandwidth import step_bytes
from benchmarks.speed.compare import compare, spread
from benchmarks.speed.figures import FORMAT, Figure, Results, read_results, write_results
from benchmarks.speed.rounds import Entrant, take_turns
from benchmarks.speed.targets import TARGETS, judge, judge_main, ratio_text
from benchmarks.speed.worker import InProcess, Worker, WorkerFailed, load
from benchmarks.speed.workload import Setup, Times, Work
from emorl_cli import bench
from emorl_core.errors import InvalidRequest, UnsupportedModel
from emorl_core.machine.precision import fbgemm_available
from tests.modes import closed_files

ROOT = Path(__file__).parent.parent.parent
WORK = Work(requests=2, source=9, new=5, seed=3)
TINY = ("t5-tiny", "llama-tiny")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle of each tiny shape, where the suite looks for it."""
    folder = tmp_path_factory.mktemp("models")
    for shape in TINY:
        base = folder / f"{shape}-base"
        make_bundle.write_bundle(folder / f"{shape}-3", shape, objectives=3, rank=cases.RANK, base=base)
    return folder


def test_a_bundle_that_is_made_can_be_read_by_others(models: Path) -> None:
    assert closed_files(models) == []


def setup(models: Path, engine: str, dtype: str = "float32", shape: str = "t5-tiny", **options: Any) -> Setup:
    return Setup(engine, str(models / f"{shape}-3"), dtype, objectives=3, threads=1, **options)


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def strong(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the bundle of a decoder whose every part moves the choice of a token: with the small weights that
    models start from, the tied head says the last token again, whatever attention did."""
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp(request.param)
    base = folder / "base"
    torch.manual_seed(0)
    config = causal_base.config_of(
        "llama-tiny", model_type=request.param, initializer_range=0.15, rope_theta=1e5, tie_word_embeddings=False
    )
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(base)
    make_bundle.write_tokenizer(base, config.vocab_size)
    make_bundle.write_bundle(folder / "llama-tiny-3", "llama-tiny", rank=cases.RANK, base=base)
    return folder


# -- the engines do the same work ------------------------------------------------------------------------------------


def test_this_engine_and_its_steered_peers_make_the_same_tokens(models: Path) -> None:
    """Another text would be another amount of work: these three steer, so with equal weights they agree."""
    made = {engine: load(setup(models, engine)).run(WORK).ids for engine in ("emorl", "published", "peft-mixed")}
    assert made["emorl"] == made["published"] == made["peft-mixed"]
    assert [len(ids) for ids in made["emorl"]] == [WORK.new] * WORK.requests


def test_the_single_models_make_the_same_tokens(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ctranslate2")
    from benchmarks.speed.engines.transformers_models import OneModel

    monkeypatch.setattr(OneModel, "TRIED", (("sdpa", "dynamic"),))
    times = load(setup(models, "one-model")).run(WORK)
    assert times.ids == load(setup(models, "ctranslate2")).run(WORK).ids
    assert len(times.stamps) == WORK.new
    assert list(times.stamps) == sorted(times.stamps)


def test_steered_decoders_make_the_same_tokens(models: Path) -> None:
    made = [load(setup(models, engine, shape="llama-tiny")).run(WORK) for engine in ("emorl", "peft-mixed")]
    assert made[0].ids == made[1].ids
    assert [len(ids) for ids in made[0].ids] == [WORK.new] * WORK.requests


@pytest.mark.parametrize("peer", ["ctranslate2", "llama.cpp"])
def test_a_single_decoder_makes_the_same_tokens_in_every_engine(
    strong: Path, peer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip({"ctranslate2": "ctranslate2", "llama.cpp": "xllamacpp"}[peer])
    from benchmarks.speed.engines.transformers_models import OneModel

    monkeypatch.setattr(OneModel, "TRIED", (("sdpa", "dynamic"),))
    work = replace(WORK, new=16)
    ids = load(setup(strong, "one-model", shape="llama-tiny")).run(work).ids
    assert len({*ids[0], *ids[1]}) > work.new, "a model that says one token again and again shows nothing"
    assert load(setup(strong, peer, shape="llama-tiny", slots=2)).run(work).ids == ids


@pytest.mark.parametrize("dtype", ["bfloat16", "q8_0"])
def test_llama_cpp_runs_the_formats_that_are_measured(models: Path, dtype: str) -> None:
    pytest.importorskip("xllamacpp")
    engine = load(setup(models, "llama.cpp", dtype, shape="llama-tiny", slots=2))
    assert [len(ids) for ids in engine.run(WORK).ids] == [WORK.new] * WORK.requests
    assert "xllamacpp" in engine.facts()["settings"]


def test_llama_cpp_adds_up_the_same_adapters(strong: Path) -> None:
    pytest.importorskip("xllamacpp")
    work = replace(WORK, new=16)
    ours = load(setup(strong, "emorl", shape="llama-tiny"))
    theirs = load(setup(strong, "llama.cpp adapters", shape="llama-tiny", slots=2)).run(work).ids
    assert theirs == ours.run_summed(work).ids
    assert theirs != ours.run_base(work).ids


@pytest.mark.parametrize("folder", ["llama-tiny-3", "llama-tiny-3-on-reply"])
def test_a_second_turn_is_the_reply_to_the_whole_conversation(strong: Path, folder: str) -> None:
    """It finds most of the prompt computed, and says the same as an engine that reads all of it."""
    work = Work(requests=2, source=64, new=8, seed=3)
    made = replace(setup(strong, "emorl", shape="llama-tiny"), folder=str(strong / folder))
    if not (strong / folder).exists():
        make_bundle.write_bundle(strong / folder, "llama-tiny", rank=cases.RANK, base=strong / "base", on_reply=True)
    engine, other = load(made), load(made)
    asked: list[list[list[int]]] = []
    computed = 0
    original = other._run

    def noted(work: Work, weights: Any, combine: Any = "hidden", prompts: Any = None) -> Times:
        nonlocal computed
        asked.append(prompts)
        before = other._ensemble.engine.stats.prefill_tokens_computed
        times = original(work, weights, combine, prompts)
        computed = other._ensemble.engine.stats.prefill_tokens_computed - before
        return times

    other._run = noted
    ids = other.run_second_turn(work).ids
    assert [len(prompt) for prompt in asked[1]] == [work.source] * work.requests
    weights = [(0.0, *each) for each in work.weights(3)]
    assert engine._run(work, weights, prompts=asked[1]).ids == ids
    assert computed < 0.7 * engine._ensemble.engine.stats.prefill_tokens_computed


def test_a_server_with_its_default_settings_is_an_engine_too(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.speed.engines import serve

    def none() -> None:
        raise UnsupportedModel("no compiler", param="compile")

    monkeypatch.setattr(serve, "check_compiler", none)  # so that nobody waits for a compiled step
    engine = load(setup(models, "emorl serve", shape="llama-tiny"))
    try:
        times = engine.run(WORK)
        assert [len(ids) for ids in times.ids] == [WORK.new] * WORK.requests
        assert len(times.stamps) == WORK.new
        assert list(times.stamps) == sorted(times.stamps)
        assert engine.facts()["settings"].startswith("default settings, ")
    finally:
        engine.close()


def test_copied_tokens_are_those_of_the_demo_and_its_lack_is_noted(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "default_folder", lambda: tmp_path / "demo")
    measured, _ = plan.run(_plan(models, tmp_path / "run.json", shapes=("llama-tiny",), cases=("copied",)))
    assert measured.figures == []
    (note,) = (note for note in measured.notes if "Copied" in note)
    assert "`emorl demo --build-only`" in note


@pytest.mark.parametrize("shape", TINY)
def test_the_base_alone_and_summed_adapters_run_in_the_same_engine(models: Path, shape: str) -> None:
    engine = load(setup(models, "emorl", shape=shape))
    made = {name: getattr(engine, name)(WORK).ids for name in ("run", "run_summed", "run_base")}
    assert made["run_base"] not in (made["run"], made["run_summed"])
    if shape == "llama-tiny":  # T5's adapters are too weak here for the two ways to differ
        assert made["run"] != made["run_summed"]
    assert {len(ids) for each in made.values() for ids in each} == {WORK.new}


@pytest.mark.skipif(not fbgemm_available(), reason="int8 needs FBGEMM")
def test_an_int8_base_says_so(models: Path) -> None:
    engine = load(setup(models, "emorl", shape="llama-tiny", quantize="int8"))
    assert engine.facts()["settings"] == "matrices in int8"
    whole = load(setup(models, "emorl", shape="llama-tiny"))
    assert engine.facts()["parameter_bytes"]["base"] < whole.facts()["parameter_bytes"]["base"]


def test_one_model_keeps_the_fastest_of_the_settings_it_tried(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.speed.engines.transformers_models import OneModel

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
            "--peers: 'vllm' is unknown; allowed: one-model, published, peft-mixed, ctranslate2, llama.cpp, none",
        ),
        (
            ("--shape", "smollm2-135m", "--peers", "published"),
            "--peers: published runs no smollm2-135m; leave it out, or name another shape",
        ),
        (
            ("--shape", "llama-tiny", "--case", "decode", "--case", "cold"),
            "--case cold is not measured on llama-tiny, which has no encoder; allowed: bandwidth, decode, requests",
        ),
        (
            ("--shape", "t5-tiny", "--case", "turn"),
            "--case turn is not measured on t5-tiny, which has an encoder; allowed: bandwidth, decode, requests",
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
    assert make_bundle.ALL_SHAPES == bench.SHAPES
    assert cases.PEERS == bench.PEERS


def test_a_plan_measures_what_targets_speak_of_and_of_other_shapes_one_decoding() -> None:
    def cases_of(shape: str, **options: Any) -> list[str]:
        return [step.case for step in plan.Plan(**options).steps() if step.shape == shape]

    for ratio in TARGETS:
        assert ratio.above["case"] in cases_of(ratio.shape)
    for shape in ("t5-base", "smollm2-135m", "qwen2.5-0.5b"):  # and nothing else, but what limits and memory need
        asked = {ratio.above["case"] for ratio in TARGETS if ratio.shape == shape}
        assert [case for case in plan.CASES if case in asked | {"bandwidth", "memory"}] == cases_of(shape)
    assert cases_of("qwen2.5-0.5b", cases=("decode", "cold")) == ["decode"]
    assert cases_of("llama-3.2-1b", shapes=("llama-3.2-1b",)) == ["bandwidth", "decode"]
    assert cases_of("llama-3.2-1b", shapes=("llama-3.2-1b",), cases=("long",)) == ["long"]


def test_engines_of_a_decoder(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each peer that knows the kind of model; this engine as it keeps its weights by default, and with an int8 base."""
    monkeypatch.setattr(cases, "fbgemm_available", lambda: True)
    monkeypatch.setattr(cases.Bench, "compiles", True)
    options = {"folder": models, "dtype": "float32", "device": "cpu", "threads": 1, "peers": cases.PEERS}
    with rounds.Pool(in_process=True) as pool:
        of = {
            shape: cases.Bench(shape=shape, rounds=1, quick=True, pool=pool, quantize="float16", **options)
            for shape in TINY
        }
        names = {shape: [each.name for each in bench.entrants(WORK, int8=True)] for shape, bench in of.items()}
    ours = ["emorl float16", "emorl float16 compiled", "emorl int8", "emorl int8 compiled"]
    single = ["one-model", "one-model compiled"]
    converted = ["ctranslate2 float32", "ctranslate2 int8"]
    assert names["t5-tiny"] == [*ours, *single, "published", "peft-mixed", *converted]
    assert names["llama-tiny"] == [*ours, *single, "peft-mixed", *converted, "llama.cpp bfloat16", "llama.cpp q8_0"]


def test_a_decoder_is_measured(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cases.Bench, "compiles", False)
    monkeypatch.setitem(cases.REQUESTS_TRIED, "cpu", (1, 2))
    monkeypatch.setitem(cases.OBJECTIVES_TRIED, "cpu", (1, 2))
    monkeypatch.setattr(cases, "Work", lambda requests, *_: Work(requests, 40, 4))
    wanted = ("decode", "requests", "prefill", "objectives", "turn", "weights", "memory")
    plans = _plan(models, tmp_path / "run.json", shapes=("llama-tiny",), cases=wanted, rounds=1, peers=("peft-mixed",))
    measured, _ = plan.run(plans)
    assert dict.fromkeys(figure.case for figure in measured.figures) == dict.fromkeys(wanted)
    summed = measured.find("weights", "emorl, adapters summed", "ms_per_token", shape="llama-tiny")
    assert summed is not None
    names = [figure.engine for figure in measured.figures if figure.case == "turn"]
    ours = ["emorl", "emorl, adapters on the reply"]
    assert names == [f"{name}{which}" for name in ours for which in ("", ", second turn")]
    assert measured.find("prefill", ours[1], "first_token_ms") is not None
    assert measured.find("decode", "peft-mixed", "limit_ms") is None, "no bandwidth was measured"


def test_a_peer_that_is_not_installed_is_left_out_with_a_reason(
    emorl, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "_PACKAGES", {"llama.cpp": ("no_such_package",)})
    asked = plan.Plan(shapes=("llama-tiny",))
    found = Results()
    assert "llama.cpp" not in plan._peers(asked, found)
    assert found.notes == ["llama.cpp: not measured; no_such_package is not installed (emorl's extra `bench`)."]
    said = emorl("bench", "--shape", "llama-tiny", "--peers", "llama.cpp").refused()
    assert "--peers: no_such_package is not installed; install emorl with its extra `bench`" in said


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
    other = [replace(each, shape="smollm2-135m") for each in (OURS, replace(PEER, engine="llama.cpp bfloat16"))]
    kept = [replace(other[0], engine="emorl float16 compiled", values=(4.0, 5.0, 6.0)), *other]
    rows = {row["name"]: row for row in judge(results(*kept), "float32") if row["value"] is not None}
    (name,) = rows
    assert name.startswith("smollm2-135m, 3 objectives, ms per token / `llama.cpp` bfloat16")
    assert (rows[name]["value"], rows[name]["verdict"]) == (5.0 / 10.5, "met")
    assert "(emorl float16 compiled)" in name
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


def test_bytes_of_a_decoders_step_are_those_of_its_matrices(models: Path) -> None:
    """The embedding is read as the tied head."""
    from safetensors import safe_open

    def elements(file: Path) -> int:
        with safe_open(file, framework="pt") as tensors:
            return sum(
                tensors.get_tensor(name).numel()
                for name in tensors.keys()  # noqa: SIM118
                if "norm" not in name
            )

    matrices = elements(models / "llama-tiny-base" / "model.safetensors")
    low_rank = elements(models / "llama-tiny-3/adapters/empathy/adapter_model.safetensors")
    sizes = {"objectives": 3, "rank": cases.RANK}
    assert step_bytes("one-model", "llama-tiny", "bfloat16", **sizes) == 2 * matrices
    assert step_bytes("llama.cpp", "llama-tiny", "q8_0", **sizes) == matrices * 34 / 32
    ours = step_bytes("emorl", "llama-tiny", "float32", quantize="int8", **sizes)
    assert ours == matrices + 3 * 4 * low_rank
