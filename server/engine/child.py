"""The engine's process. It exits when the serving process does, which it notices by the end of their pipe."""

from __future__ import annotations

import copy
import logging
import os
import pickle
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from queue import SimpleQueue

from emorl_core.ensemble import Ensemble
from emorl_core.errors import EmorlError
from server.engine.clock import StepClock
from server.engine.commands import Command, Stop
from server.engine.host import EngineHost
from server.engine.process import Order
from server.engine.reports import Ended, Holds, Logged, Message, Ready, Refused, Report
from server.serving.process import share_the_interpreter, spare_what_stays
from server.watch.logs import everything_to, where

logger = logging.getLogger("emorl.server")


class Outbox(logging.Handler):
    """Messages to the serving process, including log lines, sent in order by a separate thread."""

    def __init__(self, pipe: Connection) -> None:
        super().__init__()
        self._pipe = pipe
        self._messages: SimpleQueue[Message | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._send, name="emorl-engine-reports", daemon=True)
        self._thread.start()

    def put(self, message: Message) -> None:
        self._messages.put(message)

    def emit(self, record: logging.LogRecord) -> None:
        line = copy.copy(record)
        line.msg, line.args = record.getMessage(), None
        if record.exc_info:
            line.exc_info, line.exc_text = None, where(record.exc_info[1])
        self.put(Logged(line))

    def finish(self) -> None:
        """Wait until everything is sent."""
        self._messages.put(None)
        self._thread.join()

    def _send(self) -> None:
        while (message := self._messages.get()) is not None:
            try:
                self._pipe.send_bytes(pickle.dumps(message))
            except OSError:
                os._exit(0)  # the serving process is gone


def main() -> None:
    order: Order = pickle.load(sys.stdin.buffer)
    # the serving process also gets these signals, and decides
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    share_the_interpreter()
    pipe = Connection(order.pipe)
    outbox = Outbox(pipe)
    loaded: SimpleQueue[EngineHost] = SimpleQueue()
    threading.Thread(target=_obey, args=(pipe, loaded), name="emorl-engine-commands", daemon=True).start()
    with everything_to(outbox, order.log_level):
        _serve(order, outbox, loaded)
        outbox.finish()
    os._exit(0)  # a compiler's thread may be in native code; the interpreter would abort if it exited meanwhile


def _obey(pipe: Connection, loaded: SimpleQueue[EngineHost]) -> None:
    host: EngineHost | None = None
    while True:
        try:
            command: Command = pickle.loads(pipe.recv_bytes())
        except (EOFError, OSError):
            os._exit(0)
        if host is None:
            if isinstance(command, Stop) and loaded.empty():
                os._exit(0)  # still loading
            host = loaded.get()
        host.send(command)


def _loaded(order: Order) -> Ensemble:
    """Load in a thread that ends. OpenMP keeps a pool for every living thread that has computed, and once the pools
    have more threads than there are cores, GNU's stops spinning at barriers: a step on two cores took twice as long."""
    with ThreadPoolExecutor(max_workers=1) as loader:
        return loader.submit(Ensemble.load, order.files, **order.options).result()


def _serve(order: Order, outbox: Outbox, loaded: SimpleQueue[EngineHost]) -> None:
    """Run until the engine has ended."""
    try:
        ensemble = _loaded(order)
    except EmorlError as error:
        outbox.put(Refused(error))
        return
    except BaseException as error:  # noqa: BLE001  the process that serves has to hear of it
        logger.error("the bundle cannot be loaded: %s", where(error))
        return
    held = ensemble.held
    outbox.put(Holds(held))
    ended = threading.Event()

    def report(told: Report) -> None:
        nonlocal held
        if isinstance(told, Ready):
            spare_what_stays()
        now = ensemble.held
        if now != held:
            held = now
            outbox.put(Holds(now))
        outbox.put(told)
        if isinstance(told, Ended):
            ended.set()

    host = EngineHost(ensemble, queue_timeout_s=order.queue_timeout_s, clock=StepClock(order.clock))
    host.start(report)
    loaded.put(host)
    ended.wait()
