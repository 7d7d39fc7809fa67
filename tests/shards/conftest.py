"""A random small model, loaded once."""

from pathlib import Path

import pytest

from small_models import make_model
from swinv2.predict.predictor import Predictor
from swinv2.shards.worker import Options, load_predictor


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def predictor(model: Path) -> Predictor:
    return load_predictor(str(model), Options(), "cpu")
