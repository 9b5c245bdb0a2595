"""One training step of three objectives on a decoder-only base: in one run, and in three consecutive runs.

    python -m benchmarks.training.causal --shape smollm2-135m --rounds 5

Random weights of a published shape. All prompts end with the same tokens, like a chat template's header. One token in
`--mean` ends a reply, so that lengths vary as those of real replies do. A step is rollout, log-probabilities of policy
and base, backward, clipping, AdamW. The sides:

reply   one run, adapters on the reply (activated LoRA): each prompt is prefilled once for all
all     one run, adapters on all tokens
apart   three consecutive runs of one objective each, with the adapters of `reply`
peft    three consecutive loops in transformers and PEFT: `generate`, then whole sequences, adapters on all tokens

The sides alternate. Times are medians over rounds with minimum and maximum; ratios are within a round. `processor` is
the CPU time of all threads, which varies less on a busy machine. The last line is JSON.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.speed import causal_base
from benchmarks.training.peers import Peer
from benchmarks.training.rounds import InTurn, begin, measured, options, tell
from benchmarks.training.sides import NAMES, Ours

SHAPES = {"smollm2-135m": "smollm2-135m", "tiny": "llama-tiny"}
HEADER = (3, 5, 7)  # the end of every prompt
RATIOS = [(slow, fast) for slow in ("apart", "peft") for fast in ("reply", "all")]


def write_base(folder: Path, shape: str, mean: int) -> None:
    """Write the checkpoint that all sides load. mean: mean tokens per reply without a limit."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    ends = list(range(11, causal_base.SHAPES[SHAPES[shape]]["vocab_size"], mean))
    model = AutoModelForCausalLM.from_config(causal_base.config_of(SHAPES[shape], eos_token_id=ends))
    model.generation_config.eos_token_id = ends
    model.save_pretrained(folder)


class CausalPeer(Peer):
    """A peer whose prompt and reply are one sequence."""

    def __init__(self, folder: Path, args: argparse.Namespace, prompts: Tensor) -> None:
        from transformers import AutoModelForCausalLM

        base = AutoModelForCausalLM.from_pretrained(folder / "base")
        super().__init__(base, "CAUSAL_LM", args, prompts, lead=prompts.shape[1])

    def logprobs(self, replies: Tensor) -> Tensor:
        whole = torch.cat([self.prompts.repeat_interleave(self.args.samples, dim=0), replies], dim=1)  # [M, S + T]
        logits = self.model(input_ids=whole, logits_to_keep=replies.shape[1] + 1).logits[:, :-1]
        return logits.gather(2, replies.unsqueeze(2)).squeeze(2) - torch.logsumexp(logits, dim=2)


def main() -> None:
    parser = options(
        __doc__ or "",
        SHAPES,
        ("reply", "all", "apart", "peft"),
        shape="smollm2-135m",
        samples=4,
        source=96,
        new=40,
        rounds=5,
    )
    parser.add_argument(
        "--mean", type=int, default=40, help="mean reply length in tokens if there were no limit (default 40)"
    )
    args = begin(parser)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_base(folder / "base", args.shape, args.mean)
        random = torch.Generator().manual_seed(1)
        ids = torch.randint(
            12, causal_base.SHAPES[SHAPES[args.shape]]["vocab_size"], (args.prompts, args.source), generator=random
        )
        ids[:, -len(HEADER) :] = torch.tensor(HEADER)
        times = measured(
            {
                "reply": lambda: Ours(folder, args, ids, NAMES, HEADER),
                "all": lambda: Ours(folder, args, ids),
                "apart": lambda: InTurn([Ours(folder, args, ids, [name], HEADER) for name in NAMES]),
                "peft": lambda: InTurn([CausalPeer(folder, args, ids) for _ in NAMES]),
            },
            args,
        )
    tell(args, times, RATIOS)


if __name__ == "__main__":
    main()
