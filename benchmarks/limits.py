"""The limits of a machine and the work of a model, to which measured speeds are compared.

In: a device and a precision, or a setting of `cases`. Out: measured rates, and counted work. This module runs no model.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from cases import CASES, Case, Setting
from torch import Tensor

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Precisions by name."""

COLOURS = 3

FORWARD_PASSES = {"inference": 1, "training": 3}
"""Products of a step, in forward passes. A backward pass has two for each product: its gradient with each factor."""


@dataclass(frozen=True)
class Limits:
    """The limits of a machine.

    Attributes:
        operations_per_second: In a large matrix product; an addition and a multiplication are two operations.
        bytes_per_second: In a large copy, bytes read plus bytes written.
    """

    operations_per_second: float
    bytes_per_second: float

    def __str__(self) -> str:
        products, copies = self.operations_per_second / 1e12, self.bytes_per_second / 1e9
        return f"matrix products at {products:.3g} TFLOP/s, copies at {copies:.0f} GB/s"


def measure_limits(device: str, precision: str) -> Limits:
    """Measures the limits of the machine.

    Args:
        device: "cpu" or "cuda".
        precision: A name in `DTYPES`. If a CPU has no instructions for it and is faster in fp32, the speed in fp32
            counts, because a program may compute in fp32.

    Returns:
        The best of several measurements.
    """
    on_cuda = device == "cuda"
    side, size, repeats = (8192, 2**29, 5) if on_cuda else (2048, 2**26, 1)
    square = torch.randn(side, side, device=device).to(DTYPES[precision])
    if not on_cuda:
        # Chosen with small products: a large one in an emulated precision takes minutes.
        square = min((square.float(), square), key=lambda each: _seconds_of_product(each[:512, :512], device, 2))
    numbers = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(numbers)
    product = min(_seconds_of_product(square, device, repeats) for _ in range(5))
    copy = min(seconds_of(lambda: target.copy_(numbers), device, repeats) for _ in range(5))
    return Limits(2 * side**3 / product, 2 * size / copy)


def _seconds_of_product(square: Tensor, device: str, repeats: int) -> float:
    return seconds_of(lambda: square @ square, device, repeats)


def seconds_of(call: Callable[[], object], device: str, repeats: int) -> float:
    """The mean seconds of a call, over several consecutive calls.

    Args:
        call: The function to time.
        device: "cpu" or "cuda"; on a GPU, the time includes waiting for the end of its work.
        repeats: Number of calls.
    """
    synchronize = torch.cuda.synchronize if device == "cuda" else torch.cpu.synchronize
    synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    synchronize()
    return (time.perf_counter() - start) / repeats


@dataclass(frozen=True)
class Work:
    """A part of a forward pass: a norm, or a product with all operations that can be fused with it.

    Attributes:
        operations: Operations in matrix products, for each image.
        moved: Numbers read and written, for each image.
        weights: Numbers read once, for all images.
    """

    operations: int
    moved: int
    weights: int = 0


def forward_pass(case: Case) -> Iterator[Work]:
    """The parts of a fused forward pass, in order; each part reads and writes the main memory.

    Only operations that need a whole vector are separate parts between two products: the two norms of each block, which
    read the branch output and the map, and write the map. GELU is fused with a product; shift and windows are fused
    with attention, whose logits are never written. This is no lower bound: data that stays in a cache moves less.
    """
    side, channels = case.image_size // case.patch_size, case.embed_dim

    def linear(tokens: int, inputs: int, outputs: int) -> Work:
        return Work(2 * tokens * inputs * outputs, tokens * (inputs + outputs), inputs * outputs)

    yield linear(side**2, COLOURS * case.patch_size**2, channels)
    yield Work(0, 2 * side**2 * channels)
    for stage, depth in enumerate(case.depths):
        if stage:
            # Merging: four neighbours become one token with twice the channels.
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
    yield linear(1, channels, case.classes)


def operations(setting: Setting) -> int:
    """Additions and multiplications in the matrix products of a step, for all images."""
    forward = sum(work.operations for work in forward_pass(CASES[setting.case]))
    return FORWARD_PASSES[setting.mode] * setting.batch_size * forward


def bytes_moved(setting: Setting) -> int:
    """Bytes that a step of inference reads and writes according to `forward_pass`, for all images."""
    return sum(_bytes(work, setting) for work in forward_pass(CASES[setting.case]))


def seconds_at_limits(setting: Setting, limits: Limits) -> float:
    """The seconds of a step of inference if each part of `forward_pass` reached the limit that binds it.

    Args:
        setting: The measured setting.
        limits: Limits of the machine, at the setting's precision.
    """
    return sum(
        max(
            setting.batch_size * work.operations / limits.operations_per_second,
            _bytes(work, setting) / limits.bytes_per_second,
        )
        for work in forward_pass(CASES[setting.case])
    )


def _bytes(work: Work, setting: Setting) -> int:
    return (setting.batch_size * work.moved + work.weights) * DTYPES[setting.precision].itemsize
