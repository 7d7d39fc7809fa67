"""Compares exported models: our form for exports, transformers' model exported by the same exporter, and our eager one.

    python benchmarks/serving.py

Both libraries' models have the same weights and go through transformers' exporters to OpenVINO and ONNX Runtime; int8
is NNCF's, with the same settings for both. Before it measures, it compares the logits; if they differ, the row is a
note. The models run in one process, in turns. Progress goes to stderr, the tables to stdout. README.md explains the
method.
"""

import gc
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import report
import torch
import typer
from cases import CASES, OURS, build_model, draw_images
from terminal import progress, select
from torch import Tensor

from swinv2.errors import first_sentence
from swinv2.export.formats import FORMATS, export_graph, make_exporter
from swinv2.export.network import prepare
from swinv2.export.quantise import Rated, has_int8_instructions, quantise

PEER, EAGER = "transformers", "eager"
SIZES = ("shipped-w12-96", "tiny-w8-256", "tiny-w16-256", "base-w24-384")
QUICK = ("mini-w4-64",)
PRECISIONS = ("fp32", "bf16", "int8")
PAUSE = 0.05
"""Seconds between two measurements, in which the threads of the last runtime go to sleep."""

CALIBRATION = 32
"""Images for the ranges of int8. They are not real, so accuracy is not measured here."""

LIMITS = {"fp32": 1e-4, "bf16": 0.1, "int8": 1.0}
"""Largest difference of logits from the fp32 model, as a share of the distance between the logits of two images. bf16
and int8 are approximations by design; their limits find what is wrong, not what is inexact."""

Run = Callable[[Tensor], np.ndarray]


def export(library: str, case: str, runtime: str) -> tuple[Any, float]:
    """Exports one library's model; returns the graph and the seconds that it took."""
    size, format = CASES[case], FORMATS[runtime]
    model: Any = build_model(library, size, "cpu").eval()
    started = time.perf_counter()
    if library == OURS:
        model = prepare(model, (size.image_size, size.image_size), format.fuses)
    component = export_graph(make_exporter(format), format, model, {"pixel_values": draw_images(size, 2)})
    return component.program, time.perf_counter() - started


def in_int8(program: Any, case: str, runtime: str) -> Any:
    """The graph in int8."""
    images = [image[None].numpy() for image in draw_images(CASES[case], CALIBRATION)]
    rated = [Rated(each, np.ones(CASES[case].classes)) for each in images[:1]]
    return quantise(program, runtime, images, rated, 1.0)


def compiled(program: Any, runtime: str, precision: str) -> Run:
    """The function that runs a graph."""
    threads = torch.get_num_threads()
    if runtime == "openvino":
        import openvino

        hint = {"INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32"}
        options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
        request = openvino.compile_model(program, "CPU", {**options, **hint}).create_infer_request()
        return lambda images: request.infer([images.numpy()], share_inputs=True)[0]
    import onnx_ir
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    proto = onnx_ir.to_proto(program).SerializeToString()
    session = onnxruntime.InferenceSession(proto, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"pixel_values": images.numpy()})[0]


def eager(case: str, precision: str) -> Run:
    """Our model without an export."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model: Any = build_model(OURS, CASES[case], "cpu").eval().to(dtype)

    def run(images: Tensor) -> np.ndarray:
        with torch.inference_mode():
            return model(images.to(dtype)).logits.float().numpy()

    return run


def difference(run: Run, reference: Run, case: str) -> float:
    """The largest difference of two models' logits, as a share of the distance between those of two images."""
    images = draw_images(CASES[case], 2)
    found, expected = run(images), reference(images)
    return float(np.abs(found - expected).max() / np.abs(expected[0] - expected[1]).max())


