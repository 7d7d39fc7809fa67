"""`swinv2 inspect` for videos: a token, its window and its weights in time."""

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BitImageProcessor, ViTImageProcessor

import peers
from commands import swinv2_command
from swinv2 import Swinv2Config, Swinv2ForImageClassification, Swinv2VideoConfig, Swinv2VideoModel, inflate
from swinv2.inspect import clips
from swinv2.inspect.view import look_at_clip
from swinv2.video.processing import Swinv2VideoProcessor, make_video_processor
from swinv2.video.reading import probe
from swinv2.video.sampling import Sampling
from swinv2.video.views import Views
from video_files import counted, indices_of, write_video

inspect = partial(swinv2_command, "inspect")
SIZE = {"image_size": [18, 24], "patch_size": 2, "embed_dim": 8, "depths": [2, 2], "num_heads": [1, 2]}


def save_processor(folder: Path) -> None:
    fields = make_video_processor(ViTImageProcessor(size={"height": 18, "width": 24}).to_dict())
    Swinv2VideoProcessor(**fields).save_pretrained(folder)


@pytest.fixture(scope="module")
def video_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random small model, whose maps are 3 x 9 x 12 and 3 x 5 x 6 tokens with windows of 2 x 4 x 4."""
    folder = tmp_path_factory.mktemp("video-model")
    config = Swinv2VideoConfig(**SIZE, num_frames=6, window_size=(2, 4, 4), frame_stride=1)
    peers.draw_weights(Swinv2VideoModel(config)).save_pretrained(folder)
    save_processor(folder)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of 12 frames of 90 x 120 pixels, ten in a second."""
    return write_video(tmp_path_factory.mktemp("clips") / "clip.mkv", counted(12, 90, 120), codec="ffv1")


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """No figures: drawing takes its time."""
    for name in ("draw_attention_over_time", "draw_components_over_time"):
        monkeypatch.setattr(clips, name, lambda *arguments: None)


