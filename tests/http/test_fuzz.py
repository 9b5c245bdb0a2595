"""schemathesis over the OpenAPI document: no case gives a 5xx, and every answer is one that the document describes."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from emorl_core.fake import fake_ensemble
from server.app import create_app
from server.settings import Settings
from tests.http.harness import PROMPT, Live, idle, live, wait_until

POSTS = ("/generate", "/sweep", "/sweep/line", "/sweep/map", "/drafts", "/v1/completions", "/v1/chat/completions")
EXAMPLES = settings.default.max_examples  # of each kind: 3 kinds of 6 operations and one of a seventh


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live(Settings(port=0, max_choices=128), fake_ensemble(mean_length=1)) as running:
        yield running


@pytest.fixture(scope="module")
def schema(server: Live) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own dependencies
        return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


def fuzz(schema: Any, path: str, method: str, change: Callable[[schemathesis.Case], None], mode: str) -> Counter[int]:
    """Run EXAMPLES cases through one operation; returns how many got which status."""
    statuses: Counter[int] = Counter()
    strategy = schema[path][method].as_strategy(generation_mode=schemathesis.GenerationMode(mode))

    @given(case=strategy)
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def each(case: schemathesis.Case) -> None:
        change(case)
        response = case.call()
        statuses[response.status_code] += 1
        # A document cannot say which names a bundle has: valid by the schema may still be a 422 that names the field.
        case.validate_response(response, excluded_checks=[positive_data_acceptance])
        if response.status_code >= 400:
            assert set(response.json()["error"]) == {"message", "type", "param", "code"}

    each()
    return statuses


def nothing(case: schemathesis.Case) -> None:
    """Leave the case as it was made."""


def names_that_exist(case: schemathesis.Case) -> None:
    """Give a case what a document cannot know, so that it gets behind the door."""
    body: Any = case.body
    if not isinstance(body, dict):
        return
    if "model" in body:
        body["model"] = "fake"
    for name in ("weights", "objective_weights", "from", "to"):
        if body.get(name) is not None:
            body[name] = {"empathy": 1.0, "reflection": 0.5}
    if "model" not in body:  # the native API, over a bundle without chat
        body.pop("messages", None)
        body.setdefault("prompts" if case.operation.path == "/sweep" else "prompt", PROMPT)
    if "prompts" in body:
        body["prompts"] = [PROMPT, "work hurts"]
        body.pop("resolution", None)
        body["weights"] = [{"empathy": 1.0}, {"reflection": 0.5, "fluency": 0.5}]
    if body.get("profile") is not None:
        body["profile"] = None
    for name in ("max_new_tokens", "max_tokens", "max_completion_tokens"):
        if body.get(name) is not None:
            body[name] = 3
    if body.get("logit_bias"):
        body["logit_bias"] = {str(i): value for i, value in enumerate(body["logit_bias"].values())}
    for name in ("candidates", "seeds"):
        body.pop(name, None)
    if "min_new_tokens" in body:
        body["min_new_tokens"] = 0
    if body.get("prompt", "") is None or isinstance(body.get("prompt"), str):
        body["prompt"] = (body["prompt"] or PROMPT)[:100]
    if body.get("messages"):
        silent = [{**message, "content": ""} for message in body["messages"]]
        body["messages"] = [*silent, {"role": "user", "content": PROMPT}]


@pytest.mark.slow
@pytest.mark.parametrize("path", POSTS)
def test_any_body_is_answered_as_the_document_says(server: Live, schema: Any, path: str) -> None:
    wrong = fuzz(schema, path, "POST", nothing, "negative")
    valid = fuzz(schema, path, "POST", nothing, "positive")
    deep = fuzz(schema, path, "POST", names_that_exist, "positive")
    assert sum((wrong + valid + deep).values()) >= 3 * EXAMPLES
    assert 200 not in wrong
    assert deep[200] > EXAMPLES / 5, f"most cases must get behind the door: {deep}"
    wait_until(lambda: idle(server), "everything is free again")


@pytest.mark.slow
def test_any_model_name_is_answered_as_the_document_says(schema: Any) -> None:
    assert set(fuzz(schema, "/v1/models/{model}", "GET", nothing, "positive")) <= {200, 404}


def test_every_route_documents_its_errors_with_an_example() -> None:
    schema = create_app(Settings(), fake_ensemble()).openapi()
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            assert operation.get("summary") or operation.get("description"), path
            failures = {status: each for status, each in operation["responses"].items() if int(status) >= 400}
            assert failures, path
            for status, each in failures.items():
                content = each["content"]["application/json"]
                assert content["schema"]["$ref"].endswith("/ErrorBody"), (path, status)
                assert set(content["example"]["error"]) == {"message", "type", "param", "code"}, (path, status)


def test_every_request_and_answer_has_an_example() -> None:
    schema = create_app(Settings(), fake_ensemble()).openapi()
    models = schema["components"]["schemas"]

    def shown(media: dict[str, Any]) -> bool:
        name = media.get("schema", {}).get("$ref", "").rsplit("/", 1)[-1]
        return "example" in media or bool(models.get(name, {}).get("examples"))

    for path, operations in schema["paths"].items():
        for operation in operations.values():
            bodies = [operation["requestBody"]] if "requestBody" in operation else []
            for content in [*bodies, operation["responses"]["200"]]:
                for kind, media in content["content"].items():
                    assert shown(media), (path, kind)
    for path in POSTS:
        assert "text/event-stream" in schema["paths"][path]["post"]["responses"]["200"]["content"]
