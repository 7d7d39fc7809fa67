"""How much memory one library needs for one row.

In: a library and a `Setting`. Out: the tensors that it holds between two steps and the rise during a step, in bytes;
the peak is the sum. Run as a script it does this in a process of its own, which is how the CPU is measured:

    python benchmarks/memory.py LIBRARY SETTING_AS_JSON

prints {"held": bytes, "rise": bytes, "parameters": number}.
"""

import ctypes
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from cases import Setting, make_step
from torch import Tensor, nn

WARM_STEPS = 2
"""The first step compiles and makes the optimizer's state; the second settles what libraries keep for themselves."""

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


def measure_on_cpu(library: str, setting: Setting) -> Memory:
    """Measures in a fresh process, so that nothing of another library or row is counted.

    Raises:
        RuntimeError: The process failed; the message is the last line that it wrote, or its signal.
    """
    command = [sys.executable, str(Path(__file__).resolve()), library, json.dumps(asdict(setting))]
    done = subprocess.run(command, env={**os.environ, **ALLOCATOR}, capture_output=True, text=True, check=False)
    if done.returncode < 0:
        raise RuntimeError(f"killed by signal {-done.returncode}: out of memory?")
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no message"])[-1])
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    return Memory(answer["held"], answer["rise"])


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
    # The exact types only: the compiler leaves fake tensors behind, which have a size and no memory.
    tensors = [item for item in gc.get_objects() if type(item) in (Tensor, nn.Parameter, nn.Buffer)]
    storages = (tensor.untyped_storage() for tensor in tensors if tensor.device.type == "cpu" and not tensor.is_sparse)
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def highest_rise(step: Callable[[], None]) -> int:
    """Bytes by which the resident memory of this process rises during a step, at its highest.

    The kernel keeps the highest resident size exactly, in VmHWM, and starts anew when 5 is written to clear_refs: no
    sampling, so no peak is missed, however short. Mapped files (code that is loaded late) do not count.
    """
    gc.collect()
    # The C library may hold small freed pieces; they would be filled again without a rise.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident()
    for _ in range(MEASURED_STEPS):
        step()
    after = _resident()
    return (after["VmHWM"] - after["RssFile"]) - (before["VmRSS"] - before["RssFile"])


def _resident() -> dict[str, int]:
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {line[0][:-1]: int(line[1]) * 1024 for line in lines if line[0] in ("VmHWM:", "VmRSS:", "RssFile:")}


def main() -> None:
    """Measures the row that the command line names; see the head of this file."""
    library, setting = sys.argv[1], Setting(**json.loads(sys.argv[2]))
    torch.manual_seed(0)
    step, parameters = make_step(library, setting)
    for _ in range(WARM_STEPS):
        step()
    rise = highest_rise(step)
    gc.collect()
    print(json.dumps({"held": held_tensors(), "rise": rise, "parameters": parameters}))


if __name__ == "__main__":
    main()
