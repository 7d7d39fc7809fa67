"""The shards of a run on a cluster of Ray, or on a local one that Ray starts: Ray Data gives shards to workers, each of
which has the model.

In: a run. Out: outcomes, in the order in which shards are done. A worker that is killed is started again, and what it
was given is computed again: shards whose answers exist are passed over. Ray is imported here only.
"""

import json
import logging
import math
import os
import re
import socket
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from swinv2.errors import UsageError, first_sentence
from swinv2.reading import usable_cores
from swinv2.shards.run import Run
from swinv2.shards.shard import Shard
from swinv2.shards.worker import ATTEMPTS, Outcome, ShardWorker, Task

LOCAL = "local"

_MOST_AT_ONCE, _CALLS = 16, 8
"""A worker gets at most so many shards at once, and is called at least so many times: it reads ahead within a call."""

_OBJECT_STORE = 200 << 20
"""Bytes of shared memory of a local cluster: only names and counts go through it, and containers have little."""


@dataclass(frozen=True)
class Cluster:
    """A cluster that is connected.

    Attributes:
        cpus, gpus: What it has now.
    """

    cpus: int
    gpus: int

    @property
    def device(self) -> str:
        """The kind of device that workers compute on, unless the user says otherwise."""
        return "cuda" if self.gpus else "cpu"


@contextmanager
def connected(address: str, least_cpus: int = 1) -> Iterator[Cluster]:
    """Connects to a cluster, and disconnects behind the block; a local one ends then.

    Args:
        address: "local" to start one on this machine; "auto", "host:port" or "ray://host:port" for one that runs.
        least_cpus: CPUs that a local one counts at least, so that it starts as many workers as the user wants.

    Raises:
        UsageError: Ray is not installed, or there is no such cluster.
    """
    # Before Ray is imported: it reports on its use otherwise, and C++ parts print what is no error here.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        import ray
        from ray.data import DataContext
    except ModuleNotFoundError as error:
        raise UsageError(f"--ray needs {error.name}, which is not installed; install swinv2[ray].") from error
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    mine = not ray.is_initialized()
    if mine:
        local: dict[str, Any] = {
            "include_dashboard": False,
            "object_store_memory": _OBJECT_STORE,
            "num_cpus": max(usable_cores(), least_cpus),
        }
        try:
            _check_port(address)
            ray.init(address, **quiet, **(local if address == LOCAL else {}))
        except (ConnectionError, ValueError, RuntimeError, OSError) as error:
            raise UsageError(
                f"--ray {address!r} cannot be reached: {first_sentence(error)}. Give local, auto (on a machine of the "
                "cluster), or host:port."
            ) from error
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    try:
        has = ray.cluster_resources()
        yield Cluster(int(has.get("CPU", 0)), int(has.get("GPU", 0)))
    finally:
        if mine:
            ray.shutdown()


def _check_port(address: str) -> None:
    """Checks that something listens at an address; Ray tries that for minutes.

    Raises:
        OSError: Nothing does.
    """
    found = re.fullmatch(r"(?:ray://)?\[?([^/\[\]]+)\]?:([0-9]+)", address)
    if found:
        socket.create_connection((found[1], int(found[2])), timeout=10).close()


