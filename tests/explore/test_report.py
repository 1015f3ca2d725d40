"""The report of runs in every state, with hostile names in all that it shows."""

import html.parser
import itertools
import json
import re
import shutil
import tomllib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.browser import browsing, missing
from explore.cli import main
from explore.html.charts import FRAME, charts_of
from explore.html.embed import embed, embed_file
from explore.html.reproduce import shown_places
from explore.html.results import KINDS, MOST_ROWS, read_sections
from explore.html.wording import label, show, without_places
from pipeline import Dataset
from pipeline.format import ShardSet
from shard_tool.options import words_of
from tests.explore.untrained import SIZE, make_shards, save_model
from tests.helpers import make_shard_set
from train.config import from_dict

HOSTILE = "<script>alert(1)</script><img src=https://example.org/x onerror=alert(2)>\"'&"
VOID = {"meta", "link", "img", "br", "hr", "input"}


@dataclass
class Page(html.parser.HTMLParser):
    """What is in a page; `wrong` lists tags that do not match."""

    text: str = ""
    tags: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    open: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def __hash__(self) -> int:
        return id(self)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attributes}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(f"</{tag}> in line {self.getpos()[0]}")
        self.text += "" if tag in ("code", "span", "small", "a") else " "

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text += data


def page_of(path: Path) -> Page:
    page = Page()
    page.feed(path.read_text())
    page.close()
    page.text = " ".join(page.text.split())
    return page


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    folder = tmp_path_factory.mktemp("sets") / "faces"
    name = f"tiny {HOSTILE.replace('/', '|')}"
    return make_shard_set(folder, samples={"train": 40, "val": 12}, size=SIZE, name=name)


