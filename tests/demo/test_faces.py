import csv
import subprocess
import sys
from hashlib import blake2b
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from demo import ATTRIBUTES, draw_face, draw_faces, draw_person
from demo.portraits import LIST_NAME, paint_portrait
from demo.traits import CHANCES, HAIR_COLOURS
from pipeline.errors import UserError

# Rows of a 64-pixel portrait where the attribute shows. The head moves and tilts a little, so they are generous.
WHERE_IT_SHOWS = {
    "Bangs": (6, 34),
    "Big_Nose": (28, 42),
    "Bushy_Eyebrows": (17, 30),
    "Eyeglasses": (20, 40),
    "Mouth_Slightly_Open": (34, 58),
    "Mustache": (34, 46),
    "Narrow_Eyes": (21, 37),
    "No_Beard": (22, 60),
    "Pale_Skin": (8, 64),
    "Rosy_Cheeks": (28, 44),
    "Smiling": (25, 54),
    "Wavy_Hair": (0, 64),
    "Wearing_Earrings": (28, 48),
    "Wearing_Hat": (0, 30),
    "Wearing_Lipstick": (35, 54),
    "Wearing_Necklace": (44, 64),
}


def difference(index: int, overrides: dict[str, int], others: dict[str, int]) -> np.ndarray:
    """The largest difference of a channel at each pixel of the two 64-pixel portraits, [64, 64]."""
    images = (paint_portrait(draw_person(index, overrides=chosen), size=64) for chosen in (overrides, others))
    a, b = (np.asarray(image, dtype=np.int64) for image in images)
    return np.abs(a - b).max(axis=2)


def read_list(folder: Path) -> list[list[str]]:
    with (folder / LIST_NAME).open(newline="") as file:
        return list(csv.reader(file))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_people_are_pinned_for_good():
    people = [draw_person(index, seed=seed) for seed in (0, 7) for index in (0, 1, 1999)]
    told = [[*sorted(person.attributes.items()), round(person.between("pose.roll", 0, 1), 12)] for person in people]
    assert blake2b(repr(told).encode(), digest_size=8).hexdigest() == "5572e3d9cb42a278"


def test_the_same_face_is_painted_twice_alike():
    (first, attributes), (second, again) = draw_face(5, size=96, seed=3), draw_face(5, size=96, seed=3)
    assert first.tobytes() == second.tobytes()
    assert attributes == again


def test_other_seeds_and_indices_give_other_faces():
    assert len({draw_face(index, size=64, seed=seed)[0].tobytes() for index in range(4) for seed in range(2)}) == 8


@pytest.mark.parametrize("size", [32, 100, 600])
def test_a_face_is_an_rgb_image_of_its_size(size):
    image, attributes = draw_face(0, size=size)
    assert (image.mode, image.size) == ("RGB", (size, size))
    assert tuple(attributes) == ATTRIBUTES
    assert set(attributes.values()) <= {0, 1}


def test_a_face_is_the_same_picture_at_every_size():
    large, small = draw_face(2, size=512)[0], draw_face(2, size=128)[0]
    away = np.asarray(large.reduce(4), dtype=np.int64) - np.asarray(small, dtype=np.int64)
    assert np.abs(away).mean() < 4


def test_attributes_are_independent_and_as_frequent_as_told():
    told = np.array([[draw_person(index).attributes[name] for name in ATTRIBUTES] for index in range(4000)])
    expected = CHANCES | HAIR_COLOURS
    assert np.abs(told.mean(axis=0) - [expected[name] for name in ATTRIBUTES]).max() < 0.03
    correlation = np.corrcoef(told.T)
    for (i, a), (j, b) in combinations(enumerate(ATTRIBUTES), 2):
        if not {a, b} <= HAIR_COLOURS.keys():
            assert abs(correlation[i, j]) < 0.06, (a, b)


def test_everyone_has_one_hair_colour():
    for index in range(300):
        assert sum(draw_person(index).attributes[name] for name in HAIR_COLOURS) == 1


def test_every_attribute_but_hair_colours_has_a_place():
    assert WHERE_IT_SHOWS.keys() == CHANCES.keys()


@pytest.mark.parametrize("all_others", [0, 1])
@pytest.mark.parametrize("name", CHANCES)
def test_an_attribute_shows_at_64_pixels_whatever_the_others_are(name, all_others):
    top, bottom = WHERE_IT_SHOWS[name]
    for index in range(2):
        others = dict.fromkeys(CHANCES, all_others)
        changed = difference(index, others | {name: 0}, others | {name: 1})
        assert (changed[top:bottom] > 24).sum() >= 12
        assert changed[top:bottom].sum() >= 0.8 * changed.sum()


@pytest.mark.parametrize(("one", "other"), list(combinations(HAIR_COLOURS, 2)))
def test_a_hair_colour_shows_under_a_hat(one, other):
    for index in range(2):
        hatted = {"Wearing_Hat": 1, "Bangs": 0, "No_Beard": 1}
        changed = difference(index, hatted | {one: 1}, hatted | {other: 1})
        assert (changed[14:] > 40).sum() >= 30


def test_an_override_leaves_all_else_as_it_was():
    plain, changed = draw_person(9), draw_person(9, overrides={"Smiling": 1, "Gray_Hair": 1})
    assert changed.attributes == plain.attributes | dict.fromkeys(HAIR_COLOURS, 0) | {"Smiling": 1, "Gray_Hair": 1}
    assert changed.between("pose.roll", 0, 1) == plain.between("pose.roll", 0, 1)


