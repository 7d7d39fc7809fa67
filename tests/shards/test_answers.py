"""Files of answers: what is written is read again, in groups, and the same rows are the same bytes."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from swinv2.predict.predictor import Prediction
from swinv2.shards import answers
from swinv2.shards.answers import Answer, AnswersWriter, Columns, Counts, count_answers

LABELS = [Prediction(3, "dog", 0.75), Prediction(0, "ant", 0.25)]
FEATURES = np.arange(4, dtype=np.float32) / 3
ROWS = [
    Answer(0, "a.jpg", LABELS, FEATURES),
    Answer(1, "b.jpg", error="not an image"),
    Answer(2, "\udcff.jpg", LABELS, -FEATURES),
]


def write(file: Path, rows: list[Answer], columns: Columns) -> Path:
    with AnswersWriter(file, "/photos", columns, {"swinv2.fingerprint": "x"}) as writer:
        for row in rows:
            writer.write(row)
    return file


@pytest.mark.parametrize("feature_type", ["float32", "float16"])
def test_what_is_written_is_read(tmp_path: Path, feature_type: str) -> None:
    table = pq.read_table(write(tmp_path / "a", ROWS, Columns(True, True, feature_type=feature_type)))
    assert table.column_names == [
        "source", "row", "key", "labels", "indices", "probabilities", "features", "error"
    ]  # fmt: skip
    assert table.schema.field("features").type.value_type == pa.from_numpy_dtype(np.dtype(feature_type))
    first, second, third = table.to_pylist()
    assert first["labels"], first["indices"] == (["dog", "ant"], [3, 0])
    assert first["probabilities"] == [0.75, 0.25]
    assert np.array_equal(np.array(first["features"], feature_type), FEATURES.astype(feature_type))
    assert second == {
        "source": "/photos", "row": 1, "key": "b.jpg", "labels": None, "indices": None, "probabilities": None,
        "features": None, "error": "not an image",
    }  # fmt: skip
    assert third["key"] == "\ufffd.jpg"
    assert (first["error"], third["error"]) == (None, None)


def test_columns_that_are_not_wanted_are_left_out(tmp_path: Path) -> None:
    labels = pq.read_table(write(tmp_path / "a", ROWS, Columns(True, False)))
    assert labels.column_names == ["source", "row", "key", "labels", "indices", "probabilities", "error"]
    maps = [Answer(0, "a", features=np.zeros((2, 3, 4), np.float32)), Answer(1, "b", features=np.ones((2, 1, 1)))]
    table = pq.read_table(write(tmp_path / "b", maps, Columns(False, True, shape=True)))
    assert table.column("shape").to_pylist() == [[2, 3, 4], [2, 1, 1]]
    assert [len(each) for each in table.column("features").to_pylist()] == [24, 2]


def test_rows_are_written_in_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "_ROWS", 3)
    rows = [Answer(number, str(number), LABELS, FEATURES) for number in range(7)]
    columns = Columns(True, True)
    assert sizes(write(tmp_path / "a", rows, columns)) == [3, 3, 1]
    monkeypatch.setattr(answers, "_NUMBERS", 2 * FEATURES.size)
    assert sizes(write(tmp_path / "b", rows, columns)) == [2, 2, 2, 1]
    assert sizes(write(tmp_path / "c", [], columns)) == []


def sizes(file: Path) -> list[int]:
    metadata = pq.read_metadata(file)
    return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]


def test_the_same_rows_are_the_same_bytes(tmp_path: Path) -> None:
    files = [write(tmp_path / name, ROWS, Columns(True, True)).read_bytes() for name in "ab"]
    assert files[0] == files[1]
    assert write(tmp_path / "c", [*ROWS[:2], ROWS[0]], Columns(True, True)).read_bytes() != files[0]


def test_rows_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "_ROWS", 2)
    columns = Columns(True, False)
    assert count_answers(write(tmp_path / "a", ROWS[:1] * 5, columns)) == Counts(5, 0)
    assert count_answers(write(tmp_path / "b", ROWS[1:2] * 5, columns)) == Counts(
        5, 5, None, ["b.jpg: not an image"] * 3
    )
    damaged = write(tmp_path / "c", [*ROWS, Answer(3, None, error="cut off")], columns)
    assert count_answers(damaged) == Counts(3, 1, "cut off", ["b.jpg: not an image"])
    assert count_answers(damaged, with_examples=False).errors == 2
    assert count_answers(write(tmp_path / "d", [], columns)) == Counts(0, 0)
