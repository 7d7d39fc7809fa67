"""The benchmark runs and writes what its README says. No number is judged: no test measures time."""

import csv
import importlib.util
import io
import json
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from scenes import write_masks, write_objects
from small_models import make_model

BENCHMARK = Path(__file__).resolve().parent.parent / "benchmarks" / "model.py"

NAMES = """
case mode precision execution device batch_size library parameters images_per_second step_milliseconds
fastest_milliseconds slowest_milliseconds cpu_share rounds peak_mib held_mib rise_mib rise_mib_per_image note
images_per_second_over_fastest_peer images_per_second_over_transformers images_per_second_over_timm
images_per_second_over_torchvision images_per_second_over_openvino peak_mib_over_leanest_peer
peak_mib_over_transformers rise_mib_over_least_rise_of_peers rise_mib_over_transformers share_of_products
share_of_copies share_of_limits operations_per_second bytes_per_second machine threads torch transformers timm
torchvision openvino commit command date load_at_start
"""
COLUMNS = NAMES.split()
FACTS = dict.fromkeys(COLUMNS[COLUMNS.index("machine") :], "1")


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the scripts of the benchmark be imported as they import each other."""
    monkeypatch.syspath_prepend(str(BENCHMARK.parent))


def setting(case: str = "shipped-w12-96", **fields: object) -> Any:
    """A row of one image."""
    from cases import Setting

    common = {"mode": "inference", "precision": "fp32", "execution": "eager", "device": "cpu", "batch_size": 1}
    return Setting(case, **(common | fields))


class TestWorker:
    """The process that does one library's work, and what becomes of its failures."""

    def test_a_library_that_there_is_not(self, capfd: pytest.CaptureFixture[str]) -> None:
        from worker import Worker

        with pytest.raises(RuntimeError, match="KeyError: 'keras'"):
            Worker("keras", setting())
        assert "Traceback" in capfd.readouterr().err

    @pytest.mark.slow
    def test_what_libraries_print_is_no_answer(self) -> None:
        from worker import Worker

        worker = Worker("swinv2", setting(), {"ONEDNN_VERBOSE": "1"})
        assert worker.parameters > 1e6
        assert worker.time(1).seconds > 0
        worker.close()

    def test_one_that_dies_is_noted_and_the_others_go_on(self) -> None:
        from model import time_in_turns
        from worker import Timing

        class Immortal:
            def time(self, repeats: int) -> Timing:
                return Timing(0.1, 0.1)

        class Mortal(Immortal):
            left = 2

            def time(self, repeats: int) -> Timing:
                self.left -= 1
                if self.left < 0:
                    raise RuntimeError("killed by signal 9: out of memory?")
                return super().time(repeats)

        notes: dict[str, str] = {}
        timings = time_in_turns({"a": Immortal(), "b": Mortal(), "c": Immortal()}, 4, notes)
        assert notes == {"b": "killed by signal 9: out of memory?"}
        assert {name: len(measured) for name, measured in timings.items()} == {"a": 4, "c": 4}


class TestGoingOn:
    """A benchmark of hours keeps the rows that it has."""

    def test_rows_come_back_as_they_were(self, tmp_path: Path) -> None:
        import report

        row = {"case": "tiny-w8-256", "batch_size": 8, "images_per_second": 9.5, "note": "", **FACTS}
        rows = [row, row | {"images_per_second": "", "note": "out of memory", "date": "2"}, row]
        report.write_csv(tmp_path / "a.csv", rows)
        assert report.read_csv(tmp_path / "a.csv", FACTS) == rows
        assert report.facts_of(rows, FACTS) == FACTS | {"date": "1, 2"}
        with pytest.raises(SystemExit, match="commit 1, not 12e5"):
            report.read_csv(tmp_path / "a.csv", FACTS | {"commit": "12e5"})


class TestLimits:
    """What a model asks for, which speeds are held against."""

    @pytest.mark.parametrize(
        ("name", "mode", "times"), [("tiny-w8-256", "inference", 1), ("tiny-w16-256", "training", 3)]
    )
    def test_operations_are_those_that_torch_counts(self, name: str, mode: str, times: int) -> None:
        from cases import CASES, build_model, draw_images, logits_of
        from limits import operations
        from torch.utils.flop_counter import FlopCounterMode

        case = CASES[name]
        model = build_model("transformers", case, "meta")
        with FlopCounterMode(display=False) as counter:
            loss = logits_of(model(draw_images(case, 2).to("meta"))).sum()
            if mode == "training":
                loss.backward()
        # Beside ours it counts what makes the position bias; the images have no gradient.
        counted = operations(setting(name, mode=mode, batch_size=2))
        assert counted == pytest.approx(counter.get_total_flops(), rel=0.005)
        assert counted == 2 * times * operations(setting(name))

    def test_the_nearer_limit_counts(self) -> None:
        from limits import Limits, bytes_moved, operations, seconds_at_limits

        row = setting("tiny-w8-256", precision="bf16", batch_size=8)
        by_products = seconds_at_limits(row, Limits(1e14, float("inf")))
        by_copies = seconds_at_limits(row, Limits(float("inf"), 1e12))
        assert by_products == pytest.approx(operations(row) / 1e14)
        assert by_copies == pytest.approx(bytes_moved(row) / 1e12)
        # Some parts run into one of them, some into the other.
        both = seconds_at_limits(row, Limits(1e14, 1e12))
        assert 1.01 * max(by_products, by_copies) < both < 0.99 * (by_products + by_copies)

    def test_numbers_that_a_block_moves(self) -> None:
        from cases import CASES
        from limits import forward_pass

        # Of the first stage, 64 x 64 tokens of 96 channels: patches and their norm are before it.
        qkv, attention, projection, norm, first, second, last = list(forward_pass(CASES["tiny-w8-256"]))[2:9]
        maps = [part.moved / (64 * 64 * 96) for part in (qkv, attention, projection, norm, first, second, last)]
        assert maps == [4, 4, 2, 3, 5, 5, 3]
        assert attention.operations == 2 * 64 * 64 * 64 * 96 * 2

    def test_one_image_moves_all_weights(self) -> None:
        from cases import CASES, build_model
        from limits import bytes_moved

        parameters = sum(each.numel() for each in build_model("swinv2", CASES["tiny-w8-256"], "meta").parameters())
        one, two = (bytes_moved(setting("tiny-w8-256", batch_size=size)) for size in (1, 2))
        # Norms, biases and what makes the position bias are not counted.
        assert (2 * one - two) / 4 == pytest.approx(parameters, rel=0.02)


