"""Compares the peak memory of one window attention with the operations of other implementations.

    python benchmarks/attention_memory.py

It covers the first stage of SwinV2-L on images of 1536 pixels, with windows of 32 and 48 tokens, from the map to the
attended map: forward without gradients, and forward with backward. The backend "sdpa" on a CPU is measured: the rise of
the process's resident memory. The kernels ("triton") and the other implementations are computed: on the meta device,
the sizes of all tensors that live at the same time; running them would need up to 32 GiB. A check at a small size
compares the computed memory with the measured one. The table goes to benchmarks/results.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import report
import torch
import typer
from attention import IMPLEMENTATIONS, Inputs, Shape, draw, shapes
from living import Living
from memory import MIB, highest_rise, run_alone

WANTED = ("large-1536-w32-stage1", "large-1536-w48-stage1")
SMALL = "large-256-w16-stage1"
COMPARED = ("triton", "sdpa", "timm", "transformers")
MEASURED = ("sdpa",)
"""Implementations that run on a CPU without T x T tensors; they are measured at every size."""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
MODES = ("forward", "forward and backward")


def make_step(implementation: str, inputs: Inputs, mode: str) -> Callable[[], None]:
    """A function that computes one attention and drops its gradients."""

    def forward() -> None:
        with torch.no_grad():
            IMPLEMENTATIONS[implementation](inputs)

    def both() -> None:
        attended = IMPLEMENTATIONS[implementation](inputs)
        torch.autograd.grad(attended, inputs.leaves, torch.empty_like(attended))

    return forward if mode == MODES[0] else both


def work_out(implementation: str, shape: Shape, dtype: torch.dtype, mode: str) -> int:
    """Peak bytes, computed on the meta device."""
    with torch.device("meta"):
        channels, table = shape.channels, 2 * shape.window - 1
        inputs = Inputs(
            torch.empty(1, shape.grid, shape.grid, channels, dtype=dtype, requires_grad=True),
            torch.empty(3 * channels, channels, dtype=dtype, requires_grad=True),
            torch.empty(shape.heads, table, table, requires_grad=True),
            torch.empty(shape.heads, requires_grad=True),
            shape.plan,
        )
    step = make_step(implementation, inputs, mode)
    step()  # makes the tensors that libraries store between calls (masks, indices)
    with Living() as living:
        living.know(inputs.leaves)
        step()
    return living.highest


def measure(implementation: str, shape: Shape, dtype: str, mode: str) -> int:
    """Peak bytes, measured on this machine's CPU in a separate process."""
    asked = json.dumps({"backend": implementation, "shape": asdict(shape), "dtype": dtype, "mode": mode})
    return int(run_alone(__file__, asked)[-1])


def _measure_here(asked: dict[str, Any]) -> None:
    inputs = draw(Shape(**asked["shape"]), 1, DTYPES[asked["dtype"]], "cpu")
    step = make_step(asked["backend"], inputs, asked["mode"])
    step()
    print(highest_rise(step))


def main(
    output: Annotated[Path | None, typer.Option(help="Where to write, without the suffix.")] = None,
    one: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Measures, computes, and writes the table."""
    if one:
        _measure_here(json.loads(one))
        return
    known = shapes()
    rows: list[report.Row] = []
    for name, dtype, mode in product((SMALL, *WANTED), DTYPES, MODES):
        shape = known[name]
        map_mib = shape.grid**2 * shape.channels * DTYPES[dtype].itemsize / MIB
        for implementation in COMPARED:
            is_measured = implementation in MEASURED or (name == SMALL and implementation != "triton")
            ways = (("measured", measure(implementation, shape, dtype, mode)),) if is_measured else ()
            # On the meta device they would run the code of other devices.
            if implementation not in MEASURED:
                ways = (*ways, ("worked out", work_out(implementation, shape, DTYPES[dtype], mode)))
            for way, found in ways:
                row = {"shape": name, "dtype": dtype, "mode": mode, "backend": implementation, "way": way}
                rows.append(row | {"mib": round(found / MIB), "maps": round(found / MIB / map_mib, 1)})
                print(*rows[-1].values(), sep=",", file=sys.stderr, flush=True)
    facts = report.describe_run("cpu")
    stem = output or report.default_stem("attention_memory", "cpu")
    report.write_csv(stem.with_name(stem.name + ".csv"), [row | facts for row in rows])
    lines = [[str(value) for value in row.values()] for row in rows]
    caption = "Memory of one attention at its highest; `maps` counts it in maps of the stage."
    table = report.table(caption, list(rows[0]), lines)
    report.write_markdown(stem.with_name(stem.name + ".md"), "Memory of window attention", [table], facts)
    print(table)


if __name__ == "__main__":
    typer.run(main)
