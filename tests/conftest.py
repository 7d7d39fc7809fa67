"""What every test stands on: no network, kernels that run without a GPU, and shapes in signatures that are checked.

Annotations of shapes cost nothing in use; here each call of a function of the package is held to them. Set
SWINV2_TYPECHECK=0 to run without.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from colours import MODEL, draw_colours
from signatures import CHECKS_SIGNATURES

os.environ.setdefault("HF_HUB_OFFLINE", "1")

# torch.compile cannot trace through the checks; test_ecosystem.py runs these in a process of their own.
collect_ignore = ["tracing"] if CHECKS_SIGNATURES else []

if CHECKS_SIGNATURES:
    import jaxtyping

    # Not the configuration: its fields are checked by itself, with a sentence, and the tests are about the sentence.
    # Nor kernels: Triton reads their source.
    ops = [f"swinv2.ops.{name}" for name in ("cpu", "backends", "coordinates", "reference", "sdpa", "windows")]
    ops += [f"swinv2.ops.triton.{name}" for name in ("launch", "programs", "residual", "table")]
    models = [f"swinv2.{name}" for name in ("layers", "model", "heads", "video.models", "video.inflate")]
    jaxtyping.install_import_hook([*ops, *models], "beartype.beartype")


def pytest_configure(config: pytest.Config) -> None:
    """Has kernels run on the CPU, before anything imports them, unless the tests are those for a GPU."""
    if config.getoption("markexpr") != "gpu":
        os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup() -> Iterator[None]:
    """Random numbers of a fixture do not depend on which tests ran before it in this process."""
    torch.manual_seed(0)
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    """Nor do those of a test."""
    torch.manual_seed(0)
    return (yield)


@pytest.fixture
def as_a_user() -> Iterator[None]:
    """Turns the checks of signatures off: a wrong argument then meets the package's own refusal, as in use."""
    import jaxtyping

    was_off = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", was_off)


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


@pytest.fixture
def registered() -> Iterator[None]:
    """Our classes in transformers' tables for one test; its own ones again after it."""
    from transformers.models.auto import modeling_auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    import swinv2

    tables = [CONFIG_MAPPING, *(t for t in vars(modeling_auto).values() if hasattr(t, "_extra_content"))]
    before = [dict(table._extra_content) for table in tables]
    swinv2.register()
    yield
    for table, content in zip(tables, before, strict=True):
        table._extra_content.clear()
        table._extra_content.update(content)
