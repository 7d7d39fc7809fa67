"""Writes results as CSV and Markdown, with the facts of their runs.

In: rows of plain values. Out: files with everything that is needed to repeat the measurement, without names of hosts
and folders. This module knows no model.
"""

import csv
import datetime
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "transformers", "timm", "torchvision", "openvino")

SAME_CODE = ("machine", "threads", "commit", *PACKAGES)
"""Facts that are equal in all rows of a file of speeds."""

PRIVATE = ("--output", "--data", "--keep", "--root")
"""Options whose values are folders of this machine; they change no number."""

Row = dict[str, object]


def describe_machine(device: str) -> str:
    """The processor and its usable cores, or the name of the GPU."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    cores, usable = os.cpu_count() or 1, usable_cores()
    of = f"{usable} of {cores}" if usable < cores else str(cores)
    return f"{_processor()}, {of} {'core' if cores == 1 else 'cores'}, {torch.backends.cpu.get_cpu_capability()}"


def usable_cores() -> int:
    """Number of cores that this process may use; fewer than the machine's if it is pinned."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    if Path("/proc/cpuinfo").exists():
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if found:
            return found[1]
    return platform.machine()


def describe_run(device: str) -> dict[str, str]:
    """Everything that is the same in all rows: machine, threads, versions, commit, command, load."""
    facts = {"machine": describe_machine(device), "threads": str(torch.get_num_threads())}
    for package in PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "not installed"
    facts["commit"] = _commit()
    facts["command"] = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *_public(sys.argv[1:])])
    facts["date"] = datetime.date.today().isoformat()
    facts["load_at_start"] = f"{os.getloadavg()[0]:.1f}"
    return facts


def _public(arguments: Sequence[str]) -> list[str]:
    """The arguments without the options in `PRIVATE`."""
    kept, skip = [], False
    for argument in arguments:
        if not skip and argument.split("=")[0] not in PRIVATE:
            kept.append(argument)
        skip = argument in PRIVATE
    return kept


def _commit() -> str:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(REPOSITORY), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    # Only uncommitted changes of the measured code can change the result.
    changed = " with changes" if git("status", "--porcelain", "--", "src", "benchmarks/*.py") else ""
    return (git("rev-parse", "--short=12", "HEAD") or "unknown") + changed


def default_stem(what: str, device: str) -> Path:
    """The path of the results, without a suffix: benchmarks/results/<what>_<machine>_<yyyy-mm>.

    Args:
        what: Name of the benchmark.
        device: "cpu" or "cuda".
    """
    machine = re.sub(r"[^a-z0-9]+", "-", describe_machine(device).lower()).strip("-")
    return REPOSITORY / "benchmarks" / "results" / f"{what}_{machine}_{datetime.date.today():%Y-%m}"


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Writes one line for each row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_csv(path: Path, facts: Mapping[str, str], same: Sequence[str] = SAME_CODE) -> list[Row]:
    """Reads a file of `write_csv`, to add rows of another run to it.

    Args:
        path: The file.
        facts: Facts of the new run.
        same: Facts that the rows must share with the new run.

    Raises:
        SystemExit: The file is of another machine or of other versions, so its rows are not comparable.
    """
    with path.open(newline="") as file:
        rows: list[Row] = [
            {name: text if name in facts else _number(text) for name, text in line.items()}
            for line in csv.DictReader(file)
        ]
    for name in same:
        others = {str(row[name]) for row in rows} - {facts[name]}
        if others:
            raise SystemExit(f"{path.name} has rows with {name} {', '.join(others)}, not {facts[name]}; delete them.")
    return rows


def _number(text: str) -> float | int | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def facts_of(rows: Sequence[Row], facts: Mapping[str, str]) -> dict[str, str]:
    """The facts of all runs of the rows, each with all its values.

    Args:
        rows: Results with the facts of their runs.
        facts: Facts of one run; its keys are used.
    """
    return {name: ", ".join(dict.fromkeys(str(row[name]) for row in rows)) for name in facts}


def write_markdown(path: Path, title: str, tables: Sequence[str], facts: Mapping[str, str]) -> None:
    """Writes a page: the title, the facts of the run, the tables."""
    path.parent.mkdir(parents=True, exist_ok=True)
    listed = "\n".join(
        f"- {name.replace('_', ' ')}: {f'`{value}`' if name == 'command' else value}" for name, value in facts.items()
    )
    path.write_text("\n\n".join([f"# {title}", listed, *tables]) + "\n")


def table(caption: str, columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns are aligned in plain text.

    Args:
        caption: A sentence above the table that explains the numbers.
        columns: Headings.
        lines: Cells, row by row.
    """
    widths = [max(len(cell) for cell in column) for column in zip(columns, *lines, strict=True)]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    rule = "| " + " | ".join("-" * width for width in widths) + " |"
    return "\n".join([caption, "", line(columns), rule, *(line(cells) for cells in lines)])
