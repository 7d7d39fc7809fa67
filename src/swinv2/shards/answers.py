"""Files of answers: one parquet file for each shard, a row for each image.

In: rows with labels, features or an error. Out: a file that is written group by group, so that a shard is never in
memory as a whole. The same rows give the same bytes. This module knows no model.

| column | value |
| --- | --- |
| `source` | the folder, glob or file that the user named |
| `row` | the number of the image in it, from 0 |
| `key` | the name of the image; null in a last row that says how the shard is damaged |
| `labels`, `indices`, `probabilities` | lists, the most probable label first |
| `features` | a list: the pooled features, or a flattened map |
| `shape` | of a map: channels, height and width |
| `error` | why there is no answer, else null |
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
from pyarrow.parquet import ParquetFile, ParquetWriter

from swinv2.predict.predictor import Prediction

_ROWS, _NUMBERS = 1_000, 4_000_000
"""A group of rows is written when it has so many rows, or so many numbers of features: about 16 MB."""

LOST = "the rest of the shard is lost: "
"""Begins the error in the row of a shard's damage."""


class Answer(NamedTuple):
    """What is written about an image.

    Attributes:
        number, key: See `rows.Row`; the key is None in the row of a shard's damage.
        labels: The most probable labels; None if they are not wanted, or there is an error.
        features: The features; the same.
        error: Why there is no answer.
    """

    number: int
    key: str | None
    labels: Sequence[Prediction] | None = None
    features: np.ndarray | None = None
    error: str | None = None


@dataclass(frozen=True)
class Columns:
    """The columns of a file.

    Attributes:
        labels, features: Whether there are columns of labels and of features.
        shape: Whether the features are maps, with a column of their shapes.
        feature_type: "float32" or "float16".
    """

    labels: bool
    features: bool
    shape: bool = False
    feature_type: str = "float32"

    def schema(self) -> pa.Schema:
        """The Arrow schema."""
        fields: list[tuple[str, Any]] = [("source", pa.string()), ("row", pa.int64()), ("key", pa.string())]
        if self.labels:
            fields += [
                ("labels", pa.list_(pa.string())),
                ("indices", pa.list_(pa.int32())),
                ("probabilities", pa.list_(pa.float32())),
            ]
        if self.features:
            fields.append(("features", pa.list_(pa.from_numpy_dtype(np.dtype(self.feature_type)))))
        if self.shape:
            fields.append(("shape", pa.list_(pa.int32())))
        return pa.schema([*fields, ("error", pa.string())])


class AnswersWriter:
    """Writes a file of answers.

    Args:
        file: The file.
        source: The value of the column `source`.
        columns: The other columns.
        about: Metadata of the file.
    """

    def __init__(self, file: Path, source: str, columns: Columns, about: dict[str, str]) -> None:
        self.source, self.columns, self.schema = _text(source), columns, columns.schema().with_metadata(about)
        # Numbers of features hardly repeat, so a dictionary of them would be larger than they are.
        repeated = ["source", "labels.list.element"] if columns.labels else ["source"]
        options: Any = {"use_dictionary": repeated}
        self._writer = ParquetWriter(file, self.schema, compression="zstd", **options)
        self._rows: list[Answer] = []
        self._numbers = 0

    def write(self, answer: Answer) -> None:
        """Adds a row."""
        self._rows.append(answer)
        self._numbers += 0 if answer.features is None else answer.features.size
        if len(self._rows) == _ROWS or self._numbers >= _NUMBERS:
            self._write_group()

    def _write_group(self) -> None:
        """Writes the rows that are in memory."""
        rows, schema = self._rows, self.schema
        values: dict[str, Any] = {
            "source": pa.repeat(pa.scalar(self.source), len(rows)),
            "row": [each.number for each in rows],
            "key": [each.key if each.key is None else _text(each.key) for each in rows],
            "error": [each.error if each.error is None else _text(each.error) for each in rows],
        }
        if self.columns.labels:
            for name, attribute in (("labels", "label"), ("indices", "index"), ("probabilities", "probability")):
                values[name] = [
                    None if each.labels is None else [getattr(label, attribute) for label in each.labels]
                    for each in rows
                ]
        if self.columns.features:
            values["features"] = _as_lists([each.features for each in rows], self.columns.feature_type)
        if self.columns.shape:
            values["shape"] = [None if each.features is None else list(each.features.shape) for each in rows]
        arrays = [
            value if isinstance(value, pa.Array) else pa.array(value, schema.field(name).type)
            for name, value in ((name, values[name]) for name in schema.names)
        ]
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
        self._rows, self._numbers = [], 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._rows and error is None:
            self._write_group()
        self._writer.close()


def _as_lists(features: Sequence[np.ndarray | None], feature_type: str) -> pa.Array:
    """An Arrow array of lists, made without a Python object for each number."""
    lengths = [0 if each is None else each.size for each in features]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    flat = [each.reshape(-1).astype(feature_type) for each in features if each is not None]
    values = pa.array(np.concatenate(flat) if flat else np.zeros(0, feature_type))
    missing = pa.array([each is None for each in features])
    return pa.ListArray.from_arrays(pa.array(offsets), values, mask=missing)


def _text(text: str) -> str:
    """Text that parquet can store; the bytes of a name may be no valid text."""
    return os.fsencode(text).decode("utf-8", "replace")


@dataclass(frozen=True)
class Counts:
    """What a file of answers has.

    Attributes:
        images: Rows of images.
        errors: Of these, those with an error.
        damage: How the shard is damaged; None if it is not.
        examples: The names of the first images with an error, each with the error.
    """

    images: int
    errors: int
    damage: str | None = None
    examples: list[str] = field(default_factory=list[str])


MOST_EXAMPLES = 3


def count_answers(file: Any, with_examples: bool = True) -> Counts:
    """Counts the rows of a file of answers.

    Args:
        file: The open file, or its path.
        with_examples: Whether to read the errors too, if there are any. Without, only the end of the file is read, and
            damage is counted as an error.
    """
    parquet: Any = ParquetFile(file)
    leaf = next(i for i in range(parquet.metadata.num_columns) if parquet.schema.column(i).path == "error")
    groups = [parquet.metadata.row_group(group).column(leaf) for group in range(parquet.metadata.num_row_groups)]
    rows = parquet.metadata.num_rows
    errors = sum(group.num_values - group.statistics.null_count for group in groups)
    if not errors or not with_examples:
        return Counts(rows, errors)
    damage, examples = None, list[str]()
    for batch in parquet.iter_batches(columns=["key", "error"]):
        for key, error in zip(batch.column("key").to_pylist(), batch.column("error").to_pylist(), strict=True):
            if error is not None and key is None:
                damage = error.removeprefix(LOST)
            elif error is not None and len(examples) < MOST_EXAMPLES:
                examples.append(f"{key}: {error}")
    is_damaged = damage is not None
    return Counts(rows - is_damaged, errors - is_damaged, damage, examples)
