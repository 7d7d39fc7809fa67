"""The documents against the code: what they name exists, their tables agree, their examples run."""

import ast
import contextlib
import io
import re
import shlex
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import typer.main
from PIL import Image
from typer.testing import CliRunner

import scenes
from shard_files import images_of, read_answers, write_folder, write_parquet, write_tar
from small_models import make_model
from swinv2 import Swinv2Config, Swinv2ForImageClassification, Swinv2Model
from swinv2.cli import app
from swinv2.shards.answers import Columns
from swinv2.zoo import CHECKPOINTS, PRESETS
from video_files import counted, write_video

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "swinv2"
TOUR, GLOSSARY = ROOT / "docs" / "tour.md", ROOT / "docs" / "glossary.md"
PARITY, README = ROOT / "docs" / "concepts" / "parity.md", ROOT / "README.md"
DOCUMENTS = [*sorted((ROOT / "docs").rglob("*.md")), *sorted(ROOT.glob("*.md")), ROOT / "benchmarks" / "README.md"]
CODE = (".py", ".c", ".h")
HUB_NAME = "microsoft/swinv2-tiny-patch4-window8-256"


def read(document: Path) -> str:
    return document.read_text(encoding="utf-8")


def in_backticks(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", text)


def find_file(name: str) -> Path | None:
    """A file as a document names it: below the package, the repository, or the folder of the kernels in C."""
    return next(
        (folder / name for folder in (PACKAGE, ROOT, PACKAGE / "ops/cpu/sources") if (folder / name).is_file()), None
    )


def is_file_name(quoted: str) -> bool:
    return re.fullmatch(r"[\w./-]+\.(py|c|h|md|toml|yml|yaml|cff)", quoted) is not None


@cache
def names_in(file: Path) -> frozenset[str]:
    """Every name that a Python file binds or uses, and its strings that are names; every word of one in C."""
    if file.suffix != ".py":
        return frozenset(re.findall(r"\w+", read(file)))
    names: set[str] = set()
    for node in ast.walk(ast.parse(read(file))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            names.add(node.value)
        for field in ("id", "attr", "name", "arg"):
            value = getattr(node, field, None)
            if isinstance(value, str):
                names.add(value)
    return frozenset(names)


@cache
def package_names() -> frozenset[str]:
    return frozenset[str]().union(*(names_in(file) for file in PACKAGE.rglob("*.py")))


@cache
def names_of_tests() -> frozenset[str]:
    """Every test, as `name`, and as `Class::name` inside a class."""
    names: set[str] = set()
    for file in (ROOT / "tests").rglob("test_*.py"):
        for node in ast.parse(read(file)).body:
            inside = node.body if isinstance(node, ast.ClassDef) else [node]
            for item in inside:
                if isinstance(item, ast.FunctionDef) and item.name.startswith("test_"):
                    names.add(item.name)
                    if isinstance(node, ast.ClassDef):
                        names.add(f"{node.name}::{item.name}")
    return frozenset(names)


def passages(text: str) -> list[str]:
    """Paragraphs, items of lists and rows of tables: where a name stands beside the file it is in."""
    return [part for part in re.split(r"\n\s*\n|\n(?=- |\| )", text) if part.strip()]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_documents_name_no_place_of_one_machine(document: Path) -> None:
    """No absolute path of the machine a document was written on."""
    assert re.findall(r"(?<![\w.])/(?:work|root|tmp|home)\b", read(document)) == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_documents_lead_somewhere(document: Path) -> None:
    """Every relative link is a file."""
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", read(document))
    missing = [link for link in links if "://" not in link and not (document.parent / link).exists()]
    assert missing == []


def test_every_page_is_in_the_navigation() -> None:
    """mkdocs.yml lists every page below docs."""
    listed = set(re.findall(r"[\w/-]+\.md", read(ROOT / "mkdocs.yml")))
    assert listed == {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}


def test_files_of_the_tour_exist() -> None:
    """Every file that the tour and the glossary name exists, and the tour names every folder and top-level module."""
    named = {name for name in in_backticks(read(TOUR) + read(GLOSSARY)) if is_file_name(name)}
    assert sorted(name for name in named if find_file(name) is None) == []
    modules = {file.name for file in PACKAGE.glob("*.py")}
    folders = {f"{file.parent.relative_to(PACKAGE)}/" for suffix in CODE for file in PACKAGE.rglob(f"*{suffix}")}
    assert sorted((modules | folders - {"./"}) - set(in_backticks(read(TOUR)))) == []


def test_names_of_the_tour_are_in_the_files_beside_them() -> None:
    """A name in backticks is found in a file that the same paragraph, item or row names."""
    astray = []
    for passage in passages(read(TOUR)) + passages(read(GLOSSARY)):
        quoted = in_backticks(passage)
        files = [find_file(name) for name in quoted if is_file_name(name)]
        known = frozenset[str]().union(*(names_in(file) for file in files if file and file.suffix in CODE))
        for name in quoted:
            parts = re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_0-9]+)*", name)
            if parts is None or is_file_name(name):
                continue
            words = [part for part in name.split(".") if not part.isdigit()]
            for word in words if "." not in name or name[0].isupper() else []:
                if word not in (known or package_names()):
                    astray.append((name, passage[:60]))
    assert astray == []


