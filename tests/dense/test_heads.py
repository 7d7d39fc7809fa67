"""Segmenters and detectors have the backbone of their checkpoint, and answer as with transformers' backbone."""

import copy
import importlib.util
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.models.swinv2.modeling_swinv2 import Swinv2Backbone as TheirBackbone

import peers
import swinv2
from scenes import SMALL, SMALL_HEADS
from swinv2 import Swinv2Backbone, Swinv2Config, Swinv2ForImageClassification, Swinv2ForMaskedImageModeling
from swinv2.dense import HEADS, add_head, from_backbone, load_backbone
from swinv2.dense.backbone import set_image_size
from swinv2.dense.heads import maps_of
from swinv2.errors import UsageError
from swinv2.train.optim.groups import Role, parameter_roles

LABELS = ["road", "sky", "tree"]

pytestmark = pytest.mark.usefixtures("registered")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of drawn weights."""
    folder = tmp_path_factory.mktemp("checkpoint")
    peers.draw_weights(Swinv2ForImageClassification(Swinv2Config(**SMALL))).save_pretrained(folder)
    return folder


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of a model's backbone, by their names in `Swinv2Backbone`."""
    (backbone,) = (found for found in module.modules() if isinstance(found, Swinv2Backbone))
    return backbone.state_dict()


def loss_of(model: nn.Module, head: str, images: Tensor) -> Tensor:
    """A loss of the model, with made-up labels."""
    batch, _, height, width = images.shape
    boxes = torch.tensor([[8.0, 8.0, 40.0, 30.0], [2.0, 20.0, 20.0, 50.0]], dtype=images.dtype)
    masks = torch.zeros(2, height, width, dtype=images.dtype)
    masks[0, 8:30, 8:40] = masks[1, 20:50, 2:20] = 1
    if head == "upernet":
        labels = (torch.arange(height * width).reshape(1, height, width) // 300 % 4).repeat(batch, 1, 1)
        return model(images, labels=labels.where(labels < 3, 255)).loss
    if head == "mask2former":
        torch.manual_seed(0)  # it draws the points of its loss
        return model(images, mask_labels=[masks] * batch, class_labels=[torch.tensor([0, 2])] * batch).loss.sum()
    if head == "rt_detr":
        scaled = torch.tensor([[0.3, 0.3, 0.3, 0.2], [0.6, 0.6, 0.2, 0.4]], dtype=images.dtype)
        return model(images, labels=[{"class_labels": torch.tensor([0, 2]), "boxes": scaled}] * batch).loss
    torch.manual_seed(0)  # they draw the boxes of their losses
    target = {"boxes": boxes, "labels": torch.tensor([1, 3]), "masks": masks.to(torch.uint8)}
    return torch.stack(list(model(list(images.sigmoid()), [target] * batch).values())).sum()


@pytest.mark.parametrize("head", HEADS)
class TestEachHead:
    def test_every_tensor_of_the_backbone_is_the_checkpoints(self, head: str, checkpoint: Path) -> None:
        """A configuration of transformers gives random ones, without a word."""
        model = from_backbone(checkpoint, head, LABELS, **SMALL_HEADS[head])
        stored = load_file(checkpoint / "model.safetensors")
        loaded = tensors_of(model)
        names = {name for name in loaded if not name.startswith("hidden_states_norms.")}
        assert len(names) > 50
        for name in names:
            assert torch.equal(loaded[name], stored[f"swinv2.{name}"]), name
        left = {name.removeprefix("swinv2.") for name in stored} - names
        assert left == {"layernorm.weight", "layernorm.bias", "classifier.weight", "classifier.bias"}

    def test_it_takes_the_backbone_as_it_is(self, head: str, checkpoint: Path) -> None:
        backbone = load_backbone(checkpoint, out_features=maps_of(head))
        backbone.set_attn_implementation("eager")
        model = add_head(backbone, head, LABELS, **SMALL_HEADS[head])
        assert any(module is backbone for module in model.modules())
        assert backbone.config._attn_implementation == "eager"

    def test_it_learns(self, head: str, checkpoint: Path) -> None:
        model = from_backbone(checkpoint, head, LABELS, drop_path_rate=0.5, **SMALL_HEADS[head])
        assert model.training
        loss_of(model, head, peers.images((64, 96))).backward()
        assert {name for name, each in model.named_parameters() if each.grad is None} == set()

    # In fp32 a rounding error moves a box past a threshold, or a number past the bend of a loss.
    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-3), (torch.float64, 1e-9)], ids=str)
    @pytest.mark.parametrize("size", [(96, 64), (75, 90)], ids=str)
    def test_answers_and_gradients_are_those_of_transformers_backbone(
        self, head: str, size: tuple[int, int], dtype: torch.dtype, tolerance: float, checkpoint: Path
    ) -> None:
        if head == "rt_detr" and size == (75, 90):
            pytest.skip("RT-DETR takes multiples of 32 pixels only")
        if head == "mask2former" and dtype == torch.float64:
            pytest.skip("Mask2Former computes its positions in fp32")
        ours = from_backbone(checkpoint, head, LABELS, norm_feature_maps=False, drop_path_rate=0.0, **SMALL_HEADS[head])
        theirs = put_theirs(copy.deepcopy(ours)).to(dtype)
        losses = [loss_of(model, head, peers.images(size).to(dtype)) for model in (ours.to(dtype), theirs)]
        assert peers.relative_error(losses[0].detach(), losses[1].detach()) < min(tolerance, 1e-5)
        for loss in losses:
            loss.backward()
        expected = peers.gradients(theirs)
        largest = max(gradient.norm().item() for gradient in expected.values())
        for name, gradient in peers.gradients(ours).items():
            # Some gradients are zero but for rounding: before a norm that takes them away.
            assert (gradient - expected[name]).norm() < tolerance * (expected[name].norm() + 1e-2 * largest), name

    def test_layers_and_decay_of_the_parameters(self, head: str, checkpoint: Path) -> None:
        """The head and the norms of the maps learn at the full rate; vectors of the backbone do not decay."""
        roles = parameter_roles(from_backbone(checkpoint, head, LABELS, **SMALL_HEADS[head]))
        last = sum(SMALL["depths"]) + 1
        inside = {name: role for name, role in roles.items() if re.search(r"encoder\.layers\.\d+\.blocks", name)}
        assert {role.layer for role in inside.values()} == set(range(1, last))
        outside = {
            name: role for name, role in roles.items() if "embeddings." not in name and "encoder.layers" not in name
        }
        assert {role.layer for role in outside.values()} == {last}
        norms = {role for name, role in roles.items() if "hidden_states_norms" in name}
        assert norms == {Role(last, False)}
        assert not any(role.decays for name, role in roles.items() if "logit_scale" in name or "position_bias" in name)

    def test_unknown_labels_and_maps(self, head: str, checkpoint: Path) -> None:
        for labels in ([], ["a", "a"], "abc", 3):
            with pytest.raises(UsageError, match="expected a list of at least one name, and each once"):
                from_backbone(checkpoint, head, labels)
        with pytest.raises(UsageError, match="the head has no setting 'hiden_size'"):
            from_backbone(checkpoint, head, LABELS, hiden_size=32)
        backbone = load_backbone(checkpoint, out_features=["stage1", "stage2", "stage3", "stage4"])
        with pytest.raises(UsageError, match=r"the network of .* has no map 'stage5'; it has stem,"):
            load_backbone(checkpoint, out_features=["stage5"])
        backbone = load_backbone(checkpoint, out_features=["stage1", "stage3"])
        with pytest.raises(UsageError, match=rf"the head '{head}' needs the maps .*stage2, stage3, stage4, and"):
            add_head(backbone, head, LABELS)


