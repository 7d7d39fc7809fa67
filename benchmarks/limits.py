"""What a machine can do, and how much of it a model asks for: what speeds are held against.

In: a device and a precision, or a setting of `cases`. Out: rates that were measured, and work that was counted. This
module runs no model.
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
"""Whose products a step's are worth: a backward pass has two for each one, of its gradient with either factor."""


@dataclass(frozen=True)
class Limits:
    """What a machine can do.

    Attributes:
        operations_per_second: In a large matrix product; an addition and a multiplication are two.
        bytes_per_second: In a large copy, read and written ones together.
    """

    operations_per_second: float
    bytes_per_second: float

    def __str__(self) -> str:
        products, copies = self.operations_per_second / 1e12, self.bytes_per_second / 1e9
        return f"matrix products at {products:.3g} TFLOP/s, copies at {copies:.0f} GB/s"


def measure_limits(device: str, precision: str) -> Limits:
    """Measures what the machine can do.

    Args:
        device: "cpu" or "cuda".
        precision: A name in `DTYPES`. Where a CPU is faster at fp32, having no instructions for this one, that counts:
            whoever wants to may compute in fp32.

    Returns:
        The best of several measurements.
    """
    on_cuda = device == "cuda"
    side, size, repeats = (8192, 2**29, 5) if on_cuda else (2048, 2**26, 1)
    square = torch.randn(side, side, device=device).to(DTYPES[precision])
    if not on_cuda:
        # By small ones: a large product in an emulated precision takes minutes.
        square = min((square.float(), square), key=lambda each: _seconds_of_product(each[:512, :512], device, 2))
    numbers = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(numbers)
    product = min(_seconds_of_product(square, device, repeats) for _ in range(5))
    copy = min(seconds_of(lambda: target.copy_(numbers), device, repeats) for _ in range(5))
    return Limits(2 * side**3 / product, 2 * size / copy)


def _seconds_of_product(square: Tensor, device: str, repeats: int) -> float:
    return seconds_of(lambda: square @ square, device, repeats)


def seconds_of(call: Callable[[], object], device: str, repeats: int) -> float:
    """How long a call takes, of so many in a row.

    Args:
        call: What is timed.
        device: "cpu" or "cuda"; a GPU is waited for.
        repeats: How many.

    Returns:
        Seconds of one.
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
    """A part of a forward pass: a product with what can be done on its way in and out, or a norm.

    Attributes:
        operations: In matrix products, for an image.
        moved: Numbers read and written, for an image.
        weights: Numbers read once, for all images.
    """

    operations: int
    moved: int
    weights: int = 0


def forward_pass(case: Case) -> Iterator[Work]:
    """A forward pass of fused parts, each of which reads and writes the main memory.

    Between two products there is only what has to wait for a whole vector: each block's two norms, which read what a
    branch says and the map, and write the map. GELU is in a product, the shift and the cut into windows are in
    attention, whose logits are never written. It is not the least that there can be: what stays in a cache moves less.

    Args:
        case: The size.

    Yields:
        Its parts, in order.
    """
    side, channels = case.image_size // case.patch_size, case.embed_dim

    def linear(tokens: int, inputs: int, outputs: int) -> Work:
        return Work(2 * tokens * inputs * outputs, tokens * (inputs + outputs), inputs * outputs)

    yield linear(side**2, COLOURS * case.patch_size**2, channels)
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
    yield linear(1, channels, case.classes)


def operations(setting: Setting) -> int:
    """Operations in the matrix products of a step.

    Args:
        setting: What is done.

    Returns:
        Additions and multiplications, of all images.
    """
    forward = sum(work.operations for work in forward_pass(CASES[setting.case]))
    return FORWARD_PASSES[setting.mode] * setting.batch_size * forward


def bytes_moved(setting: Setting) -> int:
    """Bytes that a step of inference moves, if it is as in `forward_pass`.

    Args:
        setting: What is done.

    Returns:
        Bytes read and written, of all images.
    """
    return sum(_bytes(work, setting) for work in forward_pass(CASES[setting.case]))


def seconds_at_limits(setting: Setting, limits: Limits) -> float:
    """How long a step of inference would take if each part of `forward_pass` went as fast as the nearer limit allows.

    Args:
        setting: What is done.
        limits: Of the machine, at the setting's precision.

    Returns:
        Seconds.
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
