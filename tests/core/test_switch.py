"""A compiled step takes over while requests run: each ends with the step it began with."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from emorl_core.engine.engine import Engine
from emorl_core.errors import UnsupportedModel
from emorl_core.fake import fake_ensemble
from emorl_core.models import compiling
from emorl_core.types import Completion, Request
from tests.core.driving import completions, drain, mixed_requests, run, said


def compiled_twin(engine: Engine, folder: Path) -> None:
    """Switch to a model that is only called compiled."""
    model = engine.model.compilation(folder).load()
    assert model is not None
    engine.switch(model)


def expected(requests: list[Request]) -> dict[str, object]:
    return {request.request_id: said(run(fake_ensemble().engine, [request])[0]) for request in requests}


@pytest.mark.parametrize("encoder", [True, False])
def test_a_request_ends_with_the_step_it_began_with(encoder: bool, tmp_path: Path) -> None:
    ensemble = fake_ensemble(slots=16, encoder=encoder)
    engine = ensemble.engine
    requests = mixed_requests(ensemble, 12, 3)
    alone = {request.request_id: said(run(fake_ensemble(encoder=encoder).engine, [request])[0]) for request in requests}
    for request in requests[:6]:
        engine.add(request)
    events = engine.step()
    early = {event.request_id for event in events if isinstance(event, Completion)}
    begun = early | {member.request.request_id for branch in engine.runner.branches for member in branch.members}
    assert begun
    compiled_twin(engine, tmp_path)
    assert engine.stats.compiled
    for request in requests[6:]:
        engine.add(request)
    done = completions([*events, *drain(engine)])
    assert {name: said(completion) for name, completion in done.items()} == alone
    assert {name for name, completion in done.items() if not completion.compiled} == begun
    assert engine.runner.branches == []
    assert engine.faults == 0


def test_one_that_is_read_again_keeps_its_step(tmp_path: Path) -> None:
    """A step fails beside it, or it has to make room: then it begins again with its tokens."""
    ensemble = fake_ensemble(slots=4)
    engine = ensemble.engine
    old, new = mixed_requests(ensemble, 2, 5)
    alone = expected([old, new])
    engine.add(old)
    events = engine.step()
    compiled_twin(engine, tmp_path)
    engine.add(new)
    events += engine.step()
    (branch,) = [each for each in engine.runner.branches if each.members[0].request is old]
    engine.runner.remove(branch, keep=True)
    engine.runner.admit([branch])
    done = completions([*events, *drain(engine)])
    assert {name: said(completion) for name, completion in done.items()} == alone
    assert [done[each.request_id].compiled for each in (old, new)] == [False, True]


def test_a_sweep_that_runs_forks_with_its_step(tmp_path: Path) -> None:
    ensemble = fake_ensemble()
    plan = ensemble.sweep_plan("you feel tired", resolution=3, max_new_tokens=8)
    (group,) = plan.groups()
    whole = {request.request_id: said(run(fake_ensemble().engine, [request])[0]) for request in group}
    engine = ensemble.engine
    engine.add_group(group)
    events = engine.step()
    compiled_twin(engine, tmp_path)
    done = completions([*events, *drain(engine)])
    assert {name: said(completion) for name, completion in done.items()} == whole
    assert not any(completion.compiled for completion in done.values())


def test_the_bound_on_keys_and_values_holds_for_both_together(tmp_path: Path) -> None:
    most = 2 * fake_ensemble().engine.runner.seats.cache.bytes_of(8, 64, 64)
    ensemble = fake_ensemble(slots=16, kv_cache_bytes=most)
    engine, requests = ensemble.engine, mixed_requests(ensemble, 6, 7, longest=8)
    for request in requests[:3]:
        engine.add(request)
    events = engine.step()
    compiled_twin(engine, tmp_path)
    for request in requests[3:]:
        engine.add(request)
    while engine.has_work:
        events += engine.step()
        assert engine.stats.kv_cache_bytes <= most
    assert len(completions(events)) == 6


def test_the_compiler_runs_in_the_servers_session(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Linux weighs niceness within a session only; in one of its own the compiler took half of the processors."""
    monkeypatch.setattr(compiling, "_RUN", "import os, sys; sys.exit(f'{os.getsid(0)} {os.getpgid(0) == os.getpid()}')")
    shape = compiling.Shape((1,), (1,), torch.float32)
    recipe = compiling.Recipe("emorl_core.models.step_linear:nothing", (), (shape,))
    with pytest.raises(UnsupportedModel, match=rf": {os.getsid(0)} True$"):
        compiling.Compilation([recipe], tmp_path, lambda functions: functions).make(idly=True)
