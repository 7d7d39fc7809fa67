"""A random small model over image files, against the model called by hand."""

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch import nn
from transformers import ViTImageProcessor

from swinv2 import (
    Swinv2Backbone,
    Swinv2Config,
    Swinv2ForImageClassification,
    Swinv2ForMaskedImageModeling,
    Swinv2Model,
)
from swinv2.errors import UsageError
from swinv2.images import BrokenImage, read_image
from swinv2.loading import choose_device, read_config
from swinv2.predict.describe import describe
from swinv2.predict.features import check_output, write_features
from swinv2.predict.predictor import Classifier, FeatureExtractor, Prediction

LABELS = ["ant", "bee", "cat", "dog"]


def make_model(folder: Path, model_class: type = Swinv2ForImageClassification, **fields: object) -> Path:
    """Saves a random small model that tells images apart, and its processor."""
    torch.manual_seed(0)
    size = {"image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}
    config = Swinv2Config(**{**size, "encoder_stride": 4, "id2label": dict(enumerate(LABELS)), **fields})
    model = model_class(config)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


def make_images(folder: Path, count: int = 7) -> list[Path]:
    """Random images of all shapes, the fourth one broken."""
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(0)
    paths = [folder / f"{index}.png" for index in range(count)]
    for index, path in enumerate(paths):
        shape = ((1, 1, 3), (3, 3, 3), (40, 20, 3), (5, 5, 3))[index % 4]
        Image.fromarray(random.integers(0, 255, shape, dtype=np.uint8)).save(path)
    paths[3].write_text("not an image")
    return paths


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return make_images(tmp_path_factory.mktemp("images"))


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_classifier_agrees_with_the_model_called_by_hand(model: Path, images: list[Path], batch_size: int) -> None:
    classifier = Classifier.load(str(model), "cpu")
    answers = dict(classifier.classify(images, top_k=2, batch_size=batch_size))
    assert list(answers) == images
    assert answers[images[3]] == BrokenImage(images[3], "not an image")
    network = Swinv2ForImageClassification.from_pretrained(model).eval()
    processor = ViTImageProcessor.from_pretrained(model)
    for path in (path for path in images if path != images[3]):
        with torch.no_grad():
            logits = network(**processor(images=read_image(path), return_tensors="pt")).logits[0]
        best = logits.softmax(-1).topk(2)
        predictions = answers[path]
        assert isinstance(predictions, list)
        assert [prediction.index for prediction in predictions] == best.indices.tolist()
        assert [prediction.label for prediction in predictions] == [LABELS[index] for index in best.indices]
        torch.testing.assert_close(torch.tensor([prediction.probability for prediction in predictions]), best.values)


def test_top_k_is_clipped_to_the_labels(model: Path, images: list[Path]) -> None:
    ((_, predictions),) = Classifier.load(str(model), "cpu").classify(images[:1], top_k=99)
    assert isinstance(predictions, list)
    assert {prediction.label for prediction in predictions} == set(LABELS)
    assert sum(prediction.probability for prediction in predictions) == pytest.approx(1, abs=1e-6)


def test_several_labels_an_image_take_the_sigmoid(tmp_path: Path, images: list[Path]) -> None:
    folder = make_model(tmp_path, problem_type="multi_label_classification")
    ((_, predictions),) = Classifier.load(str(folder), "cpu").classify(images[:1], top_k=4)
    with torch.no_grad():
        pixels = ViTImageProcessor.from_pretrained(folder)(images=read_image(images[0]), return_tensors="pt")
        logits = Swinv2ForImageClassification.from_pretrained(folder).eval()(**pixels).logits[0]
    assert isinstance(predictions, list)
    for prediction in predictions:
        assert prediction.probability == pytest.approx(logits.sigmoid()[prediction.index].item(), abs=1e-6)


def test_regression_is_refused(tmp_path: Path) -> None:
    folder = make_model(tmp_path, problem_type="regression")
    with pytest.raises(UsageError, match="regression"):
        Classifier.load(str(folder), "cpu")


def test_processor_that_does_not_resize_gives_batches_of_equal_size(tmp_path: Path, images: list[Path]) -> None:
    folder = make_model(tmp_path)
    ViTImageProcessor(do_resize=False).save_pretrained(folder)
    together = list(Classifier.load(str(folder), "cpu").classify(images, batch_size=16))
    alone = list(Classifier.load(str(folder), "cpu").classify(images, batch_size=1))
    for (path, first), (_, second) in zip(together, alone, strict=True):
        if path != images[3]:
            assert [p.index for p in first] == [p.index for p in second]  # pyright: ignore
    sizes = [features.shape for _, features in _sound(FeatureExtractor.load(str(folder), "stage1", "cpu"), images)]
    assert len(set(sizes)) == 3
    with pytest.raises(UsageError, match="parquet"):
        write_features(
            _sound(FeatureExtractor.load(str(folder), "stage1", "cpu"), images), tmp_path / "f.safetensors", {}
        )
    assert not (tmp_path / "f.safetensors").exists()


def _sound(extractor: FeatureExtractor, images: list[Path]) -> list[tuple[Path, torch.Tensor]]:
    return [(path, item) for path, item in extractor.extract(images, 3) if not isinstance(item, BrokenImage)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision(model: Path, images: list[Path], dtype: torch.dtype) -> None:
    sound = images[:3]
    exact = dict(Classifier.load(str(model), "cpu").classify(sound, 4))
    for path, predictions in Classifier.load(str(model), "cpu", dtype).classify(sound, 4):
        expected = {prediction.label: prediction.probability for prediction in exact[path]}  # pyright: ignore
        for prediction in predictions:  # pyright: ignore
            assert isinstance(prediction, Prediction)
            assert prediction.probability == pytest.approx(expected[prediction.label], abs=0.1)


@pytest.mark.parametrize("suffix", [".safetensors", ".parquet"])
@pytest.mark.parametrize("stage", ["pooled", "stem", "stage2"])
def test_features_in_a_file(model: Path, images: list[Path], tmp_path: Path, suffix: str, stage: str) -> None:
    file = tmp_path / f"features{suffix}"
    file.write_text("old")
    extractor = FeatureExtractor.load(str(model), stage, "cpu")
    assert write_features(_sound(extractor, images), file, {"stage": stage}) == 6
    sound = [path for path in images if path != images[3]]
    pixels = ViTImageProcessor.from_pretrained(model)(images=[read_image(path) for path in sound], return_tensors="pt")
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
        assert [Path(name).name for name in json.loads(paths)] == [path.name for path in sound]
    else:
        table = pyarrow.parquet.read_table(file)
        assert table.schema.metadata[b"stage"] == stage.encode()
        assert table["path"].to_pylist() == [str(path) for path in sound]
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


def test_unknown_stage_lists_the_known_ones(model: Path) -> None:
    with pytest.raises(UsageError, match="pooled, stem, stage1, stage2"):
        FeatureExtractor.load(str(model), "stage9")


def test_model_without_a_classifier_is_refused(tmp_path: Path) -> None:
    folder = make_model(tmp_path, Swinv2ForMaskedImageModeling)
    with pytest.raises(UsageError, match="no trained weights for classifier"):
        Classifier.load(str(folder), "cpu")
    FeatureExtractor.load(str(folder), "pooled", "cpu")


def test_models_that_cannot_be_loaded(tmp_path: Path) -> None:
    cases: list[tuple[str, str]] = []

    def case(name: str, message: str) -> Path:
        cases.append((str(tmp_path / name), message))
        return make_model(tmp_path / name)

    (case("no_config", "it has no config.json") / "config.json").unlink()
    (case("no_json", "cannot be read") / "config.json").write_text("{")
    (case("other", "of the type 'vit'") / "config.json").write_text('{"model_type": "vit"}')
    (case("impossible", "no possible model") / "config.json").write_text('{"model_type": "swinv2", "depths": []}')
    (case("no_weights", "weights of") / "model.safetensors").unlink()
    (case("damaged", "weights of") / "model.safetensors").write_bytes(b"xx")
    (case("no_processor", "no image processor") / "preprocessor_config.json").unlink()
    make_model(tmp_path / "grey", num_channels=1)
    cases.append((str(tmp_path / "grey"), "1 channels"))
    (tmp_path / "file").touch()
    cases += [(str(tmp_path / "file"), "is a file"), (str(tmp_path / "gone"), "there is no folder"), ("tiny", "a size")]
    cases += [("nobody/nothing", "hub did not give it"), ("microsoft/swinv2-tiny-patch4-window8-255", "Did you mean")]
    for name, message in cases:
        with pytest.raises(UsageError, match=message):
            Classifier.load(name, "cpu")


def test_devices() -> None:
    assert choose_device("cpu").type == "cpu"
    assert isinstance(choose_device("auto"), torch.device)
    for name in ("gpu", "meta", "cuda:99", "cpu:x"):
        with pytest.raises(UsageError, match="--device cpu"):
            choose_device(name)


def test_describe_needs_no_weights(model: Path, tmp_path: Path) -> None:
    described = describe(str(model))
    assert described.labels == LABELS
    assert described.parameters == sum(
        p.numel() for p in Swinv2ForImageClassification(read_config(str(model))).parameters()
    )
    assert [stage.grid for stage in described.stages] == [(8, 8), (4, 4)]
    assert [stage.shift for stage in described.stages] == [(2, 2), (0, 0)]
    assert " runs: " in described.attention
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
