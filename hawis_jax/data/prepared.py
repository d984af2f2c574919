"""Prepared data sets: TFDS folders of ArrayRecord files."""

from collections.abc import Iterator
import difflib
import re
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from hawis_jax import errors
from hawis_jax.data import digits
from hawis_jax.data import prepare
from hawis_jax.data import sources

# Of any other class that a set names, TFDS would import the module: a program
# of whoever wrote the set, where Python finds it.
_FEATURE = re.compile(r"tensorflow_datasets\.core\.features(\.\w+)+")
_CLASS_KEYS = ("pythonClassName", "python_class_name", "type")
_JSON_KEYS = ("json", "content")  # of text that TFDS reads as JSON again


def open_set(name: str, data_dir: str) -> sources.Stored:
  """Opens the highest version of a data set; `digits` is made if need be.

  The test images are those of the split `test`, or of `validation` where the
  former is missing or has no labels. They are always `validation` of
  `imagenet2012`. The name is TFDS's, or name/config.

  Raises:
    InputError: no such data set, not one of labelled uint8 images, or damaged.
  """
  folder = _find(name, prepare.root(data_dir))
  _check_classes(folder)
  try:
    return _opened(name, folder)
  except errors.InputError:
    raise
  except Exception as error:  # JSON, protobuf and TFDS have their own
    raise sources.unreadable(folder, error) from error


def _opened(name, folder):
  """Returns the data set in a folder, whose features TFDS may read."""
  builder = tfds.builder_from_directory(folder)
  shape, num_classes = _check(builder.info, folder)
  # We decode images ourselves: TFDS takes OpenCV where there is one, whose JPEG
  # pixels differ from Pillow's, and keeps CMYK and greyscale as they are.
  encoded = isinstance(builder.info.features["image"], tfds.features.Image)
  decoders = {"image": tfds.decode.SkipDecoding()} if encoded else None
  records = builder.as_data_source(decoders=decoders)

  def labelled(split):
    """Whether a split has labels; reads the last record of its every file."""
    if split not in records or not len(records[split]):
      return False
    shards = builder.info.splits[split].shard_lengths
    ends = np.cumsum([length for length in shards if length])
    images = sources.Images(records[split], folder, shape)
    return all(record["label"] >= 0 for record in images.fetch(ends - 1))

  if not labelled("train"):
    raise sources.unfit(folder, "no labelled images 'train'", "some")
  choices = ("test", "validation")[name == prepare.IMAGENET :]
  test = next(filter(labelled, choices), None)
  if test is None:
    wanted = " or ".join(f"'{split}'" for split in choices)
    raise sources.unfit(folder, f"no labelled images {wanted}", "some")
  train, test = records["train"], records[test]
  return sources.Stored(folder, folder.name, train, test, shape, num_classes)


def _check_classes(folder):
  """Raises InputError where features.json names a class that is not TFDS's."""
  try:
    features = (folder / "features.json").read_bytes()
    names = [*_classes(errors.parse_json(features, "features.json"))]
  except Exception as error:  # too many brackets for Python, too
    raise sources.unreadable(folder, error) from error
  for name in names:
    if not _FEATURE.fullmatch(name):
      allowed = "those of tensorflow_datasets.core.features"
      raise sources.unfit(folder, f"a feature of the class {name!r}", allowed)


def _classes(value: Any, key: str = "") -> Iterator[str]:
  """Yields the names of Python classes in a features.json, at any depth."""
  if isinstance(value, dict):
    for name, inner in value.items():
      yield from _classes(inner, name)
  elif isinstance(value, list):
    for inner in value:
      yield from _classes(inner, key)
  elif key in _CLASS_KEYS:
    yield str(value)
  elif key in _JSON_KEYS and isinstance(value, str):
    yield from _classes(errors.parse_json(value, key))


def _find(name, place):
  """Returns the folder of the highest version of `name` that is prepared."""
  if name == digits.NAME:
    return prepare.prepare(name, place)
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
  if name in prepare.NAMES:
    raise errors.InputError(
      f"config.data.data_dir: no {name} in {place}, looked for"
      f" {place / name}/<version>/dataset_info.json, found {there}; make it"
      f" with: python -m hawis_jax.data prepare {name} --data_dir {place}"
    )
  allowed = {*found, *prepare.NAMES}
  close = difflib.get_close_matches(name.lower(), allowed, 1)
  hint = f"; did you mean '{close[0]}'?" if close else ""
  raise errors.InputError(
    f"config.data.name: got '{name}', allowed are '{digits.NAME}',"
    f" 'image_folder', 'npz' and what {place} holds: {there}{hint}; images of"
    " your own: np.savez('mine.npz', x_train=.., y_train=.., x_test=..,"
    " y_test=..), data.name = 'npz', data.data_dir = 'mine.npz', or hx.arrays"
    " in Python"
  )


def _check(info, folder):
  """Returns (image_shape, num_classes) of a data set that serves, or raises."""
  if "array_record" not in {f.value for f in info.available_file_formats()}:
    got = f"{info.file_format.value} files"
    raise sources.unfit(folder, got, "array_record")
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