class Attempts:
    """Counts how often something was begun. An actor of Ray, which workers ask."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def begin(self, name: str) -> int:
        """Counts, and returns the number so far."""
        self.counts[name] += 1
        return self.counts[name]

    def end(self, name: str) -> None:
        """Forgets a name."""
        del self.counts[name]


class RayWorker:
    """A worker as Ray Data calls it. Ray starts it again if it is killed, and repeats the call.

    Args:
        task: See `Task`.
        begin, end: Those of `Attempts`.
    """

    def __init__(self, task: Task, begin: Callable[[str], int], end: Callable[[str], None]) -> None:
        self.begin, self.end = begin, end
        self.worker: ShardWorker | None = None
        self.error: str | None = None
        try:
            self.worker = ShardWorker(task)
        # Ray would start the worker again and again, or print a long message.
        except UsageError as error:
            self.error = str(error)

    def __call__(self, batch: Mapping[str, Any]) -> Iterator[dict[str, list[str]]]:
        """Computes shards, and yields an outcome for each.

        Args:
            batch: "shard": the shards as JSON.
        """
        shards = [Shard(**json.loads(text)) for text in batch["shard"]]
        try:
            if self.worker is None:
                yield _row({"stop": self.error})
                return
            for outcome in self._compute(self.worker, shards):
                yield _row(outcome.as_values())
        except UsageError as error:
            yield _row({"stop": str(error)})
        # Ray Data prints a long message for an error of its functions.
        except Exception:
            yield _row({"crash": traceback.format_exc()})

    def _compute(self, worker: ShardWorker, shards: Sequence[Shard]) -> Iterator[Outcome]:
        """Computes shards: together; if that was begun before, one by one, so that one that kills its worker keeps no
        other from being done."""
        call = f"call {shards[0].name}"
        if self.begin(call) == 1:
            yield from worker.compute(shards)
        else:
            for shard in shards:
                if self.begin(shard.name) > ATTEMPTS:
                    reason = f"the worker that computed it was killed {ATTEMPTS} times; had it too little memory?"
                    yield Outcome.of(shard, failed=reason)
                else:
                    yield from worker.compute([shard])
                self.end(shard.name)
        self.end(call)


def _row(values: Mapping[str, Any]) -> dict[str, list[str]]:
    """A row of Ray Data."""
    return {"outcome": [json.dumps(values)]}


class _Remote:
    """Calls a method of an actor, and waits for its value."""

    def __init__(self, method: Any) -> None:
        self.method = method

    def __call__(self, name: str) -> Any:
        import ray

        return ray.get(self.method.remote(name))


class WorkerError(RuntimeError):
    """A worker raised an error; the message is its traceback."""


def compute_on(cluster: Cluster, run: Run, workers: int | None = None) -> Iterator[Outcome]:
    """Computes the shards of a run.

    Args:
        cluster: See `connected`.
        run: The run; its model is loaded by the workers.
        workers: Number of workers. None: one for each GPU; without GPUs, as many as the CPUs have threads for.

    Returns:
        An outcome for each shard, as they are done.

    Raises:
        UsageError: A worker cannot use the model, or cannot write.
        WorkerError: A worker raised another error.
    """
    import ray
    from ray.data import ActorPoolStrategy, from_items

    if not run.pending:
        return
    needs = resources(run.task)
    if needs["num_gpus"] > cluster.gpus or needs["num_cpus"] > cluster.cpus:
        raise UsageError(
            f"a worker needs {needs['num_cpus']} CPUs and {needs['num_gpus']} GPUs, but the cluster has {cluster.cpus} "
            f"and {cluster.gpus}; give fewer --threads or --readers."
        )
    workers = workers or max(cluster.gpus if needs["num_gpus"] else cluster.cpus // needs["num_cpus"], 1)
    workers = min(workers, len(run.pending))
    at_once = min(max(len(run.pending) // (workers * _CALLS), 1), _MOST_AT_ONCE)
    attempts: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Attempts).remote()
    items = [{"shard": json.dumps(asdict(shard))} for shard in run.pending]
    dataset: Any = from_items(items, override_num_blocks=math.ceil(len(items) / at_once))
    outcomes: Any = dataset.map_batches(
        RayWorker,
        batch_size=at_once,
        fn_constructor_args=(run.task, _Remote(attempts.begin), _Remote(attempts.end)),
        compute=ActorPoolStrategy(size=workers),
        **needs,
    )
    waiting = {shard.name for shard in run.pending}
    for row in outcomes.iter_rows():
        values = json.loads(row["outcome"])
        if "stop" in values:
            raise UsageError(values["stop"])
        if "crash" in values:
            raise WorkerError(values["crash"])
        # A call that was repeated may give outcomes again.
        if values["shard"] in waiting:
            waiting.remove(values["shard"])
            yield Outcome(**values)
    if waiting:
        raise WorkerError(f"Ray ended without an outcome for {len(waiting):,} shards; the same command computes them.")


def resources(task: Task) -> dict[str, int]:
    """What a worker needs of a cluster: CPUs for the model's threads and for the processes that read, and a GPU if the
    task is for one."""
    readers = task.readers or 0
    return {"num_cpus": max(task.options.threads + readers, 1), "num_gpus": 0 if task.options.device == "cpu" else 1}


def usual_readers(cluster: Cluster, device: str) -> int:
    """Processes that read images for each worker. A worker on a CPU reads by itself: its cores are busy with the model
    anyway. One on a GPU gets its share of the CPUs, but for one."""
    return 0 if device == "cpu" or not cluster.gpus else max(cluster.cpus // cluster.gpus - 1, 0)