@pytest.mark.parametrize("overrides", [{"Smilling": 1}, {"Smiling": 2}, {"Gray_Hair": 0}])
def test_a_wrong_override_is_refused(overrides):
    with pytest.raises(UserError, match="override"):
        draw_person(0, overrides=overrides)


def test_a_folder_holds_photos_and_the_list_of_celeba(tmp_path):
    reports: list[int] = []
    draw_faces(tmp_path / "new" / "raw", count=3, size=64, seed=5, workers=1, progress=reports.append)
    folder = tmp_path / "new" / "raw"
    assert sorted(contents(folder)) == ["000001.jpg", "000002.jpg", "000003.jpg", LIST_NAME]
    header, *rows = read_list(folder)
    assert header == ["image_id", *ATTRIBUTES]
    assert [row[0] for row in rows] == ["000001.jpg", "000002.jpg", "000003.jpg"]
    for index, row in enumerate(rows):
        image, attributes = draw_face(index, size=64, seed=5)
        assert [int(value) for value in row[1:]] == [1 if attributes[name] else -1 for name in ATTRIBUTES]
        with Image.open(folder / row[0]) as photo:
            assert (photo.format, photo.size) == ("JPEG", (64, 64))
            assert np.abs(np.asarray(photo, dtype=np.int64) - np.asarray(image, dtype=np.int64)).mean() < 6
    assert reports[-1] == 3


def test_the_number_of_workers_changes_nothing(tmp_path):
    for workers in (1, 2):
        draw_faces(tmp_path / str(workers), count=20, size=32, workers=workers)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_the_count_changes_no_photo(tmp_path):
    for count in (2, 5):
        draw_faces(tmp_path / str(count), count=count, size=32, workers=1)
    few, many = contents(tmp_path / "2"), contents(tmp_path / "5")
    assert all(many[name] == few[name] for name in few if name != LIST_NAME)


def test_the_same_call_after_an_interruption_gives_the_same_folder(tmp_path):
    def interrupt(drawn: int) -> None:
        raise KeyboardInterrupt

    draw_faces(tmp_path / "whole", count=20, size=32, workers=1)
    with pytest.raises(KeyboardInterrupt):
        draw_faces(tmp_path / "cut", count=20, size=32, workers=1, progress=interrupt)
    assert not (tmp_path / "cut" / LIST_NAME).exists()
    (tmp_path / "cut" / ".000017.jpg.leanstream-part").write_bytes(b"half a photo")
    draw_faces(tmp_path / "cut", count=20, size=32, workers=1)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_faces_that_are_there_already_are_not_drawn_again(tmp_path):
    draw_faces(tmp_path, count=3, size=32, workers=1)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.jpg")}
    reports: list[int] = []
    draw_faces(tmp_path, count=4, size=32, workers=1, progress=reports.append)
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in before} == before
    assert reports == [3, 4]
    assert len(read_list(tmp_path)) == 5


@pytest.mark.parametrize("other", [{"seed": 1}, {"size": 40}])
def test_faces_of_another_seed_or_size_are_drawn_anew(tmp_path, other):
    draw_faces(tmp_path / "raw", count=2, size=32, workers=1)
    for folder in ("raw", "fresh"):
        draw_faces(tmp_path / folder, **({"count": 2, "size": 32, "workers": 1} | other))
    assert contents(tmp_path / "raw") == contents(tmp_path / "fresh")


def test_a_photo_cut_short_is_drawn_anew(tmp_path):
    draw_faces(tmp_path, count=2, size=32, workers=1)
    whole = contents(tmp_path)
    (tmp_path / "000002.jpg").write_bytes(whole["000002.jpg"][:-40])
    draw_faces(tmp_path, count=2, size=32, workers=1)
    assert contents(tmp_path) == whole


@pytest.mark.parametrize("name", ["holiday.jpg", "000001.jpg", "000003.jpg", LIST_NAME])
def test_nothing_of_a_persons_is_overwritten(tmp_path, name):
    (tmp_path / name).write_bytes(b"precious")
    with pytest.raises(UserError, match=name):
        draw_faces(tmp_path, count=2, size=32, workers=1)
    assert contents(tmp_path) == {name: b"precious"}


def test_a_folder_above_drawn_faces_is_refused_and_told_where_they_are(tmp_path):
    draw_faces(tmp_path / "raw" / "drawn", count=1, size=32, workers=1)
    with pytest.raises(UserError, match="already: name that folder"):
        draw_faces(tmp_path / "raw", count=1, size=32, workers=1)


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "raw").write_bytes(b"precious")
    with pytest.raises(UserError, match="must be a folder"):
        draw_faces(tmp_path / "raw", count=1)


@pytest.mark.parametrize("wrong", [{"count": 0}, {"size": 31}, {"size": 2049}, {"workers": 0}])
def test_a_number_out_of_range_is_refused_before_anything_is_written(tmp_path, wrong):
    with pytest.raises(UserError, match=f"must be .*; got {next(iter(wrong.values()))}"):
        draw_faces(tmp_path / "raw", **({"count": 1} | wrong))
    assert not (tmp_path / "raw").exists()


def test_importing_loads_no_torch():
    code = "import sys, demo; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
