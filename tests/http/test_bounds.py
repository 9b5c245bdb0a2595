"""What a request asks for is bounded by its fields, before anything as large is made of it; numbers, by what float32
can hold."""

from __future__ import annotations

import json
import math
from typing import Any
from unittest import mock

import httpx
import pytest
from pydantic import BaseModel, ValidationError

from emorl_core.engine import sweep as sweep_module
from emorl_core.fake import fake_ensemble
from emorl_core.types import Attribution, Completion, FinishReason
from server.api.drafts_models import DraftsRequest
from server.api.fields import MAX_NAMES
from server.api.generate_models import GenerateRequest
from server.api.openai.requests import ChatRequest, CompletionRequest
from server.api.sweeps.map_models import MapBody
from server.api.sweeps.segments_models import SegmentsBody
from server.api.sweeps.sweep_models import SweepRequest
from server.door.errors import UnknownField
from server.serving.deployment import load
from server.settings import Settings
from server.watch.metrics import EngineReading, Metrics
from tests.http.harness import PROMPT, Live, error_of, in_process

LONG = "worry " * 40_000  # 240 kB, near the largest body
LINE = {"prompt": PROMPT, "from": {"reflection": 1.0}, "to": {"empathy": 1.0}}
MODELS: dict[str, type[BaseModel]] = {
    "/generate": GenerateRequest,
    "/sweep": SweepRequest,
    "/sweep/line": SegmentsBody,
    "/sweep/map": MapBody,
    "/drafts": DraftsRequest,
    "/v1/completions": CompletionRequest,
    "/v1/chat/completions": ChatRequest,
}
CHAT = {"model": "fake", "messages": [{"role": "user", "content": PROMPT}]}


def post(client: httpx.Client, path: str, body: dict[str, Any]) -> httpx.Response:
    """httpx would refuse to write numbers that JSON has and Python's floats have not."""
    return client.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})


# --- prompts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/generate", {"prompt": LONG}),
        ("/generate", {"prompt": " " * 200_000 + "x"}),
        ("/sweep", {"prompts": [PROMPT, LONG], "resolution": 1}),
        ("/sweep", {"prompts": [LONG], "weights": [{"empathy": 1.0}]}),
        ("/sweep/line", {**LINE, "prompt": LONG}),
        ("/sweep/map", {"prompt": LONG}),
        ("/drafts", {"prompt": LONG}),
        ("/v1/completions", {"model": "fake", "prompt": LONG}),
        ("/v1/completions", {"model": "fake", "prompt": [PROMPT, LONG]}),
        ("/v1/chat/completions", {**CHAT, "messages": [{"role": "user", "content": LONG}]}),
    ],
)
def test_a_prompt_is_refused_by_its_characters_before_it_is_tokenised(
    server: Live, client: httpx.Client, path: str, body: dict[str, Any]
) -> None:
    ensemble = server.service.deployment().ensemble
    limit = client.get("/info").json()["limits"]["max_prompt_chars"]
    with mock.patch.object(ensemble.tokenizer, "encode", wraps=ensemble.tokenizer.encode) as encode:
        response = client.post(path, json=body)
    assert response.status_code == (400 if path.startswith("/v1") else 422)
    error = error_of(response)
    assert error["code"] == "prompt_too_long"
    assert f"characters; allowed: up to {limit} (max_prompt_chars)" in error["message"]
    assert all(len(call.args[0]) < 2 * len(PROMPT) for call in encode.call_args_list)


async def test_the_limit_is_a_setting_and_its_default_comes_from_the_bundle() -> None:
    ensemble = fake_ensemble(max_source_tokens=50)
    assert ensemble.max_prompt_chars == 2 * 50 * ensemble.tokenizer.longest_token
    assert ensemble.tokenizer.longest_token == len(" worried"), "its longest word"
    async with in_process(ensemble=ensemble) as (client, _):
        assert (await client.get("/info")).json()["limits"]["max_prompt_chars"] == ensemble.max_prompt_chars


def test_a_limit_that_is_set_reaches_the_bundle_that_is_loaded() -> None:
    with mock.patch("server.serving.deployment.load_apart") as loaded:
        load(Settings(bundle="my-bundle", engine="process", max_prompt_chars=77))
    assert loaded.call_args.kwargs["max_prompt_chars"] == 77


@pytest.mark.parametrize("prompt", [[5] * 129, [5] * 80_000])
def test_token_ids_are_counted_first(client: httpx.Client, prompt: list[int]) -> None:
    error = error_of(client.post("/v1/completions", json={"model": "fake", "prompt": prompt}))
    assert error["code"] == "prompt_too_long"
    assert f"prompt has {len(prompt)} tokens; allowed: 1 to 128" in error["message"]


