"""Compares speed and memory of dense models with our backbone and with those of other libraries.

    python benchmarks/dense.py
    python benchmarks/dense.py --backbone-only
    python benchmarks/dense.py --scaling

It puts the backbones of this package, transformers and timm, with the same weights, into UperNet (this package's, and
for the others transformers') and into torchvision's Mask R-CNN. Before it measures, it compares their maps; if they
differ, it measures nothing.
Progress goes to stderr, the tables to stdout. README.md explains the method.
"""

import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import report
import torch
import torch.nn.functional as F
import typer
import worker
from cases import DROP_PATH_RATE, MODES, OURS, PRECISIONS, SEED, TOLERANCE, Setting, draw_weights
from model import Device, _field
from side_by_side import Comparison, check_device, choose_precisions
from terminal import progress, select
from torch import Tensor, nn

from swinv2 import Swinv2Backbone, Swinv2Config
from swinv2.lengths import Pair
from swinv2.zoo import find_preset

SERVE = "serve"
"""The first argument of this file for the process of a library; see `worker.main`."""

LIBRARIES = (OURS, "transformers", "timm")
UPERNET, MASK_RCNN, NONE = "upernet", "mask_rcnn", "none"
SHARED = "upernet_shared"
"""This package's UperNet around every backbone."""
HEADS = (UPERNET, SHARED, MASK_RCNN)
WHEN_NAMED = (SHARED,)
STAGES = ("stage1", "stage2", "stage3", "stage4")

PRESETS = {"T": "tiny", "B": "base"}
WINDOWS = ("8", "16")
"""Windows of published checkpoints of T and B, which are for images of 256 pixels."""
WINDOWS_WHEN_NAMED = ("16",)

QUICK = "quick"
QUICK_FIELDS = {"embed_dim": 16, "depths": [1, 2, 1, 1], "num_heads": [1, 2, 2, 4]}
QUICK_WINDOW = 4

SIZES: dict[str, Pair] = {UPERNET: (512, 512), SHARED: (512, 512), MASK_RCNN: (800, 1333)}
"""Size (height, width) in pixels of the images of each head: of ADE20K's crops, and the largest of COCO's."""
SCALING = (512, 1024, 1536, 2048)
QUICK_SIZES: dict[str, Pair] = {UPERNET: (64, 64), SHARED: (64, 64), MASK_RCNN: (128, 178)}
QUICK_SCALING = (64, 128)

CLASSES = {UPERNET: 150, SHARED: 150, MASK_RCNN: 80}
"""Those of ADE20K and COCO."""
OBJECTS = 8
"""Objects in a training image, about as many as in one of COCO."""

BATCH_SIZES = {
    ("cpu", UPERNET): {"inference": 1, "training": 2},
    ("cpu", SHARED): {"inference": 1, "training": 2},
    ("cpu", MASK_RCNN): {"inference": 1, "training": 1},
    ("cuda", UPERNET): {"inference": 8, "training": 8},
    ("cuda", SHARED): {"inference": 8, "training": 8},
    ("cuda", MASK_RCNN): {"inference": 4, "training": 4},
}
"""Images of a step. UperNet's batch norm over one pixel, in its pooling, needs two images in training."""


@dataclass(frozen=True)
class DenseSetting(Setting):
    """One row of the results without its library.

    Attributes:
        case: The backbone: a key of `PRESETS`, or `QUICK`.
        execution: "eager".
        window: Side of the windows in tokens.
        head: One of `HEADS`, or `NONE` for the backbone alone.
        height, width: Size of the images in pixels.
    """

    window: int
    head: str
    height: int
    width: int

    def __str__(self) -> str:
        size = f"{self.height} x {self.width}, batch {self.batch_size}"
        return f"{self.case} window {self.window}, head {self.head}, {self.mode} {self.precision}, {size}"


