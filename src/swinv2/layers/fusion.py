"""Fusion: methods of the network that are computed as one operation instead of by several modules.

In: a module, one of its methods and its input map. Out: the result of the method, by a fused operation or by the plain
method, which is the specification. A fused operation reads the parameters of modules and does not call the modules. So
it runs only if the modules are intact: as they were built, without hooks, replaced or compiled forwards, offloading,
LoRA, pruned or quantised weights.

`FUSED` is the table of all fused operations. To fuse another operation, add a row.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swinv2.config import is_exact_gelu
from swinv2.layers.intact import Snapshot, refuse_structure, structure
from swinv2.layers.views import Views, views_of
from swinv2.lengths import Lengths
from swinv2.ops.backends import CPU, TRITON, refuse_machine
from swinv2.ops.cpu import library
from swinv2.ops.cpu.arguments import Norm, Weights
from swinv2.ops.cpu.blocks import BlockTensors, Copies, PreparedBlocks, PreparedProjection, project, run_blocks
from swinv2.ops.cpu.branches import Epilogue, add_attention, add_mlp
from swinv2.ops.cpu.linear import in_fp32, is_slow
from swinv2.ops.cpu.position import bias_table
from swinv2.ops.execution import Execution, execution
from swinv2.ops.precision import at_least_fp32


@dataclass(frozen=True)
class Fused:
    """A fused operation that replaces a method.

    Attributes:
        method: Class and name of the method.
        backend: The backend of `ops.backends` for which it runs.
        parts: Names of the sub-modules that it does not call.
        run: Computes the result from the module, the map and the other arguments of the method.
        refuse_module: Returns the reason why a module with intact parts cannot be fused, or None. The result is reused
            until the parts change.
        refuse_call: Returns the reason why a call (module, map) cannot be fused, or None.
        prepare: Makes an object from the module, which is reused until the parts change; `run` gets it after the map.
            An operation with `prepare` runs only in eager mode without gradients.
    """

    method: str
    backend: str
    parts: tuple[str, ...]
    run: Callable[..., Any]
    refuse_module: Callable[[Any], str | None] = lambda module: None
    refuse_call: Callable[[Any, Tensor], str | None] = lambda module, x: None
    prepare: Callable[[Any], Any] | None = None


def fusible(plain: Callable[..., Any]) -> Callable[..., Any]:
    """Decorates a method (module, map, backend, ...) that a row of `FUSED` may replace; see `remember_structure`."""

    method = plain.__qualname__

    @wraps(plain)
    def fused(module: Any, x: Tensor, backend: str, *rest: Any) -> Any:
        """Runs the fused operation if it can run, otherwise the plain method."""
        row, run, prepared = FUSED.get((method, backend)), execution(x), ()
        if row is None:
            if run is Execution.EAGER:
                # The module now runs in another backend: release the tensors of its snapshots.
                module.memory.clear()
            return plain(module, x, backend, *rest)
        if run is not Execution.EAGER:
            # torch.compile guards all conditions, and compiles again if one changes.
            can_run = _refuse_execution(row, run) is None and refuse_parts(module, row, x.device) is None
        elif row.prepare is not None and torch.is_grad_enabled() and x.requires_grad:
            can_run = False
        else:
            seen = module.memory.find(module, row, x.device)
            can_run = seen is not None and not (row.prepare is not None and seen.wants_gradients(x))
            prepared = () if seen is None else seen.prepared
        if not can_run or row.refuse_call(module, x) is not None:
            return plain(module, x, backend, *rest)
        return row.run(module, x, *prepared, *rest)

    return fused


def explain_fusion(module: Any, method: str, x: Tensor, backend: str) -> str:
    """Says whether a method of a module runs as one operation for a map, and if not, why.

    Args:
        module: A part of the network.
        method: The name of a `fusible` method.
        x: The map.
        backend: A backend of `ops.backends`.
    """
    row = FUSED.get((f"{type(module).__qualname__}.{method}", backend))
    if row is None:
        return f"{method} calls its modules: {backend} has no operation for it"
    reason = _refuse_execution(row, execution(x)) or refuse_parts(module, row, x.device) or row.refuse_call(module, x)
    if reason is None and row.prepare is not None and Snapshot(module, row.parts).wants_gradients(x):
        reason = "gradients are needed"
    return f"{method} is one operation" if reason is None else f"{method} calls its modules: {reason}"


def _refuse_execution(row: Fused, run: Execution) -> str | None:
    """The reason why a fused operation cannot run in a call that is run in this way, or None."""
    if run is Execution.EAGER or (run is Execution.COMPILED and row.prepare is None):
        return None
    return f"the call is run {run.value}"


class Memory(dict[str, Snapshot]):
    """The snapshots of a module's parts, by the name of the fused method. A copy of the module starts without
    snapshots."""

    def find(self, module: Any, row: Fused, device: torch.device) -> Snapshot | None:
        """The snapshot for a row of `FUSED`, renewed if the parts have changed; None if the parts must be called."""
        seen = self.get(row.method)
        if seen is None or not seen.is_current(module):
            self.pop(row.method, None)
            if refuse_structure(module, row.parts, device) is not None:
                return None
            seen = Snapshot(module, row.parts)
            # An address of 0 means that sharding or offloading has released the memory.
            seen.is_refused = row.refuse_module(module) is not None or 0 in seen.numbers[0]
            if row.prepare is not None and not seen.is_refused:
                seen.prepared = (row.prepare(module),)
            self[row.method] = seen
        return None if seen.is_refused else seen

    def __reduce__(self) -> tuple[Any, ...]:
        return Memory, ()


def remember_structure(module: nn.Module) -> None:
    """Records the structure of a new module; the constructor of a class with `fusible` methods calls it last."""
    owner: Any = module
    owner.built = {name: structure(part) for name, part in module.named_children()}
    owner.memory = Memory()


def refuse_parts(module: Any, row: Fused, device: torch.device) -> str | None:
    """The reason why the parts of a row of `FUSED` must be called, or None."""
    return refuse_structure(module, row.parts, device) or row.refuse_module(module)


def _layer_weights(layer: Any) -> Weights:
    """Weight and bias of a linear layer, as fused operations take them."""
    return layer.weight, layer.bias


def _norm_of(norm: nn.LayerNorm) -> Norm:
    """A layer norm, as the kernels for CPUs take it."""
    return norm.weight, norm.bias, norm.eps, 1.0


def _qkv_layers(attention: Any) -> list[Weights]:
    """The layers of queries, keys and values, as fused operations take them."""
    return [_layer_weights(layer) for layer in (attention.query, attention.key, attention.value)]


def _refuse_layers(*parts: nn.Module) -> str | None:
    """The reason why the compiled kernels cannot compute the layers of a branch, or None."""
    modules = [module for part in parts for module in part.modules()]
    for module in modules:
        rate = module.p if isinstance(module, nn.Dropout) else getattr(module, "dropout", 0.0)
        if module.training and isinstance(rate, float) and rate > 0:
            return "dropout is on"
    dtypes = {module.weight.dtype for module in modules if type(module) is nn.Linear}
    return "weights have different dtypes" if len(dtypes) > 1 else None


def _refuse_mlp(block: Any) -> str | None:
    """The reason why the compiled kernels cannot compute the MLP of a block, or None."""
    if not is_exact_gelu(block.intermediate.activation):
        return "the activation is not the exact GELU, the only one that the kernels have"
    return _refuse_layers(block.intermediate, block.output)


def _refuse_call(weight: Tensor, x: Tensor) -> str | None:
    """The reason why the compiled kernels cannot read a map for a layer with this weight, or None. Calls for which
    torch raises an error are refused too."""
    if x.device.type != "cpu":
        return f"the map is on {x.device.type}"
    if x.dtype != weight.dtype and not torch.is_autocast_enabled("cpu"):
        return "weights and map have different dtypes"
    return library.refuse(x.dtype)


def _refuse_map(layer: nn.Linear, x: Tensor) -> str | None:
    """The reason why a fused branch with this first layer cannot read a map, or None; see `_refuse_call`."""
    if x.shape[-1] != layer.weight.shape[1]:
        return "the map has another number of channels"
    return _refuse_call(layer.weight, x)


def _refuse_autocast() -> str | None:
    """The reason why autocast forbids a fused operation, or None."""
    is_on = torch.is_autocast_enabled("cpu")
    return "autocast is on, which chooses a dtype for each operation" if is_on else None


def _branch_epilogue(block: Any, x: Tensor, norm: nn.LayerNorm) -> Epilogue:
    """Norm and drop path of a branch, for its fused operation on a CPU."""
    keep_mask = block.drop_path.draw_keep_mask(x) if block.drop_path.drops else None
    return Epilogue(norm.weight, norm.bias, norm.eps, keep_mask, block.drop_path.kept_factor)


def _attention_on_cpu(block: Any, x: Tensor, output_attentions: bool) -> tuple[Tensor]:
    """Fused: the attention branch in compiled kernels."""
    attention = block.attention.self
    table, plan = attention.bias_table(x, CPU), attention.geometry.plan(tuple(x.shape[1:-1]))
    epilogue = _branch_epilogue(block, x, block.layernorm_before)
    out_proj = _layer_weights(block.attention.output.dense)
    return (add_attention(x, _qkv_layers(attention), out_proj, table, attention.scale(), plan, epilogue),)


def _mlp_on_cpu(block: Any, x: Tensor) -> Tensor:
    epilogue = _branch_epilogue(block, x, block.layernorm_after)
    return add_mlp(x, _layer_weights(block.intermediate.dense), _layer_weights(block.output.dense), epilogue)


def _refuse_gpu_epilogue(block: Any, x: Tensor) -> str | None:
    """The reason why norm, drop path and sum are not one kernel for GPUs, or None."""
    if execution(x) is not Execution.EAGER:
        return "torch.compile itself fuses norm, drop path and sum"
    return "the map is on meta, where nothing is computed" if x.is_meta else refuse_machine(x.device)


def _add_by_epilogue(block: Any, x: Tensor, branch_out: Tensor, norm: nn.LayerNorm) -> Tensor:
    """Norm, drop path and sum of a branch in one kernel for GPUs; modules have computed the branch's output."""
    # Imported here: Triton may not be installed, and its import takes a second.
    from swinv2.ops.triton.residual import add_normalised

    factors = block.drop_path.draw_factors(x) if block.drop_path.drops else None
    return add_normalised(x, branch_out, norm.weight, norm.bias, norm.eps, factors)


