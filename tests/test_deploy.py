"""What deploy/ says holds of the code: options that there are, files that there are, units that systemd reads."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from graft.server.commands.serve import serve

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
OPTIONS = {name for one in serve.params for name in one.opts}
FILES = ["graft-serve.service", "Dockerfile", "compose.yaml"]


def commands(file: str) -> list[str]:
    """Lines that give options to graft serve."""
    lines = [line for line in (DEPLOY / file).read_text().splitlines() if not line.lstrip().startswith("#")]
    return [line for line in lines if re.search(r"graft serve|\"serve\"|--base", line)]


@pytest.mark.parametrize("file", FILES)
def test_it_gives_graft_serve_options_that_it_has(file):
    given = {word for line in commands(file) for word in re.findall(r"--[a-z][a-z-]+", line)}
    assert given and given <= OPTIONS


@pytest.mark.parametrize("file", FILES)
def test_what_others_can_reach_asks_for_keys(file):
    [line] = [line for line in commands(file) if "--base" in line]
    assert "--keys" in line and "--open" not in line


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
        "EXPOSE",
        "STOPSIGNAL",
        "HEALTHCHECK",
        "ENTRYPOINT",
        "CMD",
    }
    begun = [line.split()[0] for line in lines if line and line[0].isalpha()]
    assert set(begun) <= known and begun[0] == "FROM"


def test_compose_mounts_what_there_is():
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    assert (DEPLOY / services["nginx"]["volumes"][0].split(":")[0]).is_file()
    assert (DEPLOY / services["graft"]["build"]["context"] / services["graft"]["build"]["dockerfile"]).is_file()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_systemd_reads_the_unit(tmp_path):
    unit = tmp_path / "graft-serve.service"
    unit.write_text(
        (DEPLOY / unit.name).read_text().replace("/opt/graft/.venv/bin/graft", "/bin/true").replace("User=graft\n", "")
    )
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True)
    said = [line for line in done.stderr.splitlines() if unit.name in line]
    assert said == [], said
