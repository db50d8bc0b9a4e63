"""What was used, as lines and as numbers."""

import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from graft.hub.errors import GraftError
from graft.server.keys import usage_counts
from graft.server.keys.usage import Usage, UsageFile
from graft.server.keys.usage_counts import UsageCounts

ONE = Usage("id-1", "acme", "/v1/completions", "acme/a@v1", "acme/a", "d" * 64, 12, 30)


def test_each_request_is_a_line_wherever_the_file_has_gone(tmp_path: Path) -> None:
    path = tmp_path / "usage.jsonl"
    file = UsageFile(path)
    file.write(ONE)
    os.rename(path, tmp_path / "usage.1")  # as logrotate does
    file.write(Usage("id-2", "", "/v1/messages", 'odd "é\n', cut_off=True))
    path.unlink()
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(file.write, [ONE] * 200))
    file.close()
    [first] = [json.loads(line) for line in (tmp_path / "usage.1").read_text().splitlines()]
    assert first.pop("time").endswith("Z") and stat.S_IMODE((tmp_path / "usage.1").stat().st_mode) & 0o007 == 0
    assert first == {
        "request_id": "id-1",
        "key": "acme",
        "route": "/v1/completions",
        "model": "acme/a@v1",
        "adapter": "acme/a",
        "digest": "d" * 64,
        "prompt_tokens": 12,
        "completion_tokens": 30,
        "cut_off": False,
    }
    assert len([json.loads(line) for line in path.read_text().splitlines()]) == 200


def test_a_file_that_cant_be_written_is_refused_at_start_and_told_later(tmp_path: Path, caplog) -> None:
    with pytest.raises(GraftError, match="can't be written"):
        UsageFile(tmp_path)
    path = tmp_path / "gone" / "usage.jsonl"
    path.parent.mkdir()
    file = UsageFile(path)
    path.unlink()
    path.parent.rmdir()
    file.write(ONE)  # the request is not to blame
    assert "id-1" in caplog.text


def test_numbers_have_bounded_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage_counts, "MOST_PAIRS", 3)
    registry = CollectorRegistry()
    counts = UsageCounts(registry)
    for number in range(50):
        for _ in range(2):
            counts.add(Usage("id", f"key{number}", "/", "m", f"a{number}", None, 2, 3, number == 0))
    text = generate_latest(registry).decode()
    assert 'graft_key_requests_total{adapter="a0",end="cut off",key="key0"} 2.0' in text
    assert 'graft_key_tokens_total{adapter="other",key="other",kind="completion"} 282.0' in text
    assert 'graft_key_tokens_total{adapter="a2",key="key2",kind="prompt"} 4.0' in text
    assert "key3" not in text
