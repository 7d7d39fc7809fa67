"""A whole run: which shards there are, which are done, and the loop in this process.

In: what a user names, and options. Out: outcomes, one by one. Resuming is listing the files of answers. `cluster` runs
the same shards on Ray.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from swinv2.errors import UsageError
from swinv2.loading import choose_device
from swinv2.predict.predictor import POOLED, Predictor
from swinv2.shards import manifest
from swinv2.shards.answers import count_answers
from swinv2.shards.lists import FOLDER as LISTS
from swinv2.shards.manifest import ANSWERS
from swinv2.shards.output import Output
from swinv2.shards.places import is_in_memory, is_inside, open_binary
from swinv2.shards.rows import check_columns
from swinv2.shards.shard import AnswersName, Shard, source_id
from swinv2.shards.sources import Source, divide, find_sources
from swinv2.shards.worker import Options, Outcome, ShardWorker, Task, load_predictor

COLUMNS = ("labels", "features", "labels,features")
FEATURE_TYPES = ("float32", "float16")


@dataclass(frozen=True)
class Run:
    """A run that can begin.

    Attributes:
        task: What workers need.
        pending: The shards to compute.
        shards: Number of all shards of the sources.
        missing: Sources that do not exist.
        predictor: The model, on its device; None if workers load it.
    """

    task: Task
    pending: Sequence[Shard]
    shards: int
    missing: Sequence[str]
    predictor: Predictor | None


def prepare_run(
    named: Iterable[str],
    output: str,
    model: str,
    options: Options,
    *,
    readers: int | None = None,
    retry_errors: bool = False,
    workers_have: str | None = None,
) -> Run:
    """Finds the shards of a run, and writes or compares the manifest of its output.

    Args:
        named: See `find_sources`.
        output: The folder for the answers: a path or an address.
        model: The model's folder, or its name on the hub.
        options: See `Options`. The device "auto" and 0 threads stand for those of an earlier run into the output, or
            else for those of this process.
        readers: See `Task`.
        retry_errors: Whether to compute again the shards that have answers with errors.
        workers_have: The kind of device of the processes that compute, such as "cuda"; the model is then not kept here.
            None: this process computes.

    Raises:
        UsageError: A source, the model, the output or an option cannot be used; the message says why.
    """
    check_options(options)
    place = Output(output)
    if workers_have and is_in_memory(place.place):
        raise UsageError(f"--output is {output!r}, in the memory of this process; the workers are others.")
    sources, missing = find_sources(named)
    # A glob may match the answers of an earlier run.
    sources = [source for source in sources if not is_inside(source.place, place.place)]
    _check_columns(sources, options)
    place.prepare("", ANSWERS, LISTS)
    options, device = _settle(options, manifest.read(place), workers_have)
    model = _as_every_process_names_it(model)
    predictor = load_predictor(model, options, "cpu" if workers_have else device)
    described = manifest.describe(predictor.about(), asdict(options))
    manifest.begin(place, described, model)
    task = Task(model, options, place.place, manifest.fingerprint_of(described), readers, device, retry_errors)
    shards = {shard.name: shard for source in sources for shard in divide(source, place, options.shard_size)}
    names = place.names(ANSWERS)
    _check_unchanged(place, shards.values(), names, task.fingerprint)
    pending = [shard for shard in shards.values() if shard.answers(task.fingerprint) not in names]
    if retry_errors:
        waiting = {shard.name for shard in pending}
        pending = [shard for shard in shards.values() if shard.name in waiting or _has_errors(place, task, shard)]
    return Run(task, pending, len(shards), missing, None if workers_have else predictor)


def compute_here(run: Run, advance: Callable[[int], None] = lambda images: None) -> Iterator[Outcome]:
    """Computes the shards of a run in this process; processes of its own read. See `ShardWorker.compute`."""
    worker = ShardWorker(run.task, run.predictor)
    try:
        yield from worker.compute(run.pending, advance)
    finally:
        worker.close()


def check_options(options: Options) -> None:
    """Checks what can be checked without a model.

    Raises:
        UsageError: A value is none of those that are possible, or two options do not fit.
    """
    if _sorted_columns(options.columns) not in COLUMNS:
        raise UsageError(f"--columns is {options.columns!r}; expected {', '.join(map(repr, COLUMNS))}.")
    if options.feature_type not in FEATURE_TYPES:
        raise UsageError(f"--feature-type is {options.feature_type!r}; expected {' or '.join(FEATURE_TYPES)}.")
    if options.stage != POOLED and options.has_labels:
        raise UsageError(
            f"--stage {options.stage} needs --columns features: labels are computed from the pooled features."
        )


def _check_columns(sources: Iterable[Source], options: Options) -> None:
    """Checks the columns of the first parquet file, so that a wrong name is no error of every shard."""
    first = next((source for source in sources if source.kind == "parquet"), None)
    if first is not None:
        check_columns(first.place, options.image_column, options.key_column)
    elif (options.image_column or options.key_column) and all(source.kind != "folder" for source in sources):
        raise UsageError("--image-column and --key-column are for parquet files; no source is one.")


def _settle(options: Options, old: Mapping[str, Any] | None, workers_have: str | None) -> tuple[Options, str]:
    """The options with a kind of device and a number of threads; and the device.

    Args:
        options: The options as the user gave them.
        old: The manifest of the output.
        workers_have: See `prepare_run`.

    Raises:
        UsageError: There is no such device.
    """
    before: Mapping[str, Any] = {} if old is None else old["options"]
    device = options.device
    if device == "auto":
        device = str(before.get("device") or workers_have or "auto")
    if workers_have is None:
        try:
            kind = choose_device(device).type
        except UsageError as error:
            if options.device != "auto":
                raise
            raise UsageError(
                f"the output was begun on {device!r}, which this machine has not. Give another --output, or run there."
            ) from error
    elif device not in ("cpu", workers_have):
        raise UsageError(f"--device is {device!r}; the workers have {workers_have!r}. Give --device auto or cpu.")
    else:
        kind = device
    device = kind if device == "auto" else device
    usual = 1 if workers_have else torch.get_num_threads()
    threads = (options.threads or int(before.get("threads", 0)) or usual) if kind == "cpu" else 0
    return replace(options, device=kind, threads=threads, columns=_sorted_columns(options.columns)), device


def _sorted_columns(columns: str) -> str:
    """The columns in the order of the file."""
    return ",".join(sorted(columns.split(","), reverse=True))


def _as_every_process_names_it(model: str) -> str:
    """The model's folder as an absolute path; a name on the hub as it is."""
    folder = Path(model).expanduser()
    return str(folder.absolute()) if folder.exists() else model


