"""Damaged, foreign and hostile files: a sentence, nothing written, nothing run."""

import errno
import json
import os
import pickle
import random
import sys
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import foreign
from conversions import NAMED, Damage, File, change, fill, put, refused, save
from foreign import small_sizes
from swinv2.convert import convert
from swinv2.convert.files import open_weights
from swinv2.errors import UsageError

BLOCK = "layers.0.blocks.1."
DAMAGE = {
    "nan": (
        fill(f"{BLOCK}mlp.fc1.weight", float("nan")),
        f"weights are NaN or infinite: {BLOCK}mlp.fc1.weight",
    ),
    "infinite": (fill("head.weight", float("inf")), "weights are NaN or infinite: head.weight"),
    "integers": (change("norm.weight", torch.Tensor.long), "norm.weight (torch.int64)"),
    "complex": (
        change("norm.weight", lambda tensor: tensor.to(torch.complex64)),
        "norm.weight (sparse, quantised or complex)",
    ),
    "eight-bits": (
        change("head.weight", lambda tensor: tensor.to(torch.float8_e4m3fn)),
        "head.weight (torch.float8_e4m3fn)",
    ),
    "no-numbers": (put("norm.weight", torch.ones(32, device="meta")), "norm.weight (a shape without numbers)"),
    "sparse": (change("head.weight", torch.Tensor.to_sparse), "head.weight (sparse, quantised or complex)"),
    "expanded": (
        put("head.weight", torch.ones(1).expand(5, 32)),
        "head.weight (its shape has more numbers than the file)",
    ),
    "name-with-a-new-line": (
        put("first\nsecond\x1b[31m", torch.ones(2)),
        r"contains more than tensors by name: 'first\nsecond\x1b[31m'",
    ),
}


@pytest.fixture
def run_code(tmp_path: Path) -> Iterator[Path]:
    """What hostile files try to make; it is never there."""
    made = tmp_path / "code-was-run"
    yield made
    assert not made.exists()


class Hostile:
    """Opened by pickle, it makes a folder."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.made),)


def test_the_valid_file_is_taken(file: File, tmp_path: Path) -> None:
    """Or every test of damage would pass for another reason."""
    convert(save({"model": file}, tmp_path / NAMED), tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["config.json", "model.safetensors", "preprocessor_config.json"]


@pytest.mark.parametrize(("damage", "expected"), DAMAGE.values(), ids=DAMAGE)
def test_tensors_that_are_no_plain_finite_numbers(damage: Damage, expected: str, file: File, tmp_path: Path) -> None:
    damage(file)
    assert expected in refused(save({"model": file}, tmp_path / NAMED), tmp_path)


@pytest.mark.parametrize("share", [0.0001, 0.01, 0.3, 0.7, 0.99, 0.9999])
@pytest.mark.parametrize("suffix", ["pth", "safetensors", "legacy.pth"])
def test_cut_off(suffix: str, share: float, file: File, tmp_path: Path) -> None:
    """At any byte, in torch's archive, its older format, and safetensors."""
    path = tmp_path / f"weights.{suffix}"
    if suffix == "safetensors":
        save_file(file, path)
    else:
        torch.save({"model": file}, path, _use_new_zipfile_serialization=suffix == "pth")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert "weights" in refused(path, tmp_path)


@pytest.mark.parametrize("suffix", ["pth", "safetensors", "legacy.pth"])
def test_cut_off_at_every_byte(suffix: str, tmp_path: Path) -> None:
    """Of a small file, and with random bytes at random places in another run: never another error."""
    path, draw = tmp_path / f"weights.{suffix}", random.Random(0)
    tensors = {"first": torch.ones(2, 3), "second": torch.zeros(5)}
    if suffix == "safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=suffix == "pth")
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(UsageError):
            open_weights(path)
    for _ in range(300):
        damaged = bytearray(content)
        for _ in range(draw.randint(1, 8)):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        path.write_bytes(damaged)
        with suppress(UsageError):
            open_weights(path)


