"""Runs of `swinv2` that a script starts, and resumes if the script is started again."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

RECIPES = Path(__file__).parent.parent / "recipes"

SMALL_MODEL = {
    "image_size": 32,
    "patch_size": 4,
    "window_size": 4,
    "embed_dim": 64,
    "depths": [2, 4],
    "num_heads": [2, 4],
    "encoder_stride": 8,
}
"""A model with a third of the work of the CIFAR-10 recipes' model; many trainings take hours on two cores."""


def run_recipe(
    command: str, run: Path, recipe: str, told: Mapping[str, object], program: Sequence[str] = ()
) -> dict[str, Any]:
    """Runs a training to its end, unless it is complete already. Its settings are stored in its `asked.json`.

    Args:
        command: "pretrain" or "finetune".
        run: Folder of the run.
        recipe: Name of a file in `recipes/`.
        told: Settings that override the recipe.
        program: Program to start instead of `swinv2`.

    Returns:
        The contents of the run's `results.json`.

    Raises:
        SystemExit: The folder has a run with other settings.
    """
    results, asked = run / "results.json", run / "asked.json"
    wanted = {"recipe": yaml.safe_load((RECIPES / recipe).read_text()), "told": {k: str(v) for k, v in told.items()}}
    if asked.is_file() and json.loads(asked.read_text()) != wanted:
        raise SystemExit(f"{run} has a run with other settings ({asked}); choose another --output, or delete it.")
    if not results.is_file():
        run.mkdir(parents=True, exist_ok=True)
        asked.write_text(json.dumps(wanted, indent=2) + "\n")
        flags = [f"--{name}={value}" for name, value in told.items()]
        start = [*(program or [str(Path(sys.executable).with_name("swinv2"))]), command]
        folders = ["--config", str(RECIPES / recipe), "--output_dir", str(run), "--resume"]
        subprocess.run([*start, *folders, *flags], check=True)
    return json.loads(results.read_text())


def read_log(run: Path) -> list[dict[str, float]]:
    """The log of a run, entry by entry."""
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
