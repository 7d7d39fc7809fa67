"""Measures whether a model of videos uses time: labels that cost nothing, on real videos.

    python benchmarks/video_training.py --clips CLIPS

Two tasks: is a clip played forward or backward; at which of three speeds. Our network sees clips; the same network that
sees frames one by one, and takes their mean, cannot know. Every video is divided by time, so nothing of a test clip is
in a training clip. Every result is written at once, and an interrupted benchmark resumes: what the file has is not
measured again. Progress goes to stderr, the tables to stdout. README.md explains the method.
"""

import itertools
import json
import shlex
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import av
import numpy as np
import report
import torch
import typer
from methods import (
    OURS,
    SWINV2,
    MethodError,
    measure_rows,
    millions,
    number,
    percent,
    rounded,
    run_program,
    table_of,
)
from terminal import progress, select
from torchvision.transforms.v2 import functional as F

from swinv2.images import files_inside
from swinv2.loading import load_model
from swinv2.video.files import VideoError, VideoInfo, is_video_name
from swinv2.video.models import Swinv2ForVideoClassification
from swinv2.video.reading import iterate_frames, probe

FRAMES_ALONE = "frames"
METHODS = (OURS, FRAMES_ALONE)

FRAMES, SIDE = 8, 96
"""Frames of a clip, and their side in pixels: that of the model that ships."""

TRAIN_END, TEST_START = 0.55, 0.6
"""Of each video, the first share trains and the last one, from the second number on, tests; the rest is a gap."""

TEST_CLIPS = 12
"""So many places of a video are cut out to test, each once for each class."""

STEPS, BATCH = 800, 8

SAME_FACTS = ("machine", "torch", "torchvision", "transformers")
"""Rows of other commits are kept; each row names its commit."""

COLUMNS = ("top1", "processor_seconds", "clock_seconds", "steps", "parameters")


@dataclass(frozen=True)
class Task:
    """A task: for each class, the distance of frames in the video; negative if the clip is played backward."""

    strides: dict[str, int]

    @property
    def longest(self) -> int:
        """The largest distance of frames."""
        return max(map(abs, self.strides.values()))

    @property
    def span(self) -> int:
        """Frames of the video that the longest clip needs."""
        return self.longest * (FRAMES - 1) + 1


TASKS = {
    "direction": Task({"forward": 3, "backward": -3}),
    "speed": Task({"once": 1, "twice": 2, "four times": 4}),
}

