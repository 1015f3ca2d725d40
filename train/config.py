"""What a run is made of: frozen dataclasses that are the TOML sections and the command line at once.

A value is left at None where it should follow from the machine or the shard set; the resolved value is saved with
the run and used again on resume.
"""

import difflib
import math
import tomllib
import types
import typing
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal, TypeVar

import tomli_w
import tyro

from pipeline import Dataset
from pipeline.errors import ConfigError
from pipeline.files import expand_home
from pipeline.machine import parse_bytes

Section = TypeVar("Section")


@dataclass(frozen=True)
class RunConfig:
    """The run and its folder."""

    name: str | None = None
    """Name of the run; its folder is runs/NAME. Default: CONFIG-SET."""
    dir: str | None = None
    """The run's folder itself, instead of runs/NAME."""
    seed: int = 0
    """Names the order, the noise and the first weights."""
    fresh: bool = False
    """Start again: rename the run folder that is there."""
    max_minutes: float | None = None
    """Save and end within this many minutes, with exit code 75: run the same command again to go on."""

    def __post_init__(self) -> None:
        _check(0 <= self.seed < 2**32, "run.seed", "lie in [0, 2^32)", self.seed)
        _check(self.max_minutes is None or self.max_minutes > 0, "run.max_minutes", "be positive", self.max_minutes)


@dataclass(frozen=True)
class DataConfig:
    """Where the images come from."""

    shards: tuple[str, ...] | None = None
    """Folders or URLs of shard sets, which are read as one; SET*3 reads a set three times an epoch. Default: the only
    set under shards/."""
    threads: int | None = None
    """Decode threads of each process. Default: its part of the cores, at most 4."""
    flip: bool = False
    """Mirror every other image, drawn by position."""
    window: int | None = None
    """Shards whose samples are mixed. Default: see ARCHITECTURE.md."""
    lanes: int | None = None
    """Streams that a batch is drawn from. Default: see ARCHITECTURE.md."""
    cache: bool | str = False
    """Disk cache to read through, for slow drives: true, or a folder. A URL always has one: see docs/remote.md."""
    cache_bytes: str | None = None
    """Limit of that cache, such as 20GiB. Default: half of what is free there."""
    on_error: Literal["raise", "skip"] = "raise"
    """Answer to a damaged sample. raise: save and end; skip: go on without it, noted in the ledger and the audit."""

    def __post_init__(self) -> None:
        _check_positive("data", self, "threads", "window", "lanes")
        if self.cache_bytes is not None:
            parse_bytes(self.cache_bytes)

    def open(self, shards: Sequence[str] | None = None) -> Dataset:
        """The shard sets, read as this section says; `shards` instead of its own. Raises as `Dataset.open` does."""
        locations = shards or self.shards
        assert locations is not None, "checked by the caller"
        size = None if self.cache_bytes is None else parse_bytes(self.cache_bytes)
        # The command line hands over its words as they are.
        cache = {"true": True, "false": False}.get(str(self.cache).lower(), self.cache)
        return Dataset.open(locations, cache=cache, cache_bytes=size, on_error=self.on_error)


@dataclass(frozen=True)
class ModelConfig:
    """The variational autoencoder."""

    kind: Literal["conv", "residual", "keras"] = "conv"
    """conv: the fast one; residual: deeper, sharper, slower; keras: port of the Keras CelebA model, BatchNorm and
    dropout."""
    latent: int | None = None
    """Dimensions of the latent space. Default: conv 128, residual 128 at 64 px and 256 at 128 px, keras 200."""
    widths: tuple[int, ...] | None = None
    """Channels of each stage, largest images first. Default: conv 32 64 128 256, keras 32 64 64 64, residual
    64 128 256 256 at 64 px and 48 96 192 256 256 at 128 px."""
    depth: int | None = None
    """Blocks a stage of residual. Default: 1 at 64 px, 2 at 128 px."""

    def __post_init__(self) -> None:
        _check_positive("model", self, "latent", "depth")
        widths = self.widths
        _check(widths is None or (len(widths) in range(2, 8) and min(widths) > 0), "model.widths",
               "be 2 to 7 counts of channels", widths)  # fmt: skip


