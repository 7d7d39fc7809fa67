"""The choice of the attention backend.

In: the name that a user requests, and what the call needs. Out: the backend that runs. The table `BACKENDS` is in order
of preference. Every refusal is a sentence, which `explain_backend` shows.
"""

import importlib.util
import logging
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from swinv2.lengths import Lengths, in_words
from swinv2.ops import reference, sdpa
from swinv2.ops.cpu import attention, library
from swinv2.ops.execution import ORDINARY, Execution, execution, is_transformed
from swinv2.ops.reference import AttentionInputs
from swinv2.ops.windows import WindowPlan

logger = logging.getLogger(__name__)

EAGER, SDPA, CPU, TRITON = "eager", "sdpa", "cpu", "triton"

LARGEST_HEAD_DIM, LARGEST_WINDOW = 128, 64
"""Limits of the kernels for GPUs."""

MOST_NUMBERS = 2**31
"""The kernels for GPUs index the queries, keys and values of one image with 32 bits: together they must be smaller."""


@dataclass(frozen=True)
class Call:
    """What a call needs, as far as it is known. None and the defaults exclude no backend.

    Attributes:
        wants_weights: Whether the call returns the attention weights.
        device, dtype: Device and dtype of the maps.
        shape: Shape of the maps, (B, *grid, heads, head_dim).
        window: Size of the windows.
        dropout: Probability of dropping an attention weight.
        execution: How the call is run.
    """

    wants_weights: bool = False
    device: torch.device | None = None
    dtype: torch.dtype | None = None
    shape: tuple[int | torch.SymInt, ...] | None = None
    window: Lengths | None = None
    dropout: float = 0.0
    execution: Execution = Execution.EAGER


@dataclass(frozen=True)
class Backend:
    """One implementation of window attention.

    Attributes:
        name: Its name.
        asked_for_as: The `attn_implementation` that requests it.
        summary: A description in half a sentence.
        refuse: Returns the reason why a call cannot run, or None.
        attend: Returns the attended map, and the attention weights or None.
    """

    name: str
    asked_for_as: str
    summary: str
    refuse: Callable[[Call], str | None]
    attend: Callable[[AttentionInputs], tuple[Tensor, Tensor | None]]


def _refuse_weights(call: Call) -> str | None:
    """The reason why a backend cannot run a call that wants attention weights, or None."""
    return "it never stores the attention weights, which were requested" if call.wants_weights else None


def _refuse_dropout(call: Call) -> str | None:
    """The reason why a backend cannot run a call with attention dropout, or None."""
    if call.dropout:
        return f"it has no attention dropout, and attention_probs_dropout_prob is {call.dropout}"
    return None


def _refuse_custom_ops(call: Call) -> str | None:
    """The reason why custom operators cannot run in such an execution, or None."""
    if call.execution in ORDINARY:
        return None
    return f"the call is run {call.execution.value}"


def _refuse_triton(call: Call) -> str | None:
    """Checks the machine first, then the call."""
    reason = refuse_machine(call.device) or _refuse_weights(call) or _refuse_dropout(call)
    if reason:
        return reason
    if call.dtype is not None and not is_interpreted() and call.dtype.itemsize not in (2, 4):
        return f"the maps are {str(call.dtype).removeprefix('torch.')}; it takes bfloat16, float16 and float32"
    if call.shape is not None and call.shape[-1] > LARGEST_HEAD_DIM:
        return f"heads have {call.shape[-1]} channels; it takes {LARGEST_HEAD_DIM} at most"
    if call.window is not None and max(call.window) > LARGEST_WINDOW:
        return f"windows are {in_words(call.window)}; it takes {LARGEST_WINDOW} on each axis at most"
    if call.shape is not None and 3 * math.prod(call.shape[1:]) >= MOST_NUMBERS:
        size = " x ".join(map(str, call.shape[1:-2]))
        return f"a map of {size} tokens is too large for its 32-bit indices"
    return _refuse_custom_ops(call)


def _refuse_cpu(call: Call) -> str | None:
    """The reason why the backend "cpu" cannot run a call, or None."""
    if call.device is not None and call.device.type != "cpu":
        return f"the maps are on {call.device.type}"
    reason = library.refuse(call.dtype)
    return reason or _refuse_weights(call) or _refuse_dropout(call) or _refuse_custom_ops(call)


def _refuse_sdpa(call: Call) -> str | None:
    """The reason why the backend "sdpa" cannot run a call, or None."""
    if call.execution is Execution.INTERCEPTED and is_transformed():
        # torch.func hides from torch's attention that the bias needs a gradient, which is then missing.
        return "torch.func and forward-mode differentiation cannot transform it"
    return _refuse_weights(call)


