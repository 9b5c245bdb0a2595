"""Runs branches through a model.

`admit` takes branches, `read` prefills their lanes and then gives them lane rows, `step` chooses a token for every
member of every branch with lane rows, `fork` copies a branch's lane rows, `remove` frees them.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from emorl_core.cache.prefix import PrefillCache
from emorl_core.engine.batch import Batch, Outcome
from emorl_core.engine.reader import Reader
from emorl_core.engine.seats import Seats
from emorl_core.engine.sequences import Branch
from emorl_core.lanes.lane import Lane
from emorl_core.models.family import LaneModel
from emorl_core.types import PromptLookup


class Runner:
    """Owns the key-value caches of one model. Single-threaded, like everything above it.

    The model's step may be replaced by a compiled one, which rounds differently. A branch keeps the step it started
    with, so there are two batches until the older one is empty.
    """

    def __init__(
        self,
        model: LaneModel,
        *,
        prefill_cache_bytes: int,
        prefill_tokens: int | None,
        prompt_lookup: PromptLookup = "off",
    ) -> None:
        self.model = model  # the batch that new branches join
        self._prompt_lookup = prompt_lookup
        self.batches = {model.compiled: Batch(model, prompt_lookup)}
        self.prefill_cache = PrefillCache(prefill_cache_bytes)
        self.reader = Reader(model, self.prefill_cache, prefill_tokens)

    def switch(self, model: LaneModel) -> None:
        """Use this model, the same one with another step, for branches that start from now on."""
        self.model = model
        self.batches.setdefault(model.compiled, Batch(model, self._prompt_lookup))

    @property
    def seats(self) -> Seats:
        """The model that new branches use."""
        return self.batches[self.model.compiled].seats

    def batch_of(self, branch: Branch) -> Batch:
        """The batch in which the branch decodes, or will."""
        return self.batches[self.model.compiled if branch.compiled is None else branch.compiled]

    @property
    def branches(self) -> list[Branch]:
        """The branches with lane rows."""
        return [branch for batch in self.batches.values() for branch in batch.seats.branches]

    @property
    def lanes_running(self) -> int:
        """The number of distinct points in adapter space."""
        return len({lane.coefficients for batch in self.batches.values() for _, lane in batch.seats.owners})

    @property
    def lane_row_steps(self) -> int:
        """Lane rows computed, one token each; the unit of cost."""
        return sum(batch.lane_row_steps for batch in self.batches.values())

    @property
    def proposed_tokens(self) -> int:
        """Tokens copied from prompts and replies."""
        return sum(batch.proposer.proposed for batch in self.batches.values())

    @property
    def accepted_tokens(self) -> int:
        """Proposed tokens that were accepted."""
        return sum(batch.proposer.accepted for batch in self.batches.values())

    @property
    def kv_cache_bytes(self) -> int:
        """Bytes of the caches, capacity included."""
        return sum(batch.seats.cache.nbytes for batch in self.batches.values())

    def rest(self) -> None:
        """Free what caches without lane rows keep for the next ones."""
        for batch in self.batches.values():
            batch.seats.cache.shrink_if_empty()

    def holds(self, branch: Branch) -> bool:
        """Whether the branch has lane rows or is being prefilled."""
        return branch in self.batch_of(branch).seats or branch in self.reader

    def admit(self, branches: Sequence[Branch]) -> None:
        """Take these branches for prefill.

        A branch that already has tokens (it waited after a fork, or a step failed) reads them again.
        """
        for branch in branches:
            self.reader.add(branch)

    def read(self, only: Branch | None = None, *, whole: bool = False) -> None:
        """Continue the prefill of the branches without lane rows, or of `only`, and give lane rows to those that are
        done; see `Reader.read`."""
        self._seat(self.reader.read(only, whole=whole, beside=bool(self.branches)))

    def _seat(self, branches: Sequence[Branch]) -> None:
        try:
            for branch in branches:
                batch = self.batch_of(branch)
                branch.compiled = batch.model.compiled
                batch.changed()
                for lane, memory in self.reader.memories(branch).items():
                    batch.seats.insert(branch, lane, memory)
            for batch in self.batches.values():
                batch.feed([branch for branch in branches if branch in batch.seats])
        except BaseException:
            for branch in branches:
                self.batch_of(branch).seats.leave(branch, wipe=True)
            raise
        for branch in branches:
            self.reader.remove(branch)

    def fork(self, source: Branch, child: Branch) -> None:
        """Give `child`, which shares `source`'s tokens, copies of the lane rows that its members need."""
        batch = self.batch_of(source)
        batch.changed()
        batch.seats.fork(source, child)

    def narrow(self, branch: Branch) -> None:
        """Called when a branch has lost members: drop lane rows that the others do not mix."""
        if branch in self.reader:
            self.reader.keep_lanes(branch, branch.lanes)
            return
        self.batch_of(branch).narrow(branch)

    def remove(self, branch: Branch, *, poisoned: bool = False, keep: bool = False) -> None:
        """Free a branch's lane rows.

        poisoned: the values may not be finite and must not be reused. keep: store prompt and reply in the prefill
        cache, since a later prompt may begin with them.
        """
        batch = self.batch_of(branch)
        batch.changed()
        self.reader.remove(branch, poisoned=poisoned)
        for lane, place in batch.seats.of(branch).items():
            if poisoned:
                self.prefill_cache.discard(self.model.passage(lane, branch.tokens).labels)
            elif keep:
                self._keep(branch, lane, place)
        batch.seats.leave(branch, wipe=poisoned)

    def _keep(self, branch: Branch, lane: Lane, place: int) -> None:
        passage = self.model.passage(lane, branch.tokens)
        known = self.prefill_cache.known(passage.labels)
        if known < len(passage.labels):
            first, last = known * passage.width, len(passage.labels) * passage.width
            cache = self.batch_of(branch).seats.cache
            self.prefill_cache.put(passage.labels, cache.memory(place, first, last), known)

    def vacate(self) -> None:
        """Free the lane rows of all branches; prefill continues."""
        for batch in self.batches.values():
            batch.changed()
            batch.seats.clear()

    def reset(self) -> None:
        """Forget every branch."""
        self.vacate()
        self.reader.clear()

    def step(self, *, propose: bool = True) -> list[list[Outcome]]:
        """Advance every lane row and choose a token for every member; see `Batch.step`."""
        each = [batch.step(propose=propose) for batch in self.batches.values() if len(batch.seats)]
        return [list(itertools.chain(*rounds)) for rounds in itertools.zip_longest(*each, fillvalue=[])]
