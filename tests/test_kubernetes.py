"""The manifests agree with the server, the image and each other."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml

from server.door.auth import OPEN_PATHS, Keys
from server.settings import ENV_PREFIX, Settings, SettingsError, load_settings
from tests.deployment import (
    ALERTS,
    DOCKERFILES,
    KUBERNETES,
    environment,
    exported,
    final_stage,
    longest_end_s,
    paths,
    read,
    settings_of,
)

BASE = KUBERNETES / "base"
MONITORING = KUBERNETES / "monitoring"
KUSTOMIZATIONS = sorted(file.parent for file in KUBERNETES.rglob("kustomization.yaml"))


def manifest(name: str) -> dict[str, Any]:
    loaded = read(BASE / f"{name}.yaml")
    assert isinstance(loaded, dict)
    return loaded


def pod() -> dict[str, Any]:
    spec = manifest("deployment")["spec"]["template"]["spec"]
    assert isinstance(spec, dict)
    return spec


def container() -> dict[str, Any]:
    (only,) = pod()["containers"]
    assert isinstance(only, dict)
    return only


def cluster_settings() -> Settings:
    return load_settings(config=BASE / "settings.yaml")


def test_probes_ask_routes_that_are_open_without_a_key() -> None:
    asked = {kind: container()[kind]["httpGet"]["path"] for kind in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert asked == {"startupProbe": "/startupz", "livenessProbe": "/livez", "readinessProbe": "/readyz"}
    assert set(asked.values()) <= OPEN_PATHS & paths()
    assert all(container()[kind]["httpGet"]["port"] == "http" for kind in asked)
    (port,) = container()["ports"]
    assert (port["name"], port["containerPort"]) == ("http", cluster_settings().port)


def test_a_pod_has_time_to_drain() -> None:
    settings = cluster_settings()
    waits = int(container()["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod()["terminationGracePeriodSeconds"] > waits + longest_end_s(settings)


def test_the_pod_is_unprivileged_and_its_file_system_read_only() -> None:
    uid = int(dict(final_stage(DOCKERFILES[0]))["USER"].split(":")[0])
    security = pod()["securityContext"]
    assert security["runAsNonRoot"] is True
    assert security["runAsUser"] == uid
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container()["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod()["automountServiceAccountToken"] is False
    writable = {mount["mountPath"] for mount in container()["volumeMounts"] if not mount.get("readOnly")}
    assert writable == {"/tmp", environment(DOCKERFILES[0])["HOME"]}


def test_the_service_does_not_overwrite_a_setting() -> None:
    """Kubernetes sets <SERVICE>_PORT=tcp://… for every service, and ours is called emorl."""
    service = manifest("service")["metadata"]["name"]
    assert f"{service}_port".upper() == f"{ENV_PREFIX}PORT"
    assert pod()["enableServiceLinks"] is False