# --- how many ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"prompts": [PROMPT] * 300, "resolution": 440}, "300 x 97461 completions; allowed: up to 4096 (max_sweep)"),
        ({"prompts": [PROMPT], "resolution": 90}, "1 x 4186 completions"),
        ({"prompts": [PROMPT] * 4097, "resolution": 1}, "4097 x 3 completions"),
        ({"prompts": [PROMPT] * 2049, "weights": [{"empathy": 1.0}] * 2}, "2049 x 2 completions"),
        ({"prompts": [PROMPT], "weights": [{}] * 50_000}, "1 x 50000 completions"),
        ({"prompts": [PROMPT], "resolution": 446}, "a grid of 100128 vectors; allowed: at most 100000"),
        (
            {"prompts": [PROMPT], "resolution": 10**9},
            "resolution is 1000000000; allowed: a whole number from 1 to 100000",
        ),
        ({"prompts": [PROMPT], "resolution": 10**4000}, "resolution is about 1e4000; allowed"),
    ],
)
def test_a_sweep_is_counted_before_anything_of_it_is_made(
    server: Live, client: httpx.Client, body: dict[str, Any], says: str
) -> None:
    ensemble = server.service.deployment().ensemble
    with (
        mock.patch.object(sweep_module, "simplex_grid") as grid,
        mock.patch.object(ensemble.tokenizer, "encode") as encode,
    ):
        response = post(client, "/sweep", body)
    assert response.status_code == 422
    assert says in error_of(response)["message"]
    assert len(error_of(response)["message"]) < 200
    grid.assert_not_called()
    encode.assert_not_called()


@pytest.mark.parametrize(
    ("path", "body", "rows"),
    [
        ("/v1/completions", {"model": "fake", "prompt": ["x"] * 50_000, "n": 128}, 6_400_000),
        ("/v1/completions", {"model": "fake", "prompt": [[5]] * 9}, 9),
        ("/v1/chat/completions", {**CHAT, "n": 9}, 9),
    ],
)
def test_completions_are_counted_before_a_list_of_them_is_made(
    client: httpx.Client, path: str, body: dict[str, Any], rows: int
) -> None:
    error = error_of(client.post(path, json=body))
    assert (error["param"], error["code"]) == ("n", "invalid_value")
    assert error["message"] == f"n × prompts is {rows}; allowed: up to 8 completions in one request (max_choices)"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/generate", {"prompt": PROMPT, **{f"no{i}": 1 for i in range(20_000)}}),
        ("/generate", {"prompt": PROMPT, "stop": [1] * 80_000}),
        ("/generate", {"prompt": PROMPT, "weights": {f"no{i}": "x" for i in range(15_000)}}),
        ("/sweep", {"prompts": [1] * 80_000, "resolution": 1}),
        ("/sweep", {"prompts": [PROMPT], "weights": [1] * 80_000}),
        ("/sweep/line", {**LINE, "to": {f"no{i}": None for i in range(15_000)}}),
        ("/v1/completions", {"model": "fake", "prompt": [7] * 80_000 + [-1]}),
        ("/v1/completions", {"model": "fake", "prompt": [[7]] * 40_000 + [[-1]]}),
        ("/v1/completions", {"model": "fake", "prompt": ["x"] * 40_000 + [1]}),
        ("/v1/chat/completions", {**CHAT, "messages": [1] * 80_000}),
        ("/v1/chat/completions", {**CHAT, "messages": [{"role": "user", "content": [{}] * 40_000}]}),
        ("/v1/chat/completions", {**CHAT, **{f"no{i}": 1 for i in range(20_000)}}),
    ],
)
def test_a_body_that_is_wrong_in_thousands_of_places_is_refused_for_the_first(
    client: httpx.Client, path: str, body: dict[str, Any]
) -> None:
    """To gather all findings took the event loop up to 4 seconds, in which nobody was answered."""
    with pytest.raises((ValidationError, UnknownField)) as caught:
        MODELS[path].model_validate(body)
    if isinstance(caught.value, ValidationError):
        assert caught.value.error_count() <= 8, "at most a few for each kind of value that the field takes"
    response = client.post(path, json=body)
    assert response.status_code == (400 if path.startswith("/v1") else 422)
    assert len(error_of(response)["message"]) < 1000


