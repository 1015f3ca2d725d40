"""The exceptions of leanstream, all of them.

    LeanstreamError
    ├── UserError (ValueError)   a person can put it right: exit code 2, one line, no traceback
    │   └── ConfigError          a configuration value, key or combination
    ├── SourceError              photos could not be read this time: exit code 1
    ├── TransportError           a remote file could not be had in the time allowed: exit code 1
    ├── StoppedError             a wait was broken off, because somebody asked for an end
    └── DataError                bytes on disk are not what was written: exit code 1
        ├── ShardError           a shard, its index or one sample of it
        └── CheckpointError      a checkpoint generation

Messages read `<thing> must <rule>; got <value>. <remedy>.`
"""

import errno
import sys

EXIT_DONE = 0
EXIT_FAULT = 1
EXIT_USER = 2
EXIT_RUN_AGAIN = 75


class LeanstreamError(Exception):
    """Base of everything that leanstream raises on purpose."""


class UserError(LeanstreamError, ValueError):
    """Something that the reader of the message can put right."""


class ConfigError(UserError):
    """A configuration value, key or combination that cannot be used."""


class SourceError(LeanstreamError):
    """Inputs could not be read this time; another attempt may succeed."""


class TransportError(LeanstreamError):
    """A remote file could not be read or written in the time allowed; another attempt may succeed."""


class StoppedError(LeanstreamError):
    """A wait was broken off, because somebody asked for an end; whoever waited may wait again."""


class DataError(LeanstreamError):
    """Stored bytes differ from what was written."""


class ShardError(DataError):
    """A shard, its index or one of its samples is damaged, missing or of another set."""


class CheckpointError(DataError):
    """No generation of a checkpoint could be read whole."""


def describe_os_error(error: OSError, doing: str) -> UserError:
    """An operating system's refusal as one line that says what to do about it."""
    remedy = {
        errno.ENOSPC: "Free some space or choose another folder; the same command goes on from here",
        errno.EDQUOT: "Free some of your quota or choose another folder; the same command goes on from here",
        errno.EACCES: "Give yourself the permission or choose another folder",
        errno.EPERM: "Give yourself the permission or choose another folder",
        errno.EROFS: "Choose a folder on a writable file system",
        errno.EMFILE: "Raise the limit of open files (ulimit -n)",
    }.get(error.errno or 0, "Check the path and the disk, then run the same command again")
    where = f" {error.filename}" if error.filename else ""
    return UserError(f"{doing} must succeed; got '{error.strerror or error}'{where}. {remedy}.")


def report_error(error: LeanstreamError | OSError, doing: str) -> int:
    """Print what ends a command as one line on stderr; returns its exit code. `doing` is for `describe_os_error`."""
    shown = describe_os_error(error, doing) if isinstance(error, OSError) else error
    print(f"error: {shown}", file=sys.stderr, flush=True)
    return EXIT_USER if isinstance(shown, UserError) else EXIT_FAULT
