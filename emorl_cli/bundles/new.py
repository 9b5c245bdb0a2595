"""`emorl new`: a base and objectives -> an inspected bundle, written atomically."""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emorl_cli.console.options import add_example, check_new
from emorl_cli.console.printing import print_json

if TYPE_CHECKING:
    from emorl_core.bundles.bundle import BundleSpec, ChatSpec

PROFILE = "even"
CHAT_TOKENS = 4096  # prompt tokens of a chat bundle, which gets whole histories
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
_HUB_NAME = re.compile(r"([A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*", re.ASCII)  # old ones have no owner
_PATH = re.compile(r"[\w.~/\\:+-]+")  # a text of this form is never taken for a sentence


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", type=Path, metavar="bundle", help="the folder to write; must not exist or be empty")
    parser.add_argument(
        "--base",
        required=True,
        help="a checkpoint folder, which is copied into the bundle, or a hub id, which is named",
    )
    parser.add_argument("--revision", help="of the base's hub id: a branch, tag or commit")
    parser.add_argument("--link", action="store_true", help="base/ is a link to the base's folder instead of a copy")
    parser.add_argument(
        "--objective",
        action="append",
        required=True,
        metavar="NAME=WHAT",
        help="a PEFT LoRA folder or its hub id, which is copied, or a sentence; may be repeated, and a name twice: "
        "adapter and sentence",
    )
    told = parser.add_argument_group("prompts")
    told.add_argument(
        "--chat",
        action=argparse.BooleanOptionalAction,
        help="through the base's chat template (default: where it has one, without --prompt-template)",
    )
    told.add_argument("--system", metavar="TEXT", help="the system message of chats that bring none")
    told.add_argument("--prompt-template", metavar="TEXT", help="instead of a chat: what stands around {prompt}")
    told.add_argument(
        "--max-source-tokens",
        type=int,
        metavar="N",
        help=f"the most of a prompt with all around it (default 512; {CHAT_TOKENS} in a chat)",
    )
    parser.add_argument("--name", help="the model's name in answers (default: that of the folder)")
    parser.add_argument(
        "--dtype", default="float32", choices=("float32", "bfloat16"), help="precision to inspect in (default float32)"
    )
    parser.add_argument("--json", action="store_true", help="print the report of emorl inspect as JSON")
    add_example(
        parser,
        "emorl new my-bundle --base google-t5/t5-base --objective reflection=adapters/reflection"
        " --objective empathy=adapters/empathy",
        'emorl new my-assistant --base HuggingFaceTB/SmolLM2-1.7B-Instruct --objective warm="Answer warmly."'
        ' --objective brief="Answer in one sentence."',
    )


def run(args: argparse.Namespace) -> int:
    from emorl_cli.bundles.inspect import render

    out: Path = args.out
    check_new(out)
    report = write(out, args)
    command = f"emorl serve {shlex.quote(str(out))}"
    if args.json:
        print_json({**report, "serve": command})
    else:
        print(f"{render(report)}\n\n{command}")
    return 0


@dataclass(frozen=True, slots=True)
class Given:
    """The `--objective` options of one name: an adapter's folder, a sentence, or both."""

    adapter: Path | None = None
    sentence: str | None = None


