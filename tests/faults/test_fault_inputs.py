"""Numbers, clocks, data and other input that go wrong."""

import itertools
import pickle
import time

import jax
import numpy as np
import pytest
import short_run

from hawis_jax import data
from hawis_jax import files
from hawis_jax import pretrain
from hawis_jax import scoring
from hawis_jax import train


def _one_line(capsys, status=2):
  error = capsys.readouterr().err
  assert error.startswith("error: ") and error.count("\n") == 1, error
  assert status == 2
  return error


def test_a_signal_that_is_not_finite(
  run, finished, tmp_path, capsys, monkeypatch
):
  """The search stops; without the fault it goes on from what was good."""
  robust = scoring.robust_score

  def poisoned(values, *args):
    return robust(values, *args) * np.nan

  workdir = short_run.copy(finished, tmp_path / "run", "search")
  capsys.readouterr()
  with monkeypatch.context() as patch:
    patch.setattr(scoring, "robust_score", poisoned)
    error = _one_line(capsys, run(workdir, "--stages=search"))
  assert "search: " in error and "is nan at step 1" in error
  assert not (workdir / "search" / "result.json").exists()
  assert run(workdir, "--stages=search") == 0
  assert short_run.state(workdir) == short_run.state(finished)


def test_weights_that_are_not_finite(
  run, finished, tmp_path, capsys, monkeypatch
):
  """No accuracy of such a net is ever written."""
  load = train.load

  def poisoned(*args):
    module, variables = load(*args)
    leaves, structure = jax.tree.flatten(variables)
    leaves[0] = leaves[0].at[(0,) * leaves[0].ndim].set(np.nan)
    return module, jax.tree.unflatten(structure, leaves)

  workdir = short_run.copy(finished, tmp_path / "run", "robustness")
  monkeypatch.setattr(train, "load", poisoned)
  status = run(workdir, "--stages=robustness")
  assert "got a value that is not finite" in _one_line(capsys, status)
  result = files.read_record(workdir / "robustness" / "result.json")
  assert not result["nets"]["found"]["sweeps"]


def test_a_clock_that_is_set_back(run, finished, tmp_path, monkeypatch):
  """By a year, in the first steps: times in files are odd, results are not."""
  real, calls = time.time, itertools.count()
  monkeypatch.setattr(time, "time", lambda: real() - 3e7 * (next(calls) > 50))
  assert run(tmp_path) == 0
  expected, got = short_run.state(finished), short_run.state(tmp_path)
  for name in expected:
    assert got[name] == expected[name], name


@pytest.mark.parametrize("threads", [0, 2])
def test_an_input_worker_that_dies(
  run, finished, tmp_path, monkeypatch, threads
):
  """The run ends, and the next one goes on where it was."""
  read, calls = data.Source.read, []

  def dying(self, indices):
    calls.append(len(indices))
    if len(calls) == 5:
      raise SystemError("a worker died")
    return read(self, indices)

  fields = {"data.read_threads": threads}
  with monkeypatch.context() as patch:
    patch.setattr(data.Source, "read", dying)
    with pytest.raises(SystemError, match="a worker died"):
      run(tmp_path, "--stages=pretrain", **fields)
  assert run(tmp_path, "--stages=pretrain", **fields) == 0
  weights = [
    short_run.arrays(d / "pretrain" / "8") for d in (finished, tmp_path)
  ]
  assert weights[0] == weights[1]


def test_a_device_whose_memory_is_full(run, tmp_path, capsys, monkeypatch):
  def full(*args, **kwargs):
    raise jax.errors.JaxRuntimeError(
      "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1 bytes.\nx"
    )

  with monkeypatch.context() as patch:
    patch.setattr(pretrain, "sandwich_step", full)
    error = _one_line(capsys, run(tmp_path, "--stages=pretrain"))
  assert "Out of memory while trying to allocate 1 bytes.)" in error
  assert "pretrain.batch_size" in error


def test_other_errors_of_the_runtime_are_not_hidden(run, tmp_path, monkeypatch):
  def broken(*args, **kwargs):
    raise jax.errors.JaxRuntimeError("INTERNAL: a defect")

  monkeypatch.setattr(pretrain, "sandwich_step", broken)
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
  _one_line(capsys, run(tmp_path / "run", **fields))
  assert not made.exists()


@pytest.mark.parametrize("field", ["workdir", "data.data_dir"])
def test_addresses_are_not_taken_for_folders(
  run, tmp_path, capsys, monkeypatch, field
):
  monkeypatch.chdir(tmp_path)
  fields = {} if field == "workdir" else {field: "s3://bucket/x"}
  workdir = "s3://bucket/x" if field == "workdir" else tmp_path / "run"
  error = _one_line(capsys, run(workdir, **fields))
  assert f"{field}: got 's3://bucket/x', allowed is a folder" in error
  assert not list(tmp_path.iterdir())


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
  error = _one_line(capsys, run(workdir, **fields))
  assert "escape" in error
  assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize(
  "text, message",
  [
    ('{"g_on": NaN}', "g_on: got nan"),
    ('{"g_on": 1e-3', "can't be read"),
    ('["g_on"]', "got a list, needed is an object of fields"),
    ('{"g_onn": 1e-3}', "got 'g_onn', allowed are"),
  ],
)
def test_devices_that_are_none(run, tmp_path, capsys, text, message):
  path = tmp_path / "device.json"
  path.write_text(text)
  error = _one_line(
    capsys, run(tmp_path / "run", **{"device.preset": str(path)})
  )
  assert message in error
  assert not (tmp_path / "run").exists()
