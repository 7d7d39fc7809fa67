"""The compared models: their sizes, the libraries that build them, inference and training steps.

In: a `Setting`, plain strings and integers. Out: a function that does one step, ready to be measured. Every library
gets the same architecture, weights of the same distribution, the same images and the same optimizer. This module
measures nothing.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

OURS, OPENVINO = "swinv2", "openvino"
DROP_PATH_RATE = 0.1
"""Drop path rate of every library in training; all raise it linearly over the blocks."""

SEED = 0
MODES = ("inference", "training")
PRECISIONS = ("fp32", "bf16")
EXECUTIONS = ("eager", "compiled", "graphs", "tuned")
TOLERANCE = 1e-4
"""Largest disagreement with transformers at which speeds are compared; the tests are far stricter."""

ON_GPUS_ONLY = ("graphs", "tuned")
"""Executions of this package alone, compared with the peers' "compiled". Both replay CUDA graphs."""

EXECUTIONS_WHEN_NAMED = ("tuned",)
"""Executions that take minutes to prepare."""

COMPILER_MODES = {"compiled": "default", "graphs": "reduce-overhead", "tuned": "max-autotune"}
"""Modes of torch.compile."""


@dataclass(frozen=True)
class Case:
    """A model size at an image size.

    Attributes:
        name: Its name on the command line and in the results.
        image_size: Side of the square image in pixels.
        window: Side of the windows in tokens.
        embed_dim: Channels of the first stage.
        depths: Blocks of each stage.
        num_heads: Heads of each stage.
        pretrained_windows: For each stage, the window in which the position bias counts as learned; 0 for `window`.
        batch_sizes: Batch sizes, by device and mode. The first one fills the device, and no peer runs out of memory,
            unless one image is too much for it. A case without sizes for a device does not run there.
        patch_size: Side of a patch in pixels.
        classes: Length of the logits.
    """

    name: str
    image_size: int
    window: int
    embed_dim: int
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    pretrained_windows: tuple[int, ...]
    batch_sizes: dict[tuple[str, str], tuple[int, ...]]
    patch_size: int = 4
    classes: int = 1000