def _attention_with_gpu_epilogue(block: Any, x: Tensor, output_attentions: bool) -> tuple[Tensor, ...]:
    """Fused: the attention branch, whose epilogue is one kernel for GPUs."""
    attended, *weights = block.attention(x, TRITON, output_attentions)
    return _add_by_epilogue(block, x, attended, block.layernorm_before), *weights


def _mlp_with_gpu_epilogue(block: Any, x: Tensor) -> Tensor:
    return _add_by_epilogue(block, x, block.output(block.intermediate(x)), block.layernorm_after)


def _refuse_fast_product(layer: Any, x: Tensor) -> str | None:
    """Only products in a 16-bit dtype without instructions of the processor are computed in fp32."""
    return None if is_slow(x, *_layer_weights(layer)) else "torch is faster"


def _refuse_embeddings(embeddings: Any) -> str | None:
    """The reason why patch embedding and norm cannot run as one kernel, or None."""
    patches: Any = embeddings.patch_embeddings
    convolution = patches.projection
    sizes = {tuple(patches.patch_size), tuple(convolution.kernel_size), tuple(convolution.stride)}
    if len(sizes) > 1 or {*convolution.padding} != {0} or {*convolution.dilation} != {1} or convolution.groups != 1:
        return "the projection is not a convolution of patches side by side"
    return _refuse_weights(embeddings.patch_embeddings, embeddings.norm)


