"""A token has one text wherever log-probabilities name it, and the texts (or the bytes) join to what was generated."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from emorl_core.ensemble import Ensemble
from emorl_core.fake import fake_ensemble
from emorl_core.models.fake import FakeTokenizer
from server.api.openai.logprobs import TokenNames, chat_logprobs, completion_logprobs
from server.settings import Settings
from tests.builders import tiny_t5_bundle
from tests.http.harness import PROMPT, Live, events, live

SPECIAL = ("</s>", "<pad>", "<unk>", "[SEP]")
FAKE, TINY = "fake", "tiny"
TEXT, CHAT = "/v1/completions", "/v1/chat/completions"


@pytest.fixture(scope="module")
def tiny_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Real word pieces: a text's first space is left out, and rare letters are written byte by byte."""
    ensemble = Ensemble.load(tiny_t5_bundle(tmp_path_factory.mktemp("logprobs") / "tiny"), device="cpu")
    with live(Settings(port=0), ensemble) as running:
        yield running


@pytest.fixture(params=[FAKE, TINY])
def served(request: pytest.FixtureRequest) -> Iterator[tuple[httpx.Client, str]]:
    server: Live = request.getfixturevalue("server" if request.param == FAKE else "tiny_server")
    with server.client() as client:
        yield client, request.param


def ask(served: tuple[httpx.Client, str], path: str, **fields: Any) -> Any:
    client, model = served
    told = {"prompt": PROMPT} if path == TEXT else {"messages": [{"role": "user", "content": PROMPT}]}
    response = client.post(path, json={"model": model, "max_tokens": 30, "temperature": 0, **told, **fields})
    assert response.status_code == 200, response.text
    return events(response.text) if fields.get("stream") else response.json()


def data_of(token: str) -> bytes:
    r"""`bytes:\xe2` -> the byte; a special token adds nothing; anything else is its own text."""
    if token in SPECIAL:
        return b""
    return ast.literal_eval(f'b"{token.removeprefix("bytes:")}"') if token.startswith("bytes:") else token.encode()


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 0.5, "seed": 4}])
def test_the_tokens_of_completions_join_to_the_text(served: tuple[httpx.Client, str], sampling: dict[str, Any]) -> None:
    choice = ask(served, TEXT, logprobs=3, max_tokens=60, **sampling)["choices"][0]
    logprobs, text = choice["logprobs"], choice["text"]
    tokens = logprobs["tokens"]
    assert (tokens[-1] == "</s>") == (choice["finish_reason"] == "stop")
    assert b"".join(map(data_of, tokens)).decode(errors="replace") == text
    assert served[1] == TINY or any(token.startswith("bytes:") for token in tokens)
    for token, offset in zip(tokens, logprobs["text_offset"], strict=True):
        if not token.startswith("bytes:") and token not in SPECIAL:
            assert text[offset : offset + len(token)] == token
    assert logprobs["text_offset"] == sorted(logprobs["text_offset"])


def test_a_greedy_token_is_the_most_likely_one_by_the_same_name(served: tuple[httpx.Client, str]) -> None:
    """As lm-eval tells greedy answers, by value and by name."""
    for k in (1, 2, 5):
        logprobs = ask(served, TEXT, logprobs=k)["choices"][0]["logprobs"]
        for token, value, top in zip(
            logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True
        ):
            assert max(top, key=top.__getitem__) == token
            assert max(top.values()) == value
            assert len(top) <= k
    for token in ask(served, CHAT, logprobs=True, top_logprobs=3)["choices"][0]["logprobs"]["content"]:
        first = token["top_logprobs"][0]
        assert first == {name: token[name] for name in first}
        assert len(token["top_logprobs"]) == 3


def test_a_sampled_token_has_the_name_that_it_has_among_the_alternatives(served: tuple[httpx.Client, str]) -> None:
    for seed in range(3):
        content = ask(served, CHAT, logprobs=True, top_logprobs=20, temperature=1.0, seed=seed)
        for token in content["choices"][0]["logprobs"]["content"]:
            same = [top for top in token["top_logprobs"] if top["logprob"] == token["logprob"]]
            assert not same or any(top["token"] == token["token"] and top["bytes"] == token["bytes"] for top in same)
        logprobs = ask(served, TEXT, logprobs=2, temperature=1.5, seed=seed)["choices"][0]["logprobs"]
        for token, top in zip(logprobs["tokens"], logprobs["top_logprobs"], strict=True):
            assert token in top
            assert len(top) <= 3, "two, and the chosen one where it is another"


