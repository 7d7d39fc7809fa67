"""The command that answers for more images than one process should: `predict`.

`swinv2.shards` computes and writes.
"""

import importlib.util
import json
import sys
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
from rich.console import Console
from rich.text import Text

from swinv2.cli.options import BatchSize, Device, Dtype, Model, check_dtype
from swinv2.cli.running import SKIPPED, model_or_shipped, quiet_transformers
from swinv2.console import Progress, message_console, progress_bar
from swinv2.errors import UsageError

if TYPE_CHECKING:
    from swinv2.shards.run import Run
    from swinv2.shards.worker import Options, Outcome

_MOST_NAMED = 20
"""Shards with errors that are named; further ones are counted."""


def predict(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOURCES",
            help="Folders of images, archives (.tar, .tar.gz), .parquet files, lists of paths (.txt); globs in "
            "quotation marks, ranges such as {0000..0999}; also s3://, gs://, hf://.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            help="Required: the folder for the answers; a path, or s3://, gs://, az://.",
            show_default=False,
        ),
    ] = None,
    model: Model = None,
    columns: Annotated[
        str, typer.Option(metavar="NAMES", help="What to write: labels, features, or labels,features.")
    ] = "labels",
    top_k: Annotated[
        int,
        typer.Option("--top-k", "-k", metavar="N", min=1, help="Labels for each image; all if the model has fewer."),
    ] = 3,
    stage: Annotated[
        str,
        typer.Option(metavar="NAME", help="Features: pooled, one vector per image; or the map of stem, stage1 ..."),
    ] = "pooled",
    feature_type: Annotated[
        str, typer.Option(metavar="TYPE", help="Type of stored features: float32 or float16.")
    ] = "float32",
    image_column: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Parquet: the column of images, as bytes or paths.", show_default="found"),
    ] = None,
    key_column: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Parquet: the column that names images.", show_default="path or number"),
    ] = None,
    shard_size: Annotated[
        int, typer.Option(metavar="N", min=1, help="Images in a shard, of folders, globs and lists.")
    ] = 1_000,
    retry_errors: Annotated[
        bool, typer.Option("--retry-errors", help="Also compute again the shards in which images had errors.")
    ] = False,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Compute on a cluster of Ray: auto or host:port; local starts one on this machine.",
            show_default="in this process",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="With --ray: processes that have the model.",
            show_default="one for each GPU; without, by the CPUs",
        ),
    ] = None,
    readers: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=0,
            help="Processes that read images for each model; 0: the model's own.",
            show_default="by the CPUs",
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Threads of each model on a CPU.",
            show_default="as the first run into the folder: its CPUs; with --ray, 1",
        ),
    ] = None,
    batch_size: BatchSize = 16,
    device: Device = "auto",
    precision: Dtype = "float32",
    as_json: Annotated[
        bool, typer.Option("--json", help="JSON Lines: an object for each shard when it is done, then one for all.")
    ] = False,
) -> None:
    """Write labels or features of very many images, shard by shard.

    A shard is an archive, a parquet file, or --shard-size images of a folder or list.
    Its answers are one parquet file in FOLDER/shards, written atomically.
    The same command again computes what is missing.
    Another model or option in the same FOLDER is an error: predict.json there says what was computed.

    Images that cannot be read are rows with an error.
    The exit status is then 1, and also if a shard is damaged or cannot be read.
    """
    if not sources:
        raise UsageError("no source was given; for example: swinv2 predict photos --output answers.")
    if output is None:
        raise UsageError("no --output was given, the folder for the answers: swinv2 predict photos --output answers.")
    if ray is None and workers is not None:
        raise UsageError("--workers was given without --ray; in this process there is one model. Give --ray local.")
    if ray is not None and importlib.util.find_spec("ray") is None:
        raise UsageError("--ray needs ray, which is not installed; install swinv2[ray].")
    if importlib.util.find_spec("pyarrow") is None:
        raise UsageError("predict writes parquet, for which pyarrow is not installed; install swinv2[parquet].")
    check_dtype(precision)
    quiet_transformers()
    from swinv2.shards.run import check_options
    from swinv2.shards.worker import Options

    options = Options(
        columns,
        top_k,
        stage,
        feature_type,
        batch_size,
        shard_size,
        precision,
        device,
        threads or 0,
        image_column,
        key_column,
    )
    check_options(options)
    asked = _Asked(sources, output, model_or_shipped(model), options, readers, retry_errors)
    report = _Report(as_json)
    if ray is None:
        _predict_here(asked, report)
    else:
        _predict_on_ray(asked, report, ray, workers)
    report.end()


