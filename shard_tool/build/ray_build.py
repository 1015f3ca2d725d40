"""The build on a Ray cluster: one task a group, any node, the same bytes.

    this process                                   a worker, anywhere
    group ──task──────────────────────────────────> outcomes -> GroupWriter -> a desk of the place
    journal <──the record, when its files are there── renamed into the shared folder, or put into the bucket

A task whose worker or node dies runs again elsewhere. Its files have other names until they are whole, so that two of
the same task cannot disturb each other. Nothing but records comes back through Ray.
"""

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from typing import Any, NamedTuple

from pipeline.errors import LeanstreamError, UserError
from shard_tool.build.journal import GroupRecord, Journal
from shard_tool.build.place import Place
from shard_tool.build.plan import Group
from shard_tool.build.reading import MOST_FAILURES, Progress, outcomes, raise_failures
from shard_tool.build.writing import Build, Finished, GroupWriter
from shard_tool.display import Report
from shard_tool.sources.protocol import Access

TASK_RETRIES = 8
"""Times that a group is begun again because its worker or node died."""
KNOCK_SECONDS = 10
"""Time in which a cluster must answer."""
TASKS_A_CORE = 2
"""Groups that are under way or waiting for each core of the cluster."""


class Job(NamedTuple):
    """What every task needs; sent to each node once."""

    build: Build
    place: Place
    here: str
    """The folder that relative paths of the source mean."""


def build_on_ray(
    journal: Journal, build: Build, finished: Finished, *, address: str, threads: int, report: Report
) -> None:
    """As `build_groups`, on the cluster at `address`; `local` starts one with `threads` cores on this machine.

    Raises also `UserError` where Ray is not installed or not there, or a node does not see the folder of the set, and
    `LeanstreamError` where workers keep dying.
    """
    if build.source.access is Access.ONE_PASS:
        raise UserError(
            f"--ray must have a source that can be read from any place; got {build.source.name}, which is read from "
            "its start. Unpack it, or leave out --ray."
        )
    progress = Progress(report)
    progress.add(finished.photos, finished.rejected)
    failures: list[str] = []
    plan = build.plan
    with _connected(address, threads) as ray:
        shared = ray.put(Job(build, journal.place.for_nodes(), os.getcwd()))
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
    raise_failures(failures)


def build_group(job: Job, group: Group) -> GroupRecord | list[str]:
    """One task: the record of a group whose shards are where they belong, or a line for each photo that failed."""
    with contextlib.suppress(OSError):  # A node may read from a bucket and have no such folder.
        os.chdir(job.here)
    build, failures = job.build, list[str]()
    with job.place.desk() as desk:
        writer = GroupWriter(desk, build, failures)
        with contextlib.closing(outcomes(build.source, [group.items], build.options, 1, spool=desk)) as made:
            writer.write(group, made)
        if failures:
            return failures
        for shard in writer.shards:
            job.place.take(desk, shard)
    return writer.record(group)


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
