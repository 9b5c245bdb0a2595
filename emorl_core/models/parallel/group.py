"""The process group of a split model: collectives, commands, and detection of lost processes.

Rank 0 leads: it decides what is computed and sends commands, which the others follow. There is one process group for
tensors, one for commands, and one over which nothing is sent until the end. A process that dies closes its connections,
which the others, waiting on that last group, notice at once.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_NEVER = timedelta(days=365)  # timeout for the next command; the default would end an idle server
_FIRST_BYTES = 8192  # bytes of a command's first message, enough for all but long ones
_LOSS_S = 2.0  # seconds until a dead process is noticed
_END_S = 5.0  # seconds for the others to learn of the end

Command = list[Any]  # JSON: a name and its arguments


class ProcessGroup:
    """The processes that torchrun started, seen from one of them.

    Collective methods are called by all processes in the same order, and on rank 0 within `turn`, which serialises its
    threads.
    """

    def __init__(self, device: torch.device) -> None:
        """Join the group that torchrun's environment variables describe."""
        backend = "gloo" if device.type == "cpu" else f"cpu:gloo,{device.type}:nccl"
        dist.init_process_group(backend)
        self.device = device
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._commands = dist.new_group(backend="gloo", timeout=_NEVER)
        self._watch = dist.new_group(backend="gloo", timeout=_NEVER)
        self._turn = threading.Lock()
        self._ending = False
        self._lost = threading.Event()
        self._on_loss: Callable[[int, str], None] = lambda _, reason: None
        self._watchers: list[threading.Thread] = []

    @property
    def leads(self) -> bool:
        return self.rank == 0

    # -- tensors -------------------------------------------------------------------------------------------------

    def sum(self, part: Tensor) -> Tensor:
        """All-reduce: the sum of all parts, on every rank; may be written into `part`."""
        part = part.contiguous()
        dist.all_reduce(part)
        return part

    def joined(self, part: Tensor, dim: int) -> Tensor:
        """All-gather: all parts, which are equally large, side by side, on every rank."""
        part = part.contiguous()
        parts = [torch.empty_like(part) for _ in range(self.size)]
        dist.all_gather(parts, part)
        return torch.cat(parts, dim=dim)

    def collected(self, part: Tensor, dim: int) -> Tensor:
        """Gather: the same on rank 0; elsewhere the part."""
        part = part.contiguous()
        parts = [torch.empty_like(part) for _ in range(self.size)] if self.leads else None
        dist.gather(part, parts, dst=0)
        return part if parts is None else torch.cat(parts, dim=dim)

    def dealt(self, whole: Tensor | None, part: Tensor, dim: int) -> Tensor:
        """Scatter: rank 0's tensor, split along `dim` into one part per rank; part: a buffer of that shape."""
        parts = None if whole is None else [each.contiguous() for each in whole.chunk(self.size, dim=dim)]
        dist.scatter(part, parts, src=0)
        return part

    def copied(self, tensor: Tensor) -> Tensor:
        """Broadcast rank 0's tensor; elsewhere into a buffer of its shape."""
        tensor = tensor.contiguous()
        dist.broadcast(tensor, src=0)
        return tensor

    def reports(self, mine: Any) -> list[Any]:
        """All-gather of Python objects, by rank."""
        said: list[Any] = [None] * self.size
        dist.all_gather_object(said, mine, group=self._commands)
        return said

    # -- commands ------------------------------------------------------------------------------------------------

    @contextmanager
    def turn(self, *command: Any) -> Iterator[None]:
        """On rank 0: send this command, then execute it within the block. If that fails, the others are left in the
        middle of it and the group is lost."""
        with self._turn:
            try:
                self._tell(json.dumps(command).encode())
                yield
            except BaseException as error:
                self.failed(error)
                raise

    def _tell(self, data: bytes) -> None:
        first = torch.zeros(8 + _FIRST_BYTES, dtype=torch.uint8)
        first[:8] = torch.tensor([len(data)], dtype=torch.int64).view(torch.uint8)
        head = data[:_FIRST_BYTES]
        first[8 : 8 + len(head)] = torch.frombuffer(bytearray(head), dtype=torch.uint8)
        dist.broadcast(first, src=0, group=self._commands)
        if rest := data[_FIRST_BYTES:]:
            dist.broadcast(torch.frombuffer(bytearray(rest), dtype=torch.uint8), src=0, group=self._commands)

    def hear(self) -> Command:
        """On other ranks: wait for the next command."""
        first = torch.zeros(8 + _FIRST_BYTES, dtype=torch.uint8)
        dist.broadcast(first, src=0, group=self._commands)
        size = int(first[:8].view(torch.int64))
        data = bytes(first[8 : 8 + min(size, _FIRST_BYTES)].tolist())
        if size > _FIRST_BYTES:
            rest = torch.zeros(size - _FIRST_BYTES, dtype=torch.uint8)
            dist.broadcast(rest, src=0, group=self._commands)
            data += bytes(rest.tolist())
        command: Command = json.loads(data)
        return command

    # -- life ----------------------------------------------------------------------------------------------------

    def watch(self, on_loss: Callable[[int, str], None], on_end: Callable[[], None]) -> None:
        """From now on call `on_loss` with the faulty rank and one line when the group cannot continue, and, on ranks
        other than 0, `on_end` when rank 0 has ended normally; on any thread."""
        self._on_loss = on_loss
        for rank in range(1, self.size) if self.leads else [0]:
            thread = threading.Thread(target=self._wait_for, args=(rank, on_end), name="group-watch", daemon=True)
            self._watchers.append(thread)
            thread.start()

    def _wait_for(self, rank: int, on_end: Callable[[], None]) -> None:
        try:
            dist.recv(torch.zeros(1), src=rank, group=self._watch)
        except RuntimeError:  # its connections are closed
            self._lose(rank, "has ended")
        else:
            on_end()

    def failed(self, error: BaseException) -> None:
        """Report an error during a collective operation."""
        # usually because another process has ended, which is reported where that is noticed
        if not self._lost.wait(_LOSS_S):
            self._lose(self.rank, f"failed ({type(error).__name__})")

    def _lose(self, rank: int, what: str) -> None:
        if not self._ending and not self._lost.is_set():
            self._lost.set()
            self._on_loss(rank, f"process {rank} of {self.size} {what}; a model in parts cannot go on without it")

    def end(self) -> None:
        """On rank 0: end the others too."""
        self._ending = True
        self._turn.acquire(timeout=_END_S)  # even if a command hangs
        for rank in range(1, self.size):
            with contextlib.suppress(RuntimeError):  # already ended
                dist.send(torch.zeros(1), dst=rank, group=self._watch)
        for thread in self._watchers:
            thread.join(_END_S)
