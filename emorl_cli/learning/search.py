"""`emorl search`: finds the weights that score best, compares them on held-out prompts, and stores them."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emorl_cli.console.cluster import connected
from emorl_cli.console.options import (
    BUNDLE_HELP,
    add_device_options,
    add_example,
    add_ray_option,
    add_threads_option,
    threads_of_a_task,
)
from emorl_cli.console.printing import print_json
from emorl_cli.console.reading import scorer_specs

if TYPE_CHECKING:
    from emorl_core.bundles.predictor import Predictor
    from emorl_core.bundles.profiles import PredictorSpec
    from emorl_core.ensemble import Ensemble
    from training.search.evaluations.evaluator import EvaluatingOver
    from training.search.inputs import Inputs
    from training.search.per_prompt import Fitted
    from training.search.run import Outcome, SearchSettings

PREFILL_CACHE_BYTES = 2**30  # every level sweeps the same prompts, which should all stay in the prefill cache
SLOTS = 64
# Options that define a search, for the command in a profile's origin.
PROVENANCE = (
    *("recipe", "prompts", "scorer", "held_out_prompts", "held_out", "search_prompts", "held_out_most", "objectives"),
    *("goal", "space", "levels", "method", "trials", "max_new_tokens", "seed"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", help=BUNDLE_HELP)
    source = parser.add_argument_group("prompts and scorers (default: of the recipe that the bundle was trained with)")
    source.add_argument(
        "--recipe", type=Path, metavar="FILE", help="use the scorers and the validation and test prompts of this recipe"
    )
    source.add_argument("--prompts", type=Path, metavar="FILE", help="prompts: .txt, or .jsonl or .csv with `prompt`")
    source.add_argument(
        "--scorer", action="append", default=[], metavar="NAME=KIND", help="scorer for --prompts; repeatable"
    )
    source.add_argument(
        "--held-out-prompts", type=Path, metavar="FILE", help="prompts that are only used to compare the results"
    )
    source.add_argument(
        "--held-out", type=float, default=0.5, metavar="SHARE", help="fraction of --prompts to hold out (default 0.5)"
    )
    source.add_argument(
        "--search-prompts", type=int, default=64, metavar="N", help="maximum prompts to search on (default 64)"
    )
    source.add_argument(
        "--held-out-most", type=int, default=256, metavar="N", help="maximum number of held-out prompts (default 256)"
    )
    how = parser.add_argument_group("search")
    how.add_argument("--objectives", metavar="NAME,…", help="mix only these; may include base (default: all)")
    how.add_argument(
        "--goal",
        default="mean",
        help="score to maximise: mean (default), worst, weighted:NAME=NUMBER,… or "
        "package.module:function of a score table",
    )
    how.add_argument(
        "--space",
        default="simplex",
        choices=("simplex", "cube"),
        help="weights that sum to 1 (simplex, default), or each from 0 to 1 as in the paper (cube)",
    )
    how.add_argument(
        "--levels", type=int, default=5, metavar="L", help="levels of the grid, each with half the step (default 5)"
    )
    how.add_argument(
        "--method",
        default="auto",
        choices=("auto", "grid", "tpe", "per-prompt"),
        help="auto (default): grid up to 5 objectives, otherwise Optuna's TPE; per-prompt: train a"
        " predictor of weights for each prompt",
    )
    how.add_argument("--trials", type=int, default=200, metavar="N", help="evaluations by tpe (default 200)")
    how.add_argument(
        "--max-new-tokens", type=int, default=64, metavar="N", help="maximum reply length in tokens (default 64)"
    )
    how.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of the choice of prompts and of tpe (default 0)"
    )
    result = parser.add_argument_group("results")
    result.add_argument(
        "--profile", default="searched", metavar="NAME", help="profile to write into the bundle (default searched)"
    )
    result.add_argument("--set-default", action="store_true", help="make the profile the bundle's default")
    result.add_argument("--no-write", action="store_true", help="do not change the bundle")
    result.add_argument(
        "--out", type=Path, metavar="FOLDER", help="folder for log, report, plots (default search-BUNDLE)"
    )
    result.add_argument(
        "--resume", action="store_true", help="reuse the evaluations in --out and update the profile of that search"
    )
    result.add_argument(
        "--overwrite", action="store_true", help="replace an existing profile and, without --resume, --out"
    )
    result.add_argument("--no-plots", action="store_true", help="do not draw plots")
    result.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument(
        "--slots", type=int, default=SLOTS, metavar="N", help=f"branches to run concurrently (default {SLOTS})"
    )
    add_device_options(parser)
    add_threads_option(parser)
    add_ray_option(parser, "evaluations", "all machines need the bundle and the scorers' files under the same paths")
    add_example(
        parser,
        "emorl search my-bundle --recipe recipes/demo.yaml --set-default",
        "emorl search my-bundle --prompts prompts.txt --scorer reflection=lexical_reflection "
        "--scorer empathy=lexical_empathy --goal worst",
        "emorl search my-bundle --recipe recipes/demo.yaml --space cube --resume",
        "emorl search my-bundle --recipe recipes/demo.yaml --method per-prompt --profile auto",
        "emorl search my-bundle --recipe recipes/demo.yaml --ray auto",
    )


def run(args: argparse.Namespace) -> int:
    from emorl_core.bundles.bundle import Bundle
    from training.search.inputs import chosen
    from training.search.per_prompt import Fitted
    from training.search.plots import MISSING, draw_all, installed
    from training.search.profile import check_profile, origin_of, write_profile
    from training.search.run import EVALUATIONS_FILE, Outcome, SearchSettings, check_folder, check_objectives
    from training.search.score_table import parse_goal
    from training.search.strategies.grid import SearchError

    settings = SearchSettings(
        args.space, args.levels, args.method, args.trials, args.goal, args.max_new_tokens, args.seed
    )
    for name in ("search_prompts", "held_out_most"):
        if getattr(args, name) < 1:
            raise SearchError(f"--{name.replace('_', '-')} is {getattr(args, name)}; allowed: from 1", param=name)
    bundle = Bundle.open(args.bundle)
    folder = args.out or Path(f"search-{bundle.spec.name}")
    resumed = args.goal if args.resume and (folder / EVALUATIONS_FILE).is_file() else None
    if not args.no_write:
        if not Path(args.bundle).is_dir():
            raise SearchError("a bundle from the hub cannot be written; give --no-write, or a folder", param="bundle")
        check_profile(bundle.spec, args.profile, overwrite=args.overwrite, resumed=resumed)
    if args.resume and settings.method == "per-prompt":
        raise SearchError("--resume does not go with the method per-prompt, which keeps no log", param="resume")
    names = tuple(args.objectives.split(",")) if args.objectives else tuple(bundle.spec.objectives)
    check_objectives(bundle.spec.lanes, names)
    settings.budget(len(names))
    check_folder(folder, resume=args.resume, overwrite=args.overwrite)

    with nullcontext() if args.ray is None else connected(args.ray):
        inputs = _inputs(args, bundle)
        parse_goal(args.goal, tuple(inputs.scorers))
        ensemble = _ensemble(args)
        fits = _fits(ensemble)
        inputs = chosen(inputs, fits, search=args.search_prompts, held_out=args.held_out_most, seed=args.seed)
        outcome = _search(args, ensemble, inputs, settings, folder, names)
    found = outcome if isinstance(outcome, Outcome) else None
    report = {**outcome.report, "profile": None, "plots": []}
    if not args.no_write:
        origin = origin_of(outcome.report, _command(args))
        write_profile(
            bundle.folder,
            args.profile,
            _stored(bundle.folder, outcome.predictor, names) if isinstance(outcome, Fitted) else outcome.weights,
            origin,
            set_default=args.set_default,
            overwrite=args.overwrite,
            resumed=resumed,
            scorers=inputs.storable,
            scorers_folder=inputs.context.base,
        )
        report["profile"] = args.profile
    if found is not None and not args.no_plots and installed():
        report["plots"] = [path.name for path in draw_all(folder, found.found, found.tables, names)]
    if args.json:
        print_json(report)
    else:
        _print(report, folder)
    if found is not None and not args.no_plots and not installed():
        print(f"nothing is drawn: {MISSING}", file=sys.stderr)
    return 0


def _ensemble(args: argparse.Namespace) -> Ensemble:
    from emorl_core.ensemble import Ensemble

    threads = args.threads if args.ray is None else threads_of_a_task(args.threads)
    ensemble = Ensemble.load(args.bundle, device=args.device, dtype=args.dtype, threads=threads, **_engine(args))
    ensemble.threads.on_choice = lambda line: print(line, file=sys.stderr, flush=True)
    ensemble.warm_up()
    return ensemble


def _engine(args: argparse.Namespace) -> dict[str, Any]:
    """Keywords of `Ensemble.load`."""
    return {"slots": args.slots, "prefill_cache_bytes": PREFILL_CACHE_BYTES}


def _search(
    args: argparse.Namespace,
    ensemble: Ensemble,
    inputs: Inputs,
    settings: SearchSettings,
    folder: Path,
    names: tuple[str, ...],
) -> Outcome | Fitted:
    from emorl_cli.console.progress import Stages
    from training.search.per_prompt import run_per_prompt
    from training.search.run import EVALUATIONS_FILE, HELD_OUT_FILE, run_search

    for note in inputs.notes:
        print(note, file=sys.stderr)
    print(
        f"{settings.explained(len(names))}; {len(inputs.search)} search prompts, {len(inputs.held_out)} held out",
        file=sys.stderr,
        flush=True,
    )
    if args.overwrite and not args.resume:
        for file in (EVALUATIONS_FILE, HELD_OUT_FILE):
            (folder / file).unlink(missing_ok=True)
    over = None if args.ray is None else _over_cluster(args, ensemble, inputs, settings, names)
    with Stages() as stages:
        if settings.method == "per-prompt":
            return run_per_prompt(
                ensemble, inputs, settings, folder, objectives=names, progress=stages, evaluating=over
            )
        return run_search(
            ensemble, inputs, settings, folder,
            objectives=names, resume=args.resume, progress=stages, evaluating=over,
        )  # fmt: skip


def _over_cluster(
    args: argparse.Namespace, ensemble: Ensemble, inputs: Inputs, settings: SearchSettings, names: tuple[str, ...]
) -> EvaluatingOver:
    from training.search.evaluations.on_ray import Setting, over_cluster

    setting = Setting.of(
        ensemble, args.bundle, names, inputs, settings.max_new_tokens, threads_of_a_task(args.threads),
        device=args.device, **_engine(args),
    )  # fmt: skip
    return over_cluster(setting, args.device)


def _stored(bundle: Path, predictor: Predictor, names: tuple[str, ...]) -> PredictorSpec:
    from emorl_core.bundles.profiles import PredictorSpec
    from emorl_core.bundles.stored_predictors import store_predictor

    path, sha256 = store_predictor(bundle, predictor)
    return PredictorSpec(path=path, sha256=sha256, objectives=list(names))


def _inputs(args: argparse.Namespace, bundle: Any) -> Inputs:
    from training.search.inputs import from_files, from_recipe, stored_recipe
    from training.search.strategies.grid import SearchError

    if args.prompts is not None:
        if args.recipe is not None:
            raise SearchError("--recipe and --prompts exclude each other", param="prompts")
        return from_files(
            args.prompts,
            scorer_specs(args.scorer),
            held_out=args.held_out_prompts,
            fraction=args.held_out,
            seed=args.seed,
            device=args.device,
        )
    if args.scorer or args.held_out_prompts is not None:
        raise SearchError("--scorer and --held-out-prompts go with --prompts", param="prompts")
    if args.recipe is not None:
        from training.recipe.recipe import load_recipe

        return from_recipe(load_recipe(args.recipe), args.recipe.parent, device=args.device)
    return from_recipe(stored_recipe(bundle.folder), Path(), device=args.device)


def _fits(ensemble: Ensemble) -> Any:
    from emorl_core.errors import PromptTooLong

    def fits(prompt: str) -> bool:
        try:
            ensemble.encode(prompt)
        except PromptTooLong:
            return False
        return True

    return fits


def _command(args: argparse.Namespace) -> str:
    """The command line that repeats the search. Absolute paths are reduced to their names, since bundles are shared."""
    words = ["emorl", "search", _portable(args.bundle)]
    for name in PROVENANCE:
        value = getattr(args, name)
        option = "--" + name.replace("_", "-")
        for each in value if isinstance(value, list) else [value]:
            if each is not None:
                words += [option, _portable(each)]
    return shlex.join(words)


def _portable(value: object) -> str:
    path = Path(str(value))
    return path.name if path.is_absolute() else str(value)


def _print(report: dict[str, Any], folder: Path) -> None:
    done = report["evaluations"]
    print(
        f"{done['requested']} evaluations requested, {done['distinct_points']} distinct points, "
        f"{done['rays']} directions run, with those that the report compares; "
        f"{done['texts_generated']} texts generated, {done['texts_implied']} implied by their neighbours, "
        f"{done['texts_scored']} scored"
    )
    if done["resumed"]:
        print(f"{done['resumed']} evaluations were taken over from the earlier run")
    first = report["candidates"][0]
    names = list(first["weights"])
    print(f"\ngoal {report['goal']}; held out: {report['prompts']['held_out']['count']} prompts, 95 % intervals")
    for entry in report["candidates"]:
        weights = ", ".join(f"{name} {entry['weights'][name]:.3g}" for name in names)
        held = entry["held_out"]
        low, high = held["interval"]
        line = (
            f"  {entry['name']:22} {held['score']:.4f} [{low:.4f}, {high:.4f}]  search {entry['search']['score']:.4f}"
        )
        print(f"{line}  ({weights})")
        if "first_minus_this" in entry:
            gain = entry["first_minus_this"]
            low, high = gain["interval"]
            print(f"  {'':22} found is better by {gain['score']:+.4f} [{low:+.4f}, {high:+.4f}]")
    print("\nthe search score of what was found is the best of many looks; the held-out score is the one to quote")
    if report["profile"] is not None:
        said = ", in the mean over the held-out prompts" if report["method"] == "per-prompt" else ""
        rounded = {name: round(weight, 4) for name, weight in report["weights"].items()}
        print(f"profile {report['profile']}: {json.dumps(rounded)}{said}")
    print(f"{folder}: every evaluation, the report{', plots' if report['plots'] else ''}")
