"""One engine in its own process, with its own threads, allocator and memory.

Otherwise thread pools that spin after their last product, a library's choice of BLAS, or another model's weights in the
cache would affect the next engine's times. A waiting worker uses no CPU.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.speed.workload import Setup
from emorl_core.errors import EngineError

# name -> module:class
ENGINES = {
    "emorl": "benchmarks.speed.engines.emorl:Emorl",
    "emorl compiled": "benchmarks.speed.engines.emorl:EmorlCompiled",
    "emorl serve": "benchmarks.speed.engines.serve:EmorlServe",
    "one-model": "benchmarks.speed.engines.transformers_models:OneModel",
    "one-model compiled": "benchmarks.speed.engines.transformers_models:OneModelCompiled",
    "published": "benchmarks.speed.engines.transformers_models:Published",
    "peft-mixed": "benchmarks.speed.engines.peft_mixed:PeftMixed",
    "ctranslate2": "benchmarks.speed.engines.ctranslate:CTranslate2",
    "llama.cpp": "benchmarks.speed.engines.llama_cpp:LlamaCpp",
    "llama.cpp adapters": "benchmarks.speed.engines.llama_cpp:LlamaCppAdapters",
    "bandwidth": "benchmarks.speed.bandwidth:Bandwidth",
}


class WorkerFailed(EngineError):
    """An error in a worker process, with its engine and cause."""


class Worker:
    """A loaded engine; calls wait for their answer. Use as a context manager, or `close`."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        with _environment(setup.threads):
            self._process = context.Process(target=_serve, args=(theirs, setup), daemon=True)
            self._process.start()
        theirs.close()
        self._receive()  # loaded

    def call(self, method: str, *args: Any) -> Any:
        """Call a method of the engine. Raises WorkerFailed if it raises."""
        self._pipe.send((method, args))
        return self._receive()

    def resident_bytes(self) -> int:
        """Resident memory of the process, libraries included."""
        import psutil

        return int(psutil.Process(self._process.pid).memory_info().rss)

    def close(self) -> None:
        self._pipe.close()
        self._process.join(timeout=5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def _receive(self) -> Any:
        try:
            ok, value = self._pipe.recv()
        except EOFError:
            self._process.join()
            raise WorkerFailed(
                f"{self.setup.engine}: its process ended with code {self._process.exitcode}"
                + (", out of memory perhaps" if self._process.exitcode == -9 else "")
            ) from None
        if not ok:
            raise WorkerFailed(f"{self.setup.engine}: {value}")
        return value


class InProcess(Worker):
    """The same interface without a process, for tests and profilers."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self._engine = load(setup)

    def call(self, method: str, *args: Any) -> Any:
        return getattr(self._engine, method)(*args)

    def resident_bytes(self) -> int:
        return 0

    def close(self) -> None:
        _close(self._engine)
        del self._engine


def load(setup: Setup) -> Any:
    """The engine itself, in this process."""
    module, _, name = ENGINES[setup.engine].partition(":")
    return getattr(importlib.import_module(module), name)(setup)


def _serve(pipe: Any, setup: Setup) -> None:
    """The worker process: load, then answer calls until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and closes the pipe
    try:
        import torch

        torch.set_num_threads(setup.threads)
        engine = load(setup)
    except BaseException as error:  # noqa: BLE001 - the parent raises it
        pipe.send((False, _told(error)))
        return
    pipe.send((True, None))
    while True:
        try:
            method, args = pipe.recv()
        except EOFError:
            _close(engine)
            return
        try:
            answer = (True, getattr(engine, method)(*args))
        except BaseException as error:  # noqa: BLE001 - the parent raises it
            answer = (False, _told(error))
        pipe.send(answer)


def _close(engine: Any) -> None:
    """End what an engine has started, if it has started anything."""
    getattr(engine, "close", lambda: None)()


def _told(error: BaseException) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(last.filename).name}:{last.lineno})"


@contextmanager
def _environment(threads: int) -> Iterator[None]:
    """The environment in which a worker must start: OpenMP reads its variables only once."""
    wanted = {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
