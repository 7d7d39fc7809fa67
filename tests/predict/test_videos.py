"""Labels of videos: what the image model says of a still clip, and means over views."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from small_models import LABELS, make_model
from swinv2.convert.conversion import Inflation, convert
from swinv2.errors import UsageError
from swinv2.images import BrokenImage
from swinv2.predict.predictor import Classifier
from swinv2.predict.videos import MOST_POINTS, VideoClassifier
from swinv2.video.reading import probe, read_frames
from swinv2.video.sampling import crops, view_times
from video_files import write_video


def noise(seed: int, height: int = 24, width: int = 36) -> np.ndarray:
    """A random image (height, width, 3) of large squares."""
    small = np.random.default_rng(seed).integers(0, 256, (height // 6, width // 6, 3), np.uint8)
    return small.repeat(6, 0).repeat(6, 1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A random image model, and the video model of it."""
    folder = tmp_path_factory.mktemp("models")
    image_model = make_model(folder / "image")
    convert(str(image_model), folder / "video", inflation=Inflation(num_frames=4, window_frames=2))
    return image_model, folder / "video"


@pytest.fixture(scope="module")
def classifier(folders: tuple[Path, Path]) -> VideoClassifier:
    return VideoClassifier.load(str(folders[1]), "cpu")


def still(path: Path, image: np.ndarray, frames: int = 9) -> Path:
    """A lossless video whose frames are all the same image."""
    return write_video(path, np.stack([image] * frames), codec="ffv1")


def test_a_still_video_gets_the_answer_of_the_image_model(
    folders: tuple[Path, Path], classifier: VideoClassifier, tmp_path: Path
) -> None:
    images = Classifier.load(str(folders[0]), "cpu")
    for seed in range(2):
        Image.fromarray(noise(seed)).save(tmp_path / "a.png")
        video = still(tmp_path / "a.mkv", noise(seed))
        ((_, of_image),) = images.classify([tmp_path / "a.png"], 4)
        for views in ({}, {"clips": 2}, {"num_frames": 7, "stride": 0.5}):
            ((_, of_video),) = classifier.classify([video], 4, classifier.views(**views))
            assert not isinstance(of_image, BrokenImage)
            assert not isinstance(of_video, BrokenImage)
            assert [each.label for each in of_video] == [each.label for each in of_image]
            assert [each.probability for each in of_video] == pytest.approx(
                [each.probability for each in of_image], abs=1e-4
            )


def test_probabilities_are_the_mean_over_clips_and_crops(classifier: VideoClassifier, tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", np.stack([noise(seed) for seed in range(12)]), codec="ffv1")
    info = probe(path)
    expected = []
    for times in view_times(info, 4, 2, 2):
        frames = torch.from_numpy(read_frames(path, times, info)).permute(0, 3, 1, 2)
        side = classifier.processor.size["height"]
        resized = classifier.processor(videos=[frames], size={"shortest_edge": side}, return_tensors="pt")
        for top, left, height, width in crops(resized["pixel_values"].shape[-2:], side, 3):
            pixels = resized["pixel_values"][..., top : top + height, left : left + width]
            with torch.no_grad():
                expected.append(classifier.model(pixels).logits.softmax(-1)[0])
    for batch_size in (1, 4):
        found = classifier.probabilities(path, classifier.views(clips=2, crops=3), batch_size)
        assert found == pytest.approx(torch.stack(expected).mean(0).numpy(), abs=1e-5)
    assert not np.allclose(expected[0], expected[1], atol=1e-3)


def test_broken_videos_are_answered_in_their_place(classifier: VideoClassifier, tmp_path: Path) -> None:
    (tmp_path / "b.mp4").write_text("broken")
    paths = [still(tmp_path / "a.mkv", noise(0)), tmp_path / "b.mp4", tmp_path / "c.mp4"]
    answers = list(classifier.classify(paths, 2))
    assert [path for path, _ in answers] == paths
    assert [isinstance(answer, BrokenImage) for _, answer in answers] == [False, True, True]
    assert answers[2][1] == BrokenImage(paths[2], "there is no such file")
    first = answers[0][1]
    assert not isinstance(first, BrokenImage)
    assert [each.label for each in first] == [LABELS[each.index] for each in first]


def test_a_timeline_follows_the_video(folders: tuple[Path, Path], classifier: VideoClassifier, tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", np.stack([noise(0)] * 20 + [noise(1)] * 20), codec="ffv1")
    timeline = classifier.follow(path)
    # Clips of 8 frames that overlap by half.
    assert len(timeline.seconds) == 10
    assert timeline.probabilities.shape == (10, len(LABELS))
    assert timeline.seconds == sorted(timeline.seconds)
    assert timeline.seconds[0] == pytest.approx(4 - timeline.seconds[-1])
    before = classifier.probabilities(still(tmp_path / "b.mkv", noise(0)))
    after = classifier.probabilities(still(tmp_path / "c.mkv", noise(1)))
    assert timeline.probabilities[:4] == pytest.approx(np.stack([before] * 4), abs=1e-4)
    assert timeline.probabilities[-4:] == pytest.approx(np.stack([after] * 4), abs=1e-4)
    assert np.abs(before - after).max() > 0.005
    assert classifier.follow(path, classifier.views(num_frames=1, stride=0.1)).probabilities.shape[0] == MOST_POINTS


def test_models_of_the_other_kind_are_refused(folders: tuple[Path, Path]) -> None:
    with pytest.raises(UsageError, match=r"is for images, .* swinv2 convert .* video-model --inflate"):
        VideoClassifier.load(str(folders[0]), "cpu")
    with pytest.raises(UsageError, match="is for videos, and this needs a model for images"):
        Classifier.load(str(folders[1]), "cpu")
