"""What the process that serves does about latency and memory."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.serving.process import spare_what_stays
from server.settings import load_settings
from tests.builders import tiny_t5_bundle
from tests.http.harness import live, wait_until


class Cycle:
    def __init__(self) -> None:
        self.itself = self


@pytest.fixture
def unfrozen() -> Iterator[None]:
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("unfrozen")
def test_what_stays_is_not_looked_through_again_and_what_goes_later_is_found() -> None:
    kept = Cycle()
    gone = weakref.ref(kept)
    spare_what_stays()
    assert gc.get_freeze_count() > 1000
    assert all(each is not kept for each in gc.get_objects())
    del kept
    gc.collect()
    assert gone() is not None, "a collection does not visit it any more"
    spare_what_stays()
    assert gone() is None


def test_a_bundle_that_begins_and_one_that_goes_are_both_told(tmp_path: Path) -> None:
    bundle = tiny_t5_bundle(tmp_path / "bundle")
    settings = load_settings(port=0, bundle=str(bundle), admin_keys="boss", dtype="float32")
    with live(settings) as server, server.client() as client:
        first, told = weakref.ref(server.service.deployment().ensemble), []
        server.service.on_change = lambda: told.append(len(server.service._retiring))
        assert client.post("/admin/reload", headers={"Authorization": "Bearer boss"}).status_code == 200
        wait_until(lambda: bool(told), "the old bundle has gone")
        assert told == [0], "once, when none is on its way out"
        wait_until(lambda: (gc.collect(), first() is None)[1], "a moment later nothing holds it")
