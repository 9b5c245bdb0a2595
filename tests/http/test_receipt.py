"""A receipt holds all that made a text, and makes it again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import httpx
import pytest
from pydantic import ValidationError

from emorl_core.bundles.bundle import Bundle, write_spec
from emorl_core.engine.driver import Driver
from emorl_core.ensemble import Ensemble
from emorl_core.errors import InvalidRequest
from emorl_core.fake import fake_ensemble
from emorl_core.types import Completion
from server.serving.receipt import Identity, Receipt, replay_request, surroundings
from server.settings import Settings
from tests.builders import tiny_t5_bundle
from tests.http.harness import PROMPT, events, in_process, live


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_t5_bundle(tmp_path_factory.mktemp("receipt"))


def replay(ensemble: Ensemble, receipt: Receipt) -> Completion:
    assert receipt.prompt is not None
    (completion,) = Driver(ensemble.engine).finish([replay_request(ensemble, receipt, receipt.prompt)])
    return completion


def identity_of(ensemble: Ensemble) -> Identity:
    return Identity.of(ensemble.spec, ensemble.hashes)


ASK = {
    "prompt": "I can't keep up at work.", "weights": {"reflection": 3, "empathy": 1, "base": 0.5}, "temperature": 0.8,
    "top_p": 0.9, "max_new_tokens": 20, "stop": ["zzz"], "receipt": True,
}  # fmt: skip


def test_a_receipt_replays_to_the_same_tokens_in_a_fresh_process_of_the_same_bundle(bundle: Path) -> None:
    with live(Settings(port=0, bundle=str(bundle), dtype="float32")) as server, server.client() as client:
        answer = client.post("/generate", json=ASK).json()
    receipt = Receipt.model_validate_json(json.dumps(answer["receipt"]))
    assert (receipt.id, receipt.text, receipt.sampling.seed) == (answer["id"], answer["text"], answer["seed"])
    assert receipt.prompt == ASK["prompt"]
    again = Ensemble.load(bundle, dtype="float32", hashed=True)
    replayed = replay(again, receipt)
    assert list(replayed.token_ids) == receipt.token_ids
    assert replayed.text == receipt.text
    assert receipt.damage() == surroundings(again, receipt) == []
    assert receipt.identity.mismatches(identity_of(again), receipt.weights) == []


def test_a_receipt_names_what_has_changed_since(bundle: Path, tmp_path: Path) -> None:
    identity = identity_of(Ensemble.load(bundle, dtype="float32", hashed=True))
    assert set(identity.adapters) == {"reflection", "empathy", "fluency"}
    assert len({identity.base, identity.bundle_yaml, *identity.adapters.values()}) == 5
    other = tiny_t5_bundle(tmp_path / "other", seed=5, name="other")
    with live(Settings(port=0, bundle=str(bundle), dtype="float32")) as server, server.client() as client:
        receipt = Receipt.model_validate(client.post("/generate", json=ASK).json()["receipt"], strict=False)
    found = receipt.identity.mismatches(identity_of(Ensemble.load(other, hashed=True)), receipt.weights)
    assert {line.split(" is another one")[0] for line in found} == {
        "the base model", "the adapter of reflection", "the adapter of empathy",
    }, "fluency has no weight in it"  # fmt: skip


def test_the_hash_of_a_bundle_follows_its_files_when_it_is_loaded(bundle: Path) -> None:
    ensemble = Ensemble.load(bundle, hashed=True)
    before = identity_of(ensemble)
    spec = Bundle.open(bundle).spec
    try:
        write_spec(bundle, spec.model_copy(update={"prompt_template": "{prompt} => "}))
        assert identity_of(ensemble) == before, "what was loaded is what it was"
        after = identity_of(Ensemble.load(bundle, hashed=True))
    finally:
        write_spec(bundle, spec)
    assert after.bundle_yaml != before.bundle_yaml
    assert (after.base, after.adapters) == (before.base, before.adapters)
    assert identity_of(Ensemble.load(bundle, hashed=True)) == before


@pytest.mark.parametrize("moment", ["before the base", "before the hashes", "before the warm-up", "when ready"])
def test_a_receipt_names_what_was_loaded_though_another_bundle_took_its_place(
    moment: str, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import emorl_core.loading
    from emorl_core.bundles.snapshot import Snapshot

    served, waiting = shutil.copytree(bundle, tmp_path / "served"), tmp_path / "waiting"
    tiny_t5_bundle(waiting, seed=5)
    swapped: list[bool] = []

    def swap() -> None:
        if not swapped:
            swapped.append(True)
            served.rename(tmp_path / "first")
            waiting.rename(served)

    where = {
        "before the base": (emorl_core.loading, "load_model"),
        "before the hashes": (Snapshot, "hashes"),
        "before the warm-up": (Ensemble, "warm_up"),
    }
    if moment in where:
        owner, name = where[moment]
        original = getattr(owner, name)

        def swapping(*args: object, **options: object) -> object:
            swap()
            return original(*args, **options)

        monkeypatch.setattr(owner, name, swapping)
    with live(Settings(port=0, bundle=str(served), dtype="float32")) as server, server.client() as client:
        swap()
        receipt = Receipt.model_validate_json(json.dumps(client.post("/generate", json=ASK).json()["receipt"]))
        assert client.get("/info").json()["identity"] == receipt.identity.model_dump()
    monkeypatch.undo()
    first = Ensemble.load(tmp_path / "first", dtype="float32", hashed=True)
    assert receipt.identity.mismatches(identity_of(first), receipt.weights) == []
    assert list(replay(first, receipt).token_ids) == receipt.token_ids
    assert receipt.identity.mismatches(identity_of(Ensemble.load(served, hashed=True)), receipt.weights)


async def test_only_those_who_ask_get_a_receipt_streamed_or_not() -> None:
    async with in_process() as (client, _):
        assert "receipt" not in (await client.post("/generate", json={"prompt": PROMPT})).json()
        body = {"prompt": PROMPT, "receipt": True, "stream": True, "temperature": 1.0}
        done = events((await client.post("/generate", json=body)).text)[-1]
        receipt = Receipt.model_validate_json(json.dumps(done["receipt"]))
        assert receipt.identity.base is None, "the fake model has no files"
        ensemble = fake_ensemble()
        assert replay(ensemble, receipt).text == done["text"]


async def test_each_choice_of_the_openai_routes_has_a_receipt_of_its_own() -> None:
    async with in_process() as (client, _):
        body = {"model": "fake", "prompt": [PROMPT, "you feel alone"], "n": 2, "max_tokens": 8}
        assert "receipts" not in (await client.post("/v1/completions", json=body)).json()["emorl"]
        answer = (await client.post("/v1/completions", json={**body, "receipt": True})).json()
        receipts = [Receipt.model_validate(each) for each in answer["emorl"]["receipts"]]
        assert [each.prompt for each in receipts] == [PROMPT, PROMPT, "you feel alone", "you feel alone"]
        assert [each.text for each in receipts] == [choice["text"] for choice in answer["choices"]]
        assert [each.sampling.seed for each in receipts] == answer["emorl"]["seeds"]
        streamed = events((await client.post("/v1/completions", json={**body, "receipt": True, "stream": True})).text)
        last = [chunk for chunk in streamed if "emorl" in chunk]
        assert sorted(chunk["choices"][0]["index"] for chunk in last) == [0, 1, 2, 3]
        for chunk in last:
            (receipt,) = (Receipt.model_validate(each) for each in chunk["emorl"]["receipts"])
            index = chunk["choices"][0]["index"]
            assert receipt.text == "".join(
                other["choices"][0]["text"] for other in streamed if other["choices"][0]["index"] == index
            )


def test_what_may_be_taken_out_of_a_receipt_leaves_it_whole(client: httpx.Client) -> None:
    body = {"prompt": PROMPT, "receipt": True}
    receipt = Receipt.model_validate(client.post("/generate", json=body).json()["receipt"])
    bare = receipt.model_copy(update={"prompt": None, "text": None, "token_ids": None})
    assert receipt.damage() == bare.damage() == []
    for change in ({"created": "then"}, {"dtype": "bfloat16"}, {"prompt": "x"}, {"token_ids": [1]}):
        assert len(receipt.model_copy(update=change).damage()) == 1, change


def test_a_receipt_of_other_objectives_is_refused(client: httpx.Client) -> None:
    receipt = Receipt.model_validate_json(
        json.dumps(client.post("/generate", json={"prompt": PROMPT, "receipt": True}).json()["receipt"])
    )
    with pytest.raises(InvalidRequest, match="empathy, fluency, reflection"):
        replay_request(fake_ensemble(("calm",)), receipt, PROMPT)
    with pytest.raises(ValidationError):
        Receipt.model_validate({**receipt.model_dump(), "format": "emorl-receipt/2"})
