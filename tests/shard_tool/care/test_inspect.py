import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.format import ShardSet
from shard_tool.care.inspect import SHOWN_LABELS
from shard_tool.cli import main
from shard_tool.sources.folder import FolderSource
from tests.helpers import make_shard_set

Make = Callable[..., str]
Hashes = Callable[[Path], dict[str, str]]

ROOT = Path(__file__).parents[3]
SMALL = ("--size", 16)


@pytest.fixture
def inspect(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """A function that inspects a set: the text, or with `--json` its content."""

    def run(*words: Path | str, code: int = 0) -> Any:
        assert main(["inspect", *map(str, words)]) == code
        printed = capsys.readouterr().out
        return json.loads(printed) if "--json" in words else printed

    return run


@pytest.fixture
def labelled(photos: Path, tmp_path: Path, make: Make) -> Path:
    """A set with attributes, two splits and one rejection."""
    lines = ["image_id,Male,Smiling", *(f"{number:05d}.jpg,{-1 if number % 4 else 1},1" for number in range(60))]
    (photos / "list_attr_celeba.csv").write_text("\n".join([*lines, "empty.jpg,1,1"]))
    (photos / "empty.jpg").touch()
    make(photos, tmp_path / "set", *SMALL, "--val-fraction", 0.2)
    return tmp_path / "set"


def test_inspect_shows_what_a_set_holds(labelled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(labelled)]) == 0
    shown = capsys.readouterr().out
    for part in ("60 images of 16 px", "rejected: 1 empty file", "train", "val", "pillow"):
        assert part in shown
    rows = [line.split()[:2] for line in shown.splitlines()]
    assert ["Male", "25.0%"] in rows
    assert ["Smiling", "100.0%"] in rows


def test_inspect_answers_programs_in_json(labelled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(labelled), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["samples"] == 60 == sum(split["samples"] for split in content["splits"].values())
    assert content["attributes"] == {"Male": 0.25, "Smiling": 1.0}
    assert content["rejected"] == {"empty file": 1}
    assert (content["crop"], content["encoding"], content["image_size"]) == ("center", "jpeg", 16)
    assert content["bytes"] == sum(path.stat().st_size for path in labelled.glob("*.tar"))


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("library", ["webdataset", "datasets", "leanstream"])
def test_the_lines_that_inspect_prints_open_the_set(
    labelled: Path, capsys: pytest.CaptureFixture[str], library: str
) -> None:
    pytest.importorskip({"leanstream": "torch"}.get(library, library))
    assert main(["inspect", str(labelled), "--json"]) == 0
    lines = json.loads(capsys.readouterr().out)["open_with"][library]
    names: dict[str, Any] = {}
    exec("\n".join(lines), names)
    if library == "leanstream":
        assert names["first"].images.shape == (64, 3, 16, 16)
    else:
        assert len(list(names["samples"])) == sum(1 for _ in names["samples"]) > 40


def test_inspect_of_something_else_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path} must be a finished shard set; got ")


@pytest.mark.parametrize("option", ["", "--json"])
def test_inspect_into_a_closed_pipe_is_silent(labelled: Path, option: str) -> None:
    script = f"{sys.executable} -m shard_tool inspect {labelled} {option} | true"
    shown = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert shown.stderr == ""


@pytest.mark.parametrize("attributes", [(), ("Smiling",)])
def test_a_set_whose_maker_counted_nothing_is_shown(
    tmp_path: Path, inspect: Callable[..., Any], attributes: tuple[str, ...]
) -> None:
    make_shard_set(tmp_path / "set", attributes=attributes, classes=("cat", "dog"))
    content = inspect(tmp_path / "set", "--json")
    assert content["labels"] is None
    assert content["attributes"] == dict.fromkeys(attributes)
    assert content["classes"] == ({} if attributes else {"cat": None, "dog": None})
    assert ("Smiling" if attributes else "2 class names, not counted: cat, dog") in inspect(tmp_path / "set")


