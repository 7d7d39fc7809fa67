"""What must hold for the network whatever its weights: truths that other implementations have broken."""

import copy
import math
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

import peers
from swinv2 import (
    Swinv2Backbone,
    Swinv2Config,
    Swinv2ForImageClassification,
    Swinv2ForMaskedImageModeling,
    Swinv2Model,
)
from swinv2.heads import classification_loss
from swinv2.layers.attention import CosineWindowAttention, WindowGeometry
from swinv2.layers.block import DropPath, SwinTransformerBlock
from swinv2.layers.position import ContinuousPositionBias
from swinv2.layers.stage import Encoder
from swinv2.ops import backends
from swinv2.ops.coordinates import relative_coordinates
from swinv2.ops.triton import launch, residual

FORMS = ("eager", "sdpa")
SMALL = {
    "image_size": 64,
    "embed_dim": 24,
    "depths": [2, 2],
    "num_heads": [1, 2],
    "window_size": 4,
    "encoder_stride": 8,
    "num_labels": 5,
}


TASKS = [Swinv2ForImageClassification, Swinv2ForMaskedImageModeling, Swinv2Backbone]


def build(model_class: type = Swinv2ForImageClassification, **fields: Any) -> Any:
    """A small network with drawn weights."""
    return peers.draw_weights(model_class(Swinv2Config(**{**SMALL, **fields})).eval())


def switch_checkpointing(model: nn.Module, state: str, *arguments: Any, **options: Any) -> None:
    """Renamed between the supported versions of transformers."""
    name = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    getattr(model, f"{name}_checkpointing_{state}")(*arguments, **options)


def blocks(model: nn.Module) -> list[SwinTransformerBlock]:
    """All blocks in order."""
    return [module for module in model.modules() if isinstance(module, SwinTransformerBlock)]


def encoder(model: nn.Module) -> Encoder:
    """The part that plans windows."""
    return next(module for module in model.modules() if isinstance(module, Encoder))


class TestFreshWeights:
    """Initialisation as the authors' code has it."""

    def test_a_fresh_block_is_the_identity(self) -> None:
        """Both post-norms start at zero, weight and bias, so that every branch adds exactly nothing."""
        model = Swinv2Model(Swinv2Config(**SMALL)).eval()
        for block in blocks(model):
            for norm in (block.layernorm_before, block.layernorm_after):
                assert not norm.weight.any()
                assert not norm.bias.any()
            x = torch.randn(2, 8, 8, block.layernorm_before.normalized_shape[0])
            for backend in FORMS:
                assert torch.equal(block(x, backend), x)

    def test_extra_norms_start_at_one(self) -> None:
        """On the main branch a norm of zero would cut the network in two."""
        model = Swinv2Model(Swinv2Config(**{**SMALL, "depths": [2, 4]}, extra_norm_period=2)).eval()
        extra = [block.layernorm_extra for block in blocks(model) if isinstance(block.layernorm_extra, nn.LayerNorm)]
        assert len(extra) == 3
        for norm in extra:
            assert (norm.weight == 1).all()
            assert not norm.bias.any()
        block = blocks(model)[1]
        x = torch.randn(2, 8, 8, 24)
        assert torch.equal(block(x, "eager"), nn.functional.layer_norm(x, (24,), eps=1e-5))

    def test_everything_else(self) -> None:
        """The table in `Swinv2PreTrainedModel`, tensor by tensor."""
        torch.manual_seed(0)
        fields = {**SMALL, "embed_dim": 96, "use_absolute_embeddings": True, "initializer_range": 0.05}
        model = Swinv2ForMaskedImageModeling(Swinv2Config(**fields))
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear):
                assert module.weight.std().item() == pytest.approx(0.05, rel=0.1), name
                assert module.bias is None or not module.bias.any(), name
            elif isinstance(module, nn.LayerNorm) and not name.endswith(("layernorm_before", "layernorm_after")):
                assert (module.weight == 1).all(), name
                assert not module.bias.any(), name
            elif isinstance(module, nn.Conv2d):
                bound = 1 / math.prod(module.weight.shape[1:]) ** 0.5
                assert module.weight.abs().max() <= bound, name
                assert module.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.1), name
                assert 0 < module.bias.abs().max() <= bound, name
            elif isinstance(module, CosineWindowAttention):
                torch.testing.assert_close(module.logit_scale.exp(), torch.full_like(module.logit_scale, 10.0))
        embeddings = model.swinv2.embeddings
        assert embeddings.mask_token.std().item() == pytest.approx(0.05, rel=0.3)
        assert embeddings.position_embeddings.std().item() == pytest.approx(0.05, rel=0.1)


