"""Dense retrieval: rank items by the similarity of their embeddings to the question's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from finemem_lib.retrieval import Retriever
from finemem_lib.retrievers import encoder
from finemem_lib.retrievers.ranking import WriteOrder
from finemem_lib.trajectory import MemoryDelta

if TYPE_CHECKING:
    from numpy.typing import NDArray


class DenseRetriever(Retriever):
    """A retriever by cosine similarity, in [-1, 1], of sentence embeddings.

    Unlike BM25 it always returns k items if the memory has k, however dissimilar they are; in ties
    the last written first. All indexes of a model share a cache of embeddings; the new texts of an
    update are embedded in one batch.

    Args:
        model_name: A folder or a name on the hub, see `encoder.load_encoder`.

    Raises:
        ValueError: the model cannot be loaded.
    """

    def __init__(self, model_name: str = encoder.DENSE_MODEL) -> None:
        encoder.load_encoder(model_name)  # fails early if the model cannot be loaded
        self.model_name = model_name
        self._order = WriteOrder()
        # Every item has a row of the matrix; the rows of removed items are reused.
        self._rows: dict[str, int] = {}
        self._free: list[int] = []
        self._vectors: NDArray[np.float32] = np.zeros((0, 0), dtype=np.float32)

    def update(self, delta: MemoryDelta) -> None:
        self._order.update(delta)
        for item_id in delta.removed + delta.evicted:
            self._free.append(self._rows.pop(item_id))
        vectors = encoder.embeddings(self.model_name, [item.content for item in delta.written])
        for item, vector in zip(delta.written, vectors, strict=True):
            if item.item_id not in self._rows:
                self._rows[item.item_id] = self._free.pop() if self._free else len(self._rows)
            row = self._rows[item.item_id]
            if row >= len(self._vectors):
                grown = np.zeros((2 * row + 8, len(vector)), dtype=np.float32)
                grown[: len(self._vectors)] = self._vectors.reshape(-1, len(vector))
                self._vectors = grown
            self._vectors[row] = vector

    def search(self, query: str, k: int) -> list[tuple[str, float]]:
        if not self._rows:
            return self._order.best({}, k)
        [asked] = encoder.embeddings(self.model_name, [query])
        # A matrix product may round equal rows differently and thus break ties.
        scores = (self._vectors * asked).sum(axis=1).tolist()
        return self._order.best({item_id: scores[row] for item_id, row in self._rows.items()}, k)
