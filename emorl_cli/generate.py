"""`emorl generate`: answers one prompt, or many from a file, with the engine in this process."""

from __future__ import annotations

import argparse
import sys
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from emorl_cli.console.options import (
    BUNDLE_HELP,
    add_chat_option,
    add_combine_option,
    add_device_options,
    add_example,
    add_sampling_options,
    add_threads_option,
    add_weight_options,
    sampling_fields,
    use_threads,
)
from emorl_cli.console.printing import print_json
from emorl_cli.console.progress import Progress
from emorl_cli.console.reading import STDIN, STDIN_NAME, parse_weights, read_chat, read_source, utf_8

if TYPE_CHECKING:
    from emorl_core.ensemble import Ensemble
    from emorl_core.errors import EmorlError
    from emorl_core.types import Completion, Request


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", help=BUNDLE_HELP)
    parser.add_argument("prompt", nargs="?", help="the prompt; - reads prompts from standard input, one per line")
    parser.add_argument(
        "--prompts-file", metavar="FILE", help="prompts, one per line, each answered on its line; - is standard input"
    )
    add_chat_option(parser)
    add_weight_options(parser)
    add_sampling_options(parser)
    add_combine_option(parser)
    parser.add_argument("--attribution", action="store_true", help="each token's margin, split over the objectives")
    parser.add_argument("--stream", action="store_true", help="print tokens as they come (one prompt)")
    parser.add_argument("--json", action="store_true", help="one JSON document per line, fields as in POST /generate")
    parser.add_argument("--slots", type=int, default=16, metavar="N", help="prompts that run at once (default 16)")
    add_device_options(parser)
    add_threads_option(parser)
    add_example(
        parser,
        'emorl generate my-bundle "I can\'t keep up at work." --weights reflection=0.7,empathy=0.3 --stream',
        "emorl generate my-bundle --prompts-file prompts.txt --profile balanced --json > answers.jsonl",
        "emorl generate my-bundle --chat chat.json",
    )


def run(args: argparse.Namespace) -> int:
    from emorl_core.errors import InvalidRequest

    if [args.prompt, args.prompts_file, args.chat].count(None) != 2:
        raise InvalidRequest("give exactly one of a prompt, --prompts-file and --chat", param="prompt")
    source = args.prompts_file or (STDIN if args.prompt == STDIN else None)
    if args.stream and (source is not None or args.json):
        other = "--json" if args.json else "a file of prompts"
        raise InvalidRequest(f"--stream prints the text of one prompt as it comes; it does not go with {other}")
    fields = {
        "weights": parse_weights(args.weights),
        "profile": args.profile,
        "normalize": args.normalize,
        "combine": args.combine,
        "attribution": args.attribution,
        **sampling_fields(args),
    }
    lines: list[str] = []
    if source is not None:
        lines = _read_lines(source)
    elif args.prompt is not None:
        fields["prompt"] = utf_8(args.prompt, "the prompt")
    else:
        fields["messages"] = read_chat(args.chat)

    from emorl_core.ensemble import Ensemble

    use_threads(args.threads, args.device, say=False)
    ensemble = Ensemble.load(args.bundle, device=args.device, dtype=args.dtype, slots=args.slots)
    if source is not None:
        return _many(ensemble, lines, fields, as_json=args.json)
    completion = _stream(ensemble, fields) if args.stream else ensemble.generate(**fields)
    if args.json:
        print_json(_answer(ensemble, completion))
        return 0
    if not args.stream:
        print(completion.text)
    if args.temperature > 0 and args.seed is None:
        print(f"seed {completion.seed}", file=sys.stderr)  # everything needed to reproduce this text
    if completion.attributions:
        _print_attribution(ensemble, completion)
    return 0


def _read_lines(source: str) -> list[str]:
    """One prompt per line, and blank lines."""
    from emorl_core.errors import InvalidRequest
    from emorl_core.files.text_files import lines_of

    lines = lines_of(read_source(source))
    if not any(line.strip() for line in lines):
        raise InvalidRequest(f"{STDIN_NAME if source == STDIN else source}: holds no prompt; write one per line")
    return lines


def _stream(ensemble: Ensemble, fields: dict[str, Any]) -> Completion:
    """Print the text as it comes."""
    completion = None
    for event in ensemble.stream(**fields):
        print(event.text, end="", flush=True)
        completion = event.completion
    print()
    assert completion is not None  # the last event of a stream that did not raise carries it
    return completion


