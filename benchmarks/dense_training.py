"""Compares segmenters and detectors of `swinv2 finetune` with ones from new weights, for the same processor time.

    python benchmarks/dense_training.py --camvid CAMVID --bccd BCCD

Our command gets nothing but the images. The peers are ResNets with the same head, data and settings, from new weights;
they take so many steps that they use the processor time of our command with the same seed. All are tested on the same
images. Every result is written at once, and an interrupted benchmark resumes: what the file has is not measured again.
Progress goes to stderr, the tables to stdout. README.md explains the method.
"""

import itertools
import json
import resource
import shlex
import signal
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import report
import torch
import torchvision
import typer
from methods import (
    OURS,
    SWINV2,
    MethodError,
    known,
    measure_rows,
    millions,
    number,
    percent,
    rounded,
    run_program,
    steps_of,
    table_of,
)
from PIL import Image
from safetensors.torch import load_file
from terminal import select
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
    ResNetConfig,
    TrainerCallback,
    UperNetConfig,
)
from transformers.utils.generic import ModelOutput

from swinv2.dense.answers import Detector, Segmenter
from swinv2.dense.average_precision import Detections
from swinv2.dense.detectors import _FasterRCNN, heads_of_boxes
from swinv2.dense.heads import STAGES
from swinv2.dense.saved import DETECTION, SEGMENTATION, load_dense
from swinv2.dense.upernet import UperNetForSemanticSegmentation
from swinv2.train.dense.choices import dense_settings_of
from swinv2.train.dense.evaluate import evaluate_images, open_to_evaluate
from swinv2.train.dense.settings import DenseSettings
from swinv2.train.dense.start import head_fields
from swinv2.train.dense.trainer import DenseTrainer, make_dense_training
from swinv2.train.flags import read_flags
from swinv2.train.options import DenseOptions
from swinv2.train.running import read_names, run_training

NEW = "swinv2-new"

SHORT = 50
"""Steps of the short run that measures a step of a peer."""

UNSTEADY = 0.2
"""The share of these steps, at the beginning, that does not count."""

SAME_FACTS = ("machine", "torch", "torchvision", "transformers")
"""Rows of other commits are kept: a benchmark of hours resumes after a commit. Each row names its commit."""

IGNORED = 11
"""The value of CamVid's pixels without a class."""

CAMVID = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist")


@dataclass(frozen=True)
class DataSet:
    """A data set.

    Attributes:
        task: The task of our command.
        scores: The columns of the results that it fills.
        names: Names of the classes, if the data has none.
    """

    task: str
    scores: tuple[str, ...]
    names: Sequence[str] = ()

    def flags(self, folder: Path) -> list[str]:
        """The flags of the classes, for training and test.

        Args:
            folder: A folder for the file with their names.
        """
        if not self.names:
            return []
        file = folder / "classes.txt"
        file.write_text("\n".join(self.names) + "\n")
        return ["--label-names-file", str(file), "--ignore-index", str(IGNORED)]


SETS = {"camvid": DataSet(SEGMENTATION, ("mIoU",), CAMVID), "bccd": DataSet(DETECTION, ("AP50", "AP"))}


@dataclass(frozen=True)
class ResNet:
    """A peer.

    Attributes:
        kind: The kind of its blocks in transformers.
        depths: Blocks of each stage.
        widths: Channels of each stage.
        build: Builds it in torchvision.
    """

    kind: str
    depths: tuple[int, ...]
    widths: tuple[int, ...]
    build: Callable[..., nn.Module]


PEERS = {
    "resnet18": ResNet("basic", (2, 2, 2, 2), (64, 128, 256, 512), torchvision.models.resnet18),
    "resnet50": ResNet("bottleneck", (3, 4, 6, 3), (256, 512, 1024, 2048), torchvision.models.resnet50),
}
METHODS = (OURS, NEW, *PEERS)

ANCHORS = 3
"""torchvision's anchors at a position: one size, three aspect ratios."""

SCORES = ("mIoU", "AP50", "AP")
COLUMNS = (*SCORES, "processor_seconds", "clock_seconds", "steps", "parameters")


