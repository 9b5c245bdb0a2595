"""Decoder-only models that read prompts in pieces and find what they begin with, against separate models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from emorl_core.engine.engine import Engine
from emorl_core.models.family import Piece
from emorl_core.types import Request, Sampling
from tests.core.causal_reference import SeparateModels, named_lanes
from tests.core.driving import run
from tests.core.test_causal_engine import NAMES, engine_of, expected_of, requests_of
from tests.core.test_causal_golden import MIXES, PROMPTS, adapters_of, loaded
from tests.supported_models import BY_NAME, tiny_causal, tiny_causal_adapter

SYSTEM = (12, 80, 22, 41, 41, 9, 77, 30)
EVERYONE = (0.25, 0.25, 0.25, 0.25)


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "gpt_oss", "gpt2"])
def test_pieces_are_what_is_read_at_once(name: str, tmp_path: Path) -> None:
    """Ragged rows, some at their beginnings, some behind what they have; windows, caps and sinks."""
    base = tiny_causal(tmp_path / "base", name)
    model = loaded(base, adapters_of(BY_NAME[name], base, tmp_path))
    lanes = [named_lanes(model, prompt)[number] for number, prompt in enumerate((*PROMPTS, SYSTEM))]
    passages = [model.passage(lane, (3, 4)) for lane in lanes]
    whole = model.prefill([Piece.whole(passage) for passage in passages])
    for size in (1, 2, 5):
        read: list[torch.Tensor | None] = [None] * len(passages)
        while True:
            rows, pieces = [], []
            for row, passage in enumerate(passages):
                kv = read[row]
                start = 0 if kv is None else kv.shape[3]
                stop = min(len(passage.labels), start + size + row)
                if start < stop:
                    rows.append(row)
                    past = None if kv is None else type(whole[0])(kv)
                    pieces.append(Piece(passage, start, stop, past))
            if not pieces:
                break
            for row, piece, memory in zip(rows, pieces, model.prefill(pieces), strict=True):
                assert memory.length == piece.stop - piece.start
                kv = read[row]
                read[row] = memory.kv if kv is None else torch.cat([kv, memory.kv], dim=3)
        for found, expected in zip(read, whole, strict=True):
            assert found is not None
            torch.testing.assert_close(found, expected.kv, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("tokens", [1, 5, None])
@pytest.mark.parametrize("cached", [0, 2**20])
@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_against_hf_peft_in_pieces_and_with_shared_beginnings(
    name: str, cached: int, tokens: int | None, tmp_path: Path
) -> None:
    base = tiny_causal(tmp_path / "base", name)
    adapters = adapters_of(BY_NAME[name], base, tmp_path)
    prompts = [(*SYSTEM, 5, 9), (*SYSTEM, 66, 3, 71), (*SYSTEM[:4], 14), *PROMPTS[:1]]
    engine = engine_of(base, adapters, prefill_tokens=tokens, prefill_cache_bytes=cached)
    expected = expected_of(SeparateModels(base, adapters), prompts)
    for _ in range(2):  # the second time, what is cached is found
        done = run(engine, requests_of(prompts))
        assert [completion.token_ids for completion in done] == expected
    distinct = 4 * (len(SYSTEM) + 1 + 2 + 9)  # in four lanes, each prompt without its last token
    if cached:
        assert engine.stats.prefill_tokens_computed == distinct


def turn(engine: Engine, number: int, history: Sequence[int]) -> tuple[tuple[int, ...], int]:
    """The reply to a chat so far, and how many tokens of prompts it computed."""
    before = engine.stats.prefill_tokens_computed
    sampling = Sampling(max_new_tokens=6, min_new_tokens=6)
    weights = EVERYONE[: len(engine.lanes)]
    (done,) = run(engine, [Request(str(number), tuple(history), weights, sampling)])
    return done.token_ids, engine.stats.prefill_tokens_computed - before


@pytest.mark.parametrize("tokens", [3, None])
def test_a_chat_of_three_turns_computes_its_new_tokens_only(tokens: int | None, tmp_path: Path) -> None:
    base = tiny_causal(tmp_path / "base", "llama")
    adapters = adapters_of(BY_NAME["llama"], base, tmp_path)
    chat = engine_of(base, adapters, prefill_tokens=tokens)
    forgetful = engine_of(base, adapters, prefill_cache_bytes=0)
    history, known = [*SYSTEM, 5, 6], 0
    for number, said in enumerate(((33,), (34, 35, 36), (37, 38))):
        history += said
        reply, computed = turn(chat, number, history)
        assert reply == turn(forgetful, number, history)[0]
        # A prompt's last token is fed by the first step, a reply's last one with the turn after it.
        assert computed == 4 * (len(history) - 1 - known)
        known = len(history) - 1 + len(reply)
        history += reply
    assert chat.stats.prefill_tokens_found == 4 * (known - len(reply) - computed // 4 + 16)


def test_activated_lanes_find_each_others_prompts(tmp_path: Path) -> None:
    """One that was read under some weights is known under all others, up to the invocation; the reply of an adapter is
    read again in the turn after it, where its turn is no longer the last."""
    base = tiny_causal(tmp_path / "base", "qwen2")
    adapters = [
        tiny_causal_adapter(base, tmp_path / name, 2 + i, i, "all-linear", alora_invocation_tokens=[33, 60])
        for i, name in enumerate(NAMES[1:])
    ]
    engine, judge = engine_of(base, adapters, prefill_tokens=4), SeparateModels(base, adapters)
    history, counts = [*SYSTEM, 33, 60], []
    for lane in (1, 2, 3):
        before = engine.stats.prefill_tokens_computed
        one = tuple(float(i == lane) for i in range(4))
        (done,) = run(engine, [Request(str(lane), tuple(history), one, Sampling(max_new_tokens=5))])
        counts.append(engine.stats.prefill_tokens_computed - before)
        assert done.token_ids == expected_like(judge, history, one, 5)
        if lane == 2:
            history += [*done.token_ids, 70, 33, 60]
            reply = len(done.token_ids)
    assert counts == [8 + 1, 1, 2 + reply + 1 + 1]


def expected_like(
    judge: SeparateModels, prompt: Sequence[int], weights: Sequence[float], tokens: int
) -> tuple[int, ...]:
    row = judge.greedy(tuple(prompt), torch.tensor([weights]), tokens)[0][0].tolist()
    return tuple(row[: row.index(1) + 1] if 1 in row else row)


def test_the_base_and_a_mix_share_nothing_but_what_they_share(tmp_path: Path) -> None:
    """Plain adapters act on the whole prompt: a lane's beginning is known to that lane alone."""
    base = tiny_causal(tmp_path / "base", "llama")
    engine = engine_of(base, adapters_of(BY_NAME["llama"], base, tmp_path))
    for number, mix in enumerate(MIXES.tolist()):
        run(engine, [Request(str(number), SYSTEM, tuple(mix), Sampling(max_new_tokens=2))])
    assert engine.stats.prefill_tokens_computed == 4 * (len(SYSTEM) - 1)
