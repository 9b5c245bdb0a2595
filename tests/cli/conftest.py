"""A command line run in this process, and bundles for it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from emorl_cli.main import main
from emorl_core.bundles.bundle import BUNDLE_FILE
from emorl_core.ensemble import Ensemble
from emorl_core.fake import fake_ensemble
from tests.builders import tiny_t5_bundle


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    def refused(self) -> str:
        """The one line that says why; fails when there is another line, a traceback or another exit code."""
        assert self.code == 2, self
        assert self.out == "", self
        assert self.err.startswith("emorl: error: "), self
        assert self.err.count("\n") == 1, self
        return self.err


@pytest.fixture
def emorl(capsys: pytest.CaptureFixture[str]):
    """`emorl("generate", …)` -> exit code, stdout, stderr."""

    def run(*argv: object) -> Ran:
        capsys.readouterr()
        try:
            code = main([str(part) for part in argv])
        except SystemExit as stop:  # argparse ends that way
            code = stop.code if isinstance(stop.code, int) else 1
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A real tiny bundle; tests must not change it."""
    made = tiny_t5_bundle(tmp_path_factory.mktemp("bundle"))
    before = (made / BUNDLE_FILE).read_bytes()
    yield made
    assert (made / BUNDLE_FILE).read_bytes() == before, "a test changed the bundle of all; own_bundle is a copy"


@pytest.fixture
def own_bundle(bundle: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(bundle, tmp_path / "broken"))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Ensemble:
    """What `Ensemble.load` gives in this test, whatever bundle is named: no weights, with hooks to inject faults."""
    ensemble = fake_ensemble(slots=2)
    monkeypatch.setattr(Ensemble, "load", lambda *args, **kwargs: ensemble)
    return ensemble
