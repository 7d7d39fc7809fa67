"""However tensors lie in memory, each call takes them, and answers as for contiguous ones."""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import pytest
import torch
from torch import Tensor

from swinv2.ops.cpu import attention, blocks, branches, kernels, library, position
from swinv2.ops.reference import AttentionInputs
from swinv2.ops.windows import WindowPlan

pytestmark = pytest.mark.skipif(library.refuse() is not None, reason=str(library.refuse()))

Shape = tuple[int, ...]


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(prod(shape)))


LAYOUTS: dict[str, Callable[[Shape], Tensor]] = {
    "channels first": lambda shape: draw(shape[-1], *shape[:-1]).movedim(0, -1),
    "channels second": lambda shape: draw(shape[0], shape[-1], *shape[1:-1]).movedim(1, -1),
    "transposed": lambda shape: draw(*reversed(shape)).permute(*reversed(range(len(shape)))),
    "some channels": lambda shape: draw(*shape[:-1], shape[-1] + 3)[..., 1:-2],
    "every second channel": lambda shape: draw(*shape[:-1], 2 * shape[-1])[..., ::2],
    "some of the first axis": lambda shape: draw(2 * shape[0], *shape[1:])[shape[0] :],
    "every second of the first axis": lambda shape: draw(2 * shape[0], *shape[1:])[::2],
    "some of the second axis": lambda shape: draw(shape[0], shape[1] + 2, *shape[2:])[:, 1:-1],
    "the first axis expanded": lambda shape: draw(1, *shape[1:]).expand(shape),
    "the last axis expanded": lambda shape: draw(*shape[:-1], 1).expand(shape),
    "expanded": lambda shape: draw(1).view(*(1 for _ in shape)).expand(shape),
    "an offset": lambda shape: draw(prod(shape) + 3)[3:].view(shape),
    "channels last": lambda shape: draw(*shape).contiguous(memory_format=torch.channels_last),
}


def lying(layout: str, shape: Shape) -> Tensor | None:
    """A tensor of a layout, if a tensor of that shape can have it."""
    if len(shape) == 1 and "second axis" in layout + "second axis" * ("channels second" in layout):
        return None
    return None if layout == "channels last" and len(shape) != 4 else LAYOUTS[layout](shape)


@dataclass(frozen=True)
class Call:
    """Shapes of the tensors that a call takes, and the call; it returns new tensors."""

    shapes: dict[str, Shape]
    run: Callable[..., list[Tensor]]


HEADS, CHANNELS, HIDDEN = 2, 8, 12
MAPS = [(3, 4, 5), (1, 4, 5), (3, 1, 5), (3, 4, 1), (1, 1, 1), (0, 4, 5)]
WINDOW, TABLE = (2, 3), (HEADS, 3, 5)


def empty(*shapes: Shape) -> list[Tensor]:
    return [torch.zeros(shape) for shape in shapes]


def with_gradients(answer: Callable[..., Tensor]) -> Callable[..., list[Tensor]]:
    """A call that returns the gradients too; `grad` is that of the answer."""

    def run(grad: Tensor, **tensors: Tensor) -> list[Tensor]:
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}
        result = answer(**leaves)
        return [result.detach(), *torch.autograd.grad(result, list(leaves.values()), grad)]

    return run


def layers(tensors: dict[str, Tensor], *names: str) -> list[tuple[Tensor, Tensor | None]]:
    return [(tensors[f"w_{name}"], tensors.get(f"b_{name}")) for name in names]