def put_theirs(model: nn.Module) -> nn.Module:
    """Puts transformers' backbone in the place of ours, with the same weights; returns the model."""
    (path, ours), *_ = ((name, each) for name, each in model.named_modules() if isinstance(each, Swinv2Backbone))
    fields = {**SMALL, "drop_path_rate": 0.0, "out_features": list(ours.out_features)}
    theirs = TheirBackbone(transformers.Swinv2Config(**fields)).train(model.training)
    theirs.load_state_dict(ours.state_dict())
    theirs.grids = ours.grids  # of all images of a batch, which the pyramid wants to know
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, theirs)
    return model


@pytest.mark.parametrize("head", ["upernet", "mask2former", "rt_detr"])
def test_a_saved_model_loads_by_the_classes_of_transformers(head: str, checkpoint: Path, tmp_path: Path) -> None:
    model = from_backbone(checkpoint, head, LABELS, **SMALL_HEADS[head]).eval()
    peers.draw_weights(model)
    # Also with windows that were changed after the model was built.
    set_image_size(model, 96, 6)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert loaded.config.backbone_config.stages()[0].window == (6, 6)
    images = peers.images((96, 96))
    with torch.no_grad():
        ours, again = model(images), loaded(images)
    assert loaded.config.id2label == dict(enumerate(LABELS))
    assert "goldfish" not in (tmp_path / "config.json").read_text()
    assert torch.equal(ours[0], again[0])
    assert any(isinstance(each, Swinv2Backbone) for each in loaded.modules())


def test_unknown_head(checkpoint: Path) -> None:
    with pytest.raises(UsageError, match="there is no head 'unet'; expected one of upernet, mask2former"):
        from_backbone(checkpoint, "unet", LABELS)


