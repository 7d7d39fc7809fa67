"""How fast whole models run and how much memory they need, beside the other implementations.

    python benchmarks/model.py

compares this package with transformers, timm and torchvision: images per second and peak memory, inference and
training step, eager and compiled, fp32 and bf16. It first checks that this package and transformers give the same
logits with the same weights, and measures nothing if they do not. Progress goes to stderr, the tables to stdout.
README.md says how it measures.
"""

import itertools
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import report
import torch
import typer
from cases import CASES, EXECUTIONS, LIBRARIES, MODES, ON_GPUS_ONLY, OURS, PRECISIONS, Setting, disagreement
from memory import ALLOCATOR, MIB, Memory
from worker import Timing, Worker

TOLERANCE = 1e-4
"""Largest disagreement with transformers at which speeds are worth comparing; the tests are far stricter."""

LEAST_SECONDS = 0.3
"""A measurement repeats the step until it has lasted about as long: timers and the scheduler then weigh little."""

LEAST_CPU_SHARE = 0.9
"""Below this share of the processor a measurement says as much about the other processes as about the library."""


class Device(StrEnum):
    """Where to measure."""

    CPU = "cpu"
    CUDA = "cuda"


def main(
    device: Annotated[Device, typer.Option(help="Where to measure.")] = Device.CPU,
    cases: Annotated[str, typer.Option(help=f"Sizes, separated by commas: {', '.join(CASES)}.")] = "",
    libraries: Annotated[str, typer.Option(help=f"Of {', '.join(LIBRARIES)}.")] = "",
    modes: Annotated[str, typer.Option(help=f"Of {', '.join(MODES)}.")] = "",
    precisions: Annotated[str, typer.Option(help=f"Of {', '.join(PRECISIONS)}.")] = "",
    executions: Annotated[str, typer.Option(help=f"Of {', '.join(EXECUTIONS)}.")] = "",
    memory_too: Annotated[
        bool, typer.Option("--memory/--no-memory", help="Whether to measure peak memory beside speed.")
    ] = True,
    go_on: Annotated[
        bool, typer.Option("--go-on", help="Keep the rows that the file has already, and measure the missing ones.")
    ] = False,
    rounds: Annotated[int, typer.Option(min=1, help="Measurements of each library, taken in turns.")] = 7,
    batch_size: Annotated[int, typer.Option(min=0, help="Images in a step; 0 takes each case's own.")] = 0,
    output: Annotated[
        Path | None, typer.Option(help="Write to this path with the endings .csv and .md, not to benchmarks/results.")
    ] = None,
) -> None:
    """Compares swinv2 with transformers, timm and torchvision: images per second and peak memory."""
    for_device = [name for name, case in CASES.items() if (device.value, MODES[0]) in case.batch_sizes]
    selected = _select("cases", cases, for_device, [name for name in for_device if not CASES[name].optional])
    names = _select("libraries", libraries, LIBRARIES)
    chosen_modes = _select("modes", modes, MODES)
    chosen_precisions = _select("precisions", precisions, PRECISIONS)
    possible = [name for name in EXECUTIONS if device == Device.CUDA or name not in ON_GPUS_ONLY]
    chosen_executions = _select("executions", executions, possible)
    if device == Device.CUDA and not torch.cuda.is_available():
        raise typer.BadParameter("torch finds no CUDA device here", param_hint="--device")
    # A part must not take the place of the whole.
    whole = not (cases or libraries or modes or precisions or executions or batch_size) and memory_too
    stem = output or report.default_stem("model" if whole or go_on else "model-part", device)
    facts = report.describe_run(device)
    table = stem.with_name(stem.name + ".csv")
    rows = report.read_csv(table, facts) if go_on and table.is_file() else []
    wanted = [
        Setting(*key, device.value, batch_size or CASES[key[0]].batch_sizes[device, key[1]])
        for key in itertools.product(selected, chosen_modes, chosen_precisions, chosen_executions)
    ]
    missing = [
        setting
        for setting in wanted
        if not {row["library"] for row in rows if _is_of(row, setting) and not row["note"]} >= set(names)
    ]
    # What failed, or lacks a library, is measured anew.
    rows = [row for row in rows if not any(_is_of(row, setting) for setting in missing)]
    for name in dict.fromkeys(setting.case for setting in missing):
        _progress(f"{name}: comparing logits with transformers")
        difference = disagreement(CASES[name], device)
        if not difference <= TOLERANCE:
            _progress(
                f"{name}: the logits differ from transformers' by {difference:.1e} of the distance between two "
                f"images' logits; at most {TOLERANCE:.0e} is accepted. Nothing was measured."
            )
            raise typer.Exit(1)

    tables = _tables(rows, names, memory_too) if rows else []
    for setting in missing:
        rows += [{**row, **facts} for row in measure_row(setting, names, rounds, memory_too)]
        rows.sort(key=_place)
        # After every row: what has been measured stays, should a later one fail.
        report.write_csv(table, rows)
        tables = _tables(rows, names, memory_too)
        title = f"Whole models on {facts['machine']}"
        report.write_markdown(stem.with_name(stem.name + ".md"), title, tables, report.facts_of(rows, facts))
    print("\n\n".join(tables))
    shares = [float(row["cpu_share"]) for row in rows if row["cpu_share"] != ""]
    if shares and min(shares) < LEAST_CPU_SHARE:
        _progress(
            f"Do not trust these speeds: a library got {min(shares):.0%} of its {facts['threads']} threads' processor "
            "time only. Other processes run here; the memory is not affected."
        )
    if any(row["library"] == OURS and row["note"] for row in rows):
        raise typer.Exit(1)


