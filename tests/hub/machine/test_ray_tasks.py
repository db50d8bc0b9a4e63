"""Pieces on a real cluster: their results, their mistakes, and what becomes of those whose workers die."""

import os
import signal
import socket
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from graft.hub.errors import GraftError, NotFoundError
from graft.hub.machine import ray_head, ray_tasks
from graft.hub.machine.ray_tasks import Cluster, Piece, Spread
from tests.hub.machine.pieces import Doing, do
from tests.ray_cluster import busy_workers, nodes, wait_for


@pytest.fixture
def run(ray_address, tmp_path):
    """run(names, spread's fields) -> what came of each, and what was said."""
    said: list[str] = []

    def run(*names, **fields):
        queue = deque(Piece(name, partial(str, name)) for name in names)
        with Cluster(Spread(ray_address, **fields), said.append) as cluster:
            return {piece.name: found for piece, found in cluster.run(do, Doing(tmp_path), queue)}

    run.said = said
    return run


def test_without_ray_it_is_said_how_to_get_it(monkeypatch):
    monkeypatch.setattr(ray_tasks, "find_spec", lambda name: None)
    with pytest.raises(GraftError, match=r"pip install 'grafthub\[ray\]'"):
        ray_tasks.require_ray()


@pytest.mark.slow
def test_each_piece_answers_or_says_why_not_and_dead_workers_are_replaced(run, tmp_path):
    names = ["a", "mistake", "bug", "dies-once", "dies-always", *(f"more-{number}" for number in range(8))]
    found = run(*names)
    assert sorted(found) == sorted(names)
    assert found["a"] == ("a", 1) and found["more-7"] == ("more-7", 1) and found["dies-once"] == ("dies-once", 1)
    assert isinstance(found["mistake"], NotFoundError) and str(found["mistake"]) == "There is no such thing."
    assert "bug failed on its worker: ZeroDivisionError: division by none" in str(found["bug"])
    assert "the worker of dies-always died" in str(found["dies-always"]) and "3 times in all" in str(
        found["dies-always"]
    )
    done = {path.name for path in tmp_path.iterdir()}
    assert done == {f"{name}.0" for name in names} | {"dies-once.1", "dies-always.1", "dies-always.2"}
    assert sum("died" in line and "once more" in line for line in run.said) == 3


@pytest.mark.slow
def test_a_piece_of_a_node_that_is_gone_is_done_on_another(tmp_path):
    said: list[str] = []
    queue = deque([Piece("lingers", partial(str, "lingers"))])
    with nodes(0, 1, 1) as cluster:

        def remove():
            wait_for(lambda: [*tmp_path.glob("lingers.0")] and (tmp_path / "lingers.0").read_text())
            first = (tmp_path / "lingers.0").read_text()
            (node,) = (node for node in cluster.worker_nodes if node.node_id == first)
            cluster.remove_node(node, allow_graceful=False)

        remover = threading.Thread(target=remove)
        with Cluster(Spread(cluster.address), said.append) as joined:
            remover.start()
            ((_, found),) = joined.run(do, Doing(tmp_path), queue)
            remover.join()
    assert found == ("lingers", 1) and sum("once more" in line for line in said) == 1
    assert (tmp_path / "lingers.0").read_text() != (tmp_path / "lingers.1").read_text()


@pytest.mark.slow
def test_ctrl_c_interrupts_the_workers_and_what_they_saved_comes_back(ray_address, tmp_path):
    queue = deque(Piece(name, partial(str, name)) for name in ("waits-a", "waits-b", "never-1", "never-2", "never-3"))
    found = {}

    def interrupt():
        wait_for(lambda: len([*tmp_path.glob("waits*")]) == 2)
        os.kill(os.getpid(), signal.SIGINT)

    with Cluster(Spread(ray_address), print) as cluster:
        threading.Thread(target=interrupt, daemon=True).start()
        with pytest.raises(KeyboardInterrupt):
            for piece, outcome in cluster.run(do, Doing(tmp_path), queue):
                found[piece.name] = outcome
    assert found == {"waits-a": "interrupted, and saved", "waits-b": "interrupted, and saved"}
    wait_for(lambda: not busy_workers())
    assert not [*tmp_path.glob("never*")]


@pytest.mark.slow
def test_ctrl_c_waits_until_a_result_is_dealt_with(ray_address, tmp_path):
    queue = deque(Piece(name, partial(str, name)) for name in ("waits", "a"))
    kept = []
    with Cluster(Spread(ray_address), print) as cluster, pytest.raises(KeyboardInterrupt):
        for piece, _ in cluster.run(do, Doing(tmp_path), queue):
            if piece.name == "a":
                wait_for(lambda: [*tmp_path.glob("waits*")])
                os.kill(os.getpid(), signal.SIGINT)
            kept.append(piece.name)
    assert kept == ["a", "waits"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.slow
def test_a_cluster_of_another_version_is_said_with_both(ray_address, monkeypatch):
    monkeypatch.setattr("ray.__version__", "2.0.1")
    with pytest.raises(GraftError, match=r"Version mismatch.*2\.60.*2\.0\.1"):
        Cluster(Spread(ray_address), print).__enter__()


@pytest.mark.slow
def test_what_no_node_has_is_said(run):
    with pytest.raises(
        GraftError, match=r"No node of the cluster has 5 CPUs, which a task takes; the largest has 1 CPUs"
    ):
        run("a", cpus=5)


@pytest.mark.parametrize(
    "address, why", [("127.0.0.1:1", "nobody answers there"), ("nonsense", "of the form HOST:PORT")]
)
def test_where_no_cluster_is(address, why):
    pytest.importorskip("ray", reason="Ray is not installed: pip install grafthub[ray]")
    with pytest.raises(GraftError, match=f"No Ray cluster could be joined at {address}: .*{why}"):
        Cluster(Spread(address), print).__enter__()


def test_an_address_in_the_environment_counts_as_one_that_is_given(monkeypatch):
    pytest.importorskip("ray", reason="Ray is not installed: pip install grafthub[ray]")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    for address in (None, "auto"):
        with pytest.raises(GraftError, match=r"at 127\.0\.0\.1:1: nobody answers there"):
            Cluster(Spread(address), print).__enter__()


@pytest.mark.parametrize(
    "says, why", [(b"HTTP/1.0 400 Bad", "no head of one"), (b"", "no head of one"), (None, "timed out")]
)
def test_who_is_no_cluster_is_not_waited_for(says, why, monkeypatch):
    pytest.importorskip("ray", reason="Ray is not installed: pip install grafthub[ray]")
    monkeypatch.setattr(ray_head, "_ANSWER_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:
        answering = pool.submit(_answer, server, says)
        with pytest.raises(GraftError, match=why):
            Cluster(Spread(f"127.0.0.1:{server.getsockname()[1]}"), print).__enter__()
        answering.result()


def _answer(server, says):
    """One who listens, and says something or (None) nothing."""
    asker, _ = server.accept()
    with asker:
        asker.recv(100)
        asker.sendall(says or b"")
        if says is None:
            asker.recv(1)  # until the other goes


def test_another_graft_on_a_worker_is_refused():
    refused = ray_tasks._do("0.0.1", 1, b"", b"")
    assert isinstance(refused, GraftError) and "and here is 0.0.1: install the same on every node" in str(refused)
