"""The benchmark runs and writes what its README says. No number is judged: no test measures time."""

import csv
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest

BENCHMARK = Path(__file__).resolve().parent.parent / "benchmarks" / "model.py"

COLUMNS = [
    "case",
    "mode",
    "precision",
    "execution",
    "device",
    "batch_size",
    "library",
    "parameters",
    "images_per_second",
    "step_milliseconds",
    "fastest_milliseconds",
    "slowest_milliseconds",
    "cpu_share",
    "rounds",
    "peak_mib",
    "held_mib",
    "rise_mib",
    "rise_mib_per_image",
    "note",
    "images_per_second_over_fastest_peer",
    "images_per_second_over_transformers",
    "peak_mib_over_leanest_peer",
    "peak_mib_over_transformers",
    "rise_mib_over_least_rise_of_peers",
    "rise_mib_over_transformers",
    "share_of_products",
    "share_of_copies",
    "share_of_limits",
    "operations_per_second",
    "bytes_per_second",
    "machine",
    "threads",
    "torch",
    "transformers",
    "timm",
    "torchvision",
    "commit",
    "command",
    "date",
    "load_at_start",
]


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the scripts of the benchmark be imported as they import each other."""
    monkeypatch.syspath_prepend(str(BENCHMARK.parent))


@pytest.mark.usefixtures("scripts")
class TestWorker:
    """The process that does one library's work, and what becomes of its failures."""

    @staticmethod
    def setting(case: str = "tiny-w8-256") -> object:
        from cases import Setting

        return Setting(case, "inference", "bf16", "eager", "cpu", 1)

    def test_a_library_that_there_is_not(self, capfd: pytest.CaptureFixture[str]) -> None:
        from worker import Worker

        with pytest.raises(RuntimeError, match="KeyError: 'keras'"):
            Worker("keras", self.setting())
        assert "Traceback" in capfd.readouterr().err

    @pytest.mark.slow
    def test_what_libraries_print_is_no_answer(self) -> None:
        from worker import Worker

        worker = Worker("swinv2", self.setting(), {"ONEDNN_VERBOSE": "1"})
        assert worker.parameters > 2e7
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


FACTS = {
    "machine": "a",
    "threads": "2",
    "torch": "1",
    "transformers": "1",
    "timm": "1",
    "torchvision": "1",
    "commit": "12e4",
    "command": "python",
    "date": "2026-01-01",
    "load_at_start": "0.5",
}


@pytest.mark.usefixtures("scripts")
class TestGoingOn:
    """A benchmark of hours keeps the rows that it has."""

    ROW: ClassVar = {"case": "tiny-w8-256", "batch_size": 8, "images_per_second": 9.5, "note": "", **FACTS}

    def test_rows_come_back_as_they_were(self, tmp_path: Path) -> None:
        import report

        rows = [self.ROW, self.ROW | {"images_per_second": "", "note": "out of memory"}]
        report.write_csv(tmp_path / "a.csv", rows)
        assert report.read_csv(tmp_path / "a.csv", FACTS) == rows

    def test_rows_of_another_commit_are_refused(self, tmp_path: Path) -> None:
        import report

        report.write_csv(tmp_path / "a.csv", [self.ROW])
        with pytest.raises(SystemExit, match="commit 12e4, not 12e5"):
            report.read_csv(tmp_path / "a.csv", FACTS | {"commit": "12e5"})

    def test_facts_of_several_runs(self) -> None:
        import report

        rows = [self.ROW, self.ROW | {"date": "2026-01-02"}, self.ROW]
        assert report.facts_of(rows, FACTS) == FACTS | {"date": "2026-01-01, 2026-01-02"}


