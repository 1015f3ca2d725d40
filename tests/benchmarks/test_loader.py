"""The pieces of the loader benchmark, and a whole small run of it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from benchmarks import loader
from benchmarks.loaders import environments, images, limits, measure, ours, report
from benchmarks.loaders.environments import LoaderMissing
from benchmarks.loaders.samples import pixels, stored_bytes, tars
from benchmarks.loaders.variants import FFCV, LOADERS, OURS, VARIANTS, chosen, find
from pipeline.errors import UserError
from pipeline.format import ShardSet

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def sets(photos: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "sets"
    images.make_sets(images.list_photos(photos), folder, 40, 32)
    return folder


def make_bench(sets: Path, images: int, size: int = 32) -> loader.Bench:
    task = measure.Task("check", "ours-jpeg", str(sets / "jpeg"), "", images, size, 8, 2, 2, 0.01)
    return loader.Bench(sets.parent, sets, task, "torch", installed=True)


def read_all(folder: Path) -> list[bytes]:
    return [sample for tar in tars(folder) for sample in stored_bytes(tar)]


def test_both_sets_hold_the_same_distinct_images(sets):
    jpeg, raw = (ShardSet.open(sets / encoding) for encoding in ("jpeg", "raw"))
    assert jpeg.split("train").total == raw.split("train").total == 40
    assert len(jpeg.split("train")) == 8
    decoded = np.stack([simplejpeg.decode_jpeg(data, "RGB") for data in read_all(sets / "jpeg")])
    stored = np.stack([pixels(data) for data in read_all(sets / "raw")])
    assert np.abs(decoded.astype(int) - stored).mean() < 2
    assert len({image.tobytes() for image in stored}) == 40
    assert all(simplejpeg.decode_jpeg_header(data)[3] == "444" for data in read_all(sets / "jpeg"))


def test_photos_that_are_there_twice_are_used_once(photos, tmp_path):
    shutil.copy(photos / "000.jpg", photos / "999.jpg")
    folder = tmp_path / "sets"
    images.make_sets(images.list_photos(photos), folder, 26, 32)
    assert len({bytes(data) for data in read_all(folder / "raw")}) == 26


def test_too_few_photos_leave_no_set(photos, tmp_path):
    alike = tmp_path / "alike"
    alike.mkdir()
    for number in range(4):
        shutil.copy(photos / "000.jpg", alike / f"{number}.jpg")
    with pytest.raises(UserError, match="40 distinct images; got 11"):
        images.make_sets(images.list_photos(alike), tmp_path / "sets", 40, 32)
    assert not (tmp_path / "sets").exists()


@pytest.mark.parametrize(("side", "size", "count"), [(178, 64, 6), (178, 128, 6), (66, 64, 3)])
def test_crops_differ_and_are_large_enough(side, size, count):
    sizes = images.crop_sizes(side, size, count)
    assert len(set(sizes)) == count
    assert sizes[0] == side
    assert min(sizes) >= size


def test_a_photo_too_small_for_its_crops_is_refused():
    with pytest.raises(UserError, match="got one of 65"):
        images.crop_sizes(65, 64, 4)


@pytest.mark.parametrize("encoding", ["jpeg", "raw"])
def test_the_check_accepts_our_images_and_finds_a_foreign_one(sets, encoding, capsys):
    bench = make_bench(sets, 40)
    variant = find(f"ours-{encoding}")
    stream = ours.batches(sets / encoding, Path(), variant, 8, 2)
    result = measure.check(stream, bench.task)
    stream.close()
    loader._compare(result, bench, variant)
    assert "40 images checked, 40 distinct, all as stored" in capsys.readouterr().out
    result["crc32"][3] ^= 1
    with pytest.raises(LoaderMissing, match="got 1 of 40 that are not"):
        loader._compare(result, bench, variant)
    with pytest.raises(LoaderMissing, match="uint8"):
        loader._compare({**result, "shapes": ["torch.float32 3x32x32"]}, bench, variant)


def test_the_check_knows_the_fast_dct(sets, capsys):
    stored = np.load(sets / "jpeg-fast-crc32.npy").tolist()
    result = {"shapes": ["torch.uint8 3x32x32"], "crc32": stored}
    loader._compare(result, make_bench(sets, 40), find("ffcv-jpeg"))
    assert "fast" in capsys.readouterr().out


def test_speed_counts_until_enough_images_or_the_end_of_the_time():
    taken = []

    def stream():
        while True:
            taken.append(8)
            yield np.empty((8, 3))

    assert measure.speed(stream(), 1e9, 20) > 0
    assert len(taken) == 3
    assert measure.speed(stream(), 0.0) > 0
    assert len(taken) == 4


@pytest.mark.parametrize("variant", [variant for variant in VARIANTS if variant.loader.name == "limit"])
def test_limits_run(sets, variant):
    assert limits.images_per_s(sets / variant.encoding, variant, 8, 2, 0.01) > 0


def test_ratios_are_taken_within_a_round():
    def figures(mine: float, other: float) -> dict[str, dict[str, float]]:
        speeds = {"images_per_s": mine, "first_pass_images_per_s": mine, "first_batch_s": 0.2}
        return {"ours-jpeg": speeds, "webdataset-jpeg": {"images_per_s": other}}

    rounds = [figures(60, 10), figures(30, 5), figures(100, 50)]
    found = {verdict.requirement.text: verdict for verdict in report.verdicts(rounds)}
    assert found["JPEG: times webdataset"].value == 6
    assert found["JPEG: times webdataset"].met
    assert found["JPEG: first batch, seconds"].met
    assert found["JPEG: times ffcv on the same bytes"].met is None
    slow = {verdict.requirement.text: verdict for verdict in report.verdicts([figures(49, 10)])}
    assert slow["JPEG: times webdataset"].met is False


def test_requirements_name_variants_that_exist():
    names = {variant.name for variant in VARIANTS}
    assert len(names) == len(VARIANTS)
    assert {requirement.variant for requirement in report.REQUIREMENTS} <= names
    assert {requirement.other for requirement in report.REQUIREMENTS} - {""} <= names


def test_every_loader_has_its_file_and_the_same_torch():
    torch = environments.default_torch()
    for known in LOADERS:
        assert (ROOT / "benchmarks" / "loaders" / f"{known.module}.py").exists()
        assert environments.requirements(known, torch)[0] == torch
    assert any(line.startswith("simplejpeg==") for line in environments.requirements(OURS, torch))


def test_missing_libraries_are_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LoaderMissing, match=r"needs pkg-config .*apt-get install"):
        environments.interpreter(FFCV, tmp_path, "torch")


def test_variants_can_be_chosen():
    assert {variant.loader.name for variant in chosen([], ["raw"])} == {known.name for known in LOADERS}
    assert [variant.name for variant in chosen(["ours"], ["jpeg", "raw"])] == [
        "ours-jpeg",
        "ours-jpeg-noise",
        "ours-raw",
        "ours-raw-noise",
    ]


def test_a_whole_run_measures_what_is_there_and_names_what_is_not(photos, tmp_path):
    result = tmp_path / "result.json"
    command = [sys.executable, ROOT / "benchmarks" / "loader.py", "--installed", "--quick", "--only=ours,limit,ffcv"]
    command += ["--encodings=jpeg", "--images=100", "--size=32", "--seconds=0.05", "--rounds=1"]
    command += ["--batch=32", f"--photos={photos}", f"--work={tmp_path / 'work'}", f"--json={result}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads(result.read_text())
    figures = record["rounds"][0]
    assert figures["ours-jpeg"]["images_per_s"] > 0
    assert figures["ours-jpeg"]["first_batch_s"] > 0
    assert figures["ours-jpeg"]["peak_pss_mib"] > 50
    assert figures["limit-jpeg-simplejpeg"]["images_per_s"] > 0
    assert "100 images checked, 100 distinct, all as stored" in done.stdout
    assert "ffcv" in record["missing"]["ffcv-jpeg"]
    shares = [entry for entry in record["requirements"] if entry["text"] == "JPEG: share of bare simplejpeg"]
    assert shares[0]["median"] > 0


def test_a_misspelt_loader_is_one_line(tmp_path):
    command = [sys.executable, ROOT / "benchmarks" / "loader.py", "--only=webdatset", f"--work={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: names must be of ours, ")
    assert len(done.stderr.splitlines()) == 1


def test_photos_are_listed_without_empty_ones(photos):
    (photos / "empty.jpg").touch()
    assert len(images.list_photos(photos)) == 12
