"""What the chips of one severity classified so far, saved to go on from.

Axes: S chips, K chips of a chunk, N images.
"""

import pathlib
from typing import Any

import numpy as np

from hawis_jax.robustness import statistics
from hawis_jax.runtime import distributed
from hawis_jax.runtime import storage


class Tally:
  """Correct by chip and by image of one severity of one net."""

  def __init__(
    self,
    path: pathlib.Path,
    severity: list[Any],
    identity: list[Any],
    num_images: int,
  ):
    """Takes up what is saved of the same severity, net and run.

    Args:
      path: of the saved chunks.
      severity: what identifies it: net, scenario and value.
      identity: of the net's weights and of the run.
      num_images: N.

    Raises:
      InputError: the file is damaged or was changed.
    """
    self._path = path
    self._name = [*severity, num_images, *identity]
    self._correct = []  # of every chip
    self._image_correct = np.zeros(num_images, np.int64)
    saved = distributed.on_first(
      lambda: storage.read_record(path) if path.exists() else None
    )
    if saved and saved["severity"] == self._name:
      self._correct = saved["correct"]
      self._image_correct = np.array(saved["image_correct"], np.int64)

  @staticmethod
  def saved_chips(path: pathlib.Path, severity: list[Any]) -> int:
    """Returns how many chips of a severity are saved.

    Raises:
      InputError: the file is damaged or was changed.
    """
    if not path.exists():
      return 0
    saved = storage.read_record(path)
    return (
      len(saved["correct"])
      if saved["severity"][: len(severity)] == severity
      else 0
    )

  @property
  def count(self) -> int:
    """S."""
    return len(self._correct)

  @property
  def accuracy(self) -> np.ndarray:
    """Of every chip, `[S]`."""
    return np.array(self._correct) / len(self._image_correct)

  def add(self, correct: np.ndarray) -> None:
    """Takes the correct of a chunk of chips, bool `[K, N]`."""
    self._correct += correct.sum(1).tolist()
    self._image_correct += correct.sum(0)

  def save(self) -> None:
    """Saves the chips so far, to be taken up from."""
    content = {
      "severity": self._name,
      "correct": self._correct,
      "image_correct": self._image_correct.tolist(),
    }
    distributed.on_first(lambda: storage.write_record(self._path, content))

  def remove_saved(self) -> None:
    """Removes what is saved, once result.json has it."""
    distributed.on_first(lambda: self._path.unlink(missing_ok=True))

  def summary(self) -> dict:
    """What result.json holds of the severity's chips."""
    errors = statistics.standard_errors(self._correct, self._image_correct)
    return {
      **statistics.summarize(self.accuracy),
      "standard_errors": errors,
      "accuracy": self.accuracy.tolist(),
    }
