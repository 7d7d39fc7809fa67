"""The average of weights: its formula, its place, its file."""

from pathlib import Path

import pytest
import torch
from torch import nn

from swinv2.errors import UsageError
from swinv2.train.optim.ema import WeightAverage


@pytest.fixture
def model() -> nn.Linear:
    model = nn.Linear(1, 1)
    nn.init.constant_(model.weight, 1.0)
    return model


def learn(model: nn.Linear, value: float) -> None:
    with torch.no_grad():
        model.weight.fill_(value)


def test_it_follows_the_weights(model: nn.Linear) -> None:
    average = WeightAverage(model, 0.75)
    average.update_parameters(model)
    learn(model, 5.0)
    average.update_parameters(model)
    # The first update takes the weights as they are.
    assert average.module.weight.item() == pytest.approx(0.75 * 1.0 + 0.25 * 5.0)


def test_it_gives_the_weights_back_whatever_happens(model: nn.Linear) -> None:
    average = WeightAverage(model, 0.5)
    learn(model, 3.0)

    def fail() -> None:
        with average.replacing(model):
            assert model.weight.item() == 1.0
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert model.weight.item() == 3.0


def test_its_file(model: nn.Linear, tmp_path: Path) -> None:
    average = WeightAverage(model, 0.5)
    average.save(tmp_path)
    learn(model, 3.0)
    other = WeightAverage(model, 0.5)
    other.load(tmp_path, torch.device("cpu"))
    assert other.module.weight.item() == 1.0


def test_a_checkpoint_without(model: nn.Linear, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no average of the weights; resume without --ema-decay"):
        WeightAverage(model, 0.5).load(tmp_path, torch.device("cpu"))
