"""The names of the authors' code: classifiers, backbones, and SimMIM's pre-trained models.

Data only. SimMIM's files have the same network under `encoder.`, a mask token and a decoder. In older files the small
network of the position bias is called `rpe_mlp`. The authors' files also contain tensors that follow from sizes:
coordinates, pair indices and, for each shifted block, a mask of regions.

Source: microsoft/Swin-Transformer, models/swin_transformer_v2.py, models/simmim.py, utils_simmim.py.
"""

from swinv2.convert.dialects import limits
from swinv2.convert.dialects.names import network_rules, window_tables
from swinv2.convert.dialects.rules import MODEL, Dialect, Rule

_BLOCK = "layers.{stage}.blocks.{block}."
_LIMITS = (
    limits.extra_norms,
    limits.hidden_padding,
    limits.other_operations,
    limits.rectangles,
    limits.several_windows,
    limits.rectangular_pretraining,
    limits.padding,
    limits.one_token,
)
_NETWORK = (
    *network_rules(bias_network=("cpb_mlp.", "rpe_mlp.")),
    Rule("absolute_pos_embed", (f"{MODEL}embeddings.position_embeddings",)),
)
_BUFFERS = (*window_tables(_BLOCK), ("regions", f"{_BLOCK}attn_mask"))

MICROSOFT = Dialect(
    name="microsoft",
    title="the authors' code",
    rules=(*_NETWORK, Rule("head.{part}", ("classifier.{part}",))),
    limits=_LIMITS,
    buffers=_BUFFERS,
    writes_buffers=True,
)

SIMMIM = Dialect(
    name="simmim",
    title="the authors' code for SimMIM",
    rules=(
        *(rule.under("encoder.") for rule in _NETWORK),
        Rule("encoder.mask_token", (f"{MODEL}embeddings.mask_token",)),
        Rule("decoder.0.{part}", ("decoder.0.{part}",)),
    ),
    limits=(*_LIMITS, limits.other_channels),
    buffers=tuple((kind, f"encoder.{template}") for kind, template in _BUFFERS),
    writes_buffers=True,
)