@torch.compiler.assume_constant_result
def is_interpreted() -> bool:
    """For the backend "triton": whether TRITON_INTERPRET=1 makes Triton run kernels on the CPU, slowly, for tests."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "y", "yes")


@torch.compiler.assume_constant_result
def refuse_machine(device: torch.device | None = None) -> str | None:
    """The reason why the kernels for GPUs cannot run on a device, or None.

    Args:
        device: The device of the maps; None for the best device of this machine. "meta" is never refused: its maps have
            only shapes, and no kernel runs.
    """
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if is_interpreted() or (device is not None and device.type == "meta"):
        return None
    if device is not None and device.type != "cuda":
        return f"the maps are on {device.type}; it needs a GPU"
    if not torch.cuda.is_available():
        return "there is no GPU"
    if torch.version.hip is not None:
        return "it is not tested on AMD's GPUs"
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 0):
        return f"the GPU has compute capability {capability[0]}.{capability[1]}; it needs 8.0"
    return None


def _attend_triton(inputs: AttentionInputs) -> tuple[Tensor, None]:
    """Window attention by the backend "triton", which is imported at its first use."""
    # Imported here: Triton may not be installed, and its import takes a second.
    from swinv2.ops.triton import launch

    return launch.window_attention(inputs), None


BACKENDS = (
    Backend(
        TRITON,
        TRITON,
        "kernels for GPUs that read and write the map directly, without a padded, shifted or cut copy of it",
        _refuse_triton,
        _attend_triton,
    ),
    Backend(
        CPU,
        SDPA,
        "this package's compiled kernels for CPUs: window attention or, if the modules are intact, whole blocks",
        _refuse_cpu,
        lambda inputs: (attention.window_attention(inputs), None),
    ),
    Backend(
        SDPA,
        SDPA,
        "torch's scaled_dot_product_attention, once for each kind of window",
        _refuse_sdpa,
        lambda inputs: (sdpa.window_attention(inputs), None),
    ),
    Backend(EAGER, EAGER, "plain PyTorch, the specification", lambda call: None, reference.window_attention),
)

_BY_NAME = {backend.name: backend for backend in BACKENDS}


def choose_backend(requested: str, call: Call | None = None) -> str:
    """The backend that runs: the requested one, or the next in the table that can run the call.

    Args:
        requested: "triton", "sdpa" or "eager"; or "cpu", which comes first if "sdpa" is requested.
        call: What the call needs.

    Raises:
        ValueError: No backend has that name.
    """
    names = list(dict.fromkeys(backend.asked_for_as for backend in BACKENDS))
    if requested not in (*names, CPU):
        raise ValueError(f"attn_implementation is {requested!r}; this model has {', '.join(map(repr, names))}.")
    return _first_usable_backend(CPU if requested == SDPA else requested, call or Call())


def _first_usable_backend(name: str, call: Call) -> str:
    """The first backend, from the requested one down the table, that can run a call."""
    names = [backend.name for backend in BACKENDS]
    return next(backend.name for backend in BACKENDS[names.index(name) :] if backend.refuse(call) is None)


def explain_backend(requested: str, call: Call | None = None) -> str:
    """Says which backend a call uses and why it does not use the other ones.

    Example:

        >>> from swinv2.ops.backends import Call, explain_backend
        >>> print(explain_backend("sdpa", Call(wants_weights=True, dropout=0.1)))
        eager runs: plain PyTorch, the specification
        triton does not: ...
        cpu does not: ...
        sdpa does not: it never stores the attention weights, which were requested
    """
    call = call or Call()
    chosen = _BY_NAME[choose_backend(requested, call)]
    lines = [f"{chosen.name} runs: {chosen.summary}"]
    for backend in BACKENDS:
        if backend is not chosen:
            is_second = backend.asked_for_as == chosen.asked_for_as
            otherwise = f"{chosen.name} comes first" if is_second else "it was not requested"
            lines.append(f"{backend.name} does not: {backend.refuse(call) or otherwise}")
    return "\n".join(lines)


@lru_cache(maxsize=64)
def _warn_once(message: str) -> None:
    """Logs once that another backend runs than the requested one."""
    logger.warning(message)


def window_attention(
    q: Float[Tensor, "B *grid heads head_dim"],
    k: Float[Tensor, "B *grid heads head_dim"],
    v: Float[Tensor, "B *grid heads head_dim"],
    bias_table: Float[Tensor, "heads *table"],
    scale: Float[Tensor, " heads"],
    plan: WindowPlan,
    padded_value: Float[Tensor, "heads head_dim"] | None = None,
    dropout: float = 0.0,
    backend: str = SDPA,
    padded_query: Float[Tensor, "heads head_dim"] | None = None,
) -> tuple[Float[Tensor, "B *grid heads head_dim"], Float[Tensor, "N heads tokens tokens"] | None]:
    """Runs cosine window attention in a backend; the other arguments are those of `reference.AttentionInputs`.

    Args:
        backend: A name that `choose_backend` returned, perhaps before shapes and dtypes were known. If this backend
            cannot run the call, the next one in the table that can runs instead.

    Returns:
        The attended map, and the attention weights; None instead of the weights unless the backend is "eager".
    """
    if backend != EAGER:
        call = Call(False, v.device, v.dtype, tuple(v.shape), plan.window, dropout, execution(v))
        chosen = _first_usable_backend(backend, call)
        if backend == TRITON != chosen and not torch.compiler.is_compiling():
            _warn_once(f"{chosen} runs instead of triton: {_refuse_triton(call)}")
        backend = chosen
    inputs = AttentionInputs(q, k, v, bias_table, scale, plan, padded_value, dropout, padded_query)
    return _BY_NAME[backend].attend(inputs)
