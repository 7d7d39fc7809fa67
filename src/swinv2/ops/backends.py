"""Which form of window attention runs, and why.

In: the name a user asked for and what the call needs. Out: the form to run. The table is in order of preference and
every refusal is a sentence, which `explain_backend` says.
"""

import importlib.util
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from swinv2.ops import chunks, reference, sdpa
from swinv2.ops.cpu import library
from swinv2.ops.execution import is_transformed
from swinv2.ops.windows import Pair, WindowPlan

logger = logging.getLogger(__name__)

EAGER, SDPA, TRITON = "eager", "sdpa", "triton"

LARGEST_HEAD_DIM, LARGEST_WINDOW = 128, 64
"""What the fused form is written for."""

MOST_NUMBERS = 2**31
"""Of one image's map, as the fused form counts them."""


@dataclass(frozen=True)
class Call:
    """What a call of window attention needs, as far as it is known: None and the defaults rule nothing out.

    Attributes:
        wants_weights: Whether the attention weights are to be returned.
        device, dtype: Of the maps.
        shape: Of the maps, (B, H, W, heads, head_dim).
        window: Size of the windows.
        dropout: Probability of dropping an attention weight.
        chunk_size: Windows that attend at a time; None for all of them.
    """

    wants_weights: bool = False
    device: torch.device | None = None
    dtype: torch.dtype | None = None
    shape: tuple[int, ...] | None = None
    window: Pair | None = None
    dropout: float = 0.0
    chunk_size: int | None = None


@dataclass(frozen=True)
class Backend:
    """A form of window attention.

    Attributes:
        name: The `attn_implementation` that asks for it.
        summary: What it is, in half a sentence.
        refuse: Given a call, None or the reason why it cannot run.
    """

    name: str
    summary: str
    refuse: Callable[[Call], str | None]


def _refuse_weights(call: Call) -> str | None:
    return "it never holds the attention weights, which were asked for" if call.wants_weights else None


def _refuse_fused(call: Call) -> str | None:
    """Why the fused form cannot run. The order is from what the machine is to what the call is."""
    reason = refuse_machine(call.device)
    if reason or _refuse_weights(call):
        return reason or _refuse_weights(call)
    if call.dropout:
        return f"it drops no attention weights, and attention_probs_dropout_prob is {call.dropout}"
    if call.dtype is not None and not is_interpreted() and call.dtype.itemsize not in (2, 4):
        return f"the maps are {str(call.dtype).removeprefix('torch.')}; it takes bfloat16, float16 and float32"
    if call.shape is not None and call.shape[-1] > LARGEST_HEAD_DIM:
        return f"heads have {call.shape[-1]} channels; it takes {LARGEST_HEAD_DIM} at most"
    if call.window is not None and max(call.window) > LARGEST_WINDOW:
        return f"windows are {call.window[0]} x {call.window[1]}; it takes {LARGEST_WINDOW} x {LARGEST_WINDOW} at most"
    if call.shape is not None and 3 * call.shape[1] * call.shape[2] * call.shape[3] * call.shape[4] >= MOST_NUMBERS:
        return f"a map of {call.shape[1]} x {call.shape[2]} tokens is larger than it can count"
    if _is_exported():
        return "what is exported must run where this package is not"
    if is_transformed():
        return "torch.func and forward-mode differentiation cannot transform it"
    return None


@torch.compiler.assume_constant_result
def is_interpreted() -> bool:
    """Whether Triton is told, by TRITON_INTERPRET=1, to run kernels on the CPU, slowly, so that they can be tested."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "y", "yes")


@torch.compiler.assume_constant_result
def refuse_machine(device: torch.device | None = None) -> str | None:
    """Why the fused form cannot run on a device.

    Args:
        device: Where the maps are; None for the best this machine has. Maps on "meta" have shapes only, and nothing is
            run.

    Returns:
        The reason; None if it can run.
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
        return "it was never tried on AMD's GPUs"
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 0):
        return f"the GPU has compute capability {capability[0]}.{capability[1]}; it needs 8.0"
    return None


BACKENDS = (
    Backend(
        TRITON,
        "fused kernels that read and write the map itself: nothing is padded, shifted, cut or masked in memory",
        _refuse_fused,
    ),
    Backend(
        SDPA,
        "one pass for each kind of window, no T x T weights kept: torch's scaled_dot_product_attention, or on a CPU "
        "this package's own kernels, a window at a time",
        _refuse_weights,
    ),
    Backend(EAGER, "plain PyTorch, the specification", lambda call: None),
)


