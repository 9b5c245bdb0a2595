"""The trainer's peer: a loop in transformers and PEFT that trains a single objective."""

from __future__ import annotations

import argparse
import time
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from benchmarks.training.sides import ALPHA, CLIP, DROPOUT, KL, RANK, RATE, device_of, score, wait
from training.rl import losses


class Peer(ABC):
    """One model with a PEFT adapter on all linear layers. A step is `generate`, advantages, policy loss and KL, AdamW.

    Letters: B prompts, S tokens per prompt, k samples, M = B * k replies, T tokens per reply.
    """

    def __init__(self, model: Any, task: str, args: argparse.Namespace, prompts: Tensor, *, lead: int) -> None:
        """task: PEFT's task type; prompts: [B, S]; lead: tokens that `generate` returns before the reply."""
        from peft import LoraConfig, get_peft_model

        device = device_of(args.device)
        config = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=DROPOUT, target_modules="all-linear", task_type=task)
        self.model = get_peft_model(model.to(device), config)
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=RATE)
        self.args, self.prompts, self.lead = args, prompts.to(device), lead
        self.mask = torch.ones_like(self.prompts)
        ends = self.model.generation_config.eos_token_id
        self.ends = torch.tensor([ends] if isinstance(ends, int) else ends, device=device)

    @abstractmethod
    def logprobs(self, replies: Tensor) -> Tensor:
        """replies [M, T] -> log p of each token [M, T]."""

    def sample(self) -> Tensor:
        """Replies [M, T], padded after the end."""
        self.model.eval()
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
        return ids[:, self.lead :].clone()

    def step(self) -> dict[str, float]:
        begun = time.perf_counter()
        replies = self.sample()
        wait()
        sampled = time.perf_counter()
        is_end = torch.isin(replies, self.ends)
        mask = (is_end.cumsum(dim=1) - is_end.int() == 0).float()  # including the end itself
        sizes = [int(size) for size in mask.sum(1).tolist()]
        texts = [" ".join(map(str, row[:size])) for row, size in zip(replies.tolist(), sizes, strict=True)]
        rewards = torch.tensor(score(texts, texts), device=replies.device).view(-1, self.args.samples)
        advantage = losses.advantages(rewards, "leave_one_out").flatten()
        weights = losses.token_weights(mask, "sequence_sum", replies=len(replies), tokens=0)
        self.model.eval()
        with torch.no_grad(), self.model.disable_adapter():
            base = self.logprobs(replies)
        self.model.train()
        own = self.logprobs(replies)
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
            "tokens": float(mask.sum(1).mean()),
        }
