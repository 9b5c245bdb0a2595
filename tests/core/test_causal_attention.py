"""The attention function and the steps over its cache against plain definitions of what they compute."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from emorl_core.cache.store import Store
from emorl_core.lanes.lane import Lane
from emorl_core.models.causal.attention import CachedPass, ContinuedPass, RepliesPass, WholePass, lane_attention
from emorl_core.models.causal.load import load
from emorl_core.models.causal.model import CausalModel
from emorl_core.models.config import read_config
from tests.core.causal_reference import SeparateModels, index_of, named_lanes
from tests.core.driving import read_whole
from tests.core.test_causal_golden import CPU, PROMPTS, adapters_of, loaded
from tests.supported_models import BY_NAME, tiny_causal

HEADS, SHARED, SIZE = 6, 2, 4
OPTIONS: list[dict[str, Any]] = [
    {},
    {"sliding_window": 3},
    {"sliding_window": 600},
    {"softcap": 1.5},
    {"s_aux": torch.linspace(-2, 3, HEADS).double()},
    {"sliding_window": 5, "softcap": 2.0, "s_aux": torch.linspace(-2, 3, HEADS).double(), "scaling": 0.7},
]
layer = nn.Module()
layer.layer_idx = 0


def by_definition(query: Tensor, keys: Tensor, values: Tensor, at: list[int], options: dict[str, Any]) -> Tensor:
    """One row, query by query and head by head. query [H, T, d], keys, values [K, S, d], at: the queries' positions."""
    out = torch.zeros(query.shape[1], HEADS, SIZE, dtype=query.dtype)
    window = options.get("sliding_window") or 10**9
    for i, place in enumerate(at):
        for head in range(HEADS):
            seen = slice(max(0, place - window + 1), place + 1)
            shared = head // (HEADS // SHARED)
            scores = keys[shared, seen] @ query[head, i] * options.get("scaling", SIZE**-0.5)
            if cap := options.get("softcap"):
                scores = cap * torch.tanh(scores / cap)
            weights = scores.exp()
            sink = options["s_aux"][head].exp() if "s_aux" in options else 0.0
            out[i, head] = (weights / (weights.sum() + sink)) @ values[shared, seen]
    return out


def drawn(rows: int, heads: int, tokens: int, seed: int) -> Tensor:
    return torch.randn(rows, heads, tokens, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: ", ".join(options) or "plain")
def test_whole_sequences(options: dict[str, Any]) -> None:
    query, keys, values = drawn(2, HEADS, 7, 1), drawn(2, SHARED, 7, 2), drawn(2, SHARED, 7, 3)
    seen = WholePass(7, dtype=torch.float64, device=CPU)
    found, _ = lane_attention(layer, query, keys, values, None, lane_pass=seen, **options)
    for row in range(2):
        torch.testing.assert_close(
            found[row], by_definition(query[row], keys[row], values[row], list(range(7)), options)
        )
    assert seen.kept[0][0] is keys


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: ", ".join(options) or "plain")
@pytest.mark.parametrize("new", [1, 3])
@pytest.mark.parametrize(
    ("lengths", "runs"),
    [((1100, 0, 5), 2), ((3, 40, 0, 700, 1100), 3), ((5, 0, 40), 0), ((900, 3, 900, 3, 900, 3), 0)],
    ids=["long first", "long last", "alike", "too many runs"],
)
def test_new_tokens_of_ragged_rows(new: int, lengths: tuple[int, ...], runs: int, options: dict[str, Any]) -> None:
    """Rows of very different lengths, one empty, one across several blocks of any kernel; short ones do not read as far
    as long ones."""
    cache = Store(1, SHARED, SIZE, dtype=torch.float64, device=CPU)
    past = [drawn(2, SHARED, length, 7 + length) for length in lengths]
    for memory in past:
        cache.add(memory.unsqueeze(1))
    cache.reserve(new)
    query, keys, values = (drawn(len(lengths), heads, new, i) for i, heads in ((1, HEADS), (2, SHARED), (3, SHARED)))
    positions = torch.tensor(lengths).unsqueeze(1) + torch.arange(new)
    seen = CachedPass(cache, positions, [length + new for length in lengths], torch.float64)
    assert len(seen.runs) == runs
    found, _ = lane_attention(layer, query, keys, values, None, lane_pass=seen, **options)
    for row, memory in enumerate(past):
        all_keys, all_values = torch.cat([memory[0], keys[row]], 1), torch.cat([memory[1], values[row]], 1)
        expected = by_definition(query[row], all_keys, all_values, positions[row].tolist(), options)
        torch.testing.assert_close(found[row], expected)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: ", ".join(options) or "plain")
