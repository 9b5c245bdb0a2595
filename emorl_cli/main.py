"""`emorl COMMAND …`: finds the command, runs it, and turns errors into one line and an exit code.

A command is a module with `add_arguments(parser)` and `run(args) -> int`. It is imported only when chosen, and imports
torch and other slow libraries only inside functions, so that `--help` is fast.

Exit codes: 0 success; 1 a valid request failed; 2 bad input; 130 interrupted.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import io
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from emorl_cli.console.exits import BAD_INPUT, BROKEN_PIPE, DONE, FAILED, INTERRUPTED, complain
from emorl_cli.console.reading import number, whole
from server.serving.signals import stand_by

# command -> (module, summary), in the order of `emorl --help`
VERBS: dict[str, tuple[str, str]] = {
    "demo": ("emorl_cli.demo.demo", "build the demo bundle on first use and serve it"),
    "serve": ("emorl_cli.serve", "serve a bundle over HTTP"),
    "deploy": ("emorl_cli.deploy", "serve a bundle on several replicas with Ray Serve"),
    "generate": ("emorl_cli.generate", "answer one prompt, or a file of prompts"),
    "sweep": ("emorl_cli.sweep", "one prompt under many weights: the distinct texts and the weights that give them"),
    "drafts": ("emorl_cli.drafts", "a few good and different texts to choose from, best first"),
    "replay": ("emorl_cli.replay", "generate a receipt's text again and check that it is the same"),
    "new": ("emorl_cli.bundles.new", "make a bundle of a base and adapters, or sentences, and inspect it"),
    "inspect": ("emorl_cli.bundles.inspect", "describe a bundle and validate all of it"),
    "train": ("emorl_cli.learning.train", "train the objectives of a recipe and write a bundle"),
    "warm-start": ("emorl_cli.learning.warm_start", "run only the supervised fine-tuning of a recipe's base"),
    "train-scorer": (
        "emorl_cli.learning.train_scorer",
        "train a scorer on graded replies and test it on unseen prompts",
    ),
    "examine-scorer": (
        "emorl_cli.learning.examine_scorer",
        "test whether a scorer can be fooled, and by which sentence",
    ),
    "search": ("emorl_cli.learning.search", "find the weights that score best and store them as a profile"),
    "learn-weights": ("emorl_cli.learning.learn_weights", "learn a profile from the drafts that a user chose"),
    "evaluate": ("emorl_cli.learning.evaluate", "compare training methods on the same prompts"),
    "bench": ("emorl_cli.bench", "compare the speed with that of alternatives"),
    "bake": ("emorl_cli.bundles.bake", "merge a mix of a bundle's adapters into one PEFT adapter"),
    "import-gguf": (
        "emorl_cli.bundles.import_gguf",
        "turn a GGUF file into a base folder with tokenizer and chat template",
    ),
    "import-npz": ("emorl_cli.bundles.import_npz", "turn a published .npz adapter into a PEFT folder"),
}


# Commands that may run in several processes; `evaluate` and `warm-start` check this themselves.
SEVERAL = ("serve", "train")
_OWN_ANSWER = ("evaluate", "warm-start")


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors, like all other errors of this program."""

    def __init__(self, *, prog: str, description: str) -> None:
        super().__init__(
            prog=prog,
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,  # an abbreviation could become ambiguous with a new flag
        )
        self.register("type", int, whole)
        self.register("type", float, number)

    def error(self, message: str) -> NoReturn:
        complain(f"{message}; see {self.prog} --help")
        raise SystemExit(BAD_INPUT)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (without the program's name; default: this process's) and return the exit code."""
    if argv is None and sys.argv[1:2] == ["serve"]:  # running as a program: signals may arrive during imports
        stand_by()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors=stream.errors)  # as for all input
    args = argparse.Namespace()
    try:
        code = _dispatch(list(sys.argv[1:] if argv is None else argv), args)
        if sys.stdout is not None:
            sys.stdout.flush()  # detect a closed pipe here, not at interpreter exit
        return code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _give_up_stdout()
        return BROKEN_PIPE
    except Exception as error:
        from emorl_core.errors import EmorlError, EngineError  # imported late, since `--help` needs no engine

        if isinstance(error, EmorlError):
            complain(error.message)
            return FAILED if isinstance(error, EngineError) else BAD_INPUT
        trouble = _file_trouble(error, resumable=hasattr(args, "resume"))
        if trouble is None:
            raise  # a bug of this program: show the traceback
        code, line = trouble
        complain(line)
        _give_up_stdout()
        return code


def _file_trouble(error: Exception, *, resumable: bool) -> tuple[int, str] | None:
    """Exit code and line for a file that cannot be read or written; None for every other error."""
    from emorl_core.files.disk import disk_full

    # A failed copy has two names: the source and the destination.
    name = (error.filename2 or error.filename) if isinstance(error, OSError) else None
    reason = disk_full(error)
    if reason is not None:
        way_on = "; --resume goes on with what is finished" if resumable else ""
        return FAILED, f"{name or 'a file'} could not be written: {reason}; make room and run it again{way_on}"
    if isinstance(error, OSError) and error.strerror is not None:
        return BAD_INPUT, f"{name}: {error.strerror}" if name else error.strerror
    return None


def _give_up_stdout() -> None:
    """Discard pending output, which the interpreter would otherwise try to flush again with an error."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _dispatch(argv: list[str], args: argparse.Namespace) -> int:
    """Parses `args` and runs the command."""
    first = argv[0] if argv else "--help"
    if first in ("-h", "--help", "help"):
        print(_overview())
        return DONE
    if first == "--version":
        from importlib.metadata import version

        print("emorl", version("emorl"))
        return DONE
    if first not in VERBS:
        close = difflib.get_close_matches(first, VERBS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(VERBS)}"
        complain(f"unknown command {first[:40]!r}; {hint}")
        return BAD_INPUT
    if os.environ.get("WORLD_SIZE", "1") != "1" and "RANK" in os.environ and first not in (*SEVERAL, *_OWN_ANSWER):
        complain(f"{first} runs in one process; allowed for several: {', '.join(SEVERAL)}")
        return BAD_INPUT
    module_name, summary = VERBS[first]
    verb = importlib.import_module(module_name)
    parser = Parser(prog=f"emorl {first}", description=summary[0].upper() + summary[1:] + ".")
    verb.add_arguments(parser)
    code: int = verb.run(parser.parse_args(argv[1:], args))
    return code


def _overview() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:{width}}  {summary}" for verb, (_, summary) in VERBS.items())
    return (
        "usage: emorl COMMAND …\n\n"
        "One language model, N objectives, steered per request.\n\n"
        f"commands:\n{verbs}\n\n"
        "options:\n  --help     this page; `emorl COMMAND --help` explains a command\n  --version  the version\n\n"
        "example:\n  emorl demo\n"
        '  emorl generate my-bundle "I can\'t keep up at work." --weights reflection=0.7,empathy=0.3'
    )
