"""Runs in a bucket, of an emulator of Google Cloud Storage in this process."""

import contextlib
import importlib.util
import json
import os
import pathlib
import queue
import subprocess
import sys
import threading
import time

import aiohttp
import fsspec
import gcsfs
from gcsfs import retry
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import short_run

from hawis_jax import buckets
from hawis_jax import errors
from hawis_jax.runtime import checkpoint
from hawis_jax.runtime import storage
from hawis_jax.runtime.metrics import Metrics


@pytest.fixture(scope="session")
def emulator():
  """Environment variables of a server with an empty bucket."""
  gcs_server = pytest.importorskip("gcs_server")
  with gcs_server.running() as variables:
    yield variables


@pytest.fixture
def folder(emulator, request):
  """An empty folder of the bucket."""
  name = request.node.originalname
  address = f"gs://tests/{name}-{time.monotonic_ns()}/run"
  return storage.folder_path(address, "--workdir")


@pytest.fixture
def ended(monkeypatch):
  """Locks that are found dead soon; statuses that processes would end with."""
  monkeypatch.setattr(buckets, "_BEAT", 0.2)
  monkeypatch.setattr(buckets, "_SILENCE", 3.0)
  monkeypatch.setattr(buckets, "_PATIENCE", 5.0)
  monkeypatch.setattr(buckets, "_POLL", 0.05)
  statuses = queue.Queue()
  monkeypatch.setattr(buckets.os, "_exit", statuses.put)
  yield statuses
  assert statuses.empty()


def _fetch(folder, target):
  """Copies a folder of the bucket."""
  for path in storage.contents(folder):
    copy = target / path.relative_to(folder)
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_bytes(path.read_bytes())
  return target


def _started(emulator, folder, data_dir):
  """The short run, as a process of its own."""
  values = {**short_run.SHORT, "data.data_dir": data_dir}
  return subprocess.Popen(
    [
      sys.executable,
      "-m",
      "hawis_jax.main",
      f"--config={short_run.CONFIG}",
      f"--workdir={folder}",
      *(f"--config.{name}={value}" for name, value in values.items()),
    ],
    env={**os.environ, **emulator},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def test_a_killed_run_in_a_bucket_ends_as_one_in_a_folder(
  emulator, run, finished, folder, data_dir, tmp_path, ended, capfd
):
  """Killed in the middle of the search, it is started again."""
  process = _started(emulator, folder, data_dir)
  try:
    while not (folder / "search" / "2" / "files.json").exists():
      assert process.poll() is None, process.stdout.read()
      time.sleep(0.05)
  finally:
    process.kill()
    process.communicate()  # closes its output
  assert not (folder / "search" / "result.json").exists()
  assert (folder / "lock").exists()
  assert run(folder) == 0
  assert "for a sign of life" in capfd.readouterr().err
  assert not (folder / "lock").exists()
  got = _fetch(folder, tmp_path / "fetched")
  expected = short_run.state(finished)
  for name, value in short_run.state(got).items():
    assert value == expected[name], name
  report = json.loads((got / "report" / "report.json").read_text())
  assert all((got / "report" / name).exists() for name in report["files"])
  # All is there: nothing is repeated.
  lines = short_run.metrics(got)
  assert run(folder) == 0
  assert short_run.metrics(_fetch(folder, tmp_path / "again")) == lines


@pytest.mark.slow
def test_two_processes_share_a_bucket(emulator, folder, data_dir, tmp_path):
  """They save and restore; gathered, it is what they leave in a folder."""
  values = {
    **short_run.SHORT,
    "data.data_dir": data_dir,
    "train.nets": "('baseline_1x',)",
    "robustness.chips": 2,
  }
  flags = [f"--config.{name}={value}" for name, value in values.items()]
  launcher = pathlib.Path(__file__).parents[1] / "launch/local_multiprocess.sh"

  def start(workdir):
    command = [launcher, "--processes=2", "--devices=2", "--"]
    command += [f"--config={short_run.CONFIG}", f"--workdir={workdir}", *flags]
    path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
      command,
      env={**os.environ, **emulator, "PATH": path},
      capture_output=True,
      text=True,
    )
    assert done.returncode == 0, done.stderr

  start(tmp_path / "local")
  start(folder)
  got = _fetch(folder, tmp_path / "fetched")
  for name in ("robustness/result.json", "train/baseline_1x/8/leaves.json"):
    assert (got / name).read_text() == (tmp_path / "local" / name).read_text()
  assert short_run.metrics(got) == short_run.metrics(tmp_path / "local")
  start(folder)  # there is nothing left to do
  assert short_run.metrics(_fetch(folder, tmp_path / "again")) == (
    short_run.metrics(got)
  )


def test_one_run_at_a_time(folder, ended):
  with storage.locked(folder):
    with pytest.raises(errors.InputError, match="another process is running"):
      with storage.locked(folder):
        pass
    time.sleep(buckets._PATIENCE)  # the time of a dead one
    with pytest.raises(errors.InputError, match="another process is running"):
      with storage.locked(folder):
        pass
  with storage.locked(folder):  # it was given back
    pass
  assert not (folder / "lock").exists()


