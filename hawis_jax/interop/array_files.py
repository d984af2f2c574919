"""Named arrays in .npz and HDF5 files, replaced as a whole or not at all."""

from collections.abc import Iterator, Mapping
import contextlib
import math
import os
import pathlib
import re
from typing import Any
import zipfile

import numpy as np

from hawis_jax import errors
from hawis_jax.runtime import storage

SUFFIXES = (".npz", ".hdf5", ".h5")

# What a file's arrays may take in memory [bytes]: 16 GiB, which is more than a
# ResNet-50's chips, and 1032 times the file, which is the most that deflate
# saves, but for small files.
_MOST_BYTES, _MOST_RATIO, _SMALL = 16 << 30, 1032, 1 << 20
_HEADERS = {
  (1, 0): np.lib.format.read_array_header_1_0,
  (2, 0): np.lib.format.read_array_header_2_0,
}


def checked_path(
  path: str | os.PathLike, suffixes: tuple[str, ...]
) -> pathlib.Path:
  """Returns the path, if its suffix is allowed and can be served.

  Raises:
    InputError: it is not, or h5py is not installed.
  """
  path = pathlib.Path(path)
  if path.suffix not in suffixes:
    raise errors.InputError(
      f"{path}: got suffix {path.suffix!r}, allowed are {', '.join(suffixes)}"
    )
  if path.suffix in (".hdf5", ".h5"):
    try:
      import h5py  # noqa: F401
    except ImportError as error:
      raise errors.InputError(
        f"{path}: needs the package h5py: install hawis_jax[hdf5], or use .npz"
      ) from error
  return path


@contextlib.contextmanager
def read_errors(path: pathlib.Path) -> Iterator[None]:
  """Turns what reading a missing or damaged file raises into InputError."""
  if not path.is_file():
    raise errors.InputError(f"{path}: no such file")
  try:
    _check_size(path, path.stat().st_size)
    if zipfile.is_zipfile(path):  # PyTorch's files are such ones too
      with zipfile.ZipFile(path) as archive:
        _check_size(path, sum(file.file_size for file in archive.infolist()))
    yield
  except errors.InputError:
    raise
  except ImportError as error:
    raise errors.InputError(
      f"{path}: needs the package {error.name}: install it, or convert the "
      "file to .npz"
    ) from error
  except Exception as error:
    # A damaged file makes its reader raise anything.
    reason = re.split(r"\.\s|\n", str(error).strip())[0]  # PyTorch's are long
    raise errors.InputError(
      f"{path}: can't be read as {path.suffix}: {type(error).__name__}: "
      f"{reason}"
    ) from error


def _check_size(path: pathlib.Path, size: int) -> None:
  """Checks what a file says to hold [bytes], before memory is taken for it.

  Raises:
    InputError: it is more than the file can hold, or than is allowed.
  """
  most = min(_MOST_BYTES, _MOST_RATIO * path.stat().st_size + _SMALL)
  if size > most:
    raise errors.InputError(
      f"{path}: got arrays of {size:,} bytes, allowed for a file of its size "
      f"are {most:,}"
    )


@contextlib.contextmanager
def opened(path: pathlib.Path) -> Iterator[Mapping[str, Any]]:
  """Yields {name: array, read when indexed}."""
  if path.suffix == ".npz":
    # np.load leaves a damaged file open if it opened it.
    with path.open("rb") as file:
      with zipfile.ZipFile(file) as archive:
        _check_headers(path, archive)
      file.seek(0)
      with np.load(file, allow_pickle=False) as arrays:
        yield arrays
    return
  import h5py

  with h5py.File(path, "r") as file:
    names = []
    file.visit(names.append)  # of groups too
    items = {name: file[name] for name in names}
    items = {k: v for k, v in items.items() if isinstance(v, h5py.Dataset)}
    _check_size(
      path, sum(_hdf5_size(path, name, items[name]) for name in items)
    )
    yield items


def _check_headers(path, archive):
  """Raises InputError where arrays are larger than what is stored of them.

  So does a name that two have: readers differ in which they take.
  """
  names = archive.namelist()
  if len(set(names)) < len(names):
    twice = next(name for name in names if names.count(name) > 1)
    raise errors.InputError(f"{path}: got {twice!r} twice, needed is one")
  for member in archive.infolist():
    with archive.open(member) as file:
      try:
        version = np.lib.format.read_magic(file)
      except ValueError:
        continue  # no array: its bytes as they are
      if version not in _HEADERS:
        raise ValueError(f"{member.filename}: got version {version} of .npy")
      shape, _, dtype = _HEADERS[version](file)
    # Of objects there is no size; NumPy refuses them.
    stored = np.inf if dtype.hasobject else member.file_size
    if math.prod(shape) * max(dtype.itemsize, 1) > stored:
      raise errors.InputError(
        f"{path}: {member.filename}: got shape {shape} of {dtype} in "
        f"{stored:,} bytes, needed are all of them"
      )


def _hdf5_size(path, name, array):
  """Returns what is read at a time of an array [bytes], if it is in the file.

  Raises:
    InputError: it lies in other files.
  """
  if array.is_virtual or array.external:
    raise errors.InputError(
      f"{path}: {name}: got an array of other files, needed is one in this file"
    )
  # Texts may lie in one place, each as long as the file.
  text = array.dtype.hasobject
  each = path.stat().st_size if text else array.dtype.itemsize
  return each * max(array.size or 0, math.prod(array.chunks or ()))


def write(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
  """Writes arrays; scalars of text too.

  Raises:
    InputError: the file can't be written.
  """
  writer = _write_npz if path.suffix == ".npz" else _write_hdf5
  with replaced(path) as partial:
    writer(partial, arrays)


@contextlib.contextmanager
def replaced(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields the path of a partial file, which then replaces `path`.

  Raises:
    InputError: the system refuses.
  """
  partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
  try:
    with storage.write_errors(path):
      path.parent.mkdir(parents=True, exist_ok=True)
      yield partial
      with partial.open("rb") as file:
        os.fsync(file.fileno())
      partial.replace(path)
  finally:
    with contextlib.suppress(OSError):
      partial.unlink()


def _write_npz(path, arrays):
  """Does what np.savez_compressed does, which takes no layer called "file"."""
  # Level 6, the usual one, takes twice as long for 7 % less.
  with zipfile.ZipFile(
    path, "w", zipfile.ZIP_DEFLATED, compresslevel=1
  ) as archive:
    for name, array in arrays.items():
      with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
        np.lib.format.write_array(file, array, allow_pickle=False)


def _write_hdf5(path, arrays):
  import h5py

  try:
    with h5py.File(path, "w") as file:
      for name, array in arrays.items():
        if array.ndim:
          file.create_dataset(
            name, data=array, compression="gzip", shuffle=True, fletcher32=True
          )
        else:
          file[name] = str(array)
  except (RuntimeError, TypeError, ValueError) as error:
    # A layer inside another one, or what the system refuses.
    raise OSError(str(error)) from error
