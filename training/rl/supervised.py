"""Supervised fine-tuning of the adapters before reinforcement learning: given replies go through the same gradient
step, all objectives in lockstep.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from training.rl.checkpoint import Checkpoint, check_task, latest, restore_process, save
from training.rl.given import Given
from training.rl.gradients import Batch, GradientStep, Lockstep, StepLoss, TrainingGroup
from training.rl.objective import Objective
from training.rl.processes import Processes
from training.rl.stacks import ObjectiveOptimizer, Stacks, falling
from training.rl.task import Order, Task
from training.rl.tracking import Report, RunLog
from training.seeds import derive

FOLDER = "adapter-start"  # folder of this stage's log and checkpoints, inside the run's

Fail = Callable[[dict[str, str], str], None]  # (errors by objective, place) -> the objectives that ended


class SupervisedStart:
    """Fits the adapters of a trainer in place, without other changes to its objectives."""

    def __init__(
        self,
        task: Task,
        given: Given,
        stacks: Stacks,
        objectives: Sequence[Objective],
        processes: Processes,
        run: Path,
        report: Report,
    ) -> None:
        """run: the folder of the whole run."""
        self._task, self._fit, self._pairs = task, given.fit, given.pairs
        self._stacks, self._processes, self._folder = stacks, processes, run / FOLDER
        self._objectives = [objective for objective in objectives if given.pairs.get(objective.name)]
        self._reinforcing = {objective.name: objective.optimizer for objective in self._objectives}
        for objective in self._objectives:
            objective.optimizer = ObjectiveOptimizer(
                stacks,
                objective.lane,
                rate=falling(given.fit.learning_rate, given.fit.warmup_steps, given.fit.steps),
                weight_decay=0.0,
                max_norm=given.fit.max_grad_norm,
            )
        # Objectives with equally many pairs take them in the same order: if they answer the same prompts, a step has
        # them side by side and reads each prompt once.
        seed = derive(task.seed, "adapter start")
        self._orders = {name: Order(len(pairs), given.fit.batch_size, seed) for name, pairs in given.pairs.items()}
        lockstep = Lockstep(
            task.model,
            StepLoss.of_given_replies(),
            dropout=task.dropout,
            prompts_per_forward=task.compute.prompts_per_forward,
            autocast=processes.autocast,
        )
        self._gradients = GradientStep(lockstep, stacks, processes, replies=given.fit.batch_size)
        self._log = RunLog(self._folder, processes, report)
        self._taken = 0

    def resume(self) -> bool:
        """Restore the newest checkpoint; returns whether there was one.

        Raises `RecipeError` for one of another recipe or other data.
        """
        checkpoint = latest(self._folder)
        if checkpoint is None:
            return False
        check_task(checkpoint, self._task.fingerprint, self._folder)
        self._taken = checkpoint.step
        for objective in self._objectives:
            objective.restore(checkpoint.state["objectives"][objective.name], checkpoint.tensors, self._stacks)
        restore_process(checkpoint)
        self._log.keep_until(self._taken)
        return True

    def run(self, fail: Fail) -> None:
        """Take all remaining steps. fail: called in every process with a step's errors, usually none."""
        self._folder.mkdir(parents=True, exist_ok=True)
        if self._taken == 0:
            self._log.keep_until(-1)
        while self._taken < self._fit.steps and self._active:
            self._step(fail)
            if self._taken == self._fit.steps or self._taken % self._task.compute.checkpoint_every == 0:
                self._save()
        for objective in self._objectives:
            objective.optimizer, objective.steps = self._reinforcing[objective.name], 0

    @property
    def _active(self) -> list[Objective]:
        return [objective for objective in self._objectives if objective.status == "active"]

    def _step(self, fail: Fail) -> None:
        started = time.perf_counter()
        taking_part = self._active
        torch.manual_seed(derive(self._task.seed, "adapter start", self._taken, self._processes.index))
        batch: Batch = {objective.lane: self._groups(objective.name) for objective in taking_part}
        found = self._gradients.compute(batch)
        self._taken += 1
        faults = {o.name: found.faults[o.lane] for o in taking_part if o.lane in found.faults}
        fail(faults, f"step {self._taken} of adapter_start")
        for objective in self._active:
            objective.optimizer.step(found.norms[objective.lane])
            objective.steps += 1
            objective.consumption.pairs += self._fit.batch_size
        seconds = time.perf_counter() - started
        for objective in taking_part:
            objective.consumption.spend(seconds, len(taking_part))
        losses = {objective.name: found.measures[objective.lane].loss for objective in self._active}
        norms = {objective.name: found.norms[objective.lane] for objective in self._active}
        self._log.write("fit", self._taken, seconds=seconds, loss=losses, gradient_norm=norms)

    def _groups(self, name: str) -> list[TrainingGroup]:
        pairs = self._processes.share([self._pairs[name][place] for place in self._orders[name].step(self._taken)])
        return [TrainingGroup(pair.source, (pair.reply,), (1.0,)) for pair in pairs]

    def _save(self) -> None:
        if self._processes.is_main:
            tensors: dict[str, Tensor] = {}
            for objective in self._objectives:
                tensors |= objective.tensors(self._stacks)
            states = {objective.name: objective.state() for objective in self._objectives}
            save(self._folder, Checkpoint(self._taken, tensors, {"task": self._task.fingerprint, "objectives": states}))
        self._processes.wait()