def test_one_bit_of_a_matrix(file: File, tmp_path: Path) -> None:
    """torch itself does not notice it: the number stays finite, and only the checksum tells."""
    path = Path(save({"model": file}, tmp_path / NAMED))
    content = bytearray(path.read_bytes())
    place = content.find(file["head.weight"].numpy().tobytes())
    assert place > 0
    content[place + 2] ^= 1
    path.write_bytes(content)
    assert not torch.equal(torch.load(path, weights_only=True)["model"]["head.weight"], file["head.weight"])
    assert "is wrong" in refused(path, tmp_path)


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"GIF89a" + b"\x00" * 50, b"PK\x03\x04 and no more", b"\x80"])
def test_other_files(content: bytes, tmp_path: Path) -> None:
    """Empty, zeros, an image, an archive that is none, a pickle that is none."""
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    assert str(path) in refused(path, tmp_path)


def test_an_archive_that_torch_did_not_write(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "nothing")
    assert "incomplete or damaged" in refused(path, tmp_path)


def test_a_program_in_torchs_archive(tmp_path: Path) -> None:
    """TorchScript is code."""
    path = tmp_path / "weights.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/constants.pkl", pickle.dumps(()))
        archive.writestr("model/data.pkl", pickle.dumps({}))
        archive.writestr("model/version", "3")
    assert str(path) in refused(path, tmp_path)


@pytest.mark.parametrize("older", [False, True], ids=["archive", "older-form"])
def test_code_in_a_pickle(older: bool, file: File, run_code: Path, tmp_path: Path) -> None:
    """It is named, and it does not run."""
    path = tmp_path / "weights.pth"
    torch.save({"model": file, "config": Hostile(run_code)}, path, _use_new_zipfile_serialization=not older)
    sentence = refused(path, tmp_path)
    assert "posix.mkdir" in sentence
    assert "which is code" in sentence