class TestWhatIsMeasured:
    """Rows that are asked for, and their order."""

    @pytest.mark.parametrize(("given", "sizes"), [("", [64, 1]), ("best", [64]), ("1, 64,best", [1, 64]), ("3", [3])])
    def test_batch_sizes(self, given: str, sizes: list[int]) -> None:
        from model import _sizes

        assert _sizes(given, (64, 1)) == sizes

    @pytest.mark.parametrize("given", ["0", "-1", "most"])
    def test_what_is_no_batch_size(self, given: str) -> None:
        import typer
        from model import _sizes

        with pytest.raises(typer.BadParameter, match=f"'{given}' is neither a number of images nor best"):
            _sizes(given, (64, 1))

    def test_those_of_one_image_are_prepared_last(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import model
        from cases import Setting

        wanted = [
            setting(mode=mode, execution=execution, batch_size=batch_size, device="cuda")
            for mode, sizes in (("inference", (256, 1)), ("training", (64,)))
            for execution in ("compiled", "graphs")
            for batch_size in sizes
        ]
        prepared: list[tuple[Setting, str]] = []

        def prepare(setting: Setting, library: str, memory_too: bool) -> model.Prepared:
            prepared.append((setting, library))
            return model.Prepared()

        def row(setting: Setting, prepared: dict[str, model.Prepared], rounds: int, memory_too: bool) -> list[dict]:
            return [{"case": setting.case, "library": name} for name in prepared]

        monkeypatch.setattr(model, "prepare", prepare)
        monkeypatch.setattr(model, "_measure_row", row)
        measured = list(model.measure(wanted, ["swinv2", "timm"], 1, False, 16))
        assert [each for each, _ in measured] == [wanted[0], wanted[2], wanted[4], wanted[5], wanted[1], wanted[3]]
        # The fastest form of a peer is its compiled one.
        assert [name for each, name in prepared if each == wanted[3]] == ["swinv2"]
        assert [row["library"] for row in dict(measured)[wanted[1]]] == ["swinv2", "timm"]

    def test_shares_of_the_limits(self) -> None:
        from limits import Limits
        from model import _shares

        limits = Limits(1e12, 1e12)
        infer, train = (setting(mode=mode) for mode in ("inference", "training"))
        slow, fast = (_shares(infer, {"step_milliseconds": each}, limits) for each in (2000.0, 1000.0))
        for name in ("share_of_products", "share_of_copies", "share_of_limits"):
            assert 0 < 2 * slow[name] == pytest.approx(fast[name], rel=1e-4)
        trained = _shares(train, {"step_milliseconds": 2000.0}, limits)
        assert trained["share_of_products"] == pytest.approx(3 * slow["share_of_products"], rel=1e-4)
        assert trained["share_of_copies"] == trained["share_of_limits"] == ""
        assert _shares(infer, {"step_milliseconds": ""}, limits)["share_of_products"] == ""

    def test_rows_stand_in_order(self) -> None:
        from model import _place

        row = asdict(setting("tiny-w8-256"))
        rows = [row, row | {"batch_size": 8}, row | {"mode": "training"}, row | {"case": "base-w24-384"}]
        assert [rows.index(each) for each in sorted(rows, key=_place)] == [1, 0, 2, 3]

    def test_the_speed_beside_each_peer(self) -> None:
        from model import _compare

        empty = {"peak_mib": "", "rise_mib": ""}
        speeds = {"swinv2": 6.0, "transformers": 3.0, "openvino": 12.0}
        rows = [{"library": name, "images_per_second": speed, **empty} for name, speed in speeds.items()]
        _compare(rows, rows)
        expected = {"fastest_peer": 0.5, "transformers": 2.0, "timm": "", "torchvision": "", "openvino": 0.5}
        assert {name: rows[0][f"images_per_second_over_{name}"] for name in expected} == expected

    def test_the_shipped_case_is_the_shipped_model(self) -> None:
        from cases import CASES, _hugging_face_fields

        from swinv2.predict.shipped import shipped_model

        shipped = json.loads((shipped_model() / "config.json").read_text())
        fields = _hugging_face_fields(CASES["shipped-w12-96"])
        assert fields.pop("num_labels") == len(shipped["id2label"])
        assert {name: value for name, value in fields.items() if shipped[name] != value} == {"drop_path_rate": 0.1}


class TestOpenVino:
    """transformers' model, converted."""

    def test_it_infers_in_fp32_on_a_cpu(self) -> None:
        from cases import libraries_for

        assert libraries_for(setting(), ["timm", "openvino"]) == ["timm", "openvino"]
        for other in ({"mode": "training"}, {"precision": "bf16"}, {"device": "cuda"}):
            assert libraries_for(setting(**other), ["timm", "openvino"]) == ["timm"]

    def test_where_it_is_not(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        import model

        monkeypatch.setattr(model, "find_spec", lambda name: None)
        assert model._installed(["timm", "openvino"]) == ["timm"]
        assert "openvino is not installed" in capsys.readouterr().err

    @pytest.mark.filterwarnings("ignore")
    def test_its_answers_are_compared(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import cases

        pytest.importorskip("openvino")
        case = replace(cases.CASES["shipped-w12-96"], depths=(1,), num_heads=(2,), pretrained_windows=(0,))
        model, images = cases.build_model("openvino", case, "cpu").eval(), cases.draw_images(case, 1)
        found: list[float] = []
        compare = cases._difference
        monkeypatch.setattr(cases, "_difference", lambda *given: found.append(compare(*given)) or float("nan"))
        with pytest.raises(ValueError, match="the error of its logits is nan"):
            cases.convert(model, case, images)
        assert found[0] < cases.TOLERANCE


class TestPredict:
    """Many images for `swinv2 predict`."""

    def test_generated_images_are_different_and_always_the_same(self, tmp_path: Path) -> None:
        from predict import draw, draw_tars

        images = [draw(number) for number in (*range(5), 96, 960, 1_000)]
        assert images == [draw(number) for number in (*range(5), 96, 960, 1_000)]
        pixels = [np.asarray(Image.open(io.BytesIO(image))).tobytes() for image in images]
        assert len(set(pixels)) == len(images)
        assert draw_tars(tmp_path, 1_500) == 1
        assert sorted(path.name for path in tmp_path.iterdir()) == ["00000.tar", "00001.tar"]

    def test_rows_are_checked(self, tmp_path: Path) -> None:
        from predict import check_rows

        (tmp_path / "shards").mkdir()
        rows = {"source": ["a"] * 3, "row": [0, 1, 2], "error": [None, "broken", None]}
        pq.write_table(pa.table(rows), tmp_path / "shards" / "a.parquet")
        assert check_rows(tmp_path, 3, 1).num_rows == 3
        for images, errors, message in ((4, 1, "expected 4"), (3, 0, "1 rows with an error; expected 0")):
            with pytest.raises(SystemExit, match=message):
                check_rows(tmp_path, images, errors)
        pq.write_table(pa.table(rows), tmp_path / "shards" / "b.parquet")
        with pytest.raises(SystemExit, match="6 rows, 3 different ones; expected 6"):
            check_rows(tmp_path, 6, 2)

    @pytest.mark.slow
    def test_each_command_runs(self, tmp_path: Path) -> None:
        image = io.BytesIO()
        Image.new("RGB", (20, 20)).save(image, "PNG")
        images = [{"bytes": image.getvalue(), "path": None}] * 3
        pq.write_table(pa.table({"image": images, "label": [0, 1, 2]}), tmp_path / "data.parquet")
        for arguments, expected in (
            (["generated", "--root", tmp_path, "--images", 1_010], "1,010"),
            (["real", "--root", tmp_path, "--data", tmp_path / "data.parquet"], "top-1"),
            (["engine", "--root", tmp_path, "--images", 80, "--rounds", 1, "--output", tmp_path / "engine"], "engine"),
            (
                [
                    "ray",
                    "--root",
                    tmp_path,
                    "--images",
                    80,
                    "--rounds",
                    1,
                    "--shard-size",
                    8,
                    "--output",
                    tmp_path / "ray",
                ],
                "2 workers of Ray",
            ),
            (["reading", "--images", 3, "--rounds", 1], "500 x 500"),
            (["planning", "--root", tmp_path, "--shards", 50], "50 shards"),
        ):
            command = [sys.executable, str(BENCHMARK.with_name("predict.py")), *map(str, arguments)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=200)
            assert done.returncode == 0, done.stderr
            assert expected in done.stdout
            assert str(tmp_path) not in done.stdout
        rows = csv.DictReader(io.StringIO((tmp_path / "engine.csv").read_text()))
        assert [row["loop"] for row in rows] == ["plain loop", "engine"]
        assert str(tmp_path) not in (tmp_path / "engine.md").read_text()


class TestImageSets:
    """Folders of PNG files from folders and packages of others."""

    def test_a_set_is_split_by_class(self, tmp_path: Path) -> None:
        from image_sets import Sample, count_images, write_set

        def samples() -> Iterator[Sample]:
            for label, count in (("many", 40), ("some", 10), ("few", 9)):
                for level in range(count):
                    yield Sample(Image.new("L", (512, 256), level), label)

        for name in ("first", "again"):
            write_set(tmp_path / name, samples())
        first, again = (sorted(tmp_path.glob(f"{name}/*/*/*")) for name in ("first", "again"))
        assert [path.relative_to(tmp_path / "first") for path in first] == [
            path.relative_to(tmp_path / "again") for path in again
        ]
        assert count_images(tmp_path / "first" / "train") == {"many": 32, "some": 8}
        assert count_images(tmp_path / "first" / "test") == {"many": 8, "some": 2}
        with Image.open(first[0]) as image:
            assert image.size == (256, 128)

    def test_boxes_of_coco_annotations(self, tmp_path: Path) -> None:
        from image_sets import read_bccd

        boxes = [(0, 10, 40, 20), (50, 50, 0, 0), (50, 20, 30, 30)]
        for part in ("train", "validation", "test"):
            (tmp_path / part).mkdir()
            Image.new("RGB", (100, 80), "red").save(tmp_path / part / "a.jpg")
            found = {
                "categories": [{"id": 1, "name": "RBC"}],
                "images": [{"id": 7, "file_name": "a.jpg"}],
                "annotations": [{"image_id": 7, "category_id": 1, "bbox": box} for box in boxes],
            }
            (tmp_path / part / "_annotations.coco.json").write_text(json.dumps(found))
        samples = list(read_bccd(tmp_path))
        assert [sample.split for sample in samples] == ["train"] * 4 + ["test"] * 2
        # A tenth of the longer side is added at each edge, inside the image; a box without area is none.
        assert [sample.image.size for sample in samples[:2]] == [(44, 28), (36, 36)]
        assert {sample.label for sample in samples} == {"RBC"}

    def test_crops_have_the_class_of_most_pixels(self, tmp_path: Path) -> None:
        from image_sets import CAMVID_CROP, read_camvid

        # From left to right: building, unlabelled, half sky and half road.
        mask = np.repeat([1, 11, 0, 3], [CAMVID_CROP, CAMVID_CROP, CAMVID_CROP // 2, CAMVID_CROP // 2])
        for part in ("train", "validation", "test"):
            for kind in ("images", "masks"):
                (tmp_path / kind / part).mkdir(parents=True)
            pixels = np.tile(mask, (CAMVID_CROP, 1)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / part / "a.jpg")
            Image.fromarray(pixels).save(tmp_path / "masks" / part / "a.png")
        assert [sample.label for sample in read_camvid(tmp_path)] == ["building"] * 3

    def test_things_among_stamps(self, tmp_path: Path) -> None:
        from image_sets import read_stamps

        for path in ("food/fruit/apple.png", "food/fruit/cartoon/pear.png", "symbols/a.png", "animals/dog.png"):
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / path)
        samples = list(read_stamps(tmp_path))
        assert [sample.label for sample in samples] == ["animals", "food"]
        # What is transparent is white.
        assert samples[0].image.getpixel((0, 0)) == (255, 255, 255)


class TestPeerTraining:
    """The plain loop of the other networks."""

    def test_one_cycle(self) -> None:
        from peer_training import cycle

        rates = [cycle(used / 100) for used in range(101)]
        assert rates[0] == 0
        assert rates[20] == max(rates) == 1
        assert rates[60] == pytest.approx(0.5)
        assert rates[100] == pytest.approx(0)

    def test_it_ends_with_its_time(self) -> None:
        from peer_training import count_answers, train

        torch.manual_seed(0)
        labels = torch.arange(40) % 2
        images = (labels * 200).to(torch.uint8)[:, None, None, None].expand(40, 3, 9, 9).contiguous()
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 2))
        started = time.process_time()
        steps = train(model, images, labels, 8, 1e-2, started + 0.5, True)
        assert 0.5 <= time.process_time() - started < 1.5
        assert steps > 3
        small = torch.nn.functional.interpolate(images.float(), 8).to(torch.uint8)
        assert count_answers(model, small, labels).tolist() == [[20, 0], [0, 20]]

    def test_a_time_that_is_over_is_an_error(self) -> None:
        from peer_training import train

        images, labels = torch.zeros(4, 3, 9, 9, dtype=torch.uint8), torch.tensor([0, 1, 0, 1])
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 2))
        with pytest.raises(SystemExit, match=r"--seconds is 0\.01, and .* were used before the training"):
            train(model, images, labels, 8, 1e-2, 0.01, True)


