"""Classifiers of videos learn, resume to the bit, and answer as they were evaluated."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from clips import DIRECTIONS, write_clip, write_fades
from scenes import write_checkpoint
from small_models import make_model
from swinv2.convert.conversion import Inflation, convert
from swinv2.errors import UsageError
from swinv2.loading import load_model, load_video_processor
from swinv2.predict.videos import VideoClassifier
from swinv2.train.flags import given_task, read_flags
from swinv2.train.options import VideoOptions
from swinv2.train.preview import make_preview
from swinv2.train.running import run_training
from swinv2.train.video.choices import video_settings_of
from swinv2.train.video.evaluate import evaluate_videos
from swinv2.train.video.trainer import VideoTrainer, make_video_training, mix_clips
from swinv2.video.models import Swinv2ForVideoClassification
from trainings import CrashAt, CrashError, losses, weights

SMALL = {"embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2], "patch_size": 4}


def flags_of(data: Path, run: Path, model: Path | str = "new", **rest: Any) -> list[str]:
    """The flags of a short training."""
    settings = {
        "task": "video", "data": data, "model": model, "output_dir": run, "num_frames": 6, "window_frames": 2,
        "frame_stride": 1, "max_steps": 4, "per_device_train_batch_size": 4, "per_device_eval_batch_size": 4,
        "learning_rate": 1e-3, "drop_path_rate": 0.2, "dataloader_num_workers": 0, "report_to": "none",
        "use_cpu": True, "logging_steps": 1, "warmup_steps": 1, "flip": 0.0, "disable_tqdm": True,
    }  # fmt: skip
    if model == "new":
        settings |= {"model_fields": json.dumps(SMALL), "image_size": 32, "window_size": 4}
    flags: list[str] = []
    for name, value in (settings | rest).items():
        if value is not None:
            flags += [f"--{name}", *map(str, value if isinstance(value, tuple) else (value,))]
    return flags


def make(flags: list[str], **beneath: Any) -> VideoTrainer:
    """A trainer that is ready."""
    return make_video_training(video_settings_of(read_flags(VideoOptions, flags, "finetune", without_recipe=beneath)))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of images of 64 pixels."""
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


def test_a_killed_run_resumes_to_the_bit(directions: Path, tmp_path: Path) -> None:
    """With all that is random: times, crops, RandAugment, erasing, mixup, drop path, dropout; and with the average."""
    ways = {
        name: flags_of(
            directions, tmp_path / name, save_steps=2, eval_strategy="steps", eval_steps=2, rand_augment=(2, 7),
            erase_probability=0.5, flip=0.5, reverse=0.5, color_jitter=0.2, mixup=0.8, cutmix=1.0, ema_decay=0.9,
            dataloader_drop_last=True, classifier_dropout=0.5, layer_decay=0.8, label_smoothing_factor=0.1,
        )
        for name in ("whole", "killed")
    }  # fmt: skip
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


def test_the_saved_model_has_the_scores_of_the_training(directions: Path, checkpoint: Path, tmp_path: Path) -> None:
    """Inflated from images; the views of evaluation are those of the training."""
    flags = flags_of(directions, tmp_path, checkpoint, eval_strategy="steps", eval_steps=4, eval_clips=2, eval_crops=2)
    results, status = run_training(make(flags))
    assert status == 0
    found, dataset = evaluate_videos(
        str(tmp_path / "final"), str(directions), clips=2, crops=2, workers=0, device="cpu"
    )
    assert (len(dataset), found.unreadable) == (6, [])
    assert found.summary()["top1"] == results["eval_top1"]
    assert found.loss == pytest.approx(results["eval_loss"], rel=1e-4)
    assert results["eval_images"] == 6
    assert list(results["recall"]) == list(DIRECTIONS)
    assert all(Path(file).is_file() for file in results["figures"])
    assert json.loads((tmp_path / "results.json").read_text())["eval_top1"] == results["eval_top1"]
    assert found.draw(dataset, tmp_path / "figures")[0].is_file()
    processor = load_video_processor(str(tmp_path / "final"))
    assert (list(processor.image_mean), processor.crop_size["height"]) == ([0.5] * 3, 64)


