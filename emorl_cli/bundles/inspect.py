"""`emorl inspect`: a bundle's contents, and every fault that would keep it from being served."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from emorl_cli.console.options import BUNDLE_HELP, add_example
from emorl_cli.console.printing import print_json

if TYPE_CHECKING:
    from emorl_core.adapters.adapter import Adapter
    from emorl_core.bundles.bundle import Bundle, BundleSpec
    from emorl_core.models.family import LaneModel
    from emorl_core.text.tokenizer import HuggingFaceTokenizer

T = TypeVar("T")
Report = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", help=BUNDLE_HELP)
    parser.add_argument(
        "--dtype", default="float32", choices=("float32", "bfloat16"), help="precision to load in (default float32)"
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    add_example(parser, "emorl inspect my-bundle", "emorl inspect my-bundle --json")


def run(args: argparse.Namespace) -> int:
    report = examine(args.bundle, dtype=args.dtype)
    if args.json:
        print_json(report)
    else:
        print(render(report))
    return 0 if report["valid"] else 2


def examine(where: str, *, dtype: str = "float32") -> Report:
    """Open and load everything a bundle names, on the CPU, and collect every fault instead of stopping at the first.

    Returns:
        JSON-ready: `valid`, `faults`, `warnings` (served, but possibly wrong) and `notes`, one line each, and
            everything that could be read: `name`, `base`, `tokenizer`, `objectives`, `profiles`, `scorers`,
        `parameter_bytes`.
    """
    from emorl_core.bundles.bundle import Bundle

    faults: list[str] = []
    report: Report = {"bundle": where, "valid": False, "faults": faults, "warnings": [], "notes": []}
    bundle = _attempt(faults, "bundle", lambda: Bundle.open(where))
    if bundle is not None:
        report["name"] = bundle.spec.name
        model, tokenizer = _examine_base(bundle, dtype, report)
        _examine_profiles(bundle, report)
        _examine_scorers(bundle, report)
        if model is not None and tokenizer is not None and not faults:
            _attempt(faults, "running it", partial(_run_once, bundle.spec, model, tokenizer))
    report["valid"] = not faults
    return report


def _attempt(faults: list[str], what: str, action: Callable[[], T]) -> T | None:
    """The action's result, or None and one more fault. A broken bundle must give a message, not a traceback."""
    from emorl_core.errors import EmorlError, one_line

    try:
        return action()
    except EmorlError as error:
        if error.message not in faults:  # the base and its tokenizer read the same files
            faults.append(error.message)
    except Exception as error:  # noqa: BLE001  any kind of broken file
        faults.append(f"{what}: cannot be loaded: {type(error).__name__}: {one_line(error)}")
    return None


