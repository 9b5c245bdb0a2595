"""A policy is asked before anything runs, on every route that generates; where it fails, nothing is drafted."""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest

from emorl_core.errors import InvalidRequest
from emorl_core.fake import fake_ensemble
from emorl_core.policy import FAILED, MAX_NOTICE, REASONS, DoNotDraft
from emorl_core.text.chat import Message
from server.door.context import GENERATION_ROUTES
from server.policy.door import MAX_RUNNING
from server.policy.loading import CRISIS_CUES, load_policy
from server.settings import Settings, SettingsError
from tests.http.harness import in_process

DANGER = "I want to kill myself tonight."
CALM = "I feel tired of work."
NOTICE = "Please ring the duty desk.\nThey are there day and night."
Answer = Callable[[Sequence[Message]], Any]
ENDS = {"from": {"reflection": 1.0}, "to": {"empathy": 1.0}, "max_new_tokens": 4}
V1 = {"model": "fake", "max_tokens": 4}


def bodies(said: str, ids: list[int]) -> list[tuple[str, dict[str, Any]]]:
    """Every way to say something to a route that generates; a new route belongs here."""
    chat = [{"role": "user", "content": said}]
    parts = [{"role": "user", "content": [{"type": "text", "text": part} for part in (said[:15], said[15:])]}]
    later = [*chat, {"role": "assistant", "content": "Go on."}, {"role": "user", "content": CALM}]
    few = {"max_new_tokens": 4}
    return [
        ("/generate", {"prompt": said, **few}),
        ("/generate", {"messages": chat, **few}),
        ("/generate", {"messages": parts, **few}),
        ("/generate", {"messages": later, **few}),
        ("/sweep", {"prompts": [CALM, said], "resolution": 2, **few}),
        ("/sweep", {"messages": chat, "resolution": 2, **few}),
        ("/sweep", {"chats": [[{"role": "user", "content": CALM}], chat], "resolution": 2, **few}),
        ("/generate", {"prompt": said, "weights": "auto", **few}),
        ("/drafts", {"prompt": said, **few}),
        ("/drafts", {"messages": chat, **few}),
        ("/sweep/line", {"prompt": said, **ENDS}),
        ("/sweep/line", {"messages": chat, **ENDS}),
        ("/sweep/map", {"prompt": said, **few}),
        ("/sweep/map", {"messages": chat, **few}),
        ("/v1/completions", {"prompt": said, **V1}),
        ("/v1/completions", {"prompt": [CALM, said], **V1}),
        ("/v1/completions", {"prompt": ids, **V1}),
        ("/v1/completions", {"prompt": [ids, ids], **V1}),
        ("/v1/chat/completions", {"messages": chat, **V1}),
        ("/v1/chat/completions", {"messages": parts, **V1}),
        ("/v1/chat/completions", {"messages": later, **V1}),
    ]


@pytest.fixture
def policy_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[Answer], Settings]:
    """A callable as the setting names it."""

    def made(answer: Answer, **settings: Any) -> Settings:
        module = ModuleType("operators_own")
        module.decide = answer  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "operators_own", module)
        return Settings(policy="operators_own:decide", **settings)

    return made


def not_drafted(response: httpx.Response) -> dict[str, Any]:
    native = not str(response.request.url.path).startswith("/v1/")
    assert response.status_code == (422 if native else 400)
    assert response.headers["content-type"] == "application/json", "no stream has begun"
    assert response.headers["x-should-retry"] == "false"
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code", "reason", "notice"}
    assert (error["type"], error["param"], error["code"]) == ("policy_error", None, "not_drafted")
    assert error["message"] == " ".join(error["notice"].split())
    return error


