"""Measures a checkpoint at other image sizes, without further training: with windows that grow with the image, whose
position bias is extrapolated or stretched, or with unchanged windows.

    python scripts/other_sizes.py --data tiny-imagenet --guide docs/guides/resolution.md

The table goes to stdout. With --guide, it also replaces the table between the two marks of that document. The images
are the first ones of a permutation with seed 0. The model's own processor resizes them; for a rectangle it distorts
them. The window grows with the longer side, so that it still covers the whole map in the last stage.
"""

import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import transformers
import typer
from cifar10 import read_arrays
from PIL import Image
from transformers.utils.logging import disable_progress_bar

from swinv2 import Swinv2ForImageClassification
from swinv2.lengths import as_pair, plain_windows
from swinv2.loading import label_names, load_processor, read_config
from swinv2.predict.shipped import shipped_model

BEGIN, END = "<!-- scripts/other_sizes.py: begin -->", "<!-- scripts/other_sizes.py: end -->"
BATCH_SIZE = 50


def parse_size(text: str) -> tuple[int, int]:
    """Reads a size, "64" or "64x96", height first."""
    parts = text.strip().split("x")
    if len(parts) > 2 or not all(part.isdigit() for part in parts):
        raise SystemExit(f"--sizes has {text!r}; expected sizes such as 64,64x96, height first.")
    return int(parts[0]), int(parts[-1])


@torch.inference_mode()
def top1(
    model: Swinv2ForImageClassification, processor: Any, images: np.ndarray, labels: list[str], size: tuple[int, int]
) -> float:
    """Top-1 accuracy on the images at a size."""
    names = label_names(model.config)
    truth = torch.tensor([names.index(label) for label in labels])
    right = 0
    resize = {"size": {"height": size[0], "width": size[1]}, "do_resize": True, "do_center_crop": False}
    for start in range(0, len(truth), BATCH_SIZE):
        batch = [Image.fromarray(image) for image in images[start : start + BATCH_SIZE]]
        answers = model(**processor(batch, return_tensors="pt", **resize)).logits.argmax(-1)
        right += int((answers == truth[start : start + BATCH_SIZE]).sum())
    return right / len(truth)


def commit() -> str:
    """The commit of this checkout."""
    asked = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return asked.stdout.strip() or "unknown"


def main(
    data: Annotated[str, typer.Option(help="A folder, or a data set's name; its classes are the model's.")],
    model: Annotated[str, typer.Option(help="A model's folder, or a name; default: the shipped one.")] = "",
    sizes: Annotated[str, typer.Option(help="Sizes, height first.")] = "64,80,96,128,64x96,96x64,96x128",
    count: Annotated[int, typer.Option("--images", min=1, max=10_000, help="Number of images.")] = 2000,
    guide: Annotated[Path | None, typer.Option(help="A document with the two marks.")] = None,
) -> None:
    """Measures all sizes and writes the table."""
    disable_progress_bar()
    name = model or str(shipped_model())
    images, indices, names = read_arrays(data, "evaluation")
    drawn = np.random.default_rng(0).permutation(len(images))[:count]
    images, labels = images[drawn], [names[index] for index in indices[drawn]]
    processor = load_processor(name)
    old = read_config(name)
    if sorted(label_names(old)) != sorted(names):
        raise SystemExit(f"--model {name} does not have the labels of {data}; choose one that was trained on it.")
    before = guide.read_text() if guide is not None else ""
    if guide is not None and not 0 <= before.find(BEGIN) < before.find(END):
        raise SystemExit(
            f"--guide {guide} has no marks; add the lines {BEGIN} and {END} around the place of the table."
        )

    rows = [
        f"| size, height x width | window | extrapolated | stretched | window left at {old.window_size} |",
        "| --- | --- | --- | --- | --- |",
    ]
    for size in map(parse_size, sizes.split(",")):
        scale = max(size) / max(as_pair("image_size", old.image_size))
        window = plain_windows(
            [(max(round(height * scale), 1), max(round(width * scale), 1)) for height, width in old.stage_windows]
        )
        cells = []
        started = time.monotonic()
        for new_window, stretch in ((window, False), (window, True), (old.window_size, False)):
            changed = Swinv2ForImageClassification.from_pretrained(name).eval()
            changed.set_image_size(size, new_window, stretch=stretch)
            cells.append(f"{top1(changed, processor, images, labels, size):.2%}")
        rows.append(f"| {size[0]} x {size[1]} | {window} | {' | '.join(cells)} |")
        print(f"{rows[-1]}  ({time.monotonic() - started:.0f} s)", file=sys.stderr, flush=True)
    error = 100 * float(np.sqrt(0.25 / count))
    shown = "the shipped checkpoint" if not model else f"`{Path(model).name}`"
    options = f" --model {Path(model).name}" if model else ""
    rows += [
        "",
        f"Top-1 of {shown} on {count:,} images for evaluation, drawn at random; one standard error is at most "
        f"{error:.1f} points. `python scripts/other_sizes.py --data {Path(data).name}{options} --images {count}` "
        f"at commit {commit()}, torch {torch.__version__.split('+')[0]}, transformers {transformers.__version__}, "
        f"{platform.machine()} CPU.",
    ]
    table = "\n".join(rows)
    print(table)
    if guide is not None:
        head, rest = before.split(BEGIN, 1)
        guide.write_text(f"{head}{BEGIN}\n\n{table}\n\n{END}{rest.split(END, 1)[1]}")


if __name__ == "__main__":
    typer.run(main)
