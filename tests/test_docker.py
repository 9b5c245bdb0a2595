"""Images and compose files agree with the code and with each other. They are read, not run: that needs no engine."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from server.settings import ENV_PREFIX, Settings, load_settings
from tests.deployment import (
    DOCKER,
    DOCKERFILES,
    ROOT,
    environment,
    final_stage,
    instructions,
    longest_end_s,
    paths,
    read,
    settings_of,
)
from tests.http.harness import live

COMPOSE_FILES = sorted(DOCKER.glob("compose*.yaml"))

# --- images ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_images_are_small_unprivileged_and_end_on_sigterm(dockerfile: Path) -> None:
    steps = instructions(dockerfile)
    assert sum(name == "FROM" for name, _ in steps) == 2, "a build stage, and one that holds its result only"
    last = dict(final_stage(dockerfile))
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", last["USER"]), "a number, which Kubernetes can check"
    assert last["STOPSIGNAL"] == "SIGTERM"
    assert json.loads(last["ENTRYPOINT"]) == ["emorl", "serve"], "exec form: the server itself gets the signal"
    assert "pip" not in " ".join(value for name, value in final_stage(dockerfile) if name == "RUN")
    assert {"title", "version", "revision", "licenses"} <= set(re.findall(r"image\.(\w+)=", last["LABEL"]))
    (volume,) = json.loads(last["VOLUME"])
    assert environment(dockerfile)["HF_HOME"].startswith(f"{volume}/"), "models from a hub outlive the container"
    assert environment(dockerfile)["HOME"] == volume


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_the_health_check_asks_for_liveness(dockerfile: Path) -> None:
    check = dict(final_stage(dockerfile))["HEALTHCHECK"]
    options, command = check.split(" CMD ")
    assert json.loads(command)[-1].endswith("/healthcheck.py")
    timeout = re.search(r"--timeout=(\d+)s", options)
    inner = re.search(r"^TIMEOUT_S = (\d+)", (DOCKER / "healthcheck.py").read_text(), re.MULTILINE)
    assert timeout
    assert inner
    assert int(inner[1]) < int(timeout[1])


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_versions_are_pinned_and_no_registry_is_named(dockerfile: Path) -> None:
    installs = [value for name, value in instructions(dockerfile) if name == "RUN" and "pip install" in value]
    assert len(installs) == 2
    assert "--constraint constraints.txt" in installs[0]
    assert "--no-deps" in installs[1], "whatever the project asks for was installed with the constraints"
    assert all("$PIP_INDEX_ARGS" in install for install in installs)
    assert 'ARG PIP_INDEX_ARGS=""' in dockerfile.read_text()
    assert not re.search(r"https?://|index-url[ =][^,. ]", dockerfile.read_text())


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_what_images_copy_is_there_and_gets_past_the_ignore_file(dockerfile: Path) -> None:
    copied = [
        value.split()[:-1] for name, value in instructions(dockerfile) if name == "COPY" and "--from" not in value
    ]
    sources = {source for each in copied for source in each}
    assert {"emorl_core", "server", "training", "emorl_cli"} <= sources
    ignored, *rest = [
        line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")
    ]
    assert ignored == "*", "what is not named stays out"
    allowed = {line.removeprefix("!") for line in rest if line.startswith("!")}
    for source in sources:
        assert (ROOT / source).exists(), source
        assert source in allowed, source
    used_by_none = allowed - sources
    assert not used_by_none


def test_the_images_differ_in_the_gpu_only() -> None:
    plain, cuda = (environment(dockerfile) for dockerfile in DOCKERFILES)
    assert {name: cuda[name] for name in cuda if plain.get(name) != cuda[name]} == {
        "EMORL_DEVICE": "cuda",
        "NVIDIA_VISIBLE_DEVICES": "all",
        "NVIDIA_DRIVER_CAPABILITIES": "compute,utility",
    }
    settings_of(cuda)
    assert not [name for name in plain if name.startswith(ENV_PREFIX) and name != "EMORL_CONFIG"], (
        "variables win over a mounted settings file, so an image must set none that an operator may want to"
    )


def test_the_settings_of_the_image_are_settings() -> None:
    settings = load_settings(config=DOCKER / "settings.yaml")
    assert (settings.host, settings.bundle, settings.port) == ("0.0.0.0", "/bundle", 8000)


def test_the_list_of_requirements_is_the_projects(tmp_path: Path) -> None:
    command = [sys.executable, str(DOCKER / "requirements.py"), str(ROOT / "pyproject.toml")]
    listed = subprocess.run([*command, "tracing"], capture_output=True, text=True, check=True).stdout.splitlines()
    assert {re.split("[><=]", line)[0] for line in listed} >= {"torch", "fastapi", "opentelemetry-sdk"}
    refused = subprocess.run([*command, "tracing,nope"], capture_output=True, text=True)
    assert refused.returncode == 1
    assert refused.stderr.startswith("EXTRAS names nope; allowed: ")


def test_the_health_check_tells_a_live_server_from_none() -> None:
    def check(port: str) -> subprocess.CompletedProcess[str]:
        variables = {**os.environ, "EMORL_PORT": port, "http_proxy": "http://127.0.0.1:9"}
        command = [sys.executable, str(DOCKER / "healthcheck.py")]
        return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60)

    with live() as server:
        port = server.url.rsplit(":", 1)[1]
        alive = check(port)
        assert (alive.returncode, alive.stderr) == (0, "")
        server.service.failure = RuntimeError("no bundle")
        dead = check(port)
        assert dead.returncode == 1
        assert "status 503" in dead.stderr
    gone = check(port)
    assert gone.returncode == 1
    assert f"no answer on port {port}" in gone.stderr


# --- compose ---------------------------------------------------------------------------------------------------------


def services() -> dict[str, dict[str, Any]]:
    loaded: dict[str, dict[str, Any]] = read(DOCKER / "compose.yaml")["services"]
    return loaded


@pytest.mark.parametrize("name", services())
def test_every_service_is_locked_down(name: str) -> None:
    service = services()[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory", "pids"}
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), "nothing listens to the network"
    assert ":" in service["image"]
    assert not service["image"].endswith(":latest")


def test_the_server_of_compose_is_configured_with_settings_that_exist() -> None:
    server = services()["server"]
    values = settings_of(server["environment"])
    plain = {name: value for name, value in values.items() if "$" not in value}
    settings = load_settings(**plain)
    assert server["ports"] == [f"127.0.0.1:${{PORT:-8000}}:{Settings().port}"]
    grace = int(server["stop_grace_period"].removesuffix("s"))
    assert grace > longest_end_s(settings)
    built = services()["demo-bundle"]["entrypoint"]
    assert built[built.index("--folder") + 1] == settings.bundle
    threads, cores = server["environment"]["OMP_NUM_THREADS"], server["deploy"]["resources"]["limits"]["cpus"]
    assert threads == cores, "more threads than cores wait for each other"


def test_the_demo_bundle_is_built_by_a_command_that_exists() -> None:
    from emorl_cli.demo.demo import add_arguments
    from emorl_cli.main import Parser

    program, verb, *arguments = services()["demo-bundle"]["entrypoint"]
    assert (program, verb) == ("emorl", "demo")
    parser = Parser(prog="emorl demo", description="")
    add_arguments(parser)
    assert parser.parse_args(arguments).build_only


@pytest.mark.parametrize("file", COMPOSE_FILES, ids=lambda path: path.name)
def test_compose_files_name_files_volumes_and_services_that_exist(file: Path) -> None:
    compose = read(file)
    known = read(DOCKER / "compose.yaml")
    for name, service in compose["services"].items():
        assert name in known["services"]
        settings_of(service.get("environment", {}))
        if "build" in service:
            assert (DOCKER / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
        for volume in service.get("volumes", []):
            source = volume["source"] if isinstance(volume, dict) else volume.split(":")[0]
            if source.startswith("./"):
                assert (DOCKER / source).exists(), source
            elif not source.startswith("${"):
                assert source in known["volumes"], source
        needed = service.get("depends_on", [])
        assert set(needed) <= set(known["services"])


def test_prometheus_scrapes_the_service_by_its_name_and_port() -> None:
    config = read(DOCKER / "prometheus" / "prometheus.yml")
    (job,) = config["scrape_configs"]
    assert job["job_name"] == "emorl"
    assert job["static_configs"] == [{"targets": [f"server:{Settings().port}"]}]
    assert job.get("metrics_path", "/metrics") in paths()


def test_grafana_finds_its_datasource_and_its_dashboard() -> None:
    (source,) = read(DOCKER / "grafana/provisioning/datasources/prometheus.yaml")["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = read(DOCKER / "grafana/provisioning/dashboards/emorl.yaml")["providers"]
    mounts = dict(volume.split(":")[:2] for volume in services()["grafana"]["volumes"])
    assert mounts["./grafana/dashboards"] == provider["options"]["path"]
    assert mounts["./grafana/provisioning"] == "/etc/grafana/provisioning"
    home = services()["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{provider['options']['path']}/emorl.json"
