"""What a training would do, before it does it.

In: a trainer that is ready. Out: a plan of plain numbers and words, for people and for programs.
"""

from typing import Any

import torch
from torch import Tensor, nn

from swinv2.config import as_pair
from swinv2.train.examples import StreamedExamples
from swinv2.train.groups import parameter_groups
from swinv2.train.settings import PAPER_BATCH
from swinv2.train.trainer import SwinTrainer

MIB = 2**20


def saved_bytes(model: nn.Module, inputs: dict[str, Tensor]) -> int:
    """Bytes that a forward pass keeps for the backward pass, weights left out; nothing is computed."""
    weights = {id(parameter) for parameter in model.parameters()}
    total = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal total
        base: Any = tensor if tensor._base is None else tensor._base
        if id(base) not in weights:
            total += tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        outputs = model(**inputs)
        (outputs.logits if hasattr(outputs, "logits") else outputs.reconstruction).sum()
    return total


def estimate_memory(trainer: SwinTrainer) -> dict[str, float]:
    """Estimates what training takes on each process without sharding, in MiB: the state exactly, activations as torch's
    plain operations would keep them, an upper bound where fused forms run."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    learning = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    total = sum(parameter.numel() for parameter in model.parameters())
    config: Any = model.config
    size = as_pair("image_size", config.image_size)
    twin = type(model)(config) if not hasattr(model, "peft_config") else None
    per_image = 0.0
    if twin is not None:
        twin = twin.to("meta").train()
        kept = []
        for count in (1, 2):
            inputs = {"pixel_values": torch.empty(count, config.num_channels, *size, device="meta")}
            if "bool_masked_pos" in (trainer.label_names or []):
                patches = config.patch_grid[0] * config.patch_grid[1]
                inputs["bool_masked_pos"] = torch.zeros(count, patches, dtype=torch.bool, device="meta")
            kept.append(saved_bytes(twin, inputs))
        per_image = kept[1] - kept[0]
    half = 0.5 if trainer.args.bf16 or trainer.args.fp16 else 1.0
    return {
        "weights": total * 4 / MIB,
        "gradients": learning * 4 / MIB,
        "optimizer": learning * 8 / MIB,
        "activations": per_image * half * trainer.args.train_batch_size / MIB,
    }


def make_plan(trainer: SwinTrainer) -> dict[str, Any]:
    """Says what a training would do.

    Returns:
        Settings, data, model, parameter groups, steps, learning rate and memory, fit for JSON.
    """
    args, model = trainer.args, trainer.accelerator.unwrap_model(trainer.model)
    groups = parameter_groups(model, args.learning_rate, args.weight_decay, args.layer_decay)
    train: Any = trainer.train_dataset
    streams = isinstance(train, StreamedExamples)
    steps = args.max_steps
    if not streams and steps <= 0:
        batches = len(trainer.get_train_dataloader())
        steps = round(-(-batches // args.gradient_accumulation_steps) * args.num_train_epochs)
    evaluation: Any = trainer.eval_dataset
    config: Any = model.config
    return {
        "settings": {name: value for name, value in args.given.items() if name not in ("dry_run", "as_json")},
        "data": {
            "place": train.pictures.place,
            "pictures": None if streams else len(train),
            "classes": len(train.pictures.names) or None,
            "evaluated": None if evaluation is None else len(evaluation),
        },
        "model": {
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "learning": sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
            "image_size": config.image_size,
            "windows": [list(stage.window) for stage in config.stages()],
            "pretrained_windows": [list(stage.pretrained_window) for stage in config.stages()],
        },
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
        "warmup_steps": args.get_warmup_steps(steps),
        "images_a_step": args.whole_batch,
        "learning_rate": args.learning_rate,
        "learning_rate_for_512_images": args.learning_rate * PAPER_BATCH / args.whole_batch,
        "memory_mib": {name: round(value, 1) for name, value in estimate_memory(trainer).items()},
    }
