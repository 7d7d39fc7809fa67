"""The loop over shards: the answers of the model, for every kind of source, in the same bytes each time."""

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch

from shard_files import (
    files_of,
    image_bytes,
    images_of,
    read_answers,
    write_folder,
    write_parquet,
    write_tar,
)
from small_models import LABELS, make_model
from swinv2.errors import UsageError
from swinv2.images import read_image
from swinv2.predict.predictor import Classifier, FeatureExtractor, Predictor
from swinv2.shards.output import Output
from swinv2.shards.shard import Shard
from swinv2.shards.sources import divide, find_sources
from swinv2.shards.worker import ATTEMPTS, Options, Outcome, ShardWorker, Task, load_predictor, run_fingerprint

IMAGES = images_of(10, broken=[3])
BOTH = Options(columns="labels,features", batch_size=4)


def shards_of(output: Path, *named: object, size: int = 4) -> list[Shard]:
    place = Output(str(output))
    place.prepare("lists", "shards")
    found, _ = find_sources(map(str, named))
    return [shard for source in found for shard in divide(source, place, size)]


def task_of(predictor: Predictor, output: Path, options: Options = BOTH, **fields: Any) -> Task:
    return Task("a model", options, str(output), run_fingerprint(predictor, options), **{"readers": 0, **fields})


def compute(
    predictor: Predictor, output: Path, shards: list[Shard], options: Options = BOTH, **fields: Any
) -> list[Outcome]:
    worker = ShardWorker(task_of(predictor, output, options, **fields), predictor)
    try:
        return list(worker.compute(shards))
    finally:
        worker.close()


def by_hand(predictor: Predictor, content: bytes) -> tuple[list[int], list[float], np.ndarray]:
    """Indices, probabilities and features of an image, by calling the model."""
    pixels = torch.from_numpy(predictor.prepare(read_image(content)))[None]
    with torch.no_grad():
        logits = predictor.model(pixels).logits[0].softmax(-1).topk(3)
        pooled = predictor.model.swinv2(pixels).pooler_output[0]
    return logits.indices.tolist(), logits.values.tolist(), pooled.numpy()


def sources(folder: Path) -> dict[str, Path]:
    """The same images in each kind of source."""
    write_folder(folder / "photos", IMAGES)
    (folder / "list.txt").write_text("".join(f"photos/{name}\n" for name in IMAGES))
    write_tar(folder / "a.tar", IMAGES)
    write_tar(folder / "a.tar.gz", IMAGES, "w:gz")
    write_parquet(folder / "bytes.parquet", {"image": list(IMAGES.values()), "id": list(IMAGES)})
    write_parquet(folder / "paths.parquet", {"path": [f"photos/{name}" for name in IMAGES]})
    names = ["photos", "list.txt", "a.tar", "a.tar.gz", "bytes.parquet", "paths.parquet"]
    return {name: folder / name for name in names}


def test_each_kind_of_source_has_the_answers_of_the_model(predictor: Predictor, tmp_path: Path) -> None:
    expected = [None if number == 3 else by_hand(predictor, content) for number, content in enumerate(IMAGES.values())]
    for name, source in sources(tmp_path / "in").items():
        output = tmp_path / "out" / name
        outcomes = compute(predictor, output, shards_of(output, source, size=100))
        assert [(each.images, each.errors, each.failed, each.damage) for each in outcomes] == [(10, 1, None, None)], (
            name
        )
        rows = read_answers(output)
        assert [row["row"] for row in rows] == list(range(10))
        assert {row["source"] for row in rows} == {str(source)}
        assert [row["error"] for row in rows] == [None, None, None, "not an image", *[None] * 6]
        for row, answer in zip(rows, expected, strict=True):
            if answer is None:
                assert row["labels"] is row["features"] is None
                continue
            indices, probabilities, pooled = answer
            assert row["indices"] == indices
            assert row["labels"] == [LABELS[index] for index in indices]
            np.testing.assert_allclose(row["probabilities"], probabilities, atol=1e-6)
            np.testing.assert_allclose(row["features"], pooled, atol=1e-5)


def test_the_shards_of_a_list_have_all_rows_once(predictor: Predictor, tmp_path: Path) -> None:
    source = write_folder(tmp_path / "photos", IMAGES)
    shards = shards_of(tmp_path / "out", source, size=3)
    outcomes = compute(predictor, tmp_path / "out", shards)
    assert [outcome.shard for outcome in outcomes] == [shard.name for shard in shards]
    assert [outcome.images for outcome in outcomes] == [3, 3, 3, 1]
    assert [outcome.examples for outcome in outcomes] == [[], ["0003.png: not an image"], [], []]
    assert [(row["row"], row["key"]) for row in read_answers(tmp_path / "out")] == list(enumerate(IMAGES))


