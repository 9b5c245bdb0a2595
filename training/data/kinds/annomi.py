"""AnnoMI (Wu et al., 2022): motivational-interviewing dialogues, one row per utterance and annotator.

Several annotators' rows for an utterance are merged; labels are decided by majority, and a tie counts as "no
reflection".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from pydantic import Field

from training.data.records import DIALOGUE, Record, Tally, clean, one_per_prompt
from training.data.rows import FileSource, csv_table, need_columns

COLUMNS = (
    "transcript_id",
    "utterance_id",
    "interlocutor",
    "utterance_text",
    "reflection_exists",
    "reflection_subtype",
    "main_therapist_behaviour",
    "mi_quality",
    "topic",
)
SPEAKERS = ("client", "therapist")


@dataclass(slots=True)
class Utterance:
    """One utterance with all its annotators' labels."""

    speaker: str
    text: str
    where: str
    quality: str
    topic: str
    dialogue: str
    reflections: list[bool] = field(default_factory=list)
    subtypes: Counter[str] = field(default_factory=Counter)
    behaviours: Counter[str] = field(default_factory=Counter)

    @property
    def is_reflection(self) -> bool:
        return sum(self.reflections) * 2 > len(self.reflections)

    def extras(self) -> dict[str, str]:
        subtype = self.subtypes.most_common(1)[0][0] if self.is_reflection and self.subtypes else "none"
        behaviour = self.behaviours.most_common(1)[0][0] if self.behaviours else "none"
        return {
            "topic": self.topic,
            "mi_quality": self.quality,
            "reflection": subtype,
            "behaviour": behaviour,
            DIALOGUE: self.dialogue,
        }


class AnnomiSource(FileSource):
    """Client turns, each with the therapist turn right after it.

    `pairs`: those with a reflection. `graded`: all of them, level 1 with a reflection and 0 without. `prompts`: the
    client turns.
    """

    kind: Literal["annomi"] = "annomi"
    view: Literal["prompts", "pairs", "graded"] = "pairs"
    min_prompt_words: int = Field(4, ge=1)  # excludes "Mm-hmm." and "Yeah.", which have nothing to reflect
    min_response_words: int = Field(3, ge=1)
    quality: Literal["high", "low", "all"] = "high"  # the data set's grade of the whole dialogue

    def read(self, text: str, name: str, tally: Tally) -> list[Record]:
        records: list[Record] = []
        for dialogue in _dialogues(text, name, tally):
            records += self._records(dialogue, tally)
        return one_per_prompt(records) if self.view == "prompts" else records

    def _records(self, dialogue: dict[int, Utterance], tally: Tally) -> Iterator[Record]:
        turns = sorted(dialogue.items())
        for (_, client), (_, reply) in pairwise(turns):
            if (client.speaker, reply.speaker) != SPEAKERS or self.quality not in ("all", client.quality):
                continue
            if self.view == "pairs" and not reply.is_reflection:
                continue
            if len(client.text.split()) < self.min_prompt_words:
                tally.counts["prompts too short"] += 1
            elif self.view == "prompts":
                yield Record(client.text, where=client.where, extras={"topic": client.topic, DIALOGUE: client.dialogue})
            elif len(reply.text.split()) < self.min_response_words:
                tally.counts["replies too short"] += 1
            else:
                yield Record(client.text, reply.text, float(reply.is_reflection), (), reply.where, reply.extras())


def _dialogues(text: str, name: str, tally: Tally) -> list[dict[int, Utterance]]:
    """The transcripts in file order: utterance number -> utterance."""
    header, rows = csv_table(text, name, tally)
    need_columns(header, COLUMNS, name)
    dialogues: dict[str, dict[int, Utterance]] = {}
    for where, row in rows:
        spoken, speaker = clean(row["utterance_text"]), row["interlocutor"].strip()
        if speaker not in SPEAKERS:
            tally.malformed(where, f"interlocutor is neither {' nor '.join(SPEAKERS)}")
            continue
        number = row["utterance_id"].strip()
        if not number.isascii() or not number.isdigit():
            tally.malformed(where, "utterance_id is not a whole number")
            continue
        if not spoken:
            tally.malformed(where, "utterance_text is empty")
            continue
        transcript = row["transcript_id"].strip()
        dialogue = dialogues.setdefault(transcript, {})
        known = dialogue.get(int(number))
        if known is not None and (known.text, known.speaker) != (spoken, speaker):
            tally.malformed(where, f"utterance {number} differs from {known.where}")
            continue
        if known is None:
            quality, topic = row["mi_quality"].strip(), clean(row["topic"])
            known = Utterance(speaker, spoken, where, quality, topic, f"{name} {transcript}")
            dialogue[int(number)] = known
        else:
            tally.counts["repeated annotations"] += 1
        if speaker == "therapist":
            reflects = row["reflection_exists"].strip().lower() == "true"
            known.reflections.append(reflects)
            known.behaviours[row["main_therapist_behaviour"].strip()] += 1
            if reflects:
                known.subtypes[row["reflection_subtype"].strip()] += 1
    tally.counts["dialogues"] = len(dialogues)
    return list(dialogues.values())
