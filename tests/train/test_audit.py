"""The audit of a run: right over interruptions, and wrong for every fault that is planted."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pipeline.loader
import train.run
from pipeline import Dataset
from pipeline.batch import digests
from pipeline.format import ShardSet
from pipeline.order import Order
from pipeline.shards.shard import load_index
from tests.helpers import make_shard_set
from tests.train.tiny import tiny_config, tiny_state, updates
from train.audit import EpochAudit, Progress, audit, main
from train.checkpoint import generations
from train.runfolder import RunFolder

TOML = (
    "[model]\nwidths = [8, 8, 8, 8]\nlatent = 4\n[data]\nthreads = 1\n[train]\n"
    "batch_size = 16\ntotal_images = 96\nthreads = 1\nprior_images = 16\n[checkpoint]\nkeep = 9\n"
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, faces: ShardSet) -> Path:
    """A run over 2.4 epochs that was stopped twice; copy it before changing it."""
    folder = tmp_path_factory.mktemp("audit")
    (folder / "tiny.toml").write_text(TOML)
    arguments = [str(folder / "tiny.toml"), "--data.shards", str(faces.folder), "--run.dir", str(folder / "run")]
    for length in ("16", "64", "96"):
        assert train.run.main([*arguments, "--train.total-images", length]) == 0
    return folder / "run"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def lines(capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    """The table's rows, by words."""
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    return [row for row in rows if row and row[0].isdecimal() and len(row) == 5]


def audits(run: Path) -> list[dict[str, object]]:
    return [record for record in RunFolder(run).read_ledger() if record["event"] == "audit"]


def test_an_interrupted_run_is_right_in_every_epoch_and_the_ledger_says_so(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(run)]) == 0
    rows = lines(capsys)
    assert [(row[0], row[1], row[4]) for row in rows] == [("0", "40", "ok"), ("1", "40", "ok"), ("2", "16", "ok")]
    assert all(row[2] == row[3] for row in rows)
    assert rows[0][2] == rows[1][2] != rows[2][2]
    assert [(record["position"], record["epochs"], record["wrong"]) for record in audits(run)] == [(96, 3, [])]


