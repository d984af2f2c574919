"""Data sets of zeros: what programs can be compiled for, with no data there."""

from collections.abc import Sequence
import dataclasses
from typing import NamedTuple

import ml_collections
import numpy as np

from hawis_jax import errors
from hawis_jax.data import cifar
from hawis_jax.data import imagenet
from hawis_jax.data import sources
from hawis_jax.data import splits


class _Form(NamedTuple):
  """Of a data set; H and W are None where they differ.

  Attributes:
    shape: (H, W, C).
    num_classes: of its labels.
    train: number of images.
    test: number of images.
  """

  shape: tuple[int | None, int | None, int]
  num_classes: int
  train: int
  test: int


_FORMS = {
  "digits": _Form((8, 8, 1), 10, 1_437, 360),
  "cifar10": _Form((32, 32, 3), 10, *cifar.COUNTS.values()),
  "cifar100": _Form((32, 32, 3), 100, *cifar.COUNTS.values()),
  imagenet.NAME: _Form((None, None, 3), 1000, *imagenet.COUNTS.values()),
}


@dataclasses.dataclass(frozen=True)
class _Zeros(Sequence):
  """Records of black images of class 0."""

  size: int
  shape: tuple[int, int, int]

  def __len__(self):
    return self.size

  def __getitem__(self, index):
    return {"image": np.zeros(self.shape, np.uint8), "label": 0}

  def __getitems__(self, indices):
    return [self[index] for index in indices]


def blank(data_config: ml_collections.ConfigDict) -> splits.Splits:
  """What `load` returns, with images of zeros; a folder of images is opened.

  Args:
    data_config: the section `data` of the configuration.

  Raises:
    InputError: a data set of which nothing is known, or as `load`.
  """
  name, size = data_config.name, data_config.image_size
  if name not in _FORMS:
    return splits.load(data_config)
  form = _FORMS[name]
  shape = (size, size, form.shape[-1]) if size else form.shape
  if None in shape:
    raise errors.InputError(
      f"config.data.image_size: got 0 for {name}, whose images differ in size, "
      "needed is e.g. 224"
    )

  def source(count):
    images = sources.Images(
      _Zeros(count, shape), name, shape, in_memory=False, read_threads=0
    )
    return sources.Source(images, np.arange(count))

  held_out = data_config.validation_images
  if not 0 <= held_out < form.train:
    raise errors.InputError(
      f"config.data.validation_images: got {held_out}, allowed are 0 to "
      f"{form.train - 1} (`train` of {name} has {form.train} images)"
    )
  return splits.Splits(
    name=name,
    version="",
    train=source(form.train - held_out),
    validation=source(held_out),
    test=source(form.test),
    image_shape=shape,
    num_classes=form.num_classes,
  )
