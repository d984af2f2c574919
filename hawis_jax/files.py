"""Files that survive a kill: written whole; folders that prove their content.

A sealed folder holds `files.json`, the SHA-256 of its every other file. What
differs in a bucket (see `buckets`) is told apart here and in `checkpoint`.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import errno
import fcntl
import hashlib
import io
import json
import os
import pathlib
import tempfile
from typing import Any

from etils import epath
import numpy as np

from hawis_jax import buckets
from hawis_jax import errors

_SEAL = "files.json"
_DIGEST = "sha256"  # field of a record


def check_local(path: str, field: str) -> None:
  """Checks that a path is one of this machine's file system.

  Raises:
    InputError: it is an address: a folder of that name would be made here.
  """
  if "://" in path:
    raise errors.InputError(
      f"{field}: got {path!r}, allowed is a folder of this machine's file "
      "system, such as a mounted share"
    )


def folder_path(path: str, field: str) -> pathlib.Path:
  """Returns a path, of a bucket an `etils.epath` one; nothing need be there.

  Raises:
    InputError: it is another address than one of Google Cloud Storage, or of
      no folder of a bucket; or gcsfs is missing.
  """
  if buckets.holds(path):
    return buckets.folder(path, field)
  if "://" in path:
    raise errors.InputError(
      f"{field}: got {path!r}, allowed is a folder, of this machine's file "
      "system or gs://<bucket>/<folder>"
    )
  return pathlib.Path(path)


def as_path(path: str | os.PathLike) -> pathlib.Path:
  """Returns a path, of a bucket an `etils.epath` one."""
  return epath.Path(path) if buckets.holds(path) else pathlib.Path(path)


def contents(folder: pathlib.Path) -> list[pathlib.Path]:
  """Returns all files of a folder, also of those in it; none if it is missing.

  Raises:
    OSError: it can't be read; what a bucket raises.
  """
  if buckets.holds(folder):
    return buckets.contents(folder)
  return [path for path in folder.rglob("*") if path.is_file()]


def make_directory(path: str | os.PathLike) -> None:
  """Creates a directory, with its parents, and tries to write to it.

  Raises:
    InputError: it can't be created or written to.
  """
  with write_errors(path):
    if buckets.holds(path):
      buckets.check_writable(as_path(path))
      return
    os.makedirs(path, exist_ok=True)
    with tempfile.TemporaryFile(dir=path):
      pass


def write_json(path: str | os.PathLike, value: Any) -> None:
  """Writes a JSON file, and its folder, so that no half of it is ever seen.

  Args:
    path: of the file; replaced if there is one.
    value: what JSON can hold; NaN and infinity are refused (ValueError).

  Raises:
    InputError: the file can't be written.
  """
  text = json.dumps(value, indent=2, allow_nan=False)
  write_bytes(path, text.encode() + b"\n")


def write_npz(
  path: str | os.PathLike, arrays: Mapping[str, np.ndarray]
) -> None:
  """Writes a compressed .npz file like `write_json`; no objects in it.

  Raises:
    InputError: the file can't be written.
  """
  content = io.BytesIO()
  np.savez_compressed(content, allow_pickle=False, **arrays)
  write_bytes(path, content.getvalue())


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
  """Writes a file like `write_json`.

  Raises:
    InputError: the file can't be written.
  """
  path = as_path(path)
  with write_errors(path):
    if buckets.holds(path):
      path.write_bytes(content)
      return
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
      with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
      partial.replace(path)
    except OSError:
      partial.unlink(missing_ok=True)  # a full disk needs the space
      raise


def read_json(path: str | os.PathLike) -> Any:
  """Reads a JSON file.

  Raises:
    InputError: the file is missing, unreadable or damaged.
  """
  try:
    return json.loads(as_path(path).read_bytes())
  except OSError as error:
    if buckets.trouble(error):
      raise
    raise errors.InputError(f"{path}: {error.strerror or error}") from error
  except ValueError as error:
    raise errors.InputError(
      f"{path}: got damaged JSON ({error}); delete the file to make it anew"
    ) from error


def write_record(path: str | os.PathLike, value: Mapping[str, Any]) -> None:
  """Writes a JSON object like `write_json`, with the digest of its content.

  Raises:
    InputError: the file can't be written.
  """
  value = json.loads(json.dumps(value))  # as it will be read
  write_json(path, {**value, _DIGEST: _record_digest(value)})


def read_record(path: str | os.PathLike) -> dict[str, Any]:
  """Reads what `write_record` wrote, and nothing else.

  Raises:
    InputError: the file is missing, unreadable, damaged or was changed.
  """
  value = read_json(path)
  if not isinstance(value, dict) or value.pop(_DIGEST, None) != _record_digest(
    value
  ):
    raise errors.InputError(
      f"{path}: got another content than was written there, or another "
      "version's; restore the file, or delete it to make it anew"
    )
  return value


def _record_digest(value):
  text = json.dumps(value, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def read_fields(path: str | os.PathLike) -> dict[str, Any]:
  """Reads a JSON object that a user wrote: {"field": value}.

  Raises:
    InputError: the file can't be read, or holds something else.
  """
  try:
    values = json.loads(pathlib.Path(path).read_text())
  except (OSError, ValueError) as error:
    reason = getattr(error, "strerror", None) or error
    raise errors.InputError(f"{path}: can't be read: {reason}") from error
  if not isinstance(values, dict):
    raise errors.InputError(
      f"{path}: got a {type(values).__name__}, needed is an object of fields"
    )
  return values


class Lines:
  """A file of lines, made if need be; a crash can cut the last line only."""

  def __init__(self, path: pathlib.Path):
    """Opens the file; its errors are the operating system's."""
    self._path = path
    path.open("ab").close()

  def read(self) -> list[bytes]:
    """Returns all lines with their ends."""
    return self._path.read_bytes().splitlines(keepends=True)

  def rewrite(self, lines: Sequence[bytes]) -> None:
    """Replaces all lines."""
    partial = self._path.with_suffix(".tmp")
    partial.write_bytes(b"".join(lines))
    partial.replace(self._path)

  def append(self, line: bytes) -> None:
    """Adds a line, in one unbuffered write."""
    with self._path.open("ab", buffering=0) as file:
      if file.write(line) < len(line):  # a disk that is just full
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  def flush(self) -> None:
    """Writes what is not written yet: nothing, unlike that of a bucket."""


