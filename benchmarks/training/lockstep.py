"""One training step of all objectives: our lockstep compared with separate Hugging Face + PEFT loops on as many
samples.

    python -m benchmarks.training.lockstep --shape t5-small --rounds 7

Random weights of a published shape, prompts of 64 tokens, replies of 32, 8 prompts x 3 samples per objective. A step is
rollout, log-probabilities of policy and base, backward, clipping, AdamW. There are two peers, both using `generate`
with its cache:

plain   a typical loop: the gradient pass encodes a prompt once per reply
tuned   adapters merged into the base while sampling, prompts encoded once in the gradient pass

The sides alternate. Times are medians over rounds with minimum and maximum; the ratio is within a round. `processor` is
the CPU time of all threads, which varies less on a busy machine. The last line is JSON.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.make_bundle import SHAPES, VOCABULARY, t5_config
from benchmarks.training.peers import Peer
from benchmarks.training.rounds import InTurn, begin, measured, options, tell
from benchmarks.training.sides import NAMES, Ours


def write_base(folder: Path, shape: str) -> None:
    """Write the checkpoint that both sides load."""
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    model = T5ForConditionalGeneration(T5Config(**t5_config(shape)))
    with torch.no_grad():
        model.shared.weight.mul_(0.2)  # scales random logits so that samples vary
    model.save_pretrained(folder)


class PlainPeer(Peer):
    """A typical loop of this kind."""

    def __init__(self, folder: Path, args: argparse.Namespace, prompts: Tensor) -> None:
        from transformers import T5ForConditionalGeneration

        base = T5ForConditionalGeneration.from_pretrained(folder / "base")
        super().__init__(base, "SEQ_2_SEQ_LM", args, prompts, lead=1)  # the decoder's start token

    def logprobs(self, replies: Tensor) -> Tensor:
        inputs = torch.cat([torch.zeros_like(replies[:, :1]), replies[:, :-1]], dim=1)
        mask = self.mask.repeat_interleave(self.args.samples, dim=0)
        logits = self.model(**self.encoded(), attention_mask=mask, decoder_input_ids=inputs).logits
        return logits.gather(2, replies.unsqueeze(2)).squeeze(2) - torch.logsumexp(logits, dim=2)

    def encoded(self) -> dict[str, object]:
        """The encoder's input or output for every reply, as keyword arguments of the model."""
        return {"input_ids": self.prompts.repeat_interleave(self.args.samples, dim=0)}


class TunedPeer(PlainPeer):
    """An optimised loop of this kind."""

    def sample(self) -> Tensor:
        self.model.merge_adapter()
        replies = super().sample()
        self.model.unmerge_adapter()
        return replies

    def encoded(self) -> dict[str, object]:
        found = self.model.get_base_model().encoder(input_ids=self.prompts, attention_mask=self.mask)
        return {"encoder_outputs": (found.last_hidden_state.repeat_interleave(self.args.samples, dim=0),)}


def main() -> None:
    args = begin(
        options(
            __doc__ or "",
            SHAPES,
            ("ours", "plain", "tuned"),
            shape="t5-small",
            samples=3,
            source=64,
            new=32,
            rounds=7,
        )
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_base(folder / "base", args.shape)
        ids = torch.randint(2, VOCABULARY, (args.prompts, args.source), generator=torch.Generator().manual_seed(1))
        times = measured(
            {
                "ours": lambda: Ours(folder, args, ids),
                "plain": lambda: InTurn([PlainPeer(folder, args, ids) for _ in NAMES]),
                "tuned": lambda: InTurn([TunedPeer(folder, args, ids) for _ in NAMES]),
            },
            args,
        )
    tell(args, times, [("plain", "ours"), ("tuned", "ours")])


if __name__ == "__main__":
    main()
