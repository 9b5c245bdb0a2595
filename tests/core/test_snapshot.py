"""What is loaded and what is hashed are one and the same, whatever is renamed or written meanwhile."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from emorl_core.bundles.bundle import ADAPTERS_DIR, BASE_DIR, BUNDLE_FILE, BundleSpec, read_spec, write_spec
from emorl_core.bundles.snapshot import Changed, Hashes, Snapshot, steadily
from emorl_core.bundles.stored_scorers import load_scorers, store_scorers
from emorl_core.ensemble import Ensemble
from emorl_core.errors import BundleError, UnsupportedModel
from emorl_core.files.hashes import folder_hash
from emorl_core.models.checkpoint import Checkpoint
from emorl_core.models.registry import load_model
from emorl_core.scorers import Context, build_scorer
from tests.builders import OBJECTIVES
from tests.learn.scorer_models import classifier

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def bundle(plain_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(plain_bundle, tmp_path / "bundle"))


@pytest.fixture
def other(bundle: Path, tmp_path: Path) -> Path:
    """The same shapes with other numbers, base and adapters, and another template."""
    folder = Path(shutil.copytree(bundle, tmp_path / "other"))
    for file in (folder / BASE_DIR / "model.safetensors", *(folder / ADAPTERS_DIR).glob(f"*/{WEIGHTS}")):
        save_file({name: tensor * 1.5 for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    spec = read_spec(folder / BUNDLE_FILE)
    write_spec(folder, BundleSpec.model_validate({**spec.model_dump(), "prompt_template": "{prompt} => "}))
    return folder


def hashes_on_disk(folder: Path) -> Hashes:
    return Hashes(
        hashlib.sha256((folder / BUNDLE_FILE).read_bytes()).hexdigest(),
        folder_hash(folder / BASE_DIR),
        {name: folder_hash(folder / ADAPTERS_DIR / name) for name in OBJECTIVES},
    )


def answer(ensemble: Ensemble) -> str:
    return ensemble.generate("I can't keep up at work.", max_new_tokens=20, min_new_tokens=20).text


def swap(one: Path, other: Path) -> None:
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


def test_hashes_are_those_that_older_receipts_have(bundle: Path) -> None:
    assert Ensemble.load(bundle, hashed=True).hashes == hashes_on_disk(bundle)
    assert Ensemble.load(bundle).hashes is None


def test_a_bundle_renamed_into_place_between_any_two_reads_is_not_mixed_in(
    bundle: Path, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the base, before an adapter, before the tokenizer, before the hashes: always the one that was opened."""
    import emorl_core.loading

    kept = shutil.copytree(bundle, bundle.with_name("kept"))
    expected, text = hashes_on_disk(kept), answer(Ensemble.load(kept))
    steps = ("load_model", "read_peft", "HuggingFaceTokenizer", "Snapshot.hashes")
    for step in steps:
        with monkeypatch.context() as patched:
            owner = Snapshot if step == "Snapshot.hashes" else emorl_core.loading
            name = step.rpartition(".")[2]
            original = getattr(owner, name)
            calls: list[int] = []

            def swapping(*args, original=original, calls=calls, **options):
                if not calls:
                    swap(bundle, other)
                calls.append(1)
                return original(*args, **options)

            patched.setattr(owner, name, swapping)
            ensemble = Ensemble.load(bundle, hashed=True)
        assert calls, step
        assert (ensemble.hashes, answer(ensemble)) == (expected, text), step
        assert hashes_on_disk(bundle) != expected, "it was swapped indeed"
        swap(bundle, other)


CHANGES: dict[str, Callable[[Path, Path], object]] = {
    "an adapter's folder": lambda ours, theirs: swap(
        ours / ADAPTERS_DIR / "empathy", theirs / ADAPTERS_DIR / "empathy"
    ),
    "all adapters": lambda ours, theirs: swap(ours / ADAPTERS_DIR, theirs / ADAPTERS_DIR),
    "the base": lambda ours, theirs: swap(ours / BASE_DIR, theirs / BASE_DIR),
    "a file by renaming": lambda ours, theirs: swap(
        ours / ADAPTERS_DIR / "empathy" / WEIGHTS, theirs / ADAPTERS_DIR / "empathy" / WEIGHTS
    ),
    "a file by writing into it": lambda ours, theirs: shutil.copyfile(
        theirs / BASE_DIR / "model.safetensors", ours / BASE_DIR / "model.safetensors"
    ),
    "the spec": lambda ours, theirs: shutil.copyfile(theirs / BUNDLE_FILE, ours / BUNDLE_FILE),
    "back and forth": lambda ours, theirs: [swap(ours / BASE_DIR, theirs / BASE_DIR) for _ in range(2)],
    "a new file": lambda ours, theirs: (ours / BASE_DIR / "generation_config.json").write_text(
        '{"eos_token_id": [1, 5]}'
    ),
    "a file less": lambda ours, theirs: (ours / BASE_DIR / "generation_config.json").unlink(missing_ok=True),
}


