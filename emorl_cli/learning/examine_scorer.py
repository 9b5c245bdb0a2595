"""`emorl examine-scorer`: finds out whether a scorer can be fooled, as a table of preferences."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from emorl_cli.console.options import add_example, add_threads_option, use_threads
from emorl_cli.console.printing import print_json
from emorl_cli.learning.graded_data import KINDS_HELP, add_column_options, kind_of, load_sets

SIZES = ("replies", "graded", "candidates", "prompts", "seed")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "scorer",
        metavar="SCORER",
        help="scorer as in a recipe, a kind or {kind: …, …}, or the folder of a trained scorer",
    )
    parser.add_argument(
        "--data",
        metavar="KIND:PATH",
        nargs="+",
        required=True,
        help=f"replies, graded or not: {KINDS_HELP}; they are split as by train-scorer",
    )
    add_column_options(parser, level=None)
    parser.add_argument(
        "--seed", type=int, help="seed of the split and of all samples (default 0); use that of train-scorer"
    )
    parser.add_argument("--replies", type=int, metavar="N", help="good replies to test in each data set (default 120)")
    parser.add_argument("--graded", type=int, metavar="N", help="replies to compare by level (default 600)")
    parser.add_argument(
        "--candidates", type=int, metavar="N", help="sentences to try as a constant reply (default 300)"
    )
    parser.add_argument(
        "--prompts", type=int, metavar="N", help="prompts for finding the best constant reply (default 24)"
    )
    parser.add_argument("--device", default="auto", help="auto (CUDA if available), cpu, cuda or cuda:N")
    add_threads_option(parser)
    parser.add_argument("--json", action="store_true", help="print the table as JSON")
    add_example(
        parser,
        "emorl examine-scorer lexical_reflection --data pair:pair.csv",
        "emorl examine-scorer scorers/reflection --data pair:pair.csv annomi:annomi-full.csv --on-bad-row skip --json",
        "emorl examine-scorer '{kind: perplexity, model: my-base}' --data pair:pair.csv --replies 40 --candidates 60",
    )


def run(args: argparse.Namespace) -> int:
    from emorl_core.errors import InvalidRequest
    from emorl_core.scorers import Context, build_scorer
    from training.scorers.exam.examine import ExamSettings, examine
    from training.scorers.exam.material import parts_of
    from training.scorers.exam.report import text_lines

    given = {name: getattr(args, name) for name in SIZES if getattr(args, name) is not None}
    for name, number in given.items():
        least = 0 if name == "seed" else 1
        if number < least:
            raise InvalidRequest(f"--{name} is {number}; allowed: a whole number from {least}", param=name)
    settings = ExamSettings(**given)
    for text in args.data:
        kind_of(text)
    spec = scorer_spec(args.scorer)
    sets = [parts_of(data, settings.seed) for data in load_sets(args.data, args, "where there are some")]
    use_threads(args.threads, args.device, say=not args.json)
    corpus = [record for parts in sets for record in parts["train"].records]
    scorer = build_scorer(spec, Context(device=args.device, corpus=corpus))
    found = examine(scorer, sets, settings).as_dict(texts=True)
    if args.json:
        print_json(found)
    else:
        print("\n".join([found["scorer"], *text_lines(found)]))
    return 0


def scorer_spec(text: str) -> Any:
    """The scorer's specification as in a recipe: a kind, a YAML mapping, or a folder written by `train-scorer`.

    Raises `ScorerError`.
    """
    from emorl_core.files.documents import parse_yaml
    from emorl_core.files.reading import Unreadable
    from emorl_core.scorers import SCORERS, ScorerError

    if text.lstrip().startswith("{"):
        try:
            return parse_yaml(text)
        except Unreadable as error:
            raise ScorerError(f"scorer: it {error.reason}", param="scorer") from None
    if text not in SCORERS and Path(text).is_dir():
        return {"kind": "cross_encoder", "model": text}
    return text
