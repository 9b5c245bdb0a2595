"""How fast choices between two drafts reveal a person's weights: simulated choosers with known weights, three
objectives.

    python -m benchmarks.choices [--choosers 200] [--seed 0]

Each chooser has a point drawn evenly from the triangle, and takes one of two drafts as the model of
`emorl_core.choices.learning` says, with sharpness 20. Pairs are the most telling ones of a grid with steps of 1/6, or
two points of that grid at random. The error is the Euclidean distance from the learned weights (the posterior's mean)
to the true ones. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys

import numpy as np

from emorl_core.choices.learning import Preference, grid

OBJECTIVES = ("reflection", "empathy", "fluency")
AFTER = (0, 10, 20, 40)
SHARPNESS = 20.0


def errors_of(chooser: int, seed: int, *, telling: bool) -> list[float]:
    """The errors of one chooser after each number of choices."""
    random = np.random.default_rng([seed, chooser])
    true = random.dirichlet(np.ones(len(OBJECTIVES)))
    candidates = grid(len(OBJECTIVES), 6)
    belief = Preference(OBJECTIVES)
    errors = []
    for number in range(max(AFTER) + 1):
        if number in AFTER:
            learned = belief.result().weights
            errors.append(float(np.linalg.norm(np.array([learned[name] for name in OBJECTIVES]) - true)))
        a, b = belief.next_pair(candidates) if telling else random.choice(len(candidates), 2, replace=False)
        pair = candidates[[a, b]]
        away = ((pair - true) ** 2).sum(axis=1)
        belief.take(pair, int(random.random() > 1.0 / (1.0 + np.exp(SHARPNESS * (away[0] - away[1])))))
    return errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--choosers", type=int, default=200, help="simulated choosers (default 200)")
    parser.add_argument("--seed", type=int, default=0, help="default 0")
    args = parser.parse_args()
    found = {}
    for name, telling in (("telling pairs", True), ("random pairs", False)):
        each = []
        for i in range(args.choosers):
            each.append(errors_of(i, args.seed, telling=telling))
            print(f"{name}: {i + 1} of {args.choosers} choosers", file=sys.stderr, flush=True)
        errors = np.array(each)
        quartiles = np.quantile(errors, (0.25, 0.5, 0.75), axis=0).round(4).T.tolist()
        found[name] = {
            str(after): {"median": median, "quartiles": [low, high]}
            for after, (low, median, high) in zip(AFTER, quartiles, strict=True)
        }
    print(json.dumps({"choosers": args.choosers, "seed": args.seed, "error": found}, indent=1))


if __name__ == "__main__":
    main()
