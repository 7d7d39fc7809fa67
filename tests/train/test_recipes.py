"""The recipes: each is read by its command, and has the numbers of its source.

The numbers below are written down from the papers and the authors' files, not from the recipes.
"""

import copy
import dataclasses
import json
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
from torchvision import tv_tensors
from transformers import TrainingArguments
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from scenes import SMALL_HEADS, write_checkpoint, write_masks, write_objects
from swinv2 import Swinv2Backbone, Swinv2Config, Swinv2ForImageClassification, Swinv2ForMaskedImageModeling
from swinv2.dense import set_image_size
from swinv2.dense.backbone import backbone_of
from swinv2.predict.shipped import shipped_model
from swinv2.train.data.augment import Pixels, for_finetuning, for_pretraining
from swinv2.train.data.examples import SampleIndex
from swinv2.train.dense import start as dense_start
from swinv2.train.dense.augment import for_masks, for_objects, without_empty_boxes
from swinv2.train.dense.settings import DenseSettings
from swinv2.train.dense.trainer import make_dense_training
from swinv2.train.flags import OLDER_NAMES, as_flag, given_task
from swinv2.train.optim.groups import parameter_groups
from swinv2.train.optim.schedule import make_scheduler
from swinv2.train.pretrain import mask_maker
from swinv2.train.settings import FinetuneSettings, PretrainSettings, RunSettings, parse_settings
from swinv2.train.start import NEW, model_to_finetune, model_to_pretrain
from swinv2.train.video import start as video_start
from swinv2.train.video.augment import for_clips
from swinv2.train.video.settings import VideoSettings
from swinv2.video.config import Swinv2VideoConfig
from swinv2.video.inflate import inflate_config
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


@dataclass(frozen=True)
class PublishedDense:
    """What the authors say of a segmenter or detector. The rate is for the whole batch; a length is in steps or epochs.
    `warm` is the share of the rate at the first step of the warm-up."""

    start: str
    batch: int
    rate: float
    length: int
    warmup_steps: int
    drop_path: float
    windows: tuple[int, ...]
    learned: tuple[int, ...]
    image: Any
    layer_decay: float = 1.0
    backbone_rate: float = 1.0
    decay: float = 0.05
    scale: tuple[float, float] = (0.5, 2.0)
    task: str = "segmentation"
    warm: float = 0.0


TINY, BASE, LARGE = (
    f"microsoft/swinv2-{rest}"
    for rest in ("tiny-patch4-window8-256", "base-patch4-window12-192-22k", "large-patch4-window12-192-22k")
)
ADE20K = PublishedDense(
    BASE, 64, 6e-5, 40_000, 375, 0.3, (40, 40, 40, 20), learned=(12, 12, 12, 6), image=(640, 640)
)  # fmt: skip
COCO = PublishedDense(
    BASE, 64, 4e-4, 36, 500, 0.3, (32, 32, 32, 24), learned=(12, 12, 12, 6), image=(1536, 1536), backbone_rate=0.1,
    scale=(0.1, 2.0), task="instances", warm=1e-3,
)  # fmt: skip
DENSE = {
    "ade20k-tiny-w16-512": PublishedDense(
        TINY, 16, 4e-5, 160_000, 1500, 0.3, (16, 16, 16, 16), learned=(8, 8, 8, 8), image=(512, 512), layer_decay=0.95
    ),
    "ade20k-base-w40-640": ADE20K,
    "ade20k-large-w40-640": dataclasses.replace(ADE20K, start=LARGE),
    "ade20k-giant-3b-w40-640": dataclasses.replace(
        ADE20K, start="runs/giant-3b-supervised-w12-192/final", batch=32, rate=4e-5, length=80_000, warmup_steps=750,
        drop_path=0.4,
    ),
    "coco-tiny-w16-800": PublishedDense(
        TINY, 16, 1e-4, 36, 500, 0.2, (16, 16, 16, 16), learned=(8, 8, 8, 8), image=(800, 1333), scale=(1.0, 1.0),
        task="instances", warm=1e-3,
    ),
    "coco-base-w32-1536": COCO,
    "coco-large-w32-1536": dataclasses.replace(COCO, start=LARGE),
}  # fmt: skip
"""The paper's numbers. For COCO, drop path, warm-up and epochs of the drops are those of the authors' code for V1."""
COCO_IMAGES = 118_287
KINETICS_400, SOMETHING_V2 = 240_436, 168_913


