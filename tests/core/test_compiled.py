"""The compiled decoding step against the plain one and against separate models: same tokens."""

from __future__ import annotations

import getpass
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from emorl_core.ensemble import Ensemble
from emorl_core.errors import UnsupportedModel
from emorl_core.lanes.frozen import FrozenMatrix, packed_product_available
from emorl_core.models.compiling import check_compiler
from emorl_core.models.t5.model import T5
from emorl_core.models.t5.step import StepFunction, StepRows
from emorl_core.types import Completion, Failure, Request, Sampling
from tests.builders import tiny_t5_bundle
from tests.core.conftest import PROMPTS
from tests.core.driving import completions, drain, joining, mixed_requests, prefilled, rows_of, run, said
from tests.core.reference import SeparateModels
from tests.core.test_against_hf_peft import MIXES, as_requests
from tests.core.test_combine_weights import TOKENS as SUM_TOKENS
from tests.core.test_combine_weights import as_requests as as_sums
from tests.core.test_combine_weights import t5_expected as sums_expected

try:
    check_compiler()
    _LACKING = ""
except UnsupportedModel as lacking:
    _LACKING = str(lacking)
needs_compiler = pytest.mark.skipif(bool(_LACKING), reason=_LACKING)
# Compiling takes a minute: what earlier runs of these tests compiled is used again, as long as its sources are the same.
COMPILED = Path(tempfile.gettempdir()) / f"emorl-tests-compiled-{getpass.getuser()}"
needs_packing = pytest.mark.skipif(not packed_product_available(), reason="this torch packs no matrices")


@pytest.fixture(scope="module")
def loaded(bundle: Path) -> Ensemble:
    return Ensemble.load(bundle, device="cpu", dtype="float32", compile=True, compile_cache=COMPILED)


@pytest.fixture
def compiled(loaded: Ensemble) -> Iterator[Ensemble]:
    loaded.engine.runner.reset()
    loaded.engine.runner.prefill_cache.clear()
    yield loaded
    assert loaded.engine.faults == 0, loaded.engine.last_fault


@needs_compiler
def test_greedy_tokens_are_those_of_separate_models(compiled: Ensemble, judge: SeparateModels) -> None:
    rows = [(compiled.encode(prompt), mix) for prompt in PROMPTS for mix in MIXES]
    done = run(compiled.engine, as_requests(rows, max_new_tokens=20))
    assert [completion.token_ids for completion in done] == judge.greedy(
        [ids for ids, _ in rows], [mix for _, mix in rows], 20
    )


@needs_compiler
def test_against_peft_sums_of_adapters(bundle: Path, compiled: Ensemble) -> None:
    prompts = [compiled.encode(prompt) for prompt in PROMPTS]
    done = run(compiled.engine, as_sums(prompts, SUM_TOKENS))
    assert [completion.token_ids for completion in done] == sums_expected(bundle, prompts)


@needs_compiler
@pytest.mark.slow
@torch.inference_mode()
def test_ragged_steps_are_steps_of_one_token(ensemble: Ensemble) -> None:
    """Each row with as many tokens as it likes."""
    model, lanes = ensemble.engine.model.compilation(COMPILED, ragged=True).make(), [1, 0, 2]
    prompts = [tuple(ensemble.encode(prompt)) for prompt in PROMPTS[:3]]
    caches = [model.new_cache(), model.new_cache()]
    for memory in prefilled(model, prompts, lanes):
        for cache in caches:
            cache.insert(memory)
    rows = [(0, 11, 12, 13), (0,), (0, 14)]
    counts = [len(row) for row in rows]
    each = [lane for lane, n in zip(lanes, counts, strict=True) for _ in range(n)]
    flat = torch.tensor([token for row in rows for token in row])
    found = model.ragged_step(flat, counts, rows_of(model, each), caches[0]).split(counts)
    index = rows_of(model, lanes)
    for step in range(max(counts)):
        # Rows that have no more are fed their last token again.
        tokens = torch.tensor([[row[min(step, len(row) - 1)]] for row in rows])
        expected = model.step(tokens, index, caches[1])[:, 0]
        for place, row in enumerate(rows):
            if step < len(row):
                torch.testing.assert_close(found[place][step], expected[place], rtol=1e-4, atol=1e-4)
    assert caches[0].lengths == counts


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_requests_that_join_and_leave_get_the_tokens_of_the_plain_step(
    compiled: Ensemble, ensemble: Ensemble, seed: int
) -> None:
    """From one lane row to all slots full, short and long sources, answers past several sizes of the cache."""
    requests = mixed_requests(ensemble, 24, seed, longest=70)
    alone = {request.request_id: said(run(ensemble.engine, [request])[0]) for request in requests}
    assert joining(compiled, requests) == alone


