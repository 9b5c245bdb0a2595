"""One training step of three objectives on a decoder-only base: in one run, and in three runs one after the other.

    python -m benchmarks.causal_training --shape smollm2-135m --rounds 5

Random weights of a published shape. All prompts end with the same tokens, as a chat template's header makes them. One
token in `--mean` ends a reply, so lengths differ as those of real replies do. A step is rollout, log-probabilities of
policy and base, backward, clipping, AdamW. The sides:

reply   one run, adapters that act on the reply (activated LoRA): the prompt is read once for all
all     one run, adapters that act everywhere
apart   three runs of one objective each, one after the other, with the adapters of `reply`
peft    three loops in transformers and PEFT, one after the other: `generate`, then whole sequences, adapters everywhere

Steps of the sides alternate; times are medians over rounds with the smallest and the largest, ratios are taken round by
round. `processor` is the processor time of all threads: on a busy machine it wavers less. One JSON line for machines
comes last.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.training_sides import ALPHA, CLIP, DROPOUT, KL, NAMES, RANK, RATE, Ours, device_of, score, spread, wait
from training.rl import losses

# From the public config of HuggingFaceTB/SmolLM2-135M-Instruct; the tiny one is no model's, for trying this program.
SHAPES: dict[str, dict[str, int]] = {
    "smollm2-135m": {
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    },
    "tiny": {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
}
HEADER = (3, 5, 7)  # what every prompt ends with
SIDES = ("reply", "all", "apart", "peft")
PARTS = ("total", "rollout", "gradient", "processor")


def write_base(folder: Path, shape: str, mean: int) -> None:
    """The checkpoint that all sides load. mean: tokens of a reply, if nothing cut it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = SHAPES[shape]
    torch.manual_seed(0)
    ends = list(range(11, sizes["vocab_size"], mean))
    model = LlamaForCausalLM(
        LlamaConfig(
            **sizes,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            bos_token_id=1,
            eos_token_id=ends,
            pad_token_id=0,
        )
    )
    model.generation_config.eos_token_id = ends
    model.save_pretrained(folder)


class Apart:
    """Our trainer with one objective at a time."""

    def __init__(self, folder: Path, args: argparse.Namespace, prompts: Tensor) -> None:
        self.runs = [Ours(folder, args, prompts, [name], HEADER) for name in NAMES]

    def step(self) -> dict[str, float]:
        return added_up([run.step() for run in self.runs])


class Peer:
    """One objective alone: its own transformers model with a PEFT adapter, its own loop."""

    def __init__(self, folder: Path, args: argparse.Namespace, prompts: Tensor) -> None:
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        base = AutoModelForCausalLM.from_pretrained(folder / "base").to(device_of(args.device))
        config = LoraConfig(
            r=RANK, lora_alpha=ALPHA, lora_dropout=DROPOUT, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        self.model = get_peft_model(base, config)
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=RATE)
        self.args, self.prompts = args, prompts.to(device_of(args.device))
        ends = self.model.generation_config.eos_token_id
        self.ends = torch.tensor(ends, device=self.prompts.device)

    def step(self) -> dict[str, float]:
        begun = time.perf_counter()
        whole = self._sample()  # [M, S + T]
        wait()
        sampled = time.perf_counter()
        replies = whole[:, self.prompts.shape[1] :]
        ended = torch.isin(replies, self.ends).cumsum(dim=1)
        mask = ((ended == 0) | ((ended == 1) & torch.isin(replies, self.ends))).float()  # the end itself included
        sizes = [int(size) for size in mask.sum(1).tolist()]
        texts = [" ".join(map(str, row[:size])) for row, size in zip(replies.tolist(), sizes, strict=True)]
        rewards = torch.tensor(score(texts, texts), device=replies.device).view(-1, self.args.samples)
        advantage = losses.advantages(rewards, "leave_one_out").flatten()
        weights = losses.token_weights(mask.bool(), "sequence_sum", replies=len(replies), tokens=0)
        self.model.eval()
        with torch.no_grad(), self.model.disable_adapter():
            base = self._logprobs(whole)
        self.model.train()
        own = self._logprobs(whole)
        loss = losses.policy_loss(own, advantage, weights) + KL * losses.kl_loss(own, base, weights)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad()
        wait()
        ended_at = time.perf_counter()
        return {
            "total": ended_at - begun,
            "rollout": sampled - begun,
            "gradient": ended_at - sampled,
            "tokens": float(mask.sum(1).mean()),
        }

    def _sample(self) -> Tensor:
        self.model.eval()
        with torch.inference_mode():
            ids: Tensor = self.model.generate(
                input_ids=self.prompts,
                attention_mask=torch.ones_like(self.prompts),
                do_sample=True,
                top_k=0,
                temperature=1.0,
                num_return_sequences=self.args.samples,
                max_new_tokens=self.args.new,
                use_cache=True,
            )
        return ids.clone()

    def _logprobs(self, whole: Tensor) -> Tensor:
        """[M, S + T] -> log p of the T reply tokens."""
        size = self.prompts.shape[1]
        logits = self.model(input_ids=whole, logits_to_keep=whole.shape[1] - size + 1).logits[:, :-1]
        chosen = logits.gather(2, whole[:, size:].unsqueeze(2)).squeeze(2)
        return chosen - torch.logsumexp(logits, dim=2)


