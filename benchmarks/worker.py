"""One library at one setting, in a process of its own, as in use: no other library's model is in its memory.

    python benchmarks/worker.py LIBRARY SETTING_AS_JSON

prints {"parameters": number} when it is ready, and then answers each line on its input with a line of JSON: a number
is so many steps to time, "memory" asks for what a step needs; {"error": sentence} says that it failed. It ends with
its input. `Worker` is the other end.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import memory
import torch
from cases import Setting, make_step
from memory import Memory

WARM_STEPS = 2
"""The first step compiles and makes the optimizer's state; the second settles what libraries keep for themselves."""

RECOMPILE_LIMIT = 128
"""A peer that must compile one function for many shapes would fall back to eager execution at the default limit."""

REST_SECONDS = 0.02
"""Threads of OpenMP spin for some milliseconds after their work, OpenVINO's for one: not in another library's turn."""

MEMORY_ATTEMPTS, MEMORY_SECONDS = 10, 4.0
"""How often a step is tried anew that found too little memory, and after how long."""


@dataclass(frozen=True)
class Timing:
    """How long one step took, in one measurement.

    Attributes:
        seconds: By the clock.
        cpu_seconds: Of processor time, all threads together.
    """

    seconds: float
    cpu_seconds: float


class Worker:
    """A process that does one library's work.

    Args:
        library: A name in `cases.LIBRARIES`.
        setting: What to do.
        environment: Variables beside this process's own.

    Raises:
        RuntimeError: The process failed; the message is its error, its signal, or the last line that it wrote.
    """

    def __init__(self, library: str, setting: Setting, environment: Mapping[str, str] | None = None) -> None:
        command = [sys.executable, str(Path(__file__).resolve()), library, json.dumps(asdict(setting))]
        # In a file: a pipe that nobody reads is full one day.
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
        """Has the step repeated, and says what one took."""
        return Timing(**self._ask(str(repeats)))

    def memory(self) -> Memory:
        """What a step needs."""
        return Memory(**self._ask("memory"))

    def close(self) -> None:
        """Ends the process."""
        with contextlib.suppress(BrokenPipeError):  # it has ended by itself
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def _ask(self, question: str) -> dict[str, float]:
        with contextlib.suppress(BrokenPipeError):  # _answer says why
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
        raise RuntimeError(said.splitlines()[-1] if said else "ended without a word")


def main() -> None:
    """Does what the command line and the input say; see the head of this file."""
    # What libraries print, C libraries too, must not be taken for an answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**values: float | str) -> None:
        print(json.dumps(values), file=answers, flush=True)

    try:
        work(sys.argv[1], Setting(**json.loads(sys.argv[2])), answer)
    # A library may fail in any way, and its failure is a result.
    except Exception as error:
        traceback.print_exc()
        lines = str(error).strip().splitlines()
        answer(error=f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}")
        sys.exit(1)


def work(library: str, setting: Setting, answer: Callable[..., None]) -> None:
    """Prepares the library's step and does what is asked for until the input ends."""
    on_cuda = setting.device == "cuda"
    torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
    if on_cuda:
        memory.settle_cuda()
    synchronize = torch.cuda.synchronize if on_cuda else torch.cpu.synchronize
    torch.manual_seed(0)
    before = torch.cuda.memory_allocated() if on_cuda else 0
    step, parameters = make_step(library, setting)
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
            # What the allocator holds was given back after the last answer.
            step()
            synchronize()
        start, cpu_start = time.perf_counter(), time.process_time()
        for _ in range(repeats):
            step()
        synchronize()
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
        if on_cuda:
            # The others need the memory now: all of them wait with a model on the device.
            torch.cuda.empty_cache()
        time.sleep(REST_SECONDS)
        answer(seconds=seconds / repeats, cpu_seconds=cpu_seconds / repeats)


def _step_when_there_is_memory(step: Callable[[], None]) -> None:
    """Takes a step on a GPU on which others, who are preparing themselves too, may hold the memory for a moment."""
    for attempt in range(MEMORY_ATTEMPTS):
        try:
            step()
            return
        except torch.OutOfMemoryError:
            if attempt == MEMORY_ATTEMPTS - 1:
                raise
        # After the handler: what it raised holds the step's tensors.
        torch.cuda.empty_cache()
        time.sleep(MEMORY_SECONDS)


if __name__ == "__main__":
    main()
