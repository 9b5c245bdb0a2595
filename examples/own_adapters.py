"""PEFT adapters that you have already -> a bundle.

python examples/own_adapters.py --base google-t5/t5-base --out my-bundle \
    --adapter formal=adapters/formal --adapter brief=adapters/brief --prompt-template "rewrite: {prompt}"
"""

import argparse
import shutil
import sys
from pathlib import Path

from pydantic import ValidationError

from emorl_core import Ensemble
from emorl_core.bundle import (
    ADAPTERS_DIR,
    BASE_DIR,
    BaseRef,
    BundleSpec,
    ObjectiveSpec,
    ProfileSpec,
    write_spec,
)
from emorl_core.config import explain
from emorl_core.errors import EmorlError

parser = argparse.ArgumentParser(description="Make a bundle of PEFT adapters of one base.")
parser.add_argument("--base", required=True, help="a checkpoint folder, which is copied, or a hub id, which is named")
parser.add_argument("--adapter", action="append", required=True, metavar="NAME=FOLDER", help="may be repeated")
parser.add_argument("--prompt-template", default="{prompt}", help="as the adapters were trained with")
parser.add_argument("--max-source-tokens", type=int, default=512)
parser.add_argument("--out", required=True, type=Path, metavar="BUNDLE")
args = parser.parse_args()
if args.out.exists():
    sys.exit(f"--out {args.out} exists; name a new folder")
adapters = dict(each.partition("=")[::2] for each in args.adapter)
if len(adapters) < len(args.adapter) or not all(adapters.values()):
    sys.exit(f"--adapter {' '.join(args.adapter)}: allowed is NAME=FOLDER, every name once")

base_is_folder = Path(args.base).is_dir()
try:  # before anything is copied: names and template
    spec = BundleSpec(
        name=args.out.name,
        base=BaseRef(path=BASE_DIR) if base_is_folder else BaseRef(hub=args.base),
        prompt_template=args.prompt_template,
        max_source_tokens=args.max_source_tokens,
        objectives={name: ObjectiveSpec(adapter=f"{ADAPTERS_DIR}/{name}") for name in adapters},
        profiles={"even": ProfileSpec(weights=dict.fromkeys(adapters, 1.0), origin={"by": "examples/own_adapters.py"})},
        default_profile="even",
    )
except ValidationError as error:
    sys.exit(explain(error))

for name, folder in adapters.items():
    # Only these two files are read; checkpoints of an optimiser need not travel.
    target = args.out / ADAPTERS_DIR / name
    target.mkdir(parents=True)
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        if (Path(folder) / file).is_file():
            shutil.copyfile(Path(folder) / file, target / file)
if base_is_folder:
    shutil.copytree(args.base, args.out / BASE_DIR, copy_function=shutil.copyfile)
write_spec(args.out, spec)
try:  # a bundle that cannot serve is not left behind
    Ensemble.load(args.out, device="cpu").warm_up()
except EmorlError as error:
    shutil.rmtree(args.out)
    sys.exit(error.message)
print(f"{args.out}: written, loaded and run once. What is in it: emorl inspect {args.out}")
