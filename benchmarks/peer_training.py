"""Trains another library's network from new weights, for a given processor time, in a plain loop.

    python benchmarks/peer_training.py --peer resnet18 --data sets/digits --seconds 60

In: a folder with train/<class>/*.png and test/<class>/*.png. Out: one JSON line with the accuracy on the test images.
This module is used by finetune.py, and knows nothing of this package.

The loop: AdamW, a linear warm-up in the first fifth and a cosine to zero, random crops of at least 60% of the area, and
flips unless they are switched off. The rate follows the used share of the processor time, so the cycle ends when the
time does. Images are decoded once and stay in memory. The processor time counts from the start of the process: imports,
reading and training, but not the test.
"""

import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import timm
import torch
import torch.nn.functional as F
import torchvision
import typer
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH_SIZE = 32
WEIGHT_DECAY = 0.05
WARM_UP = 0.2
SMALLEST_CROP = 0.6
"""Share of the area."""

STORED = 8 / 7
"""Side of a stored training image over the side of a crop, so that crops lose no detail."""


@dataclass(frozen=True)
class Peer:
    """A network: how it is built for a number of classes and an image size, and the highest learning rate."""

    build: Callable[[int, int], nn.Module]
    rate: float
    divisor: int = 1
    """The image size is a multiple of it."""


def _resnet18(classes: int, size: int) -> nn.Module:
    return torchvision.models.resnet18(num_classes=classes)


def _convnext_atto(classes: int, size: int) -> nn.Module:
    return timm.create_model("convnext_atto", num_classes=classes)


def _swinv2_cr(classes: int, size: int) -> nn.Module:
    """timm's smallest with half of its channels: 7 million parameters. With 28 million it takes too few steps."""
    return timm.create_model("swinv2_cr_tiny_224", num_classes=classes, img_size=size, embed_dim=48)


PEERS = {
    "resnet18": Peer(_resnet18, 1e-3),
    "convnext_atto": Peer(_convnext_atto, 1e-3),
    "swinv2_cr": Peer(_swinv2_cr, 5e-4, divisor=32),
}
"""All peers by name."""


def main(
    peer: Annotated[str, typer.Option(help=f"Of {', '.join(PEERS)}.")],
    data: Annotated[Path, typer.Option(help="Folder with the folders train and test.")],
    seconds: Annotated[float, typer.Option(help="Processor time of the process, in seconds.")],
    size: Annotated[int, typer.Option(min=32, help="Side of the images in pixels.")] = 64,
    seed: Annotated[int, typer.Option(help="Seed of weights, crops and order.")] = 0,
    flips: Annotated[bool, typer.Option("--flips/--no-flips", help="Mirror half of the training images.")] = True,
) -> None:
    """Trains and tests; prints one JSON object."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    chosen = PEERS[peer]
    size = math.ceil(size / chosen.divisor) * chosen.divisor
    classes = sorted(path.name for path in (data / "train").iterdir())
    images, labels = read_images(data / "train", classes, round(STORED * size))
    model = chosen.build(len(classes), size)
    steps = train(model, images, labels, size, chosen.rate, seconds, flips)
    used = time.process_time()
    confusion = count_answers(model, *read_images(data / "test", classes, size))
    recalls = confusion.diagonal() / confusion.sum(1)
    result = {
        "top1": confusion.trace().item() / confusion.sum().item(),
        "mean_recall": recalls.nanmean().item(),
        "processor_seconds": used,
        "steps": steps,
        "epochs": steps * min(BATCH_SIZE, len(images)) / len(images),
        "image_size": size,
        "parameters": sum(each.numel() for each in model.parameters()),
    }
    print(json.dumps(result))


def read_images(folder: Path, classes: list[str], size: int) -> tuple[Tensor, Tensor]:
    """Reads images and resizes them to squares.

    Args:
        folder: Has a folder for each class.
        classes: Names of the classes, in the order of the labels.
        size: Side in pixels.

    Returns:
        Images (N, 3, size, size) of uint8, and labels (N,).
    """
    pixels, labels = [], []
    for label, name in enumerate(classes):
        for path in sorted((folder / name).iterdir()):
            image = Image.open(path).convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
            pixels.append(torch.from_numpy(np.array(image)).permute(2, 0, 1))
            labels.append(label)
    return torch.stack(pixels), torch.tensor(labels)


def train(model: nn.Module, images: Tensor, labels: Tensor, size: int, rate: float, seconds: float, flips: bool) -> int:
    """Trains until this process has used its processor time.

    Args:
        model: The network, which is changed.
        images, labels: See `read_images`.
        size: Side of the crops in pixels.
        rate: The highest learning rate.
        seconds: Processor time of the whole process.
        flips: Whether to mirror half of the images.

    Returns:
        The number of steps.

    Raises:
        SystemExit: The process has used its time before the training begins.
    """
    started = time.process_time()
    if seconds <= started:
        raise SystemExit(f"--seconds is {seconds:g}, and {started:.1f} were used before the training; give more.")
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=WEIGHT_DECAY)
    crop = v2.RandomResizedCrop(size, (SMALLEST_CROP, 1.0), antialias=True)
    augment = v2.Compose([crop, v2.RandomHorizontalFlip()]) if flips else crop
    model.train()
    reported = steps = 0
    for batch in _batches(len(images)):
        used = (time.process_time() - started) / (seconds - started)
        if used >= 1:
            break
        optimizer.param_groups[0]["lr"] = rate * cycle(used)
        pixels = torch.stack([augment(images[index]) for index in batch])
        loss = F.cross_entropy(model(normalise(pixels)), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps += 1
        if int(10 * used) > reported:
            reported = int(10 * used)
            print(f"{reported}0% of the time, step {steps}, loss {loss.item():.3f}", file=sys.stderr, flush=True)
    return steps


def _batches(images: int) -> Iterator[Tensor]:
    """Indices of the images of each step, for ever; the last images of an epoch that fill no batch are left out."""
    size = min(BATCH_SIZE, images)
    while True:
        order = torch.randperm(images)
        yield from order[: images // size * size].split(size)


def cycle(used: float) -> float:
    """The learning rate over the highest, after a share of the time: a linear warm-up, then a cosine to zero."""
    if used < WARM_UP:
        return used / WARM_UP
    return (1 + math.cos(math.pi * (used - WARM_UP) / (1 - WARM_UP))) / 2


def normalise(images: Tensor) -> Tensor:
    """Images (N, 3, H, W) of uint8 as fp32, with ImageNet's mean and deviation."""
    return v2.functional.normalize(images / 255, list(MEAN), list(DEVIATION))


@torch.inference_mode()
def count_answers(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Classifies the images.

    Args:
        model: The network.
        images, labels: See `read_images`.

    Returns:
        Counts (truth, answer).
    """
    model.eval()
    logits = torch.cat([model(normalise(batch)) for batch in images.split(64)])
    confusion = torch.zeros(logits.shape[1], logits.shape[1], dtype=torch.int64)
    return confusion.index_put_((labels, logits.argmax(1)), torch.tensor(1), accumulate=True)


if __name__ == "__main__":
    typer.run(main)
