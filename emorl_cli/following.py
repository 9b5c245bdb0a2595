"""`emorl serve` as one of the processes that torchrun starts: which of them this is, and what all but the first do."""

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

_ALIKE_S = 10.0  # until the first process has failed for the same reason, and said so


def processes() -> int:
    """How many processes this one was started with."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def rank() -> int:
    """Which of them this is."""
    return int(os.environ["RANK"]) if processes() > 1 else 0


def joined(settings: Settings) -> ProcessGroup | None:
    """The processes that hold the model in parts; None where there is one. From now on the end of one is the end of
    all.

    Raises:
        InvalidRequest: processes on several machines, or a device that they cannot have one each of.
    """
    if processes() == 1:
        return None
    from emorl_core.models.parallel.group import ProcessGroup

    here = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
    if here != processes():
        raise InvalidRequest(f"{here} of {processes()} processes are on this machine; allowed: all of them")
    group = ProcessGroup(_device(settings.device))
    if not group.leads:  # which serves on while it drains
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def lost(who: int, reason: str) -> None:
        if group.leads or who == group.rank:  # the end of the first process has been told by that one
            with redirect_stderr(sys.__stderr__):  # a server's goes through a queue, which this does not wait for
                complain(reason)
        os._exit(FAILED)

    group.watch(lost, lambda: os._exit(DONE))
    return group


def _device(name: str) -> torch.device:
    """One for each process: its number among them is its device's."""
    import torch

    from emorl_core.machine.precision import pick_device

    device = pick_device(name)
    if ":" in name:
        raise InvalidRequest(
            f"device is {name}, one for {processes()} processes; allowed: auto, cpu, cuda (each process takes its own)",
            param="device",
        )
    if device.type == "cpu":
        if torch.accelerator.is_available():  # which transformers would load the parts to
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
    """Hold this process's part of the model until the first process ends."""
    import logging

    import torch

    from emorl_core.loading import Options, load_bundle
    from emorl_core.machine.precision import pick_dtype, pick_quantize
    from emorl_core.models.causal.model import CausalModel
    from emorl_core.models.parallel.follower import Follower

    assert settings.bundle is not None  # looked at before
    logging.getLogger("emorl").setLevel(logging.ERROR)  # the first process says the same
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
    assert isinstance(loaded.model, CausalModel)  # the one family that is held in parts
    try:
        Follower(loaded.model, group).run()
    except Exception as error:
        group.failed(error)
        raise
    return FAILED
