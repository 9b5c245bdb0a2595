"""`emorl generate`: one prompt and many, and what happens to the others when one fails."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from emorl_cli import generate
from emorl_cli.console.reading import parse_weights
from emorl_core.bundles.bundle import ChatSpec
from emorl_core.ensemble import Ensemble
from emorl_core.errors import InvalidWeights
from emorl_core.fake import fake_ensemble

PROMPT = "I can't keep up with work."


@pytest.fixture(scope="module")
def ensemble(bundle: Path) -> Ensemble:
    return Ensemble.load(bundle, device="cpu", dtype="float32")


def test_one_prompt_prints_what_python_generates(emorl, bundle: Path, ensemble: Ensemble) -> None:
    expected = ensemble.generate(PROMPT, weights={"reflection": 0.7, "empathy": 0.3}, max_new_tokens=12)
    argv = ("generate", bundle, PROMPT, "--weights", "reflection=0.7,empathy=0.3", "--max-new-tokens", 12)
    ran = emorl(*argv, "--dtype", "float32", "--device", "cpu")
    assert (ran.code, ran.out, ran.err) == (0, expected.text + "\n", "")


def test_streaming_prints_the_same_text(emorl, fake: Ensemble) -> None:
    plain = emorl("generate", "any", PROMPT, "--temperature", 1, "--seed", 3)
    streamed = emorl("generate", "any", PROMPT, "--temperature", 1, "--seed", 3, "--stream")
    assert plain.code == streamed.code == 0
    assert plain.out == streamed.out != "\n"


def test_json_has_the_fields_of_the_http_answer(emorl, fake: Ensemble) -> None:
    from server.api.generate_models import GenerateResponse

    ran = emorl("generate", "any", PROMPT, "--profile", "empathy", "--json", "--attribution", "--seed", 5)
    answer = GenerateResponse.model_validate_json(ran.out, strict=True)
    assert set(json.loads(ran.out)) <= set(GenerateResponse.model_fields)
    assert (answer.model, answer.profile, answer.seed) == ("fake", "empathy", 5)
    assert answer.tokens
    assert "".join(token.text for token in answer.tokens) == answer.text


def test_attribution_table_adds_up(emorl, fake: Ensemble) -> None:
    ran = emorl("generate", "any", PROMPT, "--weights", "reflection=1,empathy=2", "--attribution")
    header, *rows = ran.out.splitlines()[2:]
    assert header.split() == ["token", "margin", "reflection", "empathy", "fluency"]
    assert len(rows) > 1
    for row in rows:
        margin, *parts = (float(number) for number in row[20:].split())
        assert margin == pytest.approx(sum(parts), abs=0.002)  # three printed decimals each


def test_a_drawn_seed_is_told_so_that_the_text_can_be_had_again(emorl, fake: Ensemble) -> None:
    first = emorl("generate", "any", PROMPT, "--temperature", 1)
    word, seed = first.err.split()
    assert word == "seed"
    again = emorl("generate", "any", PROMPT, "--temperature", 1, "--seed", seed)
    assert (again.out, again.err) == (first.out, "")


def test_a_file_of_prompts_is_answered_in_order_and_as_each_alone(emorl, fake: Ensemble, tmp_path: Path) -> None:
    prompts = ["you feel tired", "keep up with work", "like hope", "family", "sounds like you want change"]
    file = tmp_path / "prompts.txt"
    file.write_text("\n\n".join(prompts), encoding="utf-8")
    ran = emorl("generate", "any", "--prompts-file", file)
    alone = [emorl("generate", "any", prompt).out for prompt in prompts]
    assert ran.code == 0
    assert ran.out == "\n".join(alone)  # a blank line between two prompts is one between two answers
    assert len(set(alone)) > 1
    assert ran.err == "prompts: 5 of 5\n"


def test_json_of_a_file_names_the_line_of_each_prompt(emorl, fake: Ensemble, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", stdin(b"family\n\n  \nhope\n"))
    ran = emorl("generate", "any", "-", "--json")
    assert [json.loads(line)["line"] for line in ran.out.splitlines()] == [1, 4]


ODD = "keep\fup\vwith\x85work\u2028and\u2029hope"  # one line, whatever `str.splitlines` says


@pytest.mark.parametrize(
    "data",
    [
        b"family\nhope\n",
        b"\xef\xbb\xbffamily\nhope\n",
        b"family\r\nhope\r\n",
        b"\xef\xbb\xbffamily\r\nhope",
        b"family\rhope\r",
        b"family\n\xef\xbb\xbfhope",
    ],
)
@pytest.mark.parametrize("source", ["file", "stdin"])
def test_marks_and_line_ends_are_no_part_of_a_prompt(
    emorl, fake: Ensemble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, source: str
) -> None:
    asked = spied(fake, monkeypatch)
    (tmp_path / "prompts.txt").write_bytes(data)
    monkeypatch.setattr("sys.stdin", stdin(data))
    argv = ["-"] if source == "stdin" else ["--prompts-file", tmp_path / "prompts.txt"]
    ran = emorl("generate", "any", *argv)
    assert ran.code == 0
    assert asked == ["family", "hope"]
    assert ran.out.count("\n") == 2


@pytest.mark.parametrize("as_json", [False, True])
def test_output_lines_match_input_lines(
    emorl, fake: Ensemble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_json: bool
) -> None:
    asked = spied(fake, monkeypatch)
    real = generate._answers
    odd = lambda *args: ((line, replace(result, text=ODD)) for line, result in real(*args))  # noqa: E731
    monkeypatch.setattr(generate, "_answers", odd)  # an answer may hold such characters too
    (tmp_path / "prompts.txt").write_text(f"{ODD}\n\nfamily\n \n\n", encoding="utf-8")
    ran = emorl("generate", "any", "--prompts-file", tmp_path / "prompts.txt", *(["--json"] if as_json else []))
    assert ran.code == 0
    assert asked == [ODD, "family"]
    lines = ran.out.splitlines()
    if as_json:
        documents = [json.loads(line) for line in lines]
        assert [document["line"] for document in documents] == [1, 3]
        assert documents[0]["text"] == ODD
    else:
        assert [bool(line) for line in lines] == [True, False, True, False, False]


def spied(fake: Ensemble, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The prompts that are asked from now on."""
    asked: list[str] = []
    request = fake.request

    def spy(prompt: str, **fields):
        asked.append(prompt)
        return request(prompt, **fields)

    monkeypatch.setattr(fake, "request", spy)
    return asked


