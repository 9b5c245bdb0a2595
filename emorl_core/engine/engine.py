"""step() = schedule, run, postprocess; one stream of events.

Exactly one thread owns an engine. Requests with different weights, lengths and sampling run in one batch, join and
leave at token boundaries. A request ends with exactly one `Completion` or one `Failure`; one that fails, fails alone.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from emorl_core.detokenize import Decode, Detokenizer
from emorl_core.engine.runner import Choice, Runner
from emorl_core.engine.scheduler import Scheduler
from emorl_core.engine.sequences import Branch, Job, Member
from emorl_core.errors import EmorlError, EngineError, InvalidRequest, NonFinite, OutOfMemory
from emorl_core.models.family import LaneModel
from emorl_core.types import Completion, Event, Failure, FinishReason, Request, TokenEvent
from emorl_core.weights import named

# Drawn seeds stay below 2^53, so that a JavaScript client reads and repeats them exactly.
_DRAWN_SEEDS = 2**53

Outcome = tuple[Branch, Member, Choice]


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Plain numbers for metrics; a snapshot."""

    waiting: int  # requests
    running: int  # requests
    slots: int  # branches that can run at once
    slots_used: int
    lanes_running: int  # distinct lanes
    batch_rows: int  # requests that the last step chose a token for
    lane_row_steps: int  # lane rows computed since the start, one token each
    prefill_hits: int
    prefill_misses: int
    prefill_cache_bytes: int
    kv_bytes: int  # capacity held
    faults: int  # prefills and steps that failed and were run again, request by request


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
    ) -> None:
        """decode: token ids -> text, special tokens left out; lanes: names, `base` first; slots: branches at once."""
        if slots < 1:
            raise InvalidRequest(f"slots is {slots}; allowed: a whole number from 1", param="slots")
        self.lanes = tuple(lanes)
        self.runner = Runner(model, prefill_cache_bytes=prefill_cache_bytes)
        self.scheduler = Scheduler(slots)
        self._decode = decode
        self._eos = frozenset(model.eos_token_ids)
        self._batch_rows = 0
        self.faults = 0
        self.last_fault: Exception | None = None  # for the log of whoever drives the engine; its text may hold anything

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
            prefill_hits=runner.prefill_cache.hits,
            prefill_misses=runner.prefill_cache.misses,
            prefill_cache_bytes=runner.prefill_cache.nbytes,
            kv_bytes=runner.cache.nbytes,
            faults=self.faults,
        )

    def add(self, request: Request) -> None:
        """Queue one request."""
        self.add_group([request])

    def add_group(self, requests: Sequence[Request], job: Job | None = None) -> None:
        """Queue requests that share their prompt, stop strings and token limits: their common prefixes run once.

        Those without a seed get one, the same for all of them, and report it. Groups with the same `job` count as one
        when slots are shared out.

        Raises:
            InvalidRequest: the requests do not belong together, the prompt is empty, or the weights do not fit.
        """
        drawn = draw_seed()
        requests = [request if request.sampling.seed is not None else _seeded(request, drawn) for request in requests]
        first = requests[0]
        for request in requests:
            if request.prompt_ids != first.prompt_ids or _shape(request) != _shape(first):
                raise InvalidRequest("requests of one group must share prompt, stop strings and token limits")
            if len(request.weights) != len(self.lanes) or not any(request.weights):
                raise InvalidRequest(
                    f"weights has {len(request.weights)} numbers; allowed: {len(self.lanes)}, one per lane, not all 0",
                    param="weights",
                )
        if not first.prompt_ids:
            raise InvalidRequest("the prompt is empty after tokenising", param="prompt")
        now = time.perf_counter()
        members = [Member(request, now) for request in requests]
        branch = Branch(
            first.prompt_ids, members, Detokenizer(self._decode, first.sampling.stop), job=Job() if job is None else job
        )
        self.scheduler.add(branch)

    def cancel(self, request_id: str) -> None:
        """End a request at the next step, queued or running; unknown ids are ignored."""
        self.scheduler.cancel(request_id)

    def step(self) -> list[Event]:
        """One token for every running request. Returns what happened, in order."""
        events: list[Event] = []
        self._take_cancelled(events)
        self._admit(events)
        self._batch_rows = self.scheduler.running_requests
        if self.scheduler.running:
            self._postprocess(self._run(events), events)
        return events

    def drop_all(self, error: EmorlError) -> list[Event]:
        """Fail every request, queued and running, and start empty: for whoever must restart after a fault."""
        branches = self.scheduler.clear()
        self.runner.reset()
        return [Failure(member.request.request_id, error) for branch in branches for member in branch.members]

    # -- schedule ------------------------------------------------------------------------------------------------

    def _take_cancelled(self, events: list[Event]) -> None:
        touched = []
        for branch, member, was_running in self.scheduler.take_cancelled():
            events.append(self._completion(branch, member, FinishReason.CANCELLED))
            if was_running:
                touched.append(branch)
        self._settle(touched)

    def _admit(self, events: list[Event]) -> None:
        admitted = self.scheduler.admit()
        if not admitted:
            return
        try:
            self.runner.admit(admitted)
        except Exception as fault:  # noqa: BLE001 - whatever it is, it must not reach the other requests
            self._note(fault)
            # One prompt of several may be at fault: each gets its own try, in rows that hold nothing of the others.
            for branch in admitted:
                self.runner.remove(branch, poisoned=True)
            for branch in admitted:
                try:
                    self.runner.admit([branch])
                except Exception as error:  # noqa: BLE001
                    self._fail(branch, error, events)

    # -- run -----------------------------------------------------------------------------------------------------

    def _run(self, events: list[Event]) -> list[Outcome]:
        try:
            return self.runner.step()
        except Exception as fault:  # noqa: BLE001
            self._note(fault)
            return self._run_apart(events)

    def _note(self, fault: Exception) -> None:
        """A fault that goes away when requests run alone costs only time, so it must be visible."""
        self.faults += 1
        self.last_fault = fault

    def _run_apart(self, events: list[Event]) -> list[Outcome]:
        """A step failed: run every branch alone, so that only the one at fault fails.

        Nobody holds lane rows afterwards; the survivors go to the front of the queue and are fed their tokens again.
        """
        outcomes: list[Outcome] = []
        for branch in list(self.scheduler.running):
            self.runner.reset()
            try:
                self.runner.admit([branch])
                outcomes += self.runner.step()
            except Exception as error:  # noqa: BLE001
                self._fail(branch, error, events)
        self.runner.reset()
        return outcomes

    # -- postprocess ---------------------------------------------------------------------------------------------

    def _postprocess(self, outcomes: list[Outcome], events: list[Event]) -> None:
        by_branch: dict[Branch, list[tuple[Member, Choice]]] = {}
        for branch, member, choice in outcomes:
            by_branch.setdefault(branch, []).append((member, choice))
        forked: list[tuple[Branch, Branch]] = []
        for branch, choices in by_branch.items():
            sound = [(member, choice) for member, choice in choices if choice.finite]
            if len(sound) < len(choices):
                error = NonFinite("the model produced NaN or inf for this request")
                events += [Failure(m.request.request_id, error) for m, choice in choices if not choice.finite]
                branch.members = [member for member, _ in sound]
                self.runner.remove(branch, poisoned=True)
            if sound:
                forked += [(branch, child) for child in self._advance(branch, sound, events)]
        self._settle(by_branch, forked)

    def _advance(self, branch: Branch, choices: list[tuple[Member, Choice]], events: list[Event]) -> list[Branch]:
        """Append the chosen tokens. Members that disagree with the first leave; returns their branches."""
        by_token: dict[int, list[tuple[Member, Choice]]] = {}
        for member, choice in choices:
            by_token.setdefault(choice.token_id, []).append((member, choice))
        # The branch itself goes to a group that goes on, so that the others can copy its lane rows.
        groups = sorted(by_token.items(), key=lambda item: item[0] in self._eos)
        branches = [branch, *(branch.fork([member for member, _ in group]) for _, group in groups[1:])]
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
                    self._record(each, member, choice, text, reason, events)
            if reason is not None:
                each.members = []
        return [each for each in branches[1:] if each.members]

    def _finish_reason(self, branch: Branch, token_id: int) -> FinishReason | None:
        if token_id in self._eos or branch.detokenizer.stopped:
            return FinishReason.STOP
        if len(branch.tokens) >= branch.members[0].request.sampling.max_new_tokens:
            return FinishReason.LENGTH
        return None

    def _record(
        self,
        branch: Branch,
        member: Member,
        choice: Choice,
        text: str,
        reason: FinishReason | None,
        events: list[Event],
    ) -> None:
        request = member.request
        if not member.silent:
            member.logprobs.append(choice.logprob)
        if choice.attribution is not None:
            member.attributions.append(choice.attribution)
        if request.top_logprobs:
            member.top_logprobs.append(choice.top_logprobs)
        completion = self._completion(branch, member, reason) if reason is not None else None
        if request.stream:
            events.append(
                TokenEvent(
                    request.request_id,
                    len(branch.tokens) - 1,
                    choice.token_id,
                    text,
                    choice.logprob,
                    choice.attribution,
                    choice.top_logprobs,
                    completion,
                )
            )
        if completion is not None:
            events.append(completion)

    def _settle(self, branches: Iterable[Branch], forked: Sequence[tuple[Branch, Branch]] = ()) -> None:
        """Free what finished, give forked branches the slots that are theirs, drop lanes that nobody on a branch needs.

        Forked branches without a slot wait before the others of their job; those that lost their lane rows to a fault
        elsewhere, before everybody.
        """
        gone = [branch for branch in branches if not branch.members or not self.runner.holds(branch)]
        self.scheduler.release(gone)
        lost = [branch for branch in gone if branch.members]
        waiting = []
        for parent, child in forked:
            if self.runner.holds(parent) and self.scheduler.room_for(child):
                self.runner.fork(parent, child)
                self.scheduler.start(child)
            else:
                waiting.append(child)
        for branch in gone:
            self.runner.remove(branch)
        for branch in branches:
            if self.runner.holds(branch):
                self.runner.narrow(branch)
        self.scheduler.add_first(waiting)
        if lost:
            self.scheduler.resume(lost)

    # -- endings -------------------------------------------------------------------------------------------------

    def _fail(self, branch: Branch, error: Exception, events: list[Event]) -> None:
        self.runner.remove(branch, poisoned=True)
        self.scheduler.release([branch])
        reason = _as_engine_error(error)
        events += [Failure(member.request.request_id, reason) for member in branch.members]

    def _completion(self, branch: Branch, member: Member, reason: FinishReason) -> Completion:
        request = member.request
        now = time.perf_counter()
        return Completion(
            request_id=request.request_id,
            text="".join(branch.texts),
            finish_reason=reason,
            token_ids=tuple(branch.tokens),
            logprobs=tuple(member.logprobs),
            weights=named(self.lanes, request.weights),
            seed=request.sampling.seed or 0,
            prompt_tokens=len(request.prompt_ids),
            profile=request.profile,
            attributions=tuple(member.attributions),
            top_logprobs=tuple(member.top_logprobs),
            token_texts=tuple(branch.texts),
            queue_s=(branch.admitted or now) - member.arrived,
            first_token_s=(branch.first_token or now) - member.arrived,
            total_s=now - member.arrived,
            lane_row_steps=branch.meter.lane_row_steps,
        )


def _shape(request: Request) -> tuple[object, ...]:
    sampling = request.sampling
    return (sampling.stop, sampling.max_new_tokens)


def draw_seed() -> int:
    """A fresh seed, for a request that names none."""
    return secrets.randbelow(_DRAWN_SEEDS)


def _seeded(request: Request, seed: int) -> Request:
    return replace(request, sampling=replace(request.sampling, seed=seed))


def _as_engine_error(error: Exception) -> EmorlError:
    """What a caller may see of a fault: its kind, never its text, which may hold anything."""
    if isinstance(error, EmorlError):
        return error
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return OutOfMemory("the device had no memory left for this request")
    return EngineError(f"the request failed inside the engine ({type(error).__name__})")