TINY = {"embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24), "pretrained_windows": (0, 0, 0, 0)}
LARGE = {
    "embed_dim": 192,
    "depths": (2, 2, 18, 2),
    "num_heads": (6, 12, 24, 48),
    "pretrained_windows": (12, 12, 12, 6),
}
TINY_BATCHES = {
    ("cpu", "inference"): (8, 1),
    ("cpu", "training"): (8,),
    ("cuda", "inference"): (256, 1),
    ("cuda", "training"): (64,),
}
SMALL_BATCHES = {("cpu", mode): (8, 1) for mode in MODES}

CASES = {
    case.name: case
    for case in (
        # The model that the package ships.
        Case(
            "shipped-w12-96",
            image_size=96,
            window=12,
            embed_dim=64,
            depths=(2, 2, 4, 1),
            num_heads=(2, 4, 8, 16),
            pretrained_windows=(8, 4, 2, 2),
            batch_sizes=SMALL_BATCHES,
            classes=200,
        ),
        Case(
            "mini-w4-64",
            image_size=64,
            window=4,
            embed_dim=24,
            depths=(2, 2, 2, 2),
            num_heads=(1, 2, 4, 8),
            pretrained_windows=(0, 0, 0, 0),
            batch_sizes=SMALL_BATCHES,
        ),
        Case("tiny-w8-256", image_size=256, window=8, **TINY, batch_sizes=TINY_BATCHES),
        Case("tiny-w16-256", image_size=256, window=16, **TINY, batch_sizes=TINY_BATCHES),
        Case(
            "base-w24-384",
            image_size=384,
            window=24,
            embed_dim=128,
            depths=(2, 2, 18, 2),
            num_heads=(4, 8, 16, 32),
            pretrained_windows=(12, 12, 12, 6),
            batch_sizes={
                ("cpu", "inference"): (2, 1),
                ("cpu", "training"): (1,),
                ("cuda", "inference"): (64, 1),
                ("cuda", "training"): (8,),
            },
        ),
        Case(
            "base-w16-256",
            image_size=256,
            window=16,
            embed_dim=128,
            depths=(2, 2, 18, 2),
            num_heads=(4, 8, 16, 32),
            pretrained_windows=(0, 0, 0, 0),
            batch_sizes={("cuda", "inference"): (128, 1), ("cuda", "training"): (32,)},
        ),
        Case(
            "large-w24-384",
            image_size=384,
            window=24,
            **LARGE,
            batch_sizes={("cuda", "inference"): (32, 1), ("cuda", "training"): (4,)},
        ),
        Case(
            "large-w32-1536",
            image_size=1536,
            window=32,
            **LARGE,
            batch_sizes={("cuda", "inference"): (1,), ("cuda", "training"): (1,)},
        ),
    )
}

CASES_WHEN_NAMED = ("large-w32-1536",)
"""Cases that take most of a GPU's memory."""


@dataclass(frozen=True)
class Setting:
    """One row of the results without its library: a case, a mode and an execution.

    Attributes:
        case: A name in `CASES`.
        mode: One of `MODES`.
        precision: One of `PRECISIONS`. As is usual, bf16 means weights and images in bf16 for inference, and fp32
            weights under autocast for training.
        execution: One of `EXECUTIONS`; all but eager are torch.compile, in a mode of `COMPILER_MODES`.
        device: "cpu" or "cuda".
        batch_size: Images of a step.
    """

    case: str
    mode: str
    precision: str
    execution: str
    device: str
    batch_size: int

    def __str__(self) -> str:
        return f"{self.case} {self.mode} {self.precision} {self.execution}, batch {self.batch_size}"


def _hugging_face_fields(case: Case) -> dict[str, object]:
    """The configuration that this package and transformers both understand."""
    return {
        "image_size": case.image_size,
        "patch_size": case.patch_size,
        "window_size": case.window,
        "embed_dim": case.embed_dim,
        "depths": list(case.depths),
        "num_heads": list(case.num_heads),
        "pretrained_window_sizes": list(case.pretrained_windows),
        "drop_path_rate": DROP_PATH_RATE,
        "num_labels": case.classes,
    }


def _build_ours(case: Case) -> nn.Module:
    from swinv2 import Swinv2Config, Swinv2ForImageClassification

    return Swinv2ForImageClassification(Swinv2Config(**_hugging_face_fields(case)))


def _build_transformers(case: Case) -> nn.Module:
    from transformers import Swinv2Config, Swinv2ForImageClassification

    return Swinv2ForImageClassification(Swinv2Config(**_hugging_face_fields(case)))


def _build_timm(case: Case) -> nn.Module:
    from timm.models.swin_transformer_v2 import SwinTransformerV2

    # timm.create_model("swinv2_tiny_window8_256") and similar names call this, with their tables of checkpoints.
    return SwinTransformerV2(
        img_size=case.image_size,
        patch_size=case.patch_size,
        window_size=case.window,
        embed_dim=case.embed_dim,
        depths=case.depths,
        num_heads=case.num_heads,
        pretrained_window_sizes=case.pretrained_windows,
        drop_path_rate=DROP_PATH_RATE,
        num_classes=case.classes,
    )


def _build_torchvision(case: Case) -> nn.Module:
    from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2

    def block(dim: int, num_heads: int, window_size: list[int], shift_size: list[int], **rest: object) -> nn.Module:
        # torchvision pads a map to the window if it is smaller: four times the tokens in the last stage at 384 with
        # window 24. The other three libraries clip the window. It is clipped here too, so the arithmetic is the same.
        grid = case.image_size // case.patch_size * case.embed_dim // dim
        window_size = [min(size, grid) for size in window_size]
        return SwinTransformerBlockV2(dim, num_heads, window_size=window_size, shift_size=shift_size, **rest)

    return SwinTransformer(
        patch_size=[case.patch_size, case.patch_size],
        embed_dim=case.embed_dim,
        depths=list(case.depths),
        num_heads=list(case.num_heads),
        window_size=[case.window, case.window],
        stochastic_depth_prob=DROP_PATH_RATE,
        num_classes=case.classes,
        block=block,
        downsample_layer=PatchMergingV2,
    )


# Each function imports its library itself, so that a process that measures one library has no other in memory.
LIBRARIES: dict[str, Callable[[Case], nn.Module]] = {
    OURS: _build_ours,
    "transformers": _build_transformers,
    "timm": _build_timm,
    "torchvision": _build_torchvision,
    # `make_step` converts it.
    OPENVINO: _build_transformers,
}
PEERS = tuple(name for name in LIBRARIES if name != OURS)


def libraries_for(setting: Setting, libraries: Iterable[str]) -> list[str]:
    """The libraries that support a setting. OpenVINO has only inference in fp32 on a CPU; only this package has the
    executions `ON_GPUS_ONLY`."""

    def takes_part(library: str) -> bool:
        if library == OPENVINO:
            return (setting.device, setting.mode, setting.precision) == ("cpu", "inference", "fp32")
        return library == OURS or setting.execution not in ON_GPUS_ONLY

    return [library for library in libraries if takes_part(library)]


def draw_weights(model: nn.Module) -> None:
    """Draws weights with which every part of a model influences its outputs.

    Two of the libraries initialise both norms of each block with zero: the logits would not depend on the blocks, and
    the optimizer would get gradients of zero.
    """
    generator = torch.Generator().manual_seed(SEED)

    def normal(parameter: Tensor, mean: float, deviation: float) -> None:
        parameter.copy_(mean + deviation * torch.randn(parameter.shape, generator=generator))

    norms = {id(module.weight) for module in model.modules() if isinstance(module, nn.LayerNorm)}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("logit_scale"):
                normal(parameter, math.log(10), 0.5)
            elif id(parameter) in norms:
                normal(parameter, 1.0, 0.3)
            elif parameter.ndim == 1:
                normal(parameter, 0.0, 0.1)
            elif "continuous_position_bias_mlp" in name or "cpb_mlp" in name:
                normal(parameter, 0.0, 1.0 if parameter.shape[1] == 2 else 0.2)
            else:
                normal(parameter, 0.0, parameter[0].numel() ** -0.5)


def build_model(library: str, case: Case, device: str) -> nn.Module:
    """One library's model of a size, with drawn weights, in fp32.

    Args:
        library: A name in `LIBRARIES`.
        case: The size.
        device: The device of the model; on a GPU, this package's model uses the kernels.
    """
    model = LIBRARIES[library](case)
    draw_weights(model)
    if library == OURS and device == "cuda":
        model.set_attn_implementation("triton")
    return model.to(device)


def draw_images(case: Case, batch_size: int) -> Tensor:
    """Random images (batch_size, 3, H, W) with structure at several scales, like photographs."""
    generator = torch.Generator().manual_seed(SEED)
    size = (case.image_size, case.image_size)
    images = torch.zeros(batch_size, 3, *size)
    for side in (4, 16, 64):
        images += F.interpolate(torch.randn(batch_size, 3, side, side, generator=generator), size=size, mode="bilinear")
    return images


def logits_of(output: object) -> Tensor:
    """The logits; two of the libraries return an object that contains them."""
    return output if isinstance(output, Tensor) else output.logits


def make_step(library: str, setting: Setting) -> tuple[Callable[[], None], int]:
    """Prepares one library's measurement of a row.

    The images are on the device already, so reading them is not measured. A training step deletes its gradients.

    Args:
        library: A name in `LIBRARIES`.
        setting: The row.

    Returns:
        The function that does one step, and the number of the model's parameters.
    """
    case = CASES[setting.case]
    model = build_model(library, case, setting.device)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    images = draw_images(case, setting.batch_size).to(setting.device)
    bf16 = setting.precision == "bf16"
    training = setting.mode == "training"
    model.train(training)
    if bf16 and not training:
        model, images = model.to(torch.bfloat16), images.to(torch.bfloat16)
    forward = model
    if library == OPENVINO:
        forward = convert(model, case, images)
    elif setting.execution != "eager":
        forward = torch.compile(model, mode=COMPILER_MODES[setting.execution])

    if not training:

        def infer() -> None:
            with torch.inference_mode():
                logits_of(forward(images))

        return infer, parameters

    labels = torch.arange(setting.batch_size, device=setting.device) % case.classes
    # With a small rate, many steps hardly change the weights.
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, weight_decay=0.05, fused=True)

    def train() -> None:
        with torch.autocast(setting.device, torch.bfloat16, enabled=bf16):
            loss = F.cross_entropy(logits_of(forward(images)).float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return train, parameters


def convert(model: nn.Module, case: Case, images: Tensor) -> Callable[[Tensor], Tensor]:
    """transformers' model as OpenVINO runs it in fp32, with as many threads as torch has.

    Args:
        model: The model, in evaluation mode.
        case: The size.
        images: Images of the shape to convert for; with dynamic shapes OpenVINO is slower.

    Raises:
        ValueError: Its logits for these images differ from the model's.
    """
    import openvino

    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        # On a CPU with bf16 instructions, OpenVINO would silently round to bf16.
        "INFERENCE_PRECISION_HINT": "f32",
    }
    converted = openvino.convert_model(model, example_input=images, input=list(images.shape))
    compiled = openvino.compile_model(converted, "CPU", options)

    def forward(images: Tensor) -> Tensor:
        return torch.from_numpy(compiled(images.numpy())[0])

    difference = _difference(forward(images), model, case, images)
    if not difference <= TOLERANCE:
        raise ValueError(f"the error of its logits is {difference:.1e} of the distance between two images' logits")
    return forward


def _difference(logits: Tensor, theirs: nn.Module, case: Case, images: Tensor) -> float:
    """The largest difference of a logit from transformers', divided by the largest distance between two images' logits
    of transformers: errors are relative to the part of the logits that distinguishes images. NaN if any logit is."""
    with torch.inference_mode():
        expected = theirs(images).logits
        one, other = theirs(draw_images(case, 2).to(images.device)).logits
    return ((logits - expected).abs().max() / (one - other).abs().max()).item()


def disagreement(case: Case, device: str) -> float:
    """The `_difference` of this package's logits from transformers', with the same weights, on two images in fp32."""
    theirs = build_model("transformers", case, device).eval()
    ours = build_model(OURS, case, device).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    images = draw_images(case, 2).to(device)
    with torch.inference_mode():
        logits = ours(images).logits
    return _difference(logits, theirs, case, images)
