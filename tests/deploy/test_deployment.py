"""Cluster files for Kubernetes and EC2, validated with the published schemas of KubeRay and Ray's autoscaler."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from conftest import ROOT
from ray.autoscaler._private.util import prepare_config, validate_config

from kosbert_ray.config import JobConfig, load_config

CONFIGS = ROOT / "configs"
# Spec of RayJob v1 from helm-chart/kuberay-operator/crds/ray.io_rayjobs.yaml in ray-project/kuberay at feeaf72fa
# (Apache-2.0), without descriptions.
SCHEMA = Path(__file__).parent / "rayjob_schema.json.gz"


def strict(schema: Any) -> Any:
    """Makes a CRD's schema reject unknown fields, as the API server does."""
    if isinstance(schema, dict):
        if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
            schema = {"additionalProperties": False, **schema}
        return {key: strict(value) for key, value in schema.items()}
    return [strict(item) for item in schema] if isinstance(schema, list) else schema


@pytest.fixture(scope="module")
def documents() -> dict[str, dict[str, Any]]:
    found = yaml.safe_load_all((CONFIGS / "rayjob.yaml").read_text("utf-8"))
    return {document["kind"]: document for document in found}


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return strict(json.loads(gzip.decompress(SCHEMA.read_bytes())))


def job_of(documents: dict[str, dict[str, Any]], folder: Path) -> JobConfig:
    (folder / "job.yaml").write_text(documents["ConfigMap"]["data"]["job.yaml"], "utf-8")
    return load_config(str(folder / "job.yaml"))


def test_the_rayjob_matches_kuberays_schema(documents, schema) -> None:
    jsonschema.validate(documents["RayJob"]["spec"], schema)
    wrong = json.loads(json.dumps(documents["RayJob"]["spec"]))
    wrong["rayClusterSpec"]["workerGroupSpecs"][0]["minReplica"] = 1
    with pytest.raises(jsonschema.ValidationError, match="minReplica"):
        jsonschema.validate(wrong, schema)


def test_gpu_nodes_have_room_for_encoders_only(documents, tmp_path: Path) -> None:
    cluster = documents["RayJob"]["spec"]["rayClusterSpec"]
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    limits = groups["gpu"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == groups["gpu"]["rayStartParams"]["num-cpus"] == "1"
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    encoder = job_of(documents, tmp_path).encoder
    assert (encoder.device, encoder.actors) == ("cuda", (1, groups["gpu"]["maxReplicas"]))


def test_the_rayjob_refers_to_a_secret_and_contains_none(documents) -> None:
    cluster = documents["RayJob"]["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        assert container["envFrom"] == [{"secretRef": {"name": "kosbert-s3"}}]
        assert "env" not in container


def test_the_ec2_cluster_matches_rays_schema() -> None:
    config = yaml.safe_load((CONFIGS / "ray_cluster_aws.yaml").read_text("utf-8"))
    validate_config(prepare_config(config))
    gpu = config["available_node_types"]["gpu"]
    assert gpu["resources"] == {"CPU": 1, "GPU": 1}
    assert config["max_workers"] == sum(kind.get("max_workers", 0) for kind in config["available_node_types"].values())
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config({**config, "max_worker": 1}))
