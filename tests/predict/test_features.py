"""Features in a file: the right numbers beside the right paths, whole or not there."""

import json
import sys
from pathlib import Path

import pyarrow.parquet
import pytest
import torch
from safetensors import safe_open
from transformers import ViTImageProcessor

from small_models import sound_features
from swinv2 import Swinv2Backbone, Swinv2Model
from swinv2.errors import UsageError
from swinv2.images import read_image
from swinv2.predict.features import check_output, write_features
from swinv2.predict.predictor import FeatureExtractor


@pytest.mark.parametrize("suffix", [".safetensors", ".parquet"])
@pytest.mark.parametrize("stage", ["pooled", "stem", "stage2"])
def test_features_in_a_file(model: Path, images: list[Path], tmp_path: Path, suffix: str, stage: str) -> None:
    file = tmp_path / f"features{suffix}"
    file.write_text("old")
    extractor = FeatureExtractor.load(str(model), stage, "cpu")
    assert write_features(sound_features(extractor, images), file, {"stage": stage}) == 6
    valid = [path for path in images if path != images[3]]
    pixels = ViTImageProcessor.from_pretrained(model)(images=[read_image(path) for path in valid], return_tensors="pt")
    with torch.no_grad():
        if stage == "pooled":
            expected = Swinv2Model.from_pretrained(model).eval()(**pixels).pooler_output
        else:
            backbone = Swinv2Backbone.from_pretrained(model, out_features=[stage]).eval()
            expected = backbone(**pixels).feature_maps[0]
    if suffix == ".safetensors":
        with safe_open(file, "pt") as opened:
            features = opened.get_tensor("features")
            paths = opened.metadata()["paths"]
        assert [Path(name).name for name in json.loads(paths)] == [path.name for path in valid]
    else:
        table = pyarrow.parquet.read_table(file)
        assert table.schema.metadata[b"stage"] == stage.encode()
        assert table["path"].to_pylist() == [str(path) for path in valid]
        rows = zip(table["features"].to_pylist(), table["shape"].to_pylist(), strict=True)
        features = torch.stack([torch.tensor(values).view(shape) for values, shape in rows])
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


@pytest.mark.parametrize("suffix", [".safetensors", ".parquet"])
def test_an_interrupted_file_leaves_the_old_one(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"features{suffix}"
    file.write_text("old")

    def interrupted():
        yield Path("a"), torch.zeros(5_000_000)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_features(interrupted(), file, {})
    assert file.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    assert write_features([], tmp_path / f"none{suffix}", {}) == 0
    assert not (tmp_path / f"none{suffix}").exists()


def test_files_have_ordinary_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    write_features([(Path("a"), torch.zeros(2))], tmp_path / "f.safetensors", {})
    write_features([(Path("a"), torch.zeros(2))], tmp_path / "f.parquet", {})
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1


def test_output_is_checked_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "folder.parquet").mkdir()
    for name, message in (("a.pt", "ends in"), ("gone/a.parquet", "no folder"), ("folder.parquet", "is a folder")):
        with pytest.raises(UsageError, match=message):
            check_output(tmp_path / name)


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r"install swinv2\[parquet\]"):
        check_output(tmp_path / "a.parquet")
    check_output(tmp_path / "a.safetensors")
    write_features([(Path("a"), torch.zeros(2))], tmp_path / "a.safetensors", {})
