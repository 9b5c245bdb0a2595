"""The word sets of the synthetic grammar (`words.yaml`), with their other forms and pronouns."""

from __future__ import annotations

from training.data.synthetic.tables import table, words

_TABLE = table("words")


def third_person(verb: str) -> str:
    """ "carry out" -> "carries out": the ending is added to the first word."""
    first, space, rest = verb.partition(" ")
    if first.endswith(("s", "sh", "ch", "x", "z", "o")):
        first += "es"
    elif first.endswith("y") and first[-2] not in "aeiou":
        first = first[:-1] + "ies"
    else:
        first += "s"
    return first + space + rest


_NAMES = {gender: words(text) for gender, text in _TABLE["names"].items()}
_KIN = {gender: words(text) for gender, text in _TABLE["kin"].items()}
_FEMALE = {*_NAMES["female"], *_KIN["female"]}
_MALE = {*_NAMES["male"], *_KIN["male"]}

# Slot -> its words.
SETS: dict[str, tuple[str, ...]] = {slot: words(text) for slot, text in _TABLE["sets"].items()}
SETS["name"] = _NAMES["female"] + _NAMES["male"]
SETS["uses"] = tuple(third_person(verb) for verb in SETS["use"])
SETS["treats"] = tuple(third_person(verb) for verb in SETS["treat"])
SETS["verbs"] = tuple(third_person(verb) for verb in SETS["verb"])
# Slots that draw from another slot's words, so that a sentence can contain two of a kind.
for _twin, _of in (("other", "name"), ("tool", "noun"), ("deed", "verb")):
    SETS[_twin] = SETS[_of]

PRONOUNS: dict[str, tuple[str, str, str]] = {"f": ("she", "her", "her"), "m": ("he", "his", "him")}


def gender_of(person: str) -> str | None:
    """`f`, `m`, or None if the word does not determine it and the generator draws one."""
    last = person.split()[-1]
    return "f" if last in _FEMALE else "m" if last in _MALE else None


# Need -> the feelings that indicate it. A complex reflection adds the need to the client's own words.
FEELINGS: dict[str, tuple[str, ...]] = {need: words(text) for need, text in _TABLE["feelings"].items()}
NEED_OF: dict[str, str] = {feeling: need for need, feelings in FEELINGS.items() for feeling in feelings}
LIKENESSES: tuple[str, ...] = words(_TABLE["likenesses"])
FILLERS: tuple[str, ...] = tuple(_TABLE["fillers"])  # sentences a client adds, without slots
