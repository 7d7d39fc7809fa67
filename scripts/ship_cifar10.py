"""Copies a trained CIFAR-10 model into the package: measures it, draws the samples, writes the model card.

    python scripts/ship_cifar10.py --model runs/cifar10/final --data FOLDER_OR_NAME --trained "on two cores in 2 hours"

It measures top-1 on all 10,000 test images the way a user would get it: PNG-exact images through the saved image
processor and `swinv2.predict`. The samples are the first twenty test images of a random permutation.
"""

import argparse
import platform
import shutil
import subprocess
from pathlib import Path

import numpy as np
import torch
import transformers
from cifar10 import read_arrays
from PIL import Image

from swinv2 import Swinv2ForImageClassification
from swinv2.predict.shipped import FOLDER

SAMPLES = 20
BATCH_SIZE = 500

CARD = """\
---
license: apache-2.0
library_name: swinv2
pipeline_tag: image-classification
tags: [vision, image-classification, swinv2]
datasets: [cifar10]
metrics: [accuracy]
---

# A small Swin Transformer V2 for CIFAR-10

The package contains this model so that `swinv2 demo` and `swinv2 classify` work on real images without a network
connection. It has ten classes: {labels}. For other classes
use a published ImageNet checkpoint (`--model microsoft/...`).

| | |
| --- | --- |
| top-1 on the 10,000 test images | **{top1:.2%}** |
| parameters | {parameters:,} |
| image size, patch, window | {image_size} px, {patch_size} px, {window_size} tokens |
| widths, depths, heads | {widths}, {depths}, {heads} |
| trained on | the 50,000 training images of CIFAR-10 (Krizhevsky, 2009), nothing else |

Top-1 by class: {by_class}.

## How it was trained

    {train_command}

{trained}. Crops after padding by 4 pixels, horizontal flips, label smoothing 0.1; Muon for the matrices, AdamW for
all other parameters; bf16 autocast; one seed; the weights after the last step. The recipe was chosen with the accuracy
on the test images in view, so the accuracy may be slightly too high.

## How it was measured

    {ship_command}

At commit {commit}, torch {torch}, transformers {transformers}, {machine}.

## Samples

`samples/` has twenty test images that were not selected by hand: the first twenty of
`numpy.random.default_rng(0).permutation(10000)`. Their names are their order and their true label. {right} of the 20
are classified correctly.

## Limits

Images are resized to 32 x 32 pixels, so the model cannot recognise a small object in a large photograph. For an image
of another class the label means nothing, even if its probability is high.
"""


@torch.inference_mode()
def predict(folder: Path, images: np.ndarray) -> np.ndarray:
    """Class of every image (N, 32, 32, 3), through the saved processor."""
    model = Swinv2ForImageClassification.from_pretrained(folder).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    answers = []
    for start in range(0, len(images), BATCH_SIZE):
        pictures = [Image.fromarray(image) for image in images[start : start + BATCH_SIZE]]
        answers.append(model(**processor(pictures, return_tensors="pt")).logits.argmax(-1))
    return torch.cat(answers).numpy()


def draw_samples(images: np.ndarray, labels: np.ndarray, names: tuple[str, ...], folder: Path) -> np.ndarray:
    """Writes the samples and returns their indices among the test images."""
    drawn = np.random.default_rng(0).permutation(len(images))[:SAMPLES]
    folder.mkdir(parents=True)
    for order, index in enumerate(drawn):
        Image.fromarray(images[index]).save(folder / f"{order:02d}_{names[labels[index]]}.png", optimize=True)
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="folder `final` of the run")
    parser.add_argument("--data", required=True, help="folder of CIFAR-10, or a name for datasets")
    parser.add_argument("--trained", required=True, help="a sentence for the card: machine and time")
    parser.add_argument(
        "--train-command",
        default="swinv2 finetune --config recipes/cifar10-supervised.yaml --data FOLDER --output-dir RUN",
    )
    args = parser.parse_args()

    images, labels, names = read_arrays(args.data, "test")
    right = predict(args.model, images) == labels
    by_class = {name: float(right[labels == index].mean()) for index, name in enumerate(names)}

    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
        shutil.copyfile(args.model / name, FOLDER / name)
    drawn = draw_samples(images, labels, names, FOLDER / "samples")

    model = Swinv2ForImageClassification.from_pretrained(FOLDER)
    stages = model.config.stages()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
    card = CARD.format(
        labels=", ".join(names),
        top1=right.mean(),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        image_size=model.config.image_size,
        patch_size=model.config.patch_size,
        window_size=model.config.window_size,
        widths=[stage.dim for stage in stages],
        depths=model.config.depths,
        heads=model.config.num_heads,
        by_class=", ".join(f"{label} {share:.1%}" for label, share in by_class.items()),
        train_command=args.train_command,
        trained=args.trained,
        ship_command="python scripts/ship_cifar10.py --model RUN/final --data FOLDER",
        commit=commit.stdout.strip(),
        torch=torch.__version__,
        transformers=transformers.__version__,
        machine=f"{platform.machine()} CPU, {torch.get_num_threads()} threads",
        right=int(right[drawn].sum()),
    )
    (FOLDER / "README.md").write_text(card)
    print(
        f"top-1 {right.mean():.4f} on {len(images)} test images; {int(right[drawn].sum())} of {SAMPLES} samples right"
    )


if __name__ == "__main__":
    main()
