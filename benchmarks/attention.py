"""Compares the speed of window attention, forward and backward, with other implementations.

    python benchmarks/attention.py --device cuda
    python benchmarks/attention.py --shapes tiny-256-w8-stage1 --precisions fp32

Each implementation computes the attended map from a map. The product for queries, keys and values is in the same place
as in the implementation's library; other libraries first shift the map and divide it into windows. The time of this
product, the same for all, is measured and subtracted. On a GPU the kernels are tested first; if a test fails, nothing
is measured. At each shape the outputs are compared with the reference's. An implementation with other outputs gets a
note instead of numbers; if it is one of this package, the exit status is 1. Progress goes to stderr, the table to
stdout, results to benchmarks/results/attention_<machine>_<yyyy-mm>.csv, .md and .png (a roofline).
"""

import multiprocessing
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Annotated

import report
import torch
import torch.nn.functional as F
import typer
from limits import DTYPES, Limits, measure_limits, seconds_of
from model import Device
from torch import Tensor

from swinv2.ops import reference
from swinv2.ops.backends import SDPA, Call, choose_backend, window_attention
from swinv2.ops.windows import WindowPlan, merge, partition, shift, unshift

HEAD_DIM = 32
PRESETS = {"tiny": (96, 3), "base": (128, 4), "large": (192, 6), "giant-3b": (512, 16)}
"""Channels and heads of the first stage."""

IMAGES = ((256, 8), (256, 16), (384, 24), (640, 40), (1536, 32), (1536, 48))
"""Side of the image in pixels, and side of the window in tokens."""

PATCH, STAGES = 4, 4


