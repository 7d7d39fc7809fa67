"""transformers' Trainer, extended for Swin Transformer V2 and for long runs.

In: a model, examples and settings. Out: checkpoints, logs and the trained model. It adds:

- the authors' parameter groups and schedules (`optim/groups.py`, `optim/schedule.py`), and an average of the weights;
- order and randomness that depend only on seed, epoch and step: a run that resumes takes the same steps as a run that
  was never stopped;
- checkpoints that are written atomically (`checkpoints.py`), an error before NaN reaches a checkpoint and a count of
  unreadable images (`health.py`), a checkpoint on SIGTERM.

`pretrain.py` and `finetune.py` compute the loss.
"""

import copy
import logging
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter
from transformers import Trainer, TrainerCallback, TrainerControl
from transformers.trainer import TRAINER_STATE_NAME
from transformers.training_args import OptimizerNames

from swinv2.errors import UsageError, first_sentence
from swinv2.model import Swinv2PreTrainedModel
from swinv2.train.checkpoints import prune, whole_checkpoint
from swinv2.train.data.examples import ShuffledBatches, StreamedExamples, collate, make_seed, seed_everything
from swinv2.train.health import HealthCheck
from swinv2.train.optim.ema import WeightAverage
from swinv2.train.optim.groups import parameter_groups, without_names
from swinv2.train.optim.muon import MuonAdamW
from swinv2.train.optim.schedule import make_scheduler
from swinv2.train.settings import RunSettings
from swinv2.train.signals import ignore_signals

logger = logging.getLogger(__name__)

STEPS_BETWEEN_QUESTIONS = 8
"""On several accelerators, the processes ask each other every so many steps whether one got a signal."""


@dataclass(eq=False)
class TrainingEvents(TrainerCallback):
    """Passes events to the trainer that the Trainer sends only to callbacks."""

    trainer: "SwinTrainer"

    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **_: Any) -> None:
        self.trainer.end_step(control)

    def on_epoch_end(self, args: Any, state: Any, control: TrainerControl, **_: Any) -> None:
        """After a signal, leaves log, evaluation and save of the epoch to the resumed run."""
        if self.trainer.stopping:
            # The run stops inside the epoch. The log, evaluation and save of its end follow after the run resumes.
            control.should_log = control.should_evaluate = control.should_save = False