def test_the_tour_has_twenty_questions() -> None:
    """Each is answered with a file."""
    rows = [row for row in read(TOUR).partition("## Twenty questions")[2].splitlines() if "?" in row]
    assert len(rows) == 20
    assert all(any(is_file_name(name) for name in in_backticks(row)) for row in rows)


def test_names_in_the_file_are_names_in_the_code() -> None:
    """The glossary's table of checkpoint names: each is part of a real tensor's name."""
    table = read(GLOSSARY).partition("## Names in the file")[2].partition("\n## ")[0]
    columns = [row.split("|")[1] for row in table.splitlines() if row.startswith("| `")]
    with torch.device("meta"):
        tensors = list(Swinv2ForImageClassification(Swinv2Config()).state_dict())
    for name in (name for column in columns for name in in_backticks(column)):
        assert any(f".{name}." in f".{tensor}" for tensor in tensors), name


def test_shapes_of_the_tour_are_real() -> None:
    """The maps at the doors, for the tiny model."""
    model = Swinv2Model(Swinv2Config(**PRESETS["tiny"].config_fields())).eval()
    with torch.no_grad():
        outputs = model(torch.zeros(1, 3, 256, 256), output_hidden_states=True)
    text = read(TOUR)
    for feature_map in outputs.reshaped_hidden_states:
        _, channels, height, width = feature_map.shape
        assert f"(B, {height}, {width}, {channels})" in text
    assert "(B, 64, 768); (B, 768)" in text
    assert (tuple(outputs.last_hidden_state.shape), tuple(outputs.pooler_output.shape)) == ((1, 64, 768), (1, 768))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_tests_that_documents_name_exist(document: Path) -> None:
    """A claim that names its test names a real one."""
    quoted = in_backticks(read(document))
    named = [name for name in quoted if re.fullmatch(r"(Test\w+::)?test_\w+", name)]
    named += re.findall(r"-k (test_\w+)", read(document))
    assert sorted(set(named) - names_of_tests()) == []
    assert document != PARITY or len(named) > 40


def test_sizes_of_the_readme_are_the_zoos() -> None:
    """A row for each size, in its order, with its numbers."""
    rows = [row for row in read(README).splitlines() if re.match(r"\| \S+ \| SwinV2-", row)]
    expected = []
    for size in PRESETS.values():
        numbers = (", ".join(map(str, values)) for values in ([size.embed_dim], size.depths, size.num_heads))
        counted = "with 1000 classes" if size.stated_with_classifier else "without classes"
        cells = (size.name, size.paper_name, *numbers, f"{size.parameters:,}", f"{size.stated_parameters}, {counted}")
        expected.append(f"| {' | '.join(cells)} |")
    assert rows == expected


