"""Profiles that predict weights: from the bundle's file to the weights that a text was made with."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from emorl_core.bundles.bundle import BUNDLE_FILE, read_spec, write_spec
from emorl_core.bundles.predictor import Array, Predictor
from emorl_core.bundles.profiles import PredictorSpec, ProfileSpec
from emorl_core.bundles.snapshot import Changed, Snapshot
from emorl_core.bundles.stored_predictors import PREDICTOR_FILE, store_predictor
from emorl_core.ensemble import Ensemble
from emorl_core.errors import BundleError, InvalidRequest, InvalidWeights
from emorl_core.files.hashes import folder_hash
from emorl_core.lanes.lane import Lane
from emorl_core.models.family import Group
from tests.builders import tiny_t5_bundle

PROMPTS = ("I can't keep up at work.", "My sister and I had a fight.", "Nothing helps.")
PREDICTED = ("fluency", "reflection")  # neither all of the bundle's objectives nor in their order


def random_predictor(width: int) -> Predictor:
    random = np.random.Generator(np.random.PCG64(5))
    mean, scale, head = random.normal(size=width), random.uniform(0.5, 2, width), random.normal(0, 0.1, (2, width))
    return Predictor(mean, scale, head, random.normal(0, 0.1, 2))


def with_predictor(folder: Path, predictor: Predictor, *, default: str = "balanced") -> Path:
    path, sha256 = store_predictor(folder, predictor)
    spec = read_spec(folder / BUNDLE_FILE)
    auto = ProfileSpec(predictor=PredictorSpec(path=path, sha256=sha256, objectives=list(PREDICTED)))
    write_spec(
        folder, spec.model_copy(update={"profiles": {**spec.profiles, "auto": auto}, "default_profile": default})
    )
    return folder


@pytest.fixture(scope="module")
def predictor(shared: Path) -> Predictor:
    return random_predictor(width_of(Ensemble.load(shared, device="cpu", dtype="float32")))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_t5_bundle(tmp_path_factory.mktemp("predicted"))


@pytest.fixture
def own(shared: Path, predictor: Predictor, tmp_path: Path) -> Path:
    return with_predictor(Path(shutil.copytree(shared, tmp_path / "bundle")), predictor)


@pytest.fixture
def served(own: Path) -> Ensemble:
    return Ensemble.load(own, device="cpu", dtype="float32")


def width_of(ensemble: Ensemble) -> int:
    return int(ensemble.engine.model.head_rows(torch.tensor([0])).shape[-1])


def by_hand(ensemble: Ensemble, predictor: Predictor, prompt: str) -> dict[str, float]:
    """The formula over the state that training's pass has of the prompt, number by number."""
    model = ensemble.engine.model
    bare = Lane((0.0,) * len(model.adapters), ensemble.encode(prompt))
    with torch.no_grad():
        hidden, _ = model.reply_hidden([Group(bare, ((1,),))])  # type: ignore[attr-defined]
    state = hidden[0, 0].tolist()
    raised = []
    for row, bias in zip(predictor.head, predictor.bias, strict=True):
        columns = zip(row, state, predictor.mean, predictor.scale, strict=True)
        raised.append(np.exp(bias + sum(a * (x - mean) / scale for a, x, mean, scale in columns)))
    return dict(zip(PREDICTED, (float(each / sum(raised)) for each in raised), strict=True))


def test_every_prompt_gets_the_weights_that_the_formula_gives(served: Ensemble, predictor: Predictor) -> None:
    answers = served.generate(PROMPTS, profile="auto", max_new_tokens=8)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        expected = by_hand(served, predictor, prompt)
        assert answer.profile == "auto"
        assert answer.weights == pytest.approx({**dict.fromkeys(served.objectives, 0.0), **expected}, abs=6e-4)
    assert len({tuple(answer.weights.values()) for answer in answers}) == len(PROMPTS)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.9, "seed": 7},
        {"combine": "probs"},
        {"attribution": True, "top_logprobs": 3},
    ],
    ids=["greedy", "sampled", "probs", "attribution"],
)
def test_the_text_is_that_of_the_weights_it_tells(options: dict[str, object], served: Ensemble) -> None:
    found = served.generate(PROMPTS[0], profile="auto", max_new_tokens=12, **options)
    again = served.generate(PROMPTS[0], weights=found.weights, normalize=False, max_new_tokens=12, **options)
    assert found.token_ids == again.token_ids
    assert found.logprobs == pytest.approx(again.logprobs, abs=1e-5)
    for one, other in zip(found.attributions, again.attributions, strict=True):
        assert one.parts == pytest.approx(other.parts, abs=1e-4)


def test_the_base_reads_the_prompt_and_then_costs_nothing(served: Ensemble) -> None:
    found = served.generate(PROMPTS[0], profile="auto", max_new_tokens=10, min_new_tokens=10)
    assert found.lane_row_steps == 10 * len(PREDICTED) + 1


def test_beside_others_and_one_by_one_it_is_the_same(served: Ensemble) -> None:
    alone = [served.generate(prompt, profile="auto", max_new_tokens=10) for prompt in PROMPTS]
    requests = [served.request(prompt, profile="auto", max_new_tokens=10, stream=False) for prompt in PROMPTS]
    requests.append(served.request(PROMPTS[0], weights={"empathy": 1.0}, max_new_tokens=10, stream=False))
    together = {each.request_id: each for each in served.ends(requests, at_once=8)}
    assert [together[each.request_id].token_ids for each in requests[:3]] == [each.token_ids for each in alone]
    assert together[requests[3].request_id].weights["empathy"] == 1.0


