"""`fedblocks bench ...`: every measurement that README and docs quote, against its alternative in one run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ..errors import InputError

bench = typer.Typer(no_args_is_help=True, help="Measure against the alternative, side by side in one run.")
people = Console(stderr=True)
FIGURES = (".png", ".svg", ".pdf")

AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object on stdout")]
Seeds = Annotated[int, typer.Option(min=1, help="runs with different seeds; mean and deviation are reported")]


def show(result: dict[str, Any], as_json: bool) -> None:
    """The result for a machine, or a line a key for a person."""
    if as_json:
        print(json.dumps(result))
        return
    for key, value in result.items():
        print(f"{key:40} {value:.4g}" if isinstance(value, float) else f"{key:40} {value}")


def _check_figure(figure: Path | None) -> None:
    if figure is not None and (figure.suffix not in FIGURES or not figure.absolute().parent.is_dir()):
        raise InputError("--figure", str(figure), f"expected {', '.join(FIGURES)} in a folder that exists")


def _say(line: str) -> None:
    people.print(line, highlight=False)


@bench.command("simulate")
def simulate(
    companies: Annotated[int, typer.Option(min=3)] = 20,
    rounds: Annotated[int, typer.Option(min=1)] = 10,
    repeats: Annotated[int, typer.Option(min=1)] = 3,
    as_json: AsJson = False,
) -> None:
    """The federated loop against the same arithmetic in a plain PyTorch loop."""
    from ..experiments.bench.simulate import measure

    show(measure(companies, rounds, repeats), as_json)


@bench.command("scale")
def scale(
    rounds: Annotated[int, typer.Option(min=3, help="of each simulation")] = 10,
    drawn_rounds: Annotated[int, typer.Option(min=3, help="of the one of 1,000 companies")] = 100,
    figure: Annotated[
        Path | None, typer.Option(help="also draw the time over the number of companies: .png, .svg or .pdf")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """A simulated round's time for 5 to 1,000 companies, its exponent, and the memory of 1,000; takes ten minutes."""
    from ..experiments.bench.scale import measure

    _check_figure(figure)
    result = measure(rounds, drawn_rounds, figure=figure, on_progress=_say)
    if as_json:
        show(result, as_json)
        return
    by_n = {key: value for key, value in result.items() if isinstance(value, dict)}
    table = Table("companies", *(key.replace("_", " ") for key in by_n))
    for n in result["seconds_per_round"]:
        table.add_row(f"{int(n):,}", *(f"{values[n]:.4g}" for values in by_n.values()))
    people.print(table)
    show({key: value for key, value in result.items() if key not in by_n}, as_json)


