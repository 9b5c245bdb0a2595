"""Scorers without a model: exact values, and the cheap ways to a high score that must not work."""

from __future__ import annotations

import math
import random

import pytest

from emorl_core.scorers import Context, ScorerError, build_scorer
from emorl_core.scorers.edit_rate import levenshtein
from emorl_core.scorers.lexical.lexicon import FAMILY_OF, FRAME, FUNCTION, POSITIVE_FAMILIES, stem
from emorl_core.scorers.lexical.ngram import NgramModel, pieces
from emorl_core.scorers.lexical.reading import read
from emorl_core.scorers.lexical.scorers import LexicalEmpathy, LexicalReflection
from emorl_core.scorers.words import words
from training.data.records import Record

CLIENT = "I feel overwhelmed because my boss keeps giving me new projects and I can't sleep at night."


def one(spec: object, prompt: str, reply: str, context: Context | None = None) -> float:
    return build_scorer(spec, context)([prompt], [reply])[0]


def test_words_keep_apostrophes_and_hyphens_and_lose_marks() -> None:
    assert words("I don’t know—well-being, ‘really’!") == ["i", "don't", "know", "well-being", "really"]
    assert words("… ?! 🙂") == []


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", 0.0),
        ("one", 0.0),
        ("a b c d", 3 / 4),
        ("a b a b a b", 2 / 6),
        ("no no no no", 1 / 4),
        ("A, b. a! B?", 2 / 4),
    ],
)
def test_diversity_is_distinct_bigrams_over_words(text: str, value: float) -> None:
    assert one("diversity", "x", text) == pytest.approx(value)


@pytest.mark.parametrize(
    ("prompt", "reply", "value"),
    [
        ("I am sad", "I am sad", 0.0),
        ("I am sad", "You are sad", 2 / 3),
        ("I am sad", "", 1.0),
        ("", "", 0.0),
        ("a b c d", "b c d e f", 3 / 5),
    ],
)
def test_edit_rate_is_words_changed_over_the_longer_text(prompt: str, reply: str, value: float) -> None:
    assert one("edit_rate", prompt, reply) == pytest.approx(value)


def test_levenshtein_equals_the_definition() -> None:
    def slow(a: str, b: str) -> int:
        if not a or not b:
            return len(a) + len(b)
        return min(slow(a[1:], b) + 1, slow(a, b[1:]) + 1, slow(a[1:], b[1:]) + (a[0] != b[0]))

    draw = random.Random(0)
    for _ in range(60):
        a, b = ("".join(draw.choices("abc", k=draw.randrange(6))) for _ in range(2))
        assert levenshtein(a, b) == slow(a, b) == levenshtein(b, a)


@pytest.mark.parametrize(("count", "value"), [(0, 0.0), (2, 0.5), (4, 1.0), (10, 1.0), (15, 0.5), (20, 0.0), (99, 0.0)])
def test_the_length_guard_falls_on_both_sides(count: int, value: float) -> None:
    spec = {"kind": "length", "min_words": 4, "max_words": 10}
    assert one(spec, "x", "word " * count) == pytest.approx(value)


def test_the_repetition_guard_is_the_share_of_distinct_runs() -> None:
    spec = {"kind": "repetition", "ngram": 2, "strictness": 1.0}
    assert one(spec, "x", "a b c d e") == 1.0
    assert one(spec, "x", "a b a b a") == pytest.approx(2 / 4)
    assert one({"kind": "repetition"}, "x", "you feel sad you feel sad you feel sad") == pytest.approx((3 / 7) ** 2)


def test_a_product_multiplies_and_names_its_factors() -> None:
    scorer = build_scorer({"kind": "product", "of": ["diversity", {"kind": "length", "min_words": 8}]})
    assert scorer.__name__ == "diversity*length"
    assert scorer(["x"], ["a b c d"]) == pytest.approx([3 / 4 * 4 / 8])


def test_a_callable_gets_its_arguments_and_only_the_columns_it_takes() -> None:
    spec = {"kind": "callable", "path": "tests.learn.own_scorers:share_of_letters", "arguments": {"letter": "b"}}
    assert one(spec, "x", "abbb") == 0.75
    strict = build_scorer({"kind": "callable", "path": "tests.learn.own_scorers.only_texts"})
    assert strict(["a", "b"], ["a", "c"], topic=["t", "t"], completion_ids=[[1], [2]]) == [1.0, 0.0]
    assert strict.__name__ == "only_texts"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"path": "no_such_module:f"}, "cannot import no_such_module: ModuleNotFoundError"),
        ({"path": "tests.learn.own_scorers:nothing"}, "module tests.learn.own_scorers has no 'nothing'"),
        ({"path": "tests.learn.own_scorers:NOT_A_FUNCTION"}, "holds a value, not a function, in 'NOT_A_FUNCTION'"),
        ({"path": "tests.learn.own_scorers:AClass"}, "is a class; name a function or an instance"),
        ({"path": "tests.learn.own_scorers:without_prompts"}, "takes no 'prompts'; its parameters: completions"),
        ({"path": "tests.learn.own_scorers:only_texts", "arguments": {"seed": 1}}, "takes no 'seed'"),
    ],
)
def test_a_callable_that_cannot_score_is_refused_when_it_is_built(spec: dict[str, object], message: str) -> None:
    with pytest.raises(ScorerError, match=message):
        build_scorer({"kind": "callable", **spec})