class Peers:
    """The loops of all objectives, one after the other."""

    def __init__(self, folder: Path, args: argparse.Namespace, prompts: Tensor) -> None:
        self.loops = [Peer(folder, args, prompts) for _ in NAMES]

    def step(self) -> dict[str, float]:
        return added_up([loop.step() for loop in self.loops])


def added_up(each: Sequence[dict[str, float]]) -> dict[str, float]:
    whole = {key: sum(one[key] for one in each) for key in ("total", "rollout", "gradient")}
    return {**whole, "tokens": statistics.fmean(one["tokens"] for one in each)}


def measured(sides: dict[str, Any], rounds: int) -> dict[str, list[dict[str, float]]]:
    """The sides take turns; the first round warms up and is not kept."""
    times: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, side in sides.items():
            begun = time.process_time()
            taken = side.step()
            taken["processor"] = time.process_time() - begun
            print(f"round {number} of {rounds}: {name} {taken['total']:.2f} s", file=sys.stderr, flush=True)
            if number:
                times[name].append(taken)
    return times


def summary(times: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Prints the lines for people; returns those for machines."""
    result: dict[str, Any] = {}
    for name, rounds in times.items():
        shown = {key: [one[key] for one in rounds] for key in PARTS}
        tokens = statistics.fmean(one["tokens"] for one in rounds)
        print(f"  {name:6}" + "  ".join(f"{key} {spread(values)}" for key, values in shown.items())
              + f"  tokens a reply {tokens:.1f}")  # fmt: skip
        result[name] = {key: statistics.median(values) for key, values in shown.items()} | {"tokens": tokens}
    for slow in ("apart", "peft"):
        for fast in ("reply", "all"):
            if slow in times and fast in times:
                ratios = [a["total"] / b["total"] for a, b in zip(times[slow], times[fast], strict=True)]
                busy = [a["processor"] / b["processor"] for a, b in zip(times[slow], times[fast], strict=True)]
                print(f"  {slow} / {fast}: {spread(ratios)}; in processor time {spread(busy)}")
                result[f"{slow}_over_{fast}"] = {
                    "median": statistics.median(ratios),
                    "least": min(ratios),
                    "most": max(ratios),
                    "processor": statistics.median(busy),
                }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="smollm2-135m")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--source", type=int, default=96, help="tokens of a prompt")
    parser.add_argument("--new", type=int, default=40, help="tokens of a reply at most")
    parser.add_argument("--mean", type=int, default=40, help="one token in so many ends a reply")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--only", choices=("reply", "all", "apart", "peft"), action="append", help="leave the others out"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore", category=FutureWarning)  # peft's, about transformers

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_base(folder / "base", args.shape, args.mean)
        random = torch.Generator().manual_seed(1)
        ids = torch.randint(12, SHAPES[args.shape]["vocab_size"], (args.prompts, args.source), generator=random)
        ids[:, -len(HEADER) :] = torch.tensor(HEADER)
        makers: dict[str, Callable[[], Any]] = {
            "reply": lambda: Ours(folder, args, ids, NAMES, HEADER),
            "all": lambda: Ours(folder, args, ids),
            "apart": lambda: Apart(folder, args, ids),
            "peft": lambda: Peers(folder, args, ids),
        }
        times = measured(
            {name: make() for name, make in makers.items() if not args.only or name in args.only}, args.rounds
        )

    print(
        f"{args.shape}, {args.prompts} x {args.samples} samples x {len(NAMES)} objectives, {args.source} + up to "
        f"{args.new} tokens, {args.threads} threads, {args.rounds} rounds, load {os.getloadavg()[0]:.1f}; seconds a "
        "step, median (least to most)"
    )
    print(json.dumps({"machine": platform.machine(), "torch": torch.__version__, **vars(args), **summary(times)}))


if __name__ == "__main__":
    main()
