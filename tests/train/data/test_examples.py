"""Examples that depend on nothing but seed, epoch and index; and rows that are dealt out, each once."""

import random
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from accelerate import skip_first_batches
from torch import Tensor
from torch.utils.data import DataLoader

from swinv2.errors import UsageError
from swinv2.simmim import draw_mask
from swinv2.train.data.augment import Pixels, for_evaluation, for_finetuning
from swinv2.train.data.dataset import ImageDataset
from swinv2.train.data.examples import (
    IGNORED_LABEL,
    MOST_BROKEN_IN_A_ROW,
    EvaluationExamples,
    SampleIndex,
    SampleTransform,
    ShuffledBatches,
    StreamedExamples,
    TrainingExamples,
    collate,
    make_seed,
    read_images,
    seed_everything,
    seeded,
)
from swinv2.train.data.sources import open_dataset

PIXELS = Pixels((8, 8), (0.5,), (0.5,))
COUNT = 12


def dataset(count: int = COUNT, broken: tuple[int, ...] = ()) -> ImageDataset:
    """Grey images whose first pixel says which they are; the label is the number, too."""
    draw = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for index in range(count):
        pixels = draw.integers(0, 256, (10, 12), dtype=np.uint8)
        pixels[0, 0] = index
        rows.append({"image": b"broken" if index in broken else pixels, "label": index})
    return ImageDataset(rows, "image", "label", (), "source")


def masks() -> Tensor:
    return draw_mask((4, 4), (1, 1), 0.5)


def transform(seed: int = 0) -> SampleTransform:
    """With chance of all three kinds: torch's, numpy's and Python's."""
    augmented = for_finetuning(PIXELS, erase_probability=0.5)

    def varied(image: Any) -> Tensor:
        return augmented(image) + random.random() + float(np.random.rand())

    return SampleTransform(varied, 1, masks, seed)


def constant(image: Any) -> Tensor:
    return torch.zeros(1)


PLAIN = SampleTransform(constant, 1)


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[name], other[name]) if isinstance(one[name], Tensor) else one[name] == other[name]
        for name in one
    )


def test_images_to_evaluate_in_batches() -> None:
    batches = list(read_images(dataset(5, broken=(3,)), for_evaluation(PIXELS), 1, 2, 0))
    assert [tuple(batch.pixels.shape) for batch in batches] == [(2, 1, 8, 8), (2, 1, 8, 8), (1, 1, 8, 8)]
    assert [batch.labels.tolist() for batch in batches] == [[0, 1], [2, IGNORED_LABEL], [4]]
    assert [name.partition(":")[0] for batch in batches for name in batch.broken] == ["source[3]"]
    expected = EvaluationExamples(dataset(5), SampleTransform(for_evaluation(PIXELS), 1))[4]["pixel_values"]
    assert torch.equal(batches[2].pixels[0], expected)
    several = next(read_images(dataset(2), for_evaluation(PIXELS), 1, 2, 0, classes=3))
    assert several.labels.tolist() == [[1, 0, 0], [0, 1, 0]]