@pytest.mark.parametrize(
    ("word", "other"),
    [("drinking", "drinks"), ("stopped", "stop"), ("worries", "worried"), ("hope", "hoping"), ("lose", "lost"),
     ("families", "family"), ("boss's", "boss"), ("makes", "made"), ("telling", "told"), ("losing", "lose")],
)  # fmt: skip
def test_forms_of_a_word_meet(word: str, other: str) -> None:
    assert stem(word) == stem(other)


@pytest.mark.parametrize(("word", "other"), [("boss", "bos"), ("bus", "bu"), ("home", "house"), ("work", "word")])
def test_different_words_stay_apart(word: str, other: str) -> None:
    assert stem(word) != stem(other)


def test_the_word_lists_do_not_contradict_each_other() -> None:
    assert not FUNCTION & FRAME - {"yet"}
    assert set(FAMILY_OF.values()) >= POSITIVE_FAMILIES


def test_feelings_are_read_with_their_negation_and_their_context() -> None:
    assert read("I'm so worn out and scared.").feelings == ["tired", "afraid"]
    assert read("I am not sad.").feelings == []
    assert read("He walked down the road to a good shop.").feelings == []
    assert read("I feel down.").feelings == ["sad"]


REFLECTION = LexicalReflection()
GOOD_REFLECTIONS = [
    "It sounds like your boss keeps giving you projects, and you feel overwhelmed.",
    "Your boss gives you one project after another, and now you can't sleep.",
    "It sounds like the projects from your boss are so much that you lie awake at night.",
]
POOR_REFLECTIONS = {
    "a copy": CLIENT,
    "a stretch of a copy": "My boss keeps giving me new projects",
    "a question": "Why does your boss keep giving you new projects at night?",
    "advice": "You should tell your boss that you can't sleep at night because of the projects.",
    "an order": "Tell your boss that you can't take new projects, and sleep at night.",
    "the counselor's own view": "I think my boss would be the same with new projects at night.",
    "keywords": "overwhelmed boss projects sleep night giving",
    "a stammer": "you you your boss boss boss new new projects projects sleep sleep night night",
    "nothing of the client": "You would like the weather to be a little better this year.",
    "one word": "Overwhelmed.",
    "nothing": "",
}


@pytest.mark.parametrize("poor", POOR_REFLECTIONS)
def test_every_good_reflection_beats_every_cheap_way(poor: str) -> None:
    lowest = min(REFLECTION([CLIENT] * 3, GOOD_REFLECTIONS))
    assert lowest > 0.5
    assert REFLECTION([CLIENT], [POOR_REFLECTIONS[poor]])[0] < 0.6 * lowest


def test_a_reflection_turned_round_word_by_word_scores_less_than_a_rephrased_one() -> None:
    turned = "You feel overwhelmed because your boss keeps giving you new projects and you can't sleep at night."
    scores = REFLECTION([CLIENT] * 2, [GOOD_REFLECTIONS[1], turned])
    assert scores[0] > scores[1] > 0.2


def test_more_of_the_clients_meaning_is_better() -> None:
    less, more = REFLECTION([CLIENT] * 2, ["You have a boss who is hard on you.", GOOD_REFLECTIONS[1]])
    assert more > less


EMPATHY = LexicalEmpathy()
GOOD_EMPATHY = [
    "I'm sorry. It makes sense that you feel overwhelmed when your boss gives you so many projects.",
    "That sounds so hard. Anyone would feel stressed with that many new projects.",
]
POOR_EMPATHY = {
    "a plain fact": "Your boss gives you new projects.",
    "dismissal": "I'm sorry you feel overwhelmed by projects, but calm down, it could be worse.",
    "the wrong feeling": "It must feel good to have such a boss, and you feel happy about new projects.",
    "all feelings at once": "You feel overwhelmed, sad, angry, lonely, ashamed, guilty, hurt and afraid of projects.",
    "one sentence for everybody": "I'm sorry. That sounds so hard. It makes sense that you feel sad.",
    "feelings without a sentence": "overwhelmed stressed tense pressure overwhelmed stressed",
    "nothing": "",
}


@pytest.mark.parametrize("poor", POOR_EMPATHY)
def test_every_empathic_reply_beats_every_cheap_way(poor: str) -> None:
    lowest = min(EMPATHY([CLIENT] * 2, GOOD_EMPATHY))
    assert lowest > 0.8
    assert EMPATHY([CLIENT], [POOR_EMPATHY[poor]])[0] < 0.75 * lowest