@dataclass(frozen=True)
class PublishedVideo:
    """What the authors say of a classifier of videos. The rate is for the whole batch; sizes are frames, pixels, and
    tokens of a window (frames, height, width); `stride` 0: the frames are spread over the video."""

    start: str
    batch: int
    rate: float
    epochs: int
    decay: float
    drop_path: float
    frames: int
    image: int
    windows: tuple[tuple[int, int, int], ...]
    stride: int = 2
    warmup_epochs: float = 2.5
    backbone_rate: float = 0.1
    dropout: float = 0.5
    flip: float = 0.5
    rand_augment: tuple[int, ...] = ()
    erase: float = 0.0
    smoothing: float = 0.0
    clip: float = 0.0
    dataset: int = KINETICS_400


KINETICS_TINY = PublishedVideo(TINY, 64, 1e-3, 30, 0.02, 0.1, 32, 224, ((8, 7, 7),) * 4)
KINETICS_BASE = dataclasses.replace(KINETICS_TINY, start=BASE, rate=3e-4, decay=0.05, drop_path=0.2)
KINETICS_GIANT = PublishedVideo(
    "runs/giant-3b-supervised-w12-192/final", 80, 3.6e-4, 20, 0.1, 0.4, 16, 256,
    ((8, 16, 16), (8, 16, 16), (8, 16, 16), (8, 8, 8)), backbone_rate=1.0, dropout=0.0, clip=100.0,
)  # fmt: skip
VIDEO = {
    "kinetics400-tiny-w7-224": KINETICS_TINY,
    "kinetics400-base-w7-224": KINETICS_BASE,
    "something-v2-base-w7-224": dataclasses.replace(
        KINETICS_BASE, start="runs/kinetics400-base-w7-224/final", epochs=60, drop_path=0.4,
        windows=((16, 7, 7),) * 4, stride=0, flip=0.0, rand_augment=(4, 7), erase=0.25, smoothing=0.1,
        dataset=SOMETHING_V2,
    ),
    "kinetics400-giant-3b-w16-256": KINETICS_GIANT,
    "kinetics400-giant-3b-w20-320": dataclasses.replace(
        KINETICS_GIANT, start="runs/kinetics400-giant-3b-w16-256/final", batch=64, rate=5e-5, epochs=5, image=320,
        windows=((8, 20, 20), (8, 20, 20), (8, 20, 20), (8, 10, 10)), warmup_epochs=5 / 8,
    ),
}  # fmt: skip
"""Those of Video Swin for V1, and the paper's for giant. Of giant, drop path, stride, flip, clip and the warm-up of the
second step are this project's choices, as its recipes say."""
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
    if recipe.stem in {*PUBLISHED, *DENSE, *VIDEO}:
        flags.append("--use_cpu")
    kind = {None: KINDS[command], "video": VideoSettings}.get(given_task(flags), DenseSettings)
    return parse_settings(kind, flags, command)


def find(name: str) -> Path:
    return ROOT / "recipes" / f"{name}.yaml"


@pytest.fixture
def eight_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TrainingArguments, "world_size", property(lambda settings: DEVICES))


each_recipe = pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
each_published = pytest.mark.parametrize("name", PUBLISHED)
each_video = pytest.mark.parametrize("name", VIDEO)
each_dense = pytest.mark.parametrize("name", DENSE)
of_ade20k = pytest.mark.parametrize("name", [name for name in DENSE if name.startswith("ade20k-")])
of_coco = pytest.mark.parametrize("name", [name for name in DENSE if name.startswith("coco-")])


def test_every_recipe_is_known_here() -> None:
    """What is not the authors' is this project's."""
    others = {recipe.stem for recipe in RECIPES} - set(PUBLISHED) - set(DENSE) - set(VIDEO)
    assert others == set(OWN)
    assert {*PUBLISHED, *DENSE, *VIDEO} <= {recipe.stem for recipe in RECIPES}


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
    elif isinstance(settings, DenseSettings):
        usual: Any = {"flip": settings.flip, "color_jitter": settings.color_jitter, "scale_range": settings.scale_range}
        if settings.task == "segmentation":
            for_masks((64, 64), [0.5] * 3, most_of_a_class=settings.most_of_a_class, **usual)
        else:
            for_objects((64, 64), [0.5] * 3, **usual)
    elif isinstance(settings, VideoSettings):
        given = settings.color_jitter, settings.rand_augment, settings.erase_probability
        for_clips(pixels, settings.crop_scale, settings.flip, settings.reverse, *given)
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


