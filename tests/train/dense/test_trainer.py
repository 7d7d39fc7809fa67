"""Segmenters and detectors learn, resume to the bit, and answer as they were evaluated."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from scenes import CLASSES, SMALL, SMALL_HEADS, write_checkpoint, write_masks, write_objects
from swinv2.dense import Detector, Segmenter, load_dense
from swinv2.errors import UsageError
from swinv2.loading import read_config
from swinv2.train.dense.choices import dense_settings_of
from swinv2.train.dense.evaluate import evaluate_dense
from swinv2.train.dense.trainer import DenseTrainer, make_dense_training, pixel_weights
from swinv2.train.flags import read_flags
from swinv2.train.options import DenseOptions
from swinv2.train.running import run_training
from trainings import CrashAt, CrashError, losses, weights

pytestmark = pytest.mark.usefixtures("registered")

HEADS = [
    ("segmentation", "upernet"),
    ("segmentation", "mask2former"),
    ("instances", "mask_rcnn"),
    ("instances", "mask2former"),
    ("detection", "faster_rcnn"),
    ("detection", "rt_detr"),
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The data of each task."""
    objects = write_objects(tmp_path_factory.mktemp("objects"))
    masks = write_masks(tmp_path_factory.mktemp("masks"))
    return {"segmentation": masks, "instances": objects, "detection": objects}


def flags_of(task: str, head: str, data: dict[str, Path], checkpoint: Path | str, run: Path, **rest: Any) -> list[str]:
    """The flags of a short training."""
    settings = {
        "task": task, "head": head, "data": data[task], "model": checkpoint, "output_dir": run, "image_size": 64,
        "head_fields": json.dumps(SMALL_HEADS[head]), "max_steps": 4, "per_device_train_batch_size": 4,
        "learning_rate": 1e-3, "drop_path_rate": 0.2, "scale_range": (0.8, 1.3), "color_jitter": 0.2,
        "dataloader_num_workers": 0, "report_to": "none", "use_cpu": True, "logging_steps": 1, "warmup_steps": 1,
        **rest,
    }  # fmt: skip
    flags: list[str] = []
    for name, value in settings.items():
        flags += [f"--{name}", *map(str, value if isinstance(value, tuple) else (value,))]
    return flags


def without(flags: list[str], *names: str) -> list[str]:
    """The flags without some, and their values."""
    for name in names:
        place = flags.index(name)
        flags = [*flags[:place], *flags[place + 2 :]]
    return flags


def make(flags: list[str], **beneath: Any) -> DenseTrainer:
    """A trainer that is ready."""
    return make_dense_training(dense_settings_of(read_flags(DenseOptions, flags, "finetune", without_recipe=beneath)))


@pytest.mark.parametrize(("task", "head"), HEADS)
def test_a_killed_run_resumes_to_the_bit(
    task: str, head: str, data: dict[str, Path], checkpoint: Path, tmp_path: Path
) -> None:
    ways = {name: flags_of(task, head, data, checkpoint, tmp_path / name, save_steps=2) for name in ("whole", "killed")}
    run_training(make(ways["whole"]))
    trainer = make(ways["killed"])
    trainer.add_callback(CrashAt(3))
    with pytest.raises(CrashError):
        run_training(trainer)
    run_training(make([*ways["killed"], "--resume"]))
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert len(losses(tmp_path / "whole")) == 4
    ours, expected = (weights(tmp_path / name / "final") for name in ("killed", "whole"))
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], expected[name]) for name in expected)


