"""`emorl train`: a recipe -> a bundle; all objectives are trained at once."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emorl_cli.console.options import add_example, add_set_option, add_threads_option, use_threads
from emorl_cli.console.printing import print_json

PLAIN_EVERY_S = 5.0  # seconds between progress lines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", type=Path, help="YAML file; see recipes/ and docs/reference/recipe.md")
    parser.add_argument("--out", type=Path, metavar="DIR", help="bundle to write (default bundles/<recipe's name>)")
    parser.add_argument(
        "--objective", action="append", default=[], metavar="NAME", help="train only this objective; repeatable"
    )
    parser.add_argument("--resume", action="store_true", help="resume from the last checkpoint, if there is one")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing --out when the run has finished")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the plan (data, parameters, memory, steps) and exit"
    )
    add_set_option(parser, "rl.learning_rate=3e-4")
    add_threads_option(parser, "; a resumed run keeps its number")
    parser.add_argument("--json", action="store_true", help="print the report (or the plan) as JSON")
    add_example(
        parser,
        "emorl train recipes/demo.yaml --out my-bundle",
        "emorl train recipes/pair-t5-base.yaml --dry-run --set data.sources.0.path=pair.csv",
        "emorl train recipes/demo.yaml --out reflection-only --objective reflection --set rl.stop.max_steps=20",
    )


def run(args: argparse.Namespace) -> int:
    from training.recipe.recipe import load_recipe

    recipe = load_recipe(args.recipe, args.set)
    if args.objective:
        recipe = recipe.restricted(args.objective)
    folder = args.recipe.resolve().parent
    if args.dry_run:
        from training.pipeline.plan import make_plan

        plan = make_plan(recipe, folder)
        print_json(plan) if args.json else print("\n".join(plan_lines(plan)))
        return 0

    from training.pipeline.run import Places, train

    use_threads(args.threads, recipe.compute.device)
    places = Places(args.out or Path("bundles") / recipe.name)
    report = train(
        recipe,
        folder,
        places,
        resume=args.resume,
        overwrite=args.overwrite,
        report=Narrator().tell,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    if not report:
        return 0  # one of several processes; only the main one prints
    if args.json:
        print_json({"bundle": str(places.bundle), **report})
    else:
        print("\n".join([f"{places.bundle}: written", *result_lines(report)]))
    objectives: Mapping[str, Any] = report["objectives"]  # type: ignore[assignment]
    return 0 if any(objective["status"] != "failed" for objective in objectives.values()) else 1


class Narrator:
    """Prints the run's log on stderr: all validations and endings, and steps periodically."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def tell(self, record: Mapping[str, Any]) -> None:
        event, step = record["event"], record["step"]
        if event in ("step", "fit") and time.monotonic() - self._last < PLAIN_EVERY_S:
            return
        if event == "validation":
            line = "validation " + "  ".join(f"{name} {score:.3f}" for name, score in record["scores"].items())
        elif event == "step":
            scores = "  ".join(f"{name} {own['score']:.3f}" for name, own in record["objectives"].items())
            line = f"{scores}  ({sum(record['seconds'].values()):.1f} s a step)"
        elif event == "fit":
            losses = "  ".join(f"{name} {loss:.3f}" for name, loss in record["loss"].items())
            line = f"adapter_start, loss {losses}  ({record['seconds']:.1f} s a step)"
        elif event == "end":
            line = f"{record['objective']} {record['status']}: {record['reason']}"
        else:
            line = event
        self._last = time.monotonic()
        print(f"step {step}: {line}", file=sys.stderr, flush=True)


def result_lines(report: Mapping[str, Any]) -> list[str]:
    """One line per objective."""
    lines = []
    for name, own in report["objectives"].items():
        scores, used = own["validation"], own["consumption"]
        lines.append(
            f"  {name}: {own['status']} ({own['reason']}); validation {scores['base']:.3f} -> "
            f"best {scores['best']:.3f} at step {scores['best_step']}, last {scores['last']:.3f}; "
            f"{used['prompts']} prompts, {used['samples']} samples, {used['tokens']} tokens, "
            f"{used['own_seconds']:.0f} s of its own"
        )
    return lines


def plan_lines(plan: Mapping[str, Any]) -> list[str]:
    """The plan as lines of text."""
    steps = plan["steps"]
    lines = [f"{plan['name']} (preset {plan['preset']})", *plan["data"]["notes"]]
    lines += [f"  {part}: {own['prompts']} prompts" for part, own in plan["data"]["parts"].items()]
    lines.append(
        f"steps: at most {steps['most']} (rule {steps['rule']}), validation every {steps['validate_every']}; "
        f"{steps['prompts_per_step']} prompts and {steps['samples_per_step']} samples a step; "
        f"at most {steps['most_prompts']} prompts per objective"
    )
    if "warm_start" in plan:
        warm = plan["warm_start"]
        lines.append(f"warm start: {warm['steps']} steps of {warm['batch_size']} on {warm['records']} records")
    if "adapter_start" in plan:
        start = plan["adapter_start"]
        sizes = ", ".join(f"{count} of {name}" for name, count in start["records"].items())
        lines.append(f"adapter start: {start['steps']} steps of {start['batch_size']} an objective on records {sizes}")
    if "missing" in plan.get("base", {}):
        return [*lines, f"base: not here, so no parameters and memory: {plan['base']['missing']}"]
    lines.append(f"prompts {plan['prompts']}")
    parameters = plan["parameters"]
    lines.append(f"parameters: base {parameters['base']:,}, frozen")
    lines += [f"  {name}: {count:,} trained" for name, count in parameters["adapters"].items()]
    memory = plan["memory_bytes"]
    parts = ", ".join(f"{key.replace('_', ' ')} {_size(value)}" for key, value in memory.items() if key != "total")
    lines.append(f"memory, estimated, without scorers' models: {_size(memory['total'])} ({parts})")
    return lines


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
