"""The build on a Ray cluster: one task a group, any node, the same bytes.

    this process                                   a worker, anywhere
    group ──task──────────────────────────────────> outcomes -> GroupWriter -> a folder of the task
    journal <──the record, when its files are there── renamed into the shared folder, or put into the bucket

A task whose worker or node dies runs again elsewhere. Its files have other names until they are whole, so that two of
the same task cannot disturb each other. Nothing but records comes back through Ray.
"""

import contextlib
import logging
import os
import shutil
import socket
import tempfile
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import LeanstreamError, UserError
from pipeline.files import sync_folder
from pipeline.format import Shard, ShardSet
from shard_tool.build.bucket import Bucket
from shard_tool.build.group import MOST_FAILURES, GroupWriter, json_pad
from shard_tool.build.journal import GroupRecord, Journal
from shard_tool.build.place import STATE_FOLDER, Folder
from shard_tool.build.plan import Group, Plan
from shard_tool.build.reading import outcomes
from shard_tool.build.run import Finished, Progress, Report, complete, source_error
from shard_tool.settings import Settings
from shard_tool.sources.protocol import Access, Source

TASK_RETRIES = 8
"""Times that a group is begun again because its worker or node died."""
KNOCK_SECONDS = 10
"""Time in which a cluster must answer."""
TASKS_A_CORE = 2
"""Groups that are under way or waiting for each core of the cluster."""


@dataclass(frozen=True)
class Job:
    """What every task needs; sent to each node once."""

    source: Source
    plan: Plan
    settings: Settings
    pad: int
    here: str
    """The folder that relative paths of the source mean."""
    folder: str | None
    """The shared folder that gets the shards."""
    token: str
    """A file in it, by which a node knows that it sees the same one."""
    url: str | None
    """The bucket that gets them instead."""


def build_on_ray(
    journal: Journal,
    source: Source,
    plan: Plan,
    settings: Settings,
    finished: Finished,
    *,
    address: str,
    threads: int,
    report: Report,
) -> tuple[ShardSet, Counter[str]]:
    """As `build`, on the cluster at `address`; `local` starts one with `threads` cores on this machine.

    Raises also `UserError` where Ray is not installed or not there, or a node does not see the folder of the set, and
    `LeanstreamError` where workers keep dying.
    """
    if source.access is Access.ONE_PASS:
        raise UserError(
            f"--ray must have a source that can be read from any place; got {source.name}, which is read from its "
            "start. Unpack it, or leave out --ray."
        )
    progress = Progress(report)
    progress.add(finished.photos, finished.rejected)
    failures: list[str] = []
    with _connected(address, threads) as ray, _job(journal, source, plan, settings) as job:
        shared = ray.put(job)
        task = ray.remote(num_cpus=1, max_retries=TASK_RETRIES, scheduling_strategy="SPREAD")(build_group)
        groups = plan.iter_groups(finished.groups)
        sizes: dict[Any, int] = {}
        while len(failures) < MOST_FAILURES:
            ahead = TASKS_A_CORE * max(1, int(ray.cluster_resources().get("CPU", 1)))
            while len(sizes) < ahead and (group := next(groups, None)) is not None:
                sizes[task.remote(shared, group)] = len(plan.groups[group.number])
            if not sizes:
                break
            (done,), _ = ray.wait(list(sizes), num_returns=1)
            made = _result(ray, done)
            if isinstance(made, GroupRecord):
                journal.record(made)
                progress.add(sizes[done], len(made.rejected))
            else:
                failures += made
            del sizes[done]
    journal.place.settle()
    if failures:
        raise source_error(failures)
    return complete(journal, plan, settings)


def build_group(job: Job, group: Group) -> GroupRecord | list[str]:
    """One task: the record of a group whose shards are where they belong, or a line for each photo that failed."""
    with contextlib.suppress(OSError):  # A node may read from a bucket and have no such folder.
        os.chdir(job.here)
    failures: list[str] = []
    with _task_folder(job) as folder:
        writer = GroupWriter(folder, job.plan, job.settings, job.pad, failures)
        with contextlib.closing(outcomes(job.source, [group], job.settings.recipe, 1, spool=folder)) as made:
            writer.write(group, made)
        if failures:
            return failures
        record = writer.record(group)
        shards = [shard for split in record.shards.values() for shard in split]
        if job.url is not None:
            _upload(job.url, folder, shards)
        else:
            assert job.folder is not None
            _move(folder, Path(job.folder), shards)
    return record


@contextlib.contextmanager
def _task_folder(job: Job) -> Iterator[Path]:
    """A folder of this task alone, on the disk where its shards will stay, or leave from."""
    if job.folder is None:
        with tempfile.TemporaryDirectory(prefix="leanstream-") as folder:
            yield Path(folder)
        return
    if not Path(job.token).exists():
        raise UserError(
            f"--out must be a folder that every node of the cluster sees, or a bucket; got {job.folder}, which "
            f"{os.uname().nodename} does not. Mount it there, or give --out s3://bucket/name."
        )
    path = Path(job.folder, STATE_FOLDER, f"task-{uuid.uuid4().hex}")
    path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _move(folder: Path, out: Path, shards: list[Shard]) -> None:
    for shard in shards:
        for suffix in ("tar", "index"):
            os.replace(folder / f"{shard.name}.{suffix}", out / f"{shard.name}.{suffix}")
    sync_folder(out)


def _upload(url: str, folder: Path, shards: list[Shard]) -> None:
    bucket = Bucket.open(url, folder, workshop=folder)
    try:
        for shard in shards:
            bucket.hand_in(shard)
        bucket.settle()
    finally:
        bucket.close()


@contextlib.contextmanager
def _job(journal: Journal, source: Source, plan: Plan, settings: Settings) -> Iterator[Job]:
    place = journal.place
    pad = json_pad(plan, settings)
    if not isinstance(place, Folder):
        yield Job(source, plan, settings, pad, os.getcwd(), None, "", place.shown)
        return
    out = place.path.absolute()
    for left in (out / STATE_FOLDER).glob("task-*"):  # Of workers that were killed.
        shutil.rmtree(left, ignore_errors=True)
    token = out / STATE_FOLDER / f"token-{uuid.uuid4().hex}"
    token.touch()
    try:
        yield Job(source, plan, settings, pad, os.getcwd(), str(out), str(token), None)
    finally:
        token.unlink(missing_ok=True)


@contextlib.contextmanager
def _connected(address: str, threads: int) -> Iterator[Any]:
    """The ray module, connected to the cluster."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise UserError(
            f"--ray must have its package installed; got '{error}'. Install it with: pip install 'leanstream[ray]'."
        ) from error
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        options |= {"num_cpus": threads, "include_dashboard": False}
    try:
        _knock(address)
        ray.init(address=address, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"--ray must be the address of a Ray cluster that runs; got {address} ('{str(error).splitlines()[0]}'). "
            "Start one with: ray start --head, or give --ray alone."
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Raise `OSError` where nobody listens at `address`; Ray itself would try for minutes, and then end the process."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=KNOCK_SECONDS).close()


def _result(ray: Any, done: Any) -> GroupRecord | list[str]:
    try:
        made: GroupRecord | list[str] = ray.get(done)
        return made
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, LeanstreamError | OSError):
            raise cause from None
        raise
    except ray.exceptions.RayError as error:
        raise LeanstreamError(
            f"the workers of the cluster must stay alive; got '{str(error).splitlines()[0]}' after {TASK_RETRIES} "
            "retries. Look at the nodes' memory and disk, then run the same command again."
        ) from error
