"""Reading videos, the same tests for both decoders: `test_torchcodec.py` runs this file with torchcodec."""

import io
import os
import pickle
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from swinv2.errors import UsageError
from swinv2.video import pyav, torchcodec
from swinv2.video.files import VideoError, VideoInfo, is_video_name
from swinv2.video.reading import DECODER_VARIABLE, iterate_frames, probe, read_frames
from video_files import counted, indices_of, write_sound, write_video

TORCHCODEC = os.environ.get(DECODER_VARIABLE) == "torchcodec"
"""Whether torchcodec decodes."""

only_pyav = pytest.mark.skipif(TORCHCODEC, reason="of PyAV only")


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mp4", "mpeg4"),
        ("a.mov", "mjpeg"),
        ("a.avi", "mpeg4"),
        ("a.mkv", "ffv1"),
        ("a.webm", "libvpx-vp9"),
        ("a.mpg", "mpeg2video"),
        ("a.ts", "mpeg2video"),
        ("a.flv", "flv1"),
    ],
)
def test_formats(tmp_path: Path, name: str, codec: str) -> None:
    # MPEG-1 and 2 know few rates.
    path = write_video(tmp_path / name, counted(10), rate=25, codec=codec)
    info = probe(path)
    assert (info.frames, info.size) == (10, (32, 48))
    assert info.seconds == pytest.approx(0.4, abs=0.002)
    assert info.rate == pytest.approx(25, rel=0.005)
    times = [(index + 0.5) / info.rate for index in range(10)]
    assert indices_of(read_frames(path, times)) == list(range(10))


