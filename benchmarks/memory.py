"""How much memory a step of one library needs.

In: a step of work, warmed up, in a process that holds no other library's model. Out: the tensors that it holds between
two steps and the rise during a step, in bytes; the peak is the sum.
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
"""Settings of glibc under which every tensor above 64 KiB is mapped on its own and returned when it is freed: the
resident memory then is the memory of the living tensors, without what the heap keeps or fragments."""

MIB = 2**20


@dataclass(frozen=True)
class Memory:
    """What a step needs, in bytes.

    Attributes:
        held: Tensors that live between two steps: weights, buffers, caches, the images; in training the optimizer's
            state. Gradients do not live between steps.
        rise: What a step needs on top at its highest: activations, temporaries; in training the gradients.
    """

    held: int
    rise: int

    @property
    def peak(self) -> int:
        """Everything at the highest moment of a step."""
        return self.held + self.rise


def measure_on_cpu(step: Callable[[], None]) -> Memory:
    """Measures in this process, which must run with `ALLOCATOR`."""
    rise = highest_rise(step)
    gc.collect()
    return Memory(held_tensors(), rise)


def measure_on_cuda(before: int, step: Callable[[], None]) -> Memory:
    """Measures in this process: the allocator counts every tensor, whatever else lives beside the model.

    Args:
        before: torch.cuda.memory_allocated() before the model was built.
        step: A step of work, warmed up.
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
    """Has the matrix libraries take their workspaces, which would count for the first model otherwise."""
    for dtype in (torch.float32, torch.bfloat16):
        layer = nn.Linear(64, 64, device="cuda", dtype=dtype)
        layer(torch.ones(64, 64, device="cuda", dtype=dtype)).sum().backward()
    torch.cuda.synchronize()


def held_tensors() -> int:
    """Bytes of the storages of all tensors that are alive in Python, each counted once."""
    # The exact types only: the compiler leaves fake and functional tensors behind, which have a size and no memory.
    tensors = [
        item
        for item in gc.get_objects()
        if type(item) in (Tensor, nn.Parameter, nn.Buffer) and not torch._is_functional_tensor(item)
    ]
    storages = (tensor.untyped_storage() for tensor in tensors if tensor.device.type == "cpu" and not tensor.is_sparse)
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def highest_rise(step: Callable[[], None], steps: int = MEASURED_STEPS) -> int:
    """Bytes by which the resident memory of this process rises during so many steps, at its highest.

    The kernel keeps the highest resident size exactly, in VmHWM, and starts anew when 5 is written to clear_refs: no
    sampling, so no peak is missed, however short. Mapped files (code that is loaded late) do not count.
    """
    gc.collect()
    # The C library may hold small freed pieces; they would be filled again without a rise.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident()
    for _ in range(steps):
        step()
    after = _resident()
    return (after["VmHWM"] - after["RssFile"]) - (before["VmRSS"] - before["RssFile"])


def run_alone(script: str, asked: str) -> list[str]:
    """Runs `script --one asked` in a process of its own, whose resident memory is that of its tensors.

    Args:
        script: The benchmark's own file.
        asked: What it is to do.

    Returns:
        The words that it wrote to stdout.
    """
    command = [sys.executable, str(Path(script).resolve()), "--one", asked]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | ALLOCATOR)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return done.stdout.split()


def _resident() -> dict[str, int]:
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {line[0][:-1]: int(line[1]) * 1024 for line in lines if line[0] in ("VmHWM:", "VmRSS:", "RssFile:")}
