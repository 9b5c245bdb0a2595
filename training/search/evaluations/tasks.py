"""Tasks of a Ray cluster that this program is connected to. Needs the extra `ray`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from emorl_core.errors import EmorlError

LOST: Final = object()  # the result of a task whose workers died repeatedly


class TasksError(EmorlError):
    """The cluster cannot run the tasks, or lost them; one line."""

    code = "no_tasks"


class Tasks:
    """Runs functions of modules that every machine has, as many at a time as the cluster has cores or GPUs for.

    When a worker dies, Ray runs its task again, three times at most.
    """

    def __init__(self, threads: int, device: str) -> None:
        """threads, device: of each task; `auto` is a GPU if the cluster has any.

        Raises `TasksError`: no machine of the cluster has them.
        """
        import ray

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        self._needs = _resources(threads, device, nodes)
        self.at_once = max(1, sum(_fits(self._needs, node) for node in nodes))

    def share(self, value: object) -> Any:
        """Share an argument of many tasks, sent to each machine once."""
        import ray

        return ray.put(value)

    def start(self, function: Callable[..., object], *args: object) -> Any:
        """Start a task, which may be an argument of others: they start after it and get its result."""
        import ray

        return ray.remote(**self._needs)(function).remote(*args)

    def ended(self, tasks: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
        """Yield (task, its result or `LOST`) in order of completion. Raises what a task raised."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        left = list(tasks)
        while left:
            (task, *_), left = ray.wait(left, num_returns=1)
            try:
                value = ray.get(task)
            except RayTaskError as error:
                if not isinstance(error.cause, RayError):
                    raise error.cause from None
                value = LOST  # a task that it depends on was lost
            except RayError:
                value = LOST
            yield task, value


def _resources(threads: int, device: str, nodes: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """By Ray's names."""
    has_gpus = any(node.get("GPU", 0) > 0 for node in nodes)
    if device.startswith("cuda") and not has_gpus:
        raise TasksError(f"the device is {device!r}, and the Ray cluster has no GPU", param="ray")
    needs: dict[str, float] = {"num_cpus": threads, "num_gpus": int(has_gpus and device != "cpu")}
    if not any(_fits(needs, node) for node in nodes):
        most = max((node.get("CPU", 0) for node in nodes), default=0)
        raise TasksError(
            f"threads is {threads}; allowed: up to {most:.0f}, as many cores as a machine of the Ray cluster has",
            param="threads",
        )
    return needs


def _fits(needs: Mapping[str, float], node: Mapping[str, float]) -> int:
    """The number of tasks at a time."""
    rooms = [node.get(name, 0) // needs[key] for key, name in (("num_cpus", "CPU"), ("num_gpus", "GPU")) if needs[key]]
    return int(min(rooms))
