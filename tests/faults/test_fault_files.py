"""What may happen to the files of a finished run before it is started again."""

import json
import shutil

import numpy as np
import pytest
import short_run

from hawis_jax import errors
from hawis_jax.pipeline import results
from hawis_jax.runtime import checkpoint
from hawis_jax.runtime import storage
from hawis_jax.runtime.metrics import Metrics


def _steps(folder):
  steps = (path for path in folder.iterdir() if path.name.isdecimal())
  return sorted(steps, key=lambda path: int(path.name))


def _largest(folder):
  paths = [path for path in folder.rglob("*") if path.is_file()]
  return max(paths, key=lambda path: path.stat().st_size)


def _cut(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(path, rng):
  """Another bit anywhere."""
  content = bytearray(path.read_bytes())
  content[int(rng.integers(len(content)))] ^= 1
  path.write_bytes(content)


@pytest.mark.exact
def test_what_is_damaged_or_lost_is_made_again(
  run, finished, tmp_path, rng, capsys, caplog
):
  """Ends with the same results, metrics and weights, to the bit."""
  workdir = shutil.copytree(finished, tmp_path / "run")
  _cut(_largest(_steps(workdir / "pretrain")[-1]))
  _flip(_largest(_steps(workdir / "train" / "found")[-1]), rng)
  shutil.rmtree(_steps(workdir / "train" / "uniform")[-1])
  # A crash in the middle of robustness's last line, which is repeated.
  (workdir / "robustness" / "result.json").unlink()
  metrics = workdir / "metrics.jsonl"
  metrics.write_bytes(metrics.read_bytes()[:-20])
  capsys.readouterr()
  assert run(workdir) == 0
  short_run.same(workdir, finished)
  assert capsys.readouterr().err == ""
  told = [record.getMessage() for record in caplog.records]
  assert all(m.startswith("skipping a damaged checkpoint: ") for m in told)


def test_what_was_left_behind_or_put_in_is_cleared(run, finished, tmp_path):
  """By a run that was killed, or by someone else; the report is lost."""
  workdir = shutil.copytree(finished, tmp_path / "run")
  for name in ("9.orbax-checkpoint-tmp", "9.part", "notes"):
    (workdir / "pretrain" / name).mkdir()
    (workdir / "pretrain" / name / "leaves.json").write_text("{")
  (workdir / "lock").write_text("4711\n")
  ours = "config.json.77.tmp", "search/result.json.77.tmp"
  users = "notes.77.tmp", "search/result.json.tmp"
  for name in (*ours, *users):
    (workdir / name).write_text("{")
  metrics = workdir / "metrics.jsonl"
  first, *rest = metrics.read_bytes().splitlines(keepends=True)
  odd = b'[1, 2]\n{"step": 3}\n\xff\xfe\n\n'
  metrics.write_bytes(first + odd + b"".join(rest))
  shutil.rmtree(workdir / "report")
  assert run(workdir) == 0
  assert (workdir / "report" / "index.html").exists()
  assert not list(workdir.rglob("*.orbax-checkpoint-tmp"))
  assert not any((workdir / name).exists() for name in ours)
  for name in users:
    (workdir / name).unlink()
  for name in ("9.part", "notes"):  # no run's: they may be the user's
    (workdir / "pretrain" / name / "leaves.json").unlink()
    (workdir / "pretrain" / name).rmdir()
  short_run.same(workdir, finished)


@pytest.mark.parametrize("fate", ["moved", "deleted", "replaced"])
def test_a_folder_that_is_gone_is_not_made_anew(tmp_path, fate):
  """Else there would be two halves of a run."""
  folder, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
  gone = pytest.raises(errors.InputError, match="run: moved or deleted while")
  with gone, storage.locked(folder), Metrics(folder) as metrics:
    progress = metrics.stage("pretrain", 4)
    with checkpoint.Checkpoints(folder / "pretrain") as checkpoints:
      checkpoints.save(1, {"x": np.zeros(3)})
    folder.rename(elsewhere)
    if fate == "deleted":
      shutil.rmtree(elsewhere)
    if fate == "replaced":
      shutil.copytree(elsewhere, folder)
    before = set(tmp_path.rglob("*"))
    for write in (
      lambda: progress.report(2, {"loss": 1.0}),
      lambda: checkpoint.Checkpoints(folder / "search"),
      lambda: checkpoints.save(2, {"x": np.zeros(3)}),
      lambda: storage.write_json(folder / "search" / "result.json", {}),
    ):
      with pytest.raises(errors.InputError, match="moved or deleted"):
        write()
  assert set(tmp_path.rglob("*")) == before
  assert not storage._held


def _cut_all_checkpoints(workdir):
  for step in _steps(workdir / "train" / "found"):
    _cut(_largest(step))
  return "train/found: got only damaged checkpoints, needed is one to go on"


def _cut_search(workdir):
  _cut(workdir / "search" / "result.json")
  return "search/result.json: got damaged JSON"


def _change_search(workdir):
  """The first digit after the middle."""
  path = workdir / "search" / "result.json"
  text = path.read_text()
  place = next(
    i for i in range(len(text) // 2, len(text)) if text[i] in "123456789"
  )
  digit = str(int(text[place]) % 9 + 1)
  path.write_text(text[:place] + digit + text[place + 1 :])
  return f"{path.name}: got another content than was written there"


def _another_json(workdir):
  path = workdir / "robustness" / "result.json"
  path.write_text("[1, 2]")
  return "robustness/result.json: got another content than was written there"


def _earlier_revision(workdir):
  """Its chip numbers meant other chips."""
  path = workdir / "robustness" / "result.json"
  result = storage.read_record(path)
  del result["format"]
  storage.write_record(path, result)
  return f"got results of format 1, allowed is {results.ROBUSTNESS_FORMAT}"


def _change_partial(workdir):
  """Chips of a level that was interrupted."""
  path = workdir / "robustness" / "result.json"
  path.unlink()
  content = {
    "severity": ["found", "stuck_off", 0.1],
    "correct": [],
    "image_correct": [],
  }
  path.with_name("partial.json").write_text(json.dumps(content))
  return "partial.json: got another content than was written there"


def _swap_correct(workdir):
  """What two nets' chips classify correctly."""
  folder = workdir / "robustness" / "correct"
  first, *_, last = sorted(folder.iterdir())
  first.rename(folder / "away")
  last.rename(first)
  (folder / "away").rename(last)
  return "npy: missing, or got another content than was written there"


def _inputs_of_another_version(workdir):
  """A record, but not of what it was made from."""
  storage.write_record(workdir / "search" / "inputs.json", {"versions": []})
  return "search: has no inputs.json, which says what it was made from"


def _cut_config(workdir):
  _cut(workdir / "config.json")
  return "config.json: got damaged JSON"


def _file_for_folder(workdir):
  shutil.rmtree(workdir / "pretrain")
  (workdir / "pretrain").write_text("")
  return "can't write"


def _checkpoint_of_another_net(workdir):
  for step in _steps(workdir / "train" / "found"):
    shutil.rmtree(step)
  step = _steps(workdir / "train" / "uniform")[-1]
  shutil.copytree(step, workdir / "train" / "found" / step.name)
  shutil.rmtree(workdir / "robustness")  # else its accuracies tell first
  return "holds another state than this configuration's"


@pytest.mark.parametrize(
  "harm",
  [
    _cut_all_checkpoints,
    _cut_search,
    _change_search,
    _another_json,
    _earlier_revision,
    _change_partial,
    _swap_correct,
    _inputs_of_another_version,
    _cut_config,
    _file_for_folder,
    _checkpoint_of_another_net,
  ],
)
def test_refuses_in_one_line(run, finished, capsys, harm):
  """And leaves every file as it was."""
  message = harm(finished)
  before = {
    path: path.read_bytes()
    for path in finished.rglob("*")
    if path.is_file() and path.name != "lock"
  }
  capsys.readouterr()
  assert run(finished) == 2
  error = short_run.one_line(capsys)
  assert message in error and str(finished) in error
  for path, content in before.items():
    assert path.read_bytes() == content, path
