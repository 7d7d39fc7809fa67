"""The loss and the scores of several labels, against torch and numbers worked by hand."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.data.mixup import Mixup

from swinv2.train.data.examples import IGNORED_LABEL, seed_everything
from swinv2.train.multilabel import (
    MultilabelEvaluation,
    average_precision,
    binary_cross_entropy,
    mix_several,
)

LABELS = np.array([[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 0]], np.float32)
LOGITS = np.array([[3, -1, -9], [1, 2, -9], [2, -2, -9], [-3, -3, 0.5]], np.float32)


class TestLoss:
    def test_against_torch(self) -> None:
        logits, labels = torch.from_numpy(LOGITS), torch.from_numpy(LABELS)
        expected = F.binary_cross_entropy_with_logits(logits, labels)
        torch.testing.assert_close(binary_cross_entropy(logits.bfloat16(), labels), expected, rtol=1e-2, atol=0)
        torch.testing.assert_close(binary_cross_entropy(logits, labels), expected)

    def test_unreadable_images_do_not_count(self) -> None:
        logits, labels = torch.randn(4, 3, requires_grad=True), torch.from_numpy(LABELS)
        with_ignored = labels.clone()
        with_ignored[2:] = IGNORED_LABEL
        loss = binary_cross_entropy(logits, with_ignored)
        torch.testing.assert_close(loss, binary_cross_entropy(logits[:2], labels[:2]))
        nothing = binary_cross_entropy(logits, torch.full((4, 3), float(IGNORED_LABEL)))
        assert nothing.item() == 0.0
        nothing.backward()
        assert logits.grad is not None
        assert not logits.grad.any()


class TestAveragePrecision:
    @pytest.mark.parametrize(
        ("scores", "truth", "expected"),
        [
            ([4, 3, 2, 1], [1, 1, 0, 0], 1.0),
            ([4, 3, 2, 1], [0, 0, 1, 1], (1 / 3 + 2 / 4) / 2),
            ([1, 2, 3, 4], [1, 0, 1, 0], (1 / 2 + 2 / 4) / 2),
            # Two images of equal scores, one of them right: precision 1/2, whatever their order.
            ([2, 2, 1], [1, 0, 0], 1 / 2),
            ([2, 2, 1], [0, 1, 0], 1 / 2),
            ([0, 0, 0, 0], [1, 1, 0, 0], 1 / 2),
        ],
    )
    def test_by_hand(self, scores: list[float], truth: list[int], expected: float) -> None:
        assert average_precision(np.array(scores), np.array(truth, bool)) == pytest.approx(expected)

    def test_a_class_without_images(self) -> None:
        assert np.isnan(average_precision(np.array([1.0, 2.0]), np.array([False, False])))


def test_scores_by_hand() -> None:
    found = MultilabelEvaluation.of(LABELS, LOGITS, 0.25, ("a", "b", "c"), ["x: broken"]).summary()
    # Class a: scores 3, 2, 1, -3, true for the first two. Class b: 2, -1, -2, -3, true for the first and the third.
    assert found.pop("average_precision") == {"a": 1.0, "b": pytest.approx((1 / 1 + 2 / 3) / 2), "c": None}
    assert found.pop("recall") == {"a": 1.0, "b": 0.5, "c": None}
    assert found.pop("images_by_class") == {"a": 2, "b": 2, "c": 0}
    # Three of four labels are found, and two predictions are wrong: a of the second image, c of the last one.
    assert found.pop("f1") == pytest.approx(2 * 3 / (4 + 5))
    assert found == {
        "mAP": pytest.approx((1 + 5 / 6) / 2),
        "exact": 1 / 4,
        "loss": 0.25,
        "images": 4,
        "unreadable": ["x: broken"],
    }


def test_metrics_leave_unreadable_images_out() -> None:
    labels = np.concatenate([LABELS, np.full((1, 3), IGNORED_LABEL, np.float32)])
    logits = np.concatenate([LOGITS, np.full((1, 3), 9, np.float32)])
    found = MultilabelEvaluation.of(labels, logits, None, ("a", "b", "c"), [])
    assert found.metrics == {
        "mAP": pytest.approx((1 + 5 / 6) / 2),
        "f1": pytest.approx(2 * 3 / (4 + 5)),
        "exact": 1 / 4,
        "images": 4,
    }


def test_no_image_has_a_label() -> None:
    found = MultilabelEvaluation.of(np.zeros((2, 3)), LOGITS[:2], 0.0, ("a", "b", "c"), []).summary()
    assert (found["mAP"], found["f1"], found["exact"]) == (0.0, 0.0, 0.0)
    assert set(found["average_precision"].values()) == {None}


def test_mixed_labels_have_the_shares_of_mixed_images() -> None:
    seed_everything(0)
    labels = torch.from_numpy(LABELS)
    # An image of ones in the channel of each image, so that a mixed image shows the shares.
    images = torch.eye(4)[:, :, None, None].expand(4, 4, 8, 8).clone()
    mixed, targets = mix_several(Mixup(mixup_alpha=0.8, label_smoothing=0.0, num_classes=9), images, labels)
    shares = mixed.mean((2, 3))
    assert 0 < shares[0, 0] < 1
    torch.testing.assert_close(targets, shares @ labels)
