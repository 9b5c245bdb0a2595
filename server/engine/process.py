"""The serving process's view of an engine in its own process.

A step releases the GIL at each of its hundreds of tensor operations, and beside a busy event loop it has to wait for
the GIL each time. In its own process it does not. And if that process dies, even by the OOM killer, connections stay
open.
"""

from __future__ import annotations

import contextlib
import logging
import pickle
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from multiprocessing.connection import Pipe
from queue import SimpleQueue
from typing import Any

from emorl_core.bundles.snapshot import Snapshot
from emorl_core.errors import EmorlError
from emorl_core.frontend import Held
from server.engine.clock import StepClock
from server.engine.commands import Add, Command
from server.engine.reports import Ended, Holds, Logged, Message, Refused, Report

logger = logging.getLogger("emorl.server")

# The settings are pickled objects of this project, so `sys.path` must be set first.
_PATH = "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer)"
_CHILD = f"{_PATH}; from server.engine import child; child.main()"
_GROUPS = 64  # groups of a job sent at once: pickling thousands would hold the GIL for tenths of a second
_WAIT_S = 5.0  # timeout for the exit of a process that has closed its pipe


class EngineLost(EmorlError):
    """The engine's process ended before it had loaded the bundle."""

    code = "engine_lost"


@dataclass(frozen=True, slots=True)
class Order:
    """The process's arguments."""

    files: Snapshot
    options: Mapping[str, Any]  # of `Ensemble.load`
    queue_timeout_s: float
    log_level: int
    pipe: int  # descriptor
    clock: int  # descriptor


class EngineProcess:
    """A `Link` to the engine's process. Its log records are logged here. Its end, for whatever reason, is reported as
    `Ended`."""

    def __init__(self, files: Snapshot, options: Mapping[str, Any], queue_timeout_s: float) -> None:
        """Starts loading the bundle that `files` hold open; `loaded` waits for it."""
        self._pipe, theirs = Pipe()
        self._clock = StepClock.create()
        level = logging.getLogger().getEffectiveLevel()
        with theirs:
            order = Order(files, options, queue_timeout_s, level, theirs.fileno(), self._clock.fileno())
            self._process = subprocess.Popen(
                [sys.executable, "-c", _CHILD],
                stdin=subprocess.PIPE,
                pass_fds=(theirs.fileno(), self._clock.fileno(), *files.descriptors),
            )
        weakref.finalize(self, _end, self._process)
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError), self._process.stdin as stdin:  # `loaded` reports its end
            stdin.write(pickle.dumps(sys.path) + pickle.dumps(order))
        self._held: Held | None = None
        self._outbox: SimpleQueue[Command | None] = SimpleQueue()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def held(self) -> Held:
        """Its last report; call `loaded` first."""
        assert self._held is not None
        return self._held

    def loaded(self) -> Held:
        """Blocks until the bundle is loaded. Raises what `Ensemble.load` raises there, and `EngineLost`."""
        told = self._next()
        if isinstance(told, Refused):
            raise told.error
        if not isinstance(told, Holds):
            raise EngineLost(f"the engine's process ended while it loaded the bundle: {self._how()}")
        self._held = told.held
        return told.held

    # --- Link --------------------------------------------------------------------------------------------------------

    def start(self, report: Callable[[Report], None]) -> None:
        threading.Thread(target=self._hear, args=(report,), name="emorl-engine-reports", daemon=True).start()
        threading.Thread(target=self._tell, name="emorl-engine-commands", daemon=True).start()

    def send(self, command: Command) -> None:
        self._outbox.put(command)

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def stalled_for_s(self) -> float:
        return self._clock.running_for_s()

    def kill(self) -> bool:
        _end(self._process)
        return True

    # --- its threads -------------------------------------------------------------------------------------------------

    def _next(self) -> Report | Holds | Refused | None:
        """The next message, with log lines logged and skipped; None at the end of the pipe."""
        while True:
            try:
                message: Message = pickle.loads(self._pipe.recv_bytes())
            except (EOFError, OSError):
                return None
            if not isinstance(message, Logged):
                return message
            if logging.getLogger(message.record.name).isEnabledFor(message.record.levelno):
                logging.getLogger(message.record.name).handle(message.record)

    def _hear(self, report: Callable[[Report], None]) -> None:
        told = None
        while not isinstance(told, Ended):
            told = self._next()
            if isinstance(told, Holds):
                self._held = told.held
            elif told is None or isinstance(told, Refused):
                logger.error("the engine's process is gone: %s", self._how())
                told = Ended(EngineLost.__name__)
                report(told)
            else:
                report(told)
        self._outbox.put(None)

    def _how(self) -> str:
        """How it ended."""
        try:
            code = self._process.wait(_WAIT_S)
        except subprocess.TimeoutExpired:
            return "it closed its pipe"
        return f"exit code {code}" if code >= 0 else f"ended by {signal.Signals(-code).name}"

    def _tell(self) -> None:
        while (command := self._outbox.get()) is not None:
            try:
                for part in _parts(command):
                    self._pipe.send_bytes(pickle.dumps(part))
            except OSError:  # it is gone, which `_hear` notices
                return


def _parts(command: Command) -> Iterator[Command]:
    if not isinstance(command, Add) or len(command.groups) <= _GROUPS:
        yield command
        return
    for first in range(0, len(command.groups), _GROUPS):
        groups = command.groups[first : first + _GROUPS]
        yield replace(command, groups=groups, last=first + _GROUPS >= len(command.groups))


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
