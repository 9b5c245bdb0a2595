"""What a file on disk really is, asked before it is parsed."""

from __future__ import annotations

from pathlib import Path

LFS_ADVICE = "is a Git LFS pointer, not the file itself; fetch the file with `git lfs pull`"
# https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md: the version comes first; the second is the pre-release's.
_LFS_VERSIONS = (b"version https://git-lfs.github.com/spec/", b"version https://hawser.github.com/spec/")
_LFS_LIMIT = 1024  # bytes; a pointer is shorter


def is_lfs_pointer(path: Path) -> bool:
    """Whether `path` holds the few lines that stand for a file which Git LFS has not fetched. Never fails."""
    try:
        if not path.is_file() or path.stat().st_size >= _LFS_LIMIT:
            return False
        return path.read_bytes().startswith(_LFS_VERSIONS)
    except OSError:
        return False