@needs_compiler
def test_sizes_from_one_row_and_one_token_on(compiled: Ensemble, ensemble: Ensemble) -> None:
    word = compiled.encode(PROMPTS[0])[0]
    for length, new in ((1, 3), (2, 1), (16, 18), (40, 2), (300, 70)):
        request = Request(
            "one", (word,) * length, (0.0, 1.0, 0.0, 0.0), Sampling(max_new_tokens=new, min_new_tokens=new)
        )
        assert run(compiled.engine, [request])[0].token_ids == run(ensemble.engine, [request])[0].token_ids


@needs_compiler
def test_a_sweep_forks_compiled_rows(compiled: Ensemble, ensemble: Ensemble) -> None:
    options = {"resolution": 3, "max_new_tokens": 12}
    texts = [[item.token_ids for item in each.sweep(PROMPTS[1], **options).items] for each in (compiled, ensemble)]
    assert texts[0] == texts[1]
    assert len(set(texts[0])) > 1


@needs_compiler
def test_a_request_that_is_not_finite_fails_alone(compiled: Ensemble, ensemble: Ensemble) -> None:
    """Also where a single row has company in the compiled step: its values must not stay behind."""
    sick = Request("sick", compiled.encode(PROMPTS[0]), (0.0, 1.0, 0.0, 0.0), Sampling(max_new_tokens=4))
    sound = Request("sound", compiled.encode(PROMPTS[2]), (0.0, 0.0, 1.0, 0.0), Sampling(max_new_tokens=6))
    engine = compiled.engine
    engine.add(sick)
    events = engine.step()
    for layer in engine.runner.seats.cache.cross.layers:
        layer[:, 0].fill_(float("nan"))
    events += engine.step()
    assert [event.request_id for event in events if isinstance(event, Failure)] == ["sick"]
    assert run(engine, [sound])[0].token_ids == run(ensemble.engine, [sound])[0].token_ids