def write(out: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Write the bundle to `out` atomically; returns its report.

    Raises:
        BundleError, InvalidRequest: the bundle could not be served.
    """
    from emorl_core.bundles.bundle import BASE_DIR, copy_checkpoint, write_spec
    from emorl_core.errors import BundleError
    from emorl_core.files.reading import is_folder
    from emorl_core.files.writing import appearing

    given = read_objectives(args.objective)
    is_local = is_folder(Path(args.base))
    spec = _spec(out, args, given, _base_folder(args, is_local), is_local)
    with appearing(out) as folder:
        for name, each in given.items():
            if each.adapter is not None:
                _copy_adapter(each.adapter, folder / str(spec.objectives[name].adapter))
        if is_local and args.link:
            (folder / BASE_DIR).symlink_to(Path(args.base).resolve())
        elif is_local:
            copy_checkpoint(Path(args.base), folder / BASE_DIR)
        write_spec(folder, spec)
        report = _examined(folder, out, args.dtype)
        if report["faults"]:
            raise BundleError("; ".join(report["faults"]))
    return report


def read_objectives(options: Sequence[str]) -> dict[str, Given]:
    """Parse `NAME=WHAT`: an existing folder is an adapter, and so is anything that looks like a hub id; other text with
    a space or a character that paths do not have is a sentence.

    Raises:
        BundleError: a part that is none of these, an adapter that cannot be read, or a name with two of a kind.
    """
    from emorl_core.bundles.bundle import hub_folder
    from emorl_core.errors import BundleError, cut
    from emorl_core.files.reading import is_folder

    given: dict[str, Given] = {}
    for option in options:
        name, equals, what = (part.strip() for part in option.partition("="))
        if not (name and equals and what):
            raise BundleError(f"--objective {cut(option)}: allowed: NAME=ADAPTER_FOLDER, NAME=HUB_ID, NAME=SENTENCE")
        before = given.get(name, Given())
        path = Path(what).expanduser()
        local = is_folder(path)
        if local or _HUB_ID.fullmatch(what):
            if before.adapter is not None:
                raise BundleError(f"--objective {name}: has two adapters; allowed: one, and a sentence")
            folder = path if local else hub_folder(what)
            _check_adapter(folder, name, what)  # before anything is copied
            given[name] = Given(folder, before.sentence)
        elif _PATH.fullmatch(what) or what.startswith(("/", "./", "../", "~/")):
            raise BundleError(
                f"--objective {name}: {cut(what)} is no folder; allowed: a PEFT LoRA folder, a hub id (owner/name), "
                "or a sentence of several words"
            )
        else:
            if before.sentence is not None:
                raise BundleError(f"--objective {name}: has two sentences; allowed: one, and an adapter")
            given[name] = Given(before.adapter, what)
    return given


def _check_adapter(folder: Path, name: str, what: str) -> None:
    """Raises `AdapterError` as reading it does, naming it as typed, since the folder may be a copy from the hub."""
    from emorl_core.adapters.adapter import read_peft
    from emorl_core.errors import AdapterError, cut

    try:
        read_peft(folder, name)
    except AdapterError as error:
        raise AdapterError(f"--objective {name}={cut(what)}: {error.message}") from None


def _base_folder(args: argparse.Namespace, is_local: bool) -> Path:
    """Raises `BundleError` if there is no model of a known family, or for an option of the other kind."""
    from emorl_core.bundles.bundle import hub_folder
    from emorl_core.errors import BundleError, cut
    from emorl_core.files.reading import check_folder
    from emorl_core.models.config import read_config
    from emorl_core.models.registry import family_of

    if is_local and args.revision is not None:
        raise BundleError(f"--revision goes with a hub id; --base {cut(args.base)} is a folder")
    if args.link and not is_local:
        raise BundleError(f"--link goes with a folder; --base {cut(args.base)} is none")
    if not is_local and not _HUB_NAME.fullmatch(args.base):
        raise BundleError(
            f"--base {cut(args.base)} is no folder; allowed: a checkpoint folder, or a hub id (owner/name)"
        )
    try:
        folder = Path(args.base) if is_local else hub_folder(args.base, args.revision)
    except BundleError as error:
        raise BundleError(f"--base {cut(args.base)} is no folder, and {error.message}") from None
    check_folder(folder)
    family_of(read_config(folder))
    return folder


def _spec(
    out: Path, args: argparse.Namespace, given: dict[str, Given], base_folder: Path, is_local: bool
) -> BundleSpec:
    from pydantic import ValidationError

    from emorl_core.bundles.bundle import ADAPTERS_DIR, BASE_DIR, BundleSpec
    from emorl_core.config import explain
    from emorl_core.errors import BundleError

    chat = _chat(args, base_folder)
    kind = "system"
    if chat is None:
        kind = "template"
        _check_templates(given)
    values: dict[str, Any] = {
        "name": args.name or out.resolve().name,
        "base": {"path": BASE_DIR} if is_local else {"hub": args.base, "revision": args.revision},
        "chat": chat,
        "objectives": {
            name: {
                "adapter": None if each.adapter is None else f"{ADAPTERS_DIR}/{name}",
                "prompt": None if each.sentence is None else {kind: each.sentence},
            }
            for name, each in given.items()
        },
        "profiles": {PROFILE: {"weights": dict.fromkeys(given, 1.0), "origin": {"by": "emorl new"}}},
        "default_profile": PROFILE,
    }
    if args.prompt_template is not None:
        values["prompt_template"] = args.prompt_template
    if args.max_source_tokens is not None or chat is not None:
        values["max_source_tokens"] = CHAT_TOKENS if args.max_source_tokens is None else args.max_source_tokens
    try:
        return BundleSpec.model_validate(values)
    except ValidationError as error:
        raise BundleError(explain(error)) from None


def _check_templates(given: dict[str, Given]) -> None:
    from emorl_core.bundles.bundle import PROMPT
    from emorl_core.errors import BundleError, cut

    for name, each in given.items():
        if each.sentence is not None and each.sentence.count(PROMPT) != 1:
            raise BundleError(
                f"--objective {name}: {cut(each.sentence)} must contain {PROMPT} exactly once: in a bundle without chat"
                f" a sentence is what stands around the prompt, such as {cut(f'Answer warmly. {PROMPT}')}"
            )


def _chat(args: argparse.Namespace, base_folder: Path) -> ChatSpec | None:
    """Whether to make a chat bundle: if requested, or by default if the base has a chat template. Raises
    `BundleError`."""
    from pydantic import ValidationError

    from emorl_core.bundles.bundle import ChatSpec
    from emorl_core.config import explain
    from emorl_core.errors import BundleError
    from emorl_core.text.tokenizer import load_tokenizer

    if args.prompt_template is not None and (args.chat or args.system is not None):
        raise BundleError(f"--prompt-template and {'--chat' if args.chat else '--system'} exclude each other")
    if args.system is not None and args.chat is False:
        raise BundleError("--system and --no-chat exclude each other")
    wanted = args.chat or args.system is not None
    if args.chat is None and args.prompt_template is None and not wanted:
        wanted = bool(load_tokenizer(base_folder).chat_template)
    try:
        return ChatSpec(system=args.system) if wanted else None
    except ValidationError as error:
        raise BundleError(f"--system: {explain(error)}") from None


def _copy_adapter(source: Path, target: Path) -> None:
    """Copy the two files that are read, without optimiser checkpoints."""
    from emorl_core.adapters.adapter import CONFIG_FILE, WEIGHTS_FILE

    target.mkdir(parents=True)
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        shutil.copyfile(source / file, target / file)


def _examined(folder: Path, out: Path, dtype: str) -> dict[str, Any]:
    """The report of `emorl inspect`, with the folder's final name."""
    from emorl_cli.bundles.inspect import examine

    report = examine(str(folder), dtype=dtype)
    own = {
        key: [line.replace(str(folder), str(out)) for line in report[key]] for key in ("faults", "warnings", "notes")
    }
    return {**report, **own, "bundle": str(out)}
