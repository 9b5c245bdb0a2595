"""A bundle through `emorl serve` beside Hugging Face `generate` on its base alone: load, memory, time per token.

    python -m benchmarks.serving --bundle runs/t5-base --dtype float32 --dtype bfloat16

Each round starts both programs afresh, one after the other, and asks for the same number of tokens. Times are medians
over rounds; the spread is the smallest and the largest. One JSON line for machines comes last.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PROMPT = "I can not keep up at work and nobody seems to notice any more."  # 62 bytes, 63 tokens with </s>

_PEER = """
import json, sys, time
start = time.perf_counter()
import psutil, torch
from transformers import AutoTokenizer, T5ForConditionalGeneration
folder, dtype, new, threads = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
torch.set_num_threads(threads)
model = T5ForConditionalGeneration.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
inputs = AutoTokenizer.from_pretrained(folder)(sys.argv[5], return_tensors="pt")["input_ids"]
loaded = time.perf_counter() - start
def run(tokens):
    begun = time.perf_counter()
    with torch.inference_mode():
        model.generate(inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)
    return time.perf_counter() - begun
run(2)
first, whole = run(1), run(new)
print(json.dumps({"load_s": loaded, "rss_mib": psutil.Process().memory_info().rss / 2**20,
                  "first_token_ms": first * 1e3, "ms_per_token": (whole - first) / (new - 1) * 1e3}))
"""


def measure_server(bundle: Path, dtype: str, new: int, threads: int) -> dict[str, float]:
    """Start `emorl serve`, stream twice (the first warms up), stop it."""
    import httpx
    import psutil

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "emorl_cli", "serve", str(bundle), "--port", str(port), "--dtype", dtype]
    begun = time.perf_counter()
    server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            if server.poll() is not None:
                raise SystemExit(f"emorl serve ended with code {server.returncode}")
            try:
                if httpx.get(f"{url}/readyz", timeout=5).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        loaded = time.perf_counter() - begun
        for prompt in (PROMPT[::-1], PROMPT):  # another prompt first, so that none is in the prefill cache
            stamps = _stream(httpx, url, prompt, new)
        rss = psutil.Process(server.pid).memory_info().rss / 2**20
    finally:
        server.terminate()
        server.wait()
    return {
        "load_s": loaded,
        "rss_mib": rss,
        "first_token_ms": stamps[1] * 1e3 - stamps[0] * 1e3,
        "ms_per_token": (stamps[-1] - stamps[1]) / (len(stamps) - 2) * 1e3,
    }


def _stream(httpx: Any, url: str, prompt: str, new: int) -> list[float]:
    """Time of sending, then of every token event."""
    body = {"prompt": prompt, "max_new_tokens": new, "min_new_tokens": new, "stream": True}
    stamps = [time.perf_counter()]
    with httpx.stream("POST", f"{url}/generate", json=body, timeout=600) as response:
        response.raise_for_status()
        stamps += [time.perf_counter() for line in response.iter_lines() if '"type":"token"' in line.replace(" ", "")]
    return stamps


def measure_peer(bundle: Path, dtype: str, new: int, threads: int) -> dict[str, float]:
    """Hugging Face `generate`, greedy with its cache, on the base without adapters."""
    command = [sys.executable, "-W", "ignore", "-c", _PEER, str(bundle / "base"), dtype, str(new), str(threads), PROMPT]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    measured: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return measured


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True, help="made by python -m benchmarks.make_bundle")
    parser.add_argument("--dtype", action="append", choices=("float32", "bfloat16"))
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    runs: dict[str, list[dict[str, float]]] = {}
    for _ in range(args.rounds):
        for dtype in args.dtype or ["float32", "bfloat16"]:
            for name, measure in (("emorl serve", measure_server), ("HF base alone", measure_peer)):
                runs.setdefault(f"{name}, {dtype}", []).append(
                    measure(args.bundle, dtype, args.new_tokens, args.threads)
                )
    figures = ("load_s", "rss_mib", "first_token_ms", "ms_per_token")
    print(f"{'':28}" + "".join(f"{figure:>26}" for figure in figures))
    for name, rounds in runs.items():
        cells = []
        for figure in figures:
            values = [one[figure] for one in rounds]
            cells.append(f"{statistics.median(values):.1f} ({min(values):.1f}-{max(values):.1f})")
        print(f"{name:28}" + "".join(f"{cell:>26}" for cell in cells))
    machine = {"cpu": platform.processor() or platform.machine(), "threads": args.threads, "rounds": args.rounds}
    print(json.dumps({"machine": machine, "new_tokens": args.new_tokens, "runs": runs}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