def test_the_bytes_of_a_chat_join_to_its_content(served: tuple[httpx.Client, str]) -> None:
    choice = ask(served, CHAT, logprobs=True, top_logprobs=5, max_tokens=60)["choices"][0]
    content = choice["logprobs"]["content"]
    assert (
        bytes(byte for token in content for byte in token["bytes"]).decode(errors="replace")
        == (choice["message"]["content"])
    )
    for token in content:
        for each in (token, *token["top_logprobs"]):
            assert bytes(each["bytes"]) == data_of(each["token"])


def test_both_endpoints_and_both_ways_of_answering_name_a_token_alike(served: tuple[httpx.Client, str]) -> None:
    plain = ask(served, TEXT, logprobs=4)["choices"][0]["logprobs"]
    parts = [event["choices"][0]["logprobs"] for event in ask(served, TEXT, logprobs=4, stream=True)]
    for name, whole in plain.items():
        assert [each for part in parts if part for each in part[name]] == whole
    chat = ask(served, CHAT, logprobs=True, top_logprobs=4)["choices"][0]["logprobs"]["content"]
    chunks = ask(served, CHAT, logprobs=True, top_logprobs=4, stream=True)
    streamed = [each for chunk in chunks for each in (chunk["choices"][0]["logprobs"] or {"content": []})["content"]]
    assert streamed == chat
    assert [token["token"] for token in chat] == plain["tokens"]
    for token, top in zip(chat, plain["top_logprobs"], strict=True):
        assert {each["token"]: each["logprob"] for each in reversed(token["top_logprobs"])} == top


def test_a_stop_string_does_not_cut_the_name_of_a_token(served: tuple[httpx.Client, str]) -> None:
    whole = ask(served, TEXT, logprobs=2)["choices"][0]
    stop = whole["text"][8:14]
    cut = ask(served, TEXT, logprobs=2, stop=stop)["choices"][0]
    assert cut["text"] == whole["text"][: whole["text"].index(stop)]
    count = len(cut["logprobs"]["tokens"])
    assert cut["logprobs"]["tokens"] == whole["logprobs"]["tokens"][:count]
    assert cut["logprobs"]["top_logprobs"] == whole["logprobs"]["top_logprobs"][:count]


def test_the_client_reads_them(server: Live) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as ai:
        without = ai.completions.create(model="fake", prompt=PROMPT, temperature=0, max_tokens=3, logprobs=0)
        assert without.choices[0].logprobs is not None
        assert without.choices[0].logprobs.top_logprobs is None
        user: Any = {"role": "user", "content": PROMPT}
        chat = ai.chat.completions.create(model="fake", messages=[user], max_tokens=3, logprobs=True)
        assert chat.choices[0].logprobs is not None
        assert [len(token.top_logprobs) for token in chat.choices[0].logprobs.content or []] == [0, 0, 0]


def test_of_equally_likely_tokens_the_chosen_one_comes_first() -> None:
    """Choosing and ranking may break a tie differently; also where the chosen one is not among the ranked at all."""
    low, high = FakeTokenizer().encode("tired alone")[:-1], -0.5
    for alternatives in ([(low[1], high), (low[0], high)], [(low[1], high)]):
        token = TokenNames(FakeTokenizer()).name(low[0], high, alternatives)
        assert token.tops[0] == (token.chosen, high)
        assert len(token.tops) == len(alternatives)
        (top,) = completion_logprobs([token])["top_logprobs"]
        assert max(top, key=top.__getitem__) == token.chosen.text
        assert chat_logprobs([token])["content"][0]["top_logprobs"][0]["token"] == token.chosen.text


def test_the_parts_of_a_character_begin_where_it_begins() -> None:
    tokenizer = FakeTokenizer()
    names = TokenNames(tokenizer)
    tokens = [names.name(each, -1.0, []) for each in tokenizer.encode("🙂🙂 tired é alone")[:-1]]
    assert [token.offset for token in tokens] == [0, 0, 0, 0, 1, 1, 1, 1, 2, 8, 9, 9, 10]


def test_json_has_no_infinity() -> None:
    token = TokenNames(FakeTokenizer()).name(300, float("-inf"), [(301, -1.0), (302, float("-inf"))])
    assert (token.logprob, [value for _, value in token.tops]) == (-9999.0, [-1.0, -9999.0])


def test_the_fake_ensemble_speaks_in_half_characters() -> None:
    """What the tests above rely on."""
    assert "\ufffd" in fake_ensemble().generate(PROMPT, max_new_tokens=60).text
