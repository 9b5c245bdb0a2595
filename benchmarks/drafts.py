"""The quality and cost of drafts: distinct texts, and their scores compared with those of a single profile for
everybody.

    python -m benchmarks.drafts --bundle my-demo --statements docs/demo-statements.txt --recipe recipes/demo-llm.yaml

Each statement gets its drafts, chosen with the defaults, and the text of every profile of the bundle. The best single
profile is the one with the highest mean score over all statements. Scores are the mean of the bundle's scorers, or of
the recipe's if the bundle has none. Lane steps (lane rows computed, one token each) are compared with those of separate
requests: one for each candidate text, and one for each draft. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from emorl_core.drafts.plan import Drafts
from emorl_core.ensemble import Ensemble
from emorl_core.scorers import Context, build_scorer
from emorl_core.scorers.asking import Statement, ask_rounded
from training.recipe.recipe import load_recipe


@dataclass(frozen=True, slots=True)
class Asked:
    """One statement: its drafts, and the mean score of each profile's text."""

    drafts: Drafts
    profiles: dict[str, float]

    @property
    def means(self) -> list[float]:
        return [draft.mean or 0.0 for draft in self.drafts.drafts]


def mean_score(ensemble: Ensemble, prompt: str, text: str) -> float:
    scorers = [scorer for scorer in ensemble.scorers.values() if scorer is not None]
    return fmean(ask_rounded(scorer, [Statement(prompt)], [text])[0] for scorer in scorers)


def ask(ensemble: Ensemble, statement: str, count: int, new_tokens: int) -> Asked:
    drafts = ensemble.drafts(statement, count=count, max_new_tokens=new_tokens)
    profiles = {name: own for name, own in ensemble.spec.profile_weights().items() if own is not None}
    items = ensemble.sweep(statement, list(profiles.values()), max_new_tokens=new_tokens).items
    texts = zip(profiles, items, strict=True)
    return Asked(drafts, {name: mean_score(ensemble, statement, item.text) for name, item in texts})


def summary(asked: Sequence[Asked], count: int) -> dict[str, object]:
    single = {name: fmean(each.profiles[name] for each in asked) for name in asked[0].profiles}
    best = max(single, key=lambda name: single[name])

    def share(holds: Sequence[bool]) -> float:
        return sum(holds) / len(holds)

    drafts = [draft for each in asked for draft in each.drafts.drafts]
    separate = sum(draft.completion.completion_tokens * sum(map(bool, draft.weights.values())) for draft in drafts)
    return {
        "statements": len(asked),
        "all_drafts": share([len({draft.text for draft in each.drafts.drafts}) == count for each in asked]),
        "distinct_texts": fmean(each.drafts.distinct for each in asked),
        "profiles": {name: round(value, 4) for name, value in single.items()},
        "best_profile": best,
        "first_draft": fmean(each.means[0] for each in asked),
        "mean_of_drafts": fmean(fmean(each.means) for each in asked),
        "first_at_least_best_profile": share([each.means[0] >= each.profiles[best] for each in asked]),
        "mean_at_least_best_profile": share([fmean(each.means) >= each.profiles[best] for each in asked]),
        "lane_steps": sum(each.drafts.lane_row_steps for each in asked),
        "lane_steps_of_all_candidates": sum(each.drafts.unshared_lane_row_steps for each in asked),
        "lane_steps_of_the_drafts_alone": separate,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", required=True, type=Path, help="bundle folder")
    parser.add_argument("--statements", required=True, type=Path, help="text file, one statement per line")
    parser.add_argument("--recipe", type=Path, help="recipe whose scorers to use, if the bundle has none")
    parser.add_argument("--most", type=int, help="maximum number of statements (default: all)")
    parser.add_argument("--count", type=int, default=3, help="drafts per statement (default 3)")
    parser.add_argument("--new-tokens", type=int, default=60, help="maximum tokens per text (default 60)")
    args = parser.parse_args()
    ensemble = Ensemble.load(args.bundle, slots=64, scorer_device="cpu")
    if args.recipe is not None:
        recipe = load_recipe(args.recipe)
        context = Context("cpu", args.recipe.resolve().parent)
        ensemble.scorers = {name: build_scorer(own.scorer, context) for name, own in recipe.objectives.items()}
    if not any(ensemble.scorers.values()):
        raise SystemExit("benchmarks.drafts: error: nothing judges; the bundle names no scorer: give --recipe")
    statements = args.statements.read_text(encoding="utf-8").splitlines()[: args.most]
    asked = []
    for statement in statements:
        asked.append(ask(ensemble, statement, args.count, args.new_tokens))
        print(f"{len(asked)} of {len(statements)}: {', '.join(f'{mean:.3f}' for mean in asked[-1].means)}", flush=True)
    print(json.dumps(summary(asked, args.count)))


if __name__ == "__main__":
    main()
