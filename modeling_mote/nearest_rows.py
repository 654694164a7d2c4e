"""The rows nearest to a query: exactly, or of faiss lists that are looked at in part.

faiss (pip install "mote-transformers[search]") sorts rows into lists around centres, and looks only at the lists whose
centres are nearest to a query, its probes. A row is kept in one byte per number (SQ8), or, of very many, in a byte per
four numbers (PQ). Rows are turned first (RR, a random rotation): a few large numbers, as CLIP's features have, would
cost all others their precision. How much all this misses is measured, not assumed: see `Recall`.
"""

import math
import os
from collections.abc import Iterable
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

EXACT_ROWS = 100_000  # fewer are compared one by one: 20 ms per query at d = 512
COARSE_ROWS = 10_000_000  # more are kept in a byte per four numbers
TRAINING_ROWS_PER_LIST = 40
RECALL_AT = 10
RECALL_QUERIES = 128  # of each kind; one wrong row is 0.08 %
WANTED_RECALL = 0.985  # probes are added until it is reached: 0.98, and what the choice flatters itself by
WORTHWHILE = 0.01  # recall that twice the probes, which take twice as long, have to add; rounding bounds it near 0.99
_TIES_KEPT = 64  # exact answers that are kept per query, to tell ties at the tenth place from misses
_SAME_SCORE = 1e-6


class Recall(NamedTuple):
    """The share of the 10 nearest rows that a search finds.

    Attributes:
        rows: Mean over rows of the index as queries, each left out of its own answer.
        between: Mean over queries midway between two rows, which lie off the rows, as texts do.
    """

    rows: float
    between: float


