"""The front door: `Ensemble.load`, `generate`, `stream`, `request`, `encode`."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from emorl_core import Ensemble as LazyEnsemble
from emorl_core.bundles.bundle import ADAPTERS_DIR, BASE_DIR, BUNDLE_FILE, read_spec, write_spec
from emorl_core.ensemble import Ensemble
from emorl_core.errors import (
    AdapterError,
    BundleError,
    EngineError,
    InvalidRequest,
    InvalidWeights,
    NonFinite,
    PromptTooLong,
)
from emorl_core.fake import fake_ensemble
from emorl_core.models.fake import FakeModel
from emorl_core.text import prompts
from emorl_core.types import Completion, Failure, FinishReason, Request, TokenEvent
from tests.builders import tiny_t5_bundle
from tests.core.driving import drain, run, said

pytestmark = pytest.mark.both_shapes


def model_of(ensemble: Ensemble) -> FakeModel:
    model = ensemble.engine.model
    assert isinstance(model, FakeModel)
    return model


def test_the_contract_of_the_readme_runs(plain_bundle: Path) -> None:
    ensemble = LazyEnsemble.load(plain_bundle, device="auto", dtype="auto")
    done = ensemble.generate("I can't keep up at work.", weights={"reflection": 0.7, "empathy": 0.3}, max_new_tokens=64)
    assert isinstance(done, Completion)
    assert done.weights == pytest.approx({"reflection": 0.7, "empathy": 0.3, "fluency": 0.0})
    assert done.token_ids
    assert done.finish_reason in ("stop", "length")
    text = "".join(event.text for event in ensemble.stream("I can't keep up at work.", profile="balanced"))
    assert text == ensemble.generate("I can't keep up at work.", profile="balanced").text


def test_what_it_says_about_itself(plain_bundle: Path) -> None:
    ensemble = Ensemble.load(plain_bundle, device="cpu", dtype="bfloat16", slots=5)
    assert ensemble.name == "tiny"
    assert ensemble.lanes == ("base", "reflection", "empathy", "fluency")
    assert ensemble.objectives == ("reflection", "empathy", "fluency")
    assert (ensemble.device, ensemble.dtype) == ("cpu", "bfloat16")
    assert ensemble.engine.stats.slots == 5
    assert set(ensemble.parameter_bytes()) == {"base", "adapters"}
    ensemble.warm_up()
    assert ensemble.generate("i drink", max_new_tokens=3).token_ids


def test_one_prompt_gives_one_completion_and_a_list_a_list() -> None:
    ensemble = fake_ensemble()
    prompts = ["so much", "hard to keep up", "you feel tired"]
    each = [{"reflection": 1}, {"empathy": 1}, {"base": 1, "fluency": 2}]
    single = [ensemble.generate(p, w, seed=4) for p, w in zip(prompts, each, strict=True)]
    many = ensemble.generate(prompts, each, seed=4)
    assert isinstance(many, list)
    assert [said(c) for c in many] == [said(c) for c in single]
    for_all = ensemble.generate(prompts, {"empathy": 1}, seed=4)
    assert said(for_all[1]) == said(single[1])
    assert [c.profile for c in ensemble.generate(prompts)] == ["balanced"] * 3
    assert ensemble.generate([]) == []
    assert ensemble.generate(["so much"], profile="empathy")[0].weights["empathy"] == 1.0


def test_wrong_numbers_of_weights_are_refused() -> None:
    ensemble = fake_ensemble()
    with pytest.raises(
        InvalidRequest, match="weights has 1 entries for 2 prompts; allowed: one mapping, or one per prompt"
    ):
        ensemble.generate(["a", "b"], [{"empathy": 1}])
    with pytest.raises(InvalidRequest, match="allowed for one prompt: a mapping"):
        ensemble.generate("a", [{"empathy": 1}])
    assert not ensemble.engine.has_work


@pytest.mark.parametrize(
    ("options", "kind", "param"),
    [
        ({"weights": {"humour": 1}}, InvalidWeights, "weights.humour"),
        ({"weights": {"empathy": 1}, "profile": "balanced"}, InvalidWeights, "weights"),
        ({"profile": "nobody"}, InvalidWeights, "profile"),
        ({"combine": "logits"}, InvalidRequest, "combine"),
        ({"combine": "probs", "attribution": True}, InvalidRequest, "attribution"),
        ({"combine": "probs", "weights": {"empathy": 2, "base": -1}, "normalize": False}, InvalidWeights, "weights"),
        ({"top_logprobs": 21}, InvalidRequest, "top_logprobs"),
        ({"top_logprobs": -1}, InvalidRequest, "top_logprobs"),
        ({"temperature": -1}, InvalidRequest, "temperature"),
        ({"max_new_tokens": 0}, InvalidRequest, "max_new_tokens"),
        ({"seed": -5}, InvalidRequest, "seed"),
        ({"stop": [""]}, InvalidRequest, "stop"),
        ({"stop": 5}, InvalidRequest, "stop"),
        ({"stop": None}, InvalidRequest, "stop"),
    ],
)
def test_bad_arguments_are_refused_before_anything_runs(
    options: dict[str, Any], kind: type[InvalidRequest], param: str
) -> None:
    ensemble = fake_ensemble()
    for call in (ensemble.generate, ensemble.stream, lambda p, **o: ensemble.generate([p, p], **o)):
        with pytest.raises(kind) as caught:
            call("so much", **options)
        assert caught.value.param == param
    assert not ensemble.engine.has_work


def test_an_argument_nobody_knows_is_refused() -> None:
    with pytest.raises(TypeError, match="temprature"):
        fake_ensemble().generate("so much", temprature=0.5)


@pytest.mark.parametrize("prompt", ["", "   ", "\n\t"])
def test_an_empty_prompt_is_refused(prompt: str) -> None:
    with pytest.raises(InvalidRequest, match="prompt is empty") as caught:
        fake_ensemble().generate(prompt)
    assert caught.value.param == "prompt"


def test_a_prompt_that_is_too_long_is_refused_with_both_numbers_and_without_its_text() -> None:
    ensemble = fake_ensemble(max_source_tokens=20)
    template = len(ensemble.encode("x")) - 1
    assert len(ensemble.encode("y" * (20 - template))) == 20
    with pytest.raises(PromptTooLong) as caught:
        ensemble.encode("y" * (21 - template))
    assert caught.value.message.startswith("prompt has 21 tokens with its template; allowed: up to 20")
    assert "yyy" not in caught.value.message
    assert caught.value.code == "prompt_too_long"


def test_a_prompt_with_too_many_characters_is_not_tokenised(monkeypatch: pytest.MonkeyPatch) -> None:
    ensemble = fake_ensemble(max_source_tokens=20)
    assert ensemble.max_prompt_chars == 2 * 20 * ensemble.tokenizer.longest_token
    monkeypatch.setattr(ensemble.tokenizer, "encode", lambda text: pytest.fail("tokenised"))
    with pytest.raises(PromptTooLong, match=r"prompt has 321 characters; allowed: up to 320 \(max_prompt_chars\)"):
        ensemble.generate("y" * 321)


def test_a_prompt_that_is_far_too_long_is_refused_by_its_beginning(
    plain_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """240,000 characters that no limit in characters refused were read whole, and three times over in a chat."""
    ensemble = Ensemble.load(plain_bundle, device="cpu", dtype="float32", max_prompt_chars=1_000_000)
    most = ensemble.spec.max_source_tokens
    read: list[int] = []
    count = ensemble.tokenizer.count
    monkeypatch.setattr(ensemble.tokenizer, "count", lambda text: (read.append(len(text)), count(text))[1])
    monkeypatch.setattr(ensemble.tokenizer, "encode_prompt", lambda *_: pytest.fail("read whole"))
    with pytest.raises(
        PromptTooLong, match=rf"^prompt has more than {2 * most} tokens; allowed: up to {most} \(max_so"
    ):
        ensemble.generate("i drink " * 30_000)
    assert sum(read) < 100 * most


def test_a_long_prompt_whose_tokens_fit_is_read(plain_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many characters as its tokens can have: the beginning alone does not refuse it."""
    ensemble = Ensemble.load(plain_bundle, device="cpu", dtype="float32")
    monkeypatch.setattr(prompts, "_FEW_CHARS", 1)
    limit = ensemble.spec.max_source_tokens
    longest = max((ensemble.tokenizer.decode([i]) for i in range(4, ensemble.engine.facts.vocab_size)), key=len)
    assert limit < len(" ".join([longest] * (limit - 4)))
    assert len(ensemble.encode(" ".join([longest] * (limit - 4)))) <= limit