def test_replies_see_their_prompt_and_themselves(options: dict[str, Any]) -> None:
    """And what all replies of a row begin with."""
    lengths, begun, replies, tokens = (6, 0, 2), 2, 2, 4
    total = begun + replies * tokens
    prompt_keys, prompt_values = drawn(3, SHARED, 6, 4), drawn(3, SHARED, 6, 5)
    query, keys, values = (drawn(3, heads, total, i) for i, heads in enumerate((HEADS, SHARED, SHARED)))
    segments = torch.tensor([[0] * begun + [1] * tokens + [2] * tokens]).expand(3, -1)
    at = torch.tensor([[*range(begun), *[*range(begun, begun + tokens)] * replies]]).expand(3, -1)
    seen = RepliesPass([(prompt_keys, prompt_values)], torch.tensor(lengths), segments, at, torch.float64)
    found, _ = lane_attention(layer, query, keys, values, None, lane_pass=seen, **options)
    for row, length in enumerate(lengths):
        for reply in range(replies):
            own = [*range(begun), *range(begun + reply * tokens, begun + (reply + 1) * tokens)]
            all_keys = torch.cat([prompt_keys[row, :, :length], keys[row][:, own]], 1)
            all_values = torch.cat([prompt_values[row, :, :length], values[row][:, own]], 1)
            places = list(range(length, length + begun + tokens))
            assert seen.positions[row, own].tolist() == places
            expected = by_definition(query[row][:, own], all_keys, all_values, places, options)
            torch.testing.assert_close(found[row, own], expected)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: ", ".join(options) or "plain")
def test_what_goes_on_sees_what_was_there_and_itself(options: dict[str, Any]) -> None:
    lengths, tokens = (6, 0, 2), 5
    past_keys, past_values = drawn(3, SHARED, 6, 4), drawn(3, SHARED, 6, 5)
    query, keys, values = (drawn(3, heads, tokens, i) for i, heads in enumerate((HEADS, SHARED, SHARED)))
    seen = ContinuedPass([(past_keys, past_values)], torch.tensor(lengths), tokens, torch.float64)
    found, _ = lane_attention(layer, query, keys, values, None, lane_pass=seen, **options)
    for row, length in enumerate(lengths):
        all_keys = torch.cat([past_keys[row, :, :length], keys[row]], 1)
        all_values = torch.cat([past_values[row, :, :length], values[row]], 1)
        at = list(range(length, length + tokens))
        assert seen.positions[row].tolist() == at
        torch.testing.assert_close(found[row], by_definition(query[row], all_keys, all_values, at, options))
    assert seen.kept[0][0] is keys


@pytest.mark.parametrize("options", [{"is_causal": False}, {"lane_pass": None}])
def test_a_module_that_attends_otherwise_is_an_error(options: dict[str, Any]) -> None:
    query, keys, values = drawn(1, HEADS, 2, 1), drawn(1, SHARED, 2, 2), drawn(1, SHARED, 2, 3)
    seen = WholePass(2, dtype=torch.float64, device=CPU)
    with pytest.raises(ValueError, match="brings a mask of its own or attends both ways"):
        lane_attention(layer, query, keys, values, None, **{"lane_pass": seen, **options})
    with pytest.raises(ValueError, match="brings a mask of its own or attends both ways"):
        lane_attention(layer, query, keys, values, torch.ones(1, 1, 2, 2), lane_pass=seen)