@dataclass(frozen=True)
class _Asked:
    """What the user asked for, without the place where it is computed."""

    sources: list[str]
    output: str
    model: str
    options: "Options"
    readers: int | None
    retry_errors: bool


def _predict_here(asked: _Asked, report: "_Report") -> None:
    """Runs in this process."""
    from swinv2.shards.run import compute_here, prepare_run

    run = prepare_run(
        asked.sources,
        asked.output,
        asked.model,
        asked.options,
        readers=asked.readers,
        retry_errors=asked.retry_errors,
    )
    report.begin(run)
    with progress_bar(len(run.pending), "predicting", report.shows_bar, unit="shards") as progress:
        report.watch(compute_here(run, lambda images: report.advance(progress, images)), progress, counts=False)


def _predict_on_ray(asked: _Asked, report: "_Report", address: str, workers: int | None) -> None:
    """Runs on a cluster."""
    from swinv2.shards.cluster import compute_on, connected, usual_readers
    from swinv2.shards.run import prepare_run

    needs = (workers or 1) * ((asked.options.threads or 1) + (asked.readers or 0))
    # Ray prints messages about workers on stdout.
    with redirect_stdout(sys.stderr), connected(address, needs) as cluster:
        readers = usual_readers(cluster, asked.options.device) if asked.readers is None else asked.readers
        run = prepare_run(
            asked.sources,
            asked.output,
            asked.model,
            asked.options,
            readers=readers,
            retry_errors=asked.retry_errors,
            workers_have=cluster.device,
        )
        report.begin(run)
        with progress_bar(len(run.pending), "predicting", report.shows_bar, unit="shards") as progress:
            report.watch(compute_on(cluster, run, workers), progress, counts=True)


