"""A data set, opened and split."""

import dataclasses
import math
from typing import Any

import ml_collections
import numpy as np

from hawis_jax import errors
from hawis_jax.data import image_folder
from hawis_jax.data import prepared
from hawis_jax.data import sources

_IN_MEMORY_BYTES = 1 << 30  # smaller splits are decoded once and kept


@dataclasses.dataclass(frozen=True)
class Splits:
  """A data set, ready to be read.

  Attributes:
    name: its TFDS name, or "image_folder".
    version: of the TFDS data set; "" of a folder.
    train: what weights are learnt from; without the validation images.
    validation: the images held out of `train`, for pretraining and search.
    test: for the final figures only.
    image_shape: (H, W, C).
    num_classes: labels are 0 .. num_classes - 1.
  """

  name: str
  version: str
  train: sources.Source
  validation: sources.Source
  test: sources.Source
  image_shape: tuple[int, int, int]
  num_classes: int

  def facts(self) -> dict[str, Any]:
    """What tells this data set from another of the same name, as JSON can."""
    return {
      "version": self.version,
      "train": len(self.train) + len(self.validation),
      "test": len(self.test),
      "image_shape": list(self.image_shape),
      "num_classes": self.num_classes,
      # Of some images: another set may have as many.
      "train_digest": self.train.images.digest(),
      "test_digest": self.test.images.digest(),
    }

  @property
  def train_and_validation(self) -> sources.Source:
    """All images that are not of the test, for a final training."""
    everything = np.arange(len(self.train.images.records))
    return dataclasses.replace(self.train, indices=everything)


def load(data_config: ml_collections.ConfigDict) -> Splits:
  """Opens a data set and holds the validation images out of its `train`.

  `digits` is prepared if need be; any other one must be there, as
  `<data_dir>/<name>/<version>` in ArrayRecord files, or as an image folder:
  nothing is downloaded. Which images are held out depends on nothing but the
  size of `train`.

  Args:
    data_config: the section `data` of the configuration.

  Raises:
    InputError: no such data set, not one of labelled uint8 images, of several
      sizes without an `image_size`, damaged, or too small for the validation
      images.
  """
  name = data_config.name
  if name == image_folder.NAME:
    stored = image_folder.open_folder(data_config.data_dir)
  else:
    stored = prepared.open_set(name, data_config.data_dir)
  shape = _image_shape(stored, data_config)

  def images(records):
    return sources.Images(
      records,
      stored.folder,
      shape,
      resize=data_config.resize if data_config.image_size else 0,
      in_memory=len(records) * math.prod(shape) < _IN_MEMORY_BYTES,
      read_threads=data_config.read_threads,
    )

  count, held_out = len(stored.train), data_config.validation_images
  if not 0 <= held_out < count:
    raise errors.InputError(
      f"config.data.validation_images: got {held_out}, allowed are 0 to"
      f" {count - 1} (`train` of {name} has {count} images)"
    )
  # RandomState: a stream that no version of NumPy changes. The order is kept:
  # the first so many images are then a random sample even of sorted files.
  order = np.random.RandomState(0).permutation(count)
  skip = data_config.damaged == "skip"
  train = dataclasses.replace(images(stored.train), skip_damaged=skip)
  test = images(stored.test)
  return Splits(
    name=name,
    version=stored.version,
    train=sources.Source(
      train, order[held_out:], data_config.lighting, skip_damaged=skip
    ),
    validation=sources.Source(train, order[:held_out]),
    test=sources.Source(test, np.arange(len(stored.test))),
    image_shape=shape,
    num_classes=stored.num_classes,
  )


def _image_shape(stored, data_config):
  """Returns the (H, W, C) that images leave with, or raises."""
  height, width, channels = stored.image_shape
  size, resize = data_config.image_size, data_config.resize
  if size:
    if channels not in sources.MODES:
      raise errors.InputError(
        f"config.data.image_size: got {size} for {stored.folder} of {channels}"
        f" channels, allowed are 1 to {max(sources.MODES)} channels, or 0"
      )
    if resize < size:
      raise errors.InputError(
        f"config.data.resize: got {resize}, allowed are"
        f" config.data.image_size = {size} and more"
      )
    return size, size, channels
  if height and width:
    return height, width, channels
  raise sources.unfit(
    stored.folder,
    "images that may differ in size",
    "one size for all, or config.data.image_size > 0",
  )
