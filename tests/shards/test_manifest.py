"""The manifest: written once, and compared; what differs is named."""

import json
from pathlib import Path
from typing import Any

import pytest

from swinv2.errors import UsageError
from swinv2.shards import manifest
from swinv2.shards.manifest import ANSWERS, FILE, begin, describe, fingerprint_of, read
from swinv2.shards.output import Output

ABOUT: dict[str, Any] = {
    "weights": "1234",
    "config": {"depths": [1, 1], "id2label": {str(number): f"class {number}" for number in range(9)}},
    "processor": {"size": {"height": 16, "width": 16}},
}
OPTIONS = {"top_k": 3, "batch_size": 16}


@pytest.fixture
def output(tmp_path: Path) -> Output:
    found = Output(str(tmp_path / "out"))
    found.prepare(ANSWERS)
    return found


def test_it_is_written_once(output: Output) -> None:
    described = describe(ABOUT, OPTIONS)
    assert read(output) is None
    begin(output, described, "a model")
    content = output.read(FILE)
    begin(output, described, "the same by another name")
    assert output.read(FILE) == content
    found = read(output)
    assert found is not None
    assert (found["model"], found["options"], found["weights"]) == ("a model", OPTIONS, "1234")
    assert found["fingerprint"] == fingerprint_of(described)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"options": {**OPTIONS, "top_k": 5}}, "top_k 3 there, 5 here"),
        ({"options": {"top_k": 3}}, "batch_size 16 there, null here"),
        ({"weights": "5678"}, "other weights"),
        ({"config": {**ABOUT["config"], "depths": [2, 2]}}, r"config.depths \[1, 1\] there, \[2, 2\] here"),
        ({"config": {**ABOUT["config"], "id2label": {"0": "x" * 99}}}, "another config.id2label.0"),
        ({"processor": {"size": {"height": 32, "width": 16}}}, "processor.size.height 16 there, 32 here"),
        ({"swinv2": "99"}, 'swinv2 ".*" there, "99" here'),
    ],
)
def test_what_has_changed_is_named(output: Output, change: dict[str, Any], message: str) -> None:
    described = describe(ABOUT, OPTIONS)
    begin(output, described, "a model")
    with pytest.raises(UsageError, match=f"was begun with other settings .*{message}"):
        begin(output, {**described, **change}, "a model")


def test_only_the_name_of_the_model_may_change() -> None:
    described = describe(ABOUT, OPTIONS)
    assert fingerprint_of(described) == fingerprint_of(json.loads(json.dumps(dict(reversed(described.items())))))
    assert fingerprint_of(described) != fingerprint_of(describe(ABOUT, {**OPTIONS, "top_k": 4}))


@pytest.mark.parametrize("content", ["{", "[]", '{"fingerprint": 3, "options": {}}', "{}"])
def test_a_damaged_one_is_a_sentence(output: Output, content: str) -> None:
    Path(output.file(FILE)).write_text(content)
    with pytest.raises(UsageError, match="is no manifest of swinv2 predict, or damaged"):
        begin(output, describe(ABOUT, OPTIONS), "a model")


def test_answers_without_a_manifest(output: Output) -> None:
    Path(output.file(f"{ANSWERS}/a-{'0' * 12}-000000.{'1' * 12}.{'2' * 16}.parquet")).touch()
    with pytest.raises(UsageError, match=f"has answers but no {FILE}"):
        begin(output, describe(ABOUT, OPTIONS), "a model")


def test_two_runs_that_begin_together(output: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one whose manifest was replaced stops."""
    mine, other = describe(ABOUT, OPTIONS), describe(ABOUT, {**OPTIONS, "top_k": 9})
    original, calls = manifest.read, list[int]()

    def read_late(output: Output) -> dict[str, Any] | None:
        calls.append(1)
        if len(calls) == 2:
            new = {"fingerprint": fingerprint_of(other), "model": "x", **other}
            Path(output.file(FILE)).write_text(json.dumps(new))
        return original(output)

    monkeypatch.setattr(manifest, "read", read_late)
    with pytest.raises(UsageError, match="top_k 9 there, 3 here"):
        begin(output, mine, "a model")
