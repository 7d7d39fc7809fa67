"""Compares the speed of reading images with that of training: images per second of the loader alone, and of a training.

    python benchmarks/loader.py --model tiny --device cpu

Images are JPEGs of 256 x 256 pixels and quality 90, of smoothed noise, which compresses about like photographs. The
augmentation is the authors' for ImageNet (random crops, RandAugment, erasing, mixup, cutmix).
"""

import json
import tempfile
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image, ImageFilter
from rich.console import Console
from rich.table import Table

from swinv2.train.finetune import FinetuneTrainer, make_finetuning
from swinv2.train.settings import FinetuneSettings, parse_settings

CLASSES = 4


class Device(StrEnum):
    """The device of the training."""

    CPU = "cpu"
    CUDA = "cuda"


def main(
    model: Annotated[str, typer.Option(help="Preset to train.")] = "tiny",
    image_size: Annotated[int, typer.Option(help="Side in pixels, of the files and of the model's input.")] = 256,
    device: Annotated[Device, typer.Option(help="Where to train.")] = Device.CPU,
    batch_size: Annotated[int, typer.Option(min=2, help="Images of a step.")] = 8,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read images.")] = 2,
    steps: Annotated[int, typer.Option(min=2, help="Steps of the training that are measured.")] = 10,
    images: Annotated[int, typer.Option(min=16, help="Images that the loader alone reads.")] = 1024,
    output: Annotated[Path | None, typer.Option(help="A JSON file to write, too.")] = None,
) -> None:
    """Measures and prints."""
    with tempfile.TemporaryDirectory() as place:
        data = Path(place, "pictures")
        _draw(data, max(images, steps * batch_size), image_size)
        flags: dict[str, Any] = {
            "data": data,
            "output_dir": Path(place, "run"),
            "model": model,
            "image_size": image_size,
            "per_device_train_batch_size": batch_size,
            "dataloader_num_workers": workers,
            "dataloader_drop_last": True,
            "auto_augment": "rand-m9-mstd0.5-inc1",
            "erase_probability": 0.25,
            "mixup": 0.8,
            "cutmix": 1.0,
            "label_smoothing_factor": 0.1,
            "use_cpu": device == Device.CPU,
            "bf16": True,
            "eval_strategy": "no",
            "save_strategy": "no",
            "max_steps": 2 * steps,
            "logging_steps": steps,
            "report_to": "none",
            "disable_tqdm": True,
        }
        told = [f"--{name}={value}" for name, value in flags.items()]
        trainer = make_finetuning(parse_settings(FinetuneSettings, told, "loader"))
        alone = _read(trainer, images)
        trainer.train()
        # The first line includes the warm-up.
        training = [entry["images_per_second"] for entry in trainer.state.log_history if "images_per_second" in entry][
            1
        ]
    found = {
        "model": model,
        "image_size": image_size,
        "device": device.value,
        "batch_size": batch_size,
        "workers": workers,
        "loader alone": round(alone, 1),
        "training": round(training, 2),
        "ratio": round(alone / training, 1),
    }
    table = Table(*found)
    table.add_row(*map(str, found.values()))
    Console().print(table)
    if output is not None:
        output.write_text(json.dumps(found, indent=2) + "\n")


def _read(trainer: FinetuneTrainer, images: int) -> float:
    """Images per second of the loader alone, without the start of its processes."""
    seen, start = 0, 0.0
    for batch in trainer.get_train_dataloader():
        if not start:
            start = time.perf_counter()
            continue
        seen += len(batch["pixel_values"])
        if seen >= images:
            break
    return seen / (time.perf_counter() - start)


def _draw(folder: Path, count: int, side: int) -> None:
    draw = np.random.default_rng(0)
    for index in range(count):
        place = folder / f"class-{index % CLASSES}"
        place.mkdir(parents=True, exist_ok=True)
        noise = Image.fromarray(draw.integers(0, 256, (side, side, 3), dtype=np.uint8))
        noise.filter(ImageFilter.GaussianBlur(1.5)).save(place / f"{index}.jpg", quality=90)


if __name__ == "__main__":
    typer.run(main)
