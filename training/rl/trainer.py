"""All objectives in lockstep: one rollout, one forward and one backward pass a step, one adapter and one AdamW each.
Or one adapter for all objectives together, its reward their weighted sum: what EMORL is compared with.

k-self-critical sequence training (Laban et al. 2021) as method.md section 2 has it. An objective that converged or
failed leaves the batch: its rows are not run and its moments are not touched.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from emorl_core.types import Sampling
from emorl_core.weights import BASE
from training.config import RecipeError
from training.data.prompts import Prompt
from training.rl.checkpoint import Checkpoint, latest, restore_process, save
from training.rl.gradients import GradientStep, Lockstep, Measures, TrainingGroup
from training.rl.objective import Objective, Scores, flat
from training.rl.order import Order
from training.rl.processes import Processes, interleaved
from training.rl.rollout import Rollout, Sample
from training.rl.scoring import ScoringFault, score_by_each
from training.rl.stacks import ObjectiveOptimizer, Stacks, fresh_adapter
from training.rl.stopping import at_limit, reason_to_stop
from training.rl.task import Joint, Task
from training.rl.tracking import Report, RunLog
from training.scorers import ScorerError
from training.seeds import derive

__all__ = ["Joint", "Task", "Trainer"]

Replies = dict[str, list[list[Sample]]]  # objective -> replies of each of this process's prompts


class Trainer:
    """Trains the adapters of a task. `objectives` tell how each one stands."""

    def __init__(self, task: Task, processes: Processes, folder: Path, report: Report = lambda record: None) -> None:
        """folder: of the run's log and checkpoints; report: is told every record of the log."""
        self.task, self.settings = task, task.recipe.rl
        self._processes, self._folder = processes, folder
        model, recipe, settings = task.model, task.recipe, task.recipe.rl
        goals = task.goals()
        fresh = [fresh_adapter(model, name, task.lora_of(name), recipe.seed) for name in goals]
        model.attach(fresh, training=True)
        model.train(False)
        self.stacks = Stacks(model)
        self.objectives = [
            Objective(
                adapter.name,
                lane,
                *goals[adapter.name],
                ObjectiveOptimizer(
                    self.stacks,
                    lane,
                    learning_rate=task.learning_rate_of(adapter.name),
                    weight_decay=settings.weight_decay,
                    warmup_steps=settings.warmup_steps,
                    max_norm=settings.max_grad_norm,
                ),
                adapter,
            )
            for lane, adapter in enumerate(fresh, start=1)
        ]
        self.steps = 0  # taken
        self._at = 0  # the step under way, or the one just taken, for messages
        self._order = Order(len(task.train), settings.prompts_per_step, recipe.seed)
        self._rollout = Rollout(model, task.tokenizer, slots=recipe.compute.rollout_slots)
        lockstep = Lockstep(
            model,
            settings,
            dropout=recipe.lora.dropout,
            prompts_per_forward=recipe.compute.prompts_per_forward,
            autocast=processes.autocast,
        )
        replies = settings.prompts_per_step * settings.samples_per_prompt
        self._gradients = GradientStep(lockstep, self.stacks, processes, replies=replies)
        self._log = RunLog(folder, processes, report)

    @property
    def active(self) -> list[Objective]:
        return [objective for objective in self.objectives if objective.status == "active"]

    def run(self, *, resume: bool = False) -> list[Objective]:
        """Train until every objective has ended.

        Raises:
            ScorerError: a scorer's first answers are not what a scorer gives.
            RecipeError: `resume` with a checkpoint of another recipe or other data.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        checkpoint = latest(self._folder) if resume else None
        if checkpoint is None:
            self._log.keep_until(-1)
            self._validate_base()
        else:
            self._restore(checkpoint)
        while self.active:
            self._step()
            self._finish_step()
        return self.objectives

    # -- one step ------------------------------------------------------------------------------------------------

    def _step(self) -> None:
        """Prompts, samples, scores, gradients, adapters."""
        started = time.perf_counter()
        taking_part = self.active
        self._at = self.steps + 1
        prompts = [self.task.train[index] for index in self._order.step(self.steps)]
        # Dropout's draws belong to the step, so that a resumed run makes the same ones.
        torch.manual_seed(derive(self.task.recipe.seed, "dropout", self.steps, self._processes.index))
        replies = self._sample(prompts)
        sampled = time.perf_counter()
        scores = self._score(prompts, replies)
        scored = time.perf_counter()
        measures = self._learn(prompts, replies, scores) if self.active else {}
        self.steps += 1
        ended = time.perf_counter()
        for objective in taking_part:
            objective.consumption.spend(ended - started, len(taking_part))
        seconds = {"rollout": sampled - started, "scoring": scored - sampled, "learning": ended - scored}
        self._log.write("step", self.steps, seconds=seconds, objectives=measures)

    def _sample(self, prompts: Sequence[Prompt]) -> Replies:
        """k replies of every active objective to this process's share of the prompts."""
        mine = self._processes.share(list(enumerate(prompts)))

        def seed_of(place: int, name: str, number: int) -> int:
            whole, prompt = mine[place]
            return derive(self.task.recipe.seed, "sample", self.steps, whole, prompt.index, name, number)

        settings = self.settings
        sampling = Sampling(settings.max_new_tokens, temperature=settings.temperature, top_k=settings.top_k)
        self.task.model.train(settings.dropout_when_generating)
        names = [objective.name for objective in self.active]
        found = self._rollout.sample(
            [prompt for _, prompt in mine], names, settings.samples_per_prompt, sampling, seed_of
        )
        self.task.model.train(False)
        self._fail({name: error.message for name, error in found.failures.items()})
        return found.samples

    def _score(self, prompts: Sequence[Prompt], replies: Replies) -> dict[str, Scores]:
        """Scores of every active objective by scorer, [prompts][k], of all processes."""
        mine = self._processes.share(list(prompts))
        own: dict[str, Scores] = {}
        faults: dict[str, str] = {}
        for objective in self.active:
            try:
                own[objective.name] = score_by_each(objective.scorers, mine, replies[objective.name])
            except ScoringFault as fault:
                faults[objective.name] = str(fault)
        self._fail(faults)
        every = self._processes.gather_objects(own)
        return {
            o.name: {scorer: interleaved([part[o.name][scorer] for part in every]) for scorer in o.scorers}
            for o in self.active
        }

    def _learn(
        self, prompts: Sequence[Prompt], replies: Replies, scores: dict[str, Scores]
    ) -> dict[str, dict[str, Any]]:
        """Move every active adapter; returns what is worth logging."""
        mine = self._processes.share(list(prompts))
        batch: dict[int, list[TrainingGroup]] = {}
        rewards: dict[str, list[float]] = {}
        for objective in self.active:
            own_rewards = objective.rewards(scores[objective.name], self.settings.reward)
            rewards[objective.name] = own_rewards
            k = self.settings.samples_per_prompt
            grouped = [tuple(own_rewards[i : i + k]) for i in range(0, len(own_rewards), k)]
            batch[objective.lane] = [
                TrainingGroup(prompt.gradient_source, tuple(self.task.trained_ids(sample) for sample in own), group)
                for prompt, own, group in zip(
                    mine, replies[objective.name], self._processes.share(grouped), strict=True
                )
            ]
        found = self._gradients.compute(batch)
        self._fail({o.name: found.faults[o.lane] for o in self.active if o.lane in found.faults})
        logged: dict[str, dict[str, Any]] = {}
        for objective in self.active:
            objective.optimizer.step(found.norms[objective.lane])
            objective.steps += 1
            logged[objective.name] = self._account(
                objective, scores[objective.name], rewards[objective.name], replies[objective.name],
                found.measures[objective.lane], found.norms[objective.lane],
            )  # fmt: skip
        return logged

    def _account(
        self, objective: Objective, scores: Scores, rewards: list[float], replies: list[list[Sample]],
        measured: Measures, norm: float,
    ) -> dict[str, Any]:  # fmt: skip
        means = {name: statistics.fmean(flat(own)) for name, own in scores.items()}
        joint = {"scores": means, "weights": dict(objective.mix.weights)} if self.task.joint is not None else {}
        every = self._processes.gather_objects(
            (sum(len(s.ids) for own in replies for s in own), sum(s.ended for own in replies for s in own))
        )
        tokens, ended = sum(part[0] for part in every), sum(part[1] for part in every)
        objective.consumption.prompts += len(rewards) // self.settings.samples_per_prompt
        objective.consumption.samples += len(rewards)
        objective.consumption.tokens += tokens
        return {
            "score": statistics.fmean(means.values()),
            **joint,
            "reward": sum(rewards) / len(rewards),
            "loss": measured.loss,
            "policy_loss": measured.policy_loss,
            "kl_loss": measured.kl_loss,
            "kl_k1": measured.k1 / measured.replies,  # nats a reply
            "kl_k3": measured.k3 / measured.replies,
            "gradient_norm": norm,
            "tokens": tokens / len(rewards),  # a reply
            "ended": ended / len(rewards),  # share that ended by itself
        }

    # -- after a step --------------------------------------------------------------------------------------------

    def _finish_step(self) -> None:
        """Validate, stop and save what is due."""
        settings = self.settings
        limit = at_limit(settings.stop, self.steps)
        due = limit is not None or self.steps % settings.validate_every == 0
        if due and self.active:
            self._validate()
        if settings.stop.check == "epoch" and limit is None:
            due = self._order.ends_epoch(self.steps - 1)
        for objective in self.active if due else ():
            reason = reason_to_stop(settings.stop, objective.stop, self.steps)
            if reason is not None:
                objective.end("finished", reason)
                self._log.write("end", self.steps, objective=objective.name, status="finished", reason=reason)
        if not self.active or self.steps % self.task.recipe.compute.checkpoint_every == 0:
            self.save()

    def _validate(self) -> None:
        """One greedy reply of every active objective to every validation prompt."""
        started = time.perf_counter()
        taking_part = self.active
        mine = self._processes.share(self.task.validation)
        torch.manual_seed(derive(self.task.recipe.seed, "validation", self.steps, self._processes.index))
        self.task.model.train(self.settings.dropout_when_generating)
        found = self._rollout.greedy(mine, [o.name for o in taking_part], self.settings.max_new_tokens)
        self.task.model.train(False)
        self._fail({name: error.message for name, error in found.failures.items()})
        scores = self._score(self.task.validation, found.samples)
        means: dict[str, dict[str, float]] = {}
        for objective in self.active:
            means[objective.name] = objective.validated(scores[objective.name], self.steps, self.stacks)
            tokens = sum(len(own[0].ids) for own in found.samples[objective.name])
            objective.consumption.validation_samples += len(self.task.validation)
            objective.consumption.validation_tokens += sum(self._processes.gather_objects(tokens))
        seconds = time.perf_counter() - started
        for objective in taking_part:
            objective.consumption.spend(seconds, len(taking_part))
        self._write_validation(means, seconds)

    def _validate_base(self) -> None:
        """What the base scores: every objective begins there. A scorer that breaks its contract is refused here."""
        started = time.perf_counter()
        mine = self._processes.share(self.task.validation)
        found = self._rollout.greedy(mine, [BASE], self.settings.max_new_tokens)
        if BASE in found.failures:
            raise RecipeError(f"base: {found.failures[BASE].message}", param="base")
        means: dict[str, dict[str, float]] = {}
        for objective in self.objectives:
            try:
                own = score_by_each(objective.scorers, mine, found.samples[BASE])
            except ScoringFault as fault:
                where = f"objectives.{fault.scorer}.scorer"
                raise ScorerError(f"{where}: {fault}", param=where) from fault
            every = self._processes.gather_objects(own)
            whole = {name: interleaved([part[name] for part in every]) for name in objective.scorers}
            means[objective.name] = objective.validated(whole, 0, self.stacks)
        self._write_validation(means, time.perf_counter() - started)

    def _write_validation(self, means: Mapping[str, Mapping[str, float]], seconds: float) -> None:
        scores = {name: statistics.fmean(own.values()) for name, own in means.items()}
        joint = {}
        if self.task.joint is not None:
            joint = {"by_scorer": means, "weights": {o.name: dict(o.mix.weights) for o in self.objectives}}
        self._log.write("validation", self.steps, seconds=seconds, scores=scores, **joint)

    def _fail(self, faults: dict[str, str]) -> None:
        """End these objectives on every process; their best weights stay, and NaN leaves the stacks."""
        every: dict[str, str] = {}
        for part in self._processes.gather_objects(faults):
            every = {**part, **every}
        for objective in self.active:
            if objective.name in every:
                objective.end("failed", f"{every[objective.name]}; at step {self._at}")
                self.stacks.set_values(objective.lane, objective.best)
                self._log.write("end", self.steps, objective=objective.name, status="failed", reason=objective.reason)

    # -- checkpoints ---------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write a checkpoint of everything, from the main process."""
        if self._processes.is_main:
            tensors = {k: v for objective in self.objectives for k, v in objective.tensors(self.stacks).items()}
            states = {objective.name: objective.state() for objective in self.objectives}
            save(self._folder, Checkpoint(self.steps, tensors, {"task": self.task.fingerprint, "objectives": states}))
        self._processes.wait()

    def _restore(self, checkpoint: Checkpoint) -> None:
        for key, value in self.task.fingerprint.items():
            if checkpoint.state["task"].get(key) != value:
                raise RecipeError(
                    f"--resume: the checkpoint in {self._folder} is of another {key}; "
                    "use the recipe and data it began with, or another --out",
                    param="resume",
                )
        self.steps = checkpoint.step
        for objective in self.objectives:
            objective.restore(checkpoint.state["objectives"][objective.name], checkpoint.tensors, self.stacks)
        restore_process(checkpoint)
        self._log.keep_until(self.steps)
        self._log.write("resume", self.steps)