def _is_of(row: report.Row, setting: Setting) -> bool:
    return all(row[name] == value for name, value in asdict(setting).items())


def _place(row: report.Row) -> tuple[int, ...]:
    """Where a row stands among others."""
    orders = {"case": list(CASES), "mode": list(MODES), "precision": list(PRECISIONS), "execution": list(EXECUTIONS)}
    return tuple(order.index(str(row[name])) for name, order in orders.items())


def measure_row(setting: Setting, libraries: list[str], rounds: int, memory_too: bool) -> list[report.Row]:
    """Measures every library at one setting.

    Args:
        setting: What to measure.
        libraries: Names in `cases.LIBRARIES`.
        rounds: Measurements of each library.
        memory_too: Whether to measure memory.

    Returns:
        A result for each library. One that fails (no such library, out of memory, a compiler's error) has a note
        instead of numbers, and the others are measured all the same.
    """
    workers: dict[str, Worker] = {}
    needs: dict[str, Memory] = {}
    notes: dict[str, str] = {}
    timings: dict[str, list[Timing]] = {}
    try:
        for library in libraries:
            _progress(f"{setting}: preparing {library}")
            try:
                if memory_too and setting.device == "cpu":
                    needs[library] = _cpu_memory(library, setting)
                workers[library] = Worker(library, setting)
                if memory_too and setting.device == "cuda":
                    needs[library] = workers[library].memory()
            # A peer may fail in any way, and its failure is a result.
            except RuntimeError as error:
                notes[library] = _note(library, error)
        _progress(f"{setting}: timing {', '.join(workers)}")
        timings = time_in_turns(workers, rounds, notes)
    finally:
        for worker in workers.values():
            worker.close()
    parameters = {name: worker.parameters for name, worker in workers.items()}
    results = [
        _result(
            setting, name, rounds, parameters.get(name), timings.get(name, []), needs.get(name), notes.get(name, "")
        )
        for name in libraries
    ]
    _compare(results)
    return results


def _cpu_memory(library: str, setting: Setting) -> Memory:
    worker = Worker(library, setting, ALLOCATOR)
    try:
        return worker.memory()
    finally:
        worker.close()


def time_in_turns(workers: dict[str, Worker], rounds: int, notes: dict[str, str]) -> dict[str, list[Timing]]:
    """Times libraries in turns, so that a slow minute of the machine falls on all of them.

    Args:
        workers: Processes by name; all but one of them wait.
        rounds: Measurements of each. Each round begins with another one: none always follows the same.
        notes: Gets a note for each library that fails; the others are timed all the same.

    Returns:
        A measurement for each round, of each library that did not fail.
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
    _progress(f"{library} failed: {error}")
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
    """One line of the CSV; README.md explains the columns. What was not measured is an empty field."""
    seconds = [timing.seconds for timing in timings]
    median = statistics.median(seconds) if seconds else math.nan
    # Waiting for a GPU takes processor time or not, as the driver pleases: the share means nothing there.
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


def _field(value: float | None) -> float | int | str:
    if value is None or math.isnan(value):
        return ""
    return value if isinstance(value, int) else float(f"{value:.5g}")


def _compare(results: list[report.Row]) -> None:
    """Adds to each result what it is of the fastest and the leanest peer, and of transformers."""
    peers = [row for row in results if row["library"] != OURS]
    theirs = [row for row in results if row["library"] == "transformers"]
    for measure, best, title in (
        ("images_per_second", max, "fastest_peer"),
        ("peak_mib", min, "leanest_peer"),
        ("rise_mib", min, "least_rise_of_peers"),
    ):
        for group, name in ((peers, title), (theirs, "transformers")):
            values = [row[measure] for row in group if row[measure] != ""]
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
            cells = ["failed" if row["note"] else form(row) for row in by_library.values()]
            ours = by_library.get(OURS, {})
            lines.append([*key, *cells, *(f"{ours[r]:.2f}" if ours.get(r, "") != "" else "-" for r in ratios.values())])
        return report.table(caption, ["case", "mode", "precision", "execution", "batch", *libraries, *ratios], lines)

    speed = build(
        f"Images per second (median of {rows[0]['rounds']} rounds); more is better.",
        "images_per_second",
        {
            f"{OURS} / fastest peer": "images_per_second_over_fastest_peer",
            f"{OURS} / transformers": "images_per_second_over_transformers",
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
            f"{OURS} / leanest peer": "peak_mib_over_leanest_peer",
            f"{OURS} / transformers": "peak_mib_over_transformers",
            "rise / least of peers": "rise_mib_over_least_rise_of_peers",
        },
        lambda row: f"{row['peak_mib']:.0f} ({row['rise_mib']:.0f})",
    )
    return [speed, weight]


def _select(option: str, given: str, known: Iterable[str], default: list[str] | None = None) -> list[str]:
    """Reads names separated by commas; none means the default, or all that are known."""
    names = [name.strip() for name in given.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise typer.BadParameter(f"there is no {name!r}; choose from {', '.join(known)}", param_hint=f"--{option}")
    return names or default or list(known)


STARTED = time.perf_counter()


def _progress(message: str) -> None:
    print(f"[{time.perf_counter() - STARTED:6.0f} s] {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    typer.run(main)
