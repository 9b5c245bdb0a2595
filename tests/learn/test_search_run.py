"""A search from beginning to end: budget, resuming after a kill, the honest comparison, many objectives."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from emorl_core.fake import fake_ensemble
from tests.apart import exit_code
from tests.learn.killed_search import RECORDS, Letters, fingerprint, inputs_of, killed, run
from training.search.run import EVALUATIONS_FILE, HELD_OUT_FILE, REPORT_FILE, Outcome, SearchSettings, run_search
from training.search.strategies import tpe as search_tpe
from training.search.strategies.grid import SearchError

QUICK: dict[str, Any] = {"levels": 2, "max_new_tokens": 6}


def without_work(report: dict[str, Any]) -> dict[str, Any]:
    """A report without what depends on the machine and on interruptions."""
    kept = {key: value for key, value in report.items() if key != "seconds"}
    fixed = ("requested", "distinct_points", "rays")
    return {**kept, "evaluations": {key: kept["evaluations"][key] for key in fixed}}


def test_a_search_killed_in_the_middle_goes_on_and_finds_the_same(tmp_path: Path) -> None:
    """kill -9 while level 2 of 3 is scored; nothing that was evaluated is evaluated again."""
    whole = run(tmp_path / "whole", Letters("aeo"))
    assert exit_code(killed, tmp_path / "killed", 2, tmp_path / "told") == -signal.SIGKILL
    logged = (tmp_path / "killed" / EVALUATIONS_FILE).read_text().splitlines()[1:]
    assert len(logged) == 20, "the rays of level 1 are on disk, those of level 2 are not"
    assert not (tmp_path / "killed" / REPORT_FILE).exists()

    ensemble, scorer = fake_ensemble(), Letters("aeo")
    swept: list[int] = []
    sweep = ensemble.sweep
    ensemble.sweep = lambda *args, **kwargs: swept.append(len(args[1])) or sweep(*args, **kwargs)  # type: ignore[method-assign, func-returns-value]
    resumed = run(tmp_path / "killed", scorer, resume=True, ensemble=ensemble)
    assert resumed.found == whole.found
    assert without_work(resumed.report) == without_work(whole.report)
    assert resumed.report["evaluations"]["resumed"] == 20
    points = [
        tuple(json.loads(line)["point"])
        for line in (tmp_path / "killed" / EVALUATIONS_FILE).read_text().splitlines()[1:]
    ]
    assert len(points) == len(set(points)) == whole.report["evaluations"]["rays"]
    assert sum(swept[:-1]) <= len(points) - 20, "the last sweep is the held-out one"
    before = set((tmp_path / "told").read_text().split())
    assert before
    assert not before & {fingerprint(prompt, text) for prompt, text in scorer.scored}, "a text was scored twice"


def test_a_finished_search_resumed_costs_nothing(tmp_path: Path) -> None:
    first = run(tmp_path, Letters("aeo"))
    ensemble, scorer = fake_ensemble(), Letters("aeo")
    again = run(tmp_path, scorer, resume=True, ensemble=ensemble)
    assert without_work(again.report) == without_work(first.report)
    assert scorer.calls == ensemble.engine.stats.lane_row_steps == 0


def test_evaluations_serve_another_goal_space_and_depth(tmp_path: Path) -> None:
    """A line of the log says what texts scored, whatever is made of the scores."""
    run(tmp_path, Letters("aeo"))
    ensemble = fake_ensemble()
    settings = SearchSettings(space="cube", levels=3, max_new_tokens=6, goal="worst")
    outcome = run_search(ensemble, inputs_of(Letters("aeo"), Letters("xyz")), settings, tmp_path, resume=True)
    assert outcome.report["goal"] == "worst"
    assert outcome.report["evaluations"]["texts_generated"] < 3 * 27 * 5


def test_a_search_without_resume_leaves_an_earlier_one_alone(tmp_path: Path) -> None:
    run(tmp_path, Letters("aeo"))
    with pytest.raises(SearchError, match="holds an earlier search"):
        run(tmp_path, Letters("aeo"))


def test_another_bundle_s_or_scorer_s_evaluations_are_refused(tmp_path: Path) -> None:
    run(tmp_path, Letters("aeo"))
    settings = SearchSettings(space="cube", levels=3, max_new_tokens=6)
    inputs = inputs_of(Letters("aeo"), Letters("xyz"))
    refused: list[tuple[str, Callable[[], Outcome]]] = [
        (
            "max_new_tokens",
            lambda: run_search(fake_ensemble(), inputs, replace(settings, max_new_tokens=7), tmp_path, resume=True),
        ),
        (
            "scorers",
            lambda: run_search(
                fake_ensemble(),
                replace(inputs, specs={**inputs.specs, "share_xyz": "other"}),
                settings,
                tmp_path,
                resume=True,
            ),
        ),
        (
            "prompts",
            lambda: run_search(fake_ensemble(), replace(inputs, search=RECORDS[:4]), settings, tmp_path, resume=True),
        ),
        ("objectives", lambda: run_search(fake_ensemble(("a", "b", "c")), inputs, settings, tmp_path, resume=True)),
    ]
    for key, attempt in refused:
        with pytest.raises(SearchError, match=f"had another ({key}|bundle)"):
            attempt()


@pytest.mark.parametrize("space", ["simplex", "cube"])
def test_the_report_compares_on_prompts_that_the_search_never_saw(space: str, tmp_path: Path) -> None:
    scorer = Letters("aeo")
    settings = SearchSettings(space=space, **QUICK)  # type: ignore[arg-type]
    outcome = run_search(fake_ensemble(), inputs_of(scorer), settings, tmp_path)
    report = outcome.report
    assert [entry["name"] for entry in report["candidates"]] == [
        "found",
        "best single objective",
        "uniform",
        "best of level 1",
    ]
    found, single, uniform, early = report["candidates"]
    assert sorted(single["weights"].values()) == [0.0, 0.0, 1.0]
    assert len(set(uniform["weights"].values())) == 1
    assert found["search"]["score"] == outcome.found.best_score
    assert found["search"]["score"] >= max(early["search"]["score"], single["search"]["score"])
    assert early["weights"] == dict(zip(report["objectives"], outcome.found.levels[0].best, strict=True))
    assert "first_minus_this" not in found
    for entry in (single, uniform, early):
        low, high = entry["first_minus_this"]["interval"]
        assert low <= entry["first_minus_this"]["score"] <= high
        difference = found["held_out"]["score"] - entry["held_out"]["score"]
        assert entry["first_minus_this"]["score"] == pytest.approx(difference)
    searched = {record.prompt for record in RECORDS[:5]}
    last = scorer.scored[-len([pair for pair in scorer.scored if pair[0] not in searched]) :]
    assert {prompt for prompt, _ in last} == {record.prompt for record in RECORDS[5:]}, (
        "judged after the search is over"
    )
    assert json.loads((tmp_path / REPORT_FILE).read_text()) == report
    assert report["prompts"]["search"]["count"] == 5
    assert report["prompts"]["held_out"]["count"] == 7
    assert (tmp_path / HELD_OUT_FILE).exists()


def test_the_best_single_objective_is_chosen_on_the_search_prompts(tmp_path: Path) -> None:
    outcome = run_search(fake_ensemble(), inputs_of(Letters("aeo")), SearchSettings(**QUICK), tmp_path)
    single = outcome.report["candidates"][1]
    corners = [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)]
    best = max(corners, key=lambda corner: outcome.found.scores[corner])
    assert tuple(single["weights"].values()) == best


def test_progress_ends_where_it_said_it_would(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    run_search(
        fake_ensemble(),
        inputs_of(Letters("aeo")),
        SearchSettings(**QUICK),
        tmp_path,
        progress=lambda stage, done, total: told.append((done, total)),
    )
    assert {total for _, total in told} == {32 * 5 + 4 * 7}
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1][0] == told[-1][1]
    assert len(told) > 50, "texts are told as they end"


def test_a_few_objectives_of_many_and_the_bare_base_can_be_mixed(tmp_path: Path) -> None:
    outcome = run_search(
        fake_ensemble(tuple("abcdefgh")),
        inputs_of(Letters("aeo")),
        SearchSettings(**QUICK),
        tmp_path,
        objectives=("base", "c"),
    )
    assert list(outcome.weights) == ["base", "c"]
    assert outcome.report["evaluations"]["requested"] == 10
    for names, says in ((("c", "x"), "'x' is not in the bundle"), (("c", "c"), "named twice")):
        with pytest.raises(SearchError, match=says):
            run_search(
                fake_ensemble(("c",)), inputs_of(Letters("aeo")), SearchSettings(), tmp_path / "2", objectives=names
            )


def test_budgets_are_known_beforehand() -> None:
    assert SearchSettings(space="cube").explained(3) == (
        "3^3 x 5 levels = 135 evaluations in the cube, shared ones run once"
    )
    assert SearchSettings(space="cube", levels=4).budget(4) == 324
    assert (
        SearchSettings().explained(3)
        == "16 directions x 5 levels = 80 evaluations in the simplex, shared ones run once"
    )
    assert SearchSettings(method="grid").budget(6) == 635


def test_many_objectives_go_to_tpe(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    objectives = tuple("abcdefg")
    settings = SearchSettings(trials=24, max_new_tokens=4)
    scorer = Letters("aeo")
    outcome = run_search(fake_ensemble(objectives), inputs_of(scorer), settings, tmp_path)
    report = outcome.report
    assert (report["method"], report["levels"], report["evaluations"]["requested"]) == ("tpe", None, 24)
    assert [entry["name"] for entry in report["candidates"]] == ["found", "best single objective", "uniform"]
    assert sum(outcome.weights.values()) == pytest.approx(1.0)
    assert outcome.found.best_score >= max(outcome.found.scores.values())
    calls = scorer.calls
    again = run_search(fake_ensemble(objectives), inputs_of(scorer), settings, tmp_path, resume=True)
    assert again.found == outcome.found
    assert scorer.calls == calls, "the same seed asks for the same points, and they are all known"


def test_tpe_finds_a_known_optimum() -> None:
    pytest.importorskip("optuna")
    centre = (0.5, 0.3, 0.2, 0.0, 0.0, 0.0)

    def reward(points: Any) -> list[float]:
        return [-sum((x - c) ** 2 for x, c in zip(point, centre, strict=True)) for point in points]

    found = search_tpe.search_tpe(6, 150, reward, seed=1)
    uniform = reward([(1 / 6,) * 6])[0]
    assert found.best_score > uniform / 5
    assert found.requested == 150
    assert len(found.scores) <= 150
    assert all(abs(sum(point) - 1) < 1e-9 and min(point) >= 0 for point in found.scores)


def test_without_optuna_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SearchError, match=r'more than 5 objectives\) needs Optuna: pip install "emorl\[search\]"'):
        SearchSettings().budget(6)
    assert SearchSettings().budget(5) == 355, "grids need nothing"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"space": "ball"}, "space is 'ball'; allowed: simplex, cube"),
        ({"method": "random"}, "method is 'random'"),
        ({"levels": 0}, "levels is 0"),
        ({"levels": 31}, "levels is 31"),
        ({"trials": 1}, "trials is 1"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(SearchError, match=says):
        SearchSettings(**settings)


def test_trials_must_leave_room_for_the_single_objectives() -> None:
    pytest.importorskip("optuna")
    with pytest.raises(SearchError, match="trials is 6; allowed: a whole number from 7"):
        search_tpe.search_tpe(6, 6, lambda points: [0.0] * len(points))
