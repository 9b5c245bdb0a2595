"""`python -m tests.audit`: are there known vulnerabilities in the pinned packages? Part of `make check`.

pip-audit asks a public database. A machine that cannot reach it gets one line and goes on, because nothing was found
out; a finding fails. pip-audit itself passes when the database knows none of the packages, which is how a package
mirror looks to it: here that counts as not reached.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PINS = Path(__file__).parent.parent / "constraints.txt"
# Asked for alone before all the others: every database has it.
PROBE = "pip==25.0"
SERVICES = ("pypi", "osv")
_ASK_S, _ASK_ALL_S = 30, 600


@dataclass(frozen=True, slots=True)
class Answer:
    """What one run of pip-audit said about every package; None: it did not get that far."""

    packages: list[dict[str, Any]] | None

    @property
    def audited(self) -> list[dict[str, Any]]:
        return [each for each in self.packages or [] if "skip_reason" not in each]

    @property
    def skipped(self) -> list[str]:
        return [each["name"] for each in self.packages or [] if "skip_reason" in each]

    @property
    def findings(self) -> list[str]:
        """One line per vulnerability."""
        return [
            f"{each['name']} {each['version']}: {found['id']}"
            + (f", fixed in {', '.join(found['fix_versions'])}" if found["fix_versions"] else ", no fixed version")
            for each in self.audited
            for found in each["vulns"]
        ]


Ask = Callable[[str, Sequence[str], int], Answer]


def ask(service: str, pins: Sequence[str], timeout_s: int) -> Answer:
    """Run pip-audit on lines `name==version` against one database."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as requirements:
        requirements.write("\n".join(pins))
        requirements.flush()
        command = [sys.executable, "-m", "pip_audit", "--requirement", requirements.name, "--no-deps", "--disable-pip"]
        command += ["--progress-spinner", "off", "--format", "json", "--vulnerability-service", service]
        try:
            ran = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
        except subprocess.TimeoutExpired:
            return Answer(None)
    try:
        return Answer(json.loads(ran.stdout)["dependencies"])
    except (json.JSONDecodeError, KeyError, TypeError):
        return Answer(None)


def audit(pins: Sequence[str], ask: Ask = ask, services: Iterable[str] = SERVICES) -> tuple[int, list[str]]:
    """Exit code and what to print. One look-up tells whether a database can be reached at all."""
    service = next((each for each in services if ask(each, [PROBE], _ASK_S).audited), None)
    if service is None:
        return 0, [f"audit: no vulnerability database can be reached; {len(pins)} packages were not audited"]
    answer = ask(service, pins, _ASK_ALL_S)
    if answer.packages is None:
        return 0, [f"audit: the vulnerability database ({service}) gave no answer; nothing was audited"]
    lines = [f"audit: {finding}" for finding in answer.findings]
    unknown = f"; unknown to it: {', '.join(answer.skipped)}" if answer.skipped else ""
    lines.append(f"audit: {len(answer.findings)} known vulnerabilities in {len(answer.audited)} packages{unknown}")
    return (1 if answer.findings else 0), lines


def pinned(text: str) -> list[str]:
    """The lines `name==version` of a constraints file."""
    lines = (line.split("#")[0].split(";")[0].strip() for line in text.splitlines())
    return [line for line in lines if "==" in line]


def main() -> int:
    code, lines = audit(pinned(PINS.read_text(encoding="utf-8")))
    print("\n".join(lines))  # noqa: T201  what the command is for
    return code


if __name__ == "__main__":
    sys.exit(main())
