"""Makes data sets from their archives, without TensorFlow or a network.

TFDS's own builders do it; what they read or encode with TensorFlow is replaced
here. Names, keys and with them the order of the records stay theirs.

A set is written aside and renamed: a killed process leaves nothing that is
taken for a data set, and of several processes at once the first one wins. What
a killed one left is removed by the next; the system tells by a lock who lives.
"""

import argparse
from collections.abc import Iterator, Sequence
import contextlib
import fcntl
import hashlib
import io
import os
import pathlib
import resource
import shutil
import sys
import tarfile
import tempfile
from typing import Any

import numpy as np
from PIL import Image
import tensorflow_datasets as tfds

from hawis_jax import errors
from hawis_jax.data import digits
from hawis_jax.runtime import storage
from hawis_jax.runtime import terminal

IMAGENET = "imagenet2012"
NAMES = (digits.NAME, "cifar10", "cifar100", IMAGENET)

_EPILOG = """archives (looked for in <data_dir>/downloads/manual):
  cifar10       cifar-10-binary.tar.gz
  cifar100      cifar-100-binary.tar.gz
  imagenet2012  ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar
"""
_REGISTER = "https://image-net.org/download-images (after registration)"
_DISK_SHARE = 2.1  # free space to size of the tars: TFDS shuffles on disk
_OPEN_FILES = 4096  # TFDS shuffles in 1000
_ASIDE = ".hawis_jax"  # ends the names of folders that are written aside


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs the command line; returns the exit status: 2 is a mistake."""
  parser = argparse.ArgumentParser("python -m hawis_jax.data")
  command = parser.add_subparsers(required=True).add_parser(
    "prepare",
    description="Makes a data set from its original files. Nothing is"
    " downloaded, and TensorFlow is not needed.",
    epilog=_EPILOG,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  command.add_argument("name", choices=NAMES)
  place, two = "$TFDS_DATA_DIR or TFDS's default", "training, validation"
  command.add_argument("--data_dir", default="", help=f"default: {place}")
  help_text = f"of imagenet2012 two: {two}"
  command.add_argument(
    "--archive", nargs="+", default=(), metavar="PATH", help=help_text
  )
  options = parser.parse_args(arguments)
  try:
    folder = prepare(options.name, root(options.data_dir), options.archive)
  except (errors.InputError, PermissionError) as error:
    terminal.say(errors.printable(f"error: {error}"), sys.stderr)
    return 2
  splits = tfds.builder_from_directory(folder).info.splits
  counts = (f"{split.num_examples:,} {name}" for name, split in splits.items())
  _say(f"{folder} has {', '.join(counts)}")
  return 0


def _say(text):
  terminal.say(errors.printable(text), sys.stdout)


def root(data_dir: str) -> pathlib.Path:
  """Returns where data sets are; "" is $TFDS_DATA_DIR or TFDS's default."""
  return storage.expanded(
    data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets",
    "config.data.data_dir",
  )


def prepare(
  name: str, data_dir: pathlib.Path, archives: Sequence[str] = ()
) -> pathlib.Path:
  """Makes one of `NAMES` in `data_dir` unless it is there; returns its folder.

  Without `archives`, they are looked for in <data_dir>/downloads/manual.

  Raises:
    InputError: an archive is missing or not the published one, or `data_dir`
      cannot be written or is too small.
  """
  stock = digits.Digits if name == digits.NAME else tfds.builder_cls(name)
  published = {} if name == digits.NAME else stock.url_infos
  if len(archives) not in (0, len(published)):
    raise errors.InputError(
      f"--archive: got {len(archives)} for {name}, allowed are"
      f" {len(published)}, or none"
    )
  target = data_dir / name / str(stock.VERSION)
  _remove_leftovers(data_dir, name)
  if target.exists():
    return target
  paths = _locate(name, data_dir, list(published), archives)
  if name == IMAGENET:
    _check_space(data_dir, sum(path.stat().st_size for path in paths))
  for path, (url, info) in zip(paths, published.items(), strict=True):
    _check_digest(path, url, info.checksum)
  if name == IMAGENET:
    builder = _imagenet(stock, *paths)
  else:
    builder = _cifar(stock, *paths) if paths else stock
  return _write(builder, target)


def _locate(name, data_dir, urls, archives):
  """Returns the paths of the archives, given or in their usual place."""
  manual = data_dir / "downloads" / "manual"
  files = [url.split("/")[-1] for url in urls]
  paths = archives or [manual / file for file in files]
  paths = [pathlib.Path(path).expanduser() for path in paths]
  for path, file, url in zip(paths, files, urls, strict=True):
    if not path.is_file():
      place = _REGISTER if name == IMAGENET else url
      raise errors.InputError(
        f"--archive: no file {path}, needed is {file}: get it from {place} and"
        f" put it at {manual / file}, or pass --archive PATH"
      )
  return paths


def _check_space(data_dir, size):
  parents = (data_dir, *data_dir.absolute().parents)
  there = next(filter(pathlib.Path.exists, parents))  # it may not be made yet
  free, needed = shutil.disk_usage(there).free, _DISK_SHARE * size
  if free < needed:
    raise errors.InputError(
      f"{data_dir}: got {free / 1e9:.1f} GB of free space, needed are"
      f" {needed / 1e9:.1f} GB"
    )


