"""Compares speed and memory of video models with torchvision's Video Swin Transformer.

    python benchmarks/videos.py
    python benchmarks/videos.py --models T --frames 16 --modes inference

Both networks have the same stages, patches, windows and clips, and nearly the same number of parameters. torchvision's
is of V1, so the answers differ.
Progress goes to stderr, the tables to stdout. README.md explains the method.
"""

import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import report
import torch
import torch.nn.functional as F
import typer
import worker
from cases import DROP_PATH_RATE, MODES, OURS, PRECISIONS, SEED, Setting, draw_weights
from model import Device
from side_by_side import Comparison, check_device, choose_precisions
from terminal import select
from torch import Tensor, nn

SERVE = "serve"
"""The first argument of this file for the process of a library; see `worker.main`."""

TORCHVISION = "torchvision"
LIBRARIES = (OURS, TORCHVISION)

PRESETS = {"T": ("tiny", "swin3d_t"), "B": ("base", "swin3d_b")}
"""Our preset and torchvision's function of each model."""

QUICK = "quick"
QUICK_FIELDS = {"embed_dim": 16, "depths": [1, 2], "num_heads": [1, 2]}

SIDE, QUICK_SIDE = 224, 64
"""Height and width of a frame."""
FRAMES = ("16", "32")
QUICK_FRAMES = 4
TUBELET, WINDOW, CLASSES = 2, (8, 7, 7), 400
"""Those of Video Swin Transformer on Kinetics-400."""

BATCH_SIZES = {("cpu", "inference"): 1, ("cpu", "training"): 1, ("cuda", "inference"): 8, ("cuda", "training"): 8}
"""Clips of a step."""


@dataclass(frozen=True)
class VideoSetting(Setting):
    """One row of the results without its library.

    Attributes:
        case: A key of `PRESETS`, or `QUICK`.
        execution: "eager".
        frames: Frames of a clip.
        side: Height and width of a frame in pixels.
    """

    frames: int
    side: int

    def __str__(self) -> str:
        size = f"{self.frames} frames of {self.side} x {self.side}, batch {self.batch_size}"
        return f"{self.case}, {self.mode} {self.precision}, {size}"


def build_model(library: str, setting: VideoSetting) -> nn.Module:
    """A library's classifier with drawn weights.

    Args:
        library: One of `LIBRARIES`.
        setting: The row; on a GPU, this package's model uses the kernels.
    """
    from swinv2 import Swinv2ForVideoClassification, Swinv2VideoConfig
    from swinv2.zoo import find_preset

    torch.manual_seed(SEED)
    if library == OURS:
        architecture = QUICK_FIELDS if setting.case == QUICK else find_preset(PRESETS[setting.case][0]).config_fields()
        fields: dict[str, Any] = {
            **architecture,
            "image_size": setting.side,
            "num_frames": setting.frames,
            "tubelet_size": TUBELET,
            "window_size": WINDOW,
            "pretrained_window_sizes": [0] * len(architecture["depths"]),
            "drop_path_rate": DROP_PATH_RATE,
            "num_labels": CLASSES,
        }
        model: Any = Swinv2ForVideoClassification(Swinv2VideoConfig(**fields))
        draw_weights(model)
        if setting.device == "cuda":
            model.set_attn_implementation("triton")
    else:
        from torchvision.models import video

        if setting.case == QUICK:
            rest = {"num_classes": CLASSES, "stochastic_depth_prob": DROP_PATH_RATE, "window_size": [*WINDOW]}
            model = video.swin_transformer.SwinTransformer3d([TUBELET, 4, 4], **QUICK_FIELDS, **rest)
        else:
            # Its own drop path rate is the same.
            model = getattr(video, PRESETS[setting.case][1])(weights=None, num_classes=CLASSES)
    return model.to(setting.device)


def draw_clips(library: str, setting: VideoSetting) -> Tensor:
    """Random clips with structure in space and time, in a library's order of axes: frames before channels in ours."""
    generator = torch.Generator().manual_seed(SEED)
    size = (setting.frames, setting.side, setting.side)
    clips = torch.zeros(setting.batch_size, 3, *size)
    for side in (4, 16):
        noise = torch.randn(setting.batch_size, 3, min(side, setting.frames), side, side, generator=generator)
        clips += F.interpolate(noise, size=size, mode="trilinear")
    clips = clips.to(setting.device)
    return clips.transpose(1, 2).contiguous() if library == OURS else clips


def make_step(library: str, setting: VideoSetting) -> tuple[Callable[[], None], int]:
    """Prepares one library's measurement of a row: inference, or forward, loss and backward.

    Args:
        library: One of `LIBRARIES`.
        setting: The row; bf16 is autocast.

    Returns:
        The function that does one step, and the number of the model's parameters.
    """
    model = build_model(library, setting).train(setting.mode == "training")
    clips = draw_clips(library, setting)
    precision = partial(torch.autocast, setting.device, torch.bfloat16, enabled=setting.precision == "bf16")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    labels = torch.arange(setting.batch_size, device=setting.device) % CLASSES

    def logits() -> Tensor:
        output = model(clips)
        return output if isinstance(output, Tensor) else output.logits

    def infer() -> None:
        with torch.no_grad(), precision():
            logits()

    def train() -> None:
        with precision():
            loss = F.cross_entropy(logits(), labels)
        loss.backward()
        model.zero_grad(set_to_none=True)

    return infer if setting.mode == "inference" else train, parameters