def measure(runs: dict[str, Run], images: Tensor, rounds: int) -> dict[str, float]:
    """Milliseconds of a batch: the median of some rounds, in which the models take turns."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run(images)
    for _ in range(rounds):
        for name, run in runs.items():
            time.sleep(PAUSE)
            run(images)
            started = time.perf_counter()
            run(images)
            taken[name].append(1000 * (time.perf_counter() - started))
    return {name: statistics.median(each) for name, each in taken.items()}


def rows_of(runtime: str, case: str, precisions: list[str], batches: list[int], rounds: int) -> Iterator[report.Row]:
    """Exports one case to one runtime, and measures its rows."""
    programs: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    for library in (OURS, PEER):
        progress(f"{case}, {runtime}: exporting {library}")
        programs[library], seconds[library] = export(library, case, runtime)
    reference = eager(case, "fp32")
    for precision in precisions:
        progress(f"{case}, {runtime}, {precision}")
        runs: dict[str, Run] = {}
        shares, notes = {OURS: math.nan, PEER: math.nan}, list[str]()
        for library, program in programs.items():
            # A library may fail in any way, and the failure is a result.
            try:
                own = in_int8(program, case, runtime) if precision == "int8" else program
                runs[library] = compiled(own, runtime, precision)
                shares[library] = difference(runs[library], reference, case)
            except Exception as error:
                notes.append(f"{library} failed: {type(error).__name__} {first_sentence(error)}")
        runs[EAGER] = eager(case, "bf16" if precision == "bf16" else "fp32")
        for batch_size in batches:
            wrong = [name for name, share in shares.items() if name in runs and not share <= LIMITS[precision]]
            note = "; ".join([*notes, *([f"the logits of {', '.join(wrong)} differ"] if wrong else [])])
            times = {} if note else measure(runs, draw_images(CASES[case], batch_size), rounds)
            yield {
                "runtime": runtime,
                "case": case,
                "precision": precision,
                "batch_size": batch_size,
                **{f"ms_{name}": round(times[name], 2) if times else "" for name in (OURS, PEER, EAGER)},
                **{f"difference_{name}": f"{shares[name]:.2g}" for name in (OURS, PEER)},
                **{f"export_seconds_{name}": round(seconds[name], 1) for name in (OURS, PEER)},
                "rounds": rounds,
                "note": note,
            }
        del runs
        gc.collect()


def tables_of(rows: list[report.Row]) -> list[str]:
    """The tables: milliseconds, and how many times faster than transformers' export and than our eager model."""
    tables = []
    for runtime in dict.fromkeys(str(row["runtime"]) for row in rows):
        lines, ratios = [], []
        for row in rows:
            if row["runtime"] != runtime:
                continue
            names = [str(row[name]) for name in ("case", "precision", "batch_size")]
            if row["note"]:
                lines.append([*names, *[""] * 5, str(row["note"])])
                continue
            ours, theirs, unexported = (float(row[f"ms_{name}"]) for name in (OURS, PEER, EAGER))
            ratios.append(theirs / ours)
            seconds = f"{row[f'export_seconds_{OURS}']}"
            found = [f"{ours:.1f}", f"{theirs:.1f}", f"{theirs / ours:.2f}", f"{unexported / ours:.2f}", seconds, ""]
            lines.append([*names, *found])
        mean = math.exp(statistics.fmean(map(math.log, ratios))) if ratios else float("nan")
        least = min(ratios, default=float("nan"))
        caption = (
            f"{runtime}: milliseconds of a batch, and how many times faster than transformers' export (geometric mean "
            f"{mean:.2f}, least {least:.2f}) and than our eager model (in fp32 for int8); seconds of the export."
        )
        columns = ["case", "precision", "batch", OURS, PEER, f"/ {PEER}", "/ eager", "export s", "note"]
        tables.append(report.table(caption, columns, lines))
    return tables


def main(
    cases: Annotated[str, typer.Option(help=f"Of {', '.join((*SIZES, *QUICK))}.")] = "",
    runtimes: Annotated[str, typer.Option(help="Of openvino, onnx.")] = "",
    precisions: Annotated[
        str, typer.Option(help="Of fp32, bf16, int8.", show_default="those that the processor is fast in")
    ] = "",
    batch_sizes: Annotated[str, typer.Option(help="Numbers, separated by commas.")] = "1,8",
    rounds: Annotated[int, typer.Option(min=1, help="Measurements of each model, taken in turns.")] = 7,
    output: Annotated[
        Path | None, typer.Option(help="Write to this path with the suffixes .csv and .md, not to benchmarks/results.")
    ] = None,
) -> None:
    """Compares the speed of exported models."""
    names = select("cases", cases, (*SIZES, *QUICK), QUICK)
    chosen = select("runtimes", runtimes, ("openvino", "onnx"))
    fast = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    usual = ["fp32", *(["bf16"] if fast.get("avx512_bf16") or fast.get("amx_bf16") else [])]
    usual += ["int8"] if has_int8_instructions() else []
    wanted = select("precisions", precisions, PRECISIONS) if precisions else usual
    stem = output or report.default_stem("serving", "cpu")
    facts = report.describe_run("cpu")
    rows: list[report.Row] = []
    for case, runtime in itertools.product(names, chosen):
        # ONNX Runtime computes in bf16 on no CPU.
        precise = [each for each in wanted if not (runtime == "onnx" and each == "bf16")]
        for row in rows_of(runtime, case, precise, [int(each) for each in batch_sizes.split(",")], rounds):
            rows.append(row | facts)
            report.write_csv(stem.with_suffix(".csv"), rows)
            report.write_markdown(stem.with_suffix(".md"), f"Exports on {facts['machine']}", tables_of(rows), facts)
    print("\n\n".join(tables_of(rows)))


if __name__ == "__main__":
    typer.run(main)
