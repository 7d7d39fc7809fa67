"""torchvision's names: `swin_v2_*`.

Data only. Stages and mergings alternate in one list, `features`, after the patch embedding. One tensor is the bias of
queries, keys and values; torchvision sets the part of the keys to zero before each use. The coordinates are always
those of the window itself: torchvision has no pre-training window.

Source: torchvision, models/swin_transformer.py.
"""

from swinv2.convert.dialects import limits
from swinv2.convert.dialects.names import network_rules, window_tables
from swinv2.convert.dialects.rules import Dialect, Rule

_BLOCK = "features.{2*stage+1}.{block}."

TORCHVISION = Dialect(
    name="torchvision",
    title="torchvision",
    rules=(
        *network_rules(
            patches=("features.0.0.", "features.0.2."),
            block=_BLOCK,
            mlp=("mlp.0.", "mlp.3."),
            merge="features.{2*merge+2}.",
            one_bias=True,
        ),
        Rule("head.{part}", ("classifier.{part}",)),
    ),
    limits=(
        limits.extra_norms,
        limits.position_embeddings,
        limits.hidden_padding,
        limits.other_operations,
        limits.missing_biases,
        limits.other_channels,
        limits.clipped_windows,
        limits.pretraining,
        limits.one_token,
    ),
    buffers=window_tables(_BLOCK),
    flat_pairs=True,
    writes_buffers=True,
    takes_any_size=True,
)
