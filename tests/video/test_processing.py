import json
import logging
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoVideoProcessor, pipeline

import swinv2
from swinv2 import Swinv2ForVideoClassification, Swinv2VideoConfig
from swinv2.convert.processors import make_processor
from swinv2.errors import UsageError
from swinv2.video.files import VideoError
from swinv2.video.processing import VIDEO_PROCESSOR, Swinv2VideoProcessor, make_video_processor
from swinv2.video.reading import read_frames
from video_files import counted, indices_of, write_video

PROCESSORS: dict[str, dict[str, Any]] = {
    "squashed": make_processor("microsoft", (384, 384), 96, None),
    "cropped": make_processor("microsoft", (64, 64), 96, None),
    "torchvision": make_processor("torchvision", (64, 64), 96, None),
    "rectangular": make_processor("microsoft", (64, 96), 96, None),
    "defaults": {"image_processor_type": "ViTImageProcessor"},
    "ConvNeXt": {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 64}, "crop_pct": 0.875},
    "large ConvNeXt": {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 384}},
    "not resized": {"image_processor_type": "ViTImageProcessor", "do_resize": False, "do_normalize": False},
}


def saved(fields: dict[str, Any], folder: Path, name: str) -> Path:
    """A folder with the fields of a processor."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(fields))
    return folder


@pytest.mark.parametrize("kind", PROCESSORS)
@pytest.mark.parametrize("size", [(50, 80), (111, 70), (64, 64)])
def test_a_frame_becomes_what_the_image_becomes(tmp_path: Path, kind: str, size: tuple[int, int]) -> None:
    from swinv2.loading import load_processor

    images = load_processor(str(saved(PROCESSORS[kind], tmp_path, "preprocessor_config.json")))
    folder = saved(make_video_processor(PROCESSORS[kind]), tmp_path / "video", VIDEO_PROCESSOR)
    videos = Swinv2VideoProcessor.from_pretrained(folder)
    frames = np.random.default_rng(0).integers(0, 256, (3, *size, 3), np.uint8)
    expected = [images(images=Image.fromarray(frame), return_tensors="pt")["pixel_values"][0] for frame in frames]
    found = videos(videos=[frames], return_tensors="pt")["pixel_values"]
    assert torch.equal(found[0], torch.stack(expected))


def test_a_processor_of_another_kind() -> None:
    with pytest.raises(UsageError, match="cannot be used"):
        make_video_processor({"image_processor_type": "NoImageProcessor"})
    with pytest.raises(UsageError, match="cannot be made; expected one that resizes"):
        make_video_processor({"image_processor_type": "MobileViTImageProcessor"})


def test_files_are_sampled_evenly_even_if_they_are_short(tmp_path: Path) -> None:
    processor = Swinv2VideoProcessor(**make_video_processor(PROCESSORS["not resized"]))
    path = write_video(tmp_path / "a.mp4", counted(8))

    def sampled(**settings: Any) -> list[int]:
        """The indices of the sampled frames."""
        pixels = processor(str(path), do_sample_frames=True, return_tensors="pt", **settings)["pixel_values"]
        return indices_of(pixels[0].numpy() * 255)

    assert sampled(num_frames=4) == [1, 3, 5, 7]
    assert sampled(num_frames=16) == [index // 2 for index in range(16)]
    assert sampled(fps=5) == [1, 3, 5, 7]
    with pytest.raises(ValueError, match="neither num_frames nor fps"):
        sampled()
    whole = processor([str(path)] * 2, return_tensors="pt")["pixel_values"]
    assert whole.shape == (2, 8, 3, 32, 48)
    with pytest.raises(VideoError, match="no such file"):
        processor(str(tmp_path / "none.mp4"))


class Decoder:
    """A decoder with the methods of torchcodec's that are needed, so that no FFmpeg is."""

    @dataclass
    class Batch:
        """Frames, as torchcodec returns them."""

        data: torch.Tensor
        pts_seconds: torch.Tensor

    def __init__(self, frames: np.ndarray, rate: float) -> None:
        self.frames, self.metadata = (
            torch.from_numpy(frames.copy()).permute(0, 3, 1, 2),
            SimpleNamespace(average_fps=rate),
        )

    def __len__(self) -> int:
        return len(self.frames)

    def get_frames_at(self, indices: list[int]) -> Batch:
        """Frames of these indices."""
        return self.Batch(self.frames[indices], torch.tensor(indices) / self.metadata.average_fps)


@pytest.mark.parametrize("kind", ["text", "path", "decoder"])
def test_the_processor_knows_how_many_frames_of_a_file(tmp_path: Path, kind: str) -> None:
    processor = Swinv2VideoProcessor(**make_video_processor(PROCESSORS["not resized"], num_frames=4))
    path = write_video(tmp_path / "a.mp4", counted(8))
    video: Any = {"text": str(path), "path": path, "decoder": Decoder(counted(8), 10)}[kind]

    def sampled(videos: Any, **settings: Any) -> list[int]:
        """The indices of the frames of the first video."""
        return indices_of(processor(videos, return_tensors="pt", **settings)["pixel_values"][0].numpy() * 255)

    assert sampled(video) == sampled([video, video]) == [1, 3, 5, 7]
    assert sampled(video, num_frames=2) == [2, 6]
    assert sampled(video, fps=10) == sampled(video, do_sample_frames=False) == list(range(8))
    # Frames are taken as they are.
    assert sampled(counted(8).copy()) == sampled([counted(8).copy()]) == list(range(8))
    assert sampled(Decoder(counted(8), 10).get_frames_at([5, 2])) == [5, 2]


def test_frames_without_colours_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a video is a ndarray of another form than expected: a path, or frames of 3"):
        Swinv2VideoProcessor()([Image.new("L", (20, 20))] * 3)


def test_pipeline(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    swinv2.register()
    config = Swinv2VideoConfig(
        num_frames=4,
        image_size=32,
        embed_dim=24,
        depths=[1, 1],
        num_heads=[1, 2],
        window_size=(2, 4, 4),
        id2label={0: "still", 1: "moving", 2: "gone"},
    )
    torch.manual_seed(0)
    model = Swinv2ForVideoClassification(config).eval()
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    saved(make_video_processor(make_processor("microsoft", (32, 32), 24, None)), folder, VIDEO_PROCESSOR)
    assert type(AutoVideoProcessor.from_pretrained(folder)) is Swinv2VideoProcessor
    path = write_video(tmp_path / "a.mp4", counted(8))
    with caplog.at_level(logging.WARNING):
        answers = pipeline("video-classification", model=str(folder))(str(path))
    pixels = Swinv2VideoProcessor.from_pretrained(folder)(
        videos=[read_frames(path, [0.15, 0.35, 0.55, 0.75])], return_tensors="pt"
    )["pixel_values"]
    with torch.no_grad():
        expected = model(pixels).logits.softmax(-1)[0]
    assert {answer["label"]: answer["score"] for answer in answers} == pytest.approx(
        {name: float(expected[index]) for index, name in config.id2label.items()}, abs=1e-5
    )
    assert [record.message for record in caplog.records] == []
