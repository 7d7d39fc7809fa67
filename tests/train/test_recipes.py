"""The recipes: each is read by its command, and has the numbers of its source.

The numbers below are written down from the papers and the authors' files, not from the recipes.
"""

import dataclasses
import math
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn
from transformers import TrainingArguments

from swinv2 import Swinv2Config, Swinv2ForImageClassification, Swinv2ForMaskedImageModeling
from swinv2.predict.shipped import shipped_model
from swinv2.train.data.augment import Pixels, for_finetuning, for_pretraining
from swinv2.train.flags import OLDER_NAMES, as_flag
from swinv2.train.optim.schedule import make_scheduler
from swinv2.train.pretrain import mask_maker
from swinv2.train.settings import FinetuneSettings, PretrainSettings, RunSettings, parse_settings
from swinv2.train.start import NEW, model_to_finetune, model_to_pretrain
from swinv2.zoo import CHECKPOINTS, PRESETS

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
KINDS: dict[str, type[RunSettings]] = {"pretrain": PretrainSettings, "finetune": FinetuneSettings}
DEVICES = 8
IMAGENET_1K, IMAGENET_22K, EXTENDED = 1_281_167, 14_197_122, 70_000_000


@dataclass(frozen=True)
class Published:
    """What the authors say. The rates are for the whole batch: the highest, of the first step, at the end."""

    dataset: int
    batch: int
    rates: tuple[float, float, float]
    epochs: int
    warmup_epochs: float
    decay: float
    drop_path: float
    image: int
    windows: tuple[int, ...]
    learned: tuple[int, ...] = (0, 0, 0, 0)
    clip: float = 5.0
    layer_decay: float = 1.0
    warmup_steps: int | None = None
    is_supervised: bool = True
    mixes: bool = True


NEW_IN1K = Published(IMAGENET_1K, 1024, (1e-3, 1e-6, 1e-5), 300, 20, 0.05, 0.2, 256, (8, 8, 8, 8))
NEW_IN22K = Published(IMAGENET_22K, 4096, (1e-3, 1e-6, 1e-5), 90, 5, 0.1, 0.2, 192, (12, 12, 12, 6))
TO_256 = Published(
    IMAGENET_1K, 1024, (4e-5, 4e-8, 4e-7), 30, 5, 1e-8, 0.2, 256, (16, 16, 16, 8), learned=(12, 12, 12, 6)
)
TO_384 = dataclasses.replace(TO_256, image=384, windows=(24, 24, 24, 12))
GIANT = Published(
    EXTENDED, 9216, (1.4e-3, 0.0, 0.0), 30, 0, 0.1, 0.3, 192, (12, 12, 12, 6),
    clip=100.0, layer_decay=0.87, warmup_steps=20_000, mixes=False,
)  # fmt: skip
PUBLISHED = {
    "in1k-tiny-w8-256": NEW_IN1K,
    "in1k-small-w8-256": dataclasses.replace(NEW_IN1K, drop_path=0.3),
    "in1k-base-w8-256": dataclasses.replace(NEW_IN1K, drop_path=0.5),
    "in22k-base-w12-192": NEW_IN22K,
    "in22k-large-w12-192": NEW_IN22K,
    "in22k-to-1k-base-w16-256": TO_256,
    "in22k-to-1k-large-w16-256": TO_256,
    "in22k-to-1k-base-w24-384": TO_384,
    "in22k-to-1k-large-w24-384": TO_384,
    "simmim-base-w12-192": Published(
        IMAGENET_1K, 2048, (4e-4, 2e-6, 4e-5), 800, 10, 0.05, 0.1, 192, (12, 12, 12, 6), is_supervised=False
    ),
    "simmim-base-finetune-w14-224": Published(
        IMAGENET_1K, 2048, (5e-3, 1e-6, 1e-6), 100, 20, 0.05, 0.1, 224, (14, 14, 14, 7),
        learned=(12, 12, 12, 6), layer_decay=0.75,
    ),
    "giant-3b-simmim-w12-192": dataclasses.replace(
        GIANT, epochs=20, drop_path=0.1, layer_decay=1.0, warmup_steps=30_000, is_supervised=False
    ),
    "giant-3b-supervised-w12-192": GIANT,
    "giant-3b-in1k-w40-640": Published(
        IMAGENET_1K, 576, (2.1e-5, 0.0, 0.0), 10, 2, 0.1, 0.5, 640, (40, 40, 40, 20),
        learned=(12, 12, 12, 6), clip=100.0, mixes=False,
    ),
}  # fmt: skip
CIFAR10 = {"cifar10-simmim": 15, "cifar10-finetune": 15, "cifar10-supervised": 28}
"""Epochs of this project's recipes for CIFAR-10."""
SMALL = {
    "image_size": 32,
    "patch_size": 2,
    "window_size": 4,
    "embed_dim": 48,
    "depths": [2, 4, 2],
    "num_heads": [2, 4, 8],
}
SHIPPED = {"patch_size": 4, "window_size": 8, "embed_dim": 64, "depths": [2, 2, 4, 1], "num_heads": [2, 4, 8, 16]}
OWN: dict[str, dict[str, Any]] = {
    **dict.fromkeys(CIFAR10, SMALL | {"image_size": 32}),
    "tiny-imagenet-32": SHIPPED | {"image_size": 32},
    "tiny-imagenet-64": SHIPPED | {"image_size": 64},
    "tiny-imagenet-96": SHIPPED | {"image_size": 96, "window_size": 12},
}
"""This project's recipes, and the fields of their models."""
SIZE_OF = {name: next(size for size in PRESETS if f"{size}-" in f"{name}-") for name in PUBLISHED}


