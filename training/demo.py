"""The demo bundle, made on the user's machine from nothing: synthetic corpus, tokenizer, small T5, three adapters.

Every stage is a plain function from settings to a folder, so that a recipe can drive them or replace one. A stage whose
folder is there is done: a killed build goes on where it stopped, and a finished one is found again by its key.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from emorl_core.bundle import (
    ADAPTERS_DIR,
    BASE_DIR,
    BUNDLE_FILE,
    BaseRef,
    BundleSpec,
    ObjectiveSpec,
    ProfileSpec,
    write_spec,
)
from emorl_core.errors import EmorlError
from training.data import synthetic
from training.data.records import Record
from training.data.synthetic_frames import STYLES, Style
from training.durable import appearing, clear_leftovers
from training.fit import FitSettings
from training.hyperparameters import LoraSettings
from training.scratch import ScratchSettings
from training.section import Section
from training.seeds import derive
from training.supervised import SupervisedSettings, train_adapter
from training.warmstart import WarmStartSettings, warm_start

NAME = "counselor-demo"
TEMPLATE = "{prompt} [SEP] "
MAX_SOURCE_TOKENS = 128
RECEIPT = "demo.json"
_FORMAT = 2  # raised when code outside the grammar changes what a build makes

Progress = Callable[[str, int, int], None]  # (stage, steps done, steps of the stage)


class DemoError(EmorlError):
    """A demo that cannot be built where it was asked for."""

    code = "invalid_demo"


@dataclass(frozen=True, slots=True)
class DemoObjective:
    """One objective of the demo and the reply styles that show it."""

    description: str
    styles: tuple[Style, ...]


OBJECTIVES: Mapping[str, DemoObjective] = {
    "reflection": DemoObjective("gives the client's meaning back, in the client's own words", ("complex",)),
    "empathy": DemoObjective("names the feeling and says that it makes sense", ("validation",)),
    "fluency": DemoObjective("says it short, plain and well-formed", ("brief",)),
}
PROFILES: Mapping[str, Mapping[str, float]] = {
    "balanced": {"reflection": 0.4, "empathy": 0.4, "fluency": 0.2},
    "reflective": {"reflection": 0.8, "empathy": 0.1, "fluency": 0.1},
    "warm": {"reflection": 0.2, "empathy": 0.7, "fluency": 0.1},
    "plain": {"reflection": 0.1, "empathy": 0.1, "fluency": 0.8},
}


class DemoSettings(Section):
    """Everything a demo build depends on. The defaults take about three minutes on two cores."""

    seed: int = Field(0, ge=0)
    """Every random draw of the build comes from it."""
    base_prompts: int = Field(24_000, ge=50)
    """Distinct synthetic prompts the base is trained on, each answered in one style."""
    adapter_prompts: int = Field(6_000, ge=50)
    """Distinct synthetic prompts of each adapter."""
    held_out: float = Field(0.05, ge=0, lt=1)
    """Share of the situations that no training sees."""
    model: ScratchSettings = ScratchSettings()
    """The base."""
    base_fit: FitSettings = FitSettings(
        steps=800, batch_size=32, learning_rate=3e-3, warmup_steps=40, checkpoint_every=200
    )
    """The base's training."""
    lora: LoraSettings = LoraSettings(dropout=0.0)
    """The adapters."""
    adapter_fit: FitSettings = FitSettings(
        steps=120, batch_size=32, learning_rate=3e-3, warmup_steps=10, checkpoint_every=0
    )
    """Each adapter's training."""


