"""Processes that hold one model together: what they add up and send each other, and who has gone.

Rank 0 leads: it decides what is computed and tells the others, which follow. Each has a process group for tensors, one
for commands, and one over which nothing is sent until the end: a process that dies closes its connections, and whoever
waits there for it notices at once.
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

_NEVER = timedelta(days=365)  # until a command comes; the groups' own default would end a server that nobody asks
_FIRST_BYTES = 8192  # of a command in its first message: all but long ones
_LOSS_S = 2.0  # until a process that has died is noticed
_END_S = 5.0  # until the others have heard of the end

Command = list[Any]  # what JSON holds: a name and its arguments


class ProcessGroup:
    """The processes that torchrun has started, as one of them sees them.

    Collective methods are called by all of them in the same order, and on rank 0 within `turn`, since threads take
    turns there.
    """

    def __init__(self, device: torch.device) -> None:
        """Joins the others: which they are is told by torchrun's variables in the environment."""
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
        """The sum of everyone's part, for everyone; may be written into `part`."""
        part = part.contiguous()
        dist.all_reduce(part)
        return part

    def joined(self, part: Tensor, dim: int) -> Tensor:
        """Everyone's equally large part side by side, for everyone."""
        part = part.contiguous()
        parts = [torch.empty_like(part) for _ in range(self.size)]
        dist.all_gather(parts, part)
        return torch.cat(parts, dim=dim)

    def collected(self, part: Tensor, dim: int) -> Tensor:
        """The same on rank 0; elsewhere the part."""
        part = part.contiguous()
        parts = [torch.empty_like(part) for _ in range(self.size)] if self.leads else None
        dist.gather(part, parts, dst=0)
        return part if parts is None else torch.cat(parts, dim=dim)

    def dealt(self, whole: Tensor | None, part: Tensor, dim: int) -> Tensor:
        """Rank 0's whole, cut along `dim` into one part for each; part: of its shape, written to."""
        parts = None if whole is None else [each.contiguous() for each in whole.chunk(self.size, dim=dim)]
        dist.scatter(part, parts, src=0)
        return part

    def copied(self, tensor: Tensor) -> Tensor:
        """Rank 0's tensor, for everyone; elsewhere one of its shape is written to."""
        tensor = tensor.contiguous()
        dist.broadcast(tensor, src=0)
        return tensor

    def reports(self, mine: Any) -> list[Any]:
        """What everyone has to say, by rank."""
        said: list[Any] = [None] * self.size
        dist.all_gather_object(said, mine, group=self._commands)
        return said

    # -- commands ------------------------------------------------------------------------------------------------

    @contextmanager
    def turn(self, *command: Any) -> Iterator[None]:
        """On rank 0: tell the others this, then carry it out within. What fails there leaves them in the middle of it:
        the group is lost."""
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
        """Elsewhere: wait for the next command."""
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
        """From now on call `on_loss` when the group cannot go on, with the rank that is the reason and one line, and
        elsewhere than on rank 0 `on_end` when rank 0 has ended in order; on any thread."""
        self._on_loss = on_loss
        for rank in range(1, self.size) if self.leads else [0]:
            thread = threading.Thread(target=self._wait_for, args=(rank, on_end), name="group-watch", daemon=True)
            self._watchers.append(thread)
            thread.start()

    def _wait_for(self, rank: int, on_end: Callable[[], None]) -> None:
        try:
            dist.recv(torch.zeros(1), src=rank, group=self._watch)
        except RuntimeError:  # its connections were closed
            self._lose(rank, "has ended")
        else:
            on_end()

    def failed(self, error: BaseException) -> None:
        """Something went wrong in the middle of what all do together."""
        if not self._lost.wait(_LOSS_S):  # because another has ended, as a rule; whoever waits for it says so
            self._lose(self.rank, f"failed ({type(error).__name__})")

    def _lose(self, rank: int, what: str) -> None:
        if not self._ending and not self._lost.is_set():
            self._lost.set()
            self._on_loss(rank, f"process {rank} of {self.size} {what}; a model in parts cannot go on without it")

    def end(self) -> None:
        """On rank 0: the others end too."""
        self._ending = True
        self._turn.acquire(timeout=_END_S)  # a command that hangs must not keep them
        for rank in range(1, self.size):
            with contextlib.suppress(RuntimeError):  # it has ended already
                dist.send(torch.zeros(1), dst=rank, group=self._watch)
        for thread in self._watchers:
            thread.join(_END_S)
