"""Compiles every Triton kernel for GPUs that need not be there, and reports what each takes of them.

    python benchmarks/kernels.py --output benchmarks/results/kernels

For compute capabilities 8.0 (A100) and 9.0 (H100, H200), dtypes and the windows of the published checkpoints: threads,
registers of a thread, bytes that did not fit the registers, shared memory. It says that the kernels compile and how
they fit, not how fast they are. OUTPUT.csv and OUTPUT.md have the table.
"""

import csv
import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Annotated, Any

# Kernels that are interpreted cannot be compiled.
os.environ.pop("TRITON_INTERPRET", None)

import torch
import triton
import typer
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from swinv2.ops.triton import launch
from swinv2.ops.windows import WindowPlan

CAPABILITIES = (80, 90)
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
WINDOWS = (8, 12, 16, 24, 32, 48)
HEAD_DIMS = (32, 64)
WARP = 32
COLUMNS = ("capability", "dtype", "head_dim", "window", "kernel", "threads", "registers", "spilled", "shared_kib")


class AbsentGpu:
    """What Triton asks of a GPU's driver before it compiles.

    Args:
        capability: Ten times the compute capability.
    """

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        """What to compile for."""
        return GPUTarget("cuda", self.capability, WARP)

    def get_current_device(self) -> int:
        """Its number."""
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        """Nothing is started on it."""
        return 0


def compile_kernels(capability: int, dtype: torch.dtype, window: int, head_dim: int) -> dict[str, Any]:
    """Compiles the kernels of one attention, forward and backward, with padding and shift; by name."""
    triton.runtime.driver.set_active(AbsentGpu(capability))
    compiled: dict[str, Any] = {}

    def compile_only(kernel: Any, grid: tuple[int, ...]) -> Any:
        def run(*arguments: Any, **options: Any) -> None:
            compiled[kernel.__name__] = kernel.run(*arguments, grid=grid, warmup=True, **options)

        return run

    start = JITFunction.__getitem__
    JITFunction.__getitem__ = compile_only
    try:
        plan = WindowPlan((2 * window + 1, 2 * window + 1), (window, window), (window // 2, window // 2))
        feature_map = torch.zeros(1, *plan.grid, 3, head_dim, dtype=dtype)
        table, scale = torch.zeros(3, 2 * window - 1, 2 * window - 1), torch.ones(3)
        inputs = (feature_map, feature_map, feature_map, table, scale, torch.zeros(3, head_dim, dtype=dtype))
        # Below torch's operations, which would look for a form for tensors on a CPU; they are only described here.
        attended, log_sums = launch.attend_fused._init_fn(*inputs, plan.numbers)
        launch.attend_fused_backward._init_fn(attended, *inputs, attended, log_sums, True, plan.numbers)
    finally:
        JITFunction.__getitem__ = start
    return compiled


def measure(kernel: Any) -> dict[str, Any]:
    """What a compiled kernel takes, as NVIDIA's own tool reads it from the binary."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / "kernel.cubin"
        binary.write_bytes(kernel.asm["cubin"])
        said = subprocess.run([tool, "-res-usage", binary], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", said)
    if found is None:
        raise RuntimeError(f"cuobjdump says nothing of registers: {said!r}")
    return {
        "threads": WARP * kernel.metadata.num_warps,
        "registers": int(found[1]),
        "spilled": int(found[2]),
        "shared_kib": round(kernel.metadata.shared / 1024, 1),
    }


def main(
    output: Annotated[Path, typer.Option(help="Where to write, without the ending.")] = Path("kernels"),
    windows: Annotated[list[int] | None, typer.Option("--window", help="Windows; those of the checkpoints.")] = None,
    dtypes: Annotated[list[str] | None, typer.Option("--dtype", help="bf16, fp16, fp32; all of them.")] = None,
    capabilities: Annotated[list[int] | None, typer.Option("--capability", help="80 and 90.")] = None,
) -> None:
    """Compiles and reports."""
    rows = []
    for capability in capabilities or CAPABILITIES:
        for name in dtypes or DTYPES:
            for head_dim in HEAD_DIMS:
                for window in windows or WINDOWS:
                    for kernel, compiled in compile_kernels(capability, DTYPES[name], window, head_dim).items():
                        row = (capability, name, head_dim, window, kernel, *measure(compiled).values())
                        rows.append(dict(zip(COLUMNS, row, strict=True)))
                        print(*row, flush=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    lines = [f"torch {torch.__version__}, Triton {triton.__version__}; compiled, not run", ""]
    lines += ["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
    lines += ["| " + " | ".join(str(row[column]) for column in COLUMNS) + " |" for row in rows]
    output.with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    typer.run(main)