def test_checkpoints_of_the_readme_are_the_zoos() -> None:
    """A row for each published checkpoint, in its order, with its numbers."""
    rows = [row for row in read(README).splitlines() if row.startswith("| `microsoft/")]
    expected = []
    for checkpoint in CHECKPOINTS.values():
        windows = checkpoint.pretrained_window_sizes
        cells = (
            f"`{checkpoint.name}`",
            checkpoint.size,
            str(checkpoint.image_size),
            str(checkpoint.window_size),
            ", ".join(map(str, windows)) if any(windows) else "the same",
            checkpoint.labels,
            "none published" if checkpoint.top1 is None else f"{checkpoint.top1}%",
        )
        expected.append(f"| {' | '.join(cells)} |")
    assert rows == expected


def test_commands_and_options_are_in_the_reference() -> None:
    """The reference has every command and option of the command line, and no other."""
    text = read(ROOT / "docs" / "reference" / "api.md").partition("## Models")[0]
    group: Any = typer.main.get_command(app)
    options = {name for command in group.commands.values() for parameter in command.params for name in parameter.opts}
    options = {name for name in options if name.startswith("-")} - {"--help", "-h"}
    listed = {name for name in in_backticks(text) if name.startswith("-")}
    assert listed == options
    assert set(re.findall(r"`swinv2 ([a-z]+)", text)) == set(group.commands)


def test_info_of_the_guide_is_what_the_command_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    """The block in the guide, line by line, where it is not cut."""
    block = re.search(r"```console\n\$ swinv2 info tiny\n(.*?)```", read(ROOT / "docs/guides/classify.md"), re.DOTALL)
    assert block is not None
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    printed = [line.rstrip() for line in CliRunner().invoke(app, ["info", "tiny"]).stdout.splitlines()]
    assert [line for line in block[1].splitlines() if line != "..." and line not in printed] == []


@pytest.fixture(scope="module")
def local_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A narrow model for 256 pixels and 1000 classes with its processor, and an image."""
    folder = tmp_path_factory.mktemp("model")
    config = Swinv2Config(
        image_size=256, window_size=8, embed_dim=12, depths=[1, 1, 1, 1], num_heads=[1, 2, 4, 8], num_labels=1000
    )
    Swinv2ForImageClassification(config).save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 256, "width": 256}).save_pretrained(folder)
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "photo.png")
    return folder


HUB_EXAMPLES = [
    block for block in re.findall(r"```python\n(.*?)```", read(README), re.DOTALL) if "needs the hub" in block
]


def test_the_documented_examples_are_found() -> None:
    assert len(HUB_EXAMPLES) == 4
    assert all(HUB_NAME in example for example in HUB_EXAMPLES)


@pytest.mark.parametrize("example", HUB_EXAMPLES, ids=["pipeline", "auto", "mim", "classification"])
@pytest.mark.usefixtures("registered")
def test_examples_that_need_the_hub_run_without_it(
    example: str, local_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The README's lines, with a folder in place of the hub's name, a file in place of addresses, and the CPU."""
    datasets, requests = pytest.importorskip("datasets"), pytest.importorskip("requests")
    photo = local_model / "photo.png"

    class Response:
        raw = io.BytesIO(photo.read_bytes())

    monkeypatch.setattr(requests, "get", lambda url, stream: Response)
    monkeypatch.setattr(datasets, "load_dataset", lambda name: {"test": {"image": [Image.open(photo)]}})
    code = example.replace(HUB_NAME, str(local_model)).replace("device=0", 'device="cpu"')
    code = re.sub(r'pipeline\("https://[^"]+"\)', f"answer = pipeline({str(photo)!r})", code)
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    model = names["pipeline"].model if "pipeline" in names else names["model"]
    assert type(model).__module__ == "swinv2.heads"
    assert "answer" not in names or len(names["answer"]) == 5