def make_run(folder: Path, *shards: str | Path) -> Path:
    """A finished run folder, as training leaves it."""
    data = Dataset.open(shards)
    config = from_dict({"data": {"shards": data.locations}, "model": {"widths": [8, 8, 8, 8], "latent": 4}}, "a test")
    (folder / "grids").mkdir(parents=True)
    (folder / "config.toml").write_text(config.to_toml())
    records = [
        {"position": n * 16, "loss": 90.0 - n, "psnr_db": 10 + n / 9, "kl_nats": 5.0 + n, "images_per_s": 300.0 + n}
        for n in range(1, 31)
    ]
    records.insert(10, {"position": 160, "scores": {"val": {"psnr_db": 12.5, "rate_nats": 14.0}}})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records) + '{"cut off')
    events = [
        {"event": "start", "time": "2026-01-02T03:04:05+0000", "torch": "2.99.0"},
        {"event": "saved", "time": "2026-01-02T03:05:05+0000", "position": 240, "pause_ms": 4.0},
        {"event": "passed over", "time": "2026-01-02T03:06:05+0000", "reason": f"{HOSTILE} in /home/bob/private/file"},
        {"event": "resume", "time": "2026-01-02T03:06:06+0000", "position": 240, "changes": ["a", "b"]},
        {"event": "saved", "time": "2026-01-02T03:07:05+0000", "position": 480, "pause_ms": 9.0},
    ]
    (folder / "ledger.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    scores = {"val": {"psnr_db": 21.5, "ssim": 0.65, "rate_nats": 31.4, "active_units": 3, "images": 12}}
    summary = {
        "finished": True,
        "position": 480,
        "scores": scores,
        "planned_bytes": 300 << 20,
        "peak_pss_bytes": 200 << 20,
        "total_wall_s": 125.0,
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    for position in range(40, 481, 40):
        shade = Image.new("RGB", (1400, 300), (position % 256, 90, 120))
        shade.save(folder / "grids" / f"{position:012d}.png")
    save_model(folder / "final", shardset=data.fingerprint, scores=scores, position=480)
    return folder


@pytest.fixture
def run(tmp_path: Path, shards: ShardSet) -> Path:
    return make_run(tmp_path / f"run {HOSTILE.replace('/', '|')}", shards.folder)


def fill(folder: Path) -> None:
    """Results of commands, known and unknown, with hostile words in them."""
    folder.mkdir(exist_ok=True)
    coarse = np.random.default_rng(0).integers(0, 256, (6, 16, 3)).astype(np.uint8)
    picture = Image.fromarray(coarse).resize((720, 240), Image.Resampling.BICUBIC)
    for name in ("reconstruct-val", "sample-fitted", "tsne", "attributes", "morph", "score", f"{HOSTILE[:8]}-else"):
        picture.save(folder / f"{name}.png")
    frames = [Image.new("RGB", (40, 40), (shade, 0, 0)) for shade in (0, 90, 200)]
    frames[0].save(folder / "morph-linear.gif", save_all=True, append_images=frames[1:], duration=50, loop=0)
    values = {
        "origin": HOSTILE,
        "where": "/home/bob/private/photo.jpg",
        "url": "s3://secret-bucket/faces?token=abc",
        "deep": {"inner_db": 3.14159},
        "rows": [{"name": HOSTILE, "auc": 0.912345}, {"name": "y", "auc": None}],
        "settings": {"run": "/home/bob/private", "seed": 7, "out": None, "split": "val"},
    }
    (folder / "reconstruct-val.json").write_text(json.dumps(values))
    (folder / "morph.json").write_text("{}")
    (folder / "reconstruct-val.csv").write_text(f'number,key\n0,"{HOSTILE.replace(chr(34), chr(34) * 2)}"\n')
    (folder / "score.csv").write_text("name,value\n" + "".join(f"n{n},{n}\n" for n in range(MOST_ROWS + 50)))


def report(run: Path, *arguments: str) -> Path:
    assert main(["report", "--run", str(run), *arguments]) == 0
    return run / "explore" / "report.html"


def test_a_report_is_one_whole_page_that_loads_nothing(run: Path, tmp_path: Path) -> None:
    fill(run / "explore")
    path = report(run)
    page, source = page_of(path), path.read_text()
    assert not page.wrong
    assert not page.open
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "iframe", "object", "base", "form"}
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            assert attributes.get(name, "#").startswith(("data:", "#")), (tag, attributes)
    assert not re.search(r"url\((?!#)|@import", source)
    # Outside of words that were written into the run, there is no address at all.
    assert not re.search(r"https?://(?!example\.org/x onerror)", source)
    assert len(source) < 4_000_000
    assert f"run {HOSTILE.replace('/', '|')}" in page.text
    assert str(tmp_path) not in source


def test_hostile_words_are_shown_as_words_and_places_are_not_shown(run: Path) -> None:
    fill(run / "explore")
    path = report(run)
    page = page_of(path)
    assert page.text.count("alert(1)") >= 5
    assert not [attributes for tag, attributes in page.tags if tag == "img" and "onerror" in attributes]
    source = path.read_text()
    for private in ("/home/bob", "private", "secret-bucket", "token=abc"):
        assert private not in source
    assert "photo.jpg" in page.text


def test_everything_that_is_there_is_shown_in_order(run: Path, shards: ShardSet) -> None:
    fill(run / "explore")
    page = page_of(report(run))
    ids = [attributes["id"] for tag, attributes in page.tags if tag == "section"]
    results = [f"results-{number}" for number in range(1, len(KINDS) + 2)]
    assert ids == ["data", "training", "grids", *results, "costs", "settings", "again"]
    anchors = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert anchors == [f"#{name}" for name in ids]
    titles = [kind.title for kind in KINDS]
    places = [page.text.rindex(f" {title} {kind.lead}") for title, kind in zip(titles, KINDS, strict=True)]
    assert places == sorted(places)
    for expected in (
        "Trained on 480 images, 12.0 epochs.",
        "21.50 dB",
        "200.0 MiB",
        "2m05s",
        "deep · inner 3.14 dB",
        "0.9123",
        "score.csv name value n0 0",
        "50 more rows are in the file.",
        "6.5 ms, at most 9.0 ms",
        "2 saved",
        f"fingerprint {shards.fingerprint}",
        "seed 7, split val",
        "2.99.0",
    ):
        assert expected in page.text, expected
    assert "Not in this report" not in page.text
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert all(attributes["alt"] for attributes in images)
    keys = [attributes["alt"] for attributes in images if attributes["alt"].startswith("train/face-")]
    assert len(set(keys)) == 40
    # Six of the twelve grids, the newest first.
    captions = re.findall(r"epoch (\d+\.\d), (\d+) images", page.text)
    assert captions == [("12.0", "480"), ("10.0", "400"), ("8.0", "320"), ("5.0", "200"), ("3.0", "120"), ("1.0", "40")]


def test_the_same_files_give_the_same_report(run: Path) -> None:
    fill(run / "explore")
    first = report(run).read_bytes()
    assert report(run).read_bytes() == first


def test_a_run_that_has_only_begun_says_what_is_missing(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    shutil.copy(run / "config.toml", fresh)
    page = page_of(report(fresh))
    for expected in (
        "It has not been trained yet.",
        "No curves: the run has not written metrics yet.",
        "No grids: the first is painted at the end of the first epoch.",
        "No checkpoint yet: the explore commands need one; wait for the first save.",
        "Not made yet: explore reconstruct, explore sample,",
    ):
        assert expected in page.text, expected
    assert "No checkpoint yet" in capsys.readouterr().out
    assert not page.wrong


def test_damage_and_absence_cost_only_what_is_damaged(run: Path) -> None:
    fill(run / "explore")
    (run / "summary.json").write_text("{oops")
    (run / "explore" / "tsne.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    (run / "explore" / "score.csv").write_text("")
    (run / "explore" / "reconstruct-val.json").write_text("[1")
    grids = sorted((run / "grids").iterdir())
    grids[-1].write_bytes(grids[-1].read_bytes()[:200])
    config = (run / "config.toml").read_text()
    (run / "config.toml").write_text(
        re.sub(r"shards = \[.*?\]", 'shards = ["/home/bob/private/gone"]', config, flags=re.DOTALL)
    )
    page = page_of(report(run))
    assert not page.wrong
    for expected in (
        "summary.json must be JSON",
        "tsne.png cannot be shown",
        "score.csv cannot be shown",
        "reconstruct-val.json cannot be shown",
        f"{grids[-1].name} cannot be shown",
        "No pictures of the data: gone must be a finished shard set",
        "Trained on 480 images.",
    ):
        assert expected in page.text, expected
    assert "400 images" in page.text
    (run / "config.toml").write_text("[data")
    page = page_of(report(run))
    assert "No settings: config.toml must be TOML" in page.text


def test_a_set_of_other_data_is_not_shown_for_the_runs(run: Path, tmp_path: Path) -> None:
    other = make_shard_set(tmp_path / "other", size=SIZE, seed=1)
    page = page_of(report(run, "--shards", str(other.folder)))
    assert "this is not the shard set that the model was trained on" in page.text
    assert not [attributes for tag, attributes in page.tags if attributes.get("alt", "").startswith("train/")]


def with_counts(shards: ShardSet, rejected: int, **positives: int) -> Path:
    """The folder of a set, whose maker counted so many samples with its only attribute."""
    settings = {"size": SIZE, "json": True}
    part = {"settings": settings, "source": {"source_name": "photos", "photos": 99}}
    counts = {split: [count] for split, count in positives.items()}
    ShardSet(**{**vars(shards), "rejected": rejected, "parts": ({**part, "positives": counts},)}).save()
    return shards.folder


@pytest.fixture
def two_sets(tmp_path: Path) -> list[str]:
    """Two sets, of which training reads the second one three times an epoch."""
    common = make_shard_set(tmp_path / "data" / "common", size=SIZE, name="common")
    rare = make_shard_set(tmp_path / "data" / "rare", samples={"train": 8, "test": 4}, size=SIZE, seed=1, name="rare")
    folders = with_counts(common, 5, train=10, val=6), with_counts(rare, 2, train=8, test=1)
    return [str(folders[0]), f"{folders[1]}*3"]


def test_several_sets_are_shown_as_one_with_each_image_once(tmp_path: Path, two_sets: list[str]) -> None:
    page = page_of(report(make_run(tmp_path / "run", *two_sets)))
    for expected in (
        "Trained on 480 images, 7.5 epochs.",  # Of 40 + 3 * 8.
        "shard sets common, rare (3 times an epoch)",
        "48 train, 12 val, 4 test",
        "7 inputs that gave no image",
        "1 attributes",
        f"fingerprint {Dataset.open(two_sets).fingerprint}",
        "attribute train val test Smiling 37.5% 50.0% 25.0%",
    ):
        assert expected in page.text, expected
    keys = [attributes["alt"] for tag, attributes in page.tags if attributes.get("alt", "").startswith("train/")]
    assert len(keys) == 48


@pytest.mark.parametrize("here", [True, False])
def test_the_commands_of_a_report_name_all_sets_and_no_folder_of_the_machine(
    tmp_path: Path, two_sets: list[str], monkeypatch: pytest.MonkeyPatch, here: bool
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(tmp_path if here else elsewhere)
    path = report(make_run(tmp_path / "run", *two_sets))
    text = html.unescape(path.read_text())
    folder = "data/" if here else ""
    for place in (f"{folder}common", f"{folder}rare"):
        assert f"shard_tool make-shards PHOTOS --out {place} --size {SIZE}" in text.replace("\n", " ")
    assert f"--data.shards {folder}common '{folder}rare*3' --run.dir runs/run" in text
    assert str(tmp_path) not in text


def test_sets_of_one_name_in_other_folders_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    sets = [make_shard_set(tmp_path / part / "faces", seed=seed) for seed, part in enumerate("ab")]
    assert shown_places(Dataset.open(sets)) == ["faces-1", "faces-2"]
    remote = [replace(one, location=f"s3://bucket/{part}?token=1") for one, part in zip(sets, "cd", strict=True)]
    assert shown_places(Dataset.open(remote)) == ["c", "d"]


def test_labels_that_are_not_the_same_are_not_counted(tmp_path: Path, two_sets: list[str]) -> None:
    other = make_shard_set(tmp_path / "other", size=SIZE, seed=2, attributes=("Bald",), name="other")
    page = page_of(report(make_run(tmp_path / "run", two_sets[0], other.folder)))
    assert "labels not the same in all sets" in page.text
    assert "How many images have each attribute" not in page.text


def test_a_models_folder_has_a_report_too(run: Path, shards: ShardSet) -> None:
    final = run / "final"
    assert main(["report", "--model", str(final), "--shards", str(shards.folder)]) == 0
    page = page_of(final / "explore" / "report.html")
    assert not page.wrong
    assert "they are in the run's folder, and this is a model's" in page.text
    assert "21.50 dB" in page.text
    assert [attributes for tag, attributes in page.tags if attributes.get("alt", "").startswith("train/")]


def test_a_model_on_the_hub_has_a_report_in_a_folder_of_its_name(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("train.hub.snapshot_download", lambda name, **_: str(run / "final"))
    assert main(["report", "--model", "someone/faces"]) == 0
    page = page_of(tmp_path / "someone" / "faces" / "explore" / "report.html")
    assert not page.wrong
    assert "21.50 dB" in page.text
    assert "No pictures of the data: add --shards FOLDER." in page.text


def test_out_is_where_it_is_written_and_results_are_looked_for_there_first(run: Path, tmp_path: Path) -> None:
    fill(run / "explore")
    out = tmp_path / "out"
    report(run, "--out", str(out))
    assert "score.csv" in page_of(out / "report.html").text
    (out / "latents.json").write_text('{"active_units": 77}')
    report(run, "--out", str(out))
    text = page_of(out / "report.html").text
    assert "active units 77" in text
    assert "score.csv" not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "got both or none of --run and --model"),
        (["--run", "{tmp}"], "must be a run folder; got no config.toml in it"),
        (["--model", "{tmp}"], "must hold a finished model; got no config.json"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", *(part.format(tmp=tmp_path) for part in arguments)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line


def test_the_settings_of_a_report_train_the_same_run(run: Path) -> None:
    source = report(run).read_text()
    [toml] = [part for part in re.findall(r"<pre[^>]*>(.*?)</pre>", source, re.DOTALL) if part.startswith("[run]")]
    again = from_dict(tomllib.loads(html.unescape(toml)), "the report")
    before = from_dict(tomllib.loads((run / "config.toml").read_text()), "the run")
    assert (again.model, again.loss, again.optim) == (before.model, before.loss, before.optim)
    assert again.train.batch_size == before.train.batch_size
    assert again.data.shards is None


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--crop", "40", "--encode", "png", "--background", "#123456", "--keep-order", "--val-fraction", "0.3"],
        ["--crop", "pad", "--quality", "80", "--subsampling", "420", "--exact", "--shard-samples", "2", "--seed", "5"],
        ["--crop", "stretch", "--shard-size", "30000", "--drop-duplicates", "--limit", "5", "--no-json", "--upscale"],
    ],
)
def test_the_command_of_a_report_makes_the_same_shard_set(tmp_path: Path, options: list[str]) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(7):
        values = np.random.default_rng(number).integers(0, 256, (4, 4, 3)).astype(np.uint8)
        Image.fromarray(values).resize((60, 50), Image.Resampling.BICUBIC).save(photos / f"{number}.png")
    first = make_shards(photos, tmp_path / "first", "--size", "16", *options)
    words = list(words_of(first.parts[0]["settings"]))
    again = make_shards(photos, tmp_path / "again", *words)
    assert again.fingerprint == first.fingerprint
    assert again.parts[0]["settings"] == first.parts[0]["settings"]


def test_charts_place_their_values_in_the_frame() -> None:
    records = [{"position": 100 * n, "loss": float(n), "psnr_db": 20.0, "kl_nats": 1.0} for n in range(1, 11)]
    records.append({"position": 1000, "scores": {"val": {"psnr_db": 30.0, "rate_nats": 2.0}}})
    loss, quality, _, speed = charts_of(records)
    left, top, right, bottom = FRAME
    points = [tuple(map(float, point.split(","))) for point in loss.training.split()]
    assert len(points) == 10
    assert points[-1][0] == right
    assert all(before[1] > after[1] for before, after in itertools.pairwise(points))
    assert top < points[-1][1] < bottom
    ticks = {tick.text: tick.place for tick in loss.up}
    assert [ticks["5"], ticks["10"]] == [points[4][1], points[9][1]]
    [(x, y)] = quality.held_out
    assert (x, top < y < bottom) == (right, True)
    assert "held-out images 30" in quality.text
    assert speed.training == ""
    assert charts_of(records[:1]) == []
    assert left < points[0][0] < right


def test_results_go_to_the_section_of_their_first_word(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / "notes.txt").write_text("no result")
    (tmp_path / "report.html").write_text("older")
    table = {name: {"auc": 0.5, "share": 0.25} for name in ("Smiling", "Bald", "Male")}
    (tmp_path / "attributes.json").write_text(json.dumps({"images": 40, "attributes": table}))
    (tmp_path / "latents-covariance.csv").write_text(f"{','.join(f'z{n}' for n in range(128))}\n{'1,' * 127}1\n")
    absent: list[str] = []
    sections = read_sections(tmp_path, absent)
    assert [section.kind.title for section in sections] == [*(kind.title for kind in KINDS), "More"]
    assert absent == []
    latents = next(section for section in sections if section.kind.title == "Latent space")
    [covariance] = [table for exhibit in latents.exhibits for table in exhibit.tables]
    assert (len(covariance.head), covariance.narrowed) == (24, 104)
    [attributes] = next(section for section in sections if section.kind.title == "Attributes").exhibits
    assert attributes.facts == [("images", "40")]
    assert attributes.tables[0].head == ("", "AUC", "share")
    assert attributes.tables[0].rows[1] == ("Bald", "0.5", "25.0%")
    [morph] = next(section for section in sections if section.kind.title == "Morphs").exhibits
    assert [picture.moving for picture in morph.pictures] == [False, True]
    assert morph.pictures[1].caption == "Linear"
    [reconstruct] = sections[0].exhibits
    assert reconstruct.title == "Val split"
    assert reconstruct.settings == "seed 7, split val"
    for number in range(30):
        Image.new("RGB", (4, 4)).save(tmp_path / f"samples-{number}.png")
    faces = next(section for section in read_sections(tmp_path, absent) if section.kind.title == "New faces")
    shown = sum(len(exhibit.pictures) for exhibit in faces.exhibits)
    assert (shown, shown + faces.left_out) == (16, 31)


def test_pictures_are_reduced_and_drawings_stay_as_they_are(tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (100, 3200, 3)).astype(np.uint8))
    assert (embed(noise, "noise").width, embed(noise, "noise").height) == (1600, 50)
    drawing = Image.new("RGB", (600, 400), "white")
    drawing.paste("black", (100, 100, 300, 102))
    drawing.save(tmp_path / "drawing.png")
    found = embed_file(tmp_path / "drawing.png", "a line")
    assert found.source.startswith("data:image/webp;base64,")
    assert len(found.source) < 3000
    for content in (b"", b"GIF89a", b"\x89PNG\r\n\x1a\n"):
        (tmp_path / "bad.png").write_bytes(content)
        with pytest.raises((OSError, ValueError)):
            embed_file(tmp_path / "bad.png", "")


@pytest.mark.parametrize(
    ("value", "name", "text"),
    [
        (21.88522, "mean_psnr_db", "21.89 dB"),
        (3 << 30, "peak_pss_bytes", "3.0 GiB"),
        (125.2, "wall_s", "2m05s"),
        (0.0321, "wall_s", "0.0321 s"),
        (0.0057, "data_wait_share", "0.6%"),
        (1234567, "images", "1,234,567"),
        (0.000012345, "x", "1.234e-05"),
        (float("nan"), "x", "\N{EN DASH}"),
        (None, "x", "\N{EN DASH}"),
        (True, "x", "yes"),
        ([1, 2, 3], "x", "1, 2, 3"),
        ([], "x", "none"),
        (list(range(11)), "x", "11 values from 0 to 10, mean 5"),
        (["a"] * 10, "x", "a, a, a, a, a, a, a, a and 2 more"),
        ({"auc": 0.5}, "x", "AUC 0.5"),
    ],
)
def test_values_are_shown_as_a_person_reads_them(value: Any, name: str, text: str) -> None:
    assert show(value, name) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/tmp/w/runs/c64", "c64"),
        ("in /home/bob/x.jpg, and ~/photos/y.png", "in x.jpg, and y.png"),
        ("s3://bucket/faces-64?key=1#a", "faces-64"),
        ("https://user:secret@host/set/", "set"),
        ("img_align_celeba/img_align_celeba/181199", "img_align_celeba/img_align_celeba/181199"),
        ("N(0, I) and/or 1/2", "N(0, I) and/or 1/2"),
        ("</script>", "</script>"),
    ],
)
def test_places_of_the_machine_are_left_out(text: str, shown: str) -> None:
    assert without_places(text) == shown


