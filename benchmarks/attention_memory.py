"""How much memory one window attention needs at its highest, beside others' operations.

    python benchmarks/attention_memory.py

For the first stage of SwinV2-L on images of 1536 pixels, windows of 32 and 48 tokens, from the map to the attended
map: forward without gradients, and forward with backward. What CPUs run where "sdpa" is asked for is measured, as the
rise of the process's resident memory. The kernels ("triton") and the others' operations are worked out: every tensor
that torch makes, on the meta device, as long as it lives; the others would need up to 32 GiB here. A check at a small
size says how far working out and measuring are apart. The table goes to benchmarks/results.
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
"""What runs on a CPU without T x T tensors: it is measured at every size."""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
MODES = ("forward", "forward and backward")


def make_step(implementation: str, inputs: Inputs, mode: str) -> Callable[[], None]:
    """One attention; its gradients are dropped."""

    def forward() -> None:
        with torch.no_grad():
            IMPLEMENTATIONS[implementation](inputs)

    def both() -> None:
        attended = IMPLEMENTATIONS[implementation](inputs)
        torch.autograd.grad(attended, inputs.leaves, torch.empty_like(attended))

    return forward if mode == MODES[0] else both


def work_out(implementation: str, shape: Shape, dtype: torch.dtype, mode: str) -> int:
    """Bytes at the highest, on the meta device."""
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
    step()  # what libraries keep between two calls (masks, indices) is made here
    with Living() as living:
        living.know(inputs.leaves)
        step()
    return living.highest


def measure(implementation: str, shape: Shape, dtype: str, mode: str) -> int:
    """Bytes at the highest, on this machine's processors, in a process of its own."""
    asked = json.dumps({"form": implementation, "shape": asdict(shape), "dtype": dtype, "mode": mode})
    return int(run_alone(__file__, asked)[-1])


def _measure_here(asked: dict[str, Any]) -> None:
    inputs = draw(Shape(**asked["shape"]), 1, DTYPES[asked["dtype"]], "cpu")
    step = make_step(asked["form"], inputs, asked["mode"])
    step()
    print(highest_rise(step))


def main(
    output: Annotated[Path | None, typer.Option(help="Where to write, without the ending.")] = None,
    one: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Measures, works out, and writes the table."""
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
            # On the meta device that would be what other devices run.
            if implementation not in MEASURED:
                ways = (*ways, ("worked out", work_out(implementation, shape, DTYPES[dtype], mode)))
            for way, found in ways:
                row = {"shape": name, "dtype": dtype, "mode": mode, "form": implementation, "way": way}
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