def choose_backend(requested: str, call: Call | None = None) -> str:
    """Picks the form that runs: the requested one, or the next in the table that can do what is wanted.

    Args:
        requested: "triton", "sdpa" or "eager".
        call: What is wanted.

    Raises:
        ValueError: There is no form of that name.
    """
    names = [backend.name for backend in BACKENDS]
    if requested not in names:
        raise ValueError(f"attn_implementation is {requested!r}; this model has {', '.join(map(repr, names))}.")
    for backend in BACKENDS[names.index(requested) :]:
        if backend.refuse(call or Call()) is None:
            return backend.name
    raise AssertionError("the plain form refuses nothing")


def explain_backend(requested: str, call: Call | None = None) -> str:
    """Says which form of attention a call would run and why each other one would not.

    Example:

        >>> from swinv2.ops.backends import Call, explain_backend
        >>> print(explain_backend("sdpa", Call(wants_weights=True, dropout=0.1)))
        eager runs: plain PyTorch, the specification
        triton does not: ...
        sdpa does not: it never holds the attention weights, which were asked for
    """
    call = call or Call()
    chosen = choose_backend(requested, call)
    how = "" if call.wants_weights else _explain_chunks(chosen, call.chunk_size)
    lines = [f"{backend.name} runs{how}: {backend.summary}" for backend in BACKENDS if backend.name == chosen]
    for backend in BACKENDS:
        if backend.name != chosen:
            lines.append(f"{backend.name} does not: {backend.refuse(call) or 'it was not asked for'}")
    if chosen == SDPA and library.refuse() is not None:
        lines.append(f"on a CPU it is torch's operation: {library.refuse()}")
    return "\n".join(lines)


def _explain_chunks(chosen: str, chunk_size: int | None) -> str:
    if chunk_size is None or chosen == TRITON:
        return ""
    windows = f"{chunk_size} window{'s' if chunk_size > 1 else ''} at a time"
    return f", {windows}" if chosen == EAGER else f", torch's operation {windows}"


def _is_exported() -> bool:
    # torch.compiler.is_exporting() returns it; torch 2.11, tracing, takes that function for True.
    return torch.compiler._is_exporting_flag or torch.jit.is_tracing()


def _attends_at_once(backend: str, v: Tensor, dropout: float) -> bool:
    """Whether a form holds, or may hold, the weights of all windows that it is given, and runs where it was chosen."""
    whole = backend == EAGER or (backend == SDPA and not sdpa.runs_in_pieces(v, dropout))
    return whole and not _is_exported()


def _plain_map(*arguments: Any) -> Tensor:
    return reference.window_attention(*arguments)[0]


@lru_cache(maxsize=64)
def _warn_once(message: str) -> None:
    logger.warning(message)


def window_attention(
    q: Float[Tensor, "B H W heads head_dim"],
    k: Float[Tensor, "B H W heads head_dim"],
    v: Float[Tensor, "B H W heads head_dim"],
    bias_table: Float[Tensor, "heads table_height table_width"],
    scale: Float[Tensor, " heads"],
    plan: WindowPlan,
    padded_value: Float[Tensor, "heads head_dim"] | None = None,
    dropout: float = 0.0,
    backend: str = SDPA,
    padded_query: Float[Tensor, "heads head_dim"] | None = None,
    chunk_size: int | None = None,
) -> tuple[Float[Tensor, "B H W heads head_dim"], Float[Tensor, "N heads tokens tokens"] | None]:
    """Runs cosine window attention in the chosen form; arguments as in `reference.window_attention`.

    Args:
        backend: A name that `choose_backend` returned. If that form cannot run this very call (the maps' device, dtype
            and size are not known before), the next one that can does.
        padded_query: The query of a filling token. It decides the attention weights of the filling tokens, which are
            part of the weights that are returned, and nothing of the map; zeros if None.
        chunk_size: Windows that attend at a time, so that the weights of no more exist together; None for all of them.
            It changes the memory of the plain form and of torch's operation, and no answer. The kernels and the form
            for a CPU hold less by themselves; what is exported attends in all windows.

    Returns:
        The attended map, and the attention weights where the form has them: the plain one, not in chunks.
    """
    if backend == TRITON:
        call = Call(False, v.device, v.dtype, tuple(v.shape), plan.window, dropout)
        backend = choose_backend(backend, call)
        if backend != TRITON and not torch.compiler.is_compiling():
            _warn_once(f"{backend} runs in place of triton: {_refuse_fused(call)}")
    if chunk_size is not None and _attends_at_once(backend, v, dropout):
        form = _plain_map if backend == EAGER else sdpa.window_attention
        return chunks.window_attention(form, chunk_size, q, k, v, bias_table, scale, plan, padded_value, dropout), None
    if backend == EAGER:
        return reference.window_attention(q, k, v, bias_table, scale, plan, padded_value, dropout, padded_query)
    if backend == SDPA:
        return sdpa.window_attention(q, k, v, bias_table, scale, plan, padded_value, dropout), None
    # Triton is there on few machines, and takes a second to import.
    from swinv2.ops.triton import launch

    return launch.window_attention(q, k, v, bias_table, scale, plan, padded_value), None
