"""Runs of blocks in one call of a kernel, against their branches one after the other."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from swinv2.ops import reference
from swinv2.ops.cpu import library
from swinv2.ops.cpu.blocks import (
    BlockTensors,
    Copies,
    PreparedBlocks,
    PreparedProjection,
    add_attention,
    add_mlp,
    project,
    run_blocks,
)
from swinv2.ops.precision import precise
from swinv2.ops.reference import AttentionInputs
from swinv2.ops.windows import WindowPlan

pytestmark = pytest.mark.skipif(library.refuse() is not None, reason=str(library.refuse()))

HEADS, CHANNELS, HIDDEN = 2, 20, 50
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) / shape[-1] ** 0.5).to(dtype)


def block(
    dtype: torch.dtype, seed: int, shift: tuple[int, int], window: tuple[int, int], has_extra_norm: bool = False
) -> BlockTensors:
    def layer(out: int, features: int, number: int, has_bias: bool = True) -> tuple[Tensor, Tensor | None]:
        weight, bias = (draw(*shape, dtype=dtype, seed=seed + number) for shape in ((out, features), (out,)))
        return weight, bias if has_bias else None

    def norm(number: int) -> tuple[Tensor, Tensor, float, float]:
        return *(draw(CHANNELS, dtype=dtype, seed=seed + number + i) * 4 for i in range(2)), 1e-5, 1.0

    return BlockTensors(
        qkv=[layer(CHANNELS, CHANNELS, number, number != 1) for number in range(3)],
        out_proj=layer(CHANNELS, CHANNELS, 3),
        bias_table=draw(HEADS, 2 * window[0] - 1, 2 * window[1] - 1, dtype=precise(dtype), seed=seed + 4),
        scale=torch.tensor([5.0, 20.0], dtype=precise(dtype)),
        window=window,
        shift=shift,
        mask_padding=False,
        attention_norm=norm(5),
        fc1=layer(HIDDEN, CHANNELS, 7),
        fc2=layer(CHANNELS, HIDDEN, 8),
        mlp_norm=norm(9),
        extra_norm=norm(11) if has_extra_norm else None,
    )


def one_after_the_other(blocks: list[BlockTensors], x: Tensor) -> Tensor:
    for each in blocks:
        plan = WindowPlan((x.shape[1], x.shape[2]), each.window, each.shift, each.mask_padding)
        x = x.clone()
        add_attention(x, each.qkv, each.out_proj, each.bias_table, each.scale, plan, each.attention_norm, x)
        add_mlp(x.flatten(0, 2), each.fc1, each.fc2, each.mlp_norm, x.flatten(0, 2))
        if each.extra_norm is not None:
            weight, bias, eps, _ = each.extra_norm
            x = F.layer_norm(x.double(), (CHANNELS,), weight.double(), bias.double(), eps).to(x.dtype)
    return x


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("shape", "window"),
    [((1, 1, 1), (4, 4)), ((2, 5, 7), (3, 4)), ((1, 16, 24), (8, 8)), ((3, 40, 8), (4, 4)), ((0, 4, 4), (2, 2))],
    ids=str,
)
def test_a_run_is_its_branches(
    shape: tuple[int, ...], window: tuple[int, int], dtype: torch.dtype, threads: int
) -> None:
    shift = (window[0] // 2, window[1] // 2)
    blocks = [
        block(dtype, 0, (0, 0), window),
        block(dtype, 100, shift, window, True),
        block(dtype, 200, (0, 0), window),
    ]
    x, threads_before = draw(*shape, CHANNELS, dtype=dtype, seed=1) * 4, torch.get_num_threads()
    expected, prepared = one_after_the_other(blocks, x), PreparedBlocks(blocks)
    torch.set_num_threads(threads)
    try:
        answers = [run_blocks(prepared, x), run_blocks(prepared, x, torch.empty_like(x))]
        answers.append(run_blocks(prepared, x.permute(3, 0, 2, 1).contiguous().permute(1, 3, 2, 0)))
        buffer = x.clone()
        answers.append(run_blocks(prepared, buffer, buffer))
    finally:
        torch.set_num_threads(threads_before)
    # Between branches the numbers are not rounded to 16 bits.
    rounding = {torch.float64: 1e-12, torch.float32: 1e-4}.get(dtype, 40 * torch.finfo(dtype).eps)
    for answer in answers:
        assert answer.dtype == dtype
        torch.testing.assert_close(answer, expected, rtol=rounding, atol=rounding)
        assert torch.equal(answer, answers[0])


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize(
    ("heads", "head_dim", "grid", "window"),
    [
        *[(5, 1, (9, 9), (4, 4)), (1, 3, (9, 20), (7, 7)), (2, 40, (17, 5), (5, 5)), (3, 32, (8, 8), (8, 8))],
        *[(1, 8, (12, 70), (64, 64)), (1, 300, (3, 3), (2, 2)), (4, 5, (1, 100), (1, 9))],
    ],
    ids=str,
)
def test_heads_and_windows_of_any_size(
    heads: int, head_dim: int, grid: tuple[int, int], window: tuple[int, int], threads: int
) -> None:
    channels, plan = heads * head_dim, WindowPlan(grid, window, (window[0] // 2, window[1] // 2))
    x = draw(2, *grid, channels, dtype=torch.float64)
    layers = [
        (draw(channels, channels, dtype=torch.float64, seed=i), draw(channels, seed=i).double()) for i in range(4)
    ]
    layers[1] = (layers[1][0], None)
    table, scale = draw(heads, 2 * window[0] - 1, 2 * window[1] - 1).double(), torch.full((heads,), 10.0).double()
    weight, bias = draw(channels, seed=5).double(), draw(channels, seed=6).double()
    q, k, v = (F.linear(x, *layer).unflatten(-1, (heads, -1)) for layer in layers[:3])
    padding = layers[2][1].view(heads, -1)
    attended, _ = reference.window_attention(AttentionInputs(q, k, v, table, scale, plan, padding))
    branch_out = F.linear(attended.flatten(-2), *layers[3])
    expected = x + F.layer_norm(branch_out, (channels,), weight, bias, 1e-5)
    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for dtype, bound in ((torch.float64, 1e-9), (torch.float32, 2e-4)):
            some = [(w.to(dtype), b if b is None else b.to(dtype)) for w, b in layers]
            out, norm = torch.empty(x.shape, dtype=dtype), (weight.to(dtype), bias.to(dtype), 1e-5, 1.0)
            add_attention(x.to(dtype), some[:3], some[3], table.to(dtype), scale.to(dtype), plan, norm, out)
            torch.testing.assert_close(out.double(), expected, rtol=bound, atol=bound)
    finally:
        torch.set_num_threads(threads_before)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("shape", "window", "out", "has_bias"),
    [
        # Maps that end within a window, one window, few tokens of many numbers, more tokens than are taken at once.
        *[((2, 7, 9, 5), (2, 2), 10, True), ((3, 1, 1, 3), (2, 2), 6, False), ((1, 2, 2, 300), (2, 2), 700, False)],
        *[((2, 50, 31, 32), (2, 2), 64, False), ((1, 1, 400, 48), (1, 1), 96, True), ((2, 5, 5, 4), (3, 2), 7, True)],
        ((0, 4, 4, 8), (2, 2), 16, False),
    ],
    ids=str,
)
def test_windows_are_joined_projected_and_normalised(
    shape: tuple[int, ...], window: tuple[int, int], out: int, has_bias: bool, dtype: torch.dtype, threads: int
) -> None:
    joined, (down, across) = shape[3] * window[0] * window[1], window
    x, weight, threads_before = (
        draw(*shape, dtype=dtype) * 4,
        draw(out, joined, dtype=dtype, seed=1),
        torch.get_num_threads(),
    )
    bias = draw(out, dtype=dtype, seed=2) if has_bias else None
    norm = draw(out, dtype=dtype, seed=3), draw(out, dtype=dtype, seed=4)
    padded = F.pad(x.double(), (0, 0, 0, -shape[2] % across, 0, -shape[1] % down))
    tokens = padded.unflatten(2, (-1, across)).unflatten(1, (-1, down)).permute(0, 1, 3, 4, 2, 5).flatten(3)
    branch_out = F.linear(tokens, weight.double(), None if bias is None else bias.double())
    expected = F.layer_norm(branch_out, (out,), norm[0].double(), norm[1].double(), 1e-5).to(dtype)
    torch.set_num_threads(threads)
    try:
        answer = project(PreparedProjection((weight, bias), (*norm, 1e-5, 1.0), window), x)
    finally:
        torch.set_num_threads(threads_before)
    rounding = {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, torch.finfo(dtype).eps)
    torch.testing.assert_close(answer, expected, rtol=rounding, atol=rounding)


def test_numbers_may_change_in_place() -> None:
    tensors = block(torch.float32, 0, (0, 0), (2, 2))
    x, prepared = draw(1, 4, 4, CHANNELS), PreparedBlocks([tensors])
    first = run_blocks(prepared, x)
    tensors.fc1[0].mul_(2)
    torch.testing.assert_close(run_blocks(prepared, x), one_after_the_other([tensors], x))
    assert not torch.equal(run_blocks(prepared, x), first)


def test_what_does_not_fit_is_refused() -> None:
    good = block(torch.float32, 0, (0, 0), (2, 2))
    bad = {
        r"has shape \(20, 19\)": replace(good, out_proj=(draw(20, 19), None)),
        r"bias_table has shape": replace(good, window=(2, 3)),
        r"is on meta": replace(good, mlp_norm=(torch.ones(20, device="meta"), *good.mlp_norm[1:])),
        r"must both be in fp32": replace(good, scale=good.scale.half()),
        r"with strides .* cannot be prepared": replace(good, fc1=(draw(CHANNELS, HIDDEN).T, None)),
        r"in torch.int64 cannot be prepared": replace(good, out_proj=(torch.ones(20, 20, dtype=torch.int64), None)),
        r"shift .* must be at least 0": replace(good, shift=(2, 0)),
    }
    for message, tensors in bad.items():
        with pytest.raises(ValueError, match=message):
            PreparedBlocks([tensors])
    with pytest.raises(ValueError, match="the same window"):
        PreparedBlocks([good, block(torch.float32, 0, (0, 0), (2, 3))])
    prepared = PreparedBlocks([good])
    with pytest.raises(ValueError, match="expected"):
        run_blocks(prepared, draw(1, 4, 4, CHANNELS + 1))
    with pytest.raises(ValueError, match="expected one on a CPU in fp32"):
        run_blocks(prepared, draw(1, 4, 4, CHANNELS, dtype=torch.float64))
    with pytest.raises(ValueError, match="expected"):
        run_blocks(prepared, draw(1, 4, 4, CHANNELS), draw(1, 4, 5, CHANNELS))


def test_copies_notice_every_change() -> None:
    tensors = [draw(3, 5), draw(7, dtype=torch.bfloat16), torch.zeros(())]
    copies = Copies(tensors)
    assert copies.are_equal()
    tensors[1][6] += 1
    assert not copies.are_equal()
    copies = Copies(tensors)
    tensors[2].data = tensors[2].clone()
    assert not copies.are_equal()
    with pytest.raises(ValueError, match="contiguous"):
        Copies([draw(4, 4).T])