class TestChance:
    def test_an_example_depends_on_seed_epoch_and_index_alone(self) -> None:
        examples = TrainingExamples(dataset(), transform())
        first = examples[SampleIndex(3, 5)]
        seed_everything(99)
        examples[SampleIndex(0, 1)]
        assert same(first, examples[SampleIndex(3, 5)])
        assert same(first, TrainingExamples(dataset(), transform())[SampleIndex(3, 5)])
        assert not torch.equal(first["pixel_values"], examples[SampleIndex(4, 5)]["pixel_values"])
        assert not torch.equal(first["bool_masked_pos"], examples[SampleIndex(4, 5)]["bool_masked_pos"])
        other = TrainingExamples(dataset(), transform(1))[SampleIndex(3, 5)]
        assert not torch.equal(first["pixel_values"], other["pixel_values"])

    def test_samples_do_not_share_their_chance(self) -> None:
        examples = TrainingExamples(dataset(), transform())
        drawn = {tuple(examples[SampleIndex(0, index)]["bool_masked_pos"].tolist()) for index in range(COUNT)}
        assert len(drawn) > COUNT // 2

    def test_workers_change_nothing(self) -> None:
        examples = TrainingExamples(dataset(broken=(3,)), transform())
        loaded = [
            list(
                DataLoader(
                    examples, batch_sampler=ShuffledBatches(COUNT, 5, 0), num_workers=workers, collate_fn=collate
                )
            )
            for workers in (0, 2)
        ]
        assert len(loaded[0]) == 3
        assert all(same(one, other) for one, other in zip(*loaded, strict=True))

    def test_the_global_generators_do_not_notice(self) -> None:
        seed_everything(1)
        before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
        TrainingExamples(dataset(), transform())[SampleIndex(0, 0)]
        EvaluationExamples(dataset(), transform())[0]
        assert random.getstate() == before[0]
        assert np.array_equal(np.random.get_state()[1], before[1])
        assert torch.equal(torch.get_rng_state(), before[2])

    def test_the_states_come_back_after_an_error_too(self) -> None:
        seed_everything(1)
        before = torch.get_rng_state()
        with pytest.raises(IndexError), seeded(5):
            [][int(torch.rand(3)[0])]
        assert torch.equal(torch.get_rng_state(), before)

    def test_seeds_are_mixed(self) -> None:
        drawn = [(0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 0, 2), (0, 1), (2**63 - 1, 0), (2**32,), (2**32, 0), (0,), ()]
        seeds = {make_seed(*numbers) for numbers in drawn}
        assert len(seeds) == len(drawn)
        assert all(0 <= seed < 2**63 for seed in seeds)
        assert make_seed(3, 4) == make_seed(3, 4)


def epoch_of(length: int, batch_size: int, world_size: int, epoch: int = 0, **rest: Any) -> list[list[list[int]]]:
    """Indices of each batch of each process."""
    drawn = []
    for rank in range(world_size):
        batches = ShuffledBatches(length, batch_size, 7, rank, world_size, **rest)
        batches.epoch = epoch
        drawn.append([[one.index for one in batch] for batch in batches])
        assert len(drawn[-1]) == len(batches)
        assert all(one.epoch == epoch for batch in batches for one in batch)
    return drawn


def whole_batches(drawn: list[list[list[int]]]) -> list[list[int]]:
    return [list(chain(*step)) for step in zip(*drawn, strict=True)]


