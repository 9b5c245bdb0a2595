"""`results.json`'s content as Markdown, and as CSV with one number per line."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from training.evaluation.baselines import ABOUT
from training.evaluation.reporting.results import (
    BASELINES,
    FRONT_MEASURES,
    JUDGES,
    MEAN,
    OBJECTIVES,
    TEXT,
    columns_of,
    enough_seeds,
    failures,
)
from training.evaluation.scores import MEASURES
from training.scorers.exam.report import markdown_lines

CSV_HEADER = ("method", "seed", "group", "column", "value", "low", "high", "spread")
ALL_SEEDS = "all"
_MIB = 2**20


def markdown(found: Mapping[str, Any]) -> str:
    """The whole page."""
    prompts, reference = found["test_prompts"], found["reference"]
    fewest = found["statistics"]["fewest_seeds_of_a_claim"]
    parts = [
        f"# {found['name']}: comparison of methods",
        f"{prompts} held-out prompts. A cell is *mean [95 % interval]*; ± is the standard deviation of the seeds' "
        f"means. With {fewest} seeds or more an interval says what training again and other prompts would give; with "
        "fewer, what other prompts would give with these trained models.",
        f"SHA-256 of the recipe's settings {found['recipe']}, of all replies {found['replies_sha256']}.",
    ]
    if not enough_seeds(found):
        parts.append(
            f"**No claim about methods is made here**: none has {fewest} seeds. What differs below differs between "
            "these trained models."
        )
    if found["left_out"]:
        reasons = [f"- {name}: {why}" for name, why in found["left_out"].items()]
        parts.append("## Left out\n\n" + "\n".join(reasons))
    if failed := failures(found):
        parts.append("## Failed\n\n" + "\n".join(f"- {name}, seed {seed}: {why}" for name, seed, why in failed))
    parts.append("## Rewards: the scorers that the adapters were trained on\n\n" + _scores(found, OBJECTIVES))
    parts.append("\n".join(f"- *{name}*: {ABOUT[name]}" for name in found[BASELINES]))
    if columns_of(found, JUDGES):
        parts.append("## Judges: scorers that nothing was trained on\n\n" + _scores(found, JUDGES))
    notes = "\n".join(f"- `{name}`: {note}" for name, note in MEASURES.items())
    parts.append(f"## Text\n\n{_scores(found, TEXT)}\n\n{notes}")
    parts.append("## Cost\n\n" + _cost(found))
    if fronts := _fronts(found):
        parts.append("## Fronts\n\n" + fronts)
    if weighted := _weights(found):
        parts.append("## Weights\n\n" + weighted)
    if reference is not None:
        parts.append(f"## {reference} against the others\n\n" + _comparisons(found))
    for name, exam in found["exams"].items():
        lines = [f"It failed: {exam['failed']}"] if "failed" in exam else markdown_lines(exam)
        parts.append("\n".join([f"## Exam of {name}", "", *lines]))
    return "\n\n".join(parts) + "\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def shown(estimate: Mapping[str, Any], digits: int = 3) -> str:
    """`0.512 [0.498, 0.527] ± 0.011`; without an interval if there is none."""
    text = f"{estimate['mean']:.{digits}f}"
    if estimate["low"] is not None:
        text += f" [{estimate['low']:.{digits}f}, {estimate['high']:.{digits}f}]"
    return text if estimate["spread"] is None else f"{text} ± {estimate['spread']:.{digits}f}"


def _scores(found: Mapping[str, Any], group: str) -> str:
    columns = columns_of(found, group)
    ordered = [MEAN, *(column for column in columns if column != MEAN)] if MEAN in columns else list(columns)
    rows = []
    for name, own in found["methods"].items():
        if not own["seeds"]:
            rows.append([name, "0", *["failed"] * len(ordered)])
            continue
        rows.append([name, _seeds(own), *(shown(own[group][column], _digits(column)) for column in ordered)])
    for name, own in found[BASELINES].items():
        shown_as = [shown(own[group][column], _digits(column)) for column in ordered] if group in own else None
        rows.append([f"*{name}*", "–", *(shown_as or ["failed"] * len(ordered))])
    return table(["method", "seeds", *ordered], rows)


def _digits(column: str) -> int:
    return 1 if column == "words" else 3


def _seeds(own: Mapping[str, Any]) -> str:
    done, failed = len(own["seeds"]), len(own["failed"])
    return f"{done} of {done + failed}" if failed else str(done)


def _cost(found: Mapping[str, Any]) -> str:
    head = [
        *("method", "fitted pairs", "prompts", "samples", "tokens", "training s", "search evaluations", "search s"),
        *("forward rows / token", "texts scored / reply", "ms / token", "first token ms"),
        *("base MiB", "adapters MiB", "training shared with"),
    ]
    rows = []
    for name, own in found["methods"].items():
        if not own["seeds"]:
            rows.append([name, *["failed"] * (len(head) - 1)])
            continue
        used, clock, ran, held = own["consumption"], own["measured"], own["inference"], own["memory"]
        per_token = ran["lane_row_steps"]["mean"] / ran["tokens"]["mean"] if ran["tokens"]["mean"] else 0.0
        rows.append(
            [
                name,
                *(_count(used[key]) for key in ("pairs", "prompts", "samples", "tokens")),
                _count(clock["training_seconds"]),
                _count(used["search_evaluations"]),
                _count(clock["search_seconds"]),
                f"{per_token:.2f}",
                f"{ran['scored']['mean'] / found['test_prompts']:.3g}",
                f"{clock['ms_per_token']['mean']:.2f}",
                f"{clock['first_token_ms']['mean']:.1f}" if "first_token_ms" in clock else "–",
                f"{held['base']['mean'] / _MIB:.1f}",
                f"{held['adapters']['mean'] / _MIB:.2f}",
                ", ".join(other for other in used["shared_with"] if other != name) or "–",
            ]
        )
    note = (
        "Fitted pairs, prompts, samples and tokens are what a method's training takes when it is run by itself: the "
        "sum over all of its objectives. Methods that share adapters were trained once; seconds are of this run and "
        "this machine."
    )
    return f"{table(head, rows)}\n\n{note}"


def _fronts(found: Mapping[str, Any]) -> str:
    rows = []
    for name, own in found["methods"].items():
        if "front" in own:
            front = own["front"]
            rows.append([name, *(_number(front[key]) for key in FRONT_MEASURES[:3]), _count(front["prompts"])])
    note = (
        "Every weight vector in steps of a tenth, on the first held-out prompts, as points of mean rewards. "
        "Hypervolume: the share of the unit cube that some point reaches. Mean inner product: of weights and rewards, "
        "what the weights asked for. Cover: points with rewards of their own that no other point beats, of all points."
    )
    head = ["method", "hypervolume", "mean inner product", "cover", "prompts"]
    return f"{table(head, rows)}\n\n{note}" if rows else ""


def _number(value: Mapping[str, Any]) -> str:
    return f"{value['mean']:.3f}" + (f" ± {value['spread']:.3f}" if value["spread"] is not None else "")


def _count(value: Mapping[str, Any]) -> str:
    text = f"{value['mean']:,.0f}"
    return f"{text} ± {value['spread']:,.0f}" if value["spread"] else text


def _weights(found: Mapping[str, Any]) -> str:
    rows = []
    for name, own in found["methods"].items():
        for seed, weights in own.get("weights", {}).items():
            if weights:
                how = own["combine"] + (", anchored on the base" if own["anchored"] else "")
                rows.append([name, seed, ", ".join(f"{key} {value:.3g}" for key, value in weights.items()), how])
    return table(["method", "seed", "weights", "mixed"], rows) if rows else ""


def _comparisons(found: Mapping[str, Any]) -> str:
    rows = [
        [
            made["other"],
            made["column"],
            f"{made['difference']:+.3f} [{made['low']:+.3f}, {made['high']:+.3f}]",
            f"{made['seeds_ahead']} of {len(made['seeds'])}",
            *(_p(made[key]) for key in ("p", "p_holm", "p_seeds", "p_prompts_of_these_models")),
        ]
        for made in found["comparisons"]
    ]
    if not rows:
        return "Nothing to compare: the reference has no seed in common with another method."
    how = found["statistics"]
    note = (
        f"Differences are {found['reference']} minus the other, paired by prompt, averaged over the seeds that both "
        f"have. Intervals: {how['intervals']}. Tests: {how['tests']}. {how['claims']} of {how['comparisons']} "
        f"comparisons rest on {how['fewest_seeds_of_a_claim']} seeds or more and can be claims about methods."
    )
    head = [
        *("against", "column", "difference [95 % interval]", "seeds ahead"),
        *("p", "p, corrected", "p over seeds", "p, these trained models only"),
    ]
    return f"{table(head, rows)}\n\n{note}"


def _p(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def csv_text(found: Mapping[str, Any]) -> str:
    """Long format, one value per line; `seed` is `all` for means over seeds. A failed cell has a line without a
    value."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(CSV_HEADER)
    for name, own in found["methods"].items():
        for seed in own["failed"]:
            writer.writerow([name, seed, "status", "failed", "", "", "", ""])
        for group in (OBJECTIVES, JUDGES, TEXT, "consumption", "inference", "memory", "front", "measured"):
            for column, value in own.get(group, {}).items():
                if isinstance(value, Mapping):
                    writer.writerows(_lines(name, group, column, value))
    for name, own in found[BASELINES].items():
        for group in (OBJECTIVES, JUDGES, TEXT):
            for column, value in own.get(group, {}).items():
                writer.writerow(next(_lines(name, group, column, value)))
    return stream.getvalue()


def _lines(name: str, group: str, column: str, value: Mapping[str, Any]) -> Iterator[list[str]]:
    numbers = (value["mean"], value.get("low"), value.get("high"), value["spread"])
    yield [name, ALL_SEEDS, group, column, *("" if number is None else repr(float(number)) for number in numbers)]
    for seed, number in value["seeds"].items():
        yield [name, seed, group, column, repr(float(number)), "", "", ""]
