"""`emorl train-scorer`: trains a scorer on graded replies and tests it on unseen prompts."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from emorl_cli.console.options import add_example
from emorl_cli.console.printing import print_json
from emorl_cli.learning.graded_data import KINDS_HELP, add_column_options, kind_of, load_sets

DEFAULT_LOSS = {"pair": "margin"}  # every other kind of data: classes
# Options whose default is in the configuration.
OPTIONAL = (
    *("revision", "epochs", "learning_rate", "batch_size", "prompts_per_epoch", "max_length", "margin"),
    *("mismatched", "calibration", "freeze_layers", "seed", "device"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "data", metavar="KIND:PATH", nargs="+", help=f"graded replies: {KINDS_HELP}; pairwise and states accept several"
    )
    parser.add_argument(
        "--replies",
        metavar="KIND:PATH",
        action="append",
        default=[],
        help="human replies to learn from without their levels; repeatable (pairwise, states)",
    )
    parser.add_argument(
        "--encoder",
        required=True,
        help="Hugging Face encoder, or a causal model for states and fluency: a folder or a hub id",
    )
    parser.add_argument("--revision", help="branch, tag or commit of a hub id")
    parser.add_argument("--out", required=True, type=Path, help="folder to write")
    parser.add_argument(
        "--loss",
        choices=("pairwise", "states", "margin", "classes", "fluency"),
        help="pairwise: a judge that ranks human replies above corrupted ones; states: a judge as "
        "a small network over the frozen hidden states of a causal model; margin: rank the "
        "replies to each prompt (default for pair); classes: predict the level (default "
        "otherwise); fluency: fit weights for likelihoods under a causal model",
    )
    add_column_options(parser)
    parser.add_argument("--epochs", type=int, help="passes over the training part (default 3)")
    parser.add_argument("--learning-rate", type=float, help="peak learning rate (default 1e-4)")
    parser.add_argument("--batch-size", type=int, help="pairs per step (default 32)")
    parser.add_argument("--prompts-per-epoch", type=int, help="prompts per epoch (default 160; pairwise)")
    parser.add_argument(
        "--max-length", type=int, help="maximum length of prompt and reply together, in tokens (default 128)"
    )
    parser.add_argument(
        "--margin", type=float, help="difference in logits per level that ranked replies should have (default 1)"
    )
    parser.add_argument(
        "--mismatched",
        type=int,
        help="replies to other prompts added to each prompt as its worst replies (default 2; margin)",
    )
    parser.add_argument(
        "--calibration", choices=("platt", "isotonic"), help="calibration of a margin scorer (default platt)"
    )
    parser.add_argument("--freeze-layers", type=int, help="number of layers to freeze, from the lowest (default 0)")
    parser.add_argument(
        "--train-embeddings", action="store_true", help="train the word embeddings too (default: frozen)"
    )
    parser.add_argument(
        "--seed", type=int, help="seed of the split, the new head, the order of examples and dropout (default 0)"
    )
    parser.add_argument("--device", help="auto (CUDA if available), cpu, cuda or cuda:N")
    parser.add_argument(
        "--threads", type=int, help="CPU threads (default: torch's choice); results may differ with another number"
    )
    parser.add_argument("--resume", action="store_true", help="resume an interrupted run after its last finished epoch")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing --out when training has finished")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    add_example(
        parser,
        "emorl train-scorer pair:pair.csv --encoder sentence-transformers/all-MiniLM-L6-v2 --out scorers/reflection",
        "emorl train-scorer pair:pair.csv annomi:annomi.csv --loss pairwise --encoder my-encoder --out scorers/judge",
    )


def run(args: argparse.Namespace) -> int:
    from emorl_core.errors import InvalidRequest
    from emorl_core.kinds import parse_fields
    from emorl_core.scorers.base import ScorerError
    from training.scorers.learned.settings import ScorerTraining

    kind = kind_of(args.data[0])
    if args.threads is not None and args.threads < 1:
        raise InvalidRequest(f"--threads is {args.threads}; allowed: a whole number from 1", param="threads")
    if args.resume and args.overwrite:
        raise InvalidRequest("--resume and --overwrite exclude each other", param="resume")
    settings: dict[str, Any] = {"encoder": args.encoder, "loss": args.loss or DEFAULT_LOSS.get(kind, "classes")}
    for name in OPTIONAL:
        if getattr(args, name) is not None:
            settings[name] = getattr(args, name)
    settings["freeze_embeddings"] = not args.train_embeddings

    from training.scorers.learned.fluency import train_fluency
    from training.scorers.learned.judge import train_judge
    from training.scorers.learned.train import check_target, train_scorer

    config = parse_fields(ScorerTraining, settings, where="train-scorer", error=ScorerError)
    check_target(args.out, resume=args.resume, overwrite=args.overwrite)  # before minutes are spent on reading
    if config.loss == "fluency" and args.resume:
        raise InvalidRequest("--resume: fluency is fitted in one go; start again with --overwrite", param="resume")
    data, *also = load_sets(
        args.data, args, "where there are some" if config.loss in ("fluency", "states") else "needed"
    )
    replies = load_sets(args.replies, args, "none")
    if not args.json:
        print("\n".join(each.summary() for each in (data, *also, *replies)))

    import torch

    from emorl_cli.console.progress import Stages

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    with Stages() as stages:
        if config.loss == "fluency":
            return _tell(
                args,
                train_fluency(
                    config,
                    [data, *also, *replies],
                    args.out,
                    overwrite=args.overwrite,
                    progress=lambda done, total, loss: stages("replies read", done, total),
                ).report,
                "written",
            )
        states = config.loss == "states"
        common: dict[str, Any] = {
            "also": also,
            "replies": replies,
            "resume": args.resume,
            "overwrite": args.overwrite,
            "progress": lambda done, total, loss: stages("replies read" if states else "steps", done, total),
        }
        if states:
            trained = train_judge(config, data, args.out, **common)
        else:
            trained = train_scorer(config, data, args.out, **common)
    if states:
        return _tell(args, trained.report, "written")
    epochs = "1 epoch" if config.epochs == 1 else f"{config.epochs} epochs"
    kept = f"kept is epoch {trained.report['epoch_kept']}, the best on the validation prompts"
    return _tell(args, trained.report, f"written after {epochs}; {kept}")


def _tell(args: argparse.Namespace, report: dict[str, Any], what: str) -> int:
    from training.scorers.exam.report import text_lines
    from training.scorers.learned.report import figure

    if args.json:
        print_json(report)
        return 0
    print(f"{args.out}: {what}; on the test part:")
    for name, value in sorted(report.get("test", {}).items()):  # a judge has the exam alone
        print(f"  {name}: {figure(value)}")
    print("\n".join(["exam:", *(f"  {line}" for line in text_lines(report["exam"]))]))
    return 0