def stdin(data: bytes) -> io.TextIOWrapper:
    """Standard input as a terminal with another encoding would have it."""
    return io.TextIOWrapper(io.BytesIO(data), encoding="latin-1")


def test_a_prompt_that_is_too_long_fails_alone(emorl, fake: Ensemble, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("family\n" + "work " * 500 + "\nhope\n", encoding="utf-8")
    ran = emorl("generate", "any", "--prompts-file", file)
    first, failed, last = ran.out.split("\n")[:3]
    assert ran.code == 2
    assert first
    assert failed == ""
    assert last
    assert "line 2: prompt has" in ran.err
    documents = [
        json.loads(line) for line in emorl("generate", "any", "--prompts-file", file, "--json").out.splitlines()
    ]
    assert [("error" in document, document["line"]) for document in documents] == [(False, 1), (True, 2), (False, 3)]
    assert documents[1]["error"]["code"] == "prompt_too_long"


def test_a_prompt_that_fails_in_the_engine_fails_alone_and_exits_1(emorl, fake: Ensemble, tmp_path: Path) -> None:
    fake.engine.model.poisoned.add(fake.encode("hope"))  # type: ignore[attr-defined]
    file = tmp_path / "prompts.txt"
    file.write_text("family\nhope\nwork\n", encoding="utf-8")
    ran = emorl("generate", "any", "--prompts-file", file)
    assert ran.code == 1
    assert [bool(line) for line in ran.out.splitlines()] == [True, False, True]
    assert "line 2: the model produced NaN" in ran.err


def test_an_interruption_loses_nothing_finished(emorl, fake: Ensemble, tmp_path: Path, monkeypatch) -> None:
    """The second prompt is done while the first still runs: it is written, and the exit code says interrupted."""
    real = generate._answers

    def interrupted(*args):
        for line, result in real(*args):
            if line == 1:
                continue  # as if it were still running
            yield line, result
        raise KeyboardInterrupt

    monkeypatch.setattr(generate, "_answers", interrupted)
    file = tmp_path / "prompts.txt"
    file.write_text("family\nhope\n", encoding="utf-8")
    ran = emorl("generate", "any", "--prompts-file", file, "--json")
    assert ran.code == 130
    assert [json.loads(line)["line"] for line in ran.out.splitlines()] == [2]
    ran = emorl("generate", "any", "--prompts-file", file)
    assert [bool(line) for line in ran.out.splitlines()] == [False, True]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--weights", "reflection"], "'reflection' is not NAME=NUMBER"),
        (["--weights", "reflection=x"], "'reflection=x' is not NAME=NUMBER"),
        (["--weights", "reflection=1,reflection=2"], "'reflection' is given twice"),
        (["--weights", "reflection=1_0,empathy=1"], "'reflection=1_0' is not NAME=NUMBER"),
        (["--logit-bias", "1_0=1"], "'1_0=1' is no ID=NUMBER"),
        (["--logit-bias", "5=1_0"], "'5=1_0' is no ID=NUMBER"),
        (["--logit-bias", "5=1, 05=2"], "--logit-bias: 5 is given twice"),
        (["--max-new-tokens", "1_0"], "argument --max-new-tokens: invalid int value: '1_0'"),
        (["--seed", "\u0663"], "argument --seed: invalid int value"),
        (["--temperature", "0_1"], "argument --temperature: invalid float value: '0_1'"),
        (["--weights", "reflectoin=1"], "unknown objective 'reflectoin'; objectives: base, reflection"),
        (["--weights", "reflection=nan"], "weights.reflection is nan"),
        (["--weights", "reflection=0"], "all are zero"),
        (["--weights", "reflection=-1,empathy=1"], "negative weights are allowed only with"),
        (["--weights", "reflection=1", "--profile", "balanced"], "not allowed with argument"),
        (["--profile", "nope"], "profile 'nope' is unknown"),
        (["--temperature", "-1"], "temperature is -1.0"),
        (["--top-p", "0"], "top_p is 0.0"),
        (["--max-new-tokens", "0"], "max_new_tokens is 0"),
        (["--max-new-tokens", "x"], "--max-new-tokens"),
        (["--dtype", "float16"], "float32, bfloat16"),
        (["--prompts-file", "x"], "exactly one of a prompt, --prompts-file and --chat"),
        (["--stream", "--json"], "does not go with --json"),
    ],
)
def test_bad_input_is_one_line(emorl, fake: Ensemble, argv: list[str], words: str) -> None:
    assert words.replace("'", "") in emorl("generate", "any", PROMPT, *argv).refused().replace("'", "")


