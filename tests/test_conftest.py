"""What the marks do: skip where a program is missing, fail there in CI, run where it is present."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tests import conftest


def _set_up(monkeypatch: pytest.MonkeyPatch, *, missing: str | None, required: set[str]) -> None:
    monkeypatch.setitem(conftest._NEEDS, "browser", lambda: missing)
    monkeypatch.setattr(conftest, "_REQUIRED", required)
    item = SimpleNamespace(get_closest_marker=lambda mark: mark == "browser" or None)
    conftest.pytest_runtest_setup(item)  # type: ignore[arg-type]


def test_a_test_whose_program_is_missing_skips(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(pytest.skip.Exception, match="no such browser"):
        _set_up(monkeypatch, missing="no such browser", required={"prometheus"})


def test_it_fails_where_the_program_must_be_present(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(pytest.fail.Exception, match="EMORL_CI_REQUIRE names browser"):
        _set_up(monkeypatch, missing="no such browser", required={"browser"})


def test_it_runs_where_the_program_is_present(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _set_up(monkeypatch, missing=None, required={"browser"}) is None