def test_no_prompt_whose_tokens_fit_has_too_many_characters(plain_bundle: Path) -> None:
    """But where a tokenizer throws characters away, and then only half of them."""
    ensemble = Ensemble.load(plain_bundle, device="cpu", dtype="float32")
    limit = ensemble.spec.max_source_tokens
    longest = max((ensemble.tokenizer.decode([i]) for i in range(4, ensemble.engine.facts.vocab_size)), key=len)
    assert len(ensemble.encode(" ".join([longest] * (limit - 4)))) <= limit
    own = Ensemble.load(plain_bundle, device="cpu", dtype="float32", max_prompt_chars=10)
    with pytest.raises(PromptTooLong, match="allowed: up to 10 "):
        own.encode("i drink and drink")


def test_the_template_wraps_the_prompt_whatever_it_holds(plain_bundle: Path) -> None:
    ensemble = Ensemble.load(plain_bundle, device="cpu", dtype="float32")
    for prompt in ("I {feel} {prompt} {0} tired", "100% \\1"):
        ids = ensemble.encode(prompt)
        assert ids == tuple(ensemble.tokenizer.encode(f"{prompt} [SEP] "))
        assert ids[-1] == 1


def test_one_stop_string_may_stand_alone() -> None:
    ensemble = fake_ensemble()
    assert ensemble.request("x", stop="ab").sampling.stop == ("ab",)
    assert ensemble.request("x", stop=["ab", "c"]).sampling.stop == ("ab", "c")


