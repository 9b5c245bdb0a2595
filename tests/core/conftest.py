"""Bundles that the core's tests share; read-only, so one of each kind serves the whole run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from emorl_core.bundles.bundle import ADAPTERS_DIR, BASE_DIR
from emorl_core.ensemble import Ensemble
from emorl_core.fake import fake_ensemble
from tests.builders import OBJECTIVES, tiny_t5_bundle
from tests.core.reference import SeparateModels

PROMPTS = (
    "I can't keep up at work.",
    "my mother left again and nobody listens",
    "Zürich 🙂 is cold",
    "i drink",
    "you feel tired of it, I hope things will get better since the doctor said so",
)

# Three adapters that share nothing: rank, alpha, scaling rule, layers, modules.
_ADAPTERS: dict[str, dict[str, Any]] = {
    "reflection": {"lora_dropout": 0.1},
    "empathy": {
        "targets": ("q", "v", "o", "wo"),
        "rank_pattern": {"q": 6, "encoder.block.1.layer.0.SelfAttention.v": 3},
        "alpha_pattern": {"wo": 5, "decoder.block.2.layer.1.EncDecAttention.o": 11},
    },
    "fluency": {
        "targets": ("k", "wi", "wi_0", "wi_1", "v"),
        "use_rslora": True,
        "layers_to_transform": [1, 2],
        "layers_pattern": "block",
    },
}


_T5_FIXTURES = {"bundle", "plain_bundle", "ensemble", "judge", "make"}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests marked `both_shapes` run over a fake model with an encoder, then over one without; those that have a T5, or
    choose the shape themselves, run once."""
    if metafunc.definition.get_closest_marker("both_shapes") and not _T5_FIXTURES & set(metafunc.fixturenames):
        metafunc.fixturenames.append("fake_shape")
        metafunc.parametrize("fake_shape", [True, False], ids=["encoder", "decoder-only"], indirect=True)


@pytest.fixture
def fake_shape(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shape of what `fake_ensemble` gives from here on."""
    defaults = fake_ensemble.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "encoder", request.param)


@pytest.fixture(scope="session", params=["relu tied", "gated untied"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny bundle of each kind of T5, with adapters that differ in everything."""
    gated = request.param == "gated untied"
    seed = 0 if gated else 2  # with these, some texts end by themselves within 20 tokens
    return tiny_t5_bundle(tmp_path_factory.mktemp("bundle"), gated=gated, seed=seed, adapter_options=_ADAPTERS)


@pytest.fixture(scope="session")
def judge(bundle: Path) -> SeparateModels:
    """The same bundle as separate Hugging Face and PEFT models."""
    return SeparateModels(bundle / BASE_DIR, [bundle / ADAPTERS_DIR / name for name in OBJECTIVES])


@pytest.fixture
def ensemble(bundle: Path) -> Ensemble:
    """The bundle in float32, with an engine of its own."""
    return Ensemble.load(bundle, device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def plain_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One tiny bundle (relu, tied), for what does not depend on the kind."""
    return tiny_t5_bundle(tmp_path_factory.mktemp("plain"))