def test_code_in_a_plain_pickle(run_code: Path, tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(pickle.dumps(Hostile(run_code)))
    assert str(path) in refused(path, tmp_path)


def test_the_settings_of_the_authors_trainings(file: File, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their checkpoints hold a CfgNode of yacs in another. It is opened as a dictionary, without yacs, and not run."""
    ran: list[str] = []

    class CfgNode(dict[str, Any]):
        __module__, __qualname__ = "yacs.config", "CfgNode"

        def __setstate__(self, state: Any) -> None:
            ran.append("state")

        def __getstate__(self) -> Any:
            return {"__immutable__": True, "__deprecated_keys__": set()}

    yacs, config = ModuleType("yacs"), ModuleType("yacs.config")
    vars(config)["CfgNode"] = CfgNode
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "yacs", yacs)
        patched.setitem(sys.modules, "yacs.config", config)
        settings = CfgNode({"MODEL": CfgNode({"NAME": "swinv2"}), "BASE": [""]})
        path = save({"model": file, "config": settings, "epoch": 3}, tmp_path / NAMED)
        report = convert(path, None)
    again = convert(path, tmp_path / "out")
    assert any("not read: 'config', 'epoch'" in note for note in report.notes)
    assert (report.parameters, ran) == (again.parameters, [])


def test_a_whole_module_in_a_pickle(tmp_path: Path) -> None:
    """Somebody saved the network and not its tensors."""
    sentence = refused(save(torch.nn.Linear(2, 2), tmp_path / NAMED), tmp_path)
    assert "torch.nn.modules.linear.Linear" in sentence


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param([torch.ones(2)], "contains list", id="list"),
        pytest.param({}, "contains no tensor", id="nothing"),
        pytest.param({"model": {}}, "contains no tensor", id="nothing-inside"),
        pytest.param({"epoch": 3, "x": torch.ones(2)}, "'epoch'", id="numbers-among-tensors"),
        pytest.param({1: torch.ones(2)}, "contains more than tensors by name: 1", id="names-that-are-none"),
        pytest.param({"a": torch.ones(2), "b": torch.ones(2)}, "these 2 tensors are not a Swin", id="another-network"),
    ],
)
def test_other_contents(content: Any, expected: str, tmp_path: Path) -> None:
    assert expected in refused(save(content, tmp_path / NAMED), tmp_path)


def test_a_published_name_with_other_contents(file: File, tmp_path: Path) -> None:
    """torchvision's files bear the first digits of their digest."""
    path = tmp_path / "swin_v2_t-b137f0e2.pth"
    torch.save(file, path)
    assert "not b137f0e2" in refused(path, tmp_path)


def test_places_that_hold_no_weights(tmp_path: Path) -> None:
    """Nothing there, an empty folder, a dangling link, a loop of links, a pipe."""
    assert "there is no file or folder" in refused(tmp_path / "nothing", tmp_path)
    (tmp_path / "empty").mkdir()
    assert "has no weights" in refused(tmp_path / "empty", tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "gone.pth")
    assert "gone.pth', which does not exist" in refused(tmp_path / "link", tmp_path)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert "loop" in refused(tmp_path / "loop", tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "neither a file nor a folder" in refused(tmp_path / "pipe", tmp_path)


def test_a_folder_in_place_of_the_weights(tmp_path: Path) -> None:
    (tmp_path / "model" / "model.safetensors").mkdir(parents=True)
    assert "model.safetensors" in refused(tmp_path / "model", tmp_path)


def test_a_file_that_may_not_be_read(file: File, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests may run as a user who may read everything, so the system's answer is given by hand."""
    path = Path(save({"model": file}, tmp_path / NAMED))
    opened = Path.open

    def deny(self: Path, *arguments: Any, **named: Any) -> Any:
        if self == path:
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return opened(self, *arguments, **named)

    monkeypatch.setattr(Path, "open", deny)
    assert "may not be read: permission denied" in refused(path, tmp_path)


def test_shards_that_do_not_belong_together(file: File, tmp_path: Path) -> None:
    """One is missing, one is not listed, and one is a way out of the folder."""
    folder = tmp_path / "model"
    folder.mkdir()
    names = sorted(file)
    where = {name: f"model-{1 + index % 2}.safetensors" for index, name in enumerate(names)}
    for number in (1, 2):
        part = f"model-{number}.safetensors"
        save_file({name: file[name] for name in names if where[name] == part}, folder / part)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": where}))
    convert(str(folder), None, trained_image_size=64)
    index.write_text(json.dumps({"weight_map": {name: part for name, part in where.items() if name != names[0]}}))
    assert names[0] in refused(folder, tmp_path)
    index.write_text(json.dumps({"weight_map": where | {names[0]: "../model.safetensors"}}))
    assert "does not name the file of each tensor" in refused(folder, tmp_path)
    index.write_text(json.dumps({"weight_map": where}))
    (folder / "model-2.safetensors").unlink()
    assert "there is no file" in refused(folder, tmp_path)


def test_code_that_a_configuration_names_is_not_handed_on(file: File, tmp_path: Path) -> None:
    """transformers would fetch and run it where it is trusted."""
    convert(save({"model": file}, tmp_path / NAMED), tmp_path / "model")
    for name in ("config.json", "preprocessor_config.json"):
        place = tmp_path / "model" / name
        fields = json.loads(place.read_text())
        code = {"auto_map": {"AutoModel": "them/their--code.Model"}, "custom_pipelines": {"x": {"impl": "code.X"}}}
        place.write_text(json.dumps(fields | code))
    convert(str(tmp_path / "model"), tmp_path / "out")
    for name in ("config.json", "preprocessor_config.json"):
        fields = json.loads((tmp_path / "out" / name).read_text())
        assert "image_size" in fields or "image_mean" in fields
        assert not {"auto_map", "custom_pipelines"} & set(fields)


def test_what_training_scripts_put_around_a_network(tmp_path: Path) -> None:
    """DistributedDataParallel's and torch.compile's prefixes, and averages beside the model: said, and not mixed up."""
    file = foreign.microsoft_file(small_sizes())
    wrapped = {"model": {f"module._orig_mod.{name}": tensor for name, tensor in file.items()}, "model_ema": file}
    report = convert(save(wrapped, tmp_path / NAMED), None)
    assert any("Only 'model' was read from the file; not read: 'model_ema'" in note for note in report.notes)
    assert sum("which was removed" in note for note in report.notes) == 2