def _prepare_embeddings(embeddings: Any) -> PreparedProjection:
    """Weights of patch embedding and norm, prepared for one kernel."""
    weight, bias = _layer_weights(embeddings.patch_embeddings.projection)
    return PreparedProjection((weight.detach().flatten(1), bias), _norm_of(embeddings.norm), (1, 1))


def _refuse_pixels(embeddings: Any, pixels: Tensor) -> str | None:
    """The reason why the fused patch embedding cannot take these images, or None."""
    weight = embeddings.patch_embeddings.projection.weight
    if 0 in pixels.shape or pixels.shape[-3] != weight.shape[1]:
        return "the batch is empty, or the images have another number of channels"
    return _refuse_autocast() or _refuse_call(weight, pixels)


def _position_bias_on_cpu(bias: Any, x: Tensor, window: Lengths, pretrained_window: Lengths) -> Tensor:
    """Fused: the network of the position bias in compiled kernels."""
    first, _, second = bias
    weights = (at_least_fp32(each) for each in (first.weight, first.bias, second.weight))
    return bias_table(window, pretrained_window, *weights)


class _PreparedStage:
    """A stage's blocks and merging as arguments of the kernels, with their bias tables and scales.

    Bias tables and scales are computed from few parameters. The stage keeps copies of these parameters, and computes
    tables and scales again if the parameters have changed, also through `.data`. All other weights are read in place.
    """

    def __init__(self, stage: Any) -> None:
        self.blocks: list[Any] = list(stage.blocks)
        self.prepared = self._prepare_blocks()
        merging = stage.downsample
        self.merging = merging and PreparedProjection(_layer_weights(merging.reduction), _norm_of(merging.norm), (2, 2))

    def run(self, x: Tensor) -> tuple[Views, Views]:
        """The output of `Stage.forward` for a map."""
        prepared = self.prepared
        if not prepared[1].are_equal():
            # One assignment: another thread may read it at the same time.
            prepared = self.prepared = self._prepare_blocks()
        x = run_blocks(prepared[0], x)
        before = after = views_of(x)
        if self.merging is not None:
            after = views_of(project(self.merging, x))
        return before, after

    def _prepare_blocks(self) -> tuple[PreparedBlocks, Copies]:
        """Prepares the blocks, and copies the tensors from which their bias tables were computed."""
        parts = [block.attention.self for block in self.blocks]
        copies = Copies(
            [p for part in parts for p in (part.logit_scale, *part.continuous_position_bias_mlp.parameters())]
        )
        with torch.inference_mode(False), torch.no_grad():
            return PreparedBlocks([_block_tensors(block) for block in self.blocks]), copies