def test_request_ids_are_distinct_unless_given() -> None:
    ensemble = fake_ensemble()
    assert len({ensemble.request("x").request_id for _ in range(5)}) == 5
    assert ensemble.request("x", request_id="mine").request_id == "mine"


def test_a_stream_gives_the_tokens_of_generate_and_the_completion_with_the_last() -> None:
    ensemble = fake_ensemble()
    expected = ensemble.generate("so much", {"empathy": 1}, seed=2, temperature=1.0, attribution=True, top_logprobs=2)
    events = list(ensemble.stream("so much", {"empathy": 1}, seed=2, temperature=1.0, attribution=True, top_logprobs=2))
    assert all(isinstance(event, TokenEvent) for event in events)
    assert [event.completion for event in events[:-1]] == [None] * (len(events) - 1)
    last = events[-1].completion
    assert last is not None
    assert said(last) == said(expected)
    assert tuple(event.attribution for event in events) == last.attributions
    assert tuple(event.top_logprobs for event in events) == last.top_logprobs


def test_streams_read_in_turn_run_in_one_batch_and_keep_apart() -> None:
    ensemble = fake_ensemble()
    prompts = ["so much", "hard to keep up", "you feel tired"]
    expected = [said(c) for c in ensemble.generate(prompts, seed=1, min_new_tokens=9, max_new_tokens=9)]
    streams = [ensemble.stream(p, seed=1, min_new_tokens=9, max_new_tokens=9) for p in prompts]
    before = ensemble.engine.stats.lane_row_steps
    rows, last = set(), []
    for events in zip(*streams, strict=True):
        assert len({event.index for event in events}) == 1
        rows.add(ensemble.engine.stats.batch_rows)
        last = [event.completion for event in events]
    assert [said(completion) for completion in last if completion is not None] == expected
    assert max(rows) > 1
    assert ensemble.engine.stats.lane_row_steps - before == 3 * 3 * 9


def test_generate_in_the_middle_of_a_stream_disturbs_neither() -> None:
    ensemble = fake_ensemble()
    expected = said(ensemble.generate("so much", seed=1))
    stream = ensemble.stream("so much", seed=1)
    head = [next(stream), next(stream)]
    other = ensemble.generate("so much", {"empathy": 1}, seed=1)
    assert said(other) == said(fake_ensemble().generate("so much", {"empathy": 1}, seed=1))
    events = [*head, *stream]
    assert events[-1].completion is not None
    assert said(events[-1].completion) == expected


