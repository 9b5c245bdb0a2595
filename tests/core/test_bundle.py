"""`bundle.yaml`: what it says, and the one line a person reads when it says something wrong."""

from __future__ import annotations

import copy
import datetime
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from emorl_core.bundles.bundle import (
    BUNDLE_FILE,
    FIRST_LINE,
    LAST_LINE,
    BaseRef,
    Bundle,
    BundleSpec,
    ObjectiveSpec,
    read_spec,
    write_spec,
)
from emorl_core.bundles.profiles import ProfileSpec
from emorl_core.config import explain
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


def test_a_file_that_was_cut_short_is_noticed_wherever_it_was_cut(tmp_path: Path) -> None:
    """Most cuts leave good YAML: a bundle without its last profile, or without its last objective."""
    spec = BundleSpec.model_validate({key: value for key, value in GOOD.items() if key != "default_profile"})
    write_spec(tmp_path, spec)
    path = tmp_path / BUNDLE_FILE
    whole = path.read_bytes()
    assert whole.decode().splitlines()[0] == FIRST_LINE
    assert whole.decode().splitlines()[-1] == LAST_LINE
    for length in range(len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(BundleError, match=r"is cut short|must be a mapping"):
            read_spec(path)
    path.write_bytes(whole[:-1])
    assert read_spec(path) == spec, "only the last line end is missing"


def test_a_marked_file_may_be_edited_by_hand(tmp_path: Path) -> None:
    spec = BundleSpec.model_validate(GOOD)
    write_spec(tmp_path, spec)
    path = tmp_path / BUNDLE_FILE
    path.write_text(path.read_text().replace("counselor-demo", "renamed") + "\n# a note\n", newline="\r\n")
    assert read_spec(path).name == "renamed"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text())))  # a tool that drops comments
    assert read_spec(path).name == "renamed"


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
        (lambda r: r.update(max_source_tokens="1_0"), "max_source_tokens is '1_0'; allowed: a number without _ between its digits"),
        (lambda r: r.update(max_source_tokens=True), "max_source_tokens is true; allowed: a number"),
        (lambda r: r["profiles"]["balanced"]["weights"].update(empathy="1_0"), "profiles.balanced: weights.empathy is '1_0'; allowed: a number without _"),
        (lambda r: r["profiles"]["balanced"]["weights"].update(empathy=True), "weights.empathy is true; allowed: a number"),
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


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name: counselor-demo\n", "name: a\nname: b\n", "line 3: key 'name' stands twice, first in line 2"),
        ("empathy:\n", "reflection:\n", "key 'reflection' stands twice"),
        ("max_source_tokens: 128", "max_source_tokens: " + "1" * 400, "a whole number of 400 digits"),
        ("reflection: 0.6", "reflection: 1.0e+999", "is too large"),
        ("by: a person", "by: &x [*x]", "an alias stands inside what it stands for"),
        ("by: a person", "by: !!binary aGVsbG8=", "is for no plain data"),
        ("name: counselor-demo", "name: &n {a: b}\nyes: 1", "key yes is read as true or false"),
    ],
)
def test_what_yaml_would_pass_over_is_refused_by_line(old: str, new: str, message: str, tmp_path: Path) -> None:
    text = yaml.safe_dump(GOOD, sort_keys=False)
    assert old in text
    with pytest.raises(BundleError) as caught:
        read_spec(written(tmp_path, text.replace(old, new, 1)))
    assert BUNDLE_FILE in caught.value.message
    assert message in caught.value.message
    assert "\n" not in caught.value.message


def test_an_origin_is_plain_data_of_a_bounded_size(tmp_path: Path) -> None:
    origin = {"on": datetime.date(2025, 8, 1), "score": float("nan"), "by": ["a", 1, None]}
    spec = read_spec(written(tmp_path, changed(lambda r: r["profiles"]["balanced"].update(origin=origin))))
    assert spec.profiles["balanced"].origin == {"on": "2025-08-01", "score": None, "by": ["a", 1, None]}
    assert ProfileSpec(weights={"a": 1}, origin=origin).origin == spec.profiles["balanced"].origin

    aliases = "\n".join(f"      a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 5))
    text = yaml.safe_dump(GOOD, sort_keys=False).replace("by: a person", f"a0: &a0 [x, x, x, x]\n{aliases}")
    with pytest.raises(BundleError, match=r"origin: has [\d,]+ bytes as JSON; allowed: up to 65,536"):
        read_spec(written(tmp_path, text))
    for value in (object(), (loop := [])):
        loop.append(loop)
        with pytest.raises(ValidationError, match="must be plain JSON data") as caught:
            ProfileSpec(weights={"a": 1}, origin={"x": value})
        assert "\n" not in explain(caught.value)


def test_a_file_that_is_none_or_has_no_end_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / BUNDLE_FILE
    os.mkfifo(path)
    with pytest.raises(BundleError, match="is a FIFO; allowed: a regular file"):
        Bundle.open(tmp_path)
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(BundleError, match="is a device"):
        Bundle.open(tmp_path)
    path.unlink()
    with open(path, "wb") as huge:
        huge.truncate(2**40)
    with pytest.raises(BundleError, match="is larger than 1 MiB"):
        Bundle.open(tmp_path)
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    with pytest.raises(BundleError, match="is a Git LFS pointer, not the file itself"):
        Bundle.open(tmp_path)


def test_what_may_not_be_read_is_not_called_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, GOOD)

    def refuse(path: Path, *_: object, **__: object) -> int:
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patched:  # the suite may run as a user that may read everything
        patched.setattr("os.open", refuse)
        with pytest.raises(BundleError, match=r"bundle\.yaml: cannot be read: Permission denied"):
            Bundle.open(tmp_path)
    monkeypatch.setattr(Path, "stat", refuse)
    with pytest.raises(BundleError, match="cannot be read: Permission denied"):
        Bundle.open(tmp_path)


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


@pytest.mark.parametrize("digits", [400, 5000])
def test_a_number_of_any_length_is_refused_in_one_line(digits: int) -> None:
    with pytest.raises(ValidationError) as caught:
        ProfileSpec(weights={"a": 10**digits})
    assert explain(caught.value).startswith("weights.a: Input should be a valid number (found ")
    assert len(explain(caught.value)) < 200


def test_specs_are_frozen() -> None:
    spec = BundleSpec(name="x", base=BaseRef(path="b"), objectives={"o": ObjectiveSpec(adapter="a")})
    with pytest.raises(ValueError, match="frozen"):
        spec.name = "y"  # type: ignore[misc]
    assert ProfileSpec(weights={"o": 1}).weights == {"o": 1.0}
