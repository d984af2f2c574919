"""What the chips of one level classified so far, saved to go on from.

Axes: S chips, K chips of a chunk, N images.
"""

import pathlib
from typing import Any

import numpy as np

from hawis_jax.robustness import statistics
from hawis_jax.runtime import distributed
from hawis_jax.runtime import storage


class Tally:
  """Hits by chip and by image of one level of one net."""

  def __init__(
    self,
    path: pathlib.Path,
    level: list[Any],
    identity: list[Any],
    num_images: int,
  ):
    """Takes up what is saved of the same level, net and run.

    Args:
      path: of the saved chunks.
      level: what identifies it: net, scenario and value.
      identity: of the net's weights and of the run.
      num_images: N.

    Raises:
      InputError: the file is damaged or was changed.
    """
    self._path = path
    self._name = [*level, num_images, *identity]
    self._hits = []  # of every chip
    self._image_hits = np.zeros(num_images, np.int64)
    saved = distributed.on_first(
      lambda: storage.read_record(path) if path.exists() else None
    )
    if saved and saved["level"] == self._name:
      self._hits = saved["hits"]
      self._image_hits = np.array(saved["image_hits"], np.int64)

  @staticmethod
  def saved_chips(path: pathlib.Path, level: list[Any]) -> int:
    """Returns how many chips of a level are saved.

    Raises:
      InputError: the file is damaged or was changed.
    """
    if not path.exists():
      return 0
    saved = storage.read_record(path)
    return len(saved["hits"]) if saved["level"][: len(level)] == level else 0

  @property
  def count(self) -> int:
    """S."""
    return len(self._hits)

  @property
  def accuracy(self) -> np.ndarray:
    """Of every chip, `[S]`."""
    return np.array(self._hits) / len(self._image_hits)

  def add(self, hits: np.ndarray) -> None:
    """Takes the hits of a chunk of chips, bool `[K, N]`."""
    self._hits += hits.sum(1).tolist()
    self._image_hits += hits.sum(0)

  def save(self) -> None:
    """Saves the chips so far, to be taken up from."""
    content = {
      "level": self._name,
      "hits": self._hits,
      "image_hits": self._image_hits.tolist(),
    }
    distributed.on_first(lambda: storage.write_record(self._path, content))

  def remove_saved(self) -> None:
    """Removes what is saved, once result.json has it."""
    distributed.on_first(lambda: self._path.unlink(missing_ok=True))

  def summary(self) -> dict:
    """What result.json holds of the level's chips."""
    errors = statistics.standard_errors(self._hits, self._image_hits)
    return {
      **statistics.summarize(self.accuracy),
      "standard_errors": errors,
      "accuracy": self.accuracy.tolist(),
    }
