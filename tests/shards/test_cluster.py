"""Shards on Ray: what a worker does without a cluster, and a real local cluster whose workers are killed."""

import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from processes import Command
from shard_files import files_of, images_of, keys_of, write_folder, write_tar
from swinv2.predict.predictor import Predictor
from swinv2.shards import cluster
from swinv2.shards.cluster import Attempts, Cluster, RayWorker, resources, usual_readers
from swinv2.shards.output import Output
from swinv2.shards.shard import Shard
from swinv2.shards.sources import divide, find_sources
from swinv2.shards.worker import Options, ShardWorker, Task, run_fingerprint

OPTIONS = Options(columns="labels,features", batch_size=4)


@pytest.fixture
def task(predictor: Predictor, model: Path, tmp_path: Path) -> Task:
    fingerprint = run_fingerprint(predictor, OPTIONS)
    return Task(str(model), OPTIONS, str(tmp_path / "out"), fingerprint, readers=0, device="cpu")


@pytest.fixture
def shards(task: Task, tmp_path: Path) -> list[Shard]:
    output = Output(task.output)
    output.prepare("lists", "shards")
    (source,), _ = find_sources([str(write_folder(tmp_path / "photos", images_of(10)))])
    return divide(source, output, 4)


def call(worker: RayWorker, shards: Sequence[Shard]) -> list[dict[str, Any]]:
    """Calls a worker as Ray Data does."""
    batch = {"shard": [json.dumps(asdict(shard)) for shard in shards]}
    return [json.loads(row["outcome"][0]) for row in worker(batch)]


def test_a_call_computes_shards(task: Task, shards: list[Shard], tmp_path: Path) -> None:
    attempts = Attempts()
    found = call(RayWorker(task, attempts.begin, attempts.end), shards)
    assert [(each["shard"], each["images"]) for each in found] == [
        (shard.name, images) for shard, images in zip(shards, [4, 4, 2], strict=True)
    ]
    assert keys_of(tmp_path / "out") == list(images_of(10))
    assert not attempts.counts


