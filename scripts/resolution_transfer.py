"""A small version of the paper's table 1: models trained at 32 px on CIFAR-10, evaluated at 48 and 64 px.

For each seed, a small model is trained at 32 px, once with log-spaced and once with linear-spaced coordinates of the
position bias. At each larger size, images and windows are scaled up, and the model is evaluated without further
training, with its bias extrapolated; the log-spaced model also with its bias stretched over the larger window. Then
each model is fine-tuned for one epoch at this size and evaluated again.

    python scripts/resolution_transfer.py --data cifar10 --output runs/resolution

If the command is given again, unfinished runs resume. OUTPUT/resolution.md and .json have the table.

Source: Liu et al., Swin Transformer V2 (arXiv 2111.09883), table 1 and section 3.3.
"""

import json
import statistics
import sys
from pathlib import Path
from typing import Annotated

import torch
import typer
from runs import SMALL_MODEL, read_log, run_recipe
from torch import Tensor

from swinv2.layers import position as layers_position
from swinv2.ops.cpu import position as cpu_position

MODEL = SMALL_MODEL | {"embed_dim": 48, "depths": [2, 2]}
"""An even smaller model, because an image of 64 px costs four times as much as one of 32."""

TRAINED_WINDOW = 4
PRESETS = {32: TRAINED_WINDOW, 48: 6, 64: 8}
KINDS = {"log": "log-spaced", "linear": "linear-spaced", "stretched": "log-spaced, stretched"}
LINEAR = "--linear-spaced"
"""With this first argument, the script runs `swinv2` with linear-spaced coordinates."""


def linear_coordinates(
    window: tuple[int, int], pretrained_window: tuple[int, int], device: torch.device | None = None
) -> Tensor:
    """Like `relative_coordinates`, but without the logarithm: a distance is a share of the pre-training window."""
    axes = [
        torch.arange(1 - size, size, device=device, dtype=torch.float32) / max((pretrained or size) - 1, 1)
        for size, pretrained in zip(window, pretrained_window, strict=True)
    ]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)


def main(
    data: Annotated[str, typer.Option(help="CIFAR-10: a folder, or a data set's name.")] = "cifar10",
    output: Annotated[Path, typer.Option(help="Folder of all runs.")] = Path("runs/resolution"),
    seeds: Annotated[int, typer.Option(min=1, help="Models of each kind.")] = 3,
    epochs: Annotated[float, typer.Option(help="Epochs of the training at 32 px.")] = 5,
    tuning_epochs: Annotated[float, typer.Option(help="Epochs of the fine-tuning at a larger size.")] = 1,
) -> None:
    """Runs the missing trainings, and writes the table."""
    scores: dict[str, list[float]] = {}
    for seed in range(seeds):
        for spacing in ("log", "linear"):
            trained = output / f"{spacing}-32-{seed}"
            told = {
                "data": data,
                "seed": seed,
                "num_train_epochs": epochs,
                "model_fields": json.dumps(MODEL),
            }
            _finetune(spacing, trained, "cifar10-supervised.yaml", told)
            _note(scores, f"{spacing} 32", _top1(trained))
        for size, window in PRESETS.items():
            for kind in KINDS:
                if size == 32:
                    continue
                spacing = "linear" if kind == "linear" else "log"
                run = output / f"{kind}-{size}-{seed}"
                told = {
                    "data": data,
                    "seed": seed,
                    "num_train_epochs": tuning_epochs,
                    "eval_on_start": True,
                    "model": output / f"{spacing}-32-{seed}" / "final",
                    "image_size": size,
                    "window_size": window,
                    "stretch_bias": kind == "stretched",
                    "matrix_learning_rate": 5e-4,
                    "learning_rate": 2e-4,
                    "warmup_steps": 20,
                }
                _finetune(spacing, run, "cifar10-finetune.yaml", told)
                _note(scores, f"{kind} {size}", _top1_at_first(run))
                _note(scores, f"{kind} {size} tuned", _top1(run))
        _write(output, scores, epochs, tuning_epochs)


def _finetune(spacing: str, run: Path, recipe: str, told: dict[str, object]) -> None:
    run_recipe("finetune", run, recipe, told, [sys.executable, __file__, LINEAR] if spacing == "linear" else ())


def _top1(run: Path) -> float:
    return json.loads((run / "results.json").read_text())["eval_top1"]


def _top1_at_first(run: Path) -> float:
    return next(entry["eval_top1"] for entry in read_log(run) if entry["step"] == 0)


def _note(scores: dict[str, list[float]], name: str, score: float) -> None:
    scores.setdefault(name, []).append(score)


def _shown(scores: list[float]) -> str:
    spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
    return f"{100 * statistics.mean(scores):.2f} ± {100 * spread:.2f}"


def _write(output: Path, scores: dict[str, list[float]], epochs: float, tuning_epochs: float) -> None:
    larger = [size for size in PRESETS if size != 32]
    head = ["coordinates", "32 px", *(f"{size} px{tuned}" for size in larger for tuned in ("", ", tuned"))]
    rows = [
        f"CIFAR-10, top-1 on the test images in percent, mean ± standard deviation of {len(scores['log 32'])} seeds; "
        f"{epochs:g} epochs at 32 px with windows of {TRAINED_WINDOW}, tuned for {tuning_epochs:g} more at the size.",
        "",
        "| " + " | ".join(head) + " |",
        "|" + " --- |" * len(head),
    ]
    for kind, title in KINDS.items():
        cells = [_shown(scores["linear 32" if kind == "linear" else "log 32"])]
        cells += [_shown(scores[f"{kind} {size}{tuned}"]) for size in larger for tuned in ("", " tuned")]
        rows.append("| " + " | ".join([title, *cells]) + " |")
    (output / "resolution.md").write_text("\n".join(rows) + "\n")
    (output / "resolution.json").write_text(json.dumps(scores, indent=2) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == [LINEAR]:
        from swinv2.cli import app

        layers_position.relative_coordinates = cpu_position.relative_coordinates = linear_coordinates
        app(sys.argv[2:])
    else:
        typer.run(main)
