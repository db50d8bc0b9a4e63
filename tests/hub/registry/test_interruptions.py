"""Killed at every point, or met by another operation there: nothing acknowledged is lost, nothing is half there."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hub.registry.operations import OPERATIONS

ROOT = Path(__file__).parents[3]


def run(*words: str) -> dict[str, int]:
    """How many cases there were of each operation. In a process of its own, which forks and has no other threads."""
    command = [sys.executable, "-m", "tests.hub.registry.interruptions", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    assert [report for report in reports if report["wrong"]] == []
    return {report["operation"]: report["cases"] for report in reports}


def test_each_operation_killed_at_each_point() -> None:
    cases = run("killed")
    assert cases.keys() == OPERATIONS.keys() and all(cases.values())
    assert cases["publish"] > 20 and cases["backup"] > 20 and cases["restore"] > 20 and cases["gc"] > 5


def test_operations_that_meet_another_at_each_point() -> None:
    assert sum(run("meetings", "gc", "promote", "delete", "move").values()) > 50


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("operation", ["backup", "publish", "commit", "add_task", "rollback", "evaluation", "pull"])
def test_longer_operations_that_meet_another_at_each_point(operation: str) -> None:
    run("meetings", operation)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("kind", ["pairs", "together"])
def test_each_pair_of_operations_the_first_killed_at_each_point(kind: str, operation: str) -> None:
    run(kind, operation)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_thousand_random_kills() -> None:
    run("random", "1000")
