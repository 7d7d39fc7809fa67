"""The network for videos: still clips against the image model, its parts, and transformers' conventions."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForVideoClassification

import swinv2
from swinv2 import (
    Swinv2Backbone,
    Swinv2Config,
    Swinv2ForImageClassification,
    Swinv2ForMaskedImageModeling,
    Swinv2ForVideoClassification,
    Swinv2VideoConfig,
    Swinv2VideoModel,
    inflate,
)

SIZES: dict[str, Any] = {"embed_dim": 24, "depths": [2, 2], "num_heads": [2, 3], "num_labels": 5}


def image_model(seed: int = 0, **fields: Any) -> Swinv2ForImageClassification:
    """A small classifier whose every parameter is drawn: the fresh post-norms would make blocks the identity."""
    config = Swinv2Config(**(SIZES | {"image_size": 48, "window_size": 6} | fields))
    model = Swinv2ForImageClassification(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (0.3 if parameter.ndim > 1 else 0.5))
            if name.endswith("logit_scale"):
                parameter.abs_()
    return model


def clip(frames: int, height: int, width: int, batch: int = 1) -> Tensor:
    """Images (B, channels, height, width)."""
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(frames + height))


def still(images: Tensor, frames: int) -> Tensor:
    """A clip of equal frames of each image."""
    return images[:, None].repeat(1, frames, 1, 1, 1)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("mask_padding", [False, True])
@pytest.mark.parametrize(
    ("num_frames", "tubelet", "window", "frames"),
    [
        (8, 2, 4, 8),  # one window along time
        (8, 2, 2, 8),  # several, shifted
        (8, 1, 3, 8),  # the last window is not full
        (8, 2, 2, 7),  # the last patch is not full
        (8, 2, 4, 5),  # fewer frames than a window
        (8, 2, 2, 19),  # more frames than were configured
        (8, 2, 2, 1),  # one frame
        (16, 2, 1, 6),  # windows of one frame
    ],
)
@pytest.mark.parametrize("size", [(48, 48), (52, 70)], ids=str)
def test_a_still_clip_gets_the_image_models_answer(
    num_frames: int, tubelet: int, window: int, frames: int, size: tuple[int, int], mask_padding: bool, attention: str
) -> None:
    """Whatever the clip's length and the windows along time: padding frames are hidden."""
    model = image_model(mask_padding=mask_padding).double()
    images = clip(frames, *size).double()
    video_model = inflate(model, num_frames, tubelet, window)
    video_model.set_attn_implementation(attention)
    with torch.no_grad():
        expected = model(images, output_hidden_states=True)
        found = video_model(still(images, frames), output_hidden_states=True)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-9, atol=1e-9)
    for of_video, of_image in zip(found.reshaped_hidden_states, expected.reshaped_hidden_states, strict=True):
        repeated = of_image[:, :, None].expand_as(of_video)
        torch.testing.assert_close(of_video, repeated, rtol=1e-9, atol=1e-9)


