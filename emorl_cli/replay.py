"""`emorl replay`: generates a receipt's text again and checks that its tokens are the same.

Prompts and texts are never printed, since they may be part of a clinical record.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from emorl_cli.console.options import BUNDLE_HELP, add_example
from emorl_cli.console.printing import print_json
from emorl_cli.console.reading import STDIN, STDIN_NAME, read_source

if TYPE_CHECKING:
    from emorl_core.bundles.snapshot import Snapshot
    from emorl_core.ensemble import Ensemble
    from server.serving.receipt import Identity, Prompt, Receipt

SAME, NOT_SAME = 0, 1


@dataclass(slots=True)
class Finding:
    """One receipt. `verdict`: same, differs, or refused (not run: it could not be the same)."""

    id: str
    created: str
    tokens: int | None  # null: the receipt was stored without them
    verdict: str = "refused"
    damage: list[str] = field(default_factory=list)  # changes to the receipt since it was written
    # changes to prompt or bundle, so that the tokens cannot be the same
    mismatches: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # differences that may change rounding
    differences: list[str] = field(default_factory=list)

    @property
    def same(self) -> bool:
        """The receipt is unchanged, and the tokens are the same."""
        return self.verdict == "same" and not self.damage and not self.mismatches

    def lines(self) -> list[str]:
        """A readable report; the last line is the verdict."""
        size = "tokens not kept" if self.tokens is None else f"{self.tokens} tokens"
        shown = [f"receipt {self.id} of {self.created}, {size}"]
        shown += [f"  note: {note}" for note in self.notes]
        shown += [f"  changed: {what}" for what in self.damage]
        shown += [f"  cannot be the same: {why}" for why in self.mismatches]
        shown += [f"  differs: {what}" for what in self.differences]
        if self.verdict == "refused":
            shown.append("  NOT REPLAYED (--anyway runs it all the same)")
        elif self.verdict == "same":
            shown.append("  the same tokens" + ("" if self.same else ", although something was changed"))
        else:
            shown.append("  NOT THE SAME")
        return shown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("receipt", help="a JSON file: a receipt, or a whole answer that holds one; - is standard input")
    parser.add_argument(
        "bundle",
        nargs="?",
        help=f"{BUNDLE_HELP}; default: EMORL_BUNDLE, then the hub id in the receipt, then the demo bundle",
    )
    parser.add_argument(
        "--prompt-file", metavar="FILE", help="the prompt, for a receipt that is kept without it; - is standard input"
    )
    parser.add_argument("--anyway", action="store_true", help="run also what cannot be the same; the exit code stays 1")
    parser.add_argument("--device", help="auto, cpu, cuda or cuda:N (default: the receipt's, where there is one)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: the receipt's")
    parser.add_argument("--json", action="store_true", help="one JSON document for machines")
    add_example(
        parser,
        "emorl replay receipt.json my-bundle",
        "emorl replay answer.json my-bundle --json",
        "emorl replay receipt.json my-bundle --prompt-file prompt.txt",
    )


def run(args: argparse.Namespace) -> int:
    """Exit codes: 0 the same tokens; 1 not the same, or they cannot be; 2 bad input."""
    if args.receipt == args.prompt_file == STDIN:
        raise _refusal("receipt and --prompt-file cannot both be standard input", "prompt_file")
    receipts = read_receipts(args.receipt)
    prompts = [_prompt(receipt, args.prompt_file) for receipt in receipts]
    where = args.bundle or _bundle_of(receipts[0])
    name, findings = _find_out(where, receipts, prompts, args)
    same = all(finding.same for finding in findings)
    if args.json:
        print_json({"same": same, "bundle": name, "receipts": [_facts(finding) for finding in findings]})
    else:
        print("\n".join(line for finding in findings for line in finding.lines()))
    return SAME if same else NOT_SAME


# --- what was given --------------------------------------------------------------------------------------------------


def read_receipts(source: str) -> list[Receipt]:
    """Every receipt in a file: it alone, or in an answer of `/generate` or of the OpenAI routes.

    Raises:
        InvalidRequest: no such file, not JSON, or no valid receipt in it.
    """
    from pydantic import ValidationError

    from emorl_core.config import faults
    from emorl_core.files.documents import parse_json
    from emorl_core.files.reading import Unreadable
    from server.serving.receipt import Receipt

    name = STDIN_NAME if source == STDIN else source
    text = read_source(source)
    try:
        document = parse_json(text)
    except Unreadable as error:
        raise _refusal(f"{name}: not JSON, or cut short: it {error.reason}", "receipt") from None
    found = _find(document)
    if not found:
        raise _refusal(f'{name}: holds no receipt; a request gets one by "receipt": true', "receipt")
    receipts = []
    for number, each in enumerate(found):
        try:
            receipts.append(Receipt.model_validate_json(json.dumps(each)))
        except ValidationError as error:
            # By field only, since values may be prompts.
            which = f" {number + 1}" if len(found) > 1 else ""
            raise _refusal(
                f"{name}: receipt{which} cannot be used: {'; '.join(faults(error)[:5])}", "receipt"
            ) from None
    return receipts


def _find(document: Any) -> list[Any]:
    if not isinstance(document, dict):
        return []
    if "format" in document and "tokens_sha256" in document:
        return [document]
    if isinstance(document.get("receipt"), dict):
        return [document["receipt"]]
    extra = document.get("emorl")
    receipts = extra.get("receipts") if isinstance(extra, dict) else None
    if isinstance(receipts, list):
        return receipts
    # Neither: cut-out fields of a receipt, which the validation then names, or something else altogether.
    return [document] if str(document.get("format", "")).startswith("emorl-receipt/") else []


def _prompt(receipt: Receipt, prompt_file: str | None) -> Prompt:
    """The prompt from the file or the receipt; `_examine` checks that it is the right one."""
    from pydantic import ValidationError

    from server.serving.receipt import Said, hash_of

    if prompt_file is None:
        if receipt.prompt is None:
            raise _refusal("the receipt was kept without its prompt; give it by --prompt-file", "prompt_file")
        return receipt.prompt
    text = read_source(prompt_file)
    lf = text.replace("\r\n", "\n")
    # An editor may have added a final line break, or changed line ends.
    candidates: list[Prompt] = [text, text.removesuffix("\n").removesuffix("\r"), lf, lf.removesuffix("\n")]
    try:
        found = json.loads(text)
        if isinstance(found, list) and all(type(item) is int for item in found):
            candidates.append(found)
        elif isinstance(found, list):
            candidates.append([Said.model_validate(item) for item in found])
    except (json.JSONDecodeError, RecursionError, ValidationError):
        pass
    return next((each for each in candidates if hash_of(each) == receipt.prompt_sha256), candidates[1])


def _bundle_of(receipt: Receipt) -> str:
    """Where the bundle may be if none was given."""
    from emorl_cli.demo.demo import demo_folders
    from emorl_core.bundles.bundle import Bundle
    from server.settings import load_settings

    configured = load_settings().bundle
    if configured is not None:
        return configured
    if receipt.identity.source is not None:
        return receipt.identity.source
    for demo in demo_folders():
        spec = Bundle.open(demo).spec if demo.is_dir() else None
        if spec and (spec.name, spec.prompt_template) == (receipt.identity.bundle, receipt.identity.prompt_template):
            return str(demo)
    raise _refusal(f"bundle: none given; name the folder or hub id of {receipt.identity.bundle!r}", "bundle")


def _refusal(message: str, param: str) -> Exception:
    from emorl_core.errors import InvalidRequest

    return InvalidRequest(message, param=param)


# --- what is found ---------------------------------------------------------------------------------------------------


def _find_out(
    where: str, receipts: list[Receipt], prompts: list[Prompt], args: argparse.Namespace
) -> tuple[str, list[Finding]]:
    """The bundle's name, and a finding for each receipt, from the hashes of the loaded files and a run."""
    from emorl_core.bundles.snapshot import Snapshot
    from server.serving.receipt import Identity

    with Snapshot.open(where) as files:
        now = Identity.of(files.bundle.spec, files.hashes())
        findings = [_examine(receipt, prompt, now) for receipt, prompt in zip(receipts, prompts, strict=True)]
        ensemble: Ensemble | None = None
        for finding, receipt, prompt in zip(findings, receipts, prompts, strict=True):
            if args.anyway or not (finding.damage or finding.mismatches):
                ensemble = ensemble or _load(files, receipt, args.device, args.dtype)
                _replay(ensemble, finding, receipt, prompt)
    return now.bundle, findings