def _block_tensors(block: Any) -> BlockTensors:
    """For the fused stage: all tensors of a block, as kernels take them."""
    attention, geometry, extra = block.attention.self, block.attention.self.geometry, block.layernorm_extra
    return BlockTensors(
        qkv=_qkv_layers(attention),
        out_proj=_layer_weights(block.attention.output.dense),
        bias_table=attention.bias_table(attention.logit_scale, CPU),
        scale=attention.scale(),
        window=geometry.window,
        shift=geometry.shift,
        mask_padding=geometry.mask_padding,
        attention_norm=_norm_of(block.layernorm_before),
        fc1=_layer_weights(block.intermediate.dense),
        fc2=_layer_weights(block.output.dense),
        mlp_norm=_norm_of(block.layernorm_after),
        extra_norm=_norm_of(extra) if isinstance(extra, nn.LayerNorm) else None,
    )


def _refuse_weights(*modules: nn.Module) -> str | None:
    """The reason why the kernels without gradients cannot read the weights of modules, or None."""
    parameters = [p for module in modules for p in module.parameters()]
    if not all(parameter.is_contiguous() for parameter in parameters):
        return "weights are not contiguous"
    parts = [part for module in modules for part in module.modules()]
    layers = {part.weight.dtype for part in parts if isinstance(part, nn.Linear | nn.Conv2d)}
    dtypes = {parameter.dtype for parameter in parameters}
    # Norms, scales and the position bias may be in fp32 if the layers are in 16 bits.
    if len(layers) != 1 or not dtypes <= layers | {torch.float32} or (torch.float64 in dtypes and len(dtypes) > 1):
        return "weights have different dtypes"
    return None