class TimmBackbone(nn.Module):
    """timm's network with the methods of our backbone that heads call.

    timm takes images of whole patches only, so zeros are added at the bottom and right, as the other two libraries do
    inside: its maps have the sizes of ours.

    Args:
        network: timm's network for images of this size, rounded up to whole patches.
        config: The configuration of our backbone, for the sizes of the maps.
    """

    def __init__(self, network: Any, config: Swinv2Config) -> None:
        super().__init__()
        self.network, self.config = network, config
        self.out_features, self.channels = STAGES, network.feature_info.channels()

    def forward(self, images: Tensor, **ignored: object) -> Any:
        """The maps (B, C, H, W)."""
        from transformers.modeling_outputs import BackboneOutput

        height, width = images.shape[2:]
        images = F.pad(images, (0, -width % 4, 0, -height % 4))
        return BackboneOutput(feature_maps=tuple(each.permute(0, 3, 1, 2) for each in self.network(images)))

    forward_with_filtered_kwargs = forward

    def grids(self, image_size: Pair) -> dict[str, Pair]:
        """See `Swinv2Backbone.grids`."""
        return _grids(self.config, image_size)


def _grids(config: Swinv2Config, image_size: Pair) -> dict[str, Pair]:
    return dict(zip(STAGES, config.map_sizes(image_size), strict=True))


def build_backbone(setting: DenseSetting) -> Swinv2Backbone:
    """Our backbone with drawn weights, without norms of the maps, which the others do not have."""
    architecture = QUICK_FIELDS if setting.case == QUICK else find_preset(PRESETS[setting.case]).config_fields()
    fields: dict[str, Any] = {
        **architecture,
        "image_size": (setting.height, setting.width),
        "window_size": setting.window,
        "drop_path_rate": DROP_PATH_RATE,
        "out_features": [*STAGES],
        "norm_feature_maps": False,
    }
    backbone = Swinv2Backbone(Swinv2Config(**fields))
    draw_weights(backbone)
    return backbone