def test_classes_are_counted_by_split(photos: Path, tmp_path: Path, make: Make, inspect: Callable[..., Any]) -> None:
    make(photos, tmp_path / "set", *SMALL, "--labels", "folders", "--val-fraction", 0.3)
    content = inspect(tmp_path / "set", "--json")
    assert content["classes"] == {"a": 30, "b": 30}
    for split, counts in content["labels"].items():
        assert sum(counts.values()) == content["splits"][split]["samples"]
    assert ["a", "30"] in [line.split()[:2] for line in inspect(tmp_path / "set").splitlines()]


def test_many_classes_are_cut_short_for_people(tmp_path: Path, inspect: Callable[..., Any]) -> None:
    names = tuple(f"person-{number:03d}" for number in range(100))
    made = make_shard_set(tmp_path / "set", samples={"train": 200}, attributes=(), classes=names)
    part = {"settings": {"json": True}, "positives": {"train": [2] * 100}, "source": {"source_name": "x"}}
    ShardSet(**{**vars(made), "parts": (part,)}).save()
    shown = inspect(tmp_path / "set")
    assert shown.count("person-") == SHOWN_LABELS
    assert "and 40 more; --json has them all" in shown
    assert len(inspect(tmp_path / "set", "--json")["classes"]) == 100


def test_parts_are_shown_one_by_one(tmp_path: Path, inspect: Callable[..., Any]) -> None:
    made = make_shard_set(tmp_path / "set")
    parts = tuple(
        {
            "settings": {"size": 16, "json": True, "limit": None},
            "source": {"source_name": name, "photos": 1000},
            "versions": {"pillow": "1.2"},
            "positives": {"train": [10], "val": [2]},
        }
        for name in ("old", "new")
    )
    ShardSet(**{**vars(made), "parts": parts}).save()
    shown = inspect(tmp_path / "set")
    assert "part 1: built from 'old' (1,000 photos) with pillow 1.2\nsettings: size 16, json yes\n" in shown
    assert "part 2: built from 'new'" in shown
    content = inspect(tmp_path / "set", "--json")
    assert content["labels"] == {"train": {"Smiling": 20}, "val": {"Smiling": 4}}
    assert content["attributes"] == {"Smiling": 24 / 52}


def test_a_set_that_was_only_indexed_says_so(tmp_path: Path, inspect: Callable[..., Any]) -> None:
    made = make_shard_set(tmp_path / "set", attributes=())
    ShardSet(**{**vars(made), "parts": ({"source": {"source_name": "tars"}},)}).save()
    assert "indexed, not built" in inspect(tmp_path / "set")


