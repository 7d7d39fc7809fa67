"""The settings of `swinv2 finetune --task ...`, checked.

In: the given values. Out: settings, or a `UsageError`. This module opens no data and builds no model.
"""

from dataclasses import dataclass
from typing import ClassVar

from swinv2.dense.heads import HEADS_OF
from swinv2.errors import UsageError
from swinv2.lengths import Pair
from swinv2.train.flags import as_flag
from swinv2.train.options import DenseOptions, RunOptions
from swinv2.train.settings import RunSettings, refuse_early_stopping_alone

WITHOUT_EFFECT = ("streaming", "label_column", "label_smoothing_factor", "shuffle_buffer")
"""Settings of other trainings that these ones do not have."""

OF_MASKS = (
    "class_weights",
    "evaluation_window",
    "ignore_index",
    "image_column",
    "image_scale",
    "mask_column",
    "most_of_a_class",
    "reduce_labels",
)
"""Settings of --task segmentation alone."""


@dataclass
class DenseSettings(DenseOptions, RunSettings):
    """The settings of `swinv2 finetune --task ...`."""

    options: ClassVar[type[RunOptions]] = DenseOptions

    def __post_init__(self) -> None:
        if self.task not in HEADS_OF:
            raise UsageError(
                f"--task is {self.task!r}; expected {', '.join(HEADS_OF)} or video. Without --task, a classifier of "
                "images is trained."
            )
        heads = HEADS_OF[self.task]
        self.head = self.head or heads[0]
        if self.head not in heads:
            raise UsageError(f"--head is {self.head!r}; for --task {self.task} expected {' or '.join(heads)}.")
        defaults = self.defaults()
        for name in WITHOUT_EFFECT:
            if getattr(self, name) != defaults[name]:
                raise UsageError(f"{as_flag(name)} has no effect with --task; leave it out.")
        for name in OF_MASKS:
            if self.task != "segmentation" and getattr(self, name) != defaults[name]:
                raise UsageError(f"{as_flag(name)} is for --task segmentation; leave it out.")
        self._check_numbers()
        if self.class_weights not in ("", "balanced"):
            raise UsageError(f"--class-weights is {self.class_weights!r}; expected balanced, or nothing.")
        if self.class_weights and self.head != "upernet":
            raise UsageError(f"--class-weights is for --head upernet; {self.head} has a loss of its own. Leave it out.")
        if self.head == "upernet" and self.per_device_train_batch_size < 2:
            raise UsageError(
                "--per-device-train-batch-size is 1, and UperNet normalises over the batch; give at least 2."
            )
        if self.head == "upernet":
            # The last batch of an epoch may have a single image otherwise.
            self.dataloader_drop_last = True
        refuse_early_stopping_alone(self.early_stopping, self.load_best_model_at_end)
        super().__post_init__()
        if self.n_gpu > 1:
            raise UsageError(
                f"this process sees {self.n_gpu} GPUs, and one process uses one for a segmenter or detector; start "
                "`torchrun --nproc-per-node N -m swinv2 finetune ...`, or choose one GPU with CUDA_VISIBLE_DEVICES."
            )

    def _check_numbers(self) -> None:
        """Raises an error for a number that is out of its range."""
        low_high = self.scale_range
        if len(low_high) != 2 or not 0.0 < low_high[0] <= low_high[1]:
            raise UsageError(
                f"--scale-range is {list(low_high)}; expected two factors, the smaller first, such as 0.5 2.0."
            )
        if not 0.1 <= self.image_scale <= 10.0:
            raise UsageError(f"--image-scale is {self.image_scale}; expected a factor from 0.1 to 10, such as 1.5.")
        if not 0.0 < self.most_of_a_class <= 1.0:
            raise UsageError(f"--most-of-a-class is {self.most_of_a_class}; expected above 0 and at most 1.")
        if not 0.0 <= self.flip <= 1.0:
            raise UsageError(f"--flip is {self.flip}; expected a probability.")
        if self.color_jitter < 0:
            raise UsageError(f"--color-jitter is {self.color_jitter}; expected at least 0.")
        if self.backbone_rate <= 0:
            raise UsageError(f"--backbone-rate is {self.backbone_rate}; expected a factor above 0.")


def crop_size(settings: DenseSettings) -> Pair | None:
    """--image-size as (height, width); None if it is not given."""
    given = settings.image_size
    return (given[0], given[-1]) if given else None
