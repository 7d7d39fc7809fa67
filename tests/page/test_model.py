"""What the page shows of an image: the same answers as the commands give, for every kind of model."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import page_models
from export_models import draw_photos, needs_exporters
from export_models import save_model as save_exportable
from swinv2 import Swinv2ForImageClassification
from swinv2.dense import Detector, Segmenter
from swinv2.errors import UsageError
from swinv2.export.exporting import export_model
from swinv2.export.report import ExportSettings
from swinv2.images import BrokenImageError, read_image
from swinv2.loading import load_processor
from swinv2.page import model as page_model
from swinv2.page.model import PageModel, attention_at, pixel_at, unique_names
from swinv2.predict.predictor import Classifier

pytestmark = pytest.mark.usefixtures("registered")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return page_models.save_model(tmp_path_factory.mktemp("models"), "classifier")


def test_labels_are_those_of_classify(classifier: Path, tmp_path: Path) -> None:
    photo = page_models.save_photo(tmp_path / "photo.png")
    shown = PageModel.load(str(classifier), "cpu").show(photo)
    ((_, expected),) = Classifier.load(str(classifier), "cpu").classify([photo])
    assert isinstance(expected, list)
    assert shown.labels == {each.label: each.probability for each in expected}
    assert shown.image.size == (90, 60)
    assert shown.classes is None
    assert shown.objects is None


def test_attention_is_that_of_the_model(classifier: Path, tmp_path: Path) -> None:
    """The weights of the last block of each stage, as the model itself returns them with "eager"."""
    photo = page_models.save_photo(tmp_path / "photo.png")
    seen = PageModel.load(str(classifier), "cpu").show(photo).seen
    assert seen is not None
    eager = Swinv2ForImageClassification.from_pretrained(classifier, attn_implementation="eager").eval()
    pixels = load_processor(str(classifier))(images=read_image(photo), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        attentions = eager(pixels, output_attentions=True).attentions
    assert list(seen.attentions) == ["stage1", "stage2"]
    for here, weights in zip(seen.attentions.values(), attentions, strict=True):
        torch.testing.assert_close(here.weights, weights)
    assert [here.token_size for here in seen.attentions.values()] == [(2, 2), (4, 4)]
    assert list(seen.maps) == ["stem", "stage1", "stage2"]
    token = attention_at(seen, "stage1", (5, 14))
    assert token.token == (2, 7)
    np.testing.assert_allclose(token.weights.sum((1, 2)) + token.on_padding, 1, rtol=1e-6)
    assert attention_at(seen, "stage2").token == (2, 2)


def test_observing_leaves_the_backend_as_it_was(classifier: Path, tmp_path: Path) -> None:
    loaded = PageModel.load(str(classifier), "cpu")
    assert loaded.network is not None
    before = loaded.network.config._attn_implementation
    loaded.show(page_models.save_photo(tmp_path / "photo.png"))
    assert loaded.network.config._attn_implementation == before


def test_a_click_finds_its_token(classifier: Path, tmp_path: Path) -> None:
    """The model sees 90 x 60 pixels as 16 x 16: corners and edges lead to the corners."""
    seen = PageModel.load(str(classifier), "cpu").show(page_models.save_photo(tmp_path / "photo.png")).seen
    assert seen is not None
    clicks = {(0, 0): (0, 0), (89, 59): (15, 15), (90, 60): (15, 15), (45, 0): (0, 8), (0, 30): (8, 0)}
    assert {click: pixel_at(seen, click) for click in clicks} == clicks


def test_a_click_on_what_is_cut_off_is_a_sentence(classifier: Path, tmp_path: Path) -> None:
    loaded = PageModel.load(str(classifier), "cpu")
    processor = load_processor(str(classifier))
    processor.do_center_crop, processor.crop_size = True, {"height": 8, "width": 8}
    cropped = PageModel("cropped", loaded.answers, loaded.network, processor)
    seen = cropped._look(read_image(page_models.save_photo(tmp_path / "photo.png", (80, 80))))
    assert seen is not None
    assert seen.view.box == pytest.approx((20, 20, 60, 60))
    assert pixel_at(seen, (20, 59)) == (7, 0)
    with pytest.raises(UsageError, match=r"of 80 x 80 pixels .* from 20 to 59 from the left and from 20 to 59 from"):
        pixel_at(seen, (5, 40))


@pytest.mark.parametrize("head", ["upernet", "rt_detr", "faster_rcnn", "mask_rcnn", "mask2former"])
def test_segmenters_and_detectors(head: str, tmp_path: Path) -> None:
    """Their answers are those of `Segmenter` and `Detector`; attention is that of their backbone."""
    folder = str(page_models.save_model(tmp_path, head))
    photo = page_models.save_photo(tmp_path / "photo.png")
    loaded = PageModel.load(folder, "cpu")
    shown = loaded.show(photo)
    if head == "upernet":
        assert shown.classes is not None
        assert np.array_equal(shown.classes, Segmenter.load(folder)(photo))
        assert sum(each.share for each in shown.shares) == pytest.approx(1)
    else:
        (expected,) = Detector.load(folder)([photo])
        assert shown.objects is not None
        np.testing.assert_allclose(shown.objects.boxes, expected.boxes, rtol=1e-4, atol=1e-3)
        assert (shown.objects.masks is None) == (head in ("rt_detr", "faster_rcnn"))
    assert shown.labels is None
    assert loaded.names == page_models.CLASSES
    assert shown.seen is not None
    # At most the side of the backbone's images, 64 pixels, and of the image's shape.
    assert shown.seen.view.rgb.shape == (43, 64, 3)
    assert abs(shown.seen.view.rgb.mean() - np.asarray(shown.image).mean()) < 3
    assert list(shown.seen.attentions) == loaded.stages == ["stage1", "stage2", "stage3", "stage4"]
    assert loaded.heads("stage4") == shown.seen.attentions["stage4"].heads == 4
    assert pixel_at(shown.seen, (89, 59)) == (42, 63)


def test_a_model_without_a_head(tmp_path: Path) -> None:
    loaded = PageModel.load(str(page_models.save_model(tmp_path, "masked")), "cpu")
    shown = loaded.show(page_models.save_photo(tmp_path / "photo.png"))
    assert loaded.answers is None
    assert shown.labels is None
    assert shown.seen is not None
    assert list(shown.seen.attentions) == loaded.stages


@needs_exporters
def test_an_exported_model_has_labels_only(tmp_path: Path) -> None:
    photos = draw_photos(tmp_path / "photos", 4)
    source = save_exportable(tmp_path / "model", Swinv2ForImageClassification, id2label=dict(enumerate("abcde")))
    export_model(str(source), tmp_path / "exported", ExportSettings(format="openvino", images=photos))
    exported = PageModel.load(str(tmp_path / "exported"), "cpu")
    shown, expected = exported.show(photos[0]), PageModel.load(str(source), "cpu").show(photos[0])
    assert (exported.network, shown.seen, exported.stages) == (None, None, [])
    assert shown.labels is not None
    assert expected.labels is not None
    assert shown.labels == pytest.approx(expected.labels, abs=1e-4)


def test_broken_and_large_images_are_refused(classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = PageModel.load(str(classifier), "cpu")
    (tmp_path / "broken.jpg").write_text("not an image")
    with pytest.raises(BrokenImageError, match="not an image"):
        loaded.show(tmp_path / "broken.jpg")
    with pytest.raises(BrokenImageError, match="no such file"):
        loaded.show(tmp_path / "gone.jpg")
    monkeypatch.setattr(page_model, "MOST_PIXELS", 1000)
    with pytest.raises(BrokenImageError, match=r"5,400 pixels; the limit is 1,000"):
        loaded.show(page_models.save_photo(tmp_path / "large.png"))


@pytest.mark.parametrize("format", ["TIFF", "EPS", "ICNS"])
def test_formats_that_can_cost_more_than_they_say_are_refused(format: str, classifier: Path, tmp_path: Path) -> None:
    """By their content: a name says nothing."""
    Image.new("RGB", (32, 32)).save(tmp_path / "photo.jpg", format)
    with pytest.raises(BrokenImageError):
        PageModel.load(str(classifier), "cpu").show(tmp_path / "photo.jpg")


def test_a_large_image_is_shown_smaller(classifier: Path, tmp_path: Path) -> None:
    """Its labels are those of the whole image, and its EXIF data turns it."""
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = page_models.save_photo(tmp_path / "photo.jpg", (2000, 1000), exif=exif)
    shown = PageModel.load(str(classifier), "cpu").show(photo)
    ((_, expected),) = Classifier.load(str(classifier), "cpu").classify([photo])
    assert shown.image.size == (800, 1600)
    assert isinstance(expected, list)
    assert shown.labels == {each.label: each.probability for each in expected}


def test_a_grey_model(tmp_path: Path) -> None:
    from small_models import make_model

    loaded = PageModel.load(str(make_model(tmp_path / "grey", num_channels=1)), "cpu")
    shown = loaded.show(page_models.save_photo(tmp_path / "photo.png"))
    assert shown.image.mode == "RGB"
    assert shown.labels is not None


def test_names_that_are_not_unique_have_numbers() -> None:
    assert unique_names(("crane", "dog", "crane")) == ["crane (0)", "dog", "crane (2)"]
