"""The engine of many machines: Ray Data hands blocks of rows to a pool of actors, each with a scorer of its own.

>>> embed_all(scorer, items, "features", engine=ray_engine("auto"))

Every machine needs this package, and sees the videos and the model under the same paths. The rows come back to the
process that asked, which writes them. An actor or a machine that is lost costs the blocks that it had: Ray gives them
to others.
"""

import importlib
import logging
import math
import os
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from .bulk import VideoScorer
from .bulk_run import Engine

BLOCK_ROWS = 256  # rows that an actor gets at a time at most; they come back together


def ray_engine(address: str | None = None) -> Engine:
    """An engine for `embed_all` that runs on a Ray cluster.

    Args:
        address: Of the cluster, as `ray.init` takes it, such as "auto" for the one that this machine is in. By default
            the one that this process is connected to, else one is made here, for the run.

    Raises:
        ImportError: If Ray is not installed.
        ConnectionError: When it runs, if there is no cluster at the address.
        RuntimeError: When it runs, if the cluster fails.
    """
    try:
        ray: Any = importlib.import_module("ray")
        importlib.import_module("ray.data")
    except ImportError as error:
        raise ImportError('The engine ray needs Ray: pip install "mote-transformers[ray]".') from error

    def run(scorer: VideoScorer, items: pa.Table) -> Iterator[pa.Table]:
        if not len(items):
            return
        ours = not ray.is_initialized()
        if ours:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster of ours reports to nobody
            own = {"address": address} if address else {"address": "local", "include_dashboard": False}
            ray.init(**own, log_to_driver=False, logging_level=logging.WARNING)
        try:
            yield from _run(ray, scorer, items)
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None) or error
            raise RuntimeError(f"Ray stopped: {' '.join(str(cause).split())}") from error
        finally:
            if ours:
                ray.shutdown()

    return run


def _run(ray: Any, scorer: VideoScorer, items: pa.Table) -> Iterator[pa.Table]:
    resources = ray.cluster_resources()
    needs = {"num_cpus": max(1, min(scorer.num_workers, int(resources.get("CPU", 1))))}
    actors = max(1, int(resources.get("CPU", 1)) // needs["num_cpus"])
    if scorer.device is None and resources.get("GPU"):
        needs["num_gpus"], actors = 1, int(resources["GPU"])
    rows = min(BLOCK_ROWS, math.ceil(len(items) / (4 * actors)))  # the last blocks end together, more or less
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    ray.data.DataContext.get_current().enable_progress_bars = False
    todo = ray.data.from_items(items.to_pylist(), override_num_blocks=math.ceil(len(items) / rows))
    done = todo.map_batches(
        _Actor,
        fn_constructor_args=(scorer,),
        batch_format="pyarrow",
        batch_size=None,
        zero_copy_batch=True,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=actors, initial_size=actors),
        **needs,
    )
    yield from (rows for rows in done.iter_batches(batch_format="pyarrow", batch_size=None) if len(rows))


class _Actor:
    """A scorer in an actor's process."""

    def __init__(self, scorer: VideoScorer) -> None:
        self.scorer = scorer

    def __call__(self, rows: pa.Table) -> pa.Table:
        return self.scorer(rows)


__all__ = ["ray_engine"]
