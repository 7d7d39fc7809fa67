"""Which parts of the network are computed as one operation, and whose modules are called instead.

In: modules and the map that enters them. Out: the operation, or None. A fused operation takes the parameters of modules
and calls none of them, so it runs only where nobody can tell: modules as they were built, without hooks, replaced or
compiled forwards, offloading, LoRA, pruned or quantised weights. Everything else is called, module by module.

`FUSED` is the whole table. To fuse another operation, add a row.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import wraps
from types import MethodType
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from swinv2.config import is_exact_gelu
from swinv2.ops.backends import SDPA, TRITON, refuse_machine
from swinv2.ops.cpu import library
from swinv2.ops.cpu.branches import Ending, add_attention, add_mlp
from swinv2.ops.cpu.linear import linear, linear_each
from swinv2.ops.execution import ORDINARY, Execution, execution


@dataclass(frozen=True)
class Fused:
    """One operation in place of modules.

    Attributes:
        method: Of the block, whose place it takes.
        backend: For which backend.
        parts: Names of the modules that are not called.
        refuses: Given the block and the map, whether it cannot compute what they need.
        run: Given the block, the map and what else the method is given.
    """

    method: str
    backend: str
    parts: tuple[str, ...]
    refuses: Callable[[Any, Tensor], bool]
    run: Callable[..., Any]


def fusible(plain: Callable[..., Any]) -> Callable[..., Any]:
    """A method (block, map, backend, ...) that a row of `FUSED` may take the place of."""

    @wraps(plain)
    def run(block: Any, x: Tensor, backend: str, *rest: Any) -> Any:
        fused = FUSED.get((plain.__name__, backend))
        if fused is None or not is_intact(block, fused.parts, x.device.type) or fused.refuses(block, x):
            return plain(block, x, backend, *rest)
        return fused.run(block, x, backend, *rest)

    return run


def structure(module: nn.Module) -> list[Any]:
    """Types of a module's parts and shapes of their parameters: what it was built of, or what somebody has made of it."""
    return [(type(m), [None if p is None else p.shape for p in m._parameters.values()]) for m in module.modules()]


def is_intact(block: Any, names: Iterable[str], device: str) -> bool:
    """Whether parts of a block are as they were built, on a device, and nobody watches them."""
    return all(
        structure(part) == block.built[name]
        and all(is_unwatched(module) and has_plain_parameters(module, device) for module in part.modules())
        for name in names
        for part in (block.get_submodule(name),)
    )


def is_unwatched(module: nn.Module) -> bool:
    """Whether nobody sees, replaces or pays for the calls of a module: no hooks, no forward of the instance's own, not
    compiled by itself, not offloaded by accelerate."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return (
        # The lengths: torch.compile notices when they change.
        all(len(some) == 0 for some in hooks)
        and not _has_any_global_hook()
        # The attribute too: torch.compile notices when it changes, and does not look into the dictionary again.
        and type(module.forward) is MethodType
        and "forward" not in module.__dict__
        and "_hf_hook" not in module.__dict__
        and module._compiled_call_impl is None
    )


def has_plain_parameters(module: nn.Module, device: str) -> bool:
    """Whether a module's own parameters are plain ones, on a device."""
    return all(
        type(p) is nn.Parameter and p.device.type == device and p.layout == torch.strided
        for p in module._parameters.values()
        if p is not None
    )


