"""A chat history as OpenAI's clients write it: what says nothing is taken, what would be left out is refused by name."""

from __future__ import annotations

import typing
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import (
    ChatCompletionAssistantMessageParam,
    ChatCompletionMessage,
    ChatCompletionStoreMessage,
    ParsedChatCompletionMessage,
)

from emorl_core.errors import InvalidRequest
from emorl_core.fake import fake_ensemble
from server.api.openai.messages import Message, single_statement
from tests.http.harness import PROMPT, Live, error_of

USER = {"role": "user", "content": PROMPT}
EPHEMERAL = {"type": "ephemeral"}


def post(client: httpx.Client, messages: list[Any]) -> httpx.Response:
    body = {"model": "fake", "messages": messages, "temperature": 0, "max_tokens": 20}
    return client.post("/v1/chat/completions", json=body)


def read(message: dict[str, Any]) -> Message:
    return Message.model_validate(message)


@pytest.mark.parametrize(
    "messages",
    [
        [USER],
        [{"role": "user", "content": [{"type": "text", "text": PROMPT[:10]}, {"type": "text", "text": PROMPT[10:]}]}],
        [{"role": "user", "content": [{"type": "text", "text": PROMPT, "cache_control": EPHEMERAL}]}],
        [{"role": "user", "content": [{"type": "text", "text": PROMPT, "cache_control": None}], "name": None}],
        [{"role": "user", "content": [{"type": "text", "text": PROMPT, "prompt_cache_breakpoint": {"mode": "explicit"}}]}],
        [{**USER, "name": "ana"}],
        [{"role": "system", "content": ""}, USER],
        [{"role": "developer", "content": [{"type": "text", "text": " \n"}]}, USER],
        [{"role": "assistant", "content": None, "tool_calls": []}, USER],
        [USER, {"role": "assistant"}],
    ],
)  # fmt: skip
def test_one_user_message_is_answered(client: httpx.Client, messages: list[Any]) -> None:
    response = post(client, messages)
    assert response.status_code == 200, response.text
    expected = fake_ensemble().generate(PROMPT, max_new_tokens=20).text
    assert response.json()["choices"][0]["message"]["content"] == expected


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([{"role": "system", "content": "Be ZEBRAFISH."}, USER], "messages.0"),
        ([{"role": "developer", "content": "Be ZEBRAFISH."}, USER], "messages.0"),
        ([{"role": "system", "content": [{"type": "text", "text": "ZEBRAFISH"}]}, USER], "messages.0"),
        ([{"role": "user", "content": "ZEBRAFISH"}, USER], "messages.0"),
        ([{"role": "user", "content": " "}, {"role": "assistant", "content": "ZEBRAFISH"}, USER], "messages.1"),
        ([USER, {"role": "assistant", "content": "ZEBRAFISH"}], "messages.1"),
        ([USER, {"role": "system", "content": "ZEBRAFISH"}], "messages.1"),
    ],
)
def test_a_message_that_would_not_be_used_is_refused_by_its_number(
    client: httpx.Client, messages: list[Any], param: str
) -> None:
    response = post(client, messages)
    assert response.status_code == 400
    error = error_of(response)
    assert error["param"] == param
    assert error["message"].startswith(f"{param}: ")
    assert "no chat template" in error["message"]
    assert "ZEBRAFISH" not in response.text


def test_the_servers_own_answer_can_be_sent_back(server: Live) -> None:
    """The whole history is refused, since earlier turns would not be used; but not for a field of the answer's."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as ai:
        question: Any = USER
        answer = ai.chat.completions.create(model="fake", messages=[question], temperature=0).choices[0].message
        for spelled in (answer, answer.model_dump(), answer.to_dict(), answer.model_dump(exclude_none=True)):
            history: list[Any] = [question, spelled, question]
            with pytest.raises(openai.BadRequestError) as refused:
                ai.chat.completions.create(model="fake", messages=history)
            assert refused.value.param == "messages.0"
            assert "no chat template" in refused.value.message


@pytest.mark.parametrize("kind", [ChatCompletionMessage, ParsedChatCompletionMessage, ChatCompletionStoreMessage])
def test_every_field_of_the_clients_answers_is_read_when_it_says_nothing(kind: type[ChatCompletionMessage]) -> None:
    said = kind.model_construct(role="assistant", content="I hear you.", id="msg-1")
    message = read(said.model_dump())
    assert (message.role, message.text) == ("assistant", "I hear you.")
    assert set(kind.model_fields) - set(Message.model_fields) == set()


def test_every_field_of_the_clients_assistant_turn_is_known() -> None:
    assert set(typing.get_type_hints(ChatCompletionAssistantMessageParam)) - set(Message.model_fields) == set()


@pytest.mark.parametrize("nothing", [{"tool_calls": []}, {"annotations": []}, {"refusal": ""}, {"content_parts": []}])
def test_empty_is_nothing_too(nothing: dict[str, Any]) -> None:
    assert read({"role": "assistant", "content": "x", **nothing}).text == "x"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tool_calls", [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]),
        ("tool_calls", {}),
        ("function_call", {"name": "f", "arguments": "{}"}),
        ("audio", {"id": "audio-1"}),
        ("annotations", [{"type": "url_citation"}]),
        ("refusal", "I cannot say."),
        ("parsed", {"a": 1}),
    ],
)
def test_what_says_something_is_refused_by_name(client: httpx.Client, field: str, value: object) -> None:
    response = post(client, [USER, {"role": "assistant", "content": None, field: value}])
    assert response.status_code == 400
    error = error_of(response)
    assert error["param"] == f"messages.1.{field}"
    assert error["message"] == f"messages.1.{field} is not implemented; leave it out"


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "user", "content": None}, "messages.0.content"),
        ({"role": "system"}, "messages.0.content"),
        ({"role": "user", "content": []}, "messages.0.content"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "messages.0.content.0"),
        ({"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}, "messages.0.content.0"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages.0.content.0.text"),
        ({"role": "tool", "content": "4", "tool_call_id": "1"}, "messages.0.role"),
        ({"role": "function", "content": "4", "name": "f"}, "messages.0.role"),
        ({"role": "user", "content": "x", "weight": 1}, "messages.0.weight"),
    ],
)
def test_a_message_that_cannot_be_read_names_its_field(
    client: httpx.Client, message: dict[str, Any], param: str
) -> None:
    response = post(client, [message])
    assert response.status_code == 400
    assert error_of(response)["param"] == param


def test_without_a_user_message_there_is_nothing_to_answer() -> None:
    with pytest.raises(InvalidRequest, match="no user message"):
        single_statement([read({"role": "assistant", "content": "x"})])
