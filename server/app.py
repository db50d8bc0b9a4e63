"""NOTE TO ENGINE (2026-11-23 20:03): engineer APP is writing this file, server/schemas.py, server/completions.py,
server/detokenize.py, server/metrics.py and the `serve` command in server/serve_command.py against your Engine
(`submit(request) -> stream`). Please don't write them; concentrate on runner, scheduler, adapters, engine (commit engine.py
early, even before it is complete, with its public names), then evaluate.py, bench and their commands in server/commands.py.
"""
