"""The same network as in transformers, timm and torchvision: same answers and gradients, at every size.

The peers are built by their own libraries with drawn weights; see `peers` for why a careless draw shows nothing.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import peers
import swinv2
from swinv2.layers.attention import CosineWindowAttention, WindowGeometry

TOLERANCE = 5e-6
"""Of an answer, in units of the distance between two images' answers. Measured: at most 3.3e-6."""

WEIGHTS_TOLERANCE = 1e-5
"""The same of attention weights, which a scale of up to 100 makes less exact: transformers' own in fp32 are
off by up to 4.1e-6 from its own in fp64, ours by up to 5.3e-6, with products by another library."""

GRADIENT_TOLERANCE = 1e-4
"""Of each gradient, in units of its own norm. Gradients of logit_scale, of biases and of the position bias are sums
over all windows of terms that cancel: transformers' own in fp32 are off by up to 4e-5 from its own in fp64, and so are
ours, which differ from transformers' by up to 1e-5 (eager) and 4e-5 (sdpa)."""

EXACT_GRADIENT_TOLERANCE = 1e-12
"""The same in fp64. Measured: at most 7e-14."""

FORMS = ("eager", "sdpa")
TINY = {"embed_dim": 96, "depths": [2, 2, 2, 2], "num_heads": [3, 6, 12, 24]}
BASE = {
    "embed_dim": 128,
    "depths": [2, 2, 1, 1],
    "num_heads": [4, 8, 16, 32],
    "pretrained_window_sizes": [12, 12, 12, 6],
}
NARROW = {"embed_dim": 48, "depths": [2, 2, 2, 2], "num_heads": [3, 6, 12, 24]}


@dataclass(frozen=True)
class Case:
    """A network and the size of the images it is given."""

    size: tuple[int, int]
    fields: dict[str, Any]
    wants_gradients: bool = True


CASES = [
    pytest.param(Case((256, 256), {**TINY, "image_size": 256, "window_size": 8}), id="tiny-w8-256"),
    pytest.param(
        Case((256, 256), {**TINY, "image_size": 256, "window_size": 16}), id="tiny-w16-256", marks=pytest.mark.slow
    ),
    pytest.param(Case((256, 256), {**BASE, "image_size": 256, "window_size": 16}, False), id="base-12to16-256"),
    pytest.param(
        Case((384, 384), {**BASE, "depths": [2, 1, 1, 1], "image_size": 384, "window_size": 24}, False),
        id="base-12to24-384",
    ),
    pytest.param(
        Case((384, 384), {**BASE, "depths": [2, 2, 2, 2], "image_size": 384, "window_size": 24}),
        id="base-12to24-384-gradients",
        marks=pytest.mark.slow,
    ),
    pytest.param(Case((64, 64), {**TINY, "image_size": 256, "window_size": 8}), id="64-on-256"),
    pytest.param(Case((224, 224), {**NARROW, "image_size": 256, "window_size": 8}), id="224-on-256"),
    pytest.param(Case((200, 312), {**TINY, "image_size": 256, "window_size": 8}), id="200x312-on-256"),
    pytest.param(Case((31, 33), {**TINY, "image_size": 256, "window_size": 8}), id="31x33-on-256"),
    pytest.param(
        Case((1000, 600), {**NARROW, "depths": [2, 1, 1, 1], "image_size": 256, "window_size": 8}, False),
        id="1000x600-on-256",
    ),
    pytest.param(
        Case((1000, 600), {**TINY, "image_size": 256, "window_size": 8}),
        id="1000x600-on-256-gradients",
        marks=pytest.mark.slow,
    ),
    pytest.param(
        Case((96, 128), {"depths": [2, 2, 2], "num_heads": [3, 6, 12], "image_size": 128, "window_size": 8}),
        id="3-stages",
    ),
    pytest.param(Case((128, 128), {**NARROW, "num_channels": 1, "image_size": 128, "window_size": 8}), id="1-channel"),
    pytest.param(
        Case((64, 64), {**NARROW, "depths": [2, 1, 1, 1], "image_size": 256, "window_size": 24}),
        id="window-larger-than-image",
    ),
    pytest.param(Case((96, 80), {**NARROW, "image_size": 64, "window_size": 32}), id="window-larger-than-map"),
    pytest.param(Case((100, 100), {**TINY, "image_size": 100, "window_size": 7}), id="odd-maps"),
    pytest.param(Case((70, 90), {**NARROW, "qkv_bias": False, "image_size": 64, "window_size": 4}), id="no-bias"),
]