SETTINGS: dict[str, Sequence[str]] = {
    OURS: ("--tubelet-size", "2", "--window-frames", str(FRAMES // 2)),
    FRAMES_ALONE: ("--tubelet-size", "1", "--window-frames", "1"),
}
"""The flags in which the methods differ: the frames of a patch, and of a window."""


def main(
    clips: Annotated[Path, typer.Option(help="Folder with video files.")],
    tasks: Annotated[str, typer.Option(help=f"Of {', '.join(TASKS)}.")] = "",
    methods: Annotated[str, typer.Option(help=f"Of {', '.join(METHODS)}.")] = "",
    seeds: Annotated[str, typer.Option(help="Numbers, separated by commas.")] = "0,1,2",
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of every method, for a trial.")] = None,
    keep: Annotated[Path | None, typer.Option(help="Keep logs and models in this folder.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="Write to this path with the suffixes .csv and .md, not to benchmarks/results.")
    ] = None,
) -> None:
    """Compares a model of videos with the same network that sees frames one by one."""
    torch.set_num_threads(1)
    wanted, names = select("tasks", tasks, tuple(TASKS)), select("methods", methods, METHODS)
    stem = output or report.default_stem("video-training-part" if steps else "video-training", "cpu")
    facts = report.describe_run("cpu")
    options = {"tasks": tasks, "methods": methods, "seeds": seeds, "steps": steps}
    told = ["--clips=CLIPS", *(f"--{name}={value}" for name, value in options.items() if value)]
    facts["command"] = shlex.join(["python", f"benchmarks/{Path(__file__).name}", *told])
    with tempfile.TemporaryDirectory() as temporary:
        data = {name: cut_clips(clips, TASKS[name], Path(temporary) / name) for name in wanted}
        measure_rows(
            itertools.product(wanted, map(int, seeds.split(",")), names),
            lambda name, seed, method, folder, ours: measure(data[name], method, seed, folder, steps or STEPS),
            stem=stem,
            title=f"Models of videos and of frames on {facts['machine']}",
            facts=facts,
            same_facts=SAME_FACTS,
            order=(list(TASKS), METHODS),
            tables=_tables,
            keep=keep,
        )


# Data.


def cut_clips(source: Path, task: Task, folder: Path) -> Path:
    """Cuts videos: folders of the splits train and test, and of the classes.

    The first part of a video becomes, for each class, videos with the distance of frames of the class, from which the
    training takes random clips: as many for each class, which begin one frame after the other. The last part becomes
    single clips.

    Args:
        source: A folder with video files.
        task: The task.
        folder: A new folder.

    Returns:
        The folder.

    Raises:
        typer.BadParameter: There is no video that is long enough.
    """
    counts = {"train": 0, "test": 0}
    size = len(task.strides)
    for index, path in enumerate(files_inside(source, is_video_name)):
        try:
            info = probe(path)
            parts = {"train": (0, int(TRAIN_END * info.frames)), "test": (int(TEST_START * info.frames), info.frames)}
            if min(end - start for start, end in parts.values()) < task.span:
                progress(f"left out: {path.name} has {info.frames} frames, too few for clips of {task.span}")
                continue
            frames = np.stack(list(small_frames(info)))
        except VideoError as error:
            progress(f"left out: {error}")
            continue
        for name, stride in task.strides.items():
            for first in range(task.longest):
                chosen = frames[first : parts["train"][1] : abs(stride)]
                write_clip(folder / "train" / name / f"{index}-{first}.mkv", chosen[:: 1 if stride > 0 else -1])
                counts["train"] += 1
            # Fewer frames than the file states can be decoded of a damaged one.
            for place in places(parts["test"][0], min(parts["test"][1], len(frames)), task.span, TEST_CLIPS):
                first = place + (task.span - abs(stride) * (FRAMES - 1) - 1) // 2
                chosen = frames[first : first + abs(stride) * (FRAMES - 1) + 1 : abs(stride)]
                write_clip(folder / "test" / name / f"{index}-{place}.mkv", chosen[:: 1 if stride > 0 else -1])
                counts["test"] += 1
    if not all(counts.values()):
        raise typer.BadParameter(f"{source} has no video of which clips of {task.span} frames can be cut")
    progress(
        f"cut: {counts['train'] // size} videos to train and {counts['test'] // size} clips to test for each class"
    )
    return folder


def places(start: int, end: int, span: int, most: int) -> list[int]:
    """The first frames of clips of `span` frames, spread evenly from `start` to `end`, at most `most`."""
    last = end - span
    if last < start:
        return []
    return sorted({round(place) for place in np.linspace(start, last, most)})


def small_frames(info: VideoInfo) -> Iterator[np.ndarray]:
    """The frames of a video (SIDE, SIDE, 3): the centre, resized."""
    times = [(index + 0.5) / info.rate for index in range(info.frames)]
    for frame, shown in iterate_frames(info.path, times, info):
        pixels = F.resize(torch.from_numpy(frame.copy()).permute(2, 0, 1), [SIDE], antialias=True)
        small = F.center_crop(pixels, [SIDE, SIDE]).permute(1, 2, 0).numpy()
        for _ in shown:
            yield small


def write_clip(path: Path, frames: np.ndarray) -> None:
    """Writes frames without loss, each by itself: the file does not tell in which order they were compressed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("ffv1", rate=25)
        stream.height, stream.width, stream.pix_fmt, stream.gop_size = SIDE, SIDE, "bgr0", 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode(None))


# Measuring.


def measure(data: Path, method: str, seed: int, output: Path, steps: int) -> report.Row:
    """Trains and tests one method.

    Args:
        data: The clips of a task.
        method: One of `METHODS`.
        seed: The seed.
        output: An empty folder for the model and the log.
        steps: Steps of the training.

    Returns:
        The columns of a result. If the method failed, they are empty except for the note.
    """
    started = time.perf_counter()
    run = output / "run"
    flags = [
        *("--task", "video", "--data", str(data), "--seed", str(seed), "--output-dir", str(run)),
        *("--num-frames", str(FRAMES), "--frame-stride", "1", "--window-size", "6", "--max-steps", str(steps)),
        *("--per-device-train-batch-size", str(BATCH), "--eval-strategy", "no", *SETTINGS[method]),
    ]
    try:
        _, seconds = run_program([*SWINV2, "finetune", *flags], output / "training.log")
        test = ["evaluate", str(data), "--model", str(run / "final"), "--split", "test", "--json"]
        answer, _ = run_program([*SWINV2, *test], output / "test.log")
    except MethodError as error:
        return {**dict.fromkeys(COLUMNS, ""), "note": str(error)[:200]}
    model = load_model(Swinv2ForVideoClassification, str(run / "final"), torch.device("cpu"), torch.float32)
    found: dict[str, Any] = {
        "top1": json.loads(answer)["top1"],
        "processor_seconds": seconds,
        "clock_seconds": time.perf_counter() - started,
        "steps": json.loads((run / "results.json").read_text())["step"],
        "parameters": sum(each.numel() for each in model.parameters()),
    }
    return {**{name: rounded(found[name]) for name in COLUMNS}, "note": ""}


def _tables(rows: Sequence[report.Row]) -> list[str]:
    """The results, one line for each task and one column for each method."""
    chance = ", ".join(f"{name} {1 / len(task.strides):.1%}" for name, task in TASKS.items())
    caption = f"Top-1 in %: mean of the seeds (least to most); by chance {chance}."
    tables = [
        table_of(rows, METHODS, caption, percent, "top1"),
        table_of(rows, METHODS, "Processor time of the training in seconds.", number, "processor_seconds"),
        table_of(rows, METHODS, "Training steps: mean of the seeds.", number, "steps"),
        table_of(rows, METHODS, "Parameters in millions.", millions, "parameters"),
    ]
    return [table for table in tables if table]


if __name__ == "__main__":
    # subprocess.run ends its process at an exception; a benchmark that is stopped must leave no training behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    typer.run(main)
