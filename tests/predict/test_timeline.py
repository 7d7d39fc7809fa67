from pathlib import Path

import numpy as np
from PIL import Image

from swinv2.predict.timeline import draw_timeline
from swinv2.predict.videos import Timeline
from swinv2.video.reading import probe
from video_files import write_video


def test_frames_and_curves_share_the_axis_of_time(tmp_path: Path) -> None:
    frames = np.zeros((20, 32, 48, 3), np.uint8)
    frames[:10, ..., 0], frames[10:, ..., 2] = 255, 255
    path = write_video(tmp_path / "red $ then blue.mkv", frames, codec="ffv1")
    seconds = [0.2, 0.6, 1.0, 1.4, 1.8]
    probabilities = np.array([[0.9, 0.1, 0.0], [0.8, 0.2, 0.0], [0.5, 0.5, 0.0], [0.2, 0.8, 0.0], [0.1, 0.9, 0.0]])
    timeline = Timeline(probe(path), seconds, probabilities)
    draw_timeline(timeline, ["first", "second $", "never"], tmp_path / "a.png", top_k=2)
    with Image.open(tmp_path / "a.png") as drawn:
        image = np.asarray(drawn.convert("RGB")).astype(int)
    red = (image == (255, 0, 0)).all(-1)
    blue = (image == (0, 0, 255)).all(-1)
    rows = np.flatnonzero(red.any(1))
    assert len(rows) > 80
    row = rows[len(rows) // 2]
    reds, blues = np.flatnonzero(red[row]), np.flatnonzero(blue[row])
    assert reds.max() < blues.min()
    # Red is half of the time.
    assert abs(len(reds) - len(blues)) < 0.02 * len(reds)
    # Each of the two curves has its colour, matplotlib's first and second one; the third label has none.
    below = image[rows[-1] + 5 :]
    for colour, is_drawn in (((31, 119, 180), True), ((255, 127, 14), True), ((44, 160, 44), False)):
        assert (below == colour).all(-1).any() == is_drawn


def test_one_clip_of_a_tall_video(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", np.zeros((1, 96, 16, 3), np.uint8), codec="ffv1")
    draw_timeline(Timeline(probe(path), [0.05], np.array([[0.3, 0.7]])), ["one", "two"], tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.width > 1000
