"""Token ids -> text that can be shown: pieces join exactly, characters stay whole, stop strings never appear."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest

from emorl_core.models.fake import FakeTokenizer
from emorl_core.text.detokenize import Decode, Detokenizer
from tests.builders import tiny_tokenizer

Make = Callable[[], tuple[Decode, list[list[int]]]]

TEXTS = (
    "I can't keep up with work.",
    "café naïve 🙂 Zürich",
    "👩‍👩‍👧 family 中文字符 и ещё",
    "é" * 9,
    " you  feel   it ",
    "",
)


def fake() -> tuple[Decode, list[list[int]]]:
    tokenizer = FakeTokenizer()
    return tokenizer.decode, [tokenizer.encode(text)[:-1] for text in TEXTS]


def tiny() -> tuple[Decode, list[list[int]]]:
    tokenizer = tiny_tokenizer()

    def decode(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    return decode, [list(tokenizer.encode(text))[:-1] for text in TEXTS]


@pytest.mark.parametrize("make", [fake, tiny])
def test_pieces_join_to_the_whole_text_and_no_piece_holds_half_a_character(make: Make) -> None:
    decode, sequences = make()
    for ids in sequences:
        detokenizer = Detokenizer(decode)
        pieces = [detokenizer.push(i) for i in ids]
        pieces.append(detokenizer.finish())
        assert "".join(pieces) == detokenizer.text == decode(ids)
        assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
        assert not detokenizer.stopped
    assert any(len(decode(ids[:1])) != 0 for ids in sequences[:-1])


@pytest.mark.parametrize("make", [fake, tiny])
def test_random_tokens_join_to_what_was_shown(make: Make) -> None:
    """Invalid byte runs included: what is shown once is never taken back."""
    decode, _ = make()
    draw = random.Random(3)
    for _ in range(60):
        detokenizer = Detokenizer(decode, stop=("ee", "?!"))
        shown = ""
        for _ in range(draw.randint(1, 40)):
            shown += detokenizer.push(draw.randint(0, 290))
            assert detokenizer.text == shown
            if detokenizer.stopped:
                break
        shown += detokenizer.finish()
        assert detokenizer.text == shown
        assert "ee" not in shown
        assert "?!" not in shown


def test_a_character_comes_out_with_its_last_byte() -> None:
    tokenizer = FakeTokenizer()
    ids = tokenizer.encode("a🙂b")[:-1]
    detokenizer = Detokenizer(tokenizer.decode)
    assert [detokenizer.push(i) for i in ids] == ["a", "", "", "", "🙂", "b"]


def test_half_a_character_at_the_end_is_given_as_it_is() -> None:
    tokenizer = FakeTokenizer()
    ids = tokenizer.encode("a🙂")[:-1]
    detokenizer = Detokenizer(tokenizer.decode)
    assert "".join(detokenizer.push(i) for i in ids[:3]) == "a"
    assert detokenizer.finish() == "\N{REPLACEMENT CHARACTER}"
    assert detokenizer.finish() == ""


def letters(ids: Sequence[int]) -> str:
    return "".join(chr(i) for i in ids)


def stream(text: str, *stop: str) -> tuple[list[str], Detokenizer]:
    """One letter a token; the pieces up to the stop, and what `finish` gave."""
    detokenizer = Detokenizer(letters, stop)
    pieces = []
    for letter in text:
        pieces.append(detokenizer.push(ord(letter)))
        if detokenizer.stopped:
            break
    return [*pieces, detokenizer.finish()], detokenizer


@pytest.mark.parametrize(
    ("text", "stop", "shown"),
    [
        ("hello stop here", ("stop",), "hello "),
        ("hello sto", ("stop",), "hello sto"),
        ("aaab", ("aab",), "a"),
        ("ababac", ("abac",), "ab"),
        ("one two", ("two", "one t"), ""),
        ("xyz", ("yz", "xyz"), ""),
        ("x\n\ny", ("\n\n",), "x"),
        ("never", ("q",), "never"),
        ("end", ("d",), "en"),
        ("s", ("s",), ""),
    ],
)
def test_a_stop_string_across_token_borders_is_never_shown(text: str, stop: tuple[str, ...], shown: str) -> None:
    pieces, detokenizer = stream(text, *stop)
    assert "".join(pieces) == detokenizer.text == shown
    assert detokenizer.stopped == any(each in text for each in stop)


def test_only_what_may_become_a_stop_string_is_held_back() -> None:
    pieces, _ = stream("it stays, stop", "stop")
    assert pieces == ["i", "t", " ", "", "", "sta", "y", "", "s,", " ", "", "", "", "", ""]


def test_a_stop_string_within_one_token_cuts_the_token() -> None:
    detokenizer = Detokenizer(lambda ids: "".join(["", "I hear. You say", " more"][i] for i in ids), (". ",))
    assert detokenizer.push(1) == "I hear"
    assert detokenizer.stopped
    assert detokenizer.finish() == ""
    assert detokenizer.text == "I hear"


def test_the_first_of_several_stop_strings_in_a_piece_counts() -> None:
    detokenizer = Detokenizer(lambda ids: "".join(["", "a b c d"][i] for i in ids), (" d", " b", " c"))
    assert detokenizer.push(1) == "a"


def test_a_fork_goes_on_from_the_same_past_on_its_own() -> None:
    tokenizer = FakeTokenizer()
    ids = tokenizer.encode("you a🙂")[:-1]
    first = Detokenizer(tokenizer.decode, ("ring",))
    for i in ids[:-1]:
        first.push(i)
    second = first.fork()
    assert second.push(ids[-1]) == "🙂"
    rest = tokenizer.encode("ok ring")[:-1]
    shown = "".join(first.push(i) for i in rest)
    assert second.text == "you a🙂"
    assert not second.stopped
    assert first.text == "you a" + shown
    assert first.stopped
    assert shown.endswith("ok ")


def test_the_cost_of_a_token_does_not_grow_with_the_text() -> None:
    longest = 0

    def decode(ids: Sequence[int]) -> str:
        nonlocal longest
        longest = max(longest, len(ids))
        return letters(ids)

    detokenizer = Detokenizer(decode)
    for _ in range(500):
        detokenizer.push(ord("x"))
    assert longest <= 4
