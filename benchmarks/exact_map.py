"""The exact map compared with a grid: the same text at every grid point away from borders, and the cost of each.

    python -m benchmarks.exact_map BUNDLE [--prompts FILE] [--count 20] [--resolution 100] [--max-new-tokens 16]
        [--rows FILE]

For each prompt, it computes one map and one sweep over the grid (5,151 points at resolution 100) in the same engine. A
point is near a border if its region ends within 1e-6. Prints JSON; exits with 1 if the text differs at a point further
inside. With --rows each prompt's figures are saved at once, and an interrupted run resumes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from emorl_core.engine.polygons import depth
from emorl_core.engine.regions import MapResult
from emorl_core.engine.sweep import SweepItem, compositions
from emorl_core.ensemble import Ensemble

NEAR = 1e-6
PROMPTS = (
    "I can't keep up at work.",
    "My mother left again and nobody listens.",
    "I have not slept for a week.",
    "I want to stop drinking, but my friends all drink.",
    "We argue every evening, about nothing.",
    "I failed the exam and I am ashamed.",
    "My father died in spring.",
    "I do not know whether to stay or to leave.",
    "Nobody at school talks to me.",
    "I am afraid of the next appointment.",
    "I lost my job and have not told my wife.",
    "The pills make me tired all day.",
    "I started running again, and it helps.",
    "My daughter does not call any more.",
    "I eat when I am sad.",
    "I am always the one who has to be strong.",
    "It is hard to say what I feel.",
    "I shouted at the children yesterday.",
    "There is too much on my mind.",
    "I think I am getting better.",
)


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    prompts = args.prompts.read_text(encoding="utf-8").splitlines() if args.prompts else PROMPTS
    ensemble = Ensemble.load(args.bundle, device="cpu", dtype="float32", quantize="off", slots=64)
    asked = [each for each in prompts if each.strip()][: args.count]
    kept = Rows(args.rows, [ensemble.name, args.resolution, args.max_new_tokens, args.max_regions])
    rows = []
    for prompt in asked:
        row = kept.of(prompt, partial(compared, ensemble, prompt, args))
        rows.append(row)
        done = f"{len(rows)} of {len(asked)}: {row['regions']} regions, {row['far_and_different']} far and different"
        print(done, file=sys.stderr, flush=True)
    document = {
        "bundle": ensemble.name,
        "max_new_tokens": args.max_new_tokens,
        "points": rows[0]["points"],
        "exact": sum(row["exact"] for row in rows),
        "far_and_different": sum(row["far_and_different"] for row in rows),
        "map_s": round(statistics.median(row["map_s"] for row in rows), 2),
        "grid_s": round(statistics.median(row["grid_s"] for row in rows), 2),
        "prompts": rows,
    }
    print(json.dumps(document, indent=1))
    return 1 if document["far_and_different"] else 0


class Rows:
    """Figures by prompt, one JSON line each in a file (None: not saved), reused by runs with the same settings."""

    def __init__(self, path: Path | None, settings: list[Any]) -> None:
        self._path = path
        self._settings = settings
        lines = path.read_text(encoding="utf-8").splitlines() if path is not None and path.exists() else []
        read = [json.loads(line) for line in lines]
        self._known = {each["prompt"]: each["row"] for each in read if each["settings"] == settings}

    def of(self, prompt: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        if prompt not in self._known:
            self._known[prompt] = work()
            if self._path is not None:
                line = json.dumps({"settings": self._settings, "prompt": prompt, "row": self._known[prompt]})
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(line + "\n")
        return self._known[prompt]


def compared(ensemble: Ensemble, prompt: str, args: argparse.Namespace) -> dict[str, Any]:
    """For one prompt, the results and costs of both."""
    options = {"max_new_tokens": args.max_new_tokens}
    began = time.perf_counter()
    found = ensemble.sweep_map(prompt, most=args.max_regions, **options)
    map_s = time.perf_counter() - began
    places = [tuple(count / args.resolution for count in counts) for counts in compositions(args.resolution, 3)]
    weights = [between(found.corners, place) for place in places]
    began = time.perf_counter()
    swept = ensemble.sweep(prompt, weights, normalize=False, **options)
    grid_s = time.perf_counter() - began
    different = differences(found, places, swept.items) if found.exact else []
    return {
        "exact": found.exact,
        "why_not": found.why_not,
        "regions": len(found.regions),
        "texts_on_grid": len({item.token_ids for item in swept.items}),
        "points": len(places),
        "near_and_different": sum(inside <= NEAR for inside in different),
        "far_and_different": sum(inside > NEAR for inside in different),
        "deepest_different": max(different, default=0.0),
        "map_s": round(map_s, 2),
        "grid_s": round(grid_s, 2),
        "map_lane_row_steps": found.lane_row_steps,
        "grid_lane_row_steps": swept.lane_row_steps,
    }


def between(corners: Sequence[Mapping[str, float]], place: Sequence[float]) -> dict[str, float]:
    """The weights at a point of the triangle."""
    names = dict.fromkeys(name for corner in corners for name in corner)
    return {name: sum(u * corner.get(name, 0.0) for u, corner in zip(place, corners, strict=True)) for name in names}


def differences(found: MapResult, places: Sequence[tuple[float, ...]], items: Sequence[SweepItem]) -> list[float]:
    """For each grid point whose text differs from the map's: its distance from the border of its region."""
    different = []
    for place, item in zip(places, items, strict=True):
        region = found.at(place)
        if region.token_ids != item.token_ids:
            different.append(depth(region.polygon, place))
    return different


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", help="bundle folder")
    parser.add_argument(
        "--prompts", type=Path, metavar="FILE", help="text file, one prompt per line (default: 20 built-in prompts)"
    )
    parser.add_argument("--count", type=int, default=20, help="number of prompts (default 20)")
    parser.add_argument("--resolution", type=int, default=100, help="resolution of the grid (default 100)")
    parser.add_argument("--max-new-tokens", type=int, default=16, help="maximum tokens per text (default 16)")
    parser.add_argument(
        "--max-regions", type=int, default=None, help="maximum number of regions per map (default: the engine's)"
    )
    parser.add_argument(
        "--rows", type=Path, metavar="FILE", help="file for each prompt's figures; an interrupted run resumes from it"
    )
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
