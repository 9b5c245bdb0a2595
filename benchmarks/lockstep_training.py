"""One training step of all objectives: our lockstep beside separate Hugging Face + PEFT loops on as many samples.

    python -m benchmarks.lockstep_training --shape t5-small --rounds 7

Random weights of a published shape, prompts of 64 tokens, replies of 32, 8 prompts x 3 samples per objective. A step is
rollout, log-probabilities of policy and base, backward, clipping, AdamW. Two peers, both on `generate` with its cache:

plain   what such a loop usually is: the gradient pass encodes a prompt once per reply
tuned   adapters merged into the base while sampling, prompts encoded once in the gradient pass

Steps of ours and of the peers alternate; times are medians over rounds with the smallest and the largest, the ratio is
taken round by round. `processor` is the processor time of all threads: on a busy machine it wavers less. One JSON line
for machines comes last.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.make_bundle import SHAPES, VOCABULARY, t5_config
from benchmarks.training_sides import (
    ALPHA,
    CLIP,
    DROPOUT,
    KL,
    NAMES,
    RANK,
    RATE,
    Ours,
    device_of,
    score,
    spread,
    wait,
)
from training.rl import losses


def write_base(folder: Path, shape: str) -> None:
    """The checkpoint both sides load."""
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    model = T5ForConditionalGeneration(T5Config(**t5_config(shape)))
    with torch.no_grad():
        model.shared.weight.mul_(0.2)  # random logits of a spread that sampling keeps away from one token
    model.save_pretrained(folder)


class Peer:
    """One objective alone: its own Hugging Face model with a PEFT adapter, its own loop."""

    def __init__(self, folder: Path, args: argparse.Namespace, prompts: Tensor, *, tuned: bool) -> None:
        from peft import LoraConfig, get_peft_model
        from transformers import T5ForConditionalGeneration

        base = T5ForConditionalGeneration.from_pretrained(folder / "base").to(device_of(args.device))
        config = LoraConfig(
            r=RANK, lora_alpha=ALPHA, lora_dropout=DROPOUT, target_modules="all-linear", task_type="SEQ_2_SEQ_LM"
        )
        self.model = get_peft_model(base, config)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=RATE)
        self.trained, self.args, self.tuned = trained, args, tuned
        self.prompts = prompts.to(device_of(args.device))
        self.mask = torch.ones_like(self.prompts)

    def step(self) -> dict[str, float]:
        begun = time.perf_counter()
        replies = self._sample()
        wait()
        sampled = time.perf_counter()
        k = self.args.samples
        texts = [" ".join(map(str, row)) for row in replies.tolist()]
        rewards = torch.tensor(score(texts, texts), device=replies.device).view(-1, k)
        advantage = losses.advantages(rewards, "leave_one_out").flatten()
        mask = torch.ones_like(replies, dtype=torch.float32)
        weights = losses.token_weights(mask, "sequence_sum", replies=len(replies), tokens=0)
        self.model.eval()
        with torch.no_grad(), self.model.disable_adapter():
            base = self._logprobs(replies)
        self.model.train()
        own = self._logprobs(replies)
        loss = losses.policy_loss(own, advantage, weights) + KL * losses.kl_loss(own, base, weights)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad()
        wait()
        ended = time.perf_counter()
        return {
            "total": ended - begun,
            "rollout": sampled - begun,
            "gradient": ended - sampled,
            "tokens": float(replies.shape[1]),
        }

    def _sample(self) -> Tensor:
        self.model.eval()
        if self.tuned:
            self.model.merge_adapter()
        with torch.inference_mode():
            ids: Tensor = self.model.generate(
                input_ids=self.prompts,
                attention_mask=self.mask,
                do_sample=True,
                top_k=0,
                temperature=1.0,
                num_return_sequences=self.args.samples,
                max_new_tokens=self.args.new,
                use_cache=True,
            )
        if self.tuned:
            self.model.unmerge_adapter()
        return ids[:, 1:].clone()

    def _logprobs(self, replies: Tensor) -> Tensor:
        k = self.args.samples
        inputs = torch.cat([torch.zeros_like(replies[:, :1]), replies[:, :-1]], dim=1)
        mask = self.mask.repeat_interleave(k, dim=0)
        if self.tuned:
            encoded = self.model.get_base_model().encoder(input_ids=self.prompts, attention_mask=self.mask)
            repeated = encoded.last_hidden_state.repeat_interleave(k, dim=0)
            out = self.model(encoder_outputs=(repeated,), attention_mask=mask, decoder_input_ids=inputs)
        else:
            ids = self.prompts.repeat_interleave(k, dim=0)
            out = self.model(input_ids=ids, attention_mask=mask, decoder_input_ids=inputs)
        chosen = out.logits.gather(2, replies.unsqueeze(2)).squeeze(2)
        return chosen - torch.logsumexp(out.logits, dim=2)


class Peers:
    """The loops of all objectives, one after the other."""

    def __init__(self, folder: Path, args: argparse.Namespace, prompts: Tensor, *, tuned: bool) -> None:
        self.loops = [Peer(folder, args, prompts, tuned=tuned) for _ in NAMES]

    def step(self) -> dict[str, float]:
        each = [loop.step() for loop in self.loops]
        whole = {key: sum(one[key] for one in each) for key in ("total", "rollout", "gradient")}
        return {**whole, "tokens": statistics.fmean(one["tokens"] for one in each)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="t5-small")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--samples", type=int, default=3)
    parser.add_argument("--source", type=int, default=64, help="tokens of a prompt")
    parser.add_argument("--new", type=int, default=32, help="tokens of a reply")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="auto")
    parser.add_argument("--only", choices=("ours", "plain", "tuned"), action="append", help="leave the others out")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore", category=FutureWarning)  # peft's, about transformers

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_base(folder / "base", args.shape)
        ids = torch.randint(2, VOCABULARY, (args.prompts, args.source), generator=torch.Generator().manual_seed(1))
        makers: dict[str, Callable[[], Any]] = {
            "ours": lambda: Ours(folder, args, ids),
            "plain": lambda: Peers(folder, args, ids, tuned=False),
            "tuned": lambda: Peers(folder, args, ids, tuned=True),
        }
        sides = {name: make() for name, make in makers.items() if not args.only or name in args.only}
        times: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
        for number in range(args.rounds + 1):
            for name, side in sides.items():
                begun = time.process_time()
                taken = side.step()
                taken["processor"] = time.process_time() - begun
                print(f"round {number} of {args.rounds}: {name} {taken['total']:.2f} s", file=sys.stderr, flush=True)
                if number:  # the first round warms up
                    times[name].append(taken)

    print(
        f"{args.shape}, {args.prompts} x {args.samples} samples x {len(NAMES)} objectives, {args.source} + {args.new} "
        f"tokens, {args.threads} threads, {args.rounds} rounds; seconds a step, median (least to most)"
    )
    result: dict[str, Any] = {"machine": platform.machine(), "torch": torch.__version__, **vars(args)}
    for name, rounds in times.items():
        shown = {key: [one[key] for one in rounds] for key in ("total", "rollout", "gradient", "processor")}
        print(f"  {name:6}" + "  ".join(f"{key} {spread(values)}" for key, values in shown.items())
              + f"  tokens a reply {statistics.fmean(one['tokens'] for one in rounds):.1f}")  # fmt: skip
        result[name] = {key: statistics.median(values) for key, values in shown.items()}
    for name in times.keys() - {"ours"} if "ours" in times else ():
        ratios = [peer["total"] / own["total"] for peer, own in zip(times[name], times["ours"], strict=True)]
        busy = [peer["processor"] / own["processor"] for peer, own in zip(times[name], times["ours"], strict=True)]
        print(f"  {name} / ours: {spread(ratios)}; in processor time {spread(busy)}")
        result[f"{name}_over_ours"] = {
            "median": statistics.median(ratios),
            "least": min(ratios),
            "most": max(ratios),
            "processor": statistics.median(busy),
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
