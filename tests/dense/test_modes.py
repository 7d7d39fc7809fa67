"""Our backbone and transformers' in the same head, with the same weights, in every mode; and padded batches.

The modes: images and batches of many sizes, training with drop path, 16 bits, compiled, checkpointed, and gradients of
every memory layout.
"""

import copy
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.models.swinv2.modeling_swinv2 import Swinv2Backbone as TheirBackbone

import peers
from scenes import SMALL, SMALL_HEADS
from signatures import CHECKS_SIGNATURES
from swinv2 import Swinv2Backbone, Swinv2Config
from swinv2.dense import add_head
from swinv2.dense.backbone import backbone_of
from swinv2.dense.detectors import FeaturePyramid
from swinv2.layers.block import DropPath

HEADS = ("upernet", "pyramid")
LABELS = ["road", "sky", "tree"]
SIZES = [(64, 64), (33, 47), (75, 90), (50, 131), (20, 9)]
"""Images that fit the windows, and odd ones, some smaller than a window of the last stages."""

pytestmark = pytest.mark.usefixtures("registered")


def draw_backbone(drop_path_rate: float = 0.0, seed: int = 1) -> Swinv2Backbone:
    """A small backbone of four maps.

    With some weights, such as those of seed 0, transformers' own gradients in fp32 are 3e-5 from those in fp64; with
    those of seed 1, 8e-6.
    """
    maps = ["stage1", "stage2", "stage3", "stage4"]
    fields: dict[str, Any] = {**SMALL, "drop_path_rate": drop_path_rate, "out_features": maps}
    backbone = Swinv2Backbone(Swinv2Config(**fields)).train()
    peers.draw_weights(backbone, seed)
    return backbone


def theirs_of(backbone: Swinv2Backbone) -> Any:
    """transformers' backbone with the same weights and drop path."""
    rate, maps = backbone.config.drop_path_rate, list(backbone.out_features)
    fields: dict[str, Any] = {**SMALL, "drop_path_rate": rate, "out_features": maps}
    theirs: Any = TheirBackbone(transformers.Swinv2Config(**fields)).train(backbone.training)
    theirs.load_state_dict(backbone.state_dict())
    # The pyramid asks for them.
    theirs.grids = backbone.grids
    return theirs


def draw_pair(head: str, drop_path_rate: float = 0.0, seed: int = 1) -> tuple[nn.Module, nn.Module]:
    """The same head on our backbone and on transformers', in training mode.

    The weights of the head are its initial ones: `peers.draw_weights` would draw scales of batch norms near 0, and then
    the answer would hardly depend on the image.
    """
    torch.manual_seed(seed)
    backbone = draw_backbone(drop_path_rate, seed)
    if head == "pyramid":
        ours: nn.Module = FeaturePyramid(backbone, 16)
        ours, theirs, name = ours.train(), copy.deepcopy(ours), "body"
    else:
        ours = add_head(backbone, head, LABELS, **SMALL_HEADS[head])
        theirs, name = transformers.UperNetForSemanticSegmentation(copy.deepcopy(ours.config)).train(), "backbone"
        theirs.load_state_dict(ours.state_dict())
    setattr(theirs, name, theirs_of(backbone))
    return ours, theirs


def answer_of(model: nn.Module, images: Tensor) -> Tensor:
    """The logits, or all levels of the pyramid, as one tensor (B, numbers)."""
    answer = model(images)
    levels = answer.values() if isinstance(model, FeaturePyramid) else [answer.logits]
    return torch.cat([level.flatten(1) for level in levels], 1)


def loss_of(model: nn.Module, images: Tensor) -> Tensor:
    """A loss of the model, with made-up labels."""
    batch, _, height, width = images.shape
    if isinstance(model, FeaturePyramid):
        return answer_of(model, images).square().mean()
    labels = torch.arange(height * width).reshape(1, height, width) // 300 % 4
    return model(images, labels=labels.where(labels < 3, 255).repeat(batch, 1, 1)).loss


