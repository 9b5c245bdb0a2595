"""`emorl import-gguf`: a GGUF file -> a base folder, which is test-loaded before it is moved into place."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from emorl_cli.console.options import add_example, check_new
from emorl_cli.console.printing import print_json

if TYPE_CHECKING:
    import torch

    from emorl_core.models.causal.gguf import Imported


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="the .gguf: weights, tokenizer and chat template of one model")
    parser.add_argument("--out", required=True, type=Path, help="the folder to write; must not exist or be empty")
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=("float32", "bfloat16", "float16"),
        help="of the weights that are written (default float32, which holds every number of the file)",
    )
    parser.add_argument("--json", action="store_true", help="print what was written as JSON")
    add_example(
        parser,
        "emorl import-gguf model.gguf --out my-base",
        "emorl import-gguf model.gguf --out my-base --dtype bfloat16",
    )


def run(args: argparse.Namespace) -> int:
    out: Path = args.out
    check_new(out)

    import torch

    from emorl_core.files.writing import appearing

    with appearing(out) as folder:
        found = convert(args.file, folder, getattr(torch, args.dtype))
    if args.json:
        print_json(
            {
                "out": str(out),
                "architecture": found.architecture,
                "formats": found.formats,
                "dtype": args.dtype,
                "parameters": found.parameters,
                "chat_template": found.has_chat_template,
            }
        )
    else:
        formats = ", ".join(f"{count} tensors {name}" for name, count in found.formats.items())
        chat = "with" if found.has_chat_template else "without"
        print(f"{out}: {found.architecture}, {found.parameters:,} parameters in {args.dtype}, {chat} a chat template")
        print(f"the file held {formats}")
    return 0


def convert(file: Path, folder: Path, dtype: torch.dtype) -> Imported:
    """Write the file's model and tokenizer into `folder`, and test-load them.

    Raises:
        BundleError: they cannot be read, cannot be converted completely, or do not load; it names `file`.
    """
    import torch

    from emorl_core.errors import BundleError
    from emorl_core.models.causal.gguf import import_gguf
    from emorl_core.models.registry import load_model
    from emorl_core.text.tokenizer import load_tokenizer

    try:
        found = import_gguf(file, folder, dtype)
        load_model(folder, device=torch.device("cpu"), dtype=torch.float32)  # with its self-test
        load_tokenizer(folder)
    except BundleError as error:
        error.message = error.message.replace(str(folder), str(file))
        raise
    return found
