"""Every published checkpoint in every library's names: the rules know each tensor, and the sizes are found.

Names and shapes are taken from the libraries' own classes on the meta device, or from what was written down of their
sources (`recorded/`); the rules under test have no part in them.
"""

import re
from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from transformers.models.swinv2.configuration_swinv2 import Swinv2Config as TransformersConfig
from transformers.models.swinv2.modeling_swinv2 import Swinv2ForImageClassification as TransformersClassifier

import foreign
from swinv2 import Swinv2Config, Swinv2ForImageClassification
from swinv2.convert.files import Weights
from swinv2.convert.recognise import recognise
from swinv2.convert.sizes.metadata import SizeHints, read_name
from swinv2.convert.write import check_format
from swinv2.lengths import as_pair
from swinv2.zoo import CHECKPOINTS, SIZES, Checkpoint

NAMES = list(CHECKPOINTS)
TORCHVISION = {"swin_v2_t": "tiny", "swin_v2_s": "small", "swin_v2_b": "base"}


def sizes_of(checkpoint: Checkpoint) -> foreign.Sizes:
    size = SIZES[checkpoint.size]
    return foreign.Sizes(
        size.embed_dim,
        size.depths,
        size.num_heads,
        checkpoint.image_size,
        checkpoint.window_size,
        checkpoint.pretrained_window_sizes,
        checkpoint.num_labels,
    )


def on_meta(build: Callable[[], nn.Module]) -> dict[str, Tensor]:
    """Names and shapes of a library's network, as zeros that take no memory."""
    with torch.device("meta"):
        tensors = build().state_dict()
    return {name: torch.zeros(1, dtype=tensor.dtype).expand(tensor.shape) for name, tensor in tensors.items()}


def timm_name(checkpoint: Checkpoint) -> str:
    """timm's name of the same weights, from the source that both name."""
    for name in timm.list_models("swinv2_*", pretrained=True):
        if timm.get_pretrained_cfg(name).url == checkpoint.source:
            return name
    raise AssertionError(checkpoint.source)


def fits(tensors: dict[str, Tensor], dialect: str, name: str, checkpoint: Checkpoint) -> None:
    """Every tensor is known, has the shape of ours, and the configuration is that of the checkpoint."""
    recognised = recognise(Weights(tensors, name))
    assert recognised.dialect.name == dialect
    expected = Swinv2Config(**checkpoint.config_fields())
    with torch.device("meta"):
        ours = {name: tensor.shape for name, tensor in Swinv2ForImageClassification(expected).state_dict().items()}
    assert {name: tensor.shape for name, tensor in recognised.tensors.items()} == ours
    assert recognised.config.stages() == expected.stages()
    for field in ("image_size", "window_size", "embed_dim", "depths", "num_heads", "mlp_ratio", "num_labels"):
        assert getattr(recognised.config, field) == getattr(expected, field), field


@pytest.mark.parametrize("name", NAMES)
def test_the_authors(name: str) -> None:
    """From the tensors alone: the file's name says nothing."""
    checkpoint = CHECKPOINTS[name]
    fits(foreign.recorded("microsoft", sizes_of(checkpoint)), "microsoft", "weights", checkpoint)


@pytest.mark.parametrize("name", NAMES)
def test_mmpretrain(name: str) -> None:
    checkpoint = CHECKPOINTS[name]
    sizes = sizes_of(checkpoint)
    tensors = foreign.recorded("mmpretrain", sizes)
    own = f"swinv2-x-w{sizes.window_size}_in1k-{sizes.image_size}px"
    fits(tensors, "mmpretrain", own, checkpoint)


@pytest.mark.parametrize("name", NAMES)
def test_timm(name: str) -> None:
    """The windows are in the name of the architecture."""
    checkpoint = CHECKPOINTS[name]
    theirs = timm_name(checkpoint)
    fits(on_meta(lambda: timm.create_model(theirs, pretrained=False)), "timm", theirs, checkpoint)


@pytest.mark.parametrize("name", NAMES)
def test_transformers(name: str) -> None:
    """From the tensors and the hub's name."""
    checkpoint = CHECKPOINTS[name]
    config = TransformersConfig(**checkpoint.config_fields())
    fits(on_meta(lambda: TransformersClassifier(config)), "transformers", name, checkpoint)


