"""The preview of a training: plain numbers, and the right ones."""

import json
from typing import Any

import pytest
from torch import nn

from swinv2.train.finetune import make_finetuning
from swinv2.train.memory import MIB
from swinv2.train.pretrain import make_pretraining
from swinv2.train.preview import make_preview
from swinv2.train.settings import FinetuneSettings, PretrainSettings, parse_settings

MASKS = ("--mask_block", "4", "--norm_targets", "9", "--grid_images", "0")


def preview_of(flags: list[str], *more: str) -> tuple[dict[str, Any], nn.Module]:
    """The preview of a fine-tuning, as JSON gives it back, and the model."""
    trainer = make_finetuning(parse_settings(FinetuneSettings, [*flags, *more], "swinv2 finetune"))
    preview = make_preview(trainer)
    assert json.loads(json.dumps(preview)) == preview
    return preview, trainer.model


class TestPreview:
    def test_finetuning(self, flags: list[str]) -> None:
        preview, model = preview_of(flags, "--layer_decay", "0.5")
        # 36 images in batches of 8, three times.
        assert (preview["steps"], preview["warmup_steps"], preview["images_a_step"]) == (15, 2, 8)
        assert preview["learning_rate"] == 2e-3
        assert preview["learning_rate_for_512_images"] == pytest.approx(2e-3 * 64)
        assert (preview["data"]["images"], preview["data"]["classes"], preview["data"]["evaluated"]) == (36, 3, 15)
        assert preview["model"]["image_size"] == 32
        assert preview["model"]["windows"] == [[4, 4], [4, 4]]
        assert preview["model"]["pretrained_windows"] == [[0, 0], [0, 0]]
        total = sum(parameter.numel() for parameter in model.parameters())
        assert preview["model"]["parameters"] == preview["model"]["learning"] == total
        assert sum(group["parameters"] for group in preview["groups"]) == total
        assert sum(group["tensors"] for group in preview["groups"]) == len(list(model.parameters()))
        assert sorted(name for group in preview["groups"] for name in group["names"]) == sorted(
            name for name, _ in model.named_parameters()
        )
        # Three blocks; the patches are four layers below the head.
        rates = {group["layer"]: group["learning_rate"] for group in preview["groups"]}
        assert rates == pytest.approx({layer: 2e-3 * 0.5 ** (4 - layer) for layer in range(5)})
        assert {group["weight_decay"] for group in preview["groups"]} == {0.0, 0.05}
        assert preview["settings"]["layer_decay"] == 0.5
        assert "dry_run" not in preview["settings"]

    def test_pretraining(self, flags: list[str]) -> None:
        trainer = make_pretraining(parse_settings(PretrainSettings, [*flags, *MASKS], "swinv2 pretrain"))
        preview = make_preview(trainer)
        assert json.loads(json.dumps(preview)) == preview
        assert preview["data"]["classes"] is None
        assert preview["memory_mib"]["activations"] > 0
        names = [name for group in preview["groups"] if not group["weight_decay"] for name in group["names"]]
        assert "swinv2.embeddings.mask_token" in names

    def test_frozen_stages(self, flags: list[str]) -> None:
        preview, model = preview_of(flags, "--frozen_stages", "2")
        learning = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        assert 0 < learning < preview["model"]["parameters"]
        assert preview["model"]["learning"] == sum(group["parameters"] for group in preview["groups"]) == learning

    def test_muon(self, flags: list[str]) -> None:
        """What it says is what the optimiser gets."""
        given = ["--matrix_learning_rate", "5e-3", "--ema_decay", "0.9"]
        trainer = make_finetuning(parse_settings(FinetuneSettings, [*flags, *given], "swinv2 finetune"))
        preview, optimizer = make_preview(trainer), trainer.create_optimizer()
        expected = [
            (group["lr"], group["weight_decay"], sum(parameter.numel() for parameter in group["params"]))
            for group in optimizer.param_groups
        ]
        keys = ("learning_rate", "weight_decay", "parameters")
        assert [tuple(group[key] for key in keys) for group in preview["groups"]] == expected
        assert [group["learning_rate"] for group in preview["groups"]] == [5e-3, 2e-3]
        # Muon keeps one number of each entry of a matrix, AdamW two.
        numbers = expected[0][2] + 2 * expected[1][2]
        assert preview["memory_mib"]["optimizer"] == pytest.approx(numbers * 4 / MIB, abs=0.051)
        assert preview["memory_mib"]["average"] == preview["memory_mib"]["weights"] > 0

    @pytest.mark.parametrize(
        ("more", "steps", "images"),
        [
            # 5 batches an epoch.
            (["--num_train_epochs", "2.5"], 13, 8),
            (["--gradient_accumulation_steps", "2"], 9, 16),
            (["--max_steps", "7"], 7, 8),
            (["--dataloader_drop_last", "true"], 12, 8),
            (["--train_fraction", "0.5"], 9, 8),
        ],
        ids=str,
    )
    def test_steps_as_the_trainer_counts_them(self, flags: list[str], more: list[str], steps: int, images: int) -> None:
        settings = parse_settings(FinetuneSettings, [*flags, *more], "swinv2 finetune")
        trainer = make_finetuning(settings)
        preview = make_preview(trainer)
        assert (preview["steps"], preview["images_a_step"]) == (steps, images)
        counted = trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())
        assert steps in counted

    # peft asks transformers by an old name.
    @pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
    def test_lora(self, flags: list[str]) -> None:
        preview, _ = preview_of(flags, "--lora", "true")
        assert preview["model"]["learning"] == sum(group["parameters"] for group in preview["groups"])
        assert preview["model"]["learning"] < preview["model"]["parameters"] / 2
        assert preview["memory_mib"]["activations"] > 0


class TestMemory:
    def test_the_state(self, flags: list[str]) -> None:
        preview, model = preview_of(flags)
        weights = sum(parameter.numel() for parameter in model.parameters()) * 4 / MIB
        memory = preview["memory_mib"]
        assert memory["weights"] == memory["gradients"] == pytest.approx(weights, abs=0.051)
        assert memory["optimizer"] == pytest.approx(2 * weights, abs=0.051)
        assert memory["average"] == 0

    def test_activations_grow_with_the_batch(self, flags: list[str]) -> None:
        one, two = (
            preview_of(flags, "--per_device_train_batch_size", size)[0]["memory_mib"]["activations"]
            for size in ("8", "16")
        )
        assert one > 0
        assert two == pytest.approx(2 * one, abs=0.11)
