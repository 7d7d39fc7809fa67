"""Trains the checkpoint that ships with the package, on CIFAR-10, with transformers' Trainer.

    python scripts/train_cifar10.py --data FOLDER_OR_NAME --output runs/cifar10

The default settings are those of the shipped checkpoint; its model card has the measured result.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset
from torchvision.transforms import v2
from transformers import Trainer, TrainingArguments, ViTImageProcessor, set_seed

from swinv2 import Swinv2Config, Swinv2ForImageClassification
from swinv2.train.cifar10 import LABELS, Split, load_cifar10
from swinv2.train.optim import MuonAdamW

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
"""Of the training images, by channel."""


class Images(Dataset):
    """A split as a torch data set; `transform` takes and returns a uint8 image (3, 32, 32)."""

    def __init__(self, split: Split, transform: v2.Transform | None) -> None:
        self.images = torch.from_numpy(np.ascontiguousarray(split.images)).permute(0, 3, 1, 2).contiguous()
        self.labels = split.labels.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = self.images[index]
        return (self.transform(image) if self.transform else image), self.labels[index]


def collate(samples: list[tuple[torch.Tensor, int]]) -> dict[str, torch.Tensor]:
    """Stacks samples and normalises them, as the image processor does."""
    images = torch.stack([image for image, _ in samples])
    normalise = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
    return {"pixel_values": normalise(images), "labels": torch.tensor([label for _, label in samples])}


def accuracy(prediction) -> dict[str, float]:
    """Top-1 of a Trainer's prediction."""
    return {"top1": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of CIFAR-10, or a name for datasets")
    parser.add_argument("--output", type=Path, default=Path("runs/cifar10"))
    parser.add_argument("--epochs", type=float, default=15)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--matrix-learning-rate", type=float, default=5e-3, help="of Muon, for the matrices")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="of AdamW, for everything else")
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true", help="compile the model with torch.compile")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in --output")
    args = parser.parse_args()

    set_seed(args.seed)
    config = Swinv2Config(
        image_size=32,
        patch_size=2,
        window_size=4,
        embed_dim=48,
        depths=[2, 4, 2],
        num_heads=[2, 4, 8],
        encoder_stride=8,
        drop_path_rate=0.0,
        id2label=dict(enumerate(LABELS)),
        label2id={label: index for index, label in enumerate(LABELS)},
    )
    model = Swinv2ForImageClassification(config)
    # Stronger augmentation and drop path pay off in longer trainings; here the model sees each image fifteen times.
    augment = v2.Compose([v2.RandomCrop(32, padding=4, padding_mode="reflect"), v2.RandomHorizontalFlip()])
    train, test = load_cifar10(args.data, train=True), load_cifar10(args.data, train=False)

    settings = TrainingArguments(
        output_dir=str(args.output),
        seed=args.seed,
        num_train_epochs=args.epochs,
        per_device_train_batch_size=args.batch_size,
        per_device_eval_batch_size=500,
        warmup_steps=200,
        lr_scheduler_type="cosine",
        max_grad_norm=5.0,
        label_smoothing_factor=0.1,
        bf16=True,
        use_cpu=not torch.cuda.is_available(),
        torch_compile=args.compile,
        dataloader_drop_last=True,
        remove_unused_columns=False,
        logging_steps=100,
        eval_strategy="steps",
        eval_steps=1500,
        save_steps=1500,
        save_total_limit=2,
        report_to="none",
    )
    optimizer = MuonAdamW(model, args.matrix_learning_rate, args.learning_rate, args.weight_decay)
    trainer = Trainer(
        model=model,
        args=settings,
        data_collator=collate,
        train_dataset=Images(train, augment),
        eval_dataset=Images(test, None),
        compute_metrics=accuracy,
        optimizers=(optimizer, None),
    )
    trainer.train(resume_from_checkpoint=args.resume or None)

    final = args.output / "final"
    model.save_pretrained(final)
    ViTImageProcessor(size={"height": 32, "width": 32}, resample=3, image_mean=MEAN, image_std=STD).save_pretrained(
        final
    )
    print(trainer.evaluate())


if __name__ == "__main__":
    main()