def test_a_step_that_failed_beside_it_changes_nothing(served: Ensemble, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = served.generate(PROMPTS[0], profile="auto", max_new_tokens=6)
    model, calls = served.engine.model, iter(range(100))
    step = model.step

    def faulty(*args: object) -> object:
        if next(calls) in (0, 3):
            raise RuntimeError
        return step(*args)

    monkeypatch.setattr(model, "step", faulty)
    found = served.generate(PROMPTS[0], profile="auto", max_new_tokens=6)
    assert (found.token_ids, found.weights) == (expected.token_ids, expected.weights)


def test_cancelled_before_its_first_token_it_has_no_weights_to_tell(served: Ensemble) -> None:
    request = served.request(PROMPTS[0], profile="auto", max_new_tokens=5, stream=False)
    served.engine.add(request)
    served.engine.cancel(request.request_id)
    (event,) = served.engine.step()
    assert set(event.weights.values()) == {0.0}  # type: ignore[union-attr]


def test_it_may_be_the_default(own: Path, predictor: Predictor) -> None:
    served = Ensemble.load(with_predictor(own, predictor, default="auto"), device="cpu", dtype="float32")
    assert served.generate(PROMPTS[0], max_new_tokens=4).profile == "auto"
    assert served.generate(PROMPTS[0], {"empathy": 1.0}, max_new_tokens=4).profile is None


def test_what_needs_weights_before_the_prompt_says_so(served: Ensemble) -> None:
    with pytest.raises(InvalidWeights, match=r"profile 'auto' predicts weights for each prompt; allowed here: weights"):
        served.resolve(profile="auto")
    with pytest.raises(InvalidRequest, match=r"combine is 'weights'.* allowed with it: hidden, probs"):
        served.request(PROMPTS[0], profile="auto", combine="weights")


def _other_bytes(file: Path) -> None:
    values = load_file(file)
    save_file({**values, "bias": values["bias"] + 1}, file)


def test_files_that_are_not_those_that_were_stored_are_refused(own: Path) -> None:
    (place,) = (own / "predictors").iterdir()
    _other_bytes(place / PREDICTOR_FILE)
    with pytest.raises(BundleError, match=r"profiles\.auto\.predictor\.sha256 is .*; the files have .*not those that"):
        Ensemble.load(own, device="cpu")


def _without_bias(values: dict[str, Array]) -> dict[str, Array]:
    return {name: value for name, value in values.items() if name != "bias"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_without_bias, r"holds head .*; allowed: mean \[D\], scale \[D\], head \[2, D\]"),
        (lambda values: {**values, "bias": values["bias"][:1].copy()}, r"bias \[1\] float64"),
        (lambda values: {**values, "mean": values["mean"].astype(np.float32)}, r"float32.*in float64"),
        (lambda values: {**values, "scale": values["scale"] * 0}, "a scale of 0 or less"),
        (lambda values: {**values, "head": values["head"] * np.nan}, "not finite"),
        (
            lambda values: {
                **values, "mean": values["mean"][:3].copy(), "scale": values["scale"][:3].copy(),
                "head": values["head"][:, :3].copy(),
            },
            r"reads states of 3 numbers; the base's have",
        ),
    ],
)  # fmt: skip
def test_what_is_no_predictor_of_this_base_is_refused(
    change: Callable[[dict[str, Array]], dict[str, Array]], words: str, own: Path
) -> None:
    (place,) = (own / "predictors").iterdir()
    save_file(change(load_file(place / PREDICTOR_FILE)), place / PREDICTOR_FILE)
    text = (own / BUNDLE_FILE).read_text()
    spec = read_spec(own / BUNDLE_FILE).profiles["auto"].predictor
    assert spec is not None
    (own / BUNDLE_FILE).write_text(text.replace(spec.sha256, folder_hash(place)))
    with pytest.raises(BundleError, match=words):
        Ensemble.load(own, device="cpu")


@pytest.mark.parametrize(
    ("update", "words"),
    [
        ({"weights": {"empathy": 1.0}}, "give exactly one of weights and predictor"),
        ({"objectives": ["fluency", "base"]}, r"unknown objective 'base'; objectives: reflection"),
        ({"objectives": ["fluency", "fluency"]}, "one is named twice"),
        ({"objectives": ["fluency"]}, "at least 2"),
        ({"path": "../predictors"}, "allowed: a path inside the bundle"),
        ({"path": "predictors/none"}, "there is no such folder in the bundle"),
        ({"sha256": "x"}, "sha256"),
    ],
)
def test_faults_of_the_spec_are_told_by_name(update: dict[str, object], words: str, own: Path) -> None:
    spec = read_spec(own / BUNDLE_FILE)
    auto = spec.profiles["auto"]
    assert auto.predictor is not None
    inside = {name: value for name, value in update.items() if name != "weights"}
    profile = auto.model_copy(
        update={"predictor": auto.predictor.model_copy(update=inside), "weights": update.get("weights")}
    )
    write_spec(own, spec.model_copy(update={"profiles": {**spec.profiles, "auto": profile}}))
    with pytest.raises(BundleError, match=words) as refused:
        Ensemble.load(own, device="cpu")
    assert "profiles.auto" in refused.value.message


def test_it_is_part_of_the_bundle_that_was_opened(own: Path) -> None:
    with Snapshot.open(own) as files:
        (place,) = (own / "predictors").iterdir()
        (place / "more.txt").write_text("x")
        with pytest.raises(Changed, match=place.name):
            files.check()


def test_the_same_predictor_is_stored_once(own: Path, predictor: Predictor) -> None:
    before = read_spec(own / BUNDLE_FILE).profiles["auto"].predictor
    assert before is not None
    assert store_predictor(own, predictor) == (before.path, before.sha256)
    assert [each.name for each in (own / "predictors").iterdir()] == [before.sha256[:12]]
