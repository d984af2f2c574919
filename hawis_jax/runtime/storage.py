"""Files of a run that survive a kill, in a folder or in cloud storage.

A work directory is a folder of this machine's file system, or gs:// storage
through `etils.epath`, whose paths have pathlib's methods; the extra `gcs` makes
the requests. A file is written whole or not at all. A record is a JSON object
with the digest of its content, so that another content is noticed.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import errno
import fcntl
import hashlib
import importlib.util
import io
import json
import os
import pathlib
import re
import sys
import tempfile
from typing import Any

from etils import epath
import fsspec
import numpy as np

from hawis_jax import errors
from hawis_jax.runtime import terminal

_PREFIX = "gs://"
_PARTIAL = re.compile(r".+\.(json|jsonl|npz|npy|html|svg|pdf|csv)\.\d+\.tmp")
_REQUEST = 30.0  # the most that a request may take [s]
_DIGEST = "sha256"  # field of a record
# Packages whose errors are those of requests to gs:// storage.
_REQUESTS = ("aiohttp", "gcsfs", "google", "requests", "urllib3")
_PASSING_CODES = (408, 429)  # and those from 500: another try may succeed

_held = {}  # {path of a lock: its file} of this process


def is_remote(path: str | os.PathLike) -> bool:
  """Returns whether a path is one of gs:// storage."""
  return os.fspath(path).startswith(_PREFIX)


def expanded(path: str, field: str) -> pathlib.Path:
  """Returns a path of this machine, a user's folder in place of its `~`.

  Raises:
    InputError: no such user is known, or its folder is not.
  """
  try:
    return pathlib.Path(path).expanduser()
  except RuntimeError as error:
    raise errors.InputError(
      f"{field}: got {path!r}, whose home folder is not known; needed is a "
      "path without ~"
    ) from error


def _local_path(path, field):
  # What begins like an address may be one that lacks a slash.
  if not path or not path.isprintable() or re.match("[a-z]+:", path):
    raise errors.InputError(
      f"{field}: got {path!r}, allowed is the path of a folder, in UTF-8 "
      "without control characters, or gs://<bucket>/<folder>"
    )
  return expanded(path, field)


def folder_path(path: str, field: str) -> pathlib.Path:
  """Returns a work directory's path; nothing need be there.

  Raises:
    InputError: it is another address than one of gs:// storage, or of no folder
      in it; or gcsfs is missing.
  """
  if "://" not in path:
    return _local_path(path, field)
  bucket, _, name = path.removeprefix(_PREFIX).partition("/")
  # gcsfs would take some characters for patterns.
  if not is_remote(path) or not bucket or not name or set(path) & set("*?[]"):
    raise errors.InputError(
      f"{field}: got {path!r}, allowed is a folder, of this machine's file "
      "system or gs://<bucket>/<folder> without any of *?[]"
    )
  if importlib.util.find_spec("gcsfs") is None:
    raise errors.InputError(
      f"{field}: got {path!r}, for which gcsfs is missing: pip install "
      "'hawis_jax[gcs]'; or give a folder of this machine's file system"
    )
  # For epath and gcsfs, when they are first used: the one way that is tested.
  os.environ.setdefault("EPATH_USE_TF", "false")
  os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
  fsspec.config.conf["gcs"] = {
    # Else listings are kept, which others' writes do not change.
    "use_listings_cache": False,
    "requests_timeout": _REQUEST,
  }
  return epath.Path(path.rstrip("/"))


def passes(error: BaseException) -> bool:
  """Returns whether starting again may succeed, as after a lost network."""
  module = type(error).__module__.split(".")[0]
  code = getattr(error, "code", None)
  if module == "gcsfs" and code is not None:
    return int(code) >= 500 or int(code) in _PASSING_CODES
  marks = "UNAVAILABLE", "DEADLINE_EXCEEDED"
  return (
    module in _REQUESTS
    or isinstance(
      error, (ConnectionError, TimeoutError, errors.UnreachableError)
    )
    or (_PREFIX in str(error) and any(m in str(error) for m in marks))
  )


