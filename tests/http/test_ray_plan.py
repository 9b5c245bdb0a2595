"""What `emorl deploy` hands to Ray Serve, looked at without Ray."""

from __future__ import annotations

import asyncio
import sys
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from emorl_core.bundles.bundle import Bundle
from emorl_core.errors import BundleError, EmorlError
from emorl_core.scorers import build_scorer
from emorl_core.scorers.asking import Panel, Statement
from server.ray.plan import NO_SCORERS, PROBES, Plan, parse_range
from server.settings import Settings, SettingsError, load_settings
from server.watch.metrics import EngineReading, Metrics
from tests.builders import tiny_t5_bundle
from tests.cli.conftest import emorl as emorl  # the command line, in this process
from tests.http.harness import PROMPT, live


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_t5_bundle(tmp_path_factory.mktemp("bundles") / "my-bundle")


@pytest.fixture(scope="module")
def scored_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_t5_bundle(tmp_path_factory.mktemp("scored") / "my-bundle", scorers={"empathy": "lexical_empathy"})


@pytest.mark.parametrize(("text", "replicas"), [("1", (1, 1)), ("2", (2, 2)), ("1..8", (1, 8)), ("3..3", (3, 3))])
def test_replicas_are_a_number_or_fewest_and_most(text: str, replicas: tuple[int, int]) -> None:
    assert parse_range(text) == replicas


@pytest.mark.parametrize(
    "text", ["", "0", "0..2", "8..1", "1..", "..2", "1...2", "-1", "1.5", "two", "1001", "1..99999", "٣"]
)
def test_other_replicas_are_refused_in_one_line(text: str) -> None:
    with pytest.raises(SettingsError, match=r"^replicas is .*; allowed: a number from 1 to 1000, or fewest\.\.most"):
        parse_range(text)


@pytest.mark.parametrize("text", ["0", "0..2", "none"])
def test_a_number_of_scorers_is_refused_by_its_own_name(emorl, bundle: Path, text: str) -> None:
    assert (
        emorl("deploy", bundle, "--scorers", text).refused().startswith(f"emorl: error: scorers is '{text}'; allowed")
    )


def test_scorers_are_a_second_deployment_with_room_beside_the_first(scored_bundle: Path) -> None:
    settings = Settings(bundle=str(scored_bundle), scorer_device="cuda", threads=2)
    plan = Plan.make(settings, (1, 3), (1, 2))
    server, scorers = plan.deployments()
    assert (server["name"], scorers["name"]) == ("server", "scorers")
    assert (server["ray_actor_options"]["num_gpus"], scorers["ray_actor_options"]["num_gpus"]) == (0, 1)
    assert (scorers["autoscaling_config"]["min_replicas"], scorers["autoscaling_config"]["max_replicas"]) == (1, 2)
    assert plan.cores() == 2 * (3 + 1 + 2 + 1)
    assert Plan.make(settings, (1, 3)).cores() == 2 * (3 + 1)
    assert len(Plan.make(settings, (1, 3)).deployments()) == 1
    assert Plan.read(plan.model_dump(exclude_defaults=True)) == plan


@pytest.mark.parametrize(("score", "why"), [(True, "the bundle names no scorers"), (False, "the setting score is off")])
def test_scorers_with_nothing_to_do_are_refused(bundle: Path, scored_bundle: Path, score: bool, why: str) -> None:
    settings = Settings(bundle=str(bundle if score else scored_bundle), score=score)
    with pytest.raises(SettingsError, match=why):
        Plan.make(settings, (1, 1), (1, 1))


def test_a_changed_bundle_is_another_version(bundle: Path, tmp_path: Path) -> None:
    settings = Settings(bundle=str(bundle))
    before = Plan.make(settings, (1, 1)).version
    assert Plan.make(settings, (1, 4)).version == before
    other = tiny_t5_bundle(tmp_path / "other", seed=1)
    assert Plan.make(Settings(bundle=str(other)), (1, 1)).version != before


def test_one_core_a_replica_unless_threads_says_more(bundle: Path) -> None:
    one, two = (Plan.make(Settings(bundle=str(bundle), threads=threads), (1, 1)) for threads in ("auto", 2))
    assert one.replica_settings().threads == one.deployment()["ray_actor_options"]["num_cpus"] == 1
    assert two.replica_settings().threads == two.deployment()["ray_actor_options"]["num_cpus"] == 2