@dataclass(frozen=True)
class LossConfig:
    """The objective."""

    objective: Literal["optimal_sigma", "l1", "mse", "beta"] = "optimal_sigma"
    """optimal_sigma: a Gaussian decoder whose variance is learned (arXiv 2006.13202); l1: a Laplace decoder whose scale
    is learned; mse: weighted mean squares; beta: a Gaussian of variance 1 and a weighted KL divergence."""
    mse_weight: float = 10_000.0
    """Factor of the mean squared error under mse; the KL divergence has factor 1."""
    beta: float = 0.02
    """Factor of the KL divergence under beta: the decoder variance that it amounts to."""
    kl_warmup_images: int = 0
    """The KL divergence's factor rises from 0 over this many images."""
    free_bits: float = 0.0
    """Nats of KL divergence an image that cost nothing."""
    perceptual_weight: float = 0.0
    """Factor of a distance between Laplacian pyramids (arXiv 1707.05776), added to the objective: it weighs errors by
    their scale, at some cost of PSNR. 0: none."""
    sigma_halflife_images: int = 2_000
    """Half-life of the running error that the learned variance or scale is."""

    def __post_init__(self) -> None:
        _check_positive("loss", self, "mse_weight", "beta", "sigma_halflife_images")
        _check(self.kl_warmup_images >= 0, "loss.kl_warmup_images", "be at least 0", self.kl_warmup_images)
        for name in ("free_bits", "perceptual_weight"):
            value = getattr(self, name)
            _check(0 <= value < math.inf, f"loss.{name}", "be at least 0", value)


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its rate, all functions of the position."""

    learning_rate: float = 1e-3
    """Highest rate."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """cosine: falls to zero at the end of the run."""
    warmup_images: int = 2_000
    """The rate rises linearly over this many images."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Decay of the moments, an update."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    clip_norm: float | None = None
    """Longer gradients are scaled to this norm. Default: never."""

    def __post_init__(self) -> None:
        _check_positive("optim", self, "learning_rate", "eps", "clip_norm")
        _check(self.warmup_images >= 0, "optim.warmup_images", "be at least 0", self.warmup_images)
        _check(self.weight_decay >= 0, "optim.weight_decay", "be at least 0", self.weight_decay)
        _check(all(0 <= beta < 1 for beta in self.betas), "optim.betas", "lie in [0, 1)", self.betas)


@dataclass(frozen=True)
class TrainConfig:
    """Length and size of the training."""

    batch_size: int = 64
    """Images an update, over all processes."""
    micro_batch: int | Literal["auto"] = "auto"
    """Images a process computes at once; the update is the same. auto: the most that fits the GPU or the budget."""
    epochs: float = 20.0
    """Length of the run in passes over the training split."""
    total_images: int | None = None
    """Length of the run in images, instead of epochs; rounded up to whole updates."""
    mixed_precision: Literal["auto", "no", "fp16", "bf16"] = "auto"
    """auto: bf16 where the GPU has it or the CPU has matrix units for it (AMX), fp16 on other GPUs, else float32."""
    ema_halflife_images: int = 10_000
    """Half-life of the averaged weights, which are the result; shorter early in the run."""
    threads: int | None = None
    """Torch threads of each process. Default: the cores over the processes."""
    init_from: str | None = None
    """Begin with the averaged weights of another run or model: its folder, or a Hugging Face repository."""
    cuda_graph: Literal["auto", "no"] = "auto"
    """auto: on CUDA each micro-batch is one recorded graph, where the model allows it; no: its kernels one by one."""
    trackers: tuple[str, ...] = ()
    """Trackers that get the metrics as well, through Accelerate: tensorboard, wandb, ..."""
    log_every_updates: int = 10
    """Updates that one line of metrics.jsonl covers."""
    prior_images: int = 4_096
    """Training images behind the aggregate posterior of an epoch's grid; the final one uses up to ten times more."""

    def __post_init__(self) -> None:
        _check(self.micro_batch == "auto" or self.micro_batch > 0, "train.micro_batch",
               "be a positive number or auto", self.micro_batch)  # fmt: skip
        _check_positive(
            "train", self, "batch_size", "epochs", "total_images", "ema_halflife_images", "threads",
            "log_every_updates", "prior_images",
        )  # fmt: skip


