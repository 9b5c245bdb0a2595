"""The real `openai` Python client against a real server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_type_hints

import httpx
import openai
import pytest

from emorl_core.fake import fake_ensemble
from server.api.openai.requests import ChatRequest, CompletionRequest, OpenAIRequest, StreamOptions
from server.settings import Settings
from tests.http.harness import PROMPT, Live, error_of, events, idle, live, wait_until
from tests.http.test_disconnect import LONG, call, outcomes


def client_of(server: Live, **options: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0, timeout=60, **options)


@pytest.fixture
def ai(server: Live) -> Iterator[openai.OpenAI]:
    with client_of(server) as client:
        yield client


USER: list[Any] = [{"role": "user", "content": PROMPT}]


def test_the_bundle_and_its_profiles_are_models(ai: openai.OpenAI) -> None:
    models = list(ai.models.list())
    assert [model.id for model in models] == [
        "fake",
        "fake:balanced",
        "fake:reflection",
        "fake:empathy",
        "fake:fluency",
    ]
    assert all(model.object == "model" and model.owned_by == "emorl" and model.created > 1e9 for model in models)
    assert ai.models.retrieve("fake:empathy").id == "fake:empathy"
    with pytest.raises(openai.NotFoundError) as error:
        ai.models.retrieve("fake:nope")
    assert error.value.code == "model_not_found"


def test_an_unchanged_client_steers_by_the_models_name(ai: openai.OpenAI) -> None:
    for profile in ("reflection", "empathy", "fluency"):
        answer = ai.completions.create(model=f"fake:{profile}", prompt=PROMPT, max_tokens=40, temperature=0)
        alone = fake_ensemble().generate(PROMPT, profile=profile, max_new_tokens=40)
        assert answer.choices[0].text == alone.text
        assert answer.model == f"fake:{profile}"


def test_objective_weights_arrive_from_the_clients_extra_body(ai: openai.OpenAI) -> None:
    weights = {"reflection": 0.2, "empathy": 0.8}
    answer = ai.chat.completions.create(
        model="fake", messages=USER, temperature=0, max_tokens=40, extra_body={"objective_weights": weights}
    )
    assert answer.choices[0].message.content == fake_ensemble().generate(PROMPT, weights, max_new_tokens=40).text
    assert answer.model_extra is not None
    assert answer.model_extra["emorl"]["weights"] == {**weights, "fluency": 0.0}
    with pytest.raises(openai.BadRequestError) as error:
        ai.chat.completions.create(model="fake", messages=USER, extra_body={"objective_weights": {"empaty": 1}})
    assert error.value.param == "objective_weights.empaty"
    assert "objective_weights: unknown objective 'empaty'" in error.value.message


def test_completions_have_openais_defaults_and_usage(ai: openai.OpenAI) -> None:
    answer = ai.completions.create(model="fake", prompt=PROMPT, seed=3)
    assert answer.object == "text_completion"
    assert answer.id.startswith("cmpl-")
    (choice,) = answer.choices
    alone = fake_ensemble().generate(PROMPT, max_new_tokens=16, temperature=1.0, seed=3)
    assert (choice.index, choice.text, choice.logprobs) == (0, alone.text, None)
    assert choice.finish_reason == str(alone.finish_reason)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == alone.prompt_tokens
    assert answer.usage.completion_tokens == alone.completion_tokens
    assert answer.usage.total_tokens == alone.prompt_tokens + alone.completion_tokens


def test_choice_i_is_the_run_with_seed_plus_i_and_prompts_come_in_order(ai: openai.OpenAI) -> None:
    prompts = [PROMPT, "you feel alone"]
    answer = ai.completions.create(model="fake", prompt=prompts, n=3, seed=7, max_tokens=20)
    alone = fake_ensemble()
    expected = [
        alone.generate(prompt, temperature=1.0, seed=7 + i, max_new_tokens=20) for prompt in prompts for i in range(3)
    ]
    assert [choice.text for choice in answer.choices] == [each.text for each in expected]
    assert [choice.index for choice in answer.choices] == list(range(6))
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == expected[0].prompt_tokens + expected[3].prompt_tokens
    assert answer.usage.completion_tokens == sum(each.completion_tokens for each in expected)


def test_token_ids_are_a_prompt_that_gets_no_template(ai: openai.OpenAI) -> None:
    ids = list(fake_ensemble().encode(PROMPT))
    by_ids = ai.completions.create(model="fake", prompt=ids, temperature=0)
    by_text = ai.completions.create(model="fake", prompt=PROMPT, temperature=0)
    assert by_ids.choices[0].text == by_text.choices[0].text
    with pytest.raises(openai.BadRequestError, match="token id 99999; allowed: 0 to"):
        ai.completions.create(model="fake", prompt=[1, 99999])
    with pytest.raises(openai.BadRequestError, match="allowed: 1 to 128"):
        ai.completions.create(model="fake", prompt=[2] * 129)


def test_echo_puts_the_prompt_first(ai: openai.OpenAI) -> None:
    plain = ai.completions.create(model="fake", prompt=PROMPT, temperature=0)
    echoed = ai.completions.create(model="fake", prompt=PROMPT, temperature=0, echo=True)
    assert echoed.choices[0].text == PROMPT + plain.choices[0].text
    streamed = ai.completions.create(model="fake", prompt=PROMPT, temperature=0, echo=True, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == echoed.choices[0].text


@pytest.mark.parametrize("n", [1, 3])
def test_streamed_completions_join_to_the_plain_ones(ai: openai.OpenAI, n: int) -> None:
    plain = ai.completions.create(model="fake", prompt=PROMPT, n=n, seed=11, max_tokens=30)
    texts, reasons, usages = [""] * n, [""] * n, []
    stream = ai.completions.create(
        model="fake", prompt=PROMPT, n=n, seed=11, max_tokens=30, stream=True, stream_options={"include_usage": True}
    )
    for chunk in stream:
        assert chunk.object == "text_completion"
        usages.append(chunk.usage)
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            if choice.finish_reason is not None:  # the client's type says it is never null; in a stream it is
                reasons[choice.index] = choice.finish_reason
    assert texts == [choice.text for choice in plain.choices]
    assert reasons == [choice.finish_reason for choice in plain.choices]
    assert usages[-1] == plain.usage
    assert set(usages[:-1]) == {None}


def test_streamed_chat_says_the_role_first_and_the_reason_last(ai: openai.OpenAI) -> None:
    plain = ai.chat.completions.create(model="fake", messages=USER, seed=5, temperature=0.7)
    chunks = list(ai.chat.completions.create(model="fake", messages=USER, seed=5, temperature=0.7, stream=True))
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == 1
    first, *middle, last = [chunk.choices[0] for chunk in chunks]
    assert (first.delta.role, first.delta.content) == ("assistant", "")
    assert "".join(choice.delta.content or "" for choice in middle) == plain.choices[0].message.content
    assert all(choice.finish_reason is None for choice in middle)
    assert last.finish_reason == plain.choices[0].finish_reason
    assert last.delta.content is None
    assert all(chunk.usage is None for chunk in chunks)


def test_usage_chunks_are_there_when_asked_for_and_only_then(client: httpx.Client) -> None:
    body = {"model": "fake", "messages": USER, "stream": True, "max_tokens": 3}
    without = events(client.post("/v1/chat/completions", json={**body, "stream_options": {}}).text)
    assert all("usage" not in event and event["choices"] for event in without)
    *chunks, usage = events(
        client.post("/v1/chat/completions", json={**body, "stream_options": {"include_usage": True}}).text
    )
    assert all(chunk["usage"] is None for chunk in chunks)
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 3


def test_stop_strings_are_never_part_of_the_text(ai: openai.OpenAI) -> None:
    whole = ai.completions.create(model="fake", prompt=PROMPT, temperature=0, max_tokens=40).choices[0].text
    word = whole.strip().split(" ")[2]
    for stop in (word, ["not there", word]):
        choice = ai.completions.create(model="fake", prompt=PROMPT, temperature=0, max_tokens=40, stop=stop).choices[0]
        assert (choice.text, choice.finish_reason) == (whole[: whole.index(word)], "stop")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", [{"type": "function"}]),
        ("response_format", {"type": "json_object"}),
        ("reasoning_effort", "high"),
        ("store", True),
        ("audio", {}),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(client: httpx.Client, field: str, value: object) -> None:
    response = client.post("/v1/chat/completions", json={"model": "fake", "messages": USER, field: value})
    assert response.status_code == 400
    error = error_of(response)
    assert error["param"] == field
    assert error["message"] == f"{field} is not implemented; leave it out"


@pytest.mark.parametrize("value", [False, None])
def test_streams_have_no_obfuscation_and_a_client_may_say_so(client: httpx.Client, value: object) -> None:
    body = {"model": "fake", "messages": USER, "max_tokens": 2, "stream": True}
    said = client.post("/v1/chat/completions", json={**body, "stream_options": {"include_obfuscation": value}})
    assert said.status_code == 200
    assert all("obfuscation" not in event for event in events(said.text))
    asked = client.post("/v1/chat/completions", json={**body, "stream_options": {"include_obfuscation": True}})
    assert asked.status_code == 400
    assert error_of(asked)["param"] == "stream_options.include_obfuscation"
    assert error_of(asked)["message"] == "stream_options.include_obfuscation is not implemented; leave it out"


@pytest.mark.parametrize(
    ("model", "types"),
    [
        (CompletionRequest, openai.types.completion_create_params.CompletionCreateParamsNonStreaming),
        (ChatRequest, openai.types.chat.completion_create_params.CompletionCreateParamsNonStreaming),
    ],
)
def test_every_field_of_the_clients_types_is_known_here(model: type[OpenAIRequest], types: Any) -> None:
    assert set(get_type_hints(types)) - set(model.model_fields) == set()
    sent = set(get_type_hints(openai.types.chat.ChatCompletionStreamOptionsParam))
    assert sent - set(StreamOptions.model_fields) == set()


def test_off_values_that_clients_send_anyway_are_accepted(client: httpx.Client) -> None:
    off = {"frequency_penalty": 0.0, "presence_penalty": 0, "logit_bias": None, "tools": None, "n": None, "user": "me",
           "response_format": {"type": "text"}, "stop": None, "stream": False, "stream_options": None}  # fmt: skip
    response = client.post("/v1/chat/completions", json={"model": "fake", "messages": USER, "max_tokens": 2, **off})
    assert response.status_code == 200


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"prompt": "x"}, 400, "model"),
        ({"model": "gpt-4", "prompt": "x"}, 404, "model"),
        ({"model": "fake"}, 400, "prompt"),
        ({"model": "fake", "prompt": []}, 400, "prompt"),
        ({"model": "fake", "prompt": ""}, 400, "prompt"),
        ({"model": "fake", "prompt": "x", "max_tokens": 0}, 400, "max_tokens"),
        ({"model": "fake", "prompt": "x", "max_tokens": 10**6}, 400, "max_tokens"),
        ({"model": "fake", "prompt": "x", "logprobs": 6}, 400, "logprobs"),
        ({"model": "fake", "prompt": "x", "n": 100}, 400, "n"),
        ({"model": "fake", "prompt": "x", "stop": ["a", "b", "c", "d", "e"]}, 400, "stop"),
        ({"model": "fake", "prompt": "x", "best_of": 3}, 400, "best_of"),
        ({"model": "fake", "prompt": "x", "echo": True, "logprobs": 1}, 400, "echo"),
        ({"model": "fake", "prompt": "x", "stream_options": {}}, 400, "stream_options"),
        ({"model": "fake", "prompt": "x", "tempreature": 1}, 400, "tempreature"),
        ({"model": "fake:empathy", "prompt": "x", "objective_weights": {"empathy": 1}}, 400, "objective_weights"),
        ({"model": "fake:empathy", "prompt": "x", "profile": "balanced"}, 400, "profile"),
        ({"model": "fake", "prompt": "x", "profile": "nope"}, 400, "profile"),
        (
            {"model": "fake", "prompt": "x", "stream": True, "stream_options": {"include_obfuscation": True}},
            400,
            "stream_options",
        ),
    ],
)
def test_bad_completions_name_the_field(client: httpx.Client, body: dict[str, Any], status: int, param: str) -> None:
    response = client.post("/v1/completions", json=body)
    assert response.status_code == status
    assert (error_of(response)["param"] or "").split(".")[0] == param


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages"),
        ({"messages": [{"role": "user", "content": " "}]}, "messages.0.content"),
        ({"max_completion_tokens": 10**6}, "max_completion_tokens"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_completion_tokens"),
    ],
)
def test_bad_chats_name_the_field(client: httpx.Client, change: dict[str, Any], param: str) -> None:
    response = client.post("/v1/chat/completions", json={"model": "fake", "messages": USER, **change})
    assert response.status_code == 400
    assert error_of(response)["param"].startswith(param)


def test_the_client_retries_on_429_and_then_succeeds() -> None:
    with live(Settings(port=0, max_queue=0), fake_ensemble(slots=1, step_delay_s=0.005)) as server:
        held = call(server, {**LONG, "stream": True})
        wait_until(lambda: server.service.reading().running == 1, "the slot is taken")
        with client_of(server) as impatient, pytest.raises(openai.RateLimitError) as error:
            impatient.completions.create(model="fake", prompt=PROMPT)
        assert error.value.code == "queue_full"
        assert int(error.value.response.headers["retry-after"]) >= 1
        assert error.value.request_id is not None

        def hang_up(request: httpx.Request) -> None:
            if request.headers["x-stainless-retry-count"] == "1":
                held.close()
                wait_until(lambda: idle(server), "the slot is free")

        transport = httpx.Client(event_hooks={"request": [hang_up]})
        with transport, client_of(server, http_client=transport).with_options(max_retries=2) as patient:
            assert patient.completions.create(model="fake", prompt=PROMPT, max_tokens=2).choices


def test_an_error_in_mid_stream_reaches_the_client_with_its_message() -> None:
    with live(ensemble=fake_ensemble(mean_length=200)) as server, client_of(server) as ai:
        stream = ai.completions.create(model="fake", prompt=PROMPT, max_tokens=900, stream=True)
        next(stream)
        server.model.poisoned.add(server.service.deployment().ensemble.encode(PROMPT))
        with pytest.raises(openai.APIError, match="not finite"):
            list(stream)
        wait_until(lambda: idle(server), "everything is free again")


def test_leaving_a_stream_early_frees_every_choice() -> None:
    with live(ensemble=fake_ensemble(step_delay_s=0.005, mean_length=5000)) as server, client_of(server) as ai:
        stream = ai.chat.completions.create(model="fake", messages=USER, n=4, stream=True, max_tokens=1000)
        next(stream)
        stream.close()
        wait_until(lambda: idle(server), "everything is free again")
        assert outcomes(server, "cancelled", "/v1/chat/completions") == 1


async def test_the_async_client_works_too(server: Live) -> None:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as ai:
        text = ""
        async for chunk in await ai.chat.completions.create(model="fake", messages=USER, temperature=0, stream=True):
            text += chunk.choices[0].delta.content or ""
    assert text == fake_ensemble().generate(PROMPT, max_new_tokens=1024).text