@pytest.mark.parametrize("head", ["mask2former", "rt_detr"])
def test_heads_that_need_scipy(head: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "scipy" else find(name, *rest))
    with pytest.raises(UsageError, match=r"needs SciPy; install it by: pip install 'swinv2\[dense\]'"):
        from_backbone(checkpoint, head, LABELS)


def test_rt_detr_has_no_more_queries_than_tokens(checkpoint: Path) -> None:
    assert from_backbone(checkpoint, "rt_detr", LABELS).config.num_queries == 8 * 8 + 4 * 4 + 2 * 2
    assert from_backbone(checkpoint, "rt_detr", LABELS, 256).config.num_queries == 300


def save_masked(folder: Path) -> Path:
    model = Swinv2ForMaskedImageModeling(Swinv2Config(**SMALL, encoder_stride=32))
    peers.draw_weights(model).save_pretrained(folder)
    return folder


def save_backbone(folder: Path) -> Path:
    peers.draw_weights(Swinv2Backbone(Swinv2Config(**SMALL))).save_pretrained(folder)
    return folder


def save_timm(folder: Path) -> Path:
    fields = {"img_size": 64, "embed_dim": 16, "depths": (1, 2, 1, 1), "num_heads": (1, 2, 2, 4), "window_size": 4}
    torch.save(peers.timm_model("swinv2_tiny_window8_256", **fields).state_dict(), folder / "model.pth")
    return folder / "model.pth"


@pytest.mark.parametrize("save", [save_masked, save_backbone, save_timm])
def test_checkpoints_of_all_kinds(save: Callable[[Path], Path], tmp_path: Path) -> None:
    path = save(tmp_path)
    sizes = {} if path.is_dir() else {"trained_image_size": 64, "trained_window_size": 4}
    backbone = load_backbone(path, norm_feature_maps=False, **sizes)
    stored = load_file(path / "model.safetensors") if path.is_dir() else dict(swinv2.load(path, **sizes).state_dict())
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, stored.get(name, stored.get(f"swinv2.{name}"))), name
    with torch.no_grad():
        maps = backbone(peers.images((64, 64))).feature_maps
    assert [each.shape[1:] for each in maps] == [(16, 16, 16), (32, 8, 8), (64, 4, 4), (128, 2, 2)]


def test_a_saved_backbone_keeps_the_norms_that_it_has(tmp_path: Path) -> None:
    config = Swinv2Config(**SMALL, norm_feature_maps=True, out_features=["stage2", "stage4"])
    saved = peers.draw_weights(Swinv2Backbone(config))
    saved.save_pretrained(tmp_path)
    norms = load_backbone(tmp_path, 128).hidden_states_norms
    for name, norm in norms.items():
        expected = saved.hidden_states_norms[name].weight if name in saved.hidden_states_norms else torch.ones(1)
        assert torch.equal(norm.weight, expected.expand_as(norm.weight))


