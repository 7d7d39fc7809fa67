"""The plan of a training: plain numbers, and the right ones."""

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import swinv2
from swinv2.train.finetune import make_finetuning
from swinv2.train.memory import MIB, Training, activations_of_an_image, saved_bytes, training_memory, ways_to_train
from swinv2.train.plan import make_plan
from swinv2.train.pretrain import make_pretraining
from swinv2.train.settings import FinetuneSettings, PretrainSettings, parse_settings

MASKS = ("--mask_block", "4", "--norm_targets", "9", "--grid_images", "0")


def plan_of(flags: list[str], *more: str) -> tuple[dict[str, Any], nn.Module]:
    """The plan of a fine-tuning, as JSON gives it back, and the model."""
    trainer = make_finetuning(parse_settings(FinetuneSettings, [*flags, *more], "swinv2 finetune"))
    plan = make_plan(trainer)
    assert json.loads(json.dumps(plan)) == plan
    return plan, trainer.model


class TestPlan:
    def test_finetuning(self, flags: list[str]) -> None:
        plan, model = plan_of(flags, "--layer_decay", "0.5")
        # 36 pictures in batches of 8, three times.
        assert (plan["steps"], plan["warmup_steps"], plan["images_a_step"]) == (15, 2, 8)
        assert plan["learning_rate"] == 2e-3
        assert plan["learning_rate_for_512_images"] == pytest.approx(2e-3 * 64)
        assert (plan["data"]["pictures"], plan["data"]["classes"], plan["data"]["evaluated"]) == (36, 3, 15)
        assert plan["model"]["image_size"] == 32
        assert plan["model"]["windows"] == [[4, 4], [4, 4]]
        assert plan["model"]["pretrained_windows"] == [[0, 0], [0, 0]]
        total = sum(parameter.numel() for parameter in model.parameters())
        assert plan["model"]["parameters"] == plan["model"]["learning"] == total
        assert sum(group["parameters"] for group in plan["groups"]) == total
        assert sum(group["tensors"] for group in plan["groups"]) == len(list(model.parameters()))
        assert sorted(name for group in plan["groups"] for name in group["names"]) == sorted(
            name for name, _ in model.named_parameters()
        )
        # Three blocks; the patches are four layers below the head.
        rates = {group["layer"]: group["learning_rate"] for group in plan["groups"]}
        assert rates == pytest.approx({layer: 2e-3 * 0.5 ** (4 - layer) for layer in range(5)})
        assert {group["weight_decay"] for group in plan["groups"]} == {0.0, 0.05}
        assert plan["settings"]["layer_decay"] == 0.5
        assert "dry_run" not in plan["settings"]

    def test_pretraining(self, flags: list[str]) -> None:
        trainer = make_pretraining(parse_settings(PretrainSettings, [*flags, *MASKS], "swinv2 pretrain"))
        plan = make_plan(trainer)
        assert json.loads(json.dumps(plan)) == plan
        assert plan["data"]["classes"] is None
        assert plan["memory_mib"]["activations"] > 0
        names = [name for group in plan["groups"] if not group["weight_decay"] for name in group["names"]]
        assert "swinv2.embeddings.mask_token" in names

    def test_frozen_stages(self, flags: list[str]) -> None:
        plan, model = plan_of(flags, "--frozen_stages", "2")
        learning = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        assert 0 < learning < plan["model"]["parameters"]
        assert plan["model"]["learning"] == sum(group["parameters"] for group in plan["groups"]) == learning

    def test_muon(self, flags: list[str]) -> None:
        """What it says is what the optimiser gets."""
        given = ["--matrix_learning_rate", "5e-3", "--ema_decay", "0.9"]
        trainer = make_finetuning(parse_settings(FinetuneSettings, [*flags, *given], "swinv2 finetune"))
        plan, optimizer = make_plan(trainer), trainer.create_optimizer()
        expected = [
            (group["lr"], group["weight_decay"], sum(parameter.numel() for parameter in group["params"]))
            for group in optimizer.param_groups
        ]
        keys = ("learning_rate", "weight_decay", "parameters")
        assert [tuple(group[key] for key in keys) for group in plan["groups"]] == expected
        assert [group["learning_rate"] for group in plan["groups"]] == [5e-3, 2e-3]
        # Muon keeps one number of each entry of a matrix, AdamW two.
        numbers = expected[0][2] + 2 * expected[1][2]
        assert plan["memory_mib"]["optimizer"] == pytest.approx(numbers * 4 / MIB, abs=0.051)
        assert plan["memory_mib"]["average"] == plan["memory_mib"]["weights"] > 0

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
        plan = make_plan(trainer)
        assert (plan["steps"], plan["images_a_step"]) == (steps, images)
        counted = trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())
        assert steps in counted

    # peft asks transformers by an old name.
    @pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
    def test_lora(self, flags: list[str]) -> None:
        plan, _ = plan_of(flags, "--lora", "true")
        assert plan["model"]["learning"] == sum(group["parameters"] for group in plan["groups"])
        assert plan["model"]["learning"] < plan["model"]["parameters"] / 2
        assert plan["memory_mib"]["activations"] > 0