def test_leaving_a_stream_early_cancels_it() -> None:
    ensemble = fake_ensemble()
    stream = ensemble.stream("so much", min_new_tokens=50, max_new_tokens=50)
    for event in stream:
        if event.index == 2:
            break
    stream.close()  # type: ignore[attr-defined]
    before = ensemble.engine.stats.lane_row_steps
    ensemble.generate("hard to keep up", {"empathy": 1}, min_new_tokens=4, max_new_tokens=4)
    assert ensemble.engine.stats.lane_row_steps - before == 4
    assert not ensemble.engine.has_work


def test_a_stream_that_nobody_reads_costs_nothing() -> None:
    ensemble = fake_ensemble()
    unread = ensemble.stream("so much", max_new_tokens=50)
    closed = ensemble.stream("so much", max_new_tokens=50)
    closed.close()  # type: ignore[attr-defined]
    ensemble.generate("hard to keep up", {"empathy": 1}, min_new_tokens=4, max_new_tokens=4)
    assert ensemble.engine.stats.lane_row_steps == 4
    assert not ensemble.engine.has_work
    assert len(list(unread)) > 0


def test_a_failure_is_raised_and_the_others_of_the_list_are_cancelled() -> None:
    ensemble = fake_ensemble(slots=2)
    model_of(ensemble).poisoned = {ensemble.encode("bad")}
    with pytest.raises(NonFinite):
        ensemble.generate(["so much", "bad", "you feel", "tired of being alone"], max_new_tokens=20, min_new_tokens=20)
    with pytest.raises(NonFinite):
        list(ensemble.stream("bad"))
    done = ensemble.generate("so much", seed=1)
    assert said(done) == said(fake_ensemble().generate("so much", seed=1))
    assert not ensemble.engine.has_work


def test_warm_up_raises_when_the_model_does_not_work() -> None:
    ensemble = fake_ensemble()
    ensemble.warm_up()

    def broken(prompts: list[tuple[int, ...]]) -> None:
        raise RuntimeError

    model_of(ensemble).on_step = broken
    with pytest.raises(EngineError):
        ensemble.warm_up()


def test_warm_up_runs_every_lane_and_fits_a_short_limit() -> None:
    ensemble = fake_ensemble(max_source_tokens=3)
    ensemble.warm_up()
    assert ensemble.engine.stats.lane_row_steps == 4


