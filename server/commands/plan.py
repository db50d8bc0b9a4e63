"""`graft plan`: how many replicas a deployment needs, from what serving costs here."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from graft.hub.errors import GraftError
from graft.hub.machine.bytes_text import bytes_text
from graft.hub.machine.output_folder import require_writable
from graft.hub.terminal.base_argument import BASE
from graft.hub.terminal.options import ByteSize, FiniteRange, json_option, parse_settings
from graft.hub.terminal.tables import print_json, print_table

if TYPE_CHECKING:
    from graft.server.sizing.costs import Costs
    from graft.server.sizing.deployment import Demand, Fleet, Sizing

_SOME = click.IntRange(1)
MOST_ADAPTERS = 10_000_000  # each one's share of the requests is reckoned with: for so many in a minute


@click.command()
@click.option("--base", required=True, type=BASE, help="A folder, an imported base's name or id, or a hub id.")
@click.option("--adapters", required=True, type=click.IntRange(1, MOST_ADAPTERS), help="How many there are in all.")
@click.option("--rate", required=True, type=FiniteRange(0, min_open=True), help="Requests a second, of all.")
@click.option("--method", help="Of the adapters (default: lora).")
@click.option("--set", "options", multiple=True, metavar="KEY=VALUE", help="An option of the method.")
@click.option("--prompt-tokens", default=256, show_default=True, type=_SOME, help="Of a request.")
@click.option("--new-tokens", default=128, show_default=True, type=_SOME, help="Of a request.")
@click.option("--zipf", default=1.0, show_default=True, type=FiniteRange(0), help="How unevenly they are asked for.")
@click.option("--rows", default=32, show_default=True, type=_SOME, help="Requests that a replica computes together.")
@click.option("--memory", type=ByteSize(), help="Of a replica, or its GPU: 24G.  [default: what is free here]")
@click.option(
    "--busy",
    default=0.7,
    show_default=True,
    type=FiniteRange(0, 1, min_open=True),
    help="Share of a replica's time to plan with; the rest keeps waiting short.",
)
@click.option("--dtype", help="float32, bfloat16, float16 (default: as measured here).")
@click.option("--device", help="cpu, cuda (default: cuda where there is one).")
@click.option("--costs", "kept", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Measured before.")
@click.option("--save-costs", type=click.Path(dir_okay=False, path_type=Path), help="Keep what is measured in a file.")
@json_option
def plan(
    base: str,
    adapters: int,
    rate: float,
    method: str | None,
    options: tuple[str, ...],
    prompt_tokens: int,
    new_tokens: int,
    zipf: float,
    rows: int,
    memory: int | None,
    busy: float,
    dtype: str | None,
    device: str | None,
    kept: Path | None,
    save_costs: Path | None,
    as_json: bool,
) -> None:
    """Size a deployment: replicas, memory and what the hub bears, from what serving costs on this machine."""
    from graft.server.sizing.costs import read_costs
    from graft.server.sizing.deployment import Demand, size
    from graft.server.sizing.hub_limits import HUB

    if kept and (save_costs or dtype or device or method or options):
        raise click.UsageError(
            "--costs were measured before: --save-costs, --dtype, --device, --method and --set are of no use."
        )
    if save_costs:
        require_writable(save_costs.parent)  # before a minute is spent
    demand = Demand(adapters, rate, prompt_tokens, new_tokens, zipf, busy, rows, memory or _free(device))
    if kept:
        costs = read_costs(kept)
    else:
        costs = _measured(base, method or "lora", parse_settings(options), rows, dtype, device)
    if costs.base != Path(base).name:
        raise GraftError(f"{kept} has the costs of {costs.base}, not of {Path(base).name}.")
    sizing = size(costs, demand, HUB)
    if as_json:
        print_json({**asdict(sizing), "demand": asdict(demand), "costs": asdict(costs), "hub": asdict(HUB)})
    else:
        _print(sizing, demand, costs, f"{kept or 'measured here'}, {costs.measured}", HUB.source)
    if save_costs:
        save_costs.parent.mkdir(parents=True, exist_ok=True)
        save_costs.write_text(costs.to_json(), "utf-8")


def _free(device: str | None) -> int:
    """Bytes for a replica that is to be here: of a GPU, where it computes on one."""
    from graft.hub.base.model import usable_device
    from graft.hub.machine.free_memory import free_memory

    if usable_device(device) == "cpu":
        return free_memory()
    import torch

    return torch.cuda.mem_get_info()[0]


def _measured(
    base: str, method: str, options: dict[str, str], rows: int, dtype: str | None, device: str | None
) -> "Costs":
    """Costs of a base with adapters of a kind; says where other work may have made them larger."""
    _say(f"measuring what serving {base} costs here: about a minute")
    from graft.hub.machine.cpu_load import Load
    from graft.server.commands.costs_here import Measured, measure_here

    load = Load()
    costs = measure_here(Measured(base, method, options, rows, dtype, device), _say)
    if not load.cores().quiet:
        _say("other work was running meanwhile: on a quiet machine serving costs less")
    return costs


def _say(line: str) -> None:
    click.echo(line, err=True)


def _print(sizing: "Sizing", demand: "Demand", costs: "Costs", where: str, hub: str) -> None:
    print_table("A replica", ("figure", "value", "from"), _replica_rows(sizing, demand, costs, where))
    print_table("The deployment", ("figure", "by digest:", "anywhere:"), _fleet_rows(sizing.placed, sizing.anywhere))
    print_table("The hub", ("figure", "value", "from"), _hub_rows(sizing, demand, costs, hub))
    click.echo(f"Short first as the rate grows: {sizing.first_limit}.")


def _replica_rows(sizing: "Sizing", demand: "Demand", costs: "Costs", where: str) -> list[tuple[str, str, str]]:
    step = costs.step(demand.rows)
    return [
        ("memory", bytes_text(demand.memory), "--memory, or what is free here"),
        ("base, packed weights and all", bytes_text(costs.base_bytes), where),
        (f"keys and values of {demand.rows} requests", bytes_text(sizing.cache_bytes), f"{costs.token_bytes:,} bytes a token"),
        (f"room for {sizing.fits:,} adapters ({costs.adapter})", bytes_text(sizing.adapters_bytes), f"{where}: {bytes_text(costs.adapter_bytes)} each"),
        (f"a step of {demand.rows} rows", f"{1e3 * step:.1f} ms", f"{where}, {costs.machine}, {costs.runner}"),
        ("a token of a prompt", f"{1e3 * costs.prompt_token:.3f} ms", where),
        ("bringing an adapter in", f"{1e3 * costs.load:.0f} ms", f"{where}; {1e3 * costs.load_work:.0f} ms of them hold up steps"),
        ("requests a second, at most", f"{1 / costs.request(demand.rows, demand.prompt, demand.new):.2f}", "from the above"),
    ]  # fmt: skip


def _fleet_rows(placed: "Fleet", anywhere: "Fleet") -> list[tuple[str, str, str]]:
    figures = (
        ("replicas", lambda fleet: f"{fleet.replicas:,}"),
        ("requests that find their adapter in memory", lambda fleet: f"{fleet.hits:.1%}"),
        ("loads a second, of all", lambda fleet: f"{fleet.loads:,.1f}"),
        ("a replica's time, steps", lambda fleet: f"{fleet.steps_busy:.0%}"),
        ("a replica's time, loads beside them", lambda fleet: f"{fleet.loads_busy:.0%}"),
    )
    return [(name, shown(placed), shown(anywhere)) for name, shown in figures]


def _hub_rows(sizing: "Sizing", demand: "Demand", costs: "Costs", source: str) -> list[tuple[str, str, str]]:
    return [
        ("disk for all adapters", bytes_text(sizing.hub_disk), f"{bytes_text(costs.file_bytes)} each"),
        ("of what it can send, if all loads came from it", f"{sizing.hub_share:.1%}", source),
        ("filling all memories anew", f"{sizing.fill_s:,.1f} s", source),
        ("look-ups a second, at most", f"{demand.rate:g}", "one a request; each name is trusted for a second"),
    ]
