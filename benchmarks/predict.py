"""Shows `swinv2 predict` on many images, and measures what its engine costs.

    python benchmarks/predict.py generated --root ROOT --images 100000     # draws the images, and computes them
    python benchmarks/predict.py real --root ROOT --data tiny-imagenet/validation.parquet
    python benchmarks/predict.py engine --root ROOT                        # beside a plain loop, in turns
    python benchmarks/predict.py ray --root ROOT --workers 2               # the same on Ray, beside as many processes
    python benchmarks/predict.py reading                                   # images that a core can read
    python benchmarks/predict.py planning --root ROOT --shards 100000      # what shards cost before the first one

In: images that it draws, or a data set with labels. Out: numbers on stdout; the table of `engine` also in results/.
Each command checks that every image has one row of answers. README.md explains the method.
"""

import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import report
import torch
import typer
from PIL import Image, ImageFilter
from terminal import progress
from transformers import ViTImageProcessor

from swinv2 import Swinv2Config, Swinv2Model
from swinv2.images import read_image
from swinv2.predict.predictor import Classifier, Predictor
from swinv2.predict.shipped import shipped_model
from swinv2.shards.output import Output
from swinv2.shards.run import compute_here, prepare_run
from swinv2.shards.sources import divide, find_sources
from swinv2.shards.worker import Options

SIDE = 96
"""Pixels of the images that are drawn: those of the model that ships."""

OF_A_TAR = 1_000
BROKEN_EVERY = 1_009
"""One of so many generated images is no image."""

SWINV2 = (sys.executable, "-m", "swinv2")

app = typer.Typer(add_completion=False, help=__doc__)

Root = Annotated[Path, typer.Option(help="Folder for the images and the answers; images that it has are kept.")]
Ray = Annotated[str, typer.Option(help="Address for --ray; none: one process.")]
Workers = Annotated[int, typer.Option(help="Workers with --ray; 0: as the command chooses.")]
Columns = Annotated[str, typer.Option(help="What is computed: labels, features, or labels,features.")]