def test_files_and_numbers(video_model: Path, clip: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    result = inspect(clip, "-m", video_model, "-o", output, "--token", "119,0", "--time", 0.25, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    names = ["attention-clip.png", "features-clip.png", "bias.png", "amplitudes.png"]
    assert [Path(name).name for name in found["videos"][0]["files"] + found["files"]] == names
    for name in names:
        assert f"drawn: {output / name}" in result.stderr
        with Image.open(output / name) as drawn:
            drawn.load()
            assert min(drawn.size) > 200

    (about,) = found["videos"]
    assert (about["video"], about["size"], about["pixel"]) == (str(clip), [120, 90], [23, 0])
    # The clip of six frames begins with the video, and the third one is shown at 0.25 seconds.
    assert about["times"] == pytest.approx([0.05, 0.15, 0.25, 0.35, 0.45, 0.55])
    assert about["frame"] == 2
    first, second = about["stages"]
    assert (first["token"], first["window"], first["shift"]) == ([1, 0, 11], [2, 4, 4], [1, 2, 2])
    # The configured map of this stage has 4 rows, as the window.
    assert (second["token"], second["window"], second["shift"]) == ([1, 0, 5], [2, 4, 4], [1, 0, 2])
    for stage, heads in ((first, 1), (second, 2)):
        assert np.shape(stage["over_time"]) == (heads, 3)
        total = np.sum(stage["over_time"], 1) + stage["beyond_the_map"]
        assert total == pytest.approx(np.ones(heads), abs=1e-6)
    assert [len(each["lowest"]) for each in found["bias"]] == [1, 2]
    assert len(found["amplitudes"]) == 1 + 2 + 2

    # What the token keeps for itself, from the model called by hand. Of 4 x 12 x 12 tokens with their padding, shifted
    # by (1, 2, 2), the token (1, 0, 11) is at (0, 10, 9): in window (0, 2, 2), at the place (0, 2, 1) in it.
    network = Swinv2VideoModel.from_pretrained(video_model, attn_implementation="eager").eval()
    processor = Swinv2VideoProcessor.from_pretrained(video_model)
    view = look_at_clip(probe(clip), about["times"], Views(processor, Sampling(6, 1)))
    assert view.rgb.shape == (6, 18, 24, 3)
    assert np.abs(view.rgb.astype(int).mean((1, 2, 3)) - counted(6).mean((1, 2, 3))).max() < 3
    with torch.no_grad():
        weights = network(view.pixel_values, output_attentions=True).attentions[0]
    window, place = 2 * 3 + 2, 2 * 4 + 1
    assert first["on_itself"] == pytest.approx([float(weights[window, 0, place, place])], rel=1e-4)


@pytest.mark.usefixtures("undrawn")
def test_a_still_clip_has_as_much_weight_at_each_time(clip: Path, tmp_path: Path) -> None:
    """The bias of an inflated model does not depend on time, so equal frames get equal weights."""
    image_model = Swinv2ForImageClassification(Swinv2Config(**SIZE, window_size=4))
    model = inflate(peers.draw_weights(image_model), num_frames=8, tubelet_size=2, window_frames=4)
    model.save_pretrained(tmp_path / "model")
    save_processor(tmp_path / "model")
    still = write_video(tmp_path / "still.mkv", counted(1, 90, 120).repeat(8, 0), codec="ffv1")
    for file, is_still in ((still, True), (clip, False)):
        result = inspect(file, "-m", tmp_path / "model", "-o", tmp_path / "out", "--json")
        assert result.exit_code == 0, result.stderr
        (about,) = json.loads(result.stdout)["videos"]
        spread = [np.ptp(stage["over_time"], axis=1).max() for stage in about["stages"]]
        assert (max(spread) < 1e-5) == is_still


@pytest.mark.usefixtures("undrawn")
def test_the_middle_other_lengths_and_skipped_files(video_model: Path, clip: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_text("broken")
    short = write_video(tmp_path / "short.mkv", counted(5), codec="ffv1")
    options = ("-o", tmp_path / "out", "--num-frames", 3, "--frame-stride", 2, "--stage", "stage2", "--json")
    result = inspect(clip, tmp_path / "broken.mp4", short, "-m", video_model, *options, "--time", 0.65)
    assert result.exit_code == 1
    assert "2 of 3 videos skipped" in result.stderr
    about, broken, ended = json.loads(result.stdout)["videos"]
    assert about["times"] == pytest.approx([0.45, 0.65, 0.85])
    assert ended["error"] == "--time is 0.65, and the video has 0.50 seconds"
    about = json.loads(inspect(clip, "-m", video_model, *options).stdout)["videos"][0]
    assert about["times"] == pytest.approx([0.4, 0.6, 0.8])
    assert about["frame"] == 1
    # Three frames are two patches, of which the last one is half padding.
    assert [np.shape(stage["over_time"]) for stage in about["stages"]] == [(2, 2)]
    assert broken["video"].endswith("broken.mp4")
    assert "it is not a video" in broken["error"]


@pytest.mark.parametrize(
    ("tubelet", "num_frames", "stride", "crops", "middles"),
    [
        (2, 6, 1, False, [4, 6, 8]),
        (1, 3, 2, True, [4, 6, 8]),
        (3, 7, 1, False, [4, 6, 9]),
        # Spread over the whole video; then longer than it, so that it begins again.
        (2, 4, 0, True, [4, 7]),
        (2, 8, 2, False, [2, 6, 8, 2]),
    ],
)
def test_the_frames_that_are_shown(
    clip: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tubelet: int,
    num_frames: int,
    stride: int,
    crops: bool,
    middles: list[int],
) -> None:
    """The middle one of each patch, and that of the token, by their brightness, with their times."""
    drawn: list[Any] = []
    monkeypatch.setattr(clips, "draw_attention_over_time", lambda *arguments: drawn.extend(arguments))
    monkeypatch.setattr(clips, "draw_components_over_time", lambda *arguments: None)
    sizes = {"tubelet_size": tubelet, "num_frames": num_frames, "frame_stride": stride, "window_size": (2, 4, 4)}
    peers.draw_weights(Swinv2VideoModel(Swinv2VideoConfig(**SIZE, **sizes))).save_pretrained(tmp_path / "model")
    size = {"size": {"height": 18, "width": 24}}
    image_processor = (
        BitImageProcessor(size={"shortest_edge": 45}, crop_size=size["size"]) if crops else ViTImageProcessor(**size)
    )
    Swinv2VideoProcessor(**make_video_processor(image_processor.to_dict())).save_pretrained(tmp_path / "model")
    result = inspect(clip, "-m", tmp_path / "model", "-o", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.stderr
    attentions, shown, seconds, *_ = drawn
    assert indices_of(shown) == middles
    assert [math.floor(10 * second + 1e-6) for second in seconds] == middles
    (about,) = json.loads(result.stdout)["videos"]
    # Of 60 x 45 pixels, 24 x 18 are kept, from 18 and 13; or all.
    assert about["seen"] == pytest.approx([36, 26, 84, 62] if crops else [0, 0, 120, 90], abs=0.1)
    (first, *_) = attentions.values()
    assert first.weights.shape[1] == len(middles)
    assert first.token[0] == about["frame"] // tubelet == num_frames // 2 // tubelet


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["CLIP", "--token", "120,0"], "but a frame of clip.mkv has 120 x 90 pixels"),
        (["CLIP", "--frame-stride", "inf"], "the distance of a clip's frames is inf"),
        (["CLIP", "--stage", "stage3"], "--stage is 'stage3'; the model"),
        (["IMAGE"], "is an image, and the model 'MODEL' is for videos"),
        ([], "no video was given; for example: swinv2 inspect clip.mp4 --model MODEL --token 120,80."),
    ],
)
def test_what_the_user_can_mend(
    video_model: Path, clip: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    names = {"CLIP": clip, "IMAGE": tmp_path / "image.png"}
    options = ("-m", video_model, "-o", tmp_path / "out")
    result = inspect(*(names.get(argument, argument) for argument in arguments), *options)
    assert result.exit_code == 2
    assert message.replace("MODEL", str(video_model)) in result.stderr
    assert not (tmp_path / "out").exists()