def _examine(receipt: Receipt, prompt: Prompt, now: Identity) -> Finding:
    """Compare hashes, before anything is run."""
    from server.serving.receipt import hash_of

    finding = Finding(receipt.id, receipt.created, None if receipt.token_ids is None else len(receipt.token_ids))
    finding.damage = receipt.damage()
    if receipt.prompt != prompt and hash_of(prompt) != receipt.prompt_sha256:
        finding.mismatches.append("the prompt is another one (prompt_sha256)")
    finding.mismatches += receipt.identity.mismatches(now, receipt.weights)
    if now.bundle != receipt.identity.bundle:
        finding.notes.append(f"the bundle was called {receipt.identity.bundle} and is called {now.bundle}")
    elif now.bundle_yaml != receipt.identity.bundle_yaml and not finding.mismatches:
        finding.notes.append("bundle.yaml was changed since, in nothing that matters here")
    return finding


def _load(files: Snapshot, receipt: Receipt, device: str | None, dtype: str | None) -> Ensemble:
    from emorl_core.ensemble import Ensemble
    from emorl_core.errors import InvalidRequest, UnsupportedModel
    from emorl_core.machine.precision import pick_device, pick_quantize
    from server.settings import load_settings

    if device is None:
        try:
            device = str(pick_device(receipt.device))
        except InvalidRequest:  # not on this machine: a note will say so
            device = "auto"
    dtype = dtype or receipt.dtype
    quantize = "off"
    with contextlib.suppress(InvalidRequest):  # not on this machine: a note will say so
        quantize = pick_quantize(receipt.quantize, dtype, pick_device(device))
    if receipt.compiled:
        with contextlib.suppress(UnsupportedModel):  # the same
            kept = load_settings().compiled_steps
            return Ensemble.load(files, device=device, dtype=dtype, quantize=quantize, compile=True, compile_cache=kept)
    return Ensemble.load(files, device=device, dtype=dtype, quantize=quantize)


