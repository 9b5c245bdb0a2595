"""`emorl warm-start`: only the supervised fine-tuning of a recipe's base, into a Hugging Face folder."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from emorl_cli.console.options import add_example, add_set_option
from emorl_cli.console.printing import print_json
from emorl_cli.console.progress import Progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", type=Path, help="YAML file whose base is a warm_start")
    parser.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="folder to write; an interrupted run is resumed"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing --out")
    add_set_option(parser, "base.warm_start.fit.steps=200")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    add_example(
        parser,
        "emorl warm-start recipes/pair-small.yaml --out bases/pair-small",
        'emorl train recipes/pair-small.yaml --set "base={path: ../bases/pair-small}" --out my-bundle',
    )


def run(args: argparse.Namespace) -> int:
    from training.config import RecipeError
    from training.recipe.recipe import load_recipe

    recipe = load_recipe(args.recipe, args.set)
    if recipe.base.warm_start is None:
        raise RecipeError(f"{args.recipe.name}: base has no warm_start; there is no such stage to run", param="base")
    if args.out.exists() and not args.overwrite:
        raise RecipeError(f"--out {args.out}: exists; --overwrite replaces it, or name another folder", param="out")

    from training.pipeline.base import run_warm_start
    from training.pipeline.prepare import load_data
    from training.warm_start.warm_start import RECEIPT

    folder = args.recipe.resolve().parent
    data = load_data(recipe, folder)
    with Progress("warm start", recipe.base.warm_start.fit.steps) as bar:
        # A resumed run starts where the interrupted one ended.
        run_warm_start(
            recipe, folder, data, args.out, overwrite=args.overwrite, progress=lambda done, total, loss: bar.reach(done)
        )
        bar.reach(recipe.base.warm_start.fit.steps)
    loss = json.loads((args.out / RECEIPT).read_text(encoding="utf-8"))["losses"][-1]
    if args.json:
        print_json({"out": str(args.out), "steps": recipe.base.warm_start.fit.steps, "loss": loss})
    else:
        print(f"{args.out}: written after {recipe.base.warm_start.fit.steps} steps, loss {loss:.3f}")
    return 0