def _refuse_stage(stage: Any) -> str | None:
    """The reason why the blocks of a stage cannot run in one call of a kernel, or None."""
    for block in stage.blocks:
        reason = _refuse_layers(block.attention) or _refuse_mlp(block)
        if reason is not None or block.drop_path.drops:
            return reason or "drop path is on"
    geometries = [block.attention.self.geometry for block in stage.blocks]
    if len({(geometry.window, geometry.mask_padding) for geometry in geometries}) != 1:
        return "blocks have different windows"
    return _refuse_weights(stage)


_ATTENTION, _MLP = "SwinTransformerBlock.attention_branch", "SwinTransformerBlock.mlp_branch"

_ROWS = (
    Fused(
        "Stage.forward",
        CPU,
        ("blocks", "downsample"),
        lambda stage, x, prepared, output_attentions=False: prepared.run(x),
        _refuse_stage,
        lambda stage, x: _refuse_autocast() or _refuse_map(stage.blocks[0].intermediate.dense, x),
        _PreparedStage,
    ),
    Fused(
        "Embeddings.embed",
        CPU,
        ("patch_embeddings", "norm"),
        lambda embeddings, pixels, prepared: project(prepared, embeddings.patch_embeddings.cut(pixels)),
        _refuse_embeddings,
        _refuse_pixels,
        _prepare_embeddings,
    ),
    Fused(
        _ATTENTION,
        CPU,
        ("attention", "layernorm_before", "drop_path"),
        _attention_on_cpu,
        lambda block: _refuse_layers(block.attention),
        lambda block, x: _refuse_map(block.attention.self.query, x),
    ),
    Fused(
        _MLP,
        CPU,
        ("intermediate", "output", "layernorm_after", "drop_path"),
        _mlp_on_cpu,
        _refuse_mlp,
        lambda block, x: _refuse_map(block.intermediate.dense, x),
    ),
    Fused(
        _ATTENTION,
        TRITON,
        ("layernorm_before", "drop_path"),
        _attention_with_gpu_epilogue,
        refuse_call=_refuse_gpu_epilogue,
    ),
    Fused(_MLP, TRITON, ("layernorm_after", "drop_path"), _mlp_with_gpu_epilogue, refuse_call=_refuse_gpu_epilogue),
    Fused("ContinuousPositionBias.forward", CPU, ("0", "1", "2"), _position_bias_on_cpu),
    Fused(
        "PatchEmbeddings.project",
        CPU,
        ("projection",),
        lambda patches, x: in_fp32(patches.projection._conv_forward, x, *_layer_weights(patches.projection)),
        refuse_call=lambda patches, x: _refuse_fast_product(patches.projection, x),
    ),
    Fused(
        "PatchMerging.reduce",
        CPU,
        ("reduction",),
        lambda merging, x: in_fp32(F.linear, x, *_layer_weights(merging.reduction)),
        refuse_call=lambda merging, x: _refuse_fast_product(merging.reduction, x),
    ),
)

FUSED = {(row.method, row.backend): row for row in _ROWS}
"""All fused operations, by method and backend."""