def _replay(ensemble: Ensemble, finding: Finding, receipt: Receipt, prompt: Prompt) -> None:
    from emorl_core.engine.driver import Driver
    from server.serving.receipt import hash_of, replay_request, surroundings

    finding.notes += surroundings(ensemble, receipt)
    (completion,) = Driver(ensemble.engine).finish([replay_request(ensemble, receipt, prompt)])
    now = list(completion.token_ids)
    was = receipt.token_ids
    if was is not None and now != was:
        pairs = enumerate(zip(was, now, strict=False))
        first = next((place for place, (a, b) in pairs if a != b), min(len(was), len(now)))
        finding.differences.append(f"from token {first + 1} on; there were {len(was)} and are {len(now)}")
    elif hash_of(now) != receipt.tokens_sha256:
        finding.differences.append("the tokens are others (tokens_sha256)")
    elif receipt.text is not None and completion.text != receipt.text:
        finding.differences.append("the tokens are the same, and the receipt's text is not what they spell")
    elif completion.finish_reason != receipt.finish_reason:
        finding.differences.append(f"it ended by {receipt.finish_reason} and ends by {completion.finish_reason}")
    finding.verdict = "differs" if finding.differences else "same"


def _facts(finding: Finding) -> dict[str, Any]:
    return {**asdict(finding), "same": finding.same}