def build_demo(
    folder: Path,
    *,
    settings: DemoSettings | None = None,
    progress: Progress | None = None,
    rebuild: bool = False,
    device: str = "auto",
    threads: int | None = None,
) -> Path:
    """Make the demo bundle in `folder`, or find it there, and return `folder`.

    Stages on the way lie in `.<folder>.building` beside it. `rebuild`: make it again although it is there. `threads`:
    of torch while building; None: as many as prove fastest now, which on a busy machine is fewer than its cores.

    Raises `DemoError` where `folder` holds something that is not a demo bundle.
    """
    settings = settings or DemoSettings()
    folder = Path(folder)
    key = build_key(settings)
    if not rebuild and _key_of(folder) == key:
        return folder
    _check_target(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = folder.with_name(f".{folder.name}.building")
    with _alone(folder):
        if not rebuild and _key_of(folder) == key:  # another process built it while this one waited
            return folder
        _open_work(work, key)
        with _threads(threads, device):
            build_base(work / BASE_DIR, settings, progress, device)
            for name in OBJECTIVES:
                build_adapter(work / BASE_DIR, name, work / ADAPTERS_DIR / name, settings, progress, device)
        assemble(work, folder, settings, key)
        shutil.rmtree(work, ignore_errors=True)
    return folder


def build_key(settings: DemoSettings) -> str:
    """Names what a build makes: a hash of its settings and of the grammar's own source."""
    digest = hashlib.sha256(f"{_FORMAT}:{settings.model_dump_json()}".encode())
    for path in sorted(Path(synthetic.__file__).parent.glob("synthetic*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def corpus(settings: DemoSettings, part: str, count: int, styles: Sequence[Style]) -> list[Record]:
    """The training side of one part of the corpus; every part holds out the same situations."""
    records = synthetic.generate(count, derive(settings.seed, "corpus", part), styles)
    train, _ = synthetic.split_by_situation(records, settings.seed, settings.held_out)
    return train


def held_out_corpus(settings: DemoSettings, count: int) -> list[Record]:
    """Records about situations that no stage was trained on."""
    records = synthetic.generate(count, derive(settings.seed, "corpus", "held out"))
    _, held = synthetic.split_by_situation(records, settings.seed, settings.held_out)
    return held


def build_base(out: Path, settings: DemoSettings, progress: Progress | None = None, device: str = "auto") -> Path:
    """Stages 1 and 2: corpus and tokenizer, then a small T5 warm-started on all styles mixed."""
    if out.exists():
        return out
    _tell(progress, "corpus", 0, 1)
    records = corpus(settings, "base", settings.base_prompts, STYLES)
    _tell(progress, "corpus", 1, 1)
    start = WarmStartSettings(
        scratch=settings.model,
        prompt_template=TEMPLATE,
        max_source_tokens=MAX_SOURCE_TOKENS,
        fit=settings.base_fit.model_copy(update={"seed": derive(settings.seed, "base")}),
    )
    return warm_start(records, out, start, device=device, progress=_stage(progress, "base"))


def build_adapter(
    base: Path,
    objective: str,
    out: Path,
    settings: DemoSettings,
    progress: Progress | None = None,
    device: str = "auto",
) -> Path:
    """Stage 3, once per objective: an adapter supervised on the replies that show it."""
    if out.exists():
        return out
    records = corpus(settings, objective, settings.adapter_prompts, OBJECTIVES[objective].styles)
    supervised = SupervisedSettings(
        prompt_template=TEMPLATE,
        max_source_tokens=MAX_SOURCE_TOKENS,
        lora=settings.lora,
        fit=settings.adapter_fit.model_copy(update={"seed": derive(settings.seed, "adapter", objective)}),
    )
    return train_adapter(base, records, out, supervised, device=device, progress=_stage(progress, objective))


def assemble(work: Path, folder: Path, settings: DemoSettings, key: str) -> None:
    """Stage 4: the finished parts in one bundle, which appears whole or not at all."""
    spec = BundleSpec(
        name=NAME,
        base=BaseRef(path=BASE_DIR),
        prompt_template=TEMPLATE,
        max_source_tokens=MAX_SOURCE_TOKENS,
        objectives={
            name: ObjectiveSpec(adapter=f"{ADAPTERS_DIR}/{name}", description=objective.description)
            for name, objective in OBJECTIVES.items()
        },
        profiles={
            name: ProfileSpec(weights=dict(weights), origin={"kind": "person", "note": "set by hand for the demo"})
            for name, weights in PROFILES.items()
        },
        default_profile="balanced",
    )
    with appearing(folder, replace=True) as temporary:
        for part in (BASE_DIR, ADAPTERS_DIR):
            shutil.copytree(work / part, temporary / part)
        receipt = {"key": key, "adapters": "supervised", "settings": settings.model_dump(mode="json")}
        (temporary / RECEIPT).write_text(json.dumps(receipt, indent=1) + "\n", encoding="utf-8")
        write_spec(temporary, spec)


def _key_of(folder: Path) -> str | None:
    """The key a finished demo bundle was built with; None where there is none."""
    try:
        receipt = json.loads((folder / RECEIPT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return str(receipt.get("key")) if (folder / BUNDLE_FILE).is_file() and isinstance(receipt, dict) else None


def _check_target(folder: Path) -> None:
    if folder.is_dir() and (_key_of(folder) is not None or not any(folder.iterdir())):
        return
    if folder.exists():
        raise DemoError(f"folder is {folder.name!r}, which holds something else; name a new folder", param="folder")


def _open_work(work: Path, key: str) -> None:
    """The folder of a build on its way; one of other settings is thrown away."""
    stamp = work / "key"
    if not stamp.is_file() or stamp.read_text(encoding="utf-8") != key:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        stamp.write_text(key, encoding="utf-8")
    clear_leftovers(work)
    (work / ADAPTERS_DIR).mkdir(exist_ok=True)
    clear_leftovers(work / ADAPTERS_DIR)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One build of a folder at a time; a second process waits, and then finds it built."""
    from filelock import FileLock  # comes with huggingface_hub

    with FileLock(folder.with_name(f".{folder.name}.lock")):
        yield


@contextmanager
def _threads(threads: int | None, device: str) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    on_cpu = device == "cpu" or not torch.cuda.is_available()
    torch.set_num_threads(threads or (fastest_threads(before) if on_cpu else before))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fastest_threads(most: int) -> int:
    """1 or `most`, whichever does small products faster at this moment.

    torch's threads wait for each other after every product. Where other programs want the cores too, one thread waits
    for nobody: on two busy cores a training step took 0.25 s with one thread and 2 s with two.
    """
    import torch

    before = torch.get_num_threads()
    a, b = torch.ones(512, 128), torch.ones(128, 384)
    best, fewest = float("inf"), 1
    try:
        for count in dict.fromkeys((1, max(1, min(most, os.cpu_count() or 1)))):
            torch.set_num_threads(count)
            torch.relu(a @ b)  # wakes the threads up
            start, rounds = time.perf_counter(), 0
            # Threads that get into each other's way do so badly: no need to wait for the end of it.
            while rounds < 100 and time.perf_counter() - start < 2 * best:
                torch.relu(a @ b)
                rounds += 1
            took = (time.perf_counter() - start) * 100 / rounds
            if took < best:
                best, fewest = took, count
    finally:
        torch.set_num_threads(before)
    return fewest


def _stage(progress: Progress | None, name: str) -> Callable[[int, int, float], None] | None:
    return None if progress is None else lambda done, total, loss: progress(name, done, total)


def _tell(progress: Progress | None, stage: str, done: int, total: int) -> None:
    if progress is not None:
        progress(stage, done, total)