def _check_digest(path, url, published):
  # Nothing that is read later can then be damaged.
  _say(f"checking the SHA-256 of {path}")  # minutes for ImageNet
  try:
    with path.open("rb") as file:
      digest = hashlib.file_digest(file, "sha256").hexdigest()
  except OSError as error:
    raise errors.InputError(f"{path}: {error.strerror}") from error
  if digest != published:
    raise errors.InputError(
      f"{path}: got SHA-256 {digest}, allowed is that of {url} ({published});"
      " get it again"
    )


def _write(builder_class, target):
  """Writes a data set as the folder `target`, and returns that."""
  data_dir, sink = target.parents[1], io.StringIO()
  try:
    data_dir.mkdir(parents=True, exist_ok=True)
    with _aside(data_dir, builder_class.name) as aside:
      # What TFDS prints is of a folder that is gone at the end.
      with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
        builder = builder_class(data_dir=aside, file_format="array_record")
        builder.download_and_prepare(
          download_config=tfds.download.DownloadConfig(try_download_gcs=False)
        )
      target.parent.mkdir(exist_ok=True)
      os.rename(aside / target.relative_to(data_dir), target)
  except OSError as error:
    if not target.exists():  # else another process was first
      raise errors.InputError(
        f"data_dir: cannot write {builder_class.name} to {data_dir}"
        f" ({error.strerror or error}), allowed is a writable directory"
      ) from error
  return target


@contextlib.contextmanager
def _aside(data_dir, name):
  """Yields a new folder, locked for as long as this process lives."""
  path = tempfile.mkdtemp("", f".{name}-", data_dir)
  locked = os.open(path, os.O_RDONLY)
  try:
    with contextlib.suppress(OSError):  # some file systems have no locks
      fcntl.flock(locked, fcntl.LOCK_EX)
    # Now: what has this name and no lock is nobody's.
    os.replace(path, path := path + _ASIDE)
    yield path
  finally:
    shutil.rmtree(path, ignore_errors=True)
    os.close(locked)


def _remove_leftovers(data_dir, name):
  """Removes what killed preparations of a data set have left, up to 150 GB."""
  for path in data_dir.glob(f".{name}-*{_ASIDE}"):
    with contextlib.suppress(OSError):
      descriptor = os.open(path, os.O_RDONLY)
      try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _say(f"removing {path}, which a killed preparation left")
        shutil.rmtree(path)
      finally:
        os.close(descriptor)


def _files(archive: tarfile.TarFile) -> Iterator[tuple[str, Any]]:
  """Yields the path in the archive and the opened file of its every file."""
  for member in filter(tarfile.TarInfo.isfile, archive):
    yield member.name, archive.extractfile(member)


def _cifar(stock, path):
  """Returns TFDS's builder of CIFAR-10 or CIFAR-100, reading this archive."""

  class Cifar(stock, skip_registration=True):
    __doc__ = stock.__doc__
    name = stock.name

    def _split_generators(self, dl_manager):
      layout = self._cifar_info
      with tarfile.open(path) as archive:
        files = {
          name.removeprefix(layout.prefix): file.read()
          for name, file in _files(archive)
        }
      for key, file in zip(layout.label_keys, layout.label_files, strict=True):
        self.info.features[key].names = files[file].decode().split()
      train = b"".join(files[file] for file in layout.train_files)
      test = b"".join(files[file] for file in layout.test_files)
      return {
        "train": self._generate_examples("train_", train),
        "test": self._generate_examples("test_", test),
      }

    def _generate_examples(self, split_prefix, filepaths):
      """Yields the records of the files, given by their joined content."""
      keys = self._cifar_info.label_keys
      records = np.frombuffer(filepaths, np.uint8)
      for i, record in enumerate(records.reshape(-1, len(keys) + 3 * 32 * 32)):
        labels, image = record[: len(keys)].tolist(), record[len(keys) :]
        image = np.moveaxis(image.reshape(3, 32, 32), 0, -1)
        example = dict(zip(keys, labels, strict=True))
        example["id"] = f"{split_prefix}{i:05d}"
        # Written as PNG, as an array would be, but not by TensorFlow.
        example["image"] = Image.fromarray(image.copy())
        yield i, example

  return Cifar


def _imagenet(stock, train, validation):
  """Returns TFDS's builder of ImageNet, reading these two tars.

  Images keep their bytes. TFDS's own preparation encodes 23 of 1.3 million
  anew, 22 CMYK JPEGs and one PNG named JPEG; here the reader converts them.
  """
  # A process may have fewer files open than TFDS opens.
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  if 0 <= soft < _OPEN_FILES <= hard:
    resource.setrlimit(resource.RLIMIT_NOFILE, (_OPEN_FILES, hard))

  class Imagenet(stock, skip_registration=True):
    name = IMAGENET
    pkg_dir_path = stock.pkg_dir_path  # where its description is

    def _split_generators(self, dl_manager):
      return {
        "train": _training_images(train),
        "validation": _validation_images(validation),
      }

  return Imagenet


def _training_images(path) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yields key and record of the images; a tar in the tar has a class's."""
  with tarfile.open(path) as classes:
    for tar, file in _files(classes):
      label = pathlib.PurePath(tar).stem
      with tarfile.open(fileobj=file) as images:
        for name, image in _files(images):
          yield name, {"file_name": name, "image": image, "label": label}


def _validation_images(path) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yields the same; TFDS has the labels, in the order of the names."""
  file = tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt")
  labels = file.read_text().split()
  with tarfile.open(path) as images:
    for name, image in _files(images):
      label = labels[int(name.removesuffix(".JPEG").split("_")[-1]) - 1]
      yield name, {"file_name": name, "image": image, "label": label}