def main(
    camvid: Annotated[Path | None, typer.Option(help="Folder of CamVid: images/ and masks/ with splits.")] = None,
    bccd: Annotated[Path | None, typer.Option(help="Folder of BCCD: splits with COCO annotations.")] = None,
    methods: Annotated[str, typer.Option(help=f"Of {', '.join(METHODS)}.")] = "",
    seeds: Annotated[str, typer.Option(help="Numbers, separated by commas.")] = "0,1,2",
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of every method, for a trial.")] = None,
    keep: Annotated[Path | None, typer.Option(help="Keep logs and models in this folder.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="Write to this path with the suffixes .csv and .md, not to benchmarks/results.")
    ] = None,
) -> None:
    """Compares segmenters and detectors with peers from new weights: scores after the same processor time."""
    torch.set_num_threads(1)
    folders = {name: folder for name, folder in {"camvid": camvid, "bccd": bccd}.items() if folder is not None}
    names = select("methods", methods, METHODS)
    if not folders:
        raise typer.BadParameter("there is no data set; give --camvid, --bccd or both")
    stem = output or report.default_stem("dense-training-part" if steps else "dense-training", "cpu")
    facts = report.describe_run("cpu")
    # Without folders of this machine.
    options = {"methods": methods, "seeds": seeds, "steps": steps}
    told = [
        *(f"--{name}={name.upper()}" for name in folders),
        *(f"--{name}={value}" for name, value in options.items() if value),
    ]
    facts["command"] = shlex.join(["python", f"benchmarks/{Path(__file__).name}", *told])
    order = itertools.product(folders, map(int, seeds.split(",")), names)
    measure_rows(
        order,
        lambda name, seed, method, folder, ours: measure(SETS[name], folders[name], method, seed, folder, ours, steps),
        stem=stem,
        title=f"Segmenters and detectors on {facts['machine']}",
        facts=facts,
        same_facts=SAME_FACTS,
        order=(list(SETS), METHODS),
        tables=_tables,
        keep=keep,
    )


def measure(
    of_set: DataSet, data: Path, method: str, seed: int, output: Path, ours: report.Row | None, steps: int | None
) -> report.Row:
    """Trains and tests one method.

    Args:
        of_set: The data set.
        data: Its folder.
        method: One of `METHODS`.
        seed: The seed.
        output: An empty folder for the model and the log.
        ours: Our command's result with the same set and seed, if it is known.
        steps: Steps of a trial; None: as many as the method takes.

    Returns:
        The columns of a result. If the method failed, they are empty except for the note.
    """
    started = time.perf_counter()
    flags = ["--task", of_set.task, "--data", str(data), "--seed", str(seed), *of_set.flags(output)]
    try:
        if method in PEERS:
            found = _train_peer(method, flags, output, ours, steps)
        else:
            length = (
                ["--model=new", f"--max-steps={steps_of(ours)}"]
                if method == NEW
                else [f"--max-steps={steps}"]
                if steps
                else []
            )
            found = _train_ours([*flags, *length], data, of_set.flags(output), output)
    except MethodError as error:
        return {**dict.fromkeys(COLUMNS, ""), "note": str(error)[:200]}
    found["clock_seconds"] = time.perf_counter() - started
    # A score that has no value is an empty cell, as those of another task.
    found |= dict.fromkeys(SCORES, "") | {score: found[score] for score in of_set.scores}
    return {**{name: "" if found[name] is None else rounded(found[name]) for name in COLUMNS}, "note": ""}


def _train_ours(flags: Sequence[str], data: Path, of_classes: Sequence[str], output: Path) -> dict[str, Any]:
    """Runs swinv2 finetune and swinv2 evaluate."""
    run = output / "run"
    _, seconds = run_program([*SWINV2, "finetune", *flags, "--output-dir", str(run)], output / "training.log")
    model = str(run / "final")
    test = ["evaluate", str(data), "--model", model, "--split", "test", "--json", *of_classes]
    answer, _ = run_program([*SWINV2, *test], output / "test.log")
    return json.loads(answer) | {
        "processor_seconds": seconds,
        "steps": json.loads((run / "results.json").read_text())["step"],
        "parameters": _parameters(load_dense(model)),
    }


def _train_peer(
    method: str, flags: Sequence[str], output: Path, ours: report.Row | None, steps: int | None
) -> dict[str, Any]:
    """Runs this file as a peer: for a step's processor time, and for the result."""

    def run(name: str, split: str, length: int) -> dict[str, Any]:
        rest = ["--max-steps", str(length), "--output-dir", str(output / name)]
        command = [sys.executable, str(Path(__file__)), PEER, method, split, *flags, *rest]
        return json.loads(run_program(command, output / f"{name}.log")[0])

    if steps is None:
        budget = float(str(known(ours)["processor_seconds"]))
        steps = steps_within(budget, run("short", "", SHORT))
    return run("run", "test", steps)


def steps_within(budget: float, short: dict[str, Any]) -> int:
    """The number of steps of a training that uses a processor time.

    Args:
        budget: The processor time in seconds.
        short: The result of a short training that has the same number of evaluations; see `train_peer`.

    Raises:
        MethodError: There is not enough time for a step.
    """
    steps = short["steps"] + (budget - short["processor_seconds"]) / short["step_seconds"]
    if steps < 1:
        raise MethodError(
            f"{short['processor_seconds']:.0f} s were used for {short['steps']} steps, and all may use {budget:.0f} s"
        )
    return round(steps)


# A peer, in its own process.

PEER = "peer"
"""The first argument of this file for a peer's process; then follow method, split to test, flags of the training."""


class PeerPyramid(BackboneWithFPN):
    """torchvision's ResNet with a feature pyramid, called as ours."""

    def forward(self, images: Tensor, sizes: object = None) -> dict[str, Tensor]:
        """The levels; it does not use the sizes of the images."""
        return super().forward(images)


class PeerRCNN(PreTrainedModel):
    """torchvision's Faster R-CNN, as trainers and savers take models.

    Args:
        config: Has the names of the classes and the task.
        detector: The detector.
    """

    config_class = PreTrainedConfig

    def __init__(self, config: PreTrainedConfig, detector: FasterRCNN) -> None:
        super().__init__(config)
        self.detector = detector
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """torchvision's modules have their initial values already."""

    def forward(self, pixel_values: Sequence[Tensor], labels: Sequence[dict[str, Tensor]]) -> ModelOutput:
        """The loss: the sum of its parts. See `SwinRCNN`."""
        losses = self.detector(list(pixel_values), list(labels))
        return ModelOutput(loss=torch.stack([loss.float() for loss in losses.values()]).sum())


class PeerDetector(Detector):
    """Finds the objects in images by a `PeerRCNN`."""

    @torch.inference_mode()
    def __call__(self, images: Sequence[Image.Image | np.ndarray]) -> list[Detections]:
        """See `Detector`."""
        pixels = [torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 for image in images]
        model: Any = self.model
        return [self._of_torchvision(answer) for answer in model.detector(pixels)]


@dataclass(eq=False)
class StepTimes(TrainerCallback):
    """The processor time of each step in this process, in seconds. Other processes read the images."""

    seconds: list[float] = field(default_factory=list[float])
    began: float = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.began = time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.seconds.append(time.process_time() - self.began)


class PeerTrainer(DenseTrainer):
    """Trains a peer: AdamW with one learning rate; vectors do not decay."""

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Builds AdamW."""
        if self.optimizer is None:
            learning = [each for each in self.model.parameters() if each.requires_grad]
            groups = [
                {"params": [each for each in learning if each.ndim > 1], "weight_decay": self.args.weight_decay},
                {"params": [each for each in learning if each.ndim <= 1], "weight_decay": 0.0},
            ]
            self.optimizer = torch.optim.AdamW(groups, self.args.learning_rate)
        return self.optimizer

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Loads the weights of a checkpoint."""
        self.model.load_state_dict(load_file(Path(resume_from_checkpoint) / "model.safetensors"))

    def answers(self, model: Any) -> Segmenter | Detector:
        """The model as it answers for whole images."""
        return PeerDetector(model) if isinstance(model, PeerRCNN) else super().answers(model)


def train_peer(method: str, split: str, flags: Sequence[str]) -> dict[str, Any]:
    """Trains a peer in this process, with the settings that our command chooses for a network with new weights.

    Args:
        method: One of `PEERS`.
        split: The split to test; empty: no test.
        flags: Those of `swinv2 finetune`, without a model.

    Returns:
        The scores of the test; the processor time of the process without the test, and that of a step, in seconds;
        steps and parameters.
    """
    told = read_flags(DenseOptions, [*flags, "--model", "new"], PEER, without_recipe={"choose_settings": True})
    peer, times = PEERS[method], StepTimes()

    def build(settings: DenseSettings, names: tuple[str, ...]) -> nn.Module:
        return (_segmenter if settings.task == SEGMENTATION else _detector)(peer, settings, names)

    trainer = make_dense_training(dense_settings_of(told), build, PeerTrainer)
    trainer.add_callback(times)
    before = _used(resource.RUSAGE_CHILDREN)
    results, _ = run_training(trainer)
    of_readers = _used(resource.RUSAGE_CHILDREN) - before
    steady = times.seconds[int(UNSTEADY * len(times.seconds)) :]
    found = {
        "processor_seconds": _used(resource.RUSAGE_SELF) + _used(resource.RUSAGE_CHILDREN),
        "step_seconds": statistics.mean(steady) + of_readers / results["step"],
        "steps": results["step"],
        "parameters": _parameters(trainer.model),
    }
    return (_test(trainer, split) if split else {}) | found


def _test(trainer: DenseTrainer, split: str) -> dict[str, Any]:
    """The scores of a trained peer."""
    args, answer = trainer.args, trainer.answers(trainer.model.eval())
    names = read_names(args.label_names_file)
    of_masks = {"names": names, "ignore_index": args.ignore_index} if args.task == SEGMENTATION else {}
    scores, _ = evaluate_images(answer, open_to_evaluate(args.task, args.data, split, answer.names, **of_masks))
    return scores.summary()


def _segmenter(peer: ResNet, settings: DenseSettings, names: Sequence[str]) -> nn.Module:
    """This package's UperNet, with the settings of our command's head: it answers as transformers', in less time."""
    shape: dict[str, Any] = {"layer_type": peer.kind, "depths": peer.depths, "hidden_sizes": peer.widths}
    shape["out_features"] = list(STAGES)
    fields: dict[str, Any] = {"auxiliary_in_channels": peer.widths[2], **head_fields(settings)}
    config = UperNetConfig(backbone_config=ResNetConfig(**shape), **_labels(settings, names), **fields)
    return UperNetForSemanticSegmentation(config)


def _detector(peer: ResNet, settings: DenseSettings, names: Sequence[str]) -> nn.Module:
    """torchvision's Faster R-CNN, with the settings of our command's head. `resnet_fpn_backbone` builds the same, but
    its pyramid always has 256 channels."""
    fields = head_fields(settings)
    channels, of_boxes = fields.pop("pyramid_channels", 256), fields.pop("box_channels", 1024)
    layers = {f"layer{index + 1}": str(index) for index in range(4)}
    network = peer.build(weights=None, norm_layer=nn.BatchNorm2d)
    # torchvision's own round boxes to 16 bits under autocast, and the loss may be no number.
    detector = _FasterRCNN(
        PeerPyramid(network, layers, list(peer.widths), channels),
        **heads_of_boxes(channels, of_boxes, len(names) + 1, ANCHORS),
        image_mean=list(settings.image_mean),
        image_std=list(settings.image_std),
        **{"min_size": settings.image_size[0], "max_size": settings.image_size[0] * 5 // 3, **fields},
    )
    return PeerRCNN(PreTrainedConfig(**_labels(settings, names)), detector)


def _labels(settings: DenseSettings, names: Sequence[str]) -> dict[str, Any]:
    """The fields of a configuration for the task and the classes."""
    ids = {name: index for index, name in enumerate(names)}
    return {"id2label": dict(enumerate(names)), "label2id": ids, "dense_task": settings.task}


def _parameters(model: nn.Module) -> int:
    return sum(each.numel() for each in model.parameters())


def _used(who: int) -> float:
    """Processor time in seconds: of this process, or of those that it has started and that have ended."""
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


# Tables.


def _tables(rows: Sequence[report.Row]) -> list[str]:
    """The results, one line for each set and one column for each method."""

    def build(caption: str, cell: Callable[[list[float]], str], measure: str) -> str:
        own = [row for row in rows if measure not in SCORES or measure in SETS[str(row["set"])].scores]
        return table_of(own, METHODS, caption, cell, measure)

    tables = [
        build("Mean IoU in %: mean of the seeds (least to most); more is better.", percent, "mIoU"),
        build("AP50 in %.", percent, "AP50"),
        build("AP in %.", percent, "AP"),
        build("Processor time of the training in seconds: mean of the seeds.", number, "processor_seconds"),
        build("Training steps: mean of the seeds.", number, "steps"),
        build("Parameters in millions.", millions, "parameters"),
    ]
    return [table for table in tables if table]


if __name__ == "__main__":
    if sys.argv[1:2] == [PEER]:
        print(json.dumps(train_peer(sys.argv[2], sys.argv[3], sys.argv[4:])))
    else:
        # subprocess.run ends its process at an exception; a benchmark that is stopped must leave no training behind.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        typer.run(main)
