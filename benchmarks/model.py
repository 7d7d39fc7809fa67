"""Compares speed and memory of whole models with the other implementations.

    python benchmarks/model.py

It compares this package with transformers, timm, torchvision and OpenVINO: images per second, peak memory and shares of
the machine's limits, for inference and training steps, eager and compiled in several ways, in fp32 and bf16. It first
checks that this package and transformers give the same logits with the same weights; otherwise it measures nothing.
Progress goes to stderr, the tables to stdout. README.md explains the method.
"""

import itertools
import math
import statistics
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import report
import torch
import typer
from cases import (
    CASES,
    CASES_WHEN_NAMED,
    EXECUTIONS,
    EXECUTIONS_WHEN_NAMED,
    LIBRARIES,
    MODES,
    ON_GPUS_ONLY,
    OPENVINO,
    OURS,
    PEERS,
    PRECISIONS,
    TOLERANCE,
    Setting,
    disagreement,
    libraries_for,
)
from limits import Limits, bytes_moved, measure_limits, operations, seconds_at_limits
from memory import ALLOCATOR, MIB, Memory
from terminal import progress, select
from worker import Timing, Worker

LEAST_SECONDS = 0.3
"""Approximate length of a measurement, which repeats the step; timers and the scheduler then matter little."""

LEAST_CPU_SHARE = 0.9
"""Below this share of processor time, other processes influence a measurement as much as the library."""

BEST = "best"
"""Stands for the case's batch size that fills the device."""


class Device(StrEnum):
    """Where to measure."""

    CPU = "cpu"
    CUDA = "cuda"