def _check_unchanged(output: Output, shards: Iterable[Shard], names: Iterable[str], run: str) -> None:
    """Checks that the answers that exist are of this run, and of what the sources are now.

    Raises:
        UsageError: They are not; the union of all files would have images twice, or images that no longer exist.
    """
    parts: dict[str, dict[int, str]] = {}
    sources: dict[str, str] = {}
    for shard in shards:
        identity = source_id(shard.source)
        parts.setdefault(identity, {})[shard.part] = shard.content
        sources[identity] = shard.source
    for name in sorted(names):
        found = AnswersName.read(name)
        if found is None:
            continue
        file = output.file(f"{ANSWERS}/{name}")
        if found.run != run[:16]:
            raise UsageError(f"{file!r} has answers of other settings; give another --output, or delete the file.")
        if found.source in parts and parts[found.source].get(found.part) != found.content:
            raise UsageError(
                f"{sources[found.source]!r} has changed since {file!r} was written. Delete the files of this source "
                f"(*-{found.source}-*), or give another --output."
            )


def _has_errors(output: Output, task: Task, shard: Shard) -> bool:
    """Whether the answers of a shard have errors."""
    with open_binary(output.file(f"{ANSWERS}/{shard.answers(task.fingerprint)}")) as file:
        return count_answers(file, with_examples=False).errors > 0
