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
from swinv2.export.sources import Source
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
    processor = source.processor_for(sizes[0], settings.takes_bytes)
    processor.save_pretrained(folder)
    labels = label_names(source.model.config)
    (folder / LABELS).write_text(json.dumps(labels, indent=0, ensure_ascii=False) + "\n", encoding="utf-8")
    original = source.processor
    numbers = {
        "image_sizes": [list(size) for size in sizes],
        "colours": "RGB" if source.channels == 3 else f"{source.channels} channels",
        "layout": "NHWC" if settings.takes_bytes else "NCHW",
        "dtype": "uint8" if settings.takes_bytes else "float32",
        "resize": dict(processor.size) if processor.do_resize and processor.size else None,
        "resample": int(processor.resample) if processor.do_resize else None,
        "centre_crop": dict(processor.crop_size) if getattr(processor, "do_center_crop", False) else None,
        "rescale_factor": original.rescale_factor if original.do_rescale else 1.0,
        "mean": list(original.image_mean) if original.do_normalize else None,
        "std": list(original.image_std) if original.do_normalize else None,
        "normalised_in_the_graph": settings.takes_bytes,
    }
    (folder / PREPROCESSING).write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")


def write_repository(
    folder: Path, repository: Path, name: str, components: dict[str, Any], format: Format, labels: list[str]
) -> None:
    """Writes Triton's model repository from the folder of the graphs, a model for each of them."""
    files = {key: entry["file"] for key, entry in json.loads((folder / MANIFEST).read_text())["components"].items()}
    for key, component in components.items():
        model = name if len(components) == 1 else f"{name}-{key}"
        written = write_model(repository, model, folder / files[key], format.name, ports_of(component, format), labels)
        for about in (REPORT, PREPROCESSING):
            shutil.copyfile(folder / about, written / about)
