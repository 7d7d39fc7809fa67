"""Exports a model: from its folder to a folder with graphs, labels, the numbers of its image processor, and a report.

In: a model's folder or name, and settings. Out: a folder, which is there only if the exported model answers as its
source.
"""

import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from swinv2.disk import refuse_taken, whole_folder
from swinv2.errors import UsageError
from swinv2.export.calibration import divide, evenly, images_for_int8, refuse_int8
from swinv2.export.comparison import Difference, compare, images_per_second
from swinv2.export.folder import REPORT, graphs_folder, save, write_repository
from swinv2.export.formats import FORMATS, Format, export_graph, make_exporter
from swinv2.export.network import prepare
from swinv2.export.quantise import quantise
from swinv2.export.report import BATCH, ExportSettings, Report
from swinv2.export.sources import ObjectsOnly, Source, TakesBytes, batches_of, open_source, prepare_images
from swinv2.export.triton import refuse_triton
from swinv2.exported import PACKAGES, ExportedNetwork
from swinv2.lengths import Pair
from swinv2.predict.shipped import shipped_photographs
from swinv2.train.data.dataset import ImageDataset
from swinv2.train.data.sources import open_dataset
from swinv2.train.evaluate import evaluate_classifier, match_dataset

LARGEST_SHARE = 1e-4
"""Largest difference of outputs in fp32, as a share of the distance between two images' outputs."""

LARGEST_SHARE_OF_CHOICES = 1e-2
"""The same for a detector that chooses the best of many proposals: the last digit may change a choice and so, a little,
all objects."""

MOST_LOST = 0.005
"""Largest loss of accuracy by int8, as a share of the images."""

LEAST_IMAGES, MOST_IMAGES = 2, 100
"""Images that a comparison needs, because the difference between two of them is its unit; and those that it takes."""

TRACED = 2
"""Images that a graph is traced with: with one, torch takes the batch for a constant."""


def export_model(
    name: str, output: Path, settings: ExportSettings, advance: Callable[[str], None] = lambda step: None
) -> Report:
    """Exports a model to a folder, which must be new or empty.

    Args:
        name: A folder, or a name on the hub.
        output: The folder to write.
        settings: The settings.
        advance: Called with a name at the beginning of each step.

    Returns:
        The report, which is in the folder too.

    Raises:
        UsageError: The model cannot be exported, a package is missing, or the exported model answers otherwise than its
            source; then nothing is written.
    """
    format = FORMATS[settings.format]
    refuse_taken(output)
    if settings.int8 and not format.runs_int8:
        raise UsageError(f"--int8 is not possible with --to {format.name}; use --to openvino or --to onnx.")
    if settings.target is not None:
        refuse_triton(format.name)
    exporter = make_exporter(format)
    advance("loading the model")
    source = open_source(name, settings.answers)
    source.refuse_format(format.name)
    if settings.int8:
        refuse_int8(source)
        divide(settings.calibration)
    dataset = _open_labelled(source, settings)
    sizes = [*settings.sizes] or [source.usual_size()]
    components: dict[str, Any] = {}
    seconds: list[float] = []
    for size in sizes:
        label = f"{size[0]} x {size[1]}"
        source.processor_for(size)
        for_int8 = images_for_int8(source, size, settings, dataset) if settings.int8 else None
        advance(f"exporting for {label} pixels")
        started = time.perf_counter()
        component = _export_size(source, exporter, format, size, settings)
        if for_int8 is not None:
            advance(f"computing ranges for int8 at {label} pixels")
            component.program = quantise(component.program, format.name, *for_int8, MOST_LOST)
        components["model" if len(sizes) == 1 else f"{size[0]}x{size[1]}"] = component
        seconds.append(time.perf_counter() - started)
    with whole_folder(output) as published, graphs_folder(published, settings.target) as folder:
        save(source, exporter, components, sizes, settings, folder)
        report = _check(source, folder, list(zip(sizes, seconds, strict=True)), settings, dataset, advance)
        if report.accepted and not settings.accepts:
            raise UsageError(
                f"the exported model differs from {name!r}: {'; '.join(report.accepted)}. Nothing was written; "
                "--accept keeps it."
            )
        (folder / REPORT).write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
        if settings.target is not None:
            write_repository(source, folder, published, output.name, components, format)
    return report


def _open_labelled(source: Source, settings: ExportSettings) -> ImageDataset | None:
    """The labelled images of the settings, with the classes of the model."""
    if settings.evaluation is None:
        return None
    if not hasattr(source.model, "classifier"):
        raise UsageError(
            f"--evaluate measures the accuracy of a classifier, and {source.name!r} is none; leave it out."
        )
    return match_dataset(open_dataset(settings.evaluation, settings.split), source.model.config)


