"""Measures the memory of a step of one library.

In: a function that does one step, warmed up, in a process without another library's model. Out: the bytes of the
tensors between two steps, and the rise during a step; the peak is their sum.
"""

import ctypes
import gc
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

MEASURED_STEPS = 2

ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_TOP_PAD_": "0"}
"""Settings of glibc: every tensor above 64 KiB is mapped separately, and unmapped when it is freed. The resident memory
is then that of the living tensors, without free or fragmented memory of the heap."""

MIB = 2**20


@dataclass(frozen=True)
class Memory:
    """The memory of a step, in bytes.

    Attributes:
        held: Tensors that live between two steps: weights, buffers, caches, the images; in training the optimizer's
            state. Gradients do not live between steps.
        rise: Further memory at the peak of a step: activations, temporaries; in training the gradients.
    """

    held: int
    rise: int

    @property
    def peak(self) -> int:
        """All memory at the peak of a step."""
        return self.held + self.rise


def measure_on_cpu(step: Callable[[], None]) -> Memory:
    """Measures in this process, which must run with `ALLOCATOR`."""
    rise = highest_rise(step)
    gc.collect()
    return Memory(held_tensors(), rise)


def measure_on_cuda(before: int, step: Callable[[], None]) -> Memory:
    """Measures in this process: torch's allocator counts every tensor.

    Args:
        before: torch.cuda.memory_allocated() before the model was built.
        step: A function that does one step, warmed up.
    """
    gc.collect()
    torch.cuda.synchronize()
    at_rest = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    for _ in range(MEASURED_STEPS):
        step()
    torch.cuda.synchronize()
    return Memory(at_rest - before, torch.cuda.max_memory_allocated() - at_rest)


def settle_cuda() -> None:
    """Makes the matrix libraries allocate their workspaces, which would otherwise count for the first model."""
    for dtype in (torch.float32, torch.bfloat16):
        layer = nn.Linear(64, 64, device="cuda", dtype=dtype)
        layer(torch.ones(64, 64, device="cuda", dtype=dtype)).sum().backward()
    torch.cuda.synchronize()


def held_tensors() -> int:
    """Bytes of the storages of all tensors that are alive in Python, each counted once."""
    # Only the exact types: the compiler leaves fake and functional tensors, which have a size but no memory.
    tensors = [
        item
        for item in gc.get_objects()
        if type(item) in (Tensor, nn.Parameter, nn.Buffer) and not torch._is_functional_tensor(item)
    ]
    storages = (tensor.untyped_storage() for tensor in tensors if tensor.device.type == "cpu" and not tensor.is_sparse)
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def highest_rise(step: Callable[[], None], steps: int = MEASURED_STEPS) -> int:
    """The largest rise of this process's resident memory during some steps, in bytes.

    The Linux kernel records the highest resident size exactly, in VmHWM, and resets it when 5 is written to clear_refs.
    Nothing is sampled, so even the shortest peak counts. Mapped files (code that is loaded late) do not count.
    """
    gc.collect()
    # The C library may have small freed pieces, which would be used again without a rise.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident()
    for _ in range(steps):
        step()
    after = _resident()
    return (after["VmHWM"] - after["RssFile"]) - (before["VmRSS"] - before["RssFile"])


def run_alone(script: str, asked: str) -> list[str]:
    """Runs `script --one asked` in a separate process, whose resident memory is that of its tensors.

    Args:
        script: The file of the benchmark.
        asked: The argument of --one.

    Returns:
        The words on its stdout.
    """
    command = [sys.executable, str(Path(script).resolve()), "--one", asked]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | ALLOCATOR)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return done.stdout.split()


def _resident() -> dict[str, int]:
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {line[0][:-1]: int(line[1]) * 1024 for line in lines if line[0] in ("VmHWM:", "VmRSS:", "RssFile:")}
