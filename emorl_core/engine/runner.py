"""Branches on their way through a model.

`admit` takes them, `read` reads what their lanes have to read and then gives them lane rows, `step` chooses one token
for every member of every branch that has them, `fork` copies a branch's lane rows, `remove` frees them.
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

    The model's step may be exchanged for a compiled one, which rounds differently: a branch ends with the step it began
    with, so there are two batches then, and the one before empties.
    """

    def __init__(
        self,
        model: LaneModel,
        *,
        prefill_cache_bytes: int,
        prefill_tokens: int | None,
        prompt_lookup: PromptLookup = "off",
    ) -> None:
        self.model = model  # of branches that begin
        self._prompt_lookup = prompt_lookup
        self.batches = {model.compiled: Batch(model, prompt_lookup)}
        self.prefill_cache = PrefillCache(prefill_cache_bytes)
        self.reader = Reader(model, self.prefill_cache, prefill_tokens)

    def switch(self, model: LaneModel) -> None:
        """The same model with another step, for branches that begin from now on."""
        self.model = model
        self.batches.setdefault(model.compiled, Batch(model, self._prompt_lookup))

    @property
    def seats(self) -> Seats:
        """Of branches that begin now."""
        return self.batches[self.model.compiled].seats

    def batch_of(self, branch: Branch) -> Batch:
        """Where the branch decodes, or will."""
        return self.batches[self.model.compiled if branch.compiled is None else branch.compiled]

    @property
    def branches(self) -> list[Branch]:
        """Those with lane rows."""
        return [branch for batch in self.batches.values() for branch in batch.seats.branches]

    @property
    def lanes_running(self) -> int:
        """Distinct points in adapter space."""
        return len({lane.coefficients for batch in self.batches.values() for _, lane in batch.seats.owners})

    @property
    def lane_row_steps(self) -> int:
        """Lane rows computed, one token each: the unit of cost."""
        return sum(batch.lane_row_steps for batch in self.batches.values())

    @property
    def proposed_tokens(self) -> int:
        """Copied from prompts and replies."""
        return sum(batch.proposer.proposed for batch in self.batches.values())

    @property
    def accepted_tokens(self) -> int:
        """Of those, how many were what would have been chosen."""
        return sum(batch.proposer.accepted for batch in self.batches.values())

    @property
    def kv_cache_bytes(self) -> int:
        """That the caches take, capacity included."""
        return sum(batch.seats.cache.nbytes for batch in self.batches.values())

    def rest(self) -> None:
        """Give back what caches without lane rows keep for the next ones."""
        for batch in self.batches.values():
            batch.seats.cache.shrink_if_empty()

    def holds(self, branch: Branch) -> bool:
        """Whether the branch has lane rows, or is read for them."""
        return branch in self.batch_of(branch).seats or branch in self.reader

    def admit(self, branches: Sequence[Branch]) -> None:
        """Take these branches, to be read.

        One that has tokens already (it waited after a fork, or a step failed beside it) has to read them again.
        """
        for branch in branches:
            self.reader.add(branch)

    def read(self, only: Branch | None = None, *, whole: bool = False) -> None:
        """Read on for the branches without lane rows, or for this one, and give lane rows to those that have read all;
        see `Reader.read`."""
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
        """The branch has lost members: drop lane rows that none of the others mixes."""
        if branch in self.reader:
            self.reader.keep_lanes(branch, branch.lanes)
            return
        self.batch_of(branch).narrow(branch)

    def remove(self, branch: Branch, *, poisoned: bool = False, keep: bool = False) -> None:
        """Free a branch's lane rows.

        poisoned: its values may not be finite and must not be reused. keep: what they have read and written may be read
        again, so the prefill cache gets it.
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
        """Take the lane rows of all branches; what is being read goes on."""
        for batch in self.batches.values():
            batch.changed()
            batch.seats.clear()

    def reset(self) -> None:
        """Forget every branch."""
        self.vacate()
        self.reader.clear()

    def step(self, *, propose: bool = True) -> list[list[Outcome]]:
        """Run every lane row one token further and choose a token for every member; see `Batch.step`."""
        each = [batch.step(propose=propose) for batch in self.batches.values() if len(batch.seats)]
        return [list(itertools.chain(*rounds)) for rounds in itertools.zip_longest(*each, fillvalue=[])]
