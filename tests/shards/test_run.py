"""A whole run in one process: what it computes, resumes, compares and calls an error."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from processes import Command
from shard_files import (
    BROKEN,
    files_of,
    image_bytes,
    images_of,
    keys_of,
    read_answers,
    write_folder,
    write_parquet,
    write_tar,
)
from small_models import make_model
from swinv2.errors import UsageError
from swinv2.shards.run import Run, compute_here, prepare_run
from swinv2.shards.worker import Options, Outcome

OPTIONS = Options(device="cpu", shard_size=4, batch_size=3)


class Runner:
    """Runs into one output, with options of its own."""

    def __init__(self, model: Path, output: Path) -> None:
        self.model, self.output = model, output

    def prepare(self, *named: object, model: Path | None = None, retry_errors: bool = False, **options: Any) -> Run:
        return prepare_run(
            map(str, named),
            str(self.output),
            str(model or self.model),
            replace(OPTIONS, **options),
            readers=0,
            retry_errors=retry_errors,
        )

    def __call__(self, *named: object, **options: Any) -> list[Outcome]:
        return list(compute_here(self.prepare(*named, **options)))


@pytest.fixture
def run(model: Path, tmp_path: Path) -> Runner:
    return Runner(model, tmp_path / "out")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "photos", images_of(10, broken=[3]))


def test_a_run_and_the_same_again(run: Runner, photos: Path) -> None:
    assert [outcome.images for outcome in run(photos)] == [4, 4, 2]
    assert keys_of(run.output) == list(images_of(10))
    again = run.prepare(photos)
    assert (len(again.pending), again.shards, list(again.missing)) == (0, 3, [])
    manifest = json.loads((run.output / "predict.json").read_text())
    assert manifest["model"] == str(run.model)
    assert manifest["options"]["shard_size"] == 4
    assert {path.name for path in run.output.iterdir()} == {"predict.json", "lists", "shards"}


def test_a_run_that_was_stopped_computes_what_is_missing(run: Runner, photos: Path) -> None:
    following = compute_here(run.prepare(photos))
    next(following)
    following.close()
    assert len(files_of(run.output)) == 1
    assert [outcome.part for outcome in run(photos)] == [1, 2]
    assert keys_of(run.output) == list(images_of(10))


def test_more_sources_may_follow(run: Runner, photos: Path, tmp_path: Path) -> None:
    run(photos)
    archives = [write_tar(tmp_path / f"{number}.tar", images_of(2, first=20 + number)) for number in range(2)]
    run(archives[0])
    assert [outcome.source for outcome in run(photos, tmp_path / "*.tar")] == [str(archives[1])]
    assert len(read_answers(run.output)) == 14


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 2}, "top_k 3 there, 2 here"),
        ({"columns": "labels,features"}, "columns"),
        ({"batch_size": 4}, "batch_size"),
        ({"shard_size": 5}, "shard_size"),
        ({"threads": torch.get_num_threads() + 1}, "threads"),
        ({"dtype": "bfloat16"}, "dtype"),
        ({"key_column": "id"}, "key_column null there"),
    ],
)
def test_another_option_is_an_error(run: Runner, photos: Path, options: dict[str, Any], message: str) -> None:
    run(photos)
    before = files_of(run.output)
    with pytest.raises(UsageError, match=message):
        run(photos, **options)
    assert files_of(run.output) == before


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"id2label": dict(enumerate("abcd"))}, "config.id2label"),
        ({"problem_type": "multi_label_classification"}, "config.problem_type"),
    ],
)
def test_another_model_is_an_error(
    run: Runner, photos: Path, tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    run(photos)
    with pytest.raises(UsageError, match=message):
        run(photos, model=make_model(tmp_path / "other", **fields))


def test_other_weights_or_another_processor_are_an_error(run: Runner, photos: Path, tmp_path: Path) -> None:
    run(photos)
    other = make_model(tmp_path / "other")
    # The same model by another name.
    assert run(photos, model=other) == []
    fields = json.loads((other / "preprocessor_config.json").read_text())
    (other / "preprocessor_config.json").write_text(json.dumps(fields | {"image_mean": [0.4] * 3}))
    with pytest.raises(UsageError, match=r"processor.image_mean"):
        run(photos, model=other)
    from safetensors.torch import load_file, save_file

    weights = load_file(run.model / "model.safetensors")
    weights["classifier.bias"][0] += 1
    other = make_model(tmp_path / "another")
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match="other weights"):
        run(photos, model=other)


def test_a_source_that_has_changed_is_an_error(run: Runner, photos: Path, tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "a.tar", images_of(3))
    (tmp_path / "list.txt").write_text("".join(f"photos/{name}\n" for name in images_of(9)))
    run(photos, archive, tmp_path / "list.txt")
    (photos / "new.png").write_bytes(image_bytes(99))
    with pytest.raises(UsageError, match=r"1 were added \(new.png\)"):
        run(photos)
    write_tar(archive, images_of(30))
    with pytest.raises(UsageError, match=r"a.tar' has changed since '.*parquet' was written. Delete the files"):
        run(archive)
    # Shorter by the last shard.
    (tmp_path / "list.txt").write_text("".join(f"photos/{name}\n" for name in images_of(8)))
    with pytest.raises(UsageError, match=r"list.txt' has changed"):
        run(tmp_path / "list.txt")
    for file in (run.output / "shards").glob("list.txt-*"):
        file.unlink()
    assert [outcome.images for outcome in run(tmp_path / "list.txt")] == [4, 4]


def test_errors_are_computed_again_if_one_asks(run: Runner, photos: Path, tmp_path: Path) -> None:
    good, cut = (write_tar(tmp_path / name, images_of(3)) for name in ("good.tar", "cut.tar"))
    cut.write_bytes(cut.read_bytes()[:5_500])
    damage = run(photos, good, cut)[-1].damage
    assert damage is not None
    before = files_of(run.output)
    assert run(photos, good, cut) == []
    (photos / "0003.png").write_bytes(image_bytes(3))
    first, second = run(photos, good, cut, retry_errors=True)
    assert (first.source, first.part, first.images, first.errors) == (str(photos), 0, 4, 0)
    assert (second.source, second.damage) == (str(cut), damage)
    assert files_of(run.output).keys() == before.keys()
    assert [row["error"] for row in read_answers(run.output) if row["source"] == str(photos)] == [None] * 10
    # What is missing is computed too.
    next((run.output / "shards").glob("photos-*-000001.*")).unlink()
    assert [outcome.part for outcome in run(photos, retry_errors=True)] == [1]


def test_a_shard_that_failed_is_tried_again(run: Runner, tmp_path: Path) -> None:
    good, bad = write_tar(tmp_path / "1.tar", images_of(3)), tmp_path / "2.tar"
    bad.write_bytes(BROKEN)
    assert [outcome.failed is None for outcome in run(good, bad)] == [True, False]
    write_tar(bad, images_of(3))
    assert [(outcome.source, outcome.images) for outcome in run(good, bad)] == [(str(bad), 3)]


def test_threads_and_device_are_those_of_the_first_run(
    run: Runner, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run.prepare(photos, device="auto")
    assert first.task.options.device == first.task.device
    threads = torch.get_num_threads()
    assert first.task.options.threads == threads
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 3)
    assert run.prepare(photos, device="auto").task.options.threads == threads
    if first.task.options.device == "cpu":
        manifest = json.loads((run.output / "predict.json").read_text())
        manifest["options"]["device"] = "cuda"
        (run.output / "predict.json").write_text(json.dumps(manifest))
        if not torch.cuda.is_available():
            with pytest.raises(UsageError, match=r"was begun on 'cuda'"):
                run.prepare(photos, device="auto")


def test_workers_on_other_machines(model: Path, photos: Path, tmp_path: Path) -> None:
    """Their device counts, and one thread each."""
    prepare = lambda **options: prepare_run(  # noqa: E731
        [str(photos)], str(tmp_path / "out"), str(model), Options(**options), workers_have="cuda"
    )
    prepared = prepare(device="auto")
    assert (prepared.task.device, prepared.task.options.device, prepared.task.options.threads) == ("cuda", "cuda", 0)
    assert prepared.predictor is None
    with pytest.raises(UsageError, match=r"device"):
        prepare(device="cpu")
    on_cpus = prepare_run([str(photos)], str(tmp_path / "b"), str(model), Options(device="auto"), workers_have="cpu")
    assert (on_cpus.task.options.device, on_cpus.task.options.threads) == ("cpu", 1)
    with pytest.raises(UsageError, match="in the memory of this process"):
        prepare_run([str(photos)], "memory://workers", str(model), Options(), workers_have="cpu")
    with pytest.raises(UsageError, match="the workers have 'cpu'"):
        prepare_run([str(photos)], str(tmp_path / "c"), str(model), Options(device="cuda:1"), workers_have="cpu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": "label"}, "--columns is 'label'; expected 'labels', 'features', 'labels,features'"),
        ({"columns": "features,features"}, "--columns"),
        ({"feature_type": "int8"}, "--feature-type is 'int8'; expected float32 or float16"),
        ({"stage": "stage1"}, "--stage stage1 needs --columns features"),
        ({"stage": "stage9", "columns": "features"}, "pooled, stem, stage1, stage2"),
    ],
)
def test_options_that_are_none(run: Runner, photos: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run(photos, **options)
    assert not (run.output / "predict.json").exists()


def test_columns_in_any_order(run: Runner, photos: Path) -> None:
    assert run.prepare(photos, columns="features,labels").task == run.prepare(photos, columns="labels,features").task


def test_a_column_that_is_none_is_one_error(run: Runner, tmp_path: Path) -> None:
    files = [write_parquet(tmp_path / f"{number}.parquet", {"x": [1], "y": ["a"]}) for number in range(3)]
    with pytest.raises(UsageError, match="give --image-column"):
        run(*files)
    write_folder(tmp_path / "photos", images_of(2))
    paths = write_parquet(tmp_path / "p.parquet", {"y": ["photos/0000.png", "photos/0001.png"], "n": ["one", "two"]})
    assert [outcome.errors for outcome in run(paths, image_column="y", key_column="n")] == [0]
    assert keys_of(run.output) == ["one", "two"]


def test_answers_of_other_settings(run: Runner, photos: Path) -> None:
    run(photos)
    (run.output / "shards" / f"x-{'0' * 12}-000000.{'1' * 12}.{'2' * 16}.parquet").touch()
    with pytest.raises(UsageError, match="has answers of other settings"):
        run(photos)


def test_the_output_may_be_among_the_sources(model: Path, tmp_path: Path) -> None:
    write_folder(tmp_path / "all" / "photos", images_of(3))
    runner = Runner(model, tmp_path / "all" / "out")
    assert [outcome.images for outcome in runner(tmp_path / "all")] == [3]
    assert runner(tmp_path / "all") == []
    archives = tmp_path / "archives"
    write_parquet(archives / "a.parquet", {"image": list(images_of(2).values())})
    runner = Runner(model, archives / "out")
    assert [outcome.images for outcome in runner(archives / "**" / "*.parquet")] == [2]
    assert runner(archives / "**" / "*.parquet", archives) == []


def test_output_in_a_store(model: Path, photos: Path, tmp_path: Path) -> None:
    output = f"memory://{tmp_path.name}/run"
    for expected in ([4, 4, 2], []):
        prepared = prepare_run([str(photos)], output, str(model), OPTIONS, readers=0)
        assert [outcome.images for outcome in compute_here(prepared)] == expected
    with pytest.raises(UsageError, match="top_k"):
        prepare_run([str(photos)], output, str(model), replace(OPTIONS, top_k=1), readers=0)
    (photos / "0000.png").unlink()
    with pytest.raises(UsageError, match="1 are gone"):
        prepare_run([str(photos)], output, str(model), OPTIONS, readers=0)


@pytest.mark.slow
@pytest.mark.timeout(1_200)
def test_twenty_kills_change_nothing(model: Path, tmp_path: Path) -> None:
    """Of the process, and of those that read for it, at random moments: the same files, with each row once."""
    named = [
        write_folder(tmp_path / "photos", images_of(3_000, broken=range(0, 3_000, 97))),
        *(write_tar(tmp_path / f"{number}.tar", images_of(100, first=3_000 + 100 * number)) for number in range(40)),
        write_parquet(tmp_path / "p.parquet", {"image": list(images_of(500, first=8_000).values())}),
    ]
    common = [*named, "-m", model, "--columns", "labels,features", "--shard-size", 20, "--readers", 2]
    common += ["--batch-size", 1, "--json"]
    with Command([*common, "-o", tmp_path / "expected"], tmp_path / "alone") as expected:
        assert expected.wait() == 1, expected.errors()
    chance = random.Random(1)
    # Of the process, eight times, two of them while it begins.
    plan = ["reader"] * 12 + ["driver"] * 6 + ["early"] * 2
    chance.shuffle(plan)

    def files() -> int:
        return len(list((tmp_path / "out" / "shards").glob("*.parquet")))

    status: int | None = None
    for run in range(len(plan) + 1):
        begun = files()
        with Command([*common, "-o", tmp_path / "out"], tmp_path / f"run-{run}") as driver:
            while plan:
                # A kill after some shards, or at any moment of the beginning.
                before, deadline = files(), time.monotonic() + (chance.uniform(0, 4) if plan[-1] == "early" else 120)
                while (
                    driver.is_running() and time.monotonic() < deadline and (plan[-1] == "early" or files() == before)
                ):
                    time.sleep(0.02)
                assert driver.is_running(), (plan, driver.errors())
                if plan[-1] == "reader":
                    time.sleep(chance.uniform(0, 0.2))
                    # After a kill, the next readers may not have begun.
                    while not (readers := driver.processes()):
                        assert driver.is_running(), (plan, driver.errors())
                        time.sleep(0.02)
                    os.kill(chance.choice(readers), signal.SIGKILL)
                    plan.pop()
                    continue
                time.sleep(chance.uniform(0, 0.2))
                driver.kill()
                plan.pop()
                break
            else:
                status = driver.wait()
        # What is published stays.
        assert begun <= files()
        if status is not None:
            break
    assert not plan
    assert status in (0, 1), driver.errors()
    assert driver.lines()[-1]["failed"] == []
    assert files_of(tmp_path / "out") == files_of(tmp_path / "expected")
    rows = [(row["source"], row["row"]) for row in read_answers(tmp_path / "out")]
    assert len(rows) == len(set(rows)) == 7_500
    # The processes that read have ended with theirs.
    deadline = time.monotonic() + 20
    while driver.processes() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert driver.processes() == []


PEAK = """
import json, resource, sys
from swinv2.shards.run import compute_here, prepare_run
from swinv2.shards.worker import Options
source, output, model = sys.argv[1:]
run = prepare_run([source], output, model, Options(device="cpu", columns="labels,features", shard_size=20), readers=1)
images = sum(outcome.images for outcome in compute_here(run))
used = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
print(json.dumps({"shards": run.shards, "images": images, "used": used}))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_memory_does_not_grow_with_shards(model: Path, tmp_path: Path) -> None:
    """10 and 1,000 shards need the same memory within 5%, here and in the process that reads."""
    write_folder(tmp_path / "photos", images_of(20))
    used: dict[int, list[int]] = {}
    for count in (10, 1_000):
        source = tmp_path / f"{count}.txt"
        source.write_text("".join(f"photos/{name}\n" for name in images_of(20)) * count)
        done = subprocess.run(
            [sys.executable, "-c", PEAK, source, tmp_path / f"out-{count}", model],
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert (found["shards"], found["images"]) == (count, 20 * count)
        used[count] = found["used"]
    for few, many in zip(used[10], used[1_000], strict=True):
        assert many < 1.05 * few, used
        # Kilobytes; what torch needs is much more than what could grow.
        assert many - few < 20_000, used
