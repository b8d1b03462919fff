"""`fedblocks simulate`: a multi-company run on this machine, a baseline, or a study of utility."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..errors import InputError, ProtocolError
from .options import Track
from .runs import RunsDir, shortest

if TYPE_CHECKING:
    from ..settings import SimulationSettings

people = Console(stderr=True)
_FEW = 20  # companies whose figures a summary names one by one
Baseline = Literal["fedavg", "fedprox", "fedadam", "central", "alone"]


def simulate(
    preset: Annotated[str | None, typer.Argument(help="a preset's name or a TOML file")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="key=value over the preset; repeatable")
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="go on with an interrupted run")] = None,
    with_reference: Annotated[
        bool, typer.Option("--with-reference", help="also run it without noise, to see what privacy costs")
    ] = False,
    with_controls: Annotated[
        bool, typer.Option("--with-controls", help="also one network end to end, of L and of L/B layers")
    ] = False,
    baseline: Annotated[
        Baseline | None,
        typer.Option(
            help="fedavg, fedprox or fedadam: another rule of the federation; central: all examples in one place; "
            "alone: each company its own"
        ),
    ] = None,
    protocol: Annotated[
        Literal["on", "off"] | None,
        typer.Option(
            help="off, for studies of utility alone: the same bits without keys, masks, messages and ledgers; no "
            "guarantee is accounted"
        ),
    ] = None,
    engine: Annotated[
        Literal["threads", "processes", "ray"],
        typer.Option(help="where companies compute; the result is the same"),
    ] = "threads",
    workers: Annotated[
        int | None, typer.Option(help="companies computed at once, a core each; none: as the preset has it")
    ] = None,
    over: Annotated[
        Literal["grid", "grpc"],
        typer.Option(
            "--transport", help="how messages travel: function calls, or gRPC with mutual TLS on loopback"
        ),
    ] = "grid",
    track: Track = None,
    runs_dir: RunsDir = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object on stdout")] = False,
) -> None:
    """Simulate a multi-company run on this machine."""
    if (preset is None) == (resume is None):
        raise InputError("preset", preset, "give either a preset or --resume RUN")
    kept = {"--set": overrides[0] if overrides else None, "--baseline": baseline, "--protocol": protocol}
    for option, value in kept.items():
        if resume is not None and value is not None:
            raise InputError(option, value, "a resumed run keeps its own settings")
    if baseline in ("central", "alone"):
        beside = {
            "--with-reference": with_reference, "--with-controls": with_controls, "--transport": over != "grid",
            "--engine": engine != "threads", "--workers": workers is not None, "--protocol": protocol == "on",
        }  # fmt: skip
        for option, given in beside.items():
            if given:
                raise InputError(
                    option, "given", f"has no meaning with --baseline {baseline}: nothing is federated"
                )
    from ..experiments.simulation.engines import check_engine
    from ..experiments.tracking import check_trackers
    from ..server.run_folder import RunFolder
    from ..settings import read_simulation
    from .progress import baseline_with_progress, continue_with_progress, prepare_with_progress

    found = None if resume is None else RunFolder.existing(resume)
    if found is None:
        settings = _settings(str(preset), overrides or [], baseline, protocol)
    else:
        settings = read_simulation(found.path)
    check_trackers(track or ())
    check_engine(settings, engine, workers, over)
    run = found or prepare_with_progress(settings, runs_dir, people)
    if baseline in ("central", "alone"):
        result = baseline_with_progress(run, people, baseline=baseline, track=track or ())
    else:
        result = continue_with_progress(
            run,
            people,
            with_reference=with_reference,
            with_controls=with_controls,
            transport=over,
            engine=engine,
            workers=workers,
            track=track or (),
        )
        if baseline is not None:
            result = {"baseline": baseline} | result
            run.write_json("result.json", result)
    if as_json:
        print(json.dumps(result))
    if result["rounds_done"] == 0:
        raise ProtocolError("no_round_done", f"every round failed: {readable(result['rounds_failed'])}")
    if as_json:
        return
    table = Table(title=f"Run {run.path.name}", show_header=False)
    for key, value in readable(result):
        table.add_row(key, value)
    people.print(table)
    following = "report" if result.get("protocol") == "off" else "audit"
    people.print(f"Next: fedblocks {following} {escape(shortest(run.path))}")


def _settings(
    preset: str, overrides: list[str], baseline: Baseline | None, protocol: str | None
) -> SimulationSettings:
    from ..experiments.baselines.rules import baseline_settings
    from ..experiments.presets import load_settings

    more = [] if protocol is None else [f"protocol={protocol}"]
    if baseline is not None:
        return baseline_settings(preset, baseline, [*overrides, *more])
    return load_settings(preset, [*overrides, *more])


def readable(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Keys and values as text; of figures for more than a few companies, the least, the middle and the largest."""

    def text(value: Any) -> str:
        if value is None:
            return "infinite"  # the one figure that JSON has no number for
        if isinstance(value, float):
            return f"{value:.4g}"
        if isinstance(value, list):
            return ", ".join(text(v) for v in value)
        if (
            isinstance(value, dict)
            and len(value) > _FEW
            and all(isinstance(v, float) for v in value.values())
        ):
            found = sorted(value.values())
            return f"{text(found[0])} to {text(found[-1])}, median {text(median(found))}, of {len(found):,}"
        if isinstance(value, dict):
            return ", ".join(f"{k} {text(v)}" for k, v in value.items())
        return str(value)

    return [(key, text(value)) for key, value in result.items()]
