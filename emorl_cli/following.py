"""`emorl serve` under torchrun: this process's rank, and what all processes but the first do."""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import redirect_stderr
from typing import TYPE_CHECKING

from emorl_cli.console.exits import BAD_INPUT, DONE, FAILED, complain
from emorl_core.errors import EmorlError, InvalidRequest

if TYPE_CHECKING:
    import torch

    from emorl_core.models.parallel.group import ProcessGroup
    from server.settings import Settings

_ALIKE_S = 10.0  # time for the first process to fail for the same reason and report it


def processes() -> int:
    """The number of processes (world size)."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def rank() -> int:
    """This process's rank."""
    return int(os.environ["RANK"]) if processes() > 1 else 0


def joined(settings: Settings) -> ProcessGroup | None:
    """The processes over which the model is split; None if there is only one. From now on, if one ends, all end.

    Raises:
        InvalidRequest: processes on several machines, or too few devices for one each.
    """
    if processes() == 1:
        return None
    from emorl_core.models.parallel.group import ProcessGroup

    here = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
    if here != processes():
        raise InvalidRequest(f"{here} of {processes()} processes are on this machine; allowed: all of them")
    group = ProcessGroup(_device(settings.device))
    if not group.leads:  # it keeps serving while it drains
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def lost(who: int, reason: str) -> None:
        if group.leads or who == group.rank:  # the first process reports its own end
            with redirect_stderr(sys.__stderr__):  # a server's log goes through a queue, which is not flushed here
                complain(reason)
        os._exit(FAILED)

    group.watch(lost, lambda: os._exit(DONE))
    return group


def _device(name: str) -> torch.device:
    """One device per process, numbered by rank."""
    import torch

    from emorl_core.machine.precision import pick_device

    device = pick_device(name)
    if ":" in name:
        raise InvalidRequest(
            f"device is {name}, one for {processes()} processes; allowed: auto, cpu, cuda (each process takes its own)",
            param="device",
        )
    if device.type == "cpu":
        if torch.accelerator.is_available():  # transformers would load the parts to it
            raise InvalidRequest(
                "device is cpu, and this machine has an accelerator; allowed for several processes: auto",
                param="device",
            )
        return device
    there = torch.cuda.device_count()
    if processes() > there:
        raise InvalidRequest(f"{processes()} processes share {there} devices; allowed: one each", param="device")
    torch.cuda.set_device(rank())
    return torch.device("cuda", rank())


def follow(settings: Settings, group: ProcessGroup) -> int:
    """Run this process's part of the model until the first process ends."""
    import logging

    import torch

    from emorl_core.loading import Options, load_bundle
    from emorl_core.machine.precision import pick_dtype, pick_quantize
    from emorl_core.models.causal.model import CausalModel
    from emorl_core.models.parallel.follower import Follower

    assert settings.bundle is not None  # checked before
    logging.getLogger("emorl").setLevel(logging.ERROR)  # the first process logs the same
    if settings.threads != "auto":
        torch.set_num_threads(settings.threads)
    try:
        options = Options(
            group.device,
            pick_dtype(settings.dtype, group.device),
            pick_quantize(settings.quantize, settings.dtype, group.device),
            group=group,
        )
        loaded = load_bundle(settings.bundle, options)
    except EmorlError as error:
        threading.Event().wait(_ALIKE_S)  # the end of the first process ends this one
        complain(error.message)
        return BAD_INPUT
    assert isinstance(loaded.model, CausalModel)  # the only family that can be split
    try:
        Follower(loaded.model, group).run()
    except Exception as error:
        group.failed(error)
        raise
    return FAILED