class TestMemory:
    def test_the_state(self, flags: list[str]) -> None:
        plan, model = plan_of(flags)
        weights = sum(parameter.numel() for parameter in model.parameters()) * 4 / MIB
        memory = plan["memory_mib"]
        assert memory["weights"] == memory["gradients"] == pytest.approx(weights, abs=0.051)
        assert memory["optimizer"] == pytest.approx(2 * weights, abs=0.051)
        assert memory["average"] == 0

    def test_activations_grow_with_the_batch(self, flags: list[str]) -> None:
        one, two = (
            plan_of(flags, "--per_device_train_batch_size", size)[0]["memory_mib"]["activations"]
            for size in ("8", "16")
        )
        assert one > 0
        assert two == pytest.approx(2 * one, abs=0.11)

    @pytest.mark.parametrize("device", ["cpu", "meta"])
    def test_what_is_kept_is_counted_once(self, device: str) -> None:
        """The images for the first layer; its output, after ReLU, for ReLU itself and two layers more."""

        class Forked(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first, self.left, self.right = nn.Linear(4, 8), nn.Linear(8, 2), nn.Linear(8, 3)

            def forward(self, images: Tensor) -> Any:
                hidden = self.first(images).relu()
                return {"logits": torch.cat([self.left(hidden), self.right(hidden)], 1)}

        model = Forked().to(device)
        assert saved_bytes(model, {"images": torch.zeros(5, 4, device=device)}) == 4 * (5 * 4 + 5 * 8)

    @pytest.mark.parametrize("precision", [False, True])
    def test_checkpointing_keeps_maps_and_one_block(self, precision: bool) -> None:
        """By hand: three stages, 16 x 16, 8 x 8 and 4 x 4 tokens of 16, 32 and 64 channels."""
        config = swinv2.Swinv2Config(
            image_size=32, patch_size=2, window_size=4, embed_dim=16, depths=[2, 3, 1], num_heads=[1, 2, 4]
        )
        with torch.device("meta"):
            model = swinv2.Swinv2ForImageClassification(config)
        all_kept, some_kept = (
            training_memory(model, Training(4, in_half=precision, checkpointed=checkpointed))["activations"]
            for checkpointed in (False, True)
        )
        maps = 2 * 256 * 16 + 3 * 64 * 32 + 16 * 64
        width = 2 if precision else 4
        # Inside a block of the first stage: more than its map; the patches and merges outside, less than all of it.
        assert (maps + 256 * 16 * 8) * 4 * width / MIB < some_kept < 0.6 * all_kept

    @pytest.mark.parametrize("period", [0, pytest.param(4, marks=pytest.mark.slow)])
    def test_a_checkpointed_block_costs_its_input(self, period: int) -> None:
        """Extra norms or not: one block is computed again at a time, whichever of them is the largest."""
        kept = {}
        for depth in (4, 7, 12):
            config = swinv2.Swinv2Config(
                image_size=32,
                patch_size=2,
                window_size=4,
                embed_dim=16,
                num_heads=[1],
                depths=[depth],
                extra_norm_period=period,
            )
            with torch.device("meta"):
                model = swinv2.Swinv2Model(config)
            kept[depth] = activations_of_an_image(model, checkpointed=True)
        assert kept[7] - kept[4] == 3 * 256 * 16
        assert kept[12] - kept[7] == 5 * 256 * 16

    def test_the_fused_form_keeps_no_weights_of_attention(self) -> None:
        """So it takes as much at every window; the plain form has T x T weights for each head and window."""
        found = {}
        for window in (4, 16):
            config = swinv2.Swinv2Config(
                image_size=32, patch_size=2, window_size=window, embed_dim=16, depths=[2], num_heads=[2]
            )
            model = swinv2.Swinv2ForImageClassification(config)
            found[window] = [activations_of_an_image(model, False, fused) for fused in (True, False)]
        assert found[4][0] == pytest.approx(found[16][0], rel=0.01)
        assert found[16][1] - found[16][0] > 2 * 2 * 256 * 256

    def test_ways_to_train(self) -> None:
        """Two of each form; what a process has in all is the sum of what it has."""
        config = swinv2.Swinv2Config(
            image_size=32, patch_size=2, window_size=4, embed_dim=16, depths=[2], num_heads=[1]
        )
        with torch.device("meta"):
            model = swinv2.Swinv2Model(config)
        ways = ways_to_train(model, batch_size=3, processes=2)
        assert [(way["attention"], way["checkpointed"]) for way in ways] == [
            (kind, checkpointed) for kind in ("fused", "plain") for checkpointed in (False, True)
        ]
        for way in ways:
            parts = [value for name, value in way.items() if name not in ("attention", "checkpointed", "all")]
            assert way["all"] == pytest.approx(sum(parts), abs=0.5)
            assert "gathered" in way
            training = Training(3, checkpointed=way["checkpointed"], shards=2, fused=way["attention"] == "fused")
            assert way["activations"] == round(training_memory(model, training)["activations"], 1)
        assert ways[0]["activations"] < ways[2]["activations"]

    def test_shards(self) -> None:
        config = swinv2.Swinv2Config(
            image_size=32, patch_size=2, window_size=4, embed_dim=16, depths=[2, 2], num_heads=[1, 2]
        )
        with torch.device("meta"):
            model = swinv2.Swinv2ForImageClassification(config)
        alone, shared = (training_memory(model, Training(4, shards=shards)) for shards in (0, 8))
        for name in ("weights", "gradients", "optimizer"):
            assert shared[name] == pytest.approx(alone[name] / 8)
        assert shared["activations"] == alone["activations"]
        assert "gathered" not in alone
        block = sum(parameter.numel() for parameter in model.swinv2.encoder.layers[1].blocks[0].parameters())
        assert shared["gathered"] > 3 * block * 2 / MIB