def test_an_unfinished_run_is_audited_up_to_its_newest_save(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(run / "final")
    for path in generations(run / "checkpoints")[:-1]:
        shutil.rmtree(path)
    assert main([str(run)]) == 0
    assert [(row[0], row[1]) for row in lines(capsys)] == [("0", "16")]


def test_a_finished_run_without_its_checkpoints_is_audited_from_its_model(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(run / "checkpoints")
    assert main([str(run)]) == 0
    assert [row[4] for row in lines(capsys)] == ["ok"] * 3


def test_the_set_may_have_moved_but_not_changed(
    run: Path, faces: ShardSet, tmp_path: Path, shard_set: Callable[..., ShardSet], capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(faces.folder, tmp_path / "moved")
    assert main([str(run), "--shards", str(tmp_path / "moved")]) == 0
    other = shard_set(samples={"train": 40, "val": 12}, size=32, seed=1)
    assert main([str(run), "--shards", str(other.folder)]) == 2
    assert "got other data" in capsys.readouterr().err


@pytest.mark.parametrize("keep", ["config.toml", None])
def test_a_folder_without_a_save_is_the_users_error(
    run: Path, keep: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in run.iterdir():
        if path.name != keep:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert main([str(run)]) == 2
    assert "must be a run that has saved" in capsys.readouterr().err


def test_damaged_sums_of_a_finished_model_are_one_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(run / "checkpoints")
    (run / "final" / "training.json").write_text('{"position": 96}')
    assert main([str(run)]) == 1
    assert "training.json must be whole" in capsys.readouterr().err


FAULTS: dict[str, Callable[[list[tuple[int, int]]], list[tuple[int, int]]]] = {
    "duplicate": lambda seen: [*seen, seen[3]],
    "loss": lambda seen: seen[:3] + seen[4:],
    "swap": lambda seen: [seen[7], *seen[1:]],
}


@pytest.mark.parametrize("epoch", [0, 1])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found_in_its_epoch(
    run: Path, faces: ShardSet, fault: str, epoch: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """The sums are those of a run that was really handed these samples."""
    order = Order(faces.split("train").samples)
    shards, rows = order.locate(np.arange(40 * epoch, 40 * epoch + 40))
    seen = list(zip(shards.tolist(), rows.tolist(), strict=True))
    state_file = run / "final" / "training.json"
    state = json.loads(state_file.read_bytes())
    assert int(state["audit"][str(epoch)], 16) == sum_of(faces, seen)
    state["audit"][str(epoch)] = f"{sum_of(faces, FAULTS[fault](seen)):016x}"
    state_file.write_text(json.dumps(state))
    shutil.rmtree(run / "checkpoints")
    assert main([str(run)]) == 1
    assert [row[0] for row in lines(capsys) if row[4] == "WRONG"] == [str(epoch)]
    assert audits(run)[-1]["wrong"] == [epoch]
    name = {place: f"{faces.split('train')[place[0]].name} row {place[1]}" for place in seen}
    assert audits(run)[-1]["named"] == [
        {
            "duplicate": f"epoch {epoch}: {name[seen[3]]} was trained once too often",
            "loss": f"epoch {epoch}: {name[seen[3]]} was not trained",
            "swap": f"epoch {epoch}: {name[seen[7]]} was trained in the place of {name[seen[0]]}",
        }[fault]
    ]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_an_unfinished_epoch_is_named_too(faces: ShardSet, fault: str) -> None:
    order = Order(faces.split("train").samples)
    shards, rows = order.locate(np.arange(40, 56))
    seen = list(zip(shards.tolist(), rows.tolist(), strict=True))
    sums = {0: sum_of(faces, list(zip(*map(np.ndarray.tolist, order.locate(np.arange(40))), strict=True)))}
    line = list(audit(progress_of(faces, 56, {**sums, 1: sum_of(faces, FAULTS[fault](seen))}), Dataset.open(faces)))[1]
    assert line.fault == {"duplicate": (None, seen[3]), "loss": (seen[3], None), "swap": (seen[0], seen[7])}[fault]


def test_a_sample_before_its_turn_is_named(faces: ShardSet) -> None:
    """Not one of those that were due: it comes later in the epoch."""
    shards, rows = Order(faces.split("train").samples).locate(np.arange(40))
    seen = list(zip(shards.tolist(), rows.tolist(), strict=True))
    line = next(audit(progress_of(faces, 16, {0: sum_of(faces, [*seen[:15], seen[30]])}), Dataset.open(faces)))
    assert line.fault == (seen[15], seen[30])


def test_two_losses_are_wrong_and_nobody_is_blamed(faces: ShardSet) -> None:
    shards, rows = Order(faces.split("train").samples).locate(np.arange(40))
    seen = list(zip(shards.tolist(), rows.tolist(), strict=True))
    line = next(audit(progress_of(faces, 40, {0: sum_of(faces, seen[2:])}), Dataset.open(faces)))
    assert (line.ok, line.fault) == (False, None)


def sum_of(faces: ShardSet, seen: list[tuple[int, int]]) -> int:
    split = faces.split("train")
    crc32 = [load_index(faces.folder / f"{shard.name}.tar", shard).records["image_crc32"] for shard in split]
    shards, rows = (np.array(column, np.int64) for column in zip(*seen, strict=True))
    sums = digests(shards, rows, np.array([int(crc32[shard][row]) for shard, row in seen], np.int64))
    return int(sums.sum(dtype=np.uint64))


@pytest.fixture
def faulty_order(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int, int], None]]:
    """Make the loader hand over, at one position, the sample of another one."""

    def plant(position: int, instead: int) -> None:
        original = Order.locate

        def locate(self: Order, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return original(self, np.where(positions == position, instead, positions))

        monkeypatch.setattr(pipeline.loader.Order, "locate", locate)

    yield plant
    monkeypatch.undo()


def test_a_loader_that_hands_over_another_sample_is_found_out(
    faces: ShardSet, faulty_order: Callable[[int, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    faulty_order(44, 47)
    config = tiny_config()
    state = tiny_state(config)
    list(updates(state, config, faces, 6))
    monkeypatch.undo()
    assert [line.ok for line in audit(progress_of(faces, 96, state.audit), Dataset.open(faces))] == [True, False, True]


def test_a_sum_for_an_epoch_that_never_began_is_wrong(faces: ShardSet) -> None:
    config = tiny_config()
    state = tiny_state(config)
    list(updates(state, config, faces, 3))
    found = list(audit(progress_of(faces, 48, {**state.audit, 5: 7}), Dataset.open(faces)))
    assert [(line.epoch, line.ok) for line in found] == [(0, True), (1, True), (5, False)]
    assert found[-1] == EpochAudit(5, 0, 0, 7)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """70 shards of uneven size."""
    return make_shard_set(tmp_path_factory.mktemp("many") / "set", samples={"train": 211}, shard_samples=3, size=16)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 650), st.integers(1, 9), st.integers(1, 80), st.integers(0, 3))
def test_any_order_up_to_any_position_sums_to_what_its_samples_sum_to(
    many: ShardSet, position: int, lanes: int, window: int, seed: int
) -> None:
    order = Order(many.split("train").samples, seed=seed, window=window, lanes=lanes)
    positions = np.arange(position)
    sums = {}
    for epoch in range(-(-position // order.total)):
        shards, rows = order.locate(positions[positions // order.total == epoch])
        sums[epoch] = sum_of(many, list(zip(shards.tolist(), rows.tolist(), strict=True)))
    progress = Progress(position, many.fingerprint, (), seed, window, lanes, sums, many.folder)
    assert all(line.ok for line in audit(progress, Dataset.open(many)))
    assert sum(line.images for line in audit(progress, Dataset.open(many))) == position


def progress_of(shards: ShardSet, position: int, sums: dict[int, int]) -> Progress:
    return Progress(position, shards.fingerprint, (), 0, None, None, sums, shards.folder)
