"""Compares `swinv2 finetune` with training other networks from new weights, for the same processor time.

    python benchmarks/image_sets.py --root sets ...     # first, once: writes the data sets
    python benchmarks/finetune.py --data sets

Our command gets nothing but the training images. The peers train on the same images, for the processor time that our
command took with the same seed, and all are tested on the same images. Every result is written at once, and an
interrupted benchmark resumes: what the file has is not measured again. Progress goes to stderr, the tables to stdout.
README.md explains the method.
"""

import itertools
import json
import os
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import report
import torch
import typer
from image_sets import SETS
from peer_training import PEERS
from terminal import progress, select

from swinv2.loading import read_config
from swinv2.predict.describe import describe

OURS, PROBE, NEW = "swinv2", "swinv2-probe", "swinv2-new"
METHODS = (OURS, PROBE, NEW, *PEERS)
"""Our command; a linear probe of our backbone; our network from new weights; the peers."""

WHEN_NAMED = ("camvid",)
"""Sets on which defaults were tuned: they are measured only when named."""

UPRIGHT = ("digits", "mnist")
"""Sets whose mirror images mean something else. The peers do not flip them, whatever our command does."""

LEAST_SIZE = 64
"""The peers' image size in pixels, if our command chose a smaller one: they shrink an image to a 32nd."""

SAME_FACTS = ("machine", "torch", "torchvision", "timm")
"""Rows of other commits are kept: a benchmark of hours resumes after a commit. Each row names its commit."""

SWINV2 = (sys.executable, "-c", "from swinv2.cli import app; app()")


class MethodError(RuntimeError):
    """A method failed; the message is the last line that it wrote."""


def main(
    data: Annotated[Path, typer.Option(help="Folder of the sets, written by image_sets.py.")],
    sets: Annotated[
        str, typer.Option(help=f"Sets, separated by commas; {', '.join(WHEN_NAMED)} only when named.")
    ] = "",
    methods: Annotated[str, typer.Option(help=f"Of {', '.join(METHODS)}.")] = "",
    seeds: Annotated[str, typer.Option(help="Numbers, separated by commas.")] = "0,1,2",
    seconds: Annotated[
        float | None, typer.Option(help="Processor time of each peer, instead of that of our command.")
    ] = None,
    keep: Annotated[Path | None, typer.Option(help="Keep logs and models in this folder.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="Write to this path with the suffixes .csv and .md, not to benchmarks/results.")
    ] = None,
) -> None:
    """Compares swinv2 finetune with peers from new weights: accuracy after the same processor time."""
    torch.set_num_threads(1)
    found = [name for name in SETS if (data / name / "train").is_dir()]
    chosen = select("sets", sets, found, WHEN_NAMED)
    names = select("methods", methods, METHODS)
    if not chosen:
        raise typer.BadParameter(f"{data} has none of {', '.join(SETS)}", param_hint="--data")
    # A part must not replace the complete results.
    stem = output or report.default_stem("finetune-part" if sets or methods or seconds else "finetune", "cpu")
    facts = report.describe_run("cpu")
    table = stem.with_name(stem.name + ".csv")
    rows = report.read_csv(table, facts, SAME_FACTS) if table.is_file() else []
    # What failed is measured again.
    rows = [row for row in rows if not row["note"]]
    for name, seed, method in itertools.product(chosen, map(int, seeds.split(",")), names):
        if _find(rows, name, method, seed):
            continue
        ours = _find(rows, name, OURS, seed)
        progress(f"{name}, seed {seed}: {method}")
        with tempfile.TemporaryDirectory() as temporary:
            folder = keep / f"{name}_{method}_{seed}" if keep else Path(temporary)
            if keep:
                # Of a measurement that was interrupted.
                shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True, exist_ok=True)
            result = measure(data / name, method, seed, folder, ours, seconds)
        progress(", ".join(f"{key} {value}" for key, value in result.items() if value != ""))
        rows.append({"set": name, "method": method, "seed": seed, **result, **facts})
        rows.sort(key=_place)
        report.write_csv(table, rows)
        title = f"Fine-tuning on {facts['machine']}"
        report.write_markdown(stem.with_name(stem.name + ".md"), title, _tables(rows), report.facts_of(rows, facts))
    print("\n\n".join(_tables(rows)))
    if any(row["note"] for row in rows):
        raise typer.Exit(1)


def measure(
    folder: Path, method: str, seed: int, output: Path, ours: report.Row | None, seconds: float | None
) -> report.Row:
    """Trains and tests one method.

    Args:
        folder: Has the folders train and test.
        method: One of `METHODS`.
        seed: The seed.
        output: An empty folder for the model and the log.
        ours: Our command's result with the same set and seed, if it is known.
        seconds: Processor time of a peer; None: that of `ours`.

    Returns:
        The columns of a result. If the method failed, they are empty except for the note.
    """
    columns = ("top1", "mean_recall", "processor_seconds", "clock_seconds", "steps", "image_size", "parameters")
    started = time.perf_counter()
    try:
        if method in PEERS:
            found = _train_peer(folder, method, seed, output, ours, seconds)
        else:
            found = _train_ours(folder, method, seed, output, ours)
    except MethodError as error:
        return dict.fromkeys(columns, "") | {"note": str(error)[:200]}
    found["clock_seconds"] = time.perf_counter() - started
    return {name: _rounded(found[name]) for name in columns} | {"note": ""}