def backbone_of(library: str, ours: Swinv2Backbone) -> nn.Module:
    """A library's backbone with the sizes and the weights of ours.

    Args:
        library: One of `LIBRARIES`.
        ours: Our backbone; the result for this package.
    """
    if library == OURS:
        return ours
    config, tensors = ours.config, ours.state_dict()
    shared = ("embed_dim", "depths", "num_heads", "window_size", "drop_path_rate")
    fields: dict[str, Any] = {name: getattr(config, name) for name in shared}
    image_size: Any = config.image_size
    if library == "transformers":
        from transformers import Swinv2Config as TheirConfig
        from transformers.models.swinv2.modeling_swinv2 import Swinv2Backbone as TheirBackbone

        fields |= {"image_size": image_size, "out_features": [*STAGES]}
        theirs: Any = TheirBackbone(TheirConfig(**fields))
        theirs.load_state_dict(tensors)
        theirs.grids = partial(_grids, config)
        return theirs
    import timm

    from swinv2.convert.dialects.rules import write
    from swinv2.convert.dialects.timm import TIMM

    size = tuple(-(-length // 4) * 4 for length in image_size)
    network = timm.create_model(
        "swinv2_tiny_window8_256", pretrained=False, features_only=True, img_size=size, **fields
    )
    named = write(TIMM, {f"swinv2.{name}": tensor for name, tensor in tensors.items()}, len(STAGES))
    # timm's list of features has its own names of stages.
    network.load_state_dict({name.replace("layers.", "layers_"): tensor for name, tensor in named.items()})
    return TimmBackbone(network, config)


def build_model(library: str, setting: DenseSetting) -> nn.Module:
    """A head with a library's backbone, or the backbone alone. All have the same weights.

    Args:
        library: One of `LIBRARIES`.
        setting: The row; on a GPU, this package's backbone uses the kernels.
    """
    from swinv2.dense import add_head

    ours = build_backbone(setting)
    if library == OURS and setting.device == "cuda":
        ours.set_attn_implementation("triton")
    if setting.head == NONE:
        return backbone_of(library, ours).to(setting.device)
    fields: dict[str, Any] = {"hidden_size": 512}
    if setting.head == MASK_RCNN:
        # New weights are sure of nothing: at torchvision's 0.05 there could be no object, and no mask to compute.
        fields = {"min_size": setting.height, "max_size": setting.width, "box_score_thresh": 0.03}
    labels = [str(index) for index in range(CLASSES[setting.head])]
    torch.manual_seed(SEED)
    model: Any = add_head(ours, UPERNET if setting.head == SHARED else setting.head, labels, **fields)
    if setting.head == UPERNET and library != OURS:
        from transformers import UperNetForSemanticSegmentation

        theirs = UperNetForSemanticSegmentation(model.config)
        theirs.backbone = model.backbone
        theirs.load_state_dict(model.state_dict())
        model = theirs
    (path,) = (name for name, module in model.named_modules() if module is ours)
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, backbone_of(library, ours))
    return model.to(setting.device)


def draw_images(setting: DenseSetting) -> Tensor:
    """Random images (batch_size, 3, height, width) with numbers from 0 to 1, with structure at several scales."""
    generator = torch.Generator().manual_seed(SEED)
    images = torch.zeros(setting.batch_size, 3, setting.height, setting.width)
    for side in (4, 16, 64):
        noise = torch.randn(setting.batch_size, 3, side, side, generator=generator)
        images += F.interpolate(noise, size=images.shape[2:], mode="bilinear")
    return images.sigmoid()


def draw_targets(setting: DenseSetting) -> list[dict[str, Tensor]]:
    """Boxes, labels and masks for the images of Mask R-CNN: rectangles from a 16th to a half of the image's sides."""
    generator = torch.Generator().manual_seed(SEED)
    size = torch.tensor([setting.width, setting.height])
    targets: list[dict[str, Tensor]] = []
    for _ in range(setting.batch_size):
        sides = (torch.rand(OBJECTS, 2, generator=generator) * 7 + 1) / 16 * size
        first = (torch.rand(OBJECTS, 2, generator=generator) * (size - sides)).floor()
        boxes = torch.cat([first, first + sides.floor()], 1)
        masks = torch.zeros(OBJECTS, setting.height, setting.width, dtype=torch.uint8)
        for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
            mask[top:bottom, left:right] = 1
        labels = torch.randint(1, CLASSES[MASK_RCNN] + 1, (OBJECTS,), generator=generator)
        targets.append({"boxes": boxes, "labels": labels, "masks": masks})
    return [{name: tensor.to(setting.device) for name, tensor in target.items()} for target in targets]


def _make_loss(model: nn.Module, images: Tensor, setting: DenseSetting) -> Callable[[], Tensor]:
    """The function that computes the loss of a training step."""
    if setting.head == NONE:
        return lambda: torch.stack([each.float().mean() for each in model(images).feature_maps]).sum()
    if setting.head == MASK_RCNN:
        targets = draw_targets(setting)
        return lambda: torch.stack(list(model([*images], targets).values())).sum()
    generator = torch.Generator().manual_seed(SEED)
    shape = (setting.batch_size, setting.height, setting.width)
    labels = torch.randint(CLASSES[UPERNET], shape, generator=generator).to(setting.device)
    return lambda: model(images, labels=labels).loss


def make_step(library: str, setting: DenseSetting) -> tuple[Callable[[], None], int]:
    """Prepares one library's measurement of a row: inference, or forward, loss and backward.

    Args:
        library: One of `LIBRARIES`.
        setting: The row; bf16 is autocast.

    Returns:
        The function that does one step, and the number of the model's parameters.
    """
    model = build_model(library, setting).train(setting.mode == "training")
    images = draw_images(setting).to(setting.device)
    precision = partial(torch.autocast, setting.device, torch.bfloat16, enabled=setting.precision == "bf16")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if setting.mode == "inference":

        def infer() -> None:
            with torch.no_grad(), precision():
                model([*images] if setting.head == MASK_RCNN else images)

        return infer, parameters
    loss_of = _make_loss(model, images, setting)

    def train() -> None:
        with precision():
            loss = loss_of()
        loss.backward()
        model.zero_grad(set_to_none=True)

    return train, parameters


def disagreement(library: str, setting: DenseSetting) -> float:
    """The largest difference of a number in our maps from a library's, with the same weights, in fp32, over the largest
    distance between the maps of two images; the largest of all maps. NaN if any number is."""
    both = replace(setting, batch_size=2, head=NONE, precision="fp32", mode="inference")
    images = draw_images(both).to(setting.device)
    with torch.no_grad():
        found, expected = (build_model(name, both).eval()(images).feature_maps for name in (OURS, library))
    errors = [
        (ours - theirs).abs().max() / (theirs[0] - theirs[1]).abs().max()
        for ours, theirs in zip(found, expected, strict=True)
    ]
    return torch.stack(errors).max().item()


class DenseWorker(worker.Worker):
    """A process that runs one library at one `DenseSetting`; see `worker.Worker`."""

    program = (str(Path(__file__).resolve()), SERVE)


def _finish(setting: Setting, row: report.Row) -> None:
    """Adds time and memory of a million pixels; removes the columns of libraries whose backbones have no maps of Swin
    V2."""
    assert isinstance(setting, DenseSetting)
    for library in ("torchvision", "openvino"):
        del row[f"images_per_second_over_{library}"]
    megapixels = setting.batch_size * setting.height * setting.width / 1e6
    for name in ("step_milliseconds", "rise_mib"):
        known = row[name] != ""
        row[f"{name}_per_megapixel"] = _field(float(str(row[name])) / megapixels) if known else ""


def _tables(rows: list[report.Row], libraries: Sequence[str], memory_too: bool) -> list[str]:
    """The results as tables, one line for each setting and one column for each library."""

    def build(caption: str, chosen: list[report.Row], ratios: dict[str, str], form: Callable[[Any], str]) -> str:
        keys = ("case", "window", "head", "height", "width", "mode", "precision", "batch_size")
        lines: list[list[str]] = []
        for key, group in itertools.groupby(chosen, lambda row: tuple(str(row[name]) for name in keys)):
            by_library = {str(row["library"]): row for row in group}
            found = [by_library.get(library) for library in libraries]
            cells = ["" if row is None else "failed" if row["note"] else form(row) for row in found]
            ours = by_library.get(OURS, {})
            lines.append([*key, *cells, *(f"{ours[r]:.2f}" if ours.get(r, "") != "" else "-" for r in ratios.values())])
        return report.table(caption, [*keys, *libraries, *ratios], lines)

    peers = [name for name in LIBRARIES if name != OURS and name in libraries]
    tables = [
        build(
            f"Milliseconds of a step (median of {rows[0]['rounds']} rounds); less is better. Columns with /: how many "
            f"times as fast {OURS} is as the named library. benchmarks/README.md explains more.",
            rows,
            {f"/ {name}": f"images_per_second_over_{name}" for name in peers},
            lambda row: f"{row['step_milliseconds']:.4g}",
        )
    ]
    if not memory_too:
        return tables
    tables.append(
        build(
            "Peak memory of a step in MiB, all images and weights included (in brackets: the rise during the step "
            f"alone); less is better. Columns with /: {OURS} divided by the named library.",
            rows,
            {"/ leanest peer": "peak_mib_over_leanest_peer", "/ transformers": "peak_mib_over_transformers"},
            lambda row: "" if row["peak_mib"] == "" else f"{row['peak_mib']:.0f} ({row['rise_mib']:.0f})",
        )
    )
    alone = [row for row in rows if row["head"] == NONE and row["mode"] == "inference"]
    if alone:
        tables.append(
            build(
                "The backbone alone: milliseconds of a step, and MiB of its rise, for a million pixels. They stay the "
                "same if time and memory grow like the number of pixels.",
                alone,
                {},
                lambda row: f"{row['step_milliseconds_per_megapixel']:.4g} ms, {row['rise_mib_per_megapixel']:.4g} MiB",
            )
        )
    return tables


def _place(row: report.Row) -> tuple[int, ...]:
    """The sort key of a row."""
    orders: dict[str, Sequence[str]] = {
        "case": (*PRESETS, QUICK),
        "head": (*HEADS, NONE),
        "mode": MODES,
        "precision": PRECISIONS,
        "library": LIBRARIES,
    }
    case, head, *rest = (list(order).index(str(row[name])) for name, order in orders.items())
    window, height, width = (int(str(row[name])) for name in ("window", "height", "width"))
    return case, window, head, height * width, *rest


def _check_maps(settings: Sequence[DenseSetting], libraries: Sequence[str]) -> None:
    """Ends the program if a library's maps differ from ours. The images of the scaling run are checked at the smallest
    size only."""
    smallest: dict[tuple[str, int, bool], DenseSetting] = {}
    for setting in sorted(settings, key=lambda each: each.height * each.width):
        smallest.setdefault((setting.case, setting.window, setting.height == setting.width), setting)
    # timm shifts a map before it pads it, so padded maps differ. This size needs no padding in any stage.
    unpadded = [replace(each, height=32 * each.window, width=32 * each.window) for each in smallest.values()]
    pairs = [("transformers", each) for each in smallest.values()]
    pairs += [("timm", each) for each in {(each.case, each.window): each for each in unpadded}.values()]
    for library, setting in pairs:
        if library not in libraries:
            continue
        of = f"{setting.case} window {setting.window}, {setting.height} x {setting.width}"
        progress(f"{of}: comparing maps with {library}")
        difference = disagreement(library, setting)
        if not difference <= TOLERANCE:
            progress(
                f"{of}: the maps differ from those of {library} by {difference:.1e} of the distance between two "
                f"images' maps; at most {TOLERANCE:.0e} is accepted. Nothing was measured."
            )
            raise typer.Exit(1)


def main(
    device: Annotated[Device, typer.Option(help="Where to measure.")] = Device.CPU,
    models: Annotated[str, typer.Option(help=f"Of {', '.join(PRESETS)}.")] = "",
    heads: Annotated[str, typer.Option(help=f"Of {', '.join(HEADS)}; {SHARED} only when named.")] = "",
    windows: Annotated[str, typer.Option(help=f"Of {', '.join(WINDOWS)}; 16 only when named.")] = "",
    libraries: Annotated[str, typer.Option(help=f"Of {', '.join(LIBRARIES)}.")] = "",
    modes: Annotated[str, typer.Option(help=f"Of {', '.join(MODES)}.")] = "",
    precisions: Annotated[str, typer.Option(help=f"Of {', '.join(PRECISIONS)}; bf16 is autocast.")] = "",
    backbone_only: Annotated[
        bool, typer.Option("--backbone-only", help="Measure the backbone alone, with the images of the heads.")
    ] = False,
    scaling: Annotated[
        bool, typer.Option("--scaling", help=f"Measure inference of the backbone alone at {SCALING} pixels.")
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Measure a very small network with small images: a trial of the program.")
    ] = False,
    memory_too: Annotated[
        bool, typer.Option("--memory/--no-memory", help="Whether to measure peak memory, too.")
    ] = True,
    go_on: Annotated[
        bool, typer.Option("--go-on", help="Keep the rows that the file already has, and measure the missing ones.")
    ] = False,
    rounds: Annotated[int, typer.Option(min=1, help="Measurements of each library, taken in turns.")] = 5,
    output: Annotated[
        Path | None, typer.Option(help="Write to this path with the suffixes .csv and .md, not to benchmarks/results.")
    ] = None,
) -> None:
    """Compares dense models with the backbones of swinv2, transformers and timm: time and peak memory."""
    if backbone_only and scaling:
        raise typer.BadParameter("it is another run than --backbone-only; give one of them", param_hint="--scaling")
    if scaling and (heads or modes):
        raise typer.BadParameter(
            "it has no head and no training; leave out --heads and --modes", param_hint="--scaling"
        )
    if quick and (models or windows):
        raise typer.BadParameter("it has its own network; leave out --models and --windows", param_hint="--quick")
    check_device(device)
    chosen_heads = select("heads", heads, HEADS, WHEN_NAMED)
    names = select("libraries", libraries, LIBRARIES)
    of_head = QUICK_SIZES if quick else SIZES
    images: list[tuple[str, Pair, dict[str, int]]] = [
        (head, of_head[head], BATCH_SIZES[device.value, head]) for head in chosen_heads
    ]
    if scaling:
        images = [(NONE, (side, side), {"inference": 1}) for side in (QUICK_SCALING if quick else SCALING)]
    elif backbone_only:
        images = [(NONE, size, batches) for _, size, batches in images]
    cases = [QUICK] if quick else select("models", models, PRESETS)
    sides = [QUICK_WINDOW] if quick else map(int, select("windows", windows, WINDOWS, WINDOWS_WHEN_NAMED))
    chosen_modes = select("modes", "inference" if scaling else modes, MODES)
    wanted = [
        DenseSetting(case, mode, precision, "eager", device.value, batches[mode], window, head, *size)
        for case, window, (head, size, batches), mode, precision in itertools.product(
            cases, sides, images, chosen_modes, choose_precisions(precisions, device.value)
        )
    ]
    comparison = Comparison(
        "dense",
        "Dense models",
        DenseWorker,
        names,
        _finish,
        partial(_tables, libraries=names, memory_too=memory_too),
        _place,
        lambda row: f"{row['case']} {row['head']} {row['mode']} {row['precision']}",
        rounds,
        memory_too,
    )
    comparison.run(wanted, device, go_on, output, partial(_check_maps, libraries=names))


if __name__ == "__main__":
    if sys.argv[1:2] == [SERVE]:
        worker.main(sys.argv[2:], DenseSetting, make_step)
    else:
        typer.run(main)