def _examine_base(bundle: Bundle, dtype: str, report: Report) -> tuple[LaneModel | None, HuggingFaceTokenizer | None]:
    """Load the base, its tokenizer, and check every adapter individually against the base.

    Returns what could be loaded: the model, with all adapters if all fit, and the tokenizer."""
    import torch

    from emorl_core.adapters.adapter import of_another_base, read_peft
    from emorl_core.files.hashes import weights_hash
    from emorl_core.machine.precision import DTYPES
    from emorl_core.models.config import read_config
    from emorl_core.models.registry import family_of, load_model

    faults: list[str] = report["faults"]
    spec = bundle.spec
    report["base"] = {"source": spec.base.path or spec.base.hub}
    folder = _attempt(faults, "base", lambda: _checked(bundle.base_folder()))
    model: LaneModel | None = None
    tokenizer: HuggingFaceTokenizer | None = None
    if folder is not None:
        config = _attempt(faults, "base", lambda: read_config(folder)) or {}
        report["base"]["model_type"] = config.get("model_type")
        if config:
            family = _attempt(faults, "base", lambda: family_of(config))
            report["base"] |= {key: config[key] for key in (family.size_keys if family else ()) if key in config}
            model = _attempt(
                faults, "base", lambda: load_model(folder, device=torch.device("cpu"), dtype=DTYPES[dtype])
            )
        tokenizer = _examine_tokenizer(bundle, folder, report)

    report["objectives"] = {}
    read: list[Adapter] = []
    fitting: list[Adapter] = []
    for name, objective in spec.objectives.items():
        report["objectives"][name] = {
            "adapter": objective.adapter,
            "prompt": None if objective.prompt is None else objective.prompt.model_dump(exclude_none=True),
            "description": objective.description,
        }
        if objective.adapter is None:
            continue
        adapter = _attempt(
            faults,
            f"adapter {name!r}",
            lambda name=name: read_peft(_checked(bundle.adapter_folder(name)), name),  # type: ignore[misc]
        )
        if adapter is None:
            continue
        read.append(adapter)
        pairs = adapter.modules.values()
        report["objectives"][name] |= {
            "modules": len(adapter.modules),
            "ranks": sorted({pair.rank for pair in pairs}),
            "scales": sorted({pair.scale for pair in pairs}),
            "parameters": adapter.parameters,
            "trained_on": adapter.base_name,
        }
        if model is not None:
            before = len(faults)
            _attempt(faults, f"adapter {name!r}", lambda adapter=adapter: model.attach([adapter]))  # type: ignore[misc]
            if len(faults) == before:
                fitting.append(adapter)
    base_hash = None
    if folder is not None and any(adapter.base_sha256 for adapter in read):  # it reads the whole base
        base_hash = _attempt(faults, "base", lambda: weights_hash(folder))
    report["warnings"] += of_another_base(read, spec.base.hub, base_hash)
    if model is not None and len(fitting) == len(spec.adapted):
        model.attach(fitting)
        sizes = model.parameter_bytes()
        report["parameter_bytes"] = {
            **sizes,
            "dtype": dtype,
            "ratio": round((sizes["base"] + sizes["adapters"]) / sizes["base"], 4),
        }
    return model, tokenizer


def _checked(folder: Path) -> Path:
    """The folder, if it contains only regular files: libraries that read it could hang on a FIFO."""
    from emorl_core.files.reading import check_folder

    check_folder(folder)
    return folder


def _examine_tokenizer(bundle: Bundle, folder: Path, report: Report) -> HuggingFaceTokenizer | None:
    from emorl_core.text.prompts import PromptEncoder
    from emorl_core.text.tokenizer import HuggingFaceTokenizer

    faults: list[str] = report["faults"]
    spec = bundle.spec
    tokenizer = _attempt(faults, "tokenizer", lambda: HuggingFaceTokenizer(folder))
    if tokenizer is None:
        return None
    prompts = _attempt(faults, "chat", lambda: PromptEncoder(spec, tokenizer))
    if prompts is None:
        return tokenizer
    report["tokenizer"] = {
        "entries": len(tokenizer),
        "prompt_template": spec.prompt_template,
        "chat": None if spec.chat is None else spec.chat.model_dump(),
        "template_tokens": _attempt(faults, "prompt_template", prompts.template_tokens),
        "max_source_tokens": spec.max_source_tokens,
    }
    _attempt(faults, "prompt_template", prompts.check)
    return tokenizer


def _examine_profiles(bundle: Bundle, report: Report) -> None:
    from emorl_core.bundles.stored_predictors import load_predictors
    from emorl_core.weights import resolve

    spec = bundle.spec
    report["profiles"] = {
        name: {
            "kind": profile.kind,
            "weights": {} if profile.weights is None else resolve(spec.lanes, profile.weights).as_dict(),
            "default": name == spec.default_profile,
            "origin": profile.origin,
        }
        for name, profile in spec.profiles.items()
    }
    _attempt(report["faults"], "profiles", lambda: load_predictors(bundle))
    if spec.default_profile is None:
        report["notes"].append("no default_profile: every request must name weights or a profile")