@dataclass
class _Report:
    """What is printed of a run.

    Attributes:
        as_json: Whether data are printed on stdout.
        images, errors: Numbers of images so far, and of those with an error.
        done: Images whose batch is done, also of shards that are not.
        damaged: Shards whose rest could not be read.
        failed: Shards without answers, and sources that do not exist, each with the reason.
        named: Shards with errors that were named.
    """

    as_json: bool
    images: int = 0
    errors: int = 0
    done: int = 0
    damaged: int = 0
    failed: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    named: int = 0
    begun: float = 0.0
    run: "Run | None" = None
    console: Console = field(default_factory=message_console)
    data: TextIO = field(default_factory=lambda: sys.stdout)

    @property
    def shows_bar(self) -> bool:
        """Whether a terminal shows a bar; lines of data would overwrite it."""
        return not (self.as_json and sys.stdout.isatty())

    def begin(self, run: "Run") -> None:
        """Names what is missing, and what was done before."""
        self.run, self.begun = run, time.monotonic()
        for place in run.missing:
            self._fail(place, "there is no such file or folder")
        before = run.shards - len(run.pending)
        if before:
            text = f"{before:,} of {run.shards:,} shards were done before; their errors are not counted again"
            self.console.print(text, style="dim")

    def advance(self, progress: Progress, images: int) -> None:
        """Counts the images of a batch."""
        self.done += images
        seconds = max(time.monotonic() - self.begun, 1e-9)
        progress.tell(f"{self.done:,} images, {self.done / seconds:.4g}/s")

    def watch(self, outcomes: "Iterator[Outcome]", progress: Progress, counts: bool) -> None:
        """Prints outcomes as they come.

        Args:
            outcomes: The outcomes.
            progress: It gets a step for each of them.
            counts: Whether to count the images of a shard when it is done, because batches are not counted.
        """
        self.console = progress.console
        number = 0
        try:
            for number, outcome in enumerate(outcomes, 1):
                self._take(outcome, number, progress, counts)
        except KeyboardInterrupt:
            assert self.run is not None
            kept = number - len(self.failed) + len(self.run.missing)
            self.console.print(
                f"stopped: {kept:,} of {len(self.run.pending):,} shards were computed and are kept; the same command "
                "computes the rest",
                style="yellow",
            )
            raise

    def _take(self, outcome: "Outcome", number: int, progress: Progress, counts: bool) -> None:
        """Counts the outcome with this number, and prints it; see `watch`."""
        self.images += outcome.images
        self.errors += outcome.errors
        self.damaged += outcome.damage is not None
        progress.advance()
        if counts:
            self.advance(progress, outcome.images)
        if outcome.failed is not None:
            self._fail(f"{outcome.source}, part {outcome.part}" if outcome.part else outcome.source, outcome.failed)
        elif outcome.errors or outcome.damage is not None:
            self._name(outcome)
        if self.as_json:
            line: dict[str, Any] = {"event": "shard", "done": number, **outcome.as_values()}
            assert self.run is not None
            self._print({**line, "of": len(self.run.pending)})

    def _print(self, values: dict[str, Any]) -> None:
        """Prints a line of data."""
        print(json.dumps(values), file=self.data, flush=True)

    def _fail(self, place: str, reason: str) -> None:
        """Notes and names a shard that could not be read."""
        self.failed.append({"source": place, "reason": reason})
        if len(self.failed) <= _MOST_NAMED:
            self.console.print(Text.assemble(("failed ", "red"), f"{_shown(place)}: {reason}"))

    def _name(self, outcome: "Outcome") -> None:
        """Names a shard with errors."""
        self.named += 1
        if self.named > _MOST_NAMED:
            return
        what: list[str] = []
        if outcome.errors:
            more = " ..." * (outcome.errors > len(outcome.examples))
            what.append(f"{outcome.errors:,} of {outcome.images:,} images: {'; '.join(outcome.examples)}{more}")
        if outcome.damage is not None:
            what.append(f"damaged after {outcome.images:,} images: {outcome.damage}")
        part = f", part {outcome.part}" if outcome.part else ""
        text = Text.assemble(("errors ", "yellow"), f"{_shown(outcome.source)}{part}: {'; '.join(what)}")
        self.console.print(text)

    def end(self) -> None:
        """Prints the numbers of the run, and exits with status `SKIPPED` if there were errors."""
        assert self.run is not None
        run, seconds = self.run, time.monotonic() - self.begun
        failed = len(self.failed) - len(run.missing)
        if self.as_json:
            about = {
                "event": "end",
                "output": run.task.output,
                "fingerprint": run.task.fingerprint,
                "options": asdict(run.task.options),
                "shards": run.shards,
                "computed": len(run.pending) - failed,
                "images": self.images,
                "errors": self.errors,
                "damaged": self.damaged,
                "failed": self.failed,
                "seconds": round(seconds, 3),
                "images_per_second": round(self.images / max(seconds, 1e-9), 3),
            }
            self._print(about)
        console = message_console()
        rate = f", {self.images / max(seconds, 1e-9):.4g} images/s" if self.images else ""
        console.print(
            f"{self.images:,} images in {len(run.pending) - failed:,} shards{rate}: {_shown(run.task.output)}",
            markup=False,
        )
        wrong = {
            "images with an error instead of an answer": self.errors,
            "damaged shards": self.damaged,
            "shards that could not be read": len(self.failed),
        }
        if any(wrong.values()):
            console.print(", ".join(f"{text}: {count:,}" for text, count in wrong.items() if count), style="yellow")
            raise typer.Exit(SKIPPED)


def _shown(place: str) -> str:
    """A path or address as messages print it; its bytes may be no valid text."""
    name = place.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return name if name.isprintable() else repr(name)
