"""guidellm: a synchronous and a concurrent run over chats and completions, whose report counts every request as done."""

import json
import subprocess
import sys
from pathlib import Path

from common import ADAPTERS, URL, run

Path("prompts.jsonl").write_text("".join(json.dumps({"prompt": f"Where do bees live? {i}"}) + "\n" for i in range(8)))


def benchmark(kind, profile):
    report = Path(f"{kind.replace('/', '-')}-{profile[0]}.json")
    words = [
        "benchmark", "run", "--target", URL, "--model", ADAPTERS[0], "--request-type", kind, "--data", "prompts.jsonl",
        "--profile", *profile, "--max-requests", "6", "--output-path", report, "--disable-console-outputs",
    ]  # fmt: skip
    done = subprocess.run(
        [Path(sys.executable).with_name("guidellm"), *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:] or done.stdout[-2000:]
    [made] = json.loads(report.read_text())["benchmarks"]
    counts = made["metrics"]["request_totals"]
    assert counts["successful"] == 6 and not counts["errored"], counts


def completions():
    benchmark("text_completions", ["synchronous"])
    benchmark("text_completions", ["concurrent", "--rate", "3"])


def chats():
    benchmark("chat_completions", ["concurrent", "--rate", "3"])


run(completions, chats)
