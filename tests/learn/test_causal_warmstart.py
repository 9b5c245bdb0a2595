"""Warm start of decoder-only bases: the loss is on the reply and its end, and a killed run goes on to the same bits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from emorl_core.errors import BundleError
from emorl_core.text.tokenizer import HuggingFaceTokenizer, load_tokenizer
from tests.learn.causal_tasks import BRACKETS, END, START, SYSTEM, tiny_chat_base
from tests.learn.test_warmstart import Killed, fit_settings, killed_at, note_first, same
from training.data.records import Record
from training.data.wording import ChatSettings, template_or_chat
from training.warm_start import fit as fitting
from training.warm_start.errors import FitError
from training.warm_start.examples import NO_LABEL, Examples, make_examples, wording_of
from training.warm_start.warm_start import WarmStartSettings, load_checkpoint, warm_start

PAIRS = (("i feel sad", "you feel sad"), ("why?", f"who knows {END}"), ("my mother left", "she left"))
RECORDS = tuple(Record(f"i am {word} {n}", f"you are {word}") for n in range(10) for word in ("sad", "tired", "late"))
CHAT = ChatSettings(system=SYSTEM)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_chat_base(tmp_path_factory.mktemp("warm") / "base")


def settings(chat: ChatSettings | None = CHAT, template: str = "{prompt}", **fit: Any) -> WarmStartSettings:
    limits = {"steps": 12, "learning_rate": 1e-2, **fit}
    return WarmStartSettings(path="base", chat=chat, prompt_template=template, fit=fit_settings(**limits))


def examples_of(base: Path, template: str, chat: ChatSettings | None, **limits: int) -> Examples:
    model, tokenizer = load_checkpoint(base)
    wording = wording_of(model, tokenizer, template, chat)
    return make_examples(model, wording, PAIRS, **{"max_source_tokens": 128, "max_target_tokens": 64, **limits})


@pytest.mark.parametrize(("template", "chat"), [("{prompt}", CHAT), ("{prompt}\nReply: ", None)])
def test_a_reply_follows_the_ids_that_are_served_and_is_all_that_has_labels(
    base: Path, template: str, chat: ChatSettings | None
) -> None:
    tokenizer = HuggingFaceTokenizer(base)
    (end,) = tokenizer.encode(END)
    served = template_or_chat(template, chat, tokenizer)
    for example, (prompt, reply) in zip(examples_of(base, template, chat).examples, PAIRS, strict=True):
        asked = list(served(prompt))
        said = [*tokenizer.encode_reply(reply), end]
        assert example.ids == asked + said
        assert example.labels == [NO_LABEL] * len(asked) + said
        assert said.count(end) == 1, "the name of the end within a reply is text"


def test_a_chat_without_a_header_begins_its_replies_as_its_template_does(tmp_path: Path) -> None:
    base = tiny_chat_base(tmp_path / "base", template=BRACKETS)
    tokenizer = load_tokenizer(base)
    first = examples_of(base, "{prompt}", ChatSettings()).examples[0]
    assert tokenizer.decode(first.ids) == f"[i feel sad] you feel sad{END}"


def test_long_prompts_lose_their_text_and_long_replies_keep_their_end(base: Path) -> None:
    tokenizer = load_tokenizer(base)
    bare = len(template_or_chat("{prompt}", CHAT, HuggingFaceTokenizer(base))(""))
    found = examples_of(base, "{prompt}", CHAT, max_source_tokens=bare + 3, max_target_tokens=5)
    assert (found.cut_sources, found.cut_targets) == (3, 3)
    for example, (prompt, reply) in zip(found.examples, PAIRS, strict=True):
        text = tokenizer.decode(example.ids)
        assert text.startswith(f"{START}system\n{SYSTEM}{END}\n{START}user\n{prompt[:3]}")
        assert text.endswith(f"{END}\n{START}assistant\n{reply[:4]}{END}")


def loss_on_replies(folder: Path, found: Examples) -> float:
    """Nats a token of the replies and their ends, by transformers' model and torch's cross-entropy."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    total, count = 0.0, 0
    with torch.no_grad():
        for example in found.examples:
            logits = model(input_ids=torch.tensor([example.ids])).logits[0, :-1]
            labels = torch.tensor(example.labels[1:])
            total += float(torch.nn.functional.cross_entropy(logits, labels, ignore_index=NO_LABEL, reduction="sum"))
            count += sum(label != NO_LABEL for label in example.labels)
    return total / count


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_what_comes_out_answers_better_and_serves(base: Path, tmp_path: Path, label_smoothing: float) -> None:
    out = warm_start(
        RECORDS, tmp_path / "out", settings(label_smoothing=label_smoothing), base=base.parent, device="cpu"
    )
    model, tokenizer = load_checkpoint(base)
    pairs = [(record.prompt, record.response or "") for record in RECORDS]
    found = make_examples(
        model, wording_of(model, tokenizer, "{prompt}", CHAT), pairs, max_source_tokens=128, max_target_tokens=64
    )
    before, after = loss_on_replies(base, found), loss_on_replies(out, found)
    assert after < 0.8 * before
    receipt = json.loads((out / "warm_start.json").read_text())
    assert receipt["losses"][0] == pytest.approx(before, rel=0.5)
    assert receipt["losses"][-1] < receipt["losses"][0]
    assert load_tokenizer(out).chat_template == load_tokenizer(base).chat_template
    assert load_checkpoint(out)[0].generation_config.eos_token_id == model.generation_config.eos_token_id


