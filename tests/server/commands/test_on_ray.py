"""`graft serve --ray` as far as it gets without Ray: options that don't go together, no Ray, another one."""

import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from graft.hub.cli.main import main
from tests.conftest import tiny_base


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder, base = tmp_path_factory.mktemp("on-ray") / "base", tiny_base("llama")
    base.model.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--replicas", "2"], "go with --ray"),
        (["--ray-address", "auto"], "go with --ray"),
        (["--ray", "--replicas", "0"], "0 is not in the range"),
        (["--ray", "--replicas", "2", "--autoscale", "1:2"], "not both"),
        (["--ray", "--autoscale", "2:2"], "write MIN:MAX"),
        (["--ray", "--autoscale", "0:2"], "write MIN:MAX"),
        (["--ray", "--autoscale", "many"], "write MIN:MAX"),
        (["--ray", "--adapter-root", "."], "--adapter-root"),
        (["--ray", "--ray-address", "ray://x:1"], "HOST:PORT"),
        (["--ray", "--ray-address", "x:1", "--port", "0"], "--port"),
        (["--ray", "--host", "0.0.0.0"], "--keys"),
    ],
)
def test_options_that_do_not_go_together(base, options, words):
    done = CliRunner().invoke(main, ["serve", "--base", base, *options])
    assert done.exit_code in (1, 2) and words in done.output


@pytest.mark.parametrize(
    ("code", "words"),
    [("raise ImportError('no ray here')", "pip install"), ("__version__ = '2.9.0'", "Here is Ray 2.9.0")],
)
def test_without_ray_or_with_another_one_it_says_what_to_install(base, tmp_path, code, words):
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "__init__.py").write_text(code)
    (tmp_path / "ray" / "serve.py").write_text("")
    command = [sys.executable, "-m", "graft.hub.cli.main", "serve", "--base", base, "--ray"]
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=60)
    assert done.returncode == 1 and words in done.stderr and "Traceback" not in done.stderr


def test_help_imports_no_ray():
    code = "import sys; from graft.server.commands.serve import serve; sys.exit(bool({'ray', 'aiohttp'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