def test_it_learns_the_order_of_the_frames(tmp_path: Path) -> None:
    """The frames of both classes are the same; a network that sees them one by one cannot tell the classes apart."""
    data = write_fades(tmp_path / "fades")
    usual: dict[str, Any] = {
        "max_steps": 30, "learning_rate": 1e-2, "drop_path_rate": 0.0, "num_frames": 4,
        "per_device_train_batch_size": 8, "eval_strategy": "steps", "eval_steps": 30, "frame_stride": 0,
    }  # fmt: skip
    results, _ = run_training(make(flags_of(data, tmp_path / "clips", **usual)))
    assert results["eval_top1"] == 1.0
    one_by_one = flags_of(data, tmp_path / "frames", tubelet_size=1, **usual | {"window_frames": 1, "max_steps": 1})
    model = make(one_by_one).model.eval()
    clip = torch.randn(1, 4, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(model(clip).logits, model(clip.flip(1)).logits, atol=1e-6)


def test_a_model_of_videos_goes_on(directions: Path, checkpoint: Path, tmp_path: Path) -> None:
    run_training(make(flags_of(directions, tmp_path / "first", checkpoint, max_steps=1)))
    final = tmp_path / "first/final"
    first = load_model(Swinv2ForVideoClassification, str(final), torch.device("cpu"), torch.float32)
    assert (first.config.num_frames, first.config.frame_stride, first.config.stage_windows[0]) == (6, 1, (2, 4, 4))
    same = make(flags_of(directions, tmp_path / "second", final, num_frames=None, window_frames=None)).model
    assert all(torch.equal(tensor, first.state_dict()[name]) for name, tensor in same.state_dict().items())
    longer = make(
        flags_of(directions, tmp_path / "third", final, num_frames=12, window_frames=3, image_size=96, window_size=6)
    ).model
    assert (longer.config.num_frames, longer.config.image_size) == (12, 96)
    assert [stage.window[0] for stage in longer.config.stages()] == [3, 3, 3, 3]
    assert longer.config.stages()[0].window[1:] == (6, 6)
    with pytest.raises(UsageError, match=r"--tubelet-size is 3, and .* has patches of 2 frames"):
        make(flags_of(directions, tmp_path / "fourth", final, tubelet_size=3))


def test_a_broken_video_is_named(directions: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In training the next one replaces it; in evaluation it does not count."""
    lines = [f"{directions / 'train' / name / '0.mp4'},{name}" for name in DIRECTIONS]
    (tmp_path / "damaged.mp4").write_bytes((directions / "train/left/0.mp4").read_bytes()[:200])
    for split in ("train", "val"):
        (tmp_path / f"{split}.csv").write_text("\n".join([*lines, "damaged.mp4,left", "absent.mp4,right"]))
    flags = flags_of(tmp_path, tmp_path / "run", max_steps=2, eval_strategy="steps", eval_steps=2)
    results, _ = run_training(make(flags))
    assert (results["eval_images"], results["eval_unreadable"]) == (3, 2)
    assert f"skipped {tmp_path / 'absent.mp4'}: there is no such file" in caplog.text
    assert f"skipped {tmp_path / 'damaged.mp4'}: " in caplog.text
    with pytest.raises(UsageError, match="2 videos could not be read, more than --max-broken-images 1"):
        run_training(make(flags_of(tmp_path, tmp_path / "strict", max_broken_images=1)))


def test_without_a_split_some_videos_are_set_aside(
    directions: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flags = flags_of(directions / "train", tmp_path, eval_strategy="steps", eval_steps=2, held_out_share=0.25)
    trainer: Any = make(flags)
    assert (len(trainer.train_dataset), len(trainer.eval_dataset)) == (9, 3)
    assert "3 of its videos are set aside" in caplog.text


def test_clips_are_mixed_frame_by_frame() -> None:
    """Whatever is mixed, all frames of a clip are mixed alike."""
    from timm.data.mixup import Mixup

    torch.manual_seed(0)
    np.random.seed(0)
    still = torch.rand(4, 1, 3, 8, 8).repeat(1, 5, 1, 1, 1)
    for alphas in ((1.0, 0.0), (0.0, 1.0)):
        mix = Mixup(*alphas, num_classes=3)
        mixed, labels = mix_clips(mix, still.clone(), torch.tensor([0, 1, 2, 0]))
        assert mixed.shape == still.shape
        assert torch.equal(mixed, mixed[:, :1].expand_as(mixed))
        assert not torch.equal(mixed, still)
        assert torch.allclose(labels.sum(-1), torch.ones(4))


def test_the_preview_and_the_rates_of_the_layers(directions: Path, checkpoint: Path, tmp_path: Path) -> None:
    trainer = make(flags_of(directions, tmp_path, checkpoint, backbone_rate=0.1, classifier_dropout=0.5))
    preview = make_preview(trainer)
    assert (preview["things"], preview["model"]["num_frames"], preview["data"]["images"]) == ("videos", 6, 12)
    assert preview["data"]["images_by_class"] == dict.fromkeys(DIRECTIONS, 4)
    assert sorted({group["learning_rate"] for group in preview["groups"]}) == pytest.approx([1e-4, 1e-3])
    assert preview["memory_mib"]["activations"] > 0
    model: Any = trainer.model
    assert (model.config.classifier_dropout_prob, model.dropout.p) == (0.5, 0.5)
    assert isinstance(model.classifier, nn.Linear)
    json.dumps(preview)


def test_what_is_chosen(directions: Path, checkpoint: Path, tmp_path: Path) -> None:
    flags = ["--task", "video", "--data", str(directions), "--model", str(checkpoint), "--output-dir", str(tmp_path)]
    trainer = make([*flags, "--use-cpu"], choose_settings=True)
    args, chosen = trainer.args, trainer.args.chosen
    assert (args.num_frames, args.frame_stride, args.num_train_epochs, args.layer_decay) == (16, 1, 30, 0.9)
    assert chosen["frame_stride"].reason == "the videos have 12 frames"
    assert (args.flip, chosen["flip"].reason) == (0.0, "the class 'left' tells left from right")
    assert (args.load_best_model_at_end, args.eval_strategy) == (False, "epoch")
    assert "6 videos to evaluate are too few" in chosen["load_best_model_at_end"].reason
    assert trainer.model.config.image_size == 64
    assert make([*flags, "--use-cpu", "--flip", "0.3"], choose_settings=True).args.flip == 0.3


@pytest.mark.parametrize(
    ("rest", "sentence"),
    [
        ({"num_frames": 0}, "--num-frames is 0; expected at least 1"),
        ({"num_frames": 1}, "--num-frames, --tubelet-size or --window-frames is impossible"),
        ({"frame_stride": -1}, "--frame-stride is -1; expected at least 1, or 0"),
        ({"frame_stride": 0, "eval_clips": 2}, "so 2 clips would be equal"),
        ({"classifier_dropout": 1.0}, "--classifier-dropout is 1.0"),
        ({"image_size": (32, 64)}, "frames are square here"),
        ({"rand_augment": (4, 40)}, r"rand_augment is \[4, 40\]; expected the number of operations"),
        ({"flip": 1.5}, "flip is 1.5; expected a probability"),
        ({"mixup": 0.8}, "mix pairs of images"),
        ({"label_column": "x"}, "--label-column has no effect with --task video"),
        ({"metric_for_best_model": "mIoU"}, "--metric-for-best-model is 'mIoU'; expected loss or top1"),
        ({"early_stopping": 3}, "--early-stopping needs --load-best-model-at-end"),
    ],
    ids=str,
)
def test_impossible_settings(rest: dict[str, Any], sentence: str, directions: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=sentence):
        make(flags_of(directions, tmp_path, **rest))


def test_the_task_decides_the_settings(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("task: video\n")
    assert given_task(["--data", "x"]) is None
    assert given_task(["--task=video"]) == given_task(["--task", "video"]) == "video"
    assert given_task(["--config", str(recipe)]) == given_task([f"--config={recipe}"]) == "video"
    assert given_task(["--config", str(recipe), "--task", "detection"]) == "detection"


def test_evaluate_and_classify_see_the_same(tmp_path: Path) -> None:
    """Of a model whose processor squashes frames, as those of published image models do."""
    image_model = make_model(tmp_path / "image")
    convert(str(image_model), tmp_path / "video", inflation=Inflation(num_frames=4, window_frames=2))
    classifier = VideoClassifier.load(str(tmp_path / "video"), "cpu")
    assert not classifier.processor.do_center_crop
    noise = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8).repeat(6, 0).repeat(6, 1)
    frames = np.stack([np.roll(noise, 3 * index, 1) for index in range(12)])
    for name in classifier.labels:
        write_clip(tmp_path / f"data/{name}/a.mp4", frames)
    for clips, crops in ((1, 1), (2, 3)):
        result, _ = evaluate_videos(str(tmp_path / "video"), str(tmp_path / "data"), "train", clips=clips, crops=crops)
        expected = classifier.probabilities(
            tmp_path / f"data/{classifier.labels[0]}/a.mp4", classifier.views(clips, crops)
        )
        # One video for each class: the mean cross entropy says what the probabilities are.
        assert result.loss == pytest.approx(-np.log(expected).mean(), abs=1e-4)