def test_negative_weights_work_when_asked_for(emorl, fake: Ensemble) -> None:
    ran = emorl("generate", "any", PROMPT, "--weights", "reflection=2,empathy=-1", "--no-normalize", "--json")
    assert json.loads(ran.out)["weights"] == {"reflection": 2.0, "empathy": -1.0, "fluency": 0.0}


def test_prompts_that_cannot_be_read_are_one_line(
    emorl, fake: Ensemble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "no such file" in emorl("generate", "any", "--prompts-file", tmp_path / "nope").refused()
    (tmp_path / "empty").write_text(" \n")
    assert "holds no prompt" in emorl("generate", "any", "--prompts-file", tmp_path / "empty").refused()
    (tmp_path / "latin").write_bytes(b"caf\xe9\n")
    assert "not UTF-8" in emorl("generate", "any", "--prompts-file", tmp_path / "latin").refused()
    assert "prompt is empty" in emorl("generate", "any", " ").refused()
    assert "not UTF-8" in emorl("generate", "any", "caf\udce9").refused()
    assert "not UTF-8" in emorl("generate", "any", "family", "--stop", "caf\udce9").refused()
    assert "stop is a list with an empty text in it" in emorl("generate", "any", "family", "--stop", "").refused()
    assert "not UTF-8" in emorl("sweep", "any", "caf\udce9", "--resolution", 2).refused()
    monkeypatch.setattr("sys.stdin", stdin(b"family\ncaf\xe9"))
    assert "standard input: cannot be read: line 2 is not UTF-8" in emorl("generate", "any", "-").refused()
    monkeypatch.setattr("sys.stdin", stdin("family".encode("utf-16")))
    assert "standard input: cannot be read: it is not UTF-8 but UTF-16" in emorl("generate", "any", "-").refused()
    monkeypatch.setattr("sys.stdin", None)
    assert "standard input: cannot be read: it is closed" in emorl("generate", "any", "-").refused()


def test_a_missing_bundle_is_one_line(emorl, tmp_path: Path) -> None:
    assert "no such folder" in emorl("generate", tmp_path / "nope", PROMPT).refused()


def test_parse_weights() -> None:
    assert parse_weights(None) is None
    assert parse_weights(" reflection = 0.7 , empathy=3e-1") == {"reflection": 0.7, "empathy": 0.3}
    with pytest.raises(InvalidWeights):
        parse_weights("")


CHAT = [
    {"role": "user", "content": "so much work"},
    {"role": "assistant", "content": "hm"},
    {"role": "user", "content": "x"},
]


def test_a_chat_from_a_file_and_from_standard_input(emorl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chatty = fake_ensemble(chat=ChatSpec())
    monkeypatch.setattr(Ensemble, "load", lambda *args, **kwargs: chatty)
    expected = chatty.generate(messages=CHAT, max_new_tokens=9).text
    file = tmp_path / "chat.json"
    file.write_text(json.dumps(CHAT), encoding="utf-8")
    argv = ("generate", "any", "--max-new-tokens", 9, "--chat")
    assert emorl(*argv, file).out == emorl(*argv, file, "--stream").out == expected + "\n"
    stdin = io.TextIOWrapper(io.BytesIO(file.read_bytes()))
    monkeypatch.setattr("sys.stdin", stdin)
    assert emorl(*argv, "-").out == expected + "\n"
    swept = emorl("sweep", "any", "--chat", file, "--resolution", 1, "--max-new-tokens", 9, "--json")
    assert len(json.loads(swept.out)["texts"]) >= 1


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("[", "not JSON"),
        ("{}", "must be a JSON list of messages"),
        ('[{"role": "system", "content": "x"}]', "messages.0.role is 'system'"),
        ('[{"role": "user"}]', "messages.0.content is no text"),
    ],
)
def test_a_chat_that_is_none_is_refused(
    emorl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str, message: str
) -> None:
    chatty = fake_ensemble(chat=ChatSpec())
    monkeypatch.setattr(Ensemble, "load", lambda *args, **kwargs: chatty)
    file = tmp_path / "chat.json"
    file.write_text(written, encoding="utf-8")
    assert message in emorl("generate", "any", "--chat", file).refused()
    assert message in emorl("sweep", "any", "--resolution", 1, "--chat", file).refused()


