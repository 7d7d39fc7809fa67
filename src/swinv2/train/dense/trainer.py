"""Training of segmenters and detectors.

In: settings. Out: a trainer, ready to run. Losses and matching are those of the heads' libraries.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from swinv2.dense.answers import Detector, Segmenter
from swinv2.dense.backbone import backbone_of
from swinv2.dense.detectors import SwinRCNN
from swinv2.dense.saved import DETECTION, INSTANCES, SEGMENTATION, load_dense, make_dense_processor
from swinv2.errors import UsageError
from swinv2.lengths import Pair, as_pair
from swinv2.loading import label_names
from swinv2.train.data.masks.dataset import MaskDataset
from swinv2.train.data.masks.opening import open_masks
from swinv2.train.data.objects.dataset import ObjectDataset
from swinv2.train.data.objects.opening import open_objects
from swinv2.train.dense.augment import for_masks, for_objects
from swinv2.train.dense.choices import with_chosen_dense_settings
from swinv2.train.dense.drawing import Watched
from swinv2.train.dense.evaluate import Scores, evaluate_images
from swinv2.train.dense.examples import DenseExamples, MaskExample, Normalise, ObjectExample, collate_dense
from swinv2.train.dense.settings import DenseSettings, crop_size
from swinv2.train.dense.start import check_resumed, choose_dense_normalisation, choose_image_scale, model_to_train
from swinv2.train.finetune import EarlyStopping
from swinv2.train.running import prepare_run, read_names, refuse_metric, with_evaluation
from swinv2.train.trainer import SwinTrainer

_OF_OBJECTS = ("AP", "AP50", "AP75", "AR100")
METRICS = {
    SEGMENTATION: ("mIoU", "pixel_accuracy", "mean_recall"),
    INSTANCES: _OF_OBJECTS,
    DETECTION: _OF_OBJECTS,
}
"""The metrics by which each task can choose its best model."""


class DenseTrainer(SwinTrainer):
    """Trains a segmenter or a detector, and evaluates it at the size of the images.

    Args:
        settings: Settings of `swinv2 finetune --task ...`.
        class_weights: Weight of each class in the loss of UperNet; None for equal weights.
        rest: See `SwinTrainer`; `eval_dataset` is a `MaskDataset` or `ObjectDataset`.
    """

    args: DenseSettings

    def __init__(self, settings: DenseSettings, class_weights: Tensor | None = None, **rest: Any) -> None:
        super().__init__(settings, collate_dense, **rest)
        # The losses are means; the Trainer would take them for sums if a model accepts any argument.
        self.model_accepts_loss_kwargs = False
        if class_weights is not None:
            self.accelerator.unwrap_model(self.model).class_weights = class_weights
        # The last evaluation, for `report`.
        self._scores: Scores | None = None
        self._watched: Watched | None = None
        if settings.early_stopping:
            self.add_callback(EarlyStopping(settings.early_stopping))

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of the head; of torchvision's detectors, the sum of its parts."""
        images = inputs["pixel_values"]
        rest = {name: value for name, value in inputs.items() if name != "pixel_values"}
        plain: Any = self.accelerator.unwrap_model(model)
        if isinstance(plain, SwinRCNN):
            losses = model(list(images), list(rest["labels"]))
            return torch.stack([loss.float() for loss in losses.values()]).sum()
        return model(pixel_values=images, **rest).loss.sum()

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> Any:
        """Evaluates with the averaged weights, if there is an average. Unreadable images do not count. Each process
        evaluates a share of the images."""
        dataset: Any = eval_dataset or self.eval_dataset
        args, model = self.args, self.accelerator.unwrap_model(self.model)
        chosen = range(args.process_index, len(dataset), args.world_size)
        watched = Watched(label_names(model.config))
        batches = range(-(-len(chosen) // args.per_device_eval_batch_size))
        self.callback_handler.eval_dataloader = batches  # type: ignore[assignment]

        def advance(images: int) -> None:
            self.control = self.callback_handler.on_prediction_step(args, self.state, self.control)

        if args.world_size > 1:
            # Each process has its own statistics of batch norms; those of the first one are saved.
            for buffer in model.buffers():
                torch.distributed.broadcast(buffer, 0)
        with self.not_counted(), self.averaged(), self.compute_loss_context_manager():
            was_training = model.training
            model.eval()
            try:
                scores, unreadable = evaluate_images(
                    self.answers(model),
                    dataset,
                    chosen=chosen,
                    batch_size=args.per_device_eval_batch_size,
                    workers=0,
                    advance=advance,
                    watched=watched,
                )
            finally:
                model.train(was_training)
        self._health.name_broken(unreadable)
        scores, unreadable = self._of_all_processes(scores, unreadable)
        self._scores, self._watched = scores, watched
        found = {name: value for name, value in scores.summary().items() if isinstance(value, (int, float))}
        metrics: dict[str, float] = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        metrics[f"{metric_key_prefix}_unreadable"] = len(unreadable)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(args, self.state, self.control, metrics)
        self.evaluated = self.state.global_step, metrics
        return metrics

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Loads the weights of a checkpoint. The Trainer would not rename tensors as `from_pretrained` does, and would
        leave those of RT-DETR as they are."""
        model = self.model if model is None else model
        try:
            model.load_state_dict(load_dense(resume_from_checkpoint).state_dict())
        except RuntimeError as error:
            raise UsageError(
                f"{resume_from_checkpoint} has another head than these settings make; resume with the --head-fields "
                "and the network of the checkpoint, or begin in another --output-dir."
            ) from error

    def load_best_weights(self) -> None:
        """Loads the weights of the best checkpoint."""
        self._load_from_checkpoint(str(self.state.best_model_checkpoint))

    def answers(self, model: Any) -> Segmenter | Detector:
        """The model as it answers for whole images."""
        args = self.args
        if args.task != SEGMENTATION:
            return Detector(model, self.processing_class)
        window: Any = args.evaluation_window and (args.evaluation_window[0], args.evaluation_window[-1])
        return Segmenter(model, args.image_mean, args.image_std, window or None)

    def _of_all_processes(self, scores: Scores, unreadable: list[str]) -> tuple[Scores, list[str]]:
        """The scores of all images, and all unreadable ones, in all processes."""
        if self.args.world_size == 1:
            return scores, unreadable
        found: list[Any] = [None] * self.args.world_size
        torch.distributed.all_gather_object(found, (scores.state(), unreadable))
        return scores.join([state for state, _ in found]), [name for _, names in found for name in names]

    def report(self) -> dict[str, Any]:
        """Draws the figures of the last evaluation; returns the numbers of each class and the files."""
        if self._scores is None or self._watched is None:
            return {}
        files = self._watched.draw(self._scores, self.run)
        of_classes = {name: value for name, value in self._scores.summary().items() if isinstance(value, dict)}
        return {**of_classes, "figures": list(map(str, files))}


def pixel_weights(counts: np.ndarray) -> Tensor:
    """Weights (classes,) for the loss: 1 / log(1.02 + share of the pixels), at most 50. A class without pixels weighs
    nothing.

    Args:
        counts: Pixels of each class.

    Source:
        Paszke et al., ENet, 2016, section 5.2.
    """
    shares = counts / max(counts.sum(), 1)
    weights = np.where(counts > 0, 1.0 / np.log(1.02 + shares), 0.0)
    return torch.tensor(weights, dtype=torch.float32)


def open_dense_training(settings: DenseSettings) -> tuple[Any, Any]:
    """Opens the images to train on and, if evaluation is wanted, those to evaluate: a split, or a share of the images
    that is set aside, by the names of their files.

    Raises:
        UsageError: The data cannot be opened, or its splits have other classes.
    """
    names = read_names(settings.label_names_file)

    def opened(source: str, split: str) -> Any:
        if settings.task != SEGMENTATION:
            return open_objects(source, split, names=names, needs_masks=settings.task == INSTANCES)
        return open_masks(
            source,
            split,
            names=names,
            ignore_index=settings.ignore_index,
            reduce_labels=settings.reduce_labels,
            image_column=settings.image_column,
            mask_column=settings.mask_column,
        )

    everything = opened(settings.data, settings.train_split)
    train, evaluation = with_evaluation(settings, everything, opened)
    if evaluation is not None:
        evaluation = evaluation.with_names(train.names, "the training data")
    if isinstance(evaluation, ObjectDataset) and not evaluation.counts().sum():
        raise UsageError(
            f"none of the {len(evaluation):,} images to evaluate has an object, so there is no average precision; give "
            "--eval-data, a larger --held-out-share, or --eval-strategy no."
        )
    return train, evaluation


def make_dense_training(
    settings: DenseSettings,
    build: Callable[[DenseSettings, tuple[str, ...]], Any] = model_to_train,
    trainer_class: type[DenseTrainer] = DenseTrainer,
) -> DenseTrainer:
    """Builds the trainer of a segmenter or detector, with its model and its data.

    Args:
        settings: The settings.
        build: Builds the model for the names of the classes; benchmarks give another one.
        trainer_class: The class of the trainer.

    Raises:
        UsageError: The settings, the data and the model do not fit together.
    """
    prepare_run(settings)
    train, evaluation = open_dense_training(settings)
    if settings.resume_from_checkpoint:
        check_resumed(settings, train.names)
    choose_dense_normalisation(settings)
    if settings.choose_settings:
        settings = with_chosen_dense_settings(settings, train)
    choose_image_scale(settings)
    refuse_metric(settings, METRICS[settings.task])
    model = build(settings, train.names)
    if settings.task == SEGMENTATION:
        model.config.image_scale = settings.image_scale
    size = crop_size(settings) or as_pair("image_size", backbone_of(model).config.image_size)
    resizing: Any = model.detector.transform if isinstance(model, SwinRCNN) else None
    sides = None if resizing is None else (resizing.min_size[-1], resizing.max_size)
    weights = None
    if settings.class_weights:
        assert isinstance(train, MaskDataset)
        weights = pixel_weights(train.count_pixels())
    return trainer_class(
        settings,
        weights,
        model=model,
        train_dataset=DenseExamples(train, _example(settings, train, size, sides), settings.seed),
        eval_dataset=evaluation,
        processing_class=make_dense_processor(model, size, settings.image_mean, settings.image_std),
    )


def _example(settings: DenseSettings, train: MaskDataset | ObjectDataset, size: Pair, sides: Pair | None) -> Any:
    """What makes the examples of a training.

    Args:
        settings: The settings.
        train: The images.
        size: Height and width of the images that the model takes.
        sides: Shorter and longest side to which a detector resizes images itself; None if it does not.
    """
    mean, std = tuple(settings.image_mean), tuple(settings.image_std)
    usual: Any = {"flip": settings.flip, "color_jitter": settings.color_jitter, "scale_range": settings.scale_range}
    if isinstance(train, MaskDataset):
        augment = for_masks(size, mean, most_of_a_class=settings.most_of_a_class, **usual)
        return MaskExample(train, augment, Normalise(mean, std), settings.head == "mask2former")
    augment = for_objects(sides or size, mean, resizes_itself=sides is not None, **usual)
    normalise = Normalise(None, None) if sides is not None else Normalise(mean, std)
    return ObjectExample(train, augment, normalise, settings.head)
