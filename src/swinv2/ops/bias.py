"""From the bias of every relative position to the bias of every pair of tokens and back, in whole runs of the table.

In: the bias table. Out: what is added to the logits of every window; and the other way round the gradient.
`reference.expand_bias` is the plain form.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from swinv2.ops.windows import Pair


def expand_bias(
    bias_table: Float[Tensor, "heads table_height table_width"], window: Pair
) -> Float[Tensor, "heads tokens tokens"]:
    """Looks up the bias of every pair of tokens, as `reference.expand_bias` does, in whole runs of the table.

    Read backwards, the keys of a query lie in the table one after another, and from one query to the next the run
    starts one entry earlier: along the columns first, then the same along the rows.
    """
    height, width = window
    backwards = bias_table.flip(1, 2)
    columns = torch.stack([backwards[:, :, width - 1 - x : 2 * width - 1 - x] for x in range(width)], dim=1)
    rows = torch.stack([columns[:, :, height - 1 - y : 2 * height - 1 - y] for y in range(height)], dim=1)
    return rows.reshape(bias_table.shape[0], height * width, height * width)
