"""guidellm: a synchronous and a concurrent run over completions, chats and Responses, whose report counts every request as done."""

import json
import subprocess
import sys
from pathlib import Path

from common import ADAPTERS, URL, run

Path("prompts.jsonl").write_text("".join(json.dumps({"prompt": f"Where do bees live? {i}"}) + "\n" for i in range(8)))


def benchmark(route, profile):
    report = Path(f"{route.rpartition('/')[2]}-{profile.partition(',')[0]}.json")
    words = [
        "run", "--backend", f"kind=openai_http,target={URL},model={ADAPTERS[0]},request_format={route},max_tokens=8",
        "--profile", f"kind={profile}", "--data", "kind=json_file,path=prompts.jsonl", "--constraint", "kind=max_requests,count=6",
        "--output", f"kind=json,path={report}", "--disable-console",
    ]  # fmt: skip
    done = subprocess.run(
        [Path(sys.executable).with_name("guidellm"), *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:] or done.stdout[-2000:]
    [made] = json.loads(report.read_text())["benchmarks"]
    counts = made["metrics"]["request_totals"]
    assert counts["successful"] == 6 and not counts["errored"], counts


def completions():
    benchmark("/v1/completions", "synchronous")
    benchmark("/v1/completions", "concurrent,streams=3")


def chats():
    benchmark("/v1/chat/completions", "concurrent,streams=3")


def responses():
    benchmark("/v1/responses", "synchronous")


run(completions, chats, responses)