@pytest.mark.usefixtures("scripts")
class TestLimits:
    """What a model asks for, which speeds are held against."""

    @staticmethod
    def setting(mode: str = "inference", batch_size: int = 1, case: str = "tiny-w8-256") -> object:
        from cases import Setting

        return Setting(case, mode, "bf16", "eager", "cpu", batch_size)

    @pytest.mark.parametrize(("mode", "times"), [("inference", 1), ("training", 3)])
    @pytest.mark.parametrize("name", ["tiny-w8-256", "tiny-w16-256"])
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
        counted = operations(self.setting(mode, 2, name))
        assert counted == pytest.approx(counter.get_total_flops(), rel=0.005)
        assert counted == 2 * times * operations(self.setting(case=name))

    def test_the_nearer_limit_counts(self) -> None:
        from limits import Limits, bytes_moved, operations, seconds_at_limits

        setting = self.setting(batch_size=8)
        by_products = seconds_at_limits(setting, Limits(1e14, float("inf")))
        by_copies = seconds_at_limits(setting, Limits(float("inf"), 1e12))
        assert by_products == pytest.approx(operations(setting) / 1e14)
        assert by_copies == pytest.approx(bytes_moved(setting) / 1e12)
        # Some parts run into one of them, some into the other.
        both = seconds_at_limits(setting, Limits(1e14, 1e12))
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
        weights = 2 * bytes_moved(self.setting()) - bytes_moved(self.setting(batch_size=2))
        # Norms, biases and what makes the position bias are not counted.
        assert weights / 2 == pytest.approx(parameters, rel=0.02)


@pytest.mark.usefixtures("scripts")
class TestWhatIsMeasured:
    """Rows that are asked for, and their order."""

    @pytest.mark.parametrize(
        ("given", "mode", "sizes"),
        [
            ("", "inference", [64, 1]),
            ("", "training", [64]),
            ("best", "inference", [64]),
            ("1, 64,best", "training", [1, 64]),
        ],
    )
    def test_batch_sizes(self, given: str, mode: str, sizes: list[int]) -> None:
        from model import _sizes

        assert _sizes(given, 64, mode) == sizes

    @pytest.mark.parametrize("given", ["0", "-1", "most"])
    def test_what_is_no_batch_size(self, given: str) -> None:
        import typer
        from model import _sizes

        with pytest.raises(typer.BadParameter, match=f"'{given}' is neither a number of images nor best"):
            _sizes(given, 64, "inference")

    def test_those_of_one_image_are_prepared_last(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import model
        from cases import Setting

        def setting(mode: str, execution: str, batch_size: int) -> Setting:
            return Setting("tiny-w8-256", mode, "bf16", execution, "cuda", batch_size)

        wanted = [
            setting(mode, execution, batch_size)
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
        from cases import Setting
        from limits import Limits
        from model import _shares

        limits = Limits(1e12, 1e12)
        infer, train = (Setting("tiny-w8-256", mode, "fp32", "eager", "cpu", 8) for mode in ("inference", "training"))
        slow, fast = (_shares(infer, {"step_milliseconds": each}, limits) for each in (2000.0, 1000.0))
        for name in ("share_of_products", "share_of_copies", "share_of_limits"):
            assert 0 < 2 * slow[name] == pytest.approx(fast[name], rel=1e-4)
        trained = _shares(train, {"step_milliseconds": 2000.0}, limits)
        assert trained["share_of_products"] == pytest.approx(3 * slow["share_of_products"], rel=1e-4)
        assert trained["share_of_copies"] == trained["share_of_limits"] == ""
        assert _shares(infer, {"step_milliseconds": ""}, limits)["share_of_products"] == ""

    def test_rows_stand_in_order(self) -> None:
        from model import _place

        row = {"case": "tiny-w8-256", "mode": "inference", "precision": "fp32", "execution": "eager", "batch_size": 1}
        rows = [row, row | {"batch_size": 8}, row | {"mode": "training"}, row | {"case": "base-w24-384"}]
        assert [rows.index(each) for each in sorted(rows, key=_place)] == [1, 0, 2, 3]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_model_benchmark_writes_a_row_for_each_library(tmp_path: Path) -> None:
    options = (
        "--cases tiny-w8-256 --libraries swinv2,transformers --modes inference --precisions fp32 --executions eager"
    )
    command = [sys.executable, str(BENCHMARK), *options.split(), "--rounds", "1", "--batch-sizes", "1"]
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "smoke")], capture_output=True, text=True, check=False, timeout=280
    )
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
    command += ["--go-on", "--output", str(tmp_path / "smoke")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    assert "timing" not in done.stderr
    assert (tmp_path / "smoke.csv").read_text() == measured
