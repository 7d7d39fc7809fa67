"""What a machine can do, and how much of it a model asks for: what speeds are held against.

In: a device and a dtype, or a size of `cases.CASES`. Out: rates that were measured, and work that was counted.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from cases import CASES, CLASSES, Case, Setting

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

PATCH, COLOURS = 4, 3

PRODUCTS = {"inference": 1, "training": 3}
"""A backward pass has two products for each one of the forward pass: of its gradient with either factor."""


@dataclass(frozen=True)
class Limits:
    """What a machine can do.

    Attributes:
        products: Operations per second in a large matrix product; an addition and a multiplication are two.
        copies: Bytes per second in a large copy, read and written ones together.
    """

    products: float
    copies: float

    def __str__(self) -> str:
        return f"matrix products at {self.products / 1e12:.2f} TFLOP/s, copies at {self.copies / 1e9:.0f} GB/s"


def measure_limits(device: str, precision: str) -> Limits:
    """Measures what the machine can do.

    Args:
        device: "cpu" or "cuda".
        precision: A name in `DTYPES`.
    """
    on_cuda = device == "cuda"
    side, size, repeats = (8192, 2**29, 5) if on_cuda else (2048, 2**26, 1)
    square = torch.randn(side, side, device=device).to(DTYPES[precision])
    numbers = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(numbers)
    product = min(seconds_of(lambda: square @ square, device, repeats) for _ in range(5))
    copy = min(seconds_of(lambda: target.copy_(numbers), device, repeats) for _ in range(5))
    return Limits(2 * side**3 / product, 2 * size / copy)


def seconds_of(call: Callable[[], object], device: str, repeats: int) -> float:
    """Seconds of a call, of so many in a row."""
    synchronize = torch.cuda.synchronize if device == "cuda" else torch.cpu.synchronize
    synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    synchronize()
    return (time.perf_counter() - start) / repeats


@dataclass(frozen=True)
class Work:
    """One step of a forward pass: a product with what can be done on its way in and out, or a norm.

    Attributes:
        operations: In matrix products, for an image.
        moved: Numbers read and written, for an image.
        weights: Numbers read once, for all images.
    """

    operations: int
    moved: int
    weights: int = 0


def forward_pass(case: Case) -> Iterator[Work]:
    """What a forward pass cannot do without, step by step.

    Everything between two products is as if it were free but for what has to wait for a whole vector: each block's two
    norms, which read what a branch says and the map, and write the map. GELU is in a product, the shift and the cut
    into windows are in attention, whose logits are never written.
    """
    side, channels = case.image_size // PATCH, case.embed_dim

    def linear(tokens: int, inputs: int, outputs: int) -> Work:
        return Work(2 * tokens * inputs * outputs, tokens * (inputs + outputs), inputs * outputs)

    yield linear(side**2, COLOURS * PATCH**2, channels)
    yield Work(0, 2 * side**2 * channels)
    for stage, depth in enumerate(case.depths):
        if stage:
            # Four neighbours become one token of twice the channels.
            side, channels = side // 2, 2 * channels
            yield linear(side**2, 2 * channels, channels)
            yield Work(0, 2 * side**2 * channels)
        tokens, window = side**2, min(case.window, side)
        norm = Work(0, 3 * tokens * channels)
        for _ in range(depth):
            yield linear(tokens, channels, 3 * channels)
            yield Work(4 * tokens * window**2 * channels, 4 * tokens * channels)
            yield linear(tokens, channels, channels)
            yield norm
            yield linear(tokens, channels, 4 * channels)
            yield linear(tokens, 4 * channels, channels)
            yield norm
    yield Work(0, (side**2 + 1) * channels)
    yield linear(1, channels, CLASSES)


def operations(setting: Setting) -> int:
    """Operations in the matrix products of a step."""
    forward = sum(work.operations for work in forward_pass(CASES[setting.case]))
    return PRODUCTS[setting.mode] * setting.batch_size * forward


def bytes_moved(setting: Setting) -> int:
    """Bytes that a step of inference moves at least."""
    return sum(_bytes(work, setting) for work in forward_pass(CASES[setting.case]))


def least_seconds(setting: Setting, limits: Limits) -> float:
    """How long a step of inference takes at least, if each step of it runs into the nearer one of two limits."""
    return sum(
        max(setting.batch_size * work.operations / limits.products, _bytes(work, setting) / limits.copies)
        for work in forward_pass(CASES[setting.case])
    )


def _bytes(work: Work, setting: Setting) -> int:
    return (setting.batch_size * work.moved + work.weights) * DTYPES[setting.precision].itemsize