def _many(ensemble: Ensemble, lines: list[str], fields: dict[str, Any], *, as_json: bool) -> int:
    """Answers in the order of the lines, each printed as soon as those before it are done.

    Each input line has one output line: a blank line, a prompt that fails (which is reported) and one left unfinished
    by an interruption give an empty line. JSON documents contain their line number; blank lines have none. The exit
    code is 2 when a prompt was invalid, 1 when one failed inside the engine.
    """
    from emorl_core.errors import EmorlError, EngineError

    prompts = {number: line for number, line in enumerate(lines, start=1) if line.strip()}
    results: dict[int, Completion | EmorlError] = {}
    unwritten = deque(range(1, len(lines) + 1))
    try:
        with Progress("prompts", total=len(prompts)) as progress:
            for number, result in _answers(ensemble, prompts, fields):
                results[number] = result
                progress.step()
                while unwritten and (unwritten[0] in results or unwritten[0] not in prompts):
                    line = unwritten.popleft()
                    _write(ensemble, line, results.get(line), as_json=as_json)
    finally:
        last = max(results, default=0)
        for line in unwritten:  # interrupted: print what is finished
            if line <= last:
                _write(ensemble, line, results.get(line), as_json=as_json)
    failures = [result for result in results.values() if isinstance(result, EmorlError)]
    if not failures:
        return 0
    return 1 if all(isinstance(error, EngineError) for error in failures) else 2


def _answers(
    ensemble: Ensemble, prompts: dict[int, str], fields: dict[str, Any]
) -> Iterator[tuple[int, Completion | EmorlError]]:
    """Yield (line number, answer) in order of completion. Weights and sampling are the same for all, so a fault in them
    is raised at once; a prompt that is too long fails alone."""
    from emorl_core.errors import InvalidRequest
    from emorl_core.types import Failure

    line_of: dict[str, int] = {}  # of the requests in the engine
    refused: list[tuple[int, EmorlError]] = []

    def requests() -> Iterator[Request]:
        for line, prompt in prompts.items():
            try:
                request = ensemble.request(prompt, stream=False, **fields)
            except InvalidRequest as error:
                if error.param != "prompt":
                    raise
                refused.append((line, error))
                continue
            line_of[request.request_id] = line
            yield request

    at_once = 2 * ensemble.engine.stats.slots  # so that a prompt is always ready for a free slot
    for event in ensemble.ends(requests(), at_once=at_once):
        yield from refused
        refused.clear()
        yield line_of.pop(event.request_id), event.error if isinstance(event, Failure) else event
    yield from refused


def _write(ensemble: Ensemble, line: int, result: Completion | EmorlError | None, *, as_json: bool) -> None:
    """Print one line of output; for a line without a result an empty one, or nothing with JSON."""
    from emorl_core.types import Completion
    from server.door.errors import error_object

    if result is None:
        if not as_json:
            print(flush=True)
    elif isinstance(result, Completion):
        if as_json:
            print_json({"line": line, **_answer(ensemble, result)})
        else:
            print(" ".join(result.text.splitlines()), flush=True)
    elif as_json:
        print_json({"line": line, "error": error_object(result)})
    else:
        print(f"emorl: error: line {line}: {result.message}", file=sys.stderr)
        print(flush=True)


def _answer(ensemble: Ensemble, completion: Completion) -> dict[str, Any]:
    """The answer of POST /generate, so that scripts can read both in the same way."""
    from server.api.generate_models import answer

    return answer(completion, ensemble.name, ensemble.lanes)


def _print_attribution(ensemble: Ensemble, completion: Completion) -> None:
    """One row per token: the margin over the most likely other token, and each objective's part of it."""
    parts = [dict(zip(ensemble.lanes, each.parts, strict=True)) for each in completion.attributions]
    names = [name for name in ensemble.lanes if name in completion.weights]
    width = max(len(name) for name in (*names, "margin")) + 2
    print("\n" + "token".ljust(20) + "".join(name.rjust(width) for name in ("margin", *names)))
    for text, attribution, by_name in zip(completion.token_texts, completion.attributions, parts, strict=True):
        numbers = (attribution.margin, *(by_name[name] for name in names))
        print(repr(text)[:19].ljust(20) + "".join(f"{number:{width}.3f}" for number in numbers))
