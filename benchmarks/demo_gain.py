"""The gain of reinforcement learning: each objective's reward on unseen prompts, adapter against base, and signs of
collapse.

    emorl train recipes/demo.yaml --out my-bundle
    python -m benchmarks.demo_gain --bundle my-bundle --recipe recipes/demo.yaml

Prompts are the recipe's test part, which neither the warm start nor the reinforcement saw. Replies are greedy. The
interval is a paired bootstrap over prompts. `distinct_2`: different bigrams / all bigrams over all replies together.
`repeats`: share of replies in which a run of three words comes twice. `different`: different replies / replies.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from emorl_core.ensemble import Ensemble
from emorl_core.scorers import Context, build_scorer
from emorl_core.scorers.words import ngrams, words
from training.pipeline.prepare import distinct, load_data
from training.recipe.recipe import load_recipe
from training.search.bootstrap import mean_interval, resamples


def collapse(replies: list[str]) -> dict[str, float]:
    """Signs that a policy gives everybody the same text, or repeats itself."""
    bigrams = [pair for reply in replies for pair in ngrams(words(reply), 2)]
    repeating = [len(set(runs)) < len(runs) for runs in (ngrams(words(reply), 3) for reply in replies)]
    return {
        "distinct_2": len(set(bigrams)) / max(len(bigrams), 1),
        "repeats": sum(repeating) / len(replies),
        "different": len(set(replies)) / len(replies),
        "words": sum(len(words(reply)) for reply in replies) / len(replies),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", required=True, type=Path, help="trained bundle")
    parser.add_argument("--recipe", required=True, type=Path, help="recipe that it was trained with")
    parser.add_argument(
        "--part",
        default="test",
        choices=("test", "validation", "train"),
        help="part of the recipe's data (default test)",
    )
    parser.add_argument("--prompts", type=int, default=200, help="maximum number of prompts (default 200)")
    parser.add_argument("--show", type=int, default=0, help="prompts to print with every objective's reply (default 0)")
    args = parser.parse_args()

    recipe = load_recipe(args.recipe)
    folder = args.recipe.resolve().parent
    data = load_data(recipe, folder)
    prompts = distinct(data.parts[args.part])[: args.prompts]
    ensemble = Ensemble.load(args.bundle, dtype="float32", slots=64)
    context = Context(recipe.compute.scorer_device, folder, data.parts["train"])
    replies = {
        name: [
            done.text
            for done in ensemble.generate(prompts, weights={name: 1.0}, max_new_tokens=recipe.rl.max_new_tokens)
        ]
        for name in ensemble.lanes
    }
    result: dict[str, Any] = {"part": args.part, "prompts": len(prompts), "base": collapse(replies["base"])}
    draws = resamples(len(prompts))
    for name in ensemble.objectives:
        scorer = build_scorer(recipe.objectives[name].scorer, context)
        before, after = (np.array(scorer(prompts=prompts, completions=replies[lane])) for lane in ("base", name))
        gain = mean_interval(after - before, draws)
        result[name] = {
            "base": float(before.mean()),
            "adapter": float(after.mean()),
            "gain": asdict(gain),
            **collapse(replies[name]),
        }
    print(f"{len(prompts)} prompts of the {args.part} part, greedy")
    for name in ("base", *ensemble.objectives):
        own = result[name]
        signs = "  ".join(f"{key} {own[key]:.3f}" for key in ("distinct_2", "repeats", "different", "words"))
        if name == "base":
            print(f"  base        {signs}")
        else:
            low, high = own["gain"]["low"], own["gain"]["high"]
            print(f"  {name:11} reward {own['base']:.3f} -> {own['adapter']:.3f}, gain {own['gain']['estimate']:+.3f} "
                  f"[{low:+.3f}, {high:+.3f}]  {signs}")  # fmt: skip
    for prompt, *each in list(zip(prompts, *replies.values(), strict=True))[: args.show]:
        print(f"\n{prompt}")
        for name, text in zip(replies, each, strict=True):
            print(f"  {name}: {text}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