async def test_every_route_that_generates_asks_before_anything_is_tokenised(
    policy_of: Callable[[Answer], Settings],
) -> None:
    seen: list[str] = []

    def decide(messages: Sequence[Message]) -> DoNotDraft | None:
        assert isinstance(messages, tuple)
        seen.append("".join(each.text for each in messages if each.role == "user"))
        return DoNotDraft("crisis", NOTICE) if "kill" in seen[-1] else None

    ensemble = fake_ensemble()
    ids = list(ensemble.encode(DANGER))
    tokenised: list[str] = []
    encode, encode_prompt = ensemble.tokenizer.encode, ensemble.tokenizer.encode_prompt
    ensemble.tokenizer.encode = lambda text: (tokenised.append(text), encode(text))[1]  # type: ignore[method-assign]
    ensemble.tokenizer.encode_prompt = lambda *a: (tokenised.append(a[0]), encode_prompt(*a))[1]  # type: ignore[method-assign]
    cases = bodies(DANGER, ids)
    assert {path for path, _ in cases} == set(GENERATION_ROUTES)
    async with in_process(policy_of(decide), ensemble) as (client, service):
        tokenised.clear()  # what the warm-up took
        asked = 0
        for path, body in cases:
            for stream in (False,) if body.get("weights") == "auto" else (False, True):
                seen.clear()
                asked += 1
                error = not_drafted(await client.post(path, json={**body, "stream": stream}))
                assert (error["reason"], error["notice"]) == ("crisis", NOTICE)
                assert any("kill" in text for text in seen)
        assert tokenised == []
        assert service.admission.in_use == 0
        assert service.deployment().users == 0
        for path, body in bodies(CALM, list(encode(CALM))):
            response = await client.post(path, json=body)
            chat_of_several = path == "/v1/chat/completions" and len(body["messages"]) > 1
            refused_for_other_reasons = chat_of_several or "messages" in body or "chats" in body
            assert response.status_code == 200 or refused_for_other_reasons, response.text
            assert "not_drafted" not in response.text
        assert tokenised
        text = (await client.get("/metrics")).text
    counted = [line for line in text.splitlines() if line.startswith("emorl_requests_total") and "not_drafted" in line]
    assert sum(float(line.rsplit(" ", 1)[1]) for line in counted) == asked
    assert f'emorl_not_drafted_total{{reason="crisis"}} {asked}.0' in text
    assert 'emorl_not_drafted_total{reason="policy_failed"} 0.0' in text


def _raises(_: Sequence[Message]) -> DoNotDraft | None:
    raise ValueError("SECRET words")


def _exits(_: Sequence[Message]) -> DoNotDraft | None:
    raise SystemExit(3)


def _unknown_reason(_: Sequence[Message]) -> DoNotDraft | None:
    return DoNotDraft("SECRET words", NOTICE)


FAULTY: dict[str, Answer] = {
    "raises": _raises,
    "exits": _exits,
    "unknown reason": _unknown_reason,
    "a bool": lambda _: True,
    "false": lambda _: False,
    "text": lambda _: "SECRET words",
    "a mapping": lambda _: {"reason": "crisis", "notice": NOTICE},
    "a pair": lambda _: ("crisis", NOTICE),
}


@pytest.mark.parametrize("kind", FAULTY)
async def test_a_policy_that_fails_lets_nothing_pass_and_the_log_says_so(
    kind: str, policy_of: Callable[[Answer], Settings], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with in_process(policy_of(FAULTY[kind])) as (client, service):
        for path, body in bodies("SECRET words", [3, 4]):
            error = not_drafted(await client.post(path, json=body))
            assert error["reason"] == FAILED
        assert service.admission.in_use == 0
    assert "SECRET" not in caplog.text
    said = [record for record in caplog.records if record.name == "emorl.policy"]
    assert len(said) == len(bodies("", []))
    assert all(record.levelname == "ERROR" and "not drafted" in record.message for record in said)
    access = [record for record in caplog.records if record.name == "emorl.access" and "POST" in record.message]
    assert all("outcome=not_drafted reason=policy_failed" in record.message for record in access)


async def test_a_policy_that_hangs_is_waited_for_so_long_and_no_thread_is_begun_without_end(
    policy_of: Callable[..., Settings], caplog: pytest.LogCaptureFixture
) -> None:
    go = threading.Event()
    settings = policy_of(lambda _: go.wait(60) and None, policy_timeout_s=0.02)
    try:
        async with in_process(settings) as (client, _):
            for _ in range(MAX_RUNNING + 3):
                response = await client.post("/generate", json={"prompt": CALM})
                assert not_drafted(response)["reason"] == FAILED
            threads = [each for each in threading.enumerate() if each.name == "emorl-policy"]
            assert len(threads) == MAX_RUNNING
            assert "did not answer within 0.02 s (policy_timeout_s)" in caplog.text
    finally:
        go.set()
        for each in threads:
            each.join(60)


async def test_a_policy_that_comes_to_itself_is_asked_again(policy_of: Callable[..., Settings]) -> None:
    calls: list[int] = []

    def decide(_: Sequence[Message]) -> DoNotDraft | None:
        calls.append(1)
        if len(calls) == 1:
            raise ValueError
        return None

    async with in_process(policy_of(decide)) as (client, _):
        assert (await client.post("/generate", json={"prompt": CALM})).status_code == 422
        assert (await client.post("/generate", json={"prompt": CALM})).status_code == 200


async def test_an_openai_client_gets_the_notice_in_its_error(policy_of: Callable[..., Settings]) -> None:
    import openai

    async with in_process(policy_of(lambda _: DoNotDraft("off_topic", NOTICE))) as (http, _):
        client = openai.AsyncOpenAI(api_key="x", base_url="http://emorl/v1", http_client=http, max_retries=2)
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError) as raised:
                await client.chat.completions.create(
                    model="fake", messages=[{"role": "user", "content": CALM}], stream=stream
                )
            assert raised.value.code == "not_drafted"
            assert isinstance(raised.value.body, dict)
            assert (raised.value.body["reason"], raised.value.body["notice"]) == ("off_topic", NOTICE)