@pytest.mark.parametrize(
    "recipe", [recipe for recipe in RECIPES if recipe.stem not in {*DENSE, *VIDEO}], ids=lambda one: one.stem
)
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


@each_dense
@pytest.mark.usefixtures("eight_processes")
def test_batch_and_length_of_a_segmenter_or_detector_are_the_authors(name: str) -> None:
    settings, published = parse(find(name)), DENSE[name]
    assert settings.whole_batch == published.batch
    stated = re.search(r"A step has (\d+) images, on 8 devices: (\d+) x (\d+) x 8", " ".join(comment(find(name))))
    assert stated is not None
    batches = settings.per_device_train_batch_size, settings.gradient_accumulation_steps
    assert tuple(map(int, stated.groups())) == (published.batch, *batches)
    assert settings.dataloader_drop_last
    if published.task == "segmentation":
        assert (settings.max_steps, settings.learning_rate) == (published.length, published.rate)
    else:
        assert (settings.max_steps, settings.num_train_epochs) == (-1, published.length)
        assert settings.learning_rate == published.rate
    assert settings.get_warmup_steps(published.length) == published.warmup_steps
    assert (settings.adam_beta1, settings.adam_beta2, settings.adam_epsilon) == (0.9, 0.999, 1e-8)
    # Both of the authors' programs clip no gradients.
    assert settings.max_grad_norm == 0.0