def main(
    device: Annotated[Device, typer.Option(help="Where to measure.")] = Device.CPU,
    cases: Annotated[
        str,
        typer.Option(
            help=f"Cases, separated by commas: {', '.join(CASES)}; {', '.join(CASES_WHEN_NAMED)} only when named."
        ),
    ] = "",
    libraries: Annotated[str, typer.Option(help=f"Of {', '.join(LIBRARIES)}.")] = "",
    modes: Annotated[str, typer.Option(help=f"Of {', '.join(MODES)}.")] = "",
    precisions: Annotated[str, typer.Option(help=f"Of {', '.join(PRECISIONS)}.")] = "",
    executions: Annotated[
        str, typer.Option(help=f"Of {', '.join(EXECUTIONS)}; {', '.join(EXECUTIONS_WHEN_NAMED)} only when named.")
    ] = "",
    memory_too: Annotated[
        bool, typer.Option("--memory/--no-memory", help="Whether to measure peak memory, too.")
    ] = True,
    go_on: Annotated[
        bool, typer.Option("--go-on", help="Keep the rows that the file already has, and measure the missing ones.")
    ] = False,
    rounds: Annotated[int, typer.Option(min=1, help="Measurements of each library, taken in turns.")] = 7,
    together: Annotated[
        int, typer.Option(min=1, help="Number of processes that prepare measurements at the same time.")
    ] = 1,
    batch_sizes: Annotated[
        str,
        typer.Option(help=f"Images of a step, numbers or {BEST}; default: all of the case."),
    ] = "",
    output: Annotated[
        Path | None, typer.Option(help="Write to this path with the suffixes .csv and .md, not to benchmarks/results.")
    ] = None,
) -> None:
    """Compares swinv2 with transformers, timm, torchvision and OpenVINO: images per second and peak memory."""
    for_device = [name for name, case in CASES.items() if (device.value, MODES[0]) in case.batch_sizes]
    selected = select("cases", cases, for_device, CASES_WHEN_NAMED)
    names = _installed(select("libraries", libraries, LIBRARIES))
    chosen_modes = select("modes", modes, MODES)
    chosen_precisions = select("precisions", precisions, PRECISIONS)
    possible = [name for name in EXECUTIONS if device == Device.CUDA or name not in ON_GPUS_ONLY]
    chosen_executions = select("executions", executions, possible, EXECUTIONS_WHEN_NAMED)
    if device == Device.CUDA and not torch.cuda.is_available():
        raise typer.BadParameter("torch finds no CUDA device here", param_hint="--device")
    # Results of some rows must not replace the complete results.
    whole = not (cases or libraries or modes or precisions or executions or batch_sizes) and memory_too
    stem = output or report.default_stem("model" if whole or go_on else "model-part", device)
    facts = report.describe_run(device)
    table = stem.with_name(stem.name + ".csv")
    rows = report.read_csv(table, facts) if go_on and table.is_file() else []
    wanted = [
        Setting(*key, device.value, size)
        for key in itertools.product(selected, chosen_modes, chosen_precisions, chosen_executions)
        for size in _sizes(batch_sizes, CASES[key[0]].batch_sizes[device, key[1]])
    ]
    wanted = [setting for setting in wanted if libraries_for(setting, names)]
    missing = [
        setting
        for setting in wanted
        if not {row["library"] for row in rows if _is_of(row, setting) and not row["note"]}
        >= set(libraries_for(setting, names))
    ]
    # Settings that failed, or that lack a library, are measured again.
    rows = [row for row in rows if not any(_is_of(row, setting) for setting in missing)]
    for name in dict.fromkeys(setting.case for setting in missing):
        progress(f"{name}: comparing logits with transformers")
        difference = disagreement(CASES[name], device)
        if not difference <= TOLERANCE:
            progress(
                f"{name}: the logits differ from transformers' by {difference:.1e} of the distance between two "
                f"images' logits; at most {TOLERANCE:.0e} is accepted. Nothing was measured."
            )
            raise typer.Exit(1)
    limits_of = {name: measure_limits(device, name) for name in dict.fromkeys(each.precision for each in missing)}
    for name, limits in limits_of.items():
        progress(f"{name}: {limits}")
    if device == Device.CUDA:
        # The libraries' processes need the memory that this process's allocator holds.
        torch.cuda.empty_cache()

    tables = _tables(rows, names, memory_too) if rows else []
    for setting, measured in measure(missing, names, rounds, memory_too, together):
        rows += [{**row, **_shares(setting, row, limits_of[setting.precision]), **facts} for row in measured]
        if setting.execution in ON_GPUS_ONLY:
            _compare([row for row in rows if _is_of(row, setting)], [row for row in rows if _is_compiled(row, setting)])
        rows.sort(key=_place)
        # Written after every row, so that results stay if a later row fails.
        report.write_csv(table, rows)
        tables = _tables(rows, names, memory_too)
        title = f"Whole models on {facts['machine']}"
        report.write_markdown(stem.with_name(stem.name + ".md"), title, tables, report.facts_of(rows, facts))
    print("\n\n".join(tables))
    for row in rows:
        if row["cpu_share"] != "" and float(row["cpu_share"]) < LEAST_CPU_SHARE:
            progress(
                f"{row['library']}, {row['case']} {row['mode']} {row['precision']} {row['execution']}, batch "
                f"{row['batch_size']}: got {row['cpu_share']:.0%} of its {row['threads']} threads' processor time. "
                "Either other processes run here, so this speed is not reliable, or the library uses one thread a lot."
            )
    if any(row["library"] == OURS and row["note"] for row in rows):
        raise typer.Exit(1)


def _is_of(row: report.Row, setting: Setting) -> bool:
    return all(row[name] == value for name, value in asdict(setting).items())


def _is_compiled(row: report.Row, setting: Setting) -> bool:
    return _is_of(row, replace(setting, execution="compiled"))


def _place(row: report.Row) -> tuple[int, ...]:
    """The sort key of a row."""
    orders = {"case": list(CASES), "mode": list(MODES), "precision": list(PRECISIONS), "execution": list(EXECUTIONS)}
    return *(order.index(str(row[name])) for name, order in orders.items()), -int(row["batch_size"])