def _check(
    source: Source,
    folder: Path,
    sizes: Sequence[tuple[Pair, float]],
    settings: ExportSettings,
    dataset: ImageDataset | None,
    advance: Callable[[str], None],
) -> Report:
    """Compares the export in a folder with its source. What is too different is in the report, as `accepted`.

    Args:
        source: The source.
        folder: The folder.
        sizes: The image sizes, and the seconds that each export took.
        settings, advance: See `export_model`.
        dataset: Labelled images, if there are any.
    """
    exported = ExportedNetwork(folder, source.model.config, torch.device("cpu"), trusted=True)
    packages = ("swinv2", "torch", "transformers", *PACKAGES[settings.format], *(["nncf"] if settings.int8 else []))
    report = Report(
        source.name,
        settings.format,
        "int8" if settings.int8 else "float32",
        {
            "name": "pixel_values",
            "layout": "NHWC" if settings.takes_bytes else "NCHW",
            "dtype": "uint8" if settings.takes_bytes else "float32",
        },
        bytes=sum(file.stat().st_size for file in folder.iterdir() if file.suffix != ".json"),
        machine=_machine(),
        versions={each: version(each) for each in packages},
    )
    for size, taken in sizes:
        advance(f"comparing at {size[0]} x {size[1]} pixels")
        try:
            difference, speeds = _compare(source, exported, size, settings)
        except (KeyError, ValueError) as error:
            if isinstance(error, UsageError):
                raise
            raise UsageError(f"the exported model has other outputs than its source: {error}.") from error
        row: dict[str, Any] = {"image_size": list(size), "file": exported.file(size), **asdict(difference)}
        row["images_a_second"] = dict(zip(("source", "exported"), speeds, strict=True))
        row["seconds_to_export"] = round(taken, 1)
        report.accepted += _problems(difference, size, source, settings)
        if dataset is not None:
            advance(f"measuring the accuracy at {size[0]} x {size[1]} pixels")
            row["accuracy"] = found = _accuracy(source, exported, size, settings, dataset)
            if not found["source"] - found["exported"] <= MOST_LOST:
                report.accepted.append(
                    f"at {size[0]} x {size[1]} pixels, the accuracy on {settings.evaluation} ({found['score']}) fell "
                    f"from {found['source']:.2%} to {found['exported']:.2%}, by more than {100 * MOST_LOST:g} points"
                )
        report.sizes.append(row)
    return report


def _export_size(source: Source, exporter: Any, format: Format, size: Pair, settings: ExportSettings) -> Any:
    """The graph for one image size, as transformers' `ExportedComponent`."""
    network: Any = prepare(source.model, size, format.fuses)
    if source.finds_objects:
        network = ObjectsOnly(network)
    images = torch.zeros(source.batch_size or TRACED, source.channels, *size)
    inputs = source.inputs(images)
    if settings.takes_bytes:
        network = TakesBytes(network, *source.normalisation())
        inputs["pixel_values"] = images.permute(0, 2, 3, 1).to(torch.uint8).contiguous()
    component = export_graph(exporter, format, network, inputs, source.batch_size is None)
    component.metadata.architecture = type(source.model).__name__
    return component


def _compare(
    source: Source, exported: ExportedNetwork, size: Pair, settings: ExportSettings
) -> tuple[Difference, list[float]]:
    """Compares the export with its source on real images, and measures the speed of both."""
    paths = evenly(settings.images, MOST_IMAGES) or [each.path for each in shipped_photographs()]
    if settings.int8 and not settings.images:
        # Not other subjects than those that the ranges are for.
        paths = evenly(divide(settings.calibration)[1], MOST_IMAGES)
    mine = prepare_images(paths, source.processor_for(size), source.channels)
    theirs = prepare_images(paths, source.processor_for(size, settings.takes_bytes), source.channels)
    if len(mine) < LEAST_IMAGES:
        raise UsageError(f"--images has {len(mine)} readable images; expected {LEAST_IMAGES} at least.")
    together = source.batch_size or BATCH
    pairs = list(zip(batches_of(mine, together), batches_of(theirs, together), strict=True))
    answer: Any = ObjectsOnly(source.model) if source.finds_objects else source.model

    def run_source(pixel_values: Tensor) -> Any:
        with torch.inference_mode():
            return answer(**source.inputs(pixel_values))

    def run_exported(pixel_values: Tensor) -> Any:
        return exported(**source.inputs(pixel_values))

    difference = compare(run_source, run_exported, pairs)
    return difference, images_per_second([run_source, run_exported], list(pairs[0]))


def _problems(difference: Difference, size: Pair, source: Source, settings: ExportSettings) -> list[str]:
    """What is too different, as parts of a sentence. In int8, the accuracy on labelled images decides if there are any;
    otherwise, its estimate does."""
    place = f"at {size[0]} x {size[1]} pixels"
    if not settings.int8:
        limit = LARGEST_SHARE_OF_CHOICES if source.chooses else LARGEST_SHARE
        if difference.share <= limit:
            return []
        return [
            f"{place}, outputs differ by up to {difference.largest:.2g}, {difference.share:.2g} of the distance "
            f"between two images ({difference.distance:.2g}); at most {limit:g} is allowed"
        ]
    lost, agreement = difference.lost, difference.agreement
    if settings.evaluation is not None or lost is None or agreement is None or lost <= MOST_LOST:
        return []
    return [
        f"{place}, {1 - agreement:.1%} of {difference.images} images have another answer, by which an "
        f"estimated {100 * lost:.2g} points of accuracy are lost; at most {100 * MOST_LOST:g} may be. Labelled images "
        "(--evaluate) would tell for certain"
    ]


def _accuracy(
    source: Source, exported: ExportedNetwork, size: Pair, settings: ExportSettings, dataset: ImageDataset
) -> dict[str, Any]:
    """The accuracy of source and export on labelled images; with several labels for an image, the mean average
    precision."""
    found: dict[str, Any] = {"data": settings.evaluation}
    for name, model, takes_bytes in (("source", source.model, False), ("exported", exported, settings.takes_bytes)):
        summary = evaluate_classifier(model, source.processor_for(size, takes_bytes), dataset).summary()
        score = "top1" if "top1" in summary else "mAP"
        found |= {"score": score, "images": summary["images"], name: summary[score]}
    return found


def _machine() -> str:
    """The processor and its cores, for the report."""
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return f"{capabilities.get('cpu_name') or platform.machine()}, {torch.get_num_threads()} threads"
