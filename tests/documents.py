"""Code blocks of documents, and a reader who types them: what the tests of README, tutorial, guides and examples share."""

from __future__ import annotations

import io
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

from emorl_cli.main import main
from emorl_core.bundles.bundle import (
    BASE_DIR,
    BUNDLE_FILE,
    ChatSpec,
    ObjectiveSpec,
    PromptSpec,
    read_spec,
    write_spec,
)
from emorl_core.bundles.profiles import ProfileSpec
from tests.builders import tiny_t5_bundle
from tests.chats import tiny_chat_bundle
from tests.supported_models import tiny_causal_adapter
from training.pipeline.demo import NAME, OBJECTIVES, PROFILES

ROOT = Path(__file__).parent.parent
URL = "http://127.0.0.1:8000"
# Appended to `emorl train` and `emorl warm-start`: the same work on a model and data that take a second.
SMALL_BASE = (
    "base.warm_start.scratch={vocab_size: 700, d_model: 32, d_ff: 32, heads: 4, layers: 1, decoder_layers: 1}",
    "base.warm_start.sources=[{kind: synthetic, count: 60, seed: 1}]",
    "base.warm_start.fit={steps: 2, batch_size: 4}",
)
SMALL_RL = (
    "rl.prompts_per_step=2",
    "rl.samples_per_prompt=2",
    "rl.max_new_tokens=4",
    "rl.validation_prompts=2",
    "rl.stop.max_steps=1",
)


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def lines(text: str) -> list[str]:
    """Every command of a document's bash blocks, in order, without comments; continued lines are one."""
    found = [line for block in blocks(text, "bash") for line in block.replace("\\\n", " ").split("\n")]
    return [stripped for line in found if (stripped := re.sub(r"(^|\s)#\s.*$", "", line).strip())]


def options(*values: str) -> str:
    """`--set` for each, quoted for a shell."""
    return "".join(f" --set {shlex.quote(value)}" for value in values)


def demo_like(folder: Path) -> Path:
    """A tiny bundle with the demo's name, objectives and profiles: what documents take for granted."""
    tiny_t5_bundle(folder)
    spec = read_spec(folder / BUNDLE_FILE)
    profiles = {name: ProfileSpec(weights=dict(weights)) for name, weights in PROFILES.items()}
    write_spec(folder, spec.model_copy(update={"name": NAME, "profiles": profiles}))
    return folder


def chat_like(folder: Path) -> Path:
    """The same over a decoder-only base with a chat template: an adapter, a sentence, and both."""
    adapters = {name: f"adapters/{name}" for name in ("reflection", "fluency")}
    sentences = {name: PromptSpec(system=f"Think of {name}.") for name in ("empathy", "fluency")}
    tiny_chat_bundle(
        folder,
        name=NAME,
        chat=ChatSpec(system="You are a counselor."),
        objectives={name: ObjectiveSpec(adapter=adapters.get(name), prompt=sentences.get(name)) for name in OBJECTIVES},
        profiles={name: ProfileSpec(weights=dict(weights)) for name, weights in PROFILES.items()},
        default_profile="balanced",
    )
    for seed, name in enumerate(adapters):
        tiny_causal_adapter(folder / BASE_DIR, folder / "adapters" / name, 2, seed, "all-linear")
    return folder


@dataclass
class Reader:
    """Types commands in `folder`. Whatever fails, fails the test with its output."""

    folder: Path
    url: str = URL  # of the server that documents call URL

    def type(self, line: str) -> str:
        """Run one line and return its standard output. `emorl` and `python examples/…` run in this process, since
        importing torch takes longer than they do; everything else in a shell."""
        line = line.replace(URL, self.url)
        words = shlex.split(line)
        if words[0] == "emorl":
            return self._here(lambda: main(words[1:]))
        if words[0] == "python":
            return self.script(words[1], *words[2:])
        if words[0] == "curl" and shutil.which("curl") is None:
            pytest.skip("no curl")
        if words[0] == "curl":
            line = line.replace("curl ", "curl --fail-with-body ", 1)  # or an error status would pass
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", line], cwd=self.folder, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def script(self, path: str, *arguments: str) -> str:
        """A Python file of the project, as `python PATH ARGUMENTS` would run it."""

        def run() -> int:
            before, sys.argv = sys.argv, [path, *arguments]
            try:
                runpy.run_path(str(ROOT / path), run_name="__main__")
            finally:
                sys.argv = before
            return 0

        return self._here(run)

    def python(self, block: str) -> str:
        """A code block."""

        def run() -> int:
            exec(compile(block.replace(URL, self.url), "<document>", "exec"), {"__name__": "__main__"})
            return 0

        return self._here(run)

    def _here(self, work) -> str:
        before = Path.cwd()
        os.chdir(self.folder)
        try:
            with redirect_stdout(io.StringIO()) as out:
                code = work()
        finally:
            os.chdir(before)
        assert code == 0, out.getvalue()
        return out.getvalue()
