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
import signal
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import report
import torch
import typer
from image_sets import SETS
from methods import (
    OURS,
    SWINV2,
    MethodError,
    known,
    measure_rows,
    millions,
    number,
    percent,
    rounded,
    run_program,
    steps_of,
    table_of,
)
from peer_training import PEERS
from terminal import select

from swinv2.loading import read_config
from swinv2.predict.describe import describe

PROBE, NEW = "swinv2-probe", "swinv2-new"
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
    order = itertools.product(chosen, map(int, seeds.split(",")), names)
    measure_rows(
        order,
        lambda name, seed, method, folder, ours: measure(data / name, method, seed, folder, ours, seconds),
        stem=stem,
        title=f"Fine-tuning on {facts['machine']}",
        facts=facts,
        same_facts=SAME_FACTS,
        order=(list(SETS), METHODS),
        tables=_tables,
        keep=keep,
    )


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
    return {name: rounded(found[name]) for name in columns} | {"note": ""}


def _train_ours(folder: Path, method: str, seed: int, output: Path, ours: report.Row | None) -> dict[str, Any]:
    """Runs swinv2 finetune and swinv2 evaluate."""
    run = output / "run"
    command = ["finetune", "--data", str(folder / "train"), "--output-dir", str(run), "--seed", str(seed)]
    if method == PROBE:
        command += ["--linear-probe"]
    if method == NEW:
        # The same network needs the same processor time for a step.
        length = {"model": "new", "image_size": known(ours)["image_size"], "max_steps": steps_of(ours)}
        command += [f"--{name}={value}" for name, value in length.items()]
    _, seconds = run_program([*SWINV2, *command], output / "training.log")
    model = str(run / "final")
    answer, _ = run_program(
        [*SWINV2, "evaluate", str(folder / "test"), "--model", model, "--json"], output / "test.log"
    )
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
    budget = seconds or float(str(known(ours)["processor_seconds"]))
    flips = "--no-flips" if folder.name in UPRIGHT else "--flips"
    options = {"peer": method, "data": folder, "seconds": budget, "size": size, "seed": seed}
    command = [sys.executable, str(Path(__file__).with_name("peer_training.py")), flips]
    answer, _ = run_program(
        [*command, *(f"--{name}={value}" for name, value in options.items())], output / "training.log"
    )
    return json.loads(answer)


def _tables(rows: Sequence[report.Row]) -> list[str]:
    """The results, one line for each set and one column for each method."""

    def build(caption: str, cell: Callable[[list[float]], str], measure: str) -> str:
        return table_of(rows, METHODS, caption, cell, measure)

    return [
        build("Top-1 accuracy in %: mean of the seeds (least to most); more is better.", percent, "top1"),
        build("Mean of the classes' recalls in %, in which all classes count alike.", percent, "mean_recall"),
        build("Processor time in seconds: mean of the seeds.", number, "processor_seconds"),
        build("Training steps: mean of the seeds; a linear probe takes none.", number, "steps"),
        build("Image size in pixels.", number, "image_size"),
        build("Parameters in millions.", millions, "parameters"),
    ]


if __name__ == "__main__":
    # subprocess.run ends its process at an exception; a benchmark that is stopped must leave no training behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    typer.run(main)
