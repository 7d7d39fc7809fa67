"""The command `export`.

`swinv2.export` computes and writes.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from swinv2.cli.running import print_broken, quiet_transformers
from swinv2.console import data_console, message_console, shown
from swinv2.errors import UsageError
from swinv2.lengths import Pair, as_pair
from swinv2.sizes import read_size

if TYPE_CHECKING:
    from swinv2.export.report import Report

FORMATS = ("openvino", "onnx", "torch")
ANSWERS = ("labels", "features", "maps", "pixels")
TARGETS = ("triton",)


def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model's folder, or its name on the hub.")],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to create.")],
    format: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="FORMAT",
            help="openvino (Intel's runtime, for CPUs), onnx (ONNX Runtime, TensorRT and others), torch (.pt2).",
            show_default="openvino; with --for triton, onnx",
        ),
    ] = "",
    image_size: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SIZE",
            help="Image size, 256 or 384x256 (height first). Give it again for a second graph, and so on.",
            show_default="that of the model's image processor",
        ),
    ] = None,
    answers: Annotated[
        str | None,
        typer.Option(
            metavar="WHAT",
            help="labels, features (one vector), maps (of every stage), pixels (SimMIM).",
            show_default="what the model was saved for",
        ),
    ] = None,
    takes_bytes: Annotated[
        bool, typer.Option("--uint8", help="Take pixels of eight bits (batch, height, width, channels).")
    ] = False,
    int8: Annotated[bool, typer.Option("--int8", help="Compute products in int8; needs --calibrate.")] = False,
    calibrate: Annotated[
        list[str] | None,
        typer.Option(metavar="IMAGES", help="Folder or files: some hundred images from your application, for --int8."),
    ] = None,
    images: Annotated[
        list[str] | None,
        typer.Option(
            metavar="IMAGES",
            help="Folder or files on which source and export are compared.",
            show_default="the package's twenty photographs",
        ),
    ] = None,
    evaluation: Annotated[
        str | None,
        typer.Option(
            "--evaluate", metavar="DATA", help="Labelled images: measure the accuracy before and after, see evaluate."
        ),
    ] = None,
    split: Annotated[str, typer.Option(metavar="NAME", help="Split of --evaluate.")] = "evaluation",
    accept: Annotated[bool, typer.Option("--accept", help="Write it even if its answers differ too much.")] = False,
    target: Annotated[
        str | None,
        typer.Option("--for", metavar="SERVER", help="triton: a model repository for NVIDIA's Triton server."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object: the report.")] = False,
) -> None:
    """Export a model to a format of another runtime, and check its answers against the model's.

    The folder has the graph, the labels, the numbers of the image processor, and report.json. It is written only if
    the answers for real images are the same; with --int8, if the accuracy falls by half a point at most. classify,
    features and evaluate run it as --model OUT.
    """
    if target is not None and target not in TARGETS:
        raise UsageError(f"--for is {target!r}; expected {', '.join(TARGETS)}.")
    format = format or ("onnx" if target else "openvino")
    if format not in FORMATS:
        raise UsageError(f"--to is {format!r}; expected {', '.join(FORMATS)}.")
    if answers is not None and answers not in ANSWERS:
        raise UsageError(f"--answers is {answers!r}; expected {', '.join(ANSWERS)}.")
    if int8 != bool(calibrate):
        given, missing = ("--int8", "--calibrate IMAGES") if int8 else ("--calibrate", "--int8")
        raise UsageError(f"{given} was given without {missing}; give both.")
    if split != "evaluation" and evaluation is None:
        raise UsageError("--split was given without --evaluate, whose split it is; give both.")
    sizes = _read_sizes(image_size)
    quiet_transformers()
    try:
        from swinv2.export.exporting import export_model
    except ModuleNotFoundError as error:
        raise UsageError(f"export needs {error.name}, which is not installed; install swinv2[export].") from error
    from swinv2.export.quantise import has_int8_instructions
    from swinv2.export.report import ExportSettings
    from swinv2.images import find_images

    console = message_console()
    if int8 and not has_int8_instructions():
        console.print(
            "this processor has no instructions for int8 (VNNI or AMX): on it, int8 is slower than fp32", style="yellow"
        )
    files: dict[str, list[Path]] = {"images": [], "calibration": []}
    for name, given in (("images", images), ("calibration", calibrate)):
        if given:
            files[name], missing = find_images(given)
            for image in missing:
                print_broken(image, console)
    settings = ExportSettings(
        format=format,
        sizes=sizes,
        answers=answers,
        takes_bytes=takes_bytes,
        evaluation=evaluation,
        split=split,
        int8=int8,
        accepts=accept,
        target=target,
        **files,
    )
    report = export_model(model, output, settings, lambda step: console.print(Text(f"{step} ...", "dim")))
    if as_json:
        typer.echo(json.dumps(asdict(report), indent=2))
    else:
        _print_report(report)
    for problem in report.accepted:
        console.print(Text.assemble(("accepted ", "yellow"), problem))
    console.print(f"written: {shown(output)}")


def _read_sizes(texts: list[str] | None) -> list[Pair]:
    """Reads the image sizes."""
    sizes = [as_pair("--image-size", read_size(text, "--image-size")) for text in texts or []]
    if len(set(sizes)) != len(sizes):
        raise UsageError("--image-size was given twice for the same size; give each size once.")
    return sizes


def _print_report(report: "Report") -> None:
    """Prints the report as a table."""
    table = Table(box=None, pad_edge=False)
    for name in ("image size", "largest difference", "of two images' distance", "same label"):
        table.add_column(name, justify="right")
    table.add_column("images/s: source", justify="right")
    table.add_column("export", justify="right")
    for row in report.sizes:
        speed = row["images_a_second"]
        table.add_row(
            "x".join(map(str, row["image_size"])),
            f"{row['largest']:.2g}",
            f"{row['share']:.2g}",
            "" if row["agreement"] is None else f"{row['agreement']:.1%} of {row['images']}",
            f"{speed['source']:.3g}",
            f"{speed['exported']:.3g}",
        )
    console = data_console()
    console.print(table)
    for row in report.sizes:
        if found := row.get("accuracy"):
            place = f" at {'x'.join(map(str, row['image_size']))}" if len(report.sizes) > 1 else ""
            console.print(
                f"{found['score']} of {found['images']:,} images{place}: {found['exported']:.2%}, source "
                f"{found['source']:.2%}",
                style="bold",
            )
    console.print(f"{report.bytes / 1e6:,.1f} MB, {report.format}, {report.precision}")
