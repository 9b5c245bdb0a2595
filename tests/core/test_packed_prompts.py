"""Prompts of different lengths in one pass, side by side without padding, against the same prompts one by one."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from emorl_core.adapters.adapter import read_peft
from emorl_core.bundles.bundle import ADAPTERS_DIR, BASE_DIR
from emorl_core.engine.engine import Engine
from emorl_core.lanes.index import round_rows
from emorl_core.lanes.lane import Lane, lane_points
from emorl_core.lanes.linear import LaneLinear
from emorl_core.models.family import LaneModel, Piece
from emorl_core.models.packing import batches
from emorl_core.types import Request, Sampling
from tests.builders import OBJECTIVES, tiny_adapter, tiny_t5
from tests.core.bases import load as load_t5
from tests.core.causal_reference import named_lanes
from tests.core.driving import run, said
from tests.core.test_causal_engine import NAMES
from tests.core.test_causal_golden import adapters_of, loaded
from tests.supported_models import ARCHITECTURES, BY_NAME, Architecture, tiny_causal

SYSTEM = (12, 80, 22, 41, 41, 9, 77, 30)
LENGTHS = (1, 13, 4, 13, 7, 30, 4)


def encoder_layer(model: LaneModel) -> LaneLinear:
    return next(layer for names, layer in model.linears() if names[0].startswith("encoder"))


def prompts_of(lengths: Sequence[int], seed: int = 0) -> list[tuple[int, ...]]:
    draw = random.Random(seed)
    return [tuple(draw.randrange(3, 90) for _ in range(length)) for length in lengths]


def assert_each_is_what_it_is_alone(model: LaneModel, pieces: Sequence[Piece]) -> None:
    for piece, memory in zip(pieces, model.prefill(pieces), strict=True):
        (alone,) = model.prefill([piece])
        torch.testing.assert_close(memory.kv, alone.kv, atol=1e-5, rtol=1e-4)
        assert memory.kv.untyped_storage().nbytes() == memory.nbytes, "it keeps more than itself alive"


def rows_met(layer: LaneLinear) -> list[int]:
    """The rows of every product with this layer's matrix from now on."""
    met: list[int] = []
    layer.base.register_forward_pre_hook(lambda _, args: met.append(len(args[0])))
    return met


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda architecture: architecture.name)
def test_a_decoder_reads_whole_prompts_and_continued_ones_in_one_pass(
    architecture: Architecture, tmp_path: Path
) -> None:
    """All lanes, some behind what a cache knew of them: of equal and different lengths, before and after."""
    base = tiny_causal(tmp_path / "base", architecture.name)
    model = loaded(base, adapters_of(architecture, base, tmp_path))
    lanes = [lane for prompt in prompts_of(LENGTHS) for lane in named_lanes(model, (*SYSTEM, *prompt))]
    pieces = []
    for i, lane in enumerate(lanes):
        passage = model.passage(lane, (3, 4))
        known = (0, 5, 8)[i % 3]
        past = model.prefill([Piece(passage, 0, known)])[0] if known else None
        pieces.append(Piece(passage, known, len(passage.labels), past))
    assert_each_is_what_it_is_alone(model, pieces)


@pytest.mark.parametrize("encoding", [True, False], ids=["adapters on all", "adapters on the decoder"])
@pytest.mark.parametrize("gated", [False, True])
def test_an_encoder_reads_prompts_in_one_pass(encoding: bool, gated: bool, tmp_path: Path) -> None:
    """In all lanes, where they share the encoder and where they do not."""
    base = tiny_t5(tmp_path / "base", gated=gated)
    options: dict[str, Any] = {} if encoding else {"targets": r"decoder\..*\.(q|k|v|o)"}
    for number, name in enumerate(OBJECTIVES, start=1):
        tiny_adapter(base, tmp_path / name, 2 * number, 4.0, number, **options)
    model = load_t5(base)
    model.attach([read_peft(tmp_path / name, name) for name in OBJECTIVES])
    points = lane_points(len(OBJECTIVES))
    lanes = [Lane(point, prompt) for prompt in prompts_of(LENGTHS) for point in points]
    assert_each_is_what_it_is_alone(model, [Piece.whole(model.passage(lane, ())) for lane in lanes])
    met = rows_met(encoder_layer(model))
    model.prefill([Piece.whole(model.passage(lane, ())) for lane in lanes])
    assert met == [round_rows(sum(LENGTHS) * (len(points) if encoding else 1))]


