"""A synthetic corpus: client statements and counselor replies from a seeded grammar.

A *situation* (domain, cause, feeling, wish) is drawn first; a client frame states it, and every style can answer it.
Replies use the client's own words, converted by `to_second_person`, so a small model learns to copy, not to invent.
Nothing here comes from a real person.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from random import Random

from training.data.records import DataError, Record
from training.data.synthetic.domains import DOMAINS, Domain
from training.data.synthetic.frames import CLIENT, CLIENT_GOOD, REPLIES, REPLIES_GOOD
from training.data.synthetic.person import to_second_person
from training.data.synthetic.slots import SLOT, Filler, sentences
from training.data.synthetic.styles import STYLES, Style
from training.data.synthetic.words import FEELINGS, FILLERS, LIKENESSES, NEED_OF, SETS

_GOOD_FEELINGS = "to keep going"  # the only need that fits good news
_TIMED = set("night day week month time again anymore now midnight awake all much more".split())  # as last words
_EXPANDED = (("I'm", "I am"), ("I've", "I have"), ("can't", "cannot"), ("don't", "do not"), ("won't", "will not"))


@dataclass(frozen=True, slots=True)
class Situation:
    """A client's statement as slots, in the first person. Empty: not mentioned."""

    domain: str
    mood: str  # "state", "event" or "good"
    cause: str = ""
    second: str = ""
    feeling: str = ""
    likeness: str = ""  # "like a failure"
    want: str = ""
    about: str = ""
    advice: tuple[str, ...] = field(default=(), compare=False)  # suitable advice, in the second person

    def key(self) -> str:
        """The content without its wording: prompts with the same key tell the same story."""
        return "|".join((self.cause, self.second, self.feeling, self.likeness, self.want, self.about))

    def slots(self) -> dict[str, str]:
        names = ("domain", "mood", "cause", "second", "feeling", "likeness", "want", "about")
        return {name: value for name in names if (value := getattr(self, name))}


@cache
def _slots_of(frame: str) -> frozenset[str]:
    return frozenset(match.group(1) for match in SLOT.finditer(frame))


def draw_prompt(rng: Random) -> tuple[str, Situation]:
    """One client statement of one to three sentences, and the situation behind it."""
    domain = rng.choices(DOMAINS, _DOMAIN_WEIGHTS)[0]
    mood = rng.choices(("state", "event", "good"), (0.72, 0.2, 0.08))[0]
    frame = rng.choice(CLIENT_GOOD if mood == "good" else CLIENT)
    wanted = _slots_of(frame)
    filler = Filler(rng)
    clauses: Sequence[tuple[str, str]] = getattr(domain, mood)
    cause, about = rng.choice(clauses)
    situation = Situation(
        domain=domain.name,
        mood=mood,
        cause=_timed(filler.fill(cause), mood, rng) if "cause" in wanted else "",
        about=filler.fill(about) if wanted & {"cause", "about"} else "",
        want=filler.fill(rng.choice(domain.wants)) if "want" in wanted else "",
        second=_second(domain, cause, rng) if "second" in wanted else "",
        feeling=_feeling(mood, rng) if "feeling" in wanted else "",
        likeness=rng.choice(LIKENESSES) if "likeness" in wanted else "",
        advice=tuple(filler.fill(advice) for advice in domain.advice if filler.knows(advice)),
    )
    values = situation.slots() | {"when": _when(mood), "makes": _makes(situation.about)}
    values["span"] = rng.choice(SETS["span"])
    text = sentences(_put(frame, values))
    if mood != "good" and rng.random() < 0.3:
        extra = rng.choice(FILLERS)
        text = f"{extra} {text}" if rng.random() < 0.25 else f"{text} {extra}"
    return _as_typed(text, rng), situation