class TestAnySize:
    """Every height and width, in every backend and task."""

    @pytest.mark.parametrize("backend", FORMS)
    @pytest.mark.parametrize("size", [(1, 1), (1, 50), (3, 7), (31, 33), (64, 64), (65, 40), (9, 130)], ids=str)
    def test_masked_image_modeling(self, size: tuple[int, int], backend: str) -> None:
        """The reconstruction has the image's size, and the loss looks at masked pixels only, at all of them."""
        model = build(Swinv2ForMaskedImageModeling, attn_implementation=backend)
        grid = (math.ceil(size[0] / 4), math.ceil(size[1] / 4))
        images = peers.images(size)
        masked = torch.rand(2, *grid, generator=torch.Generator().manual_seed(0)) < 0.5
        masked[:, 0, 0] = True
        outputs = model(images, bool_masked_pos=masked.flatten(1))
        assert outputs.reconstruction.shape == images.shape
        errors = (outputs.reconstruction - images).abs().mean(dim=1)
        pixels = torch.tensor(
            [[[bool(masked[b, y // 4, x // 4]) for x in range(size[1])] for y in range(size[0])] for b in range(2)]
        )
        torch.testing.assert_close(outputs.loss, errors[pixels].mean(), rtol=1e-4, atol=0)
        outputs.loss.backward()
        assert all(gradient.isfinite().all() for gradient in peers.gradients(model).values())

    def test_what_is_masked_does_not_show(self) -> None:
        """A masked patch's pixels have no influence on the reconstruction."""
        model = build(Swinv2ForMaskedImageModeling)
        images = peers.images((40, 56))
        masked = torch.zeros(2, 10, 14, dtype=torch.bool)
        masked[:, 3:6, 4:9] = True
        changed = images.clone()
        changed[:, :, 12:24, 16:36] += 1
        with torch.no_grad():
            before, after = (model(x, bool_masked_pos=masked.flatten(1)).reconstruction for x in (images, changed))
            assert torch.equal(before, after)
            assert not torch.equal(model(images).reconstruction, model(changed).reconstruction)

    def test_rectangular_patches(self) -> None:
        """Patches and images may be rectangles, height first."""
        fields = {"image_size": (32, 64), "patch_size": (2, 4), "encoder_stride": (4, 8)}
        model = build(Swinv2ForMaskedImageModeling, **fields)
        outputs = model(peers.images((30, 70)), output_hidden_states=True)
        assert outputs.reshaped_hidden_states[0].shape == (2, 24, 15, 18)
        assert outputs.reshaped_hidden_states[1].shape == (2, 48, 8, 9)
        assert outputs.reconstruction.shape == (2, 3, 30, 70)

    def test_every_token_draws_its_own_patch(self) -> None:
        """The decoder puts a token's pixels where the token lies, rows before columns."""
        model = build(Swinv2ForMaskedImageModeling, image_size=(32, 64), patch_size=(2, 4), encoder_stride=(4, 8))
        tokens = torch.randn(1, 48, 3, 5)
        drawn = model.decoder(tokens)
        for row in range(3):
            for column in range(5):
                weight, bias = model.decoder[0].weight[:, :, 0, 0], model.decoder[0].bias
                patch = (weight @ tokens[0, :, row, column] + bias).view(3, 4, 8)
                torch.testing.assert_close(
                    drawn[0, :, 4 * row : 4 * row + 4, 8 * column : 8 * column + 8], patch, rtol=1e-4, atol=1e-5
                )

    @pytest.mark.parametrize("backend", FORMS)
    @pytest.mark.parametrize(
        "fields",
        [
            {"window_size": 1},
            {"image_size": 8},
            {"image_size": 4, "window_size": 7},
            {"pretrained_window_sizes": [1, 1]},
            {"image_size": 4, "window_size": 7, "pretrained_window_sizes": [1, 1]},
            {"image_size": (4, 64), "window_size": 7},
        ],
        ids=str,
    )
    def test_windows_and_maps_of_one_token(self, fields: dict[str, Any], backend: str) -> None:
        """Distances of 0 are divided by 1, not by 0: answers and gradients are finite."""
        model = build(**fields, attn_implementation=backend)
        for size in ((4, 4), (9, 21)):
            outputs = model(peers.images(size), labels=torch.tensor([0, 1]))
            assert outputs.logits.isfinite().all()
            outputs.loss.backward()
        assert all(gradient.isfinite().all() for gradient in peers.gradients(model).values())

    @pytest.mark.parametrize("backend", FORMS)
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
    def test_half_precision_with_padding(self, dtype: torch.dtype, backend: str) -> None:
        """Filling tokens have keys of zero, whose length a half-precision norm cannot tell from nothing: no NaN."""
        model = build(attn_implementation=backend)
        images = peers.images((50, 70))
        exact = model(images).logits
        logits = model.to(dtype)(images.to(dtype)).logits
        assert logits.dtype == dtype
        assert peers.difference(logits, exact) < 0.1


class TestPadding:
    """Tokens that fill up the last windows: seen by default, hidden with `mask_padding`."""

    @staticmethod
    def attend(x: Tensor, backend: str, mask_padding: bool, window: tuple[int, int] = (4, 4)) -> Tensor:
        """Window attention on a map, by an attention layer with drawn weights."""
        geometry = WindowGeometry(window, (0, 0), (0, 0), mask_padding)
        layer = peers.draw_weights(CosineWindowAttention(24, 2, geometry, qkv_bias=True, dropout=0.0))
        with torch.no_grad():
            return layer(x, backend)[0]

    @pytest.mark.parametrize("backend", FORMS)
    def test_hidden_padding_is_as_if_there_were_none(self, backend: str) -> None:
        """In a window of which a part is real, the answer is attention among the real tokens alone."""
        x = torch.randn(2, 3, 2, 24)
        geometry = WindowGeometry((4, 4), (0, 0), (0, 0), True)
        layer = peers.draw_weights(CosineWindowAttention(24, 2, geometry, qkv_bias=True, dropout=0.0))
        with torch.no_grad():
            q, k, v = (
                module(x).flatten(1, 2).unflatten(-1, (2, 12)).transpose(1, 2)
                for module in (layer.query, layer.key, layer.value)
            )
            cosine = nn.functional.normalize(q, dim=-1) @ nn.functional.normalize(k, dim=-1).transpose(-2, -1)
            table = layer.bias_table(x, "eager")
            places = [(row, column) for row in range(3) for column in range(2)]
            bias = torch.stack(
                [torch.stack([table[:, a - c + 3, b - d + 3] for c, d in places], -1) for a, b in places], -2
            )
            weights = (cosine * layer.logit_scale.exp() + bias).softmax(-1)
            expected = (weights @ v).transpose(1, 2).reshape(2, 3, 2, 24)
            torch.testing.assert_close(layer(x, backend)[0], expected)

    @pytest.mark.parametrize("backend", FORMS)
    def test_the_default_sees_padding(self, backend: str) -> None:
        """By default border tokens see the padding, and only they: a window that is full does not change."""
        x = torch.randn(1, 4, 6, 24)
        hidden, seen = self.attend(x, backend, True), self.attend(x, backend, False)
        torch.testing.assert_close(hidden[:, :, :4], seen[:, :, :4])
        assert ((hidden - seen)[:, :, 4:].abs().amax(-1) > 1e-3).all()

    @pytest.mark.parametrize("backend", FORMS)
    def test_a_network_that_hides_padding_differs_only_where_there_is_some(self, backend: str) -> None:
        """The setting has an effect exactly on sizes that are no multiple of the window."""
        default, masking = (build(mask_padding=value, attn_implementation=backend) for value in (False, True))
        with torch.no_grad():
            even, odd = peers.images((64, 64)), peers.images((60, 60))
            assert torch.equal(default(even).logits, masking(even).logits)
            assert peers.difference(default(odd).logits, masking(odd).logits) > 1e-3


class TestNothingChanges:
    """A forward pass leaves everything as it was."""

    @pytest.mark.parametrize(
        "model_class", [Swinv2ForImageClassification, Swinv2ForMaskedImageModeling, Swinv2Backbone]
    )
    def test_learned_tensors_only_in_the_state_dict(self, model_class: type) -> None:
        """No buffers: nothing to strip, to refill or to re-register."""
        model = build(model_class, use_absolute_embeddings=True)
        assert list(model.buffers()) == []
        assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}

    @pytest.mark.parametrize("name", ["Swinv2ForImageClassification", "Swinv2ForMaskedImageModeling", "Swinv2Backbone"])
    def test_names_and_shapes_are_transformers(self, name: str) -> None:
        """The names of tensors are a file format."""
        fields = {**SMALL, "depths": [1, 1, 1], "num_heads": [1, 2, 4], "encoder_stride": 16}
        theirs = peers.transformers_model(name, **fields)
        ours = globals()[name](Swinv2Config(**fields))
        shapes = {key: tensor.shape for key, tensor in ours.state_dict().items()}
        assert shapes == {key: tensor.shape for key, tensor in theirs.state_dict().items()}

    @pytest.mark.parametrize("backend", FORMS)
    def test_no_argument_is_mutated(self, backend: str) -> None:
        """Images, masks, labels and the configuration are afterwards what they were."""
        config = Swinv2Config(**SMALL, attn_implementation=backend)
        images, masked, labels = peers.images((50, 70)), torch.rand(2, 13 * 18) < 0.5, torch.tensor([1, 3])
        before = copy.deepcopy((config.to_dict(), images, masked, labels))
        classifier, modeling = Swinv2ForImageClassification(config), Swinv2ForMaskedImageModeling(config)
        Swinv2Backbone(config)(images)
        classifier.train()(images, labels=labels, output_hidden_states=True).loss.backward()
        modeling.train()(images, bool_masked_pos=masked).loss.backward()
        after = (config.to_dict(), images, masked, labels)
        assert before[0] == after[0]
        assert all(torch.equal(old, new) for old, new in zip(before[1:], after[1:], strict=True))

    @pytest.mark.parametrize("backend", FORMS)
    def test_no_module_is_mutated(self, backend: str) -> None:
        """Every attribute of every module is the same before and after, in training as well."""

        def snapshot(model: nn.Module) -> dict[str, dict[str, Any]]:
            return {
                name: {
                    key: value.to_dict() if isinstance(value, Swinv2Config) else copy.deepcopy(value)
                    for key, value in vars(module).items()
                    if key not in ("_parameters", "_buffers", "_modules")
                }
                for name, module in model.named_modules()
            }

        model = build(attn_implementation=backend, drop_path_rate=0.3)
        names = [name for name, _ in model.named_modules()]
        for is_training in (False, True):
            model.train(is_training)
            before, weights = snapshot(model), copy.deepcopy(model.state_dict())
            for size in ((5, 5), (64, 64), (50, 130)):
                model(peers.images(size), output_attentions=size[0] == 5)
            assert snapshot(model) == before
            assert [name for name, _ in model.named_modules()] == names
            assert list(model.buffers()) == []
            assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())

    @pytest.mark.parametrize("backend", FORMS)
    @settings(max_examples=15, deadline=None)
    @given(sizes=st.lists(st.tuples(st.integers(1, 90), st.integers(1, 90)), min_size=1, max_size=3))
    def test_what_was_seen_before_does_not_matter(self, backend: str, sizes: list[tuple[int, int]]) -> None:
        """Small images before a large one leave its answer as it is, to the bit."""
        model = build(attn_implementation=backend)
        image = peers.images((70, 66), count=1)
        with torch.no_grad():
            expected = model(image).logits
            for size in sizes:
                model(peers.images(size, count=1))
            assert torch.equal(model(image).logits, expected)

    @pytest.mark.parametrize("backend", FORMS)
    def test_the_order_of_a_batch_does_not_matter(self, backend: str) -> None:
        """Images know nothing of each other: any order, and one by one, gives the same answers."""
        model = build(attn_implementation=backend)
        images = peers.images((50, 70), count=4)
        order = torch.tensor([2, 0, 3, 1])
        with torch.no_grad():
            logits = model(images).logits
            torch.testing.assert_close(model(images[order]).logits, logits[order], rtol=1e-5, atol=1e-5)
            alone = torch.cat([model(image[None]).logits for image in images])
            torch.testing.assert_close(alone, logits, rtol=1e-5, atol=1e-5)

    def test_asking_for_more_does_not_change_the_answer(self) -> None:
        """With attention weights or hidden states wanted, the logits are those of the plain backend, to the bit."""
        model = build(attn_implementation="eager")
        fast = build(attn_implementation="sdpa")
        images = peers.images((50, 70))
        with torch.no_grad():
            expected = model(images).logits
            for asked in ({"output_attentions": True}, {"output_hidden_states": True}):
                assert torch.equal(model(images, **asked).logits, expected)
            assert torch.equal(fast(images, output_attentions=True).logits, expected)
            torch.testing.assert_close(fast(images).logits, expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize(
        "model_class", [Swinv2ForImageClassification, Swinv2ForMaskedImageModeling, Swinv2Backbone]
    )
    def test_saving_and_loading_is_exact(self, model_class: type, tmp_path: Any) -> None:
        """What was saved comes back, to the bit, with all settings."""
        fields = {"use_absolute_embeddings": True, "mask_padding": True, "extra_norm_period": 2}
        model = build(model_class, **fields)
        model.set_image_size((48, 80), window_size=6)
        model.save_pretrained(tmp_path)
        again, report = model_class.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(report.values())
        assert again.state_dict().keys() == model.state_dict().keys()
        assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
        assert again.config.stages() == model.config.stages()
        # A file's tensors lie in memory as they lie in the file, and matrix products choose their way by alignment.
        for parameter in again.parameters():
            parameter.data = parameter.data.clone()
        images = peers.images((48, 80))
        with torch.no_grad():
            ours, loaded = model(images), again(images)
        for name in ("logits", "reconstruction", "feature_maps"):
            if name in ours:
                assert all(torch.equal(a, b) for a, b in zip(ours[name], loaded[name], strict=True))


class TestFusedForm:
    """attn_implementation="triton", in Triton's interpreter where there is no GPU."""

    @pytest.fixture
    def kernels(self, monkeypatch: pytest.MonkeyPatch) -> mock.Mock:
        """Counts the calls that reach the kernels; another backend would give the same numbers."""
        spy = mock.Mock(side_effect=launch.window_attention)
        monkeypatch.setattr(launch, "window_attention", spy)
        return spy

    @staticmethod
    def gradients(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
        """The answer, and all gradients."""
        model.zero_grad()
        torch.manual_seed(0)
        outputs = model(images, labels=torch.tensor([1, 2]))
        outputs.loss.backward()
        return {"logits": outputs.logits.detach()} | {
            name: each.clone() for name, each in peers.gradients(model).items()
        }

    @pytest.fixture
    def lines(self, monkeypatch: pytest.MonkeyPatch) -> mock.Mock:
        """As `kernels`, for the residual lines."""
        spy = mock.Mock(side_effect=residual.add_normalised)
        monkeypatch.setattr(residual, "add_normalised", spy)
        return spy

    @pytest.mark.parametrize(
        "fields", [pytest.param({}, marks=pytest.mark.slow), {"mask_padding": True, "drop_path_rate": 0.5}], ids=str
    )
    def test_it_is_the_network(self, fields: dict[str, Any], kernels: mock.Mock, lines: mock.Mock) -> None:
        """Answer and gradients are the plain backend's, on a map that needs padding; recomputed, they are the same."""
        fields = {"depths": [2, 1], "drop_path_rate": 0.0, **fields}
        images = peers.images((28, 20))
        expected = self.gradients(build(attn_implementation="eager", **fields).train(), images)
        model = build(attn_implementation="triton", **fields).train()
        with np.errstate(over="ignore", invalid="ignore"):
            results = self.gradients(model, images)
            assert (kernels.call_count, lines.call_count) == (3, 6)
            switch_checkpointing(model, "enable")
            recomputed = self.gradients(model, images)
            assert (kernels.call_count, lines.call_count) == (3 + 2 * 3, 6 + 2 * 6)
        assert results.keys() == expected.keys()
        for name, result in results.items():
            assert (result - expected[name]).norm() <= 1e-4 * expected[name].norm() + 1e-6, name
            torch.testing.assert_close(recomputed[name], result, rtol=1e-5, atol=1e-6)

    def test_it_can_be_chosen_later(self, kernels: mock.Mock) -> None:
        """As the other backends; attention weights come from the plain one."""
        model, images = build(), peers.images((32, 32))
        expected = model(images).logits
        assert model.config._attn_implementation == "sdpa"
        model.set_attn_implementation("triton")
        with torch.no_grad(), np.errstate(over="ignore", invalid="ignore"):
            torch.testing.assert_close(model(images).logits, expected, rtol=1e-4, atol=1e-5)
            assert kernels.call_count == 4
            assert model(images, output_attentions=True).attentions
            assert kernels.call_count == 4

    @pytest.mark.parametrize(("part", "count"), [("drop_path", 2), ("layernorm_before", 1), ("layernorm_after", 1)])
    def test_a_replaced_part_is_called(self, part: str, count: int, lines: mock.Mock) -> None:
        """What has no weights, or another class, is no part of a kernel: so many residual lines are none."""
        model, images = build(attn_implementation="triton"), peers.images((32, 32))
        setattr(model.swinv2.encoder.layers[0].blocks[0], part, nn.Identity())
        with torch.no_grad(), np.errstate(over="ignore", invalid="ignore"):
            answer = model(images).logits
        assert lines.call_count == 2 * 4 - count
        model.set_attn_implementation("eager")
        torch.testing.assert_close(answer, model(images).logits, rtol=1e-4, atol=1e-5)

    def test_a_watched_norm_is_called(self, lines: mock.Mock) -> None:
        """A hook on one norm of a block sees what it normalises, and that norm's line is not one kernel."""
        model, images = build(attn_implementation="triton"), peers.images((32, 32))
        seen = []
        norm = model.swinv2.encoder.layers[0].blocks[0].layernorm_after
        norm.register_forward_hook(lambda module, inputs, output: seen.append(output))
        with torch.no_grad(), np.errstate(over="ignore", invalid="ignore"):
            model(images)
        assert len(seen) == 1
        assert lines.call_count == 2 * 4 - 1

    def test_what_it_cannot_do_is_done_by_another_backend_and_said(
        self, caplog: pytest.LogCaptureFixture, kernels: mock.Mock
    ) -> None:
        """Dropped attention weights, here."""
        model = build(attn_implementation="triton", attention_probs_dropout_prob=0.1, drop_path_rate=0.0).train()
        backends._warn_once.cache_clear()
        with caplog.at_level("WARNING", "swinv2.ops.backends"):
            model(peers.images((32, 32)))
        reason = "it has no attention dropout, and attention_probs_dropout_prob is 0.1"
        assert caplog.messages == [f"sdpa runs instead of triton: {reason}"]
        assert not kernels.called

    def test_what_lies_on_a_cpu_attends_there(self, monkeypatch: pytest.MonkeyPatch, kernels: mock.Mock) -> None:
        """A model that was loaded for a GPU still answers, as if it had been loaded for a CPU."""
        images = peers.images((32, 32))
        model = build(attn_implementation="triton")
        monkeypatch.delenv("TRITON_INTERPRET")
        with torch.no_grad():
            assert torch.equal(model(images).logits, build(attn_implementation="sdpa")(images).logits)
        assert not kernels.called

    def test_it_is_the_default_where_it_can_run(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
        """Unless another backend is named; files do not say so."""
        images = peers.images((32, 32))
        here = build()
        monkeypatch.delenv("TRITON_INTERPRET")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
        there = build()
        assert there.config._attn_implementation == "triton"
        assert build(attn_implementation="sdpa").config._attn_implementation == "sdpa"
        with torch.no_grad():
            assert torch.equal(there(images).logits, here(images).logits)
        there.save_pretrained(tmp_path)
        assert "triton" not in (tmp_path / "config.json").read_text()

    def test_without_a_gpu_it_is_refused(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
        """At once, with the reason, by every door."""
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        model = build()
        model.save_pretrained(tmp_path)
        doors: list[Callable[[], Any]] = [
            lambda: build(attn_implementation="triton"),
            lambda: Swinv2ForImageClassification.from_pretrained(tmp_path, attn_implementation="triton"),
            lambda: model.set_attn_implementation("triton"),
        ]
        for door in doors:
            with pytest.raises(ValueError, match='"triton", which cannot run here: there is no GPU; leave it out'):
                door()


class TestTraining:
    """Checkpointing and stochastic depth."""

    @pytest.mark.parametrize("backend", FORMS)
    @pytest.mark.parametrize("options", [{}, {"every_n_layers": 3}, {"use_reentrant": True}], ids=str)
    def test_checkpointing_gives_equal_gradients(self, options: dict[str, Any], backend: str) -> None:
        """Recomputing blocks in the backward pass, all or every third one, changes no gradient; dropping included."""
        model = build(attn_implementation=backend, drop_path_rate=0.3, attention_probs_dropout_prob=0.1).train()
        images = peers.images((50, 70)).requires_grad_()

        def gradients() -> dict[str, Tensor]:
            model.zero_grad()
            images.grad = None
            torch.manual_seed(0)
            model(images, labels=torch.tensor([1, 2])).loss.backward()
            found = {name: gradient.clone() for name, gradient in peers.gradients(model).items()}
            return found | {"pixel_values": images.grad.clone()}

        expected = gradients()
        options = dict(options)
        is_reentrant = options.pop("use_reentrant", False)
        if options and not hasattr(model, "activation_checkpointing_enable"):
            pytest.skip("this version of transformers has no every_n_layers")
        switch_checkpointing(model, "enable", {"use_reentrant": is_reentrant}, **options)
        flags = [block.gradient_checkpointing for block in blocks(model)]
        assert flags == [index % options.get("every_n_layers", 1) == 0 for index in range(4)]
        calls = []
        for block in blocks(model):
            function = block._gradient_checkpointing_func

            def counted(*arguments: Any, inner: Callable[..., Any] = function) -> Any:
                calls.append(arguments)
                return inner(*arguments)

            block._gradient_checkpointing_func = counted
        for name, gradient in gradients().items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-6, atol=1e-9, msg=name)
        assert len(calls) == sum(flags)

    def test_checkpointing_is_off_again(self) -> None:
        """It can be taken back."""
        model = build()
        switch_checkpointing(model, "enable")
        assert all(block.gradient_checkpointing for block in blocks(model))
        switch_checkpointing(model, "disable")
        assert not any(block.gradient_checkpointing for block in blocks(model))

    def test_drop_path_drops_samples_and_keeps_the_mean(self) -> None:
        """Each sample's branch is either exactly zero or scaled up, and only in training."""
        torch.manual_seed(0)
        drop_path, branch = DropPath(0.25).train(), torch.randn(4000, 1, 3)
        dropped = drop_path(branch)
        is_zero = (dropped == 0).flatten(1).all(1)
        assert is_zero.float().mean().item() == pytest.approx(0.25, abs=0.03)
        torch.testing.assert_close(dropped[~is_zero], branch[~is_zero] / 0.75)
        assert torch.equal(drop_path.eval()(branch), branch)

    def test_a_dropped_branch_adds_nothing(self) -> None:
        """Dropping comes after the norm: a dropped sample passes the block unchanged, to the bit."""
        block = blocks(build(drop_path_rate=0.5).train())[-1]
        block.drop_path.rate = 1 - 1e-7
        x = torch.randn(3, 8, 8, 48)
        assert torch.equal(block(x, "sdpa"), x)
        assert not torch.equal(block.eval()(x, "sdpa")[0], x)

    def test_drop_path_rises_with_depth(self) -> None:
        """Linear from 0 to the rate over all blocks."""
        rates = [block.drop_path.rate for block in blocks(build(drop_path_rate=0.3))]
        assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])

    @pytest.mark.parametrize(
        ("fields", "labels"),
        [
            ({"num_labels": 5}, torch.tensor([1, 4])),
            ({"num_labels": 5}, torch.tensor([[1.0, 0, 0, 1, 0], [0, 0, 1, 0, 0]])),
            ({"num_labels": 1}, torch.tensor([0.5, -1.0])),
            ({"num_labels": 3, "problem_type": "regression"}, torch.tensor([[0.5, -1.0, 0], [1, 2, 3]])),
        ],
        ids=["single-label", "multi-label", "one-target", "targets"],
    )
    def test_losses_are_transformers(self, fields: dict[str, Any], labels: Tensor) -> None:
        """Which loss is taken, and its value."""
        theirs = peers.transformers_model("Swinv2ForImageClassification", **{**SMALL, **fields})
        ours = Swinv2ForImageClassification(Swinv2Config(**{**SMALL, **fields})).eval()
        ours.load_state_dict(theirs.state_dict())
        images = peers.images((64, 64))
        with torch.no_grad():
            torch.testing.assert_close(
                ours(images, labels=labels).loss, theirs(images, labels=labels).loss, rtol=1e-5, atol=1e-6
            )


class TestPositions:
    """Absolute position embeddings, and the continuous position bias."""

    @pytest.mark.parametrize("size", [64, (32, 64)], ids=str)
    def test_absolute_positions_are_added(self, size: Any) -> None:
        """They work at the configured size, have a gradient, and make a difference."""
        model = build(use_absolute_embeddings=True, image_size=size)
        images = peers.images((64, 64) if size == 64 else size)
        outputs = model(images, labels=torch.tensor([0, 1]))
        outputs.loss.backward()
        positions = model.swinv2.embeddings.position_embeddings
        assert positions.grad.abs().sum() > 0
        positions.data.zero_()
        assert peers.difference(model(images).logits, outputs.logits) > 1e-2

    def test_each_patch_has_its_own_position(self) -> None:
        """Row by row, as patches are numbered."""
        model = build(Swinv2Model, use_absolute_embeddings=True, image_size=(32, 64))
        embeddings = model.embeddings
        images = peers.images((32, 64))
        with torch.no_grad():
            with_positions = embeddings(images, None, False)
            positions = embeddings.position_embeddings.data.clone()
            embeddings.position_embeddings.data.zero_()
            without = embeddings(images, None, False)
        added = (with_positions - without)[0]
        for row, column in ((0, 0), (2, 5), (7, 15)):
            torch.testing.assert_close(added[row, column], positions[0, row * 16 + column], rtol=1e-4, atol=1e-5)

    def test_absolute_positions_are_interpolated_if_one_asks(self) -> None:
        """At another size only on request; a field that is linear stays so."""
        model = build(use_absolute_embeddings=True)
        images = peers.images((40, 96))
        with pytest.raises(ValueError, match=r"10 x 24 patches.*16 x 16; pass interpolate_pos_encoding=True"):
            model(images)
        assert model(images, interpolate_pos_encoding=True).logits.isfinite().all()
        same = peers.images((64, 64))
        assert torch.equal(model(same, interpolate_pos_encoding=True).logits, model(same).logits)

    def test_set_image_size_resamples_absolute_positions(self) -> None:
        """Afterwards the new size is the model's own, and gives what interpolation gave."""
        model = build(use_absolute_embeddings=True, window_size=2)
        images = peers.images((40, 96))
        with torch.no_grad():
            interpolated = model(images, interpolate_pos_encoding=True).logits
            model.set_image_size((40, 96))
            torch.testing.assert_close(model(images).logits, interpolated, rtol=1e-4, atol=1e-5)
        positions = model.swinv2.embeddings.position_embeddings
        assert positions.shape == (1, 240, 24)
        assert positions.requires_grad

    def test_coordinates_are_those_of_the_paper(self) -> None:
        """sign(d) log2(|8 d / (w - 1)| + 1) / log2(8), w of the pre-training window."""
        coordinates = relative_coordinates((8, 8), (0, 0))
        assert coordinates[7, 7].tolist() == [0.0, 0.0]
        assert coordinates[14, 0].tolist() == pytest.approx([1.0566, -1.0566], abs=1e-4)
        assert relative_coordinates((24, 24), (12, 12))[-1, -1, 0].item() == pytest.approx(1.383, abs=1e-3)
        assert relative_coordinates((12, 6), (6, 0))[-1, -1].tolist() == pytest.approx([1.406, 1.0566], abs=1e-3)

    def test_coordinates_are_in_fp32_whatever_the_weights_are(self) -> None:
        """In bf16, and under autocast, the bias is the one of the rounded weights computed in fp32."""
        field = peers.draw_weights(ContinuousPositionBias(3)).bfloat16()
        arguments = torch.empty(0), "eager", (24, 24), (12, 12)
        with torch.no_grad():
            precise = copy.deepcopy(field).float()(*arguments)
            assert torch.equal(field(*arguments), precise)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                assert torch.equal(field(*arguments), precise)


class TestSetImageSize:
    """Other image sizes and windows for learned weights."""

    @staticmethod
    def logits_of_a_new_model(model: nn.Module, images: Tensor, **fields: Any) -> Tensor:
        """What a network that was configured so from the start says with the same weights."""
        other = Swinv2ForImageClassification(
            Swinv2Config(**{**SMALL, "depths": [2, 2, 2], "num_heads": [1, 2, 4], **fields})
        )
        other.eval().load_state_dict(model.state_dict())
        return other(images).logits

    @pytest.mark.parametrize("backend", FORMS)
    def test_a_larger_window_extrapolates(self, backend: str) -> None:
        """Each stage keeps the window in which its bias was learned, clipped ones included."""
        model = build(depths=[2, 2, 2], num_heads=[1, 2, 4], window_size=8, attn_implementation=backend)
        assert [stage.window for stage in model.config.stages()] == [(8, 8), (8, 8), (4, 4)]
        images = peers.images((128, 128))
        with torch.no_grad():
            model.set_image_size(128, window_size=16)
            assert model.config.pretrained_window_sizes == [8, 8, 4]
            assert (model.config.image_size, model.config.window_size) == (128, 16)
            fields = {"image_size": 128, "window_size": 16, "pretrained_window_sizes": [8, 8, 4]}
            fields["attn_implementation"] = backend
            assert torch.equal(model(images).logits, self.logits_of_a_new_model(model, images, **fields))

    def test_stretching_must_be_asked_for(self) -> None:
        """Then the bias field is normalised by the new window."""
        model = build(depths=[2, 2, 2], num_heads=[1, 2, 4], window_size=8, pretrained_window_sizes=[6, 6, 3])
        images = peers.images((128, 128))
        with torch.no_grad():
            model.set_image_size(128, window_size=16)
            assert model.config.pretrained_window_sizes == [6, 6, 3]
            extrapolated = model(images).logits
            model.set_image_size(128, window_size=16, stretch=True)
            assert model.config.pretrained_window_sizes == [0, 0, 0]
            stretched = model(images).logits
            assert torch.equal(stretched, self.logits_of_a_new_model(model, images, image_size=128, window_size=16))
        assert peers.difference(stretched, extrapolated) > 1e-2

    def test_loading_at_another_window_extrapolates(self, tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
        """As the method does, and says so; with pre-training windows given, as they say."""
        model = build(depths=[2, 2, 2], num_heads=[1, 2, 4], window_size=8)
        model.save_pretrained(tmp_path)
        images = peers.images((128, 128))
        fields: dict[str, Any] = {"image_size": 128, "window_size": 16}
        with torch.no_grad():
            loaded = Swinv2ForImageClassification.from_pretrained(tmp_path, **fields).eval()
            config = Swinv2Config.from_pretrained(tmp_path, **fields)
            stretched = Swinv2ForImageClassification.from_pretrained(
                tmp_path, **fields, pretrained_window_sizes=[0, 0, 0]
            )
            unchanged = Swinv2ForImageClassification.from_pretrained(tmp_path, image_size=64)
            model.set_image_size(128, window_size=16)
            assert loaded.config.pretrained_window_sizes == config.pretrained_window_sizes == [8, 8, 4]
            assert torch.equal(loaded(images).logits, model(images).logits)
        assert stretched.config.pretrained_window_sizes == unchanged.config.pretrained_window_sizes == [0, 0, 0]
        said = [message for message in caplog.messages if "learned" in message]
        assert len(said) == 2
        assert "16 x 16 from 8 x 8 in stage 1, 16 x 16 from 8 x 8 in stage 2, 8 x 8 from 4 x 4 in stage 3" in said[0]

    def test_loading_at_the_learned_window_says_nothing(self, tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
        """Nor does another architecture, whose weights are not these."""
        model = build(depths=[2, 2, 2], num_heads=[1, 2, 4], window_size=8)
        model.set_image_size(128, window_size=16)
        model.save_pretrained(tmp_path)
        back = Swinv2ForImageClassification.from_pretrained(tmp_path, image_size=64, window_size=8)
        assert [stage.learned_window for stage in back.config.stages()] == [(8, 8), (8, 8), (4, 4)]
        other = Swinv2Config.from_pretrained(
            tmp_path, image_size=64, window_size=8, depths=[1, 1, 1], pretrained_window_sizes=[0, 0, 0], num_labels=5
        )
        assert other.pretrained_window_sizes == [0, 0, 0]
        assert not [message for message in caplog.messages if "learned" in message]

    def test_rectangles(self) -> None:
        """Windows and shifts are clipped axis by axis for the new size; pre-training windows stay square pairs."""
        model = build(depths=[2, 2, 2], num_heads=[1, 2, 4], window_size=8)
        model.set_image_size((32, 128))
        geometries = [stage.blocks[1].attention.self.geometry for stage in encoder(model).layers]
        assert [geometry.window for geometry in geometries] == [(8, 8), (4, 8), (2, 8)]
        assert [geometry.shift for geometry in geometries] == [(0, 4), (0, 4), (0, 0)]
        assert [geometry.pretrained_window for geometry in geometries] == [(0, 0), (8, 8), (4, 4)]
        images = peers.images((32, 128))
        with torch.no_grad():
            fields = {"image_size": (32, 128), "window_size": 8, "pretrained_window_sizes": [0, 8, 4]}
            assert torch.equal(model(images).logits, self.logits_of_a_new_model(model, images, **fields))

    @pytest.mark.parametrize(
        ("given", "windows", "shifts"),
        [
            ((4, 8), [(4, 8)] * 3, [(2, 4), (2, 4), (0, 0)]),
            ([(4, 16), 8, 2], [(4, 16), (8, 8), (2, 2)], [(2, 8), (0, 4), (1, 1)]),
        ],
    )
    def test_windows_of_other_notations(self, tmp_path: Any, given: Any, windows: Any, shifts: Any) -> None:
        """Rectangular ones, and one for each stage: for a built model, for a new one and at loading."""
        model = build(depths=[2, 2, 2], num_heads=[1, 2, 4], window_size=8)
        model.save_pretrained(tmp_path)
        model.set_image_size((64, 128), window_size=given)
        geometries = [stage.blocks[1].attention.self.geometry for stage in encoder(model).layers]
        assert [geometry.window for geometry in geometries] == windows
        assert [geometry.shift for geometry in geometries] == shifts
        images = peers.images((64, 128))
        fields: dict[str, Any] = {"image_size": (64, 128), "window_size": given}
        loaded = Swinv2ForImageClassification.from_pretrained(tmp_path, **fields).eval()
        assert loaded.config.pretrained_window_sizes == model.config.pretrained_window_sizes
        fields["pretrained_window_sizes"] = model.config.pretrained_window_sizes
        with torch.no_grad():
            assert torch.equal(model(images).logits, loaded(images).logits)
            assert torch.equal(model(images).logits, self.logits_of_a_new_model(model, images, **fields))

    def test_there_and_back(self) -> None:
        """Returning to the first size returns to the first answers."""
        model = build(window_size=8)
        images = peers.images((64, 64))
        with torch.no_grad():
            expected = model(images).logits
            model.set_image_size((32, 160), window_size=5)
            assert peers.difference(model(images).logits, expected) > 1e-3
            model.set_image_size(64, window_size=8)
            assert torch.equal(model(images).logits, expected)

    def test_the_same_size_changes_nothing(self) -> None:
        """No new pre-training windows where no window changed."""
        model = build()
        before = model.config.to_dict()
        model.set_image_size(64)
        assert model.config.to_dict() == before

    @pytest.mark.parametrize("arguments", [(2,), ("large",), ((64, 0),), (64, 0), (64, 4.5)], ids=str)
    @pytest.mark.usefixtures("as_a_user")
    def test_an_error_leaves_the_model_as_it_was(self, arguments: tuple[Any, ...]) -> None:
        """An impossible size or window is refused with a sentence before anything is touched."""
        model = build(use_absolute_embeddings=True)
        images = peers.images((64, 64))
        before = model.config.to_dict()
        with torch.no_grad():
            expected = model(images).logits
            with pytest.raises(ValueError, match=r"image_size|window_size"):
                model.set_image_size(*arguments)
            assert model.config.to_dict() == before
            assert torch.equal(model(images).logits, expected)


@pytest.mark.usefixtures("as_a_user")
class TestRefusals:
    """Wrong arguments are answered with what was given, what was expected, and what to change."""

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({}, r"pixel_values is missing"),
            ({"pixel_values": torch.zeros(3, 64, 64)}, r"shape \(3, 64, 64\); expected \(batch, 3,"),
            ({"pixel_values": torch.zeros(1, 1, 64, 64)}, r"shape \(1, 1, 64, 64\).*config.num_channels"),
            ({"pixel_values": torch.zeros(1, 3, 64, 64, dtype=torch.uint8)}, r"type torch.uint8.* image processor"),
            ({"pixel_values": Image.new("RGB", (64, 64))}, r"type Image; expected a tensor of floats"),
            ({"pixel_values": [torch.zeros(3, 64, 64)]}, r"type list"),
        ],
    )
    @pytest.mark.parametrize("model_class", [Swinv2Model, Swinv2ForImageClassification, Swinv2ForMaskedImageModeling])
    def test_images(self, model_class: type, arguments: dict[str, Any], message: str) -> None:
        """Images that are missing, without a batch, of other channels, or not yet what an image processor makes."""
        with pytest.raises(ValueError, match=message):
            build(model_class)(**arguments)

    def test_masks(self) -> None:
        """A mask of the wrong length, and one for a model that has no token to put in its place."""
        images = torch.zeros(2, 3, 64, 48)
        with pytest.raises(ValueError, match=r"shape \(2, 256\).*\(2, 192\), 16 x 12 patches"):
            build(Swinv2ForMaskedImageModeling)(images, bool_masked_pos=torch.ones(2, 256, dtype=torch.bool))
        with pytest.raises(ValueError, match="use_mask_token=True"):
            build(Swinv2Model)(images, bool_masked_pos=torch.ones(2, 192, dtype=torch.bool))

    def test_a_decoder_that_does_not_fit(self) -> None:
        """It draws as in transformers; only a loss, which a mask asks for, needs the stride of patches and stages."""
        model, images = build(Swinv2ForMaskedImageModeling, encoder_stride=32), torch.zeros(1, 3, 64, 64)
        assert tuple(model(images).reconstruction.shape) == (1, 3, 256, 256)
        with pytest.raises(ValueError, match=r"bool_masked_pos was given.* \(8, 8\).* it is 32"):
            model(images, bool_masked_pos=torch.ones(1, 256, dtype=torch.bool))

    @pytest.mark.parametrize(
        ("fields", "labels", "message"),
        [
            ({}, torch.tensor([[0.0, 1.0], [1.0, 0.0]]), r"labels has shape \(2, 2\)"),
            ({"num_labels": 1}, torch.tensor([0.5, 1.0, 2.0]), r"labels has shape \(3,\)"),
        ],
    )
    def test_labels(self, fields: dict[str, Any], labels: Tensor, message: str) -> None:
        """Labels that do not fit the logits."""
        with pytest.raises(ValueError, match=message):
            build(**fields)(torch.zeros(2, 3, 64, 64), labels=labels)

    def test_a_loss_that_does_not_exist(self) -> None:
        """Not through a configuration: some versions of transformers refuse it there already."""
        with pytest.raises(ValueError, match="problem_type is 'ranking'"):
            classification_loss(torch.zeros(2, 2), torch.tensor([0, 1]), "ranking")

    def test_an_attention_that_does_not_exist(self) -> None:
        """Forms of attention are named."""
        with pytest.raises(ValueError, match="sdpa"):
            build(attn_implementation="sdqa")