def t5_engine(bundle: Path, **options: int | None) -> Engine:
    model = load_t5(bundle / BASE_DIR)
    model.attach([read_peft(bundle / ADAPTERS_DIR / name, name) for name in OBJECTIVES])
    return Engine(model, lambda ids: " ".join(map(str, ids)), ("base", *OBJECTIVES), **options)


def causal_engine(folder: Path, **options: int | None) -> Engine:
    base = tiny_causal(folder / "base", "llama")
    model = loaded(base, adapters_of(BY_NAME["llama"], base, folder))
    return Engine(model, lambda ids: " ".join(map(str, ids)), NAMES, **options)


@pytest.mark.parametrize("tokens", [None, 16])
@pytest.mark.parametrize("family", ["t5", "causal"])
def test_requests_admitted_together_say_what_each_says_alone(
    family: str, tokens: int | None, tmp_path: Path, plain_bundle: Path
) -> None:
    """Mixed lengths and weights, with and without prefixes that the cache knows, joining whoever runs."""

    def engine(**options: int | None) -> Engine:
        return t5_engine(plain_bundle, **options) if family == "t5" else causal_engine(tmp_path, **options)

    draw = random.Random(3)
    requests = [
        Request(
            str(i),
            (*(SYSTEM if i % 2 else ()), *prompt),
            tuple(draw.choice((0.0, draw.uniform(0.1, 1.0))) if lane else 0.1 for lane in range(4)),
            Sampling(max_new_tokens=10, temperature=draw.choice((0.0, 1.0)), seed=i),
        )
        for i, prompt in enumerate(prompts_of((*LENGTHS, 2, 19)))
    ]
    sole = engine(prefill_cache_bytes=0)
    expected = [said(run(sole, [request])[0]) for request in requests]
    together = engine(slots=6, prefill_tokens=tokens)
    run(together, [Request("before", (*SYSTEM, 5), (0.25,) * 4, Sampling(max_new_tokens=2))])
    for _ in range(2):  # the second time, the cache knows them all
        assert [said(done) for done in run(together, requests)] == expected
    assert together.faults == 0
    if family == "causal":
        assert together.stats.prefill_tokens_found > 4 * len(SYSTEM)


def test_requests_admitted_in_one_step_are_one_product_over_their_own_tokens(
    tmp_path: Path, plain_bundle: Path
) -> None:
    prompts = prompts_of(LENGTHS)
    requests = [Request(str(i), p, (0.25,) * 4, Sampling(max_new_tokens=1)) for i, p in enumerate(prompts)]
    encoder, decoder = t5_engine(plain_bundle), causal_engine(tmp_path)
    encoded = rows_met(encoder_layer(encoder.runner.model))
    run(encoder, requests)
    assert encoded == [round_rows(4 * sum(LENGTHS))]
    decoded = rows_met(next(layer for _, layer in decoder.runner.model.linears()))
    run(decoder, requests)
    # A prompt's last token is fed by the first step.
    assert decoded == [round_rows(4 * (sum(LENGTHS) - len(LENGTHS))), 4 * len(LENGTHS)]


def test_sequences_of_equal_size_are_adjacent_and_passes_are_bounded() -> None:
    sizes = [(0, 30), (4, 2), (0, 7), (4, 2), (0, 30), (9, 50)]
    assert list(batches(sizes, (100, 200))) == [[2, 0, 4, 1, 3, 5]]
    assert list(batches(sizes, (100, 40))) == [[2, 0], [4, 1, 3], [5]]
    assert list(batches(sizes, (7, 200))) == [[2, 0, 4, 1], [3], [5]]
    assert list(batches([], (1,))) == []
