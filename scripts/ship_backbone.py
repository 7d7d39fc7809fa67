"""Puts a trained Tiny-ImageNet model into the package: weights in 16 bits, measurements, model card.

    python scripts/ship_backbone.py --model runs/tiny-imagenet-96/final --data tiny-imagenet --trained "Two cores ..."

The data are those that `tiny_imagenet.py` writes. Accuracies are what a user gets: `swinv2 evaluate` on the validation
images, for other image sizes after `swinv2 convert --image-size`. The photographs of the package are classified too.
When all is measured, everything but the photographs is replaced. Afterwards, draw the figures of the guides again, and
measure more sizes:

    swinv2 inspect src/swinv2/checkpoints/tiny_imagenet/samples/lion.jpg --token 105,85 --output docs/guides/inspect
    python scripts/bias_windows.py --output docs/guides/resolution-bias.png
    python scripts/other_sizes.py --data tiny-imagenet --guide docs/guides/resolution.md
"""

import json
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Annotated, Any

import torch
import transformers
import typer
from safetensors.torch import load_file, save_file
from tiny_imagenet import CLASSES

from swinv2 import Swinv2ForImageClassification
from swinv2.console import progress_bar
from swinv2.convert import convert
from swinv2.disk import whole_file
from swinv2.predict.predictor import Classifier
from swinv2.predict.shipped import FOLDER, count_right, shipped_photographs
from swinv2.train.evaluate import evaluate
from swinv2.train.scores import Evaluation

TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SIZES = (64, 96, 128)

CARD = """\
---
license: apache-2.0
library_name: swinv2
pipeline_tag: image-classification
tags: [vision, image-classification, swinv2]
datasets: [zh-plus/tiny-imagenet]
metrics: [accuracy]
---

# A small Swin Transformer V2 for Tiny-ImageNet

The package contains this model so that `swinv2 classify`, `features`, `inspect` and `demo` work on real images without
a network connection, and so that fine-tuning has weights to start from. It has 200 of ImageNet's classes. For the
thousand classes of ImageNet-1K use a published checkpoint (`--model microsoft/swinv2-tiny-patch4-window8-256`).

| | |
| --- | --- |
| top-1, top-5 on {images} validation images, {image_size} px | **{top1:.2%}**, **{top5:.2%}** |
| parameters | {parameters:,} |
| image size, patch, window | {image_size} px, {patch_size} px, {window_size} tokens |
| widths, depths, heads | {widths}, {depths}, {heads} |
| trained on | the training images of Tiny-ImageNet-200, nothing else |
| file | {megabytes:.1f} MB, {dtype}; `config.json` asks for float32, so that models are loaded in float32 |

Validation images of Tiny-ImageNet have 64 x 64 pixels. For other sizes they are scaled, and the model is not trained
further (`swinv2 convert FOLDER OUT --image-size 128`):

| image size | top-1 | top-5 |
| --- | --- | --- |
{sizes}

The weights in 16 bits, computed in float32: {types}.

Recall of the best classes: {best}. Of the worst: {worst}.

## Data

Tiny-ImageNet-200 is from Stanford's course CS231n: 200 classes of ImageNet, 500 training and 50 validation images of
each, scaled to 64 x 64 pixels. The images are ImageNet's. **ImageNet's terms allow only non-commercial research and
education.** The licence above is that of this package and covers the weights as far as the authors can license them;
whether weights that learned from these images may be used for another purpose is not for this card to decide.
`python scripts/tiny_imagenet.py` makes data for this model of the published files.

Labels are WordNet's first name of each class, or a clearer one if the first misleads: "stick insect" instead of
"walking stick", "plaque" instead of "brass".

## How it was trained

    {train_commands}

{trained} Settings were compared by accuracy on the same validation images, so the accuracy may be slightly too high.

## How it was measured

    python scripts/ship_backbone.py --model RUN/final --data FOLDER
    swinv2 evaluate FOLDER

At commit {commit}, torch {torch}, transformers {transformers}, {machine}.

## Photographs

`samples/` has twenty photographs that other packages ship, made smaller. They were chosen for their licences and
subjects, not for the answers. `samples/photographs.csv` has the author of each. `swinv2 demo` prints the answers:
{right} of {judged} are right, {among} among the five most probable labels. The model has no label for what the other
{unjudged} show.

| file | shows | label | the model says | source | licence |
| --- | --- | --- | --- | --- | --- |
{photographs}

## Limits

- It is a small model that has seen few images of each class, each of 64 x 64 pixels. {wrong:.0%} of its first answers
  are wrong on the validation images, and more on photographs of another kind.
- Images are scaled to a square of {image_size} pixels. A small object in a large photograph cannot be recognised; cut
  it out first.
- It must choose one of 200 labels. For an image of anything else the label means nothing, even if its probability is
  high.
- ImageNet was collected from the web in 2009 or before. Its classes and people are not a fair sample of the world. Do
  not use the model for decisions about people.
"""