def measure(
    settings: list[Setting], libraries: list[str], rounds: int, memory_too: bool, together: int
) -> Iterator[tuple[Setting, list[report.Row]]]:
    """Measures every library at every setting, one setting after the other.

    Args:
        settings: What to measure.
        libraries: Names in `cases.LIBRARIES`.
        rounds: Measurements of each library.
        memory_too: Whether to measure memory.
        together: Number of processes that prepare at the same time. With more than one, the processes for all settings
            of a mode prepare before any is measured, those for one image after the rest: compiling takes longer than
            measuring, and uses one core in each process.

    Yields:
        A setting and a result for each library. A library that fails (not installed, out of memory, a compiler's
        error) has a note instead of numbers; the rest is still measured.
    """
    groups = [[setting] for setting in settings]
    if together > 1:
        kinds = itertools.product((False, True), MODES)
        groups = [[each for each in settings if (each.batch_size == 1, each.mode) == kind] for kind in kinds]
    for group in filter(None, groups):
        prepared: dict[Setting, dict[str, Prepared]] = {setting: {} for setting in group}
        try:
            with ThreadPoolExecutor(together) as pool:
                wanted = [(setting, library) for setting in group for library in libraries_for(setting, libraries)]
                found = pool.map(lambda each: prepare(*each, memory_too), wanted)
                for (setting, library), each in zip(wanted, found, strict=True):
                    prepared[setting][library] = each
            for setting in group:
                yield setting, _measure_row(setting, prepared[setting], rounds, memory_too)
        finally:
            for each in (each for of_setting in prepared.values() for each in of_setting.values()):
                each.close()


@dataclass
class Prepared:
    """A library's process at one setting, before it is measured.

    Attributes:
        worker: The process; None if it failed.
        memory: Memory of a step, if it is already known.
        note: The reason if it failed.
    """

    worker: Worker | None = None
    memory: Memory | None = None
    note: str = ""

    def close(self) -> None:
        """Ends the process."""
        if self.worker is not None:
            self.worker.close()
            self.worker = None


def prepare(setting: Setting, library: str, memory_too: bool) -> Prepared:
    """Starts a library's process. On a CPU, another process measures its memory."""
    progress(f"{setting}: preparing {library}")
    prepared = Prepared()
    try:
        # OpenVINO's memory is not in torch tensors.
        if memory_too and setting.device == "cpu" and library != OPENVINO:
            prepared.memory = _cpu_memory(library, setting)
        prepared.worker = Worker(library, setting)
    # A library may fail in any way, and the failure is a result.
    except RuntimeError as error:
        prepared.note = _note(library, error)
    return prepared


def _measure_row(setting: Setting, prepared: dict[str, Prepared], rounds: int, memory_too: bool) -> list[report.Row]:
    workers = {name: each.worker for name, each in prepared.items() if each.worker is not None}
    needs = {name: each.memory for name, each in prepared.items() if each.memory is not None}
    notes = {name: each.note for name, each in prepared.items() if each.note}
    if memory_too and setting.device == "cuda" and setting.execution not in ON_GPUS_ONLY:
        for name, worker in workers.items():
            try:
                needs[name] = worker.memory()
            except RuntimeError as error:
                notes[name] = _note(name, error)
    alive = {name: worker for name, worker in workers.items() if name not in notes}
    progress(f"{setting}: timing {', '.join(alive)}")
    timings = time_in_turns(alive, rounds, notes)
    for each in prepared.values():
        each.close()
    parameters = {name: worker.parameters for name, worker in workers.items()}
    results = [
        _result(
            setting, name, rounds, parameters.get(name), timings.get(name, []), needs.get(name), notes.get(name, "")
        )
        for name in prepared
    ]
    _compare(results, results)
    return results