def test_a_build_that_was_stopped_says_how_far_it_is_and_how_to_go_on(
    make_folder: Callable[..., Path],
    tmp_path: Path,
    make: Make,
    hashes: Hashes,
    inspect: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    photos = make_folder(tmp_path / "raw", 200, (20, 24))  # Four chunks, and as many groups.
    options = (*SMALL, "--crop", 18, "--encode", "raw", "--shard-samples", 3, "--seed", 5, "--labels", "folders")
    options = (*options, "--limit", 150, "--val-fraction", 0.25)
    make(photos, tmp_path / "whole" / "set", *options)
    read = FolderSource.read

    def fail(self: FolderSource, item: int) -> bytes:
        if item < 8:
            raise OSError(5, "Input/output error")
        return read(self, item)

    with monkeypatch.context() as patched:
        patched.setattr(FolderSource, "read", fail)
        out = tmp_path / "it's here" / "set"
        assert main(["make-shards", str(photos), "--out", str(out), *map(str, options)]) == 1
    capsys.readouterr()
    content = inspect(out, "--json", code=1)
    assert content["complete"] is False
    assert content["photos"] == 150
    assert 0 < content["samples"] < 150
    shown = inspect(out, code=1)
    assert f"{content['samples']} of 150 ({content['samples'] / 150:.0%}) photos of 'raw' are done" in shown
    command = next(line for line in shown.splitlines() if line.startswith("  shard_tool make-shards PHOTOS "))
    words = [str(photos) if word == "PHOTOS" else word for word in shlex.split(command)]
    assert main(words[1:]) == 0
    assert hashes(out) == hashes(tmp_path / "whole" / "set")
    capsys.readouterr()
    assert inspect(out, "--json")["complete"] is True


def test_several_sets_are_shown_one_by_one_and_then_as_one(tmp_path: Path, inspect: Callable[..., Any]) -> None:
    make_shard_set(tmp_path / "a", name="first")
    make_shard_set(tmp_path / "b c", samples={"train": 10, "test": 3}, seed=1, name="second")
    sets = (tmp_path / "a", f"{tmp_path / 'b c'}*3")
    content = inspect(*sets, "--json")
    assert content["sets"] == [inspect(tmp_path / "a", "--json"), inspect(tmp_path / "b c", "--json")]
    together = content["together"]
    counts = {name: (split["samples"], split["shards"]) for name, split in together["splits"].items()}
    assert counts == {"train": (40 + 3 * 10, 5 + 3 * 2), "val": (12, 2), "test": (3, 1)}
    assert (together["samples"], together["attributes"], together["same_labels"]) == (85, ["Smiling"], True)
    shown = inspect(*sets)
    places = [shown.index(text) for text in ("first: 52 images", "second: 13 images", "read as one: 85 images")]
    assert places == sorted(places)
    assert "labels: 1 attribute name, the same in all sets" in shown
    [command] = together["open_with"]["training"]
    assert shlex.split(command)[-3:] == ["--data.shards", *map(str, sets)]
    assert command in shown
    names: dict[str, Any] = {}
    exec("\n".join(together["open_with"]["leanstream"]), names)
    assert names["first"].images.shape == (64, 3, 16, 16)
    assert names["batches"].samples == 70
    assert names["batches"].shards.fingerprint == together["fingerprint"]


def test_labels_that_differ_are_said_to(tmp_path: Path, inspect: Callable[..., Any]) -> None:
    make_shard_set(tmp_path / "a")
    make_shard_set(tmp_path / "b", attributes=(), classes=("cat", "dog"), seed=1)
    assert "labels: not the same in all sets: read together, they have none" in inspect(tmp_path / "a", tmp_path / "b")
    make_shard_set(tmp_path / "c", attributes=(), seed=2)
    make_shard_set(tmp_path / "d", attributes=(), seed=3)
    assert "labels: none\n" in inspect(tmp_path / "c", tmp_path / "d")


@pytest.mark.parametrize("option", [(), ("--json",)])
def test_sets_that_do_not_go_together_are_shown_before_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: tuple[str, ...]
) -> None:
    make_shard_set(tmp_path / "a", name="first")
    make_shard_set(tmp_path / "b", size=24, name="second")
    assert main(["inspect", str(tmp_path / "a"), str(tmp_path / "b"), *option]) == 2
    shown = capsys.readouterr()
    assert "first" in shown.out
    assert "second" in shown.out
    [line] = shown.err.splitlines()
    assert line.startswith("error: sets that are read together must have images of one size; got 16 px in ")