@dataclass
class Peer:
    """What transformers' network says of two images, and how to ask ours the same."""

    case: Case
    model: nn.Module
    images: Tensor
    outputs: Any
    gradients: dict[str, Tensor] = field(default_factory=dict)
    image_gradient: Tensor | None = None
    exact_gradients: dict[str, Tensor] = field(default_factory=dict)

    def ours(self, backend: str) -> swinv2.Swinv2ForImageClassification:
        """Our network with the same weights."""
        config = swinv2.Swinv2Config(**self.case.fields, num_labels=10, attn_implementation=backend)
        model = swinv2.Swinv2ForImageClassification(config).eval()
        model.load_state_dict(self.model.state_dict())
        return model


def weigh(logits: Tensor) -> Tensor:
    """A scalar in which every logit has its own weight."""
    return (logits * torch.randn(logits.shape, generator=torch.Generator().manual_seed(2))).sum()


@pytest.fixture(scope="module", params=CASES)
def peer(request: pytest.FixtureRequest) -> Peer:
    """transformers' network, its answer for two images, and its gradients."""
    case = request.param
    model = peers.transformers_model("Swinv2ForImageClassification", num_labels=10, **case.fields)
    images = peers.images(case.size, case.fields.get("num_channels", 3))
    images.requires_grad_(case.wants_gradients)
    with torch.set_grad_enabled(case.wants_gradients):
        outputs = model(images, output_hidden_states=True, output_attentions=True)
    result = Peer(case, model, images.detach(), outputs)
    if case.wants_gradients:
        weigh(outputs.logits).backward()
        result.gradients, result.image_gradient = peers.gradients(model), images.grad
    return result


@pytest.mark.parametrize("backend", FORMS)
def test_transformers(peer: Peer, backend: str) -> None:
    """Logits, hidden states, attention weights and all gradients are transformers' own."""
    model = peer.ours(backend)
    images = peer.images.clone().requires_grad_(peer.case.wants_gradients)
    with torch.set_grad_enabled(peer.case.wants_gradients):
        outputs = model(images, output_hidden_states=True, output_attentions=backend == "eager")

    names = ["hidden_states", "reshaped_hidden_states"] + (["attentions"] if backend == "eager" else [])
    differences = {"logits": peers.difference(outputs.logits, peer.outputs.logits)}
    for name in names:
        for index, (ours, theirs) in enumerate(zip(outputs[name], peer.outputs[name], strict=True)):
            differences[f"{name}[{index}]"] = peers.difference(ours, theirs)
    allowed = {name: WEIGHTS_TOLERANCE if name.startswith("attentions") else TOLERANCE for name in differences}
    assert {name: value for name, value in differences.items() if not value < allowed[name]} == {}

    if peer.case.wants_gradients:
        weigh(outputs.logits).backward()
        ours = peers.gradients(model) | {"pixel_values": images.grad}
        theirs = peer.gradients | {"pixel_values": peer.image_gradient}
        assert ours.keys() == theirs.keys()
        errors = {name: peers.relative_error(gradient, theirs[name]) for name, gradient in ours.items()}
        assert {name: error for name, error in errors.items() if not error < GRADIENT_TOLERANCE} == {}


@pytest.mark.parametrize("backend", [pytest.param("eager", marks=pytest.mark.slow), *FORMS[1:]])
def test_gradients_in_double_precision(peer: Peer, backend: str) -> None:
    """Where nothing is rounded away, every gradient is transformers' own."""
    if not peer.case.wants_gradients:
        pytest.skip("too large for gradients; a slow case has them")
    if not peer.exact_gradients:
        exact = copy.deepcopy(peer.model).double()
        weigh(exact(peer.images.double()).logits).backward()
        peer.exact_gradients = {name: gradient.clone() for name, gradient in peers.gradients(exact).items()}
    model = peer.ours(backend).double()
    weigh(model(peer.images.double()).logits).backward()
    ours = peers.gradients(model)
    errors = {name: peers.relative_error(ours[name], exact) for name, exact in peer.exact_gradients.items()}
    assert {name: error for name, error in errors.items() if not error < EXACT_GRADIENT_TOLERANCE} == {}


