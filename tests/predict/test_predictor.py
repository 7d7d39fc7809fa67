"""A random small model over image files, against the model called by hand."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import ViTImageProcessor

from small_models import LABELS, make_model, sound_features
from swinv2 import (
    Swinv2ForImageClassification,
    Swinv2ForMaskedImageModeling,
    Swinv2Model,
)
from swinv2.errors import UsageError
from swinv2.images import BrokenImage, read_image
from swinv2.loading import choose_device
from swinv2.predict.features import write_features
from swinv2.predict.predictor import Classifier, FeatureExtractor, Prediction


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


def test_one_channel_is_grey(tmp_path: Path, images: list[Path]) -> None:
    """Also if the stored processor, as transformers makes it for colours, would turn grey into three channels."""
    folder = make_model(tmp_path / "grey", num_channels=1)
    fields = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(fields | {"do_convert_rgb": True}))
    with Image.open(images[0]) as image:
        pixels = ViTImageProcessor(**fields)(image.convert("RGB").convert("L"), return_tensors="pt").pixel_values
    with torch.no_grad():
        expected = Swinv2ForImageClassification.from_pretrained(folder).eval()(pixels).logits[0].softmax(-1).max()
        pooled = Swinv2Model.from_pretrained(folder).eval()(pixels).pooler_output[0]
    ((_, predictions),) = Classifier.load(str(folder), "cpu").classify(images[:1], top_k=1)
    assert isinstance(predictions, list)
    assert predictions[0].probability == pytest.approx(float(expected), abs=1e-6)
    ((_, features),) = sound_features(FeatureExtractor.load(str(folder), device="cpu"), images[:1])
    torch.testing.assert_close(features, pooled)


def test_four_channels_are_in_no_file(tmp_path: Path, images: list[Path]) -> None:
    folder = make_model(tmp_path / "four", num_channels=4)
    with pytest.raises(UsageError, match=r"takes 4 channels, but an image file has 3, or 1 as grey. Give it arrays"):
        list(Classifier.load(str(folder), "cpu").classify(images))


def test_a_processor_of_other_channels(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "grey", num_channels=1)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    with pytest.raises(UsageError, match=r"has 3 means, but the model takes 1 channel; give it one mean"):
        Classifier.load(str(folder), "cpu")


def test_processes_that_read_change_nothing(model: Path, images: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = Classifier.load(str(model), "cpu")
    here = list(classifier.classify(images, batch_size=3))
    monkeypatch.setattr("swinv2.reading.FEW", 1)
    assert list(classifier.classify(images, batch_size=3)) == here
    assert here[3] == (images[3], BrokenImage(images[3], "not an image"))


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


@pytest.mark.parametrize("batch_size", [1, 3])
def test_labels_with_features_are_those_of_each_alone(model: Path, images: list[Path], batch_size: int) -> None:
    """From one run of the model, bit for bit."""
    classifier = Classifier.load(str(model), "cpu")
    extractor = FeatureExtractor.load(str(model), device="cpu")
    pixels = [classifier.prepare(read_image(path)) for path in images[:3]]
    for begin in range(0, 3, batch_size):
        batch = pixels[begin : begin + batch_size]
        both = classifier.label_with_features(batch, 2)
        assert [labels for labels, _ in both] == classifier.label(batch, 2)
        for (_, found), expected in zip(both, extractor.features(batch), strict=True):
            assert torch.equal(found, expected)


def test_what_decides_the_answers(tmp_path: Path) -> None:
    """Weights, labels, processor; not the name, nor what other programs wrote into the configuration."""
    about = Classifier.load(str(make_model(tmp_path / "a")), "cpu").about()
    same = make_model(tmp_path / "b")
    fields = json.loads((same / "config.json").read_text())
    (same / "config.json").write_text(json.dumps(fields | {"transformers_version": "99", "architectures": ["X"]}))
    assert Classifier.load(str(same), "cpu").about() == about
    assert json.loads(json.dumps(about)) == about
    others = [
        make_model(tmp_path / "labels", id2label=dict(enumerate("abcd"))),
        make_model(tmp_path / "size", image_size=32),
        make_model(tmp_path / "several", problem_type="multi_label_classification"),
    ]
    found = [Classifier.load(str(other), "cpu").about() for other in others]
    assert [{name for name in about if each[name] != about[name]} for each in found] == [{"config"}] * 3
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(same)
    changed = Classifier.load(str(same), "cpu").about()
    assert {name for name in about if changed[name] != about[name]} == {"processor"}
    half = Classifier.load(str(tmp_path / "a"), "cpu", torch.bfloat16).about()
    assert half["weights"] != about["weights"]


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
    sizes = [
        features.shape for _, features in sound_features(FeatureExtractor.load(str(folder), "stage1", "cpu"), images)
    ]
    assert len(set(sizes)) == 3
    with pytest.raises(UsageError, match="parquet"):
        write_features(
            sound_features(FeatureExtractor.load(str(folder), "stage1", "cpu"), images), tmp_path / "f.safetensors", {}
        )
    assert not (tmp_path / "f.safetensors").exists()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision(model: Path, images: list[Path], dtype: torch.dtype) -> None:
    valid = images[:3]
    exact = dict(Classifier.load(str(model), "cpu").classify(valid, 4))
    for path, predictions in Classifier.load(str(model), "cpu", dtype).classify(valid, 4):
        expected = {prediction.label: prediction.probability for prediction in exact[path]}  # pyright: ignore
        for prediction in predictions:  # pyright: ignore
            assert isinstance(prediction, Prediction)
            assert prediction.probability == pytest.approx(expected[prediction.label], abs=0.1)


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
    (case("other", "has the model type 'vit'") / "config.json").write_text('{"model_type": "vit"}')
    (case("impossible", "is impossible") / "config.json").write_text('{"model_type": "swinv2", "depths": []}')
    (case("no_weights", "weights of") / "model.safetensors").unlink()
    (case("damaged", "weights of") / "model.safetensors").write_bytes(b"xx")
    (case("no_processor", "no image processor") / "preprocessor_config.json").unlink()
    (tmp_path / "file").touch()
    cases += [(str(tmp_path / "file"), "is a file"), (str(tmp_path / "gone"), "there is no folder"), ("tiny", "a size")]
    cases += [("nobody/nothing", "cannot be loaded from"), ("microsoft/swinv2-tiny-patch4-window8-255", "Did you mean")]
    for name, message in cases:
        with pytest.raises(UsageError, match=message):
            Classifier.load(name, "cpu")


def test_devices() -> None:
    assert choose_device("cpu").type == "cpu"
    assert isinstance(choose_device("auto"), torch.device)
    for name in ("gpu", "meta", "cuda:99", "cpu:x"):
        with pytest.raises(UsageError, match="--device cpu"):
            choose_device(name)
