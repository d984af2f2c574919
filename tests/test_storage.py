"""Files of a run: in a folder, and in gs:// storage, of an emulator of it.

The emulator and gcsfs come with the extra `gcs`; its tests are slow ones.
"""

import contextlib
import fcntl
import importlib.util
import json
import logging
import multiprocessing
import os
import pathlib
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp
import pytest
import short_run

from hawis_jax import errors
from hawis_jax.runtime import checkpoint
from hawis_jax.runtime import storage
from hawis_jax.runtime.metrics import Metrics


def test_json_errors_name_the_file(tmp_path):
  path = tmp_path / "result.json"
  with pytest.raises(errors.InputError, match=r"result\.json: No such file"):
    storage.read_json(path)
  path.write_text(json.dumps({"a": [1, 2, 3]})[:-3])
  with pytest.raises(errors.InputError, match=r"result\.json: got damaged"):
    storage.read_json(path)
  with pytest.raises(errors.InputError, match="can't write"):
    storage.write_json(path / "below.json", {})
  with pytest.raises(ValueError, match="not JSON compliant"):
    storage.write_json(path, {"a": float("nan")})


def test_text_that_cannot_be_read(tmp_path):
  path = tmp_path / "device.json"
  for content in (None, b"\xff\xfe"):
    if content:
      path.write_bytes(content)
    with pytest.raises(errors.InputError, match=r"device\.json: can't be read"):
      storage.read_text(path)
  path.write_text("µ", encoding="utf-8")
  assert storage.read_text(path) == "µ"


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
  path = tmp_path / "result.json"
  storage.write_json(path, 1)

  def refuse(*_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(os, "fsync", refuse)
  with pytest.raises(errors.InputError, match="No space left"):
    storage.write_json(path, 2)
  assert storage.read_json(path) == 1
  assert list(tmp_path.iterdir()) == [path]


def test_a_record_is_what_was_written(tmp_path):
  """Every byte of it: none can be changed without notice."""
  path = tmp_path / "result.json"
  value = {"correct": [1, 2], "share": 0.1 + 0.2, "name": "µ", "none": None}
  storage.write_record(path, value)
  assert storage.read_record(path) == value
  content = path.read_bytes()
  for place in range(len(content)):
    flipped = bytes([content[place] ^ 1])
    path.write_bytes(content[:place] + flipped + content[place + 1 :])
    try:
      assert storage.read_record(path) == value  # another kind of space
    except errors.InputError as error:
      assert str(path) in str(error) and "\n" not in str(error)
  path.write_text("[1]")
  with pytest.raises(errors.InputError, match="another content"):
    storage.read_record(path)


def test_arrays_come_back(tmp_path):
  storage.write_npz(tmp_path / "a" / "x.npz", {"a": np.arange(3.0)})
  with np.load(tmp_path / "a" / "x.npz", allow_pickle=False) as arrays:
    np.testing.assert_array_equal(arrays["a"], np.arange(3.0))
  assert storage.contents(tmp_path) == [tmp_path / "a" / "x.npz"]
  assert storage.contents(tmp_path / "b") == []


def test_lines(tmp_path):
  lines = storage.Lines(tmp_path / "lines")
  lines.append(b"1\n")
  lines.append(b"2\n")
  assert lines.read() == [b"1\n", b"2\n"]
  lines.rewrite([b"2\n"])
  lines.append(b"3")
  lines.flush()
  assert storage.Lines(tmp_path / "lines").read() == [b"2\n", b"3"]


def _hold(folder, connection):
  with storage.locked(folder):
    connection.send("held")
    time.sleep(600)


def test_a_folder_is_one_process_at_a_time(tmp_path):
  """Until its end, however that comes."""
  folder = tmp_path / "run"
  here, there = multiprocessing.Pipe()
  context = multiprocessing.get_context("spawn")
  owner = context.Process(target=_hold, args=(folder, there))
  owner.start()
  try:
    assert here.poll(60) and here.recv() == "held"
    with pytest.raises(errors.InputError, match="another process is running"):
      with storage.locked(folder):
        pass
  finally:
    owner.kill()
    owner.join()
  with storage.locked(folder):
    pass


def test_a_file_system_without_locks(tmp_path, monkeypatch):
  def refuse(*_):
    raise OSError(37, "No locks available")

  monkeypatch.setattr(fcntl, "flock", refuse)
  with pytest.raises(errors.InputError, match="can't lock files"):
    with storage.locked(tmp_path):
      pass


@pytest.mark.parametrize(
  "error, passes",
  [
    (TimeoutError(), True),
    (ConnectionResetError(), True),
    (ValueError("UNAVAILABLE: Error writing gs://tests/x"), True),
    (ValueError("PERMISSION_DENIED: Error writing gs://tests/x"), False),
    (OSError("Forbidden: b/tests/o\nno storage.objects.create"), False),
    (FileNotFoundError("b/tests"), False),
  ],
)
def test_what_passes_and_what_does_not(error, passes):
  """Another try may succeed; where not, it is one line."""
  with pytest.raises(type(error) if passes else errors.InputError) as info:
    with storage.write_errors("gs://tests/run"):
      raise error
  assert storage.passes(error) == passes
  assert passes or "\n" not in str(info.value)


def test_mistakes_of_ours_are_not_hidden():
  with pytest.raises(AttributeError):
    with storage.write_errors("gs://tests/run"):
      None.missing  # noqa: B018


def test_requests_that_are_given_up_print_a_line(caplog):
  """It is gcsfs that logs them, with two tracebacks each."""
  with checkpoint.without_leftovers():
    logging.getLogger("gcsfs").error("out of retries", exc_info=OSError("x"))
  (record,) = caplog.records
  assert (record.getMessage(), record.exc_info) == ("out of retries", None)


@pytest.mark.parametrize(
  "address",
  ["gs://", "gs://tests", "gs://tests/", "gs://tests/run[1]", "s3://tests/run"],
)
def test_addresses(address, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(errors.InputError) as info:
    storage.folder_path(address, "--workdir")
  assert str(info.value).startswith(
    f"--workdir: got '{address}', allowed is a folder, "
  )
  assert not list(tmp_path.iterdir())


def test_what_to_install(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(errors.InputError, match=r"install 'hawis_jax\[gcs\]'"):
    storage.folder_path("gs://tests/run", "--workdir")


# From here on: gs:// storage.


@pytest.fixture(scope="session")
def emulator():
  """Environment variables of a server with an empty bucket."""
  for needed in ("gcsfs", "gcp_storage_emulator"):
    pytest.importorskip(needed)
  import gcs_server

  with gcs_server.running() as variables:
    yield variables


@pytest.fixture
def folder(emulator, request):
  """An empty folder of the bucket."""
  name = f"{request.node.originalname}-{time.monotonic_ns()}"
  return storage.folder_path(f"gs://tests/{name}/run", "--workdir")


@pytest.fixture
def start(emulator, data_dir):
  """Starts the short run, as processes of their own."""
  launcher = pathlib.Path(__file__).parents[1] / "launch/local_multiprocess.sh"

  def call(workdir, processes=1, **fields):
    values = {**short_run.SHORT, "data.data_dir": data_dir, **fields}
    command = [sys.executable, "-m", "hawis_jax.main"]
    if processes > 1:
      command = [launcher, f"--processes={processes}", "--devices=2", "--"]
    path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.Popen(
      [
        *(*command, f"--config={short_run.CONFIG}", f"--workdir={workdir}"),
        *(f"--config.{name}={value}" for name, value in values.items()),
      ],
      env={**os.environ, **emulator, "PATH": path},
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )

  return call


def _fetch(folder, target):
  """Copies a folder of the bucket."""
  for path in storage.contents(folder):
    storage.write_bytes(target / path.relative_to(folder), path.read_bytes())
  return target


def _state(seed):
  weights = jax.random.normal(jax.random.key(seed), (70, 30))
  return {"weights": weights, "count": jnp.int32(seed), "score": seed / 3}


def _same(got, expected):
  jax.tree.map(np.testing.assert_array_equal, got, expected)


@pytest.mark.slow
def test_a_killed_run_ends_as_one_in_a_folder(
  start, run, finished, folder, tmp_path
):
  """Killed in the middle of the search, it is started again."""
  process = start(folder)
  try:
    while not (folder / "search" / "2" / "commit_success.txt").exists():
      assert process.poll() is None, process.stdout.read()
      time.sleep(0.05)
  finally:
    process.kill()
    process.communicate()  # closes its output
  assert not (folder / "search" / "result.json").exists()
  assert run(folder) == 0
  got = _fetch(folder, tmp_path / "fetched")
  short_run.same(got, finished)
  report = json.loads((got / "report" / "report.json").read_text())
  assert all((got / "report" / name).exists() for name in report["files"])
  # All is there: nothing is repeated.
  assert run(folder) == 0
  again = _fetch(folder, tmp_path / "again")
  assert short_run.metrics(again) == short_run.metrics(got)


@pytest.mark.slow
def test_two_processes(start, folder, tmp_path):
  """They save and restore; gathered, it is what they leave in a folder."""
  fields = {"train.nets": "('baseline_1x',)", "robustness.chips": 2}
  for workdir in (tmp_path / "local", folder, folder):  # again: nothing to do
    process = start(workdir, processes=2, **fields)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
  got, local = _fetch(folder, tmp_path / "fetched"), tmp_path / "local"
  result = "robustness/result.json"
  assert (got / result).read_text() == (local / result).read_text()
  sums = [
    ocp.metadata(place / "train/baseline_1x/8").custom_metadata["checksums"]
    for place in (got, local)
  ]
  assert sums[0] and sums[0] == sums[1]
  assert short_run.metrics(got) == short_run.metrics(local)


@pytest.mark.slow
def test_a_storage_that_cannot_be_reached(run, folder, monkeypatch, capsys):
  """Status 75 and one line, whatever is asked for; later it goes on."""
  import gcsfs
  from gcsfs import retry

  stages = "--stages=pretrain"

  async def overloaded(*_, **__):
    raise retry.HttpError({"code": 503, "message": "backend error"})

  def refuses():
    with monkeypatch.context() as patch:
      patch.setattr(gcsfs.GCSFileSystem, "_call", overloaded)
      assert run(folder, stages) == 75
    error = capsys.readouterr().err
    assert error.startswith("stopped: the storage can't be reached: ")
    assert error.endswith("the same command goes on\n")
    assert error.count("\n") == 1

  refuses()
  assert run(folder, stages) == 0
  capsys.readouterr()
  before = {str(p): p.read_bytes() for p in storage.contents(folder)}
  refuses()
  assert run(folder, stages) == 0
  after = {str(p): p.read_bytes() for p in storage.contents(folder)}
  assert after == before


@pytest.mark.slow
def test_a_bucket_that_is_not_there(emulator, run, capsys):
  assert run("gs://elsewhere/run") == 2
  assert short_run.one_line(capsys).startswith(
    "error: can't write gs://elsewhere/run"
  )


@pytest.mark.slow
def test_checkpoints(folder, rng, caplog):
  """Cut off, damaged or in a folder beside them: as in a file system."""
  with checkpoint.Checkpoints(folder / "best", keep=1) as best:
    best.save(5, _state(5))
  (folder / "notes" / "mine.txt").write_bytes(b"mine")
  with checkpoint.Checkpoints(folder) as checkpoints:
    assert checkpoints.restore(_state(0)) is None
    for step in (2, 4, 6, 8):
      checkpoints.save(step, _state(step))
    checkpoints.save(8, _state(7))  # in the place of that
  (folder / "8" / "commit_success.txt").unlink()  # cut off
  with checkpoint.Checkpoints(folder) as checkpoints:
    assert not (folder / "8").exists()
    assert checkpoints.latest_step() == 6
    checkpoints.save(8, _state(9))
    _same(checkpoints.restore(_state(0))[1], _state(9))
    path = max(
      (folder / "8").glob("state/ocdbt*/d/*"), key=lambda p: p.stat().length
    )
    content = bytearray(path.read_bytes())
    content[int(rng.integers(len(content)))] ^= 1
    path.write_bytes(content)
    step, state = checkpoints.restore(_state(0))
    assert step in (6, 8)
    _same(state, _state({6: 6, 8: 9}[step]))
    assert step == 8 or f"skipping a damaged checkpoint: {folder}/8" in (
      caplog.text
    )
  with checkpoint.Checkpoints(folder / "best") as best:
    _same(best.restore(_state(0))[1], _state(5))
  assert (folder / "notes" / "mine.txt").read_bytes() == b"mine"


@pytest.mark.slow
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
