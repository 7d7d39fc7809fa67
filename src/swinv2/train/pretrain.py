"""SimMIM pre-training: the model reconstructs masked patches.

In: settings. Out: a trainer, ready to run. `swinv2.simmim` makes masks and targets; the model computes the loss.

Source: Xie et al., SimMIM (arXiv 2111.09886); Liu et al., Swin Transformer V2, section 3.5 and appendix A2.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerState

from swinv2.config import Swinv2Config
from swinv2.errors import UsageError
from swinv2.lengths import as_pair
from swinv2.simmim import average_distance, draw_mask, mask_of_pixels, patch_grid_of
from swinv2.train.data.augment import Pixels, for_evaluation, for_pretraining
from swinv2.train.data.examples import EvaluationExamples, SampleTransform, collate
from swinv2.train.optim.groups import freeze_stages
from swinv2.train.running import data_arguments, open_training, prepare_run, refuse_metric
from swinv2.train.settings import PretrainSettings
from swinv2.train.start import model_to_pretrain
from swinv2.train.trainer import SwinTrainer

FIGURE_NAME = "reconstructions.png"
MEASURED_MASKS = 8
"""Number of masks whose mean AvgDist is logged."""


class PretrainTrainer(SwinTrainer):
    """Trains with the loss of the model, and logs AvgDist: how far masked pixels are from visible ones."""

    args: PretrainSettings

    _masks: Tensor | None = None

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Keeps the masks of the batch for the log."""
        self._masks = inputs["bool_masked_pos"]
        return super().training_step(model, inputs, num_items_in_batch)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds AvgDist of the last batch."""
        if "loss" in logs and self._masks is not None:
            config = self.accelerator.unwrap_model(self.model).config
            patch, size = as_pair("patch_size", config.patch_size), as_pair("image_size", config.image_size)
            masks = mask_of_pixels(self._masks[:MEASURED_MASKS].cpu(), patch, size)[:, 0]
            logs["avg_distance"] = round(sum(average_distance(mask) for mask in masks) / len(masks), 4)
        super().log(logs, start_time)


@dataclass(eq=False)
class ReconstructionFigure(TrainerCallback):
    """Draws the reconstructions of the same images and masks at every checkpoint; `pixels` is their normalisation."""

    trainer: PretrainTrainer
    batch: dict[str, Any]
    pixels: Pixels

    def on_save(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Draws the reconstructions of the same few images at every checkpoint."""
        from swinv2.train.drawing.reconstructions import draw_reconstructions

        if not state.is_world_process_zero or self.trainer.is_fsdp_enabled:
            return
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        images, masks = (self.batch[name].to(args.device) for name in ("pixel_values", "bool_masked_pos"))
        was_training = model.training
        with self.trainer.not_counted(), torch.no_grad(), self.trainer.averaged():
            drawn = model.eval()(images, bool_masked_pos=masks).reconstruction
            model.train(was_training)
            hidden = mask_of_pixels(masks, as_pair("patch_size", model.config.patch_size), self.pixels.size)
            path = self.trainer.run / FIGURE_NAME
            draw_reconstructions(images, drawn, hidden, path, self.pixels, model.config.norm_targets)


def mask_maker(config: Swinv2Config, block: int, ratio: float) -> Callable[[], Tensor]:
    """The function that draws the mask of an example: a share `ratio` of its blocks, of `block` pixels a side.

    Raises:
        UsageError: The block is no multiple of the patch size, or the whole image or nothing of it would be masked.
    """
    patch, size = as_pair("patch_size", config.patch_size), as_pair("image_size", config.image_size)
    if not 0.0 < ratio < 1.0:
        raise UsageError(f"the mask ratio is {ratio}; expected above 0 and below 1.")
    if block % patch[0] or block % patch[1] or block < max(patch):
        raise UsageError(f"the mask block is {block}; expected a multiple of the patch size, {patch}.")
    draw = partial(draw_mask, patch_grid_of(size, patch), (block // patch[0], block // patch[1]), ratio)
    if bool(draw().all()):
        raise UsageError(
            f"a mask block of {block} and a mask ratio of {ratio} mask the whole image of {size}; give a smaller "
            "--mask-block or --mask-ratio."
        )
    return draw


def make_pretraining(settings: PretrainSettings) -> PretrainTrainer:
    """Builds the trainer of a pre-training, with its model and its data.

    Raises:
        UsageError: The settings, the data and the model do not fit together.
    """
    prepare_run(settings)
    refuse_metric(settings, ["loss"])
    model = model_to_pretrain(settings)
    freeze_stages(model, settings.frozen_stages)
    pixels = Pixels(as_pair("image_size", model.config.image_size), settings.image_mean, settings.image_std)
    masks = mask_maker(model.config, settings.mask_block, settings.mask_ratio)
    train, evaluation = open_training(settings, needs_labels=False)
    augment = for_pretraining(pixels, settings.crop_scale)
    arguments = data_arguments(settings, train, evaluation, pixels, augment, masks)
    trainer = PretrainTrainer(settings, model=model, **arguments)
    shown = evaluation or train
    if settings.grid_images and not shown.streams:
        plain = SampleTransform(for_evaluation(pixels), pixels.channels, masks, settings.seed)
        examples = EvaluationExamples(shown, plain)
        batch = collate([examples[index] for index in range(min(settings.grid_images, len(examples)))])
        trainer.add_callback(ReconstructionFigure(trainer, batch, pixels))
    return trainer