def reply(situation: Situation, style: Style, rng: Random) -> str:
    """One reply of a style, from one of its frames that use the most slots of the situation."""
    frames = (REPLIES_GOOD if situation.mood == "good" else REPLIES)[style]
    said = {name: _turned(value) for name, value in situation.slots().items() if name not in ("domain", "mood")}
    known = dict(said)
    if situation.cause:
        known |= {"when": _when(situation.mood), "hard": _HARD[situation.domain]}
    if situation.about:
        known["makes"] = _makes(situation.about)
    if situation.feeling:
        known["need"] = NEED_OF[situation.feeling]
    if situation.advice:
        known["advice"] = rng.choice(situation.advice)
    usable = [frame for frame in frames if _slots_of(frame) <= known.keys()]
    most = max(len(_slots_of(frame) & said.keys()) for frame in usable)
    frame = rng.choice([frame for frame in usable if len(_slots_of(frame) & said.keys()) == most])
    return sentences(_put(frame, known))


def generate(count: int, seed: int, styles: Sequence[Style] = STYLES) -> tuple[Record, ...]:
    """`count` records with distinct prompts, each answered in one of `styles`. The same seed gives the same records.

    `extras` has the style, the slots and the situation's `key`. Raises `DataError` if the grammar has no more distinct
    prompts.
    """
    rng = Random(f"synthetic:{seed}")
    records: dict[str, Record] = {}
    for attempt in range(count * 20):
        if len(records) == count:
            break
        prompt, situation = draw_prompt(rng)
        style = rng.choice(styles)
        response = reply(situation, style, rng)
        if prompt not in records:
            extras = {"style": style, "key": situation.key(), **situation.slots()}
            records[prompt] = Record(prompt, response, where=f"synthetic:{seed}:{attempt}", extras=extras)
    if len(records) < count:
        raise DataError(f"count is {count}; the grammar gave only {len(records)} distinct prompts", param="count")
    return tuple(records.values())


_DOMAIN_WEIGHTS = [domain.weight for domain in DOMAINS]
_HARD = {domain.name: domain.hard for domain in DOMAINS}


def _second(domain: Domain, cause: str, rng: Random) -> str:
    return Filler(rng).fill(rng.choice([clause for clause, _ in domain.state if clause != cause]))


def _feeling(mood: str, rng: Random) -> str:
    needs = [need for need in FEELINGS if (need == _GOOD_FEELINGS) == (mood == "good")]
    return rng.choice(FEELINGS[rng.choice(needs)])


def _when(mood: str) -> str:
    return "after" if mood == "event" else "when"


def _makes(about: str) -> str:
    last = about.split()[-1] if about else ""
    plural = " and " in about or (last.endswith("s") and last not in _SINGULAR and not last.endswith("ss"))
    return "make" if plural else "makes"


_SINGULAR = {"news", "physics", "statistics", "tennis", "diabetes", "arthritis", "thesis", "asthma", "chess", "bus"}


def _timed(cause: str, mood: str, rng: Random) -> str:
    if mood == "state" and cause.split()[-1] not in _TIMED and " every " not in cause and rng.random() < 0.15:
        return f"{cause} {rng.choice(SETS['lately'])}"
    return cause


def _turned(slot: str) -> str:
    """A slot in the second person, as used in the middle of a sentence."""
    turned = to_second_person(slot)
    return "y" + turned[1:] if slot.startswith(("I ", "I'")) else turned


def _put(frame: str, values: Mapping[str, str]) -> str:
    return SLOT.sub(lambda match: values[match.group(1)], frame)


def _as_typed(text: str, rng: Random) -> str:
    """Sometimes imitate informal typing: contractions written out, no capitals, no full stop."""
    chance = rng.random()
    if chance < 0.06:
        for short, long in _EXPANDED:
            text = re.sub(rf"\b{short}\b", long, text)
    elif chance < 0.10 and not any(re.search(rf"\b{name}\b", text) for name in SETS["name"] + SETS["day"]):
        text = text.lower()
    elif chance < 0.13:
        text = text.removesuffix(".")
    return text
