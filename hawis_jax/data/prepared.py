"""Prepared data sets: TFDS folders of ArrayRecord files."""

import difflib
import os
import pathlib
import re

import numpy as np
import tensorflow_datasets as tfds

from hawis_jax import errors
from hawis_jax.data import digits
from hawis_jax.data import sources

KNOWN_NAMES = (digits.NAME, "cifar10", "cifar100", "imagenet2012")


def root(data_dir: str) -> pathlib.Path:
  """Where data sets are; "" is $TFDS_DATA_DIR or TFDS's default."""
  return pathlib.Path(
    data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
  ).expanduser()


def builder(folder: pathlib.Path) -> tfds.core.DatasetBuilder:
  """Returns TFDS's builder of a prepared data set.

  Raises:
    InputError: its metadata are damaged.
  """
  try:
    return tfds.builder_from_directory(folder)
  except Exception as error:  # JSON, protobuf and TFDS have their own
    raise sources.unreadable(folder, error) from error


def open_set(name: str, data_dir: str) -> sources.Stored:
  """Opens the highest version of a data set; `digits` is made if need be.

  The test images are those of the split `test`, or of `validation` where the
  former is missing or has no labels. They are always `validation` of
  `imagenet2012`.

  Args:
    name: TFDS name, or name/config.
    data_dir: see `root`.

  Raises:
    InputError: no such data set, not one of labelled uint8 images, or damaged.
  """
  folder = _find(name, root(data_dir))
  made = builder(folder)
  shape, num_classes = _check(made.info, folder)
  # We decode images ourselves: TFDS takes OpenCV where there is one, whose JPEG
  # pixels differ from Pillow's, and keeps CMYK and greyscale as they are.
  image = made.info.features["image"]
  encoded = isinstance(image, tfds.features.Image)
  decoders = {"image": tfds.decode.SkipDecoding()} if encoded else None
  records = made.as_data_source(decoders=decoders)

  def labelled(split):
    """Whether a split has labels; reads the last record of its every file."""
    if split not in records or not len(records[split]):
      return False
    ends = np.cumsum([n for n in made.info.splits[split].shard_lengths if n])
    images = sources.Images(records[split], folder, shape)
    return all(record["label"] >= 0 for record in images.fetch(ends - 1))

  if not labelled("train"):
    raise sources.unfit(folder, "no labelled images 'train'", "some")
  choices = (
    ("validation",) if name == "imagenet2012" else ("test", "validation")
  )
  test = next(filter(labelled, choices), None)
  if test is None:
    wanted = " or ".join(f"'{split}'" for split in choices)
    raise sources.unfit(folder, f"no labelled images {wanted}", "some")
  return sources.Stored(
    folder=folder,
    version=folder.name,
    train=records["train"],
    test=records[test],
    image_shape=shape,
    num_classes=num_classes,
  )


def _find(name, place):
  """Returns the folder of the highest version of `name` that is prepared."""
  if name == digits.NAME:
    digits.prepare(place)
  versions = {
    tuple(map(int, re.findall(r"\d+", file.parent.name))): file.parent
    for file in (place / name).glob("[0-9]*/dataset_info.json")
  }
  if versions:
    return versions[max(versions)]
  found = {  # name or name/config
    str(file.parent.parent.relative_to(place))
    for names in ("[!.]*", "[!.]*/*")
    for file in place.glob(f"{names}/[0-9]*/dataset_info.json")
  }
  there = ", ".join(sorted(found)) or "no data set"
  if name in KNOWN_NAMES:
    raise errors.InputError(
      f"config.data.data_dir: no {name} in {place}, looked for"
      f" {place / name}/<version>/dataset_info.json, found {there}; make it"
      f" with: python -m hawis_jax.data prepare {name} --data_dir {place}"
    )
  close = difflib.get_close_matches(name.lower(), {*found, *KNOWN_NAMES}, 1)
  hint = f"; did you mean '{close[0]}'?" if close else ""
  raise errors.InputError(
    f"config.data.name: got '{name}', allowed are '{digits.NAME}',"
    f" 'image_folder' and what {place} holds: {there}{hint}"
  )


def _check(info, folder):
  """Returns (image_shape, num_classes) of a data set that serves, or raises."""
  if "array_record" not in {f.value for f in info.available_file_formats()}:
    raise sources.unfit(
      folder, f"{info.file_format.value} files", "array_record"
    )
  features = info.features
  for name in ("image", "label"):
    if name not in getattr(features, "keys", tuple)():
      raise sources.unfit(folder, f"no feature '{name}'", "'image' and 'label'")
  image, label = features["image"], features["label"]
  shape = getattr(image, "shape", ())
  if image.np_dtype != np.uint8 or len(shape) != 3 or shape[-1] is None:
    allowed = "uint8 (height, width, channels)"
    raise sources.unfit(folder, f"image {image}", allowed)
  if not getattr(label, "num_classes", None):
    raise sources.unfit(folder, f"label {label}", "a ClassLabel")
  return tuple(shape), label.num_classes