SMALL = {"embed_dim": 48, "depths": [2, 2, 2], "num_heads": [3, 6, 12], "window_size": 4}


@pytest.mark.parametrize("backend", FORMS)
@pytest.mark.parametrize("name", ["Swinv2Model", "Swinv2ForImageClassification"])
def test_outputs_have_transformers_names_and_order(name: str, backend: str) -> None:
    """The outputs' fields, and the plain tuple, are those of transformers."""
    fields = {**SMALL, "image_size": 64}
    theirs = peers.transformers_model(name, **fields)
    ours = getattr(swinv2, name)(swinv2.Swinv2Config(**fields, attn_implementation=backend)).eval()
    ours.load_state_dict(theirs.state_dict())
    images = peers.images((50, 70))
    flags = {"output_hidden_states": True, "output_attentions": True}
    with torch.no_grad():
        assert list(ours(images, **flags).keys()) == list(theirs(images, **flags).keys())
        for flags in ({}, {"output_hidden_states": True}, {"output_attentions": True}):
            pairs = zip(
                ours(images, return_dict=False, **flags), theirs(images, return_dict=False, **flags), strict=True
            )
            for our_item, their_item in pairs:
                assert isinstance(our_item, tuple) == isinstance(their_item, tuple)
                if isinstance(our_item, Tensor):
                    assert peers.difference(our_item, their_item) < TOLERANCE
                else:
                    assert [item.shape for item in our_item] == [item.shape for item in their_item]


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("backend", FORMS)
def test_masked_image_modeling(backend: str, channels: int) -> None:
    """Loss, reconstruction and gradients of masked-image modelling; transformers takes the configured size only."""
    fields = {**SMALL, "image_size": 96, "window_size": 8, "encoder_stride": 16, "num_channels": channels}
    theirs = peers.transformers_model("Swinv2ForMaskedImageModeling", **fields)
    config = swinv2.Swinv2Config(**fields, attn_implementation=backend)
    ours = swinv2.Swinv2ForMaskedImageModeling(config).eval()
    ours.load_state_dict(theirs.state_dict())
    images = peers.images((96, 96), channels)
    masked = torch.rand(2, 24 * 24, generator=torch.Generator().manual_seed(3)) < 0.6
    our_outputs, their_outputs = (model(images, bool_masked_pos=masked) for model in (ours, theirs))
    assert peers.difference(our_outputs.reconstruction, their_outputs.reconstruction) < TOLERANCE
    assert peers.relative_error(our_outputs.loss.detach(), their_outputs.loss.detach()) < TOLERANCE
    our_outputs.loss.backward()
    their_outputs.loss.backward()
    expected = peers.gradients(theirs)
    errors = {name: peers.relative_error(value, expected[name]) for name, value in peers.gradients(ours).items()}
    assert {name: error for name, error in errors.items() if not error < GRADIENT_TOLERANCE} == {}


@pytest.mark.parametrize("backend", FORMS)
@pytest.mark.parametrize("size", [(64, 64), (100, 84)])
def test_backbone(size: tuple[int, int], backend: str) -> None:
    """Feature maps, hidden states and attention weights of the backbone."""
    fields = {**SMALL, "image_size": 64, "out_features": ["stem", "stage1", "stage3"]}
    theirs = peers.transformers_model("Swinv2Backbone", **fields)
    ours = swinv2.Swinv2Backbone(swinv2.Swinv2Config(**fields, attn_implementation=backend)).eval()
    ours.load_state_dict(theirs.state_dict())
    flags = {"output_hidden_states": True, "output_attentions": backend == "eager"}
    with torch.no_grad():
        outputs, expected = ours(peers.images(size), **flags), theirs(peers.images(size), **flags)
        plain = ours(peers.images(size))
    assert ours.channels == theirs.channels
    for name in ("feature_maps", "hidden_states") + (("attentions",) if backend == "eager" else ()):
        for our_map, their_map in zip(outputs[name], expected[name], strict=True):
            assert peers.difference(our_map, their_map) < TOLERANCE
    assert plain.hidden_states is None
    assert plain.attentions is None


