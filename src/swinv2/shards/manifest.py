"""What a run computes, in a file of its output: model, labels, image processor, options, version.

In: these, as JSON values. Out: `predict.json`, written before the first shard, and the fingerprint that is in the name
of every file of answers. A run with anything else in the same output is an error.
"""

import json
from collections.abc import Mapping
from typing import Any

import swinv2
from swinv2.errors import UsageError, few
from swinv2.shards.output import Output
from swinv2.shards.shard import AnswersName, fingerprint

FILE, ANSWERS = "predict.json", "shards"
"""Names in the output: of the manifest, and of the folder with the files of answers."""

_SHORT = 40


def describe(about: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the answers.

    Args:
        about: See `Predictor.about`.
        options: The options of the command that decide what is written.
    """
    return {"swinv2": swinv2.__version__, **about, "options": dict(options)}


def fingerprint_of(described: Mapping[str, Any]) -> str:
    """The fingerprint of what `describe` returns."""
    return fingerprint(json.dumps(described, sort_keys=True))


def read(output: Output) -> dict[str, Any] | None:
    """The manifest of an output; None if it has none.

    Raises:
        UsageError: It is damaged.
    """
    content = output.read(FILE)
    if content is None:
        return None
    try:
        manifest = json.loads(content)
        if isinstance(manifest["fingerprint"], str) and isinstance(manifest["options"], dict):
            return manifest
    except (ValueError, KeyError, TypeError):
        pass
    raise UsageError(f"{output.file(FILE)!r} is no manifest of swinv2 predict, or damaged; give another --output.")


def begin(output: Output, described: Mapping[str, Any], model: str) -> None:
    """Writes the manifest of a new output, or compares that of an earlier run.

    Args:
        output: The output.
        described: See `describe`.
        model: The name of the model, for people.

    Raises:
        UsageError: The output was begun with something else; the message says with what.
    """
    new = {"fingerprint": fingerprint_of(described), "model": model, **described}
    old = read(output)
    if old is None:
        if any(AnswersName.read(name) for name in output.names(ANSWERS)):
            raise UsageError(f"--output {output.place!r} has answers but no {FILE}; give another folder.")
        output.publish_first(FILE, json.dumps(new, indent=2) + "\n")
        # Another run may have begun at the same moment, and was first.
        old = read(output) or new
    if old["fingerprint"] != new["fingerprint"]:
        changes = few(_changes({name: old[name] for name in old if name not in ("fingerprint", "model")}, described), 4)
        raise UsageError(
            f"--output {output.place!r} was begun with other settings ({FILE}): {changes}. Give the same ones, or "
            "another folder."
        )


def _changes(old: Mapping[str, Any], new: Mapping[str, Any], inside: str = "") -> list[str]:
    """What differs, in words."""
    changes: list[str] = []
    for name in sorted(old.keys() | new.keys()):
        before, now = old.get(name), new.get(name)
        if before == now:
            continue
        named = f"{inside}{name}"
        values = json.dumps(before), json.dumps(now)
        if isinstance(before, Mapping) and isinstance(now, Mapping) and len(before) < 64:
            changes += _changes(before, now, "" if name == "options" else f"{named}.")
        elif name == "weights":
            changes.append("other weights")
        elif max(map(len, values)) > _SHORT:
            changes.append(f"another {named}")
        else:
            changes.append(f"{named} {values[0]} there, {values[1]} here")
    return changes