@of_ade20k
@pytest.mark.usefixtures("eight_processes")
def test_the_rate_of_a_segmenter_falls_in_a_line(name: str) -> None:
    """From the end of the warm-up to 0; the authors' code counts the line from the first step."""
    settings, published = parse(find(name)), DENSE[name]
    steps, warmup, highest = published.length, published.warmup_steps, published.rate
    rate = curve_of(settings, steps)
    middle = (steps + warmup) // 2
    measured = [rate(step) for step in (0, warmup // 3, warmup, steps)]
    assert measured == pytest.approx([0.0, highest * (warmup // 3) / warmup, highest, 0.0], rel=1e-9, abs=1e-12)
    assert rate(middle) == pytest.approx(highest * (steps - middle) / (steps - warmup), rel=1e-9)
    for step in range(0, steps + 1, steps // 40):
        # mmcv's poly schedule of power 1; in the warm-up a share of it, from 1e-6.
        theirs = highest * (1 - step / steps) * (1 if step >= warmup else 1e-6 + (1 - 1e-6) * step / warmup)
        assert abs(rate(step) - theirs) <= 0.01 * highest


@of_coco
@pytest.mark.usefixtures("eight_processes")
def test_the_rate_of_a_detector_drops_at_epochs_27_and_33(name: str) -> None:
    settings, published = parse(find(name)), DENSE[name]
    epoch = COCO_IMAGES // published.batch
    rate = curve_of(settings, 36 * epoch)
    steps = [0, 250, 500, 27 * epoch - 1, 27 * epoch, 33 * epoch - 1, 33 * epoch, 36 * epoch]
    shares = [published.warm, 0.5 * (1 + published.warm), 1.0, 1.0, 0.1, 0.1, 0.01, 0.01]
    assert [rate(step) for step in steps] == pytest.approx([published.rate * share for share in shares], rel=1e-9)


@of_ade20k
def test_the_augmentation_of_ade20k_is_the_authors(name: str) -> None:
    settings = parse(find(name))
    assert isinstance(settings, DenseSettings)
    assert (settings.scale_range, settings.most_of_a_class, settings.flip) == ([0.5, 2.0], 0.75, 0.5)
    # Contrast and saturation from 0.5 to 1.5.
    assert settings.color_jitter == 0.5


@of_coco
def test_the_augmentation_of_coco_is_the_authors(name: str) -> None:
    settings, published = parse(find(name)), DENSE[name]
    assert isinstance(settings, DenseSettings)
    assert (tuple(settings.scale_range), settings.flip, settings.color_jitter) == (published.scale, 0.5, 0.0)
    transform = dense_model(name).detector.transform
    if name == "coco-tiny-w16-800":
        assert list(transform.min_size) == list(range(480, 801, 32))
    else:
        assert list(transform.min_size) == [1536]
    assert transform.max_size == published.image[1]


def start_of(name: str) -> Swinv2Config:
    """The configuration of the model that a recipe for a segmenter or detector starts from."""
    model = parse(find(name)).model
    assert model == DENSE[name].start
    return Swinv2Config(**CHECKPOINTS[model].config_fields()) if model in CHECKPOINTS else config_of(made_by(model))


@cache
def dense_model(name: str) -> Any:
    """The segmenter or detector that a recipe makes, without weights."""
    settings: Any = parse(find(name))
    settings.image_mean, settings.image_std = list(IMAGENET_DEFAULT_MEAN), list(IMAGENET_DEFAULT_STD)

    def unloaded(checkpoint: str, *, out_features: list[str], norm_feature_maps: bool, drop_path_rate: float) -> Any:
        config = copy.deepcopy(start_of(name))
        config.norm_feature_maps, config.drop_path_rate = norm_feature_maps, drop_path_rate
        config.set_output_features_output_indices(list(out_features), None)
        return Swinv2Backbone(config)

    with torch.device("meta"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(dense_start, "load_backbone", unloaded)
        patch.setattr(dense_start, "read_dense_config", lambda model: None)
        return dense_start.model_to_train(settings, tuple(f"class {index}" for index in range(150)))


@each_dense
def test_the_network_of_a_segmenter_or_detector_is_the_authors(name: str) -> None:
    """Nothing is allocated: the model is on the device "meta"."""
    model, published = dense_model(name), DENSE[name]
    config = backbone_of(model).config
    size = PRESETS[next(size for size in PRESETS if f"-{size}-" in name)]
    assert (config.embed_dim, tuple(config.depths), config.extra_norm_period) == (
        size.embed_dim,
        size.depths,
        size.extra_norm_period,
    )
    assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"meta"}
    given = parse(find(name)).image_size
    assert (given[0], given[-1]) == published.image
    stages = config.stages()
    assert [stage.window for stage in stages] == [(window, window) for window in published.windows]
    assert [stage.pretrained_window for stage in stages] == [(window, window) for window in published.learned]
    assert config.drop_path_rate == published.drop_path
    assert config.norm_feature_maps
    if published.task == "segmentation":
        head = model.config
        assert (head.hidden_size, tuple(head.pool_scales)) == (512, (1, 2, 3, 6))
        assert (head.auxiliary_channels, head.auxiliary_num_convs, head.auxiliary_loss_weight) == (256, 1, 0.4)
        assert model.auxiliary_head.convs[0].conv.in_channels == 4 * size.embed_dim
    else:
        assert (model.config.with_masks, model.config.pyramid_channels) == (True, 256)


@each_dense
def test_the_rates_of_its_layers_and_the_weight_decay_are_the_authors(name: str) -> None:
    settings, published = parse(find(name)), DENSE[name]
    model = dense_model(name)
    rates = settings.learning_rate, settings.weight_decay, settings.layer_decay, settings.backbone_rate
    groups = {one: group for group in parameter_groups(model, *rates) for one in group["names"]}
    path = next(one for one in groups if one.endswith("embeddings.patch_embeddings.projection.weight"))
    blocks = sum(backbone_of(model).config.depths)
    first = published.rate * published.layer_decay ** (blocks + 1) * published.backbone_rate
    assert groups[path]["lr"] == pytest.approx(first, rel=1e-9)
    heads = [group for one, group in groups.items() if ".encoder." not in one and ".embeddings." not in one]
    assert {group["lr"] for group in heads} == {published.rate}
    assert {group["weight_decay"] for group in heads} == {0.0, published.decay}


def test_the_giant_segmenter_is_evaluated_with_windows_of_56() -> None:
    model = copy.deepcopy(dense_model("ade20k-giant-3b-w40-640"))
    set_image_size(model, 896, 56)
    stages = backbone_of(model).config.stages()
    assert [stage.window[0] for stage in stages] == [56, 56, 56, 28]
    assert [stage.pretrained_window[0] for stage in stages] == [12, 12, 12, 6]
    assert model.config.backbone_config.image_size == 896


def test_the_giant_segmenter_can_compute_its_blocks_again() -> None:
    """Activation checkpointing: transformers' UperNet alone does not allow it."""
    model = copy.deepcopy(dense_model("ade20k-giant-3b-w40-640"))
    assert parse(find("ade20k-giant-3b-w40-640")).checkpoints_activations
    name = "activation_checkpointing_enable"
    getattr(model, name if hasattr(model, name) else OLDER_NAMES["activation_checkpointing"] + "_enable")()
    again = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]
    assert len(again) == sum(PRESETS["giant-3b"].depths)


@pytest.mark.parametrize(
    ("name", "fields", "shapes"),
    [
        ("ade20k-giant-3b-w40-640", {}, {(3, 64, 64)}),
        # Two sizes of images, as they are: torchvision resizes them.
        ("coco-tiny-w16-800", {"min_size": [48, 64], "max_size": 96}, {(3, 48, 64), (3, 60, 50)}),
        ("coco-base-w32-1536", {"min_size": 64, "max_size": 64}, {(3, 64, 64)}),
    ],
)
@pytest.mark.usefixtures("registered")
def test_a_small_network_learns_by_its_settings(
    name: str, fields: dict[str, Any], shapes: set[tuple[int, ...]], tmp_path: Path
) -> None:
    """Augmentation, head, schedule and activation checkpointing work together."""
    task = DENSE[name].task
    data = (write_masks if task == "segmentation" else write_objects)(tmp_path / "data")
    head = SMALL_HEADS["upernet" if task == "segmentation" else "mask_rcnn"]
    flags = ["--config", str(find(name)), "--data", str(data), "--output-dir", str(tmp_path / "run")]
    flags += ["--model", str(write_checkpoint(tmp_path / "checkpoint")), "--head-fields", json.dumps(head | fields)]
    flags += ["--image-size", "64", "--window-size", "4", "--per-device-train-batch-size", "2", "--max-steps", "2"]
    flags += ["--gradient-accumulation-steps", "1", "--eval-strategy", "no", "--save-strategy", "no", "--use-cpu"]
    flags += ["--dataloader-num-workers", "0", "--report-to", "none", "--warmup-steps", "1"]
    settings = parse_settings(DenseSettings, flags, "finetune")
    trainer = make_dense_training(settings)
    examples = [trainer.train_dataset[SampleIndex(0, index)] for index in range(4)]  # type: ignore[index]
    assert {tuple(example["pixel_values"].shape) for example in examples} == shapes
    before = backbone_of(trainer.model).embeddings.patch_embeddings.projection.weight.detach().clone()
    trainer.train()
    assert math.isfinite(trainer.state.log_history[-1]["train_loss"])
    assert not torch.equal(before, backbone_of(trainer.model).embeddings.patch_embeddings.projection.weight)


@pytest.mark.parametrize(
    ("height", "width", "sides", "shape"),
    [
        (90, 120, (153, 153), (153, 153)),
        # Shorter side 60 and longest side at most 100, also if the image stands upright: factors 2/3 and 1/2.
        (90, 120, (60, 100), (60, 100)),
        (120, 90, (60, 100), (100, 60)),
        (60, 200, (60, 100), (60, 100)),
    ],
)
def test_a_random_size_changes_the_objects_that_a_detector_sees(
    height: int, width: int, sides: tuple[int, int], shape: tuple[int, int]
) -> None:
    """torchvision resizes an image to a shorter and a longest side. What has these sides already stays as it is, so
    that objects are 0.5 to 2 times as large as in evaluation."""
    augment = for_objects(sides, (0.5, 0.5, 0.5), (0.5, 2.0), flip=0.0, resizes_itself=True)
    at_one = min(sides[0] / min(height, width), sides[1] / max(height, width))
    middle = [width / 2 - 4.0, height / 2 - 4.0, width / 2 + 4.0, height / 2 + 4.0]
    factors: list[float] = []
    for seed in range(60):
        torch.manual_seed(seed)
        boxes: Any = tv_tensors.BoundingBoxes([middle], format="XYXY", canvas_size=(height, width))  # type: ignore[call-overload]
        image = tv_tensors.Image(torch.zeros(3, height, width, dtype=torch.uint8))
        changed = augment({"image": image, "boxes": boxes, "labels": torch.tensor([0])})
        assert changed["image"].shape == (3, *shape)
        left, top, right, bottom = changed["boxes"][0].tolist()
        is_whole = left > 0 and top > 0 and right < shape[1] and bottom < shape[0]
        if is_whole and len(without_empty_boxes(changed)["labels"]):
            factors.append((right - left) / 8 / at_one)
    assert len(factors) > 15
    assert 0.45 < min(factors) < 0.75
    assert 1.5 < max(factors) < 2.1


@each_video
@pytest.mark.usefixtures("eight_processes")
def test_the_settings_of_videos_are_the_authors(name: str) -> None:
    settings, published = parse(find(name)), VIDEO[name]
    assert isinstance(settings, VideoSettings)
    assert settings.whole_batch == published.batch
    stated = re.search(r"A step has (\d+) clips, on 8 devices: (\d+) x (\d+) x 8", " ".join(comment(find(name))))
    assert stated is not None
    assert [int(number) for number in stated.groups()] == [
        published.batch,
        settings.per_device_train_batch_size,
        settings.gradient_accumulation_steps,
    ]
    steps = published.epochs * (published.dataset // published.batch)
    warmup = settings.get_warmup_steps(steps)
    assert warmup == pytest.approx(published.warmup_epochs * (published.dataset // published.batch), abs=1)
    rate = curve_of(settings, steps)
    assert [rate(step) for step in (warmup, 0, steps)] == pytest.approx([published.rate, 0.0, 0.0], abs=1e-12)
    found = (
        settings.num_train_epochs, settings.weight_decay, settings.drop_path_rate, settings.backbone_rate,
        settings.classifier_dropout or 0.0, settings.flip, tuple(settings.rand_augment), settings.erase_probability,
        settings.label_smoothing_factor, settings.max_grad_norm,
    )  # fmt: skip
    assert found == (
        published.epochs, published.decay, published.drop_path, published.backbone_rate, published.dropout,
        published.flip, published.rand_augment, published.erase, published.smoothing, published.clip,
    )  # fmt: skip
    assert (settings.reverse, settings.color_jitter, settings.crop_scale) == (0.0, 0.0, [0.08, 1.0])
    assert (settings.adam_beta1, settings.adam_beta2, settings.dataloader_drop_last) == (0.9, 0.999, True)


@cache
def video_config_of(name: str) -> Swinv2VideoConfig:
    """The configuration of the model of videos that a recipe makes, built as `train.video.start` does."""
    settings: Any = parse(find(name))
    assert settings.model == VIDEO[name].start
    if settings.model in CHECKPOINTS or made_by(settings.model) not in VIDEO:
        is_published = settings.model in CHECKPOINTS
        fields = CHECKPOINTS[settings.model].config_fields() if is_published else {}
        images = Swinv2Config(**fields) if is_published else config_of(made_by(settings.model))
        images = images.resized(settings.image_size[0], settings.window_size)
        made = inflate_config(images, settings.num_frames, settings.tubelet_size, settings.window_frames)
    else:
        config = video_config_of(made_by(settings.model))
        size = settings.image_size[0] if settings.image_size else config.image_size
        windows = video_start._windows(settings, config)
        made = config.resized(size, windows, num_frames=settings.num_frames)
    if settings.frame_stride is not None:
        made.frame_stride = settings.frame_stride
    return made


@each_video
def test_the_network_of_videos_is_the_authors(name: str) -> None:
    config, published = video_config_of(name), VIDEO[name]
    size = PRESETS[next(size for size in PRESETS if f"-{size}-" in name)]
    assert (config.embed_dim, tuple(config.depths)) == (size.embed_dim, size.depths)
    assert (config.num_frames, config.image_size, config.frame_stride) == (
        published.frames,
        published.image,
        published.stride,
    )
    assert config.patch_lengths == (2, 4, 4)
    assert tuple(stage.window for stage in config.stages()) == published.windows
