"""Options shared by several commands, with the same names as the HTTP fields and the Python arguments."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emorl_cli.console.reading import number, utf_8, whole
from emorl_core.types import COMBINE_MODES

if TYPE_CHECKING:
    from emorl_core.types import Threads

BUNDLE_HELP = "a bundle folder, or a Hugging Face hub id (owner/name)"


def add_example(parser: argparse.ArgumentParser, *commands: str) -> None:
    """Add examples to the command's `--help`."""
    title = "example:" if len(commands) == 1 else "examples:"
    parser.epilog = "\n".join([title, *(f"  {command}" for command in commands)])


def check_new(out: Path) -> None:
    """Raises InvalidRequest if `--out` already contains something; nothing is overwritten."""
    from emorl_core.errors import InvalidRequest

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InvalidRequest(f"--out {out}: already holds something; name a new or an empty folder", param="out")


def add_device_options(parser: argparse.ArgumentParser) -> None:
    """`--device`, `--dtype`: where and in which precision the model runs."""
    parser.add_argument("--device", default="auto", help="auto (CUDA if available), cpu, cuda or cuda:N")
    parser.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", "float32", "bfloat16"),
        help="number format of the weights; auto: bfloat16 if the device supports it natively",
    )


def add_threads_option(parser: argparse.ArgumentParser, more: str = "") -> None:
    """`--threads`, for `use_threads` or `Ensemble.load`."""
    parser.add_argument(
        "--threads",
        type=lambda text: int(text) if text.isdecimal() and len(text) < 5 else text,
        default="auto",
        metavar="N",
        help=f"CPU threads (default auto: the fastest number, measured at startup){more}",
    )


def add_set_option(parser: Any, example: str) -> None:
    """`--set`, for `load_recipe`."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help=f"override a value of the recipe, such as {example}; repeatable",
    )


def use_threads(threads: Threads, device: str, *, say: bool = True) -> None:
    """Use this many threads from now on, on a CPU; `say`: report it on stderr.

    Raises:
        InvalidRequest: not a number of threads.
    """
    import torch

    from emorl_core.machine.threads import check_threads, fastest_threads

    if check_threads(threads) == "auto":
        if device != "cpu" and torch.cuda.is_available():
            return
        threads = fastest_threads()
    torch.set_num_threads(int(threads))
    if say:
        print(f"computing with {threads} thread{'s' if int(threads) > 1 else ''}", file=sys.stderr)


def add_ray_option(parser: Any, what: str, needs: str) -> None:
    """`--ray`. what: what runs on the cluster; needs: what its machines must have."""
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        help=f"run {what} as tasks on a Ray cluster, such as auto or 10.0.0.1:6379; {needs} (docs/guides/scale.md)",
    )


def threads_of_a_task(threads: Threads) -> int:
    """The value of `--threads` for tasks. Nothing is measured, since other tasks run beside them."""
    from emorl_core.machine.threads import check_threads

    checked = check_threads(threads)
    return 1 if checked == "auto" else int(checked)


def add_weight_options(parser: argparse.ArgumentParser) -> None:
    """`--weights` or `--profile`, and `--no-normalize`."""
    named = parser.add_mutually_exclusive_group()
    named.add_argument("--weights", metavar="NAME=NUMBER,…", help="objectives and their weights, scaled to sum 1")
    named.add_argument("--profile", help="weights stored in the bundle; with neither, its default profile")
    parser.add_argument(
        "--no-normalize", dest="normalize", action="store_false", help="use the numbers as given; negative ones too"
    )


def add_combine_option(parser: argparse.ArgumentParser) -> None:
    """`--combine`: how objectives are combined."""
    parser.add_argument(
        "--combine",
        default="hidden",
        choices=COMBINE_MODES,
        help="mix hidden states (default) or probabilities, or sum the adapters' weights into one model",
    )


_SAMPLING = (
    "max_new_tokens", "min_new_tokens", "temperature", "top_k", "top_p", "repetition_penalty", "presence_penalty",
    "frequency_penalty", "min_p", "no_repeat_ngram_size", "seed",
)  # fmt: skip


def add_sampling_options(
    parser: argparse.ArgumentParser, *, temperature: float = 0.0, top_p: float = 1.0, seed: str = "default: drawn"
) -> None:
    """The fields of `emorl_core.types.Sampling`; their ranges are checked there. temperature, top_p: their defaults;
    seed: the description of its default."""
    parser.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="at most this many (default 64)")
    parser.add_argument(
        "--min-new-tokens", type=int, default=0, metavar="N", help="no end before this many (default 0)"
    )
    parser.add_argument(
        "--temperature", type=float, default=temperature, metavar="T", help=f"0 is greedy (default {temperature:g})"
    )
    parser.add_argument(
        "--top-k", type=int, default=0, metavar="K", help="sample among the K most likely tokens; 0 is off"
    )
    parser.add_argument(
        "--top-p",
        type=float,
        default=top_p,
        metavar="P",
        help=f"sample among the most likely tokens of this total probability; 1 is off (default {top_p:g})",
    )
    parser.add_argument("--repetition-penalty", type=float, default=1.0, metavar="X", help="1.0 is off")
    parser.add_argument(
        "--presence-penalty",
        type=float,
        default=0.0,
        metavar="X",
        help="subtracted from logits of tokens already in the reply; 0 is off",
    )
    parser.add_argument(
        "--frequency-penalty", type=float, default=0.0, metavar="X", help="subtracted once per occurrence; 0 is off"
    )
    parser.add_argument(
        "--min-p",
        type=float,
        default=0.0,
        metavar="P",
        help="drop tokens less likely than this fraction of the most likely; 0 is off",
    )
    parser.add_argument(
        "--no-repeat-ngram-size", type=int, default=0, metavar="N", help="never repeat a sequence of N tokens; 0 is off"
    )
    parser.add_argument("--logit-bias", metavar="ID=X,…", help="numbers added to the logits of token ids")
    parser.add_argument("--seed", type=int, metavar="N", help=f"the same seed gives the same text ({seed})")
    parser.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="stop string, not part of the text; may be repeated"
    )


def sampling_fields(args: argparse.Namespace) -> dict[str, Any]:
    """The sampling options as the keywords of `Ensemble.request`."""
    return {
        **{name: getattr(args, name) for name in _SAMPLING},
        "logit_bias": _bias(args.logit_bias),
        "stop": tuple(utf_8(text, "--stop") for text in args.stop),
    }


def _bias(text: str | None) -> dict[str, float]:
    """`50=-100,7=2.5` -> {"50": -100.0, "7": 2.5}."""
    from emorl_core.errors import InvalidRequest

    bias: dict[str, float] = {}
    for item in text.split(",") if text else ():
        token, _, amount = (piece.strip() for piece in item.partition("="))
        try:
            key = str(whole(token))
            value = number(amount)
        except ValueError:
            raise InvalidRequest(f"--logit-bias: {item[:40]!r} is no ID=NUMBER", param="logit_bias") from None
        if key in bias:
            raise InvalidRequest(f"--logit-bias: {key} is given twice", param="logit_bias")
        bias[key] = value
    return bias


def add_chat_option(parser: argparse.ArgumentParser) -> None:
    """`--chat`, a chat instead of a prompt."""
    parser.add_argument(
        "--chat",
        metavar="FILE",
        help="instead of a prompt: a chat, for a bundle with chat; a JSON list of messages with role and content; "
        "- is standard input",
    )
