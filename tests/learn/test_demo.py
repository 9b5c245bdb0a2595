"""The demo builder on a model of a few thousand parameters: stages, resuming, caching, refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from emorl_core.bundles.bundle import Bundle
from emorl_core.ensemble import Ensemble
from emorl_core.files.hashes import folder_hash
from training.data.synthetic.tables import FOLDER as GRAMMAR
from training.pipeline import demo
from training.pipeline.base import warm_start_records
from training.pipeline.demo import OBJECTIVES, DemoSettings, build_demo, build_key
from training.pipeline.demo_folder import DemoError
from training.pipeline.prepare import load_data
from training.recipe.recipe import load_recipe
from training.rl.settings import LoraSettings, RlSettings, StopSettings
from training.warm_start.fit import FitSettings
from training.warm_start.scratch_t5 import ScratchSettings

ROOT = Path(__file__).parents[2]
MICRO = DemoSettings(
    base_prompts=120,
    prompts=120,
    model=ScratchSettings(vocab_size=800, d_model=32, d_ff=32, heads=4, layers=1, decoder_layers=1),
    base_fit=FitSettings(steps=8, batch_size=8, learning_rate=1e-2, checkpoint_every=4),
    lora=LoraSettings(rank=2, alpha=8, dropout=0.0),
    rl=RlSettings(
        prompts_per_step=2,
        samples_per_prompt=2,
        max_new_tokens=6,
        learning_rate=1e-2,
        validate_every=2,
        validation_prompts=4,
        stop=StopSettings(rule="steps", max_steps=4),
    ),
)
STAGES = ["corpus", "base", "reinforcement"]


class Killed(BaseException):
    """What a kill looks like from inside: nothing catches it."""


class Watch:
    """Notes the stages that did any work; raises `Killed` at one of their steps."""

    def __init__(self, kill_at: tuple[str, int] | None = None) -> None:
        self.kill_at = kill_at
        self.stages: list[str] = []

    def __call__(self, stage: str, done: int, total: int) -> None:
        assert 0 <= done <= total
        if stage not in self.stages:
            self.stages.append(stage)
        if self.kill_at == (stage, done):
            raise Killed


def build(folder: Path, watch: Watch | None = None, settings: DemoSettings = MICRO, *, rebuild: bool = False) -> Path:
    return build_demo(folder, settings=settings, progress=watch, rebuild=rebuild, device="cpu", threads=1)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("demo") / "bundle")


@pytest.fixture(scope="module")
def ensemble(built: Path) -> Ensemble:
    return Ensemble.load(built, device="cpu")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def parts(folder: Path) -> dict[str, str]:
    """What serves; the report beside it holds times."""
    return {part: folder_hash(folder / part) for part in ("adapters", "adapters-last", "base")}


def test_the_bundle_is_complete_and_nothing_else_is_left(built: Path) -> None:
    assert names(built) == ["adapters", "adapters-last", "base", "bundle.yaml", "demo.json", "training.json"]
    assert names(built.parent) == ["bundle"]
    spec = Bundle.open(built).spec
    assert spec.name == "counselor-demo"
    assert tuple(spec.objectives) == ("reflection", "empathy", "fluency")
    assert all(objective.description for objective in spec.objectives.values())
    assert (spec.prompt_template, spec.max_source_tokens) == ("{prompt} [SEP] ", 128)
    assert spec.default_profile == "balanced"
    assert len(spec.profiles) >= 3
    text = "".join(path.read_text() for path in built.rglob("*") if path.suffix in (".json", ".yaml"))
    assert str(built.parent) not in text  # no path of this machine


def test_the_engine_serves_it(ensemble: Ensemble) -> None:
    done = ensemble.generate("I can't keep up at work.", weights={"reflection": 1.0}, max_new_tokens=4)
    assert done.completion_tokens <= 4
    assert ensemble.objectives == tuple(OBJECTIVES)


def test_a_finished_build_is_found_again_without_work(built: Path) -> None:
    before, watch = folder_hash(built), Watch()
    assert build(built, watch) == built
    assert watch.stages == []
    assert folder_hash(built) == before


def test_a_bundle_in_the_cache_is_copied_instead_of_trained_again(built: Path, tmp_path: Path) -> None:
    def copy(folder: Path, settings: DemoSettings = MICRO, **options: bool) -> list[str]:
        watch = Watch()
        build_demo(folder, settings=settings, progress=watch, cached=built, device="cpu", threads=1, **options)
        return watch.stages

    assert copy(tmp_path / "bundle") == []
    assert folder_hash(tmp_path / "bundle") == folder_hash(built)
    assert names(tmp_path) == ["bundle"]
    (tmp_path / "bundle" / "bundle.yaml").write_text("changed")
    assert Bundle.open(built).spec.name == "counselor-demo"  # it is a copy
    assert copy(tmp_path / "anew", rebuild=True) == STAGES
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(DemoError, match="holds something else"):
        copy(tmp_path / "mine")


@pytest.mark.parametrize(
    ("kill_at", "rest"),
    [(("base", 6), STAGES), (("reinforcement", 1), STAGES[::2]), (("reinforcement", 4), STAGES[::2])],
)
def test_a_killed_build_does_only_what_is_left(
    built: Path, tmp_path: Path, kill_at: tuple[str, int], rest: list[str]
) -> None:
    folder = tmp_path / "bundle"
    with pytest.raises(Killed):
        build(folder, Watch(kill_at))
    assert not folder.exists()  # never a half-written bundle
    watch = Watch()
    build(folder, watch)
    assert watch.stages == rest
    assert parts(folder) == parts(built)  # to the same bits
    assert names(tmp_path) == ["bundle"]


def test_a_kill_before_the_last_rename_leaves_no_bundle_and_no_work_to_repeat(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "bundle"

    def killed(*args: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(demo, "publish", killed)
        with pytest.raises(Killed):
            build(folder)
    assert not folder.exists()
    watch = Watch()
    build(folder, watch)
    assert watch.stages == []
    assert parts(folder) == parts(built)


def test_other_settings_replace_an_older_demo(tmp_path: Path) -> None:
    quick = {
        "base_fit": FitSettings(steps=1, batch_size=4),
        "rl": MICRO.rl.model_copy(update={"stop": StopSettings(rule="steps", max_steps=1)}),
    }
    first, second = (MICRO.model_copy(update={**quick, "seed": seed}) for seed in (1, 2))
    folder = tmp_path / "bundle"
    for settings in (first, second):
        build(folder, settings=settings)
        assert json.loads((folder / "demo.json").read_text())["key"] == build_key(settings)
    watch = Watch()
    build(folder, watch, settings=second, rebuild=True)
    assert watch.stages == STAGES
    assert names(tmp_path) == ["bundle"]


def test_a_folder_with_something_else_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    for rebuild in (False, True):
        with pytest.raises(DemoError, match=r"folder is 'mine', which holds something else; name a new folder"):
            build(tmp_path / "mine", rebuild=rebuild)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    assert names(tmp_path) == ["mine"]


def test_the_key_follows_the_settings_and_every_file_of_the_grammar(tmp_path: Path) -> None:
    assert build_key(MICRO) == build_key(MICRO.model_copy())
    assert build_key(MICRO) != build_key(MICRO.model_copy(update={"seed": 1}))
    copy = tmp_path / "synthetic"
    shutil.copytree(GRAMMAR, copy, ignore=shutil.ignore_patterns("__pycache__"))
    assert build_key(MICRO, copy) == build_key(MICRO)
    files = sorted(copy.iterdir())
    assert {"grammar.py", "domains.yaml", "words.yaml", "frames.yaml", "person.yaml"} <= {file.name for file in files}
    for file in files:
        before = file.read_bytes()
        file.write_bytes(before + b"# edited\n")
        assert build_key(MICRO, copy) != build_key(MICRO), file.name
        file.write_bytes(before)


def test_no_stage_trains_on_held_out_situations() -> None:
    """Not in the same words, and not in others: the base would know the story."""
    recipe = DemoSettings(prompts=400, base_prompts=2000).recipe()
    data = load_data(recipe, ROOT)
    held = {record.extras["key"] for part in ("validation", "test") for record in data.parts[part]}
    assert len(held) > 50
    assert not held & {record.extras["key"] for record in data.parts["train"]}
    assert recipe.base.warm_start is not None
    warm = warm_start_records(recipe.base.warm_start, ROOT, data, recipe.data.split_by)
    assert len(warm) > 1500
    assert not held & {record.extras["key"] for record in warm}


def test_the_demo_is_the_recipe_of_the_project() -> None:
    assert load_recipe(ROOT / "recipes" / "demo.yaml") == DemoSettings().recipe()