def test_names_are_words() -> None:
    assert [label(name) for name in ("mean_psnr_db", "total_wall_s", "active_units", "auc", "s")] == [
        "mean PSNR",
        "total wall",
        "active units",
        "AUC",
        "s",
    ]


@pytest.mark.skipif(missing() is not None, reason=str(missing()))
def test_a_browser_opens_it_from_disk_asks_nobody_and_nothing_sticks_out(run: Path, tmp_path: Path) -> None:
    fill(run / "explore")
    path = report(run).rename(tmp_path / "report.html")
    with browsing(tmp_path / "browser") as driver:
        for width, mobile in ((390, True), (1200, False)):
            size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": mobile}
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            driver.get(path.as_uri())
            driver.execute_script("document.querySelectorAll('details').forEach(part => part.open = true)")
            across = driver.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
            assert across[0] <= across[1] == width
            broken = driver.execute_script(
                "return Promise.all([...document.images].map(image => image.decode().then(() => 0, () => 1)))"
                ".then(found => found.reduce((sum, part) => sum + part, 0))"
            )
            assert broken == 0
            assert driver.execute_script("return document.images.length") > 40
        messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
        asked = [
            message["params"]["request"]["url"]
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
            and message["params"]["documentURL"].startswith("file:")  # Not the empty page that a browser starts with.
        ]
        assert asked
        assert {url.partition(":")[0] for url in asked} <= {"file", "data"}
        assert driver.get_log("browser") == []
