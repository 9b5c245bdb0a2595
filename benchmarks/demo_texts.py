"""A bundle's replies to a file of statements, with each objective alone and with the default profile, for people to
read.

    emorl demo --folder my-demo --build-only
    python -m benchmarks.demo_texts --bundle my-demo --statements docs/demo-statements.txt --out my-texts.md

Replies are greedy. Under the texts stand plain measures over all of them. `loops`: share of replies in which a run of
three words comes twice; the others are those of `emorl evaluate`.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from emorl_core.ensemble import Ensemble
from emorl_core.scorers.words import ngrams, words
from emorl_core.types import Completion
from training.data.records import Record
from training.evaluation.cells import Reply
from training.evaluation.scores import measures_of

SHOWN = ("words", "copy_rate", "ended", "same_start", "distinct")


def answers(ensemble: Ensemble, statements: Sequence[str], *, with_base: bool) -> dict[str, list[Completion]]:
    """Each objective alone, then the default profile; the bare base first if requested."""
    asked: dict[str, Mapping[str, float] | None] = {name: {name: 1.0} for name in ensemble.objectives}
    if with_base:
        asked = {"base": {"base": 1.0}, **asked}
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


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", required=True, type=Path, help="bundle folder")
    parser.add_argument("--statements", required=True, type=Path, help="text file, one statement per line")
    parser.add_argument("--base", action="store_true", help="include the bare base's replies")
    parser.add_argument("--out", type=Path, help="Markdown file to write (default: standard output)")
    args = parser.parse_args()
    statements = [line for line in args.statements.read_text(encoding="utf-8").splitlines() if line.strip()]
    ensemble = Ensemble.load(args.bundle, dtype="float32", slots=32)
    done = answers(ensemble, statements, with_base=args.base)
    lines = []
    for number, statement in enumerate(statements):
        lines += [f"**{number + 1}. {statement}**", ""]
        lines += [f"- {name}: {own[number].text.strip()}" for name, own in done.items()]
        lines.append("")
    table = {name: measures(statements, own) for name, own in done.items()}
    columns = list(next(iter(table.values())))
    lines += [f"| | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    lines += [f"| {name} | {' | '.join(f'{own[column]:.3g}' for column in columns)} |" for name, own in table.items()]
    text = "\n".join(lines) + "\n"
    if args.out is None:
        print(text)
    else:
        args.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
