"""What the benchmarks of trainings share: methods are compared on data sets with several seeds, one program at a time.

In: what to measure, and a function that measures one method. Out: rows of a CSV file, and tables. Every result is
written at once, and an interrupted benchmark resumes: what the file has is not measured again.
"""

import itertools
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import report
import typer
from terminal import progress

OURS = "swinv2"
"""Our command; the others need its processor time."""

SWINV2 = (sys.executable, "-c", "from swinv2.cli import app; app()")

Tables = Callable[[Sequence[report.Row]], list[str]]


class MethodError(RuntimeError):
    """A method failed; the message is the last line that it wrote."""


def measure_rows(
    wanted: Iterable[tuple[str, int, str]],
    measure: Callable[[str, int, str, Path, report.Row | None], report.Row],
    *,
    stem: Path,
    title: str,
    facts: Mapping[str, str],
    same_facts: Sequence[str],
    order: Sequence[Sequence[str]],
    tables: Tables,
    keep: Path | None,
) -> None:
    """Measures what the file of results does not have, writes it, and prints the tables.

    Args:
        wanted: Data set, seed and method of each row.
        measure: Measures a row: gets data set, seed, method, an empty folder, and the row of our command with this set
            and seed, if it is known.
        stem: The path of the files of results without the suffixes .csv and .md.
        title: Title of the Markdown file.
        facts: What is written about the run in each row.
        same_facts: Stored rows are kept if these facts are the same.
        order: The order of the data sets, and of the methods.
        tables: Makes the tables.
        keep: A folder in which logs and models stay; None to delete them.

    Raises:
        typer.Exit: A method failed.
    """
    table = stem.with_name(stem.name + ".csv")
    rows = report.read_csv(table, facts, same_facts) if table.is_file() else []
    # What failed is measured again.
    rows = [row for row in rows if not row["note"]]
    for name, seed, method in wanted:
        if find_row(rows, name, method, seed):
            continue
        progress(f"{name}, seed {seed}: {method}")
        with tempfile.TemporaryDirectory() as temporary:
            folder = keep / f"{name}_{method}_{seed}" if keep else Path(temporary)
            if keep:
                # Of a measurement that was interrupted.
                shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True, exist_ok=True)
            result = measure(name, seed, method, folder, find_row(rows, name, OURS, seed))
        progress(", ".join(f"{key} {value}" for key, value in result.items() if value != ""))
        rows.append({"set": name, "method": method, "seed": seed, **result, **facts})
        rows.sort(key=lambda row: [order[0].index(row["set"]), order[1].index(row["method"]), int(str(row["seed"]))])
        report.write_csv(table, rows)
        report.write_markdown(stem.with_name(stem.name + ".md"), title, tables(rows), report.facts_of(rows, facts))
    print("\n\n".join(tables(rows)))
    if any(row["note"] for row in rows):
        raise typer.Exit(1)


def known(ours: report.Row | None) -> report.Row:
    """Our command's result, which the others need."""
    if ours is None:
        raise MethodError(f"needs the processor time of {OURS} with this seed; measure that first, or give --seconds")
    return ours


def steps_of(ours: report.Row | None) -> int:
    """The steps of our command's training, for the same network with new weights."""
    steps = known(ours)["steps"]
    if steps == "":
        raise MethodError(f"needs the steps of {OURS}, which kept a linear probe and took none")
    return int(str(steps))


def run_program(command: Sequence[str], log: Path) -> tuple[str, float]:
    """Runs a program with one thread.

    Args:
        command: Program and arguments.
        log: A file for what it writes to stderr.

    Returns:
        What it wrote to stdout, and the processor time of it and of its processes, in seconds.

    Raises:
        MethodError: Its exit status is not 0.
    """
    before = _children_seconds()
    with log.open("w") as errors:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=errors, text=True, check=False, env=environment)
    if done.returncode:
        lines = log.read_text().strip().splitlines() or [f"exit status {done.returncode}"]
        raise MethodError(lines[-1].strip())
    return done.stdout, _children_seconds() - before


def _children_seconds() -> float:
    """Processor time of all processes that this one has started and that have ended, and of theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def find_row(rows: Sequence[report.Row], name: str, method: str, seed: int) -> report.Row | None:
    """The result of a method, if there is one without a note."""
    key = (name, method, seed)
    return next((row for row in rows if (row["set"], row["method"], row["seed"]) == key and not row["note"]), None)


def rounded(value: float | str) -> float | str:
    """Five digits of a number with a fraction; the rest as it is."""
    return float(f"{value:.5g}") if isinstance(value, float) else value


def table_of(
    rows: Sequence[report.Row], methods: Sequence[str], caption: str, cell: Callable[[list[float]], str], measure: str
) -> str:
    """A table with a line for each data set and a column for each method; "" without rows.

    Args:
        rows: The results, by data set.
        methods: All methods; those without a row have no column.
        caption: The caption.
        cell: Makes a cell of the numbers of all seeds.
        measure: The column of the results.
    """
    shown = [method for method in methods if any(row["method"] == method for row in rows)]
    lines: list[list[str]] = []
    for name, group in itertools.groupby(rows, lambda row: str(row["set"])):
        of_set = list(group)
        values = ([row for row in of_set if row["method"] == method] for method in shown)
        lines.append([name, *(_cell(those, measure, cell) for those in values)])
    return report.table(caption, ["set", *shown], lines) if lines else ""


def _cell(rows: Sequence[report.Row], measure: str, cell: Callable[[list[float]], str]) -> str:
    """The cell of a method: empty if it was not measured, or if it has no such number."""
    done = [row for row in rows if not row["note"]]
    if rows and not done:
        return "failed"
    values = [float(str(row[measure])) for row in done if row[measure] != ""]
    return cell(values) if values else ""


def percent(values: list[float]) -> str:
    """Mean, least and most of shares, in percent."""
    mean, least, most = (100 * each for each in (statistics.mean(values), min(values), max(values)))
    return f"{mean:.1f} ({least:.1f} to {most:.1f})"


def number(values: list[float]) -> str:
    """The mean of numbers, without a fraction."""
    return f"{statistics.mean(values):.0f}"


def millions(values: list[float]) -> str:
    """The mean of numbers, in millions."""
    return f"{statistics.mean(values) / 1e6:.1f}"
