"""The tiny demo bundle, built from scratch on the user's machine: a synthetic corpus, a tokenizer, a small T5
warm-started on it, and one adapter per objective trained by reinforcement learning.

It is `recipes/demo.yaml` with a cache: a killed build resumes where it stopped, and a finished one is found by its key.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import Field

from emorl_core.bundles.bundle import BASE_DIR
from emorl_core.files.writing import appearing, clear_leftovers
from emorl_core.kinds import Section
from training.data.synthetic.tables import FOLDER as GRAMMAR
from training.pipeline.demo_folder import alone, check_target, key_of, write_receipt
from training.progress import Progress
from training.recipe.recipe import Recipe, parse_recipe
from training.rl.settings import LoraSettings, RlSettings, StopSettings
from training.warm_start.fit import FitSettings
from training.warm_start.scratch_t5 import ScratchSettings

NAME = "counselor-demo"
_FORMAT = 4  # incremented when code outside the grammar changes the result of a build

# Objective -> description. Its scorer is lexical_<objective>.
OBJECTIVES: Mapping[str, str] = {
    "reflection": "gives the client's meaning back, in the client's own words",
    "empathy": "names the feeling and says that it makes sense",
    "fluency": "says it in one whole, plain, well-formed sentence",
}
PROFILES: Mapping[str, Mapping[str, float]] = {
    "balanced": {"reflection": 0.4, "empathy": 0.4, "fluency": 0.2},
    "reflective": {"reflection": 0.8, "empathy": 0.1, "fluency": 0.1},
    "warm": {"reflection": 0.2, "empathy": 0.7, "fluency": 0.1},
    "plain": {"reflection": 0.1, "empathy": 0.1, "fluency": 0.8},
}


class DemoSettings(Section):
    """Everything a demo build depends on. The defaults are those of `recipes/demo.yaml`."""

    seed: int = Field(0, ge=0)
    """Seed of all random draws of the build."""
    base_prompts: int = Field(24_000, ge=50)
    """Number of distinct synthetic prompts that the base is trained on, each with a reply in one style."""
    prompts: int = Field(3_000, ge=60)
    """Number of distinct synthetic prompts for reinforcement learning, split by situation."""
    model: ScratchSettings = ScratchSettings()
    """Shape of the base."""
    base_fit: FitSettings = FitSettings(
        steps=800, batch_size=32, learning_rate=3e-3, warmup_steps=40, checkpoint_every=200
    )
    """Supervised training of the base."""
    lora: LoraSettings = LoraSettings(dropout=0.0)
    """Settings of the adapters."""
    rl: RlSettings = RlSettings(
        prompts_per_step=16,
        samples_per_prompt=4,
        max_new_tokens=40,
        learning_rate=2e-3,
        validate_every=10,
        validation_prompts=64,
        stop=StopSettings(rule="steps", max_steps=40),
    )
    """Settings of reinforcement learning."""

    def recipe(self, device: str = "auto") -> Recipe:
        """The recipe of the build, as `emorl train` would read it."""
        return parse_recipe(
            {
                "name": NAME,
                "seed": self.seed,
                "base": {
                    "warm_start": {
                        "scratch": self.model.model_dump(),
                        "sources": [{"kind": "synthetic", "count": self.base_prompts, "seed": self.seed + 1}],
                        "fit": self.base_fit.model_dump(),
                    }
                },
                "data": {
                    "sources": [{"kind": "synthetic", "count": self.prompts, "seed": self.seed}],
                    "split_by": "key",
                },
                "objectives": {
                    name: {"scorer": f"lexical_{name}", "description": description}
                    for name, description in OBJECTIVES.items()
                },
                "lora": self.lora.model_dump(),
                "rl": self.rl.model_dump(),
                "profiles": {name: dict(weights) for name, weights in PROFILES.items()},
                "default_profile": "balanced",
                "compute": {"device": device},
            },
            where="demo",
        )


def build_demo(
    folder: Path,
    *,
    settings: DemoSettings | None = None,
    progress: Progress | None = None,
    rebuild: bool = False,
    cached: Path | None = None,
    device: str = "auto",
    threads: int | None = None,
) -> Path:
    """Build the demo bundle in `folder` unless it is there, and return `folder`.

    Intermediate stages are in `.<folder>.building` beside it. `rebuild`: build again even if it exists. `cached`: a
    folder that may hold the same bundle, which is then copied. `threads`: torch's threads while building; None: the
    number that measures fastest now, which on a busy machine is below the number of cores.

    Raises `DemoError` if `folder` contains anything but a demo bundle.
    """
    settings = settings or DemoSettings()
    folder = Path(folder)
    key = build_key(settings)
    if not rebuild and is_built(folder, settings):
        return folder
    check_target(folder)
    work = folder.with_name(f".{folder.name}.building")
    with alone(folder):
        if not rebuild and is_built(folder, settings):  # another process built it while this one waited
            return folder
        if not rebuild and cached is not None and is_built(cached, settings):
            publish(cached, folder, key)
            return folder
        _open_work(work, key)
        with _threads(threads, device):
            build_bundle(work, settings.recipe(device), progress)
        publish(work / BUNDLE_DIR, folder, key)
        shutil.rmtree(work, ignore_errors=True)
    return folder


def is_built(folder: Path, settings: DemoSettings | None = None) -> bool:
    """Whether `folder` contains the finished demo bundle of these settings (default: the demo's own)."""
    return key_of(folder) == build_key(settings or DemoSettings())


def build_key(settings: DemoSettings, grammar: Path = GRAMMAR) -> str:
    """The key of a build: a hash of its settings and of every file of the grammar, sources and word lists."""
    digest = hashlib.sha256(f"{_FORMAT}:{settings.model_dump_json()}".encode())
    for path in sorted(grammar.glob("*.*")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


BUNDLE_DIR, RUN_DIR = "bundle", "run"


def build_bundle(work: Path, recipe: Recipe, progress: Progress | None = None) -> None:
    """Warm start, reinforcement learning and their bundle in `work`, each resumed where an earlier call stopped."""
    from training.pipeline.bundle_out import write_bundle
    from training.pipeline.prepare import load_data
    from training.pipeline.workshop import open_workshop
    from training.rl.processes import Processes

    if (work / BUNDLE_DIR).exists():
        return
    tell = progress or (lambda stage, done, total: None)
    tell("corpus", 0, 1)
    data = load_data(recipe, work)
    tell("corpus", 1, 1)
    processes = Processes(device=recipe.compute.device)
    workshop = open_workshop(
        recipe, work, data, processes, work / BASE_DIR, progress=lambda done, total, loss: tell("base", done, total)
    )

    def report(record: Mapping[str, Any]) -> None:
        if record["event"] == "step":
            tell("reinforcement", record["step"], recipe.rl.stop.max_steps)

    trainer = workshop.trainer(work / RUN_DIR, report)
    trainer.run(resume=True)
    write_bundle(work / BUNDLE_DIR, workshop.recipe, trainer, data, workshop.base, recipe_folder=work, overwrite=False)


def publish(bundle: Path, folder: Path, key: str) -> None:
    """Move the finished bundle into place atomically, with the demo's receipt in it."""
    with appearing(folder, replace=True) as temporary:
        shutil.copytree(bundle, temporary, dirs_exist_ok=True)
        write_receipt(temporary, key, "reinforcement learning")


def _open_work(work: Path, key: str) -> None:
    """The folder of a build in progress; one with other settings is deleted."""
    stamp = work / "key"
    if not stamp.is_file() or stamp.read_text(encoding="utf-8") != key:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        stamp.write_text(key, encoding="utf-8")
    clear_leftovers(work)


@contextmanager
def _threads(threads: int | None, device: str) -> Iterator[None]:
    import torch

    from emorl_core.machine.threads import fastest_threads

    before = torch.get_num_threads()
    on_cpu = device == "cpu" or not torch.cuda.is_available()
    torch.set_num_threads(threads or (fastest_threads(before) if on_cpu else before))
    try:
        yield
    finally:
        torch.set_num_threads(before)
