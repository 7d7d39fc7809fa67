"""Compiles every Triton kernel for several GPUs, without needing one, and reports the resources of each kernel.

    python benchmarks/triton_kernels.py --output benchmarks/results/kernels

It covers compute capabilities 8.0 (A100), 8.6 (consumer cards, with less shared memory) and 9.0 (H100, H200), all
dtypes, and the windows and widths of the published checkpoints. It reports threads, registers of a thread, bytes of a
thread's local memory (mostly spilled registers) and shared memory. This shows that kernels compile and fit a GPU, not
how fast they are. OUTPUT.csv and OUTPUT.md have the table.
"""

import csv
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Annotated, Any

# Triton does not compile interpreted kernels.
os.environ.pop("TRITON_INTERPRET", None)

import report
import torch
import triton
import typer
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from swinv2.ops.triton import launch, residual
from swinv2.ops.windows import WindowPlan

CAPABILITIES = {80: 163, 86: 99, 90: 227}
"""Compute capabilities (times 10), and the KiB of shared memory that a program may use."""

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
WINDOWS = (8, 16, 24)
HEAD_DIMS = (32, 64, 128)
VARIANTS = ("shifted", "one window", "deterministic", "frozen bias")
"""Shifted and padded, several windows; one window and one head, so that most integers are 1; sums in a fixed order; no
gradient of the bias."""

CHANNELS = (96, 512, 4096)
"""Channels of the narrowest map, of a medium one and of the widest."""

PARTS = ("attention", "residual")
WARP = 32
COLUMNS = ("capability", "dtype", "case", "kernel", "threads", "registers", "local", "shared_kib")


class AbsentGpu:
    """Replaces a GPU's driver: the methods that Triton calls before it compiles.

    Args:
        capability: Ten times the compute capability.
    """

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        """The target of the compilation."""
        return GPUTarget("cuda", self.capability, WARP)

    def get_current_device(self) -> int:
        """Number of the device."""
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        """A stream that is never used."""
        return 0


@contextmanager
def compiling(capability: int) -> Iterator[dict[str, Any]]:
    """Inside, kernels are compiled instead of being launched, and collected by name."""
    triton.runtime.driver.set_active(AbsentGpu(capability))
    compiled: dict[str, Any] = {}

    def compile_only(kernel: Any, grid: tuple[int, ...]) -> Any:
        def run(*arguments: Any, **options: Any) -> None:
            compiled[kernel.__name__] = kernel.run(*arguments, grid=grid, warmup=True, **options)

        return run

    start = JITFunction.__getitem__
    JITFunction.__getitem__ = compile_only
    try:
        yield compiled
    finally:
        JITFunction.__getitem__ = start


