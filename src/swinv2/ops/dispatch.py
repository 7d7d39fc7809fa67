"""Which form of window attention runs, and why.

In: the name a user asked for and what the call needs. Out: the form to run. The table is in order of preference and
every refusal is a sentence; nothing is chosen silently.
"""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from swinv2.ops import reference, sdpa
from swinv2.ops.windows import WindowPlan

EAGER, SDPA = "eager", "sdpa"


@dataclass(frozen=True)
class Backend:
    """A form of window attention.

    Attributes:
        name: The `attn_implementation` that asks for it.
        summary: What it is, in half a sentence.
        can_run: Given whether the attention weights are wanted, None or the reason why it cannot run.
    """

    name: str
    summary: str
    can_run: Callable[[bool], str | None]


BACKENDS = (
    Backend(
        SDPA,
        "one pass for each kind of window, no T x T weights kept: torch's scaled_dot_product_attention, or on a CPU "
        "this package's own form, a cacheful of windows at a time",
        lambda wants_weights: "it never holds the attention weights, which were asked for" if wants_weights else None,
    ),
    Backend(EAGER, "plain PyTorch, the specification", lambda wants_weights: None),
)


def choose_backend(requested: str, wants_weights: bool = False) -> str:
    """Picks the form that runs: the requested one, or "eager" where that cannot return what is wanted.

    Args:
        requested: "sdpa" or "eager".
        wants_weights: Whether the attention weights are to be returned.

    Raises:
        ValueError: There is no form of that name.
    """
    names = [backend.name for backend in BACKENDS]
    if requested not in names:
        raise ValueError(f"attn_implementation is {requested!r}; this model has {' and '.join(map(repr, names))}.")
    backend = BACKENDS[names.index(requested)]
    return requested if backend.can_run(wants_weights) is None else EAGER


def explain_backend(requested: str, wants_weights: bool = False) -> str:
    """Says which form of attention a call would run and why each other one would not.

    Example:

        >>> from swinv2.ops.dispatch import explain_backend
        >>> print(explain_backend("sdpa", wants_weights=True))
        eager runs: plain PyTorch, the specification
        sdpa does not: it never holds the attention weights, which were asked for
    """
    chosen = choose_backend(requested, wants_weights)
    lines = [f"{backend.name} runs: {backend.summary}" for backend in BACKENDS if backend.name == chosen]
    for backend in BACKENDS:
        if backend.name != chosen:
            lines.append(f"{backend.name} does not: {backend.can_run(wants_weights) or 'it was not asked for'}")
    return "\n".join(lines)


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
) -> tuple[Float[Tensor, "B H W heads head_dim"], Float[Tensor, "N heads tokens tokens"] | None]:
    """Runs cosine window attention in the chosen form; arguments as in `reference.window_attention`.

    Args:
        backend: A name that `choose_backend` returned.
        padded_query: The query of a filling token. It decides the attention weights of the filling tokens, which are
            part of the weights that are returned, and nothing of the map; zeros if None.

    Returns:
        The attended map, and the attention weights where the form has them.
    """
    arguments = (q, k, v, bias_table, scale, plan, padded_value, dropout)
    if backend == EAGER:
        return reference.window_attention(*arguments, padded_query)
    return sdpa.window_attention(*arguments), None
