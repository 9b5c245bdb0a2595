"""Choices and the profiles learned from them, in an SQLite file. Each is one transaction, so a killed process loses at
most the one in flight."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

from emorl_core.bundles.profiles import ProfileSpec
from emorl_core.choices.record import Choice
from emorl_core.errors import EmorlError, one_line

_TABLE = """CREATE TABLE IF NOT EXISTS choices (
    id INTEGER PRIMARY KEY, at INTEGER NOT NULL, user TEXT NOT NULL, model TEXT NOT NULL, choice TEXT NOT NULL)"""
_PROFILES = """CREATE TABLE IF NOT EXISTS profiles (
    model TEXT NOT NULL, name TEXT NOT NULL, at INTEGER NOT NULL, profile TEXT NOT NULL, PRIMARY KEY (model, name))"""
_INDEX = "CREATE INDEX IF NOT EXISTS choices_of_a_user ON choices (user, id)"
_BUSY_S = 5.0


class ChoicesError(EmorlError):
    """The file of choices cannot be read or written."""

    code = "choices_failed"


class ChoiceStore:
    """Opens the file for every call: safe from several threads and processes."""

    def __init__(self, path: Path, *, create: bool = True) -> None:
        """Raises `ChoicesError`: the file is not an SQLite database, cannot be opened, or does not exist and may not be
        created."""
        self.path = path
        if not create and not path.is_file():
            raise ChoicesError(f"{path}: no such file")
        with self._open() as file:
            file.execute(_TABLE)
            file.execute(_INDEX)
            file.execute(_PROFILES)

    def add(self, choice: Choice, model: str) -> int:
        """Store a choice durably and return its number. model: the bundle's name. Raises `ChoicesError`."""
        with self._open() as file:
            added = file.execute(
                "INSERT INTO choices (at, user, model, choice) VALUES (?, ?, ?, ?)",
                (int(time.time()), choice.user, model, choice.model_dump_json()),
            )
            assert added.lastrowid is not None
            return added.lastrowid

    def of(self, user: str, model: str) -> list[Choice]:
        """A user's choices among one bundle's drafts, oldest first. Raises `ChoicesError`."""
        with self._open() as file:
            rows = file.execute(
                "SELECT choice FROM choices WHERE user = ? AND model = ? ORDER BY id", (user, model)
            ).fetchall()
        return [Choice.model_validate_json(row) for (row,) in rows]

    def keep_profile(self, model: str, name: str, profile: ProfileSpec) -> None:
        """Store a learned profile, replacing an earlier one of that name. Raises `ChoicesError`."""
        with self._open() as file:
            file.execute(
                "INSERT OR REPLACE INTO profiles (model, name, at, profile) VALUES (?, ?, ?, ?)",
                (model, name, int(time.time()), profile.model_dump_json()),
            )

    def profiles(self, model: str) -> dict[str, ProfileSpec]:
        """The learned profiles of one bundle, by name. Raises `ChoicesError`."""
        with self._open() as file:
            rows = file.execute("SELECT name, profile FROM profiles WHERE model = ? ORDER BY name", (model,)).fetchall()
        return {name: ProfileSpec.model_validate_json(profile) for name, profile in rows}

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """One transaction."""
        try:
            with contextlib.closing(sqlite3.connect(self.path, timeout=_BUSY_S)) as file, file:
                file.execute("PRAGMA synchronous = FULL")
                yield file
        except sqlite3.Error as error:
            raise ChoicesError(f"{self.path}: {one_line(error)}") from None
