"""Who learns how fast and what decays, against a table written by hand from the authors' rules."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import peers
from swinv2 import Swinv2Config, Swinv2ForImageClassification, Swinv2ForMaskedImageModeling
from swinv2.errors import UsageError
from swinv2.train.optim.groups import freeze_stages, parameter_groups, parameter_roles

FIELDS = {"image_size": 16, "patch_size": 2, "window_size": 2, "embed_dim": 8, "depths": [2, 1], "num_heads": [1, 2]}

BLOCK = {
    "attention.self.logit_scale": False,
    "attention.self.continuous_position_bias_mlp.0.weight": False,
    "attention.self.continuous_position_bias_mlp.0.bias": False,
    "attention.self.continuous_position_bias_mlp.2.weight": False,
    "attention.self.query.weight": True,
    "attention.self.query.bias": False,
    "attention.self.key.weight": True,
    "attention.self.value.weight": True,
    "attention.self.value.bias": False,
    "attention.output.dense.weight": True,
    "attention.output.dense.bias": False,
    "layernorm_before.weight": False,
    "layernorm_before.bias": False,
    "intermediate.dense.weight": True,
    "intermediate.dense.bias": False,
    "output.dense.weight": True,
    "output.dense.bias": False,
    "layernorm_after.weight": False,
    "layernorm_after.bias": False,
}

# The name behind "swinv2.", the layer, and whether it decays: blocks 0, 1 | 2, so layers 1, 2 | 3, and 4 at the end.
ENCODER = {
    "embeddings.patch_embeddings.projection.weight": (0, True),
    "embeddings.patch_embeddings.projection.bias": (0, False),
    "embeddings.norm.weight": (0, False),
    "embeddings.norm.bias": (0, False),
    **{f"encoder.layers.0.blocks.0.{name}": (1, decays) for name, decays in BLOCK.items()},
    **{f"encoder.layers.0.blocks.1.{name}": (2, decays) for name, decays in BLOCK.items()},
    "encoder.layers.0.downsample.reduction.weight": (2, True),
    "encoder.layers.0.downsample.norm.weight": (2, False),
    "encoder.layers.0.downsample.norm.bias": (2, False),
    **{f"encoder.layers.1.blocks.0.{name}": (3, decays) for name, decays in BLOCK.items()},
    "layernorm.weight": (4, False),
    "layernorm.bias": (4, False),
}
MASKED = {
    **{f"swinv2.{name}": role for name, role in ENCODER.items()},
    "swinv2.embeddings.mask_token": (0, False),
    # Not the authors': their function of layers forgets it, and it would learn as fast as the head.
    "swinv2.embeddings.position_embeddings": (0, False),
    "decoder.0.weight": (4, True),
    "decoder.0.bias": (4, False),
}
CLASSIFIER = {
    **{f"swinv2.{name}": role for name, role in ENCODER.items()},
    "swinv2.encoder.layers.0.blocks.1.layernorm_extra.weight": (2, False),
    "swinv2.encoder.layers.0.blocks.1.layernorm_extra.bias": (2, False),
    "classifier.weight": (4, True),
    "classifier.bias": (4, False),
}


def masked() -> nn.Module:
    return Swinv2ForMaskedImageModeling(Swinv2Config(**FIELDS, encoder_stride=4, use_absolute_embeddings=True))


def classifier() -> Swinv2ForImageClassification:
    return Swinv2ForImageClassification(Swinv2Config(**FIELDS, extra_norm_period=2, num_labels=3))


CASES = pytest.mark.parametrize(("make", "table"), [(masked, MASKED), (classifier, CLASSIFIER)])


class TestGroups:
    @CASES
    def test_the_table(self, make, table) -> None:
        roles = parameter_roles(make())
        assert {name: (role.layer, role.decays) for name, role in roles.items()} == table

    @CASES
    def test_rates_and_decays(self, make, table) -> None:
        model = make()
        groups = parameter_groups(model, 2e-3, 0.05, layer_decay=0.75)
        found = {name: (group["lr"], group["weight_decay"]) for group in groups for name in group["names"]}
        # n - 1 - id, with n of the three blocks and two more.
        expected = {
            name: (pytest.approx(2e-3 * 0.75 ** (5 - 1 - layer)), 0.05 if decays else 0.0)
            for name, (layer, decays) in table.items()
        }
        assert found == expected
        assert [group["layer"] for group in groups] == sorted(group["layer"] for group in groups)

    def test_each_parameter_under_its_own_name_and_once(self) -> None:
        model = masked()
        by_name = dict(model.named_parameters())
        groups = parameter_groups(model, 1e-3, 0.05, 0.9)
        for group in groups:
            assert len(group["names"]) == len(group["params"])
            for name, parameter in zip(group["names"], group["params"], strict=True):
                assert by_name.pop(name) is parameter
        assert not by_name

    def test_two_groups_without_layer_decay(self) -> None:
        groups = parameter_groups(masked(), 1e-3, 0.05)
        assert [(group["lr"], group["weight_decay"]) for group in groups] == [(1e-3, 0.0), (1e-3, 0.05)]
        assert set(groups[1]["names"]) == {name for name, (_, decays) in MASKED.items() if decays}

    def test_the_backbone_alone_learns_at_a_share_of_the_rate(self) -> None:
        groups = parameter_groups(classifier(), 2e-3, 0.05, backbone_rate=0.1)
        found = {name: (group["lr"], group["weight_decay"]) for group in groups for name in group["names"]}
        expected = {
            name: (pytest.approx(2e-3 if layer == 4 else 2e-4, rel=1e-12), 0.05 if decays else 0.0)
            for name, (layer, decays) in CLASSIFIER.items()
        }
        assert found == expected
        # The norm before the classifier learns like it, the last block does not.
        rates = {name: rate for name, (rate, _) in found.items()}
        assert rates["swinv2.layernorm.weight"] == rates["classifier.weight"] == 2e-3
        assert rates["swinv2.encoder.layers.1.blocks.0.output.dense.weight"] == pytest.approx(2e-4, rel=1e-12)

    def test_the_share_of_the_backbone_multiplies_the_layer_decay(self) -> None:
        groups = parameter_groups(masked(), 2e-3, 0.05, layer_decay=0.5, backbone_rate=0.1)
        # 2e-3 / 16 / 10 for the patches, then twice as much in each block; the head at 2e-3.
        expected = {0: 1.25e-5, 1: 2.5e-5, 2: 5e-5, 3: 1e-4, 4: 2e-3}
        assert {group["layer"]: group["lr"] for group in groups} == pytest.approx(expected, rel=1e-12)
        assert {group["weight_decay"] for group in groups} == {0.0, 0.05}
        assert sorted(name for group in groups for name in group["names"]) == sorted(MASKED)

    @pytest.mark.parametrize("backbone_rate", [0.0, -0.1, float("nan")])
    def test_a_share_of_the_backbone_that_is_none(self, backbone_rate: float) -> None:
        with pytest.raises(UsageError, match=r"backbone_rate is .*; expected a factor above 0"):
            parameter_groups(classifier(), 1e-3, 0.05, 1.0, backbone_rate)

    def test_a_step_without_gradients_shrinks_what_decays_and_nothing_else(self) -> None:
        model = peers.draw_weights(masked())
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        optimizer = torch.optim.AdamW(parameter_groups(model, 0.1, 0.5, layer_decay=0.5))
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        for name, parameter in model.named_parameters():
            layer, decays = MASKED[name]
            factor = 1 - 0.1 * 0.5 ** (4 - layer) * 0.5 if decays else 1.0
            torch.testing.assert_close(parameter.detach(), before[name] * factor, msg=name)
            assert decays or torch.equal(parameter, before[name]), name

    # peft asks transformers by an old name.
    @pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
    def test_lora(self) -> None:
        adapters = LoraConfig(r=2, target_modules=["query", "value"], modules_to_save=["classifier"])
        model = get_peft_model(classifier(), adapters)  # type: ignore[arg-type]
        groups = parameter_groups(model, 1e-3, 0.05, 0.5)
        found = {name: (group["layer"], group["weight_decay"]) for group in groups for name in group["names"]}
        start = "base_model.model."
        expected = {
            f"{start}classifier.modules_to_save.default.weight": (4, 0.05),
            f"{start}classifier.modules_to_save.default.bias": (4, 0.0),
        }
        for stage, block, layer in ((0, 0, 1), (0, 1, 2), (1, 0, 3)):
            for part in ("query.lora_A", "query.lora_B", "value.lora_A", "value.lora_B"):
                name = f"swinv2.encoder.layers.{stage}.blocks.{block}.attention.self.{part}.default.weight"
                expected[f"{start}{name}"] = (layer, 0.05)
        assert found == expected

    @pytest.mark.parametrize("layer_decay", [0.0, -0.5, 1.1, float("nan")])
    def test_a_layer_decay_that_is_none(self, layer_decay: float) -> None:
        with pytest.raises(UsageError, match="layer_decay is"):
            parameter_groups(classifier(), 1e-3, 0.05, layer_decay)

    def test_nothing_learns(self) -> None:
        with pytest.raises(UsageError, match="nothing learns"):
            parameter_groups(classifier().requires_grad_(False), 1e-3, 0.05)

    @pytest.mark.parametrize("count", [0, 2])
    def test_no_network_of_this_package_or_two(self, count: int) -> None:
        model = nn.Sequential(nn.Linear(2, 2), *(classifier() for _ in range(count)))
        with pytest.raises(ValueError, match=f"has {count} modules"):
            parameter_roles(model)


class TestFreezing:
    @pytest.mark.parametrize(
        ("count", "frozen"),
        [
            (0, ()),
            (1, ("swinv2.embeddings.",)),
            (2, ("swinv2.embeddings.", "swinv2.encoder.layers.0.")),
            (3, ("swinv2.embeddings.", "swinv2.encoder.layers.0.", "swinv2.encoder.layers.1.")),
        ],
    )
    def test_the_first_stages(self, count: int, frozen: tuple[str, ...]) -> None:
        model = classifier()
        freeze_stages(model, count)
        learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert learning == {name for name in CLASSIFIER if not name.startswith(frozen)}
        grouped = {name for group in parameter_groups(model, 1e-3, 0.05, 0.5) for name in group["names"]}
        assert grouped == learning

    def test_the_rate_of_the_head_does_not_depend_on_it(self) -> None:
        model = classifier()
        freeze_stages(model, 3)
        assert {group["lr"] for group in parameter_groups(model, 1e-3, 0.05, 0.5)} == {1e-3}

    @pytest.mark.parametrize("count", [-1, 4])
    def test_stages_that_there_are_not(self, count: int) -> None:
        with pytest.raises(UsageError, match="expected 0 to 3"):
            freeze_stages(classifier(), count)
