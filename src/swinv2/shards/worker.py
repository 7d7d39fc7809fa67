"""Computes shards, one after the other: the loop that one process and every worker of a cluster run.

In: shards. Out: a file of answers for each of them, and an `Outcome`. A shard is read, computed and written in the same
batches wherever and whenever that happens, so its file has the same bytes.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch

from swinv2.errors import UsageError, first_sentence
from swinv2.exported import ExportedNetwork
from swinv2.images import BrokenImageError, read_image
from swinv2.predict.predictor import POOLED, Classifier, FeatureExtractor, Predictor
from swinv2.reading import Passed, ReaderKilledError, Readers
from swinv2.shards.answers import LOST, MOST_EXAMPLES, Answer, AnswersWriter, Columns, Counts, count_answers
from swinv2.shards.manifest import ANSWERS, describe, fingerprint_of
from swinv2.shards.output import Output
from swinv2.shards.places import is_address, open_binary, read_many
from swinv2.shards.rows import MOST_BYTES, DamagedError, Row, read_rows
from swinv2.shards.shard import Shard

_MOST_HELD = 1 << 28
"""Bytes of image files of a batch; one that has more ends earlier."""

ATTEMPTS = 5
"""A shard is begun so often alone, if processes that read its images, or the worker, are killed each time."""


@dataclass(frozen=True)
class Options:
    """The options that decide what is written; they are in the manifest.

    Attributes:
        columns: "labels", "features" or both, with a comma.
        top_k: Labels of an image.
        stage: Which features; see `FeatureExtractor.load`.
        feature_type: "float32" or "float16", as features are stored.
        batch_size: Images of a batch.
        shard_size: Images of a shard of a folder or list.
        dtype: Type of weights and computation, by torch's name.
        device: "cpu", "cuda" or another of torch's kinds of devices.
        threads: Threads of torch for a model on a CPU, since sums may depend on their number; 0 for other devices.
        image_column, key_column: See `read_rows`.
    """

    columns: str = "labels"
    top_k: int = 3
    stage: str = POOLED
    feature_type: str = "float32"
    batch_size: int = 16
    shard_size: int = 1_000
    dtype: str = "float32"
    device: str = "cpu"
    threads: int = 1
    image_column: str | None = None
    key_column: str | None = None

    @property
    def has_labels(self) -> bool:
        """Whether labels are written."""
        return "labels" in self.columns.split(",")

    @property
    def has_features(self) -> bool:
        """Whether features are written."""
        return "features" in self.columns.split(",")


@dataclass(frozen=True)
class Task:
    """All that a worker needs to compute shards.

    Attributes:
        model: The model's folder, or its name on the hub.
        options: See `Options`.
        output: Path or address of the output.
        fingerprint: That of the run, see `manifest.fingerprint_of`; a worker whose model has another one is an error.
        readers: Processes that read images for the model; see `reading.Readers`.
        device: The device, by torch's name.
        redo: Whether shards are computed although their answers exist.
    """

    model: str
    options: Options
    output: str
    fingerprint: str
    readers: int | None = None
    device: str = "auto"
    redo: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of a shard.

    Attributes:
        shard: Its name.
        source, part: See `Shard`.
        images: Rows of images in its file.
        errors: Of these, images that could not be read or have no answer.
        examples: The first ones, each with the error.
        damage: Why the rest of the shard could not be read; None if all of it was.
        failed: Why there is no file of answers; None if there is one.
        seconds: Time from the shard's first image to the complete file.
    """

    shard: str
    source: str
    part: int
    images: int = 0
    errors: int = 0
    examples: list[str] = field(default_factory=list[str])
    damage: str | None = None
    failed: str | None = None
    seconds: float = 0.0

    @classmethod
    def of(cls, shard: Shard, **values: Any) -> "Outcome":
        """The outcome of a shard."""
        return cls(shard.name, shard.source, shard.part, **values)

    def as_values(self) -> dict[str, Any]:
        """Its fields, as JSON values."""
        return asdict(self)


def load_predictor(model: str, options: Options, device: str) -> Predictor:
    """Loads the model of a run.

    Raises:
        UsageError: It cannot be loaded, or takes images of channels that no file has.
    """
    dtype: torch.dtype = getattr(torch, options.dtype)
    if options.has_labels:
        predictor = Classifier.load(model, device, dtype)
        if options.has_features and isinstance(predictor.model, ExportedNetwork):
            raise UsageError(
                f"{model!r} is an exported classifier, whose graph has labels alone. Leave the features out, or use "
                "the model that it came from."
            )
    else:
        predictor = FeatureExtractor.load(model, options.stage, device, dtype)
    if predictor.channels not in (1, 3):
        raise UsageError(
            f"the model {model!r} takes {predictor.channels} channels, but an image file has 3, or 1 as grey."
        )
    return predictor


