"""Search in several turns: "this one, but red" - "the second of these, but longer" - ..."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tf_fashion.core.errors import UsageError
from tf_fashion.retrieval.index import ExactIndex

EmbedQuery = Callable[[Path, str], np.ndarray]


@dataclass(frozen=True)
class Turn:
    """One turn of a search.

    Attributes:
        reference: The picture that the sentence speaks of.
        reference_id: Its id in the gallery; None for a photo from elsewhere.
        text: The sentence.
        embedding: Query embedding of this turn alone `(dim,)` float32.
        ids, scores: What was found, best first.
    """

    reference: Path
    reference_id: str | None
    text: str
    embedding: np.ndarray
    ids: list[str]
    scores: list[float]


class SearchSession:
    """Keeps the turns of one customer's search.

    Each turn composes the current reference with a sentence. What is searched for is the sum of all turns' queries, each turn
    back weighing `memory` times as much as the next one, so that earlier wishes are not forgotten; for `memory=0` only the last
    turn counts. After a turn the best picture found becomes the next reference, unless another one is chosen.

    Args:
        embed_query: Function of a photo and a sentence to a query embedding `(dim,)` of length one.
        index: The gallery.
        paths: Id -> photo of the gallery.
        photo: Where the search starts.
        memory: Weight of a turn relative to the one after it, 0 to 1.

    Raises:
        UsageError: `memory` out of range.
    """

    def __init__(self, embed_query: EmbedQuery, index: ExactIndex, paths: dict[str, Path], photo: Path, memory: float = 0.5) -> None:
        if not 0.0 <= memory <= 1.0:
            raise UsageError(f"SearchSession(memory=...): expected a number from 0 to 1, found {memory!r}.")
        self.embed_query = embed_query
        self.index = index
        self.paths = paths
        self.memory = memory
        self.turns: list[Turn] = []
        self._start = Path(photo)
        # The first photo may be one of the gallery's own.
        resolved = self._start.resolve()
        self._chosen: str | None = next((image_id for image_id, path in paths.items() if Path(path).resolve() == resolved), None)

    @property
    def reference_id(self) -> str | None:
        """Id of the picture that the next sentence will speak of; None for a photo from elsewhere."""
        if self._chosen is not None:
            return self._chosen
        return self.turns[-1].ids[0] if self.turns and self.turns[-1].ids else None

    def choose(self, image_id: str) -> None:
        """Makes a picture of the gallery the next reference.

        Raises:
            UsageError: it is not in the gallery.
        """
        if image_id not in self.index or image_id not in self.paths:
            raise UsageError(f"There is no picture {image_id!r} in the gallery.")
        self._chosen = image_id

    def ask(self, text: str, top: int = 8) -> Turn:
        """Searches with the current reference and a sentence; pictures that were references are not found again.

        Raises:
            UsageError: `top` below 1.
        """
        if top < 1:
            raise UsageError(f"Expected to find at least 1 picture, found top={top}.")
        reference_id = self.reference_id
        reference = self._start if reference_id is None else self.paths[reference_id]
        embedding = np.asarray(self.embed_query(reference, text), np.float32)
        fused = self.fused([*(turn.embedding for turn in self.turns), embedding])
        used = [turn.reference_id for turn in self.turns] + [reference_id]
        ids, scores = self.index.search(fused[None], top, exclude_ids=[[image_id for image_id in used if image_id is not None]])
        found = ids[0]
        turn = Turn(reference, reference_id, text, embedding, found, [float(score) for score in scores[0][: len(found)]])
        self.turns.append(turn)
        self._chosen = None
        return turn

    def undo(self) -> None:
        """Takes the last turn back.

        Raises:
            UsageError: there is none.
        """
        if not self.turns:
            raise UsageError("There is no turn to take back.")
        turn = self.turns.pop()
        self._chosen = turn.reference_id

    def fused(self, embeddings: Sequence[np.ndarray]) -> np.ndarray:
        """The query for the turns so far `(dim,)`, of length one."""
        weights = self.memory ** np.arange(len(embeddings) - 1, -1, -1, dtype=np.float64)
        total = (np.stack(embeddings).astype(np.float64) * weights[:, None]).sum(axis=0)
        return (total / max(float(np.linalg.norm(total)), 1e-12)).astype(np.float32)
