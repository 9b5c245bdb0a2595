"""`emorl sweep`: one prompt under many weights, or all texts between two or three weight vectors, exactly."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emorl_cli.console.options import (
    BUNDLE_HELP,
    add_chat_option,
    add_combine_option,
    add_device_options,
    add_example,
    add_sampling_options,
    add_threads_option,
    sampling_fields,
    use_threads,
)
from emorl_cli.console.printing import print_json
from emorl_cli.console.reading import parse_weights, read_chat, utf_8
from emorl_cli.sweep_map import MAX_REGIONS, map_document, print_map, written

if TYPE_CHECKING:
    from emorl_core.engine.segments import SegmentsResult
    from emorl_core.engine.sweep import SweepResult
    from emorl_core.ensemble import Ensemble

SHOWN = 6  # weights printed per text; --json has all
# Lines and maps use greedy decoding only.
EXACT_FIELDS = ("max_new_tokens", "min_new_tokens", "stop")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", help=BUNDLE_HELP)
    parser.add_argument("prompt", nargs="?", help="the prompt")
    add_chat_option(parser)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--resolution", type=int, metavar="R", help="every mix in steps of 1/R, e.g. 10")
    which.add_argument(
        "--weights-file", type=Path, metavar="FILE", help="one mix per line: NAME=NUMBER,… or a JSON object"
    )
    which.add_argument(
        "--line",
        nargs=2,
        metavar=("FROM", "TO"),
        help="every greedy text between two mixes and where it changes; each an objective, a profile or NAME=NUMBER,…",
    )
    which.add_argument(
        "--map",
        nargs=3,
        metavar=("A", "B", "C"),
        help="every greedy text of all mixes of three, and the borders between them; each as for --line",
    )
    parser.add_argument(
        "--max-regions", type=int, metavar="N", help=f"of --map; with more it is a grid instead (default {MAX_REGIONS})"
    )
    parser.add_argument(
        "--no-normalize", dest="normalize", action="store_false", help="use the numbers as given; negative ones too"
    )
    add_sampling_options(parser)
    add_combine_option(parser)
    parser.add_argument("--json", action="store_true", help="one JSON document")
    parser.add_argument("--slots", type=int, default=64, metavar="N", help="branches that run at once (default 64)")
    add_device_options(parser)
    add_threads_option(parser)
    add_example(
        parser,
        'emorl sweep my-bundle "I can\'t keep up at work." --resolution 10',
        'emorl sweep my-bundle "I can\'t keep up at work." --line reflection empathy --json',
        'emorl sweep my-bundle "I can\'t keep up at work." --map reflection empathy fluency --max-new-tokens 24',
    )


def run(args: argparse.Namespace) -> int:
    from emorl_core.errors import InvalidRequest
    from emorl_core.types import Sampling

    if (args.prompt is None) == (args.chat is None):
        raise InvalidRequest("give either a prompt or --chat", param="prompt")
    fields = sampling_fields(args)
    exact = "--line" if args.line is not None else "--map" if args.map is not None else None
    if exact is not None:
        plain = Sampling()
        for name in sorted(set(fields) - {*EXACT_FIELDS}):
            default = {} if name == "logit_bias" else getattr(plain, name)
            if fields[name] != default:
                raise InvalidRequest(f"{exact} is for greedy texts; it takes no --{name.replace('_', '-')}", param=name)
        if args.combine != "hidden":
            raise InvalidRequest(f"{exact} mixes hidden states; it takes no --combine {args.combine}", param="combine")
    if args.max_regions is not None and (args.map is None or args.max_regions < 1):
        only = "--max-regions is for --map" if args.map is None else f"--max-regions is {args.max_regions}"
        raise InvalidRequest(f"{only}; allowed: a whole number from 1, beside --map", param="max_regions")
    prompt = None if args.prompt is None else utf_8(args.prompt, "the prompt")
    messages = None if args.chat is None else read_chat(args.chat)
    by_line = _read_weights(args.weights_file) if args.weights_file is not None else None

    from emorl_core.ensemble import Ensemble

    use_threads(args.threads, args.device, say=False)
    ensemble = Ensemble.load(args.bundle, device=args.device, dtype=args.dtype, slots=args.slots)
    if exact is not None:
        corners = [_corner(ensemble, text) for text in args.line or args.map]
        options = {"messages": messages, "normalize": args.normalize, **{name: fields[name] for name in EXACT_FIELDS}}
        if args.line is not None:
            line = ensemble.sweep_line(prompt, *corners, **options)
            print_json(_line_document(line)) if args.json else _print_line(line)
        else:
            most = args.max_regions or MAX_REGIONS
            found = ensemble.sweep_map(prompt, corners, most=most, most_named="--max-regions", **options)
            print_json(map_document(found)) if args.json else print_map(found)
        return 0
    if by_line is not None:
        _check_weights(args.weights_file, by_line, ensemble, normalize=args.normalize)
    result = ensemble.sweep(
        prompt,
        None if by_line is None else list(by_line.values()),
        messages=messages,
        resolution=args.resolution,
        normalize=args.normalize,
        combine=args.combine,
        **fields,
    )
    print_json(_sweep_document(result)) if args.json else _print_sweep(result, seeded=args.temperature > 0)
    return 0


def _read_weights(path: Path) -> dict[int, dict[str, float]]:
    """Line number -> one mix."""
    from emorl_core.errors import InvalidWeights
    from emorl_core.files.text_files import read_lines

    vectors: dict[int, dict[str, float]] = {}
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        try:
            vectors[number] = _mapping(line) if line.lstrip().startswith("{") else parse_weights(line) or {}
        except InvalidWeights as error:
            message = error.message.removeprefix("--weights: ")
            raise InvalidWeights(f"{path}: line {number}: {message}", param="weights_file") from None
    if not vectors:
        raise InvalidWeights(f"{path}: holds no weights; write one mix per line", param="weights_file")
    return vectors


def _mapping(line: str) -> dict[str, float]:
    from emorl_core.errors import InvalidWeights
    from emorl_core.files.documents import parse_json
    from emorl_core.files.reading import Unreadable

    try:
        value = parse_json(line)
    except Unreadable as error:
        raise InvalidWeights(f"neither NAME=NUMBER,… nor a JSON object: it {error.reason}") from None
    found: dict[str, float] = value
    return found


def _check_weights(
    path: Path, by_line: Mapping[int, Mapping[str, float]], ensemble: Ensemble, *, normalize: bool
) -> None:
    """Prefix errors with the line of the mix. Raises `InvalidWeights`."""
    from emorl_core.errors import InvalidWeights
    from emorl_core.weights import resolve

    for number, weights in by_line.items():
        try:
            resolve(ensemble.lanes, weights, normalize=normalize)
        except InvalidWeights as error:
            raise InvalidWeights(f"{path}: line {number}: {error.message}", param="weights_file") from None


def _corner(ensemble: Ensemble, text: str) -> Mapping[str, float]:
    """One end of a line or corner of a map: a lane, a profile, or weights as written for --weights."""
    if "=" in text:
        return parse_weights(text) or {}
    if text in ensemble.spec.profiles:
        return ensemble.spec.profiles[text].weights or ensemble.resolve(profile=text).as_dict()
    return {text: 1.0}  # an unknown name is refused with a list of the known ones


def _sweep_document(result: SweepResult) -> dict[str, Any]:
    items = result.of_prompt(0)
    return {
        "texts": [
            {
                "text": text,
                "finish_reason": str(items[indices[0]].finish_reason),
                "weights": [items[index].weights for index in indices],
            }
            for text, indices in result.distinct(0).items()
        ],
        "vectors": len(items),
        "seed": result.seed,
        "lane_row_steps": result.lane_row_steps,
        "unshared_lane_row_steps": result.unshared_lane_row_steps,
    }


def _line_document(line: SegmentsResult) -> dict[str, Any]:
    return {
        "from": line.from_weights,
        "to": line.to_weights,
        "intervals": [
            {
                "start": interval.start,
                "end": interval.end,
                "text": interval.text,
                "finish_reason": str(interval.finish_reason),
            }
            for interval in line.intervals
        ],
        "min_width": line.min_width,
        "lane_row_steps": line.lane_row_steps,
    }


def _print_sweep(result: SweepResult, *, seeded: bool) -> None:
    items = result.of_prompt(0)
    texts = result.distinct(0)
    for text, indices in sorted(texts.items(), key=lambda found: -len(found[1])):
        print(" ".join(text.split()))
        shown = "; ".join(written(items[index].weights) for index in indices[:SHOWN])
        more = f"; … {len(indices) - SHOWN} more" if len(indices) > SHOWN else ""
        print(f"    {len(indices)} of {len(items)}: {shown}{more}\n")
    saved = result.unshared_lane_row_steps / max(1, result.lane_row_steps)
    print(
        f"{len(texts)} texts from {len(items)} mixes; {result.lane_row_steps} lane-row steps, "
        f"{result.unshared_lane_row_steps} one by one ({saved:.1f} times as many)"
        + (f"; seed {result.seed}" if seeded else "")
    )


def _print_line(line: SegmentsResult) -> None:
    print(f"t = 0: {written(line.from_weights)}; t = 1: {written(line.to_weights)}\n")
    for interval in line.intervals:
        print(f"{interval.start:.7f} to {interval.end:.7f}")
        print(f"    {' '.join(interval.text.split())}")
    print(f"\n{_distinct(line)} texts, {len(line.breaks)} breaks; {line.lane_row_steps} lane-row steps")


def _distinct(line: SegmentsResult) -> int:
    return len({interval.text for interval in line.intervals})