async def test_the_shipped_list_by_its_name() -> None:
    async with in_process(Settings(policy=CRISIS_CUES, policy_timeout_s=60)) as (client, _):
        error = not_drafted(await client.post("/generate", json={"prompt": DANGER}))
        assert error["reason"] == "crisis"
        assert "emergency number" in error["notice"]
        assert (await client.post("/generate", json={"prompt": CALM})).status_code == 200


def test_without_the_setting_nobody_is_asked() -> None:
    assert Settings().policy is None
    assert load_policy(Settings()) is None


LIST = {"reason": "off_topic", "notice": NOTICE, "words": {"x": "tax|taxes"}, "matches": ["my <x>"]}


def test_a_list_of_the_operators_own(tmp_path: Path) -> None:
    path = tmp_path / "ours.yaml"
    path.write_text(json.dumps({**LIST, "passes": ["hate my taxes"]}), encoding="utf-8")
    policy = load_policy(Settings(policy=str(path)))
    assert policy is not None
    assert policy((Message("user", "MY\u00a0Tax, please!"),)) == DoNotDraft("off_topic", NOTICE)
    for said in ("my taxation", "tax", "I hate my taxes"):
        assert policy((Message("user", said),)) is None


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"reason": "because"}, "reason"),
        ({"notice": ""}, "notice"),
        ({"notice": " \n"}, "notice is empty"),
        ({"matches": []}, "matches"),
        ({"matches": ["("]}, "matches.0 is no regular expression"),
        ({"matches": ["<y>"]}, "matches.0 names <y>"),
        ({"words": {"x": "["}}, "words.x is no regular expression"),
        ({"passes": ["ok", "*"]}, "passes.1 is no regular expression"),
        ({"patterns": ["x"]}, "unknown key 'patterns'"),
    ],
)
def test_a_list_that_cannot_be_used_is_refused_in_one_line(tmp_path: Path, fields: dict[str, Any], said: str) -> None:
    path = tmp_path / "ours.yaml"
    path.write_text(json.dumps({**LIST, **fields}), encoding="utf-8")
    with pytest.raises(SettingsError) as raised:
        load_policy(Settings(policy=str(path)))
    assert said in raised.value.message
    assert "\n" not in raised.value.message
    assert raised.value.param == "policy"


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("no-such-list", "no such file"),
        ("no_such_module:decide", "cannot be imported (ModuleNotFoundError)"),
        ("json:no_such_function", "has no function 'no_such_function'"),
        ("json:JSONDecoder", "has no function 'JSONDecoder'"),
        ("tests.http.test_policy:asynchronous", "is async"),
        ("a:b:c", "no such file"),
    ],
)
def test_a_name_that_is_no_policy_is_refused_in_one_line(named: str, said: str) -> None:
    with pytest.raises(SettingsError, match="policy is") as raised:
        load_policy(Settings(policy=named))
    assert said in raised.value.message
    assert "\n" not in raised.value.message


async def asynchronous(_: Sequence[Message]) -> None:
    """No policy: nobody would await it."""


def test_an_expression_that_a_text_makes_slow_ends_in_time(tmp_path: Path) -> None:
    path = tmp_path / "ours.yaml"
    path.write_text(json.dumps({**LIST, "matches": ["(?:(?:a|b|ab)+ ?)+c"]}), encoding="utf-8")
    policy = load_policy(Settings(policy=str(path), policy_timeout_s=0.05))
    assert policy is not None
    with pytest.raises(TimeoutError):
        policy((Message("user", "ab " * 5000 + "xc"),))


@pytest.mark.parametrize("reason", ["", "Crisis", "because", None, 3, FAILED])
def test_reasons_are_from_a_fixed_list(reason: Any) -> None:
    with pytest.raises(InvalidRequest, match="reason is"):
        DoNotDraft(reason, NOTICE)


@pytest.mark.parametrize("notice", ["", " ", "x" * (MAX_NOTICE + 1), None, 3, b"x"])
def test_a_notice_is_a_text_of_some_length(notice: Any) -> None:
    with pytest.raises(InvalidRequest, match="notice"):
        DoNotDraft(REASONS[0], notice)
