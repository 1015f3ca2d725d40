import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from explore.cli import main
from pipeline.format import ShardSet
from tests.helpers import make_shard_set
from train.checkpoint import generations, read_newest, write_generation
from train.run import main as train_main

TOML = """
[model]
widths = [8, 8, 8, 8]
latent = 4
[train]
batch_size = 16
total_images = 48
prior_images = 32
threads = 1
"""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return make_shard_set(tmp_path_factory.mktemp("sets") / "faces", samples={"train": 40, "val": 12}, size=32)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, shards: ShardSet) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    (folder / "tiny.toml").write_text(TOML)
    code = train_main(
        [str(folder / "tiny.toml"), "--data.shards", str(shards.folder), "--run.dir", str(folder / "run")]
    )
    assert code == 0
    return folder / "run"


@pytest.fixture
def run_of_two(tmp_path: Path, shards: ShardSet) -> Path:
    """A finished run on two sets, of which the second one was read three times an epoch."""
    rare = make_shard_set(tmp_path / "rare", samples={"train": 6}, size=32, seed=1)
    (tmp_path / "tiny.toml").write_text(TOML)
    sets = [str(shards.folder), f"{rare.folder}*3"]
    assert train_main([str(tmp_path / "tiny.toml"), "--data.shards", *sets, "--run.dir", str(tmp_path / "run")]) == 0
    return tmp_path / "run"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def unfinished(run: Path) -> Path:
    """A run with nothing but its checkpoint."""
    shutil.rmtree(run / "final")
    return run


