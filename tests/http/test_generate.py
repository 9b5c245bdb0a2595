"""`POST /generate`."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from emorl_core.fake import fake_ensemble
from tests.http.harness import PROMPT, error_of, events

ANSWER_KEYS = {
    "id", "model", "text", "finish_reason", "weights", "profile", "seed", "usage", "timing", "tokens",
}  # fmt: skip


def test_the_answer_has_exactly_the_fields_of_the_contract(client: httpx.Client) -> None:
    answer = client.post("/generate", json={"prompt": PROMPT, "weights": {"reflection": 7, "empathy": 3}}).json()
    assert set(answer) == ANSWER_KEYS
    assert answer["id"].startswith("gen-")
    assert answer["model"] == "fake"
    assert answer["weights"] == pytest.approx({"reflection": 0.7, "empathy": 0.3, "fluency": 0.0})
    assert answer["profile"] is None
    assert answer["tokens"] is None
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert 0 <= answer["timing"]["queue_ms"] <= answer["timing"]["first_token_ms"] <= answer["timing"]["total_ms"]


def test_http_gives_the_tokens_that_python_gives(client: httpx.Client) -> None:
    body: dict[str, Any] = {"prompt": PROMPT, "temperature": 0.9, "top_k": 20, "seed": 5, "max_new_tokens": 30}
    alone = fake_ensemble().generate(PROMPT, temperature=0.9, top_k=20, seed=5, max_new_tokens=30)
    answer = client.post("/generate", json=body).json()
    assert (answer["text"], answer["finish_reason"], answer["seed"]) == (alone.text, str(alone.finish_reason), 5)
    assert answer["usage"]["completion_tokens"] == alone.completion_tokens


def test_other_weights_give_another_text(client: httpx.Client) -> None:
    texts = {
        client.post("/generate", json={"prompt": PROMPT, "weights": {name: 1.0}}).json()["text"]
        for name in ("reflection", "empathy", "fluency", "base")
    }
    assert len(texts) == 4


def test_with_neither_weights_nor_profile_the_default_profile_is_used_and_echoed(client: httpx.Client) -> None:
    named = client.post("/generate", json={"prompt": PROMPT, "profile": "balanced"}).json()
    default = client.post("/generate", json={"prompt": PROMPT}).json()
    assert named["profile"] == default["profile"] == "balanced"
    assert named["text"] == default["text"]


def test_a_drawn_seed_is_reported_and_repeats_the_text(client: httpx.Client) -> None:
    first = client.post("/generate", json={"prompt": PROMPT, "temperature": 1.5}).json()
    again = client.post("/generate", json={"prompt": PROMPT, "temperature": 1.5, "seed": first["seed"]}).json()
    assert again["text"] == first["text"]
    assert again["seed"] == first["seed"]


@pytest.mark.parametrize("weights", [{"reflection": 1.0}, {"empathy": 0.5, "fluency": 0.5}])
def test_the_texts_of_the_token_events_join_to_the_answers_text(
    client: httpx.Client, weights: dict[str, float]
) -> None:
    body = {"prompt": PROMPT, "weights": weights, "max_new_tokens": 40}
    plain = client.post("/generate", json=body).json()
    response = client.post("/generate", json={**body, "stream": True})
    *tokens, done = events(response.text)
    assert [event["type"] for event in tokens] == ["token"] * len(tokens)
    assert [event["index"] for event in tokens] == list(range(len(tokens)))
    assert done.pop("type") == "done"
    assert set(done) == ANSWER_KEYS
    assert "".join(event["text"] for event in tokens) == done["text"] == plain["text"]
    assert done["usage"] == plain["usage"]
    assert done["usage"]["completion_tokens"] == len(tokens)


def test_a_stream_has_the_headers_that_proxies_need(client: httpx.Client) -> None:
    headers = client.post("/generate", json={"prompt": PROMPT, "stream": True}).headers
    assert headers["content-type"].startswith("text/event-stream")
    assert headers["x-accel-buffering"] == "no"
    assert headers["cache-control"] == "no-cache"


def test_attribution_gives_every_token_its_parts_in_both_forms(client: httpx.Client) -> None:
    body = {"prompt": PROMPT, "attribution": True, "max_new_tokens": 6, "min_new_tokens": 6}
    plain = client.post("/generate", json=body).json()
    assert [set(token) for token in plain["tokens"]] == [{"id", "text", "logprob", "attribution"}] * 6
    assert set(plain["tokens"][0]["attribution"]) == {"reflection", "empathy", "fluency"}
    assert "".join(token["text"] for token in plain["tokens"]) == plain["text"]
    *tokens, done = events(client.post("/generate", json={**body, "stream": True}).text)
    assert [token["attribution"] for token in tokens] == [token["attribution"] for token in plain["tokens"]]
    assert done["tokens"] == plain["tokens"]


def test_base_is_part_of_an_attribution_when_it_has_weight(client: httpx.Client) -> None:
    body = {"prompt": PROMPT, "attribution": True, "max_new_tokens": 2, "weights": {"base": 0.5, "empathy": 0.5}}
    answer = client.post("/generate", json=body).json()
    assert set(answer["tokens"][0]["attribution"]) == {"base", "reflection", "empathy", "fluency"}


def test_stop_strings_and_lengths_end_the_text(client: httpx.Client) -> None:
    whole = client.post("/generate", json={"prompt": PROMPT, "min_new_tokens": 12, "max_new_tokens": 12}).json()
    assert whole["finish_reason"] == "length"
    assert whole["usage"]["completion_tokens"] == 12
    stop = whole["text"].strip().split(" ")[1]
    cut = client.post("/generate", json={"prompt": PROMPT, "stop": [stop]}).json()
    assert cut["finish_reason"] == "stop"
    assert cut["text"] == whole["text"][: whole["text"].index(stop)]


def test_probability_mixing_is_another_combination(client: httpx.Client) -> None:
    weights = {"reflection": 0.5, "empathy": 0.5}
    texts = [
        client.post("/generate", json={"prompt": PROMPT, "weights": weights, "combine": how}).json()["text"]
        for how in ("hidden", "probs")
    ]
    alone = fake_ensemble().generate(PROMPT, weights, combine="probs")
    assert texts[1] == alone.text
    assert texts[0] != texts[1]


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({}, "prompt", "required"),
        ({"prompt": "x", "promt": "y"}, "promt", "unknown field 'promt'"),
        ({"prompt": 7}, "prompt", "string"),
        ({"prompt": "  "}, "prompt", "empty"),
        ({"prompt": "half \ud800"}, "prompt", "Unicode"),
        ({"prompt": "x", "max_new_tokens": "64"}, "max_new_tokens", "integer"),
        ({"prompt": "x", "max_new_tokens": True}, "max_new_tokens", "integer"),
        ({"prompt": "x", "max_new_tokens": 0}, "max_new_tokens", "1 (found 0)"),
        ({"prompt": "x", "max_new_tokens": 5000}, "max_new_tokens", "allowed: up to 1024"),
        ({"prompt": "x", "min_new_tokens": 9, "max_new_tokens": 8}, "min_new_tokens", "from 0 to max_new_tokens (8)"),
        ({"prompt": "x", "temperature": -1}, "temperature", "0 (found -1)"),
        ({"prompt": "x", "top_p": 0}, "top_p", "greater than or equal to 0.00000001"),
        ({"prompt": "x", "seed": 2**63}, "seed", "less than or equal"),
        ({"prompt": "x", "stop": [""]}, "stop.0", "at least 1 character"),
        ({"prompt": "x", "combine": "mean"}, "combine", "'hidden', 'probs' or 'weights'"),
        ({"prompt": "x", "weights": {}}, "weights", "all are zero"),
        ({"prompt": "x", "weights": {"empaty": 1}}, "weights.empaty", "objectives: base, reflection, empathy, fluency"),
        ({"prompt": "x", "weights": {"empathy": -1}}, "weights.empathy", "normalize: false"),
        ({"prompt": "x", "weights": {"empathy": "1"}}, "weights.empathy", "number"),
        ({"prompt": "x", "weights": {"empathy": 1}, "profile": "balanced"}, "weights", "exclude each other"),
        ({"prompt": "x", "profile": "nope"}, "profile", "profiles: balanced, reflection"),
        ({"prompt": "worry " * 200}, "prompt", "allowed: up to 128"),
        ({"prompt": "x", "combine": "probs", "attribution": True}, "attribution", "combine: probs"),
        ({"prompt": "x", "combine": "weights", "attribution": True}, "attribution", "combine: weights"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_bad_request_is_one_422_that_names_the_field_and_what_is_allowed(
    client: httpx.Client, body: dict[str, Any], param: str, says: str, stream: bool
) -> None:
    # Escaped by hand: half a character is legal in JSON's escapes and httpx would refuse to encode it.
    content = json.dumps({**body, "stream": stream})
    response = client.post("/generate", content=content, headers={"content-type": "application/json"})
    assert response.status_code == 422
    error = error_of(response)
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert says in error["message"]
    assert error["message"].startswith((param.split(".")[0], "unknown field"))


def test_numbers_that_json_should_not_have_are_refused(client: httpx.Client) -> None:
    for number in ("NaN", "Infinity", "-Infinity", "1e999", "1" + "0" * 400):
        content = f'{{"prompt": "x", "weights": {{"empathy": {number}}}}}'
        response = client.post("/generate", content=content, headers={"content-type": "application/json"})
        assert response.status_code == 422, number
        assert error_of(response)["param"] == "weights.empathy"
