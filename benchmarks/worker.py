"""Runs one library at one setting in a separate process, as in real use: no other library's model is in its memory.

    python benchmarks/worker.py LIBRARY SETTING_AS_JSON

It prints {"parameters": number} when it is ready. Then it answers each line of its stdin with a line of JSON: for a
number, the time of this many steps; for "memory", the memory of a step. {"error": sentence} reports a failure. The
process ends at the end of its stdin. `Worker` is the other end of the pipe.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import memory
import torch
from cases import Setting, make_step
from memory import Memory

MakeStep = Callable[[str, Any], tuple[Callable[[], None], int]]

WARM_STEPS = 2
"""The first step compiles and creates the optimizer's state; the second one fills the libraries' caches."""

RECOMPILE_LIMIT = 128
"""With the default limit, a peer that compiles one function for many shapes would fall back to eager execution."""

REST_SECONDS = 0.02
"""Pause after a measurement: OpenMP threads spin for some milliseconds after their work, which would slow down the next
library. OpenVINO's threads spin for one millisecond."""

MEMORY_ATTEMPTS, MEMORY_SECONDS = 10, 4.0
"""Number of attempts of a step that finds too little memory, and seconds between them."""


@dataclass(frozen=True)
class Timing:
    """The time of one step in one measurement.

    Attributes:
        seconds: Elapsed time.
        cpu_seconds: Processor time of all threads together.
    """

    seconds: float
    cpu_seconds: float


class Worker:
    """A process that runs one library.

    Args:
        library: A name in `cases.LIBRARIES`.
        setting: The setting to run.
        environment: Environment variables in addition to this process's own.

    Raises:
        RuntimeError: The process failed; the message is its error, its signal, or its last line of output.
    """

    program: ClassVar[Sequence[str]] = (str(Path(__file__).resolve()),)
    """The file that is the program, and its first arguments."""

    def __init__(self, library: str, setting: Setting, environment: Mapping[str, str] | None = None) -> None:
        command = [sys.executable, *self.program, library, json.dumps(asdict(setting))]
        # A file, because a pipe that is not read fills up and blocks the process.
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            command,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self.parameters: int = self._answer()["parameters"]

    def time(self, repeats: int) -> Timing:
        """Repeats the step; returns the time of one."""
        return Timing(**self._ask(str(repeats)))

    def memory(self) -> Memory:
        """The memory of a step."""
        return Memory(**self._ask("memory"))

    def close(self) -> None:
        """Ends the process."""
        with contextlib.suppress(BrokenPipeError):  # the process has already ended
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def _ask(self, question: str) -> dict[str, float]:
        with contextlib.suppress(BrokenPipeError):  # _answer raises an error with the reason
            print(question, file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, float]:
        line = self._process.stdout.readline()
        try:
            answer = json.loads(line) if line else {}
        except ValueError:
            answer = {"error": f"answered {line.strip()!r}"}
        if answer and "error" not in answer:
            return answer
        if answer:
            self._process.kill()
        status = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().strip()
        self.close()
        if said:
            print(said, file=sys.stderr, flush=True)
        if answer:
            raise RuntimeError(answer["error"])
        if status < 0:
            raise RuntimeError(f"killed by signal {-status}: out of memory?")
        raise RuntimeError(said.splitlines()[-1] if said else "ended without a message")


def main(arguments: Sequence[str], setting_class: type[Setting] = Setting, make: MakeStep = make_step) -> None:
    """Answers the requests on stdin; see the top of this file.

    Args:
        arguments: The library, and the setting as JSON.
        setting_class: The class of the setting.
        make: Makes the step of a library at a setting, and says its number of parameters.
    """
    # Output of libraries, also of C libraries, must not be mixed with answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**values: float | str) -> None:
        print(json.dumps(values), file=answers, flush=True)

    try:
        work(arguments[0], setting_class(**json.loads(arguments[1])), make, answer)
    # A library may fail in any way, and the failure is a result.
    except Exception as error:
        traceback.print_exc()
        lines = str(error).strip().splitlines()
        answer(error=f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}")
        sys.exit(1)


def work(library: str, setting: Setting, make: MakeStep, answer: Callable[..., None]) -> None:
    """Prepares the library's step and answers requests until stdin ends."""
    on_cuda = setting.device == "cuda"
    torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
    if on_cuda:
        memory.settle_cuda()
    synchronize = torch.cuda.synchronize if on_cuda else torch.cpu.synchronize
    torch.manual_seed(0)
    before = torch.cuda.memory_allocated() if on_cuda else 0
    step, parameters = make(library, setting)
    for _ in range(WARM_STEPS):
        _step_when_there_is_memory(step)
    synchronize()
    if on_cuda:
        torch.cuda.empty_cache()
    answer(parameters=parameters)
    for line in sys.stdin:
        if line.strip() == "memory":
            needs = memory.measure_on_cuda(before, step) if on_cuda else memory.measure_on_cpu(step)
            if on_cuda:
                torch.cuda.empty_cache()
            answer(**asdict(needs))
            continue
        repeats = int(line)
        if on_cuda:
            # Fills the allocator again: it was emptied after the last answer.
            step()
            synchronize()
        start, cpu_start = time.perf_counter(), time.process_time()
        for _ in range(repeats):
            step()
        synchronize()
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
        if on_cuda:
            # The other processes, which wait with a model on the device, need the memory now.
            torch.cuda.empty_cache()
        time.sleep(REST_SECONDS)
        answer(seconds=seconds / repeats, cpu_seconds=cpu_seconds / repeats)


def _step_when_there_is_memory(step: Callable[[], None]) -> None:
    """Runs a step on a GPU whose memory other processes may hold for a moment while they prepare."""
    for attempt in range(MEMORY_ATTEMPTS):
        try:
            step()
            return
        except torch.OutOfMemoryError:
            if attempt == MEMORY_ATTEMPTS - 1:
                raise
        # After the handler, because inside it the error still holds the step's tensors.
        torch.cuda.empty_cache()
        time.sleep(MEMORY_SECONDS)


if __name__ == "__main__":
    main(sys.argv[1:])
