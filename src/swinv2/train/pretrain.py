"""SimMIM pre-training: the model reconstructs masked patches.

In: settings. Out: a trainer, ready to run. `swinv2.simmim` makes masks and targets; the model computes the loss.

Source: Xie et al., SimMIM (arXiv 2111.09886); Liu et al., Swin Transformer V2, section 3.5 and appendix A2.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from swinv2.config import Swinv2Config
from swinv2.errors import UsageError
from swinv2.lengths import as_pair
from swinv2.simmim import average_distance, draw_mask, grid_of, mask_of_pixels
from swinv2.train.data.augment import Pixels, for_evaluation, for_pretraining, make_processor
from swinv2.train.data.dataset import ImageDataset
from swinv2.train.data.examples import EvaluationExamples, SampleTransform, collate
from swinv2.train.optim.groups import freeze_stages
from swinv2.train.running import examples_to_train, open_training, pixels_of
from swinv2.train.settings import PretrainSettings
from swinv2.train.start import start_pretraining
from swinv2.train.trainer import SwinTrainer

GRID_NAME = "reconstructions.png"
MEASURED_MASKS = 8
"""Number of masks whose mean AvgDist is logged."""


class PretrainTrainer(SwinTrainer):
    """Trains with the loss of the model, and logs AvgDist: how far masked pixels are from visible ones."""

    args: PretrainSettings

    def __init__(self, settings: PretrainSettings, **rest: Any) -> None:
        super().__init__(settings, **rest)
        self._masks: Tensor | None = None

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The model's own loss."""
        self._masks = inputs["bool_masked_pos"]
        outputs = model(pixel_values=inputs["pixel_values"], bool_masked_pos=inputs["bool_masked_pos"])
        return (outputs.loss, {"loss": outputs.loss}) if return_outputs else outputs.loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds AvgDist of the last batch."""
        if "loss" in logs and self._masks is not None:
            config = self.accelerator.unwrap_model(self.model).config
            patch, size = as_pair("patch_size", config.patch_size), as_pair("image_size", config.image_size)
            masks = mask_of_pixels(self._masks[:MEASURED_MASKS].cpu(), patch, size)[:, 0]
            logs["avg_distance"] = round(sum(average_distance(mask) for mask in masks) / len(masks), 4)
        super().log(logs, start_time)


class ReconstructionFigure(TrainerCallback):
    """Draws the reconstructions of the same images at every checkpoint.

    Args:
        trainer: The trainer of the model.
        batch: Images and masks.
        pixels: The normalisation of the images.
    """

    def __init__(self, trainer: PretrainTrainer, batch: dict[str, Any], pixels: Pixels) -> None:
        self.trainer, self.batch, self.pixels = trainer, batch, pixels

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        from swinv2.train.drawing.reconstructions import draw_reconstructions

        if not state.is_world_process_zero or self.trainer.is_fsdp_enabled:
            return
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        images = self.batch["pixel_values"].to(args.device)
        masks = self.batch["bool_masked_pos"].to(args.device)
        was_training = model.training
        with self.trainer.not_counted(), torch.no_grad(), self.trainer.averaged():
            model.eval()
            drawn = model(images, bool_masked_pos=masks).reconstruction
            model.train(was_training)
            patch = as_pair("patch_size", model.config.patch_size)
            draw_reconstructions(
                images.cpu(),
                drawn.float().cpu(),
                mask_of_pixels(masks.cpu(), patch, self.pixels.size),
                self.trainer.run / GRID_NAME,
                self.pixels,
                model.config.norm_targets,
            )


def mask_maker(config: Swinv2Config, block: int, ratio: float) -> Callable[[], Tensor]:
    """The function that draws the mask of an example.

    Args:
        config: Configuration of the model.
        block: Side of a masked block in pixels.
        ratio: Share of the blocks that are masked.

    Raises:
        UsageError: The block is no multiple of the patch size, or the whole image or nothing of it would be masked.
    """
    patch, size = as_pair("patch_size", config.patch_size), as_pair("image_size", config.image_size)
    if not 0.0 < ratio < 1.0:
        raise UsageError(f"the mask ratio is {ratio}; expected above 0 and below 1.")
    if block % patch[0] or block % patch[1] or block < max(patch):
        raise UsageError(f"the mask block is {block}; expected a multiple of the patch size, {patch}.")
    draw = partial(draw_mask, grid_of(size, patch), (block // patch[0], block // patch[1]), ratio)
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
    torch.manual_seed(settings.seed)
    model = start_pretraining(settings)
    freeze_stages(model, settings.frozen_stages)
    pixels = pixels_of(model.config, settings.image_mean, settings.image_std)
    masks = mask_maker(model.config, settings.mask_block, settings.mask_ratio)
    train, evaluation = open_training(settings)
    transform = SampleTransform(for_pretraining(pixels, settings.crop_scale), pixels.channels, masks, settings.seed)
    plain = SampleTransform(for_evaluation(pixels), pixels.channels, masks, settings.seed)
    trainer = PretrainTrainer(
        settings,
        model=model,
        processing_class=make_processor(pixels),
        train_dataset=examples_to_train(settings, _unlabelled(train), transform),
        eval_dataset=None if evaluation is None else EvaluationExamples(_unlabelled(evaluation), plain),
    )
    if settings.grid_images:
        shown = evaluation or train
        if not shown.streams:
            examples = EvaluationExamples(_unlabelled(shown), plain)
            batch = collate([examples[index] for index in range(min(settings.grid_images, len(examples)))])
            trainer.add_callback(ReconstructionFigure(trainer, batch, pixels))
    return trainer


def _unlabelled(dataset: ImageDataset) -> ImageDataset:
    return replace(dataset, label_column=None, names=())
