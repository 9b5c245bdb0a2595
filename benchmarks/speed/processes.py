"""Cases that need whole processes: cold start, and tokens over HTTP."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from benchmarks.speed.cases import Bench
from benchmarks.speed.engines.ctranslate import convert
from benchmarks.speed.figures import Figure
from benchmarks.speed.rounds import say
from benchmarks.speed.worker import WorkerFailed
from emorl_cli.demo.bundle import default_folder, is_made
from emorl_core.bundles.bundle import Bundle

_ROOT = Path(__file__).parents[2]
PROMPT = "I can not keep up at work and nobody seems to notice any more."  # 62 bytes, 63 tokens with </s>

# Each loads a model and generates one token; the mark on stdout is when a user would see it.
_STARTS = {
    "emorl": """
import sys, torch
torch.set_num_threads(int(sys.argv[4]))
from emorl_core import Ensemble
ensemble = Ensemble.load(sys.argv[1], dtype=sys.argv[3], device=sys.argv[5])
next(iter(ensemble.stream(sys.argv[2], max_new_tokens=2, min_new_tokens=2)))
print("token", flush=True)
""",
    "one-model": """
import sys, torch
torch.set_num_threads(int(sys.argv[4]))
from transformers import AutoTokenizer, T5ForConditionalGeneration
model = T5ForConditionalGeneration.from_pretrained(sys.argv[1] + "/base", dtype=getattr(torch, sys.argv[3])).eval()
model.to(sys.argv[5])
ids = AutoTokenizer.from_pretrained(sys.argv[1] + "/base")(sys.argv[2], return_tensors="pt")["input_ids"]
model.generate(ids.to(sys.argv[5]), max_new_tokens=1, do_sample=False)
print("token", flush=True)
""",
    "ctranslate2": """
import sys, ctranslate2
from tokenizers import Tokenizer
model = ctranslate2.Translator(sys.argv[6], device=sys.argv[5], compute_type="float32", intra_threads=int(sys.argv[4]))
pieces = Tokenizer.from_file(sys.argv[1] + "/base/tokenizer.json").encode(sys.argv[2]).tokens
model.translate_batch([pieces], beam_size=1, max_decoding_length=1)
print("token", flush=True)
""",
}


def cold(bench: Bench) -> None:
    """Time from process start to first token, with the files in the page cache (read by the warm-up round)."""
    engines = ["emorl", *(peer for peer in ("one-model", "ctranslate2") if peer in bench.peers)]
    bench.pool.only([])
    taken: dict[str, list[float]] = {engine: [] for engine in engines}
    rounds = bench.count(3)
    for number in range(-1, rounds):
        say("warming up" if number < 0 else f"round {number + 1} of {rounds}")
        for engine in engines if number % 2 == 0 else reversed(engines):
            seconds = _start(bench, engine)
            if number >= 0:
                taken[engine].append(seconds)
    for engine, values in taken.items():
        name = "ctranslate2 float32" if engine == "ctranslate2" else engine
        objectives = bench.objectives if engine == "emorl" else 1
        sizes = {"shape": bench.shape, "dtype": bench.dtype, "device": bench.device, "objectives": objectives}
        bench.results.figures.append(Figure("cold", name, "first_token_s", tuple(values), **sizes))


def http(bench: Bench) -> None:
    """One stream from `emorl serve` compared with the same tokens from the engine in this process, alternating."""
    from benchmarks.http import overhead
    from benchmarks.http.streams import Target
    from benchmarks.load import served

    bench.pool.only([])
    options = Namespace(dtype=bench.dtype, slots=16, max_queue=64, threads=bench.threads)
    say("starting emorl serve")
    with served(bench.bundle(), options, overhead.PLAIN) as (url, _):
        report = overhead.measure(
            Target.parse(url), bench.bundle(), bench.dtype, rounds=bench.count(10), new_tokens=64, threads=bench.threads
        )
    sizes = {"shape": bench.shape, "dtype": bench.dtype, "device": bench.device, "objectives": bench.objectives}
    for name, side in (("emorl, in process", "engine"), ("emorl, through HTTP", "http")):
        for metric, kind in (("first_token_ms", "first"), ("ms_per_token", "gap")):
            values = tuple(getattr(each, f"{kind}_{side}") * 1e3 for each in report.rounds)
            bench.results.figures.append(Figure("http", name, metric, values, requests=1, new=64, **sizes))


def copied(bench: Bench) -> None:
    """Replies of the demo with tokens copied from the prompt, and without, alternating. Random weights copy nothing."""
    bench.pool.only([])
    folder = default_folder()
    if not is_made(folder):
        bench.results.note("Copied tokens: not measured; `emorl demo --build-only` makes the demo's bundle.")
        return
    say("the demo's replies, with copied tokens and without")
    command = [sys.executable, "-m", "benchmarks.copied_tokens", "--bundle", str(folder), "--combine", "hidden"]
    command += ["--statements", str(_ROOT / "docs/demo-statements.txt"), "--limit", "8", "--prompt-lookup", "on"]
    command += ["--rounds", str(bench.count(3)), "--threads", str(bench.threads), "--dtype", bench.dtype]
    done = subprocess.run(command, cwd=_ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise WorkerFailed(f"copied tokens: the program ended with {done.returncode}")
    (measured,) = json.loads(done.stdout.splitlines()[-1])
    sizes = {"shape": bench.shape, "dtype": bench.dtype, "device": bench.device, "objectives": bench.objectives}
    for name, side in (("emorl, copied tokens", "on_rounds_ms"), ("emorl, no copied tokens", "off_rounds_ms")):
        values = tuple(measured[side])
        bench.results.figures.append(Figure("copied", name, "ms_per_token", values, requests=1, **sizes))


def _start(bench: Bench, engine: str) -> float:
    """Seconds from the start of a process to its first token."""
    folder = bench.bundle()
    converted = str(convert(Bundle.open(folder).base_folder())) if engine == "ctranslate2" else ""
    code = ["-W", "ignore", "-c", _STARTS[engine]]
    command: Sequence[str] = [
        *(sys.executable, *code, str(folder), PROMPT, bench.dtype, str(bench.threads), bench.device, converted)
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": str(bench.threads), "HF_HUB_OFFLINE": "1"}
    begun = time.perf_counter()
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        line = child.stdout.readline()
        seconds = time.perf_counter() - begun
        _, errors = child.communicate()
    if line.strip() != "token":
        raise WorkerFailed(f"{engine}: no first token: {errors.strip().splitlines()[-1] if errors.strip() else ''}")
    return seconds