def test_the_loss_of_a_batch_is_that_of_its_replies_alone(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever stands in the padding and before the reply."""
    model, _ = load_checkpoint(base)
    found = examples_of(base, "{prompt}", CHAT)
    rows = [{"input_ids": e.ids, "attention_mask": [1] * len(e.ids), "labels": e.labels} for e in found.examples]
    batch = fitting._padded(rows)
    with torch.no_grad():
        loss = model(**batch).loss
    assert float(loss) == pytest.approx(loss_on_replies(base, found), rel=1e-5)


def test_a_killed_run_goes_on_to_the_same_bits(base: Path, tmp_path: Path) -> None:
    whole = warm_start(RECORDS, tmp_path / "whole", settings(), base=base.parent, device="cpu")
    with pytest.raises(Killed):
        warm_start(RECORDS, tmp_path / "cut", settings(), base=base.parent, device="cpu", progress=killed_at(9))
    began: list[int] = []
    with pytest.raises(Killed):
        warm_start(RECORDS, tmp_path / "cut", settings(), base=base.parent, device="cpu", progress=note_first(began))
    assert began == [9]  # after the checkpoint of step 8
    cut = warm_start(RECORDS, tmp_path / "cut", settings(), base=base.parent, device="cpu")
    assert same(whole, cut)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"max_position_embeddings": 32},
            r"a prompt and its reply have \d+ tokens, and the base has 32 positions; lower",
        ),
        ({"eos_token_id": None}, "eos_token_id is null; allowed: a token id"),
        ({"auto_map": {"AutoModel": "x.y"}}, "auto_map"),
        ({"use_bidirectional_attention": True}, "its attention looks both ways"),
    ],
)
def test_bases_that_cannot_be_fitted_or_served(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    """Before the first step, not after the last."""
    base = tiny_chat_base(tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, **changed}))
    if "eos_token_id" in changed:
        (base / "generation_config.json").unlink()
    with pytest.raises(FitError, match=said) as caught:
        warm_start(RECORDS, tmp_path / "out", settings(), base=tmp_path, device="cpu")
    assert "\n" not in caught.value.message
    assert not (tmp_path / "out").exists()


def test_a_chat_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    tiny_chat_base(tmp_path / "base", template=None)
    with pytest.raises(BundleError, match="chat is set and the base's tokenizer has no chat template"):
        warm_start(RECORDS, tmp_path / "out", settings(), base=tmp_path, device="cpu")
