"""The folder of an export: its graphs, and what a program needs to run them without this package.

In: graphs, a model with its image processor, and settings. Out: files.
"""

import copy
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from swinv2.export.formats import Format, ports_of
from swinv2.export.report import ExportSettings
from swinv2.export.sources import RGB, Source
from swinv2.export.triton import write_model
from swinv2.exported import MANIFEST
from swinv2.lengths import Pair
from swinv2.loading import label_names

REPORT, LABELS, PREPROCESSING = "report.json", "labels.json", "preprocessing.json"
"""Files in the folder, beside those of transformers: `export.json`, `config.json`, `preprocessor_config.json`."""


@contextmanager
def graphs_folder(published: Path, target: str | None) -> Iterator[Path]:
    """Yields the folder for the graphs: the published one or, for a server with another layout, one that is deleted."""
    if target is None:
        yield published
        return
    with TemporaryDirectory(dir=published.parent) as name:
        yield Path(name)


def save(
    source: Source,
    exporter: Any,
    components: dict[str, Any],
    sizes: Sequence[Pair],
    settings: ExportSettings,
    folder: Path,
) -> None:
    """Writes the graphs, and beside them what a program without this package needs to run them."""
    from transformers.exporters import ExportedModel

    config = copy.deepcopy(source.model.config)
    # Another part than the checkpoint was saved for may have been exported.
    config.architectures = [type(source.model).__name__]
    ExportedModel(components, exporter.export_format, config=config).save_pretrained(folder)
    source.processor_for(sizes[0], settings.takes_bytes).save_pretrained(folder)
    if labels := labels_of(source):
        (folder / LABELS).write_text(json.dumps(labels, indent=0, ensure_ascii=False) + "\n", encoding="utf-8")
    files = graph_files(folder)
    factor, mean, std = source.normalisation()
    numbers = {
        "images": [
            {"file": files[key], **_resizing(source.processor_for(size), size)}
            for key, size in zip(components, sizes, strict=True)
        ],
        "colours": "RGB" if source.channels == RGB else "grey",
        "layout": "NHWC" if settings.takes_bytes else "NCHW",
        "dtype": "uint8" if settings.takes_bytes else "float32",
        "rescale_factor": factor,
        "mean": mean,
        "std": std,
        "normalised_in_the_graph": settings.takes_bytes,
        **({"image_scale": source.image_scale} if source.image_scale != 1 else {}),
    }
    (folder / PREPROCESSING).write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")


def graph_files(folder: Path) -> dict[str, str]:
    """The names of the files of the graphs, by the names of the graphs."""
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return {key: entry["file"] for key, entry in manifest["components"].items()}


def labels_of(source: Source) -> list[str]:
    """The names of the model's classes; none if it has no classes."""
    return label_names(source.model.config) if source.has_classes else []


def _resizing(processor: Any, size: Pair) -> dict[str, Any]:
    """How a processor brings an image to a size."""
    resample = getattr(processor, "resample", None)
    crops = getattr(processor, "do_center_crop", False)
    return {
        "size": list(size),
        "resize": dict(processor.size) if processor.do_resize and processor.size else None,
        "resample": int(resample) if processor.do_resize and resample is not None else None,
        "centre_crop": dict(processor.crop_size) if crops else None,
    }


def write_repository(
    source: Source, folder: Path, repository: Path, name: str, components: dict[str, Any], format: Format
) -> None:
    """Writes Triton's model repository from the folder of the graphs, a model for each of them."""
    files = graph_files(folder)
    for key, component in components.items():
        model = name if len(components) == 1 else f"{name}-{key}"
        ports, graph = ports_of(component, format), folder / files[key]
        written = write_model(
            repository, model, graph, format.name, ports, labels_of(source), free_batch=source.batch_size is None
        )
        for about in (REPORT, PREPROCESSING):
            shutil.copyfile(folder / about, written / about)
