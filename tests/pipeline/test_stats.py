import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import StreamingLoader, stats
from pipeline.format import SUFFIX, ShardSet
from pipeline.stats import TimedLoader, bare_decode, bare_gather
from tests.helpers import encode, make_image, make_shard_set

ROOT = Path(__file__).parents[2]
Make = Callable[..., ShardSet]


def run(shards: ShardSet, *arguments: str, code: int = 0) -> None:
    assert stats.main([str(shards.folder), "--batch-size", "8", "--seconds", "0.1", *arguments]) == code


@pytest.mark.parametrize("encoding", sorted(SUFFIX))
def test_every_figure_is_there(shard_set: Make, encoding: str, capsys: pytest.CaptureFixture[str]) -> None:
    run(shard_set(encoding=encoding), "--threads", "2", "--window", "2", "--lanes", "2", "--labels", "--json")
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found["images"] > 0
    assert found["images"] % 8 == 0
    assert found["loader_rate"] == pytest.approx(found["images"] / found["seconds"])
    assert found["ratio"] == pytest.approx(found["loader_rate"] / found["limit_rate"])
    assert found["peak_bytes"] >= found["loader_bytes"]
    assert found["first_batch_seconds"] > 0
    assert sum(found["stage_seconds"].values()) >= 2 * found["seconds"] * 0.99
    assert sum(found["next_seconds"].values()) == pytest.approx(found["seconds"], rel=0.5)
    assert found["stage_seconds"].keys() == {"plan", "open", "read", "decode", "idle"}
    assert all(found["stage_seconds"][stage] > 0 for stage in ("plan", "open", "read", "decode"))
    assert (found["threads"], found["window"], found["lanes"], found["samples"]) == (2, 2, 2, 40)
    assert found["limit"] == {"raw": "a bare gather from memory", "jpeg": "bare simplejpeg from memory"}.get(
        encoding, "bare Pillow from memory"
    )


def test_sets_of_two_encodings_are_measured_as_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = []
    for seed, encoding in enumerate(("raw", "jpeg")):
        places.append(str(make_shard_set(tmp_path / encoding, encoding=encoding, seed=seed).folder))
    assert stats.main([places[0], f"{places[1]}*2", "--batch-size", "8", "--seconds", "0.1", "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (found["samples"], found["encoding"]) == (40 + 80, "raw, jpeg")
    assert found["limit"] == "bare simplejpeg from memory"


def test_the_table_is_for_people(shard_set: Make, capsys: pytest.CaptureFixture[str]) -> None:
    run(shard_set(), "--split", "val")
    shown = " ".join(capsys.readouterr().out.split())
    for words in ("12 images of 16 px", "the loader", "bare simplejpeg", "ratio", "decode threads:", "first batch"):
        assert words in shown


def test_no_thread_is_left(shard_set: Make, capsys: pytest.CaptureFixture[str]) -> None:
    before = threading.active_count()
    run(shard_set())
    assert threading.active_count() == before


@pytest.mark.parametrize("arguments", [("--split", "dev"), ("--seconds", "0"), ("--batch-size", "0"), ("--nonsense",)])
def test_a_mistake_is_one_line_or_usage(
    shard_set: Make, arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    run(shard_set(), *arguments, code=2)
    out, err = capsys.readouterr()
    assert not out
    assert "Traceback" not in err
    assert err


def test_a_damaged_set_is_a_fault(shard_set: Make, capsys: pytest.CaptureFixture[str]) -> None:
    shards = shard_set()
    next(shards.folder.glob("train-*.tar")).write_bytes(b"")
    run(shards, code=1)
    assert capsys.readouterr().err.startswith("error: ")


def test_it_is_a_module_to_run(shard_set: Make) -> None:
    command = [sys.executable, "-m", "pipeline.stats", str(shard_set().folder), "--seconds", "0.1", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["batch_size"] == 256


def test_the_clock_changes_no_batch(shard_set: Make) -> None:
    shards = shard_set()
    with (
        TimedLoader(shards, batch_size=8, threads=2) as timed,
        StreamingLoader(shards, batch_size=8, threads=2) as plain,
    ):
        for _ in range(7):
            one, other = next(timed), next(plain)
            assert one.keys == other.keys
            assert bool((one.images == other.images).all())
        assert timed.seconds.keys() == {"plan", "open", "read", "task", "next: plan", "next: hand over"}


def test_what_the_limit_reads_are_the_members_of_the_set(shard_set: Make) -> None:
    with TimedLoader(shard_set(), batch_size=8, threads=1) as loader:
        members = list(loader.sample_bytes(1 << 20))
        assert sorted(members) == sorted(encode(make_image("train", number, 16), "jpeg") for number in range(40))
        few = list(loader.sample_bytes(3 * max(map(len, members))))
        assert 3 <= len(few) < 8
        assert few == members[: len(few)]
        assert len(list(loader.sample_bytes(1))) == 1


def test_limits_count_what_they_did() -> None:
    members = [encode(make_image("train", number, 16), "jpeg") for number in range(5)]
    for limit in (bare_decode(members, (16, 16, 3), 2), bare_gather(np.zeros((10, 48), np.uint8), 2)):
        turn = limit(0.02)
        assert turn.images > 0
        assert turn.seconds >= 0.02
    with pytest.raises(ValueError, match="JPEG"):
        bare_decode([b"\xff\xd8 no image"], (16, 16, 3), 1)(0.02)
