"""The audit fails on a finding, and says so in one line when it could not look."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from typing import Any

import pytest

from tests import audit
from tests.audit import PINS, Answer, pinned

WHOLE = {"name": "pip", "version": "25.0", "vulns": []}
ILL = {"name": "idna", "version": "3.0", "vulns": [{"id": "CVE-1", "fix_versions": ["3.7"], "aliases": []}]}
UNKNOWN = {"name": "emorl", "skip_reason": "not found"}


def database(known: list[dict[str, Any]] | None, reachable: str = "pypi") -> audit.Ask:
    def ask(service: str, pins: Sequence[str], timeout_s: int) -> Answer:
        assert timeout_s > 0
        if service != reachable:
            return Answer([{"name": pin.split("==")[0], "skip_reason": "not found"} for pin in pins])
        return Answer([WHOLE] if list(pins) == [audit.PROBE] else known)

    return ask


def test_a_finding_fails_and_is_named() -> None:
    code, lines = audit.audit(["idna==3.0"], database([WHOLE, ILL, UNKNOWN]))
    assert code == 1
    assert lines == [
        "audit: idna 3.0: CVE-1, fixed in 3.7",
        "audit: 1 known vulnerabilities in 2 packages; unknown to it: emorl",
    ]


def test_nothing_found_passes() -> None:
    assert audit.audit(["pip==25.0"], database([WHOLE], "osv")) == (0, ["audit: 0 known vulnerabilities in 1 packages"])


@pytest.mark.parametrize("ask", [database([ILL], "none"), database(None)])
def test_a_database_that_cannot_be_reached_is_told_in_one_line_and_is_no_failure(ask: audit.Ask) -> None:
    code, (line,) = audit.audit(["a==1", "b==2"], ask)
    assert code == 0
    assert "not audited" in line or "nothing was audited" in line


@pytest.mark.parametrize(
    ("output", "packages"), [('{"dependencies": []}', []), ("", None), ("[]", None), ("Traceback", None)]
)
def test_what_pip_audit_prints_is_read(
    monkeypatch: pytest.MonkeyPatch, output: str, packages: list[Any] | None
) -> None:
    seen: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        seen.append(command)
        return subprocess.CompletedProcess(command, 1, output, "")

    monkeypatch.setattr(subprocess, "run", run)
    assert audit.ask("osv", ["a==1"], 5) == Answer(packages)
    assert seen[0][1:3] == ["-m", "pip_audit"]
    assert "osv" in seen[0]


def test_a_database_that_hangs_counts_as_not_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **_: Any) -> None:
        raise subprocess.TimeoutExpired(command, 5)

    monkeypatch.setattr(subprocess, "run", run)
    assert audit.ask("pypi", ["a==1"], 5) == Answer(None)


def test_every_pin_is_asked_for() -> None:
    pins = pinned(PINS.read_text(encoding="utf-8"))
    assert len(pins) > 50
    assert pinned("# x\na==1  # why\nb==2 ; python_version < '4'\n\n") == ["a==1", "b==2"]
