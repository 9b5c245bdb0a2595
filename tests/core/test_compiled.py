"""The compiled decoding step against the plain one and against separate models: same tokens, and compiled only once."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from emorl_core.ensemble import Ensemble
from emorl_core.errors import UnsupportedModel
from emorl_core.lanes.frozen import FrozenMatrix, packed_product_available
from emorl_core.models import compiling
from emorl_core.models.compiling import check_compiler
from emorl_core.models.t5.model import T5
from emorl_core.models.t5.step import StepFunction, StepRows
from emorl_core.types import Failure, Request, Sampling
from tests.builders import tiny_t5_bundle
from tests.core.conftest import PROMPTS
from tests.core.driving import joining, mixed_requests, prefilled, rows_of, run, said
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
needs_packing = pytest.mark.skipif(not packed_product_available(), reason="this torch packs no matrices")


@pytest.fixture(scope="module")
def loaded(bundle: Path) -> Ensemble:
    return Ensemble.load(bundle, device="cpu", dtype="float32", compile=True)


@pytest.fixture
def compiled(loaded: Ensemble) -> Iterator[Ensemble]:
    """Compiled when it was loaded; a test in which anything is compiled again fails."""
    loaded.engine.runner.reset()
    loaded.engine.runner.prefill_cache.clear()
    with torch._dynamo.config.patch(error_on_recompile=True):
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
@pytest.mark.slow
def test_a_process_may_load_any_number_of_models(loaded: Ensemble, bundle: Path, ensemble: Ensemble) -> None:
    """Torch compiles a function a few times only, unless it is told that these are different models. They are of one
    shape here: what was compiled for the first one lies in the compiler's cache on disk."""
    assert loaded.compiled
    # Two compilations a model: of rows that use one adapter each, and of rows that sum several.
    with torch._dynamo.config.patch(recompile_limit=2, accumulated_recompile_limit=2):
        other = Ensemble.load(bundle, device="cpu", dtype="float32", compile=True)
    request = Request("one", other.encode(PROMPTS[1]), (0.0, 0.5, 0.5, 0.0), Sampling(max_new_tokens=8))
    assert run(other.engine, [request])[0].token_ids == run(ensemble.engine, [request])[0].token_ids


@needs_compiler
@needs_packing
@pytest.mark.slow
def test_with_packed_matrices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of large models are; tiny ones are packed for this test only."""
    folder = tiny_t5_bundle(tmp_path)
    request = Request("one", (5, 9, 7, 1), (0.0, 0.3, 0.3, 0.4), Sampling(max_new_tokens=8, min_new_tokens=8))
    expected = run(Ensemble.load(folder, device="cpu", dtype="float32").engine, [request])[0].token_ids
    monkeypatch.setattr(FrozenMatrix, "PACK_FROM", 1)
    compiled = Ensemble.load(folder, device="cpu", dtype="float32", compile=True)
    assert run(compiled.engine, [request])[0].token_ids == expected


@needs_packing
def test_a_later_model_takes_over_the_numbers_of_packed_matrices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiler's cache on disk knows them. While a server reloads, two models are alive and share none."""
    folder = tiny_t5_bundle(tmp_path)
    monkeypatch.setattr(FrozenMatrix, "PACK_FROM", 1)

    def loaded() -> tuple[T5, set[int]]:
        before = set(compiling._matrices)
        model = Ensemble.load(folder, device="cpu", dtype="float32").engine.model
        assert isinstance(model, T5)
        StepFunction(model)
        return model, set(compiling._matrices) - before

    gc.collect()
    first, numbers = loaded()
    second, others = loaded()
    assert len(numbers) == len(others) > 0
    del first
    gc.collect()
    assert set(compiling._matrices) >= others
    third, again = loaded()
    assert again == numbers
    assert second is not third


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


def test_without_a_compiler_it_says_so(bundle: Path) -> None:
    with (
        torch._inductor.config.patch({"cpp.cxx": (None, "no-such-compiler")}),
        pytest.raises(UnsupportedModel, match=r"compile is on and torch finds no C\+\+ compiler") as raised,
    ):
        Ensemble.load(bundle, device="cpu", compile=True)
    assert "\n" not in str(raised.value)


def test_without_pythons_headers_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", lambda: "g++")
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    with pytest.raises(UnsupportedModel, match=r"Python\.h"):
        check_compiler()
