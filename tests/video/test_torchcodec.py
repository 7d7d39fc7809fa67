"""torchcodec, with the FFmpeg that is in PyAV's wheel, so that the tests do not need the system's."""

import importlib.metadata
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from swinv2.video.reading import DECODER_VARIABLE

TESTS = Path(__file__).parent


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """Variables with which torchcodec decodes."""
    files = [Path(str(file.locate())) for file in importlib.metadata.files("av") or () if "av.libs" in str(file)]
    folder = tmp_path_factory.mktemp("ffmpeg")
    for file in files:
        # From libavcodec-5e6b81c2.so.62.28.102, libavcodec.so.62, which torchcodec looks for.
        if found := re.fullmatch(r"(lib(?:av|sw)\w+)-\w+(\.so\.\d+)\..*", file.name):
            (folder / "".join(found.groups())).symlink_to(file)
    if not any(folder.iterdir()):
        pytest.skip("PyAV was installed without a wheel, or its wheel has other names here")
    paths = [str(folder), str(files[0].parent), os.environ.get("LD_LIBRARY_PATH", "")]
    return {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(filter(None, paths)), DECODER_VARIABLE: "torchcodec"}


def test_torchcodec_reads_what_pyav_reads(environment: Mapping[str, str]) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    done = subprocess.run(
        [*command, str(TESTS / "test_reading.py"), str(TESTS / "test_processing.py")],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert int(re.findall(r"(\d+) passed", done.stdout)[-1]) > 60


def test_both_decoders_give_the_same_pixels(environment: Mapping[str, str], tmp_path: Path) -> None:
    code = """
import os, sys
import numpy as np
from pathlib import Path
from swinv2.video.reading import DECODER_VARIABLE, probe, read_frames
from video_files import write_video

frames = np.random.default_rng(0).integers(0, 255, (30, 9, 13, 3), np.uint8).repeat(12, 1).repeat(12, 2)
# Usual videos: 8 bits, progressive, an even number of rows.
for name, codec in (("a.mp4", "libx264"), ("b.webm", "libvpx-vp9"), ("c.mov", "mjpeg"), ("d.mkv", "libx265")):
    path = write_video(Path(sys.argv[1]) / name, frames, codec=codec, rotation=90 if name == "a.mp4" else None)
    times = np.random.default_rng(1).uniform(0, 3, 20).tolist()
    found = {}
    for decoder in ("pyav", "torchcodec"):
        os.environ[DECODER_VARIABLE] = decoder
        info = probe(path)
        found[decoder] = read_frames(path, times, info)
        assert (info.frames, info.size) == (30, (156, 108) if name == "a.mp4" else (108, 156)), info
    assert np.array_equal(found["pyav"], found["torchcodec"]), name
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env={**environment, "PYTHONPATH": str(TESTS.parent)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_without_ffmpeg_it_says_what_to_install(environment: Mapping[str, str], tmp_path: Path) -> None:
    # Broken libraries, under every version's name that comes before those of the system.
    for name, versions in {"avutil": range(56, 64), "avcodec": range(58, 66)}.items():
        for version in versions:
            (tmp_path / f"lib{name}.so.{version}").write_text("not a library")
    code = "from swinv2.video.reading import probe; probe(__import__('sys').argv[1])"
    video = tmp_path / "a.mp4"
    video.write_bytes(b"\0\0\0\x18ftypmp42")
    done = subprocess.run(
        [sys.executable, "-c", code, str(video)],
        env={**environment, "LD_LIBRARY_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert "torchcodec finds no FFmpeg that it can use" in done.stderr
    assert "or PyAV, which contains FFmpeg: swinv2[video]." in done.stderr
