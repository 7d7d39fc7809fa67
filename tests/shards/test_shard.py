"""Names of shards and of their files: made, and read again."""

from dataclasses import replace

import pytest

from swinv2.shards.shard import AnswersName, Shard, fingerprint, source_id

RUN = fingerprint("a run")


@pytest.mark.parametrize(
    "source", ["/data/0001.tar", "s3://bucket/photos", "/data/ü %/[x].parquet", "/", "/data/.-hidden"]
)
def test_a_name_says_all_again(source: str) -> None:
    shard = Shard("tar", source, 12, fingerprint("content")[:12], source)
    found = AnswersName.read(shard.answers(RUN))
    assert found == AnswersName(shard.name, source_id(source), 12, shard.content, RUN[:16])
    # Readers of parquet leave names out that begin with a dot or an underscore.
    assert shard.name[0].isalnum()
    assert shard.answers(RUN).isascii()


def test_everything_has_another_name() -> None:
    shard = Shard("tar", "/data/0001.tar", 0, fingerprint("content")[:12], "/data/0001.tar")
    others = [
        replace(shard, source="/other/0001.tar"),
        replace(shard, part=1),
        replace(shard, content=fingerprint("other")[:12]),
    ]
    assert len({each.answers(RUN) for each in [shard, *others]} | {shard.answers(fingerprint("other"))}) == 5


def test_long_names_are_cut() -> None:
    shard = Shard("tar", f"/data/{'x' * 300}.tar", 0, fingerprint("content")[:12], "/data/x.tar")
    assert len(shard.answers(RUN)) < 140


@pytest.mark.parametrize("name", ["predict.json", ".x-1.part", "photos.parquet", "a-b-000001.c.d.parquet"])
def test_other_files_have_no_answers(name: str) -> None:
    assert AnswersName.read(name) is None


def test_names_that_are_no_text() -> None:
    assert fingerprint("\udcff") == fingerprint(b"\xff")