NARROW_TIMM = {"embed_dim": 48, "depths": (2, 2, 2, 2)}
TIMM_CASES = [
    pytest.param("swinv2_tiny_window8_256", {"depths": (1, 2, 2, 2)}, None, id="tiny-w8-256"),
    pytest.param("swinv2_tiny_window16_256", {"depths": (1, 2, 1, 1)}, None, id="tiny-w16-256", marks=pytest.mark.slow),
    pytest.param(
        "swinv2_base_window12to16_192to256",
        {"depths": (1, 2, 1, 1)},
        None,
        id="base-12to16-256",
        marks=pytest.mark.slow,
    ),
    pytest.param(
        "swinv2_base_window12to24_192to384",
        {"depths": (2, 2, 2, 2)},
        None,
        id="base-12to24-384",
        marks=pytest.mark.slow,
    ),
    # Windows and shifts are clipped on each axis for itself: window (4, 8) in the last stage, shift (0, 4) before.
    pytest.param("swinv2_tiny_window8_256", {**NARROW_TIMM, "img_size": (128, 256)}, None, id="wide"),
    pytest.param("swinv2_tiny_window8_256", {**NARROW_TIMM, "img_size": (256, 64)}, None, id="tall"),
    # A rectangular window for all stages, clipped in the last; and the windows in which they learned.
    pytest.param(
        "swinv2_tiny_window8_256",
        {
            **NARROW_TIMM,
            "img_size": (64, 128),
            "window_size": (4, 8),
            "pretrained_window_sizes": ((6, 4), 5, 0, (3, 2)),
        },
        None,
        id="window-4x8",
    ),
    # A window for each stage.
    pytest.param(
        "swinv2_tiny_window8_256",
        {**NARROW_TIMM, "img_size": (64, 128), "window_size": ((8, 4), (4, 16), 4, 2)},
        None,
        id="window-by-stage",
    ),
    # Another size than the configured one, where no map needs padding up: timm would shift first and pad then.
    pytest.param("swinv2_tiny_window8_256", {**NARROW_TIMM, "dynamic_img_size": True}, (512, 256), id="other-size"),
]


@pytest.mark.parametrize(("name", "arguments", "other_size"), TIMM_CASES)
def test_timm(name: str, arguments: dict[str, Any], other_size: tuple[int, int] | None) -> None:
    """Logits, feature maps and gradients are timm's, rectangular windows included."""
    theirs = peers.timm_model(name, num_classes=10, **arguments)
    size = theirs.patch_embed.img_size
    config = {
        "image_size": list(size),
        "embed_dim": theirs.embed_dim,
        "depths": arguments["depths"],
        "num_heads": [stage.blocks[0].num_heads for stage in theirs.layers],
        "window_size": arguments.get("window_size", theirs.layers[0].blocks[0].window_size[1]),
        "pretrained_window_sizes": [stage.blocks[0].attn.pretrained_window_size for stage in theirs.layers],
        "num_labels": 10,
    }
    images = peers.images(other_size or size)
    expected = theirs(images)
    weigh(expected).backward()
    tensors = peers.from_timm(peers.learned(theirs))
    expected_gradients = peers.from_timm(peers.gradients(theirs))
    maps = theirs.forward_intermediates(images, intermediates_only=True)

    for backend in FORMS:
        ours = swinv2.Swinv2ForImageClassification(swinv2.Swinv2Config(**config, attn_implementation=backend)).eval()
        ours.load_state_dict(tensors)
        check_logits_and_gradients(ours, images, expected, expected_gradients)
        check_feature_maps(ours, images, maps)


@pytest.mark.parametrize(
    ("size", "image_size", "window"),
    [((256, 256), 256, (8, 8)), ((224, 224), 256, (8, 8)), ((64, 192), (64, 192), (2, 6))],
)
def test_torchvision(size: tuple[int, int], image_size: int | tuple[int, int], window: tuple[int, int]) -> None:
    """Logits and gradients are torchvision's, at the sizes where its windows are those of the other libraries."""
    depths = [1, 2, 2, 1]
    theirs = peers.torchvision_model(
        embed_dim=96, depths=depths, num_heads=[3, 6, 12, 24], window_size=list(window), num_classes=10
    )
    images = peers.images(size)
    expected = theirs(images)
    weigh(expected).backward()
    tensors = peers.from_torchvision(peers.learned(theirs))
    expected_gradients = peers.from_torchvision(peers.gradients(theirs))
    for backend in FORMS:
        config = swinv2.Swinv2Config(
            **{**TINY, "depths": depths},
            image_size=image_size,
            window_size=window,
            num_labels=10,
            attn_implementation=backend,
        )
        ours = swinv2.Swinv2ForImageClassification(config).eval()
        ours.load_state_dict(tensors)
        check_logits_and_gradients(ours, images, expected, expected_gradients)


