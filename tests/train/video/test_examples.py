"""Clips to train on and views to evaluate: which frames they have, and that every frame is changed alike."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from clips import write_clip
from swinv2.errors import UsageError
from swinv2.train.data.augment import Pixels
from swinv2.train.data.examples import EvaluationExamples, SampleIndex, SampleTransform, TrainingExamples
from swinv2.train.data.videos.dataset import Segment
from swinv2.train.data.videos.opening import open_videos
from swinv2.train.video.augment import for_clips
from swinv2.train.video.examples import SegmentViews, TrainingClip, as_it_is, logits_of_views
from swinv2.train.video.trainer import processor_of
from swinv2.video.files import VideoInfo
from swinv2.video.processing import Swinv2VideoProcessor
from swinv2.video.reading import read_frames
from swinv2.video.sampling import Sampling
from swinv2.video.views import Views

PIXELS = Pixels((32, 32), [0.5] * 3, [0.5] * 3)
PLAIN = Pixels((32, 32), [0.0] * 3, [1.0] * 3)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 frames of 48 x 64 whose brightness is the number of the frame, with a dark left half."""
    frames = np.ones((40, 48, 64, 3), np.uint8) * (80 + 4 * np.arange(40, dtype=np.uint8))[:, None, None, None]
    frames[:, :, :32] = 16
    return write_clip(tmp_path_factory.mktemp("video") / "a.mp4", frames, 10)


def views_of(sampling: Sampling, pixels: Pixels = PIXELS, **rest: int) -> SegmentViews:
    """Those of a processor that resizes the shorter side and crops the centre."""
    return SegmentViews(Views(processor_of(pixels, 4), sampling, **rest))


def numbers(clip: Tensor) -> list[int]:
    """The numbers of the frames of a clip (frames, channels, height, width), whatever its side."""
    return [round((float(frame.amax()) * 255 - 80) / 4) for frame in clip]


def test_random_clips_are_consecutive_and_anywhere(video: Path) -> None:
    clip = TrainingClip(Sampling(5, 3), for_clips(PLAIN, (1.0, 1.0), flip=0.0))
    torch.manual_seed(0)
    found = [numbers(clip(Segment(str(video)))) for _ in range(30)]
    assert all(np.diff(each).tolist() == [3] * 4 for each in found)
    starts = {each[0] for each in found}
    assert min(starts) >= 0
    assert max(starts) <= 27
    assert len(starts) > 10


def test_spread_frames_are_anywhere_in_their_parts(video: Path) -> None:
    sampling = Sampling(4, 0)
    info = VideoInfo(video, 4.0, 10.0, 40, (48, 64))
    torch.manual_seed(0)
    for _ in range(20):
        assert [int(time) for time in sampling.random(info)] == [0, 1, 2, 3]
    assert sampling.views(info, 1) == [[0.5, 1.5, 2.5, 3.5]]


def test_clips_can_be_mirrored_and_reversed(video: Path) -> None:
    """Only if wanted: what is left and what is first may be what the labels say."""
    torch.manual_seed(0)
    for flip, reverse in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0)):
        make = TrainingClip(Sampling(4, 2), for_clips(PLAIN, (1.0, 1.0), flip=flip, reverse=reverse))
        clip = make(Segment(str(video)))
        is_dark_left = bool(clip[..., :8].mean() < clip[..., -8:].mean())
        assert is_dark_left == (flip == 0.0)
        assert np.diff(numbers(clip)).tolist() == [-2 if reverse else 2] * 3


@pytest.mark.parametrize(
    "rest",
    [{}, {"rand_augment": (4, 7)}, {"color_jitter": 0.4}, {"erase_probability": 1.0}, {"flip": 1.0}],
    ids=str,
)
def test_every_frame_is_changed_alike(rest: dict[str, Any]) -> None:
    """Of a clip whose frames are equal, they are equal afterwards; and something changes."""
    image = torch.randint(0, 256, (1, 3, 40, 40), dtype=torch.uint8)
    augment = for_clips(PIXELS, (0.5, 1.0), **rest)
    changed = False
    for seed in range(10):
        torch.manual_seed(seed)
        clip = augment(image.repeat(5, 1, 1, 1))
        assert (clip.shape, clip.dtype) == ((5, 3, 32, 32), torch.float32)
        assert torch.equal(clip, clip[:1].expand_as(clip))
        torch.manual_seed(seed)
        changed |= not torch.equal(clip, for_clips(PIXELS, (0.5, 1.0), flip=0.0)(image.repeat(5, 1, 1, 1)))
    assert changed


