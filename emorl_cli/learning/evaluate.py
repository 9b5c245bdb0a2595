"""`emorl evaluate`: compares training methods over seeds in one table, and analyses blind ratings."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emorl_cli.console.options import (
    add_example,
    add_ray_option,
    add_set_option,
    add_threads_option,
    threads_of_a_task,
    use_threads,
)
from emorl_cli.console.printing import print_json
from emorl_cli.console.reading import whole

if TYPE_CHECKING:
    from training.evaluation.run import RunCell
    from training.pipeline.prepare import Data
    from training.progress import Progress
    from training.recipe.recipe import Recipe

REFERENCE = "emorl"
AB_OTHERS = ("uniform", "soups", "base")  # default opponents of the reference in blind ratings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", type=Path, nargs="?", help="YAML file; see recipes/ and docs/evaluation.md")
    what = parser.add_argument_group("methods")
    what.add_argument("--methods", metavar="NAME,…", help="methods to compare (default: all; see --list)")
    what.add_argument(
        "--seeds", default="1", metavar="N,…", help="seeds; each method is trained once per seed (default 1)"
    )
    what.add_argument("--reference", metavar="NAME", help="method that the others are tested against (default emorl)")
    what.add_argument("--list", action="store_true", help="list the recipe's methods and exit")
    add_set_option(what, "rl.stop.max_steps=20")
    where = parser.add_argument_group("run")
    where.add_argument("--out", type=Path, metavar="DIR", help="folder of the run (default evaluation-<recipe's name>)")
    where.add_argument(
        "--resume", action="store_true", help="keep the finished cells in --out and run the missing ones"
    )
    where.add_argument("--retry-failed", action="store_true", help="with --resume: run failed cells again")
    where.add_argument(
        "--report-only", action="store_true", help="only write the report for the finished cells in --out"
    )
    where.add_argument("--overwrite", action="store_true", help="delete the contents of --out first")
    add_ray_option(where, "cells", "all machines need access to the recipe's folder and --out")
    texts = parser.add_argument_group("human ratings")
    texts.add_argument(
        "--side-by-side",
        type=int,
        default=12,
        metavar="N",
        help="prompts to show with every method's reply (default 12)",
    )
    texts.add_argument(
        "--ab",
        action="append",
        default=[],
        metavar="NAME,NAME",
        help="pair of methods for the blind sheet; repeatable (default: the reference against uniform, soups and base)",
    )
    texts.add_argument("--ab-items", type=int, default=20, metavar="N", help="prompts per pair (default 20)")
    texts.add_argument(
        "--score-ab", type=Path, nargs="+", metavar="SHEET", help="analyse completed sheets, one per rater, and exit"
    )
    texts.add_argument(
        "--key", type=Path, metavar="FILE", help="key for --score-ab (default: ab-key.csv beside the sheet)"
    )
    add_threads_option(parser)
    parser.add_argument("--no-plots", action="store_true", help="do not draw plots")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    add_example(
        parser,
        "emorl evaluate recipes/demo.yaml --seeds 1",
        "emorl evaluate recipes/demo.yaml --methods base,uniform,emorl --seeds 1,2,3,4,5 --out runs/five --resume",
        "emorl evaluate recipes/demo.yaml --seeds 1,2,3,4,5 --ray auto",
        "emorl evaluate --score-ab runs/five/ab-sheet.csv",
    )


def run(args: argparse.Namespace) -> int:
    from training.evaluation.cells import EvaluationError

    if args.score_ab:
        return _score_ab(args)
    if args.recipe is None:
        raise EvaluationError("name a recipe, or --score-ab SHEET", param="recipe")
    from training.evaluation.methods.methods import left_out, method_names
    from training.evaluation.reporting.statistics import check_installed
    from training.evaluation.run import open_run
    from training.pipeline.prepare import load_data
    from training.recipe.recipe import load_recipe
    from training.search.plots import MISSING, installed

    recipe = load_recipe(args.recipe, args.set)
    known = method_names(recipe)
    if args.list:
        print_json(list(known)) if args.json else print("\n".join(known))
        return 0
    check_installed()
    plots = not args.no_plots and installed()
    wanted = _wanted(args, known, left_out(recipe), plots)
    for name in ("overwrite", "ray"):
        if args.report_only and getattr(args, name):
            raise EvaluationError(f"--report-only and --{name} exclude each other", param=name)
    folder = args.recipe.resolve().parent
    out = args.out or Path(f"evaluation-{recipe.name}")
    if args.report_only and not out.is_dir():
        raise EvaluationError(f"--out {out}: there is no such folder to report on", param="out")
    for name, why in wanted.left_out.items():
        _say(f"{name} is left out: {why}")
    data = load_data(recipe, folder)
    with open_run(out, recipe, folder, data, resume=args.resume or args.report_only, overwrite=args.overwrite):
        use_threads(args.threads if args.ray is None else threads_of_a_task(args.threads), recipe.compute.device)
        found = _run(args, out, wanted, recipe, folder, data)
    code = _tell(args, out, found, plots)
    if not args.no_plots and not plots:
        _say(f"nothing is drawn: {MISSING}")
    return code


def _run(args: argparse.Namespace, out: Path, wanted: Any, recipe: Recipe, folder: Path, data: Data) -> dict[str, Any]:
    from emorl_cli.console.progress import Stages
    from training.evaluation.run import judge, run_cells

    def prepare() -> RunCell:
        from training.evaluation.methods.experiment import prepare as prepare_methods
        from training.evaluation.methods.methods import run_cell

        settings = recipe.evaluation
        experiment = prepare_methods(
            recipe, folder, out, say=_say, levels=settings.search_levels, search_prompts=settings.search_prompts
        )

        def run(method: str, seed: int, progress: Progress) -> None:
            run_cell(method, seed, experiment, progress)

        return run

    with Stages() as stages:
        if args.ray is not None:
            _run_on_ray(args, out, wanted, recipe, folder, stages)
        elif not args.report_only:
            run_cells(out, wanted, prepare, retry_failed=args.retry_failed, progress=stages, say=_say)
        return judge(out, wanted, recipe, folder, data, progress=stages)


def _run_on_ray(
    args: argparse.Namespace, out: Path, wanted: Any, recipe: Recipe, folder: Path, progress: Progress
) -> None:
    from emorl_cli.console.cluster import connected
    from training.evaluation.on_ray import Setting, run_cells

    setting = Setting(recipe, folder, out.resolve(), threads_of_a_task(args.threads))
    with connected(args.ray):
        run_cells(out, wanted, setting, retry_failed=args.retry_failed, progress=progress, say=_say)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _wanted(args: argparse.Namespace, known: Sequence[str], left_out: Mapping[str, str], plots: bool) -> Any:
    from emorl_core.kinds import nearest
    from training.evaluation.cells import EvaluationError
    from training.evaluation.run import Wanted

    named = tuple(args.methods.split(",")) if args.methods else tuple(known)
    for name in named:
        if name not in known:
            raise EvaluationError(
                f"--methods: {name[:40]!r} is unknown{nearest(name, known)}; known: {', '.join(known)}", param="methods"
            )
    if len(set(named)) < len(named):
        raise EvaluationError("--methods: one is named twice", param="methods")
    methods = [name for name in known if name in named and name not in left_out]  # in the table's order
    if not methods:
        raise EvaluationError(f"--methods: {named[0]} is left out: {left_out[named[0]]}", param="methods")
    try:
        seeds = tuple(whole(text) for text in args.seeds.split(","))
    except ValueError:
        raise EvaluationError(
            f"--seeds is {args.seeds[:40]!r}; allowed: whole numbers with commas, as in 1,2,3", param="seeds"
        ) from None
    reference = args.reference or (REFERENCE if REFERENCE in methods else None)
    return Wanted(
        tuple(methods),
        seeds,
        reference,
        _pairs(args.ab, methods, reference),
        args.ab_items,
        args.side_by_side,
        plots,
        {name: why for name, why in left_out.items() if name in named},
    )


def _pairs(given: Sequence[str], methods: Sequence[str], reference: str | None) -> tuple[tuple[str, str], ...]:
    from training.evaluation.cells import EvaluationError

    if not given:
        return tuple((reference, other) for other in AB_OTHERS if reference is not None and other in methods)
    pairs = []
    for text in given:
        first, comma, second = text.partition(",")
        if not comma:
            raise EvaluationError(f"--ab {text[:60]!r} is not NAME,NAME", param="ab")
        pairs.append((first, second))
    return tuple(pairs)


def _tell(args: argparse.Namespace, out: Path, found: Mapping[str, Any], plots: bool) -> int:
    from training.evaluation.reporting.results import failures

    failed = failures(found)
    if args.json:
        print_json(found)
    else:
        print("\n".join(result_lines(found)))
        print(f"{out}: results.md, results.csv, results.json, side-by-side.md{', plots' if plots else ''}")
    for name, seed, why in failed:
        print(f"{name}, seed {seed}: failed: {why}", file=sys.stderr)
    return 1 if failed else 0


def result_lines(found: Mapping[str, Any]) -> list[str]:
    """One line per method."""
    from training.evaluation.reporting.report import shown
    from training.evaluation.reporting.results import BASELINES, enough_seeds

    width = max(map(len, [*found["methods"], *found[BASELINES]]))
    lines = [f"mean reward on {found['test_prompts']} held-out prompts, 95 % interval ± spread over seeds"]
    for name, own in found["methods"].items():
        if not own["seeds"]:
            lines.append(f"  {name:{width}}  failed")
            continue
        judged = f"  judges {own['judges']['mean']['mean']:.3f}" if own["judges"] else ""
        prompts = own["consumption"]["prompts"]["mean"]
        lines.append(f"  {name:{width}}  {shown(own['objectives']['mean'])}{judged}  {prompts:,.0f} training prompts")
    for name, own in found[BASELINES].items():
        judged = f"  judges {own['judges']['mean']['mean']:.3f}" if own.get("judges") else ""
        lines.append(f"  {name:{width}}  {'failed' if 'failed' in own else shown(own['objectives']['mean']) + judged}")
    if not enough_seeds(found):
        fewest = found["statistics"]["fewest_seeds_of_a_claim"]
        lines.append(f"fewer than {fewest} seeds: no claim about methods, only about these trained models")
    return lines


def _score_ab(args: argparse.Namespace) -> int:
    from training.evaluation.cells import EvaluationError
    from training.evaluation.reporting.blind import score_sheets
    from training.evaluation.reporting.statistics import check_installed

    check_installed()
    if args.recipe is not None:
        raise EvaluationError("--score-ab reads sheets only; leave the recipe out", param="score_ab")
    found = score_sheets(args.score_ab, args.key)
    if args.json:
        print_json(found)
        return 0
    print(f"{found['ratings']} ratings of {found['rated']} of {found['items']} items by {found['raters']} rater(s)")
    for pair in found["pairs"]:
        rate = pair["win_rate"]
        print(
            f"  {pair['first']} over {pair['second']}: {rate['mean']:.2f} [{rate['low']:.2f}, {rate['high']:.2f}] of "
            f"{pair['items']} items ({pair['wins']} won, {pair['ties']} tied, {pair['losses']} lost; p {pair['p']:.3f})"
        )
    print(f"the left side was preferred in {found['left']:.0%} of the choices; far from 50 % hints at a habit")
    agreement = found["agreement"]
    if agreement is not None:
        alpha = agreement["krippendorff_alpha"]
        shown = "not defined, all ratings are the same" if alpha is None else f"{alpha:.2f}"
        print(
            f"raters agree in {agreement['share']:.0%} of {agreement['items']} items; Krippendorff's alpha {shown} "
            "(1 agreement, 0 chance)"
        )
    return 0