class SwinTrainer(Trainer):
    """Trains any model of this package.

    Args:
        settings: Settings of `swinv2 pretrain` or `swinv2 finetune`.
        data_collator: Makes a batch of examples.
        rest: Other arguments of transformers' Trainer, except `args`.
    """

    args: RunSettings
    model: Any
    things = "images"
    """What the examples are, in messages."""

    def __init__(self, settings: RunSettings, data_collator: Any = collate, **rest: Any) -> None:
        try:
            super().__init__(args=settings, data_collator=data_collator, **rest)
        # Trackers that are not installed raise these.
        except (ImportError, RuntimeError) as error:
            if not settings.report_to:
                raise
            raise _tracker_error(error) from error
        for callback in self.callback_handler.callbacks:
            if type(callback).__module__.startswith("transformers.integrations"):
                callback.on_train_begin = partial(_start_tracker, callback.on_train_begin)
        self.run = settings.run
        # FSDP changes the class of the model.
        self._model_class: Any = type(self.model)
        if self.is_fsdp_enabled and not isinstance(self.model, Swinv2PreTrainedModel):
            raise UsageError("--fsdp shards models without LoRA and without --task only; leave one of them out.")
        if self.is_fsdp_enabled and settings.matrix_learning_rate:
            raise UsageError("--matrix-learning-rate and --fsdp do not work together: Muon needs whole matrices.")
        if self.is_fsdp_enabled and settings.ema_decay:
            raise UsageError("ema_decay needs a complete copy of the model, and FSDP shards it; leave one of them out.")
        self.average = WeightAverage(self.model, settings.ema_decay) if settings.ema_decay else None
        self._staging: Path | None = None
        self._batches: ShuffledBatches | None = None
        self._health = HealthCheck(self.run, settings.device, settings.max_broken_images, self.things)
        # Images since the last log of a training step, and the time from which they count.
        self._seen, self._counted_from = 0, time.perf_counter()
        self._epoch_iterator: Any = None
        self._micro_step = 0
        self._step_loss: Tensor | None = None
        self._last_loss: Tensor | None = None
        # The step and the metrics of the last evaluation.
        self.evaluated: tuple[int, dict[str, float]] | None = None
        self.signal: int | None = None
        self.stopping = self.has_begun = False
        self.add_callback(TrainingEvents(self))

    def create_accelerator_and_postprocess(self) -> None:
        """Makes FSDP work on CPUs too; accelerate would silently replicate the model there."""
        super().create_accelerator_and_postprocess()
        state = self.accelerator.state
        options: dict[str, Any] | None = self.args.fsdp_plugin_args
        if options is None or self.accelerator.distributed_type != DistributedType.MULTI_CPU:
            return
        plugin = FullyShardedDataParallelPlugin(**options)
        if self.accelerator.mixed_precision != "no":
            plugin.set_mixed_precision(self.accelerator.mixed_precision)
        state.fsdp_plugin, state.distributed_type = plugin, DistributedType.FSDP
        self.is_fsdp_enabled = True

    # Examples

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[dict[str, Any]]:
        """Batches to evaluate, of all images: `--dataloader-drop-last` is for training."""
        drops, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            loader: Any = super().get_eval_dataloader(eval_dataset)
        finally:
            self.args.dataloader_drop_last = drops
        # accelerate's loader reads from the original one.
        ignore_signals(getattr(loader, "base_dataloader", loader))
        return loader

    def get_train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Batches of this process. They are distributed here, not by accelerate."""
        examples: Any = self.train_dataset
        args = self.args
        options: dict[str, Any] = {
            "collate_fn": self.data_collator,
            "num_workers": args.dataloader_num_workers,
            "pin_memory": args.dataloader_pin_memory and args.device.type != "cpu",
            "persistent_workers": args.dataloader_persistent_workers,
            "prefetch_factor": args.dataloader_prefetch_factor,
            "multiprocessing_context": args.dataloader_multiprocessing_context,
            # A separate generator: a loader draws a seed for its workers, which must not change the global generator.
            "generator": torch.Generator().manual_seed(args.seed),
        }
        if isinstance(examples, StreamedExamples):
            options |= {"batch_size": self._train_batch_size, "drop_last": args.dataloader_drop_last}
        else:
            order = args.seed, args.process_index, args.world_size, args.dataloader_drop_last
            self._batches = options["batch_sampler"] = ShuffledBatches(len(examples), self._train_batch_size, *order)
        loader = DataLoader(examples, **options)
        ignore_signals(loader)
        return loader

    def _run_epoch(self, **rest: Any) -> None:
        """Tells the sampler the epoch, takes no step beyond the last one, and stops the workers."""
        if not self.has_begun:
            self.has_begun, self._counted_from = True, time.perf_counter()
        # The Trainer looks only after a step; without this, a finished run that resumes takes one more.
        if self.state.global_step >= self.state.max_steps or self.control.should_training_stop:
            self.control.should_training_stop = True
            return
        if self._batches is not None:
            self._batches.epoch = rest["epoch"]
        try:
            super()._run_epoch(**rest)
        finally:
            # With persistent workers, the loader uses its iterator again in the next epoch.
            if self._epoch_iterator is not getattr(rest["train_dataloader"], "_iterator", None):
                self._stop_workers()

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """Stores the iterator of this epoch, so that its workers can be stopped."""
        self._epoch_iterator = epoch_iterator
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def train(self, *args: Any, **rest: Any) -> Any:
        """Trains, and stops the workers at the end."""
        try:
            return super().train(*args, **rest)
        finally:
            self._stop_workers()

    def _stop_workers(self) -> None:
        """Stops the processes that read images."""
        # The garbage collector may never do it: a stored traceback of an error inside an epoch, for example in
        # matplotlib's cache of parsed labels, keeps the epoch's iterator and its workers alive.
        iterator, self._epoch_iterator = self._epoch_iterator, None
        if isinstance(iterator, _MultiProcessingDataLoaderIter):
            iterator._shutdown_workers()
        elif isinstance(iterator, Generator):
            iterator.close()

    # Optimisation

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Builds `--optim` with the groups of `groups.parameter_groups`, or Muon for `--matrix-learning-rate`."""
        args, learner = self.args, model or self.model
        if self.optimizer is None and args.matrix_learning_rate:
            self.optimizer = MuonAdamW(learner, args.matrix_learning_rate, args.learning_rate, args.weight_decay)
        elif self.optimizer is None:
            groups = groups_of(args, learner)
            try:
                kind, options = self.get_optimizer_cls_and_kwargs(args, self.model)
                self.optimizer = kind(without_names(groups), **options)
            # A library that is not installed, or options that the optimizer does not have.
            except (ImportError, ValueError, TypeError, RuntimeError) as error:
                raise UsageError(
                    f"--optim {OptimizerNames(args.optim).value} cannot be used: {first_sentence(error)}."
                ) from error
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Builds transformers' `--lr-scheduler-type`, or the drops at `--milestones`."""
        args: Any = self.args
        if self.lr_scheduler is None:
            options, warmup = args.lr_scheduler_kwargs or {}, args.get_warmup_steps(num_training_steps)
            kind, milestones = args.lr_scheduler_type, args.milestones
            self.lr_scheduler = make_scheduler(
                optimizer or self.optimizer, kind, options, milestones, warmup, num_training_steps
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Removes the names of unreadable images from a batch."""
        # No model takes the names of unreadable images.
        return super()._prepare_inputs({name: value for name, value in inputs.items() if name != "broken"})

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """One forward and backward pass, with a seed that depends on the step."""
        step = self.state.global_step
        # Every process has its own drop path. Mixup and drop path do not depend on earlier random numbers.
        seed_everything(make_seed(self.args.seed, step, self._micro_step, self.args.process_index))
        self._micro_step += 1
        self._health.count_broken(inputs["broken"])
        self._seen += len(inputs["pixel_values"])
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._health.check_loss(loss, step)
        self._step_loss = loss if self._step_loss is None else self._step_loss + loss
        return loss

    def end_step(self, control: TrainerControl) -> None:
        """Updates the average of the weights, and stops the training after a signal."""
        self._last_loss, self._step_loss, self._micro_step = self._step_loss, None, 0
        if self.average is not None:
            self.average.update_parameters(self.accelerator.unwrap_model(self.model))
        if self._somebody_was_signalled():
            self.stopping = control.should_save = control.should_training_stop = True

    def _get_learning_rate(self) -> float:
        """The highest rate of a layer, for logs; the Trainer's own is that of the first layers."""
        groups: list[dict[str, Any]] = self.optimizer.param_groups
        return max(float(group["lr"]) for group in groups)

    def describe_step(self) -> str:
        """Text with loss and learning rate of the last step; empty before the end of the first step."""
        if self._last_loss is None:
            return ""
        return f"loss {float(self._last_loss):.4g}, rate {self._get_learning_rate():.3g}"

    def note_signal(self, number: int) -> None:
        """Makes the training save a checkpoint and stop after the current step."""
        self.signal = number

    def _somebody_was_signalled(self) -> bool:
        """Whether a process of the training got a signal; all processes get the same answer."""
        if self.args.world_size == 1:
            return self.signal is not None
        # Reading a number from a GPU waits for all its work.
        if self.args.device.type != "cpu" and self.state.global_step % STEPS_BETWEEN_QUESTIONS:
            return False
        # All processes must stop at the same step.
        told = torch.tensor(self.signal or 0, device=self.args.device)
        torch.distributed.all_reduce(told, torch.distributed.ReduceOp.MAX)
        # A signal that arrives after the exchange counts at the next one.
        agreed = int(told)
        self.signal = agreed or self.signal
        return agreed > 0

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the images per second of all processes since the last log of a training step."""
        self._health.refuse_divergence(self.state.global_step)
        if "loss" in logs:
            now = time.perf_counter()
            seconds, images = now - self._counted_from, self._seen * self.args.world_size
            logs["images_per_second"] = round(images / seconds, 3) if seconds > 0 else 0.0
            self._seen, self._counted_from = 0, now
        super().log(logs, start_time)

    @contextmanager
    def not_counted(self) -> Iterator[None]:
        """Leaves the time spent inside out of the images per second."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._counted_from += time.perf_counter() - start

    # Evaluation

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the model has the averaged weights, if there is an average."""
        model = self.accelerator.unwrap_model(self.model)
        with nullcontext() if self.average is None else self.average.replacing(model):
            yield

    def evaluate(self, *args: Any, **rest: Any) -> dict[str, float]:
        """Evaluates with the averaged weights, if there is an average. Unreadable images do not count."""
        with self.not_counted(), self.averaged():
            metrics = super().evaluate(*args, **rest)
        self.evaluated = self.state.global_step, metrics
        return metrics

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **rest: Any) -> Any:
        """Evaluates a batch, and names its unreadable images."""
        self._health.name_broken(inputs["broken"])
        return super().prediction_step(model, inputs, *args, **rest)

    def evaluate_final(self) -> dict[str, float]:
        """The evaluation of the final weights: the last one, if it was of these weights."""
        if self.evaluated is not None and self.evaluated[0] == self.state.global_step:
            return self.evaluated[1]
        return self.evaluate()

    def report(self) -> dict[str, Any]:
        """Draws figures of the last evaluation; returns what they show, for the results, and the files."""
        return {}

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Of equal evaluations, the later one is the best: its learning rate was smaller."""
        name = str(self.args.metric_for_best_model)
        if metrics.get(f"eval_{name.removeprefix('eval_')}") == self.state.best_metric:
            # The Trainer then takes the new one for the first one.
            self.state.best_metric = None
        return super()._determine_best_metric(metrics, trial)

    # Checkpoints

    def _get_output_dir(self, trial: Any) -> str:
        """The temporary folder while a checkpoint is written."""
        return super()._get_output_dir(trial) if self._staging is None else str(self._staging)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Writes and seals a checkpoint atomically, after a check of the weights; deletes old ones."""
        self._health.refuse_broken_weights(self.model, self.state.global_step)
        final = self.run / f"checkpoint-{self.state.global_step}"
        with self.not_counted():
            with whole_checkpoint(final, self.args.should_save) as folder:
                # The Trainer appends the checkpoint's name to the folder of `_get_output_dir`.
                self._staging = folder.parent
                try:
                    super()._save_checkpoint(model, trial)
                finally:
                    self._staging = None
                if self.args.should_save:
                    # LoRA's checkpoints have no configuration, in which a run that resumes finds the classes.
                    self.accelerator.unwrap_model(self.model).config.save_pretrained(folder)
                best = self.state.best_model_checkpoint
                if best is not None and Path(best) == folder:
                    self.state.best_model_checkpoint = str(final)
                    if self.args.should_save:
                        self.state.save_to_json(str(folder / TRAINER_STATE_NAME))
                self.accelerator.wait_for_everyone()
            if self.args.should_save:
                prune(self.run, self.args.save_total_limit, self.state.best_model_checkpoint)
            self.accelerator.wait_for_everyone()

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Also saves the average of the weights."""
        super()._save_optimizer_and_scheduler(output_dir)
        if self.average is not None and self.args.should_save:
            self.average.save(Path(output_dir))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Also loads the average of the weights, and keeps the given learning rates."""
        if checkpoint is None:
            return
        told = self._rates_and_decays()
        try:
            super()._load_optimizer_and_scheduler(checkpoint)
        # torch raises it if the groups differ from those of the checkpoint.
        except ValueError as error:
            raise UsageError(
                f"{checkpoint} does not fit these settings: {error}. Resume with the model, the optimizer "
                "(--matrix-learning-rate or none) and the --layer-decay of the checkpoint, or begin in another "
                "--output-dir."
            ) from error
        # The loaded state has the number of steps between saves of the earlier settings.
        self.state.compute_steps(self.args, self.state.max_steps)
        if told != self._rates_and_decays():
            self._change_rates(told)
        if self.average is not None:
            self.average.load(Path(checkpoint), self.args.device)

    def _rates_and_decays(self) -> list[tuple[float, float]]:
        """The highest learning rate and the weight decay of each group."""
        groups: list[dict[str, Any]] = self.optimizer.param_groups
        return [(group.get("initial_lr", group["lr"]), group["weight_decay"]) for group in groups]

    def _change_rates(self, told: list[tuple[float, float]]) -> None:
        """Replaces the loaded learning rates and weight decays: a run can resume with a smaller rate."""
        scheduler: Any = self.lr_scheduler
        if not isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR):
            raise UsageError(
                "the learning rate or the weight decay differs from the checkpoint's, and --lr-scheduler-type "
                f"{self.args.lr_scheduler_type} cannot change them in a run that resumes; give the earlier values."
            )
        groups: list[dict[str, Any]] = self.optimizer.param_groups
        for group, factor, (rate, decay) in zip(groups, scheduler.lr_lambdas, told, strict=True):
            group.update(initial_lr=rate, weight_decay=decay, lr=rate * factor(scheduler.last_epoch))
        scheduler.base_lrs = [rate for rate, _ in told]
        scheduler._last_lr = [group["lr"] for group in groups]
        logger.warning("the learning rate or the weight decay differs from the checkpoint's; the given value is used")

    def _load_best_model(self) -> None:
        """Also loads the average of the best checkpoint."""
        self.load_best_weights()
        if self.state.best_global_step != self.state.global_step:
            self.evaluated = None
        if self.average is not None and self.state.best_model_checkpoint is not None:
            self.average.load(Path(self.state.best_model_checkpoint), self.args.device)

    def load_best_weights(self) -> None:
        """Loads the weights of the best checkpoint."""
        super()._load_best_model()

    def save_final(self, folder: Path) -> None:
        """Saves the model for use into a folder, atomically; with the averaged weights if there is an average.

        An FSDP model is saved unsharded. LoRA's adapters are merged into the weights, and also saved in the subfolder
        `adapter`.

        Raises:
            SaveError: Writing failed.
        """
        self._health.refuse_broken_weights(self.model, self.state.global_step)
        with self.averaged():
            model: Any = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
            if self.is_fsdp_enabled:
                options = StateDictOptions(full_state_dict=True, cpu_offload=True)
                state: Any = get_model_state_dict(self.model, options=options)
                with torch.device("meta"):
                    model = self._model_class(self.model.config)
                if self.args.should_save:
                    model.load_state_dict(state, assign=True)
            if not self.args.should_save:
                return
            with whole_checkpoint(folder, publishes=True) as written:
                if hasattr(model, "merge_and_unload"):
                    model.save_pretrained(written / "adapter")
                    model = copy.deepcopy(model).merge_and_unload()
                model.save_pretrained(written)
                if self.processing_class is not None:
                    self.processing_class.save_pretrained(written)


def groups_of(args: RunSettings, model: nn.Module) -> list[dict[str, Any]]:
    """The parameter groups of a training without Muon."""
    return parameter_groups(model, args.learning_rate, args.weight_decay, args.layer_decay, args.backbone_rate)


def _start_tracker(start: Callable[..., Any], *args: Any, **rest: Any) -> Any:
    """Starts a tracker of `--report-to`; its errors, of any class, are the user's to fix: no network, no account."""
    try:
        return start(*args, **rest)
    except Exception as error:
        raise _tracker_error(error) from error


def _tracker_error(error: Exception) -> UsageError:
    """The error for a tracker that cannot start."""
    return UsageError(f"--report-to cannot be used: {first_sentence(error)}. Fix it, or leave --report-to out.")
