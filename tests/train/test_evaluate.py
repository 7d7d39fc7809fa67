"""How good a classifier is: counts that add up, and classes that are matched by what they are called."""

import json
import logging
from pathlib import Path

import datasets
import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

import peers
import swinv2
from colours import draw_colours
from swinv2.cli import app, printing
from swinv2.errors import UsageError
from swinv2.predict.predictor import Classifier
from swinv2.train.data.augment import Pixels, make_processor
from swinv2.train.evaluate import evaluate
from swinv2.train.multilabel import MultilabelEvaluation, average_precision


def save_model(folder: Path, names: list[str], channels: int = 3, **fields: object) -> str:
    """A small classifier of these classes, with its image processor."""
    config = swinv2.Swinv2Config(
        image_size=32,
        patch_size=2,
        window_size=4,
        embed_dim=16,
        depths=[1, 1],
        num_heads=[1, 2],
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
        num_channels=channels,
        **fields,
    )
    peers.draw_weights(swinv2.Swinv2ForImageClassification(config)).save_pretrained(folder)
    make_processor(Pixels((32, 32), (0.5,) * channels, (0.5,) * channels)).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    # The commands switch it off.
    monkeypatch.setattr(logging.getLogger("swinv2"), "propagate", True)
    return caplog


def test_counts_add_up_and_mistakes_are_drawn(colours: Path, tmp_path: Path) -> None:
    found, dataset = evaluate(save_model(tmp_path / "model", ["blue", "green", "red"]), str(colours))
    assert found.confusion.sum(1).tolist() == [5, 5, 5]
    assert found.top1 == pytest.approx(found.confusion.trace() / 15)
    assert (found.images, found.unreadable, found.top5) == (15, [], None)
    assert all(truth != answer for _, truth, answer, _ in found.worst)
    assert len(found.worst) == 15 - found.confusion.trace()
    assert all(file.stat().st_size > 1000 for file in found.draw(dataset, tmp_path))


def test_classes_are_matched_by_name(colours: Path, tmp_path: Path) -> None:
    straight, _ = evaluate(save_model(tmp_path / "one", ["blue", "green", "red"]), str(colours))
    turned, _ = evaluate(save_model(tmp_path / "two", ["red", "blue", "green"]), str(colours))
    # The weights are the same: row and column i of the answers are called otherwise.
    order = [1, 2, 0]
    assert (turned.confusion[order].sum(1) == straight.confusion.sum(1)).all()
    assert (turned.confusion.sum(0) == straight.confusion.sum(0)).all()
    assert turned.confusion[1].tolist() == straight.confusion[0].tolist()


def test_processes_that_read_change_nothing(tmp_path: Path) -> None:
    draw_colours(tmp_path / "data" / "validation", 5)
    (tmp_path / "data" / "validation" / "green" / "broken.png").write_text("broken")
    model = save_model(tmp_path / "model", ["blue", "green", "red"])
    here, there = (evaluate(model, str(tmp_path / "data"), batch_size=4, workers=workers)[0] for workers in (0, 2))
    assert here.summary() == there.summary()
    assert here.worst == there.worst
    assert len(here.unreadable) == 1
    assert here.images == 15


