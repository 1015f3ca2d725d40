"""One dataclass is the command line, what a set records of it, and what replays that."""

import json
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UserError
from shard_tool.options import Options, command_of, words_of

FIELDS = {
    "size": st.integers(1, 200),
    "crop": st.sampled_from(["center", "pad", "stretch", "none"]) | st.integers(200, 400),
    "quality": st.integers(1, 100),
    "subsampling": st.sampled_from(["444", "420"]),
    "background": st.sampled_from(["white", "Black", "#12aBcd"]),
    "upscale": st.booleans(),
    "val_fraction": st.sampled_from([0.0, 0.05, 0.3]),
    "val_by": st.sampled_from(["photo", "folder"]),
    "shard_size": st.sampled_from([None, "100MB", "1GiB", "30000"]),
    "seed": st.integers(0, 9),
    "drop_duplicates": st.booleans(),
    "not_in": st.lists(st.sampled_from(["shards/a", "b"]), max_size=2).map(tuple),
    "limit": st.none() | st.integers(1, 99),
    "labels": st.sampled_from([None, "folders", "some/where/table.csv"]),
    "no_json": st.booleans(),
    "include": st.lists(st.sampled_from(["*.png", "a b/*"]), max_size=2).map(tuple),
}


@given(st.fixed_dictionaries(FIELDS))
def test_what_is_recorded_replays_to_the_same_record(values: dict[str, object]) -> None:
    options = Options(**values)  # type: ignore[arg-type]
    recorded = json.loads(json.dumps(options.record()))
    assert Options.replay(recorded).record() == recorded
    assert "some/where" not in json.dumps(recorded)


def test_the_command_says_what_is_not_the_default_and_nothing_else() -> None:
    assert command_of(Options().record(), "PHOTOS", "my set") == "shard_tool make-shards PHOTOS --out 'my set'"
    options = Options(size=32, crop=40, exclude=("a b/*", "c"), keep_order=True, no_json=True, labels="x/t.csv")
    words = shlex.split(command_of(options.record(), "PHOTOS", "out"))[5:]
    assert words == [
        *("--size", "32", "--crop", "40", "--exclude", "a b/*", "c"),
        *("--keep-order", "--labels", "t.csv", "--no-json"),
    ]


def test_what_an_older_set_recorded_is_understood() -> None:
    recorded = {
        "size": 64, "crop": "center", "encode": "raw", "quality": None, "subsampling": None, "background": "#ffffff",
        "upscale": False, "exact": False, "val_fraction": None, "shard_samples": None, "shard_bytes": 1_000_000,
        "seed": None, "keep_order": True, "drop_duplicates": False, "limit": None, "json": False, "labels": None,
    }  # fmt: skip
    words = list(words_of(recorded))
    assert words == ["--encode", "raw", "--shard-size", "1000000", "--keep-order", "--no-json"]


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"val_fraction": 1.0}, "val-fraction"),
        ({"shard_samples": 5, "shard_size": "1MB"}, "got both"),
        ({"shard_samples": 0}, "shard-samples"),
        ({"shard_size": "1KB"}, "at least 20,000 bytes"),
        ({"limit": 0}, "limit"),
        ({"keep_order": True, "seed": 3}, "--seed 3 and --keep-order"),
    ],
)
def test_what_makes_no_sense_is_refused(values: dict[str, object], what: str) -> None:
    with pytest.raises(UserError, match=what):
        Options(**values)  # type: ignore[arg-type]
