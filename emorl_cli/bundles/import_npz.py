"""`emorl import-npz`: an adapter in the authors' published format -> a PEFT folder, checked against its base."""

from __future__ import annotations

import argparse
from pathlib import Path

from emorl_cli.console.options import add_example, check_new
from emorl_cli.console.printing import print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="the .npz: <module>_loraA, <module>_loraB and <module>_scaling")
    parser.add_argument("--base", required=True, help="the base it was trained on: a checkpoint folder or a hub id")
    parser.add_argument("--out", required=True, type=Path, help="the PEFT folder to write; must not exist or be empty")
    parser.add_argument("--revision", help="of a hub id: a branch, tag or commit")
    parser.add_argument("--json", action="store_true", help="print what was written as JSON")
    add_example(parser, "emorl import-npz reflection.npz --base google-t5/t5-base --out my-bundle/adapters/reflection")


def run(args: argparse.Namespace) -> int:
    file: Path = args.file
    out: Path = args.out
    check_new(out)

    import torch

    from emorl_core.adapters.npz import read_npz
    from emorl_core.adapters.writer import write_peft
    from emorl_core.bundles.bundle import hub_folder
    from emorl_core.files.hashes import weights_hash
    from emorl_core.files.writing import appearing
    from emorl_core.models.registry import adapter_task, load_model

    adapter = read_npz(file, file.stem)
    is_folder = Path(args.base).is_dir()
    base = Path(args.base) if is_folder else hub_folder(args.base, args.revision)
    load_model(base, device=torch.device("cpu"), dtype=torch.float32).attach([adapter])  # raises when it does not fit

    with appearing(out) as written:
        # A folder's path says nothing on another machine, so only a hub id is recorded as the base.
        hub = None if is_folder else args.base
        write_peft(adapter, written, base_name=hub, base_sha256=weights_hash(base), task=adapter_task(base))
    ranks = sorted({pair.rank for pair in adapter.modules.values()})
    if args.json:
        report = {"out": str(out), "modules": len(adapter.modules), "ranks": ranks, "parameters": adapter.parameters}
        print_json(report)
    else:
        shown = ", ".join(map(str, ranks))
        print(f"{out}: {len(adapter.modules)} modules of rank {shown}, {adapter.parameters:,} parameters")
    return 0
