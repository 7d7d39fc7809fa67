"""Models for dense tasks: segmentation and detection by the heads of other libraries, with our backbone."""

from swinv2.dense.backbone import load_backbone
from swinv2.dense.heads import HEADS, add_head, from_backbone

__all__ = ["HEADS", "add_head", "from_backbone", "load_backbone"]