def _cpu_memory(library: str, setting: Setting) -> Memory:
    worker = Worker(library, setting, ALLOCATOR)
    try:
        return worker.memory()
    finally:
        worker.close()


def time_in_turns(workers: dict[str, Worker], rounds: int, notes: dict[str, str]) -> dict[str, list[Timing]]:
    """Times libraries in turns, so that a slow minute of the machine affects all of them.

    Args:
        workers: Processes by name; all except one wait.
        rounds: Measurements of each library. Each round begins with another library.
        notes: Gets a note for each library that fails; the rest is still timed.

    Returns:
        A measurement for each round, for each library that did not fail.
    """
    timings: dict[str, list[Timing]] = {name: [] for name in workers}
    repeats: dict[str, int] = {}
    for turn in range(-1, rounds):
        names = list(timings)
        first = turn % max(len(names), 1)
        for name in names[first:] + names[:first]:
            try:
                timing = workers[name].time(repeats.get(name, 1))
            except RuntimeError as error:
                notes[name] = _note(name, error)
                del timings[name]
                continue
            if name in repeats:
                timings[name].append(timing)
            else:
                repeats[name] = max(1, round(LEAST_SECONDS / timing.seconds))
    return timings


def _note(library: str, error: RuntimeError) -> str:
    progress(f"{library} failed: {error}")
    return (str(error).splitlines() or ["no reason given"])[0][:200]


def _result(
    setting: Setting,
    library: str,
    rounds: int,
    parameters: int | None,
    timings: list[Timing],
    need: Memory | None,
    note: str,
) -> report.Row:
    """One line of the CSV; README.md explains the columns. Fields without a measurement are empty."""
    seconds = [timing.seconds for timing in timings]
    median = statistics.median(seconds) if seconds else math.nan
    # On a GPU the share means nothing: it depends on the driver whether waiting takes processor time.
    threads = torch.get_num_threads()
    on_cpu = bool(timings) and setting.device == "cpu"
    share = statistics.median(t.cpu_seconds / t.seconds / threads for t in timings) if on_cpu else math.nan
    return {
        **asdict(setting),
        "library": library,
        "parameters": _field(parameters),
        "images_per_second": _field(setting.batch_size / median),
        "step_milliseconds": _field(1e3 * median),
        "fastest_milliseconds": _field(1e3 * min(seconds) if seconds else math.nan),
        "slowest_milliseconds": _field(1e3 * max(seconds) if seconds else math.nan),
        "cpu_share": _field(share),
        "rounds": rounds,
        "peak_mib": _field(need.peak / MIB if need else math.nan),
        "held_mib": _field(need.held / MIB if need else math.nan),
        "rise_mib": _field(need.rise / MIB if need else math.nan),
        "rise_mib_per_image": _field(need.rise / MIB / setting.batch_size if need else math.nan),
        "note": note,
    }


def _shares(setting: Setting, row: report.Row, limits: Limits) -> report.Row:
    """The machine's limits, and the shares of them that a result reaches. Training has no share of bandwidth, because
    its traffic depends on the activations that are saved."""
    known = row["step_milliseconds"] != ""
    seconds = float(row["step_milliseconds"]) / 1e3 if known else math.nan
    infers = setting.mode == "inference"
    return {
        "share_of_products": _field(operations(setting) / seconds / limits.operations_per_second),
        "share_of_copies": _field(bytes_moved(setting) / seconds / limits.bytes_per_second if infers else math.nan),
        "share_of_limits": _field(seconds_at_limits(setting, limits) / seconds if infers else math.nan),
        "operations_per_second": _field(limits.operations_per_second),
        "bytes_per_second": _field(limits.bytes_per_second),
    }


def _field(value: float | None) -> float | int | str:
    if value is None or math.isnan(value):
        return ""
    return value if isinstance(value, int) else float(f"{value:.5g}")