def test_a_raw_stream_states_neither_duration_nor_number(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.m4v", counted(7), format="m4v")
    with av.open(str(path)) as container:
        assert (container.streams.video[0].frames, container.streams.video[0].duration) == (0, None)
    info = probe(path)
    assert info.frames == 7
    assert indices_of(read_frames(path, [(index + 0.5) / info.rate for index in range(7)], info)) == list(range(7))


def test_times_in_any_order_and_repeated(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", counted(10), key_frames=4)
    times = [0.55, 0.05, 0.55, -3.0, 100.0, 0.35, 0.3, 0.399]
    assert indices_of(read_frames(path, times)) == [5, 0, 5, 0, 9, 3, 3, 3]
    assert read_frames(path, []).shape == (0, 32, 48, 3)
    with pytest.raises(ValueError, match="finite"):
        read_frames(path, [float("nan")])


def test_bidirectional_frames_come_in_the_order_in_which_they_are_shown(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        stream.codec_context.max_b_frames = 2
        for index, pixels in enumerate(counted(11)):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with av.open(str(path)) as container:
        packets = [packet.pts for packet in container.demux(video=0) if packet.size]
    assert packets != sorted(packets)
    times = [(index + 0.5) / 10 for index in range(11)]
    assert indices_of(read_frames(path, times)) == list(range(11))
    assert [indices_of(read_frames(path, [time])) for time in times] == [[index] for index in range(11)]


def test_variable_frame_rate(tmp_path: Path) -> None:
    ticks = [0, 1, 2, 10, 11, 19]
    for name in ("a.mp4", "a.mkv"):
        path = write_video(tmp_path / name, counted(6), ticks=ticks)
        info = probe(path)
        assert info.frames == 6
        assert info.seconds == pytest.approx(2.0, abs=0.11)
        assert info.rate == info.frames / info.seconds
        times = [0.0, 0.15, 0.25, 0.95, 1.0, 1.1, 1.85, 1.95]
        assert indices_of(read_frames(path, times)) == [0, 1, 2, 2, 3, 4, 4, 5]


def corner(height: int = 32, width: int = 48) -> np.ndarray:
    """Three frames, black but for a white corner at the top left."""
    frames = np.zeros((3, height, width, 3), np.uint8)
    frames[:, : height // 2, : width // 2] = 255
    return frames


@pytest.mark.parametrize("flips", [False, True])
@pytest.mark.parametrize("angle", [0, 90, 180, 270])
def test_frames_are_upright(tmp_path: Path, request: pytest.FixtureRequest, angle: int, flips: bool) -> None:
    if TORCHCODEC and flips:
        request.applymarker(pytest.mark.xfail(reason="torchcodec does not mirror", strict=True))
    path = write_video(tmp_path / "a.mp4", corner(), rotation=angle, flips=flips)
    # The matrix turns, and flips afterwards.
    expected = np.rot90(corner(), angle // 90, axes=(1, 2))
    expected = expected[:, :, ::-1] if flips else expected
    info = probe(path)
    assert info.size == expected.shape[1:3]
    found = read_frames(path, [0.05, 0.25], info)
    assert np.abs(found.astype(int) - expected[[0, 2]]).mean() < 8


@only_pyav
def test_a_rotated_file_beside_unknown_side_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.mp4", corner(), rotation=90)
    expected = read_frames(path, [0.05])

    class Frame:
        """A frame with an entry that PyAV does not know."""

        def __init__(self, frame: av.VideoFrame) -> None:
            self.rotation = frame.rotation

        @property
        def side_data(self) -> None:
            raise ValueError("99 is not a valid Type")

    orientation = pyav._orientation
    monkeypatch.setattr(pyav, "_orientation", lambda frame: orientation(Frame(frame)))
    assert np.array_equal(read_frames(path, [0.05]), expected)


def test_odd_sizes_and_one_frame(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", counted(1, 21, 33))
    info = probe(path)
    assert (info.frames, info.size) == (1, (21, 33))
    assert info.seconds == pytest.approx(0.1, abs=0.001)
    assert indices_of(read_frames(path, [0.0, 0.05, 9.0], info)) == [0, 0, 0]
    assert probe(write_video(tmp_path / "b.mkv", counted(1, 21, 33))).seconds == pytest.approx(0.1, abs=0.001)


def test_an_animated_image(tmp_path: Path) -> None:
    shades = [Image.new("RGB", (20, 10), (shade,) * 3) for shade in (10, 30, 50)]
    shades[0].save(tmp_path / "a.gif", save_all=True, append_images=shades[1:], duration=[100, 300, 100])
    assert indices_of(read_frames(tmp_path / "a.gif", [0.05, 0.15, 0.35, 0.45])) == [0, 1, 1, 2]


@pytest.mark.parametrize(("name", "options"), [("a.mp4", {"movflags": "faststart"}), ("a.mkv", None), ("a.avi", None)])
def test_a_truncated_file_is_used_up_to_the_break(tmp_path: Path, name: str, options: dict[str, str] | None) -> None:
    noise = np.random.default_rng(0).integers(0, 10, (12, 64, 64, 3), np.uint8)
    path = write_video(tmp_path / name, counted(12, 64, 64) + noise, codec="mjpeg", options=options)
    whole = probe(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * 0.6)])
    info = probe(path)
    found = indices_of(read_frames(path, [(index + 0.5) / 10 for index in range(12)], info) - 5)
    last = found[-1]
    assert 1 <= last <= 9
    assert found == [min(index, last) for index in range(12)]
    # From a time behind the break, reading begins at the last frame before it, or at the beginning.
    assert indices_of(read_frames(path, [1.15], info) - 5) == [last]
    assert indices_of(read_frames(path, [1.15], whole) - 5) == [last]
    # The distance of a clip's frames is in frames of this rate. (MP4 states those of the whole file.)
    assert info.rate == pytest.approx(10, rel=0.12)


@pytest.mark.parametrize("options", [{"movflags": "faststart"}, {"movflags": "frag_keyframe+empty_moov"}, None])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.7, 0.9])
def test_truncated_files_with_frames_that_depend_on_later_ones(
    tmp_path: Path, options: dict[str, str] | None, share: float
) -> None:
    name = "a.mp4" if options else "a.mkv"
    noise = np.random.default_rng(0).integers(0, 40, (60, 96, 96, 3), np.uint8)
    frames = counted(10, 96, 96)[np.arange(60) // 6] + noise
    path = write_video(tmp_path / name, frames, rate=25, codec="libx264", key_frames=15, options=options)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    info = probe(path)
    assert info.rate == pytest.approx(25, rel=0.15)
    times = [(index + 0.5) / 25 for index in range(60)]
    found = indices_of(read_frames(path, times, info) - 20.0)
    # Each frame that is shown is the right one, or one before it; none comes from the future, and none is missing
    # in the middle.
    assert all(shown <= index // 6 for index, shown in enumerate(found)), found
    assert found == sorted(found)
    assert max(found) >= 10 * share - 3
    assert indices_of(read_frames(path, times[::-1], info) - 20.0) == found[::-1]


def test_a_file_whose_beginning_is_damaged(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mov", counted(12), codec="mjpeg")
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    for position, size in packets[:4]:
        data[position : position + size] = bytes(size)
    path.write_bytes(data)
    info = probe(path)
    assert (info.frames, info.start) == (8, pytest.approx(0.4, abs=0.001))
    assert (info.seconds, info.rate) == (pytest.approx(0.8, abs=0.001), pytest.approx(10, rel=0.001))
    assert indices_of(read_frames(path, [-1, 0.05, 0.15, 0.75, 9.0], info)) == [4, 4, 5, 11, 11]


def test_a_file_that_does_not_begin_at_0(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", counted(6), ticks=range(50, 56))
    info = probe(path)
    assert (info.frames, info.start) == (6, pytest.approx(5, abs=0.001))
    assert info.seconds == pytest.approx(0.6, abs=0.001)
    # A frame may begin a little later than it is stored.
    assert indices_of(read_frames(path, [-1, 0.0, 0.1, 0.1996, 0.35, 0.55, 9.0], info)) == [0, 0, 1, 2, 3, 5, 5]


@pytest.mark.parametrize("count", [1, 2, 6])
def test_a_webm_that_does_not_say_how_long_frames_last(tmp_path: Path, count: int) -> None:
    path = write_video(tmp_path / "a.webm", counted(count), rate=25, codec="libvpx")
    data = bytearray(path.read_bytes())
    # The element DefaultDuration becomes one without meaning.
    place = data.index(b"\x23\xe3\x83")
    assert data[place + 3] & 0xF0 == 0x80
    length = data[place + 3] & 0x0F
    data[place : place + 4 + length] = b"\xec" + bytes([0x80 | (2 + length)]) + bytes(2 + length)
    path.write_bytes(data)
    info = probe(path)
    assert info.frames == count
    assert info.seconds == pytest.approx(count / 25, abs=0.002)
    assert indices_of(read_frames(path, [(index + 0.5) / 25 for index in range(count)], info)) == list(range(count))
    assert indices_of(read_frames(path, [9.0], info)) == [count - 1]


@only_pyav
@pytest.mark.parametrize("matrix", [8, 14])
def test_a_matrix_of_colours_that_cannot_be_converted(tmp_path: Path, matrix: int) -> None:
    path = write_video(tmp_path / "a.mp4", counted(3), codec="libx264", matrix=matrix)
    with av.open(str(path)) as container:
        assert next(container.decode(video=0)).colorspace == matrix
    assert indices_of(read_frames(path, [0.05, 0.15, 0.25])) == [0, 1, 2]


@only_pyav
def test_frames_keep_no_threads(tmp_path: Path) -> None:
    """A process that is forked later crashed when it freed them."""
    path = write_video(tmp_path / "a.mp4", counted(12, 320, 240))
    code = """
import gc, os, sys
gc.disable()
from swinv2.video.reading import read_frames
frames = lambda: read_frames(sys.argv[1], [(index + 0.5) / 10 for index in range(12)])
before = len(os.listdir("/proc/self/task"))
frames()
assert len(os.listdir("/proc/self/task")) == before, (before, os.listdir("/proc/self/task"))
if child := os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
gc.collect()
frames()
os._exit(0)
"""
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])


def test_a_damaged_packet_is_left_out(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.avi", counted(8), codec="mjpeg")
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        third = [packet.pos for packet in container.demux(video=0) if packet.size][3]
    data[third + 8 : third + 200] = bytes(192)
    path.write_bytes(data)
    assert indices_of(read_frames(path, [(index + 0.5) / 10 for index in range(8)])) == [0, 1, 2, 2, 4, 5, 6, 7]


def reason(path: Path) -> str:
    """The reason why a file is refused; its name must be in the message."""
    with pytest.raises(VideoError, match="cannot be used") as caught:
        probe(path)
    assert repr(str(path)) in str(caught.value)
    return caught.value.reason


def test_files_that_are_no_videos(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("not a video\n" * 100)
    assert reason(tmp_path / "text.mp4").startswith("it is not a video in a format that is read here")
    (tmp_path / "text.txt").write_text("FFmpeg draws text as a video\n" * 100)
    assert reason(tmp_path / "text.txt").startswith("it is not a video in a format that is read here")
    (tmp_path / "empty.mp4").touch()
    assert reason(tmp_path / "empty.mp4") == "the file is empty"
    assert reason(tmp_path / "none.mp4") == "there is no such file"
    assert reason(tmp_path).startswith("it is a folder; expected a video file such as")
    found = reason(write_sound(tmp_path / "sound.m4a"))
    assert found.startswith("it has no video that" if TORCHCODEC else "it has no video but sound, or")
    Image.new("RGB", (20, 20)).save(tmp_path / "image.png")
    assert reason(tmp_path / "image.png").startswith("it is not a video in a format that is read here")
    # Of a playlist, other files would be opened.
    write_video(tmp_path / "a.ts", counted(3), rate=25, codec="mpeg2video")
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\na.ts\n#EXT-X-ENDLIST\n")
    assert reason(tmp_path / "list.m3u8").startswith("it is not a video in a format that is read here")


def test_a_cover_is_not_a_video(tmp_path: Path) -> None:
    path = tmp_path / "song.mp3"
    Image.new("RGB", (16, 16)).save(tmp_path / "cover.png")
    cover = (tmp_path / "cover.png").read_bytes()
    text = b"\x03image/png\0\x03\0" + cover
    frame = b"APIC" + len(text).to_bytes(4, "big") + b"\0\0" + text
    size = bytes((len(frame) >> shift) & 127 for shift in (21, 14, 7, 0))
    # Silence: MPEG-1 layer III, 32 kbit/s, 44.1 kHz.
    sound = (b"\xff\xfb\x10\xc4" + bytes(100)) * 20
    path.write_bytes(b"ID3\x03\0\0" + size + frame + sound)
    assert "a format that is read here" in reason(path)


def box(name: bytes, *parts: bytes) -> bytes:
    """A box of an MP4 file."""
    content = b"".join(parts)
    return (len(content) + 8).to_bytes(4, "big") + name + content


def test_a_cover_in_an_mp4_is_not_a_video(tmp_path: Path) -> None:
    cover = io.BytesIO()
    Image.new("RGB", (16, 16)).save(cover, "PNG")
    picture = box(b"covr", box(b"data", b"\0\0\0\x0e\0\0\0\0", cover.getvalue()))
    handler = box(b"hdlr", bytes(8), b"mdirappl", bytes(9))
    data = write_sound(tmp_path / "song.m4a").read_bytes()
    start = data.index(b"moov") - 4
    # The file's last box; sound is found by places before it.
    assert start + int.from_bytes(data[start : start + 4], "big") == len(data)
    extra = box(b"udta", box(b"meta", bytes(4), handler, box(b"ilst", picture)))
    (tmp_path / "song.m4a").write_bytes(data[:start] + box(b"moov", data[start + 8 :], extra))
    with av.open(str(tmp_path / "song.m4a")) as container:
        assert len(container.streams.video) == 1
    assert reason(tmp_path / "song.m4a").startswith("it has no video")


def test_a_file_without_a_readable_frame(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", counted(4), codec="mjpeg", options={"movflags": "faststart"})
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"mdat") + 8])
    assert "no frame of it can be decoded" in reason(path)
    path.write_bytes(bytes(40) + data[40:])
    assert "damaged or incomplete" in reason(path)
    write_video(path, counted(4))
    data = path.read_bytes()
    # Its table is at the end.
    path.write_bytes(data[: len(data) // 2])
    assert "damaged" in reason(path)


def test_huge_frames_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.mp4", counted(2, 256, 320))
    decoder = torchcodec if TORCHCODEC else pyav
    monkeypatch.setattr(decoder, "MOST_PIXELS", 256 * 320 - 1)
    assert reason(path).startswith("its frames have more than 81,919 pixels, the limit")
    monkeypatch.setattr(decoder, "MOST_PIXELS", 256 * 320)
    assert probe(path).size == (256, 320)


@only_pyav
def test_long_gaps_are_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.mp4", np.concatenate([counted(12)] * 20), key_frames=10)
    info = probe(path)
    times = [0.55, 12.25, 12.35, 23.95]
    decoded = 0
    actual = pyav._decoded

    def count(*arguments: object):
        nonlocal decoded
        for item in actual(*arguments):
            decoded += 1
            yield item

    monkeypatch.setattr(pyav, "_decoded", count)
    assert indices_of(read_frames(path, times, info)) == [5, 2, 3, 11]
    assert decoded < 60
    # With one key frame, skipping leads back to the beginning: it is given up.
    path = write_video(path, np.concatenate([counted(12)] * 20), codec="mpeg2video", key_frames=600, rate=25)
    monkeypatch.setattr(pyav, "_JUMP", 1.0)
    info, decoded = probe(path), 0
    assert indices_of(read_frames(path, [0.02, 3.02, 6.02, 9.02], info)) == [0, 3, 6, 9]
    assert decoded < 600


def test_frames_come_one_after_the_other(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", counted(6))
    found = [(indices_of(frame[None])[0], indices) for frame, indices in iterate_frames(path, [0.25, 0.05, 0.27, 9])]
    assert found == [(0, [1]), (2, [0, 2]), (5, [3])]


def test_a_name_that_looks_like_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.mp4", counted(2)).rename(tmp_path / "http:b.mp4")
    assert probe(path).frames == 2
    monkeypatch.chdir(tmp_path)
    assert probe(path.name).frames == 2


def test_frames_of_another_size_are_resized(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuvj420p"
        for index, (width, height) in enumerate([(48, 32), (48, 32), (64, 64), (48, 32)]):
            encoder = av.CodecContext.create("mjpeg", "w")
            encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuvj420p"
            encoder.time_base = Fraction(1, 10)
            frame = av.VideoFrame.from_ndarray(counted(4, height, width)[index].copy(), format="rgb24")
            (packet,) = encoder.encode(frame)
            packet.stream, packet.time_base = stream, Fraction(1, 1000)
            packet.pts = packet.dts = 100 * index
            container.mux(packet)
    found = read_frames(path, [0.05, 0.15, 0.25, 0.35])
    assert found.shape == (4, 32, 48, 3)
    assert indices_of(found) == [0, 1, 2, 3]


def test_many_frames_in_any_order(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", counted(12), key_frames=5, codec="libx264")
    order = [int(index) for index in np.random.default_rng(0).permutation(np.repeat(np.arange(12), 3))]
    assert indices_of(read_frames(path, [(index + 0.5) / 10 for index in order])) == order


def test_the_environment_names_the_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, other = write_video(tmp_path / "a.mp4", counted(3)), write_video(tmp_path / "a.avi", counted(3))
    calls = []
    for decoder in (pyav, torchcodec):
        # The second one may lack FFmpeg here.
        monkeypatch.setattr(decoder, "probe", lambda path, name=decoder.__name__: calls.append(name))
    for wanted, file in [("pyav", path), ("torchcodec", path), ("torchcodec", other), ("", path)]:
        monkeypatch.setenv(DECODER_VARIABLE, wanted)
        probe(file)
    assert [name.rpartition(".")[2] for name in calls] == ["pyav", "torchcodec", "pyav", "pyav"]
    monkeypatch.setenv(DECODER_VARIABLE, "ffmpeg")
    with pytest.raises(UsageError, match=r"SWINV2_VIDEO_DECODER is 'ffmpeg'; expected one of pyav, torchcodec\."):
        probe(path)
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.setenv(DECODER_VARIABLE, "pyav")
    with pytest.raises(UsageError, match=r"is 'pyav', but the package 'av' is not installed"):
        probe(path)
    monkeypatch.delenv(DECODER_VARIABLE)
    probe(path)
    assert calls[-1] == "swinv2.video.torchcodec"
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    with pytest.raises(UsageError, match=r"neither is installed; install swinv2\[video\]"):
        probe(path)


@only_pyav
def test_an_old_pyav_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.mp4", counted(2))
    monkeypatch.setattr(av, "__version__", "17.0.1")
    with pytest.raises(UsageError, match=r"PyAV 17\.1 or later, but av 17\.0\.1 is installed; upgrade it\."):
        probe(path)
    monkeypatch.setattr(av, "__version__", "18.0.0rc1")
    assert probe(path).frames == 2


@pytest.mark.parametrize(
    ("start", "is_read"),
    [
        (b"\0\0\0\x18ftyp", True),
        (b"\0\0\0\1mdat", True),
        (b"\x1f\x20\x21\x22mdat", True),
        (b"\x1aE\xdf\xa3\xa3\xa3\xa3\xa3", True),
        # A playlist, which a text that FFmpeg takes for one may contain.
        (b"<!--skip--><MPD>", False),
        (b"<!--free--><MPD>", False),
        (b"RIFF\0\0\0\0AVI ", False),
        (b"#EXTM3U\n", False),
        (b"", False),
    ],
)
def test_formats_of_torchcodec(tmp_path: Path, start: bytes, is_read: bool) -> None:
    (tmp_path / "a").write_bytes(start)
    assert torchcodec.decodes(tmp_path / "a") is is_read
    assert torchcodec.decodes(tmp_path / "absent")


def test_without_pyav_other_formats_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.avi", counted(3))
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.setenv(DECODER_VARIABLE, "torchcodec")
    assert reason(path).startswith(
        "it is not a video, or of a format that is not read by torchcodec here, which is MP4"
    )
    (tmp_path / "list.mp4").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\na.avi\n#EXT-X-ENDLIST\n")
    assert reason(tmp_path / "list.mp4").startswith("it is not a video, or of a format")
    (tmp_path / "empty.mp4").touch()
    assert reason(tmp_path / "empty.mp4") == "the file is empty"
    assert reason(tmp_path / "none.mp4") == "there is no such file"
    assert reason(tmp_path).startswith("it is a folder")


def test_errors_travel_between_processes() -> None:
    error = pickle.loads(pickle.dumps(VideoError(Path("a.mp4"), "the file is empty")))
    assert (str(error), error.path) == ("the video 'a.mp4' cannot be used: the file is empty.", Path("a.mp4"))


def test_names_of_videos() -> None:
    assert [is_video_name(name) for name in ("a.MP4", "b.webm", ".c.mp4", "d.gif", "e.txt", "mp4")] == [
        *(True, True, False, False, False, False),
    ]


def test_the_information_about_a_video_is_enough_to_read_it(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", counted(4))
    info = VideoInfo(path, 0.4, 10.0, 4, (32, 48))
    assert probe(path) == info
    assert indices_of(read_frames(path, [0.15], info)) == [1]