def test_threads_take_turns() -> None:
    ensemble = fake_ensemble()
    prompts = ["so much", "hard to keep up", "you feel tired", "hope"]
    expected = [said(fake_ensemble().generate(p, seed=3)) for p in prompts]
    found: dict[int, list[object]] = {}

    def work(i: int) -> None:
        found[i] = [said(ensemble.generate(prompts[i], seed=3)) for _ in range(3)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert found == {i: [expected[i]] * 3 for i in range(4)}


def test_a_bundle_with_a_broken_part_is_refused_at_load(tmp_path: Path, plain_bundle: Path) -> None:
    folder = Path(shutil.copytree(plain_bundle, tmp_path / "bundle"))
    (folder / BASE_DIR / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match="the tokenizer cannot be loaded"):
        Ensemble.load(folder)
    shutil.rmtree(folder / ADAPTERS_DIR / "empathy")
    with pytest.raises(BundleError, match=r"objectives\.empathy\.adapter"):
        Ensemble.load(folder)
    (folder / BUNDLE_FILE).unlink()
    with pytest.raises(BundleError, match="no such file"):
        Ensemble.load(folder)


def test_an_adapter_of_another_base_is_refused_at_load(tmp_path: Path, plain_bundle: Path) -> None:
    folder = Path(shutil.copytree(plain_bundle, tmp_path / "bundle"))
    gated = tiny_t5_bundle(tmp_path / "gated", gated=True)
    shutil.rmtree(folder / ADAPTERS_DIR / "fluency")
    shutil.copytree(gated / ADAPTERS_DIR / "fluency", folder / ADAPTERS_DIR / "fluency")
    with pytest.raises(AdapterError, match="adapter 'fluency': the base has no linear layer"):
        Ensemble.load(folder)


@pytest.mark.parametrize(
    ("device", "dtype"), [("cpu", "float16"), ("tpu", "auto"), ("cuda:99", "auto"), ("meta", "auto")]
)
def test_a_device_or_number_format_that_is_not_there_is_refused(device: str, dtype: str, plain_bundle: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"allowed|this machine has"):
        Ensemble.load(plain_bundle, device=device, dtype=dtype)


def test_a_completion_that_ends_by_itself_says_so() -> None:
    ensemble = fake_ensemble()
    assert ensemble.generate("so much", max_new_tokens=2).finish_reason is FinishReason.LENGTH
    assert ensemble.generate("so much", max_new_tokens=200).finish_reason is FinishReason.STOP


def test_half_a_surrogate_pair_in_a_prompt_is_refused_by_name() -> None:
    with pytest.raises(InvalidRequest, match="half a surrogate pair") as caught:
        fake_ensemble().encode("so \ud83d much")
    assert caught.value.param == "prompt"


def test_a_prompt_may_be_token_ids_which_no_template_surrounds() -> None:
    ensemble = fake_ensemble(max_source_tokens=20)
    ids = ensemble.encode("so much")
    assert ensemble.request(list(ids), seed=1).prompt_ids == ids
    assert said(ensemble.generate("so much", seed=1)) == said(run(ensemble.engine, [ensemble.request(ids, seed=1)])[0])
    for wrong, message in (
        ([], "prompt has 0 tokens; allowed: 1 to 20"),
        ([5] * 21, "prompt has 21 tokens; allowed: 1 to 20"),
        ([5, 100_000], "prompt has the token id 100000; allowed: 0 to"),
        ([-1], "prompt has the token id -1; allowed: 0 to"),
    ):
        with pytest.raises(InvalidRequest, match=message):
            ensemble.request(wrong)


def test_events_carry_the_tag_of_their_request() -> None:
    ensemble = fake_ensemble()
    ensemble.engine.model.poisoned = {ensemble.encode("bad")}  # type: ignore[attr-defined]
    requests = [
        replace(ensemble.request(prompt, seed=1, max_new_tokens=3), tag=prompt)
        for prompt in ("so much", "i drink", "bad")
    ]
    for request in requests:
        ensemble.engine.add(request)
    names = {request.request_id: request.tag for request in requests}
    events = drain(ensemble.engine)
    assert {type(event) for event in events} == {TokenEvent, Completion, Failure}
    assert all(event.tag == names[event.request_id] for event in events)


def test_a_template_that_leaves_no_room_is_refused_as_inspect_refuses_it(plain_bundle: Path, tmp_path: Path) -> None:
    from emorl_cli.bundles.inspect import examine

    bundle = shutil.copytree(plain_bundle, tmp_path / "bundle")
    spec = read_spec(bundle / BUNDLE_FILE)
    around = len(Ensemble.load(bundle, device="cpu").tokenizer.encode(spec.wrap("")))
    write_spec(bundle, spec.model_copy(update={"max_source_tokens": around}))
    with pytest.raises(BundleError) as caught:
        Ensemble.load(bundle, device="cpu")
    assert caught.value.message == (
        f"prompt_template takes {around} tokens by itself; max_source_tokens is {around}, which leaves none for a prompt"
    )
    assert examine(str(bundle))["faults"] == [caught.value.message]
    write_spec(bundle, spec.model_copy(update={"max_source_tokens": around + 1}))
    assert Ensemble.load(bundle, device="cpu")
    assert examine(str(bundle))["valid"]


def test_requests_are_asked_for_as_places_become_free() -> None:
    """A file of a million prompts is not tokenised before the first answer."""
    ensemble = fake_ensemble(slots=2)
    asked: list[str] = []

    def requests() -> Iterator[Request]:
        for i in range(12):
            request = ensemble.request(f"prompt {i}", max_new_tokens=4 + i % 3, stream=False)
            asked.append(request.request_id)
            yield request

    done: list[str] = []
    for event in ensemble.ends(requests(), at_once=3):
        done.append(event.request_id)
        assert len(asked) - len(done) <= 2
    assert sorted(done) == sorted(asked)
    assert len(done) == 12


def test_leaving_early_cancels_what_was_asked_for_and_asks_no_more() -> None:
    ensemble = fake_ensemble(slots=2)
    asked = []

    def requests() -> Iterator[Request]:
        for i in range(12):
            asked.append(i)
            yield ensemble.request(f"prompt {i}", max_new_tokens=4 + i % 3, stream=False)

    with closing(ensemble.ends(requests(), at_once=3)) as ends:
        next(ends)
    assert len(asked) == 3
    assert len(ensemble.generate(["one", "two"], max_new_tokens=3)) == 2
    assert ensemble.engine.stats.running == 0
