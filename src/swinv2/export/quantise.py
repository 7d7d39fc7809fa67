"""Computes the products of an exported classifier in int8, by NNCF.

In: a graph of OpenVINO or ONNX, images to calibrate its ranges, and images to rate its answers on. Out: the graph in
int8. Attention stays in 32 bits, because cosines with a scale of up to 100 before a softmax need more than eight; so
does the classifier, which is small. NNCF gives further products back to 32 bits until the answers hold.

NNCF's SmoothQuant is off: of the shipped model's logits it makes the mean square error ten times as large.
"""

import logging
import sys
from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from swinv2.errors import UsageError
from swinv2.exported import OPENVINO


@dataclass(frozen=True)
class Rated:
    """An image, and the value of each answer for it.

    Attributes:
        pixels: The graph's input for it, a batch of one.
        values: For each class, 1 if it is the image's label and 0 otherwise; without labels, the probability that the
            source gives to it.
    """

    pixels: np.ndarray
    values: np.ndarray


def require_nncf() -> Any:
    """NNCF.

    Raises:
        UsageError: It is not installed.
    """
    try:
        import nncf
    except ImportError as error:
        raise UsageError("--int8 needs nncf, which is not installed; install swinv2[export].") from error
    # Its own function would set the level of every handler of the process.
    logging.getLogger("nncf").setLevel(logging.ERROR)
    return nncf


def has_int8_instructions() -> bool:
    """Whether this processor has instructions for int8: AVX-512 VNNI, AVX-VNNI, AMX, or those of Arm."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split()
    except OSError:
        # Another system than Linux; torch asks for AVX-512 VNNI alone.
        return torch.cpu._is_vnni_supported()
    return bool({"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"} & {*flags})


def quantise(
    program: Any, format: str, calibration: Sequence[np.ndarray], rated: Sequence[Rated], most_lost: float
) -> Any:
    """Quantises a graph.

    Args:
        program: A model of OpenVINO or of `onnx_ir`, with one input and the output "logits".
        format: Its format.
        calibration: Inputs, batches of one.
        rated: Images on which the answers of the result are rated.
        most_lost: The largest loss of the mean value of the answers.
    """
    nncf = require_nncf()
    in_openvino = format == OPENVINO
    model = program if in_openvino else _as_proto(program)
    name = next(iter(program.inputs)).any_name if in_openvino else model.graph.input[0].name
    kept = _kept_in_openvino(model) if in_openvino else _kept_in_onnx(model)
    run = _run_openvino if in_openvino else _run_onnx

    def value_of_answers(compiled: Any, images: Iterable[Rated]) -> tuple[float, list[float]]:
        """The value of a model's answers: the mean, and that of each image."""
        session = run(compiled, name)
        values = [float(each.values[int(session(each.pixels).argmax())]) for each in images]
        return float(np.mean(values)), values

    # NNCF draws its progress on stdout, which is for data.
    with redirect_stdout(sys.stderr):
        quantised = nncf.quantize_with_accuracy_control(
            model,
            nncf.Dataset(list(calibration), lambda pixels: {name: pixels}),
            nncf.Dataset(list(rated), lambda each: {name: each.pixels}),
            value_of_answers,
            max_drop=most_lost,
            drop_type=nncf.DropType.ABSOLUTE,
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(calibration),
            advanced_quantization_parameters=nncf.AdvancedQuantizationParameters(
                smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=-1, convolution=-1)
            ),
            ignored_scope=nncf.IgnoredScope(names=kept),
        )
    if in_openvino:
        return quantised
    import onnx_ir

    return onnx_ir.from_proto(quantised)


def _kept_in_openvino(model: Any) -> list[str]:
    """Names of the operations that stay in 32 bits: attention, and the classifier's product."""
    operations = [(each.get_type_name(), each.get_friendly_name()) for each in model.get_ordered_ops()]
    products = [name for kind, name in operations if kind == "MatMul"]
    return [*(name for kind, name in operations if kind == "ScaledDotProductAttention"), products[-1]]


def _kept_in_onnx(model: Any) -> list[str]:
    """Names of the operations that stay in 32 bits: attention, whose products have no constant, and the classifier's
    product."""
    constants = {each.name for each in model.graph.initializer}
    products = [node for node in model.graph.node if node.op_type in ("MatMul", "Gemm")]
    softmaxes = [node.name for node in model.graph.node if node.op_type == "Softmax"]
    return [*softmaxes, *(node.name for node in products if not constants & {*node.input}), products[-1].name]


def _run_openvino(compiled: Any, name: str) -> Any:
    """Runs a compiled model."""
    return lambda pixels: compiled({name: pixels})[0]


def _run_onnx(model: Any, name: str) -> Any:
    """Runs a model of ONNX."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda pixels: session.run(None, {name: pixels})[0]


def _as_proto(program: Any) -> Any:
    """The protobuf of an ONNX graph whose weights are all constants: NNCF does not look behind a transposition."""
    import onnx_ir

    program = program.clone()
    for node in list(program.graph):
        if node.op_type == "Transpose" and node.inputs[0].is_initializer():
            order = node.attributes["perm"].as_ints() if "perm" in node.attributes else None
            output = node.outputs[0]
            transposed = np.ascontiguousarray(np.transpose(node.inputs[0].const_value.numpy(), order))
            constant = onnx_ir.Value(
                name=output.name,
                shape=output.shape,
                type=output.type,
                const_value=onnx_ir.tensor(transposed, name=output.name),
            )
            onnx_ir.convenience.replace_all_uses_with(output, constant)
            program.graph.remove(node, safe=True)
            program.graph.register_initializer(constant)
    return onnx_ir.to_proto(program)
