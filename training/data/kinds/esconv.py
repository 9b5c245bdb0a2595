"""ESConv (Liu et al., ACL 2021): emotional-support dialogues with a strategy per supporter turn.

Read from JSON lines (`dialog[{text, speaker: usr | sys, strategy}]`) and from the authors' JSON list
(`dialog[{content, speaker: seeker | supporter, annotation: {strategy}}]`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from training.data.records import DIALOGUE, Record, Tally, clean, one_per_prompt
from training.data.rows import FileSource, json_list, jsonl_rows

STRATEGIES = (
    "Question",
    "Restatement or Paraphrasing",
    "Reflection of feelings",
    "Self-disclosure",
    "Affirmation and Reassurance",
    "Providing Suggestions",
    "Information",
    "Others",
)
REFLECTIVE = ("Reflection of feelings", "Restatement or Paraphrasing")
SPEAKERS = {"usr": "client", "seeker": "client", "sys": "supporter", "supporter": "supporter"}


@dataclass(frozen=True, slots=True)
class Turn:
    """One message. `strategy` is empty for the client."""

    speaker: str
    text: str
    strategy: str


class EsconvSource(FileSource):
    """`pairs`: consecutive client messages and the supporter's next message, if its strategy is reflective. `graded`:
    all strategies, level 1 for the reflective ones and 0 for the others. `prompts`: the situations that clients
    described before the dialogue."""

    kind: Literal["esconv"] = "esconv"
    view: Literal["prompts", "pairs", "graded"] = "pairs"
    min_prompt_words: int = Field(4, ge=1)  # excludes greetings and "yes"
    min_response_words: int = Field(3, ge=1)

    def read(self, text: str, name: str, tally: Tally) -> list[Record]:
        rows = json_list if text.lstrip()[:1] == "[" else jsonl_rows
        records: list[Record] = []
        for where, item in rows(text, name, tally):
            parsed = _parse(item)
            if isinstance(parsed, str):
                tally.malformed(where, parsed)
                continue
            situation, turns = parsed
            extras = {key: clean(str(item[key])) for key in ("emotion_type", "problem_type") if item.get(key)}
            extras[DIALOGUE] = where
            if self.view != "prompts":
                records += self._records(turns, where, extras, tally)
            elif situation:
                records.append(Record(situation, where=where, extras=extras))
        if self.view != "prompts":
            return records
        distinct = one_per_prompt(records)
        tally.counts["repeated prompts"] = len(records) - len(distinct)
        return distinct

    def _records(self, turns: list[Turn], where: str, extras: dict[str, str], tally: Tally) -> Iterator[Record]:
        said: list[str] = []  # the client's messages since the supporter last spoke
        for number, turn in enumerate(turns):
            if turn.speaker == "client":
                said.append(turn.text)
                continue
            prompt, said = " ".join(said), []
            reflective = turn.strategy in REFLECTIVE
            if not prompt or (self.view == "pairs" and not reflective):
                continue
            if len(prompt.split()) < self.min_prompt_words:
                tally.counts["prompts too short"] += 1
            elif len(turn.text.split()) < self.min_response_words:
                tally.counts["replies too short"] += 1
            else:
                yield Record(
                    prompt,
                    turn.text,
                    float(reflective),
                    (),
                    f"{where} turn {number + 1}",
                    extras | {"strategy": turn.strategy},
                )


def _parse(item: dict[str, object]) -> tuple[str, list[Turn]] | str:
    """(situation, turns), or why the dialogue is malformed."""
    situation, dialog = item.get("situation"), item.get("dialog")
    if not isinstance(situation, str) or not isinstance(dialog, list):
        return "'situation' is not a string" if not isinstance(situation, str) else "'dialog' is not a list"
    turns: list[Turn] = []
    for number, turn in enumerate(dialog, start=1):
        if not isinstance(turn, dict):
            return f"turn {number} is not an object"
        text, speaker = turn.get("text", turn.get("content")), SPEAKERS.get(str(turn.get("speaker")))
        if not isinstance(text, str) or speaker is None:
            return f"turn {number}: {'speaker is unknown' if speaker is None else 'no text'}"
        annotation = turn.get("annotation")
        strategy = turn.get("strategy") or (annotation.get("strategy") if isinstance(annotation, dict) else None) or ""
        if speaker == "supporter" and strategy not in STRATEGIES:
            return f"turn {number}: strategy is not one of {', '.join(STRATEGIES)}"
        if clean(text):
            turns.append(Turn(speaker, clean(text), str(strategy)))
    return clean(situation), turns
