"""AnnoMI and ESConv: who speaks after whom, what counts as a reflection, and broken transcripts."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from tests.learn.real_data import real
from training.data.kinds.annomi import AnnomiSource
from training.data.kinds.esconv import EsconvSource
from training.data.records import DataError

ANNOMI = ("mi_quality,transcript_id,video_title,topic,utterance_id,interlocutor,timestamp,utterance_text,annotator_id,"
          "therapist_input_exists,therapist_input_subtype,reflection_exists,reflection_subtype,question_exists,"
          "question_subtype,main_therapist_behaviour,client_talk_type").split(",")  # fmt: skip
CLIENT_TEXT = "I drink when the house is empty."
REPLY = "The silence is hard, so you drink."


def turn(number: int, speaker: str, text: str, reflection: str = "False", **other: str) -> dict[str, str]:
    row = dict.fromkeys(ANNOMI, "n/a")
    row |= {"mi_quality": "high", "transcript_id": "0", "topic": "alcohol", "utterance_id": str(number)}
    row |= {"interlocutor": speaker, "utterance_text": text}
    if speaker == "therapist":
        behaviour = "reflection" if reflection == "True" else "question"
        row |= {"reflection_exists": reflection, "main_therapist_behaviour": behaviour}
        row |= {"reflection_subtype": "complex" if reflection == "True" else "n/a"}
    return row | other


def annomi(path: Path, rows: list[dict[str, str]], **settings: Any) -> AnnomiSource:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ANNOMI)
        writer.writeheader()
        writer.writerows(rows)
    return AnnomiSource(path=str(path), **settings)


def test_a_client_turn_is_paired_with_the_reflection_right_after_it(tmp_path: Path) -> None:
    rows = [
        turn(0, "therapist", "What brings you here today?"),
        turn(1, "client", CLIENT_TEXT),
        turn(2, "therapist", REPLY, "True"),
        turn(3, "client", "Only when I am on my own, really."),
        turn(4, "therapist", "How often is that in a week?"),
        turn(5, "therapist", "You feel it most when alone.", "True"),
    ]
    loaded = annomi(tmp_path / "a.csv", rows).load()
    assert [(r.prompt, r.response, r.level) for r in loaded] == [(CLIENT_TEXT, REPLY, 1.0)]
    assert loaded.records[0].extras["reflection"] == "complex"
    graded = annomi(tmp_path / "a.csv", rows, view="graded").load()
    assert [record.level for record in graded] == [1.0, 0.0]
    prompts = annomi(tmp_path / "a.csv", rows, view="prompts").load()
    assert len(prompts) == 2
    assert all(record.response is None for record in prompts)


def test_utterances_annotated_several_times_are_one_decided_by_majority(tmp_path: Path) -> None:
    def dialogue(votes: str) -> list[dict[str, str]]:
        return [turn(0, "client", CLIENT_TEXT, annotator_id=str(a)) for a, _ in enumerate(votes)] + [
            turn(1, "therapist", REPLY, "True" if vote == "t" else "False", annotator_id=str(a))
            for a, vote in enumerate(votes)
        ]

    loaded = annomi(tmp_path / "a.csv", dialogue("ttf")).load()
    assert len(loaded) == 1
    assert loaded.counts["repeated annotations"] == 4
    for votes in ("tff", "tf"):
        with pytest.raises(DataError, match="no usable record"):
            annomi(tmp_path / "a.csv", dialogue(votes)).load()


def test_annomi_turns_are_ordered_by_number_inside_their_transcript(tmp_path: Path) -> None:
    rows = [
        turn(11, "therapist", REPLY, "True"),
        turn(9, "client", "Something else entirely, to be honest."),
        turn(10, "client", CLIENT_TEXT),
        turn(10, "client", "A different person says this now.", transcript_id="1"),
    ]
    loaded = annomi(tmp_path / "a.csv", rows).load()
    assert [record.prompt for record in loaded] == [CLIENT_TEXT], "10 stands between 9 and 11, not before 9"


def test_annomi_leaves_out_short_turns_and_low_quality_dialogues(tmp_path: Path) -> None:
    rows = [turn(0, "client", "Mm-hmm."), turn(1, "therapist", REPLY, "True")]
    rows += [
        turn(0, "client", CLIENT_TEXT, transcript_id="1", mi_quality="low"),
        turn(1, "therapist", REPLY, "True", transcript_id="1", mi_quality="low"),
    ]
    rows += [turn(0, "client", CLIENT_TEXT, transcript_id="2"), turn(1, "therapist", REPLY, "True", transcript_id="2")]
    loaded = annomi(tmp_path / "a.csv", rows).load()
    assert len(loaded) == 1
    assert loaded.counts["prompts too short"] == 1
    assert len(annomi(tmp_path / "a.csv", rows, quality="all").load()) == 2


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ({"interlocutor": "dog"}, "interlocutor is neither client nor therapist"),
        ({"utterance_id": "1.5"}, "utterance_id is not a whole number"),
        ({"utterance_text": " "}, "utterance_text is empty"),
        ({"utterance_text": "Said otherwise here."}, r"utterance 0 differs from a\.csv:2"),
    ],
)
def test_malformed_annomi_rows(tmp_path: Path, fault: dict[str, str], why: str) -> None:
    rows = [turn(0, "client", CLIENT_TEXT), turn(1, "therapist", REPLY, "True"), turn(0, "client", CLIENT_TEXT) | fault]
    with pytest.raises(DataError, match=rf"^a\.csv:4: {why}"):
        annomi(tmp_path / "a.csv", rows).load()
    loaded = annomi(tmp_path / "a.csv", rows, on_bad_row="skip").load()
    assert (len(loaded), loaded.skipped) == (1, 1)


def test_an_annomi_file_without_its_columns_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("transcript_id,text\n1,hello\n")
    with pytest.raises(DataError, match=r"^a\.csv:1: no column 'utterance_id'; it has transcript_id, text"):
        AnnomiSource(path=str(path)).load()


def dialogue(
    *turns: tuple[str, str] | tuple[str, str, str], situation: str = "I may lose my job soon."
) -> dict[str, Any]:
    dialog = [
        {"speaker": turn[0], "text": turn[1], **({"strategy": turn[2]} if len(turn) > 2 else {})} for turn in turns
    ]
    return {"situation": situation, "emotion_type": "anxiety", "problem_type": "job crisis", "dialog": dialog}


REFLECTION = "Reflection of feelings"
TALK = dialogue(
    ("usr", "Hello there."),
    ("sys", "Hi, what is going on?", "Question"),
    ("usr", "I think my boss wants me gone."),
    ("usr", "It keeps me awake."),
    ("sys", "You are afraid for your job.", REFLECTION),
    ("sys", "That is a heavy thing.", "Affirmation and Reassurance"),
    ("usr", "Yes, I am afraid every single day."),
    ("sys", "So it never lets you go.", "Restatement or Paraphrasing"),
)


def esconv(path: Path, items: list[Any], **settings: Any) -> EsconvSource:
    path.write_text("\n".join(json.dumps(item) for item in items), encoding="utf-8")
    return EsconvSource(path=str(path), **settings)


def test_what_a_client_says_in_one_go_is_one_prompt(tmp_path: Path) -> None:
    loaded = esconv(tmp_path / "e.jsonl", [TALK]).load()
    assert [(record.prompt, record.response) for record in loaded] == [
        ("I think my boss wants me gone. It keeps me awake.", "You are afraid for your job."),
        ("Yes, I am afraid every single day.", "So it never lets you go."),
    ]
    assert loaded.records[0].where == "e.jsonl:1 turn 5"
    assert loaded.records[0].extras["strategy"] == REFLECTION


def test_esconv_grades_and_situations(tmp_path: Path) -> None:
    talk = dialogue(("usr", "My boss wants me gone."), ("sys", "Ask him about it.", "Providing Suggestions"))
    graded = esconv(tmp_path / "e.jsonl", [TALK, talk], view="graded").load()
    assert [record.level for record in graded] == [1.0, 1.0, 0.0]
    prompts = esconv(tmp_path / "e.jsonl", [TALK, talk], view="prompts").load()
    assert [record.prompt for record in prompts] == ["I may lose my job soon."]
    assert prompts.counts["repeated prompts"] == 1


def test_the_authors_json_list_gives_the_same_as_json_lines(tmp_path: Path) -> None:
    theirs = dict(TALK)
    theirs["dialog"] = [
        {
            "speaker": {"usr": "seeker", "sys": "supporter"}[turn["speaker"]],
            "annotation": {"strategy": turn["strategy"]} if "strategy" in turn else {},
            "content": turn["text"] + "\n",
        }
        for turn in TALK["dialog"]
    ]
    path = tmp_path / "ESConv.json"
    path.write_text(json.dumps([theirs], indent=1))
    ours = esconv(tmp_path / "e.jsonl", [TALK]).load()
    assert [(r.prompt, r.response) for r in EsconvSource(path=str(path)).load()] == [
        (r.prompt, r.response) for r in ours
    ]


@pytest.mark.parametrize(
    ("item", "why"),
    [
        ([1], "a JSON list; allowed: an object"),
        ({"dialog": []}, "'situation' is not a string"),
        ({"situation": "s", "dialog": "x"}, "'dialog' is not a list"),
        (dialogue(("dog", "Woof.")), "turn 1: speaker is unknown"),
        (dialogue(("sys", "Hello.", "Hypnosis")), "turn 1: strategy is not one of Question, "),
        ({"situation": "s", "dialog": [{"speaker": "usr"}]}, "turn 1: no text"),
    ],
)
def test_malformed_dialogues(tmp_path: Path, item: Any, why: str) -> None:
    with pytest.raises(DataError, match=rf"^e\.jsonl:2: {why}"):
        esconv(tmp_path / "e.jsonl", [TALK, item]).load()
    loaded = esconv(tmp_path / "e.jsonl", [TALK, item], on_bad_row="skip").load()
    assert (len(loaded), loaded.rows, loaded.skipped) == (2, 2, 1)


def test_the_real_annomi() -> None:
    loaded = AnnomiSource(path=str(real("annomi/annomi-full.csv"))).load()
    assert (loaded.rows, loaded.counts["dialogues"], loaded.counts["repeated annotations"]) == (9586, 118, 2277)
    assert (len(loaded), loaded.skipped) == (661, 0)


@pytest.mark.parametrize(("part", "rows", "pairs", "situations"), [("train", 910, 1516, 908), ("valid", 195, 294, 195)])
def test_the_real_esconv(part: str, rows: int, pairs: int, situations: int) -> None:
    path = str(real(f"esconv/{part}.jsonl"))
    loaded = EsconvSource(path=path).load()
    assert (loaded.rows, len(loaded), loaded.skipped) == (rows, pairs, 0)
    assert len(EsconvSource(path=path, view="prompts").load()) == situations