def write_model(run: Path, folder: Path, dtype: torch.dtype) -> None:
    """Copies a trained model, whose labels must be those of `CLASSES`, with weights of another type."""
    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = json.loads((run / "config.json").read_text())
    expected = {str(index): name for index, name in enumerate(CLASSES.values())}
    other = [name for index, name in config["id2label"].items() if expected.get(index) != name]
    if other or len(config["id2label"]) != len(expected):
        raise SystemExit(
            f"{run / 'config.json'} has {len(config['id2label'])} labels, {len(other)} of them not as in "
            "tiny_imagenet.csv; expected the 200 of that file, in their order."
        )
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "float32"}, indent=2) + "\n")
    shutil.copyfile(run / "preprocessor_config.json", folder / "preprocessor_config.json")
    weights = {name: tensor.to(dtype) for name, tensor in load_file(run / "model.safetensors").items()}
    with whole_file(folder / "model.safetensors") as partial:
        save_file(weights, partial, {"format": "pt"})


def image_size_of(folder: Path) -> int:
    """The image size of a model."""
    return json.loads((folder / "config.json").read_text())["image_size"]


def measure(folder: Path, data: str) -> Evaluation:
    """What `swinv2 evaluate` finds."""
    with progress_bar(0, folder.name) as progress:
        return evaluate(str(folder), data, "validation", advance=progress.update)[0]


def list_recalls(recalls: list[tuple[str, float]]) -> str:
    """Classes and their recalls in one line."""
    return ", ".join(f"{name} {recall:.0%}" for name, recall in recalls)


def classify_photographs(folder: Path) -> dict[str, Any]:
    """What a model says about the shipped photographs: the fields of the card."""
    photographs = shipped_photographs()
    answers: Any = [answer for _, answer in Classifier.load(str(folder), "cpu").classify([p.path for p in photographs])]
    counts = count_right(photographs, [[each.label for each in labels] for labels in answers])
    return counts._asdict() | {
        "photographs": "\n".join(
            f"| `{p.path.name}` | {p.shows} | {p.label or '-'} | {labels[0].label} {labels[0].probability:.0%} | "
            f"{p.source} | {p.licence} |"
            for p, labels in zip(photographs, answers, strict=True)
        ),
    }


def main(
    model: Annotated[Path, typer.Option(help="Folder `final` of the run.")],
    data: Annotated[str, typer.Option(help="The folder that tiny_imagenet.py wrote.")],
    trained: Annotated[
        str, typer.Option(help="Sentences for the card: machine, time, what differs from the commands.")
    ],
    train_command: Annotated[list[str] | None, typer.Option(help="A command of the training; may be repeated.")] = None,
    dtype: Annotated[str, typer.Option(help="Type of the weights in the file: float16 or bfloat16.")] = "float16",
) -> None:
    """Writes the model and its card."""
    if dtype not in TYPES:
        raise typer.BadParameter(f"{dtype!r} is none of {', '.join(TYPES)}", param_hint="--dtype")
    transformers.utils.logging.disable_progress_bar()
    commands = train_command or [
        "swinv2 finetune --config recipes/tiny-imagenet-32.yaml --data FOLDER --output-dir runs/tiny-imagenet-32",
        "swinv2 finetune --config recipes/tiny-imagenet-64.yaml --data FOLDER --output-dir runs/tiny-imagenet-64",
        "swinv2 finetune --config recipes/tiny-imagenet-96.yaml --data FOLDER --output-dir runs/tiny-imagenet-96",
    ]
    with tempfile.TemporaryDirectory() as temporary:
        found: dict[str, Evaluation] = {}
        for name, torch_dtype in TYPES.items():
            write_model(model, Path(temporary) / name, torch_dtype)
            found[name] = measure(Path(temporary) / name, data)
        written, whole = Path(temporary) / dtype, found[dtype]
        rows = {image_size_of(written): whole}
        for size in sorted({*SIZES} - {*rows}):
            convert(str(written), Path(temporary) / str(size), image_size=(size, size))
            rows[size] = measure(Path(temporary) / str(size), data)
        network = Swinv2ForImageClassification.from_pretrained(written)
        megabytes = (written / "model.safetensors").stat().st_size / 1e6
        photographs = classify_photographs(written)

    config, stages = network.config, network.config.stages()
    recalls = sorted(
        ((name, recall) for name, recall in whole.summary()["recall"].items() if recall is not None),
        key=lambda pair: -pair[1],
    )
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
    card = CARD.format(
        images=f"{whole.images:,}",
        top1=whole.top1,
        wrong=1 - whole.top1,
        top5=whole.top5,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        image_size=config.image_size,
        patch_size=config.patch_size,
        window_size=config.window_size,
        widths=[stage.dim for stage in stages],
        depths=config.depths,
        heads=config.num_heads,
        megabytes=megabytes,
        dtype=dtype,
        sizes="\n".join(f"| {size} px | {each.top1:.2%} | {each.top5:.2%} |" for size, each in sorted(rows.items())),
        types=", ".join(f"{name} {each.top1:.2%}" for name, each in found.items()) + " top-1",
        best=list_recalls(recalls[:5]),
        worst=list_recalls(recalls[:-6:-1]),
        train_commands="\n    ".join(commands),
        trained=trained,
        commit=commit.stdout.strip(),
        torch=torch.__version__,
        transformers=transformers.__version__,
        machine=f"{platform.machine()} CPU, {torch.get_num_threads()} threads",
        **photographs,
    )
    write_model(model, FOLDER, TYPES[dtype])
    (FOLDER / "README.md").write_text(card)
    print(f"top-1 {whole.top1:.4f}, top-5 {whole.top5:.4f} on {whole.images} validation images; written: {FOLDER}")


if __name__ == "__main__":
    typer.run(main)