def lines(path: pathlib.Path) -> Lines | buckets.Lines:
  """Opens a file of lines.

  Raises:
    InputError: it can't be read or written to.
  """
  with write_errors(path):
    return buckets.Lines(path) if buckets.holds(path) else Lines(path)


@contextlib.contextmanager
def locked(folder: pathlib.Path) -> Iterator[None]:
  """Holds a folder, made if need be, for this process alone until its end.

  Raises:
    InputError: another process holds it, or it can't be written to.
  """
  make_directory(folder)
  if buckets.holds(folder):
    with contextlib.ExitStack() as lock:
      with write_errors(folder):
        lock.enter_context(buckets.locked(folder))
      yield
    return
  with (folder / "lock").open("a") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise errors.InputError(
        f"{folder}: another process is running in it, allowed is one at a time"
      ) from error
    except OSError as error:
      raise errors.InputError(
        f"{folder}: got a file system that can't lock files ({error.strerror}),"
        " needed is one that can: two runs would destroy each other's results"
      ) from error
    yield


def seal(folder: pathlib.Path) -> None:
  """Writes down the digest of every file in a folder."""
  paths = sorted(contents(folder))
  digests = {
    path.relative_to(folder).as_posix(): digest(path) for path in paths
  }
  write_json(folder / _SEAL, digests)


def is_seal(parts: Sequence[str]) -> bool:
  """Whether a path, relative to a folder, is that of the folder's seal."""
  return tuple(parts) == (_SEAL,)


def unseal(folder: pathlib.Path) -> None:
  """Removes the seal, before the folder is removed bit by bit."""
  (folder / _SEAL).unlink(missing_ok=True)


def fault(folder: pathlib.Path) -> str | None:
  """Returns what has happened to a sealed folder, None if nothing."""
  try:
    digests = read_json(folder / _SEAL)
    for name, sealed in digests.items():
      try:
        found = digest(folder / name)
      except FileNotFoundError:
        return f"{folder / name}: missing"
      if found != sealed:
        return f"{folder / name}: content changed"
  except (errors.InputError, OSError, AttributeError) as error:
    if buckets.trouble(error):
      raise
    return str(error)
  return None


@contextlib.contextmanager
def write_errors(path: str | os.PathLike) -> Iterator[None]:
  """Turns what the operating system, or a bucket, refuses into InputError.

  Raises:
    UnreachableError: a bucket can't be reached.
  """
  try:
    yield
  except errors.InputError:
    raise
  except Exception as error:
    if buckets.holds(path):
      stop = buckets.trouble(error)
      if stop:
        raise stop from error
      refused = buckets.is_refusal(error)
    else:
      # TensorStore reports the system's errors as ValueError with this mark.
      marked = isinstance(error, ValueError) and "os_error_code" in str(error)
      refused = marked or isinstance(error, OSError)
    if not refused:
      raise
    reason = " ".join(str(error).split()) or type(error).__name__
    raise errors.InputError(f"can't write {path}: {reason}") from error


def digest(path: str | os.PathLike) -> str:
  """Returns the SHA-256 of a file, in hexadecimal."""
  with as_path(path).open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()