def test_the_door_of_a_replica_answers_before_serve_holds_requests_back(bundle: Path) -> None:
    options = Plan.make(Settings(bundle=str(bundle), slots=3, max_queue=5), (1, 8)).deployment()
    assert options["max_ongoing_requests"] == 3 + 5 + PROBES
    assert options["autoscaling_config"] | {"target_ongoing_requests": 3} == options["autoscaling_config"]
    assert options["backpressure_config"]["status_code"] == 429


def test_a_replica_may_drain_for_as_long_as_a_server(bundle: Path) -> None:
    settings = Settings(bundle=str(bundle), drain_timeout_s=77)
    assert Plan.make(settings, (2, 2)).deployment()["graceful_shutdown_timeout_s"] > 77


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"max_connections": 500}, "max_connections has no effect on replicas"),
        ({"write_timeout_s": 3}, "write_timeout_s has no effect on replicas"),
        ({"drain_delay_s": 3}, "drain_delay_s has no effect on replicas"),
        ({"admin_keys": "secret"}, "admin_keys: replicas have no /admin routes"),
    ],
)
def test_a_setting_that_would_do_nothing_is_refused(bundle: Path, settings: dict[str, object], line: str) -> None:
    with pytest.raises(SettingsError, match=line) as caught:
        Plan.make(load_settings(bundle=str(bundle), **settings), (1, 1))
    assert "secret" not in caught.value.message


def test_a_replica_gets_the_settings_that_were_given(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "keys.txt").write_text("clinic:a-long-enough-key\n")
    monkeypatch.chdir(tmp_path)
    given = load_settings(bundle=str(bundle), slots=3, api_keys_file="keys.txt", policy="crisis-cues")
    plan = Plan.make(given, (1, 1))
    monkeypatch.chdir(tmp_path.parent)
    replica = Plan.read(plan.model_dump()).replica_settings()
    assert (replica.slots, replica.policy) == (3, "crisis-cues")
    assert replica.api_keys_file == tmp_path / "keys.txt"


@pytest.mark.parametrize(
    ("args", "line"),
    [
        ({}, "bundle"),
        ({"bundle": "b", "version": "1", "min_replicas": 0, "max_replicas": 1}, "min_replicas"),
        ({"bundle": "b", "version": "1", "min_replicas": 3, "max_replicas": 2}, "allowed: up to max_replicas, 2"),
        (
            {"bundle": "b", "version": "1", "min_replicas": 1, "max_replicas": 2, "replicas": 2},
            "unknown key 'replicas'",
        ),
        (
            {"bundle": "b", "version": "1", "min_replicas": 1, "max_replicas": 1, "max_scorers": 2},
            "min_scorers is 0; allowed: from 1",
        ),
    ],
)
def test_arguments_in_a_serve_file_are_checked(args: dict[str, object], line: str) -> None:
    with pytest.raises(SettingsError, match=line):
        Plan.read(args)


