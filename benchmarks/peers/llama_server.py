"""One measurement of llama.cpp, without adapters, with one LoRA, or with several one after another, as JSON.

Its driver is a C++ program (peer_llama.cpp; llama_cpp.py builds it); imports nothing of graft.
"""

import argparse
import json
import subprocess
from pathlib import Path

from benchmarks.lib.common import Workload, emit, latencies, measure


def main() -> None:
    options = arguments()
    workload = Workload.from_json(options.workload)
    size = (workload.requests, workload.prompt_tokens, workload.new_tokens, options.threads)
    command = [options.driver, options.model, *map(str, size), *map(str, options.adapters)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdin and driver.stdout
        driver.stdin.write(" ".join(str(token) for prompt in workload.prompts() for token in prompt) + "\n")
        times: list[list[float]] = []

        def run() -> None:
            print("go", file=driver.stdin, flush=True)
            times[:] = json.loads(driver.stdout.readline())
            assert sum(map(len, times)) == workload.output_tokens

        result = measure(run, workload.output_tokens, options.repeats)
        driver.stdin.close()
    setting = "one adapter after another" if len(options.adapters) > 1 else "one batch"
    emit(result | latencies(times, 0.0) | {"setting": setting})


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--driver", required=True)
    parser.add_argument("--model", required=True, help="GGUF")
    parser.add_argument("--workload", default="{}", help="JSON of common.Workload")
    parser.add_argument("--adapters", nargs="*", type=Path, default=[], help="GGUF")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    main()
