"""What HTTP costs: `python -m tests.http.overhead BUNDLE` runs the engine in process and behind a server.

Turn by turn, so that both see the same machine; prints medians. The server runs in another process with the same
number of threads.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch

from emorl_core.ensemble import Ensemble

_SERVE = (
    "import sys, torch; torch.set_num_threads(int(sys.argv[3]));"
    "from server.run import run; from server.settings import load_settings;"
    "run(load_settings(port=0, bundle=sys.argv[1], dtype=sys.argv[2]), on_ready=lambda url: print(url, flush=True))"
)


def over_http(url: str, body: dict[str, object]) -> list[float]:
    """Seconds from the request to each token event, read from a bare socket."""
    host, _, port = url.removeprefix("http://").partition(":")
    content = json.dumps(body).encode()
    head = f"POST /generate HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    times: list[float] = []
    with socket.create_connection((host, int(port))) as connection:
        started = time.perf_counter()
        connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        received = b""
        while b"[DONE]" not in received:
            received = connection.recv(65536)
            times += [time.perf_counter() - started] * received.count(b'"type":"token"')
    return times


def in_process(ensemble: Ensemble, prompt: str, weights: dict[str, float], tokens: int) -> list[float]:
    started = time.perf_counter()
    events = ensemble.stream(prompt, weights, max_new_tokens=tokens, min_new_tokens=tokens)
    return [time.perf_counter() - started for _ in events]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    ensemble = Ensemble.load(args.bundle, dtype=args.dtype)
    weights = dict.fromkeys(ensemble.objectives, 1.0)
    times: dict[str, list[list[float]]] = {"in process": [], "HTTP": []}
    command = [sys.executable, "-c", _SERVE, args.bundle, args.dtype, str(args.threads)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, cwd=root, env=environment, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        try:
            for turn in range(args.turns):
                prompt = f"I can't keep up at work, and it is the {turn}th time."
                times["in process"].append(in_process(ensemble, prompt, weights, args.tokens))
                body = {"prompt": prompt, "weights": weights, "stream": True}
                limits = {"max_new_tokens": args.tokens, "min_new_tokens": args.tokens}
                times["HTTP"].append(over_http(url, {**body, **limits}))
        finally:
            server.terminate()
    for name, runs in times.items():
        print(f"{name:>10}: first token {_median([run[0] for run in runs])}, between tokens {_between(runs)}")  # noqa: T201


def _between(runs: Sequence[Sequence[float]]) -> str:
    return _median([after - before for run in runs for before, after in pairwise(run)])


def _median(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds) * 1000:.2f} ms"


if __name__ == "__main__":
    main()