class TestShuffledBatches:
    @pytest.mark.parametrize("world_size", [1, 2, 4])
    def test_every_sample_once(self, world_size: int) -> None:
        drawn = whole_batches(epoch_of(48, 24 // world_size // 2, world_size))
        assert sorted(chain(*drawn)) == list(range(48))

    @pytest.mark.parametrize("length", [48, 53, 5])
    def test_steps_are_the_same_on_any_number_of_processes(self, length: int) -> None:
        one, two, four = (whole_batches(epoch_of(length, 8 // size, size)) for size in (1, 2, 4))
        assert one == two == four

    def test_epochs_and_seeds_have_orders_of_their_own(self) -> None:
        assert epoch_of(48, 8, 1, epoch=1) == epoch_of(48, 8, 1, epoch=1)
        assert epoch_of(48, 8, 1, epoch=1) != epoch_of(48, 8, 1, epoch=2)
        assert list(ShuffledBatches(48, 8, 1)) != list(ShuffledBatches(48, 8, 2))

    def test_the_last_batch_is_filled_from_the_beginning(self) -> None:
        drawn = list(chain(*whole_batches(epoch_of(10, 4, 1))))
        assert len(drawn) == 12
        assert drawn[10:] == drawn[:2]
        assert sorted(drawn[:10]) == list(range(10))

    def test_fewer_samples_than_a_batch(self) -> None:
        drawn = list(chain(*whole_batches(epoch_of(3, 4, 2))))
        assert drawn == (drawn[:3] * 3)[:8]

    def test_or_left_out(self) -> None:
        drawn = list(chain(*whole_batches(epoch_of(10, 4, 1, drop_last=True))))
        assert len(set(drawn)) == len(drawn) == 8

    def test_no_batch_at_all(self) -> None:
        with pytest.raises(UsageError, match="there are 7 images, but a batch of all processes has 8"):
            ShuffledBatches(7, 4, 0, 0, 2, drop_last=True)

    def test_the_first_batches_can_be_skipped(self) -> None:
        batches = ShuffledBatches(COUNT, 3, 0)
        batches.epoch = 2
        loader = DataLoader(TrainingExamples(dataset(), transform()), batch_sampler=batches, collate_fn=collate)
        whole, rest = list(loader), list(skip_first_batches(loader, 2))
        assert len(rest) == 2
        assert all(same(one, other) for one, other in zip(whole[2:], rest, strict=True))


class TestUnreadable:
    def test_the_next_one_takes_its_place(self) -> None:
        examples = TrainingExamples(dataset(broken=(4, 5, 11)), transform())
        example = examples[SampleIndex(1, 4)]
        assert example["labels"] == 6
        assert [name.split(":")[0] for name in example["broken"]] == ["source[4]", "source[5]"]
        assert all(len(name) > len("source[4]: ") for name in example["broken"])
        # As if the next one had been drawn itself.
        assert same(example, examples[SampleIndex(1, 6)] | {"broken": example["broken"]})
        assert examples[SampleIndex(1, 11)]["labels"] == 0

    def test_names_travel_with_the_batch(self) -> None:
        examples = TrainingExamples(dataset(broken=(4, 7)), PLAIN)
        batch = collate([examples[SampleIndex(0, index)] for index in (7, 1, 4)])
        assert batch["labels"].tolist() == [8, 1, 5]
        assert [name.split(":")[0] for name in batch["broken"]] == ["source[7]", "source[4]"]
        assert "bool_masked_pos" not in batch

    def test_evaluation_leaves_it_out(self) -> None:
        examples = EvaluationExamples(dataset(broken=(4,)), SampleTransform(for_evaluation(PIXELS), 1, masks))
        batch = collate([examples[index] for index in (3, 4)])
        assert batch["labels"].tolist() == [3, IGNORED_LABEL]
        assert batch["broken"][0].startswith("source[4]: ")
        assert batch["pixel_values"].shape == (2, 1, 8, 8)
        # What is not masked is not in the loss either.
        assert batch["bool_masked_pos"].sum(1).tolist() == [8, 0]
        unlabelled = ImageDataset(examples.dataset.rows, "image", None, (), "source")
        assert "labels" not in EvaluationExamples(unlabelled, examples.transform)[4]

    def test_several_labels_become_zeros_and_ones(self) -> None:
        pixels = np.zeros((8, 8), np.uint8)
        stored: list[tuple[Any, list[int]]] = [(pixels, [0, 2]), (pixels, []), (b"broken", [1])]
        rows = [{"image": image, "label": label} for image, label in stored]
        tagged = ImageDataset(rows, "image", "label", (), "source", several=True)
        examples = EvaluationExamples(tagged, SampleTransform(for_evaluation(PIXELS), 1, classes=3))
        batch = collate([examples[index] for index in range(3)])
        assert batch["labels"].dtype == torch.float32
        assert batch["labels"].tolist() == [[1, 0, 1], [0, 0, 0], [IGNORED_LABEL] * 3]

    @pytest.mark.parametrize("count", [3, MOST_BROKEN_IN_A_ROW + 5])
    def test_all_of_them(self, count: int) -> None:
        examples = TrainingExamples(dataset(count, broken=tuple(range(count))), PLAIN)
        seen = min(count, MOST_BROKEN_IN_A_ROW)
        with pytest.raises(UsageError, match=rf"^{seen} images in a row cannot be read, the first one source\[1\]: "):
            examples[SampleIndex(0, 1)]


ROWS, SHARDS = 60, 4


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees what another one, or an earlier run, has cached."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    # At the end of an epoch `datasets` sleeps, lest threads that read from afar outlive it; nothing is afar here.
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.0)


def shards(folder: Path, count: int = SHARDS, broken: tuple[int, ...] = ()) -> ImageDataset:
    """Sixty rows in files of uneven lengths, as a stream."""
    ends = [0, *(ROWS * (index + 1) // count + (index % 2 if index < count - 1 else 0) for index in range(count))]
    folder.mkdir()
    for index in range(count):
        numbers = range(ends[index], ends[index + 1])
        images = [[[255]] if number not in broken else None for number in numbers]
        rows = datasets.Dataset.from_dict({"image": images, "label": list(numbers)})
        rows.to_parquet(folder / f"{index}.parquet")
    return open_dataset(f"{folder}/*.parquet", "train", streaming=True)


def stream(examples: StreamedExamples, workers: int, count: int) -> list[int]:
    """Labels of so many examples."""
    loader = iter(DataLoader(examples, batch_size=None, num_workers=workers))
    return [next(loader)["labels"] for _ in range(count)]


def epoch_of_worker(examples: StreamedExamples, epoch: int, worker: int, workers: int, patch: Any) -> list[int]:
    """Labels of all that a worker reads in an epoch, as if this process were that worker."""
    info = torch.utils.data._utils.worker.WorkerInfo(id=worker, num_workers=workers, seed=0, dataset=examples)
    patch.setattr(torch.utils.data._utils.worker, "_worker_info", info)
    return [row["label"] for row in examples.rows(epoch)]


class TestStreamed:
    @pytest.mark.parametrize("buffer", [0, 10, 1000])
    @pytest.mark.parametrize(
        ("world_size", "workers"), [(1, 1), (2, 1), (2, 2), (4, 1), (3, 2), (8, 1), (8, 4), (1, 4)]
    )
    def test_every_row_once_in_all_processes_and_workers(
        self, tmp_path: Path, world_size: int, workers: int, buffer: int
    ) -> None:
        rows = shards(tmp_path / "data")
        for epoch in (0, 1):
            found: list[int] = []
            for rank in range(world_size):
                examples = StreamedExamples(rows, PLAIN, rank, world_size, buffer)
                for worker in range(workers):
                    with pytest.MonkeyPatch.context() as patch:
                        found += epoch_of_worker(examples, epoch, worker, workers, patch)
            assert sorted(found) == list(range(ROWS))

    def test_without_end_and_another_order_each_time(self, tmp_path: Path) -> None:
        drawn = stream(StreamedExamples(shards(tmp_path / "data"), PLAIN, shuffle_buffer=100), 0, 3 * ROWS)
        epochs = [drawn[start : start + ROWS] for start in range(0, 3 * ROWS, ROWS)]
        assert all(sorted(epoch) == list(range(ROWS)) for epoch in epochs)
        assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
        assert list(range(ROWS)) not in epochs

    def test_the_order_can_be_kept(self, tmp_path: Path) -> None:
        drawn = stream(StreamedExamples(shards(tmp_path / "data"), PLAIN, shuffle_buffer=0), 0, 2 * ROWS)
        assert drawn == [*range(ROWS), *range(ROWS)]

    def test_equal_seeds_give_equal_examples(self, tmp_path: Path) -> None:
        rows = shards(tmp_path / "data")
        one, same_again, other = (
            stream(StreamedExamples(rows, SampleTransform(constant, 1, seed=seed), shuffle_buffer=100), 0, ROWS)
            for seed in (1, 1, 2)
        )
        assert one == same_again
        assert one != other

    def test_real_workers(self, tmp_path: Path) -> None:
        """Over several epochs, which the two do not begin at the same time."""
        examples = StreamedExamples(shards(tmp_path / "data"), PLAIN, shuffle_buffer=20)
        drawn = stream(examples, 2, 3 * ROWS)
        assert drawn == stream(examples, 2, 3 * ROWS)
        # The files are of 16, 14, 16 and 14 rows: one worker reads 30 to 32 in an epoch, the other one the rest.
        counts = Counter(drawn)
        assert counts.keys() == set(range(ROWS))
        assert 2 <= min(counts.values()) <= max(counts.values()) <= 4

    def test_one_worker_that_is_ahead_does_not_disturb_another(self, tmp_path: Path) -> None:
        examples = StreamedExamples(shards(tmp_path / "data"), PLAIN, shuffle_buffer=20)
        alone = stream(examples, 0, 2 * ROWS)
        ahead, behind = iter(examples), iter(examples)
        for _ in range(3 * ROWS):
            next(ahead)
        assert [next(behind)["labels"] for _ in range(2 * ROWS)] == alone

    def test_chance_is_each_workers_own(self, tmp_path: Path) -> None:
        rows = shards(tmp_path / "data")

        def first(rank: int) -> Tensor:
            return next(iter(StreamedExamples(rows, SampleTransform(constant, 1, masks), rank, 2, 0)))[
                "bool_masked_pos"
            ]

        assert torch.equal(first(0), first(0))
        assert not torch.equal(first(0), first(1))

    def test_broken_rows_are_skipped_and_named(self, tmp_path: Path) -> None:
        examples = StreamedExamples(shards(tmp_path / "data", broken=(0, 5, 6, 59)), PLAIN, shuffle_buffer=0)
        read = iter(examples)
        found = [next(read) for _ in range(2 * (ROWS - 4))]
        assert [example["labels"] for example in found] == 2 * [
            number for number in range(ROWS) if number not in (0, 5, 6, 59)
        ]
        told = [[name.split("[")[1].split("]")[0] for name in example["broken"]] for example in found]
        # The last one of an epoch comes with the first one of the next.
        assert [names for names in told if names] == [["0"], ["5", "6"], ["59", "0"], ["5", "6"]]

    def test_all_of_them_broken(self, tmp_path: Path) -> None:
        examples = StreamedExamples(shards(tmp_path / "data", broken=tuple(range(ROWS))), PLAIN, shuffle_buffer=0)
        with pytest.raises(UsageError, match=f"^{MOST_BROKEN_IN_A_ROW} images in a row cannot be read, the first"):
            next(iter(examples))

    def test_a_worker_without_rows(self, tmp_path: Path) -> None:
        examples = StreamedExamples(shards(tmp_path / "data", 1), PLAIN)
        with pytest.MonkeyPatch.context() as patch:
            assert epoch_of_worker(examples, 0, 1, 2, patch) == []
            with pytest.raises(UsageError, match="no image for worker 1 of process 0; use fewer"):
                next(iter(examples))

    @pytest.mark.parametrize("workers", [0, 2])
    def test_the_first_batches_can_be_skipped(self, tmp_path: Path, workers: int) -> None:
        examples = StreamedExamples(shards(tmp_path / "data"), SampleTransform(constant, 1, masks), shuffle_buffer=20)
        loader = DataLoader(examples, 7, num_workers=workers, collate_fn=collate)
        whole = iter(loader)
        wanted = [next(whole) for _ in range(12)]
        rest = iter(skip_first_batches(loader, 4))
        assert all(same(batch, next(rest)) for batch in wanted[4:])

    @pytest.mark.parametrize("world_size", [1, 3, 8])
    def test_what_lies_on_the_disk_has_shards_for_many(self, tmp_path: Path, world_size: int) -> None:
        rows = datasets.Dataset.from_dict({"image": [[[255]]] * ROWS, "label": list(range(ROWS))})
        rows.save_to_disk(tmp_path / "saved")
        stored = open_dataset(str(tmp_path / "saved"), "train", streaming=True)
        found: list[int] = []
        for rank in range(world_size):
            for worker in range(2):
                with pytest.MonkeyPatch.context() as patch:
                    part = epoch_of_worker(StreamedExamples(stored, PLAIN, rank, world_size), 0, worker, 2, patch)
                assert part
                found += part
        assert sorted(found) == list(range(ROWS))
