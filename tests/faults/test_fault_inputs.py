"""Numbers, clocks, data and other input that go wrong."""

import contextlib
import errno
import functools
import itertools
import pathlib
import pickle
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
from PIL import Image
import pytest
import short_run

from hawis_jax import data
from hawis_jax import errors
from hawis_jax.config import settings
from hawis_jax.pipeline import results
from hawis_jax.pipeline.experiment import prepare
from hawis_jax.runtime import storage
from hawis_jax.runtime import terminal
from hawis_jax.training import supernet


def test_weights_that_are_not_finite(run, finished, capsys, monkeypatch):
  """No accuracy of such a net is ever written."""
  load = results.load_net

  def poisoned(*args):
    trained = load(*args)
    leaves, structure = jax.tree.flatten(trained.variables)
    leaves[0] = np.full_like(leaves[0], np.nan)
    return trained._replace(variables=structure.unflatten(leaves))

  shutil.rmtree(finished / "robustness")
  monkeypatch.setattr(results, "load_net", poisoned)
  capsys.readouterr()
  assert run(finished, "--stages=robustness") == 2
  assert "whose logits are not finite" in short_run.one_line(capsys)
  assert not (finished / "robustness" / "result.json").exists()


def test_a_clock_that_is_set_back(run, finished, monkeypatch):
  """By a year, in the first steps: times in files are odd, results are not."""
  real, calls = time.time, itertools.count()
  expected = short_run.state(finished)
  for stage in ("train", "robustness"):
    shutil.rmtree(finished / stage)
  monkeypatch.setattr(time, "time", lambda: real() - 3e7 * (next(calls) > 50))
  assert run(finished) == 0
  assert next(calls) > 50
  assert short_run.state(finished) == expected


@pytest.mark.parametrize("threads", [0, 2])
def test_an_input_worker_that_dies(data_dir, monkeypatch, threads):
  """The run ends, and the next one goes on where it was."""
  read, calls = data.Source.read, itertools.count(1)

  def dying(self, indices):
    if next(calls) == 5:
      raise SystemError("a worker died")
    return read(self, indices)

  config = short_run.config(data__data_dir=str(data_dir))
  config.data.read_threads = threads
  experiment = prepare(config)
  batches = functools.partial(
    experiment.train_batches, experiment.splits.train, 16
  )

  def labels(start):
    stream = batches(start)
    return [np.asarray(next(stream)["label"]) for _ in range(start, 8)]

  expected = labels(0)
  with monkeypatch.context() as patch:
    patch.setattr(data.Source, "read", dying)
    with pytest.raises(SystemError, match="a worker died"):
      labels(0)
  np.testing.assert_array_equal(labels(3), expected[3:])


@pytest.mark.parametrize(
  "error, words",
  [
    (
      jax.errors.JaxRuntimeError(
        "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1 bytes.\n"
        "and more"
      ),
      ("while trying to allocate 1 bytes.)", "pretrain.batch_size"),
    ),
    (errors.DivergenceError("loss is nan at step 3"), ("loss is nan",)),
  ],
  ids=("memory", "divergence"),
)
def test_a_step_that_cannot_be_computed(
  run, tmp_path, capsys, monkeypatch, error, words
):
  def refuse(*args, **kwargs):
    raise error

  monkeypatch.setattr(supernet, "sandwich_step", refuse)
  assert run(tmp_path, "--stages=pretrain") == 2
  shown = short_run.one_line(capsys)
  assert all(word in shown for word in words)


def test_other_errors_of_the_runtime_are_not_hidden(run, tmp_path, monkeypatch):
  def broken(*args, **kwargs):
    raise jax.errors.JaxRuntimeError("INTERNAL: a defect")

  monkeypatch.setattr(supernet, "sandwich_step", broken)
  with pytest.raises(jax.errors.JaxRuntimeError, match="a defect"):
    run(tmp_path, "--stages=pretrain")