def test_a_folder_may_be_one_split(colours: Path, tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", ["blue", "green", "red"])
    whole, _ = evaluate(model, str(colours))
    for split in ("evaluation", "validation"):
        alone, _ = evaluate(model, str(colours / "validation"), split)
        assert alone.summary() == whole.summary()
    with pytest.raises(UsageError, match=r"has no folders of splits; expected 'test'. Without --split"):
        evaluate(model, str(colours / "validation"), "test")
    assert evaluate(model, str(colours / "train"))[0].images == 36
    # A folder of that name may hold several.
    (tmp_path / "test").symlink_to(colours)
    assert evaluate(model, str(tmp_path / "test"))[0].summary() == whole.summary()


@pytest.mark.parametrize("names", [["a", "b"], ["a", "b", "c", "d"]])
def test_classes_that_do_not_fit(colours: Path, tmp_path: Path, names: list[str]) -> None:
    with pytest.raises(UsageError, match="has the classes 'blue', 'green', 'red', and the model has none of them"):
        evaluate(save_model(tmp_path / "model", names), str(colours))


def test_a_class_that_the_model_lacks_is_left_out(
    colours: Path, tmp_path: Path, warnings: pytest.LogCaptureFixture
) -> None:
    found, dataset = evaluate(save_model(tmp_path / "model", ["cat", "green", "blue"]), str(colours))
    assert found.confusion.sum(1).tolist() == [0, 5, 5]
    assert (found.images, found.unreadable) == (10, [])
    assert "classes that the model lacks; their images are left out of the evaluation: 'red' (5)" in warnings.text
    # The mistakes that are drawn are those of the images that count.
    assert all(found.names[truth] in dataset[index].name for index, truth, _, _ in found.worst)


def test_plain_class_folders_need_no_split(colours: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").symlink_to(colours / "validation")
    model = save_model(tmp_path / "model", ["blue", "green", "red"])
    answer = CliRunner().invoke(app, ["evaluate", str(tmp_path / "photos"), "--model", model, "--json"])
    assert answer.exit_code == 0, answer.output
    assert json.loads(answer.stdout)["images"] == 15
    assert answer.stderr.replace("\n", "") == f"evaluated: 15 images of {tmp_path / 'photos'}"


def test_images_without_labels_are_told_about_labels(colours: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"red has no labels; sort the images into a folder for each class"):
        evaluate(save_model(tmp_path / "model", ["blue", "green"]), str(colours / "validation" / "red"))


def test_numbers_are_the_order_of_the_model_with_a_word(tmp_path: Path, warnings: pytest.LogCaptureFixture) -> None:
    pixels = [np.zeros((8, 8, 3), np.uint8)] * 3
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    rows = datasets.Dataset.from_dict({"image": pixels, "label": [2, 0, 2]}, features=features)
    rows.to_parquet(tmp_path / "rows.parquet")
    found, _ = evaluate(save_model(tmp_path / "model", ["a", "b", "c"]), str(tmp_path / "rows.parquet"))
    assert found.confusion.sum(1).tolist() == [1, 0, 2]
    assert "has numbers instead of class names: 0 is 'a' of the model" in warnings.text


def test_codes_are_matched_by_order_with_a_word(
    colours: Path, tmp_path: Path, warnings: pytest.LogCaptureFixture
) -> None:
    for index, names in enumerate((["n00000001", "n00000002", "n00000003"], ["LABEL_0", "LABEL_1", "LABEL_2"])):
        found, _ = evaluate(save_model(tmp_path / f"model{index}", names), str(colours))
        assert found.images == 15
        assert (
            f"has the classes 'blue' ..., the model '{names[0]}' ...; they are matched by their order" in warnings.text
        )


def test_other_classes_are_no_classes_of_the_model(colours: Path, tmp_path: Path) -> None:
    """Also if there are equally many: photographs of clothes for a model of animals."""
    with pytest.raises(UsageError, match="has the classes 'blue', 'green', 'red', and the model has none of them"):
        evaluate(save_model(tmp_path / "model", ["a", "b", "c"]), str(colours))


def test_a_class_without_images_has_no_recall(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw_colours(tmp_path / "validation", 2)
    for file in (tmp_path / "validation" / "green").iterdir():
        file.unlink()
    (tmp_path / "validation" / "green").rmdir()
    found, _ = evaluate(save_model(tmp_path / "model", ["blue", "green", "red"]), str(tmp_path))
    summary = found.summary()
    assert summary["recall"]["green"] is None
    assert all(0.0 <= summary["recall"][name] <= 1.0 for name in ("blue", "red"))
    printing.print_evaluation(summary, Console())
    assert capsys.readouterr().out.splitlines()[-1].split() == ["green", "0"]


def test_an_output_that_cannot_be_written_is_named(colours: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    model = save_model(tmp_path / "model", ["blue", "green", "red"])
    output = str(tmp_path / "taken" / "figures")
    answer = CliRunner().invoke(app, ["evaluate", str(colours), "--model", model, "--output", output])
    assert answer.exit_code == 2
    assert f"--output '{output}' cannot be written to" in " ".join(answer.stderr.split())


def test_columns_may_be_chosen(colours: Path, tmp_path: Path) -> None:
    files = sorted((colours / "validation").glob("*/*.png"))
    classes = datasets.ClassLabel(names=["blue", "green", "red"])
    columns = {name: [str(file) for file in files] for name in ("image", "other")}
    columns["label"] = [file.parent.name for file in files]
    features = datasets.Features({"image": datasets.Image(), "other": datasets.Image(), "label": classes})
    datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "validation.parquet")
    model = save_model(tmp_path / "model", ["blue", "green", "red"])
    with pytest.raises(UsageError, match="choose one with --image-column"):
        evaluate(model, str(tmp_path))
    command = [
        "evaluate",
        str(tmp_path),
        "--model",
        model,
        "--image-column",
        "other",
        "--label-column",
        "label",
        "--json",
    ]
    answer = CliRunner().invoke(app, command)
    assert answer.exit_code == 0, answer.output
    assert json.loads(answer.stdout)["images"] == 15


@pytest.mark.parametrize("channels", [1, 4])
def test_other_channels_come_in_arrays(tmp_path: Path, channels: int) -> None:
    features = datasets.Features(
        {"image": datasets.Array3D((24, 28, channels), "uint8"), "label": datasets.Value("int64")}
    )
    pixels = np.random.default_rng(0).integers(0, 256, (6, 24, 28, channels), dtype=np.uint8)
    rows = datasets.Dataset.from_dict({"image": list(pixels), "label": [0, 1, 2] * 2}, features=features)
    rows.save_to_disk(tmp_path / "data")
    found, dataset = evaluate(save_model(tmp_path / "model", ["a", "b", "c"], channels), str(tmp_path / "data"))
    assert found.images == 6
    # Five or six of the answers are the same class, so some are wrong.
    assert [file.name for file in found.draw(dataset, tmp_path)] == ["confusion.png", "mistakes.png"]


class TestSeveralLabels:
    NAMES = ("blue", "green", "red")

    @pytest.fixture
    def tagged(self, colours: Path, tmp_path: Path) -> str:
        """The images to evaluate, each with a list of its colour and, for red, another one."""
        files = sorted((colours / "validation").glob("*/*.png"))
        labels = [[file.parent.name] + ["blue"] * (file.parent.name == "red") for file in files]
        features = datasets.Features({"image": datasets.Image(), "tags": datasets.Sequence(datasets.Value("string"))})
        rows = datasets.Dataset.from_dict({"image": list(map(str, files)), "tags": labels}, features=features)
        rows.to_parquet(tmp_path / "validation.parquet")
        return str(tmp_path / "validation.parquet")

    def test_against_the_model_called_by_hand(self, tagged: str, colours: Path, tmp_path: Path) -> None:
        model = save_model(tmp_path / "model", ["red", "blue", "green"], problem_type="multi_label_classification")
        found, dataset = evaluate(model, tagged, label_column="tags", batch_size=4)
        assert isinstance(found, MultilabelEvaluation)
        classify = Classifier.load(model, "cpu").classify(sorted((colours / "validation").glob("*/*.png")), top_k=3)
        answers = [{each.label: each.probability for each in answer} for _, answer in classify]  # type: ignore[union-attr]
        truth = {"red": [0] * 10 + [1] * 5, "blue": [1] * 5 + [0] * 5 + [1] * 5, "green": [0] * 5 + [1] * 5 + [0] * 5}
        for name, expected in truth.items():
            scores = np.array([answer[name] for answer in answers])
            assert found.summary()["average_precision"][name] == pytest.approx(
                average_precision(scores, np.array(expected, bool))
            )
            recall = (scores > 0.5)[np.array(expected, bool)].mean()
            assert found.summary()["recall"][name] == pytest.approx(recall)
        assert [file.name for file in found.draw(dataset, tmp_path)] == ["average-precision.png"]

    def test_one_label_for_an_image_is_a_list_of_one(self, colours: Path, tmp_path: Path) -> None:
        model = save_model(tmp_path / "model", ["red", "blue", "green"], problem_type="multi_label_classification")
        found, _ = evaluate(model, str(colours))
        assert isinstance(found, MultilabelEvaluation)
        assert found.images == 15
        assert 0.2 < found.mean_average_precision < 1

    def test_one_class(self, tmp_path: Path) -> None:
        """A model of one label says yes or no."""
        draw_colours(tmp_path / "data", 2)
        lines = [
            json.dumps({"file_name": f"{name}/{index}.png", "labels": ["red"] * (name == "red")})
            for name in self.NAMES
            for index in range(2)
        ]
        (tmp_path / "data" / "metadata.jsonl").write_text("\n".join(lines))
        found, _ = evaluate(save_model(tmp_path / "model", ["red"]), str(tmp_path / "data"), "train")
        assert found.summary()["average_precision"].keys() == {"red"}

    def test_a_model_of_one_label_for_an_image(self, tagged: str, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"has several labels for an image, and the model gives exactly one"):
            evaluate(save_model(tmp_path / "model", list(self.NAMES)), tagged, label_column="tags")


def test_a_regression_has_no_labels(colours: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"the model is a regression \(problem_type in its config.json\)"):
        evaluate(save_model(tmp_path / "model", ["x"], problem_type="regression"), str(colours))
