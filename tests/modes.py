"""Whether files that the project wrote have the mode that the umask leaves, and not one for their writer alone."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def closed_files(folder: Path) -> list[str]:
    """Files below a folder with another mode than a plain `open` gives them."""
    umask = os.umask(0o022)
    os.umask(umask)
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files, folder
    return [path.name for path in files if stat.S_IMODE(path.stat().st_mode) != 0o666 & ~umask]
