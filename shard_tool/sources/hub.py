"""A dataset on the Hugging Face Hub: its parquet files at one commit, read by ranges and never downloaded whole.

    hf://datasets/USER/NAME  ──> commit ──> configuration and splits ──> hf://datasets/USER/NAME@COMMIT/....parquet

Datasets that are no parquet themselves have files that the Hub has converted, on a branch of their own.
"""

import re
from collections.abc import Mapping

from pipeline.errors import UserError
from pipeline.remote.transport import retrying
from shard_tool.sources.protocol import Wanted, split_in_name

_DATASET = re.compile(r"hf://datasets/([^/@]+/[^/@]+)(?:@([^/]+))?/?$")
_CONVERTED = "refs/convert/parquet"
_CONVERTED_FILE = re.compile(r"([^/]+)/([^/]+)/[^/]+\.parquet$")


def is_dataset(url: str) -> bool:
    """Whether `url` names a whole dataset, and not a file of one."""
    return _DATASET.match(url) is not None


def find_files(url: str, wanted: Wanted) -> tuple[str, dict[str, str], list[tuple[int, str]]]:
    """The name of a dataset, what it is known by, and its parquet files, each with the number of its split or -1.

    Raises `UserError`.
    """
    match = _DATASET.match(url)
    assert match is not None, "is_dataset says whether it matches"
    repo, revision = match[1], match[2] or wanted.revision
    commit, files = _resolve(repo, revision, wanted.config)
    if wanted.split is not None and wanted.split not in files:
        raise UserError(
            f"--split must be one of the dataset's, {', '.join(files)}; got '{wanted.split}'. Choose one of them."
        )
    splits = list(files) if wanted.split is None else [wanted.split]
    origin = {"dataset": repo, "commit": commit} | ({"config": wanted.config} if wanted.config else {})
    found = [(split_in_name(split) if len(splits) > 1 else -1, file) for split in splits for file in files[split]]
    return repo.rpartition("/")[2], origin, found


def _resolve(repo: str, revision: str | None, config: str | None) -> tuple[str, Mapping[str, list[str]]]:
    """The commit of a dataset, and the URLs of its parquet files by split; `UserError` where it has none."""
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError:
        raise UserError(
            f"hf://datasets/{repo} must be read with huggingface_hub; got no such package. "
            "Install it with: pip install 'leanstream[remote,parquet]'."
        ) from None
    api = HfApi()
    where = f"hf://datasets/{repo}"

    def files_at(branch: str | None) -> tuple[str, list[str]]:
        commit = str(retrying(lambda: api.dataset_info(repo, revision=branch).sha, where))
        return commit, retrying(lambda: api.list_repo_files(repo, repo_type="dataset", revision=commit), where)

    try:
        commit, names = files_at(revision)
        if any(name.endswith(".parquet") for name in names) and (own := _own_files(repo, commit, config)):
            return commit, own
        commit, names = files_at(_CONVERTED)
    except HfHubHTTPError as error:
        raise UserError(
            f"{where} must be a dataset that you may read; got '{str(error).splitlines()[0]}'. "
            "Check its name, its revision and your login (hf auth login)."
        ) from error
    return commit, _converted_files(repo, commit, config, names)


def _own_files(repo: str, commit: str, config: str | None) -> Mapping[str, list[str]]:
    """The dataset's own files, by its own rules of configurations and splits: `datasets` knows them."""
    try:
        import datasets
    except ImportError:
        raise UserError(
            f"hf://datasets/{repo} must be resolved with datasets; got no such package. "
            "Install it with: pip install 'leanstream[remote,datasets]'."
        ) from None
    try:
        builder = datasets.load_dataset_builder(repo, config, revision=commit)
    except ValueError as error:  # It lists the configurations there are.
        raise UserError(f"--config must choose one of the dataset's; got '{error}'. Name one of them.") from error
    files = {str(split): [str(name) for name in names] for split, names in (builder.config.data_files or {}).items()}
    parquet = {split: [name for name in names if name.endswith(".parquet")] for split, names in files.items()}
    return {split: names for split, names in parquet.items() if names}


def _converted_files(repo: str, commit: str, config: str | None, names: list[str]) -> Mapping[str, list[str]]:
    found: dict[str, dict[str, list[str]]] = {}
    for name in sorted(names):
        if match := _CONVERTED_FILE.match(name):
            url = f"hf://datasets/{repo}@{commit}/{name}"
            found.setdefault(match[1], {}).setdefault(match[2], []).append(url)
    if not found:
        raise UserError(
            f"hf://datasets/{repo} must have parquet files; got none, and none that the Hub has converted. "
            "Download it, and name its folder."
        )
    chosen = config or (next(iter(found)) if len(found) == 1 else "default")
    if chosen not in found:
        raise UserError(
            f"--config must be one of the dataset's, {', '.join(found)}; got '{chosen}'. Choose one of them."
        )
    return found[chosen]