def draw(number: int, side: int = SIDE) -> bytes:
    """A JPEG file; each number gives another image, quickly: a pattern that is moved and coloured."""
    pattern = np.random.default_rng(number // 1_000).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    pixels = np.kron(pattern, np.ones((side // 12, side // 12, 1), np.uint8))
    pixels = np.roll(pixels, (number % side, number // side % side), (0, 1))
    pixels[: number % 7 + 1, :, number % 3] //= 2
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=85)
    return file.getvalue()


def draw_tars(folder: Path, images: int) -> int:
    """Writes archives of generated images, each atomically; returns how many images are broken."""
    folder.mkdir(parents=True, exist_ok=True)
    for first in range(0, images, OF_A_TAR):
        file = folder / f"{first // OF_A_TAR:05d}.tar"
        if file.exists():
            continue
        with tarfile.open(file.with_suffix(".part"), "w") as archive:
            for number in range(first, min(first + OF_A_TAR, images)):
                content = b"no image" if _is_broken(number) else draw(number)
                about = tarfile.TarInfo(f"{number:09d}.jpg")
                about.size = len(content)
                archive.addfile(about, io.BytesIO(content))
        file.with_suffix(".part").rename(file)
    return sum(_is_broken(number) for number in range(images))


def draw_files(root: Path, images: int) -> Path:
    """Writes generated images as files of a folder, and returns it."""
    folder = root / f"files-{images}"
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(images):
        file = folder / f"{number:06d}.jpg"
        if not file.exists():
            file.write_bytes(draw(number))
    return folder


def _is_broken(number: int) -> bool:
    return number % BROKEN_EVERY == BROKEN_EVERY - 1


def run_command(sources: Sequence[object], output: Path, columns: str, ray: str, workers: int) -> dict[str, Any]:
    """Runs `swinv2 predict` until it has nothing to do, and returns its last line with the peak of its memory."""
    command = [*SWINV2, "predict", *map(str, sources), "-o", str(output), "--columns", columns, "--json"]
    command += ["-m", str(shipped_model())]
    command += ["--ray", ray] if ray else []
    command += ["--workers", str(workers)] if workers else []
    # Of all its processes on this machine, the largest: the one that has the model.
    script = (
        "import resource, subprocess, sys; code = subprocess.call(sys.argv[1:]); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", script, *command], capture_output=True, text=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    if done.returncode not in (0, 1) or not lines or lines[-1]["event"] != "end":
        raise SystemExit(f"swinv2 predict failed:\n{done.stderr}")
    return {**lines[-1], "peak_mib": int(done.stderr.split()[-1]) / 1024}


def check_rows(output: Path, images: int, errors: int) -> Any:
    """Checks that there is a row for each image, none twice, and as many errors as there should be."""
    table = pa.dataset.dataset(output / "shards", format="parquet").to_table(columns=["source", "row", "error"])
    rows = set(zip(table["source"].to_pylist(), table["row"].to_pylist(), strict=True))
    if not len(rows) == table.num_rows == images:
        raise SystemExit(f"{table.num_rows:,} rows, {len(rows):,} different ones; expected {images:,}.")
    found = table.num_rows - table["error"].null_count
    if found != errors:
        raise SystemExit(f"{found:,} rows with an error; expected {errors:,}.")
    return table


def print_run(end: dict[str, Any], output: Path, images: int) -> None:
    """Prints the numbers of a run."""
    files = list((output / "shards").iterdir())
    size = sum(file.stat().st_size for file in files)
    found = {
        "images": f"{images:,}",
        "computed in this run": f"{end['images']:,}",
        "images a second": f"{end['images_per_second']:.1f}",
        "seconds": f"{end['seconds']:.0f}",
        "errors": f"{end['errors']:,}",
        "files of answers": f"{len(files):,}",
        "bytes of answers an image": f"{size / images:.0f}",
        "peak memory, MiB": f"{end['peak_mib']:.0f}",
        "threads": str(end["options"]["threads"]),
        "columns": end["options"]["columns"],
    }
    facts = report.describe_run("cpu")
    print(report.table("", ["what", "value"], [list(row) for row in (found | facts).items()]).strip())


@app.command()
def generated(
    root: Root,
    images: Annotated[int, typer.Option(min=1, help="Number of images.")] = 100_000,
    columns: Columns = "labels,features",
    ray: Ray = "",
    workers: Workers = 0,
) -> None:
    """Draws images into archives, computes them, and checks the rows. An interrupted run is resumed."""
    progress(f"drawing {images:,} images")
    data = root / f"generated-{images}"
    broken = draw_tars(data, images)
    output = root / f"answers-{images}{'-ray' * bool(ray)}"
    progress("swinv2 predict")
    end = run_command([data], output, columns, ray, workers)
    check_rows(output, images, broken)
    print_run(end, output, images)


@app.command()
def real(
    root: Root,
    data: Annotated[Path, typer.Option(help="A parquet file of scripts/tiny_imagenet.py: image, label.")],
    columns: Columns = "labels,features",
    ray: Ray = "",
    workers: Workers = 0,
) -> None:
    """Computes a data set with labels as files of 1,000 images, checks the rows, and prints the accuracy."""
    table = pq.read_table(data)
    parts = root / f"real-{table.num_rows}"
    parts.mkdir(parents=True, exist_ok=True)
    for first in range(0, table.num_rows, OF_A_TAR):
        file = parts / f"{first // OF_A_TAR:05d}.parquet"
        if not file.exists():
            pq.write_table(table.slice(first, OF_A_TAR), file.with_suffix(".part"))
            file.with_suffix(".part").rename(file)
    output = root / f"answers-real-{table.num_rows}{'-ray' * bool(ray)}"
    progress("swinv2 predict")
    end = run_command([parts], output, columns, ray, workers)
    check_rows(output, table.num_rows, 0)
    print_run(end, output, table.num_rows)
    answers = pa.dataset.dataset(output / "shards", format="parquet").to_table(columns=["source", "row", "indices"])
    labels = table["label"].to_pylist()
    right = [0, 0]
    for row in answers.to_pylist():
        label = labels[int(Path(row["source"]).stem) * OF_A_TAR + row["row"]]
        right[0] += row["indices"][0] == label
        right[1] += label in row["indices"]
    first, among = (count / table.num_rows for count in right)
    print(f"top-1 {first:.2%}, among the first {end['options']['top_k']}: {among:.2%}")


def plain_loop(classifier: Classifier, paths: Sequence[Path], options: Options) -> int:
    """What the engine is compared with: the loop of `swinv2 classify`, whose answers are thrown away."""
    return sum(1 for _ in classifier.classify(paths, options.top_k, options.batch_size))


def engine_loop(folder: Path, output: Path, options: Options) -> Callable[[], int]:
    """The engine on the same images, into a new output each time; the model is loaded before."""
    run = prepare_run([str(folder)], str(output), str(shipped_model()), options)
    return lambda: sum(outcome.images for outcome in compute_here(run))


@app.command()
def engine(
    root: Root,
    images: Annotated[int, typer.Option(min=1, help="Number of images, as files in a folder.")] = 2_000,
    rounds: Annotated[int, typer.Option(min=1, help="Measurements of each.")] = 7,
    shard_size: Annotated[int, typer.Option(min=1, help="Images of a shard.")] = 500,
    output: Annotated[Path | None, typer.Option(help="A path; .csv and .md are added.")] = None,
) -> None:
    """Measures the engine and a plain loop in turns, and prints the ratio of their medians."""
    folder = draw_files(root, images)
    options = Options(device="cpu", shard_size=shard_size)
    classifier = Classifier.load(str(shipped_model()), "cpu")
    paths = sorted(folder.iterdir())
    plain_loop(classifier, paths[: 4 * options.batch_size], options)
    seconds: dict[str, list[float]] = {"plain loop": [], "engine": []}
    for number in range(rounds):
        answers = root / "answers-engine"
        shutil.rmtree(answers, ignore_errors=True)
        run = engine_loop(folder, answers, options)
        loops: dict[str, Callable[[], int]] = {
            "plain loop": lambda: plain_loop(classifier, paths, options),
            "engine": run,
        }
        for name in _turn(list(loops), number):
            begun, used = time.perf_counter(), time.process_time()
            if loops[name]() != images:
                raise SystemExit(f"{name}: not all images have an answer.")
            seconds[name].append(time.perf_counter() - begun)
            progress(f"round {number + 1}, {name}: {seconds[name][-1]:.2f} s, {time.process_time() - used:.2f} s here")
        check_rows(answers, images, 0)
    shutil.rmtree(root / "answers-engine")
    write_results(seconds, images, shard_size, output or report.default_stem("predict", "cpu"))


def write_results(seconds: dict[str, list[float]], images: int, shard_size: int, stem: Path) -> None:
    """Prints and writes the medians of the rounds; the second loop is the engine, the first one what it is compared
    with."""
    plain, ours = (statistics.median(each) for each in seconds.values())
    rounds, facts = len(next(iter(seconds.values()))), report.describe_run("cpu")
    rows: list[report.Row] = [
        {
            "loop": name,
            "images_per_second": round(images / statistics.median(each), 2),
            "seconds": round(statistics.median(each), 3),
            "fastest_seconds": round(min(each), 3),
            "slowest_seconds": round(max(each), 3),
            "rounds": rounds,
            "images": images,
            "shard_size": shard_size,
            "over_plain_loop": round(statistics.median(each) / plain, 4),
            **facts,
        }
        for name, each in seconds.items()
    ]
    lines = [[str(row["loop"]), str(row["images_per_second"]), str(row["seconds"])] for row in rows]
    table = report.table(
        f"Images a second, medians of {rounds} rounds; the engine needs {ours / plain:.3f} times the time.",
        ["loop", "images a second", "seconds"],
        lines,
    )
    print(table)
    report.write_csv(stem.with_name(f"{stem.name}.csv"), rows)
    report.write_markdown(stem.with_name(f"{stem.name}.md"), "What the engine of swinv2 predict costs", [table], facts)


@app.command()
def ray(
    root: Root,
    workers: Annotated[int, typer.Option(min=1, help="Workers of Ray, and processes that they are compared with.")] = 2,
    images: Annotated[int, typer.Option(min=1, help="Number of images, as files in a folder.")] = 8_000,
    rounds: Annotated[int, typer.Option(min=1, help="Measurements of each.")] = 5,
    shard_size: Annotated[int, typer.Option(min=1, help="Images of a shard.")] = 200,
    output: Annotated[Path | None, typer.Option(help="A path; .csv and .md are added.")] = None,
) -> None:
    """Measures workers of Ray and as many processes with the plain loop in turns, one thread and no reader each."""
    from swinv2.shards.cluster import compute_on, connected

    folder, options = draw_files(root, images), Options(shard_size=shard_size, threads=1)
    answers = root / "answers-ray"

    def of_processes() -> float:
        """Seconds of processes that share the images, without their start."""
        command = [sys.executable, __file__, "share", "--folder", str(folder), "--of", str(workers)]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        processes = [subprocess.Popen([*command, "--part", str(part)], **pipes) for part in range(workers)]
        for process in processes:
            process.stdout.readline()
        begun = time.perf_counter()
        for process in processes:
            process.stdin.write("begin\n")
            process.stdin.flush()
        for process in processes:
            process.stdout.readline()
        seconds = time.perf_counter() - begun
        for process in processes:
            process.communicate()
        return seconds

    def of_ray() -> float:
        """Seconds of Ray for all images, from its rate after the first quarter of the shards: then all workers run."""
        shutil.rmtree(answers, ignore_errors=True)
        with connected("local", workers) as cluster:
            run = prepare_run([str(folder)], str(answers), str(shipped_model()), options, readers=0, workers_have="cpu")
            if sum(outcome.images for outcome in compute_on(cluster, run, workers)) != images:
                raise SystemExit("Ray: not all images have an answer.")
        # Outcomes come later than the files.
        times = sorted(file.stat().st_mtime for file in (answers / "shards").iterdir())
        first = len(times) // 4
        return (times[-1] - times[first]) * len(times) / (len(times) - 1 - first)

    loops: dict[str, Callable[[], float]] = {f"{workers} processes": of_processes, f"{workers} workers of Ray": of_ray}
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for number in range(rounds):
        for name in _turn(list(loops), number):
            seconds[name].append(loops[name]())
            progress(f"round {number + 1}, {name}: {seconds[name][-1]:.2f} s")
        check_rows(answers, images, 0)
    shutil.rmtree(answers)
    write_results(seconds, images, shard_size, output or report.default_stem("predict-ray", "cpu"))


@app.command(hidden=True)
def share(
    folder: Annotated[Path, typer.Option()], part: Annotated[int, typer.Option()], of: Annotated[int, typer.Option()]
) -> None:
    """A process of `ray`: the plain loop over its share of the images, when a line comes on stdin."""
    torch.set_num_threads(1)
    classifier, options = Classifier.load(str(shipped_model()), "cpu"), Options()
    paths = sorted(folder.iterdir())[part::of]
    print("ready", flush=True)
    sys.stdin.readline()
    for first in range(0, len(paths), options.batch_size):
        batch = paths[first : first + options.batch_size]
        classifier.label([classifier.prepare(read_image(path)) for path in batch], options.top_k)
    print("done", flush=True)


@app.command()
def reading(
    images: Annotated[int, typer.Option(min=1, help="Images of each size.")] = 200,
    rounds: Annotated[int, typer.Option(min=1, help="Measurements of each.")] = 5,
) -> None:
    """Measures how many JPEG files of quality 90 one core decodes and prepares for a model of 256 pixels."""
    torch.set_num_threads(1)
    model = Swinv2Model(Swinv2Config(image_size=256, embed_dim=8, depths=[1], num_heads=[1]))
    predictor = Predictor(model, ViTImageProcessor(size={"height": 256, "width": 256}))
    random = np.random.default_rng(0)
    lines: list[list[str]] = []
    for side in (256, 500):
        files: list[bytes] = []
        for _ in range(images):
            noise = Image.fromarray(random.integers(0, 256, (side, side, 3), dtype=np.uint8))
            file = io.BytesIO()
            # Smoothed noise compresses about like photographs.
            noise.filter(ImageFilter.GaussianBlur(1.5)).save(file, "JPEG", quality=90)
            files.append(file.getvalue())
        rates: list[float] = []
        for _ in range(rounds + 1):
            begun = time.process_time()
            for content in files:
                predictor.prepare(read_image(content))
            rates.append(images / (time.process_time() - begun))
        size = sum(map(len, files)) / images / 1_000
        lines.append([f"{side} x {side}", f"{size:.0f}", f"{statistics.median(rates[1:]):.0f}"])
    print(report.table("", ["pixels", "kilobytes", "images in a second of a core"], lines).strip())
    print("\n".join(f"- {name}: {value}" for name, value in report.describe_run("cpu").items()))


@app.command()
def planning(
    root: Root, shards: Annotated[int, typer.Option(min=1, help="Number of archives, which are empty.")] = 100_000
) -> None:
    """Measures how long it takes to find shards, and to see which are done."""
    folder, output = root / "empty", Output(str(root / "answers-planning"))
    folder.mkdir(parents=True, exist_ok=True)
    output.prepare("shards", "lists")
    for number in range(shards):
        (folder / f"{number:06d}.tar").touch()
    held, begun = _resident(), time.process_time()
    sources, _ = find_sources([str(folder / "*.tar")])
    found = [shard for source in sources for shard in divide(source, output, OF_A_TAR)]
    lines = [["finding them", f"{time.process_time() - begun:.1f}", f"{_resident() - held:.0f}"]]
    for shard in found:
        Path(output.file(f"shards/{shard.answers('0' * 32)}")).touch()
    begun = time.process_time()
    names = output.names("shards")
    if any(shard.answers("0" * 32) not in names for shard in found):
        raise SystemExit("not all shards were found again.")
    lines.append(["listing what is done", f"{time.process_time() - begun:.1f}", f"{_resident() - held:.0f}"])
    print(report.table(f"{shards:,} shards.", ["step", "seconds of a core", "MiB more in memory"], lines))
    print("\n".join(f"- {name}: {value}" for name, value in report.describe_run("cpu").items()))
    shutil.rmtree(folder)
    shutil.rmtree(output.place)


def _resident() -> float:
    """MiB of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def _turn(names: list[str], number: int) -> Iterator[str]:
    """The names, beginning with another one each round."""
    first = number % len(names)
    yield from names[first:] + names[:first]


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    app()
