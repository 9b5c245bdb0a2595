"""`POST /drafts`, and `auto` on `POST /generate`, which is its best draft."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from emorl_core.bundles.bundle import ChatSpec
from emorl_core.engine.driver import Driver
from emorl_core.ensemble import Ensemble
from emorl_core.fake import fake_ensemble
from emorl_core.scorers import Checked, build_scorer
from server.serving.receipt import Receipt, replay_request
from server.settings import Settings
from tests.http.harness import PROMPT, Live, error_of, events, idle, live, wait_until

EMPATHY = "lexical_empathy"


def short(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    return [1 / (1 + len(text)) for text in completions]


def scored() -> Ensemble:
    ensemble = fake_ensemble()
    ensemble.scorers = {"short": Checked(short), "empathy": build_scorer(EMPATHY)}
    return ensemble


@pytest.fixture(scope="module")
def judging() -> Iterator[Live]:
    with live(ensemble=scored()) as running:
        yield running


def told(live_server: Live, path: str = "/drafts", **body: Any) -> dict[str, Any]:
    with live_server.client() as client:
        reply = client.post(path, json={"prompt": PROMPT, **body})
    assert reply.status_code == 200, reply.text
    answer: dict[str, Any] = reply.json()
    return answer


def without(answer: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in answer.items() if name not in names}


# --- what comes back ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0},
        {"temperature": 0.8, "seeds": 3, "seed": 3},
        {"combine": "probs"},
        {"presence_penalty": 0.5},
    ],
    ids=["as it is", "greedy", "three seeds", "mixed probabilities", "a penalty"],
)
def test_each_draft_is_the_text_of_a_request_with_its_weights(client: httpx.Client, options: dict[str, Any]) -> None:
    answer = client.post("/drafts", json={"prompt": PROMPT, "count": 4, "max_new_tokens": 16, **options}).json()
    assert len({draft["text"] for draft in answer["drafts"]}) == 4
    asked = {"prompt": PROMPT, "max_new_tokens": 16, "top_p": 0.9, **without(options, "seeds")}
    for draft in answer["drafts"]:
        body = asked | {name: draft[name] for name in ("weights", "temperature", "seed")}
        alone = client.post("/generate", json=body).json()
        assert (alone["text"], alone["finish_reason"]) == (draft["text"], draft["finish_reason"])
        assert alone["usage"]["completion_tokens"] == draft["completion_tokens"]
    assert answer["candidates"] == 8 + 3 * options.get("seeds", 0 if options.get("temperature") == 0 else 16)
    assert answer["cost"]["lane_row_steps"] < answer["cost"]["unshared_lane_row_steps"]


def test_drafts_say_how_they_were_ranked_and_have_scores_shares_and_receipts(judging: Live) -> None:
    answer = told(judging)
    assert answer["model"] == "fake"
    assert answer["ranked_by"] == "scores"
    means = [draft["mean"] for draft in answer["drafts"]]
    assert means == sorted(means, reverse=True)
    for draft in answer["drafts"]:
        body = {"prompt": PROMPT, "texts": [draft["text"]]}
        with judging.client() as client:
            (judged,) = client.post("/score", json=body).json()["results"]
        assert {"scores": draft["scores"], "unscored": draft["unscored"]} == judged
        assert draft["mean"] == pytest.approx(sum(draft["scores"].values()) / 2)
        assert draft["text_sha256"] == hashlib.sha256(draft["text"].encode()).hexdigest()
        assert sum(draft["shares"].values()) == pytest.approx(1.0)
        assert set(draft["shares"]) == set(draft["weights"])


def test_without_scorers_the_answer_says_that_it_is_ranked_by_likelihood(client: httpx.Client) -> None:
    answer = client.post("/drafts", json={"prompt": PROMPT}).json()
    assert answer["ranked_by"] == "likelihood"
    assert [(draft["scores"], draft["mean"]) for draft in answer["drafts"]] == [({}, None)] * 3
    likelihoods = [draft["likelihood"] for draft in answer["drafts"]]
    assert likelihoods == sorted(likelihoods, reverse=True)


def test_a_receipt_makes_its_draft_again(client: httpx.Client) -> None:
    body = {"prompt": PROMPT, "temperature": 0.9, "seeds": 3, "max_new_tokens": 12}
    again = fake_ensemble()
    for draft in client.post("/drafts", json=body).json()["drafts"]:
        receipt = Receipt.model_validate_json(json.dumps(draft["receipt"]))
        assert receipt.damage() == []
        assert (receipt.text, receipt.prompt) == (draft["text"], PROMPT)
        assert receipt.sampling.seed == draft["seed"]
        (done,) = Driver(again.engine).finish([replay_request(again, receipt, PROMPT)])
        assert list(done.token_ids) == receipt.token_ids
    assert all(
        "receipt" not in draft for draft in client.post("/drafts", json={**body, "receipt": False}).json()["drafts"]
    )


def test_the_stream_tells_each_text_as_it_is_found_and_the_drafts_at_last(judging: Live) -> None:
    whole = told(judging, seed=1, receipt=False)
    with judging.client() as client:
        found = events(
            client.post("/drafts", json={"prompt": PROMPT, "seed": 1, "receipt": False, "stream": True}).text
        )
    *texts, done = found
    assert {each["type"] for each in texts} == {"text"}
    assert texts[-1]["completed"] == texts[0]["total"] == 56
    assert {draft["text"] for draft in done["drafts"]} <= {each["text"] for each in texts}
    assert without(done, "id", "type") == without(whole, "id")


def test_a_chat_is_drafted_for() -> None:
    chat = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi."}]
    chat += [{"role": "user", "content": PROMPT}]
    ensemble = fake_ensemble(chat=ChatSpec())
    ensemble.scorers = {"empathy": build_scorer(EMPATHY)}
    with live(ensemble=ensemble) as running, running.client() as client:
        best = client.post("/drafts", json={"messages": chat}).json()["drafts"][0]
        own = {name: best[name] for name in ("weights", "temperature", "seed")}
        alone = client.post("/generate", json={"messages": chat, "top_p": 0.9, "score": True, **own}).json()
    assert (alone["text"], alone["scores"]) == (best["text"], best["scores"])
    assert [each["content"] for each in best["receipt"]["prompt"]] == ["Hello", "Hi.", PROMPT]


# --- what may go wrong -------------------------------------------------------------------------------------------------


def test_a_scorer_that_fails_costs_no_draft() -> None:
    def raises(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        raise RuntimeError("no")

    ensemble = scored()
    ensemble.scorers = {**ensemble.scorers, "broken": Checked(raises), "own": None}
    with live(ensemble=ensemble) as running:
        answer = told(running)
        sound = told(running, path="/generate", weights="auto")
    for draft in answer["drafts"]:
        assert draft["unscored"] == {"broken": "failed", "own": "code"}
        assert draft["mean"] == pytest.approx((draft["scores"]["short"] + draft["scores"]["empathy"]) / 2)
    assert (answer["ranked_by"], sound["text"]) == ("scores", answer["drafts"][0]["text"])


def test_where_every_scorer_fails_texts_are_ranked_by_likelihood() -> None:
    ensemble = fake_ensemble()
    ensemble.scorers = {"own": None}
    with live(ensemble=ensemble) as running:
        answer = told(running)
    assert answer["ranked_by"] == "likelihood"
    assert len(answer["drafts"]) == 3
    assert answer["drafts"][0]["unscored"] == {"own": "code"}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"count": 0}, "count"),
        ({"count": 17}, "count"),
        ({"candidates": 257}, "candidates"),
        ({"candidates": "16"}, "candidates"),
        ({"candidates": 16, "seeds": 17}, "candidates"),  # above this server's max_sweep
        ({"seeds": 2, "temperature": 0}, "seeds"),
        ({"seeds": -1}, "seeds"),
        ({"diversity": 2}, "diversity"),
        ({"min_distance": -0.1}, "min_distance"),
        ({"weights": {"empathy": 1.0}}, "weights"),
        ({"profile": "balanced"}, "profile"),
        ({"normalize": False}, "normalize"),
        ({"max_new_tokens": 2000}, "max_new_tokens"),
        ({"messages": [{"role": "user", "content": "x"}]}, "messages"),
        ({"prompt": "work " * 200}, "prompt"),
    ],
)
def test_bad_input_is_one_422_that_names_the_field(body: dict[str, Any], param: str, narrow: Live) -> None:
    with narrow.client() as client:
        response = client.post("/drafts", json={"prompt": PROMPT, **body})
    assert response.status_code == 422
    assert error_of(response)["param"] == param


@pytest.fixture(scope="module")
def narrow() -> Iterator[Live]:
    with live(Settings(port=0, max_sweep=64)) as running:
        yield running


def test_a_client_that_leaves_takes_its_drafts_along() -> None:
    slow = fake_ensemble(step_delay_s=0.02, mean_length=60)
    with live(ensemble=slow) as running:
        with running.client() as client, pytest.raises(httpx.ReadTimeout):
            client.post("/drafts", json={"prompt": PROMPT}, timeout=0.3)
        wait_until(lambda: idle(running), "everything is free again")
        with running.client() as client:
            metrics = client.get("/metrics").text
    assert 'emorl_requests_total{outcome="cancelled",route="/drafts"} 1.0' in metrics


def test_drafts_wait_for_a_place_like_everything_else() -> None:
    slow = fake_ensemble(slots=1, step_delay_s=0.05, mean_length=60)
    with (
        live(Settings(port=0, max_queue=0), slow) as running,
        running.client() as client,
        client.stream("POST", "/generate", json={"prompt": PROMPT, "stream": True}) as stream,
    ):
        lines = stream.iter_lines()  # kept: a collected iterator closes the response
        next(lines)
        refused = client.post("/drafts", json={"prompt": PROMPT})
    assert refused.status_code == 429
    assert error_of(refused)["code"] == "queue_full"


# --- the best one, without being asked ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0}, {"temperature": 0.8, "seed": 3}], ids=["as it is", "greedy", "drawn"]
)
def test_auto_is_the_best_draft(judging: Live, options: dict[str, Any]) -> None:
    drafts = told(judging, **options)
    best = drafts["drafts"][0]
    auto = told(judging, path="/generate", weights="auto", score=True, **options)
    for name in ("text", "weights", "profile", "seed", "scores", "unscored", "finish_reason"):
        assert auto[name] == best[name], name
    assert auto["chosen"] == {name: drafts[name] for name in ("ranked_by", "candidates", "distinct", "cost")}
    assert auto["id"].startswith("gen-")
    assert auto["tokens"] is None
    assert "receipt" not in auto


def test_auto_gives_what_else_was_asked_for(judging: Live) -> None:
    plain = told(judging, path="/generate", weights="auto")
    full = told(judging, path="/generate", weights="auto", attribution=True, receipt=True)
    assert "scores" not in plain
    assert full["text"] == plain["text"] == full["receipt"]["text"]
    assert [token["id"] for token in full["tokens"]] == full["receipt"]["token_ids"]
    assert full["receipt"]["weights"] == {"base": 0.0, **full["weights"]}
    own = {name: full["receipt"]["sampling"][name] for name in ("temperature", "top_p", "seed")}
    named = told(judging, path="/generate", weights=full["weights"], **own)
    assert (named["text"], "chosen" in named) == (full["text"], False)


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({"stream": True}, "stream", "stream: true does not go with weights: auto"),
        ({"profile": "balanced"}, "profile", "a profile does not go with weights: auto"),
        ({"normalize": False}, "normalize", "normalize: false does not go with weights: auto"),
        ({"score": True}, "score", "no scorers"),
        ({"combine": "probs", "attribution": True}, "attribution", "not defined with combine: probs"),
        ({"weights": "best"}, "weights", "'auto'"),
    ],
)
def test_what_does_not_go_with_auto_is_refused(
    client: httpx.Client, body: dict[str, Any], param: str, says: str
) -> None:
    response = client.post("/generate", json={"prompt": PROMPT, "weights": "auto", **body})
    assert response.status_code == 422
    assert error_of(response)["param"] == param
    assert says in error_of(response)["message"]


def test_drafts_are_counted_by_their_route_and_texts_by_their_scorer(judging: Live) -> None:
    told(judging)
    with judging.client() as client:
        metrics = client.get("/metrics").text
    assert 'emorl_requests_total{outcome="stop",route="/drafts"}' in metrics
    assert 'emorl_scored_texts_total{objective="short"}' in metrics
