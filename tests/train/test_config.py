import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from tests.helpers import make_shard_set
from train.config import (
    Config,
    changes,
    from_dict,
    load_config,
    parse_command_line,
    reuse,
    with_values,
)

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.toml"))


def decode(toml: str) -> Config:
    return from_dict(tomllib.loads(toml), "a.toml")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_config_loads(path: Path) -> None:
    assert isinstance(load_config(path), Config)


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("[train]\nbatch_sise = 3", "got 'train.batch_sise'. Did you mean 'train.batch_size'?"),
        ("[trian]\nbatch_size = 3", "got 'trian'. Did you mean 'train'?"),
        ("[run]\nxyzzy = 3", "Known are: name, dir, seed, fresh, max_minutes."),
        ("train = 3", "train in a.toml must be a table; got 3"),
        ("[train]\nbatch_size = 3.5", "train.batch_size in a.toml must be of type int; got 3.5"),
        ("[train]\nbatch_size = true", "must be of type int; got True"),
        ('[train]\nbatch_size = "3"', "must be of type int; got '3'"),
        ("[run]\nname = 3", "must be of type str; got 3"),
        ("[run]\nfresh = 1", "must be of type bool; got 1"),
        ('[optim]\nlearning_rate = "1e-3"', "must be of type float"),
        ('[model]\nkind = "kears"', "must be one of 'conv', 'residual', 'keras'; got 'kears'"),
        ("[model]\nwidths = 8", "must be a list of numbers; got 8"),
        ("[data]\nshards = 3", "data.shards in a.toml must be a list of words; got 3"),
        ('[data]\non_error = "ignore"', "must be one of 'raise', 'skip'; got 'ignore'"),
        ("[model]\nwidths = [8, 8, 8, 0.5]", "model.widths in a.toml must be of type int; got 0.5"),
        ("[optim]\nbetas = [0.9]", "must be a list of 2 numbers"),
        ("[model]\nwidths = [8]", "model.widths must be 2 to 7 counts"),
        ("[model]\nwidths = [8, 0]", "model.widths must be 2 to 7 counts"),
        ("[loss]\nfree_bits = -1", "loss.free_bits must be at least 0"),
        ("[loss]\nkl_warmup_images = -1", "loss.kl_warmup_images must be at least 0"),
        ("[model]\nlatent = 0", "model.latent must be a positive number; got 0"),
        ("[train]\nbatch_size = -1", "train.batch_size must be a positive number; got -1"),
        ("[train]\nepochs = inf", "train.epochs must be a positive number; got inf"),
        ("[optim]\nlearning_rate = nan", "optim.learning_rate must be a positive number; got nan"),
        ("[optim]\nbetas = [0.9, 1.0]", r"optim.betas must lie in \[0, 1\)"),
        ("[optim]\nwarmup_images = -1", "optim.warmup_images must be at least 0"),
        ("[optim]\nweight_decay = -0.1", "optim.weight_decay must be at least 0"),
        ("[run]\nseed = -1", "run.seed must lie in"),
        ("[run]\nseed = 4294967296", "run.seed must lie in"),
        ('[data]\ncache_bytes = "many"', "got 'many'"),
        ("[data]\ncache = 3", "data.cache in a.toml must be of type bool; got 3"),
        ("[run]\nmax_minutes = 0", "run.max_minutes must be positive"),
        ("[checkpoint]\nkeep = 0", "checkpoint.keep must be a positive number"),
        ("[train]\nmicro_batch = 0", "train.micro_batch must be a positive number or auto; got 0"),
        ('[train]\nmicro_batch = "al"', "train.micro_batch .* must be one of 'auto'; got 'al'"),
        ('[budget]\ngpu = "much"', "a size must be a number of bytes such as 100MB or 2GiB; got 'much'"),
        ("[loss]\nmse_weight = 0", "loss.mse_weight must be a positive number"),
    ],
)
def test_a_wrong_key_type_or_value_is_an_error_that_names_it(toml: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        decode(toml)


def test_whole_numbers_pass_as_floats_and_lists_as_tuples() -> None:
    config = decode("[optim]\nlearning_rate = 1\nbetas = [0, 0.5]\n[model]\nwidths = [1, 2, 3, 4]")
    assert type(config.optim.learning_rate) is float
    assert config.optim.betas == (0.0, 0.5)
    assert config.model.widths == (1, 2, 3, 4)


def test_a_word_stands_for_a_list_of_one() -> None:
    """As a run's data.shards was saved before there could be several."""
    assert decode('[data]\nshards = "a/b"').data.shards == ("a/b",)
    assert decode('[data]\nshards = ["a/b", "s3://c*2"]').data.shards == ("a/b", "s3://c*2")


def test_every_word_that_begins_with_a_tilde_is_a_path_in_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/x")
    config = decode('[run]\ndir = "~/r"\nname = "a~/b"\n[data]\nshards = ["~", "~y", "~/z*2"]\ncache = "~/c"')
    assert (config.run.dir, config.run.name, config.data.cache) == ("/home/x/r", "a~/b", "/home/x/c")
    assert config.data.shards == ("/home/x", "~y", "/home/x/z*2")
    _, config = parse_command_line(["--data.shards", "~/a", "~/b", "--checkpoint.mirror=~/m"])
    assert (config.data.shards, config.checkpoint.mirror) == (("/home/x/a", "/home/x/b"), "/home/x/m")


def test_a_config_comes_back_from_toml_as_it_was() -> None:
    config = with_values(
        Config(),
        {
            "run.name": 'a "name" \\ [x]',
            "model.widths": (1, 2, 3, 4),
            "optim.betas": (0.5, 0.75),
            "optim.learning_rate": 1e-7,
            "data.flip": True,
            "train.total_images": 10**12,
        },
    )
    assert decode(config.to_toml()) == config


def test_a_missing_config_names_those_that_exist(tmp_path: Path) -> None:
    (tmp_path / "other.toml").touch()
    with pytest.raises(ConfigError, match=r"got no such file. There are: .*other.toml"):
        load_config(tmp_path / "missing.toml")


@pytest.mark.parametrize("content", [b"[train\n", b"\xff\xfe"])
def test_a_config_that_is_no_toml_is_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.toml").write_bytes(content)
    with pytest.raises(ConfigError, match="must be TOML"):
        load_config(tmp_path / "a.toml")


def test_a_folder_as_config_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must be readable"):
        load_config(tmp_path)


def test_dotted_overrides_win_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[train]\nbatch_size = 8\nepochs = 3\n[model]\nwidths = [1, 2, 3, 4]\nlatent = 5")
    arguments = "--train.batch-size 32 --model.widths 8 8 8 16 --data.shards a/b --optim.betas 0.5 0.6 --run.fresh"
    name, config = parse_command_line([str(path), *arguments.split()])
    assert name == "mine"
    assert (config.train.batch_size, config.train.epochs, config.data.shards) == (32, 3.0, ("a/b",))
    assert (config.model.widths, config.model.latent, config.run.fresh) == ((8, 8, 8, 16), 5, True)
    assert config.optim.betas == (0.5, 0.6)


def test_without_a_file_the_defaults_are_configs_default_toml() -> None:
    name, config = parse_command_line(["--train.epochs", "1"])
    assert name == "default"
    assert config == with_values(load_config(CONFIGS[0].parent / "default.toml"), {"train.epochs": 1.0})


@pytest.mark.parametrize(("arguments", "code"), [(["--help"], 0), (["--train.batch-sise", "3"], 2), (["-x"], 2)])
def test_help_exits_with_0_and_a_wrong_option_with_2(
    arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse_command_line(arguments)
    assert stopped.value.code == code
    out, err = capsys.readouterr()
    assert ("Half-life of the averaged weights" in " ".join(out.split())) == (code == 0)
    assert bool(err) == (code == 2)


def test_an_invalid_override_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    # tyro may exit by itself or let our error through: in both cases the user sees the rule.
    with pytest.raises((SystemExit, ConfigError)) as stopped:
        parse_command_line(["--train.batch-size", "0"])
    assert "train.batch_size must be a positive number; got 0" in str(stopped.value) + capsys.readouterr().err


def test_what_differs_on_resume_is_identity_schedule_or_free() -> None:
    earlier = Config()
    new = with_values(
        earlier,
        {
            "run.seed": 1,
            "data.flip": True,
            "model.kind": "keras",
            "loss.mse_weight": 5.0,
            "train.batch_size": 32,
            "optim.learning_rate": 0.5,
            "train.threads": 7,
            "checkpoint.keep": 9,
            "run.name": "other",
        },
    )
    identity, schedule = changes(new, earlier)
    assert identity == [
        "run.seed was 0, now 1",
        "data.flip was False, now True",
        "model.kind was conv, now keras",
        "loss.mse_weight was 10000.0, now 5.0",
    ]
    assert schedule == ["optim.learning_rate was 0.001, now 0.5", "train.batch_size was 64, now 32"]
    assert changes(replace(earlier, debug=True), earlier) == ([], [])


def test_resolved_values_are_used_again_unless_given() -> None:
    earlier = with_values(Config(), {"data.window": 3, "data.lanes": 8, "train.threads": 5, "run.name": "old"})
    again = reuse(with_values(Config(), {"train.threads": 2}), earlier)
    assert (again.data.window, again.data.lanes, again.train.threads) == (3, 8, 2)
    assert again.run.name is None


@pytest.mark.parametrize(
    ("toml", "expected"),
    [
        ("", (False, None)),
        ("cache = true", (True, None)),
        ('cache = "true"', (True, None)),
        ('cache = "/fast/disk"\ncache_bytes = "2GiB"', (Path("/fast/disk"), 2 << 30)),
    ],
)
def test_the_set_is_opened_as_the_data_section_says(
    tmp_path: Path, toml: str, expected: tuple[Path | bool, int | None]
) -> None:
    make_shard_set(tmp_path, encoding="raw")
    opened = decode(f"[data]\n{toml}").data.open([str(tmp_path)])
    assert (opened.cache, opened.cache_bytes) == expected
    config = decode(f"[data]\n{toml}")
    assert decode(config.to_toml()) == config
