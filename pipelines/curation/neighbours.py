"""Finding clips that may show the same footage: FAISS over vectors and over fingerprints, across all cluster borders.

A network trained on ImageNet sees clips of one robot in one scene as almost equal, and a crop of a clip as less like it
than its neighbours are. So the vector that is searched by is the embedding with the clip's rhythm behind it (how far apart
its pictures are in time), and fingerprints are searched as well: a copy has to be near by one of the two.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt

from pipelines.recipes import Part
from pipelines.video.fingerprint import BITS

LANES = 16
ROUNDS = 6  # of k-means for the cells: they need not be good, as several are searched
RETRAIN = 4  # an index is trained again when it holds so many times what it was trained on
TRAINING_ROWS = 40  # for each cell
LEAST_ROWS = 39  # in a cell on average, FAISS's own least

Rows = NDArray[np.int64]


class SearchConfig(Part):
    """`neighbours` by vector and `by_fingerprint` looked at for each clip. Above `flat_limit` clips an index with about
    4 sqrt(N) cells, of which `probes` are searched, replaces exact search; its vectors take a byte (`sq8`) or four a number.

    `rhythm` is the weight of the rhythm beside the embedding's 1; threads other than 1 may change the order of equals.
    """

    neighbours: PositiveInt = 32
    by_fingerprint: NonNegativeInt = 16
    flat_limit: NonNegativeInt = 50_000
    probes: PositiveInt = 16
    codes: Literal["sq8", "full"] = "sq8"
    rhythm: NonNegativeFloat = 0.5
    threads: PositiveInt = 1


def search_vectors(vectors: NDArray[np.float32], rhythms: NDArray[np.float32], weight: float) -> NDArray[np.float32]:
    """(N, E) float32 unit vectors to search by, of embeddings (N, D) and rhythms (N, 28), unit vectors both. E is D + 28,
    filled up to a multiple of 16: on other lengths FAISS compares byte codes several times slower."""
    size = vectors.shape[1] + rhythms.shape[1]
    whole = np.zeros((len(vectors), -(-size // LANES) * LANES), np.float32)
    whole[:, : vectors.shape[1]] = vectors
    whole[:, vectors.shape[1] : size] = np.sqrt(weight) * rhythms
    whole /= np.float32(np.sqrt(1.0 + weight))
    return whole


def trained_on(totals: Sequence[int], config: SearchConfig) -> list[int]:
    """For an index that grows to `totals` (ascending) clips: how many of the first clips it is trained on each time, 0 for
    exact search. A function of the totals up to there alone, so that later batches change nothing of earlier ones."""
    found: list[int] = []
    for total in totals:
        former = found[-1] if found else 0
        stays = former and total < RETRAIN * former
        found.append(former if stays else total if total > config.flat_limit else 0)
    return found


class Finder:
    """Neighbours among the clips that were added, which are numbered in that order."""

    def __init__(self, dimensions: int, config: SearchConfig) -> None:
        import faiss

        self._config = config
        self._vectors: Any = faiss.IndexFlatIP(dimensions)
        self._codes: Any = faiss.IndexBinaryFlat(BITS)
        self.trained_on = 0

    def train(self, count: int, sample: Callable[[Rows], tuple[NDArray[np.float32], NDArray[np.uint8]]]) -> None:
        """Become an index with cells, empty again, trained on the first `count` clips, whose vectors and codes `sample`
        gives by their rows."""
        import faiss

        cells = max(1, min(int(4 * np.sqrt(count)), count // LEAST_ROWS))
        rows = np.linspace(0, count - 1, min(count, cells * TRAINING_ROWS)).astype(np.int64)
        vectors, codes = sample(rows)
        size = vectors.shape[1]
        with faiss_threads(self._config.threads):
            quantizer = faiss.IndexFlatIP(size)
            if self._config.codes == "sq8":
                kind = faiss.ScalarQuantizer.QT_8bit
                self._vectors = faiss.IndexIVFScalarQuantizer(quantizer, size, cells, kind, faiss.METRIC_INNER_PRODUCT)
            else:
                self._vectors = faiss.IndexIVFFlat(quantizer, size, cells, faiss.METRIC_INNER_PRODUCT)
            self._codes = faiss.IndexBinaryIVF(faiss.IndexBinaryFlat(BITS), BITS, cells)
            for index, values in ((self._vectors, vectors), (self._codes, codes)):
                index.cp.max_points_per_centroid, index.cp.niter = TRAINING_ROWS, ROUNDS
                index.nprobe = self._config.probes
                index.train(values)
        self.trained_on = count

    def add(self, vectors: NDArray[np.float32], codes: NDArray[np.uint8]) -> None:
        """Add clips: search vectors (N, D), packed fingerprints (N, 128)."""
        with faiss_threads(self._config.threads):
            self._vectors.add(vectors)
            self._codes.add(np.ascontiguousarray(codes))

    def __len__(self) -> int:
        return int(self._vectors.ntotal)

    def search(self, vectors: NDArray[np.float32], codes: NDArray[np.uint8]) -> NDArray[np.int64]:
        """(N, neighbours + by_fingerprint + 2) clips near to each given one, which may be among them; -1 means none."""
        config = self._config
        with faiss_threads(config.threads):
            near = self._vectors.search(vectors, min(len(self), config.neighbours + 1))[1]
            alike = self._codes.search(np.ascontiguousarray(codes), min(len(self), config.by_fingerprint + 1))[1]
        return np.concatenate([near, alike], axis=1).astype(np.int64)


@contextlib.contextmanager
def faiss_threads(count: int) -> Iterator[None]:
    """Run FAISS on `count` threads inside (results are byte-equal on a fixed number), and give back the former number."""
    import faiss

    former = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(former)
