"""All objectives in lockstep: one rollout, one forward and one backward pass a step, one adapter and one AdamW each.
Or joint training, with which EMORL is compared: one adapter for all objectives, its reward their weighted sum.

k-self-critical sequence training (Laban et al. 2021) as in method.md section 2. An objective that converged or failed
leaves the batch: its rows are not run, and its moments are not touched.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from emorl_core.scorers import ScorerError
from emorl_core.types import Sampling
from emorl_core.weights import BASE
from training.config import RecipeError
from training.data.prompts import Prompt
from training.rl.batch import StepBatch
from training.rl.checkpoint import Checkpoint, check_task, latest, restore_process, save
from training.rl.gradients import GradientStep, Lockstep, Measures, StepLoss
from training.rl.objective import Objective, flat
from training.rl.processes import Processes, interleaved
from training.rl.rollout import Replies, Rollout
from training.rl.scoring import ScoringFault, score_by_each
from training.rl.stacks import ObjectiveOptimizer, Stacks, fresh_adapter, warmed_up
from training.rl.stopping import ask, at_limit, reason_to_stop
from training.rl.supervised import SupervisedStart
from training.rl.task import Order, Task
from training.rl.tracking import Report, RunLog
from training.seeds import derive


class Trainer:
    """Trains the adapters of a task. `objectives` have the state of each, `batch` the data of the last step."""

    def __init__(self, task: Task, processes: Processes, folder: Path, report: Report = lambda record: None) -> None:
        """folder: for the run's log and checkpoints; report: called with every log record."""
        self.task, self.settings, self.folder = task, task.rl, folder
        self._processes = processes
        model, settings = task.model, task.rl
        fresh = [fresh_adapter(model, name, goal.lora, task.seed, task.invocation) for name, goal in task.goals.items()]
        model.attach(fresh, training=True)
        model.train(False)
        self.stacks = Stacks(model)
        self.objectives = [
            Objective(
                adapter.name,
                lane,
                task.goals[adapter.name].scorers,
                task.goals[adapter.name].mix,
                ObjectiveOptimizer(
                    self.stacks,
                    lane,
                    rate=warmed_up(task.goals[adapter.name].learning_rate, settings.warmup_steps),
                    weight_decay=settings.weight_decay,
                    max_norm=settings.max_grad_norm,
                ),
                adapter,
            )
            for lane, adapter in enumerate(fresh, start=1)
        ]
        self.taken = 0  # steps
        self.batch: StepBatch | None = None
        self._at = 0  # the current or last step, for messages
        self._order = Order(len(task.train), settings.prompts_per_step, task.seed, drop_last=settings.drop_last)
        self._sampling = Sampling(settings.max_new_tokens, temperature=settings.temperature, top_k=settings.top_k)
        self._rollout = Rollout(model, task.tokenizer, slots=task.compute.rollout_slots)
        lockstep = Lockstep(
            model,
            StepLoss.of(settings),
            dropout=task.dropout,
            prompts_per_forward=task.compute.prompts_per_forward,
            autocast=processes.autocast,
        )
        replies = settings.prompts_per_step * settings.samples_per_prompt
        self._gradients = GradientStep(lockstep, self.stacks, processes, replies=replies)
        self._log = RunLog(folder, processes, report)
        self._report = report

    @property
    def active(self) -> list[Objective]:
        return [objective for objective in self.objectives if objective.status == "active"]

    def run(self, *, resume: bool = False) -> list[Objective]:
        """Train until every objective has ended. Raises like `start`."""
        self.start(resume=resume)
        for _ in self.steps():
            pass
        return self.objectives

    def start(self, *, resume: bool = False) -> None:
        """Validate the base, and fit the adapters on given replies if the task has some; or, with `resume`, restore the
        newest checkpoint if there is one.

        Raises:
            ScorerError: a scorer's first answers are invalid.
            RecipeError: `resume` with a checkpoint of another recipe or other data.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        checkpoint = latest(self.folder) if resume else None
        if checkpoint is not None:
            self._restore(checkpoint)
            return
        given = self.task.given
        if given is None:
            self._log.keep_until(-1)
            self._validate_base()
            return
        fitting = SupervisedStart(
            self.task, given, self.stacks, self.objectives, self._processes, self.folder, self._report
        )
        if resume and fitting.resume():
            self._log.keep_until(0)
        else:
            self._log.keep_until(-1)
            self._validate_base()
        fitting.run(self._fail)
        for objective in self.active:
            objective.begin_at(self.stacks.values(objective.lane))
        if self.active:
            self._validate()
        self.save()

    def steps(self) -> Iterator[dict[str, Any]]:
        """After `start`: take steps until every objective has ended, and yield each step's log record.

        A step's record is yielded after any validation and checkpoint that were due.
        """
        while self.active:
            record = self._step()
            self._finish_step()
            yield record

    # -- one step ------------------------------------------------------------------------------------------------

    def _step(self) -> dict[str, Any]:
        """Take prompts, sample, score, compute gradients, update the adapters."""
        started = time.perf_counter()
        taking_part = self.active
        self._at = self.taken + 1
        prompts = [self.task.train[index] for index in self._order.step(self.taken)]
        # Dropout is seeded by the step, so that a resumed run draws the same masks.
        torch.manual_seed(derive(self.task.seed, "dropout", self.taken, self._processes.index))
        self.batch = batch = self._sample(prompts)
        sampled = time.perf_counter()
        self._score(batch)
        scored = time.perf_counter()
        measures = self._learn(batch) if self.active else {}
        self.taken += 1
        ended = time.perf_counter()
        for objective in taking_part:
            objective.consumption.spend(ended - started, len(taking_part))
        seconds = {"rollout": sampled - started, "scoring": scored - sampled, "learning": ended - scored}
        return self._log.write("step", self.taken, seconds=seconds, objectives=measures)

    def _sample(self, prompts: Sequence[Prompt]) -> StepBatch:
        """Sample k replies of every active objective to this process's share of the prompts."""
        mine = self._processes.share(list(enumerate(prompts)))

        def seed_of(place: int, name: str, number: int) -> int:
            whole, prompt = mine[place]
            return derive(self.task.seed, "sample", self.taken, whole, prompt.index, name, number)

        settings = self.settings
        own = [prompt for _, prompt in mine]
        names = [objective.name for objective in self.active]
        self.task.model.train(settings.dropout_when_generating)
        found = self._rollout.sample(own, names, settings.samples_per_prompt, self._sampling, seed_of)
        self.task.model.train(False)
        self._fail({name: error.message for name, error in found.failures.items()})
        return StepBatch(own, found.samples)

    def _score(self, batch: StepBatch) -> None:
        """Compute the scores of every active objective."""
        own = {}
        faults: dict[str, str] = {}
        for objective in self.active:
            try:
                own[objective.name] = score_by_each(objective.scorers, batch.prompts, batch.replies[objective.name])
            except ScoringFault as fault:
                faults[objective.name] = str(fault)
        self._fail(faults)
        every = self._processes.gather_objects(own)
        batch.scores = {
            o.name: {scorer: interleaved([part[o.name][scorer] for part in every]) for scorer in o.scorers}
            for o in self.active
        }

    def _learn(self, batch: StepBatch) -> dict[str, dict[str, Any]]:
        """Update every active adapter; returns metrics for the log."""
        for objective in self.active:
            rewards = objective.rewards(batch.scores[objective.name], self.settings.reward)
            batch.rewards[objective.name] = rewards
            batch.group(objective.name, objective.lane, self._processes.share(rewards), self.task.trained_ids)
        found = self._gradients.compute(batch.groups)
        self._fail({o.name: found.faults[o.lane] for o in self.active if o.lane in found.faults})
        logged: dict[str, dict[str, Any]] = {}
        for objective in self.active:
            objective.optimizer.step(found.norms[objective.lane])
            objective.steps += 1
            logged[objective.name] = self._account(
                objective, batch, found.measures[objective.lane], found.norms[objective.lane]
            )
        return logged

    def _account(self, objective: Objective, batch: StepBatch, measured: Measures, norm: float) -> dict[str, Any]:
        means = {name: statistics.fmean(flat(own)) for name, own in batch.scores[objective.name].items()}
        joint = {"scores": means, "weights": dict(objective.mix.weights)} if self.task.joint else {}
        samples = [sample for own in batch.replies[objective.name] for sample in own]
        every = self._processes.gather_objects((sum(len(s.ids) for s in samples), sum(s.ended for s in samples)))
        tokens, ended = sum(part[0] for part in every), sum(part[1] for part in every)
        rewards = flat(batch.rewards[objective.name])
        objective.consumption.prompts += len(batch.rewards[objective.name])
        objective.consumption.samples += len(rewards)
        objective.consumption.tokens += tokens
        return {
            "score": statistics.fmean(means.values()),
            **joint,
            "reward": sum(rewards) / len(rewards),
            "loss": measured.loss,
            "policy_loss": measured.policy_loss,
            "kl_loss": measured.kl_loss,
            "kl_k1": measured.k1 / measured.replies,  # nats per reply
            "kl_k3": measured.k3 / measured.replies,
            "gradient_norm": norm,
            "tokens": tokens / len(rewards),  # a reply
            "ended": ended / len(rewards),  # share of replies that ended by themselves
        }

    # -- after a step --------------------------------------------------------------------------------------------

    def _finish_step(self) -> None:
        """Validate, stop and save, where due."""
        settings = self.settings
        due = at_limit(settings.stop, self.taken) is not None or self.taken % settings.validate_every == 0
        if due and self.active:
            self._validate()
        ends_pass = self._order.ends_pass(self.taken - 1)
        for objective in self.active:
            reason = reason_to_stop(settings.stop, objective.stop, self.taken, ends_pass=ends_pass)
            if reason is not None:
                objective.end("finished", reason)
                self._log.write("end", self.taken, objective=objective.name, status="finished", reason=reason)
        if not self.active or self.taken % self.task.compute.checkpoint_every == 0:
            self.save()

    def _validate(self) -> None:
        """Generate replies of every active objective to every validation prompt."""
        started = time.perf_counter()
        taking_part = self.active
        mine = self._processes.share(self.task.validation)
        torch.manual_seed(derive(self.task.seed, "validation", self.taken, self._processes.index))
        self.task.model.train(self.settings.dropout_when_generating)
        found = self._validation_replies(mine, [o.name for o in taking_part])
        self.task.model.train(False)
        self._fail({name: error.message for name, error in found.failures.items()})
        batch = StepBatch(mine, found.samples)
        self._score(batch)
        means: dict[str, dict[str, float]] = {}
        replies = max(1, self.settings.validation_samples) * len(self.task.validation)
        for objective in self.active:
            means[objective.name] = objective.validated(batch.scores[objective.name], self.taken, self.stacks)
            ask(self.settings.stop, objective.stop)
            tokens = sum(len(sample.ids) for own in found.samples[objective.name] for sample in own)
            objective.consumption.validation_samples += replies
            objective.consumption.validation_tokens += sum(self._processes.gather_objects(tokens))
        seconds = time.perf_counter() - started
        for objective in taking_part:
            objective.consumption.spend(seconds, len(taking_part))
        self._write_validation(means, seconds)

    def _validate_base(self) -> None:
        """Score the base, which is every objective's starting point. A scorer that breaks its contract is refused
        here."""
        started = time.perf_counter()
        mine = self._processes.share(self.task.validation)
        found = self._validation_replies(mine, [BASE])
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

    def _validation_replies(self, prompts: Sequence[Prompt], names: Sequence[str]) -> Replies:
        settings = self.settings
        if not settings.validation_samples:
            return self._rollout.greedy(prompts, names, settings.max_new_tokens)

        def seed_of(place: int, name: str, number: int) -> int:
            return derive(self.task.seed, "validation", self.taken, prompts[place].index, name, number)

        return self._rollout.sample(prompts, names, settings.validation_samples, self._sampling, seed_of)

    def _write_validation(self, means: Mapping[str, Mapping[str, float]], seconds: float) -> None:
        scores = {name: statistics.fmean(own.values()) for name, own in means.items()}
        joint = {}
        if self.task.joint:
            joint = {"by_scorer": means, "weights": {o.name: dict(o.mix.weights) for o in self.objectives}}
        self._log.write("validation", self.taken, seconds=seconds, scores=scores, **joint)

    def _fail(self, faults: dict[str, str], where: str | None = None) -> None:
        """End these objectives on every process; their best weights are kept, and NaN is cleared from the stacks."""
        every: dict[str, str] = {}
        for part in self._processes.gather_objects(faults):
            every = {**part, **every}
        for objective in self.active:
            if objective.name in every:
                objective.end("failed", f"{every[objective.name]}; at {where or f'step {self._at}'}")
                self.stacks.set_values(objective.lane, objective.best)
                self._log.write("end", self.taken, objective=objective.name, status="failed", reason=objective.reason)

    # -- checkpoints ---------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write a checkpoint of everything, from the main process."""
        if self._processes.is_main:
            tensors = {k: v for objective in self.objectives for k, v in objective.tensors(self.stacks).items()}
            states = {objective.name: objective.state() for objective in self.objectives}
            save(self.folder, Checkpoint(self.taken, tensors, {"task": self.task.fingerprint, "objectives": states}))
        self._processes.wait()

    def _restore(self, checkpoint: Checkpoint) -> None:
        check_task(checkpoint, self.task.fingerprint, self.folder)
        self.taken = checkpoint.step
        for objective in self.objectives:
            objective.restore(checkpoint.state["objectives"][objective.name], checkpoint.tensors, self.stacks)
        restore_process(checkpoint)
        self._log.keep_until(self.taken)
        self._log.write("resume", self.taken)