def test_good_news_is_not_commiserated_with() -> None:
    client = "I am so proud because I finally finished school."
    glad = "That is wonderful. You can be proud that you finished school."
    sorry = "I'm sorry. That sounds so hard that you finished school."
    assert EMPATHY([client] * 2, [glad, sorry])[0] > 2 * EMPATHY([client] * 2, [glad, sorry])[1]


def test_a_client_without_feeling_words_still_gets_graded_replies() -> None:
    scores = EMPATHY(
        ["My boss yelled at me."] * 2, ["It must be hard. You feel hurt by your boss.", "Your boss yelled."]
    )
    assert scores[0] > scores[1] + 0.4


@pytest.mark.parametrize(
    ("prompt", "good", "bad"),
    [
        ("I lost my money.", "It must be hard when you lost your money.", "Anyone would feel money when you lost it."),
        ("I went climbing.", "It makes sense that you went climbing.", "It makes sense that you feel went climbing."),
        (
            "I can't sleep.",
            "I'm sorry. It is hard when you can't sleep.",
            "I'm sorry. Anyone who can't sleep would feel.",
        ),
    ],
)
def test_what_nobody_can_feel_is_no_feeling(prompt: str, good: str, bad: str) -> None:
    for scorer in (EMPATHY, REFLECTION):
        high, low = scorer([prompt] * 2, [good, bad])
        assert low < 0.6 * high


def test_a_state_in_the_clients_own_word_may_be_given_back() -> None:
    prompt = "I'm so flummoxed because of the forms."
    own, other = "You feel really flummoxed because of the forms.", "You feel really bamboozled because of the forms."
    scores = REFLECTION([prompt] * 2, [own, other])
    assert scores[1] < 0.5 * scores[0]


def test_a_stretch_said_twice_halves_a_reflection() -> None:
    once = "You sleep badly at night because your boss keeps giving you new projects."
    twice = "You sleep badly at night, and your boss keeps giving you new projects at night, and your boss keeps."
    assert REFLECTION([CLIENT], [twice])[0] < 0.55 * REFLECTION([CLIENT], [once])[0]


def corpus(count: int = 200) -> list[Record]:
    draw = random.Random(0)
    feelings, things = ["sad", "angry", "tired", "lonely"], ["job", "wife", "house", "mother", "school", "pain"]
    made = []
    for _ in range(count):
        feeling, thing = draw.choice(feelings), draw.choice(things)
        made.append(
            Record(f"I am {feeling}. My {thing} is hard.", f"You feel {feeling} because your {thing} is hard for you.")
        )
    return made


def test_fluency_with_a_corpus_prefers_its_kind_of_sentence() -> None:
    scorer = build_scorer("lexical_fluency", Context(corpus=corpus()))
    client = "I am sad. My house is hard."
    good = "You feel sad because your house is hard for you."
    for bad in (
        "You sad feel because hard your is house for you.",
        "Your house house is is hard hard for you you.",
        "You feel sad because your house is hard for you. You feel sad because your house is hard for you.",
        "you feel sad because your house is hard for you",
        "You feel.",
        "You feel sad because your xyzzy is plugh for quux.",
    ):
        high, low = scorer([client] * 2, [good, bad])
        assert high > 0.4
        assert low < 0.7 * high, bad


def test_fluency_without_a_corpus_judges_form_alone() -> None:
    fluency = build_scorer("lexical_fluency")
    whole = "You are sad because your house is so far away."
    assert fluency(["My house is far."], [whole]) == [1.0]
    scores = fluency(
        ["My house is far."] * 4, [whole.lower(), whole[:-1], "Sad house.", "You You You You You You You You."]
    )
    assert all(score < 0.8 for score in scores)


def test_fluency_refuses_a_corpus_that_is_too_small_to_learn_from() -> None:
    with pytest.raises(ScorerError, match=r"the corpus has 49 replies; it takes 50, or use_corpus: false"):
        build_scorer("lexical_fluency", Context(corpus=corpus(49)))
    build_scorer({"kind": "lexical_fluency", "use_corpus": False}, Context(corpus=corpus(49)))


@pytest.mark.parametrize(
    "history", [(), ("you",), ("<s>", "<s>"), ("you", "feel"), ("never", "seen"), ("feel", "xyzzy")]
)
def test_the_ngram_model_is_a_distribution(history: tuple[str, ...]) -> None:
    model = NgramModel(record.response or "" for record in corpus(50))
    seen = {piece for record in corpus(50) for piece in pieces(record.response or "")} | {"</s>"}
    total = math.fsum(model.probability(word, history) for word in [*seen, "a word it never saw"])
    assert total == pytest.approx(1.0)
    assert model.probability("because", ("feel", "sad")) > model.probability("because", ("your", "sad"))


def test_replies_are_scored_the_same_whatever_the_kind_of_quotes() -> None:
    for kind in ("lexical_reflection", "lexical_empathy", "lexical_fluency"):
        straight = one(kind, "I can't sleep.", "It sounds like you can't sleep, and that's hard for you.")
        assert one(kind, "I can’t sleep.", "It sounds like you can’t sleep, and that’s hard for you.") == straight