def test_a_prompt_and_a_chat_exclude_each_other(emorl) -> None:
    assert (
        "exactly one of a prompt, --prompts-file and --chat" in emorl("generate", "any", "x", "--chat", "y").refused()
    )
    assert "either a prompt or --chat" in emorl("sweep", "any", "x", "--resolution", 1, "--chat", "y").refused()


def test_the_ways_to_choose_tokens_are_options(emorl, fake: Ensemble) -> None:
    argv = ("--presence-penalty", 0.5, "--frequency-penalty", 0.2, "--min-p", 0.02, "--no-repeat-ngram-size", 3)
    ran = emorl("generate", "any", PROMPT, "--temperature", 1, "--seed", 3, "--logit-bias", "270=3,271=-100", *argv)
    options = {"presence_penalty": 0.5, "frequency_penalty": 0.2, "min_p": 0.02, "no_repeat_ngram_size": 3}
    bias = {270: 3.0, 271: -100.0}
    expected = fake.generate(PROMPT, temperature=1.0, seed=3, logit_bias=bias, **options)
    assert ran.out == expected.text + "\n"
    for wrong in ("5", "5=x", "x=1", "5=1000", "=1"):
        assert "logit" in emorl("generate", "any", PROMPT, "--logit-bias", wrong).refused()
    refused = emorl("sweep", "any", PROMPT, "--line", "empathy", "base", "--logit-bias", "5=1").refused()
    assert "--line is for greedy texts; it takes no --logit-bias" in refused
