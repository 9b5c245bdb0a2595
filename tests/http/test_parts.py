"""`emorl serve` as two processes that hold a causal base in parts: the same texts as one process, and one end for both."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import httpx
import pytest

from emorl_cli.main import main
from emorl_core.bundles.bundle import ADAPTERS_DIR, BASE_DIR, BaseRef, BundleSpec, ObjectiveSpec, write_spec
from emorl_core.ensemble import Ensemble
from tests.apart import started
from tests.builders import tiny_t5_bundle
from tests.http.harness import NO_TLS, error_of, wait_until
from tests.learn.causal_tasks import tiny_chat_base
from tests.supported_models import tiny_causal_adapter

pytestmark = pytest.mark.slow

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PROMPTS = ("i feel sad", "i feel sad and tired of work", "my family", "a long way home " * 12)
WEIGHTS = (
    {"reflection": 0.7, "empathy": 0.3},
    {"empathy": 1.0},
    {"base": 1.0},
    {"reflection": 1.4, "empathy": -0.6, "base": 0.2},
)


def causal_bundle(folder: Path, **config: Any) -> Path:
    """Grouped heads; adapters of two ranks on every layer, and one whose numbers overflow where it acts a million
    times."""
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96}
    base = tiny_chat_base(folder / BASE_DIR, **{**sizes, "head_dim": 16, **config})
    adapters: Mapping[str, tuple[Sequence[str], dict[str, Any]]] = {
        "reflection": (TARGETS, {}), "empathy": (TARGETS, {}), "huge": (["down_proj"], {"lora_alpha": 1e35})
    }  # fmt: skip
    for number, (name, (targets, options)) in enumerate(adapters.items()):
        tiny_causal_adapter(base, folder / ADAPTERS_DIR / name, 2 + number, number, targets, **options)
    objectives = {name: ObjectiveSpec(adapter=f"{ADAPTERS_DIR}/{name}") for name in adapters}
    write_spec(folder, BundleSpec(name="parts", base=BaseRef(path=BASE_DIR), objectives=objectives))
    return folder


@dataclass
class Parts:
    ranks: list[ForkServerProcess]
    url: str
    said: Path  # what both wrote to stderr

    def ended(self) -> list[int | None]:
        """Exit codes, once both have ended."""
        for rank in self.ranks:
            rank.join(90)
        return [rank.exitcode for rank in self.ranks]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _as_rank(rank: int, shared: dict[str, str], said: Path, command: list[str]) -> int:
    """One of the processes that `torchrun` would start."""
    os.environ.update(shared, RANK=str(rank), LOCAL_RANK=str(rank))
    with said.open("a") as file:
        os.dup2(file.fileno(), sys.stderr.fileno())
    return main(command)


@contextmanager
def processes(bundle: Path, said: Path, *options: str) -> Iterator[Parts]:
    port = free_port()
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    shared |= {"EMORL_ADMIN_KEYS": "admin"}
    # float32: sums over parts round in another order, which in bfloat16 decides between tokens of these random models.
    command = ["serve", str(bundle), "--port", str(port), "--threads", "1", "--dtype", "float32", *options]
    ranks = [started(_as_rank, rank, shared, said, command) for rank in range(2)]
    try:
        yield Parts(ranks, f"http://127.0.0.1:{port}", said)
    finally:
        for rank in ranks:
            rank.kill()
            rank.join()


def ready(parts: Parts) -> bool:
    assert all(rank.is_alive() for rank in parts.ranks), parts.said.read_text()
    try:
        return httpx.get(f"{parts.url}/readyz").status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return causal_bundle(tmp_path_factory.mktemp("parts") / "bundle")


@pytest.fixture(scope="module")
def whole(bundle: Path) -> Ensemble:
    return Ensemble.load(bundle, dtype="float32", threads=1)


@pytest.fixture(scope="module")
def parts(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parts]:
    said = tmp_path_factory.mktemp("said") / "stderr"
    with processes(
        bundle, said, "--prefill-tokens", "16", "--kv-cache-bytes", "4000000", "--compile", "auto"
    ) as running:
        wait_until(lambda: ready(running), "both hold their part", 300)
        yield running


@pytest.fixture(scope="module")
def client(parts: Parts) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=parts.url, timeout=300, verify=NO_TLS) as made:
        yield made


def body(number: int, **more: Any) -> dict[str, Any]:
    prompt, weights = PROMPTS[number % len(PROMPTS)], WEIGHTS[number // len(PROMPTS) % len(WEIGHTS)]
    return {"prompt": prompt, "weights": weights, "max_new_tokens": 12, "normalize": False, "seed": number, **more}


def test_many_at_once_get_the_texts_of_one_process_while_some_leave(client: httpx.Client, whole: Ensemble) -> None:
    def leave(number: int) -> None:
        with client.stream("POST", "/generate", json=body(number, stream=True, max_new_tokens=80)) as answer:
            next(answer.iter_lines())

    with ThreadPoolExecutor(12) as pool:
        leaving = [pool.submit(leave, number) for number in (1, 6, 11)]
        bodies = [body(number, temperature=0.8 if number % 5 == 0 else 0.0) for number in range(16)]
        answers = list(pool.map(lambda each: client.post("/generate", json=each).json(), bodies))
        for each in leaving:
            each.result()
    for each, answer in zip(bodies, answers, strict=True):
        prompt, weights = each.pop("prompt"), each.pop("weights")
        assert answer["text"] == whole.generate(prompt, weights, **each).text


def test_a_sweep_and_the_texts_between_two_weights_are_those_of_one_process(
    client: httpx.Client, whole: Ensemble
) -> None:
    weights = [{"reflection": share / 4, "empathy": 1 - share / 4} for share in range(5)]
    swept = client.post("/sweep", json={"prompts": [PROMPTS[1]], "weights": weights, "max_new_tokens": 10}).json()
    found = whole.sweep(PROMPTS[1], weights, max_new_tokens=10)
    assert {each["text"] for each in swept["results"][0]} == {item.text for item in found.items}
    line = {"from": weights[0], "to": weights[4], "prompt": PROMPTS[1], "max_new_tokens": 6}
    between = client.post("/sweep/line", json=line).json()
    exact = whole.sweep_line(PROMPTS[1], weights[0], weights[4], max_new_tokens=6)
    assert [each["text"] for each in between["intervals"]] == [each.text for each in exact.intervals]


def test_shares_of_the_objectives_are_those_of_one_process(client: httpx.Client, whole: Ensemble) -> None:
    told = client.post("/generate", json=body(0, attribution=True, stream=False, max_new_tokens=4)).json()
    asked = body(0, max_new_tokens=4)
    prompt, weights = asked.pop("prompt"), asked.pop("weights")
    own = whole.generate(prompt, weights, attribution=True, **asked)
    parts = [sorted(filter(None, token["attribution"].values())) for token in told["tokens"]]
    for found, wanted in zip(parts, own.attributions, strict=True):
        assert found == pytest.approx(sorted(filter(None, wanted.parts)), abs=1e-3)


def test_numbers_that_are_not_finite_end_one_request_and_no_process(client: httpx.Client, whole: Ensemble) -> None:
    with ThreadPoolExecutor(2) as pool:
        sound = pool.submit(client.post, "/generate", json=body(1, max_new_tokens=40))
        far = {"weights": {"huge": 1e6}, "combine": "weights", "normalize": False}
        broken = client.post("/generate", json={"prompt": PROMPTS[0], "max_new_tokens": 4, **far})
    assert broken.status_code == 500
    assert "not finite" in error_of(broken)["message"]
    asked = body(1, max_new_tokens=40)
    prompt, weights = asked.pop("prompt"), asked.pop("weights")
    assert sound.result().json()["text"] == whole.generate(prompt, weights, **asked).text


def test_a_bundle_is_not_loaded_a_second_time(client: httpx.Client) -> None:
    answer = client.post("/admin/reload", headers={"authorization": "Bearer admin"})
    assert answer.status_code >= 400
    assert "2 processes hold the model in parts" in error_of(answer)["message"]


def test_sigterm_ends_both_in_order(parts: Parts, client: httpx.Client) -> None:
    """The last test of these two: what runs is finished, whichever of them is told."""
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(client.post, "/generate", json=body(1, min_new_tokens=30, max_new_tokens=30))
        wait_until(lambda: "emorl_requests_running 1.0" in client.get("/metrics").text, "it runs")
        for rank in parts.ranks:  # as torchrun does
            assert rank.pid is not None
            os.kill(rank.pid, signal.SIGTERM)
        assert running.result().json()["usage"]["completion_tokens"] == 30
    assert parts.ended() == [0, 0], parts.said.read_text()
    said = parts.said.read_text()
    assert said.count("a model in parts has no compiled one") == 1
    assert "Traceback" not in said


@pytest.mark.parametrize(("killed", "codes"), [(1, [1, -signal.SIGKILL]), (0, [-signal.SIGKILL, 1])])
def test_the_death_of_one_is_the_end_of_both(bundle: Path, tmp_path: Path, killed: int, codes: list[int]) -> None:
    with processes(bundle, tmp_path / "stderr") as parts:
        wait_until(lambda: ready(parts), "both hold their part", 300)
        parts.ranks[killed].kill()
        assert parts.ended() == codes
        said = parts.said.read_text().splitlines()
    told = [line for line in said if line.startswith("emorl: error:")]
    line = "emorl: error: process 1 of 2 has ended; a model in parts cannot go on without it"
    assert told == ([] if killed == 0 else [line])
    assert not any("Traceback" in line for line in said)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda folder: causal_bundle(folder, num_key_value_heads=1),
            "num_key_value_heads is 1, which 2 processes cannot",
        ),
        (tiny_t5_bundle, "'t5' cannot be held in parts by 2 processes"),
    ],
)
def test_what_cannot_be_shared_is_refused_in_one_line(tmp_path: Path, make: Any, words: str) -> None:
    with processes(make(tmp_path / "bundle"), tmp_path / "stderr") as parts:
        code, other = parts.ended()
        told = [line for line in parts.said.read_text().splitlines() if line.startswith("emorl: error:")]
    assert (code, other) == (2, 0)  # the first has told why, and the end
    assert len(told) == 1
    assert words in told[0]


def test_other_commands_run_in_one_process(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["generate", str(bundle), "i feel sad"]) == 2
    assert "generate runs in one process; allowed for several: serve, train" in capsys.readouterr().err