@pytest.fixture(scope="module", params=["gemma2", "gpt_oss", "gpt2"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> CausalModel:
    folder = tmp_path_factory.mktemp(request.param)
    base = tiny_causal(folder / "base", request.param)
    return loaded(base, adapters_of(BY_NAME[request.param], base, folder))


@torch.inference_mode()
def steps(model: CausalModel, lanes: list[Lane], fed: Tensor, sizes: list[int]) -> Tensor:
    """Hidden states [M, T, D] of tokens [M, T] fed in pieces of these sizes."""
    cache = model.new_cache()
    for lane in lanes:
        cache.insert(read_whole(model, [lane])[0] if len(lane.prompt_ids) > 1 else None)
    index = index_of(model, lanes)
    return torch.cat([model.step(piece, index, cache) for piece in fed.split(sizes, dim=1)], dim=1)


def lanes_of(model: CausalModel, prompts: Sequence[tuple[int, ...]], numbers: list[int]) -> list[Lane]:
    return [named_lanes(model, prompt)[number] for prompt, number in zip(prompts, numbers, strict=True)]


def test_steps_of_any_size_and_company_are_one_computation(model: CausalModel) -> None:
    lanes = lanes_of(model, [*PROMPTS, *PROMPTS], [0, 1, 2, 3, 1, 0])
    fed = torch.randint(3, 90, (6, 8), generator=torch.Generator().manual_seed(3))
    fed[:, 0] = torch.tensor([lane.prompt_ids[-1] for lane in lanes])
    one_by_one = steps(model, lanes, fed, [1] * 8)
    torch.testing.assert_close(steps(model, lanes, fed, [8]), one_by_one, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(steps(model, lanes, fed, [3, 1, 4]), one_by_one, atol=1e-4, rtol=1e-4)
    for row in range(6):
        alone = steps(model, lanes[row : row + 1], fed[row : row + 1], [1] * 8)
        torch.testing.assert_close(alone[0], one_by_one[row], atol=1e-4, rtol=1e-4)


def test_a_prompt_fed_in_pieces_is_a_prompt_prefilled(model: CausalModel) -> None:
    prompt = PROMPTS[0]
    for number in range(4):
        whole = steps(model, lanes_of(model, [prompt], [number]), torch.tensor([prompt[-1:]]), [1])
        pieces = steps(model, lanes_of(model, [prompt[:1]], [number]), torch.tensor([prompt]), [4, 1, 3, 2])
        torch.testing.assert_close(pieces[:, -1:], whole, atol=1e-4, rtol=1e-4)


def test_a_neighbour_does_not_change_a_prefill(model: CausalModel) -> None:
    lanes = lanes_of(model, PROMPTS, [3, 1, 2])
    for lane, memory in zip(lanes, read_whole(model, lanes), strict=True):
        (alone,) = read_whole(model, [lane])
        assert memory.length == len(lane.prompt_ids) - 1
        torch.testing.assert_close(alone.kv, memory.kv, atol=1e-4, rtol=1e-4)


def test_head_rows_are_the_head_before_its_bias_and_cap(model: CausalModel) -> None:
    hidden = torch.randn(3, model.head_rows(torch.tensor([0])).shape[1], generator=torch.Generator().manual_seed(1))
    rows = model.head_rows(torch.arange(model.facts.vocab_size))
    cap = 3.0 if model.facts.architecture == "gemma2" else None
    products = hidden @ rows.t()
    expected = products if cap is None else torch.tanh(products / cap) * cap
    torch.testing.assert_close(model.head(hidden), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model.head(hidden.repeat(9, 1))[:3], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_matrices_say_what_plain_ones_do(dtype: torch.dtype, tmp_path: Path) -> None:
    """Matrices large enough for the CPU's blocked layout, with biases, in both number formats."""
    base = tiny_causal(
        tmp_path / "base", "qwen2", hidden_size=512, intermediate_size=640, num_attention_heads=8, num_hidden_layers=2
    )
    model = load(base, read_config(base), device=CPU, dtype=dtype, training=False)
    trained = load(base, read_config(base), device=CPU, dtype=dtype, training=True)
    lanes = lanes_of(model, PROMPTS, [0, 0, 0])
    fed = torch.tensor([prompt[-1:] for prompt in PROMPTS])
    packed = model.head(steps(model, lanes, fed, [1])[:, 0])
    plain = trained.head(steps(trained, lanes, fed, [1])[:, 0])
    library = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, attn_implementation="eager")
    with torch.no_grad():
        expected = torch.stack([library(input_ids=torch.tensor([prompt])).logits[0, -1].float() for prompt in PROMPTS])
    room = 1e-3 if dtype == torch.float32 else 0.06
    for found in (packed, plain):
        assert float((found - expected).norm() / expected.norm()) < room
    assert sum(model.parameter_bytes().values()) == sum(p.numel() * p.element_size() for p in library.parameters())


def test_end_of_turn_ids_are_all_of_the_generation_configs(tmp_path: Path) -> None:
    base = tiny_causal(tmp_path, "llama")
    for written, expected in (
        ('{"eos_token_id": [1, 44]}', (1, 44)),
        ('{"eos_token_id": 7}', (7,)),
        ('{"eos_token_id": null}', (1,)),
        ("{}", (1,)),
    ):
        (base / "generation_config.json").write_text(written)
        assert loaded(base, []).facts.eos_token_ids == expected
    (base / "generation_config.json").unlink()
    assert loaded(base, []).facts.eos_token_ids == (1,)


def test_a_head_with_a_bias_counts_it_once(tmp_path: Path) -> None:
    """Phi's: mixed hidden states whose weights add up to 3 still get one bias."""
    base = tiny_causal(tmp_path, "phi")
    model, judge = loaded(base, []), SeparateModels(base, [])
    hidden = judge.hidden(torch.tensor([PROMPTS[0]]), len(PROMPTS[0]))[0] * 3.0
    torch.testing.assert_close(model.head(hidden[0]), judge.logits(hidden)[0], atol=1e-4, rtol=0.0)
    assert judge.models[0].get_output_embeddings().bias.abs().max() > 0.1