class TestFinetune:
    """Our command beside other networks."""

    @pytest.fixture
    def data(self, tmp_path: Path) -> Path:
        """A folder with a set that looks like digits."""
        for split in ("train", "test"):
            for label in "01":
                (tmp_path / "digits" / split / label).mkdir(parents=True)
                Image.new("L", (8, 8)).save(tmp_path / "digits" / split / label / "0.png")
        return tmp_path

    def test_processor_time_includes_that_of_grandchildren(self, tmp_path: Path) -> None:
        from methods import MethodError, run_program

        burn = "import time\nwhile time.process_time() < {}: pass"
        inner = burn.format(0.5)
        outer = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {inner!r}])\nprint('done')"
        answer, seconds = run_program([sys.executable, "-c", outer], tmp_path / "log")
        assert answer == "done\n"
        assert 0.5 <= seconds < 2
        with pytest.raises(MethodError, match="no such thing"):
            run_program([sys.executable, "-c", "raise SystemExit('a line\\nno such thing')"], tmp_path / "log")

    def test_commands_and_results(
        self, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        import finetune

        model = make_model(data / "model")
        commands: list[list[str]] = []

        def run(command: list[str], log: Path) -> tuple[str, float]:
            commands.append(list(command))
            if "finetune" in command:
                output = Path(command[command.index("--output-dir") + 1])
                output.mkdir()
                (output / "final").symlink_to(model)
                results = {"images": 2, "unreadable": 0, "penalty": 0.1, "held_out_losses": {"0.1": 0.7}, "loss": 0.5}
                results = results if "--linear-probe" in command else {"step": 7}
                (output / "results.json").write_text(json.dumps(results))
            found = {"top1": 0.75, "recall": {"0": 1.0, "1": 0.5, "2": None}}
            peer = {"top1": 0.5, "mean_recall": 0.5, "processor_seconds": 12.2, "steps": 9, "image_size": 64}
            return json.dumps(found if "evaluate" in command else peer | {"parameters": 9}), 12.0

        monkeypatch.setattr(finetune, "run_program", run)
        options: Any = {"data": data, "output": data / "out", "sets": "", "seconds": None, "keep": None}
        finetune.main(methods="swinv2,swinv2-probe,swinv2-new,resnet18", seeds="3", **options)
        rows = list(csv.DictReader((data / "out.csv").read_text().splitlines()))
        assert [(row["method"], row["top1"], row["mean_recall"], row["steps"]) for row in rows] == [
            ("swinv2", "0.75", "0.75", "7"),
            ("swinv2-probe", "0.75", "0.75", ""),
            ("swinv2-new", "0.75", "0.75", "7"),
            ("resnet18", "0.5", "0.5", "9"),
        ]
        ours, new, peer = (
            next(each for each in commands if part in each) for part in ("finetune", "--model=new", "--no-flips")
        )
        # Our command gets the training images and the seed, and no setting.
        flags = [each for each in ours if each.startswith("--")]
        assert flags == ["--data", "--output-dir", "--seed"]
        assert str(data / "digits" / "train") in ours
        assert new[-3:] == ["--model=new", "--image_size=16", "--max_steps=7"]
        # Its time is the peer's; its image size is too small for the peer.
        assert {"--seconds=12.0", "--size=64", "--seed=3"} <= set(peer)

        before = (len(commands), (data / "out.csv").read_text())
        finetune.main(methods="swinv2,swinv2-probe,swinv2-new,resnet18", seeds="3", **options)
        assert (len(commands), (data / "out.csv").read_text()) == before
        printed = capsys.readouterr().out
        assert "75.0 (75.0 to 75.0)" in printed
        steps = printed.partition("Training steps")[2].splitlines()[4]
        assert [cell.strip() for cell in steps.split("|")[1:-1]] == ["digits", "7", "", "7", "9"]
        assert str(data) not in (data / "out.md").read_text()

    def test_a_peer_needs_a_time(self, data: Path) -> None:
        from finetune import measure

        found = measure(data / "digits", "resnet18", 0, data, None, None)
        assert found["top1"] == ""
        assert "give --seconds" in str(found["note"])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_model_benchmark_writes_a_row_for_each_library(tmp_path: Path) -> None:
    options = "--cases shipped-w12-96 --libraries swinv2,transformers --modes inference --precisions fp32"
    options += " --executions eager --rounds 1 --batch-sizes 1 --output"
    command = [sys.executable, str(BENCHMARK), *options.split(), str(tmp_path / "smoke")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr

    with (tmp_path / "smoke.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == COLUMNS
    assert [row["library"] for row in rows] == ["swinv2", "transformers"]
    for row in rows:
        assert row["note"] == ""
        assert float(row["images_per_second"]) > 0
        assert 0 < float(row["share_of_products"]) < float(row["share_of_limits"])
        # Each is rounded to five digits.
        assert float(row["peak_mib"]) == pytest.approx(float(row["held_mib"]) + float(row["rise_mib"]), rel=1e-3)
        assert float(row["held_mib"]) > int(row["parameters"]) * 4 / 2**20
        assert str(tmp_path) not in row["command"]
    assert done.stdout.strip() in (tmp_path / "smoke.md").read_text()
    measured = (tmp_path / "smoke.csv").read_text()
    done = subprocess.run([*command, "--go-on"], capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    assert "timing" not in done.stderr
    assert (tmp_path / "smoke.csv").read_text() == measured


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (
            "--heads mask_rcnn --modes training --libraries swinv2,transformers",
            [("mask_rcnn", "training", "128", "178")],
        ),
        ("--heads upernet --modes inference", [("upernet", "inference", "64", "64")]),
        ("--scaling --libraries swinv2,timm", [("none", "inference", side, side) for side in ("64", "128")]),
    ],
    ids=["mask_rcnn", "upernet", "scaling"],
)
def test_dense_benchmark_writes_a_row_for_each_library(
    options: str, wanted: list[tuple[str, ...]], tmp_path: Path
) -> None:
    arguments = f"--quick --precisions fp32 --rounds 1 {options} --output".split()
    command = [sys.executable, str(BENCHMARK.with_name("dense.py")), *arguments, str(tmp_path / "smoke")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr
    _, _, given = options.partition("--libraries ")
    libraries = (given or "swinv2,transformers,timm").split(",")
    assert done.stderr.count("comparing maps with") == len(libraries) - 1

    with (tmp_path / "smoke.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    found = [(row["head"], row["mode"], row["height"], row["width"], row["library"]) for row in rows]
    assert found == [(*key, library) for key in wanted for library in libraries]
    assert len({row["parameters"] for row in rows}) == 1
    for row in rows:
        assert row["note"] == ""
        pixels = int(row["batch_size"]) * int(row["height"]) * int(row["width"])
        milliseconds = float(row["step_milliseconds_per_megapixel"]) * pixels / 1e6
        assert milliseconds == pytest.approx(float(row["step_milliseconds"]), rel=1e-3)
        # Each is rounded to five digits.
        assert float(row["peak_mib"]) == pytest.approx(float(row["held_mib"]) + float(row["rise_mib"]), rel=1e-3)
        held = int(row["parameters"]) * 4 / 2**20
        assert held < float(row["held_mib"]) < held + 8
        assert float(row["images_per_second"]) > 0
    assert done.stdout.strip() in (tmp_path / "smoke.md").read_text()
    measured = (tmp_path / "smoke.csv").read_text()
    done = subprocess.run([*command, "--go-on"], capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    assert "timing" not in done.stderr
    assert (tmp_path / "smoke.csv").read_text() == measured


class TestDenseTraining:
    """Segmenters and detectors of our command beside those of other networks."""

    @pytest.fixture
    def data(self, tmp_path: Path) -> Path:
        """A folder with the sets camvid and bccd, of few scenes, whose test images are those of validation."""
        masks, objects = write_masks(tmp_path / "camvid", 4), write_objects(tmp_path / "bccd", 4)
        for folder in (masks / "images", masks / "masks", objects):
            shutil.copytree(folder / "validation", folder / "test")
        return tmp_path

    @pytest.fixture
    def untrained(self, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
        """Instead of running commands, lists them."""
        import dense_training

        commands: list[list[str]] = []

        def run(command: list[str], log: Path) -> tuple[str, float]:
            commands.append(list(command))
            if "finetune" in command:
                output = Path(command[command.index("--output-dir") + 1])
                output.mkdir()
                (output / "results.json").write_text(json.dumps({"step": 700}))
            if "evaluate" in command:
                return json.dumps({"mIoU": 0.5, "AP50": 0.75, "AP": 0.25}), 99.0
            # A start of 40 seconds, and 50 steps of 0.5 seconds.
            peer = {"step_seconds": 0.5, "processor_seconds": 65.0, "parameters": 9}
            peer |= {"mIoU": 0.4, "AP50": 0.3, "AP": None}
            steps = [int(command[index + 1]) for index, flag in enumerate(command) if flag == "--max-steps"]
            return json.dumps(peer | {"steps": steps[-1] if steps else 0}), 140.0

        monkeypatch.setattr(dense_training, "run_program", run)
        monkeypatch.setattr(dense_training, "load_dense", lambda name: torch.nn.Linear(2, 1))
        return commands

    def test_commands_and_results(
        self, data: Path, untrained: list[list[str]], capsys: pytest.CaptureFixture[str]
    ) -> None:
        import dense_training

        options: Any = {"camvid": data / "camvid", "bccd": data / "bccd", "output": data / "out", "steps": None}
        options |= {"methods": "swinv2,swinv2-new,resnet18", "seeds": "3", "keep": None}
        dense_training.main(**options)
        rows = list(csv.DictReader((data / "out.csv").read_text().splitlines()))
        # 65 of 140 seconds for 50 steps leave 75 for 150 more.
        assert [[row[name] for name in ("set", "method", "mIoU", "AP50", "AP", "steps")] for row in rows] == [
            ["camvid", "swinv2", "0.5", "", "", "700"],
            ["camvid", "swinv2-new", "0.5", "", "", "700"],
            ["camvid", "resnet18", "0.4", "", "", "200"],
            ["bccd", "swinv2", "", "0.75", "0.25", "700"],
            ["bccd", "swinv2-new", "", "0.75", "0.25", "700"],
            ["bccd", "resnet18", "", "0.3", "", "200"],
        ]
        trainings = [command for command in untrained if "finetune" in command and "segmentation" in command]
        ours, new = ([flag for flag in command if flag.startswith("--")] for command in trainings)
        # Our command gets the data and its classes, and no setting.
        assert ours == ["--task", "--data", "--seed", "--label-names-file", "--ignore-index", "--output-dir"]
        assert new == [*ours[:-1], "--model=new", "--max-steps=700", "--output-dir"]
        peers = [command for command in untrained if "peer" in command and "detection" in command]
        short, long = ([*command[2:5], command[-3]] for command in peers)
        assert (short, long) == (["peer", "resnet18", "", "50"], ["peer", "resnet18", "test", "200"])
        tests = [command for command in untrained if "evaluate" in command]
        assert {command[command.index("--split") + 1] for command in tests} == {"test"}

        before = (len(untrained), (data / "out.csv").read_text())
        dense_training.main(**options)
        assert (len(untrained), (data / "out.csv").read_text()) == before
        printed = capsys.readouterr().out
        cells = printed.partition("Mean IoU")[2].splitlines()[4]
        half, less = "50.0 (50.0 to 50.0)", "40.0 (40.0 to 40.0)"
        assert [cell.strip() for cell in cells.split("|")[2:-1]] == [half, half, less]
        assert str(data) not in (data / "out.md").read_text()

    def test_a_trial_has_its_steps_in_every_method(self, data: Path, untrained: list[list[str]]) -> None:
        import dense_training

        options: Any = {"camvid": None, "bccd": data / "bccd", "output": data / "out", "keep": None}
        dense_training.main(methods="swinv2,resnet50", seeds="0", steps=2, **options)
        ours, _, peer = untrained
        assert "--max-steps=2" in ours
        assert peer[-4:-2] == ["--max-steps", "2"]

    def test_a_peer_needs_a_time(self, data: Path, untrained: list[list[str]]) -> None:
        from dense_training import COLUMNS, SETS, measure

        too_little = {"processor_seconds": 40.0}, "65 s were used for 50 steps"
        for ours, reason in ((None, "measure that first"), too_little):
            found = measure(SETS["bccd"], data / "bccd", "resnet18", 0, data, ours, None)
            assert {found[name] for name in COLUMNS} == {""}
            assert reason in str(found["note"])

    @pytest.mark.parametrize(("peer", "parameters"), [("resnet18", 11_176_512), ("resnet50", 23_508_032)])
    def test_peers_are_resnets_with_all_layers_learning(self, peer: str, parameters: int) -> None:
        """The numbers are those of torchvision's classifiers without their last layer."""
        from dense_training import PEERS, _detector, _segmenter

        from swinv2.train.dense.settings import DenseSettings

        given: Any = {"data": "d", "model": "new", "output_dir": "o", "report_to": "none", "image_size": [64]}
        numbers = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        narrow = {
            "segmentation": {"hidden_size": 16},
            "detection": {"pyramid_channels": 16, "box_channels": 32},
        }
        of_masks, of_boxes = (
            DenseSettings(task=task, head_fields=fields, **given, **numbers) for task, fields in narrow.items()
        )
        segmenter: Any = _segmenter(PEERS[peer], of_masks, ["a", "b"])
        detector: Any = _detector(PEERS[peer], of_boxes, ["a", "b"])
        for network in (segmenter.backbone, detector.detector.backbone.body):
            learning = [each.numel() for each in network.parameters() if each.requires_grad]
            assert sum(learning) == parameters
        assert segmenter.decode_head.classifier.weight.shape[:2] == (2, 16)
        # One more class is the background.
        assert detector.detector.roi_heads.box_predictor.cls_score.weight.shape == (3, 32)

    def test_a_detector_of_peers_gets_pixels_up_to_1_and_answers_with_classes_from_0(self) -> None:
        from dense_training import PeerDetector, PeerRCNN
        from transformers import PreTrainedConfig

        def find(images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
            assert [(tuple(image.shape), float(image.max())) for image in images] == [((3, 4, 6), 1.0)]
            boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [1.0, 1.0, 5.0, 3.0]])
            return [{"boxes": boxes, "labels": torch.tensor([1, 2]), "scores": torch.tensor([0.25, 0.75])}]

        config = PreTrainedConfig(id2label={0: "square", 1: "bar"}, dense_task="detection")
        detector: Any = find
        (found,) = PeerDetector(PeerRCNN(config, detector))([np.full((4, 6, 3), 255, np.uint8)])
        assert found.labels.tolist() == [1, 0]
        assert found.boxes.tolist() == [[1.0, 1.0, 5.0, 3.0], [0.0, 0.0, 2.0, 2.0]]

    def test_peers_have_one_learning_rate_and_vectors_do_not_decay(self) -> None:
        from dense_training import PeerTrainer

        trainer: Any = PeerTrainer.__new__(PeerTrainer)
        trainer.optimizer, trainer.args = None, SimpleNamespace(learning_rate=1e-3, weight_decay=0.05)
        trainer.model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
        groups = trainer.create_optimizer().param_groups
        found = [([each.numel() for each in group["params"]], group["lr"], group["weight_decay"]) for group in groups]
        assert found == [([6], 1e-3, 0.05), ([2, 2, 2], 1e-3, 0.0)]

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("name", "methods", "scores"),
        [
            ("camvid", "swinv2,swinv2-new", ["mIoU"]),
            ("camvid", "resnet18,resnet50", ["mIoU"]),
            ("bccd", "swinv2,resnet18", ["AP50", "AP"]),
        ],
    )
    def test_a_trial_writes_a_row_for_each_method(self, data: Path, name: str, methods: str, scores: list[str]) -> None:
        options = [f"--{name}", str(data / name), "--methods", methods, "--seeds", "0", "--steps", "2"]
        script = str(BENCHMARK.with_name("dense_training.py"))
        command = [sys.executable, script, *options, "--output", str(data / "out")]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
        assert done.returncode == 0, done.stderr
        rows = list(csv.DictReader((data / "out.csv").read_text().splitlines()))
        assert [row["method"] for row in rows] == methods.split(",")
        for row in rows:
            assert (row["note"], row["steps"]) == ("", "2")
            assert [score for score in ("mIoU", "AP50", "AP") if row[score]] == scores
            assert all(0 <= float(row[score]) <= 1 for score in scores)
            assert float(row["processor_seconds"]) > 0
            assert str(data) not in row["command"]
        assert done.stdout.strip() in (data / "out.md").read_text()


class TestService:
    """A service with too much to do."""

    LABELS = [("ant", 0.75), ("bee", 0.25)]

    @pytest.mark.parametrize(
        ("found", "is_right"),
        [
            ([("ant", 0.75), ("bee", 0.25)], True),
            ([("ant", 0.750001), ("bee", 0.249999)], True),
            ([("ant", 0.7501), ("bee", 0.2499)], False),
            ([("bee", 0.75), ("ant", 0.25)], False),
            ([("ant", 0.75)], False),
        ],
    )
    def test_answers_are_compared(self, found: list[tuple[str, float]], is_right: bool) -> None:
        import service

        predictions = [{"index": 0, "label": label, "probability": value} for label, value in found]
        assert service._is_right({"images": [{"predictions": predictions}]}, self.LABELS) == is_right

    def test_accepted_requests_are_those_that_were_not_refused(self) -> None:
        import service

        phase = service.Phase(Counter({200: 9, 429: 50, 504: 1}), [float(value) for value in range(1, 10)])
        assert phase.share_in_time(20.0) == 0.9
        assert phase.share_in_time(5.0) == 0.5
        assert (phase.quantile(0.5), phase.quantile(1.0)) == (5.0, 9.0)

    @pytest.mark.slow
    def test_it_checks_a_real_service(self) -> None:
        command = [sys.executable, str(BENCHMARK.with_name("service.py")), "--seconds", "2", "--json", "--timeout", "5"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
        found = json.loads(done.stdout)
        assert found["wrong_answers"] == found["exit_status"] == 0
        assert found["carried_per_second"] > 0
        assert set(found["responses"]) <= {"200", "429", "504"}
        assert found["checks"]["the process lives"]
        assert done.returncode == int(not all(found["checks"].values()))


class TestServing:
    """Exported models side by side."""

    def test_tables_have_ratios_and_notes(self) -> None:
        # Not `import serving`: the tests of the service are a package of this name.
        spec = importlib.util.spec_from_file_location("serving_benchmark", BENCHMARK.with_name("serving.py"))
        assert spec is not None
        assert spec.loader is not None
        serving = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(serving)
        row = {"runtime": "onnx", "case": "a", "precision": "fp32", "batch_size": 1, "note": "", "rounds": 3}
        row |= {"ms_swinv2": 2.0, "ms_transformers": 4.0, "ms_eager": 6.0, "export_seconds_swinv2": 9.0}
        other = row | {"precision": "int8", "ms_transformers": 1.0}
        (table,) = serving.tables_of([row, other, row | {"note": "the logits of swinv2 differ"}])
        assert "geometric mean 1.00, least 0.50" in table
        assert "| a    | fp32      | 1     | 2.0    | 4.0          | 2.00           | 3.00    | 9.0      |" in table
        assert "the logits of swinv2 differ" in table

    @pytest.mark.slow
    def test_a_trial(self, tmp_path: Path) -> None:
        pytest.importorskip("transformers.exporters")
        options = ["--cases", "mini-w4-64", "--runtimes", "openvino", "--precisions", "fp32", "--rounds", "1"]
        command = [sys.executable, str(BENCHMARK.with_name("serving.py")), *options, "--batch-sizes", "1"]
        done = subprocess.run(
            [*command, "--output", str(tmp_path / "out")], capture_output=True, text=True, check=False, timeout=280
        )
        assert done.returncode == 0, done.stderr
        (row,) = csv.DictReader((tmp_path / "out.csv").read_text().splitlines())
        assert row["note"] == ""
        assert min(float(row[f"ms_{name}"]) for name in ("swinv2", "transformers", "eager")) > 0
        assert max(float(row[f"difference_{name}"]) for name in ("swinv2", "transformers")) < 1e-4


class TestVideoTraining:
    """Clips of videos, divided by time."""

    def test_clips_are_cut_by_time(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The number of a frame is its brightness: which frames a clip has can be read."""
        import video_training
        from video_training import FRAMES, TASKS, TEST_START, TRAIN_END, cut_clips

        from clips import write_clip
        from swinv2.video.reading import probe, read_frames

        monkeypatch.setattr(video_training, "TEST_CLIPS", 2)
        shades = (40 + 1.6 * np.arange(120)).astype(np.uint8)
        write_clip(tmp_path / "videos/long.mp4", np.ones((120, 96, 96, 3), np.uint8) * shades[:, None, None, None], 25)
        write_clip(tmp_path / "videos/short.mp4", np.zeros((20, 96, 96, 3), np.uint8), 25)
        (tmp_path / "videos/damaged.mp4").write_bytes(b"no video")
        for name, task in TASKS.items():
            folder = cut_clips(tmp_path / "videos", task, tmp_path / name)
            for split, count in (("train", task.longest), ("test", 2)):
                for label, stride in task.strides.items():
                    files = sorted((folder / split / label).iterdir())
                    assert len(files) == count
                    for file in files:
                        length = probe(file).frames
                        assert length >= FRAMES if split == "train" else length == FRAMES
                        clip = read_frames(file, [(index + 0.5) / 25 for index in range(length)])
                        assert clip.shape == (length, 96, 96, 3)
                        numbers = (clip.mean((1, 2, 3)) - 40) / 1.6
                        assert np.diff(numbers) == pytest.approx(np.full(length - 1, stride), abs=1.5)
                        if split == "train":
                            assert numbers.max() < TRAIN_END * 120 + 1
                        else:
                            assert numbers.min() > TEST_START * 120 - 2

    def test_commands_and_results(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import video_training

        commands: list[list[str]] = []

        def run(command: list[str], log: Path) -> tuple[str, float]:
            commands.append(list(command))
            if "finetune" in command:
                output = Path(command[command.index("--output-dir") + 1])
                output.mkdir()
                (output / "results.json").write_text(json.dumps({"step": 600}))
            return json.dumps({"top1": 0.75}), 99.0

        monkeypatch.setattr(video_training, "run_program", run)
        monkeypatch.setattr(video_training, "load_model", lambda *rest: torch.nn.Linear(2, 1))
        monkeypatch.setattr(video_training, "cut_clips", lambda source, task, folder: folder)
        options: Any = {"clips": tmp_path, "output": tmp_path / "out", "steps": None, "keep": None}
        video_training.main(tasks="direction", methods="", seeds="3", **options)
        rows = list(csv.DictReader((tmp_path / "out.csv").read_text().splitlines()))
        assert [[row[name] for name in ("set", "method", "top1", "steps")] for row in rows] == [
            ["direction", "swinv2", "0.75", "600"],
            ["direction", "frames", "0.75", "600"],
        ]
        ours, alone = (command for command in commands if "finetune" in command)
        assert (ours[-4:], alone[-4:]) == (
            ["--tubelet-size", "2", "--window-frames", "4"],
            ["--tubelet-size", "1", "--window-frames", "1"],
        )
        assert ours[ours.index("--max-steps") + 1] == str(video_training.STEPS)
        tests = [command for command in commands if "evaluate" in command]
        assert {command[command.index("--split") + 1] for command in tests} == {"test"}
        assert str(tmp_path) not in (tmp_path / "out.md").read_text()
