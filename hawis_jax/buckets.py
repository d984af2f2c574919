"""Folders in Google Cloud Storage, for machines that share no file system.

Paths are `etils.epath` ones, which have pathlib's methods; gcsfs, of the extra
`gcs`, makes the requests. An object is written whole or not at all, but
nothing can be renamed at once, appended to or locked. So a checkpoint is what
has its seal, which is written last; lines are gathered and the object that
holds them is written anew; and a lock is an object whose owner changes it all
the time.
"""

from collections.abc import Iterator, Sequence
import contextlib
import importlib.util
import json
import os
import sys
import threading
import time
import uuid

from etils import epath
import fsspec

from hawis_jax import errors

PREFIX = "gs://"
_BEAT = 20.0  # time between two changes of a lock [s]
_PATIENCE = 4 * _BEAT  # time without a change after which its owner is dead [s]
_POLL = 1.0  # [s]


def holds(path: str | os.PathLike) -> bool:
  """Whether a path is one of a bucket."""
  return os.fspath(path).startswith(PREFIX)


def folder(address: str, field: str) -> epath.Path:
  """Returns the path of an address such as "gs://bucket/runs/digits".

  Raises:
    InputError: it has no bucket or no name in it, or one that is a pattern;
      gcsfs is missing.
  """
  bucket, _, name = address.removeprefix(PREFIX).partition("/")
  if not bucket or not name.strip("/"):
    raise errors.InputError(
      f"{field}: got {address!r}, allowed is gs://<bucket>/<folder>"
    )
  if set(address) & set("*?[]"):  # gcsfs would take them for patterns
    raise errors.InputError(
      f"{field}: got {address!r}, allowed is a name without any of *?[]"
    )
  if importlib.util.find_spec("gcsfs") is None:
    raise errors.InputError(
      f"{field}: got {address!r}, for which gcsfs is missing: pip install "
      "'hawis_jax[gcs]'; or give a folder of this machine's file system"
    )
  # Else listings are kept, which others' writes do not change.
  fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
  return epath.Path(address.rstrip("/"))


def check_writable(path: epath.Path) -> None:
  """Writes to a folder, and deletes what it wrote; raises what goes wrong."""
  probe = path / f"probe-{uuid.uuid4().hex}"
  probe.write_bytes(b"")
  probe.unlink()


class Lines:
  """An object of lines; as `files.Lines`."""

  def __init__(self, path: epath.Path):
    """Reads what is there."""
    self._path = path
    self._content = path.read_bytes() if path.exists() else b""
    self._is_written = path.exists()

  def read(self) -> list[bytes]:
    """Returns all lines with their ends."""
    return self._content.splitlines(keepends=True)

  def rewrite(self, lines: Sequence[bytes]) -> None:
    """Replaces all lines."""
    self._content = b"".join(lines)
    self._is_written = False
    self.flush()

  def append(self, line: bytes) -> None:
    """Adds a line, which `flush` will write."""
    self._content += line
    self._is_written = False

  def flush(self) -> None:
    """Writes the object, if there is anything new."""
    if not self._is_written:
      self._path.write_bytes(self._content)
      self._is_written = True


@contextlib.contextmanager
def locked(path: epath.Path) -> Iterator[None]:
  """Holds a folder for this process alone.

  The object `lock` tells its owner, who changes it every 20 s. Nobody's clock
  matters: who finds a lock waits whether it changes, and takes it if it does
  not for 80 s, as after a kill. Who was stopped for so long and finds the lock
  taken ends at once, since another one is at work.

  Raises:
    InputError: another process holds it.
  """
  lock, owner = path / "lock", uuid.uuid4().hex
  _take(path, lock, owner)
  ended = threading.Event()
  beats = threading.Thread(
    target=_beat, args=(path, lock, owner, ended), daemon=True
  )
  beats.start()
  try:
    yield
  finally:
    ended.set()
    beats.join()
    if _owner(_content(lock)) == owner:
      lock.unlink(missing_ok=True)


def _take(path, lock, owner):
  others = errors.InputError(
    f"{path}: another process is running in it, allowed is one at a time"
  )
  if _create(lock, owner):
    return
  found, since = _content(lock), time.monotonic()
  print(
    f"{path}: got the lock of another process, which may have been killed; "
    f"waiting {_PATIENCE:.0f} s for a sign of life",
    file=sys.stderr,
    flush=True,
  )
  while found and time.monotonic() - since < _PATIENCE:
    time.sleep(_POLL)
    now = _content(lock)
    if now is not None and now != found:
      raise others
    found = now  # None: it has ended
  lock.unlink(missing_ok=True)
  if not _create(lock, owner):
    raise others
  # Who found the same lock dead may just have deleted this one for it.
  time.sleep(2 * _POLL)
  if _owner(_content(lock)) != owner:
    raise others


def _create(lock, owner):
  """Makes the lock, unless there is one; says whether it did."""
  try:
    fsspec.filesystem("gcs").pipe_file(
      os.fspath(lock), _beaten(owner, 0), mode="create"
    )
  except FileExistsError:
    return False
  return True


def _beat(path, lock, owner, ended):
  """Changes the lock until the run ends."""
  number = 0
  while not ended.wait(_BEAT):
    number += 1
    # A bucket that can't be reached now may be at the next beat.
    with contextlib.suppress(Exception):
      if _owner(_content(lock)) != owner:
        print(
          f"error: {path}: another process has taken this run over while it "
          "was stopped; ended, nothing more is written",
          file=sys.stderr,
          flush=True,
        )
        os._exit(2)
      lock.write_bytes(_beaten(owner, number))


def _beaten(owner, number):
  return json.dumps({"owner": owner, "beat": number}).encode()


def _content(lock):
  try:
    return lock.read_bytes()
  except FileNotFoundError:
    return None


def _owner(content):
  return json.loads(content)["owner"] if content else None