def test_a_dead_lock_is_taken_for_as_long_as_needed(folder, ended):
  (folder / "lock").write_bytes(b'{"owner": "dead", "beat": 7}')
  with storage.locked(folder):
    time.sleep(buckets._SILENCE)
    assert b"dead" not in (folder / "lock").read_bytes()


def test_of_two_that_find_a_dead_lock_one_gets_it(folder, ended):
  (folder / "lock").write_bytes(b'{"owner": "dead", "beat": 7}')
  held, refused = [], []
  done = threading.Event()

  def try_it():
    try:
      with storage.locked(folder):
        held.append(threading.get_ident())
        done.wait(20)
    except errors.InputError:
      refused.append(threading.get_ident())
      done.set()

  threads = [threading.Thread(target=try_it) for _ in range(2)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len(held) == len(refused) == 1


def test_a_run_whose_lock_was_taken_ends_at_once(folder, ended):
  other = b'{"owner": "another", "beat": 0}'
  with storage.locked(folder):
    (folder / "lock").write_bytes(other)
    assert ended.get(timeout=60) == 2
  assert (folder / "lock").read_bytes() == other


@pytest.mark.parametrize("harm", ["hangs", "fails"])
def test_a_run_that_is_cut_off_ends_before_another_begins(
  folder, ended, monkeypatch, harm
):
  """Its requests hang, or fail: it counts by itself."""
  answer, done = buckets._content, threading.Event()

  def silent(lock):
    if harm == "hangs":
      done.wait()
    raise aiohttp.ClientOSError("no network")

  with storage.locked(folder):
    monkeypatch.setattr(buckets, "_content", silent)
    assert ended.get(timeout=60) == 75
    monkeypatch.setattr(buckets, "_content", answer)
    assert (folder / "lock").exists()
    done.set()


def test_an_owner_ends_before_others_begin():
  """The times that users have, one look at the clock included."""
  assert buckets._BEAT < buckets._SILENCE
  assert buckets._SILENCE + buckets._POLL < buckets._PATIENCE


def test_an_answer_that_was_lost(folder, ended, monkeypatch):
  """The lock was made by a request whose answer did not come."""
  create = buckets._create

  def twice(lock, owner):
    assert create(lock, owner)
    return create(lock, owner)

  monkeypatch.setattr(buckets, "_create", twice)
  with storage.locked(folder):
    pass


def _state(seed):
  return {
    "weights": jax.random.normal(jax.random.key(seed), (70, 30)),
    "count": jnp.int32(seed),
    "score": seed / 3,
  }


def _same(got, expected):
  jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_checkpoints(folder):
  with checkpoint.Checkpoints(folder, keep=2) as checkpoints:
    assert checkpoints.restore(_state(0)) is None
    for step in (2, 4, 6):
      checkpoints.save(step, _state(step))
    checkpoints.save(6, _state(7))  # in the place of that
    step, state = checkpoints.restore(_state(0))
    assert step == 6
    _same(state, _state(7))
  assert {p.name for p in folder.iterdir()} == {"4", "6"}


def test_a_save_that_was_cut_off_is_none(folder):
  with checkpoint.Checkpoints(folder) as checkpoints:
    checkpoints.save(2, _state(2))
    checkpoints.save(4, _state(4))
  (folder / "4" / "files.json").unlink()
  with checkpoint.Checkpoints(folder) as checkpoints:
    assert not (folder / "4").exists()
    assert checkpoints.latest_step() == 2
    checkpoints.save(4, _state(5))
    _same(checkpoints.restore(_state(0))[1], _state(5))


@pytest.mark.parametrize("harm", ["flip", "lose"])
def test_damaged_checkpoints_are_skipped(folder, harm, caplog):
  with checkpoint.Checkpoints(folder) as checkpoints:
    checkpoints.save(2, _state(2))
    checkpoints.save(4, _state(4))
    checkpoints.wait()
    path = max(storage.contents(folder / "4"), key=lambda p: p.stat().length)
    if harm == "flip":
      content = bytearray(path.read_bytes())
      content[np.random.default_rng().integers(len(content))] ^= 1
      path.write_bytes(content)
    else:
      path.unlink()
    step, state = checkpoints.restore(_state(0))
    assert step == 2
    _same(state, _state(2))
    assert str(path) in caplog.text


def test_lines_are_written_where_others_rely_on_them(folder):
  metrics = Metrics(folder)
  with contextlib.closing(metrics):
    progress = metrics.stage("pretrain", 4)
    progress.report(1, {"loss": 1.0})
    metrics.flush()
    progress.report(2, {"loss": 0.5})
    assert len((folder / "metrics.jsonl").read_bytes().splitlines()) == 1
  assert len((folder / "metrics.jsonl").read_bytes().splitlines()) == 2
  with contextlib.closing(Metrics(folder)) as metrics:
    metrics.stage("pretrain", 4, start=1)
  (line,) = (folder / "metrics.jsonl").read_bytes().splitlines()
  assert json.loads(line)["step"] == 1


async def _overloaded(*_, **__):
  raise retry.HttpError({"code": 503, "message": "backend error"})


def _fails(patch, *paths):
  """Lets GET requests of some paths, as gcsfs writes them, fail."""
  call = gcsfs.GCSFileSystem._call

  async def sometimes(self, method, path, *args, **kwargs):
    if method == "GET" and path in paths:
      raise aiohttp.ClientOSError("no network")
    return await call(self, method, path, *args, **kwargs)

  patch.setattr(gcsfs.GCSFileSystem, "_call", sometimes)


_LISTINGS = ("b/{}/o",)


def test_a_network_that_is_down_is_no_missing_checkpoint(folder, monkeypatch):
  with checkpoint.Checkpoints(folder) as checkpoints:
    checkpoints.save(2, _state(2))
    checkpoints.wait()
    with monkeypatch.context() as patch:
      _fails(patch, *_LISTINGS)
      with pytest.raises(aiohttp.ClientOSError):
        checkpoints.restore(_state(0))
    with monkeypatch.context() as patch:
      patch.setattr(files, "digest", _no_network)
      with pytest.raises(aiohttp.ClientOSError):
        checkpoints.restore(_state(0))
    assert checkpoints.restore(_state(0))[0] == 2


def _no_network(*_):
  raise aiohttp.ClientOSError("no network")


def test_a_network_that_is_down_ends_a_run_that_goes_on_later(
  run, folder, ended, monkeypatch, capsys
):
  stages = "--stages=pretrain"
  with monkeypatch.context() as patch:
    patch.setattr(gcsfs.GCSFileSystem, "_call", _overloaded)
    assert run(folder, stages) == 75
  error = capsys.readouterr().err
  assert error.startswith("stopped: the bucket can't be reached: backend error")
  assert error.endswith("the same command goes on\n")
  assert run(folder, stages) == 0
  before = {str(path): path.read_bytes() for path in storage.contents(folder)}
  with monkeypatch.context() as patch:
    _fails(patch, *_LISTINGS)
    assert run(folder, stages) == 75
  assert run(folder, stages) == 0
  after = {str(path): path.read_bytes() for path in storage.contents(folder)}
  assert after == before


@pytest.mark.parametrize(
  ("error", "passes"),
  [
    (retry.HttpError({"code": 503}), True),
    (retry.HttpError({"code": 429}), True),
    (retry.HttpError({"code": 400}), False),
    (OSError("Forbidden: b/tests/o\nno storage.objects.create"), False),
    (FileNotFoundError("b/tests"), False),
    (TimeoutError(), True),
    (ConnectionResetError(), True),
    (ValueError("UNAVAILABLE: Error writing gs://tests/x"), True),
    (ValueError("PERMISSION_DENIED: Error writing gs://tests/x"), False),
  ],
)
def test_what_passes_and_what_does_not(folder, error, passes):
  expected = errors.UnreachableError if passes else errors.InputError
  with pytest.raises(expected):
    with storage.write_errors(folder):
      raise error


def test_mistakes_of_ours_are_not_hidden(folder):
  with pytest.raises(AttributeError):
    with storage.write_errors(folder):
      None.missing  # noqa: B018


@pytest.mark.parametrize(
  ("address", "message"),
  [
    ("gs://", "allowed is gs://<bucket>/<folder>"),
    ("gs://tests", "allowed is gs://<bucket>/<folder>"),
    ("gs://tests/", "allowed is gs://<bucket>/<folder>"),
    ("gs://tests/run[1]", "without any of *?[]"),
    ("s3://tests/run", "allowed is a folder"),
  ],
)
def test_addresses(run, address, message, capsys):
  assert run(address) == 2
  error = capsys.readouterr().err
  assert error.startswith(f"error: --workdir: got '{address}'")
  assert message in error and error.count("\n") == 1
  assert not pathlib.Path("gs:").exists()


def test_a_bucket_that_is_not_there(emulator, run, capsys):
  assert run("gs://elsewhere/run") == 2
  error = capsys.readouterr().err.splitlines()[-1]
  assert error.startswith("error: can't write gs://elsewhere/run: ")


def test_what_to_install(run, monkeypatch, capsys):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  assert run("gs://tests/run") == 2
  assert "pip install 'hawis_jax[gcs]'" in capsys.readouterr().err


def test_listings_are_not_kept(folder, emulator):
  """Else what another process writes would not be seen."""
  (folder / "a").write_bytes(b"")
  assert [p.name for p in folder.iterdir()] == ["a"]
  other = fsspec.filesystem(
    "gcs", skip_instance_cache=True, use_listings_cache=True
  )
  other.pipe_file(str(folder / "b"), b"")
  assert {p.name for p in folder.iterdir()} == {"a", "b"}
