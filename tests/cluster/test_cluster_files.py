"""The cluster files against Ray's own schema; that of KubeRay by its structure; all against our configuration."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from amrg.cli import parse_config_arguments

ROOT = Path(__file__).resolve().parents[2]
CLOUDS = [ROOT / "configs" / "cluster" / f"{name}.yaml" for name in ("aws", "gcp")]
KUBERAY = ROOT / "configs" / "cluster" / "kuberay.yaml"


@pytest.mark.parametrize("path", [ROOT / "cluster.yaml", *CLOUDS], ids=lambda path: path.stem)
def test_rays_own_schema(path: Path) -> None:
    config = prepare_config(yaml.safe_load(path.read_text()))
    validate_config(config)
    with pytest.raises(Exception, match="provider_name"):
        validate_config(config | {"provider_name": "x"})
    assert config["file_mounts"]["~/am-mrg"] == "."


@pytest.mark.parametrize("path", CLOUDS, ids=lambda path: path.stem)
def test_clouds_have_trainers_with_gpus_and_readers_without(path: Path) -> None:
    types = yaml.safe_load(path.read_text())["available_node_types"]
    assert types.keys() == {"head", "trainer", "reader"}
    assert types["reader"]["resources"]["reader"] > 0
    assert "reader" not in types["trainer"]["resources"]


def test_kuberay_has_trainers_with_gpus_and_readers_without() -> None:
    job = yaml.safe_load(KUBERAY.read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    assert groups.keys() == {"trainer", "reader"}
    for group in groups.values():
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
    gpus = {name: _container(group)["resources"]["limits"].get("nvidia.com/gpu") for name, group in groups.items()}
    assert gpus == {"trainer": "8", "reader": None}
    assert yaml.safe_load(shlex.split(groups["reader"]["rayStartParams"]["resources"])[0]) == {"reader": 8}
    for group in (cluster["headGroupSpec"], *groups.values()):
        volumes = {volume["name"] for volume in group["template"]["spec"]["volumes"]}
        assert {mount["name"] for mount in _container(group)["volumeMounts"]} == volumes


def _container(group: dict[str, Any]) -> dict[str, Any]:
    (container,) = group["template"]["spec"]["containers"]
    return container


@pytest.mark.parametrize("path", [*CLOUDS, KUBERAY], ids=lambda path: path.stem)
def test_the_commands_they_name_are_understood(path: Path) -> None:
    text = re.sub(r"\n#? +", " ", path.read_text())
    (arguments,) = re.findall(r"launchers/pipeline.py ([\w ./-]*\breader)\b(?!-)", text)
    config = parse_config_arguments([word for word in arguments.split() if word != "--"], "launchers/pipeline.py")
    assert config.cluster.workers == 16
    assert config.cluster.reader_resource == "reader"