def numbers(path: Path) -> dict[str, object]:
    return dict(json.loads(path.read_bytes()))


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.mark.parametrize("kind", ["run", "unfinished"])
def test_reconstruct_paints_originals_over_answers_and_tells_each_psnr(
    kind: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    run: Path = request.getfixturevalue(kind)
    capsys.readouterr()
    assert main(["reconstruct", "--run", str(run), "--count", "10", "--columns", "4"]) == 0
    picture = run / "explore" / "reconstruct-val.png"
    assert capsys.readouterr().out.split() == [str(picture.with_suffix(end)) for end in (".png", ".json", ".csv")]
    with Image.open(picture) as image:
        image.load()
        pixels = np.asarray(image)
    found = numbers(picture.with_suffix(".json"))
    decibels = found["psnr_db"]
    assert isinstance(decibels, list)
    assert len(decibels) == 10
    assert found["mean_psnr_db"] == pytest.approx(np.mean(decibels), rel=1e-5)
    # The picture itself has the first original above its answer, each pixel four times as wide and high.
    left, top = 8, 8 + 22
    original, answer = (pixels[y : y + 128 : 4, left : left + 128 : 4].astype(float) / 255 for y in (top, top + 130))
    assert decibels[0] == pytest.approx(-10 * np.log10(np.square(original - answer).mean()), rel=1e-4)


@pytest.mark.parametrize("prior", ["gaussian", "standard"])
def test_sample_paints_the_same_new_faces_for_a_seed(run: Path, prior: str) -> None:
    def paint(*more: str) -> bytes:
        assert main(["sample", "--run", str(run), "--count", "5", "--columns", "3", "--prior", prior, *more]) == 0
        return (run / "explore" / f"sample-{prior}.png").read_bytes()

    first = paint()
    assert paint() == first
    assert paint("--seed", "1") != first
    settings = numbers(run / "explore" / f"sample-{prior}.json")["settings"]
    assert isinstance(settings, dict)
    assert (settings["count"], settings["seed"], settings["run"]) == (5, 1, str(run))


def test_an_unfinished_run_is_sampled_with_a_gaussian_fitted_now(unfinished: Path) -> None:
    assert main(["sample", "--run", str(unfinished), "--count", "3"]) == 0
    assert (unfinished / "explore" / "sample-gaussian.png").exists()


def test_priors_of_an_unfinished_run_belong_to_the_checkpoint_they_were_fitted_to(
    unfinished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit-prior", "--run", str(unfinished), "--components", "2"]) == 0
    stored = unfinished / "explore" / "priors.safetensors"
    assert str(stored) in capsys.readouterr().out
    assert not (unfinished / "final").exists()
    assert main(["sample", "--run", str(unfinished), "--count", "3", "--prior", "mixture"]) == 0
    # The run goes on: the next save has other weights.
    generation, _ = read_newest(unfinished / "checkpoints")
    assert generation is not None
    for tensor in generation.parts["ema"].values():
        tensor += 0.01
    generation.state["position"] += 16
    write_generation(unfinished / "checkpoints", generation)
    assert main(["sample", "--run", str(unfinished), "--count", "3", "--prior", "mixture"]) == 2
    assert "priors of others" in capsys.readouterr().err
    assert main(["fit-prior", "--run", str(unfinished), "--components", "2"]) == 0
    assert main(["sample", "--run", str(unfinished), "--count", "3", "--prior", "mixture"]) == 0


def test_priors_of_a_finished_run_lie_with_its_model(run: Path) -> None:
    assert main(["fit-prior", "--run", str(run), "--components", "2"]) == 0
    assert (run / "final" / "priors.safetensors").exists()
    assert main(["sample", "--model", str(run / "final"), "--count", "3", "--prior", "mixture"]) == 0


def test_a_finished_models_folder_is_enough(run: Path, tmp_path: Path, shards: ShardSet) -> None:
    model = shutil.copytree(run / "final", tmp_path / "model")
    assert main(["sample", "--model", str(model), "--count", "3"]) == 0
    assert main(["reconstruct", "--model", str(model), "--shards", str(shards.folder), "--count", "3"]) == 0
    assert sorted(path.name for path in (model / "explore").iterdir()) == [
        "reconstruct-val.csv",
        "reconstruct-val.json",
        "reconstruct-val.png",
        "sample-gaussian.json",
        "sample-gaussian.png",
    ]


def test_a_run_on_two_sets_is_explored_on_each_image_once(
    run_of_two: Path, tmp_path: Path, shards: ShardSet, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = ["--shards", str(shards.folder), f"{tmp_path / 'rare'}*3"]
    for command in (["reconstruct", "--split", "train", "--count", "99"], ["fit-prior", "--components", "2"]):
        assert main([*command, "--run", str(run_of_two)]) == 0
        assert main([*command, "--model", str(run_of_two / "final"), *sets]) == 0
    found = numbers(run_of_two / "explore" / "reconstruct-train.json")
    assert found["images"] == 46
    assert numbers(run_of_two / "explore" / "fit-prior.json")["of"] == 46
    shutil.rmtree(run_of_two / "final")
    assert main(["reconstruct", "--run", str(run_of_two), *sets, "--split", "train", "--count", "99"]) == 0
    assert numbers(run_of_two / "explore" / "reconstruct-train.json")["images"] == 46
    capsys.readouterr()
    assert main(["reconstruct", "--run", str(run_of_two), *sets[:2]]) == 2
    assert "got other data. Give the right sets with --shards." in error_line(capsys)


def test_a_tilde_behind_an_equals_sign_is_the_home_folder(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(run)
    assert main(["sample", "--run=~/run", "--count=3", "--out=~/here"]) == 0
    assert (tmp_path / "here" / "sample-gaussian.png").exists()
    assert not (run / "~").exists()


def test_more_images_than_the_split_has_are_all_of_them(run: Path) -> None:
    assert main(["reconstruct", "--run", str(run), "--count", "1000"]) == 0
    decibels = numbers(run / "explore" / "reconstruct-val.json")["psnr_db"]
    assert isinstance(decibels, list)
    assert len(decibels) == 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "got both or none of --run and --model"),
        (["--run", "{run}", "--model", "{run}/final"], "got both or none of --run and --model"),
        (["--run", "{tmp}/nothing"], "must be a run folder; got no config.toml in it"),
        (["--model", "{tmp}/nothing"], "must be a folder or a Hugging Face repository; got"),
        (["--model", "{tmp}"], "must hold a finished model; got no config.json"),
        (["--model", "{run}/final"], "the images must come from a shard set; got none. Add --shards FOLDER."),
        (["--run", "{run}", "--split", "test"], "got 'test'"),
        (["--run", "{run}", "--count", "0"], "must be at least 1"),
        (["--run", "{run}", "--shards", "{tmp}/nothing"], "must be a finished shard set"),
        (["--run", "{run}", "--shards", "{other}"], "got other data. Give the right sets with --shards."),
    ],
)
def test_a_persons_mistake_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = make_shard_set(tmp_path / "other", size=32, seed=1)
    filled = [argument.format(run=run, tmp=tmp_path, other=other.folder) for argument in arguments]
    assert main(["reconstruct", *filled]) == 2
    assert message in error_line(capsys)


def test_images_of_another_size_than_the_models_are_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = make_shard_set(tmp_path / "other", size=64)
    assert main(["reconstruct", "--model", str(run / "final"), "--shards", str(other.folder)]) == 2
    assert "must be of the model's size 32; got 64" in error_line(capsys)


def test_an_unfinished_run_is_not_explored_on_other_data(
    unfinished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = make_shard_set(tmp_path / "other", size=64)
    assert main(["sample", "--run", str(unfinished), "--shards", str(other.folder)]) == 2
    assert "got other data" in error_line(capsys)


def test_a_run_before_its_first_save_says_so(unfinished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(unfinished / "checkpoints")
    assert main(["sample", "--run", str(unfinished)]) == 2
    assert "got no checkpoint yet" in error_line(capsys)


def test_a_damaged_checkpoint_is_a_fault(unfinished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in generations(unfinished / "checkpoints"):
        (path / "manifest.json").unlink()
    assert main(["sample", "--run", str(unfinished)]) == 1
    assert "must hold one whole generation" in error_line(capsys)


@pytest.mark.parametrize("content", ["[data", "[data]\n", ""])
def test_a_damaged_config_is_one_line(run: Path, content: str, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "config.toml").write_text(content)
    assert main(["sample", "--run", str(run)]) == 2
    assert "config.toml" in error_line(capsys)


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be a run folder"):
        main(["sample", "--run", str(tmp_path), "--debug"])


@pytest.mark.parametrize(("arguments", "code"), [(["--help"], 0), (["sample", "--help"], 0), (["paint"], 2)])
def test_help_exits_with_0_and_a_wrong_command_with_2(
    arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == code
    assert any(capsys.readouterr())