@bench.command("block-quality")
def block_quality(
    seeds: Seeds = 3,
    others: Annotated[
        bool, typer.Option("--others", help="also end to end at equal time, Forward-Forward, as published")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Classifiers of 12 layers in 3 blocks against end-to-end training, on digits and MNIST-5k."""
    from ..experiments.bench.block_quality import measure

    show(measure(seeds, others, on_progress=_say), as_json)


@bench.command("attack")
def attack(
    seeds: Seeds = 3,
    only: Annotated[list[str] | None, typer.Option("--only", help="a part; repeatable")] = None,
    as_json: AsJson = False,
) -> None:
    """The audit's attacks and tests on trained blocks of the presets, each beside its control."""
    from ..experiments.bench.attack import measure

    show(measure(seeds, only or [], on_progress=_say), as_json)


@bench.command("data")
def data(
    megabytes: Annotated[int, typer.Option(min=1, help="of the CSV that is read")] = 1000,
    repeats: Annotated[int, typer.Option(min=1)] = 3,
    as_json: AsJson = False,
) -> None:
    """Time and memory of reading a large CSV, against pandas' pyarrow engine."""
    from ..experiments.bench.data import measure

    show(measure(megabytes, repeats, on_progress=_say), as_json)


@bench.command("families")
def families(
    seeds: Seeds = 3,
    only: Annotated[list[str] | None, typer.Option("--only", help="a family; repeatable")] = None,
    as_json: AsJson = False,
) -> None:
    """Every other family against its end-to-end training at equal steps per layer."""
    from ..experiments.bench.families import measure

    show(measure(seeds, only or [], on_progress=_say), as_json)


@bench.command("choices")
def choices(
    seeds: Seeds = 3,
    only: Annotated[list[str] | None, typer.Option("--only", help="a preset; repeatable")] = None,
    as_json: AsJson = False,
) -> None:
    """The cut, noise, loss weight and features of a family's blocks, one choice changed at a time."""
    from ..experiments.bench.choices import BASES, measure

    unknown = [name for name in only or [] if name not in BASES]
    if unknown:
        raise InputError("--only", unknown[0], f"expected one of {', '.join(BASES)}")
    show(measure(seeds, tuple(only or BASES), on_progress=_say), as_json)


@bench.command("block-memory")
def block_memory(as_json: AsJson = False) -> None:
    """Memory of training one block against end-to-end training of the same network."""
    from ..experiments.bench.block_memory import measure

    show(measure(), as_json)


@bench.command("adapt")
def adapt(
    seeds: Seeds = 3,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", help="exactness, minilm, private, lora, prefix_cache or decoder; repeatable"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Adapting pretrained models in blocks: exactness, quality, memory, and what privacy leaves of the gain."""
    from ..experiments.bench.adapt import measure

    show(measure(seeds, only or [], on_progress=_say), as_json)


@bench.command("objective-memory")
def objective_memory(as_json: AsJson = False) -> None:
    """What each objective of a pretrained block keeps in memory, beside end-to-end training."""
    from ..experiments.bench.objective_memory import measure

    show(measure(), as_json)


@bench.command("large-model")
def large_model(as_json: AsJson = False) -> None:
    """A decoder of 1.2 billion parameters: converted, and one block of eight trained privately, by memory."""
    from ..experiments.bench.large_model import measure

    show(measure(on_progress=_say), as_json)


@bench.command("block-step")
def block_step(repeats: Annotated[int, typer.Option(min=3)] = 15, as_json: AsJson = False) -> None:
    """Time of one block's step against the same layers trained alone in plain PyTorch."""
    from ..experiments.bench.block_step import measure

    show(measure(repeats), as_json)


@bench.command("dp-step")
def dp_step(repeats: Annotated[int, typer.Option(min=3)] = 15, as_json: AsJson = False) -> None:
    """Time and memory of a private step against a plain one, and against Opacus."""
    from ..experiments.bench.dp_step import measure

    show(measure(repeats), as_json)


@bench.command("sensitivity")
def sensitivity(
    full: Annotated[
        bool, typer.Option("--full", help="more sizes, orders and part sizes; takes an hour")
    ] = False,
    threads: Annotated[int, typer.Option(min=1, help="also with 2 threads, and so on up to so many")] = 2,
    as_json: AsJson = False,
) -> None:
    """How far one example moves a clipped sum, in units of the clip; every account rests on at most 1."""
    from ..experiments.bench.sensitivity import measure

    result = measure(full, threads, on_progress=_say)
    show(
        result
        if as_json
        else {key: value for key, value in result.items() if key not in ("cases", "releases")},
        as_json,
    )


@bench.command("answer-time")
def answer_time(repeats: Annotated[int, typer.Option(min=3)] = 15, as_json: AsJson = False) -> None:
    """Whether the time of an answer counts examples with an attribute, with subnormals flushed and without."""
    from ..experiments.bench.answer_time import measure

    show(measure(repeats, on_progress=_say), as_json)


@bench.command("secure-step")
def secure_step(
    preset: Annotated[str, typer.Argument(help="a preset's name or a TOML file")] = "digits",
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="key=value over the preset; repeatable")
    ] = None,
    seeds: Seeds = 3,
    as_json: AsJson = False,
) -> None:
    """Accuracy under every company's own noise, under one noise shared by all, and of one pooled data set."""
    from ..experiments.bench.secure_step import measure

    show(measure(preset, tuple(overrides or []), seeds, on_progress=_say), as_json)


@bench.command("secagg")
def secagg(
    values: Annotated[int, typer.Option(min=1000, help="length of the vectors")] = 1_000_000,
    repeats: Annotated[int, typer.Option(min=3)] = 7,
    figure: Annotated[
        Path | None, typer.Option(help="also draw the times over the number of companies: .png, .svg or .pdf")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """A company's and the coordinator's time for a secure sum, against Flower's SecAgg+, for 10 to 100 companies."""
    from ..experiments.bench.secagg import measure

    _check_figure(figure)
    result = measure(values, repeats, figure=figure, on_progress=_say)
    show(result if as_json else {key: value for key, value in result.items() if key != "by_n"}, as_json)


@bench.command("trial")
def trial(
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    repeats: Annotated[int, typer.Option(min=3, help="of the start of the command line")] = 15,
    as_json: AsJson = False,
) -> None:
    """Three companies from keys to a finished run, all as processes: time, memory, and the command line's start."""
    from ..experiments.bench.trial import measure

    show(measure(rounds, repeats, on_progress=_say), as_json)


@bench.command("transport")
def transport(
    values: Annotated[int, typer.Option(min=1)] = 1_000_000,
    repeats: Annotated[int, typer.Option(min=3)] = 15,
    flower: Annotated[
        bool, typer.Option("--flower/--no-flower", help="also a SuperLink and SuperNodes; takes two minutes")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """One secure step over the data plane, beside a phase through Flower's own messages."""
    from ..experiments.bench.transport import measure

    show(measure(values, repeats, flower, on_progress=_say), as_json)
