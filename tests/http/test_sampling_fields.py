"""The ways to choose tokens over HTTP: the same on both APIs, kept by receipts, refused by name."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest

from emorl_core.engine.driver import Driver
from emorl_core.fake import fake_ensemble
from server.serving.receipt import Receipt, replay_request
from tests.http.harness import PROMPT, Live, error_of

ASKED: dict[str, Any] = {
    "presence_penalty": 0.5, "frequency_penalty": -0.25, "min_p": 0.02, "no_repeat_ngram_size": 3,
    "logit_bias": {"270": 3, "271": -100.0}, "temperature": 0.9, "seed": 5,
}  # fmt: skip
OWN = ("min_p", "no_repeat_ngram_size")  # not in OpenAI's API


def test_both_apis_choose_as_the_engine_does(server: Live, client: httpx.Client) -> None:
    expected = fake_ensemble().generate(PROMPT, max_new_tokens=20, **ASKED)
    assert expected.text != fake_ensemble().generate(PROMPT, max_new_tokens=20, temperature=0.9, seed=5).text
    answer = client.post("/generate", json={"prompt": PROMPT, "max_new_tokens": 20, "receipt": True, **ASKED}).json()
    assert answer["text"] == expected.text
    theirs = {name: value for name, value in ASKED.items() if name not in OWN}
    extra = {name: ASKED[name] for name in OWN}
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as ai:
        messages: Any = [{"role": "user", "content": PROMPT}]
        chat = ai.chat.completions.create(model="fake", messages=messages, max_tokens=20, extra_body=extra, **theirs)
        assert chat.choices[0].message.content == expected.text
        text = ai.completions.create(model="fake", prompt=PROMPT, max_tokens=20, extra_body=extra, **theirs)
        assert text.choices[0].text == expected.text
    receipt = Receipt.model_validate_json(json.dumps(answer["receipt"]))
    assert receipt.damage() == []
    assert receipt.sampling.logit_bias == ASKED["logit_bias"]
    assert receipt.prompt is not None
    again = fake_ensemble()
    (done,) = Driver(again.engine).finish([replay_request(again, receipt, receipt.prompt)])
    assert list(done.token_ids) == receipt.token_ids


def test_a_sweep_takes_them_too(client: httpx.Client) -> None:
    body = {"prompts": [PROMPT], "weights": [{"empathy": 1}], "max_new_tokens": 20, **ASKED}
    answer = client.post("/sweep", json=body).json()
    expected = fake_ensemble().generate(PROMPT, weights={"empathy": 1.0}, max_new_tokens=20, **ASKED)
    assert answer["results"][0][0]["text"] == expected.text


@pytest.mark.parametrize("path", ["/generate", "/v1/chat/completions"])
@pytest.mark.parametrize(
    ("field", "value", "param"),
    [
        ("presence_penalty", 2.5, "presence_penalty"),
        ("frequency_penalty", "1", "frequency_penalty"),
        ("min_p", -0.1, "min_p"),
        ("no_repeat_ngram_size", -1, "no_repeat_ngram_size"),
        ("logit_bias", {"5": 101}, "logit_bias.5"),
        ("logit_bias", {"x": 1}, "logit_bias.x"),
        ("logit_bias", {"05": 1}, "logit_bias.05"),
        ("logit_bias", {"999999": 1}, "logit_bias"),
        ("logit_bias", [1], "logit_bias"),
    ],
)
def test_what_is_out_of_range_is_named(client: httpx.Client, path: str, field: str, value: Any, param: str) -> None:
    asked = (
        {"prompt": "hi"} if path == "/generate" else {"model": "fake", "messages": [{"role": "user", "content": "hi"}]}
    )
    answer = client.post(path, json={**asked, field: value})
    assert answer.status_code in (400, 422)
    assert error_of(answer)["param"] == param