def test_views_are_clips_and_crops(video: Path) -> None:
    views = views_of(Sampling(4, 2), PLAIN, clips=2, crops=3)(Segment(str(video)))
    assert views.shape == (6, 4, 3, 32, 32)
    # Frames 0 to 33 are possible beginnings: the middle of the first and of the second half of them.
    assert [numbers(view)[0] for view in (views[2], views[5])] == [8, 25]
    dark = [float((view[0, 0, 16] < 0.3).float().mean()) for view in views[:3]]
    # Frames are 42 pixels wide at a height of 32, and half of them dark.
    assert dark == pytest.approx([21 / 32, 16 / 32, 11 / 32], abs=0.04)
    assert torch.equal(views, views_of(Sampling(4, 2), PLAIN, clips=2, crops=3)(Segment(str(video))))


def test_one_view_is_what_the_saved_processor_makes(video: Path) -> None:
    """So an accuracy is the one that a user of the processor gets."""
    (view,) = views_of(Sampling(4, 2))(Segment(str(video)))
    times = Sampling(4, 2).views(VideoInfo(video, 4.0, 10.0, 40, (48, 64)), 1)[0]
    expected = processor_of(PIXELS, 4)([read_frames(video, times)], return_tensors="pt")["pixel_values"][0]
    assert torch.allclose(view, expected, atol=1e-6)


def test_examples_depend_on_seed_epoch_and_index_only(video: Path, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text(f"path,label,start\n{video},a,\n{video},b,1.5\nabsent.mp4,a,\n")
    dataset = open_videos(str(tmp_path / "list.csv"), "train")
    make = TrainingClip(Sampling(3, 2), for_clips(PIXELS, rand_augment=(2, 7), erase_probability=0.5))
    examples = TrainingExamples(dataset, SampleTransform(make, 3, seed=7, read=as_it_is))
    first = examples[SampleIndex(1, 0)]
    torch.manual_seed(1)
    assert torch.equal(first["pixel_values"], examples[SampleIndex(1, 0)]["pixel_values"])
    assert not torch.equal(first["pixel_values"], examples[SampleIndex(2, 0)]["pixel_values"])
    replaced = examples[SampleIndex(1, 2)]
    assert torch.equal(replaced["pixel_values"], first["pixel_values"])
    assert replaced["broken"] == [f"{tmp_path / 'absent.mp4'}: there is no such file"]
    views = EvaluationExamples(dataset, SampleTransform(views_of(Sampling(3, 2), clips=2), 3, read=as_it_is))
    ignored = views[2]
    assert (ignored["pixel_values"].shape, ignored["labels"]) == ((2, 3, 3, 32, 32), -100)
    assert views[0]["pixel_values"].shape == (2, 3, 3, 32, 32)


def test_the_mean_of_the_probabilities_counts() -> None:
    class Table(torch.nn.Module):
        """Answers with the first numbers of a clip."""

        def forward(self, pixel_values: Tensor) -> Any:
            from types import SimpleNamespace

            return SimpleNamespace(logits=pixel_values.flatten(1)[:, :3])

    pixels = torch.randn(2, 4, 1, 3, 2, 2)
    expected = pixels.flatten(2)[..., :3].softmax(-1).mean(1)
    assert torch.allclose(logits_of_views(Table(), pixels).exp(), expected, atol=1e-6)


def test_impossible_views() -> None:
    with pytest.raises(UsageError, match="expected at least one of each"):
        views_of(Sampling(4, 2), clips=0)
    with pytest.raises(UsageError, match="2 clips would be equal"):
        views_of(Sampling(4, 0), clips=2)
    with pytest.raises(UsageError, match="a model of videos takes square frames"):
        processor_of(Pixels((32, 64), [0.5] * 3, [0.5] * 3), 4)
    wide = Swinv2VideoProcessor(size={"height": 32, "width": 64}, do_center_crop=False)
    with pytest.raises(UsageError, match="3 crops need a model of square frames, and its processor makes 32 x 64"):
        Views(wide, Sampling(4, 2), crops=3)
