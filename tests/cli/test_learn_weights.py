"""`emorl learn-weights`: from the file that a server wrote to a profile of the bundle."""

from __future__ import annotations

from pathlib import Path

from emorl_core.bundles.bundle import Bundle
from emorl_core.choices.record import Choice
from emorl_core.choices.store import ChoiceStore


def test_choices_become_a_profile_with_its_uncertainty(emorl, own_bundle: Path, tmp_path: Path) -> None:
    spec = Bundle.open(own_bundle).spec
    first, second, *_ = spec.objectives
    shown = [
        {"weights": {first: 1.0}, "text_sha256": "0" * 64, "outcome": "taken"},
        {"weights": {second: 1.0}, "text_sha256": "1" * 64},
    ]
    path = tmp_path / "choices.db"
    asked = ("learn-weights", own_bundle, "--choices", path, "--user", "ward-3")
    missing = emorl(*asked)
    assert (missing.code, missing.err.count("\n")) == (2, 1)
    store = ChoiceStore(path)
    assert "has no choice of 'ward-3'" in emorl(*asked).err
    for _ in range(5):
        store.add(Choice.model_validate({"user": "ward-3", "shown": shown}), spec.name)
    assert f"5 choices of ward-3\n{first}" in emorl(*asked).out
    assert emorl(*asked, "--profile", "mine").code == 0
    profile = Bundle.open(own_bundle).spec.profiles["mine"]
    assert profile.weights[first] > profile.weights[second]
    assert (profile.origin["by"], profile.origin["choices"]) == ("emorl learn-weights", 5)
    assert profile.origin["deviation"][first] > 0
    assert emorl(*asked, "--profile", "mine").code == 2
    assert emorl(*asked, "--profile", "mine", "--overwrite").code == 0
