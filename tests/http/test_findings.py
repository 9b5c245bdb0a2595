"""What is wrong with a body is told as its sender knows it, whatever the validator calls things inside."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from pydantic import BaseModel, ValidationError

from emorl_core.errors import InvalidRequest
from server.door.findings import from_validation
from tests.http.harness import PROMPT, error_of
from tests.manual import request_models

VALID: dict[str, dict[str, Any]] = {
    "/generate": {"prompt": PROMPT},
    "/sweep": {"prompts": [PROMPT], "weights": [{"empathy": 1}]},
    "/sweep/line": {"prompt": PROMPT, "from": {"empathy": 1}, "to": {"reflection": 1}},
    "/sweep/map": {"prompt": PROMPT},
    "/drafts": {"prompt": PROMPT},
    "/v1/completions": {"model": "fake", "prompt": PROMPT},
    "/v1/chat/completions": {"model": "fake", "messages": [{"role": "user", "content": PROMPT}]},
}
WRONG: list[Any] = [
    7, 2.5, -1, True, "", "ZEBRAFISH", [], [7], [True], [""], ["x", 7], ["x", None], [[]], [["x"]], [[7, "x"]], [{}],
    {}, {"ZEBRAFISH": 1}, {"empathy": "ZEBRAFISH"}, {"empathy": {}}, [{"empathy": []}], [{"role": "user"}],
    [{"role": "user", "content": 7}], [{"role": "user", "content": {}}], [{"role": "user", "content": [7]}],
    [{"role": "user", "content": [{"type": "text", "text": 7}]}], [{"role": "user", "content": [{"type": "ZEBRAFISH"}]}],
    [{"role": "user", "content": "\ud800"}], "\ud800", ["\ud800"],
]  # fmt: skip


def models(above: type[BaseModel] = BaseModel) -> Iterator[str]:
    for each in above.__subclasses__():
        yield each.__name__
        yield from models(each)


def inside() -> re.Pattern[str]:
    """Words of the validator's, and the names of models."""
    names = "|".join({name for name in models() if name.isidentifier() and name[1:].lower() != name[1:]})
    words = (
        r"function-|union|tagged|\btag\b|constrained|-or-|list\[|dict\[|tuple\[|validator|instance of|dictionary|str\]"
    )
    return re.compile(rf"{words}|after validation|\b({names})\b")


def error_in(model: type[BaseModel], body: dict[str, Any]) -> InvalidRequest | None:
    """What a route that takes `model` says of a body."""
    try:
        model.model_validate(body)
    except ValidationError as error:
        findings = error.errors()
        return from_validation([{**each, "loc": ("body", *each["loc"])} for each in findings], body)
    except InvalidRequest as error:
        return error
    return None


@pytest.mark.parametrize("route", VALID)
def test_no_wrong_value_of_any_field_brings_the_validators_words_out(route: str) -> None:
    model, hidden = request_models()[f"POST {route}"], inside()
    assert error_in(model, VALID[route]) is None
    for name, field in model.model_fields.items():
        key = field.alias or name
        found = [(value, error_in(model, {**VALID[route], key: value})) for value in WRONG]
        assert any(error for _, error in found), key
        for value, error in found:
            if error is None:
                continue
            assert (error.param or "").split(".")[0] in (key, "stream_options", "echo", "top_logprobs"), value
            for text in (error.message, error.param or ""):
                assert not hidden.search(text), (key, value, text)
                assert "ZEBRAFISH" not in text.replace("unknown field", "") or ".ZEBRAFISH" in text, (key, value, text)


@pytest.mark.parametrize(
    ("route", "change", "param", "message"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": 7}]}, "messages.0.content",
         "messages.0.content: must be text, or a list of parts of type text (found 7)"),
        ("/v1/chat/completions", {"messages": ["hi"]}, "messages.0", "messages.0: must be an object"),
        ("/v1/chat/completions", {"messages": "hi"}, "messages", "messages: must be a list"),
        ("/v1/completions", {"prompt": {}}, "prompt",
         "prompt: must be text, a list of texts, a list of token ids, or a list of such lists; not empty"),
        ("/v1/completions", {"prompt": []}, "prompt",
         "prompt: must be text, a list of texts, a list of token ids, or a list of such lists; not empty"),
        ("/v1/completions", {"prompt": ["a", 7]}, "prompt.1", "prompt.1: input should be a valid string (found 7)"),
        ("/v1/completions", {"prompt": [7, "a"]}, "prompt.1", "prompt.1: input should be a valid integer"),
        ("/v1/completions", {"prompt": [[7], []]}, "prompt.1", "prompt.1: must not be empty"),
        ("/v1/completions", {"prompt": ["x", "\ud800"]}, "prompt.1",
         "prompt.1: must be Unicode text; it has half a surrogate pair in it"),
        ("/v1/completions", {"stop": 7}, "stop", "stop: must be text, or a list of up to 4 texts (found 7)"),
        ("/v1/completions", {"stop": ["a", 7]}, "stop.1", "stop.1: input should be a valid string (found 7)"),
        ("/v1/completions", {"stop": ["a"] * 5}, "stop", "stop: must have at most 4 items, has 5"),
        ("/v1/chat/completions", {"tool_choice": "auto"}, "tool_choice",
         "tool_choice is not implemented; leave it out"),
        ("/generate", {"weights": [1]}, "weights", "weights: must be an object"),
        ("/generate", {"stop": "x"}, "stop", "stop: must be a list"),
        ("/sweep", {"weights": [{"empathy": 1}, 7]}, "weights.1", "weights.1: must be an object"),
    ],
)  # fmt: skip
def test_one_line_names_the_field_and_what_is_allowed(
    client: httpx.Client, route: str, change: dict[str, Any], param: str, message: str
) -> None:
    content = json.dumps({**VALID[route], **change})
    error = error_of(client.post(route, content=content, headers={"Content-Type": "application/json"}))
    assert (error["param"], error["message"]) == (param, message)


@pytest.mark.parametrize(
    ("route", "change", "param"),
    [
        ("/v1/completions", {"prompt": ["a", "b", ""]}, "prompt.2"),
        ("/v1/completions", {"prompt": ["a", " \n"]}, "prompt.1"),
        ("/v1/completions", {"prompt": [[4], [99999]]}, "prompt.1"),
        ("/v1/completions", {"prompt": [[4], [4] * 200]}, "prompt.1"),
        ("/v1/completions", {"prompt": ["a", "work " * 200]}, "prompt.1"),
        ("/v1/completions", {"prompt": ""}, "prompt"),
        ("/v1/completions", {"prompt": [99999]}, "prompt"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "work " * 200}]}, "messages.0.content"),
        ("/sweep", {"prompts": ["a", ""]}, "prompts.1"),
        ("/sweep", {"prompts": ["a", "b", "work " * 200]}, "prompts.2"),
    ],
)
def test_a_prompt_of_a_batch_that_cannot_be_served_is_located(
    client: httpx.Client, route: str, change: dict[str, Any], param: str
) -> None:
    error = error_of(client.post(route, json={**VALID[route], **change}))
    assert error["param"] == param
    assert error["message"].startswith(f"{param} ")
