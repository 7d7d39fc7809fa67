"""The preview of a training, for `--dry-run`.

In: a trainer, ready to run. Out: a preview of numbers and words, for people and for programs.
"""

import math
from typing import Any

import numpy as np

from swinv2.config import Swinv2Config
from swinv2.dense.backbone import backbone_of
from swinv2.errors import UsageError
from swinv2.train.data.dataset import ImageDataset
from swinv2.train.data.examples import StreamedExamples
from swinv2.train.data.masks.dataset import MaskDataset
from swinv2.train.data.objects.dataset import ObjectDataset
from swinv2.train.memory import count_parameters, training_memory
from swinv2.train.optim.muon import hidden_matrices, muon_groups
from swinv2.train.options import PAPER_BATCH
from swinv2.train.settings import RunSettings
from swinv2.train.trainer import SwinTrainer, groups_of
from swinv2.video.config import Swinv2VideoConfig


def estimate_memory(trainer: SwinTrainer) -> dict[str, float]:
    """For the preview: the memory of the training on each process, in MiB, without LoRA's own activations."""
    args: Any = trainer.args
    model = trainer.accelerator.unwrap_model(trainer.model)
    checkpointed = args.checkpoints_activations
    if trainer.is_fsdp_enabled:
        checkpointed = checkpointed or (args.fsdp_config or {}).get("activation_checkpointing", False)
    # AdamW has two numbers for each parameter, Muon one.
    matrices = hidden_matrices(model) if args.matrix_learning_rate else []
    with_muon = sum(matrix.numel() for matrix in matrices if matrix.requires_grad)
    return training_memory(
        model,
        args.train_batch_size,
        in_half=args.bf16 or args.fp16,
        checkpointed=bool(checkpointed),
        with_average=args.ema_decay > 0,
        moments=2 * count_parameters(model, learning=True) - with_muon,
        shards=args.world_size if trainer.is_fsdp_enabled else 0,
    )


def make_preview(trainer: SwinTrainer) -> dict[str, Any]:
    """The settings, data, model, parameter groups, steps, learning rate and memory of a training, as JSON values."""
    args, model = trainer.args, trainer.accelerator.unwrap_model(trainer.model)
    # The groups that the trainer will give its optimiser.
    groups = groups_of(args, model)
    if args.matrix_learning_rate:
        head = groups[-1]["layer"]
        groups = muon_groups(model, args.matrix_learning_rate, args.learning_rate, args.weight_decay)
        groups = [group | {"layer": head} for group in groups]
    train: Any = trainer.train_dataset
    streams = isinstance(train, StreamedExamples)
    steps = args.max_steps
    if not streams and steps <= 0:
        batches = len(trainer.get_train_dataloader())
        # The Trainer counts them in the same way.
        steps = math.ceil(-(-batches // args.gradient_accumulation_steps) * args.num_train_epochs)
    warmup = args.get_warmup_steps(steps)
    if warmup > steps:
        raise UsageError(f"the warm-up has {warmup} steps, the whole training {steps}; give fewer --warmup-steps.")
    evaluation: Any = getattr(trainer.eval_dataset, "dataset", trainer.eval_dataset)
    return describe_parts(args, train.dataset, evaluation, model) | {
        "groups": [
            {
                "layer": group["layer"],
                "learning_rate": group["lr"],
                "weight_decay": group["weight_decay"],
                "tensors": len(group["params"]),
                "parameters": sum(parameter.numel() for parameter in group["params"]),
                "names": group["names"],
            }
            for group in groups
        ],
        "steps": steps,
        "warmup_steps": warmup,
        "images_a_step": args.whole_batch,
        "learning_rate": args.learning_rate,
        "learning_rate_for_512_images": args.learning_rate * PAPER_BATCH / args.whole_batch,
        "memory_mib": {name: round(value, 1) for name, value in estimate_memory(trainer).items()},
    }


Data = ImageDataset | MaskDataset | ObjectDataset


def describe_parts(args: RunSettings, train: Data, evaluation: Data | None, model: Any) -> dict[str, Any]:
    """The part of a preview that all trainings have: settings, data and model, as JSON values."""
    chosen = args.chosen
    config = network_config(model)
    return {
        "things": train.things,
        "settings": {name: value for name, value in args.given.items() if name not in {"dry_run", "as_json", *chosen}},
        "chosen": {name: choice._asdict() for name, choice in chosen.items()},
        "data": {
            "source": train.source,
            "images": None if isinstance(train, ImageDataset) and train.streams else len(train),
            "classes": len(train.names) or None,
            "images_by_class": _images_by_class(train) if isinstance(train, ImageDataset) else None,
            "objects_by_class": dict(zip(train.names, train.counts().tolist(), strict=True))
            if isinstance(train, ObjectDataset)
            else None,
            "evaluated": None if evaluation is None else len(evaluation),
        },
        "model": {
            "parameters": count_parameters(model),
            "learning": count_parameters(model, learning=True),
            "image_size": config.image_size,
            **({"num_frames": config.num_frames} if isinstance(config, Swinv2VideoConfig) else {}),
            "windows": [list(stage.window) for stage in config.stages()],
            "pretrained_windows": [list(stage.pretrained_window) for stage in config.stages()],
        },
    }


def network_config(model: Any) -> Swinv2Config:
    """The configuration of the network in a model; of a segmenter or detector, that of its backbone."""
    is_plain = isinstance(model.config, Swinv2Config)
    return model.config if is_plain else backbone_of(model).config


def _images_by_class(train: ImageDataset) -> dict[str, int] | None:
    """The number of training images of each class; None if there are no classes, or if the images stream."""
    if train.streams or train.label_column is None:
        return None
    return dict(zip(train.names, np.bincount(train.labels(), minlength=len(train.names)).tolist(), strict=True))
