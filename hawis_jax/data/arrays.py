"""Labelled images in NumPy arrays: in memory, and in .npz files.

Axes: N images, H rows, W columns, C channels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hawis_jax import errors
from hawis_jax.data import sources
from hawis_jax.interop import array_files
from hawis_jax.runtime import storage

NAME = "npz"

_ARRAYS = ("x_train", "y_train", "x_test", "y_test")
_LARGEST = 2**14  # height and width [pixels]
_MOST_CLASSES = 2**16


class _Rows:
  """Records of images and labels in arrays."""

  def __init__(self, images, labels):
    self._images, self._labels = images, labels

  def __len__(self):
    return len(self._labels)

  def __getitems__(self, numbers: Sequence[int]) -> list[Mapping[str, Any]]:
    return [
      {"image": self._images[number], "label": int(self._labels[number])}
      for number in numbers
    ]


def arrays(
  images: np.ndarray, labels: np.ndarray, name: str = "arrays"
) -> tuple[np.ndarray, np.ndarray]:
  """Returns labelled images as nets and chips take them, checked.

  >>> import hawis_jax as hx, numpy as np
  >>> images, labels = hx.arrays(np.zeros((5, 8, 8), np.uint8), range(5))
  >>> images.shape, labels.dtype
  ((5, 8, 8, 1), dtype('int32'))

  Args:
    images: uint8 `[N, H, W, C]`, or `[N, H, W]` of one channel.
    labels: integers `[N]` from 0 on.
    name: of the two in errors.

  Returns:
    Images uint8 `[N, H, W, C]` and labels int32 `[N]`, as for `evaluate_chips`.

  Raises:
    InputError: other types or shapes; not as many labels as images.
  """
  images, labels = np.asarray(images), np.asarray(labels)
  if images.dtype != np.uint8:
    raise errors.InputError(
      f"{name}, images: got {images.dtype}, needed is uint8, from 0 to 255; of "
      "x from 0 to 1 that is np.round(255 * x).astype(np.uint8)"
    )
  if images.ndim == 3:
    images = images[..., None]
  if images.ndim != 4 or 0 in images.shape or max(images.shape[1:]) > _LARGEST:
    raise errors.InputError(
      f"{name}, images: got shape {images.shape}, needed is (number, height, "
      f"width) or (number, height, width, channels), each from 1 to {_LARGEST}"
    )
  if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
    raise errors.InputError(
      f"{name}, labels: got {labels.dtype} of shape {labels.shape}, needed are "
      f"integers of shape {images.shape[:1]}, one an image"
    )
  if labels.min() < 0 or labels.max() >= _MOST_CLASSES:
    raise errors.InputError(
      f"{name}, labels: got {labels.min()} to {labels.max()}, allowed are "
      f"integers from 0 to below {_MOST_CLASSES}"
    )
  return images, labels.astype(np.int32)


def open_file(path: str) -> sources.Stored:
  """Reads an .npz file of the arrays x_train, y_train, x_test, y_test.

  They are as in `arrays`. Labels are 0 .. K - 1, and `y_train` has every class.

  Raises:
    InputError: no such file, or a damaged one; arrays that are missing or do
      not fit one another.
  """
  file = storage.expanded(path, "config.data.data_dir")
  place = f"config.data.data_dir, {path}"
  if file.suffix != ".npz" or not file.is_file():
    raise errors.InputError(
      f"config.data.data_dir: got {path!r}, needed with data.name = '{NAME}' "
      f"is a file .npz of the arrays {', '.join(_ARRAYS)}"
    )
  with array_files.read_errors(file), array_files.opened(file) as there:
    missing = [name for name in _ARRAYS if name not in there]
    if missing:
      raise errors.InputError(
        f"{place}: got arrays {', '.join(sorted(there)) or 'none'}, missing "
        f"are {', '.join(missing)}"
      )
    x_train, y_train, x_test, y_test = (there[name] for name in _ARRAYS)
  train = arrays(x_train, y_train, f"{place}, train")
  test = arrays(x_test, y_test, f"{place}, test")
  shape = train[0].shape[1:]
  if test[0].shape[1:] != shape:
    raise errors.InputError(
      f"{place}: got x_test of images {test[0].shape[1:]}, needed are those of "
      f"x_train, {shape}"
    )
  classes = np.unique(train[1])
  if len(classes) <= classes[-1]:
    lacking = np.setdiff1d(np.arange(classes[-1]), classes)[0]
    raise errors.InputError(
      f"{place}: got no image of class {lacking} in y_train, whose labels are "
      f"{classes[0]} to {classes[-1]}; needed are classes 0, 1, 2, ..., each "
      "there"
    )
  if test[1].max() > classes[-1]:
    raise errors.InputError(
      f"{place}: got class {test[1].max()} in y_test, allowed are those of "
      f"y_train, 0 to {classes[-1]}"
    )
  rows = (_Rows(*train), _Rows(*test))
  return sources.Stored(file, "", *rows, shape, len(classes))