def test_a_clip_in_another_order_gets_another_answer() -> None:
    """What the test above cannot show: frames see each other. The mean of an image model's answers has no order."""
    video_model = inflate(image_model(), 8, 2, 2)
    moving = torch.randn(1, 8, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        answer, shuffled = (video_model(moving[:, order]).logits for order in (range(8), [0, 2, 4, 6, 1, 3, 5, 7]))
    assert (answer - shuffled).abs().max() > 1e-3


def video_model(seed: int = 0, frames: int = 8, window: int = 2, **fields: Any) -> Any:
    """A small video model whose bias knows the distance in time."""
    model: Any = inflate(image_model(seed, **fields), frames, 2, window)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("continuous_position_bias_mlp.0.weight"):
                parameter[:, 0] = torch.randn(len(parameter), generator=generator)
    return model


def videos(frames: int = 8, height: int = 48, width: int = 48, batch: int = 2, dtype: Any = torch.float32) -> Tensor:
    return torch.randn(batch, frames, 3, height, width, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("size", [(8, 48, 48), (7, 52, 70), (3, 20, 48)], ids=str)
@pytest.mark.parametrize("mask_padding", [False, True])
def test_the_kernels_give_the_plain_answer(size: tuple[int, int, int], mask_padding: bool) -> None:
    """Whole stages without gradients, branches with them, and every gradient."""
    model, clips = video_model(mask_padding=mask_padding).double(), videos(*size, dtype=torch.float64)
    results: dict[str, dict[str, Tensor]] = {}
    for attention in ("eager", "sdpa"):
        model.set_attn_implementation(attention)
        model.zero_grad()
        with torch.no_grad():
            answer = model(clips).logits
        output = model(clips, labels=torch.tensor([0, 3]))
        output.loss.backward()
        gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
        results[attention] = {"answer": answer, "logits": output.logits.detach(), **gradients}
    for name, expected in results["eager"].items():
        torch.testing.assert_close(results["sdpa"][name], expected, rtol=1e-8, atol=1e-9, msg=name)


def test_the_bias_learns_the_distance_in_time() -> None:
    """The zeros of an inflated model get gradients, as soon as frames differ."""
    model = inflate(image_model(), 8, 2, 2)
    model(videos(), labels=torch.tensor([0, 3])).loss.backward()
    columns = [
        parameter.grad[:, 0]
        for name, parameter in model.named_parameters()
        if name.endswith("continuous_position_bias_mlp.0.weight")
    ]
    assert len(columns) == 4
    assert all(column.abs().max() > 0 for column in columns)


def test_windows_of_one_frame_are_the_image_model_on_every_frame() -> None:
    """Exactly: with patches of one frame, the answer is the mean of the image model's answers."""
    model = image_model().double()
    clips = videos(5, dtype=torch.float64)
    with torch.no_grad():
        expected = model(clips.flatten(0, 1)).logits.unflatten(0, (2, 5)).mean(1)
        found = inflate(model, 8, 1, 1)(clips).logits
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_more_frames_than_it_was_made_for() -> None:
    """Windows stay; a model that is told of more frames shifts them in time; a larger window extrapolates the bias."""
    model, clips = video_model(frames=8, window=4), videos(16)
    with torch.no_grad():
        before = model(clips).logits
        assert model.config.stages()[0].shift[0] == 0
        model.set_clip_size(16)
        shifted = model(clips).logits
        assert [spec.window[0] for spec in model.config.stages()] == [4, 4]
        assert model.config.stages()[0].shift[0] == 2
        model.set_clip_size(16, window_size=(8, 6, 6))
        assert [spec.learned_window for spec in model.config.stages()] == [(4, 6, 6), (4, 6, 6)]
        changed = model(clips).logits
    for one, other in ((before, shifted), (shifted, changed)):
        assert not torch.allclose(one, other)
        # They are of the same size, and say much the same.
        assert (one - other).norm() < 0.5 * one.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    model, clips = video_model(), videos()
    with torch.no_grad():
        expected = model(clips).logits
        found = model.to(dtype)(clips.to(dtype)).logits.float()
    assert (found - expected).abs().max() < 0.1 * expected.abs().max()


def test_checkpointing_does_not_change_gradients() -> None:
    model, clips = video_model().double().train(), videos(dtype=torch.float64)
    gradients = []
    for checkpoints in (False, True):
        if checkpoints:
            # Renamed between the supported versions of transformers.
            name = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
            getattr(model, f"{name}_checkpointing_enable")()
        model.zero_grad()
        model(clips, labels=torch.tensor([0, 3])).loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, plain)


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize(
    ("pixels", "sentence"),
    [
        (torch.zeros(2, 3, 48, 48), "expected .batch, frames, 3, height, width."),
        (torch.zeros(1, 8, 4, 48, 48), "according to config.num_channels"),
        (torch.zeros(1, 0, 3, 48, 48), "without a frame"),
        (torch.zeros(1, 8, 3, 48, 48, dtype=torch.uint8), "a tensor of floats"),
        (None, "pass videos of shape"),
    ],
    ids=["images", "channels", "no frames", "bytes", "nothing"],
)
def test_input_of_another_kind_is_refused(pixels: Tensor | None, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        video_model()(pixels)


def test_only_image_models_are_inflated() -> None:
    with pytest.raises(ValueError, match="cannot be inflated"):
        inflate(video_model())
    with pytest.raises(ValueError, match="cannot be inflated"):
        inflate(Swinv2Backbone(Swinv2Config(**SIZES)))


def test_a_masked_image_model_gives_the_network_alone() -> None:
    """Its mask token and its decoder are for images."""
    config = Swinv2Config(**(SIZES | {"image_size": 48, "window_size": 6, "encoder_stride": 8}))
    model = Swinv2ForMaskedImageModeling(config).eval()
    images = clip(4, 48, 48)
    with torch.no_grad():
        found = inflate(model, 4, 2, 2)(still(images, 4))
        expected = model.swinv2(images).last_hidden_state
    assert isinstance(found.pooler_output, Tensor)
    torch.testing.assert_close(found.pooler_output, expected.mean(1))


def test_absolute_position_embeddings_are_those_of_every_frame() -> None:
    model = image_model(use_absolute_embeddings=True)
    images = clip(4, 48, 48)
    with torch.no_grad():
        torch.testing.assert_close(inflate(model, 4, 2, 2)(still(images, 4)).logits, model(images).logits)


def test_inflation_leaves_the_image_model_alone() -> None:
    """The two share no memory."""
    model = image_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    inflated = inflate(model)
    with torch.no_grad():
        for parameter in inflated.parameters():
            parameter.add_(1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class TestConfig:
    def test_one_length_is_that_of_all_axes(self) -> None:
        config = Swinv2VideoConfig(window_size=4, num_frames=16, image_size=64)
        assert config.stages()[0].window == (4, 4, 4)
        assert config.window_size == 4

    def test_windows_of_each_stage(self) -> None:
        config = Swinv2VideoConfig(window_size=[[8, 8, 8], [8, 8, 8], [4, 8, 8], 4], image_size=256)
        assert [spec.window for spec in config.stages()] == [(8, 8, 8), (8, 8, 8), (4, 8, 8), (4, 4, 4)]

    def test_three_stages_keep_windows_apart_from_one_window(self, tmp_path: Path) -> None:
        sizes = {"depths": [1, 1, 1], "num_heads": [3, 6, 12], "image_size": 64, "num_frames": 8}
        config = Swinv2VideoConfig(**sizes, window_size=[4, 2, 2])
        assert {spec.window for spec in config.stages()} == {(4, 2, 2)}
        config = Swinv2VideoConfig(**sizes, window_size=[[4, 4, 4], [2, 2, 2], [2, 2, 2]])
        config.save_pretrained(tmp_path)
        again = Swinv2VideoConfig.from_pretrained(tmp_path)
        assert [spec.window for spec in again.stages()] == [(4, 4, 4), (2, 2, 2), (2, 2, 2)]

    @pytest.mark.parametrize(
        ("fields", "sentence"),
        [
            ({"window_size": (7, 7)}, "expected an integer or three lengths .frames, height, width."),
            ({"num_frames": 0}, "num_frames is 0; expected an integer of at least 1"),
            ({"tubelet_size": 1.5}, "tubelet_size is 1.5"),
            ({"classifier_dropout_prob": 1.0}, "classifier_dropout_prob is 1.0; expected a probability"),
            ({"frames": 8}, "Swinv2VideoConfig has no field 'frames'"),
            ({"pretrained_window_sizes": [[8, 8], 0, 0, 0]}, "three lengths"),
        ],
    )
    def test_wrong_fields_are_named(self, fields: dict[str, Any], sentence: str) -> None:
        with pytest.raises(ValueError, match=sentence):
            Swinv2VideoConfig(**fields).checked()

    def test_a_clip_shorter_than_a_patch_is_refused(self) -> None:
        with pytest.raises(ValueError, match="num_frames 1 is smaller than tubelet_size 2"):
            Swinv2VideoConfig(num_frames=1).checked()

    def test_another_number_of_frames_keeps_the_learned_windows(self) -> None:
        config = Swinv2VideoConfig(num_frames=8, image_size=64, window_size=(8, 4, 4))
        assert config.stages()[0].window == (4, 4, 4)
        longer = config.resized(64, num_frames=32)
        assert longer.stages()[0].window == (8, 4, 4)
        assert longer.stages()[0].learned_window == (4, 4, 4)


class TestTransformers:
    """Files, Auto classes and tools of transformers."""

    def test_a_folder_comes_back_to_the_bit(self, tmp_path: Path) -> None:
        model, clips = video_model(), videos()
        model.save_pretrained(tmp_path)
        swinv2.register()
        loaded = AutoModelForVideoClassification.from_pretrained(tmp_path).eval()
        assert type(loaded) is Swinv2ForVideoClassification
        with torch.no_grad():
            assert torch.equal(loaded(clips).logits, model(clips).logits)
        network, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
        assert type(network) is Swinv2VideoModel
        assert set(report["unexpected_keys"]) == {"classifier.weight", "classifier.bias"}
        assert not report["missing_keys"]

    def test_fresh_weights(self) -> None:
        """As for images: new blocks are the identity, the patch kernel has torch's own initial values."""
        config = Swinv2VideoConfig(**(SIZES | {"image_size": 48, "window_size": (2, 6, 6), "num_frames": 8}))
        model = Swinv2ForVideoClassification(config)
        kernel = model.swinv2.embeddings.patch_embeddings.projection.weight
        bound = (3 * 2 * 4 * 4) ** -0.5
        assert kernel.shape == (24, 3, 2, 4, 4)
        assert 0.9 * bound < kernel.abs().max() <= bound
        blocks = [block for stage in model.swinv2.encoder.layers for block in stage.blocks]
        assert not any(block.layernorm_before.weight.any() for block in blocks)

    def test_a_window_of_another_size_at_loading_extrapolates_the_bias(self, tmp_path: Path) -> None:
        video_model(window=4).save_pretrained(tmp_path)
        loaded = Swinv2ForVideoClassification.from_pretrained(tmp_path, num_frames=32)
        assert loaded.config.num_frames == 32
        loaded = Swinv2ForVideoClassification.from_pretrained(tmp_path, window_size=[2, 6, 6])
        assert [spec.learned_window for spec in loaded.config.stages()] == [(4, 6, 6), (4, 6, 6)]

    def test_attention_weights(self) -> None:
        """Those of the last block of each stage: windows of 2 x 6 x 6 tokens."""
        model = video_model()
        with torch.no_grad():
            output = model(videos(batch=1), output_attentions=True)
        assert [weights.shape for weights in output.attentions] == [(8, 2, 72, 72), (2, 3, 72, 72)]
        for weights in output.attentions:
            torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