def comment(recipe: Path) -> list[str]:
    """The lines of the comment at the top, without their sign."""
    lines: list[str] = []
    for line in recipe.read_text().splitlines():
        if not line.startswith("#"):
            break
        lines.append(line[1:].strip())
    return lines


def command_line(recipe: Path) -> list[str]:
    """The words of the command in the comment."""
    lines = comment(recipe)
    count = next(index for index, line in enumerate(lines) if not line.endswith("\\")) + 1
    return shlex.split(" ".join(line.rstrip("\\") for line in lines[:count]))


def parse(recipe: Path) -> RunSettings:
    """The settings that the command in the comment reads; on a CPU, as this project's recipes say by themselves."""
    _, command, *flags = command_line(recipe)
    config = flags.index("--config") + 1
    flags[config] = str(ROOT / flags[config])
    if recipe.stem in PUBLISHED:
        flags.append("--use_cpu")
    return parse_settings(KINDS[command], flags, command)


def find(name: str) -> Path:
    return ROOT / "recipes" / f"{name}.yaml"


@pytest.fixture
def eight_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TrainingArguments, "world_size", property(lambda settings: DEVICES))


each_recipe = pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
each_published = pytest.mark.parametrize("name", PUBLISHED)


def test_every_recipe_is_known_here() -> None:
    """What is not the authors' is this project's."""
    others = {recipe.stem for recipe in RECIPES} - set(PUBLISHED)
    assert others == set(OWN)
    assert set(PUBLISHED) <= {recipe.stem for recipe in RECIPES}


@each_recipe
def test_the_comment_says_how_it_is_run_where_it_is_from_and_what_came_of_it(recipe: Path) -> None:
    words, lines = command_line(recipe), comment(recipe)
    assert words[0] == "swinv2"
    assert words[words.index("--config") + 1] == f"recipes/{recipe.name}"
    assert words[words.index("--output-dir") + 1] == f"runs/{recipe.stem}"
    assert any(line.startswith("Source: ") for line in lines)
    assert any(line.startswith("Result: ") for line in lines)
    assert max(map(len, recipe.read_text().splitlines())) <= 120


@each_recipe
def test_its_command_reads_it(recipe: Path) -> None:
    """Every setting is one, and arrives as it stands in the file or on the command line."""
    settings, flags = parse(recipe), command_line(recipe)
    stated = yaml.safe_load(recipe.read_text())
    for name, value in stated.items():
        if as_flag(name) not in flags and name != "save_strategy" and name != "eval_strategy":
            assert getattr(settings, name if hasattr(settings, name) else OLDER_NAMES[name]) == value, name
    assert settings.save_strategy == stated.get("save_strategy", "steps")
    assert settings.bf16


