"""What the chips of one measurement classify correctly, kept bit by bit.

A measurement is a net, a scenario and a severity. Its finished table of chips
and images lies in robustness/correct/, one file each; that of chips so far in
partial.json, to go on from.

Axes: S chips, K chips of a chunk, N images.
"""

import base64
import hashlib
import io
import pathlib
import re
from typing import Any

from etils import epath
import numpy as np

from hawis_jax.robustness import statistics
from hawis_jax.runtime import distributed
from hawis_jax.runtime import storage


class Tally:
  """Correct by chip and image of one severity of one net."""

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
    self._severity = severity
    self._name = [*severity, num_images, *identity]
    self._num_images = num_images
    self._packed = []  # a row of bits a chip
    self._clipped = []  # {layer: share of conversions that clip} a chip
    saved = distributed.on_first(
      lambda: storage.read_record(path) if path.exists() else None
    )
    if saved and saved["severity"] == self._name:
      rows = map(base64.b64decode, saved["correct"])
      self._packed = [np.frombuffer(row, np.uint8) for row in rows]
      self._clipped = saved.get("clipped", [])

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
    return len(self._packed)

  @property
  def correct(self) -> np.ndarray:
    """Which images every chip classifies correctly, bool `[S, N]`."""
    packed = np.array(self._packed, np.uint8)
    return np.unpackbits(packed, 1, self._num_images).view(bool)

  @property
  def accuracy(self) -> np.ndarray:
    """Of every chip, `[S]`."""
    return np.bitwise_count(self._packed).sum(1) / self._num_images

  def add(
    self, correct: np.ndarray, clipped: dict[str, np.ndarray] | None = None
  ) -> None:
    """Takes the correct of a chunk of chips, bool `[K, N]`.

    And the share of each chip's conversions that clip, {layer: `[K]`}.
    """
    self._packed += [*np.packbits(correct, axis=1)]
    if clipped:
      self._clipped += [
        {name: float(x[chip]) for name, x in clipped.items()}
        for chip in range(len(correct))
      ]

  def save(self) -> None:
    """Saves the chips so far, to be taken up from."""
    content = {
      "severity": self._name,
      "correct": [base64.b64encode(row).decode() for row in self._packed],
      "clipped": self._clipped,
    }
    distributed.on_first(lambda: storage.write_record(self._path, content))

  def remove_saved(self) -> None:
    """Removes what is saved, once result.json has it."""
    distributed.on_first(lambda: self._path.unlink(missing_ok=True))

  def finish(self) -> dict:
    """Writes the table; returns what result.json holds of the severity."""
    content = io.BytesIO()
    np.save(content, np.array(self._packed), allow_pickle=False)
    content = content.getvalue()
    name = f"correct/{_file_name(self._severity)}"
    distributed.on_first(
      lambda: storage.write_bytes(self._path.parent / name, content)
    )
    correct = self.correct
    clipped = {
      layer: float(np.mean([chip[layer] for chip in self._clipped]))
      for layer in (self._clipped or [{}])[0]
    }
    return {
      **statistics.summarize(self.accuracy),
      "ci95_total": statistics.total_interval(correct),
      "standard_errors": statistics.standard_errors(correct),
      "accuracy": self.accuracy.tolist(),
      "correct": {
        "file": name,
        "sha256": hashlib.sha256(content).hexdigest(),
      },
      **({"clipped": clipped} if clipped else {}),
    }


def load_correct(
  folder: pathlib.Path, entry: dict[str, Any], num_images: int
) -> np.ndarray:
  """Returns which images every chip classified correctly, bool `[S, N]`.

  Args:
    folder: <workdir>/robustness.
    entry: of a severity in its result.json.
    num_images: N, of the net's entry.

  Raises:
    InputError: the file is missing or not the one that was written.
  """
  path = epath.Path(folder) / entry["correct"]["file"]
  return storage.read_bits(path, entry["correct"]["sha256"], num_images)


def _file_name(severity):
  """A name for any key of a scenario; the digest tells alike ones apart."""
  words = re.sub(r"[^A-Za-z0-9.]+", "_", "_".join(map(str, severity)))
  return f"{words[:60]}_{storage.record_digest(severity)[:8]}.npy"