def gradients_of(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """The gradients of a model's loss by the name of the parameter."""
    model.zero_grad()
    loss_of(model, images).backward()
    return peers.gradients(model)


def assert_equal_gradients(ours: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Compares the gradient of each parameter; some are zero but for rounding, before a norm that takes them away."""
    assert ours.keys() == expected.keys()
    largest = max(gradient.norm() for gradient in expected.values())
    for name, gradient in expected.items():
        assert (ours[name] - gradient).norm() < tolerance * (gradient.norm() + 1e-2 * largest), name


def step(model: nn.Module, images: Tensor, seed: int) -> dict[str, Tensor]:
    """The gradients of a model's loss, with branches dropped by this seed."""
    torch.manual_seed(seed)
    return {name: gradient.clone() for name, gradient in gradients_of(model, images).items()}


def step_of_theirs(model: nn.Module, images: Tensor, seed: int) -> dict[str, Tensor]:
    """The same for transformers' backbone, which drops the same branches.

    Both draw one number r for each image and branch, in the same order. Ours keeps the branch if r < 1 - rate,
    transformers' if r >= rate. So the same seed drops other branches, unless transformers' draws 1 - r.
    """
    draw = torch.rand

    def mirrored(size: Sequence[int], dtype: torch.dtype | None = None, device: torch.device | None = None) -> Tensor:
        return (1 - draw(size, device=device)).to(dtype)

    with mock.patch.object(torch, "rand", mirrored):
        return step(model, images, seed)


def assert_close_together(ours: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Compares all gradients as one vector: in fp32 the rounding of a single small one can exceed 1e-5."""
    assert ours.keys() == expected.keys()
    found, wanted = (torch.cat([each[name].flatten() for name in expected]) for each in (ours, expected))
    assert peers.relative_error(found, wanted) < tolerance


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(("size", "count"), [*zip(SIZES, (1, 2, 3, 1, 2), strict=True)], ids=str)
def test_answers_for_images_and_batches_of_many_sizes(head: str, size: tuple[int, int], count: int) -> None:
    ours, theirs = (model.eval() for model in draw_pair(head))
    batches = [peers.images(size, count=count, seed=seed) for seed in (1, 2)]
    with torch.no_grad():
        found, expected = (torch.cat([answer_of(model, batch) for batch in batches]) for model in (ours, theirs))
    assert peers.difference(found, expected) < 1e-5
    # Also if gradients are wanted: other kernels then compute the answer.
    assert peers.difference(torch.cat([answer_of(ours, batch) for batch in batches]), expected) < 1e-5


@pytest.mark.parametrize("head", HEADS)
def test_images_of_every_memory_layout(head: str) -> None:
    ours, theirs = (model.eval() for model in draw_pair(head))
    images = peers.images((80, 100))[:, :, 3:78, 5:95]
    expected = gradients_of(theirs, images.contiguous())
    for layout, each in {
        "slice": images,
        "channels last": images.contiguous(memory_format=torch.channels_last),
        "columns first": images.transpose(2, 3).contiguous().transpose(2, 3),
        "batch last": images.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
    }.items():
        assert torch.equal(each, images), layout
        assert not each.is_contiguous(), layout
        assert_close_together(gradients_of(ours, each), expected, 1e-5)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("seed", range(3))
def test_a_training_step_with_drop_path(head: str, seed: int) -> None:
    ours, theirs = draw_pair(head, drop_path_rate=0.5)
    images = peers.images((75, 90), count=3)
    found, expected = step(ours, images, seed), step_of_theirs(theirs, images, seed)
    assert_close_together(found, expected, 1e-5)
    # Without rounding, each gradient.
    found, expected = step(ours.double(), images.double(), seed), step_of_theirs(theirs.double(), images.double(), seed)
    assert_equal_gradients(found, expected, 1e-9)
    # Other branches, other gradients.
    other = step(ours, images.double(), seed + 10)
    assert max(peers.relative_error(other[name], gradient) for name, gradient in expected.items()) > 0.1


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_one_seed_drops_the_same_branches_in_every_backend(backend: str) -> None:
    ours, _ = draw_pair("upernet", drop_path_rate=0.5)
    images = peers.images((75, 90), count=3)
    expected = step(ours, images, seed=1)
    backbone_of(ours).set_attn_implementation(backend)
    assert_close_together(step(ours, images, seed=1), expected, 1e-5)


class TestHalfPrecision:
    """The error of bf16, against transformers' in fp32: ours is not larger than that of transformers in bf16.

    Both round the same weights and maps; ours keeps sums and norms in fp32. So our error is expected to be smaller, but
    roundings are like draws: over three networks, a fifth more would still be chance, twice as much a fault.
    """

    MARGIN = 1.2

    @pytest.mark.parametrize("head", HEADS)
    @pytest.mark.parametrize("autocast", [True, False], ids=["autocast", "weights"])
    def test_answers(self, head: str, autocast: bool) -> None:
        errors = torch.zeros(2, dtype=torch.float64)
        for seed in range(3):
            pair = tuple(model.eval() for model in draw_pair(head, seed=seed))
            images = peers.images((75, 90), seed=seed)
            with torch.no_grad():
                exact = answer_of(pair[1], images)
                for index, model in enumerate(pair):
                    found = self.in_bf16(answer_of, model, images, autocast)
                    assert found.dtype == torch.bfloat16
                    errors[index] += peers.difference(found, exact)
        assert 1e-3 < errors[0] < self.MARGIN * errors[1], errors

    @pytest.mark.parametrize("head", HEADS)
    @pytest.mark.parametrize("autocast", [True, False], ids=["autocast", "weights"])
    def test_gradients(self, head: str, autocast: bool) -> None:
        errors = torch.zeros(2, dtype=torch.float64)
        for seed in range(3):
            # Statistics of batches would only add the rounding errors of the head.
            pair = tuple(model.eval() for model in draw_pair(head, seed=seed))
            images = peers.images((75, 90), seed=seed)
            exact = {name: gradient.clone() for name, gradient in gradients_of(pair[1], images).items()}
            for index, model in enumerate(pair):
                found = self.in_bf16(gradients_of, model, images, autocast)
                assert {each.dtype for each in found.values()} == {torch.float32 if autocast else torch.bfloat16}
                vectors = [torch.cat([each[name].float().flatten() for name in exact]) for each in (found, exact)]
                errors[index] += peers.relative_error(*vectors)
        assert 1e-3 < errors[0] < self.MARGIN * errors[1], errors

    @staticmethod
    def in_bf16(run: Callable[..., Any], model: nn.Module, images: Tensor, autocast: bool) -> Any:
        """The result of a model under autocast, or with weights in bf16, which it then keeps."""
        if not autocast:
            return run(model.bfloat16(), images.bfloat16())
        with torch.autocast("cpu", torch.bfloat16):
            return run(model, images)


@pytest.mark.parametrize("is_reentrant", [False, True])
@pytest.mark.parametrize("head", HEADS)
def test_checkpointing_gives_the_same_gradients(head: str, is_reentrant: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block runs again in the backward pass, and must drop the branches that it dropped before."""
    draws, draw = [], DropPath.draw_keep_mask

    def recorded(self: DropPath, samples: Tensor) -> Tensor:
        draws.append(draw(self, samples))
        return draws[-1]

    monkeypatch.setattr(DropPath, "draw_keep_mask", recorded)
    model, _ = draw_pair(head, drop_path_rate=0.5)
    images = peers.images((75, 90), count=3)
    expected = {name: gradient.clone() for name, gradient in step(model, images, seed=1).items()}
    count = len(draws)
    backbone: Any = backbone_of(model)
    if hasattr(backbone, "activation_checkpointing_enable"):
        backbone.activation_checkpointing_enable({"use_reentrant": is_reentrant})
    else:
        backbone.gradient_checkpointing_enable({"use_reentrant": is_reentrant})
    found = step(model, images, seed=1)
    # Two branches of each of the four blocks that may drop one.
    assert (count, len(draws)) == (8, 8 + 8 + 8)
    assert not torch.stack(draws).all()
    for name, gradient in expected.items():
        assert torch.equal(found[name], gradient), name


USES: dict[str, Callable[[Tensor], Tensor]] = {
    "channels first": lambda each: each.contiguous(),
    "channels last": lambda each: each.contiguous(memory_format=torch.channels_last),
    "pooled": lambda each: F.adaptive_avg_pool2d(each, (3, 2)),
    "resized": lambda each: F.interpolate(each, size=(11, 13), mode="bilinear", align_corners=False),
    "slice": lambda each: each[:, 1::2, :1, ::2],
    "transposed": lambda each: each.transpose(2, 3).flatten(2),
    "mean": lambda each: each.mean((2, 3)),
    "convolution": lambda each: F.conv2d(each, torch.ones(2, each.shape[1], 3, 3, dtype=each.dtype), padding=1),
    "image by image": lambda each: torch.stack(list(each)[::-1]),
}
"""What a head may do with a map. The gradient comes back with the strides of the last operation: rows, columns,
channels or images first, or with strides of 0."""


def maps_with(numbers: Tensor, backbone: nn.Module, images: Tensor) -> tuple[Tensor, ...]:
    """The maps of a backbone whose drop path draws these numbers, one for each image."""

    def given_numbers(size: int | Sequence[int], dtype: torch.dtype = torch.float32, device: Any = None) -> Tensor:
        return numbers.view(size).to(device, dtype)

    with mock.patch.object(torch, "rand", given_numbers):
        return backbone(images).feature_maps


@pytest.mark.parametrize("keep", [[0, 1, 0], [1, 0, 1], [0, 0, 0], [1, 1, 1]], ids=str)
@pytest.mark.parametrize("use", USES)
def test_gradients_of_every_memory_layout(use: str, keep: list[int]) -> None:
    """An index that selects exactly one image keeps the strides of the batch, which the kernels once did not take."""
    ours: Any = draw_backbone(drop_path_rate=0.5)
    theirs, images = theirs_of(ours), peers.images((50, 66), count=3)
    for dtype in (torch.float32, torch.float64):
        gradients: list[dict[str, Tensor]] = []
        # Ours keeps the branches of the images with small numbers, transformers' those with large ones.
        for model, numbers in ((ours, 1 - torch.tensor(keep)), (theirs, torch.tensor(keep))):
            answers = [USES[use](each) for each in maps_with(numbers, model.to(dtype), images.to(dtype))]
            generator = torch.Generator().manual_seed(1)
            # In the layout of the answers.
            given = [torch.empty_like(each).copy_(torch.randn(each.shape, generator=generator)) for each in answers]
            model.zero_grad()
            torch.autograd.backward(answers, given)
            gradients.append(peers.gradients(model))
        if dtype == torch.float32:
            assert_close_together(gradients[0], gradients[1], 1e-5)
        else:
            assert_equal_gradients(gradients[0], gradients[1], 1e-9)


@pytest.mark.parametrize("keep", [[0, 1, 0], [1, 1, 1]], ids=str)
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 3, 1), (0, 1, 3, 2), (1, 2, 3, 0), (3, 2, 1, 0)], ids=str)
@pytest.mark.parametrize("is_strided", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)], ids=str)
def test_gradients_given_in_any_layout(
    dtype: torch.dtype, tolerance: float, is_strided: bool, order: tuple[int, ...], keep: list[int]
) -> None:
    """The gradient of the last map reaches the last block as it is: with these axes in memory, slowest first."""
    ours: Any = draw_backbone(drop_path_rate=0.5)
    images = peers.images((50, 66), count=3).to(dtype)
    last = maps_with(1 - torch.tensor(keep), ours.to(dtype), images)[-1]
    plain = torch.randn(last.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    back = sorted(range(4), key=order.__getitem__)
    laid_out = plain.permute(order).contiguous()
    if is_strided:
        # Every other number of a larger tensor.
        laid_out = torch.stack([laid_out, torch.full_like(laid_out, torch.nan)], -1)[..., 0]
    laid_out = laid_out.permute(back)
    assert torch.equal(laid_out, plain)
    assert order == (0, 1, 2, 3) or laid_out.stride() != plain.stride()
    inputs = list(ours.parameters())
    expected = torch.autograd.grad(last, inputs, plain, retain_graph=True, allow_unused=True)
    found = torch.autograd.grad(last, inputs, laid_out, allow_unused=True)
    assert any(gradient is not None for gradient in expected)
    for name, gradient, wanted in zip(dict(ours.named_parameters()), found, expected, strict=True):
        assert (gradient is None) == (wanted is None), name
        if wanted is not None:
            assert (gradient - wanted).norm() <= tolerance * wanted.norm(), name


def padded(images: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Images of several sizes in one batch, padded with NaN at the bottom and right, and its mask."""
    size = [max(image.shape[axis] for image in images) for axis in (1, 2)]
    batch, mask = torch.full((len(images), 3, *size), torch.nan), torch.zeros(len(images), *size, dtype=torch.long)
    for index, image in enumerate(images):
        batch[index, :, : image.shape[1], : image.shape[2]] = image
        mask[index, : image.shape[1], : image.shape[2]] = 1
    return batch, mask


def drawn(sizes: Sequence[tuple[int, int]], seed: int = 1) -> list[Tensor]:
    """An image of each size, all different."""
    return [peers.images(size, count=1, seed=seed + index)[0] for index, size in enumerate(sizes)]


def several_sizes(least: int, most: int) -> st.SearchStrategy[list[tuple[int, int]]]:
    """Sizes of two or three images, of which some may be equal."""
    length = st.integers(least, most)
    size = st.tuples(length, length)
    return st.lists(size, min_size=1, max_size=3).flatmap(
        lambda some: st.lists(st.sampled_from(some), min_size=2, max_size=3)
    )


@settings(max_examples=25, deadline=None)
@given(sizes=several_sizes(1, 90), changed=st.integers(0, 2))
def test_an_image_of_a_padded_batch_has_its_own_maps(sizes: list[tuple[int, int]], changed: int) -> None:
    """Whatever the padding is, and whatever the other images are."""
    backbone, images = draw_backbone().eval(), drawn(sizes)
    changed %= len(images)
    with torch.no_grad():
        batch, mask = padded(images)
        together = backbone(batch, pixel_mask=mask).feature_maps
        batch[changed] *= -2
        again = backbone(batch, pixel_mask=mask).feature_maps
        for index, image in enumerate(images):
            alone = backbone(image[None]).feature_maps
            for ours, other, expected in zip(together, again, alone, strict=True):
                rows, columns = expected.shape[2:]
                inside = ours[index, :, :rows, :columns]
                assert (inside - expected[0]).abs().max() < 1e-4 * expected.abs().max()
                assert ours[index, :, rows:].count_nonzero() == ours[index, :, :, columns:].count_nonzero() == 0
                assert torch.equal(ours[index], other[index]) == (index != changed)


def assert_same_objects(found: dict[str, Tensor], expected: dict[str, Tensor], side: int) -> None:
    """The same labels, scores, boxes and masks; objects with nearly equal scores may change places."""
    assert found["labels"].sort().values.tolist() == expected["labels"].sort().values.tolist()
    for index, box in enumerate(found["boxes"]):
        distances = (expected["boxes"] - box).abs().amax(1) / side + (expected["scores"] - found["scores"][index]).abs()
        distances[expected["labels"] != found["labels"][index]] = torch.inf
        assert distances.min() < 1e-4
        assert (found["masks"][index] - expected["masks"][distances.argmin()]).abs().max() < 1e-3


@settings(max_examples=8, deadline=None)
@given(sizes=several_sizes(30, 90), changed=st.integers(0, 2))
def test_a_detector_finds_the_objects_of_each_image(sizes: list[tuple[int, int]], changed: int) -> None:
    fields = {**SMALL_HEADS["mask_rcnn"], "box_score_thresh": 0.0, "box_detections_per_img": 8}
    torch.manual_seed(0)
    detector = add_head(draw_backbone(), "mask_rcnn", LABELS, **fields, rpn_post_nms_top_n_test=30)
    peers.draw_weights(detector).eval()
    images = [image.sigmoid() for image in drawn(sizes)]
    changed %= len(images)
    with torch.no_grad():
        together = detector(images)
        again = detector([image.flip(1) if index == changed else image for index, image in enumerate(images)])
        for index, image in enumerate(images):
            assert len(together[index]["scores"]) > 2
            assert_same_objects(together[index], detector([image])[0], max(sizes[index]))
            if index != changed:
                assert_same_objects(again[index], together[index], max(sizes[index]))


@pytest.mark.slow
@pytest.mark.skipif(CHECKS_SIGNATURES, reason="torch.compile cannot trace the checks of signatures; see the next test")
@pytest.mark.filterwarnings("ignore:`torch.jit.script", "ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("size", [(64, 64), (50, 70)], ids=str)
def test_a_compiled_training_step(head: str, size: tuple[int, int]) -> None:
    torch.compiler.reset()
    ours, theirs = (model.eval() for model in draw_pair(head))
    images = peers.images(size)
    compiled: Any = torch.compile(answer_of, fullgraph=True, dynamic=False, backend="aot_eager")
    found, expected = compiled(ours, images), answer_of(theirs, images)
    assert peers.difference(found, expected) < 1e-5
    for answer in (found, expected):
        answer.square().mean().backward()
    assert_close_together(peers.gradients(ours), peers.gradients(theirs), 1e-5)


@pytest.mark.slow
@pytest.mark.skipif(not CHECKS_SIGNATURES, reason="the tests of compiled models run in this process")
def test_compiled_models_pass_without_signature_checks() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "slow", "-k", "compiled", __file__]
    environment = {**os.environ, "SWINV2_TYPECHECK": "0"}
    answer = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=280)
    assert answer.returncode == 0, answer.stdout[-3000:]
    assert "4 passed" in answer.stdout
