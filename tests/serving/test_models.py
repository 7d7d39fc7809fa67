"""Every endpoint answers what Python computes for the same images without the service."""

import asyncio
import base64
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

import peers
from dense.test_heads import SMALL, SMALL_HEADS
from serving.clients import encode
from serving.inside import inside
from small_models import LABELS, make_model
from swinv2 import Swinv2Config, Swinv2ForImageClassification, Swinv2ForMaskedImageModeling
from swinv2.dense import Detector, Segmenter, from_backbone
from swinv2.dense.masks import decode_mask
from swinv2.dense.saved import make_dense_processor
from swinv2.errors import UsageError
from swinv2.images import read_image
from swinv2.predict import Classifier, FeatureExtractor
from swinv2.predict.detecting import above, as_records
from swinv2.serving.endpoints import Served, TooLittleMemoryError
from swinv2.serving.models import load_served
from swinv2.serving.settings import ServiceSettings

NAMES = ["road", "sky", "tree"]
HEADS = {"upernet": "upernet", "rt_detr": "rt_detr", "mask_rcnn": "mask_rcnn"}


def photos(count: int = 5) -> list[bytes]:
    """Files of several formats and sizes."""
    random, files = np.random.default_rng(0), list[bytes]()
    for index in range(count):
        pixels = random.integers(0, 256, (9, 12, 3), np.uint8)
        image = Image.fromarray(pixels).resize((90 + 7 * index, 70 - 3 * index))
        files.append(encode(image, ("PNG", "JPEG", "WEBP", "BMP", "GIF")[index % 5]))
    return files


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("classifier"))


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a segmenter and two detectors of drawn weights."""
    folder = tmp_path_factory.mktemp("dense")
    peers.draw_weights(Swinv2ForImageClassification(Swinv2Config(**SMALL))).save_pretrained(folder / "checkpoint")
    for name, head in HEADS.items():
        model: Any = from_backbone(folder / "checkpoint", head, NAMES, **SMALL_HEADS[head])
        model.save_pretrained(folder / name)
        processor = make_dense_processor(model, (64, 64), [0.5] * 3, [0.5] * 3)
        if processor is not None:
            processor.save_pretrained(folder / name)
    return folder


def load(folder: Path, **settings: Any) -> Served:
    return load_served(ServiceSettings(str(folder), device="cpu", **settings))


def ask(served: Served, path: str, files: list[bytes], **settings: Any) -> list[dict[str, Any]]:
    """The records for files that are asked for in every way: a form, JSON, and one by one at the same time."""

    async def run() -> list[dict[str, Any]]:
        async with inside(served, **settings) as (client, _, _):
            form = await client.post(path, files=[("images", (f"{i}.png", file)) for i, file in enumerate(files)])
            entries = [{"name": f"{i}.png", "data": base64.b64encode(file).decode()} for i, file in enumerate(files)]
            as_json = await client.post(path, json={"images": entries})
            headers = {"Content-Type": "image/png"}
            alone = await asyncio.gather(*(client.post(path, content=file, headers=headers) for file in files))
        records = answers(form)
        same(answers(as_json), records)
        ones = [record for each in alone for record in answers(each)]
        assert {record.pop("image") for record in ones} == {"image-1"}
        same(ones, [{key: value for key, value in record.items() if key != "image"} for record in records])
        assert [record.pop("image") for record in records] == [f"{i}.png" for i in range(len(files))]
        return records

    return asyncio.run(run())


def answers(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    contents = response.json()
    assert list(contents) == ["images"]
    return contents["images"]


def same(found: Any, expected: Any, tolerance: float = 1e-5) -> None:
    """Equal, but for the last digits of numbers, which depend on what else is in a batch."""
    if isinstance(expected, float):
        assert found == pytest.approx(expected, abs=tolerance)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            same(found[key], value, tolerance)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            same(one, other, tolerance)
    else:
        assert found == expected


def test_classify(classifier: Path) -> None:
    offline, files = Classifier.load(str(classifier), "cpu"), photos()
    prepared = [offline.prepare(read_image(file)) for file in files]
    for query, top_k in (("", 3), ("?top_k=1", 1), ("?top_k=99", len(LABELS))):
        expected = [{"predictions": [asdict(each) for each in found]} for found in offline.label(prepared, top_k)]
        same(ask(load(classifier), f"/classify{query}", files), expected)


def test_features(classifier: Path) -> None:
    """Of a classifier, whose weights are in memory once; and of a model without a head."""
    offline, files = FeatureExtractor.load(str(classifier), device="cpu"), photos()
    found = offline.features([offline.prepare(read_image(file)) for file in files])
    expected = [{"features": each.tolist(), "shape": list(each.shape)} for each in found]
    served = load(classifier)
    assert served.about == "a classifier of 4 labels on cpu"
    assert list(served.endpoints) == ["classify", "features"]
    same(ask(served, "/features", files), expected)


def test_features_of_a_model_without_a_classifier(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "mim", Swinv2ForMaskedImageModeling)
    offline, files = FeatureExtractor.load(str(folder), device="cpu"), photos(2)
    found = offline.features([offline.prepare(read_image(file)) for file in files])
    served = load(folder)
    assert (served.about, list(served.endpoints)) == ("a model without a classifier on cpu", ["features"])
    same(ask(served, "/features", files), [{"features": each.tolist(), "shape": list(each.shape)} for each in found])


def test_a_grey_model_gets_grey_images(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "grey", num_channels=1)
    offline, files = Classifier.load(str(folder), "cpu"), photos(2)
    prepared = [offline.prepare(read_image(file, 1)) for file in files]
    expected = [{"predictions": [asdict(each) for each in found]} for found in offline.label(prepared, 3)]
    same(ask(load(folder), "/classify", files), expected)


def test_a_model_of_other_channels_is_refused_when_it_starts(tmp_path: Path) -> None:
    served = load(make_model(tmp_path / "four", num_channels=4))

    async def run() -> None:
        async with inside(served):
            pass

    with pytest.raises(UsageError, match="the model takes 4 channels"):
        asyncio.run(run())


@pytest.mark.usefixtures("registered")
def test_segment(dense: Path) -> None:
    offline, files = Segmenter.load(str(dense / "upernet")), photos(3)
    served = load(dense / "upernet")
    assert (served.about, list(served.endpoints)) == ("a segmenter of 3 classes on cpu", ["segment"])
    plain, with_masks = (ask(served, f"/segment{query}", files) for query in ("", "?rle=true"))
    for file, record, masked in zip(files, plain, with_masks, strict=True):
        image = read_image(file)
        classes = offline(np.array(image))
        assert record["size"] == [image.width, image.height]
        counts = np.bincount(classes.ravel(), minlength=3)
        assert {each["index"]: each["pixels"] for each in record["classes"]} == {
            i: int(n) for i, n in enumerate(counts) if n
        }
        assert [each["label"] for each in record["classes"]] == [NAMES[each["index"]] for each in record["classes"]]
        for each in masked["classes"]:
            assert np.array_equal(decode_mask(each.pop("mask"), classes.shape), classes == each["index"])
        assert masked == record


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("name", ["rt_detr", "mask_rcnn"])
def test_detect(name: str, dense: Path) -> None:
    offline, files = Detector.load(str(dense / name)), photos(3)
    served = load(dense / name)
    assert (served.about, list(served.endpoints)) == ("a detector of 3 classes on cpu", ["detect"])
    images = [np.array(read_image(file)) for file in files]
    found = [detections for image in images for detections in offline([image])]
    thresholds = [float(np.quantile(found[0].scores, 0.5)), 0.0]
    for threshold in thresholds:
        records = ask(served, f"/detect?threshold={threshold}", files)
        for record, image, each in zip(records, images, found, strict=True):
            expected = as_records(above(each, threshold), NAMES)
            assert expected
            assert record["size"] == [image.shape[1], image.shape[0]]
            assert all("mask" in entry for entry in record["objects"]) == (name == "mask_rcnn")
            same([_sorted(record["objects"])], [_sorted(expected)], 0.02)
    assert not any(record["objects"] for record in ask(served, "/detect?threshold=1", files))


def _sorted(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The objects without their masks, in an order that does not depend on the last digits of scores."""
    plain = [{key: value for key, value in each.items() if key != "mask"} for each in objects]
    return sorted(plain, key=lambda each: (each["index"], [round(edge) for edge in each["box"]]))


def test_a_device_with_too_little_memory_is_said_in_our_words(
    classifier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = load(classifier)
    endpoint = served.endpoints["classify"]
    prepared = endpoint.prepare(photos(1)[0])

    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Classifier, "label", fail)
    with pytest.raises(TooLittleMemoryError):
        endpoint.answer([prepared], top_k=1)


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is not a model: it has no config\.json"):
        load(tmp_path)


def test_a_type_and_a_batch_size_reach_the_model(classifier: Path) -> None:
    served = load(classifier, dtype="bfloat16", batch_size=2)
    assert served.endpoints["classify"].batch_size == 2
    (record,) = ask(served, "/classify?top_k=1", photos(1))
    assert 0 < record["predictions"][0]["probability"] <= 1
    assert json.dumps(record)