def is_plain(layer: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether calling a layer does nothing but multiply by its weight and add its bias."""
    return type(layer) is nn.Linear and is_unwatched(layer) and has_plain_parameters(layer, "cpu")


def project(features: Tensor, *layers: nn.Module) -> tuple[Tensor, ...]:
    """Applies linear layers to the same features (..., C), in one product where that is allowed and faster.

    Returns:
        The result of each layer. They may be views of one tensor.
    """
    if features.device.type != "cpu" or execution(features) not in ORDINARY:
        return tuple(layer(features) for layer in layers)
    plain = [layer for layer in layers if is_plain(layer)]
    # The gradient of the joined weight is wanted for all, or for none.
    learn_alike = not torch.is_grad_enabled() or len({layer.weight.requires_grad for layer in plain}) == 1
    if len(plain) == len(layers) and learn_alike:
        return linear_each(features, [(layer.weight, layer.bias) for layer in plain])
    return tuple(linear(features, layer.weight, layer.bias) if is_plain(layer) else layer(features) for layer in layers)


def _kernels_refuse(block: Any, x: Tensor, parts: Iterable[nn.Module]) -> bool:
    """Whether the compiled kernels for CPUs cannot compute a branch: they have none for it, or torch would raise."""
    modules = [module for part in parts for module in part.modules()]
    weights = [module.weight for module in modules if type(module) is nn.Linear]
    return (
        x.device.type != "cpu"
        or execution(x) not in ORDINARY
        or library.refuse(x.dtype) is not None
        or x.shape[-1] != block.channels
        or not (torch.is_autocast_enabled("cpu") or all(weight.dtype == x.dtype for weight in weights))
        or any(_drops(module) for module in modules)
    )


def _drops(module: nn.Module) -> bool:
    """Whether a module drops numbers or attention weights, now."""
    rate = module.p if isinstance(module, nn.Dropout) else getattr(module, "dropout", 0.0)
    return module.training and isinstance(rate, float) and rate > 0


def _end(block: Any, x: Tensor, norm: nn.LayerNorm) -> Ending:
    kept = block.drop_path.keeps(x) if block.drop_path.drops else None
    return Ending(norm.weight, norm.bias, norm.eps, kept, block.drop_path.factor)


def _attention_on_cpu(block: Any, x: Tensor, backend: str, chunk_size: int | None) -> tuple[Tensor, None]:
    attention, last = block.attention.self, block.attention.output.dense
    qkv = [(layer.weight, layer.bias) for layer in (attention.query, attention.key, attention.value)]
    table, plan = attention.bias_table(x.device, backend), attention.geometry.plan((x.shape[1], x.shape[2]))
    end = _end(block, x, block.layernorm_before)
    return add_attention(x, qkv, (last.weight, last.bias), table, attention.scale(), plan, end), None


def _mlp_on_cpu(block: Any, x: Tensor, backend: str) -> Tensor:
    widen, narrow = block.intermediate.dense, block.output.dense
    end = _end(block, x, block.layernorm_after)
    return add_mlp(x, (widen.weight, widen.bias), (narrow.weight, narrow.bias), end)


def _add_on_gpu(block: Any, x: Tensor, work: Tensor, norm: nn.LayerNorm) -> Tensor:
    # Triton is there on few machines, and takes a second to import.
    from swinv2.ops.triton.residual import add_normalised

    factors = block.drop_path.factors(x) if block.drop_path.drops else None
    return add_normalised(x, work, norm.weight, norm.bias, norm.eps, factors)


def _attention_on_gpu(block: Any, x: Tensor, backend: str, chunk_size: int | None) -> tuple[Tensor, Tensor | None]:
    attended, weights = block.attention(x, backend, chunk_size)
    return _add_on_gpu(block, x, attended, block.layernorm_before), weights


def _mlp_on_gpu(block: Any, x: Tensor, backend: str) -> Tensor:
    return _add_on_gpu(block, x, block.output(block.intermediate(x)), block.layernorm_after)


def _gpu_refuses(block: Any, x: Tensor) -> bool:
    # torch.compile makes one kernel of norm, drop path and sum by itself.
    return x.is_meta or execution(x) is not Execution.EAGER or refuse_machine(x.device) is not None


FUSED = {
    (row.method, row.backend): row
    for row in (
        Fused(
            "attention_branch",
            SDPA,
            ("attention", "layernorm_before", "drop_path"),
            lambda block, x: _kernels_refuse(block, x, (block.attention,)),
            _attention_on_cpu,
        ),
        Fused(
            "mlp_branch",
            SDPA,
            ("intermediate", "output", "layernorm_after", "drop_path"),
            lambda block, x: (
                _kernels_refuse(block, x, (block.intermediate, block.output))
                or not is_exact_gelu(block.intermediate.activation)
            ),
            _mlp_on_cpu,
        ),
        Fused("attention_branch", TRITON, ("layernorm_before", "drop_path"), _gpu_refuses, _attention_on_gpu),
        Fused("mlp_branch", TRITON, ("layernorm_after", "drop_path"), _gpu_refuses, _mlp_on_gpu),
    )
}