@contextlib.contextmanager
def write_errors(path: str | os.PathLike) -> Iterator[None]:
  """Turns what a file system or the storage refuses into InputError."""
  for lock, file in _held.items():
    _check_in_place(lock, file)
  try:
    yield
  except errors.InputError:
    raise
  except Exception as error:
    if is_remote(path) and passes(error):
      raise
    # TensorStore reports the system's errors as ValueError with such a mark.
    marked = isinstance(error, ValueError) and (
      "os_error_code" in str(error) or _PREFIX in str(error)
    )
    ours = type(error).__module__.split(".")[0] not in _REQUESTS
    if ours and not (marked or isinstance(error, OSError)):
      raise
    reason = " ".join(str(error).split()) or type(error).__name__
    raise errors.InputError(f"can't write {path}: {reason}") from error


def _check_in_place(lock, file):
  """Raises InputError where a lock's folder is not where it was any more.

  Else the run would go on in a new folder of that name, which has half of it.
  """
  with contextlib.suppress(OSError):
    if os.path.samestat(os.stat(lock), os.fstat(file.fileno())):
      return
  raise errors.InputError(
    f"{lock.parent}: moved or deleted while a run writes there, allowed is to "
    "leave it; start again with --workdir where it is now"
  )


def make_directory(path: pathlib.Path) -> None:
  """Creates a directory, with its parents, and tries to write to it.

  Raises:
    InputError: it can't be created or written to.
  """
  with write_errors(path):
    path.mkdir(parents=True, exist_ok=True)
    if not is_remote(path):
      with tempfile.TemporaryFile(dir=path):
        pass


def has_content(path: pathlib.Path) -> bool:
  """Returns whether a file is there and not empty."""
  return path.exists() and bool(path.read_bytes())


def contents(folder: pathlib.Path) -> list[pathlib.Path]:
  """Returns all files in a folder, and in those within it; none if missing."""
  if not folder.is_dir():
    return []
  files = []
  for path in folder.iterdir():  # epath has no recursive pattern for gs://
    files += contents(path) if path.is_dir() else [path]
  return files