@pytest.mark.parametrize("change", [name for name in CHANGES if name != "a file less"])
def test_what_is_changed_inside_the_bundle_meanwhile_is_read_once_more(
    change: str, bundle: Path, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import emorl_core.loading

    read = emorl_core.loading.read_peft
    calls: list[int] = []

    def changing(folder: Path, name: str) -> object:
        calls.append(1)
        if len(calls) == 2:  # the base and one adapter are in memory
            CHANGES[change](bundle, other)
        return read(folder, name)

    monkeypatch.setattr(emorl_core.loading, "read_peft", changing)
    ensemble = Ensemble.load(bundle, hashed=True)
    assert len(calls) == 2 * len(OBJECTIVES), "once more"
    monkeypatch.undo()
    assert ensemble.hashes == hashes_on_disk(bundle)
    assert answer(ensemble) == answer(Ensemble.load(bundle))


def test_scorers_are_those_of_the_bundle_that_was_opened(bundle: Path, other: Path, tmp_path: Path) -> None:
    spec = {"kind": "cross_encoder", "model": "judge"}
    for folder, seed in ((bundle, 1), (other, 2)):
        classifier(tmp_path / f"{seed}" / "judge", ["bad", "good"], seed=seed)
        scorers, stored = store_scorers(folder, {"empathy": spec}, tmp_path / f"{seed}")
        update = {"scorers": scorers, "scorer_files": stored}
        write_spec(folder, read_spec(folder / BUNDLE_FILE).model_copy(update=update))
    texts = ["i feel sad"], ["you feel tired"]
    with Snapshot.open(bundle) as files:
        swap(bundle, other)
        judge = load_scorers(files.inside)["empathy"]
        files.check()
        assert judge is not None
        assert judge(*texts) == build_scorer(spec, Context("cpu", tmp_path / "1"))(*texts)
        (place,) = files.bundle.spec.scorer_files
        (other / place / "more.txt").write_text("x")
        with pytest.raises(Changed, match=place):
            files.check()


def test_a_bundle_that_never_holds_still_is_refused_in_one_line(bundle: Path) -> None:
    tries: list[int] = []

    def read(files: Snapshot) -> None:
        tries.append(1)
        (bundle / BASE_DIR / "config.json").write_text(f"{len(tries)}")

    with pytest.raises(Changed, match=r"config\.json: was changed while the bundle was read") as caught:
        steadily(bundle, read)
    assert len(tries) == 5
    assert str(bundle / BASE_DIR) in caught.value.message
    assert "/proc" not in caught.value.message


def test_what_looks_like_a_fault_may_be_half_of_a_change(bundle: Path, other: Path) -> None:
    """A shape that does not fit, because the base is old and the adapter new."""
    tries: list[int] = []

    def read(files: Snapshot) -> str:
        tries.append(1)
        if len(tries) == 1:
            swap(bundle / BASE_DIR, other / BASE_DIR)
            raise UnsupportedModel("does not fit")
        return "read"

    assert steadily(bundle, read) == "read"

    def broken(files: Snapshot) -> None:
        raise UnsupportedModel("does not fit")

    with pytest.raises(UnsupportedModel, match="does not fit"):
        steadily(bundle, broken)


def test_what_is_served_is_no_map_of_the_files(bundle: Path, other: Path) -> None:
    """Of a mapped file, what is copied over it later would be served, under the hash of what was there."""
    ensemble = Ensemble.load(bundle, hashed=True)
    before = answer(ensemble)
    for file in (Path(BASE_DIR, "model.safetensors"), *(Path(ADAPTERS_DIR, name, WEIGHTS) for name in OBJECTIVES)):
        shutil.copyfile(other / file, bundle / file)
    assert answer(ensemble) == before
    tensor = Checkpoint(bundle / BASE_DIR, {}, device=torch.device("cpu"), dtype=torch.float32).tensor(
        "decoder.final_layer_norm.weight", (32,)
    )
    copy = tensor.clone()
    with open(bundle / BASE_DIR / "model.safetensors", "r+b") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        file.write(b"\0" * 100_000)
    assert torch.equal(tensor, copy)


def test_messages_name_the_folder_as_people_do(bundle: Path) -> None:
    (bundle / BASE_DIR / "config.json").write_text("{")
    with pytest.raises(UnsupportedModel) as caught:
        Ensemble.load(bundle)
    assert caught.value.message.startswith(f"{bundle / BASE_DIR / 'config.json'}: cannot be read as JSON")
    assert str(caught.value) == caught.value.message
    (bundle / BASE_DIR / "config.json").unlink()
    with pytest.raises(UnsupportedModel, match=r"no config\.json") as caught:
        Ensemble.load(bundle)
    assert "/proc" not in caught.value.message
    shutil.rmtree(bundle / BASE_DIR)
    with pytest.raises(BundleError, match=r"base\.path is 'base'; there is no such folder in the bundle"):
        Ensemble.load(bundle)
    with pytest.raises(BundleError, match="no such folder, and not a hub id"):
        Ensemble.load(bundle / "nowhere")


@pytest.mark.parametrize(
    "place",
    ["base/tokenizer.json", "base/model.safetensors", "base/config.json", "base/extra", "adapters/empathy/extra"],
)
@pytest.mark.parametrize("kind", ["fifo", "device"])
def test_a_fifo_or_a_device_is_refused_at_once(place: str, kind: str, bundle: Path) -> None:
    path = bundle / place
    path.unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(BundleError, match=f"{place}: is a {'FIFO' if kind == 'fifo' else 'device'}"):
        Ensemble.load(bundle)


def test_a_base_that_may_not_be_read_is_not_called_missing(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """safetensors says "No such file" of it."""
    opening = os.open

    def refuse(path: Path, *options: int, **more: object) -> int:
        if str(path).endswith("model.safetensors"):
            raise PermissionError(13, "Permission denied", str(path))
        return opening(path, *options, **more)

    monkeypatch.setattr("os.open", refuse)  # the suite may run as a user that may read everything
    with pytest.raises(
        UnsupportedModel, match=r"model\.safetensors: cannot be read as safetensors: .*Permission denied"
    ):
        load_model(bundle / BASE_DIR, device=torch.device("cpu"), dtype=torch.float32)


def test_links_as_the_hubs_cache_has_them_are_followed(bundle: Path, tmp_path: Path) -> None:
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for number, path in enumerate(sorted((bundle / BASE_DIR).iterdir())):
        path.rename(blobs / str(number))
        path.symlink_to(Path("..", "..", "blobs", str(number)))
    (bundle / ADAPTERS_DIR / "empathy").rename(tmp_path / "elsewhere")
    (bundle / ADAPTERS_DIR / "empathy").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (bundle / BASE_DIR / "nowhere").symlink_to("nothing")
    assert Ensemble.load(bundle, hashed=True).hashes == hashes_on_disk(bundle)


def test_a_file_that_goes_away_meanwhile_is_a_change(bundle: Path) -> None:
    tries: list[int] = []

    def read(files: Snapshot) -> None:
        tries.append(1)
        if len(tries) == 1:
            (bundle / ADAPTERS_DIR / "empathy" / WEIGHTS).unlink()

    steadily(bundle, read)
    assert len(tries) == 2

    def removed(files: Snapshot) -> None:
        shutil.rmtree(bundle / ADAPTERS_DIR / "empathy")

    with pytest.raises(BundleError, match=r"objectives\.empathy\.adapter"):
        steadily(bundle, removed)


def test_descriptors_are_given_back(bundle: Path) -> None:
    def count() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    Ensemble.load(bundle, hashed=True)
    before = count()
    for _ in range(3):
        Ensemble.load(bundle, hashed=True)
    (bundle / BASE_DIR / "config.json").write_text("{")
    for _ in range(3):
        with pytest.raises(UnsupportedModel):
            Ensemble.load(bundle, hashed=True)
    assert count() == before


@pytest.mark.slow
@pytest.mark.parametrize("what", ["", BASE_DIR, f"{ADAPTERS_DIR}/empathy"], ids=["bundle", "base", "adapter"])
def test_under_renames_at_random_moments_every_load_is_what_it_says(what: str, bundle: Path, other: Path) -> None:
    """The whole folder is swapped all the time; a part of it now and then."""
    texts = {}
    for folder in (bundle, other):
        for base in (bundle, other):
            made = shutil.copytree(folder, bundle.with_name("made"))
            shutil.rmtree(made / (what or BASE_DIR))
            shutil.copytree(base / (what or BASE_DIR), made / (what or BASE_DIR))
            ensemble = Ensemble.load(made, hashed=True)
            assert ensemble.hashes is not None
            texts[str(ensemble.hashes)] = answer(ensemble)
            shutil.rmtree(made)
    stop, chance = threading.Event(), random.Random(0)

    def rename() -> None:
        while not stop.wait(chance.uniform(0, 0.02 if not what else 0.6)):
            swap(bundle / what, other / what)

    thread = threading.Thread(target=rename)
    thread.start()
    try:
        loaded = 0
        for _ in range(12):
            try:
                ensemble = Ensemble.load(bundle, hashed=True)
            except BundleError:  # between two renames, or never still
                continue
            loaded += 1
            assert answer(ensemble) == texts[str(ensemble.hashes)]
    finally:
        stop.set()
        thread.join()
    assert loaded > 0


@pytest.mark.parametrize("place", [".", ADAPTERS_DIR, BASE_DIR])
def test_a_folder_that_is_no_adapter_is_not_called_by_its_descriptor(place: str, bundle: Path) -> None:
    """Of a bundle that is held open: `.` is that descriptor's own path."""
    spec = read_spec(bundle / BUNDLE_FILE).model_dump()
    spec["objectives"]["empathy"]["adapter"] = place
    write_spec(bundle, BundleSpec.model_validate(spec))
    with pytest.raises(BundleError) as caught:
        Ensemble.load(bundle)
    assert caught.value.message == (
        "adapter 'empathy': its folder has no adapter_config.json; allowed: a PEFT LoRA folder"
    )
