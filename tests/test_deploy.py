"""What deploy/ says holds of the code: options that there are, files that there are, units that systemd reads."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from graft.server.commands.serve import serve

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
OPTIONS = {name for one in serve.params for name in one.opts}
FILES = ["graft-serve.service", "Dockerfile", "compose.yaml", "kuberay.yaml"]


def commands(file: str) -> list[str]:
    """Lines that give options to graft serve, and those that go on with them."""
    if file == "kuberay.yaml":
        return [ray_job()["spec"]["entrypoint"]]
    lines = [line for line in (DEPLOY / file).read_text().splitlines() if not line.lstrip().startswith("#")]
    return [line for line in lines if re.search(r"graft serve|\"serve\"|--base", line)]


@pytest.mark.parametrize("file", FILES)
def test_it_gives_graft_serve_options_that_it_has(file):
    given = {word for line in commands(file) for word in re.findall(r"--[a-z][a-z-]+", line)}
    assert given and given <= OPTIONS


@pytest.mark.parametrize("file", FILES)
def test_what_others_can_reach_asks_for_keys(file):
    text = " ".join(commands(file))
    assert "--base" in text and "--keys" in text and "--open" not in text


def test_supervisors_wait_longer_than_the_drain():
    unit = (DEPLOY / "graft-serve.service").read_text()
    drain, stop = (int(re.search(pattern, unit)[1]) for pattern in (r"--drain-seconds (\d+)", r"TimeoutStopSec=(\d+)"))
    graft = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["graft"]
    words = graft["command"]
    assert stop > drain and int(graft["stop_grace_period"].rstrip("s")) > int(words[words.index("--drain-seconds") + 1])


def test_the_image_is_made_of_what_there_is():
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    copied = [word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]]
    assert copied and all((ROOT / name).exists() for name in copied)
    assert "torch==2.13.0" in "\n".join(lines) and "torch==2.13.0" in (ROOT / "constraints.txt").read_text()
    known = {
        "FROM",
        "RUN",
        "WORKDIR",
        "COPY",
        "USER",
        "ENV",
        "ARG",
        "EXPOSE",
        "STOPSIGNAL",
        "HEALTHCHECK",
        "ENTRYPOINT",
        "CMD",
    }
    begun = [line.split()[0] for line in lines if line and line[0].isalpha()]
    assert set(begun) <= known and begun[0] == "FROM"


@pytest.mark.parametrize(
    "words",
    [
        ("hadolint", "Dockerfile"),
        ("check-jsonschema", "--builtin-schema", "vendor.compose-spec", "compose.yaml"),
    ],
    ids=lambda words: words[-1],
)
def test_a_linter_has_nothing_to_say(words):
    program = Path(sys.executable).parent / words[0]
    if not program.exists():
        pytest.skip(f"{words[0]} is in the extra `check`, for Linux on x86-64")
    done = subprocess.run([program, *words[1:]], cwd=DEPLOY, capture_output=True, text=True)
    assert not done.returncode, done.stdout + done.stderr


def test_compose_mounts_what_there_is():
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    assert (DEPLOY / services["nginx"]["volumes"][0].split(":")[0]).is_file()
    assert (DEPLOY / services["graft"]["build"]["context"] / services["graft"]["build"]["dockerfile"]).is_file()


def ray_job() -> dict[str, Any]:
    return next(one for one in kuberay() if one["kind"] == "RayJob")


def kuberay() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / "kuberay.yaml").read_text()))


def pods() -> dict[str, dict[str, Any]]:
    """The templates that KubeRay makes pods of, by the name of their group."""
    cluster, job = ray_job()["spec"]["rayClusterSpec"], ray_job()["spec"]
    workers = {group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]}
    return {"head": cluster["headGroupSpec"]["template"], "submitter": job["submitterPodTemplate"], **workers}


def test_the_cluster_is_what_the_command_asks_for():
    words = ray_job()["spec"]["entrypoint"].split()
    cluster = ray_job()["spec"]["rayClusterSpec"]
    [group] = cluster["workerGroupSpecs"]
    asked = {option: words[words.index(option) + 1] for option in ("--autoscale", "--replica-cpus", "--drain-seconds")}
    assert asked["--autoscale"] == f"{group['minReplicas']}:{group['maxReplicas']}"
    for name in ("head", group["groupName"]):
        assert pods()[name]["spec"]["terminationGracePeriodSeconds"] > int(asked["--drain-seconds"])
    [engine] = pods()[group["groupName"]]["spec"]["containers"]
    assert engine["resources"]["requests"]["cpu"] == asked["--replica-cpus"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0", "the head has no engine"
    assert f"ray[serve]=={cluster['rayVersion']}" in (ROOT / "pyproject.toml").read_text()


def test_the_ingress_can_be_reached():
    [service] = [one for one in kuberay() if one["kind"] == "Service"]
    head = pods()["head"]
    assert service["spec"]["selector"].items() <= head["metadata"]["labels"].items()
    ports = {port["name"]: port["containerPort"] for port in head["spec"]["containers"][0]["ports"]}
    words = ray_job()["spec"]["entrypoint"].split()
    assert ports[service["spec"]["ports"][0]["targetPort"]] == int(words[words.index("--port") + 1])


@pytest.mark.parametrize("group", ["head", "engines", "submitter"])
def test_kubernetes_knows_every_field(group):
    """RayJob itself is KubeRay's; what it holds is Kubernetes' own."""
    validate = pytest.importorskip("kubernetes_validate", reason="it is in the extra `check`").validate
    template = pods()[group]
    metadata = {"name": group, **template.get("metadata", {})}
    validate({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}, "1.34", strict=True)
    for one in kuberay():
        if one["kind"] != "RayJob":
            validate(one, "1.34", strict=True)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_systemd_reads_the_unit(tmp_path):
    unit = tmp_path / "graft-serve.service"
    unit.write_text(
        (DEPLOY / unit.name).read_text().replace("/opt/graft/.venv/bin/graft", "/bin/true").replace("User=graft\n", "")
    )
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True)
    said = [line for line in done.stderr.splitlines() if unit.name in line]
    assert said == [], said