def test_no_vector_names_more_objectives_than_any_bundle_has(client: httpx.Client) -> None:
    body = {"prompt": PROMPT, "weights": {f"no{i}": 1.0 for i in range(MAX_NAMES + 1)}}
    error = error_of(client.post("/generate", json=body))
    assert (error["param"], error["message"].split("; ")[0]) == (
        "weights",
        f"weights: must have at most {MAX_NAMES} entries",
    )
    schema = client.get("/openapi.json").json()["components"]["schemas"]["GenerateRequest"]["properties"]["weights"]
    assert schema["anyOf"][0]["oneOf"][0]["maxProperties"] == MAX_NAMES


# --- numbers -----------------------------------------------------------------------------------------------------------

TOO_SMALL_OR_LARGE = [
    ({"temperature": 1e-39}, "temperature"),
    ({"temperature": 5e-324}, "temperature"),
    ({"temperature": 9e-9}, "temperature"),
    ({"temperature": 10**400}, "temperature"),
    ({"top_p": 1e-46}, "top_p"),
    ({"repetition_penalty": 1e-320}, "repetition_penalty"),
    ({"seed": 10**4000}, "seed"),
]
WEIGHTS = [
    {"empathy": 1e-320},
    {"empathy": 1e-46},
    {"empathy": 1e38},
    {"empathy": -1e38, "reflection": 1.0},
    {"empathy": 1e39},
    {"reflection": 1.0, "empathy": 1e-39},
]


@pytest.mark.parametrize(("change", "param"), TOO_SMALL_OR_LARGE)
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/generate", {"prompt": PROMPT}),
        ("/sweep", {"prompts": [PROMPT], "resolution": 1}),
        ("/v1/completions", {"model": "fake", "prompt": PROMPT}),
        ("/v1/chat/completions", CHAT),
    ],
)
def test_numbers_that_float32_cannot_use_are_refused(
    client: httpx.Client, path: str, body: dict[str, Any], change: dict[str, Any], param: str
) -> None:
    response = post(client, path, {**body, **change})
    assert response.status_code == (400 if path.startswith("/v1") else 422)
    assert error_of(response)["param"] == param


@pytest.mark.parametrize("weights", WEIGHTS)
def test_weights_that_float32_cannot_mix_are_refused_and_leave_no_trace_in_the_metrics(
    client: httpx.Client, weights: dict[str, float]
) -> None:
    for path, body, param in (
        ("/generate", {"prompt": PROMPT, "weights": weights}, "weights.empathy"),
        ("/sweep", {"prompts": [PROMPT], "weights": [{"base": 1.0}, weights]}, "weights.1"),
        ("/sweep/line", {**LINE, "to": weights}, "to.empathy"),
        ("/sweep/map", {"prompt": PROMPT, "corners": [{"base": 1.0}] * 2 + [weights]}, "corners.2.empathy"),
        ("/v1/completions", {"model": "fake", "prompt": PROMPT, "objective_weights": weights}, "objective_weights.empathy"),
        ("/v1/chat/completions", {**CHAT, "objective_weights": weights}, "objective_weights.empathy"),
    ):  # fmt: skip
        response = client.post(path, json={**body, "normalize": False})
        assert response.status_code == (400 if path.startswith("/v1") else 422), path
        assert error_of(response)["param"] == param
        assert "allowed: 0, or a size from 1e-20 to 1e+06" in error_of(response)["message"]
    text = client.get("/metrics").text
    sums = [line.split()[1] for line in text.splitlines() if line.startswith("emorl_objective_weight_sum_total")]
    assert sums
    assert all(float(value) == 0.0 for value in sums)


def test_metrics_take_only_what_is_finite_and_bounded() -> None:
    metrics = Metrics(EngineReading, ["/generate"])
    metrics.know_objectives(["empathy"])
    parts = [(math.inf, 1.0), (math.nan, 1.0), (1.0, math.inf), (-math.inf, 2.0)]
    attributions = tuple(Attribution(sum(each), each, 0) for each in parts)
    for weight in (math.inf, -math.inf, math.nan, 1e308, -1e38):
        metrics.completed(
            Completion("r", "", FinishReason.STOP, (1,), (0.0,), {"empathy": weight}, 0, 1, attributions=attributions),
            ("base", "empathy"),
            streamed=False,
        )
    for family in metrics.registry.collect():
        for sample in family.samples:
            assert math.isfinite(sample.value), sample
    assert metrics.registry.get_sample_value("emorl_objective_weight_sum_total", {"objective": "empathy"}) == 0.0
