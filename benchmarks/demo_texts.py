"""A bundle's replies with each objective alone and with the default profile, for people to read, and measures of them.

    emorl demo --folder my-demo --build-only
    python -m benchmarks.demo_texts --bundle my-demo --statements docs/demo-statements.txt --out my-texts.md

Prompts are the lines of a file (`--statements`), the prompts of a data set (`--data`) or a part of the recipe's data
(`--part`). Replies are greedy. Under the texts stand plain measures over all of them. `loops`: share of replies in
which a run of three words comes twice; the others are those of `emorl evaluate`. With `--recipe`, two further tables:
each objective's own reward and every judge of the recipe's `evaluation.scorers`, adapter against base, with a paired
95 % bootstrap interval over prompts, and what the best constant sentence gets, searched among the training replies.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from emorl_core.ensemble import Ensemble
from emorl_core.scorers import Context, build_scorer
from emorl_core.scorers.base import Checked, Scorer, checked
from emorl_core.scorers.words import ngrams, words
from emorl_core.types import Completion
from training.data.records import Record
from training.data.sources import load_records
from training.evaluation.cells import Reply
from training.evaluation.scores import measures_of
from training.pipeline.pairs import given_records
from training.pipeline.prepare import distinct, load_data
from training.recipe.recipe import load_recipe
from training.scorers.exam.examine import Asking, ExamSettings, best_constant
from training.search.bootstrap import mean_interval, resamples

if TYPE_CHECKING:
    from training.recipe.recipe import Recipe

BASE = "base"
SHOWN = ("words", "copy_rate", "ended", "same_start", "distinct")


def answers(ensemble: Ensemble, statements: Sequence[str]) -> dict[str, list[Completion]]:
    """The bare base, each objective alone, then the default profile."""
    asked: dict[str, Mapping[str, float] | None] = {name: {name: 1.0} for name in (BASE, *ensemble.objectives)}
    asked[ensemble.spec.default_profile or "default"] = None
    return {
        name: list(ensemble.generate(list(statements), weights=weights, max_new_tokens=60))
        for name, weights in asked.items()
    }


def measures(statements: Sequence[str], done: Sequence[Completion]) -> dict[str, float]:
    replies = [
        Reply(
            index=i, prompt_sha256="", text=each.text, tokens=len(each.token_ids), finish_reason=str(each.finish_reason)
        )
        for i, each in enumerate(done)
    ]
    means = {name: float(own.mean()) for name, own in measures_of(replies, [Record(s) for s in statements]).items()}
    bigrams = [pair for each in done for pair in ngrams(words(each.text), 2)]
    looping = [len(set(runs)) < len(runs) for runs in (ngrams(words(each.text), 3) for each in done)]
    return {
        "distinct_2": len(set(bigrams)) / max(len(bigrams), 1),
        **{name: means[name] for name in SHOWN},
        "loops": sum(looping) / len(looping),
    }


def best_sentence(scorer: Checked, records: Sequence[Record], statements: Sequence[str]) -> tuple[str, float]:
    """The sentence that the scorer rates best as an answer to the clients of `records`, and its mean score on the
    statements."""
    text = best_constant(Asking(scorer), records, ExamSettings()).text
    scores = scorer(list(statements), [text] * len(statements))
    return text, sum(scores) / len(scores)


def gains(scorer: Scorer, statements: Sequence[str], texts: Mapping[str, Sequence[str]], lanes: Sequence[str]) -> str:
    """The mean score of the base, then of each of `lanes` with its difference from the base."""
    scores = {lane: np.array(scorer(list(statements), list(texts[lane]))) for lane in (BASE, *lanes)}
    draws, cells = resamples(len(statements)), [f"{scores[BASE].mean():.3f}"]
    for lane in lanes:
        gain = mean_interval(scores[lane] - scores[BASE], draws)
        cells.append(f"{scores[lane].mean():.3f} ({gain.estimate:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}])")
    return " | ".join(cells)


def scored(recipe: Recipe, folder: Path, statements: Sequence[str], texts: Mapping[str, Sequence[str]]) -> list[str]:
    """Markdown tables of rewards and judges. folder: where the recipe's relative paths start. Constants are searched
    among the replies that adapters were fitted on, or else the data's."""
    names = list(recipe.objectives)
    data = load_data(recipe, folder)
    train = data.parts["train"]
    given = given_records(recipe, folder, data)
    context = Context(recipe.compute.scorer_device, folder, train)
    constants: list[str] = []

    def row(name: str, scorer: Scorer, lanes: Sequence[str], records: Sequence[Record]) -> str:
        text, mean = best_sentence(checked(scorer), records or train, statements)
        constants.append(f"{name}: “{text}”")
        return f"| {name} | {mean:.3f} | {gains(scorer, statements, texts, lanes)} |"

    lines = ["", "| reward | best constant | base | its own adapter |", "|---|---|---|---|"]
    for name in names:
        scorer = build_scorer(recipe.objectives[name].scorer, context, where=f"objectives.{name}.scorer")
        lines.append(row(name, scorer, [name], given.get(name, ())))
    lines += ["", f"| judge | best constant | base | {' | '.join(names)} |", f"|---|---|---|{'---|' * len(names)}"]
    for name, spec in recipe.evaluation.scorers.items():
        scorer = build_scorer(spec, context, where=f"evaluation.scorers.{name}")
        lines.append(row(name, scorer, names, [record for own in given.values() for record in own]))
    return [*lines, "", f"Best constants: {'; '.join(constants)}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", required=True, type=Path, help="bundle folder")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--statements", type=Path, help="text file with one client statement per line")
    source.add_argument("--data", metavar="KIND:PATH", help="data set whose prompts are answered")
    source.add_argument("--part", choices=("test", "validation", "train"), help="part of the recipe's data")
    parser.add_argument("--prompts", type=int, default=200, help="maximum number of prompts (default 200)")
    parser.add_argument("--recipe", type=Path, help="recipe whose rewards and judges score the replies (default none)")
    parser.add_argument("--out", type=Path, help="Markdown file to write (default standard output)")
    args = parser.parse_args()
    if args.part and not args.recipe:
        parser.error("--part needs --recipe, which names the data")
    recipe = load_recipe(args.recipe) if args.recipe else None
    if args.statements:
        statements = [line for line in args.statements.read_text(encoding="utf-8").splitlines() if line.strip()]
    elif args.data:
        kind, _, path = args.data.partition(":")
        statements = distinct(load_records({"kind": kind, "path": path, "view": "prompts"}).records)
    else:
        assert recipe is not None
        statements = distinct(load_data(recipe, args.recipe.resolve().parent).parts[args.part])
    statements = statements[: args.prompts]

    ensemble = Ensemble.load(args.bundle, dtype="float32", slots=32)
    done = answers(ensemble, statements)
    shown = [name for name in done if name != BASE]
    lines = []
    for number, statement in enumerate(statements):
        lines += [f"**{number + 1}. {statement}**", ""]
        lines += [f"- {name}: {done[name][number].text.strip()}" for name in shown]
        lines.append("")
    table = {name: measures(statements, own) for name, own in done.items()}
    columns = list(next(iter(table.values())))
    lines += [f"| | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    lines += [f"| {name} | {' | '.join(f'{own[column]:.3g}' for column in columns)} |" for name, own in table.items()]
    if recipe is not None:
        texts = {name: [each.text for each in own] for name, own in done.items()}
        lines += scored(recipe, args.recipe.resolve().parent, statements, texts)
    text = "\n".join(lines) + "\n"
    if args.out is None:
        print(text)
    else:
        args.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