def test_a_file_for_serve_deploy_is_written_and_never_over_another(emorl, bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    command = ("deploy", bundle, "--replicas", "1..8", "--session-affinity", "--slots", 4, "--port", 8123)
    ran = emorl(*command, "--serve-config", file)
    assert (ran.code, ran.err) == (0, "")
    config = yaml.safe_load(file.read_text())
    assert config["http_options"] == {"host": "127.0.0.1", "port": 8123}
    (application,) = config["applications"]
    plan = Plan.read(application["args"])
    assert (plan.bundle, plan.min_replicas, plan.max_replicas) == (str(bundle), 1, 8)
    assert application["deployments"] == [plan.deployment()]
    assert "serve.yaml" in emorl(*command, "--serve-config", file).refused()


def test_keys_are_written_to_no_file(emorl, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMORL_API_KEYS", "a-long-secret")
    line = emorl("deploy", bundle, "--serve-config", tmp_path / "serve.yaml").refused()
    assert "api_keys_file" in line
    assert "a-long-secret" not in line
    assert not (tmp_path / "serve.yaml").exists()


def test_without_ray_the_command_says_how_to_get_it(emorl, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "ray"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "pip install 'emorl[ray]'" in emorl("deploy", bundle).refused()


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's own, on import
def test_the_file_is_one_that_serve_takes(scored_bundle: Path) -> None:
    from ray.serve.schema import ServeDeploySchema

    settings = Settings(bundle=str(scored_bundle))
    for replicas, scorers, affinity in (((1, 8), (1, 4), True), ((2, 2), NO_SCORERS, False)):
        config = Plan.make(settings, replicas, scorers, session_affinity=affinity).serve_config(settings)
        taken = ServeDeploySchema.model_validate(config)
        assert taken.applications[0].import_path == "server.ray.replica:build"


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's own, on import
def test_the_application_is_built_of_its_arguments(bundle: Path) -> None:
    from server.ray.replica import build

    plan = Plan.make(Settings(bundle=str(bundle)), (2, 2))
    assert build(plan.model_dump()) is not None
    with pytest.raises(EmorlError, match="args of"):
        build({})


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's own, on import
def test_a_replica_is_as_healthy_as_its_engine_is_ready() -> None:
    from server.ray.replica import Replica

    with live() as running:
        replica = Replica.__new__(Replica)
        replica._log, replica._service = ExitStack(), running.service

        def check() -> None:  # on the server's own loop, as Ray does it
            asyncio.run_coroutine_threadsafe(replica.check_health(), running.loop).result(60)

        check()
        running.service.failure = BundleError("bundle.yaml: there are no adapters")
        with pytest.raises(RuntimeError, match="there are no adapters"):
            check()
        running.service.failure = None
        running.call(running.service.drain)
        with pytest.raises(RuntimeError, match="shutting down"):
            check()


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's own, on import
async def test_scorers_that_cannot_be_asked_leave_a_text_unscored(
    scored_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.serve.exceptions import BackPressureError

    from server.ray import scorers
    from server.serving.scoring import Scores

    spec = Bundle.open(scored_bundle).spec
    settings = Settings(score_timeout_s=0.01)
    monkeypatch.setattr(scorers, "_WAY_S", 0.01)
    asked: list[tuple[object, ...]] = []

    class Response(asyncio.Future[object]):
        cancel_asked = False

        def cancel(self, msg: object = None) -> bool:
            self.cancel_asked = True
            return super().cancel()

    async def scored(outcome: object) -> tuple[Scores, Response]:
        response = Response()
        if isinstance(outcome, Exception):
            response.set_exception(outcome)
        elif outcome != "late":
            response.set_result(outcome)

        def remote(*args: object) -> Response:
            asked.append(args)
            return response

        handle = SimpleNamespace(score=SimpleNamespace(remote=remote))
        asking = scorers.asking(handle)(spec, settings, Metrics(EngineReading, ()))  # type: ignore[arg-type]
        (found,) = await asking.score(["prompt"], ["text"])
        return found, response

    assert (await scored([Scores({"empathy": 0.25}, {})]))[0].scores == {"empathy": 0.25}
    assert asked == [(scorers.identity_of(spec), ["prompt"], ["text"])]
    for outcome, reason in (
        ("late", "timeout"),
        (None, "failed"),  # of another version
        (RuntimeError("it died"), "failed"),
        (BackPressureError(num_queued_requests=1, max_queued_requests=1), "busy"),
    ):
        found, response = await scored(outcome)
        assert found == Scores({"empathy": None}, {"empathy": reason})
        assert response.cancel_asked == (outcome == "late")


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's own, on import
async def test_a_scorer_process_scores_for_those_who_mean_its_scorers(scored_bundle: Path) -> None:
    from server.ray.scorers import ScorerReplica, identity_of

    plan = Plan.make(Settings(bundle=str(scored_bundle)), (1, 1), (1, 1))
    replica = ScorerReplica(plan.model_dump())
    spec = Bundle.open(scored_bundle).spec
    found = await replica.score(identity_of(spec), [PROMPT], ["You feel tired, and that hurts."])
    panel = Panel({"empathy": build_scorer("lexical_empathy")})
    panel.score({0: (Statement(PROMPT), "You feel tired, and that hurts.")})
    assert found is not None
    assert [list(each.scores.values()) for each in found] == [list(panel[0])]
    other = spec.model_copy(update={"scorers": {"empathy": "lexical_reflection"}})
    assert await replica.score(identity_of(other), [PROMPT], ["a"]) is None
    await replica._scoring.stop()


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's own, on import
def test_a_ray_that_does_not_start_is_told_in_one_line(emorl, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def init(**options: object) -> None:
        raise Exception("The current node timed out during startup. This could happen.")

    monkeypatch.setattr(ray, "init", init)
    assert "no Ray cluster on this machine: The current node timed out" in emorl("deploy", bundle).refused()


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's own, on import
@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1:99999", "nowhere.invalid:6379", "127.0.0.1"])
def test_an_address_without_a_cluster_is_refused_at_once(emorl, bundle: Path, address: str) -> None:
    assert f"no Ray cluster at {address!r}" in emorl("deploy", bundle, "--ray", address).refused()
