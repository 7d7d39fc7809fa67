"""Measures how much SimMIM pre-training helps with few labels: CIFAR-10 with labels for a tenth of the images.

For each seed, a small model is pre-trained on all 50,000 training images without labels and fine-tuned on the labelled
tenth. The same model is also trained from scratch on the same tenth, with the same recipe and number of steps. Both are
evaluated on the 10,000 test images after the last step; no setting or checkpoint is chosen by this evaluation.

    python scripts/few_labels.py --data cifar10 --output runs/few-labels

If the command is given again, unfinished runs resume. OUTPUT/few-labels.md and .json have the table, few-labels.png the
curves, simmim-0/reconstructions.png the first model's reconstructions.
"""

import json
import statistics
from pathlib import Path
from typing import Annotated

import typer
from runs import SMALL_MODEL, read_log, run_recipe

from swinv2.drawing.paper import open_figure, save

LABELLED = {"warmup_steps": 0.13, "eval_steps": 0.2, "save_steps": 0.5, "logging_steps": 0.05}
"""Numbers of steps as shares of the training, because the recipe's numbers are for a longer one. All fine-tunings use
them, pre-trained or not."""

STARTS = {"pre-trained": "SimMIM on all images, then the labelled ones", "scratch": "the labelled ones alone"}


def main(
    data: Annotated[str, typer.Option(help="CIFAR-10: a folder, or a data set's name.")] = "cifar10",
    output: Annotated[Path, typer.Option(help="Folder of all runs.")] = Path("runs/few-labels"),
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each kind.")] = 3,
    pretraining_epochs: Annotated[float, typer.Option(help="Epochs of SimMIM, on all images.")] = 15,
    epochs: Annotated[float, typer.Option(help="Epochs of each fine-tuning, on the labelled images.")] = 20,
    share: Annotated[float, typer.Option(help="Share of the images of each class that are labelled.")] = 0.1,
) -> None:
    """Runs the missing trainings, writes the table and draws the curves."""
    found: dict[str, list[float]] = {start: [] for start in STARTS}
    for seed in range(seeds):
        pretrained = output / f"simmim-{seed}"
        told = {"data": data, "seed": seed, "model_fields": json.dumps(SMALL_MODEL)}
        run_recipe("pretrain", pretrained, "cifar10-simmim.yaml", told | {"num_train_epochs": pretraining_epochs})
        told |= LABELLED | {"num_train_epochs": epochs, "train_fraction": share}
        for start in STARTS:
            run = output / f"{start}-{seed}"
            if start == "pre-trained":
                labelled = told | {"model": pretrained / "final"}
                del labelled["model_fields"]
                results = run_recipe("finetune", run, "cifar10-finetune.yaml", labelled)
            else:
                results = run_recipe("finetune", run, "cifar10-supervised.yaml", told)
            found[start].append(results["eval_top1"])
            _write(output, found, pretraining_epochs, epochs, share)
    _draw(output, seeds)


def _write(output: Path, found: dict[str, list[float]], pretraining_epochs: float, epochs: float, share: float) -> None:
    rows = [
        f"CIFAR-10, labels for {share:.0%} of the training images, {epochs:g} epochs of them; SimMIM: "
        f"{pretraining_epochs:g} epochs of all images without labels. Top-1 on the test images in percent.",
        "",
        "| trained on | mean | standard deviation | each seed |",
        "| --- | --- | --- | --- |",
    ]
    for start, scores in found.items():
        if scores:
            spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
            each = ", ".join(f"{100 * score:.2f}" for score in scores)
            rows.append(f"| {STARTS[start]} | {100 * statistics.mean(scores):.2f} | {100 * spread:.2f} | {each} |")
    (output / "few-labels.md").write_text("\n".join(rows) + "\n")
    (output / "few-labels.json").write_text(json.dumps(found, indent=2) + "\n")


def _draw(output: Path, seeds: int) -> None:
    """Draws the losses of the pre-trainings, and the accuracies of the trainings from pre-trained weights and from
    scratch."""
    figure = open_figure(10, 4)
    pretraining, labelled = figure.subplots(1, 2)
    colours = {"pre-trained": "#2166ac", "scratch": "#d6604d"}
    for seed in range(seeds):
        log = read_log(output / f"simmim-{seed}")
        points = [(entry["epoch"], entry["loss"]) for entry in log if "loss" in entry]
        pretraining.plot(*zip(*points, strict=True), color=colours["pre-trained"], linewidth=1)
        for start, colour in colours.items():
            log = read_log(output / f"{start}-{seed}")
            points = [(entry["epoch"], 100 * entry["eval_top1"]) for entry in log if "eval_top1" in entry]
            labelled.plot(*zip(*points, strict=True), color=colour, linewidth=1, label="" if seed else STARTS[start])
    pretraining.set(xlabel="epoch of all images, without labels", ylabel="SimMIM's loss")
    labelled.set(xlabel="epoch of the labelled images", ylabel="top-1 on the test images, %")
    labelled.legend(frameon=False, fontsize=9)
    for axes in (pretraining, labelled):
        axes.grid(True, color="#e4e4e4", linewidth=0.7)
        axes.spines[["top", "right"]].set_visible(False)
    save(figure, output / "few-labels.png")


if __name__ == "__main__":
    typer.run(main)