def check_logits_and_gradients(
    ours: nn.Module, images: Tensor, expected: Tensor, expected_gradients: dict[str, Tensor]
) -> None:
    """Holds our network's logits, and the gradients of `weigh`, to a peer's."""
    logits = ours(images).logits
    assert peers.difference(logits, expected) < TOLERANCE
    weigh(logits).backward()
    ours_by_name = peers.gradients(ours)
    assert ours_by_name.keys() == expected_gradients.keys()
    errors = {name: peers.relative_error(value, expected_gradients[name]) for name, value in ours_by_name.items()}
    assert {name: error for name, error in errors.items() if not error < GRADIENT_TOLERANCE} == {}


def check_feature_maps(classifier: nn.Module, images: Tensor, expected: list[Tensor]) -> None:
    """Holds the maps of a backbone with a classifier's weights to a peer's."""
    config = swinv2.Swinv2Config(**{**classifier.config.to_dict(), "out_indices": None, "out_features": None})
    config.out_indices = range(1, len(expected) + 1)
    backbone = swinv2.Swinv2Backbone(config).eval()
    loaded = backbone.load_state_dict(classifier.swinv2.state_dict(), strict=False)
    assert loaded.missing_keys == []
    assert all(name.startswith("layernorm.") for name in loaded.unexpected_keys)
    with torch.no_grad():
        maps = backbone(images).feature_maps
    for ours, theirs in zip(maps, expected, strict=True):
        assert peers.difference(ours, theirs) < TOLERANCE


def change_geometry(**changes: Any) -> Callable[[nn.Module], None]:
    """A defect: every block's windows with something else in them."""

    def defect(model: nn.Module) -> None:
        for module in model.modules():
            if isinstance(module, CosineWindowAttention):
                module.geometry = WindowGeometry(**{**vars(module.geometry), **changes})

    return defect


def swap_query_and_key(model: nn.Module) -> None:
    """A defect: queries and keys of one block in the other's place."""
    attention = model.swinv2.encoder.layers[1].blocks[1].attention.self
    query, key = attention.query.weight.data.clone(), attention.key.weight.data.clone()
    attention.query.weight.data, attention.key.weight.data = key, query


def stretch_one_query(model: nn.Module) -> None:
    """A defect: one block's query matrix a thousandth too large, which its bias betrays."""
    model.swinv2.encoder.layers[0].blocks[0].attention.self.query.weight.data *= 1.001


def change_norm_epsilon(model: nn.Module) -> None:
    """A defect: another epsilon in the norms of patch merging."""
    for stage in list(model.swinv2.encoder.layers)[:-1]:
        stage.downsample.norm.eps = 1e-4


@pytest.mark.parametrize(
    ("defect", "times"),
    [
        pytest.param(change_geometry(shift=(0, 0)), 1e4, id="no shift"),
        pytest.param(change_geometry(pretrained_window=(0, 0)), 1e3, id="pretrained windows ignored"),
        pytest.param(change_geometry(mask_padding=True), 1e3, id="padding hidden"),
        pytest.param(swap_query_and_key, 1e3, id="query and key swapped"),
        pytest.param(stretch_one_query, 4, id="one query matrix off by a thousandth"),
        pytest.param(change_norm_epsilon, 2, id="another epsilon"),
    ],
)
def test_the_measure_sees_a_defect(defect: Callable[[nn.Module], None], times: float) -> None:
    """Small defects move the measure far above the tolerance: the comparisons above are not blind."""
    fields = {**SMALL, "image_size": 96, "window_size": 8, "pretrained_window_sizes": [5, 5, 5], "num_labels": 10}
    theirs = peers.transformers_model("Swinv2ForImageClassification", **fields)
    ours = swinv2.Swinv2ForImageClassification(swinv2.Swinv2Config(**fields)).eval()
    ours.load_state_dict(theirs.state_dict())
    images = peers.images((90, 110))
    with torch.no_grad():
        expected = theirs(images).logits
        assert peers.difference(ours(images).logits, expected) < TOLERANCE
        defect(ours)
        assert peers.difference(ours(images).logits, expected) > times * TOLERANCE