def test_commands_of_the_guide_to_many_images_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each `swinv2 predict` command that needs no store and no cluster, and the lines of Python that read answers."""
    write_folder(tmp_path / "photos", images_of(3))
    for number in range(4):
        write_tar(tmp_path / "train" / f"{number:04d}.tar", images_of(2, first=10 * number))
    write_tar(tmp_path / "more" / "a.tar", images_of(1))
    (tmp_path / "list.txt").write_text("photos/0000.png\n")
    write_parquet(tmp_path / "data.parquet", {"image": list(images_of(2).values()), "id": ["one", "two"]})
    monkeypatch.chdir(tmp_path)
    guide = read(ROOT / "docs" / "guides" / "predict.md")
    blocks = re.findall(r"```sh\n(.*?)```", guide, re.DOTALL)
    commands = [line for block in blocks if "# needs" not in block for line in block.splitlines()]
    commands = [command for command in commands if "--ray" not in command]
    assert len(commands) == 7
    for command in commands:
        name, *arguments = shlex.split(command.partition(" > ")[0])
        result = CliRunner().invoke(app, [*arguments, "--readers", "0"])
        assert (name, result.exit_code) == ("swinv2", 0), (command, result.output)
    written = {str(path.relative_to(tmp_path)) for path in (tmp_path / "answers").iterdir()}
    assert written == {f"answers/{name}" for name in ("predict.json", "lists", "shards")}
    assert len(read_answers(tmp_path / "labelled")) == 9
    assert [row["key"] for row in read_answers(tmp_path / "vectors")] == ["one", "two", "photos/0000.png"]
    assert len(read_answers(tmp_path / "parts")) == 8
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for code in re.findall(r"```python\n(.*?)```", guide, re.DOTALL):
            exec(compile(code, "predict.md", "exec"), {})
    assert [line.split()[0] for line in printed.getvalue().splitlines()] == list(images_of(3))
    # The table of columns is the schema's.
    table = guide.partition("| column | value |")[2].partition("\n\n")[0]
    listed = [name for row in table.splitlines() if row.startswith("| `") for name in in_backticks(row.split("|")[1])]
    assert listed == Columns(True, True, shape=True).schema().names


def test_commands_of_the_guide_to_videos_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each `swinv2` command, on a small model and small videos; they leave the folders and the figure."""
    make_model(tmp_path / "my-model")
    (tmp_path / "clips").mkdir()
    for path in (tmp_path / "clip.mp4", tmp_path / "clips" / "a.mp4"):
        write_video(path, counted(12))
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```sh\n(.*?)```", read(ROOT / "docs" / "guides" / "video.md"), re.DOTALL)
    commands = [line for block in blocks for line in block.splitlines()]
    assert len(commands) == 7
    for command in commands:
        name, *arguments = shlex.split(command.partition(" > ")[0])
        result = CliRunner().invoke(app, arguments)
        assert (name, result.exit_code) == ("swinv2", 0), (command, result.output)
    made = {path.name for path in tmp_path.iterdir()}
    assert made == {"my-model", "video-model", "short-model", "clip.mp4", "clips", "time.png"}


@pytest.mark.parametrize("guide", ["segment", "detect"])
def test_commands_of_the_guides_run_on_ten_images(guide: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each `swinv2` command in a guide, on small scenes and for an epoch; they leave the files that the guide names."""
    from swinv2.train.dense import choices

    write = {"segment": scenes.write_masks, "detect": scenes.write_objects}[guide]
    data = write(tmp_path / {"segment": "street", "detect": "cells"}[guide], count=10)
    for folder in data.rglob("validation"):
        shutil.copytree(folder, folder.with_name("test"))
    short = [row._replace(epochs=1, epochs_of_objects=1) for row in choices.LENGTHS]
    monkeypatch.setattr(choices, "LENGTHS", short)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```sh\n(.*?)```", read(ROOT / "docs/guides" / f"{guide}.md"), re.DOTALL)
    commands = [line for block in blocks for line in block.splitlines() if line.startswith("swinv2 ")]
    assert len(commands) >= 4
    for command in commands:
        result = CliRunner().invoke(app, shlex.split(command)[1:])
        assert result.exit_code == 0, (command, result.output)
    files = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert {"answers.png", "classes.png", "curves.png", "results.json", "model.safetensors"} <= files
    assert "000_classes.png" in files if guide == "segment" else {"000_objects.png", "precision.png"} <= files
