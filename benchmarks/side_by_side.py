"""Measures libraries side by side, at one setting after the other: what `dense.py` and `videos.py` share.

In: settings, and the program that runs a library at one of them. Out: rows of results, which are written after every
setting, and their tables.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import report
import torch
import typer
from cases import OURS, PRECISIONS, Setting
from memory import ALLOCATOR, Memory
from model import LEAST_CPU_SHARE, Device, Prepared, _is_of, _measure_row, _note
from terminal import progress, select
from worker import Worker


def choose_precisions(given: str, device: str) -> list[str]:
    """The named precisions; without names, bf16 only if the device has instructions for it."""
    if device == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        features = torch.cpu.get_capabilities()
        has_bf16 = bool(features.get("avx512_bf16") or features.get("amx_bf16"))
    return select("precisions", given, PRECISIONS, () if has_bf16 else ("bf16",))


def check_device(device: Device) -> None:
    """Ends the program if torch does not find the device."""
    if device == Device.CUDA and not torch.cuda.is_available():
        raise typer.BadParameter("torch finds no CUDA device here", param_hint="--device")


@dataclass(frozen=True)
class Comparison:
    """A comparison of libraries.

    Attributes:
        name: The beginning of the names of its files.
        title: The title of its tables.
        process: The class of the processes that run a library at a setting.
        libraries: The names of the libraries.
        finish: Changes the row of a setting: adds columns, or removes those of libraries that are not compared.
        tables: Makes the tables of rows.
        place: The sort key of a row.
        describe: A row in a few words.
        rounds: Measurements of each library, taken in turns.
        memory_too: Whether to measure peak memory.
    """

    name: str
    title: str
    process: type[Worker]
    libraries: Sequence[str]
    finish: Callable[[Setting, report.Row], None]
    tables: Callable[[list[report.Row]], list[str]]
    place: Callable[[report.Row], tuple[int, ...]]
    describe: Callable[[report.Row], str]
    rounds: int
    memory_too: bool

    def run(
        self,
        wanted: Sequence[Setting],
        device: Device,
        go_on: bool,
        output: Path | None,
        check: Callable[[Sequence[Setting]], None] = lambda missing: None,
    ) -> None:
        """Measures the settings, writes their rows and prints their tables.

        Args:
            wanted: The settings.
            device: Their device.
            go_on: Whether to keep the rows that the file already has.
            output: The path of the results without suffix; None for `benchmarks/results`.
            check: Ends the program if the libraries' answers at these settings differ.

        Raises:
            typer.Exit: This package failed in a row.
        """
        # Results of some rows must not replace the complete results, which several commands with --go-on collect.
        stem = output or report.default_stem(self.name if go_on else f"{self.name}-part", device)
        facts = report.describe_run(device)
        file = stem.with_name(stem.name + ".csv")
        rows = report.read_csv(file, facts) if go_on and file.is_file() else []
        names = set(self.libraries)
        missing = [
            setting
            for setting in wanted
            if not {row["library"] for row in rows if _is_of(row, setting) and not row["note"]} >= names
        ]
        rows = [row for row in rows if not any(_is_of(row, setting) for setting in missing)]
        check(missing)
        if device == Device.CUDA:
            # The libraries' processes need the memory that this process's allocator holds.
            torch.cuda.empty_cache()
        tables = self.tables(rows) if rows else []
        for measured in self.measure(missing):
            rows = sorted([*rows, *({**row, **facts} for row in measured)], key=self.place)
            # Written after every row, so that results stay if a later row fails.
            report.write_csv(file, rows)
            tables = self.tables(rows)
            title = f"{self.title} on {facts['machine']}"
            report.write_markdown(stem.with_name(stem.name + ".md"), title, tables, report.facts_of(rows, facts))
        print("\n\n".join(tables))
        for row in rows:
            if row["cpu_share"] != "" and float(str(row["cpu_share"])) < LEAST_CPU_SHARE:
                progress(
                    f"{row['library']}, {self.describe(row)}: got {float(str(row['cpu_share'])):.0%} of its "
                    f"{row['threads']} threads' processor time. Either other processes run here, so this speed is not "
                    "reliable, or the library uses one thread a lot."
                )
        if any(row["library"] == OURS and row["note"] for row in rows):
            raise typer.Exit(1)

    def measure(self, settings: Sequence[Setting]) -> Iterator[list[report.Row]]:
        """Measures every library at every setting; yields the rows of each setting. See `model.measure`."""
        for setting in settings:
            prepared: dict[str, Prepared] = {}
            try:
                for library in self.libraries:
                    prepared[library] = self._prepare(library, setting)
                rows = _measure_row(setting, prepared, self.rounds, self.memory_too)
            finally:
                for each in prepared.values():
                    each.close()
            for row in rows:
                self.finish(setting, row)
            yield rows

    def _prepare(self, library: str, setting: Setting) -> Prepared:
        """Starts a library's process. On a CPU, another process measures its memory."""
        progress(f"{setting}: preparing {library}")
        prepared = Prepared()
        try:
            if self.memory_too and setting.device == "cpu":
                prepared.memory = self._memory(library, setting)
            prepared.worker = self.process(library, setting)
        # A library may fail in any way, and the failure is a result.
        except RuntimeError as error:
            prepared.note = _note(library, error)
        return prepared

    def _memory(self, library: str, setting: Setting) -> Memory:
        """The memory of a library's step, from a process of its own."""
        process = self.process(library, setting, ALLOCATOR)
        try:
            return process.memory()
        finally:
            process.close()