@dataclass(frozen=True)
class Shape:
    """The attention of one stage (counted from 1) of a network; grid and window in tokens."""

    size: str
    image_size: int
    window_size: int
    stage: int
    grid: int
    window: int
    heads: int

    @property
    def name(self) -> str:
        """Its name in the results."""
        return f"{self.size}-{self.image_size}-w{self.window_size}-stage{self.stage}"

    @property
    def channels(self) -> int:
        """Channels of the map."""
        return self.heads * HEAD_DIM

    @property
    def plan(self) -> WindowPlan:
        """The plan; shifted if the map has more than one window."""
        by = self.window // 2 if self.grid > self.window else 0
        return WindowPlan((self.grid, self.grid), (self.window, self.window), (by, by))

    def batch(self, map_bytes: int, element_size: int) -> int:
        """The number of images whose map has about `map_bytes` bytes."""
        return max(1, map_bytes // (self.grid**2 * self.channels * element_size))

    def flops(self, batch: int) -> int:
        """Operations of the two products of a forward pass, without the product for queries, keys and values."""
        tokens = self.plan.padded_grid[0] ** 2
        return 4 * batch * tokens * self.window**2 * self.channels


def shapes() -> dict[str, Shape]:
    """Every attention of the presets, each shape once, by name."""
    found: dict[tuple[int, ...], Shape] = {}
    for size, (_, heads) in PRESETS.items():
        for image_size, window_size in IMAGES:
            for stage in range(STAGES):
                grid = image_size // PATCH >> stage
                window = min(window_size, grid)
                shape = Shape(size, image_size, window_size, stage + 1, grid, window, heads << stage)
                found.setdefault((grid, window, shape.heads), shape)
    return {shape.name: shape for shape in found.values()}


@dataclass(frozen=True)
class Inputs:
    """The inputs of every implementation.

    Attributes:
        feature_map: (B, H, W, C).
        weight: Weight of the product for queries, keys and values (3 C, C).
        bias_table: (heads, 2 Wh - 1, 2 Ww - 1), fp32.
        scale: (heads,), fp32.
        plan: The plan.
    """

    feature_map: Tensor
    weight: Tensor
    bias_table: Tensor
    scale: Tensor
    plan: WindowPlan

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        """The tensors with a gradient; the first two belong to the product."""
        return self.feature_map, self.weight, self.bias_table, self.scale

    @property
    def heads(self) -> int:
        """Number of heads."""
        return len(self.scale)


def draw(shape: Shape, batch: int, dtype: torch.dtype, device: str) -> Inputs:
    """Random inputs: a bias with a wide spread, scales around 10 and more."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(size, generator=generator, device=device).to(dtype)

    channels, table = shape.channels, 2 * shape.window - 1
    return Inputs(
        normal(batch, shape.grid, shape.grid, channels, dtype=dtype).requires_grad_(),
        (normal(3 * channels, channels) / channels**0.5).to(dtype).requires_grad_(),
        (16 * torch.sigmoid(normal(shape.heads, table, table))).requires_grad_(),
        (10 * normal(shape.heads).exp()).clamp(1, 100).requires_grad_(),
        shape.plan,
    )


def product_only(inputs: Inputs) -> Tensor:
    """The product alone, whose time is subtracted."""
    return F.linear(inputs.feature_map, inputs.weight)


def _maps(inputs: Inputs) -> tuple[Tensor, ...]:
    """Queries, keys and values as maps (B, H, W, heads, head_dim)."""
    return product_only(inputs).unflatten(-1, (3, inputs.heads, -1)).unbind(3)


def _attention_inputs(inputs: Inputs) -> reference.AttentionInputs:
    return reference.AttentionInputs(*_maps(inputs), inputs.bias_table, inputs.scale, inputs.plan)


def plain_form(inputs: Inputs) -> Tensor:
    """This package's reference, with whose outputs all other outputs are compared."""
    return reference.window_attention(_attention_inputs(inputs))[0].flatten(-2)


def ours_triton(inputs: Inputs) -> Tensor:
    """This package's kernels."""
    from swinv2.ops.triton import launch

    return launch.window_attention(_attention_inputs(inputs)).flatten(-2)


def ours_without_triton(inputs: Inputs) -> Tensor:
    """This package's backend "sdpa": torch's operation, or the package's replacement on this device."""
    maps = _maps(inputs)
    backend = choose_backend(SDPA, Call(device=maps[2].device, dtype=maps[2].dtype))
    return window_attention(*maps, inputs.bias_table, inputs.scale, inputs.plan, backend=backend)[0].flatten(-2)


@cache
def _mask(plan: WindowPlan, device: torch.device) -> Tensor | None:
    """The hidden pairs (windows, T, T). Libraries store this mask, so its construction is not measured."""
    return plan.hidden_pairs(device)


@cache
def _index(plan: WindowPlan, device: torch.device) -> Tensor:
    """Index of every pair of tokens in the flat bias table; libraries store it too."""
    height, width = plan.window
    places = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")).flatten(1)
    apart = places[:, :, None] - places[:, None, :]
    return ((apart[0] + height - 1) * (2 * width - 1) + apart[1] + width - 1).to(device)


def _windows(inputs: Inputs) -> tuple[Tensor, ...]:
    """Queries, keys and values (N, heads, T, head_dim) of the windows of the shifted map."""
    windows = partition(shift(inputs.feature_map, inputs.plan), inputs.plan.window)
    return F.linear(windows, inputs.weight).unflatten(-1, (3, inputs.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


def _bias(inputs: Inputs, dtype: torch.dtype) -> Tensor:
    """Bias of every pair (heads, T, T)."""
    return inputs.bias_table.flatten(1)[:, _index(inputs.plan, inputs.scale.device)].to(dtype)


def _back(attended: Tensor, inputs: Inputs) -> Tensor:
    windows = attended.transpose(1, 2).flatten(-2)
    return unshift(merge(windows, inputs.plan.window, inputs.plan.grid), inputs.plan)


@cache
def _additive_mask(plan: WindowPlan, device: torch.device, dtype: torch.dtype) -> Tensor | None:
    """-100 for hidden pairs (windows, 1, T, T); libraries store it too."""
    hidden = _mask(plan, device)
    if hidden is None:
        return None
    return torch.zeros_like(hidden, dtype=dtype).masked_fill(hidden, -100.0)[:, None]


def plain_sdpa(inputs: Inputs) -> Tensor:
    """torch's scaled_dot_product_attention as it is usually called: windows next to heads, and a mask for each that
    includes the bias; all images share the mask."""
    query, key, value = _windows(inputs)
    query = F.normalize(query, dim=-1) * inputs.scale[:, None, None].to(query.dtype)
    added, hidden = _bias(inputs, query.dtype), _mask(inputs.plan, query.device)
    if hidden is None:
        return _back(
            F.scaled_dot_product_attention(query, F.normalize(key, dim=-1), value, added[None], scale=1.0), inputs
        )
    added = added.masked_fill(hidden[:, None], float("-inf")).flatten(0, 1)[None]
    maps = (each.unflatten(0, (-1, len(hidden))).flatten(1, 2) for each in (query, F.normalize(key, dim=-1), value))
    attended = F.scaled_dot_product_attention(*maps, attn_mask=added, scale=1.0)
    return _back(attended.unflatten(1, (len(hidden), -1)).flatten(0, 1), inputs)


def _as_a_library(inputs: Inputs, times_mask: int) -> Tensor:
    """The operations of timm 1.0 (swin_transformer_v2.py, WindowAttention), which adds the mask of -100 once, and of
    transformers 5.23 (modeling_swinv2.py, Swinv2SelfAttention), which adds it twice."""
    query, key, value = _windows(inputs)
    logits = F.normalize(query, dim=-1) @ F.normalize(key, dim=-1).transpose(-2, -1)
    logits = logits * inputs.scale[:, None, None].to(query.dtype) + _bias(inputs, query.dtype)
    added = _additive_mask(inputs.plan, query.device, query.dtype)
    if added is not None:
        logits = logits.unflatten(0, (-1, len(added)))
        for _ in range(times_mask):
            logits = logits + added
        logits = logits.flatten(0, 1)
    return _back(logits.softmax(-1) @ value, inputs)


IMPLEMENTATIONS: dict[str, Callable[[Inputs], Tensor]] = {
    "triton": ours_triton,
    "sdpa": ours_without_triton,
    "plain-sdpa": plain_sdpa,
    "timm": partial(_as_a_library, times_mask=1),
    "transformers": partial(_as_a_library, times_mask=2),
}
OURS = ("triton", "sdpa")
"""The implementations of this package."""

PASSES = ("forward", "both")
""""forward": without gradients; "both": a forward and a backward pass."""

MAP_BYTES = {"cuda": 2**27, "cpu": 2**23}
"""Size of the maps; on a GPU larger than its cache."""

LEAST_SECONDS = {"cuda": 0.005, "cpu": 0.1}
"""Approximate length of a measurement; it repeats the call."""

COMPILERS = 8
"""Processes that compile kernels, for the tests and before the measurements."""

TOLERANCE = {"fp32": 1e-3, "bf16": 1e-1, "fp16": 2e-2}
"""Largest relative distance from the reference's output. It is large because cosines are rounded to 16 bits and
multiplied by up to 100, in the reference too. The tests are far stricter."""

MAPS_MOVED = {"forward": 4, "both": 11}
"""Least number of maps to read or write: q, k, v and the output; backward also q, k, v, the output's gradient, and
three gradients."""

PRODUCTS = {"forward": 2, "both": 6}
"""Least number of matrix products of a window: two, and four for the gradients."""


def main(
    device: Annotated[Device, typer.Option(help="Where to measure.")] = Device.CPU,
    only: Annotated[str, typer.Option("--shapes", help="Prefixes of names of shapes, separated by commas.")] = "",
    implementations: Annotated[str, typer.Option(help=f"Of {', '.join(IMPLEMENTATIONS)}.")] = "",
    precisions: Annotated[str, typer.Option(help=f"Of {', '.join(DTYPES)}.")] = "bf16",
    rounds: Annotated[int, typer.Option(min=1, help="Measurements of each implementation, taken in turns.")] = 5,
    tested: Annotated[bool, typer.Option(help="Skip the kernels' tests: they have passed on this machine.")] = False,
    output: Annotated[Path | None, typer.Option(help="Write to this path, with suffixes.")] = None,
) -> None:
    """Compares implementations of window attention."""
    if device == Device.CUDA and not torch.cuda.is_available():
        raise typer.BadParameter("torch finds no CUDA device here", param_hint="--device")
    _check("implementations", implementations, IMPLEMENTATIONS)
    _check("precisions", precisions, DTYPES)
    names = [
        name for name in IMPLEMENTATIONS if name in (implementations.split(",") if implementations else IMPLEMENTATIONS)
    ]
    if device == Device.CPU and not implementations:
        names.remove("triton")
    chosen = [shape for name, shape in shapes().items() if name.startswith(tuple(only.split(",")))]
    if not chosen or not names:
        raise typer.BadParameter(f"no shape has this prefix; shapes are {', '.join(shapes())}", param_hint="--shapes")
    if device == Device.CUDA and "triton" in names and not tested:
        _progress("the kernels' tests first")
        # The tests spend most of their time compiling, too.
        tests = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-n", str(COMPILERS), "tests/ops"]
        if subprocess.run(tests, cwd=report.REPOSITORY, stdout=sys.stderr).returncode:
            raise SystemExit("A test of the kernels fails on this machine; nothing was measured.")
    if device == Device.CUDA and "triton" in names:
        _progress(f"compiling kernels for {len(chosen)} shapes")
        compile_ahead(chosen, precisions.split(","))
    facts = report.describe_run(device)
    limits_of = {name: measure_limits(device, name) for name in precisions.split(",")}
    stem = output or report.default_stem("attention" if not (only or implementations) else "attention-part", device)
    rows: list[report.Row] = []
    for precision, limits in limits_of.items():
        _progress(f"{precision}: {limits}")
        for shape in chosen:
            for direction in PASSES:
                found = measure_shape(shape, names, direction, precision, device, rounds, limits)
                rows += [{**row, **facts} for row in found]
                report.write_csv(stem.with_name(stem.name + ".csv"), rows)
    tables = _tables(rows, names)
    title = f"Window attention on {facts['machine']}"
    report.write_markdown(stem.with_name(stem.name + ".md"), title, tables, facts)
    _draw_roofline(rows, limits_of, stem.with_name(stem.name + ".png"))
    print("\n\n".join(tables))
    if any(row["note"] and row["backend"] in OURS for row in rows):
        raise typer.Exit(1)


def _check(option: str, given: str, known: Iterable[str]) -> None:
    for name in given.split(",") if given else ():
        if name not in known:
            raise typer.BadParameter(f"there is no {name!r}; choose from {', '.join(known)}", param_hint=f"--{option}")


def _progress(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def compile_ahead(chosen: list[Shape], precisions: list[str]) -> None:
    """Compiles the kernels for all shapes in several processes; Triton's cache is on the disk."""
    jobs = {(shape.window, shape.grid > shape.window, precision): shape for shape in chosen for precision in precisions}
    with multiprocessing.get_context("spawn").Pool(COMPILERS) as pool:
        pool.starmap(_compile, [(shape, precision) for (*_, precision), shape in jobs.items()], chunksize=1)


def _compile(shape: Shape, precision: str) -> None:
    inputs = draw(shape, 1, DTYPES[precision], "cuda")
    _forward(IMPLEMENTATIONS["triton"], inputs)
    IMPLEMENTATIONS["triton"](inputs).sum().backward()


def measure_shape(
    shape: Shape,
    names: list[str],
    direction: str,
    precision: str,
    device: str,
    rounds: int,
    limits: Limits,
) -> list[report.Row]:
    """Measures all implementations at one shape.

    Returns:
        A row for each implementation; if it runs out of memory, the row has a note instead of numbers.
    """
    dtype = DTYPES[precision]
    batch = shape.batch(MAP_BYTES[device], dtype.itemsize)
    inputs = draw(shape, batch, dtype, device)
    grad = torch.randn_like(inputs.feature_map)
    calls = {"product": _make_call(product_only, inputs, direction, torch.cat([grad] * 3, -1))}
    peaks, notes = {}, {}
    expected = _forward(plain_form, draw(shape, 1, dtype, device)).float()
    for name in names:
        try:
            distance = (
                (_forward(IMPLEMENTATIONS[name], draw(shape, 1, dtype, device)) - expected).norm() / expected.norm()
            ).item()
            if not distance <= TOLERANCE[precision]:
                notes[name] = f"its answer is off by {distance:.1e}"
                continue
            peaks[name] = _peak(IMPLEMENTATIONS[name], inputs, direction, grad, device)
        except torch.OutOfMemoryError:
            notes[name] = "out of memory"
            continue
        calls[name] = _make_call(IMPLEMENTATIONS[name], inputs, direction, grad)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():  # takes the memory that the allocator gave back
        call()
    repeats = {name: max(1, round(LEAST_SECONDS[device] / seconds_of(call, device, 2))) for name, call in calls.items()}
    for turn in range(rounds):
        order = list(calls)
        for name in order[turn % len(order) :] + order[: turn % len(order)]:
            seconds[name].append(seconds_of(calls[name], device, repeats[name]))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    product = medians.pop("product")
    fastest = min((medians[name] - product for name in medians if name not in OURS), default=float("nan"))
    moved = MAPS_MOVED[direction] * inputs.feature_map.numel() * dtype.itemsize
    operations = PRODUCTS[direction] / 2 * shape.flops(batch)
    rows: list[report.Row] = []
    for name in names:
        alone = medians[name] - product if name in medians else float("nan")
        if alone <= 0:
            notes[name] = "too fast to subtract the product"
        known = alone > 0
        rows.append(
            {
                "shape": shape.name,
                "pass": direction,
                "precision": precision,
                "backend": name,
                "batch": batch,
                "milliseconds": round(1e3 * alone, 4) if known else "",
                "with_product_milliseconds": round(1e3 * medians[name], 4) if known else "",
                "fastest_peer_over_this": round(fastest / alone, 3) if known else "",
                "share_of_products": round(operations / alone / limits.operations_per_second, 3) if known else "",
                "share_of_copies": round(moved / alone / limits.bytes_per_second, 3) if known else "",
                "peak_mib": round(peaks[name] / 2**20, 1) if peaks.get(name, float("nan")) > 0 else "",
                "operations_per_byte": round(operations / moved, 1),
                "operations_per_second": round(operations / alone) if known else "",
                "note": notes.get(name, ""),
            }
        )
    ours = next((row for row in rows if row["backend"] in OURS), rows[0])
    _progress(
        f"{shape.name} {direction} {precision} batch {batch}: {ours['backend']} {ours['milliseconds']} ms, "
        f"{ours['fastest_peer_over_this']} times the fastest peer"
    )
    return rows


def _make_call(
    implementation: Callable[[Inputs], Tensor], inputs: Inputs, direction: str, grad: Tensor
) -> Callable[[], object]:
    if direction == "forward":
        return lambda: _forward(implementation, inputs)
    leaves = inputs.leaves[:2] if implementation is product_only else inputs.leaves
    return lambda: torch.autograd.grad(implementation(inputs), leaves, grad)


@torch.no_grad()
def _forward(implementation: Callable[[Inputs], Tensor], inputs: Inputs) -> Tensor:
    return implementation(inputs)


def _peak(
    implementation: Callable[[Inputs], Tensor], inputs: Inputs, direction: str, grad: Tensor, device: str
) -> float:
    """Bytes that a call allocates at its peak; known only on a GPU."""
    call = _make_call(implementation, inputs, direction, grad)
    call()
    if device != "cuda":
        return float("nan")
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return torch.cuda.max_memory_allocated() - before


def _tables(rows: list[report.Row], names: list[str]) -> list[str]:
    """Milliseconds of every implementation, by pass and precision."""
    tables = []
    kinds = dict.fromkeys((str(row["pass"]), str(row["precision"])) for row in rows)
    for direction, precision in kinds:
        lines = []
        some = [row for row in rows if (row["pass"], row["precision"]) == (direction, precision)]
        for shape in dict.fromkeys(str(row["shape"]) for row in some):
            of_shape = {str(row["backend"]): row for row in some if row["shape"] == shape}
            ours = of_shape[next(name for name in names if name in of_shape)]
            lines.append(
                [
                    shape,
                    str(ours["batch"]),
                    *(str(of_shape[name]["milliseconds"] or of_shape[name]["note"]) for name in names),
                    str(ours["fastest_peer_over_this"]),
                    str(ours["share_of_products"]),
                    str(ours["share_of_copies"]),
                ]
            )
        what = {"forward": "forward", "both": "forward and backward"}[direction]
        caption = (
            f"{what}, {precision}, milliseconds, without the product for q, k, v. `times` is the fastest peer's time "
            f"over that of `{names[0]}`, the shares are of the machine's measured matrix products and copies."
        )
        columns = ["shape", "batch", *names, "times", "of products", "of copies"]
        tables.append(report.table(caption, columns, lines))
    return tables


def _draw_roofline(rows: list[report.Row], limits_of: dict[str, Limits], path: Path) -> None:
    """Draws the reached operations per second and the machine's limits, over operations per byte."""
    from swinv2.drawing.paper import open_figure, save

    figure = open_figure(8, 5)
    axes = figure.subplots()
    intensities = sorted({float(row["operations_per_byte"]) for row in rows})
    for precision, limits in limits_of.items():
        axes.plot(
            intensities,
            [
                min(limits.operations_per_second, limits.bytes_per_second * intensity) / 1e12
                for intensity in intensities
            ],
            label=f"{precision}: limits of the machine",
            color="#444444",
        )
    colours = ("#2166ac", "#67a9cf", "#d6604d", "#f4a582", "#999999")
    names = dict.fromkeys(str(row["backend"]) for row in rows)
    for implementation, colour in zip(names, colours, strict=False):
        points = [
            (float(row["operations_per_byte"]), float(row["operations_per_second"]) / 1e12)
            for row in rows
            if row["backend"] == implementation and row["operations_per_second"] != ""
        ]
        if points:
            axes.scatter(*zip(*points, strict=True), s=14, color=colour, label=implementation)
    axes.set(xscale="log", yscale="log", xlabel="operations for each byte that must move", ylabel="TFLOP/s")
    axes.legend(frameon=False, fontsize=9)
    axes.grid(True, color="#e4e4e4", linewidth=0.7)
    save(figure, path)


if __name__ == "__main__":
    typer.run(main)