class _Attack:
  """Makes a file when it is unpickled."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return open, (str(self.path), "w")


def _fault_map(path, attack):
  np.savez(path.with_suffix(".npz"), g=np.array([attack], object))
  path = path.with_suffix(".npz")
  return {"robustness.scenarios": f"({{'fault_map':'{path}'}},)"}


def _teacher(path, attack):
  path = path.with_suffix(".npz")
  np.savez(path, **{"conv1.weight": np.array([attack], object)})
  return {"train.loss": "teacher", "train.teacher": str(path)}


def _torch_teacher(path, attack):
  path = path.with_suffix(".pth")
  path.write_bytes(pickle.dumps({"conv1.weight": attack}))
  return {"train.loss": "teacher", "train.teacher": str(path)}


@pytest.mark.parametrize("make", [_fault_map, _teacher, _torch_teacher])
def test_pickles_are_not_opened(run, tmp_path, capsys, make):
  made = tmp_path / "made"
  fields = make(tmp_path / "input", _Attack(made))
  assert run(tmp_path / "run", **fields) == 2
  short_run.one_line(capsys)
  assert not made.exists()


@pytest.mark.parametrize("field", ["workdir", "data.data_dir"])
def test_addresses_are_not_taken_for_folders(
  run, tmp_path, capsys, monkeypatch, field
):
  monkeypatch.chdir(tmp_path)
  fields = {} if field == "workdir" else {field: "s3://bucket/x"}
  workdir = "s3://bucket/x" if field == "workdir" else tmp_path / "run"
  assert run(workdir, **fields) == 2
  error = short_run.one_line(capsys)
  assert f"{field}: got 's3://bucket/x', allowed is a folder" in error
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  "path, message",
  [
    ("", "got '', allowed is the path of a folder"),
    ("gs:/bucket/x", "got 'gs:/bucket/x', allowed is the path of a folder"),
    ("a\udcff", "got 'a\\udcff', allowed is the path of a folder, in UTF-8"),
    ("a\n", "got 'a\\n', allowed is the path of a folder, in UTF-8 without"),
    ("~nosuchuser/x", "got '~nosuchuser/x', whose home folder is not known"),
  ],
)
def test_paths_that_are_of_no_folder(run, tmp_path, capsys, path, message):
  with contextlib.chdir(tmp_path):
    assert run(path) == 2
    assert f"--workdir: {message}" in short_run.one_line(capsys)
    if path.startswith("~"):
      assert run("run", data__data_dir=path) == 2
      assert f"data_dir: {message}" in short_run.one_line(capsys)
    assert not list(tmp_path.iterdir())


def test_names_of_files_write_nothing_else_on_a_terminal(tmp_path, caplog):
  """Line ends, colours, and text from right to left."""
  odd = "a\nerror: \x1b[2J\u202e\udcff"
  shown = "a\\nerror: \\x1b[2J\\u202e\\udcff"
  for split in ("train", "val"):
    for name in ("x", odd):
      (tmp_path / split / name).mkdir(parents=True)
      Image.new("RGB", (4, 4)).save(tmp_path / split / name / f"{odd}.png")
  (tmp_path / "train" / odd / f"{odd}.png").write_bytes(b"")
  settings = dict(name="image_folder", data_dir=str(tmp_path), image_size=4)
  splits = data.load(data.Settings(**settings, resize=4, damaged="skip"))
  splits.train.read([0, 1])
  (record,) = caplog.records
  assert f"({'/'.join(('train', shown, shown))}.png)" in record.getMessage()
  assert "\n" not in record.getMessage()
  (tmp_path / "val" / odd).rename(tmp_path / "val" / "y")
  with pytest.raises(errors.InputError) as info:
    data.load(data.Settings(**settings))
  assert f"got class '{shown}'" in str(info.value)


def test_a_tilde_is_the_home_folder(monkeypatch, tmp_path):
  monkeypatch.setenv("HOME", str(tmp_path))
  assert storage.folder_path("~/x", "--workdir") == tmp_path / "x"


@pytest.mark.parametrize("kind", ["folder", "dangling link"])
def test_a_lock_that_cannot_be_opened(run, tmp_path, capsys, kind):
  if kind == "folder":
    (tmp_path / "lock").mkdir()
  else:
    (tmp_path / "lock").symlink_to(tmp_path / "nowhere" / "lock")
  assert run(tmp_path) == 2
  assert f"can't write {tmp_path}/lock" in short_run.one_line(capsys)


@pytest.mark.parametrize("name", ["metrics.jsonl", "search"])
def test_files_of_another_user(run, finished, capsys, monkeypatch, name):
  """Refused wherever they are opened: root, as here, may open all."""
  opened, listed = pathlib.Path.open, pathlib.Path.iterdir

  def refuse(call, path, *args, **kwargs):
    if path.name == name:
      raise PermissionError(errno.EACCES, "Permission denied", str(path))
    return call(path, *args, **kwargs)

  for attribute, call in (("open", opened), ("iterdir", listed)):
    refusing = functools.partialmethod(functools.partial(refuse, call))
    monkeypatch.setattr(type(finished), attribute, refusing)
  capsys.readouterr()
  assert run(finished, "--stages=report") == 2
  assert f"{finished / name}: Permission denied" in short_run.one_line(capsys)


def test_a_log_that_cannot_be_written_ends_no_run(capsys):
  terminal.say("lost", None)
  assert capsys.readouterr().out == ""
  source = "from hawis_jax.runtime import terminal; import sys;"
  source += "[terminal.say(name, sys.stdout) for name in ('lost', 'a\\udcff')]"
  with open("/dev/full", "w") as full:
    command = [sys.executable, "-c", source]
    result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE)
  assert (result.returncode, result.stderr) == (0, b"")


@pytest.mark.slow
def test_a_backend_that_is_not_there(start, tmp_path, monkeypatch):
  monkeypatch.setenv("JAX_PLATFORMS", "foo")
  output, _ = start(tmp_path / "run").communicate()
  assert output.startswith("error: JAX_PLATFORMS: got 'foo', which can't be")
  assert output.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.3, 1.0, 2.0, 4.0])
def test_ctrl_c_while_it_starts(start, tmp_path, seconds):
  process = start(tmp_path / "run")
  time.sleep(seconds)
  process.send_signal(signal.SIGINT)
  output, _ = process.communicate()
  assert process.returncode in (75, -signal.SIGINT)
  assert "Traceback" not in output and output.count("\n") <= 3


@pytest.mark.parametrize(
  "fields",
  [
    {"train.nets": "('../../escape',)"},
    {"data.name": "../../escape"},
    {"device.preset": "../../escape"},
    {"space.technology": "../../escape"},
  ],
)
def test_names_do_not_leave_the_workdir(run, tmp_path, capsys, fields):
  workdir = tmp_path / "a" / "b" / "run"
  assert run(workdir, **fields) == 2
  assert "escape" in short_run.one_line(capsys)
  assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize(
  "text, message",
  [
    ('{"g_on": NaN}', "got the number NaN, allowed are finite ones"),
    ('{"g_on": 1e400}', "got the number 1e400"),
    ('{"g_on": 1e-3, "g_on": 2e-3}', "'g_on' is given twice"),
    ("[" * 100_000, "too many brackets"),
    ('{"a":' * 100_000, "too many brackets"),
    ("\0", "can't be read"),
    ('{"g_on": 1e-3', "can't be read"),
    ('["g_on"]', "got a list, needed is an object of fields"),
    ('{"g_onn": 1e-3}', "got 'g_onn', allowed are"),
  ],
)
def test_devices_that_are_none(tmp_path, text, message):
  path = tmp_path / "device.json"
  path.write_text(text)
  config = short_run.config(device__preset=str(path))
  with pytest.raises(errors.InputError) as info:
    settings.validate(config)
  assert message in str(info.value) and "\n" not in str(info.value)


def test_too_few_addresses():
  """With less than XLA maps it would abort, or wait for ever."""
  command = f"{sys.executable} -m hawis_jax.main --config=missing.py"
  done = subprocess.run(
    ["bash", "-c", f"ulimit -v {2**21} && exec {command}"],
    capture_output=True,
    text=True,
    timeout=60,
  )
  assert done.returncode == 2 and not done.stdout
  assert done.stderr.startswith("error: ulimit -v: got 2,097,152 KiB")
  assert done.stderr.count("\n") == 1
