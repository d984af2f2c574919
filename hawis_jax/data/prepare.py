"""Making data sets: archives found and checked, sets written as a whole or not.

A set is written aside and renamed: a killed process leaves nothing that is
taken for a data set, and of several processes at once the first one wins.
"""

from collections.abc import Iterable, Iterator, Mapping
import contextlib
import dataclasses
import hashlib
import io
import os
import pathlib
import shutil
import sys
import tarfile
import tempfile
from typing import Any
import zlib

import tensorflow_datasets as tfds

from hawis_jax import errors

_LINES = 20  # of progress, a split
_LEAST = 1000  # images between two of them


@dataclasses.dataclass(frozen=True)
class Archive:
  """A file that a data set is made from, as its authors published it.

  Attributes:
    name: of the file.
    url: where to get it.
    sha256: hexadecimal digest.
  """

  name: str
  url: str
  sha256: str


def locate(
  archive: Archive, data_dir: pathlib.Path, path: str | None
) -> pathlib.Path:
  """Returns the path of an archive: `path`, or its place below `data_dir`.

  Raises:
    InputError: there is no such file.
  """
  place = data_dir / "downloads" / "manual" / archive.name
  found = pathlib.Path(path).expanduser() if path else place
  if not found.is_file():
    raise errors.InputError(
      f"--archive: no file {found}, needed is {archive.name}: get it from"
      f" {archive.url} and put it at {place}, or pass --archive PATH"
    )
  return found


def check_digest(
  archive: Archive, path: pathlib.Path, accepted: str | None
) -> bool:
  """Returns whether a file is the published archive.

  Args:
    archive: the published one.
    path: of the file.
    accepted: a digest to accept in place of the published one.

  Raises:
    InputError: the file has neither digest, or can't be read.
  """
  say(f"checking the SHA-256 of {path}")
  try:
    with path.open("rb") as file:
      digest = hashlib.file_digest(file, "sha256").hexdigest()
  except OSError as error:
    raise errors.InputError(f"{path}: {error.strerror}") from error
  if digest == archive.sha256:
    return True
  if not accepted:
    raise errors.InputError(
      f"{path}: got SHA-256 {digest}, allowed is that of {archive.name}"
      f" ({archive.sha256}); get it again from {archive.url}, or accept another"
      f" archive knowingly with --sha256 {digest}"
    )
  if digest != accepted.lower():
    raise errors.InputError(
      f"--sha256: got {accepted}, but {path} has {digest}"
    )
  return False


def check_counts(
  got: Mapping[str, int], wanted: Mapping[str, int], place: object
) -> None:
  """Raises InputError unless a set has as many images as the published one."""
  for split, count in wanted.items():
    if got[split] != count:
      raise errors.InputError(
        f"{place}: got {got[split]:,} images '{split}', allowed are {count:,}"
      )


def check_space(data_dir: pathlib.Path, size: int) -> None:
  """Raises InputError where less than `size` bytes are free."""
  place = data_dir
  while not place.exists():
    place = place.parent
  free = shutil.disk_usage(place).free
  if free < size:
    raise errors.InputError(
      f"{data_dir}: got {free / 1e9:.1f} GB of free space, needed are"
      f" {size / 1e9:.1f} GB"
    )


def finished(
  builder_class: type[tfds.core.DatasetBuilder], data_dir: pathlib.Path
) -> pathlib.Path | None:
  """Returns the folder of a data set if it is there."""
  folder = data_dir / _version(builder_class)
  return folder if folder.exists() else None


def write(
  builder_class: type[tfds.core.DatasetBuilder],
  data_dir: pathlib.Path,
  **arguments: Any,
) -> pathlib.Path:
  """Writes a data set under `data_dir` unless it is there already.

  Args:
    builder_class: of the data set.
    data_dir: is made if need be.
    **arguments: further ones of the builder.

  Returns:
    The folder of the data set.

  Raises:
    InputError: `data_dir` cannot be written.
  """
  if folder := finished(builder_class, data_dir):
    return folder
  version = _version(builder_class)
  target = data_dir / version
  try:
    data_dir.mkdir(parents=True, exist_ok=True)
    prefix = f".{builder_class.name}-"
    with tempfile.TemporaryDirectory(prefix=prefix, dir=data_dir) as aside:
      with _silence():
        builder_class(
          data_dir=aside, file_format="array_record", **arguments
        ).download_and_prepare(
          download_config=tfds.download.DownloadConfig(try_download_gcs=False)
        )
      target.parent.mkdir(exist_ok=True)
      os.rename(pathlib.Path(aside) / version, target)
  except OSError as error:
    if not target.exists():  # else another process was first
      raise errors.InputError(
        f"data_dir: cannot write {builder_class.name} to {data_dir}"
        f" ({error.strerror or error}), allowed is a writable directory"
      ) from error
  return target


@contextlib.contextmanager
def archive_errors(path: pathlib.Path) -> Iterator[None]:
  """Turns what a damaged archive raises into InputError."""
  try:
    yield
  except (tarfile.TarError, zlib.error, OSError, EOFError) as error:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    raise errors.InputError(f"{path}: damaged archive ({reason})") from error


def counted(examples: Iterable, split: str, total: int | None) -> Iterator:
  """Passes examples on, and says now and then how many there were.

  Raises:
    InputError: there are not `total` of them (None: any number).
  """
  every = max(_LEAST, (total or 0) // _LINES)
  number = 0
  for number, example in enumerate(examples, 1):
    yield example
    if number % every == 0:
      say(f"{split}: {number:,}{f' of {total:,}' if total else ''} images")
  if total is not None:
    check_counts({split: number}, {split: total}, "archive")


def say(line: str) -> None:
  """Prints progress, also while TFDS is kept silent."""
  print(line, file=sys.__stdout__, flush=True)


def _version(builder_class):
  return pathlib.Path(builder_class.name) / str(builder_class.VERSION)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
  """Keeps TFDS's messages and progress bars off the terminal."""
  sink = io.StringIO()
  with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
    yield
