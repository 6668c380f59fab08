"""Embeddings of texts by sentence-transformers, an optional package."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@functools.cache
def load_encoder(model_name: str) -> Callable[[str], NDArray[np.float32]]:
    """Return the function that embeds one text, as a vector of length 1, shape (dimensions,).

    One at a time, because padding in a batch makes an embedding depend on its neighbours.

    Args:
        model_name: Name or folder of a model of sentence-transformers.

    Raises:
        RuntimeError: sentence-transformers is not installed.
        ValueError: the model cannot be loaded.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise RuntimeError(
            f"dense retrieval needs sentence-transformers ({error}); install the dense extra: "
            "pip install --constraint constraints.txt -e '.[dense]', or retrieve with bm25"
        ) from error
    try:
        model = SentenceTransformer(model_name)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"dense retrieval: {model_name!r} could not be loaded ({str(error).splitlines()[0]}); "
            "expected a folder that sentence-transformers wrote, or a model's name on the hub "
            "while there is a network; name another dense_model, or retrieve with bm25"
        ) from error
    return functools.partial(model.encode, normalize_embeddings=True, show_progress_bar=False)


@functools.lru_cache(maxsize=1 << 16)
def embedding(model_name: str, text: str) -> NDArray[np.float32]:
    """Return the embedding of a text, shape (dimensions,); each is computed once.

    Args:
        model_name: As in `load_encoder`.
        text: The text to embed.
    """
    return load_encoder(model_name)(text)
