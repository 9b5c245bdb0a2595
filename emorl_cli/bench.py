"""`emorl bench`: this engine's speed compared with the alternatives, in one run."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

from emorl_cli.console.options import add_example

# Repeated here, so that --help does not import torch; a test compares them with the suite's own.
CASES = (
    *("bandwidth", "decode", "requests", "long", "prefill", "position", "objectives", "again", "turn", "weights"),
    *("memory", "copied", "cold", "http"),
)
SHAPES = (
    *("t5-small", "t5-base", "t5-large", "t5-tiny"),
    *("smollm2-135m", "qwen2.5-0.5b", "llama-3.2-1b", "llama-tiny"),
)
PEERS = ("one-model", "published", "peft-mixed", "ctranslate2", "llama.cpp")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    measured = parser.add_argument_group("measurements (default: those of all targets)")
    measured.add_argument("--case", action="append", choices=CASES, help="run only this case; repeatable")
    measured.add_argument(
        "--shape",
        action="append",
        choices=SHAPES,
        help="model shape, with random weights (default: those of the targets); repeatable",
    )
    measured.add_argument(
        "--dtype",
        action="append",
        choices=("auto", "float32", "bfloat16"),
        help="number format (default auto: bfloat16 if the device supports it natively); repeatable",
    )
    measured.add_argument(
        "--peers", metavar="A,B|none", help=f"alternatives to compare with (default {','.join(PEERS)})"
    )
    measured.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="default cpu")
    measured.add_argument("--threads", type=int, metavar="N", help="threads of every engine (default: one per core)")
    measured.add_argument("--rounds", type=int, metavar="K", help="measured rounds (default: depends on the case)")
    measured.add_argument("--quick", action="store_true", help="3 rounds per case; not for publication")
    files = parser.add_argument_group("files")
    files.add_argument(
        "--folder", type=Path, default=Path("runs/bench"), help="folder for the random models (default runs/bench)"
    )
    files.add_argument(
        "--json", type=Path, metavar="FILE", help="write the results as one line of JSON, updated after each case"
    )
    files.add_argument("--resume", action="store_true", help="run only the cases that are missing from the --json file")
    shown = parser.add_argument_group("reports, without measuring")
    only = shown.add_mutually_exclusive_group()
    only.add_argument(
        "--compare", nargs=2, type=Path, metavar=("OLD", "NEW"), help="print the changes that exceed the spread"
    )
    only.add_argument(
        "--render", nargs="+", type=Path, metavar="FILE", help="print one run, or the parts of one, as Markdown"
    )
    shown.add_argument(
        "--threshold",
        type=float,
        default=0.05,
        metavar="PART",
        help="with --compare: exit with 1 if a figure of this engine is worse by more than this "
        "fraction (default 0.05)",
    )
    shown.add_argument("--into", type=Path, metavar="PAGE", help="with --render: write between the marks in this page")
    add_example(
        parser,
        "emorl bench",
        "emorl bench --case decode --peers one-model --quick",
        "emorl bench --case decode --shape smollm2-135m --peers one-model,llama.cpp",
        "emorl bench --json new.json --resume",
        "emorl bench --compare old.json new.json --threshold 0.1",
        "emorl bench --render new.json --into docs/performance.md",
    )


def run(args: argparse.Namespace) -> int:
    from emorl_core.errors import InvalidRequest

    if importlib.util.find_spec("benchmarks") is None:
        raise InvalidRequest("the benchmarks are not installed here; run emorl bench from a clone of the repository")
    if args.compare:
        return _compare(args)
    if args.render:
        return _render(args)
    if args.into:
        raise InvalidRequest("--into goes with --render")

    from benchmarks.speed import plan, report

    peers = None if args.peers is None else [] if args.peers == "none" else args.peers.split(",")
    results, targets = plan.run(
        plan.Plan(
            shapes=args.shape or (),
            dtypes=args.dtype or (),
            cases=args.case or (),
            peers=peers,
            rounds=args.rounds,
            quick=args.quick,
            threads=args.threads,
            device=args.device,
            folder=args.folder,
            json=args.json,
            resume=args.resume,
        )
    )
    print(report.terminal(results, targets))
    return 0


def _compare(args: argparse.Namespace) -> int:
    """Returns 1 for a regression, for scripts."""
    from benchmarks.speed.compare import compare
    from benchmarks.speed.figures import read_results
    from emorl_core.errors import InvalidRequest

    if not args.threshold >= 0:
        raise InvalidRequest(f"--threshold is {args.threshold}; allowed: a number from 0, 0.05 is 5 %")
    old, new = (read_results([path]) for path in args.compare)
    comparison = compare(old, new, args.threshold)
    print("\n".join(comparison.lines()))
    return 1 if comparison.regressions else 0


def _render(args: argparse.Namespace) -> int:
    """The generated part of docs/performance.md, and with --json the parts as one file."""
    from benchmarks.speed import report
    from benchmarks.speed.figures import read_results, write_results
    from benchmarks.speed.targets import judge_main

    results = read_results(args.render)
    targets = judge_main(results)
    text = report.markdown(results, targets)
    if args.json is not None:
        write_results(args.json, results, targets)
    if args.into is None:
        print(text, end="")
    else:
        report.put_into(args.into, text)
    return 0