def test_a_call_that_is_repeated_computes_one_by_one(
    task: Task, shards: list[Shard], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shard that kills its worker each time fails, and the others are done."""
    attempts = Attempts()
    calls: list[list[Shard]] = []
    original = ShardWorker.compute

    def compute(self: ShardWorker, given: Sequence[Shard], *more: Any) -> Iterator[Any]:
        calls.append(list(given))
        for shard in given:
            if shard == shards[1]:
                raise KeyboardInterrupt  # nothing of the worker runs any more, as if it were killed
            yield from original(self, [shard], *more)

    monkeypatch.setattr(ShardWorker, "compute", compute)
    for _ in range(1 + cluster.ATTEMPTS):
        with pytest.raises(KeyboardInterrupt):
            call(RayWorker(task, attempts.begin, attempts.end), shards)
    found = call(RayWorker(task, attempts.begin, attempts.end), shards)
    assert [each["images"] for each in found] == [4, 0, 2]
    assert (
        found[1]["failed"]
        == f"the worker that computed it was killed {cluster.ATTEMPTS} times; had it too little memory?"
    )
    assert calls[0] == shards
    assert all(len(each) == 1 for each in calls[1:])
    assert not attempts.counts


def test_what_stops_a_worker_is_said(
    task: Task, shards: list[Shard], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = Attempts()
    gone = replace(task, model=str(tmp_path / "gone"))
    assert "there is no folder" in call(RayWorker(gone, attempts.begin, attempts.end), shards)[0]["stop"]

    def fail(*arguments: object) -> None:
        raise ZeroDivisionError("a mistake")

    worker = RayWorker(task, attempts.begin, attempts.end)
    monkeypatch.setattr("swinv2.shards.answers.AnswersWriter._write_group", fail)
    (row,) = call(worker, shards)
    assert "ZeroDivisionError: a mistake" in row["crash"]


def test_what_a_worker_needs(task: Task) -> None:
    assert resources(task) == {"num_cpus": 1, "num_gpus": 0}
    assert resources(replace(task, readers=3, options=replace(OPTIONS, threads=4))) == {"num_cpus": 7, "num_gpus": 0}
    on_gpu = replace(task, readers=7, options=replace(OPTIONS, device="cuda", threads=0))
    assert resources(on_gpu) == {"num_cpus": 7, "num_gpus": 1}
    assert usual_readers(Cluster(64, 8), "auto") == 7
    assert usual_readers(Cluster(64, 8), "cpu") == usual_readers(Cluster(64, 0), "auto") == 0
    assert (Cluster(64, 8).device, Cluster(64, 0).device) == ("cuda", "cpu")


needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray")
small_memory = pytest.mark.skipif(
    not Path("/dev/shm").is_dir() or os.statvfs("/dev/shm").f_bavail * os.statvfs("/dev/shm").f_frsize < 400 << 20,
    reason="Ray needs 400 MB of shared memory",
)


@needs_ray
@small_memory
@pytest.mark.slow
@pytest.mark.timeout(1_200)
def test_workers_and_drivers_that_are_killed_change_nothing(model: Path, tmp_path: Path) -> None:
    """A local cluster of two workers: a run that was disturbed ten times has the files of one without a cluster."""
    named = [
        write_folder(tmp_path / "photos", images_of(240, broken=[5, 77])),
        *(write_tar(tmp_path / f"{number}.tar", images_of(20, first=1_000 + 20 * number)) for number in range(8)),
    ]
    common = [*named, "-m", model, "--columns", "labels,features", "--shard-size", 12, "--json"]
    with Command([*common, "-o", tmp_path / "expected", "--threads", 1], tmp_path / "alone") as expected:
        assert expected.wait() == 1, expected.errors()
    on_ray = [*common, "-o", tmp_path / "out", "--ray", "local", "--workers", 2]
    chance, killed, status = random.Random(0), {"worker": 0, "driver": 0}, None
    while status is None:
        with Command(on_ray, tmp_path / f"driver-{killed['driver']}") as driver:
            while driver.is_running():
                time.sleep(chance.uniform(0.5, 3))
                workers = driver.processes(b"ray::MapWorker")
                if sum(killed.values()) >= 10 or not workers:
                    continue
                if killed["driver"] < 2 and killed["worker"] >= 3 * (killed["driver"] + 1):
                    killed["driver"] += 1
                    driver.kill()
                    break
                with suppress(ProcessLookupError):
                    os.kill(chance.choice(workers), signal.SIGKILL)
                    killed["worker"] += 1
            else:
                status = driver.wait()
    # 1: there are broken images, in shards that this driver may not have computed.
    assert status in (0, 1), driver.errors()
    assert killed["driver"] == 2, killed
    assert killed["worker"] >= 5, killed
    assert driver.lines()[-1]["failed"] == []
    assert files_of(tmp_path / "out") == files_of(tmp_path / "expected")


@needs_ray
@small_memory
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_stdout_has_data_only(model: Path, tmp_path: Path) -> None:
    """Also if Ray prints that a worker was killed; and a shard that kills its worker each time is named."""
    named = [write_tar(tmp_path / f"{number}.tar", images_of(5, first=10 * number)) for number in range(6)]
    # A module that each Python process imports: the image of one archive kills who prepares it.
    (tmp_path / "site" / "deadly").mkdir(parents=True)
    (tmp_path / "site" / "sitecustomize.py").write_text(
        "import sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name != 'swinv2.shards.worker': return None\n"
        "        sys.meta_path.remove(self)\n"
        "        import importlib, os\n"
        "        spec = importlib.util.find_spec(name)\n"
        "        original = spec.loader.exec_module\n"
        "        def exec_module(module):\n"
        "            original(module)\n"
        "            read = module.read_rows\n"
        "            def read_rows(shard, *more):\n"
        "                if shard.source.endswith('3.tar'): os.kill(os.getpid(), 9)\n"
        "                return read(shard, *more)\n"
        "            module.read_rows = read_rows\n"
        "        spec.loader.exec_module = exec_module\n"
        "        return spec\n"
        "sys.meta_path.insert(0, Finder())\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path / "site"), environment.get("PYTHONPATH", "")])
    arguments = [*named, "-m", model, "-o", tmp_path / "out", "--ray", "local", "--workers", 2, "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "swinv2", "predict", *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 1, done.stderr
    assert lines[-1]["images"] == 25
    (failed,) = lines[-1]["failed"]
    assert failed["source"] == str(named[3])
    assert "was killed 5 times" in failed["reason"]
    assert len(files_of(tmp_path / "out")) == 5


@needs_ray
@pytest.mark.slow
@pytest.mark.parametrize(
    ("address", "reason"),
    [("127.0.0.1:1", "Connection refused"), ("auto", "Could not find any running Ray instance"), ("nonsense", "")],
)
def test_a_cluster_that_is_not_there(model: Path, tmp_path: Path, address: str, reason: str) -> None:
    source = write_tar(tmp_path / "a.tar", images_of(1))
    arguments = [source, "-m", model, "-o", tmp_path / "out", "--ray", address]
    done = subprocess.run(
        [sys.executable, "-m", "swinv2", "predict", *map(str, arguments)], capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 2
    assert f"error: --ray '{address}' cannot be reached: " in done.stderr
    assert reason in done.stderr