@dataclass(frozen=True)
class CheckpointConfig:
    """What survives a crash."""

    save_every_minutes: float = 3.0
    """Time between saves by the clock; epoch ends, SIGTERM, Ctrl-C and the end save as well."""
    keep: int = 2
    """Newest generations that are kept."""
    milestone_images: int | None = None
    """Besides, the first generation in each span of this many images is kept for good. Default: none."""
    mirror: str | None = None
    """A folder on a mounted drive, where MIRROR/NAME becomes a copy of the run; the run goes on from there where its
    folder is gone."""
    mirror_every_minutes: float = 10.0
    """Time between copies to the mirror."""

    def __post_init__(self) -> None:
        _check_positive("checkpoint", self, "save_every_minutes", "keep", "milestone_images", "mirror_every_minutes")


@dataclass(frozen=True)
class BudgetConfig:
    """What a process may use; sizes such as 2GiB."""

    gpu: str | None = None
    """GPU memory, CUDA's own included. Default: all of it."""
    ram: str | None = None
    """RAM, of the trainer and what it starts. Default: no limit, and little is used."""
    disk: str | None = None
    """Disk, of the checkpoints (without milestones), the finished model and the shard cache, which gets what they
    leave. Default: half of what is free for the cache."""

    def __post_init__(self) -> None:
        for value in (self.gpu, self.ram, self.disk):
            if value is not None:
                parse_bytes(value)

    @property
    def gpu_bytes(self) -> int | None:
        """`gpu` in bytes."""
        return None if self.gpu is None else parse_bytes(self.gpu)

    @property
    def ram_bytes(self) -> int | None:
        """`ram` in bytes."""
        return None if self.ram is None else parse_bytes(self.ram)

    @property
    def disk_bytes(self) -> int | None:
        """`disk` in bytes."""
        return None if self.disk is None else parse_bytes(self.disk)


@dataclass(frozen=True)
class Config:
    """Train a face VAE on a shard set; the same command goes on where a run was interrupted."""

    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    debug: bool = False
    """Show tracebacks of errors."""

    @property
    def flat(self) -> dict[str, Any]:
        """Every value by its dotted name."""
        return {
            f"{name}.{key}": value
            for name, section in asdict(self).items()
            if isinstance(section, dict)
            for key, value in section.items()
        }

    def to_toml(self) -> str:
        """The sections as TOML; values that are None are left out."""
        sections = {name: _plain(section) for name, section in asdict(self).items() if isinstance(section, dict)}
        return tomli_w.dumps(sections)


IDENTITY = ("run.seed", "data.window", "data.lanes", "data.flip", "model.*", "loss.*", "train.init_from")
"""Values that make a run this run: another value is refused on resume. So is another shard set."""
SCHEDULE = ("train.batch_size", "train.epochs", "train.total_images", "train.ema_halflife_images", "optim.*")
"""Values that may change on resume; the change is recorded and exactness holds from there."""
REUSED = ("data.window", "data.lanes", "data.threads", "train.threads", "model.latent",
          "model.widths", "model.depth", "train.init_from")  # fmt: skip
"""Values that, where None, are taken from the run that is resumed."""


def load_config(path: Path) -> Config:
    """Read a TOML file; `ConfigError` for a missing file, unknown keys (with the nearest known one) or wrong types."""
    try:
        data = tomllib.loads(path.read_text())
    except FileNotFoundError:
        known = ", ".join(sorted(str(file) for file in path.parent.glob("*.toml"))) or "none"
        raise ConfigError(f"{path} must exist; got no such file. There are: {known}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} must be TOML; got '{error}'. Mend that line.") from error
    except OSError as error:
        raise ConfigError(f"{path} must be readable; got '{error.strerror}'. Name a TOML file.") from error
    return from_dict(data, str(path))


def from_dict(data: dict[str, Any], where: str) -> Config:
    """Build a `Config` from nested tables, strictly; `where` is for the messages."""
    return _decode(Config, data, where, "")


def parse_command_line(argv: list[str]) -> tuple[str, Config]:
    """`[CONFIG.toml] [--section.key value ...]` -> the config's name and the config.

    Without a file it is configs/default.toml. tyro prints help and usage errors, and exits with 0 or 2.
    """
    argv = expand_home(argv)
    if argv and not argv[0].startswith("-"):
        path, rest = Path(argv[0]), argv[1:]
    else:
        path, rest = Path(__file__).resolve().parent.parent / "configs" / "default.toml", argv
    base = load_config(path)
    try:
        config = tyro.cli(Config, args=rest, default=base, prog="accelerate launch train/run.py [CONFIG.toml]")
    except ValueError as error:
        raise error if isinstance(error, ConfigError) else ConfigError(str(error)) from error
    return path.stem, config


