"""timm's names: `swinv2_*`.

Data only. timm merges at the start of a stage, the authors at the end of the stage before; timm's classifier is
`head.fc`. timm's files contain learned tensors only, so the window is known only from the name of the architecture.

Source: timm, models/swin_transformer_v2.py.
"""

from swinv2.convert.dialects import limits
from swinv2.convert.dialects.names import network_rules, window_tables
from swinv2.convert.dialects.rules import Dialect, Rule

_BLOCK = "layers.{stage}.blocks.{block}."

TIMM = Dialect(
    name="timm",
    title="timm",
    rules=(
        *network_rules(merge="layers.{merge+1}.downsample."),
        Rule("head.fc.{part}", ("classifier.{part}",)),
    ),
    limits=(
        limits.extra_norms,
        limits.position_embeddings,
        limits.hidden_padding,
        limits.other_operations,
        limits.padding,
    ),
    buffers=(
        *window_tables(_BLOCK),
        ("regions", f"{_BLOCK}attn_mask"),
        ("key bias", f"{_BLOCK}attn.k_bias"),
    ),
)
