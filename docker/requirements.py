"""Print what the project asks for, one requirement a line: the packages become a layer that a change of code keeps.

python requirements.py pyproject.toml tracing,search
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path


def requirements(pyproject: str, extras: list[str]) -> list[str]:
    """Dependencies and those of `extras`. Raises SystemExit naming an extra that is not there."""
    project = tomllib.loads(Path(pyproject).read_text(encoding="utf-8"))["project"]
    optional = project["optional-dependencies"]
    unknown = [extra for extra in extras if extra not in optional]
    if unknown:
        raise SystemExit(f"EXTRAS names {', '.join(unknown)}; allowed: {', '.join(optional)}")
    return [*project["dependencies"], *(line for extra in extras for line in optional[extra])]


if __name__ == "__main__":
    print("\n".join(requirements(sys.argv[1], [extra for extra in sys.argv[2].split(",") if extra])))  # noqa: T201