@pytest.mark.parametrize("name", list(TORCHVISION))
def test_torchvision(name: str) -> None:
    """torchvision's own three, of which each has the sizes of one of the authors'."""
    build = getattr(torchvision.models, name)
    tensors = on_meta(build)
    window = foreign.coordinates(8, 0), foreign.pairs(8).flatten()
    for key, tensor in tensors.items():
        table = next((table for table in window if "relative" in key and table.shape == tensor.shape), tensor)
        tensors[key] = table
    checkpoint = next(one for one in CHECKPOINTS.values() if one.size == TORCHVISION[name] and one.window_size == 8)
    fits(tensors, "torchvision", "weights", checkpoint)


@pytest.mark.parametrize("name", NAMES)
def test_published_names_tell_sizes(name: str) -> None:
    """The hub's, the authors' and timm's names of every checkpoint."""
    checkpoint = CHECKPOINTS[name]
    size = checkpoint.image_size
    expected = SizeHints((size, size), checkpoint.window_size, checkpoint.pretrained_window_sizes)
    stem = checkpoint.source.rpartition("/")[2].removesuffix(".pth")
    assert [read_name(text, 4) for text in (name, stem, timm_name(checkpoint))] == [expected] * 3


def test_names_of_one_published_file_of_each_library() -> None:
    """Names of files as they are on the libraries' own pages."""
    assert read_name("swin_v2_t-b137f0e2", 4) == SizeHints((256, 256), 8, (0, 0, 0, 0))
    assert read_name("swinv2-tiny-w8_3rdparty_in1k-256px_20220803-e318968f", 4) == SizeHints((256, 256), 8, (0,) * 4)
    assert read_name("swinv2-base-w24_in21k-pre_3rdparty_in1k-384px_20220803-44eb70f8", 4) == SizeHints((384, 384), 24)
    assert read_name("swinv2_base_22k_500k", 4) == read_name("model", 4) == SizeHints()


@pytest.mark.parametrize(
    "name",
    [
        "run7_window8_256_finetuned_384",
        "swinv2_tiny_window8_256_finetuned_384",
        "my_swinv2_tiny_patch4_window8_256",
        "swinv2_tiny_patch4_window8_256_epoch3",
        "swinv2_tiny_window8_2560000",
        "window8_256",
        "swinv2_tiny_w8_mine_at_384px",
        "swinv2-tiny-w8_in1k-256px-then-384px",
    ],
)
def test_somebodys_own_name_tells_nothing(name: str) -> None:
    """Not even if there is a published name in it: what follows may say that it is no longer so."""
    assert read_name(name, 4) == SizeHints()


def test_older_names_of_timm_and_the_configurations_of_mmpretrain() -> None:
    learned = SizeHints((256, 256), 16, (12, 12, 12, 6))
    assert read_name("swinv2_base_window12to16_192to256_22kft1k", 4) == learned
    assert read_name("swinv2-tiny-w8_16xb64_in1k-256px", 4) == SizeHints((256, 256), 8, (0,) * 4)
    assert read_name("swinv2-base-w16_in21k-pre_16xb64_in1k-256px", 4) == SizeHints((256, 256), 16)


@pytest.mark.parametrize("name", NAMES)
def test_the_authors_and_timm_can_express_every_checkpoint(name: str) -> None:
    """And torchvision those whose windows are one size and were learned in place."""
    config = Swinv2Config(**CHECKPOINTS[name].config_fields())
    with torch.device("meta"):
        model = Swinv2ForImageClassification(config)
    for format in ("swinv2", "transformers", "timm", "microsoft", "mmpretrain"):
        check_format(model, format)
    stages = config.stages()
    plain = all(stage.window == stage.learned_window == as_pair("", config.window_size) for stage in stages)
    assert plain == bool(re.search(r"window8-", name))
    if plain:
        check_format(model, "torchvision")
    else:
        with pytest.raises(ValueError, match=r"torchvision cannot compute what this model does: .*stage"):
            check_format(model, "torchvision")