def test_it_does_not_matter_where_and_when(predictor: Predictor, tmp_path: Path) -> None:
    """In another order, one by one, with processes that read, and again."""
    named = [*sources(tmp_path / "in").values()]
    runs: dict[str, Callable[[list[Shard], Path], Any]] = {
        "together": lambda shards, output: compute(predictor, output, shards),
        "reversed": lambda shards, output: compute(predictor, output, shards[::-1]),
        "alone": lambda shards, output: [compute(predictor, output, [shard]) for shard in shards],
        "readers": lambda shards, output: compute(predictor, output, shards, readers=2),
    }
    found: dict[str, dict[str, bytes]] = {}
    for name, run in runs.items():
        output = tmp_path / name
        # The lists of folders are in the output; their place is not in the answers.
        run(shards_of(output, *named, size=3), output)
        found[name] = files_of(output)
    assert len(found["together"]) == 4 + 4 + 4
    assert all(files == found["together"] for files in found.values())


def test_what_is_done_is_not_done_again(predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = shards_of(
        tmp_path / "out", write_tar(tmp_path / "a.tar", IMAGES), write_tar(tmp_path / "b.tar", images_of(2))
    )
    first = compute(predictor, tmp_path / "out", shards)
    files = files_of(tmp_path / "out")
    monkeypatch.setattr(Classifier, "label_with_features", None)
    again = compute(predictor, tmp_path / "out", shards)
    assert [replace(each, seconds=0.0) for each in first] == again
    assert files_of(tmp_path / "out") == files
    monkeypatch.undo()
    compute(predictor, tmp_path / "out", shards, redo=True)
    assert files_of(tmp_path / "out") == files


def test_damaged_and_failing_shards_leave_the_others(predictor: Predictor, tmp_path: Path) -> None:
    files = {name: write_tar(tmp_path / f"{name}.tar", IMAGES) for name in ("cut", "gone", "good", "none", "other")}
    content = files["cut"].read_bytes()
    files["cut"].write_bytes(content[: len(content) // 2])
    write_tar(files["none"], {"a.txt": b"no image"})
    files["other"].write_bytes(b"no archive" * 100)
    shards = shards_of(tmp_path / "out", *files.values())
    files["gone"].unlink()
    for readers in (0, 2):
        cut, gone, good, none, other = compute(predictor, tmp_path / "out", shards, readers=readers, redo=True)
        assert cut.failed is None
        assert cut.damage == "unexpected end of data"
        assert 0 < cut.images < 10
        assert (good.images, good.failed, good.damage) == (10, None, None)
        assert [each.failed for each in (gone, none)] == ["no such file or directory", "it has no image"]
        assert other.failed is not None
        assert "no tar archive" in other.failed
        rows = read_answers(tmp_path / "out")
        assert [row["key"] for row in rows] == [*list(IMAGES)[: cut.images], None, *IMAGES]
        assert rows[cut.images]["error"] == "the rest of the shard is lost: unexpected end of data"
        assert rows[cut.images]["row"] == cut.images
    # The outcome of answers that exist says the same.
    (again,) = compute(predictor, tmp_path / "out", shards[:1])
    assert again.damage == "unexpected end of data"
    assert (again.images, again.errors) == (cut.images, cut.errors)


def test_images_that_cannot_be_prepared_are_rows(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_folder(tmp_path / "photos", {"a.png": image_bytes(0), "b.png": image_bytes(1, (3, 5))})
    (tmp_path / "list.txt").write_text(
        "photos/a.png\nphotos/gone.png\nphotos\nmemory://worker/c.png\nmemory://worker/d.png\n"
    )
    fsspec.filesystem("memory").pipe("/worker/c.png", image_bytes(2))
    original = Predictor.prepare

    def prepare(self: Predictor, image: Any) -> np.ndarray:
        if image.size == (5, 3):
            raise ValueError("too flat")
        return original(self, image)

    monkeypatch.setattr(Predictor, "prepare", prepare)
    compute(predictor, tmp_path / "out", shards_of(tmp_path / "out", source, tmp_path / "list.txt", size=9))
    assert [(row["key"], row["error"]) for row in read_answers(tmp_path / "out")] == [
        ("photos/a.png", None),
        ("photos/gone.png", "no such file or directory"),
        ("photos", "is a directory"),
        ("memory://worker/c.png", None),
        ("memory://worker/d.png", "no such file"),
        ("a.png", None),
        ("b.png", "the image processor cannot prepare it: too flat"),
    ]


def test_answers_that_are_no_numbers_are_errors(tmp_path: Path) -> None:
    predictor = load_predictor(str(make_model(tmp_path / "model")), BOTH, "cpu")
    with torch.no_grad():
        predictor.model.swinv2.layernorm.weight.fill_(torch.inf)  # type: ignore[union-attr]
    source = write_folder(tmp_path / "photos", images_of(2))
    for options in (BOTH, replace(BOTH, columns="labels")):
        output = tmp_path / options.columns
        compute(predictor, output, shards_of(output, source), options)
        assert [row["error"] for row in read_answers(output)] == ["the answer is NaN or infinite in float32"] * 2


@pytest.mark.parametrize("stage", ["pooled", "stage1"])
def test_features_alone(model: Path, tmp_path: Path, stage: str) -> None:
    options = Options(columns="features", stage=stage, feature_type="float16")
    predictor = load_predictor(str(model), options, "cpu")
    assert isinstance(predictor, FeatureExtractor)
    source = write_folder(tmp_path / "photos", IMAGES)
    compute(predictor, tmp_path / "out", shards_of(tmp_path / "out", source, size=9), options)
    rows = read_answers(tmp_path / "out")
    pixels = predictor.prepare(read_image(source / "0000.png"))
    (expected,) = predictor.features([pixels])
    np.testing.assert_allclose(rows[0]["features"], expected.flatten(), rtol=1e-2, atol=1e-2)
    assert rows[0].get("shape") == (None if stage == "pooled" else list(expected.shape))


def test_one_run_of_the_model_gives_both(predictor: Predictor, model: Path, tmp_path: Path) -> None:
    """The same numbers as each alone."""
    source = write_folder(tmp_path / "photos", images_of(6))
    outputs = {columns: tmp_path / columns for columns in ("labels,features", "labels", "features")}
    for columns, output in outputs.items():
        options = replace(BOTH, columns=columns)
        compute(load_predictor(str(model), options, "cpu"), output, shards_of(output, source, size=9), options)
    both, labels, features = (read_answers(output) for output in outputs.values())
    assert [row.pop("features") for row in both] == [row.pop("features") for row in features]
    assert both == labels


def test_processes_that_read_may_be_killed(predictor: Predictor, tmp_path: Path) -> None:
    shards = shards_of(tmp_path / "out", write_folder(tmp_path / "photos", images_of(40)), size=8)
    compute(predictor, tmp_path / "expected", shards_of(tmp_path / "expected", tmp_path / "photos", size=8))
    worker = ShardWorker(task_of(predictor, tmp_path / "out", readers=2), predictor)
    outcomes: list[Outcome] = []
    for outcome in worker.compute(shards):
        outcomes.append(outcome)
        if len(outcomes) in (1, 3):
            assert worker.readers._pool is not None
            os.kill(next(iter(worker.readers._pool._processes)), signal.SIGKILL)
    worker.close()
    assert [outcome.shard for outcome in outcomes] == [shard.name for shard in shards]
    assert files_of(tmp_path / "out") == files_of(tmp_path / "expected")


@pytest.mark.parametrize("readers", [1, 3])
def test_an_image_that_kills_who_reads_it_costs_its_shard(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, readers: int
) -> None:
    named = [write_tar(tmp_path / f"{number}.tar", images_of(3, first=10 * number)) for number in range(3)]
    original, deadly = Predictor.prepare, read_image(image_bytes(11)).tobytes()

    def prepare(self: Predictor, image: Any) -> np.ndarray:
        if image.tobytes() == deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, image)

    monkeypatch.setattr(Predictor, "prepare", prepare)
    outcomes = compute(predictor, tmp_path / "out", shards_of(tmp_path / "out", *named), readers=readers)
    assert [outcome.images for outcome in outcomes] == [3, 0, 3]
    assert outcomes[1].failed == (
        f"a process that reads images was killed {ATTEMPTS} times; has the machine too little memory?"
    )
    assert [row["key"] for row in read_answers(tmp_path / "out")] == [
        f"{number:04d}.png" for number in (0, 1, 2, 20, 21, 22)
    ]


def test_a_worker_with_another_model_stops(predictor: Predictor, tmp_path: Path) -> None:
    other = make_model(tmp_path / "other", id2label=dict(enumerate("abcd")))
    with pytest.raises(UsageError, match="of a worker is not that of the run"):
        ShardWorker(replace(task_of(predictor, tmp_path / "out"), model=str(other), device="cpu"))


def test_a_model_of_other_channels(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="takes 4 channels, but an image file has 3, or 1 as grey"):
        load_predictor(str(make_model(tmp_path, num_channels=4)), Options(), "cpu")


def test_what_cannot_be_written_is_raised(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no error of a shard: none could be written."""
    shards = shards_of(tmp_path / "out", write_tar(tmp_path / "a.tar", IMAGES))

    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("swinv2.shards.answers.AnswersWriter._write_group", fail)
    with pytest.raises(OSError, match="No space left"):
        compute(predictor, tmp_path / "out", shards, readers=2)
    assert files_of(tmp_path / "out") == {}


def test_answers_in_a_store(predictor: Predictor, tmp_path: Path) -> None:
    source = write_folder(tmp_path / "photos", IMAGES)
    output = Output("memory://answers-of-a-test")
    found, _ = find_sources([str(source)])
    shards = divide(found[0], output, 4)
    task = replace(task_of(predictor, tmp_path / "x"), output=output.place)
    worker = ShardWorker(task, predictor)
    assert [outcome.images for outcome in worker.compute(shards)] == [4, 4, 2]
    assert output.names("shards") == {shard.answers(task.fingerprint) for shard in shards}
    compute(predictor, tmp_path / "here", shards_of(tmp_path / "here", source))
    for name, content in files_of(tmp_path / "here").items():
        assert output.read(f"shards/{name}") == content