def remove_folder(folder: pathlib.Path) -> None:
  """Removes a folder with all that lies in it, if it is there.

  Raises:
    InputError: the file system or the storage refuses.
  """
  with write_errors(folder):
    epath.Path(folder).rmtree(missing_ok=True)


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
  """Writes a file, and its folder, so that no half of it is ever seen.

  Raises:
    InputError: the file can't be written.
  """
  path = epath.Path(path)
  with write_errors(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    if is_remote(path):  # an object is written whole
      path.write_bytes(content)
      return
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
      with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
      partial.replace(path)
    except OSError:
      partial.unlink(missing_ok=True)  # a full disk needs the space
      raise


def write_json(path: str | os.PathLike, value: Any) -> None:
  """Writes a JSON file like `write_bytes`; NaN and infinity are refused."""
  text = json.dumps(value, indent=2, allow_nan=False)
  write_bytes(path, text.encode() + b"\n")


def write_npz(
  path: str | os.PathLike, arrays: Mapping[str, np.ndarray]
) -> None:
  """Writes a compressed .npz file like `write_bytes`; no objects in it."""
  content = io.BytesIO()
  np.savez_compressed(content, allow_pickle=False, **arrays)
  write_bytes(path, content.getvalue())


_ANEW = "delete it to make it anew"


def read_json(path: str | os.PathLike, remedy: str = _ANEW) -> Any:
  """Reads a JSON file.

  Args:
    path: of the file.
    remedy: what helps where it is damaged.

  Raises:
    InputError: the file is missing, unreadable or damaged.
  """
  path = epath.Path(path)
  try:
    return errors.parse_json(path.read_bytes(), "damaged JSON")
  except OSError as error:
    if is_remote(path) and passes(error):
      raise
    raise errors.InputError(f"{path}: {error.strerror or error}") from error
  except errors.InputError as error:
    raise errors.InputError(
      f"{path}: got {error}; restore the file, or {remedy}"
    ) from error


def read_text(path: str | os.PathLike) -> str:
  """Reads a file that a user wrote.

  Raises:
    InputError: it is missing, unreadable or not UTF-8.
  """
  try:
    return pathlib.Path(path).read_text(encoding="utf-8")
  except (OSError, ValueError) as error:
    reason = getattr(error, "strerror", None) or error
    raise errors.InputError(f"{path}: can't be read: {reason}") from error


def write_record(path: str | os.PathLike, value: Mapping[str, Any]) -> None:
  """Writes a JSON object like `write_json`, with the digest of its content."""
  value = json.loads(json.dumps(value))  # as it will be read
  write_json(path, {**value, _DIGEST: record_digest(value)})


def read_record(path: str | os.PathLike, remedy: str = _ANEW) -> dict[str, Any]:
  """Reads what `write_record` wrote, and nothing else.

  Args:
    path: of the file.
    remedy: what helps where it is damaged.

  Raises:
    InputError: the file is missing, unreadable, damaged or was changed.
  """
  value = read_json(path, remedy)
  if not isinstance(value, dict) or value.pop(_DIGEST, None) != record_digest(
    value
  ):
    raise errors.InputError(
      f"{path}: got another content than was written there, or another "
      f"version's; restore the file, or {remedy}"
    )
  return value


def record_digest(value: Any) -> str:
  """Returns the SHA-256 of what JSON can hold, in hexadecimal."""
  text = json.dumps(value, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def read_bits(path: pathlib.Path, sha256: str, count: int) -> np.ndarray:
  """Returns rows of truth values that a .npy file packs, bool `[S, count]`.

  Raises:
    InputError: the file is missing or not the one of this digest.
  """
  content = path.read_bytes() if path.exists() else b""
  if hashlib.sha256(content).hexdigest() != sha256:
    raise errors.InputError(
      f"{path}: missing, or got another content than was written there; "
      f"restore the file, or delete {path.parents[1]} to measure anew"
    )
  return np.unpackbits(np.load(io.BytesIO(content)), 1, count).view(bool)


def digest(path: str | os.PathLike) -> str:
  """Returns the SHA-256 of a file, in hexadecimal."""
  with epath.Path(path).open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


class Lines:
  """A file of lines; a crash can cut the last line only.

  gs:// storage can't append: lines are gathered, and `flush` writes them all.
  """

  def __init__(self, path: pathlib.Path):
    """Opens the file, which is made if need be."""
    self._path = path
    self._remote = is_remote(path)
    if self._remote:
      self._content = path.read_bytes() if path.exists() else b""
    else:
      path.open("ab").close()

  def read(self) -> list[bytes]:
    """Returns all lines with their ends."""
    content = self._content if self._remote else self._path.read_bytes()
    return content.splitlines(keepends=True)

  def rewrite(self, lines: Sequence[bytes]) -> None:
    """Replaces all lines."""
    self._content = b"".join(lines)
    write_bytes(self._path, self._content)

  def append(self, line: bytes) -> None:
    """Adds a line, in one unbuffered write."""
    if self._remote:
      self._content += line
      return
    with self._path.open("ab", buffering=0) as file:
      if file.write(line) < len(line):  # a disk that is just full
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  def flush(self) -> None:
    """Makes sure that all lines are written."""
    if self._remote:
      self._path.write_bytes(self._content)


@contextlib.contextmanager
def locked(folder: pathlib.Path) -> Iterator[None]:
  """Holds a folder, made if need be, for this process alone until its end.

  gs:// storage has no locks: a folder there is one run's.

  Raises:
    InputError: another process holds it, or it can't be written to.
  """
  if is_remote(folder):
    # Without a network it takes a minute to know that there is none.
    terminal.say(f"asking for {folder}", sys.stdout)
  make_directory(folder)
  if is_remote(folder):
    yield
    return
  with contextlib.ExitStack() as stack:
    with write_errors(folder / "lock"):
      file = stack.enter_context((folder / "lock").open("a"))
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
    _held[folder / "lock"] = file
    stack.callback(_held.pop, folder / "lock")
    _remove_partial(folder)
    yield


def _remove_partial(folder):
  """Removes what writes that were killed have left in a locked folder."""
  for path in folder.rglob("*.tmp"):
    if _PARTIAL.fullmatch(path.name) and path.is_file():
      with write_errors(path):
        path.unlink(missing_ok=True)
