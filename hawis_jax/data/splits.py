"""A data set, opened and split."""

import dataclasses
import math
from typing import Any

import numpy as np

from hawis_jax import errors
from hawis_jax.data import arrays
from hawis_jax.data import image_folder
from hawis_jax.data import prepared
from hawis_jax.data import sources

_IN_MEMORY_BYTES = 1 << 30  # smaller splits are decoded once and kept


@dataclasses.dataclass(frozen=True)
class Settings:
  """Which data set, and how its images are read."""

  name: str  # of TFDS, "image_folder" or "npz"
  # Of all sets, "" where TFDS looks; or the image folder, or the .npz file.
  data_dir: str = ""
  validation_images: int = 0  # held out of `train`
  image_size: int = 0  # H = W of the images [pixels]; 0: as they are stored
  resize: int = 0  # their short side before H = W are cut out of them [pixels]
  lighting: float = 0.0  # deviation of the colour noise of "imagenet"
  damaged: str = "stop"  # or "skip": the next one stands in for a damaged image
  read_threads: int = 2  # that decode images


@dataclasses.dataclass(frozen=True)
class Splits:
  """A data set, ready to be read."""

  name: str  # of TFDS, "image_folder" or "npz"
  version: str  # of the TFDS data set; "" of a folder or a file
  train: sources.Source  # what weights are learnt from
  validation: sources.Source  # held out of `train`, for pretraining and search
  test: sources.Source  # for the final figures only
  image_shape: tuple[int, int, int]  # (H, W, C)
  num_classes: int  # labels are 0 .. num_classes - 1

  def facts(self) -> dict[str, Any]:
    """Returns what tells this data set from others of its name, as JSON can."""
    return {
      "version": self.version,
      "train": len(self.train) + len(self.validation),
      "test": len(self.test),
      "image_shape": list(self.image_shape),
      "num_classes": self.num_classes,
      # Another set may have as many.
      "train_digest": self.train.images.digest(),
      "test_digest": self.test.images.digest(),
    }

  @property
  def train_and_validation(self) -> sources.Source:
    """All images that are not of the test, for a final training."""
    everything = np.arange(len(self.train.images.records))
    return dataclasses.replace(self.train, indices=everything)


def load(settings: Settings) -> Splits:
  """Opens a data set and holds the validation images out of its `train`.

  `digits` is prepared if need be; any other one must be there, as
  `<data_dir>/<name>/<version>` in ArrayRecord files, as an image folder or as
  an .npz file: nothing is downloaded. Which images are held out depends on
  nothing but the size of `train`.

  Raises:
    InputError: no such data set, not one of labelled uint8 images, of one
      class, of several sizes without an `image_size`, damaged, or too small for
      the validation images.
  """
  name, skip = settings.name, settings.damaged == "skip"
  if name == arrays.NAME:
    stored = arrays.open_file(settings.data_dir)
  elif name == image_folder.NAME:
    stored = image_folder.open_folder(settings.data_dir, skip_damaged=skip)
  else:
    stored = prepared.open_set(name, settings.data_dir)
  if stored.num_classes < 2:
    got = f"{stored.num_classes} class of images"
    raise sources.unfit(stored.folder, got, "2 classes or more")
  shape = _image_shape(stored, settings.image_size, settings.resize)
  count, held_out = len(stored.train), settings.validation_images
  if not 0 <= held_out < count:
    raise errors.InputError(
      f"config.data.validation_images: got {held_out}, allowed are 0 to"
      f" {count - 1} (`train` of {name} has {count} images)"
    )
  train, test = (
    sources.Images(
      records,
      stored.folder,
      shape,
      resize=settings.resize if settings.image_size else 0,
      in_memory=len(records) * math.prod(shape) < _IN_MEMORY_BYTES,
      read_threads=settings.read_threads,
      skip_damaged=skip_damaged,
    )
    for records, skip_damaged in ((stored.train, skip), (stored.test, False))
  )
  # RandomState: a stream that no version of NumPy changes. The order is kept:
  # the first so many images are then a random sample even of sorted files.
  order = np.random.RandomState(0).permutation(count)
  return Splits(
    name=name,
    version=stored.version,
    train=sources.Source(train, order[held_out:], settings.lighting, skip),
    validation=sources.Source(train, order[:held_out]),
    test=sources.Source(test, np.arange(len(stored.test))),
    image_shape=shape,
    num_classes=stored.num_classes,
  )


def _image_shape(stored, size, resize):
  """Returns the (H, W, C) that images leave with, or raises."""
  height, width, channels = stored.image_shape
  if not size:
    if height and width:
      return height, width, channels
    got = "images that may differ in size"
    allowed = "one size for all, or config.data.image_size > 0"
    raise sources.unfit(stored.folder, got, allowed)
  if channels not in sources.MODES:
    raise errors.InputError(
      f"config.data.image_size: got {size} for {stored.folder} of {channels}"
      f" channels, allowed are 1 to {max(sources.MODES)} channels, or 0"
    )
  if resize < size:
    raise errors.InputError(
      f"config.data.resize: got {resize}, allowed are config.data.image_size ="
      f" {size} and more"
    )
  return size, size, channels