class VideoWorker(worker.Worker):
    """A process that runs one library at one `VideoSetting`; see `worker.Worker`."""

    program = (str(Path(__file__).resolve()), SERVE)


def _finish(setting: Setting, row: report.Row) -> None:
    """Removes the columns of libraries that have no video models."""
    for library in ("transformers", "timm", "openvino"):
        del row[f"images_per_second_over_{library}"]
    del row["peak_mib_over_transformers"]


def _tables(rows: list[report.Row], memory_too: bool) -> list[str]:
    """The results as tables, one line for each setting and one column for each library."""

    def build(caption: str, ratio: str, form: Callable[[Any], str]) -> str:
        keys = ("case", "frames", "side", "mode", "precision", "batch_size")
        lines: list[list[str]] = []
        for key, group in itertools.groupby(rows, lambda row: tuple(str(row[name]) for name in keys)):
            by_library = {str(row["library"]): row for row in group}
            found = [by_library.get(library) for library in LIBRARIES]
            cells = ["" if row is None else "failed" if row["note"] else form(row) for row in found]
            value = by_library.get(OURS, {}).get(ratio, "")
            lines.append([*key, *cells, f"{value:.2f}" if value != "" else "-"])
        return report.table(caption, [*keys, *LIBRARIES, f"/ {TORCHVISION}"], lines)

    tables = [
        build(
            f"Milliseconds of a step (median of {rows[0]['rounds']} rounds); less is better. / {TORCHVISION}: how many "
            f"times as fast {OURS} is. benchmarks/README.md explains more.",
            f"images_per_second_over_{TORCHVISION}",
            lambda row: f"{row['step_milliseconds']:.4g}",
        )
    ]
    if memory_too:
        tables.append(
            build(
                "Peak memory of a step in MiB, clips and weights included (in brackets: the rise during the step "
                f"alone); less is better. / {TORCHVISION}: {OURS} divided by it.",
                "peak_mib_over_leanest_peer",
                lambda row: "" if row["peak_mib"] == "" else f"{row['peak_mib']:.0f} ({row['rise_mib']:.0f})",
            )
        )
    return tables


def _place(row: report.Row) -> tuple[int, ...]:
    """The sort key of a row."""
    orders: dict[str, Sequence[str]] = {
        "case": (*PRESETS, QUICK),
        "mode": MODES,
        "precision": PRECISIONS,
        "library": LIBRARIES,
    }
    case, *rest = (list(order).index(str(row[name])) for name, order in orders.items())
    return case, int(str(row["frames"])), *rest


def main(
    device: Annotated[Device, typer.Option(help="Where to measure.")] = Device.CPU,
    models: Annotated[str, typer.Option(help=f"Of {', '.join(PRESETS)}.")] = "",
    frames: Annotated[str, typer.Option(help=f"Of {', '.join(FRAMES)}.")] = "",
    modes: Annotated[str, typer.Option(help=f"Of {', '.join(MODES)}.")] = "",
    precisions: Annotated[str, typer.Option(help=f"Of {', '.join(PRECISIONS)}; bf16 is autocast.")] = "",
    quick: Annotated[
        bool, typer.Option("--quick", help="Measure a very small network with small clips: a trial of the program.")
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
    """Compares video models of swinv2 with torchvision's: time and peak memory."""
    if quick and (models or frames):
        raise typer.BadParameter("it has its own network; leave out --models and --frames", param_hint="--quick")
    check_device(device)
    cases = [QUICK] if quick else select("models", models, PRESETS)
    lengths = [QUICK_FRAMES] if quick else map(int, select("frames", frames, FRAMES))
    wanted = [
        VideoSetting(
            *(case, mode, precision, "eager", device.value, BATCH_SIZES[device.value, mode]),
            *(length, QUICK_SIDE if quick else SIDE),
        )
        for case, length, mode, precision in itertools.product(
            cases, lengths, select("modes", modes, MODES), choose_precisions(precisions, device.value)
        )
    ]
    comparison = Comparison(
        "videos",
        "Video models",
        VideoWorker,
        LIBRARIES,
        _finish,
        partial(_tables, memory_too=memory_too),
        _place,
        lambda row: f"{row['case']} {row['frames']} {row['mode']} {row['precision']}",
        rounds,
        memory_too,
    )
    comparison.run(wanted, device, go_on, output)


if __name__ == "__main__":
    if sys.argv[1:2] == [SERVE]:
        worker.main(sys.argv[2:], VideoSetting, make_step)
    else:
        typer.run(main)
