"""step() = schedule, run, postprocess; one stream of events.

Exactly one thread owns an engine. Requests with different weights, lengths and sampling run in one batch, join and
leave at token boundaries. A request ends with exactly one `Completion` or one `Failure`; a failure affects no other
request.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Sequence

from emorl_core.engine.batch import Outcome
from emorl_core.engine.events import Reporter
from emorl_core.engine.intake import Intake
from emorl_core.engine.room import Room
from emorl_core.engine.runner import Runner
from emorl_core.engine.scheduler import Scheduler, requests_of
from emorl_core.engine.sequences import Branch, Choice, Job, Member
from emorl_core.engine.stats import EngineStats
from emorl_core.errors import EmorlError, InvalidRequest
from emorl_core.lanes.lane import named_points
from emorl_core.models.family import Facts, LaneModel
from emorl_core.text.detokenize import Decode
from emorl_core.types import Event, FinishReason, PromptLookup, Request, check_prompt_lookup


class Engine:
    """Continuous batching over one model. See `add`, `cancel`, `step`."""

    def __init__(
        self,
        model: LaneModel,
        decode: Decode,
        lanes: Sequence[str],
        *,
        slots: int = 16,
        prefill_cache_bytes: int = 256 * 2**20,
        prefill_tokens: int | None = None,
        kv_cache_bytes: int | None = None,
        prompt_lookup: PromptLookup = "off",
    ) -> None:
        """decode: token ids -> text without special tokens; lanes: names, `base` first, with every adapter of the
        model; slots: branches that run at once; prefill_tokens: prompt tokens read per step beside running branches,
        None: all; kv_cache_bytes: bound on the keys and values of running branches, None: no bound; prompt_lookup:
        whether to propose tokens copied from prompts and verify several per step
        (`emorl_core.engine.speculation.lookup`)."""
        if slots < 1:
            raise InvalidRequest(f"slots is {slots}; allowed: a whole number from 1", param="slots")
        if prefill_tokens is not None and prefill_tokens < 1:
            raise InvalidRequest(
                f"prefill_tokens is {prefill_tokens}; allowed: a whole number from 1", param="prefill_tokens"
            )
        check_prompt_lookup(prompt_lookup)
        self.lanes = tuple(lanes)
        if missing := set(model.adapters) - set(self.lanes):
            raise InvalidRequest(f"lanes lacks {', '.join(sorted(missing))}, adapters of the model", param="lanes")
        self.runner = Runner(
            model,
            prefill_cache_bytes=prefill_cache_bytes,
            prefill_tokens=prefill_tokens,
            prompt_lookup=prompt_lookup,
        )
        self._room = Room(self.runner, kv_cache_bytes)
        self.scheduler = Scheduler(slots, self._room.fits)
        self._intake = Intake(named_points(self.lanes, model.adapters), decode)
        self._report = Reporter(self.lanes)
        self._eos = frozenset(model.facts.eos_token_ids)
        self._batch_rows = 0
        self.faults = 0
        self.last_fault: Exception | None = None  # for the caller's log; its message may contain prompts

    @property
    def model(self) -> LaneModel:
        return self.runner.model

    @property
    def facts(self) -> Facts:
        """Of the model."""
        return self.runner.model.facts

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work

    @property
    def stats(self) -> EngineStats:
        scheduler, runner = self.scheduler, self.runner
        return EngineStats(
            waiting=scheduler.waiting_requests,
            running=scheduler.running_requests,
            slots=scheduler.slots,
            slots_used=len(scheduler.running),
            lanes_running=runner.lanes_running,
            batch_rows=self._batch_rows,
            lane_row_steps=runner.lane_row_steps,
            proposed_tokens=runner.proposed_tokens,
            accepted_tokens=runner.accepted_tokens,
            prefill_hits=runner.reader.hits,
            prefill_misses=runner.reader.misses,
            prefill_tokens_found=runner.reader.tokens_found,
            prefill_tokens_computed=runner.reader.tokens_computed,
            prefill_cache_bytes=runner.prefill_cache.nbytes,
            kv_cache_bytes=runner.kv_cache_bytes,
            kv_cache_limit=self._room.most_bytes,
            faults=self.faults,
            compiled=runner.model.compiled,
        )

    def add(self, request: Request) -> None:
        """Queue one request."""
        self.add_group([request])

    def add_group(self, requests: Sequence[Request], job: Job | None = None) -> None:
        """Queue requests that share their prompt, stop strings and token limits; common prefixes are computed once.

        Requests without a seed get one, the same for the whole group, and report it. Groups with the same `job` count
        as one when slots are shared out.

        Raises:
            InvalidRequest: the requests cannot form a group, the prompt is empty, the weights do not fit the lanes, or
                the request would not fit into memory even alone.
        """
        branch = self._intake.branch(requests, job)
        self._room.check(branch)
        self.scheduler.add(branch)

    def cancel(self, request_id: str) -> None:
        """Cancel a queued or running request at the next step; unknown ids are ignored."""
        self.scheduler.cancel(request_id)

    def step(self) -> list[Event]:
        """Decode one token, or several with prompt lookup, for every running request whose prompt has been read, and
        read more of the others' prompts. Returns the events in order."""
        events: list[Event] = []
        self._take_cancelled(events)
        self._admit()
        self._read(events)
        running = self.runner.branches
        self._batch_rows = requests_of(running)
        if running:
            for outcomes in self._run(events):
                self._postprocess(outcomes, events)
        return events

    def switch(self, model: LaneModel) -> None:
        """Use this compiled version of the same model for requests that start decoding from now on; running ones keep
        the step they started with."""
        self.runner.switch(model)

    def rest(self) -> None:
        """Called when no request is expected soon: if none is running, free the memory kept for the next ones."""
        self.runner.rest()

    def drop_all(self, error: EmorlError) -> list[Event]:
        """Fail every queued and running request and start empty; for a restart after a fault."""
        branches = self.scheduler.clear()
        self.runner.reset()
        lost = [(branch, member) for branch in branches for member in branch.members]
        return [event for branch, member in lost for event in self._report.failed(branch, member, error)]

    # -- schedule ------------------------------------------------------------------------------------------------

    def _take_cancelled(self, events: list[Event]) -> None:
        touched = []
        for branch, member, was_running in self.scheduler.take_cancelled():
            events += self._report.cancelled(branch, member)
            if was_running:
                touched.append(branch)
        self._settle(touched, changed=touched)

    def _admit(self) -> None:
        job = self.scheduler.next_job()
        if (preempted := self.scheduler.preempt(job)) is not None:
            self.runner.remove(preempted, keep=True)
        self.runner.admit(self.scheduler.admit(job))

    def _read(self, events: list[Event]) -> None:
        try:
            self.runner.read()
        except Exception as fault:  # noqa: BLE001 - no fault of one request may reach the others
            self._note(fault)
            # One of several prompts may be at fault, so each is retried individually.
            for branch in self.runner.reader.branches:
                try:
                    if branch.members:  # not dropped with another branch of its request
                        self.runner.read(branch)
                except Exception as error:  # noqa: BLE001
                    self._fail(branch, error, events)

    # -- run -----------------------------------------------------------------------------------------------------

    def _run(self, events: list[Event]) -> list[list[Outcome]]:
        try:
            return self.runner.step()
        except Exception as fault:  # noqa: BLE001
            self._note(fault)
            return [self._run_apart(events)]

    def _note(self, fault: Exception) -> None:
        """Count the fault, so that it is visible even if all requests succeed when retried individually."""
        self.faults += 1
        self.last_fault = fault

    def _run_apart(self, events: list[Event]) -> list[Outcome]:
        """A step failed: retry every branch individually, so that only the one at fault fails.

        Afterwards no branch has lane rows; the survivors go to the front of the queue and read their tokens again.
        Nothing is proposed, in case a proposal was at fault.
        """
        outcomes: list[Outcome] = []
        for branch in self.runner.branches:
            if not branch.members:  # dropped with another branch of its request
                continue
            self.runner.vacate()
            try:
                self.runner.admit([branch])
                self.runner.read(branch, whole=True)
                outcomes += itertools.chain(*self.runner.step(propose=False))
            except Exception as error:  # noqa: BLE001
                self._fail(branch, error, events)
        self.runner.vacate()
        return outcomes

    # -- postprocess ---------------------------------------------------------------------------------------------

    def _postprocess(self, outcomes: list[Outcome], events: list[Event]) -> None:
        by_branch: dict[Branch, list[tuple[Member, Choice]]] = {}
        for branch, member, choice in outcomes:
            by_branch.setdefault(branch, []).append((member, choice))
        forked: list[tuple[Branch, Branch]] = []
        counts = {branch: len(branch.members) for branch in by_branch}
        for branch, choices in by_branch.items():
            if not branch.members:  # dropped with another branch of its request
                continue
            sound = [(member, choice) for member, choice in choices if choice.error is None]
            if len(sound) < len(choices):
                for member, choice in choices:
                    if choice.error is not None:
                        events += self._report.failed(branch, member, choice.error)
                self.runner.remove(branch, poisoned=True)
                self._drop_siblings(branch)
            branch.members = [member for member, _ in sound]
            if sound:
                forked += [(branch, child) for child in self._advance(branch, sound, events)]
        forked = [(parent, child) for parent, child in forked if child.chooser is None or not child.chooser.over]
        self._settle(by_branch, forked, changed=[branch for branch, n in counts.items() if len(branch.members) != n])

    def _advance(self, branch: Branch, choices: list[tuple[Member, Choice]], events: list[Event]) -> list[Branch]:
        """Append the chosen tokens. Members that chose another token than the first are forked off; returns their
        branches."""
        by_token: dict[int, list[tuple[Member, Choice]]] = {}
        for member, choice in choices:
            by_token.setdefault(choice.token_id, []).append((member, choice))
        # The branch itself stays with a group that continues, so that the others can copy its lane rows.
        groups = sorted(by_token.items(), key=lambda item: item[0] in self._eos)
        branches = [branch, *(branch.fork([member for member, _ in group]) for _, group in groups[1:])]
        branch.members = [member for member, _ in groups[0][1]]
        if branch.chooser is not None and (instead := branch.chooser.split(branch, len(branches))) is not None:
            if isinstance(instead, Branch):
                branch.chooser.over = True
                self.scheduler.add_first([instead])
            else:
                events += self._report.failed(branch, branch.members[0], instead)
            self._drop_siblings(branch)
            branch.members = []
            return []
        now = time.perf_counter()
        for each, (token_id, group) in zip(branches, groups, strict=True):
            each.first_token = each.first_token or now
            each.tokens.append(token_id)
            text = "" if token_id in self._eos else each.detokenizer.push(token_id)
            reason = self._finish_reason(each, token_id)
            if reason is not None:
                text += each.detokenizer.finish()
            each.texts.append(text)
            for member, choice in group:
                if reason is not None or not member.silent:
                    events += self._report.token(each, member, choice, text, reason)
            if reason is not None:
                each.members = []
        return [each for each in branches[1:] if each.members]

    def _finish_reason(self, branch: Branch, token_id: int) -> FinishReason | None:
        if token_id in self._eos or branch.detokenizer.stopped:
            return FinishReason.STOP
        if len(branch.tokens) >= branch.members[0].request.sampling.max_new_tokens:
            return FinishReason.LENGTH
        return None

    def _settle(
        self,
        branches: Iterable[Branch],
        forked: Sequence[tuple[Branch, Branch]] = (),
        *,
        changed: Sequence[Branch],
    ) -> None:
        """Free finished branches, give forked ones slots, and drop lane rows that no member needs any more.

        Forked branches without a slot are queued ahead of the others of their job; those that lost their lane rows to
        another branch's fault are queued ahead of all.
        """
        gone = [branch for branch in branches if not branch.members or not self.runner.holds(branch)]
        self.scheduler.release(gone)
        lost = [branch for branch in gone if branch.members]
        copied = {parent for parent, _ in forked}
        for branch in gone:
            if branch not in copied:
                self.runner.remove(branch, keep=branch.alone)
        waiting = []
        for parent, child in forked:
            if self.runner.holds(parent) and self.scheduler.room_for(child):
                self.runner.fork(parent, child)
                self.scheduler.start(child)
            else:
                waiting.append(child)
        for branch in copied.intersection(gone):
            self.runner.remove(branch)
        for branch in changed:
            if self.runner.holds(branch):
                self.runner.narrow(branch)
        self.scheduler.add_first(waiting)
        if lost:
            self.scheduler.resume(lost)

    def _fail(self, branch: Branch, error: Exception, events: list[Event]) -> None:
        """End all members of a branch, and the other branches of their requests."""
        self.runner.remove(branch, poisoned=True)
        self.scheduler.release([branch])
        for member in branch.members:
            events += self._report.failed(branch, member, error)
        self._drop_siblings(branch)

    def _drop_siblings(self, branch: Branch) -> None:
        """Drop the request's other branches without events, since it has ended with this one."""
        for sibling in self.scheduler.drop_siblings(branch):
            sibling.members = []
            self.runner.remove(sibling)