def exact_nearest(queries: np.ndarray, rows: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows of the largest inner product, by comparing all.

    Args:
        queries: float32 [q, d].
        rows: float32 [n, d].
        count: k, how many are wanted.

    Returns:
        Scores float32 [q, min(k, n)], the best first, and row numbers int64 of the same shape; equal scores by number.
    """
    scores = queries @ rows.T
    count = min(count, len(rows))
    if count < len(rows):
        found = np.sort(np.argpartition(scores, len(rows) - count, axis=1)[:, len(rows) - count :], axis=1)
    else:
        found = np.broadcast_to(np.arange(len(rows)), scores.shape)
    return best_of(np.take_along_axis(scores, found, 1), found, count)


def best_of(scores: np.ndarray, rows: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The best of candidates, [q, n] each: scores and rows [q, min(count, n)]; equal scores stay in their order."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)


class RowLists:
    """Rows in lists of faiss.

    Attributes:
        kind: As faiss names it, such as `RR512,IVF4096,SQ8`.
        probes: Lists looked at per query.
    """

    def __init__(self, index: Any, kind: str, probes: int = 1) -> None:
        self._index, self.kind, self.probes = index, kind, probes
        self._lists = _faiss().downcast_index(_faiss().extract_index_ivf(index))

    @classmethod
    def train(cls, sample: np.ndarray, num_rows: int) -> "RowLists":
        """Empty lists.

        Args:
            sample: Rows to choose the centres by, float32 [m, d]; see `training_rows`.
            num_rows: Rows that are to come.

        Raises:
            ImportError: Without faiss.
        """
        kind = list_kind(num_rows, sample.shape[1])
        index = _faiss().index_factory(sample.shape[1], kind, _faiss().METRIC_INNER_PRODUCT)
        made = cls(index, kind)
        if "PQ" in kind:
            made._lists.do_polysemous_training = False  # for searches that are not done here; it takes minutes
        index.train(sample)
        return made

    @classmethod
    def open(cls, path: str | os.PathLike[str], kind: str, probes: int, mapped: bool = True) -> "RowLists":
        """Open a file of `write`.

        Args:
            path: The file, whose checksum was compared: faiss trusts it.
            kind: See `RowLists`.
            probes: See `RowLists`.
            mapped: Leave the lists on the disk, whose pages the system keeps in memory as they are used; without it,
                rows can be added.

        Raises:
            ImportError: Without faiss.
        """
        faiss = _faiss()
        opened = cls(faiss.read_index(os.fspath(path), faiss.IO_FLAG_MMAP if mapped else 0), kind, probes)
        if mapped:  # 32 threads per query would fetch what comparing the checksum has just brought into memory: 2 ms
            faiss.downcast_InvertedLists(opened._lists.invlists).prefetch_nthread = 0
        return opened

    @property
    def num_lists(self) -> int:
        """How many lists there are."""
        return self._lists.nlist

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the lists.

        Raises:
            OSError: If they can't be written.
        """
        try:
            _faiss().write_index(self._index, os.fspath(path))
        except RuntimeError as error:  # faiss's only one; it names its source line
            raise OSError(f"{path} can't be written: {str(error).splitlines()[0]}") from error

    def add(self, vectors: np.ndarray, first: int) -> None:
        """Add rows, float32 [n, d], with the numbers from `first` on."""
        self._index.add_with_ids(vectors, np.arange(first, first + len(vectors)))

    def remove(self, rows: np.ndarray) -> None:
        """Take rows out, by number, int64 [n]."""
        self._index.remove_ids(rows)

    def nearest(
        self, queries: np.ndarray, count: int, alive: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows of large inner products, nearly always the largest.

        Args:
            queries: float32 [q, d].
            count: k, how many are wanted.
            alive: bool [n]: which of the rows count; all by default.

        Returns:
            Scores float32 [q, k], the best first, and row numbers int64 [q, k]; -inf and -1 if there are not so many.
        """
        faiss = _faiss()
        threads = faiss.omp_get_max_threads()
        if len(queries) == 1:  # waking others takes longer than they help, on a busy machine ten times so
            faiss.omp_set_num_threads(1)
        try:
            scores, rows = self._index.search(queries, count, params=self._parameters(alive))
        finally:
            faiss.omp_set_num_threads(threads)
        scores[rows < 0] = -np.inf
        return scores, rows

    def above(
        self, queries: np.ndarray, least: float, alive: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows whose inner product is above a bound: of each pair found, the query's number, the row's, the score."""
        limits, scores, rows = self._index.range_search(queries, least, params=self._parameters(alive))
        return np.repeat(np.arange(len(queries)), np.diff(limits.astype(np.int64))), rows, scores

    def _parameters(self, alive: np.ndarray | None) -> Any:
        faiss = _faiss()
        chosen: dict[str, Any] = {"nprobe": self.probes}
        if alive is not None:
            chosen["sel"] = faiss.IDSelectorBitmap(np.packbits(alive, bitorder="little"))
        return faiss.SearchParametersPreTransform(index_params=faiss.SearchParametersIVF(**chosen))


def list_kind(num_rows: int, dim: int) -> str:
    """The form of lists for so many rows of d numbers."""
    coarse = num_rows > COARSE_ROWS and dim % 4 == 0
    return f"RR{dim},IVF{_num_lists(num_rows)},{f'PQ{dim // 4}' if coarse else 'SQ8'}"


def training_rows(num_rows: int) -> int:
    """How many rows to choose the centres by."""
    return min(num_rows, TRAINING_ROWS_PER_LIST * _num_lists(num_rows))


def _num_lists(num_rows: int) -> int:
    """About 4 √n: more make the lists shorter, and the index longer to make."""
    return 2 ** max(1, round(math.log2(4 * math.sqrt(num_rows))))


class RecallQueries:
    """Queries whose exact answers are gathered while the rows go by, to measure lists with.

    Args:
        vectors: float32 [m, d], a sample of the rows.
        numbers: int64 [m], their numbers.
    """

    def __init__(self, vectors: np.ndarray, numbers: np.ndarray) -> None:
        count = min(2 * RECALL_QUERIES, len(vectors))
        places = np.linspace(0, len(vectors) - 1, count).astype(np.int64)
        rows = vectors[places]
        between = rows + np.roll(rows, count // 2, axis=0)
        between /= np.maximum(np.linalg.norm(between, axis=1, keepdims=True), 1e-12)
        self.queries = np.concatenate([rows, between]).astype(np.float32)
        self.own = np.concatenate([numbers[places], np.full(count, -1)])[:, None]
        self.scores = np.empty((2 * count, 0), np.float32)
        self.rows = np.empty((2 * count, 0), np.int64)

    def see(self, vectors: np.ndarray, first: int) -> None:
        """Compare the queries with rows, float32 [n, d], with the numbers from `first` on."""
        scores, rows = exact_nearest(self.queries, vectors, _TIES_KEPT + 1)
        rows = rows + first
        scores = np.where(rows == self.own, -np.inf, scores)
        scores, rows = np.hstack([self.scores, scores]), np.hstack([self.rows, rows])
        self.scores, self.rows = best_of(scores, rows, _TIES_KEPT)

    def choose_probes(self, lists: RowLists) -> Recall:
        """Set the probes of lists by every other query, as few as give the recall that is wanted.

        Args:
            lists: All rows that were seen.

        Returns:
            The recall of the other half of the queries.
        """
        steps = [number for power in range(2, 24) for number in (2**power, 3 * 2 ** (power - 1))]  # 4, 6, 8, 12, …
        tried: list[float] = []
        for probes in [*(number for number in steps if number < lists.num_lists), lists.num_lists]:
            lists.probes = probes
            tried.append(min(self._recall(lists, 0)))
            if tried[-1] >= WANTED_RECALL or (len(tried) > 2 and tried[-1] - tried[-3] < WORTHWHILE):
                break
        return self._recall(lists, 1)

    def _recall(self, lists: RowLists, half: int) -> Recall:
        chosen = np.arange(half, len(self.queries), 2)
        right, scores, own = self.rows[chosen], self.scores[chosen], self.own[chosen]
        wanted = min(RECALL_AT, scores.shape[1])
        right = np.where(scores >= scores[:, [wanted - 1]] - _SAME_SCORE, right, -2)
        _, rows = lists.nearest(self.queries[chosen], wanted + 1)
        each = []
        for found, answer, itself in zip(rows, right, own[:, 0], strict=True):
            found = found[found != itself][:wanted]
            each.append(np.isin(found, answer).sum() / wanted)
        kinds = np.split(np.array(each), [np.count_nonzero(chosen < len(self.queries) // 2)])
        return Recall(*(float(kind.mean()) for kind in kinds))


def gather_sample(vectors: Iterable[np.ndarray], num_rows: int, wanted: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows drawn at random, each as likely, and always the same.

    Args:
        vectors: float32 [n_i, d] each, one after another.
        num_rows: Σ n_i.
        wanted: m, how many to draw, at most as many as there are.

    Returns:
        float32 [m, d] and their numbers, int64 [m].
    """
    numbers = np.sort(np.random.default_rng(0).choice(num_rows, wanted, replace=False))
    first, parts = 0, []
    for each in vectors:
        begin, end = np.searchsorted(numbers, [first, first + len(each)])
        parts.append(each[numbers[begin:end] - first])
        first += len(each)
    return np.concatenate(parts), numbers


def _faiss() -> ModuleType:
    try:
        import faiss
    except ImportError as error:
        raise ImportError(
            f'An index of {EXACT_ROWS:,} rows or more needs faiss: pip install "mote-transformers[search]".'
        ) from error
    return faiss


__all__ = [
    "EXACT_ROWS",
    "Recall",
    "RecallQueries",
    "RowLists",
    "best_of",
    "exact_nearest",
    "gather_sample",
    "list_kind",
    "training_rows",
]