def _train_ours(folder: Path, method: str, seed: int, output: Path, ours: report.Row | None) -> dict[str, Any]:
    """Runs swinv2 finetune and swinv2 evaluate."""
    run = output / "run"
    command = ["finetune", "--data", str(folder / "train"), "--output-dir", str(run), "--seed", str(seed)]
    if method == PROBE:
        command += ["--linear-probe"]
    if method == NEW:
        # The same network needs the same processor time for a step.
        length = {"model": "new", "image_size": _known(ours)["image_size"], "max_steps": _known(ours)["steps"]}
        command += [f"--{name}={value}" for name, value in length.items()]
    _, seconds = _run([*SWINV2, *command], output / "training.log")
    model = str(run / "final")
    answer, _ = _run([*SWINV2, "evaluate", str(folder / "test"), "--model", model, "--json"], output / "test.log")
    tested = json.loads(answer)
    return {
        "top1": tested["top1"],
        "mean_recall": statistics.mean(recall for recall in tested["recall"].values() if recall is not None),
        "processor_seconds": seconds,
        # A linear probe takes no steps.
        "steps": json.loads((run / "results.json").read_text()).get("step", ""),
        "image_size": read_config(model).image_size,
        "parameters": describe(model).parameters,
    }


def _train_peer(
    folder: Path, method: str, seed: int, output: Path, ours: report.Row | None, seconds: float | None
) -> dict[str, Any]:
    """Runs peer_training.py."""
    size = LEAST_SIZE if ours is None else max(LEAST_SIZE, int(str(ours["image_size"])))
    budget = seconds or float(str(_known(ours)["processor_seconds"]))
    flips = "--no-flips" if folder.name in UPRIGHT else "--flips"
    options = {"peer": method, "data": folder, "seconds": budget, "size": size, "seed": seed}
    command = [sys.executable, str(Path(__file__).with_name("peer_training.py")), flips]
    answer, _ = _run([*command, *(f"--{name}={value}" for name, value in options.items())], output / "training.log")
    return json.loads(answer)


def _known(ours: report.Row | None) -> report.Row:
    """Our command's result, which the others need."""
    if ours is None:
        raise MethodError(f"needs the processor time of {OURS} with this seed; measure that first, or give --seconds")
    return ours


def _run(command: Sequence[str], log: Path) -> tuple[str, float]:
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


def _find(rows: Sequence[report.Row], name: str, method: str, seed: int) -> report.Row | None:
    """The result of a method, if there is one without a note."""
    key = (name, method, seed)
    return next((row for row in rows if (row["set"], row["method"], row["seed"]) == key and not row["note"]), None)


def _place(row: report.Row) -> tuple[int, int, int]:
    """The sort key of a row."""
    return list(SETS).index(str(row["set"])), METHODS.index(str(row["method"])), int(str(row["seed"]))


def _rounded(value: float | str) -> float | str:
    """Five digits of a number with a fraction; the rest as it is."""
    return float(f"{value:.5g}") if isinstance(value, float) else value


def _tables(rows: Sequence[report.Row]) -> list[str]:
    """The results, one line for each set and one column for each method."""
    methods = [method for method in METHODS if any(row["method"] == method for row in rows)]

    def build(caption: str, cell: Callable[[list[float]], str], measure: str) -> str:
        lines = []
        for name, group in itertools.groupby(rows, lambda row: str(row["set"])):
            of_set = list(group)
            values = ([row for row in of_set if row["method"] == method] for method in methods)
            lines.append([name, *(_cell(those, measure, cell) for those in values)])
        return report.table(caption, ["set", *methods], lines)

    return [
        build("Top-1 accuracy in %: mean of the seeds (least to most); more is better.", _percent, "top1"),
        build("Mean of the classes' recalls in %, in which all classes count alike.", _percent, "mean_recall"),
        build("Processor time in seconds: mean of the seeds.", _number, "processor_seconds"),
        build("Training steps: mean of the seeds; a linear probe takes none.", _number, "steps"),
        build("Image size in pixels.", _number, "image_size"),
        build("Parameters in millions.", lambda values: f"{statistics.mean(values) / 1e6:.1f}", "parameters"),
    ]


def _cell(rows: Sequence[report.Row], measure: str, cell: Callable[[list[float]], str]) -> str:
    """The cell of a method: empty if it was not measured, or if it has no such number."""
    done = [row for row in rows if not row["note"]]
    if rows and not done:
        return "failed"
    values = [float(str(row[measure])) for row in done if row[measure] != ""]
    return cell(values) if values else ""


def _percent(values: list[float]) -> str:
    mean, least, most = (100 * each for each in (statistics.mean(values), min(values), max(values)))
    return f"{mean:.1f} ({least:.1f} to {most:.1f})"


def _number(values: list[float]) -> str:
    return f"{statistics.mean(values):.0f}"


if __name__ == "__main__":
    # subprocess.run ends its process at an exception; a benchmark that is stopped must leave no training behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    typer.run(main)