@pytest.mark.parametrize(("task", "head"), HEADS)
def test_the_saved_model_has_the_scores_of_the_training(
    task: str, head: str, data: dict[str, Path], checkpoint: Path, tmp_path: Path
) -> None:
    trainer = make(flags_of(task, head, data, checkpoint, tmp_path, eval_strategy="steps", eval_steps=2))
    results, status = run_training(trainer)
    assert status == 0
    metric = "mIoU" if task == "segmentation" else "AP"
    scores, dataset, unreadable, files = evaluate_dense(
        str(tmp_path / "final"), str(data[task]), workers=0, device="cpu", output=tmp_path / "figures"
    )
    assert (len(dataset), unreadable) == (6, [])
    found = scores.summary()
    assert found["images"] == results["eval_images"] == 6
    assert found[metric] == results[f"eval_{metric}"]
    assert all(file.is_file() for file in files)
    assert [Path(file).name for file in results["figures"]] == [file.name for file in files]
    of_classes = results["iou" if task == "segmentation" else "ap"]
    assert list(of_classes) == list(CLASSES if task == "segmentation" else CLASSES[1:])
    assert json.loads((tmp_path / "results.json").read_text())[f"eval_{metric}"] == found[metric]


def test_a_segmenter_learns_the_scenes(data: dict[str, Path], tmp_path: Path) -> None:
    """At a third of the side of a square, a mean IoU of a half is right about everything but borders."""
    flags = flags_of(
        "segmentation", "upernet", data, "new", tmp_path, max_steps=160, learning_rate=3e-3, drop_path_rate=0.0,
        eval_strategy="steps", eval_steps=160, scale_range=(1.0, 1.0), model_fields=json.dumps(SMALL),
    )  # fmt: skip
    results, _ = run_training(make(flags))
    assert results["eval_mIoU"] > 0.5
    segmenter = Segmenter.load(str(tmp_path / "final"))
    image = Image.open(data["segmentation"] / "images/validation/000.png")
    truth = np.asarray(Image.open(data["segmentation"] / "masks/validation/000.png"))
    assert (segmenter(image) == truth).mean() > 0.9
    assert segmenter.names == CLASSES


def test_a_detector_learns_the_scenes(data: dict[str, Path], tmp_path: Path) -> None:
    flags = flags_of(
        "detection", "faster_rcnn", data, "new", tmp_path, max_steps=80, learning_rate=3e-3, drop_path_rate=0.0,
        eval_strategy="steps", eval_steps=80, scale_range=(1.0, 1.0), model_fields=json.dumps(SMALL),
        head_fields=json.dumps(SMALL_HEADS["faster_rcnn"] | {"anchor_sizes": [8, 16, 32, 64, 128]}),
    )  # fmt: skip
    results, _ = run_training(make(flags))
    # 0.37 to 0.63 with several seeds; without training 0.
    assert results["eval_AP50"] > 0.2
    detector = Detector.load(str(tmp_path / "final"))
    (found,) = detector([Image.open(data["detection"] / "validation/000.png")])
    assert np.all(np.diff(found.scores) <= 0)
    assert detector.names == CLASSES[1:]


def test_weights_of_the_classes_reach_the_loss(data: dict[str, Path], checkpoint: Path, tmp_path: Path) -> None:
    plain, balanced = (
        make(flags_of("segmentation", "upernet", data, checkpoint, tmp_path, **rest))
        for rest in ({}, {"class_weights": "balanced"})
    )
    assert balanced.model.class_weights is not None
    batch = next(iter(plain.get_train_dataloader()))
    batch.pop("broken")
    with torch.no_grad():
        expected = plain.compute_loss(plain.model.eval(), dict(batch))
        balanced.model.load_state_dict(plain.model.state_dict())
        weighted = balanced.compute_loss(balanced.model.eval(), dict(batch))
        balanced.model.class_weights = torch.ones(3)
        equal = balanced.compute_loss(balanced.model, dict(batch))
    assert torch.allclose(equal, expected, rtol=1e-5)
    assert not torch.allclose(weighted, expected, rtol=1e-4)


def test_weights_of_pixels() -> None:
    """1 / log(1.02 + share); a class without pixels weighs nothing."""
    found = pixel_weights(np.array([50, 50, 0]))
    assert found.tolist() == pytest.approx([2.3883, 2.3883, 0.0], abs=1e-4)