def test_one_of_several_that_is_not_finished_decides_the_exit_code(
    photos: Path, tmp_path: Path, make: Make, inspect: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    make_shard_set(tmp_path / "whole")
    make(photos, tmp_path / "begun", *SMALL)
    state = tmp_path / "begun" / ".build"
    state.mkdir()
    request = {"source": {"photos": 60, "source_name": "raw"}, "settings": {}, "versions": {}}
    (state / "plan.json").write_text(json.dumps(request))
    (tmp_path / "begun" / "shardset.json").unlink()
    capsys.readouterr()
    content = inspect(tmp_path / "whole", tmp_path / "begun", "--json", code=1)
    assert [one["complete"] for one in content["sets"]] == [True, False]
    assert (content["complete"], content["together"]) == (False, None)
    shown = inspect(tmp_path / "whole", tmp_path / "begun", code=1)
    assert "begun is not finished" in shown
    assert "read as one" not in shown
    assert main(["inspect", str(tmp_path / "whole"), str(tmp_path / "nothing")]) == 2
    assert "must be a finished shard set; got no such folder" in capsys.readouterr().err


def test_inspect_of_nothing_asks_for_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect"]) == 2
    assert "got none. Name a folder." in capsys.readouterr().err


@pytest.mark.parametrize("name", ["plan.json", "group-000001.json"])
@pytest.mark.parametrize("wrong", [None, 7, "x", [], {}, [[]], -1, 1.5, 10**400, True, "\ud800", {"a": [{"b": None}]}])
def test_any_json_in_a_journal_is_a_build_of_which_less_is_known(
    tmp_path: Path, inspect: Callable[..., Any], name: str, wrong: object, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = {"name": "train-000000", "samples": 6, "bytes": 30720, "sha256": "0" * 64}
    good = {
        "plan.json": {
            "settings": {"size": 16, "limit": 9},
            "source": {"photos": 60, "source_name": "raw"},
            "versions": {"pillow": "1"},
        },
        "group-000000.json": {"shards": {"train": [shard]}, "rejected": [["a", "b", "c"]]},
        "group-000001.json": {"shards": {"val": [shard]}, "rejected": []},
    }
    state = tmp_path / ".build"
    state.mkdir()

    def damaged(value: Any) -> Any:
        """Every way to put the wrong thing somewhere."""
        yield wrong
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for at, inner in items:
            for other in damaged(inner):
                changed = value.copy()
                changed[at] = other
                yield changed

    for file, content in good.items():
        (state / file).write_text(json.dumps(content))
    assert "8 of 9" not in inspect(tmp_path, code=1)
    assert "13 of 9" in inspect(tmp_path, code=1)
    for content in damaged(good[name]):
        (state / name).write_text(json.dumps(content))
        for option in ((), ("--json",)):
            code = main(["inspect", str(tmp_path), *option])
            shown, error = capsys.readouterr()
            assert (code, error.count("\n")) in ((1, 0), (2, 1)), (content, error)
            assert (code == 1) == bool(shown)
            assert "report this" not in error
    (state / name).write_bytes(b"[" * 100_000)
    assert main(["inspect", str(tmp_path)]) == (2 if name == "plan.json" else 1)


def test_a_damaged_set_is_shown_as_far_as_it_can_be(
    labelled: Path, inspect: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    for tar in labelled.glob("*.tar"):
        tar.unlink()
    (labelled / "rejected.jsonl").write_bytes(
        b'{"reason": "empty file"}\n{"reason": ["\n\xff\n7\n{"reason": "\\ud800"}\n'
    )
    content = inspect(labelled, "--json")
    assert content["rejected"] == {"unreadable line of rejected.jsonl": 4, "empty file": 1}
    description = labelled / "shardset.json"
    good = json.loads(description.read_bytes())
    for section, wrong in (("source", {"photos": "many"}), ("indexed", {"members": 3}), ("versions", {"a": "\ud800"})):
        description.write_text(json.dumps({**good, "parts": [{**good["parts"][0], section: wrong}]}))
        assert main(["inspect", str(labelled)]) == 1
        assert "must say how the set was made; got part 1 with" in capsys.readouterr().err


def test_one_of_anything_is_singular(tmp_path: Path, inspect: Callable[..., Any]) -> None:
    make_shard_set(tmp_path / "set", samples={"train": 1}, attributes=(), classes=("a",))
    shown = inspect(tmp_path / "set")
    assert "1 image of 16 px" in shown
    assert "1 class name, not counted" in shown