def reuse(config: Config, earlier: Config) -> Config:
    """`config` with the resolved values of the run it resumes where it gives none of its own."""
    old = earlier.flat
    return with_values(config, {key: old[key] for key in REUSED if config.flat[key] is None})


def changes(config: Config, earlier: Config) -> tuple[list[str], list[str]]:
    """What differs from the run that is resumed: lines for identity values, lines for schedule values."""
    new, old = config.flat, earlier.flat
    lines = {key: f"{key} was {old[key]}, now {new[key]}" for key in new if new[key] != old[key]}

    def of_class(patterns: tuple[str, ...]) -> list[str]:
        return [line for key, line in lines.items() if any(fnmatch(key, pattern) for pattern in patterns)]

    return of_class(IDENTITY), of_class(SCHEDULE)


def with_values(config: Config, values: dict[str, Any]) -> Config:
    """A copy with other values, given by dotted names."""
    for key, value in values.items():
        section, _, name = key.partition(".")
        config = replace(config, **{section: replace(getattr(config, section), **{name: value})})
    return config


def _decode(kind: type[Section], data: Any, where: str, prefix: str) -> Section:
    if not isinstance(data, dict):
        raise ConfigError(f"{prefix[:-1]} in {where} must be a table; got {data!r}. Write [{prefix[:-1]}] above it.")
    hints = typing.get_type_hints(kind)
    known = [item.name for item in fields(kind)]  # type: ignore[arg-type]
    values = {}
    for key, value in data.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, 1, 0.5)
            remedy = f"Did you mean '{prefix}{near[0]}'?" if near else f"Known are: {', '.join(known)}."
            raise ConfigError(f"keys in {where} must be known; got '{prefix}{key}'. {remedy}")
        hint = hints[key]
        if is_dataclass(hint):
            values[key] = _decode(typing.cast("type[Any]", hint), value, where, f"{prefix}{key}.")
        else:
            values[key] = _convert(hint, value, f"{prefix}{key} in {where}")
    return kind(**values)


def _convert(hint: Any, value: Any, name: str) -> Any:
    """`value` as the type `hint`: whole numbers pass as floats, lists and single words as tuples, nothing else changes
    its type. A word that begins with `~/` lies in the home folder."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        # A value is of its own type, a word also one of those that the type lists, and everything else an error.
        hints = [argument for argument in arguments if argument is not types.NoneType]
        words = [argument for argument in hints if typing.get_origin(argument) is Literal and isinstance(value, str)]
        exact = [argument for argument in hints if argument is type(value)]
        return _convert([*exact, *words, *hints][0], value, name)
    if origin is Literal:
        if value not in arguments:
            raise ConfigError(f"{name} must be one of {', '.join(map(repr, arguments))}; got {value!r}. Choose one.")
        return value
    if origin is tuple:
        if arguments[0] is str and isinstance(value, str):
            value = [value]
        if not isinstance(value, list | tuple) or (arguments[-1] is not ... and len(value) != len(arguments)):
            count = "" if arguments[-1] is ... else f"{len(arguments)} "
            items = "words" if arguments[0] is str else "numbers"
            raise ConfigError(f"{name} must be a list of {count}{items}; got {value!r}. Write it as [a, b].")
        return tuple(_convert(arguments[0], item, name) for item in value)
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise ConfigError(f"{name} must be of type {hint.__name__}; got {value!r}. Write it without or with quotes.")
    return expand_home([value])[0] if isinstance(value, str) else value


def _plain(section: dict[str, Any]) -> dict[str, Any]:
    return {
        key: list(value) if isinstance(value, tuple) else value for key, value in section.items() if value is not None
    }


def _check(holds: bool, name: str, rule: str, value: Any) -> None:
    if not holds:
        raise ConfigError(f"{name} must {rule}; got {value}. Change it in the TOML file or on the command line.")


def _check_positive(section: str, values: Any, *names: str) -> None:
    for name in names:
        value = getattr(values, name)
        _check(value is None or 0 < value < math.inf, f"{section}.{name}", "be a positive number", value)