def attend(dtype: torch.dtype, window: int, head_dim: int, variant: str) -> None:
    """One attention, forward and backward."""
    heads, plan = 3, WindowPlan((2 * window + 1, 2 * window + 1), (window, window), (window // 2, window // 2))
    if variant == "one window":
        heads, plan = 1, WindowPlan((window, window), (window, window))
    feature_map = torch.zeros(1, *plan.grid, heads, head_dim, dtype=dtype)
    table, scale = torch.zeros(heads, 2 * window - 1, 2 * window - 1), torch.ones(heads)
    padding = torch.zeros(heads, head_dim, dtype=dtype) if plan.grid != plan.padded_grid else None
    inputs = (feature_map, feature_map, feature_map, table, scale, padding)
    torch.use_deterministic_algorithms(variant == "deterministic")
    # `__wrapped__` bypasses torch's operator, which would look for an implementation for CPU tensors. The tensors here
    # only describe shapes.
    attended, softmax_stats = launch.attend_fused.__wrapped__(*inputs, plan)
    wants_bias = variant != "frozen bias"
    launch.attend_fused_backward.__wrapped__(attended, *inputs, attended, softmax_stats, wants_bias, plan)
    torch.use_deterministic_algorithms(False)


def add(dtype: torch.dtype, channels: int, drops: bool) -> None:
    """One residual line, forward and backward, with autocast's dtypes: the main path and the norm in fp32."""
    x = torch.zeros(2, 5, 3, channels, requires_grad=True)
    work = torch.zeros(2, 5, 3, channels, dtype=dtype)
    weight, bias = torch.ones(channels), torch.zeros(channels)
    residual.add_normalised(x, work, weight, bias, 1e-5, torch.ones(2) if drops else None).sum().backward()


def compile_cases(
    dtypes: list[str], windows: list[int], parts: list[str], capabilities: list[int]
) -> Iterator[tuple[int, str, str, str, Any]]:
    """Compiles the chosen kernels; yields capability, dtype, case, name of the kernel, kernel."""
    for capability, dtype in product(capabilities, dtypes):
        if PARTS[0] in parts:
            for head_dim, window, variant in product(HEAD_DIMS, windows, VARIANTS):
                # The effect of the variants does not depend on the size of vectors.
                if variant != VARIANTS[0] and (head_dim != HEAD_DIMS[0] or dtype != "bf16"):
                    continue
                with compiling(capability) as compiled:
                    attend(DTYPES[dtype], window, head_dim, variant)
                for kernel in compiled.items():
                    yield capability, dtype, f"window {window}, head_dim {head_dim}, {variant}", *kernel
        if PARTS[1] in parts:
            for channels, drops in product(CHANNELS, (False, True)):
                with compiling(capability) as compiled:
                    add(DTYPES[dtype], channels, drops)
                for kernel in compiled.items():
                    yield capability, dtype, f"{channels} channels{', drop path' if drops else ''}", *kernel


def measure(kernel: Any) -> dict[str, Any]:
    """The resources of a compiled kernel, read from the binary by NVIDIA's cuobjdump."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / "kernel.cubin"
        binary.write_bytes(kernel.asm["cubin"])
        said = subprocess.run([tool, "-res-usage", binary], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", said)
    if found is None:
        raise RuntimeError(f"the output of cuobjdump has no registers: {said!r}")
    return {
        "threads": WARP * kernel.metadata.num_warps,
        "registers": int(found[1]),
        "local": int(found[2]),
        "shared_kib": round(kernel.metadata.shared / 1024, 1),
    }


def main(
    output: Annotated[Path, typer.Option(help="Where to write, without the suffix.")] = Path("kernels"),
    windows: Annotated[list[int] | None, typer.Option("--window", help="Windows; default: 8, 16, 24.")] = None,
    dtypes: Annotated[list[str] | None, typer.Option("--dtype", help="bf16, fp16, fp32; default: all.")] = None,
    capabilities: Annotated[list[int] | None, typer.Option("--capability", help="80, 86, 90; default: all.")] = None,
    parts: Annotated[list[str] | None, typer.Option("--part", help="attention, residual; default: both.")] = None,
) -> None:
    """Compiles and reports."""
    rows = []
    wanted = (dtypes or [*DTYPES], windows or [*WINDOWS], parts or [*PARTS], capabilities or [*CAPABILITIES])
    for *case, compiled in compile_cases(*wanted):
        found = measure(compiled)
        row = (*case, *found.values())
        rows.append(dict(zip(COLUMNS, row, strict=True)))
        print(*row, sep="; ", flush=True)
        if found["shared_kib"] > CAPABILITIES[case[0]]:
            raise SystemExit(f"{case[-1]} needs more shared memory than a GPU of capability {case[0] / 10} has.")
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    facts = report.describe_run("cpu") | {"triton": triton.__version__}
    lines = [
        "Compiled, not run.",
        "",
        *(f"- {name}: {facts[name]}" for name in ("command", "commit", "torch", "triton")),
    ]
    lines.append("")
    lines += ["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
    lines += ["| " + " | ".join(str(row[column]) for column in COLUMNS) + " |" for row in rows]
    output.with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    typer.run(main)
