"""The synthetic corpus: grammar, determinism, splits, and the tokenizer trained on it."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from emorl_core.scorers.words import prompt_key
from tests.learn.trainer_tasks import tiny_recipe
from training.data.records import DataError, Record
from training.data.synthetic.domains import DOMAINS
from training.data.synthetic.frames import CLIENT, CLIENT_GOOD, REPLIES, REPLIES_GOOD
from training.data.synthetic.grammar import draw_prompt, generate, reply
from training.data.synthetic.person import to_second_person
from training.data.synthetic.styles import STYLES
from training.data.synthetic.words import FEELINGS, NEED_OF, SETS, gender_of, third_person
from training.pipeline.prepare import load_data
from training.warm_start.tokenizer import train_tokenizer

_SLOT = re.compile(r"\{(\w+)(?:\.\w+)?\}")
_FIRST_PERSON = re.compile(r"\b(?:i|me|my|mine|myself|am|we|us|our|i'm|i've)\b", re.IGNORECASE)


@pytest.fixture(scope="module")
def corpus() -> tuple[Record, ...]:
    return generate(6000, seed=11)


@pytest.mark.parametrize(
    ("said", "turned"),
    [
        ("I am tired", "you are tired"),
        ("I'm tired and my boss yells at me", "you're tired and your boss yells at me".replace("at me", "at you")),
        ("My mother told me that I was lazy", "Your mother told you that you were lazy"),
        ("my mother was late and I was angry", "your mother was late and you were angry"),
        ("I never was good at it", "you never were good at it"),
        ("Why was I so late?", "Why were you so late?"),
        ("it was mine", "it was yours"),
        ("I hurt myself", "you hurt yourself"),
        ("I've lost what I'd saved, and I'll lose more", "you've lost what you'd saved, and you'll lose more"),
        ("we sold our house", "you sold your house"),
        ("He left. My sister stayed.", "He left. Your sister stayed."),
        ("Amy and Miles met in Maine", "Amy and Miles met in Maine"),  # names that hold pronouns stay
        ("the weather was bad", "the weather was bad"),
    ],
)
def test_a_statement_turns_to_the_second_person(said: str, turned: str) -> None:
    assert to_second_person(said)[1:] == turned[1:]  # whether "I" opens a sentence, and so keeps its capital: below


def test_only_a_sentence_start_keeps_its_capital() -> None:
    assert to_second_person("I think I know. I do.") == "You think you know. You do."
    assert to_second_person("because I know") == "because you know"


def test_the_grammar_gives_thousands_of_distinct_prompts_in_every_style(corpus: tuple[Record, ...]) -> None:
    assert len({prompt_key(record.prompt) for record in corpus}) > 5900  # case and contractions aside, still distinct
    assert {record.extras["style"] for record in corpus} == set(STYLES)
    assert {record.extras["domain"] for record in corpus} == {domain.name for domain in DOMAINS}
    causes = {record.extras["cause"] for record in corpus if "cause" in record.extras}
    assert len(causes) > 3000


def test_the_same_seed_gives_the_same_corpus_and_another_seed_another(corpus: tuple[Record, ...]) -> None:
    again = generate(200, seed=11)
    assert again == corpus[:200]
    assert [dict(record.extras) for record in again] == [dict(record.extras) for record in corpus[:200]]
    other = generate(200, seed=12)
    assert len({record.prompt for record in other} & {record.prompt for record in again}) < 20


def test_every_text_is_filled_in_and_starts_and_ends_like_a_sentence(corpus: tuple[Record, ...]) -> None:
    for record in corpus:
        assert record.response is not None
        assert not re.search(r"[{}]|\s\s|\s[.,?!]|\.\.", record.prompt + record.response), record.where
        assert record.response[0].isupper(), record.where
        assert record.response[-1] in ".?", record.where
        assert len(record.response.split()) >= 4, record.where


def test_replies_speak_to_the_client_and_not_as_the_client(corpus: tuple[Record, ...]) -> None:
    own = re.compile(r"\b(?:I'm sorry|I can hear)\b")  # the counselor's own first person
    for record in corpus:
        assert record.response is not None
        assert not _FIRST_PERSON.search(own.sub("", record.response)), record.where
        assert not re.search(r"\b(?:you|You) (?:am|was|is)\b|\bYou'?(?:re|ve)? I\b", record.response), record.where


def test_no_reply_has_a_capital_you_inside_a_sentence(corpus: tuple[Record, ...]) -> None:
    for record in corpus:
        assert record.response is not None
        assert not re.search(r"[a-z,] (?:You|Your|You're)\b", record.response), record.where


def test_reflections_use_the_clients_own_words(corpus: tuple[Record, ...]) -> None:
    for record in corpus:
        if record.extras["style"] == "complex" and "second" not in record.extras:
            assert record.response is not None
            said = [record.extras[slot] for slot in ("cause", "feeling", "want", "about") if slot in record.extras]
            turned = [to_second_person(slot).casefold() for slot in said]
            assert any(slot in record.response.casefold() for slot in turned), record.where


def test_every_style_can_answer_every_client_frame() -> None:
    """A frame that some style has no reply for would only show up now and then."""
    from random import Random

    rng = Random(5)
    for _ in range(3000):
        _, situation = draw_prompt(rng)
        for style in STYLES:
            assert reply(situation, style, rng)


def test_every_slot_of_every_template_is_known() -> None:
    frame_slots = {
        "cause",
        "second",
        "feeling",
        "likeness",
        "want",
        "about",
        "makes",
        "when",
        "need",
        "hard",
        "advice",
        "span",
    }
    frames = [
        *CLIENT,
        *CLIENT_GOOD,
        *(frame for table in (REPLIES, REPLIES_GOOD) for style in table.values() for frame in style),
    ]
    assert {slot for frame in frames for slot in _SLOT.findall(frame)} <= frame_slots
    for domain in DOMAINS:
        clauses = [text for pair in (*domain.state, *domain.event, *domain.good) for text in pair]
        for template in (*clauses, *domain.wants, *domain.advice):
            assert set(_SLOT.findall(template)) <= SETS.keys(), template
        assert any("{" not in advice for advice in domain.advice), domain.name  # one that fits whatever was said


def test_about_names_nothing_that_the_clause_did_not_draw() -> None:
    for domain in DOMAINS:
        for clause, about in (*domain.state, *domain.event, *domain.good):
            assert set(_SLOT.findall(about)) <= set(_SLOT.findall(clause)), (clause, about)


def test_words_inflect_and_people_have_pronouns() -> None:
    assert [third_person(verb) for verb in ("cry", "wash", "play", "put away", "go out")] == [
        "cries", "washes", "plays", "puts away", "goes out",
    ]  # fmt: skip
    assert (gender_of("older sister"), gender_of("grandfather"), gender_of("boss")) == ("f", "m", None)
    assert set(NEED_OF) == {feeling for feelings in FEELINGS.values() for feeling in feelings}


def test_the_corpus_is_the_one_it_was_byte_for_byte() -> None:
    drawn = hashlib.sha256()
    for seed in (0, 7, 12):
        for record in generate(500, seed=seed):
            drawn.update(json.dumps([record.prompt, record.response, dict(record.extras)]).encode())
    assert drawn.hexdigest() == "1749033ce80bd34c03a4952e5386d852124a585a695823c2a9c8ddc2b1ee9dc2"


def test_parts_that_are_split_by_situation_share_none() -> None:
    source = {"kind": "synthetic", "count": 2000, "seed": 11}
    parts = load_data(tiny_recipe(data={"sources": [source], "split_by": "key"}), Path()).parts
    assert sum(map(len, parts.values())) == 2000
    keys = [{record.extras["key"] for record in part} for part in parts.values()]
    assert sum(map(len, keys)) == len(set().union(*keys))
    assert all(keys)


def test_a_corpus_larger_than_the_grammar_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.data.synthetic.grammar.draw_prompt", lambda rng: ("Same.", draw_prompt(rng)[1]))
    with pytest.raises(DataError, match=r"count is 5; the grammar gave only 1 distinct prompts"):
        generate(5, seed=0)


@pytest.fixture(scope="module")
def folder(corpus: tuple[Record, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    texts = [text for record in corpus[:3000] for text in (record.prompt, record.response or "")]
    train_tokenizer(texts, vocab_size=2048, whole_tokens=("[SEP]",)).save_pretrained(folder)
    return folder


class TestTokenizer:
    @pytest.mark.parametrize(
        "text",
        [
            "I can't keep up at work.",
            'My boss\'s "plan" (again!) cost $5, 100% wasted; why?',
            "ünïcode, 漢字, emoji 😀 and a flabbergasted zymurgist",
            "<0x41> is text, not a byte",
        ],
    )
    def test_any_text_goes_there_and_back(self, folder: Path, text: str) -> None:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
        assert tokenizer.unk_token_id not in ids

    def test_it_is_laid_out_like_t5s(self, folder: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
        assert len(tokenizer) <= 2048
        assert tokenizer("Hello.")["input_ids"][-1] == 1
        assert tokenizer("Hello.", "You.")["input_ids"].count(1) == 2

    def test_the_templates_mark_is_one_token_and_its_space_none(self, folder: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert tokenizer.convert_ids_to_tokens(tokenizer("I drink. [SEP] ")["input_ids"])[-2:] == ["[SEP]", "</s>"]

    def test_frequent_words_are_one_token_and_marks_stand_alone(self, folder: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokens = tokenizer.convert_ids_to_tokens(tokenizer("I can't sleep, because my boss yells.")["input_ids"])
        assert tokens == ["▁I", "▁can't", "▁sleep", ",", "▁because", "▁my", "▁boss", "▁yells", ".", "</s>"]

    def test_prefixes_decode_to_prefixes(self, folder: Path) -> None:
        """What streaming relies on: text never changes behind its end, half a character aside."""
        tokenizer = AutoTokenizer.from_pretrained(folder)
        text = "You can't flabbergast a naïve café owner 😀, can you?"
        ids = tokenizer(text)["input_ids"][:-1]
        for end in range(1, len(ids) + 1):
            assert text.startswith(tokenizer.decode(ids[:end]).rstrip("\ufffd"))

    def test_the_same_texts_give_the_same_tokenizer(self, corpus: tuple[Record, ...], folder: Path) -> None:
        texts = [text for record in corpus[:3000] for text in (record.prompt, record.response or "")]
        again = train_tokenizer(reversed(texts), vocab_size=2048, whole_tokens=("[SEP]",))
        assert again.get_vocab() == AutoTokenizer.from_pretrained(folder).get_vocab()

    def test_a_vocabulary_without_room_for_letters_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"vocab_size is 300; allowed: from 516"):
            train_tokenizer(["a"], vocab_size=300, whole_tokens=("[SEP]",))