def _compare(results: list[report.Row], others: list[report.Row]) -> None:
    """Adds to each result its ratios to the fastest peer, to the one with the least memory, and to single peers."""
    for measure, best, title, single in (
        ("images_per_second", max, "fastest_peer", PEERS),
        ("peak_mib", min, "leanest_peer", ("transformers",)),
        ("rise_mib", min, "least_rise_of_peers", ("transformers",)),
    ):
        for name, group in {title: PEERS, **{peer: (peer,) for peer in single}}.items():
            values = [row[measure] for row in others if row["library"] in group and row[measure] != ""]
            for row in results:
                known = values and row[measure] != ""
                row[f"{measure}_over_{name}"] = _field(row[measure] / best(values)) if known else ""


def _tables(rows: list[report.Row], libraries: list[str], memory_too: bool) -> list[str]:
    """The results as two tables, one line for each setting and one column for each library."""

    def build(caption: str, measure: str, ratios: dict[str, str], form: Callable[[report.Row], str]) -> str:
        lines = []
        keys = ("case", "mode", "precision", "execution", "batch_size")
        for key, group in itertools.groupby(rows, lambda row: tuple(str(row[name]) for name in keys)):
            by_library = {row["library"]: row for row in group}
            cells = [_cell(by_library.get(library), form) for library in libraries]
            ours = by_library.get(OURS, {})
            lines.append([*key, *cells, *(f"{ours[r]:.2f}" if ours.get(r, "") != "" else "-" for r in ratios.values())])
        return report.table(caption, ["case", "mode", "precision", "execution", "batch", *libraries, *ratios], lines)

    def _cell(row: report.Row | None, form: Callable[[report.Row], str]) -> str:
        return "" if row is None else "failed" if row["note"] else form(row)

    speed = build(
        f"Images per second (median of {rows[0]['rounds']} rounds); more is better. Columns with /: {OURS} divided by "
        f"the named library. Share of products: operations per second of {OURS}, divided by those of one large "
        f"product. Share of limits: the time of a fused pass at the machine's limits, divided by that of {OURS}. "
        "benchmarks/README.md explains more.",
        "images_per_second",
        {
            "/ fastest peer": "images_per_second_over_fastest_peer",
            **{f"/ {name}": f"images_per_second_over_{name}" for name in libraries if name in PEERS},
            "share of products": "share_of_products",
            "share of limits": "share_of_limits",
        },
        lambda row: f"{row['images_per_second']:.4g}",
    )
    if not memory_too:
        return [speed]
    weight = build(
        "Peak memory of a step in MiB, all images and weights included (in brackets: the rise during the step alone); "
        "less is better.",
        "peak_mib",
        {
            "/ leanest peer": "peak_mib_over_leanest_peer",
            "/ transformers": "peak_mib_over_transformers",
            "rise / least of peers": "rise_mib_over_least_rise_of_peers",
        },
        lambda row: "" if row["peak_mib"] == "" else f"{row['peak_mib']:.0f} ({row['rise_mib']:.0f})",
    )
    return [speed, weight]


def _installed(libraries: list[str]) -> list[str]:
    """The libraries, without OpenVINO if it is not installed."""
    if OPENVINO not in libraries or find_spec(OPENVINO) is not None:
        return libraries
    progress("openvino is not installed, so it is not measured; `pip install -e .[peers]` installs it.")
    return [name for name in libraries if name != OPENVINO]


def _sizes(given: str, of_case: tuple[int, ...]) -> list[int]:
    """Reads numbers of images; no numbers: all batch sizes of the case. The first of these is `BEST`."""
    names = [name.strip() for name in given.split(",") if name.strip()]
    for name in names:
        if name != BEST and not (name.isdecimal() and int(name)):
            raise typer.BadParameter(f"{name!r} is neither a number of images nor {BEST}", param_hint="--batch-sizes")
    return list(dict.fromkeys(of_case[0] if name == BEST else int(name) for name in names)) or list(of_case)


if __name__ == "__main__":
    typer.run(main)
