"""A causal base in parts over two processes (gloo) against the same base in one: hidden states, caches, adapters."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from emorl_core.adapters.adapter import read_peft
from emorl_core.errors import UnsupportedModel
from emorl_core.lanes.frozen import FrozenMatrix, packed_product_available
from emorl_core.models.causal.model import CausalModel
from emorl_core.models.parallel.group import ProcessGroup
from emorl_core.models.registry import load_model
from tests.apart import started
from tests.builders import tiny_t5
from tests.core.causal_reference import lockstep
from tests.supported_models import tiny_causal, tiny_causal_adapter

CPU = torch.device("cpu")
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PROMPTS = ([5, 9, 33, 70, 12, 8], [40, 41, 6])
MIXES = torch.tensor([[0.2, 0.5, 0.3], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [-0.5, 0.7, 0.8]])
CASES: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("llama", {"num_attention_heads": 8, "num_key_value_heads": 2}, "off"),  # grouped heads, biases
    ("llama", {"tie_word_embeddings": True, "vocab_size": 95}, "off"),  # shares of the vocabulary differ
    ("qwen3", {"hidden_size": 64, "intermediate_size": 128}, "off"),  # norms of heads
    ("smollm3", {}, "off"),  # layers without rotary positions
    ("llama", {"hidden_size": 64, "intermediate_size": 128}, "float16"),
    ("llama", {"hidden_size": 64, "intermediate_size": 128}, "int8"),
)


def _run(folder: Path, how: str, group: ProcessGroup | None) -> tuple[Tensor, Tensor, dict[str, int]]:
    """Tokens and logits of a few steps, and the parameters held."""
    model = load_model(folder / "base", device=CPU, dtype=torch.float32, group=group)
    assert isinstance(model, CausalModel)
    model.quantize(how)  # type: ignore[arg-type]  # a name of `CASES`
    model.attach([read_peft(folder / name, name) for name in ("one", "two")])
    tokens, logits = lockstep(model, PROMPTS, MIXES, 6)
    return tokens, logits, model.parameter_bytes()


def _as_rank(rank: int, port: int, folder: Path) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1")
    os.environ["MASTER_PORT"] = str(port)
    FrozenMatrix.PACK_FROM = 1  # so that tiny matrices are packed and quantised too
    group = ProcessGroup(CPU)
    for number, (_, _, how) in enumerate(CASES):
        torch.save(_run(folder / str(number), how, group), folder / f"{number}-{rank}.pt")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bases, and what each of two processes made of them."""
    folder = tmp_path_factory.mktemp("parts")
    for number, (kind, config, _) in enumerate(CASES):
        base = tiny_causal(folder / str(number) / "base", kind, **config)
        tiny_causal_adapter(base, folder / str(number) / "one", 2, 1, TARGETS)
        tiny_causal_adapter(base, folder / str(number) / "two", 3, 2, TARGETS[3:])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    processes = [started(_as_rank, rank, port, folder) for rank in range(2)]
    for process in processes:
        process.join(300)
        assert process.exitcode == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(CASES)))
def test_two_parts_say_what_the_whole_says(found: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """To rounding; whole numbers have a scale for each part of a row, and agree less closely."""
    monkeypatch.setattr(FrozenMatrix, "PACK_FROM", 1)
    how = CASES[number][2]
    if how != "off" and not packed_product_available():
        pytest.skip("matrices in fewer bits need a CPU of x86")
    tokens, logits, held = _run(found / str(number), how, None)
    parts = [torch.load(found / f"{number}-{rank}.pt") for rank in range(2)]
    for own_tokens, own_logits, own in parts:
        assert torch.equal(parts[0][1], own_logits)  # every process knows the same
        if how == "int8":
            assert float((own_logits - logits)[:, 0].norm() / logits[:, 0].norm()) < 0.05
        else:
            assert torch.equal(own_tokens, tokens)
            torch.testing.assert_close(own_logits, logits, rtol=0, atol=1e-3 if how == "float16" else 2e-4)
        assert own["base"] < 0.6 * held["base"]  # norms are everywhere
        assert own["adapters"] < 0.8 * held["adapters"]  # so is one factor of each layer


_WIDE = {"hidden_size": 48}


class _Three:
    """As much of a group as a refusal looks at."""

    size, rank = 3, 0


@pytest.mark.parametrize(
    ("kind", "config", "words"),
    [
        ("llama", {"num_attention_heads": 4}, "num_attention_heads is 4, which 3 processes cannot share"),
        ("llama", _WIDE | {"num_attention_heads": 6, "num_key_value_heads": 2}, "num_key_value_heads is 2"),
        ("llama", _WIDE | {"num_attention_heads": 3, "num_key_value_heads": 3, "intermediate_size": 49}, "size is 49"),
        ("gpt2", {}, "model_type 'gpt2' cannot be held in parts by 3 processes; allowed: llama"),
        ("gemma2", {}, "model_type 'gemma2' cannot be held in parts"),
    ],
)
def test_what_cannot_be_shared_is_refused(tmp_path: Path, kind: str, config: dict[str, Any], words: str) -> None:
    base = tiny_causal(tmp_path / "base", kind, **config)
    with pytest.raises(UnsupportedModel, match=words):
        load_model(base, device=CPU, dtype=torch.float32, group=_Three())  # type: ignore[arg-type]


def test_a_model_with_an_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="'t5' cannot be held in parts by 3 processes"):
        load_model(tiny_t5(tmp_path / "base"), device=CPU, dtype=torch.float32, group=_Three())  # type: ignore[arg-type]
