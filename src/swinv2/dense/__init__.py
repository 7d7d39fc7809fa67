"""Models for dense tasks: segmentation and detection by the heads of other libraries, with our backbone."""

from swinv2.dense.answers import Detector, Segmenter
from swinv2.dense.average_precision import Detections, DetectionScores
from swinv2.dense.backbone import load_backbone, set_image_size
from swinv2.dense.heads import HEADS, add_head, from_backbone
from swinv2.dense.saved import load_dense
from swinv2.dense.scores import SegmentationScores
from swinv2.dense.sliding import segment

__all__ = [
    "HEADS",
    "DetectionScores",
    "Detections",
    "Detector",
    "SegmentationScores",
    "Segmenter",
    "add_head",
    "from_backbone",
    "load_backbone",
    "load_dense",
    "segment",
    "set_image_size",
]
