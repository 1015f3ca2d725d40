"""Where the files of a finished model are: a folder, a finished run's folder, or a Hugging Face repository."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from pipeline.errors import TransportError, UserError
from train.runfolder import RunFolder


def find_model(name_or_path: str | Path, files: Sequence[str], **options: Any) -> Path:
    """The folder that holds `files`, of which the first one marks a model; downloaded where it must be.

    `options` are huggingface_hub's: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download`.
    Raises `UserError` where there is no model of that name, `TransportError` where the hub cannot be reached.
    """
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        final = RunFolder(path).final
        return final if not (path / files[0]).exists() and final.is_dir() else path
    return _download(str(name_or_path), files, options)


def _download(name: str, files: Sequence[str], options: dict[str, Any]) -> Path:
    """A repository's files in huggingface_hub's cache."""
    try:
        return Path(snapshot_download(name, allow_patterns=list(files), **options))
    except HFValidationError as error:
        raise UserError(
            f"a model must be a folder or a Hugging Face repository; got '{name}', which is neither. Check the name."
        ) from error
    except LocalEntryNotFoundError as error:
        raise TransportError(
            f"{name} must be a folder, or in reach on Hugging Face; got '{str(error).splitlines()[0]}'. "
            "Check the path and the network."
        ) from error
    except HfHubHTTPError as error:
        raise UserError(
            f"a model must be a folder or a Hugging Face repository; got '{name}', and the hub says "
            f"'{str(error).splitlines()[-1]}'. Check the name, and log in where it is private."
        ) from error