def run_fingerprint(predictor: Predictor, options: Options) -> str:
    """The fingerprint of a run with this model and these options."""
    return fingerprint_of(describe(predictor.about(), asdict(options)))


@dataclass(frozen=True)
class _Begin(Passed):
    """From here on, the items are of this shard; or there are none, because its answers exist."""

    shard: Shard
    existing: Counts | None = None


@dataclass(frozen=True)
class _End(Passed):
    """The shard is read; or the reason why it could not be read, or not to its end."""

    damage: str | None = None
    failed: str | None = None


class _Prepare:
    """Decodes the images of a batch of rows, and makes the model's pixels of them. Runs in processes that read."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor

    def __call__(self, rows: Sequence[Row]) -> list[tuple[int, str, np.ndarray | str]]:
        """For each row its number, its key, and the pixels or an error."""
        stored = read_many({row.image for row in rows if isinstance(row.image, str) and is_address(row.image)})
        return [(row.number, row.key, self._prepare(row.image, stored)) for row in rows]

    def _prepare(self, image: Any, stored: Any) -> np.ndarray | str:
        """The pixels of an image, or an error."""
        if isinstance(image, str) and image in stored:
            image = stored[image]
            if isinstance(image, BaseException):
                return _why(image)
        if isinstance(image, BrokenImageError):
            return str(image)
        if isinstance(image, bytes) and len(image) > MOST_BYTES:
            return f"it has {len(image):,} bytes; at most {MOST_BYTES:,} are read"
        try:
            decoded = read_image(image, self.predictor.channels)
        except BrokenImageError as error:
            return str(error)
        try:
            return self.predictor.prepare(decoded)
        # Of a size that the processor cannot change, for example.
        except (ValueError, TypeError, RuntimeError, OverflowError, ZeroDivisionError) as error:
            return f"the image processor cannot prepare it: {first_sentence(error)}"


def _why(error: BaseException) -> str:
    """Why a file cannot be read, by the error of the system or of a store."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return f"{type(error).__name__}: {first_sentence(error)}"


class _ShardError(Exception):
    """A shard cannot be read; the message says why."""


