"""The number of threads that the engine computes with: a setting, or chosen by measuring; told in /info and the log."""

from __future__ import annotations

import logging
import threading
from unittest import mock

import pytest
import torch

from emorl_core.fake import fake_ensemble
from emorl_core.machine.threads import ThreadChoice
from server.serving.deployment import load
from server.settings import Settings, SettingsError, load_settings
from tests.http.harness import PROMPT, in_process, live


def test_the_engines_thread_chooses_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    where: list[str] = []
    ensemble = fake_ensemble()
    ensemble.threads = ThreadChoice(
        (1, 2), apply=lambda count: where.append(threading.current_thread().name), probe=lambda count: 0.0
    )
    with caplog.at_level(logging.INFO, "emorl.server"), live(ensemble=ensemble) as server, server.client() as client:
        assert client.get("/info").json()["threads"] == ensemble.threads.count
        client.post("/generate", json={"prompt": PROMPT})
    assert set(where) == {"emorl-engine"}
    (line,) = [record.getMessage() for record in caplog.records if "computing with" in record.getMessage()]
    assert line.startswith(f"computing with {ensemble.threads.count} thread")


def test_every_step_that_only_stepped_is_observed() -> None:
    ensemble = fake_ensemble()
    seen: list[tuple[bool, int]] = []
    body = {"prompt": PROMPT, "weights": {"empathy": 1.0, "fluency": 1.0}, "min_new_tokens": 5, "max_new_tokens": 5}
    note = mock.patch.object(ensemble.threads, "observe", lambda took_s, rows: seen.append((took_s >= 0, rows)))
    with note, live(ensemble=ensemble) as server, server.client() as client:
        for _ in range(2):
            assert client.post("/generate", json=body).status_code == 200
    assert [rows for _, rows in seen] == [0, 2, 2, 2, 2, 2, 2, 2, 2, 2], "the first step encoded the prompt as well"
    assert all(sound for sound, _ in seen)


@pytest.mark.parametrize(("given", "threads"), [("auto", "auto"), ("3", 3), (4, 4), ("1024", 1024)])
def test_it_is_a_setting(given: object, threads: object, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings(threads=given).threads == threads
    monkeypatch.setenv("EMORL_THREADS", str(given))
    assert load_settings().threads == threads
    with mock.patch("server.serving.deployment.load_apart") as loaded:
        load(load_settings(bundle="my-bundle", engine="process"))
    assert loaded.call_args.args[1]["threads"] == threads


@pytest.mark.parametrize("given", ["0", 0, -1, "1025", 1025, "two", "", "1.5", 1.5, True, "9" * 5000])
def test_what_is_no_number_of_threads_is_refused_in_one_line(given: object) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(threads=given)
    assert caught.value.message.startswith("threads: must be auto, or a whole number from 1 to 1024 (found ")
    assert len(caught.value.message) < 200


def test_a_bundle_is_loaded_with_all_threads_whatever_an_engine_has_chosen() -> None:
    """A reload compiles too, and what is compiled for one thread stays so."""
    seen: list[int] = []

    def loading(*_: object, **__: object) -> None:
        seen.append(torch.get_num_threads())

    def reload() -> None:
        with mock.patch("server.serving.deployment.Ensemble.load", loading):
            load(Settings(bundle="my-bundle", engine="thread"))

    before = torch.get_num_threads()
    reload()
    try:
        torch.set_num_threads(before + 1)  # as an engine's choice does for the threads that begin after it
        loader = threading.Thread(target=reload)
        loader.start()
        loader.join()
    finally:
        torch.set_num_threads(before)
    assert seen == [before, before]


async def test_info_tells_the_number_that_was_set() -> None:
    ensemble = fake_ensemble()
    ensemble.threads = ThreadChoice([7], apply=lambda count: None)
    async with in_process(ensemble=ensemble) as (client, _):
        assert (await client.get("/info")).json()["threads"] == 7