def test_settings_and_keys_are_mounted_where_the_server_looks() -> None:
    settings = cluster_settings()
    mounts = {mount["name"]: mount["mountPath"] for mount in container()["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod()["volumes"]}
    assert set(mounts) == set(volumes)
    assert f"{mounts['settings']}/settings.yaml" == environment(DOCKERFILES[0])["EMORL_CONFIG"]
    (item,) = volumes["api-keys"]["secret"]["items"]
    assert f"{mounts['api-keys']}/{item['path']}" == str(settings.api_keys_file)
    assert mounts["bundle"] == settings.bundle
    (generated,) = read(BASE / "kustomization.yaml")["configMapGenerator"]
    assert volumes["settings"]["configMap"]["name"] == generated["name"]
    assert volumes["bundle"]["persistentVolumeClaim"]["claimName"] == manifest("bundle")["metadata"]["name"]
    settings_of({variable["name"]: "" for variable in container()["env"]})


def test_the_example_secret_holds_no_key_and_the_server_refuses_to_start_with_it(tmp_path: Path) -> None:
    secret = read(KUBERNETES / "secret.example.yaml")
    assert secret["metadata"]["name"] == pod()["volumes"][1]["secret"]["secretName"]
    file = tmp_path / "api-keys"
    file.write_text(secret["stringData"]["api-keys"])
    with pytest.raises(SettingsError, match="there is no key in it"):
        Keys.read(Settings(api_keys_file=file))


def test_manifests_select_the_same_pods_and_the_same_port() -> None:
    labels = manifest("deployment")["spec"]["template"]["metadata"]["labels"]
    assert manifest("deployment")["spec"]["selector"]["matchLabels"] == labels
    assert manifest("service")["spec"]["selector"] == labels
    assert manifest("pdb")["spec"]["selector"]["matchLabels"] == labels
    assert manifest("networkpolicy")["spec"]["podSelector"]["matchLabels"] == labels
    monitor = read(MONITORING / "servicemonitor.yaml")
    assert monitor["spec"]["selector"]["matchLabels"] == manifest("service")["metadata"]["labels"]
    (endpoint,) = monitor["spec"]["endpoints"]
    (port,) = manifest("service")["spec"]["ports"]
    assert endpoint["port"] == port["name"]
    assert endpoint["path"] in paths()
    assert manifest("service")["metadata"]["name"] == "emorl", "the job that every alert asks for"


def test_the_autoscaler_asks_for_the_metric_that_the_adapter_offers() -> None:
    spec = manifest("hpa")["spec"]
    assert spec["scaleTargetRef"]["name"] == manifest("deployment")["metadata"]["name"]
    assert "replicas" not in manifest("deployment")["spec"], "each apply would undo what the autoscaler did"
    (metric,) = spec["metrics"]
    (rule,) = read(MONITORING / "prometheus-adapter.yaml")["rules"]["custom"]
    assert metric["pods"]["metric"]["name"] == rule["name"]["as"] == "emorl_requests_waiting"
    assert rule["seriesQuery"].startswith("emorl_requests_waiting{")
    assert int(metric["pods"]["target"]["averageValue"]) < cluster_settings().max_queue


def test_the_gpu_overlay_asks_for_a_gpu_and_the_image_that_uses_it() -> None:
    overlay = read(KUBERNETES / "gpu" / "kustomization.yaml")
    (image,) = overlay["images"]
    assert image["newTag"] == "cuda"
    patch = read(KUBERNETES / "gpu" / "deployment.yaml")
    (patched,) = patch["spec"]["template"]["spec"]["containers"]
    assert patched["name"] == container()["name"]
    assert patched["resources"]["limits"]["nvidia.com/gpu"] == "1"


# What the custom resources' own definitions require of the fields that are used here, and no other fields.
def _object(required: str, **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": required.split(),
        "properties": properties,
    }


_TEXT = {"type": "string", "minLength": 1}
_COUNT = {"type": "integer", "minimum": 0}
_PORT = {"type": "integer", "minimum": 1, "maximum": 65535}
_REFERENCE = _object("name", group={"type": "string"}, kind=_TEXT, name=_TEXT)
SPECS = {
    ("keda.sh/v1alpha1", "ScaledObject"): _object(
        "scaleTargetRef triggers",
        scaleTargetRef=_object("name", apiVersion=_TEXT, kind=_TEXT, name=_TEXT),
        minReplicaCount=_COUNT,
        maxReplicaCount=_COUNT,
        pollingInterval=_COUNT,
        cooldownPeriod=_COUNT,
        triggers={
            "type": "array",
            "minItems": 1,
            "items": _object(
                "type metadata",
                type=_TEXT,
                metricType={"enum": ["AverageValue", "Value", "Utilization"]},
                metadata=_object("serverAddress query threshold", serverAddress=_TEXT, query=_TEXT, threshold=_TEXT),
            ),
        },
    ),
    ("inference.networking.k8s.io/v1", "InferencePool"): _object(
        "selector targetPorts endpointPickerRef",
        selector=_object("matchLabels", matchLabels={"type": "object", "additionalProperties": _TEXT}),
        targetPorts={"type": "array", "minItems": 1, "maxItems": 8, "items": _object("number", number=_PORT)},
        endpointPickerRef=_object(
            "name port",
            group={"type": "string"},
            kind=_TEXT,
            name=_TEXT,
            port=_object("number", number=_PORT),
            failureMode={"enum": ["FailOpen", "FailClose"]},
        ),
    ),
    ("gateway.networking.k8s.io/v1", "HTTPRoute"): _object(
        "parentRefs rules",
        parentRefs={"type": "array", "items": _REFERENCE},
        rules={
            "type": "array",
            "items": _object(
                "backendRefs",
                matches={"type": "array"},
                backendRefs={"type": "array", "items": _REFERENCE},
                timeouts=_object("request", request={"type": "string", "pattern": r"^\d+(h|m|s|ms)$"}),
            ),
        },
    ),
}


@pytest.mark.parametrize("file", ["keda/scaledobject", "inference/inferencepool", "inference/httproute"])
def test_a_custom_resource_fits_its_schema(file: str) -> None:
    resource = read(KUBERNETES / f"{file}.yaml")
    spec = SPECS[resource["apiVersion"], resource["kind"]]
    jsonschema_rs.validate(spec, resource["spec"])
    for required in spec["required"]:
        without = {name: value for name, value in resource["spec"].items() if name != required}
        with pytest.raises(jsonschema_rs.ValidationError):
            jsonschema_rs.validate(spec, without)


def test_keda_and_the_endpoint_picker_find_the_pods_and_read_gauges_that_there_are() -> None:
    scaled = read(KUBERNETES / "keda" / "scaledobject.yaml")["spec"]
    assert scaled["scaleTargetRef"] == manifest("hpa")["spec"]["scaleTargetRef"]
    (trigger,) = scaled["triggers"]
    assert set(re.findall(r"\w+:\w+", trigger["metadata"]["query"])) == {"vllm:num_requests_waiting"} <= exported()
    deleted = read(KUBERNETES / "keda" / "hpa.yaml")
    assert (deleted["$patch"], deleted["metadata"]) == ("delete", manifest("hpa")["metadata"])

    pool_file = KUBERNETES / "inference" / "inferencepool.yaml"
    pool = read(pool_file)
    assert pool["spec"]["selector"] == manifest("deployment")["spec"]["selector"]
    assert pool["spec"]["targetPorts"] == [{"number": cluster_settings().port}]
    assert set(re.findall(r"vllm:\w+", pool_file.read_text())) <= exported()
    (rule,) = read(KUBERNETES / "inference" / "httproute.yaml")["spec"]["rules"]
    assert rule["backendRefs"][0]["name"] == pool["metadata"]["name"]


@pytest.mark.parametrize("folder", KUSTOMIZATIONS, ids=lambda path: path.name)
def test_every_manifest_belongs_to_a_kustomization(folder: Path) -> None:
    kustomization = read(folder / "kustomization.yaml")
    named = {*kustomization["resources"], *(patch["path"] for patch in kustomization.get("patches", []))}
    named |= {file for each in kustomization.get("configMapGenerator", []) for file in each["files"]}
    for name in named:
        assert (folder / name).exists(), name
    on_their_own = {"kustomization.yaml", "prometheus-adapter.yaml"}  # values for a chart, not a manifest
    assert {file.name for file in folder.glob("*.yaml")} - on_their_own == named - {"../base"}


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl")
@pytest.mark.parametrize("folder", KUSTOMIZATIONS, ids=lambda path: path.name)
def test_kubectl_puts_the_manifests_together(folder: Path) -> None:
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    kinds = [document["kind"] for document in yaml.safe_load_all(done.stdout)]
    assert len(kinds) == len(set(kinds)) > 1


def test_the_rules_for_the_operator_are_the_rules_of_prometheus() -> None:
    assert read(MONITORING / "prometheusrule.yaml")["spec"] == read(ALERTS)