@needs_compiler
def test_what_was_compiled_serves_every_later_model_of_that_shape(
    loaded: Ensemble, bundle: Path, ensemble: Ensemble, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a compiler, too."""
    assert loaded.compiled
    monkeypatch.setenv("CXX", "no-such-compiler")
    other = Ensemble.load(bundle, device="cpu", dtype="float32", compile="auto", compile_cache=COMPILED)
    assert other.compiled
    assert other.compilation is None
    request = Request("one", other.encode(PROMPTS[1]), (0.0, 0.5, 0.5, 0.0), Sampling(max_new_tokens=8))
    assert run(other.engine, [request])[0].token_ids == run(ensemble.engine, [request])[0].token_ids


@needs_compiler
def test_a_request_ends_with_the_step_it_began_with(loaded: Ensemble, bundle: Path, ensemble: Ensemble) -> None:
    """Both steps run meanwhile, and each request is told its own."""
    engine = Ensemble.load(bundle, device="cpu", dtype="float32").engine
    requests = mixed_requests(ensemble, 8, 1, longest=12)
    expected = {request.request_id: said(run(ensemble.engine, [request])[0]) for request in requests}
    for request in requests[:4]:
        engine.add(request)
    events = engine.step()
    begun = {branch.members[0].request.request_id for branch in engine.runner.branches}
    engine.switch(engine.model.compilation(COMPILED).make())
    for request in requests[4:]:
        engine.add(request)
    done = completions([*events, *drain(engine)])
    assert {name: said(completion) for name, completion in done.items()} == expected
    ended_at_once = {event.request_id for event in events if isinstance(event, Completion)}
    assert {name for name, completion in done.items() if not completion.compiled} == begun | ended_at_once
    assert engine.faults == 0


@needs_compiler
@needs_packing
@pytest.mark.slow
def test_with_packed_matrices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of large models are; tiny ones are packed for this test only."""
    folder = tiny_t5_bundle(tmp_path)
    request = Request("one", (5, 9, 7, 1), (0.0, 0.3, 0.3, 0.4), Sampling(max_new_tokens=8, min_new_tokens=8))
    expected = run(Ensemble.load(folder, device="cpu", dtype="float32").engine, [request])[0].token_ids
    monkeypatch.setattr(FrozenMatrix, "PACK_FROM", 1)
    compiled = Ensemble.load(folder, device="cpu", dtype="float32", compile=True, compile_cache=COMPILED)
    assert run(compiled.engine, [request])[0].token_ids == expected


@needs_packing
def test_models_of_one_shape_share_what_is_compiled_also_where_matrices_are_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a server reloads, two of them are alive."""
    folder = tiny_t5_bundle(tmp_path)
    monkeypatch.setattr(FrozenMatrix, "PACK_FROM", 1)
    models = [Ensemble.load(folder, device="cpu", dtype="float32").engine.model for _ in range(2)]
    names = [[path.name for path in model.compilation(tmp_path)._paths] for model in models]
    assert names[0] == names[1]
    assert len(set(names[0])) == 2  # rows of one adapter, and of several
    assert isinstance(models[0], T5)
    function = StepFunction(models[0])
    numbers = [layer.matrix for block in function.settings[0] for layer in block]
    assert numbers == list(range(len(function.tensors.matrices)))


def test_spare_rows_repeat_the_first_in_places_nobody_uses(ensemble: Ensemble) -> None:
    model = ensemble.engine.model
    assert isinstance(model, T5)
    cache = model.new_cache()
    for memory in prefilled(model, [(5, 6, 1), (5, 1)], [2, 0]):
        cache.insert(memory)
    rows = StepRows(rows_of(model, [2, 0]), cache, 4)
    assert rows.used.tolist() == [[1], [0], [1], [1]]
    assert rows.coefficients.tolist() == [[1.0], [0.0], [1.0], [1.0]]
    assert rows.places.tolist() == [0, 1, 2, 3]
    assert [int((mask == 0).sum()) for mask in rows.source_mask] == [3, 2, 3, 3]


def test_without_a_compiler_it_says_so(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UnsupportedModel, match=r"torch finds no C\+\+ compiler") as raised:
        Ensemble.load(bundle, device="cpu", compile=True, compile_cache=tmp_path)
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_a_compilation_that_was_stopped_begins_nothing(bundle: Path, tmp_path: Path) -> None:
    found = Ensemble.load(bundle, device="cpu", compile="auto", compile_cache=tmp_path)
    assert not found.compiled
    assert found.compilation is not None
    found.compilation.stop()
    with pytest.raises(UnsupportedModel, match="it was stopped"):
        found.compilation.make()


def test_a_folder_that_cannot_be_written_says_so(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UnsupportedModel, match=r"cannot be compiled: .*file"):
        Ensemble.load(bundle, device="cpu", compile=True, compile_cache=tmp_path / "file")


def test_what_is_no_compiled_function_is_compiled_again(bundle: Path, tmp_path: Path) -> None:
    model = Ensemble.load(bundle, device="cpu").engine.model
    found = model.compilation(tmp_path)
    for path in found._paths:
        path.write_bytes(b"cut short")
    assert found.load() is None
    assert not list(tmp_path.iterdir())


def test_without_pythons_headers_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", lambda: "g++")
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    with pytest.raises(UnsupportedModel, match=r"Python\.h"):
        check_compiler()
