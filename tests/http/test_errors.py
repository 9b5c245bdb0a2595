"""One error body everywhere, and nothing foreign in it."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest

import emorl_core.errors
import server.door.errors
from emorl_core.errors import EmorlError, EngineError
from emorl_core.fake import fake_ensemble
from server.door.admission import MAX_RETRY_AFTER_S
from server.door.errors import NotDrafted, QueueFull, ShuttingDown, error_headers, error_object, rule_for, status_for
from server.settings import Settings
from tests.http.harness import PROMPT, error_of, in_process, live

JSON = {"content-type": "application/json"}


def test_unknown_routes_and_methods_answer_with_the_one_body(client: httpx.Client) -> None:
    missing = client.get("/no/such/route")
    assert (missing.status_code, error_of(missing)["code"]) == (404, "not_found")
    wrong = client.get("/generate")
    assert (wrong.status_code, error_of(wrong)["code"]) == (405, "method_not_allowed")
    assert wrong.headers["allow"] == "POST"
    assert client.get("/generate/").status_code == 404


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b"{", 400, "invalid_json"),
        (b'{"prompt": "a" "b"}', 400, "invalid_json"),
        (b"\xff\xfe\x00", 400, "invalid_json"),
        (b"[" * 100_000, 400, "invalid_json"),
        (b'{"seed": 1' + b"0" * 5000 + b"}", 400, "invalid_json"),
        (b"[]", 422, "invalid_value"),
        (b"null", 422, "invalid_value"),
        (b'"text"', 422, "invalid_value"),
        (b"", 422, "missing_field"),
        (b'{"prompt": "x", "\\ud800": 1}', 422, "invalid_value"),
        (b'{"prompt": "x", "weights": {"\\ud800": 1}}', 422, "invalid_weights"),
    ],
)
def test_a_body_that_is_no_request_is_refused_in_one_line(
    client: httpx.Client, content: bytes, status: int, code: str
) -> None:
    response = client.post("/generate", content=content, headers=JSON)
    assert response.status_code == status
    assert error_of(response)["code"] == code


TWICE = {
    b'{"prompt": "a", "prompt": "b"}': "prompt",
    b'{"weights": {"x": 1, "y": 1, "x": 2}}': "x",
    b'[[{"stop": [], "stop": []}]]': "stop",
    b'{"no_such_field": 1, "no_such_field": 1}': "no_such_field",
    b'{"a": 1, "\\u0061": 1}': "a",
}


def test_a_key_that_stands_twice_is_refused_wherever_there_is_a_body(client: httpx.Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    routes = [path for path, methods in paths.items() if "requestBody" in methods.get("post", {})]
    wanted = {"/generate", "/sweep", "/sweep/line", "/sweep/map", "/drafts", "/v1/completions", "/v1/chat/completions"}
    assert wanted <= set(routes)
    for route in routes:
        for content, key in TWICE.items():
            response = client.post(route, content=content, headers=JSON)
            assert response.status_code == 400
            error = error_of(response)
            assert (error["code"], error["param"]) == ("invalid_json", None)
            assert error["message"] == f"the body cannot be read as JSON: key {key!r} stands twice"


def test_another_content_type_is_named_as_the_problem(client: httpx.Client) -> None:
    for headers in ({"content-type": "text/plain"}, {}):
        response = client.post("/generate", content=b'{"prompt": "x"}', headers=headers)
        assert response.status_code == 415
        assert error_of(response)["param"] == "content-type"


def test_a_body_over_the_limit_is_refused_announced_or_not(client: httpx.Client) -> None:
    big = b'{"prompt": "' + b"x" * 300_000 + b'"}'
    announced = client.post("/generate", content=big, headers=JSON)
    chunked = client.post("/generate", content=iter([big[:200_000], big[200_000:]]), headers=JSON)
    for response in (announced, chunked):
        assert response.status_code == 413
        assert "262144 bytes" in error_of(response)["message"]


async def test_what_nobody_expected_is_a_500_without_its_text(capsys: pytest.CaptureFixture[str]) -> None:
    ensemble = fake_ensemble()

    def boom(text: str) -> list[int]:
        raise ValueError(f"cannot read {text}")

    async with in_process(ensemble=ensemble) as (client, service):
        ensemble.tokenizer.encode = boom  # type: ignore[method-assign]
        response = await client.post("/generate", json={"prompt": "SECRET words"})
        assert response.status_code == 500
        assert error_of(response)["code"] == "internal_error"
        assert "SECRET" not in response.text
        assert service.admission.in_use == 0
    output = capsys.readouterr()
    assert "SECRET" not in output.out + output.err


def test_a_failure_in_the_engine_is_answered_without_its_text() -> None:
    with live() as server, server.client() as client:

        def boom(prompts: list[tuple[int, ...]]) -> None:
            raise ValueError("SECRET text in an exception")

        server.model.on_step = boom
        for stream in (False, True):
            response = client.post("/generate", json={"prompt": PROMPT, "stream": stream})
            assert response.status_code == 500, "the status is decided before the first byte"
            assert error_of(response)["code"] == "engine_error"
            assert "SECRET" not in response.text
            assert response.headers["x-should-retry"] == "false"
        server.model.on_step = None
        assert client.post("/generate", json={"prompt": PROMPT}).status_code == 200


def _family(cls: type[EmorlError]) -> list[type[EmorlError]]:
    return [cls, *(each for child in cls.__subclasses__() for each in _family(child))]


def test_every_error_class_has_a_rule_and_a_code_of_its_own() -> None:
    ours = [
        cls
        for cls in _family(EmorlError)
        if cls.__module__ in (emorl_core.errors.__name__, server.door.errors.__name__)
    ]
    assert len(ours) > 20
    for cls in ours:
        error = cls("one line")
        assert 400 <= status_for(error) <= 599
        more = {"reason", "notice"} if cls is NotDrafted else set()
        assert set(error_object(error)) == {"message", "type", "param", "code"} | more
    codes = [cls.code for cls in ours]
    assert sorted(codes) == sorted(set(codes))


def test_openai_routes_say_400_where_native_ones_say_422() -> None:
    from emorl_core.errors import InvalidWeights

    error = InvalidWeights("weights: all are zero")
    assert (status_for(error, "/generate"), status_for(error, "/v1/completions")) == (422, 400)
    assert status_for(ShuttingDown("x"), "/v1/completions") == 503


def test_messages_of_engine_failures_are_the_servers_own() -> None:
    assert error_object(EngineError("SECRET"))["message"] == "the engine failed on this request"
    assert rule_for(EngineError("x")).repeats
    assert error_headers(ShuttingDown("x"))["Retry-After"] == "5"


def test_the_reference_has_the_seconds_that_are_sent() -> None:
    document = (Path(__file__).parents[2] / "docs" / "reference" / "http.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| .*? \| `(\w+)` \| .*? \| (\d.*?) \|$", document, re.MULTILINE))
    assert {"queue_full", "key_limit", "not_ready", "shutting_down"} <= set(rows)
    for code, cls in ((each.code, each) for each in _family(EmorlError) if each.code in rows):
        told = [int(number) for number in re.findall(r"\d+", rows[code])]
        errors = [cls("x")]
        if issubclass(cls, QueueFull):
            errors += [cls("x", retry_after_s=seconds) for seconds in (1, 3, MAX_RETRY_AFTER_S)]
        for error in errors:
            assert told[0] <= int(error_headers(error)["Retry-After"]) <= told[-1], code


async def test_request_ids_are_taken_when_well_formed_and_always_returned() -> None:
    async with in_process(Settings()) as (client, _):
        good = await client.get("/healthz", headers={"X-Request-ID": "trace-1:a.b"})
        assert good.headers["x-request-id"] == "trace-1:a.b"
        for bad in ("", "a b", "x" * 129, "é"):
            response = await client.get("/nope", headers=[(b"X-Request-ID", bad.encode())])
            assert re.fullmatch(r"req-[0-9a-f]{24}", response.headers["x-request-id"])


async def test_every_answer_carries_the_security_headers() -> None:
    async with in_process() as (client, _):
        for response in (await client.get("/info"), await client.get("/nope"), await client.post("/generate")):
            assert response.headers["x-content-type-options"] == "nosniff"
            assert "default-src 'none'" in response.headers["content-security-policy"]
