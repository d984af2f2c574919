"""CIFAR-10 and CIFAR-100 as TFDS has them, from the original binary archives.

Axes: B images, K labels of an image.
"""

from collections.abc import Mapping
import dataclasses
import pathlib
import tarfile
from typing import NamedTuple

import numpy as np
from PIL import Image
import tensorflow_datasets as tfds

from hawis_jax import errors
from hawis_jax.data import prepare

COUNTS = {"train": 50_000, "test": 10_000}

_SHAPE = (3, 32, 32)  # of an image in an archive: channels, rows, columns


@dataclasses.dataclass(frozen=True)
class Layout:
  """What an archive holds.

  Attributes:
    archive: the published file.
    folder: of its members.
    files: members with the images of a split, in order.
    labels: {feature: (member with its names, count of names)}, in the order of
      a record's first bytes.
  """

  archive: prepare.Archive
  folder: str
  files: Mapping[str, tuple[str, ...]]
  labels: Mapping[str, tuple[str, int]]


class Content(NamedTuple):
  """An archive, read.

  Attributes:
    names: {feature: names of its classes}.
    splits: {split: (labels uint8 [B, K], images uint8 [B, 3, 32, 32])}.
  """

  names: Mapping[str, list[str]]
  splits: Mapping[str, tuple[np.ndarray, np.ndarray]]


# Digests: those of TFDS's url_checksums.
LAYOUTS = {
  "cifar10": Layout(
    archive=prepare.Archive(
      "cifar-10-binary.tar.gz",
      "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
      "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    ),
    folder="cifar-10-batches-bin",
    files={
      "train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
      "test": ("test_batch.bin",),
    },
    labels={"label": ("batches.meta.txt", 10)},
  ),
  "cifar100": Layout(
    archive=prepare.Archive(
      "cifar-100-binary.tar.gz",
      "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
      "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
    ),
    folder="cifar-100-binary",
    files={"train": ("train.bin",), "test": ("test.bin",)},
    labels={
      "coarse_label": ("coarse_label_names.txt", 20),
      "label": ("fine_label_names.txt", 100),
    },
  ),
}


class _WithoutTensorFlow:
  """What the stock builders read and encode with TensorFlow.

  Names, keys and with them the order of the records stay those of the stock.
  """

  def __init__(self, *, content: Content, **arguments):
    self._content = content
    super().__init__(**arguments)

  def _split_generators(self, dl_manager):
    for feature, names in self._content.names.items():
      self.info.features[feature].names = names
    return {
      split: prepare.counted(self._examples(split), split, len(labels))
      for split, (labels, _) in self._content.splits.items()
    }

  def _examples(self, split):
    features = list(self._content.names)
    labels, images = self._content.splits[split]
    for i, (label, image) in enumerate(zip(labels, images, strict=True)):
      pixels = np.ascontiguousarray(image.transpose(1, 2, 0))
      yield (
        i,
        {
          "id": f"{split}_{i:05d}",
          "image": Image.fromarray(pixels),  # is written as PNG, lossless
          **dict(zip(features, label.tolist(), strict=True)),
        },
      )


def builder_class(name: str) -> type[tfds.core.GeneratorBasedBuilder]:
  """Returns the builder of "cifar10" or "cifar100"."""
  stock = tfds.builder_cls(name)
  bases = (_WithoutTensorFlow, stock)
  members = {"__module__": __name__, "__doc__": stock.__doc__, "name": name}
  return type(stock.__name__, bases, members, skip_registration=True)


def prepare_set(
  name: str,
  data_dir: pathlib.Path,
  archive: str | None = None,
  sha256: str | None = None,
) -> pathlib.Path:
  """Makes `cifar10` or `cifar100` unless it is there.

  Args:
    name: of the data set.
    data_dir: of all data sets.
    archive: path of the archive; None is <data_dir>/downloads/manual/<name>.
    sha256: digest to accept in place of the published one; such an archive may
      have other counts of images.

  Returns:
    The folder of the data set.

  Raises:
    InputError: the archive is missing, another one or damaged, or `data_dir`
      cannot be written.
  """
  builder = builder_class(name)
  if folder := prepare.finished(builder, data_dir):
    return folder
  layout = LAYOUTS[name]
  path = prepare.locate(layout.archive, data_dir, archive)
  original = prepare.check_digest(layout.archive, path, sha256)
  content = read(path, layout)
  if original:
    counts = {s: len(labels) for s, (labels, _) in content.splits.items()}
    prepare.check_counts(counts, COUNTS, path)
  return prepare.write(builder, data_dir, content=content)


def read(path: pathlib.Path, layout: Layout) -> Content:
  """Reads an archive.

  Raises:
    InputError: it is damaged: members missing or cut off, labels out of range.
  """
  files = _members(path, layout)
  names = {}
  for feature, (file, count) in layout.labels.items():
    names[feature] = files[file].decode(errors="replace").split()
    if len(names[feature]) != count:
      raise errors.InputError(
        f"{path}: {file}: got {len(names[feature])} names, allowed are {count}"
      )
  splits = {}
  for split, parts in layout.files.items():
    records = [_records(path, part, files[part], layout) for part in parts]
    labels, images = np.split(np.concatenate(records), [len(names)], axis=1)
    splits[split] = labels, images.reshape(-1, *_SHAPE)
  return Content(names, splits)


def _members(path, layout):
  """Returns {file: its bytes} of the archive's members."""
  wanted = {file for file, _ in layout.labels.values()}
  wanted.update(*layout.files.values())
  found = {}
  with prepare.archive_errors(path), tarfile.open(path) as archive:
    for member in filter(tarfile.TarInfo.isfile, archive):
      name = member.name.removeprefix(f"{layout.folder}/")
      found[name] = archive.extractfile(member).read()
    archive.fileobj.read()  # to the end, where gzip has its checksum
  if missing := wanted - found.keys():
    raise errors.InputError(
      f"{path}: no file {layout.folder}/{min(missing)}, needed are"
      f" {', '.join(sorted(wanted))}"
    )
  return found


def _records(path, file, data, layout):
  """Returns uint8 [B, K + pixels]."""
  size = len(layout.labels) + np.prod(_SHAPE)
  if not data or len(data) % size:
    raise errors.InputError(
      f"{path}: {file}: got {len(data):,} bytes, allowed are whole records of"
      f" {size:,} bytes"
    )
  records = np.frombuffer(data, np.uint8).reshape(-1, size)
  for column, (feature, (_, count)) in enumerate(layout.labels.items()):
    highest = records[:, column].max()
    if highest >= count:
      raise errors.InputError(
        f"{path}: {file}: got {feature} {highest}, allowed are 0 to {count - 1}"
      )
  return records