@each_recipe
def test_its_pixels_can_be_made(recipe: Path) -> None:
    """No augmentation is refused beside another one."""
    settings = parse(recipe)
    pixels = Pixels((64, 64), settings.image_mean or [0.5] * 3, settings.image_std or [0.5] * 3)
    if isinstance(settings, FinetuneSettings):
        for_finetuning(
            pixels,
            settings.auto_augment,
            settings.color_jitter,
            settings.erase_probability,
            settings.crop_scale,
            settings.crop_padding,
        )
    else:
        assert isinstance(settings, PretrainSettings)
        for_pretraining(pixels, settings.crop_scale)


@each_published
@pytest.mark.usefixtures("eight_processes")
def test_batch_and_rates_are_the_authors(name: str) -> None:
    settings, published = parse(find(name)), PUBLISHED[name]
    text = " ".join(comment(find(name)))
    assert settings.whole_batch == published.batch
    stated = re.search(r"A step has (\d+) images, on 8 devices: (\d+) x (\d+) x 8", text)
    assert stated is not None
    assert [int(number) for number in stated.groups()] == [
        published.batch,
        settings.per_device_train_batch_size,
        settings.gradient_accumulation_steps,
    ]
    assert settings.learning_rate == pytest.approx(published.rates[0], rel=1e-9)
    steps = published.epochs * (published.dataset // published.batch)
    warmup = settings.get_warmup_steps(steps)
    expected = published.warmup_steps or published.warmup_epochs * (published.dataset // published.batch)
    assert warmup == expected
    rate = curve_of(settings, steps)
    assert [rate(step) for step in (warmup, 0, steps)] == pytest.approx(published.rates, rel=1e-5, abs=1e-12)


@each_published
def test_the_rest_is_the_authors(name: str) -> None:
    settings, published = parse(find(name)), PUBLISHED[name]
    assert settings.num_train_epochs == published.epochs
    assert settings.weight_decay == published.decay
    assert settings.drop_path_rate == published.drop_path
    assert settings.max_grad_norm == published.clip
    assert settings.layer_decay == published.layer_decay
    assert (settings.adam_beta1, settings.adam_beta2, settings.adam_epsilon) == (0.9, 0.999, 1e-8)
    assert settings.dataloader_drop_last
    assert isinstance(settings, FinetuneSettings) == published.is_supervised
    if isinstance(settings, FinetuneSettings):
        assert settings.auto_augment == "rand-m9-mstd0.5-inc1"
        assert settings.erase_probability == 0.25
        mixed = (settings.mixup, settings.cutmix, settings.label_smoothing_factor)
        assert mixed == ((0.8, 1.0, 0.1) if published.mixes else (0.0, 0.0, 0.0))
    elif isinstance(settings, PretrainSettings):
        assert (settings.mask_ratio, settings.mask_block, settings.norm_targets) == (0.6, 32, 47)
        assert settings.crop_scale == [0.67, 1.0]


def curve_of(settings: RunSettings, steps: int) -> Callable[[int], float]:
    """The highest learning rate at each step."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], settings.learning_rate)
    options: Any = settings.lr_scheduler_kwargs or {}
    warmup = settings.get_warmup_steps(steps)
    scheduler: Any = make_scheduler(optimizer, settings.lr_scheduler_type, options, settings.milestones, warmup, steps)
    return lambda step: settings.learning_rate * scheduler.lr_lambdas[0](step)


def curve_of_the_authors(step: int, steps: int, warmup: int, rates: tuple[float, float, float]) -> float:
    """A line from the first rate to the highest, then half a cosine to the last."""
    highest, first, last = rates
    if step < warmup:
        return first + (highest - first) * step / warmup
    return last + (highest - last) * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2


@pytest.mark.parametrize("name", [name for name in (*PUBLISHED, *CIFAR10) if name != "simmim-base-w12-192"])
@pytest.mark.usefixtures("eight_processes")
def test_the_rate_of_each_step_is_that_of_the_authors_cosine(name: str) -> None:
    """transformers' own cosine is the same; the one that has other ends is, after the warm-up, a step ahead."""
    settings = parse(find(name))
    if name in PUBLISHED:
        published = PUBLISHED[name]
        steps, rates = published.epochs * (published.dataset // published.batch), published.rates
    else:
        steps, rates = CIFAR10[name] * (50_000 // 128), (2e-3, 0.0, 0.0)
    warmup, rate = settings.get_warmup_steps(steps), curve_of(settings, steps)
    some = [0, 1, warmup // 2, warmup - 1, warmup, warmup + 1, *(round(steps * part / 50) for part in range(1, 51))]
    expected = [curve_of_the_authors(step, steps, warmup, rates) for step in some]
    one_step = rates[0] * max(1 / warmup, math.pi / 2 / (steps - warmup)) if rates[2] else 1e-9 * rates[0]
    assert [rate(step) for step in some] == pytest.approx(expected, rel=0, abs=1.001 * one_step)
    assert max(expected) > 20 * one_step


@pytest.mark.usefixtures("eight_processes")
def test_the_rate_of_simmim_drops_at_epoch_700() -> None:
    steps = IMAGENET_1K // 2048
    rate = curve_of(parse(find("simmim-base-w12-192")), 800 * steps)
    epochs = [0, 5, 10, 350, 700 - 1 / steps, 700, 799]
    expected = [2e-6, 2.01e-4, 4e-4, 4e-4, 4e-4, 4e-5, 4e-5]
    assert [rate(round(epoch * steps)) for epoch in epochs] == pytest.approx(expected, rel=1e-3)


@cache
def config_of(name: str) -> Swinv2Config:
    """The configuration of the model that a recipe makes, built without weights."""
    settings: Any = parse(find(name))
    with torch.device("meta"):
        if settings.model == NEW or settings.model in PRESETS:
            start = model_to_pretrain if isinstance(settings, PretrainSettings) else model_to_finetune
            model: Any = start(settings) if isinstance(settings, PretrainSettings) else start(settings, ("a", "b"))
            return model.config
        if settings.model in CHECKPOINTS:
            config = Swinv2Config(**CHECKPOINTS[settings.model].config_fields())
        else:
            config = config_of(made_by(settings.model))
        model = Swinv2ForImageClassification(config)
    size = settings.image_size or [config.image_size]
    model.set_image_size(size[0], settings.window_size, settings.stretch_bias)
    return model.config


def made_by(model: str) -> str:
    """The recipe whose run leaves a model."""
    found = [recipe.stem for recipe in RECIPES if model == f"{parse(recipe).output_dir}/final"]
    assert len(found) == 1, f"no recipe makes {model}"
    return found[0]


@each_recipe
def test_its_model_is_possible(recipe: Path) -> None:
    """New, the hub's, or what another recipe leaves; at the image size and window that the recipe gives it."""
    config, published = config_of(recipe.stem), PUBLISHED.get(recipe.stem)
    if published is None:
        expected = OWN[recipe.stem]
        assert {name: getattr(config, name) for name in expected} == expected
        return
    size = PRESETS[SIZE_OF[recipe.stem]]
    assert (config.embed_dim, tuple(config.depths), tuple(config.num_heads), config.extra_norm_period) == (
        size.embed_dim,
        size.depths,
        size.num_heads,
        size.extra_norm_period,
    )
    stages = config.stages()
    assert config.image_size == published.image
    assert [stage.window for stage in stages] == [(window, window) for window in published.windows]
    assert [stage.pretrained_window for stage in stages] == [(window, window) for window in published.learned]


def test_the_shipped_model_is_what_its_recipe_makes() -> None:
    """The position bias was learned at 32 pixels, in smaller windows."""
    made, shipped = config_of("tiny-imagenet-96"), Swinv2Config.from_pretrained(shipped_model())
    assert made.pretrained_window_sizes == shipped.pretrained_window_sizes == [8, 4, 2, 2]
    assert {name: getattr(shipped, name) for name in OWN["tiny-imagenet-96"]} == OWN["tiny-imagenet-96"]
    assert [stage.window for stage in made.stages()] == [stage.window for stage in shipped.stages()]


@pytest.mark.parametrize("name", ["simmim-base-w12-192", "cifar10-simmim"])
def test_its_masks_can_be_drawn(name: str) -> None:
    """SimMIM's 22 of 36 blocks, and 39 of 64 on CIFAR-10."""
    settings = parse(find(name))
    assert isinstance(settings, PretrainSettings)
    with torch.device("meta"):
        model = Swinv2ForMaskedImageModeling(config_of(name))
    mask = mask_maker(model.config, settings.mask_block, settings.mask_ratio)()
    patches = (settings.mask_block // model.config.patch_size) ** 2
    blocks = {"simmim-base-w12-192": (22, 36), "cifar10-simmim": (39, 64)}[name]
    assert (int(mask.sum()) // patches, mask.numel() // patches) == blocks