def test_without_a_split_some_images_are_set_aside(
    data: dict[str, Path], checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flags = flags_of("detection", "faster_rcnn", data, checkpoint, tmp_path, eval_strategy="steps", eval_steps=2)
    flags[flags.index("--data") + 1] = str(data["detection"] / "train")
    trainer: Any = make([*flags, "--held-out-share", "0.25"])
    assert (len(trainer.train_dataset), len(trainer.eval_dataset)) == (9, 3)
    assert "3 of its images are set aside" in caplog.text


def test_a_saved_segmenter_goes_on_or_gives_its_backbone(
    data: dict[str, Path], checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_training(make(flags_of("segmentation", "upernet", data, checkpoint, tmp_path / "first", max_steps=1)))
    first = load_dense(str(tmp_path / "first" / "final"))
    flags = flags_of("segmentation", "upernet", data, tmp_path / "first" / "final", tmp_path / "second")
    same: Any = make(without(flags, "--head_fields", "--drop_path_rate")).model
    assert all(torch.equal(tensor, first.state_dict()[name]) for name, tensor in same.state_dict().items())
    other = flags_of("detection", "faster_rcnn", data, tmp_path / "first" / "final", tmp_path / "third")
    detector: Any = make(other).model
    assert "its backbone is taken, the head is new" in caplog.text
    blocks = "encoder.layers.1.blocks.0.attention.self.query.weight"
    ours, theirs = (
        next(value for name, value in model.state_dict().items() if name.endswith(blocks))
        for model in (detector, first)
    )
    assert torch.equal(ours, theirs)
    assert detector.config.torchvision["image_mean"] == [0.5] * 3


def test_a_segmenter_keeps_the_scale_of_its_images(data: dict[str, Path], checkpoint: Path, tmp_path: Path) -> None:
    """Of its evaluation, of the saved model, and of a training that goes on."""
    trainer = make(
        flags_of("segmentation", "upernet", data, checkpoint, tmp_path / "first", max_steps=1, image_scale=2)
    )
    assert trainer.answers(trainer.model).image_scale == 2.0
    run_training(trainer)
    final = tmp_path / "first" / "final"
    assert Segmenter.load(str(final)).image_scale == 2.0
    flags = without(flags_of("segmentation", "upernet", data, final, tmp_path / "second"), "--drop_path_rate")
    flags = without(flags, "--head_fields")
    assert make(flags).args.image_scale == 2.0
    chosen = make(flags, choose_settings=True)
    assert chosen.model.config.image_scale == 2.0
    assert chosen.args.chosen["image_scale"].reason == "that of the model to start from"
    for given in (1.0, 1.5):
        assert make([*flags, "--image_scale", str(given)]).model.config.image_scale == given
    detector = make(flags_of("detection", "faster_rcnn", data, final, tmp_path / "third"))
    assert not hasattr(detector.model.config, "image_scale")
    with pytest.raises(UsageError, match="--image-scale is for --task segmentation"):
        make(flags_of("detection", "faster_rcnn", data, final, tmp_path / "third", image_scale=2))


def test_a_run_resumes_with_its_classes_only(data: dict[str, Path], checkpoint: Path, tmp_path: Path) -> None:
    other = write_masks(tmp_path / "masks")
    flags = flags_of("segmentation", "upernet", {"segmentation": other}, checkpoint, tmp_path / "run", save_steps=2)
    run_training(make(flags))
    (other / "classes.txt").write_text("floor\nsquare\ntree\n")
    with pytest.raises(UsageError, match="was trained with the classes floor, square, bar, the data has floor"):
        make([*flags, "--resume"])


@pytest.mark.parametrize(
    ("rest", "sentence"),
    [
        ({"head": "mask_rcnn"}, "--head is 'mask_rcnn'; for --task segmentation expected upernet or mask2former"),
        ({"scale_range": (2.0, 1.0)}, r"--scale-range is \[2.0, 1.0\]; expected two factors, the smaller first"),
        ({"image_scale": 1e9}, "--image-scale is 1000000000.0; expected a factor from 0.1 to 10"),
        ({"per_device_train_batch_size": 1}, "UperNet normalises over the batch; give at least 2"),
        ({"head": "mask2former", "class_weights": "balanced"}, "--class-weights is for --head upernet"),
        ({"metric_for_best_model": "top1"}, "--metric-for-best-model is 'top1'; expected mIoU or"),
        ({"label_smoothing_factor": 0.1}, "--label-smoothing-factor has no effect with --task"),
        ({"head_fields": "[1]"}, "--head-fields is .*; expected an object"),
        ({"head_fields": '{"hiden_size": 3}'}, "no setting 'hiden_size'; did you mean 'hidden_size'"),
        ({"backbone_rate": 0}, "--backbone-rate is 0.0; expected a factor above 0"),
        ({"task": "detect"}, "--task is 'detect'"),
    ],
    ids=str,
)  # fmt: skip
def test_impossible_settings(
    rest: dict[str, Any], sentence: str, data: dict[str, Path], checkpoint: Path, tmp_path: Path
) -> None:
    given = {"head_fields": json.dumps(SMALL_HEADS["upernet"]), **rest}
    with pytest.raises(UsageError, match=sentence):
        make([*flags_of("segmentation", "upernet", data, checkpoint, tmp_path), *(
            text for name, value in given.items()
            for text in (f"--{name}", *map(str, value if isinstance(value, tuple) else (value,)))
        )])  # fmt: skip


def test_a_batch_without_a_labelled_pixel_has_no_loss(data: dict[str, Path], checkpoint: Path, tmp_path: Path) -> None:
    """Not NaN; and each parameter has a gradient, for which other processes wait."""
    trainer: Any = make(flags_of("segmentation", "upernet", data, checkpoint, tmp_path))
    images, labels = torch.randn(2, 3, 64, 64), torch.full((2, 64, 64), 255)
    loss = trainer.compute_loss(trainer.model, {"pixel_values": images, "labels": labels})
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert all(parameter.grad is not None for parameter in trainer.model.parameters())


def test_class_weights_keep_mixed_precision(data: dict[str, Path], checkpoint: Path, tmp_path: Path) -> None:
    flags = flags_of("segmentation", "upernet", data, checkpoint, tmp_path, bf16=True, class_weights="balanced")
    trainer: Any = make([*flags, "--max_steps", "1"])
    kinds: list[torch.dtype] = []
    head = trainer.model.decode_head
    head.register_forward_hook(lambda module, inputs, output: kinds.append(output.dtype))
    run_training(trainer)
    assert kinds == [torch.bfloat16]


def test_a_detector_goes_on_with_other_image_sizes(data: dict[str, Path], checkpoint: Path, tmp_path: Path) -> None:
    run_training(make(flags_of("detection", "faster_rcnn", data, checkpoint, tmp_path / "first", max_steps=1)))
    flags = flags_of("detection", "faster_rcnn", data, tmp_path / "first" / "final", tmp_path / "second")
    flags = without(flags, "--head_fields")
    with pytest.raises(UsageError, match="so --drop-path-rate has no effect; leave it out"):
        make(flags)
    flags = without(flags, "--drop_path_rate")
    flags[flags.index("--image_size") + 1 : flags.index("--image_size") + 2] = ["96", "160"]
    given = [*flags, "--image-mean", "0.1", "0.2", "0.3", "--image-std", "0.5", "0.5", "0.5"]
    detector: Any = make(given).model
    transform = detector.detector.transform
    assert (list(transform.min_size), transform.max_size, transform.image_mean) == ([96], 160, [0.1, 0.2, 0.3])
    assert detector.config.torchvision["min_size"] == [96]
    detector.save_pretrained(tmp_path / "saved")
    loaded: Any = load_dense(str(tmp_path / "saved"))
    assert list(loaded.detector.transform.min_size) == [96]


def test_a_run_resumes_with_its_head_only(data: dict[str, Path], checkpoint: Path, tmp_path: Path) -> None:
    flags = flags_of("segmentation", "upernet", data, checkpoint, tmp_path, save_steps=2)
    run_training(make(flags))
    with pytest.raises(UsageError, match="is upernet for segmentation; expected mask2former for segmentation"):
        make([*flags, "--head_fields", json.dumps(SMALL_HEADS["mask2former"]), "--head", "mask2former", "--resume"])
    wider = json.dumps(SMALL_HEADS["upernet"] | {"hidden_size": 24})
    with pytest.raises(UsageError, match="has another head than these settings make"):
        run_training(make([*flags, "--head_fields", wider, "--resume"]))


def test_images_to_evaluate_must_have_an_object(data: dict[str, Path], checkpoint: Path, tmp_path: Path) -> None:
    empty = write_objects(tmp_path / "objects")
    file = empty / "validation/_annotations.coco.json"
    found = json.loads(file.read_text())
    # A crowd does not count.
    found["annotations"] = [found["annotations"][0] | {"iscrowd": 1}]
    file.write_text(json.dumps(found))
    flags = flags_of(
        "detection", "faster_rcnn", {"detection": empty}, checkpoint, tmp_path, eval_strategy="steps", eval_steps=2
    )
    with pytest.raises(UsageError, match="none of the 6 images to evaluate has an object"):
        make(flags)


@pytest.mark.parametrize("head", ["mask2former", "rt_detr", "upernet", "mask_rcnn"])
def test_blocks_are_checkpointed_in_each_head(
    head: str, data: dict[str, Path], checkpoint: Path, tmp_path: Path
) -> None:
    """Equal losses, whatever is computed again."""
    task = {"mask2former": "segmentation", "upernet": "segmentation", "rt_detr": "detection"}.get(head, "instances")
    for name, rest in (("plain", {}), ("again", {"activation_checkpointing": True})):
        run_training(make(flags_of(task, head, data, checkpoint, tmp_path / name, max_steps=2, **rest)))
    plain, again = ([loss for _, loss in losses(tmp_path / name)] for name in ("plain", "again"))
    assert plain == pytest.approx(again, rel=1e-4)


def test_one_class_is_too_few_for_upernet(checkpoint: Path, tmp_path: Path) -> None:
    masks = write_masks(tmp_path / "masks")
    (masks / "classes.txt").write_text("floor\n")
    for path in masks.glob("masks/*/*.png"):
        Image.fromarray(np.where(np.asarray(Image.open(path)) > 0, 255, 0).astype(np.uint8)).save(path)
    with pytest.raises(UsageError, match="the masks have one class, floor, and UperNet needs two"):
        make(flags_of("segmentation", "upernet", {"segmentation": masks}, checkpoint, tmp_path / "run"))


def test_a_damaged_mask_is_named(
    data: dict[str, Path], checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    masks = write_masks(tmp_path / "masks")
    damaged = masks / "masks/train/003.png"
    damaged.write_bytes(damaged.read_bytes()[:80])
    run_training(make(flags_of("segmentation", "upernet", {"segmentation": masks}, checkpoint, tmp_path / "run")))
    assert f"its mask {damaged} is " in caplog.text


def test_a_folder_that_is_no_model_is_told_apart(data: dict[str, Path], checkpoint: Path, tmp_path: Path) -> None:
    run_training(make(flags_of("segmentation", "upernet", data, checkpoint, tmp_path / "run", max_steps=1)))
    with pytest.raises(UsageError, match=r"is the folder of a training; its model is '.*final'"):
        load_dense(str(tmp_path / "run"))
    with pytest.raises(UsageError, match="there is no folder"):
        load_dense(str(tmp_path / "nothing"))
    with pytest.raises(UsageError, match="is a segmenter or detector"):
        read_config(str(tmp_path / "run" / "final"))