class ShardWorker:
    """A model, and the processes that read for it. On a CPU, it sets torch's number of threads in this process.

    Args:
        task: See `Task`.
        predictor: The model, if it is loaded already.

    Raises:
        UsageError: The model cannot be loaded, or is another one than that of the run.
    """

    def __init__(self, task: Task, predictor: Predictor | None = None) -> None:
        self.task, self.output = task, Output(task.output)
        self.output.prepare(ANSWERS)
        if task.options.threads:
            torch.set_num_threads(task.options.threads)
        if predictor is None:
            predictor = load_predictor(task.model, task.options, task.device)
            if run_fingerprint(predictor, task.options) != task.fingerprint:
                raise UsageError(
                    f"the model {task.model!r} of a worker is not that of the run, or another version of swinv2 is "
                    "installed there: every machine needs the same model and the same packages."
                )
        self.predictor = predictor
        self.readers = Readers(_Prepare(predictor), task.readers)

    def close(self) -> None:
        """Ends the processes that read."""
        self.readers.close()

    def compute(
        self, shards: Iterable[Shard], advance: Callable[[int], None] = lambda images: None
    ) -> Iterator[Outcome]:
        """Computes shards, and writes their answers. While the last images of a shard are computed, those of the next
        one are read.

        Args:
            shards: The shards. One whose answers exist is not computed again, unless the task says so.
            advance: Called with the number of images of each batch that is done.

        Returns:
            An outcome for each shard, in order, after its file was published.
        """
        pending, killed = deque(shards), 0
        while pending:
            # After a kill, the next shard is computed alone, so that one that kills who reads it costs no other.
            given = [pending[0]] if killed else list(pending)
            try:
                for outcome in self._compute(given, advance):
                    pending.popleft()
                    killed = 0
                    yield outcome
            except ReaderKilledError as error:
                killed += 1
                if killed > ATTEMPTS:
                    reason = f"{error} {ATTEMPTS} times; has the machine too little memory?"
                    yield Outcome.of(pending.popleft(), failed=reason)
                    killed = 0

    def _compute(self, shards: Sequence[Shard], advance: Callable[[int], None]) -> Iterator[Outcome]:
        """Computes shards until all are done, or a process that reads is killed (`ReaderKilledError`)."""
        with closing(_as_generator(self.readers.map(self._batches(shards)))) as items:
            for item in items:
                if item.existing is not None:
                    yield Outcome.of(item.shard, **vars(item.existing))
                    continue
                begun = time.monotonic()
                try:
                    counts = self._write(item.shard, items, advance)
                except _ShardError as error:
                    yield Outcome.of(item.shard, failed=str(error))
                else:
                    yield Outcome.of(item.shard, **vars(counts), seconds=time.monotonic() - begun)

    def _existing(self, shard: Shard) -> Counts | None:
        """What the answers of a shard have; None if they do not exist, or are computed again."""
        if self.task.redo:
            return None
        try:
            with open_binary(self.output.file(f"{ANSWERS}/{shard.answers(self.task.fingerprint)}")) as file:
                return count_answers(file)
        except FileNotFoundError:
            return None

    def _batches(self, shards: Iterable[Shard]) -> Iterator[Any]:
        """Reads shards: for each a begin, lists of rows, and an end."""
        options = self.task.options
        for shard in shards:
            existing = self._existing(shard)
            yield _Begin(shard, existing)
            if existing is not None:
                continue
            rows: list[Row] = []
            end, count = _End(), 0
            try:
                held = 0
                for row in read_rows(shard, options.image_column, options.key_column):
                    rows.append(row)
                    count += 1
                    held += len(row.image) if isinstance(row.image, bytes) else 0
                    # Where a batch ends depends on the content of the shard alone.
                    if len(rows) == options.batch_size or held > _MOST_HELD:
                        yield rows
                        rows, held = [], 0
            except DamagedError as error:
                end = _End(damage=str(error)) if count else _End(failed=str(error))
            except UsageError as error:
                end = _End(failed=str(error))
            # A store has exceptions of its own kinds for a lost connection or a missing right.
            except Exception as error:
                end = _End(failed=_why(error))
            if rows and end.failed is None:
                yield rows
            if not count and end == _End():
                end = _End(failed="it has no image")
            yield end

    def _write(self, shard: Shard, items: Iterator[Any], advance: Callable[[int], None]) -> Counts:
        """Computes the batches of a shard until its end, and publishes the answers.

        Raises:
            _ShardError: The shard could not be read.
        """
        options = self.task.options
        columns = Columns(options.has_labels, options.has_features, options.stage != POOLED, options.feature_type)
        about = {"swinv2.fingerprint": self.task.fingerprint, "swinv2.shard": shard.name}
        counts = Counts(0, 0)
        with (
            self.output.publish(f"{ANSWERS}/{shard.answers(self.task.fingerprint)}") as file,
            AnswersWriter(file, shard.source, columns, about) as writer,
        ):
            number = shard.first_row
            for item in items:
                if isinstance(item, _End):
                    if item.failed is not None:
                        raise _ShardError(item.failed)
                    if item.damage is not None:
                        writer.write(Answer(number, None, error=f"{LOST}{item.damage}"))
                    return replace(counts, damage=item.damage)
                for answer in self._answer(item):
                    writer.write(answer)
                    counts = _counted(counts, answer)
                    number = answer.number + 1
                advance(len(item))
        raise AssertionError("a shard has no end")

    def _answer(self, batch: Sequence[tuple[int, str, np.ndarray | str]]) -> Iterator[Answer]:
        """The answers for a batch."""
        valid = [pixels for *_, pixels in batch if isinstance(pixels, np.ndarray)]
        answers = iter(self._run(valid) if valid else [])
        for number, key, pixels in batch:
            if isinstance(pixels, str):
                yield Answer(number, key, error=pixels)
                continue
            labels, features = next(answers)
            options = self.task.options
            is_finite = (labels is None or math.isfinite(labels[0].probability)) and (
                features is None or bool(np.isfinite(features).all())
            )
            if not is_finite:
                yield Answer(number, key, error=f"the answer is NaN or infinite in {options.dtype}")
            elif features is not None and np.abs(features).max(initial=0) > np.finfo(options.feature_type).max:
                reason = f"the features do not fit into {options.feature_type}; give --feature-type float32"
                yield Answer(number, key, error=reason)
            else:
                stored = None if features is None else features.astype(options.feature_type)
                yield Answer(number, key, labels, stored)

    def _run(self, pixels: Sequence[np.ndarray]) -> Iterator[tuple[Any, np.ndarray | None]]:
        """The labels and the features of a batch of prepared pixels."""
        options, predictor = self.task.options, self.predictor
        if isinstance(predictor, Classifier) and options.has_features:
            for labels, features in predictor.label_with_features(pixels, options.top_k):
                yield labels, features.float().numpy()
        elif isinstance(predictor, Classifier):
            for labels in predictor.label(pixels, options.top_k):
                yield labels, None
        elif isinstance(predictor, FeatureExtractor):
            for features in predictor.features(pixels):
                yield None, features.float().numpy()


def _counted(counts: Counts, answer: Answer) -> Counts:
    """The counts with another answer."""
    if answer.error is None:
        return replace(counts, images=counts.images + 1)
    examples = [*counts.examples, f"{answer.key}: {answer.error}"][:MOST_EXAMPLES]
    return replace(counts, images=counts.images + 1, errors=counts.errors + 1, examples=examples)


def _as_generator(values: Iterator[Any]) -> Generator[Any, None, None]:
    """An iterator that can be closed."""
    yield from values