def test_a_checkpoint_that_lacks_a_tensor_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    del tensors["swinv2.encoder.layers.1.blocks.1.attention.self.query.weight"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text((checkpoint / "config.json").read_text())
    with pytest.raises(UsageError, match="query"):
        from_backbone(tmp_path, "upernet", LABELS)


@pytest.mark.parametrize("head", ["faster_rcnn", "mask_rcnn"])
def test_a_detector_finds_in_a_batch_what_it_finds_in_one_image(head: str, checkpoint: Path) -> None:
    """torchvision pads the smaller images of a batch, and tells no backbone."""
    fields = {**SMALL_HEADS[head], "max_size": 160, "box_score_thresh": 0.0, "rpn_post_nms_top_n_test": 50}
    detector = peers.draw_weights(from_backbone(checkpoint, head, LABELS, **fields)).eval()
    images = [peers.images(size)[0].sigmoid() for size in ((64, 64), (64, 150), (80, 70))]
    with torch.no_grad():
        together, alone = detector(images), [detector([image])[0] for image in images]
    for ours, expected in zip(together, alone, strict=True):
        assert len(ours["scores"]) == len(expected["scores"]) > 10
        assert torch.equal(ours["labels"], expected["labels"])
        for name in ("boxes", "scores"):
            assert torch.allclose(ours[name], expected[name], atol=1e-3), name


def test_a_pyramid_of_a_padded_batch(checkpoint: Path) -> None:
    model = from_backbone(checkpoint, "faster_rcnn", LABELS, min_size=64, max_size=160).eval()
    images = [peers.images(size)[0].sigmoid() for size in ((64, 64), (64, 150))]
    with torch.no_grad():
        batch, _ = model.detector.transform(images)
        # In another layout, as wrappers may make it.
        pyramid = model.detector.backbone
        levels = pyramid(batch.tensors.to(memory_format=torch.channels_last).clone(), batch.image_sizes)
        alone = pyramid(model.detector.transform(images[:1])[0].tensors)
    assert list(levels) == ["0", "1", "2", "3", "pool"]
    for name, level in levels.items():
        height, width = alone[name].shape[2:]
        assert torch.allclose(level[:1, :, :height, :width], alone[name], atol=1e-5)
        assert level[0, :, :, width:].abs().max() == 0


@pytest.mark.parametrize("head", ["faster_rcnn", "mask_rcnn"])
def test_a_detector_learns_from_images_of_several_sizes(head: str, checkpoint: Path) -> None:
    model = from_backbone(checkpoint, head, LABELS, **SMALL_HEADS[head])
    images, targets = [], []
    for height, width in ((64, 64), (80, 50), (64, 64)):
        images.append(peers.images((height, width))[0].sigmoid())
        masks = torch.zeros(1, height, width, dtype=torch.uint8)
        targets.append({"boxes": torch.tensor([[5.0, 5, 40, 40]]), "labels": torch.tensor([1]), "masks": masks})
    assert model.labels == tuple(LABELS)
    losses = model(tuple(images), targets)
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    zero = {**targets[0], "labels": torch.tensor([0])}
    flat, thin = ({**targets[0], "boxes": boxes} for boxes in (torch.ones(4), torch.tensor([[5.0, 5, 5, 9]])))
    for wrong, sentence in (
        (None, "targets are missing: training needs one dictionary for each of the 3 images"),
        (targets[:2], "targets are missing"),
        ([flat] * 3, r"the boxes of image 0 have shape \(4,\); expected \(boxes, 4\)"),
        ([thin] * 3, r"the box \[5.0, 5.0, 5.0, 9.0\] of image 0 has no area"),
        ([zero] * 3, r"the labels of image 0 are \[0\]; expected 1 to 3: 0 is the background"),
    ):
        with pytest.raises(ValueError, match=sentence):
            model(images, wrong)


def test_facts_about_the_training_reach_the_checkpoint(tmp_path: Path) -> None:
    path = save_timm(tmp_path)
    trained = {"trained_image_size": 64, "trained_window_size": 4}
    model = from_backbone(path, "upernet", LABELS, trained=trained, **SMALL_HEADS["upernet"])
    assert model.config.backbone_config.window_size == 4


def test_a_classifier_of_a_configuration_with_norms(checkpoint: Path, tmp_path: Path) -> None:
    """It has none: only backbones do."""
    config = Swinv2Config(**SMALL, norm_feature_maps=True, id2label={0: "Swinv2Backbone", 1: "b"})
    Swinv2ForImageClassification(config).save_pretrained(tmp_path)
    assert list(load_backbone(tmp_path).hidden_states_norms) == ["stage1", "stage2", "stage3", "stage4"]
    assert not hasattr(load_backbone(tmp_path, norm_feature_maps=False), "hidden_states_norms")


@pytest.mark.parametrize("head", ["faster_rcnn", "mask_rcnn"])
def test_a_small_box_has_an_area_under_autocast(head: str, checkpoint: Path) -> None:
    """bf16 has eight bits: from 256 on, corners a pixel apart would be the same number, and the loss not a number."""
    fields = SMALL_HEADS[head] | {"min_size": 300, "max_size": 400}
    model = from_backbone(checkpoint, head, LABELS, **fields)
    masks = torch.zeros(1, 300, 400, dtype=torch.uint8)
    masks[0, 270:290, 301:303] = 1
    target = {"boxes": torch.tensor([[301.3, 270.0, 302.7, 290.0]]), "labels": torch.tensor([1]), "masks": masks}
    for seed in range(2):
        torch.manual_seed(seed)
        with torch.autocast("cpu", torch.bfloat16):
            losses = model([peers.images((300, 400))[0].sigmoid()], [target])
        assert all(torch.isfinite(loss) for loss in losses.values()), losses
        assert {loss.dtype for loss in losses.values()} == {torch.float32}


@pytest.mark.parametrize("head", ["faster_rcnn", "mask_rcnn"])
def test_boxes_are_not_rounded_under_autocast(head: str, checkpoint: Path) -> None:
    """The layers of all heads compute in bf16, as the backbone does; boxes, scores and masks are in fp32."""
    fields = SMALL_HEADS[head] | {"min_size": 300, "max_size": 400, "box_score_thresh": 0.0}
    model = from_backbone(checkpoint, head, LABELS, **fields).eval()
    dtypes: set[torch.dtype] = set()
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and name.split(".")[1] in ("rpn", "roi_heads"):
            module.register_forward_hook(lambda module, inputs, answer: dtypes.add(answer.dtype))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        (found,) = model([peers.images((300, 400))[0].sigmoid()])
    assert dtypes == {torch.bfloat16}
    assert all(each.dtype == torch.float32 for name, each in found.items() if name != "labels")
    assert (found["boxes"] != found["boxes"].bfloat16()).float().mean() > 0.5