def _examine_scorers(bundle: Bundle, report: Report) -> None:
    """Check the scorers' files; only a server loads them."""
    from emorl_core.bundles.stored_scorers import check_scorer_files

    spec = bundle.spec
    report["scorers"] = {
        name: given if isinstance(given, dict) else {"kind": given} for name, given in spec.scorers.items()
    }
    report["scorer_files"] = dict(spec.scorer_files)
    _attempt(report["faults"], "scorers", lambda: check_scorer_files(bundle))


def _run_once(spec: BundleSpec, model: LaneModel, tokenizer: HuggingFaceTokenizer) -> None:
    """Run one token through all lanes, which finds faults that no file shows, such as NaN in the base."""
    from emorl_core.engine.engine import Engine
    from emorl_core.ensemble import Ensemble

    Ensemble(spec, Engine(model, tokenizer.decode, spec.lanes, slots=1), tokenizer).warm_up()


def render(report: Report) -> str:
    """The report for people."""
    lines = [f"bundle      {report.get('name', report['bundle'])}"]
    if base := report.get("base"):
        sizes = ", ".join(f"{key} {value}" for key, value in base.items() if key not in ("source", "model_type"))
        lines.append(
            f"base        {base['source']}: {base.get('model_type') or 'unknown'}" + (f" ({sizes})" if sizes else "")
        )
    if tokenizer := report.get("tokenizer"):
        lines.append(
            f"tokenizer   {tokenizer['entries']:,} entries; {_template(tokenizer)} "
            f"({tokenizer['template_tokens']} tokens); prompts up to {tokenizer['max_source_tokens']} tokens with it"
        )
    for title, entries, describe in (
        ("objectives", report.get("objectives", {}), _objective),
        ("profiles", report.get("profiles", {}), _profile),
        ("scorers", report.get("scorers", {}), _scorer),
        ("", report.get("scorer_files", {}), "SHA-256 {}".format),
    ):
        width = max(map(len, entries), default=0)
        lines += [
            f"{title if i == 0 else '':12}{name:{width}}  {describe(entry)}"
            for i, (name, entry) in enumerate(entries.items())
        ]
    if held := report.get("parameter_bytes"):
        lines.append(
            f"memory      base {held['base'] / 2**20:,.1f} MiB + adapters {held['adapters'] / 2**20:,.1f} MiB "
            f"= {held['ratio']:.3f} x the base alone, in {held['dtype']}"
        )
    lines += [f"note        {note}" for note in report["notes"]]
    lines += [f"warning     {warning}" for warning in report["warnings"]]
    lines += [f"fault       {fault}" for fault in report["faults"]]
    count = len(report["faults"])
    lines.append("valid" if report["valid"] else f"not valid: {count} fault{'s' if count > 1 else ''}")
    return "\n".join(lines)


def _template(tokenizer: Report) -> str:
    if tokenizer["chat"] is None:
        return f"template {tokenizer['prompt_template']!r}"
    system = tokenizer["chat"]["system"]
    return "chat template" + ("" if system is None else f" with system {system!r}")


def _objective(entry: Report) -> str:
    parts = [f"{kind} {told!r}" for kind, told in (entry["prompt"] or {}).items()]
    if entry["adapter"] is not None:
        if "modules" not in entry:
            return f"{entry['adapter']}: not readable"
        ranks = "/".join(map(str, entry["ranks"]))
        parts.insert(0, f"rank {ranks}, {entry['modules']} modules, {entry['parameters']:,} parameters")
    text = "; ".join(parts)
    return f"{text}: {entry['description']}" if entry["description"] else text


def _scorer(entry: Report) -> str:
    options = ", ".join(f"{key} {value}" for key, value in entry.items() if key != "kind")
    return f"{entry['kind']}: {options}" if options else str(entry["kind"])


def _profile(entry: Report) -> str:
    weights = ", ".join(f"{name} {value:g}" for name, value in entry["weights"].items())
    return (weights or "predicted for each prompt") + (" (default)" if entry["default"] else "")
