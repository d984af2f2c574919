"""Named arrays in .npz and HDF5 files, replaced as a whole or not at all."""

from collections.abc import Iterator, Mapping
import contextlib
import os
import pathlib
import re
from typing import Any
import zipfile

import numpy as np

from hawis_jax import errors
from hawis_jax.runtime import storage

SUFFIXES = (".npz", ".hdf5", ".h5")


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
    yield
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


@contextlib.contextmanager
def opened(path: pathlib.Path) -> Iterator[Mapping[str, Any]]:
  """Yields {name: array, read when indexed}."""
  if path.suffix == ".npz":
    # np.load leaves a damaged file open if it opened it.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
      yield arrays
    return
  import h5py

  with h5py.File(path, "r") as file:
    names = []
    file.visit(names.append)  # of groups too
    items = {name: file[name] for name in names}
    yield {k: v for k, v in items.items() if isinstance(v, h5py.Dataset)}


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
