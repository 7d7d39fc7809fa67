"""A folder to train on, and the flags of a short training of a small model."""

import json
from pathlib import Path

import pytest

from colours import draw_colours

MODEL = {"image_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 16, "depths": [1, 2], "num_heads": [1, 2]}


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 36 images to train on and 15 to evaluate."""
    source = tmp_path_factory.mktemp("colours")
    draw_colours(source / "train", 12, seed=0)
    draw_colours(source / "validation", 5, seed=1)
    return source


@pytest.fixture
def flags(colours: Path, tmp_path: Path) -> list[str]:
    """Flags of a training of 15 steps; more can be added, later ones win."""
    settings = {
        "data": colours,
        "output_dir": tmp_path / "run",
        "model": "new",
        "model_fields": json.dumps(MODEL),
        "per_device_train_batch_size": 8,
        "num_train_epochs": 3,
        "learning_rate": 2e-3,
        "warmup_steps": 2,
        "save_steps": 4,
        "logging_steps": 1,
        "eval_strategy": "epoch",
        "dataloader_num_workers": 0,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
    }
    return [part for name, value in settings.items() for part in (f"--{name}", str(value))]
