"""One step's gradients over all processes, and which objectives have none that is finite."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from training.rl.gradients import Lockstep, Measures, Totals, TrainingGroup
from training.rl.processes import Processes
from training.rl.stacks import Stacks

Batch = Mapping[int, Sequence[TrainingGroup]]  # lane -> groups of this process's prompts


@dataclass(frozen=True, slots=True)
class Gradients:
    """By lane. A lane is in `norms` and `measures`, with its gradient in the stacks, or in `faults`."""

    measures: dict[int, Measures]
    norms: dict[int, float]
    faults: dict[int, str]


class GradientStep:
    """Fills the gradients of the stacks for one step's batch."""

    def __init__(self, lockstep: Lockstep, stacks: Stacks, processes: Processes, *, replies: int) -> None:
        """replies: of one objective in a whole step, all processes together."""
        self._lockstep, self._stacks, self._processes, self._replies = lockstep, stacks, processes, replies

    def compute(self, batch: Batch) -> Gradients:
        """Every process returns the same measures, norms and faults."""
        faults: dict[int, str] = {}
        while True:
            found = self._attempt({lane: groups for lane, groups in batch.items() if lane not in faults})
            faults |= found.faults
            suspects = [lane for lane, norm in found.norms.items() if not math.isfinite(norm)]
            if not suspects:
                return Gradients(found.measures, found.norms, faults)
            # One objective's NaN can reach the others' gradients (0 * NaN in the masked columns): each one alone.
            guilty = [lane for lane in suspects if not math.isfinite(self._attempt({lane: batch[lane]}).norms[lane])]
            faults |= dict.fromkeys(guilty or suspects, "the gradient is not finite")

    def _attempt(self, batch: Batch) -> Gradients:
        self._stacks.zero_gradients()
        own = {lane: sum(len(ids) for group in groups for ids in group.replies) for lane, groups in batch.items()}
        tokens = self._processes.gather_objects(own)
        totals = {lane: Totals(self._replies, sum(part[lane] for part in tokens)) for lane in batch}
        gathered = self._processes.gather_objects(self._lockstep.accumulate(batch, totals))
        broken = set().union(*(part for _, part in gathered))
        self._stacks.zero_gradients(sorted(broken))
        self._processes.add_up(self._stacks.gradients())
        measures = {lane: Measures() for lane in batch if lane not in broken}
        for part, _ in gathered:
            for lane, whole in measures.items():
                whole.add(part[lane])
        norms = {lane: self._stacks.gradient_norm(lane) for lane in measures}
        return Gradients(measures, norms, dict.fromkeys(sorted(broken), "the loss is not finite"))
