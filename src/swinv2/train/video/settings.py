"""The settings of `swinv2 finetune --task video`, checked.

In: the given values. Out: settings, or a `UsageError`. This module opens no data and builds no model.
"""

from dataclasses import dataclass
from typing import ClassVar

from swinv2.errors import UsageError
from swinv2.train.flags import as_flag
from swinv2.train.options import RunOptions, VideoOptions
from swinv2.train.settings import RunSettings, check_crop_scale, check_mixing, refuse_early_stopping_alone

WITHOUT_EFFECT = ("streaming", "image_column", "label_column", "shuffle_buffer")
"""Settings of other trainings that this one does not have."""


@dataclass
class VideoSettings(VideoOptions, RunSettings):
    """The settings of `swinv2 finetune --task video`."""

    options: ClassVar[type[RunOptions]] = VideoOptions

    def __post_init__(self) -> None:
        if self.task != "video":
            raise UsageError(f"--task is {self.task!r}; expected video.")
        defaults = self.defaults()
        for name in WITHOUT_EFFECT:
            if getattr(self, name) != defaults[name]:
                raise UsageError(f"{as_flag(name)} has no effect with --task video; leave it out.")
        check_crop_scale(self.crop_scale)
        check_mixing(self.mixup, self.cutmix, self.per_device_train_batch_size, self.dataloader_drop_last)
        for name in ("num_frames", "window_frames", "tubelet_size", "eval_clips", "eval_crops"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{as_flag(name)} is {value}; expected at least 1.")
        if self.frame_stride is not None and self.frame_stride < 0:
            raise UsageError(f"--frame-stride is {self.frame_stride}; expected at least 1, or 0 for the whole video.")
        if self.classifier_dropout is not None and not 0.0 <= self.classifier_dropout < 1.0:
            raise UsageError(f"--classifier-dropout is {self.classifier_dropout}; expected from 0 to less than 1.")
        if len(set(self.image_size)) > 1:
            raise UsageError(f"--image-size is {self.image_size}; frames are square here: expected one length.")
        if self.class_weights not in ("", "balanced"):
            raise UsageError(f"--class-weights is {self.class_weights!r}; expected balanced, or nothing.")
        refuse_early_stopping_alone(self.early_stopping, self.load_best_model_at_end)
        super().__post_init__()
        self.label_names = ["labels"]
