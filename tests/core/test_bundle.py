"""`bundle.yaml`: what it says, and the one line a person reads when it says something wrong."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from emorl_core.bundle import (
    BUNDLE_FILE,
    BaseRef,
    Bundle,
    BundleSpec,
    ObjectiveSpec,
    ProfileSpec,
    folder_hash,
    read_spec,
    replacing,
    write_spec,
)
from emorl_core.errors import BundleError

GOOD: dict[str, Any] = {
    "format": "emorl-bundle/1",
    "name": "counselor-demo",
    "base": {"path": "base"},
    "prompt_template": "{prompt} [SEP] ",
    "max_source_tokens": 128,
    "objectives": {
        "reflection": {"adapter": "adapters/reflection", "description": "gives the client's meaning back"},
        "empathy": {"adapter": "adapters/empathy"},
    },
    "profiles": {"balanced": {"weights": {"reflection": 0.6, "empathy": 0.4}, "origin": {"by": "a person"}}},
    "default_profile": "balanced",
}


def written(folder: Path, raw: object) -> Path:
    path = folder / BUNDLE_FILE
    path.write_text(raw if isinstance(raw, str) else yaml.safe_dump(raw, sort_keys=False), encoding="utf-8")
    return path


def changed(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    raw: dict[str, Any] = copy.deepcopy(GOOD)
    change(raw)
    return raw


def test_the_documented_example_reads_as_it_is(tmp_path: Path) -> None:
    spec = read_spec(written(tmp_path, GOOD))
    assert spec.lanes == ("base", "reflection", "empathy")
    assert spec.profile_weights() == {"balanced": {"reflection": 0.6, "empathy": 0.4}}
    assert spec.profiles["balanced"].origin == {"by": "a person"}
    assert spec.objectives["empathy"].description == ""
    assert spec.wrap("a {brace} and {prompt}") == "a {brace} and {prompt} [SEP] "


def test_what_is_written_reads_back_the_same(tmp_path: Path) -> None:
    spec = BundleSpec.model_validate(GOOD)
    write_spec(tmp_path, spec)
    assert read_spec(tmp_path / BUNDLE_FILE) == spec
    assert [path.name for path in tmp_path.iterdir()] == [BUNDLE_FILE], "no temporary file is left"
    assert list(yaml.safe_load((tmp_path / BUNDLE_FILE).read_text()))[:3] == ["format", "name", "base"]


def test_the_short_form_has_defaults(tmp_path: Path) -> None:
    raw = {"name": "x", "base": {"hub": "google-t5/t5-base", "revision": "main"}, "objectives": {}}
    spec = read_spec(written(tmp_path, raw))
    assert (spec.prompt_template, spec.max_source_tokens, spec.default_profile) == ("{prompt}", 512, None)
    assert spec.base.hub == "google-t5/t5-base"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.update(max_tokens=3), "unknown key 'max_tokens'"),
        (lambda r: r["base"].update(folder="x"), "unknown key 'base.folder'"),
        (lambda r: r["objectives"]["empathy"].update(rank=8), "unknown key 'objectives.empathy.rank'"),
        (lambda r: r.update(format="emorl-bundle/9"), "format: "),
        (lambda r: r.pop("name"), "name: Field required"),
        (lambda r: r.update(name="a b"), "name: "),
        (lambda r: r["base"].update(hub="a/b"), "base: give exactly one of path and hub"),
        (lambda r: r.update(base={}), "base: give exactly one of path and hub"),
        (lambda r: r["base"].update(revision="main"), "base: revision goes with hub"),
        (lambda r: r.update(prompt_template="no place"), "prompt_template: must contain {prompt} exactly once (found 'no place')"),
        (lambda r: r.update(prompt_template="{prompt}{prompt}"), "must contain {prompt} exactly once"),
        (lambda r: r.update(max_source_tokens=0), "max_source_tokens: "),
        (lambda r: r["objectives"].update(base={"adapter": "x"}), "objectives.base: the name is taken by the bare model"),
        (lambda r: r["objectives"].update({"a/b": {"adapter": "x"}}), "objectives.a/b: "),
        (lambda r: r["profiles"]["balanced"]["weights"].update(humour=1), "profiles.balanced: weights: unknown objective 'humour'"),
        (lambda r: r["profiles"]["balanced"]["weights"].update(empathy=-1), "negative weights are allowed only with normalize: false"),
        (lambda r: r["profiles"]["balanced"].update(weights={}), "profiles.balanced: weights: all are zero"),
        (lambda r: r.update(default_profile="other"), "default_profile 'other' is unknown; profiles: balanced"),
        (lambda r: r.update(profiles={}), "default_profile 'balanced' is unknown; profiles: none"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_key(
    change: Callable[[dict[str, Any]], object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(BundleError) as caught:
        read_spec(written(tmp_path, changed(change)))
    assert message in caught.value.message
    assert BUNDLE_FILE in caught.value.message
    assert "\n" not in caught.value.message
    assert "pydantic" not in caught.value.message


def test_every_fault_is_told_at_once(tmp_path: Path) -> None:
    raw = changed(lambda r: (r.pop("name"), r.update(max_source_tokens=-1, colour="red")))
    with pytest.raises(BundleError) as caught:
        read_spec(written(tmp_path, raw))
    assert [word in caught.value.message for word in ("name", "max_source_tokens", "'colour'")] == [True] * 3


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ("- a\n- b\n", "must be a mapping of keys, found list"),
        ("", "must be a mapping of keys, found NoneType"),
        ("a: [", "cannot be read as YAML"),
        ("a: !!python/object/apply:os.getcwd []", "cannot be read as YAML"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused_in_one_line(raw: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(BundleError) as caught:
        read_spec(written(tmp_path, raw))
    assert message in caught.value.message
    assert "\n" not in caught.value.message


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / BUNDLE_FILE).write_bytes(b"\xff\xfe\x00name")
    with pytest.raises(BundleError, match="cannot be read as YAML"):
        read_spec(tmp_path / BUNDLE_FILE)


def test_a_missing_file_or_folder_says_what_a_bundle_is(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no such file; a bundle folder holds a bundle\.yaml"):
        Bundle.open(tmp_path)
    with pytest.raises(BundleError, match="no such folder, and not a hub id of the form owner/name"):
        Bundle.open(tmp_path / "nowhere")


def test_a_hub_id_that_cannot_be_fetched_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))  # empty, and the tests are offline
    with pytest.raises(BundleError, match="hub id 'nobody/nothing-here': cannot be fetched"):
        Bundle.open("nobody/nothing-here")


@pytest.mark.parametrize("where", ["../base", "/etc", "base/../../x"])
def test_paths_stay_inside_the_bundle(where: str, tmp_path: Path) -> None:
    written(tmp_path, changed(lambda r: r.update(base={"path": where})))
    with pytest.raises(BundleError, match="allowed: a path inside the bundle") as caught:
        Bundle.open(tmp_path).base_folder()
    assert caught.value.param == "base.path"


def test_a_folder_that_is_not_there_is_named_by_its_key(tmp_path: Path) -> None:
    bundle = Bundle.open(written(tmp_path, GOOD).parent)
    with pytest.raises(
        BundleError, match=r"objectives\.empathy\.adapter is 'adapters/empathy'; there is no such folder"
    ):
        bundle.adapter_folder("empathy")
    (tmp_path / "adapters" / "empathy").mkdir(parents=True)
    assert bundle.adapter_folder("empathy") == tmp_path / "adapters" / "empathy"


def test_a_reader_sees_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD)
    before = path.read_text()

    def fail() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half of")
            assert path.read_text() == before
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == before
    assert [each.name for each in tmp_path.iterdir()] == [BUNDLE_FILE]
    with replacing(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"


def test_a_folder_hash_changes_with_names_and_contents(tmp_path: Path) -> None:
    def made(name: str, text: str) -> str:
        folder = tmp_path / f"{name}-{text}"
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(text)
        return folder_hash(folder)

    assert made("a", "1") == made("a", "1")
    assert len({made("a", "1"), made("a", "2"), made("b", "1")}) == 3


def test_specs_are_frozen() -> None:
    spec = BundleSpec(name="x", base=BaseRef(path="b"), objectives={"o": ObjectiveSpec(adapter="a")})
    with pytest.raises(ValueError, match="frozen"):
        spec.name = "y"  # type: ignore[misc]
    assert ProfileSpec(weights={"o": 1}).weights == {"o": 1.0}
