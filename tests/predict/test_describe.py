"""A model in numbers, against the model itself and against what was published."""

from pathlib import Path

import pytest

from small_models import LABELS, make_model
from swinv2 import Swinv2ForImageClassification, Swinv2ForMaskedImageModeling
from swinv2.errors import UsageError
from swinv2.loading import read_config
from swinv2.predict.describe import describe


def test_describe_needs_no_weights(model: Path, tmp_path: Path) -> None:
    described = describe(str(model))
    assert described.labels == LABELS
    assert described.parameters == sum(
        p.numel() for p in Swinv2ForImageClassification(read_config(str(model))).parameters()
    )
    assert [stage.grid for stage in described.stages] == [(8, 8), (4, 4)]
    assert [stage.shift for stage in described.stages] == [(2, 2), (0, 0)]
    assert " runs: " in described.attention
    assert described.num_channels == 3
    headless = describe(str(make_model(tmp_path, Swinv2ForMaskedImageModeling)))
    assert headless.num_labels is None
    assert headless.model_class == "Swinv2ForMaskedImageModeling"


def test_describe_sizes_and_published_checkpoints() -> None:
    assert describe("giant-3b").parameters == 2_997_843_680
    published = describe("microsoft/swinv2-base-patch4-window12to24-192to384-22kto1k-ft")
    assert (published.top1, published.licence, published.num_labels) == (87.1, "apache-2.0", 1000)
    assert [stage.pretrained_window for stage in published.stages] == [(12, 12)] * 3 + [(6, 6)]
    with pytest.raises(UsageError, match="Did you mean tiny"):
        describe("tini")