def calls(size: Shape) -> dict[str, Call]:
    """All of them, for maps of a size (B, H, W)."""
    tokens, x, vectors = prod(size), (*size, CHANNELS), (*size, HEADS, CHANNELS // HEADS)
    plan, channels, hidden = WindowPlan((size[1], size[2]), WINDOW, (1, 1)), (CHANNELS,), (HIDDEN,)
    rest = {"bias_table": TABLE, "scale": (HEADS,)}
    qkv = {"q": vectors, "k": vectors, "v": vectors, **rest, "padded_value": vectors[-2:]}
    norm = {"norm_weight": channels, "norm_bias": channels}
    square = {f"w_{name}": (CHANNELS, CHANNELS) for name in ("q", "k", "v", "out_proj")}
    square |= {f"b_{name}": channels for name in ("q", "v", "out_proj")}
    wide = {"w1": (HIDDEN, CHANNELS), "b1": hidden, "w2": (CHANNELS, HIDDEN), "b2": channels}
    keep_mask = torch.arange(size[0]) != 1

    def inputs(**t: Tensor) -> AttentionInputs:
        return AttentionInputs(**t, plan=plan)

    def attend(**t: Tensor) -> list[Tensor]:
        (out,) = empty(vectors)
        kernels.attend(inputs(**t), out)
        return [out]

    def attend_backward(grad: Tensor, **t: Tensor) -> list[Tensor]:
        maps = empty(vectors, vectors, vectors)
        sums = kernels.attend_backward(grad, inputs(**t), maps, True)
        return [*maps, *sums]

    def project(**t: Tensor) -> list[Tensor]:
        norm = (t["norm_weight"], t["norm_bias"], 1e-5, 1.25)
        layer = blocks.PreparedProjection((t["weight"], t["bias"]), norm, (2, 2))
        return [blocks.project(layer, t["x"])]

    def add_normalised(**t: Tensor) -> list[Tensor]:
        (out,) = empty((tokens, CHANNELS))
        kernels.add_normalised(*t.values(), 1e-5, 1.25, out)
        return [out]

    def add_normalised_backward(**t: Tensor) -> list[Tensor]:
        out, sums = torch.zeros(tokens, CHANNELS), torch.zeros(3, CHANNELS, dtype=torch.float64)
        kernels.add_normalised_backward(*t.values(), 1e-5, 1.25, out, sums)
        return [out, sums]

    def gelu(gelu_in: Tensor) -> list[Tensor]:
        (out,) = empty((tokens, CHANNELS))
        kernels.gelu(gelu_in, out)
        return [out]

    def gelu_backward(gelu_in: Tensor, grad: Tensor) -> list[Tensor]:
        gelu_out, out = empty(*[(tokens, CHANNELS)] * 2)
        sums = torch.zeros(CHANNELS, dtype=torch.float64)
        kernels.gelu_backward(gelu_in, grad, gelu_out, out, sums)
        return [gelu_out, out, sums]

    def whole_mlp(**t: Tensor) -> list[Tensor]:
        out, gelu_in, branch_out = empty((tokens, CHANNELS), (tokens, HIDDEN), (tokens, CHANNELS))
        given = ((t["w1"], t["b1"]), (t["w2"], t["b2"]), (t["norm_weight"], t["norm_bias"], 1e-5, 1.25))
        blocks.add_mlp(t["x"], *given, out, gelu_in, branch_out)
        return [out, gelu_in, branch_out]

    def whole_attention(**t: Tensor) -> list[Tensor]:
        *into, last = layers(t, "q", "k", "v", "out_proj")
        saved = empty(x, (*size, 3 * CHANNELS), x, x)
        given = (t["bias_table"], t["scale"], plan, (t["norm_weight"], t["norm_bias"], 1e-5, 1.25))
        blocks.add_attention(t["x"], into, last, *given, *saved)
        return saved

    def attention_branch(**t: Tensor) -> Tensor:
        *into, last = layers(t, "q", "k", "v", "out_proj")
        end = branches.Epilogue(t["norm_weight"], t["norm_bias"], 1e-5, keep_mask, 2.0)
        return branches.add_attention(t["x"], into, last, t["bias_table"], t["scale"], plan, end)

    def mlp_branch(**t: Tensor) -> Tensor:
        end = branches.Epilogue(t["norm_weight"], t["norm_bias"], 1e-5, keep_mask, 2.0)
        return branches.add_mlp(t["x"], (t["w1"], t["b1"]), (t["w2"], t["b2"]), end)

    def window_attention(**t: Tensor) -> Tensor:
        return attention.window_attention(inputs(**t))

    lines = {"x": (tokens, CHANNELS), "branch_out": (tokens, CHANNELS), "weight": channels, "bias": channels}
    by_kernels = {
        "attend": Call(qkv, attend),
        "attend_backward": Call({"grad": vectors} | qkv, attend_backward),
        "project": Call({"x": x, "weight": (CHANNELS, 4 * CHANNELS), "bias": channels} | norm, project),
        "add_normalised": Call(lines, add_normalised),
        "add_normalised_backward": Call(
            {"grad": lines["x"], "branch_out": lines["x"], "weight": channels}, add_normalised_backward
        ),
        "gelu": Call({"gelu_in": lines["x"]}, gelu),
        "gelu_backward": Call({"gelu_in": lines["x"], "grad": lines["x"]}, gelu_backward),
        "add_mlp": Call({"x": lines["x"]} | wide | norm, whole_mlp),
        "add_attention": Call({"x": x} | square | rest | norm, whole_attention),
    }
    operations = {
        "attention branch": Call({"grad": x, "x": x} | square | rest | norm, with_gradients(attention_branch)),
        "mlp branch": Call({"grad": x, "x": x} | wide | norm, with_gradients(mlp_branch)),
        "window attention": Call({"grad": vectors} | qkv, with_gradients(window_attention)),
        "bias table": Call(
            {"grad": (HEADS, 5, 7), "w1": (HIDDEN, 2), "b1": hidden, "w2": (HEADS, HIDDEN)},
            with_gradients(lambda **t: position.bias_table((3, 4), (0, 0), *t.values())),
        ),
    }
    return by_kernels | operations


@pytest.mark.parametrize("size", MAPS, ids=str)
@pytest.mark.parametrize("name", calls((1, 1, 1)))
def test_tensors_may_lie_in_any_way(name: str, size: Shape) -> None:
    call = calls(size)[name]
    for layout in LAYOUTS:
        for varied, shape in call.shapes.items():
            tensor = lying(layout, shape)
            if tensor is None:
                continue
            others = {other: draw(*shape) for other, shape in call.shapes.items()}
            if "scale" in others:
                others["scale"] = others["scale"].abs() + 1
            expected = call.run(**others | {varied: tensor.clone(memory_format=torch.contiguous_format)})
            for answer, truth in zip(call.run(**others | {varied: tensor}), expected, strict=True):
                torch.testing.assert_close(
                    answer, truth, rtol=1e-4, atol=1e-4, msg=lambda m, v=varied, y=layout: f"{v}, {y}: {m}"
                )
