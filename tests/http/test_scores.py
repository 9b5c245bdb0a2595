"""Scores beside texts: every route gives them, and nothing that a scorer does harms a text."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from emorl_core.bundles.bundle import BundleSpec, ChatSpec
from emorl_core.ensemble import Ensemble
from emorl_core.fake import fake_ensemble
from emorl_core.scorers import Checked, build_scorer
from emorl_core.scorers.asking import Panel, Statement
from server.serving.scoring import Scores, Scoring
from server.settings import Settings
from server.watch.metrics import Metrics
from tests.builders import tiny_t5_bundle
from tests.http.harness import PROMPT, Live, error_of, events, in_process, live

SPECS: dict[str, Any] = {
    "reflection": {"kind": "product", "of": ["lexical_reflection", {"kind": "repetition", "ngram": 2}]},
    "empathy": "lexical_empathy",
    "fluency": {"kind": "lexical_fluency", "use_corpus": False},
}
TEXTS = ["You feel tired of work, and that hurts.", "Hello.", "You are worried about your family."]


def scored(scorers: dict[str, Checked | None] | None = None, **options: Any) -> Ensemble:
    ensemble = fake_ensemble(**options)
    ensemble.scorers = {name: build_scorer(spec) for name, spec in SPECS.items()} if scorers is None else scorers
    return ensemble


def named(function: Callable[[list[str], list[str]], list[float]], name: str) -> Checked:
    def scorer(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        return function(prompts, completions)

    scorer.__name__ = name
    return Checked(scorer)


def as_search_scores(prompt: str, texts: list[str]) -> list[dict[str, float]]:
    """What `emorl search` writes into its log for these texts."""
    panel = Panel({name: build_scorer(spec) for name, spec in SPECS.items()})
    panel.score({number: (Statement(prompt), text) for number, text in enumerate(texts)})
    return [dict(zip(SPECS, panel[number], strict=True)) for number in range(len(texts))]


@pytest.fixture(scope="module")
def judging() -> Iterator[Live]:
    with live(ensemble=scored()) as running:
        yield running


def test_given_texts_get_the_scores_of_a_search(judging: Live) -> None:
    with judging.client() as client:
        answer = client.post("/score", json={"prompt": PROMPT, "texts": TEXTS})
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] == "fake"
    wanted = as_search_scores(PROMPT, TEXTS)
    assert answer.json()["results"] == [{"scores": each, "unscored": {}} for each in wanted]
    assert len({tuple(each.values()) for each in wanted}) == 3


def test_generate_gives_scores_when_asked(judging: Live) -> None:
    body = {"prompt": PROMPT, "profile": "empathy", "seed": 3}
    with judging.client() as client:
        plain = client.post("/generate", json=body).json()
        asked = client.post("/generate", json={**body, "score": True}).json()
        stream = events(client.post("/generate", json={**body, "score": True, "stream": True}).text)
    assert "scores" not in plain
    assert asked["text"] == plain["text"] == stream[-1]["text"]
    assert [asked["scores"]] == as_search_scores(PROMPT, [asked["text"]]) == [stream[-1]["scores"]]
    assert asked["unscored"] == {}


@pytest.mark.parametrize("stream", [False, True])
def test_a_sweep_scores_every_distinct_text_against_its_own_prompt(judging: Live, *, stream: bool) -> None:
    prompts = [PROMPT, "I can't sleep"]
    body = {"prompts": prompts, "resolution": 3, "score": True, "stream": stream}
    with judging.client() as client:
        reply = client.post("/sweep", json=body)
    answer = events(reply.text)[-1] if stream else reply.json()
    for prompt, texts in zip(prompts, answer["results"], strict=True):
        assert len(texts) > 1
        assert [each["scores"] for each in texts] == as_search_scores(prompt, [each["text"] for each in texts])


def test_the_openai_routes_give_scores_in_their_own_field(judging: Live) -> None:
    chat = {"model": "fake", "messages": [{"role": "user", "content": PROMPT}], "n": 2, "seed": 1, "score": True}
    with judging.client() as client:
        whole = client.post("/v1/chat/completions", json=chat).json()
        chunks = events(client.post("/v1/chat/completions", json={**chat, "stream": True}).text)
        text = client.post("/v1/completions", json={"model": "fake", "prompt": PROMPT, "score": True}).json()
    replies = [choice["message"]["content"] for choice in whole["choices"]]
    assert [each["scores"] for each in whole["emorl"]["scores"]] == as_search_scores(PROMPT, replies)
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["emorl"]["scores"] == whole["emorl"]["scores"]
    assert [each["scores"] for each in text["emorl"]["scores"]] == as_search_scores(
        PROMPT, [text["choices"][0]["text"]]
    )


def test_a_chat_is_scored_by_what_the_user_said_last() -> None:
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi."}]
    messages += [{"role": "user", "content": PROMPT}]
    with live(ensemble=scored(chat=ChatSpec())) as running, running.client() as client:
        answer = client.post("/score", json={"messages": messages, "texts": TEXTS}).json()
    assert [each["scores"] for each in answer["results"]] == as_search_scores(PROMPT, TEXTS)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/score", {"prompt": PROMPT, "texts": TEXTS}),
        ("/generate", {"prompt": PROMPT, "score": True}),
        ("/sweep", {"prompts": [PROMPT], "resolution": 2, "score": True}),
        ("/v1/completions", {"model": "fake", "prompt": PROMPT, "score": True}),
    ],
)
def test_without_scorers_a_request_for_scores_is_refused(path: str, body: dict[str, Any]) -> None:
    with live() as running, running.client() as client:
        answer = client.post(path, json=body)
    assert answer.status_code in (400, 422)
    assert error_of(answer)["param"] == "score"
    assert "no scorers" in error_of(answer)["message"]


def raises(prompts: list[str], completions: list[str]) -> list[float]:
    raise RuntimeError(f"cannot judge {completions}")


def exits(prompts: list[str], completions: list[str]) -> list[float]:
    raise SystemExit(3)


@pytest.mark.parametrize(
    "broken",
    [raises, exits, lambda _, texts: [float("nan")] * len(texts), lambda _, texts: [2.0] * len(texts), lambda *_: None],
    ids=["raises", "exits", "NaN", "above 1", "no list"],
)
def test_a_broken_scorer_leaves_its_score_out_and_says_so(
    broken: Callable[..., list[float]], caplog: pytest.LogCaptureFixture
) -> None:
    scorers: dict[str, Checked | None] = {"broken": named(broken, "broken"), "empathy": build_scorer("lexical_empathy")}
    body = {"prompt": PROMPT, "seed": 1}
    with live(ensemble=scored(scorers)) as running, running.client() as client:
        plain = client.post("/generate", json=body).json()
        answer = client.post("/generate", json={**body, "score": True}).json()
        metrics = client.get("/metrics").text
    assert answer["text"] == plain["text"]
    assert answer["scores"] == {"broken": None, "empathy": as_search_scores(PROMPT, [plain["text"]])[0]["empathy"]}
    assert answer["unscored"] == {"broken": "failed"}
    assert 'emorl_unscored_texts_total{objective="broken",reason="failed"} 1.0' in metrics
    assert 'emorl_scored_texts_total{objective="empathy"} 1.0' in metrics
    assert 'emorl_score_seconds_count{objective="empathy"} 1.0' in metrics
    assert plain["text"] not in caplog.text
    assert "broken" in caplog.text


def test_one_text_that_a_scorer_fails_on_costs_no_other_its_score() -> None:
    def picky(_: list[str], texts: list[str]) -> list[float]:
        if "Hello." in texts:
            raise ValueError("no")
        return [0.5] * len(texts)

    with live(ensemble=scored({"picky": named(picky, "picky")})) as running, running.client() as client:
        results = client.post("/score", json={"prompt": PROMPT, "texts": TEXTS}).json()["results"]
    assert [each["scores"]["picky"] for each in results] == [0.5, None, 0.5]
    assert [each["unscored"] for each in results] == [{}, {"picky": "failed"}, {}]


def test_a_scorer_that_hangs_is_left_alone_until_it_comes_back() -> None:
    free = threading.Event()
    calls: list[int] = []

    def hangs(_: list[str], texts: list[str]) -> list[float]:
        calls.append(1)
        free.wait(60)
        return [0.25] * len(texts)

    scorers: dict[str, Checked | None] = {"empathy": build_scorer("lexical_empathy"), "stuck": named(hangs, "stuck")}
    body = {"prompt": PROMPT, "seed": 1, "score": True}
    settings = Settings(port=0, score_timeout_s=1.0)
    with live(settings, ensemble=scored(scorers)) as running, running.client() as client:
        for _ in range(3):
            answer = client.post("/generate", json=body).json()
            wanted = as_search_scores(PROMPT, [answer["text"]])[0]["empathy"]
            assert answer["scores"] == {"empathy": wanted, "stuck": None}
            assert answer["unscored"] == {"stuck": "timeout"}
        asked = len(calls)
        free.set()
        scores: dict[str, float | None] = {"stuck": None}
        for _ in range(60):
            scores = client.post("/generate", json=body).json()["scores"]
            if scores["stuck"] is not None:
                break
    assert asked <= 2  # a waiter may give up before the scorer has had its time
    assert scores["stuck"] == 0.25


async def test_beyond_the_queue_texts_are_left_unscored_at_once() -> None:
    free, begun = threading.Event(), threading.Event()

    def slow(_: list[str], texts: list[str]) -> list[float]:
        begun.set()
        free.wait(60)
        return [0.5] * len(texts)

    ensemble = scored({"slow": named(slow, "slow")})
    settings = Settings(score_queue=32, score_timeout_s=60)
    async with in_process(settings, ensemble) as (client, service):
        import asyncio

        scoring: Scoring = service.deployment().scoring
        first = asyncio.create_task(scoring.score([PROMPT], ["a"]))
        await asyncio.to_thread(begun.wait, 60)
        waiting = asyncio.create_task(scoring.score([PROMPT] * 32, ["b"] * 32))
        await asyncio.sleep(0)
        answer = (await client.post("/score", json={"prompt": PROMPT, "texts": ["c"]})).json()
        assert answer["results"] == [{"scores": {"slow": None}, "unscored": {"slow": "busy"}}]
        free.set()
        assert [each.scores for each in [*await first, *await waiting]] == [{"slow": 0.5}] * 33


async def test_code_of_a_bundle_and_long_texts_are_not_scored() -> None:
    ensemble = scored({"own": None, "empathy": build_scorer("lexical_empathy")})
    async with in_process(Settings(max_score_chars=50), ensemble) as (client, _):
        body = {"prompt": PROMPT, "texts": ["You feel tired.", "tired " * 10]}
        results = (await client.post("/score", json=body)).json()["results"]
    assert [each["unscored"] for each in results] == [{"own": "code"}, {"own": "code", "empathy": "too_long"}]
    assert results[0]["scores"]["empathy"] == as_search_scores(PROMPT, ["You feel tired."])[0]["empathy"]


def test_too_many_texts_are_refused(judging: Live) -> None:
    most = judging.service.settings.max_sweep
    with judging.client() as client:
        answer = client.post("/score", json={"prompt": PROMPT, "texts": ["a"] * (most + 1)})
    assert answer.status_code == 422
    assert error_of(answer)["param"] == "texts"


class Elsewhere(Scoring):
    """Scorers that another process has: says what it was asked, in place of a score."""

    def __init__(self, spec: BundleSpec, settings: Settings, metrics: Metrics) -> None:
        super().__init__(spec.scorers, metrics)
        self.asked: list[int] = []

    async def _some(self, prompts: Sequence[str], texts: Sequence[str]) -> list[Scores]:
        self.asked.append(len(texts))
        return [self.none("busy") if text == "full" else Scores(dict.fromkeys(self.names, 0.5), {}) for text in texts]

    async def stop(self) -> None:
        """Nothing is held."""


def test_scorers_elsewhere_are_asked_and_none_are_loaded(tmp_path: Path) -> None:
    bundle = tiny_t5_bundle(tmp_path / "bundle", scorers={"empathy": "lexical_empathy"})
    with live(Settings(port=0, bundle=str(bundle)), scoring=Elsewhere) as running, running.client() as client:
        deployment = running.service.deployment()
        assert deployment.ensemble.scorers == {}
        answer = client.post("/generate", json={"prompt": PROMPT, "score": True, "max_new_tokens": 3}).json()
        assert (answer["scores"], answer["unscored"]) == ({"empathy": 0.5}, {})
        (text,) = client.post("/score", json={"prompt": PROMPT, "texts": ["full"]}).json()["results"]
        assert text == {"scores": {"empathy": None}, "unscored": {"empathy": "busy"}}
        (draft, *_) = client.post("/drafts", json={"prompt": PROMPT, "max_new_tokens": 4}).json()["drafts"]
        assert draft["scores"] == {"empathy": 0.5}
        del deployment.scoring.asked[:]
        assert len(client.post("/score", json={"prompt": PROMPT, "texts": ["a"] * 70}).json()["results"]) == 70
        assert deployment.scoring.asked == [32, 32, 6]
        metrics = client.get("/metrics").text
        assert 'emorl_unscored_texts_total{objective="empathy",reason="busy"} 1.0' in metrics
