"""The zoo's numbers against the models they describe."""

import pytest
import torch

from swinv2 import Swinv2Config, Swinv2ForImageClassification, Swinv2Model
from swinv2.zoo import CHECKPOINTS, PRESETS, find_preset

# The table of the papers' sizes as it is printed: with a classifier of 1000 classes, or without.
STATED = {
    ("tiny", True): "28.35",
    ("small", True): "49.73",
    ("base", True): "87.92",
    ("large", True): "196.74",
    ("huge", True): "658.0",
    ("huge", False): "655.2",
    ("giant-1b", False): "1060.98",
    ("giant-3b", True): "3001.9",
}


def count_parameters(fields: dict, with_classifier: bool) -> int:
    with torch.device("meta"):
        config = Swinv2Config(**fields)
        model = Swinv2ForImageClassification(config) if with_classifier else Swinv2Model(config)
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("name", "with_classifier"), STATED)
def test_size_has_the_stated_number_of_parameters(name: str, with_classifier: bool) -> None:
    stated = STATED[name, with_classifier]
    count = count_parameters({**PRESETS[name].config_fields(), "num_labels": 1000}, with_classifier)
    assert f"{count / 1e6:.{len(stated.split('.')[1])}f}" == stated


@pytest.mark.parametrize("name", PRESETS)
def test_size_fields_agree_with_the_model(name: str) -> None:
    size = PRESETS[name]
    assert size.name == name
    assert count_parameters(size.config_fields(), with_classifier=False) == size.parameters
    assert STATED[name, size.stated_with_classifier] == size.stated_parameters
    assert all(stage.dim // stage.num_heads == 32 for stage in Swinv2Config(**size.config_fields()).stages())


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoint_name_says_what_its_fields_say(name: str) -> None:
    checkpoint = CHECKPOINTS[name]
    config = Swinv2Config(**checkpoint.config_fields())
    assert f"-{checkpoint.size}-" in name
    assert f"{config.window_size}-" in name
    assert str(config.image_size) in name
    assert config.num_labels == checkpoint.num_labels == (21841 if name.endswith("-22k") else 1000)
    assert ("12to" in name) == any(config.pretrained_window_sizes)
    assert (checkpoint.top1 is None) == name.endswith("-22k")
    assert checkpoint.licence == "apache-2.0"
    assert checkpoint.source.endswith(name.removeprefix("microsoft/").replace("-", "_") + ".pth")


def test_unknown_size_names_the_close_ones() -> None:
    with pytest.raises(ValueError, match="giant-1b or giant-3b"):
        find_preset("giant")
    assert find_preset("tiny").paper_name == "SwinV2-T"
