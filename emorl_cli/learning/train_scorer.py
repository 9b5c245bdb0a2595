"""`emorl train-scorer`: a cross-encoder scorer from graded pairs, with its figures on prompts that it never saw."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from emorl_cli.console.options import add_example
from emorl_cli.console.printing import print_json

DEFAULT_LOSS = {"pair": "margin"}  # every other kind of data: classes
COLUMNS = ("prompt", "response", "level")
# Options whose default is the configuration's own.
OPTIONAL = (
    *("revision", "epochs", "learning_rate", "batch_size", "max_length", "margin", "mismatched", "calibration"),
    *("freeze_layers", "seed", "device"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "data", metavar="KIND:PATH", help="graded pairs of pair, epitome, annomi, esconv, jsonl, csv, hub"
    )
    parser.add_argument("--encoder", required=True, help="any Hugging Face encoder: a folder or a hub id")
    parser.add_argument("--revision", help="of a hub id: a branch, tag or commit")
    parser.add_argument("--out", required=True, type=Path, help="the folder to write; must not exist or be empty")
    parser.add_argument(
        "--loss",
        choices=("margin", "classes"),
        help="margin: rank the replies of a prompt (default for pair); classes: predict the level (otherwise)",
    )
    for column in COLUMNS:
        parser.add_argument(f"--{column}-column", default=column, help=f"jsonl, csv, hub: default {column}")
    parser.add_argument("--on-bad-row", choices=("refuse", "skip"), default="refuse", help="default refuse")
    parser.add_argument("--epochs", type=int, help="passes over the training part (default 3)")
    parser.add_argument("--learning-rate", type=float, help="peak, after warming up (default 1e-4)")
    parser.add_argument("--batch-size", type=int, help="pairs a step (default 32)")
    parser.add_argument("--max-length", type=int, help="tokens of prompt and reply together (default 128)")
    parser.add_argument("--margin", type=float, help="logits per level between ranked replies (default 1)")
    parser.add_argument(
        "--mismatched", type=int, help="replies of other prompts per prompt, as worst (default 2; margin)"
    )
    parser.add_argument("--calibration", choices=("platt", "isotonic"), help="of a margin scorer (default platt)")
    parser.add_argument("--freeze-layers", type=int, help="keep so many of the lowest layers as they are (default 0)")
    parser.add_argument("--train-embeddings", action="store_true", help="train the word embeddings too")
    parser.add_argument("--seed", type=int, help="of the split, the head, the order and dropout (default 0)")
    parser.add_argument("--device", help="auto (CUDA when there is one), cpu, cuda or cuda:N")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice); part of what repeats a run")
    parser.add_argument("--resume", action="store_true", help="continue an interrupted run after its last full epoch")
    parser.add_argument("--overwrite", action="store_true", help="replace what lies at --out when the run is done")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    add_example(
        parser,
        "emorl train-scorer pair:pair.csv --encoder sentence-transformers/all-MiniLM-L6-v2 --out scorers/reflection",
        "emorl train-scorer epitome:data/emotional-reactions-reddit.csv --encoder my-encoder --out scorers/empathy",
    )


def run(args: argparse.Namespace) -> int:
    from emorl_core.errors import InvalidRequest
    from training.config import parse_fields
    from training.data.records import DataError
    from training.data.sources import load_records
    from training.scorers.base import ScorerError
    from training.scorers.learned.settings import ScorerTraining

    kind, colon, path = args.data.partition(":")
    if not colon or not path:
        raise DataError(f"data {args.data!r} is not KIND:PATH; write for example pair:data/pair.csv", param="data")
    if args.threads is not None and args.threads < 1:
        raise InvalidRequest(f"--threads is {args.threads}; allowed: a whole number from 1", param="threads")
    if args.resume and args.overwrite:
        raise InvalidRequest("--resume and --overwrite exclude each other", param="resume")
    settings: dict[str, Any] = {"encoder": args.encoder, "loss": args.loss or DEFAULT_LOSS.get(kind, "classes")}
    for name in OPTIONAL:
        if getattr(args, name) is not None:
            settings[name] = getattr(args, name)
    settings["freeze_embeddings"] = not args.train_embeddings

    from training.scorers.learned.report import figure
    from training.scorers.learned.train import check_target, train_scorer

    config = parse_fields(ScorerTraining, settings, where="train-scorer", error=ScorerError)
    check_target(args.out, resume=args.resume, overwrite=args.overwrite)  # before minutes are spent on reading
    data = load_records(_source(kind, path, args))
    if not args.json:
        print(data.summary())

    import torch

    from emorl_cli.console.progress import Stages

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    with Stages() as stages:
        trained = train_scorer(
            config,
            data,
            args.out,
            resume=args.resume,
            overwrite=args.overwrite,
            progress=lambda done, total, loss: stages("steps", done, total),
        )
    if args.json:
        print_json(trained.report)
        return 0
    epochs = "1 epoch" if config.epochs == 1 else f"{config.epochs} epochs"
    kept = f"kept is epoch {trained.report['epoch_kept']}, the best on the validation prompts"
    print(f"{args.out}: written after {epochs}; {kept}; on the test prompts:")
    for name, value in sorted(trained.report["test"].items()):
        print(f"  {name}: {figure(value)}")
    return 0


def _source(kind: str, path: str, args: argparse.Namespace) -> dict[str, Any]:
    """The data source as a recipe would write it."""
    source: dict[str, Any] = {"kind": kind, "on_bad_row": args.on_bad_row}
    columns = {column: getattr(args, f"{column}_column") for column in COLUMNS}
    if kind in ("jsonl", "csv"):
        return source | {"path": path} | columns
    if kind == "hub":
        return source | {"id": path} | columns
    return source | {"path": path, "view": "graded"}
