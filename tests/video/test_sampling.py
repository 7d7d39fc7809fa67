import itertools
import math
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from swinv2.errors import UsageError
from swinv2.video.files import VideoInfo
from swinv2.video.sampling import Sampling, crops, training_times, uniform_times, view_times

numbers = st.integers(1, 40)
frame_counts = st.integers(1, 400)
strides = st.floats(0.25, 8)
rates = st.sampled_from([1.0, 10.0, 24.0, 30000 / 1001, 60.0])


def video(frames: int, rate: float = 10.0) -> VideoInfo:
    """A video of so many frames per second."""
    return VideoInfo(Path("a.mp4"), frames / rate, rate, frames, (240, 320))


def seeded(seed: int = 0) -> torch.Generator:
    """A source of random numbers."""
    return torch.Generator().manual_seed(seed)


def frames_at(times: list[float], rate: float = 10.0) -> list[int]:
    """Indices of the frames that are shown at some times, if the frame rate is constant."""
    return [math.floor(time * rate) for time in times]


@given(frame_counts, rates, numbers, strides, st.integers(1, 10), st.integers(0, 2**31))
def test_all_times_are_in_the_video(
    frames: int, rate: float, num_frames: int, stride: float, clips: int, seed: int
) -> None:
    info = video(frames, rate)
    views = view_times(info, num_frames, stride, clips)
    assert len(views) == clips
    for times in (*views, training_times(info, num_frames, stride, seeded(seed)), uniform_times(info, num_frames)):
        assert len(times) == num_frames
        assert all(0 <= time < info.seconds for time in times)
        if (num_frames - 1) * stride <= frames - 1:
            assert times == sorted(times)


@given(frame_counts, numbers, strides, st.integers(1, 10))
def test_views_are_spread_evenly_and_mirrored_in_time(frames: int, num_frames: int, stride: float, clips: int) -> None:
    if (num_frames - 1) * stride > frames - 1:
        return
    info = video(frames)
    views = view_times(info, num_frames, stride, clips)
    starts = [times[0] for times in views]
    gaps = [after - before for before, after in itertools.pairwise(starts)]
    assert gaps == pytest.approx([sum(gaps) / max(len(gaps), 1)] * len(gaps), abs=1e-6)
    mirrored = [[info.seconds - time for time in reversed(times)] for times in reversed(views)]
    assert [time for times in views for time in times] == pytest.approx([t for times in mirrored for t in times])


def test_one_clip_is_in_the_middle() -> None:
    assert frames_at(view_times(video(9), 3, 2, 1)[0]) == [2, 4, 6]


@given(frame_counts, numbers, strides, st.floats(0, 1))
@example(2, 2, 0.9999999999999999, 1.0)
def test_a_clip_around_a_time(frames: int, num_frames: int, stride: float, share: float) -> None:
    """Its middle frame is shown then, unless it would begin before the video or end after it."""
    info = video(frames)
    time = share * info.seconds
    found = Sampling(num_frames, stride).around(info, time)
    assert len(found) == num_frames
    first, last = found[0] * info.rate - 0.5, max(0.0, frames - 1 - (num_frames - 1) * stride)
    assert -1e-6 <= first <= last + 1e-6
    if 1e-6 < first < last - 1e-6:
        assert found[num_frames // 2] == pytest.approx(time, abs=1e-6)
    elif num_frames > 1 and last > 1e-5:
        middle = first + num_frames // 2 * stride
        assert (middle >= time * info.rate - 0.5 - 1e-6) if first < 1e-6 else (middle <= time * info.rate - 0.5 + 1e-6)
    assert Sampling(num_frames, 0).around(info, time) == uniform_times(info, num_frames)


@pytest.mark.parametrize("stride", [math.inf, math.nan, -1.0])
def test_impossible_strides_of_a_clip(stride: float) -> None:
    with pytest.raises(UsageError, match="the distance of a clip's frames is"):
        Sampling(4, stride)


def test_the_protocol_of_video_swin() -> None:
    # mmaction2's SampleFrames(clip_len=32, frame_interval=2, num_clips=4, test_mode=True), whose clips are taken to be
    # one frame longer (clip_len * frame_interval): (300 - 63) / 4 = 59.25, and half of it.
    found = [frames_at(times) for times in view_times(video(300), 32, 2, 4)]
    assert [clip[0] for clip in found] == [30, 89, 148, 207]
    assert all(clip == list(range(clip[0], clip[0] + 64, 2)) for clip in found)


@given(st.integers(2, 60), st.integers(1, 40), st.integers(1, 4))
def test_a_short_video_begins_again(frames: int, num_frames: int, stride: int) -> None:
    expected = [index * stride % frames for index in range(num_frames)]
    if (num_frames - 1) * stride >= frames:
        assert frames_at(view_times(video(frames), num_frames, stride, 2)[1]) == expected
        assert frames_at(training_times(video(frames), num_frames, stride, seeded())) == expected


def test_random_clips_reach_each_position_equally_often() -> None:
    info, generator = video(13), seeded()
    starts = [frames_at(training_times(info, 4, 3, generator))[0] for _ in range(1200)]
    assert {start: starts.count(start) > 240 for start in set(starts)} == dict.fromkeys(range(4), True)
    assert training_times(info, 4, 3, seeded(5)) == training_times(info, 4, 3, seeded(5))


def test_uniform_times_are_the_middle_of_equal_parts() -> None:
    assert uniform_times(video(8), 4) == pytest.approx([0.1, 0.3, 0.5, 0.7])
    assert frames_at(uniform_times(video(3), 6)) == [0, 0, 1, 1, 2, 2]


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 300), st.integers(1, 6))
def test_crops_are_inside_and_cover_both_ends(height: int, width: int, side: int, count: int) -> None:
    if side > min(height, width):
        with pytest.raises(ValueError, match="side is"):
            crops((height, width), side, count)
        return
    boxes = crops((height, width), side, count)
    assert len(boxes) == count
    for top, left, rows, columns in boxes:
        assert (rows, columns) == (side, side)
        assert 0 <= top <= height - side
        assert 0 <= left <= width - side
    if count > 1:
        axis = 0 if height > width else 1
        assert (boxes[0][axis], boxes[-1][axis] + side) == (0, (height, width)[axis])
    else:
        assert boxes[0][:2] == ((height - side) // 2, (width - side) // 2)


@pytest.mark.parametrize(("num_frames", "stride", "clips"), [(0, 1, 1), (4, 0, 1), (4, math.nan, 1), (4, 1, 0)])
def test_impossible_numbers(num_frames: int, stride: float, clips: int) -> None:
    with pytest.raises(ValueError, match="expected"):
        view_times(video(10), num_frames, stride, clips)
