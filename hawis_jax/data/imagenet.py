"""ImageNet (ILSVRC 2012) as TFDS has it, from the original tars or a folder.

Images keep their bytes. TFDS's own preparation encodes 23 of 1.3 million anew,
22 CMYK JPEGs and one PNG named JPEG; here the reader converts them.
"""

from collections.abc import Iterator, Mapping
import functools
import pathlib
import re
import resource
import tarfile

import tensorflow_datasets as tfds

from hawis_jax import errors
from hawis_jax.data import image_folder
from hawis_jax.data import prepare

NAME = "imagenet2012"
COUNTS = {"train": 1_281_167, "validation": 50_000}

_URL = "https://image-net.org/download-images (after registration)"
# Digests: those of TFDS's checksums of imagenet2012.
ARCHIVES = (
  prepare.Archive(
    "ILSVRC2012_img_train.tar",
    _URL,
    "b08200a27a8e34218a0e58fde36b0fe8f73bc377f4acea2d91602057c3ca45bb",
  ),
  prepare.Archive(
    "ILSVRC2012_img_val.tar",
    _URL,
    "c7e06a6c0baccf06d8dbeb6577d71efff84673a5dbdd50633ab44f8ea0456ae0",
  ),
)

_STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")  # of JPEG and PNG files
_DISK_SHARE = 2.1  # free space to size of the images: TFDS shuffles on disk
_OPEN_FILES = 4096  # TFDS shuffles in 1000

# file name, class (WordNet id), encoded image
_Images = Iterator[tuple[str, str, bytes]]


class _WithoutTensorFlow:
  """What the stock builder reads with TensorFlow; keys stay those of the stock.

  Args:
    images: of every split.
    counts: how many there must be, or None.
  """

  # Where the stock builder has its description and citation.
  pkg_dir_path = tfds.builder_cls(NAME).pkg_dir_path

  def __init__(
    self,
    *,
    images: Mapping[str, _Images],
    counts: Mapping[str, int] | None,
    **arguments,
  ):
    self._images = images
    self._counts = counts or {}
    super().__init__(**arguments)

  def _split_generators(self, dl_manager):
    return {
      split: prepare.counted(
        self._examples(images), split, self._counts.get(split)
      )
      for split, images in self._images.items()
    }

  def _examples(self, images):
    classes = set(self.info.features["label"].names)
    seen = set()
    for name, label, image in images:
      if label not in classes:
        raise errors.InputError(
          f"{name}: got class '{label}', allowed are the 1000 of ImageNet"
          " (n01440764, ...)"
        )
      if name in seen:
        raise errors.InputError(f"{name}: got it twice, allowed is once")
      if not image.startswith(_STARTS):
        raise errors.InputError(f"{name}: damaged, allowed are JPEG images")
      seen.add(name)
      yield name, {"file_name": name, "image": image, "label": label}


@functools.cache
def builder_class() -> type[tfds.core.GeneratorBasedBuilder]:
  """Returns the builder of the data set."""
  bases = (_WithoutTensorFlow, tfds.builder_cls(NAME))
  members = {"__module__": __name__, "name": NAME}
  return type("Imagenet2012", bases, members, skip_registration=True)


def prepare_set(
  data_dir: pathlib.Path,
  archives: tuple[str | None, str | None] = (None, None),
  sha256: tuple[str | None, str | None] = (None, None),
) -> pathlib.Path:
  """Makes `imagenet2012` from its two tars unless it is there.

  Args:
    data_dir: of all data sets.
    archives: paths of the tars of training and validation images; None is
      <data_dir>/downloads/manual/<name>.
    sha256: digests to accept in place of the published ones; such tars may have
      other counts of images.

  Returns:
    The folder of the data set.

  Raises:
    InputError: an archive is missing, another one or damaged, or `data_dir`
      cannot be written or is too small.
  """
  if folder := prepare.finished(builder_class(), data_dir):
    return folder
  paths = [
    prepare.locate(archive, data_dir, path)
    for archive, path in zip(ARCHIVES, archives, strict=True)
  ]
  size = sum(path.stat().st_size for path in paths)
  prepare.check_space(data_dir, int(_DISK_SHARE * size))
  checked = zip(ARCHIVES, paths, sha256, strict=True)
  original = [prepare.check_digest(*each) for each in checked]
  train, validation = paths
  images = {"train": _train(train), "validation": _validation(validation)}
  return _write(data_dir, images, COUNTS if all(original) else None)


def prepare_folder(
  data_dir: pathlib.Path, folder: str, subset: bool = False
) -> pathlib.Path:
  """Makes `imagenet2012` from an image folder unless it is there.

  Args:
    data_dir: of all data sets.
    folder: has train/<WordNet id>/<image> and val/<WordNet id>/<image>.
    subset: whether other counts of images than ImageNet's are allowed.

  Returns:
    The folder of the data set.

  Raises:
    InputError: the folder is none of these, or `data_dir` cannot be written.
  """
  if there := prepare.finished(builder_class(), data_dir):
    return there
  stored = image_folder.open_folder(folder)
  records = {"train": stored.train, "validation": stored.test}
  counts = {split: len(images) for split, images in records.items()}
  if not subset:
    prepare.check_counts(counts, COUNTS, folder)
  images = {split: _files(each) for split, each in records.items()}
  return _write(data_dir, images, counts)


def _write(data_dir, images, counts):
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  if 0 <= soft < _OPEN_FILES <= hard:
    resource.setrlimit(resource.RLIMIT_NOFILE, (_OPEN_FILES, hard))
  return prepare.write(builder_class(), data_dir, images=images, counts=counts)


def _train(path: pathlib.Path) -> _Images:
  """Yields the images of a tar of tars, one a class and named after it."""
  with prepare.archive_errors(path), tarfile.open(path) as classes:
    for tar in filter(tarfile.TarInfo.isfile, classes):
      label = pathlib.PurePath(tar.name).stem
      with tarfile.open(fileobj=classes.extractfile(tar)) as images:
        for member in filter(tarfile.TarInfo.isfile, images):
          image = images.extractfile(member).read()
          yield pathlib.PurePath(member.name).name, label, image


def _validation(path: pathlib.Path) -> _Images:
  """Yields the images of a flat tar; TFDS has their labels, by number."""
  file = tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt")
  labels = file.read_text().split()
  with prepare.archive_errors(path), tarfile.open(path) as images:
    for member in filter(tarfile.TarInfo.isfile, images):
      name = pathlib.PurePath(member.name).name
      match = re.fullmatch(r"ILSVRC2012_val_(\d{8})\.JPEG", name)
      if not match or not 1 <= int(match[1]) <= len(labels):
        raise errors.InputError(
          f"{path}: got file {name}, allowed are ILSVRC2012_val_00000001.JPEG"
          f" to ILSVRC2012_val_{len(labels):08}.JPEG"
        )
      image = images.extractfile(member).read()
      yield name, labels[int(match[1]) - 1], image


def _files(records) -> _Images:
  for number in range(len(records)):
    record = records.__getitems__([number])[0]
    path = pathlib.PurePath(record["file_name"])
    yield path.name, path.parent.name, record["image"]
