"""What may happen to the files of a finished run before it is started again."""

import json
import shutil

import numpy as np
import pytest
import short_run


@pytest.fixture
def workdir(finished, tmp_path):
  """A copy of a finished run."""
  return shutil.copytree(finished, tmp_path / "run")


def _steps(folder):
  return sorted(folder.glob("[0-9]*"), key=lambda path: int(path.name))


def _largest(folder):
  paths = [path for path in folder.rglob("*") if path.is_file()]
  return max(paths, key=lambda path: path.stat().st_size)


def _cut(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(path):
  """Another bit anywhere."""
  content = bytearray(path.read_bytes())
  place = int(np.random.default_rng().integers(len(content)))
  content[place] ^= 1
  path.write_bytes(content)


def _cut_checkpoint(workdir):
  _cut(_largest(_steps(workdir / "pretrain")[-1]))


def _flip_checkpoint(workdir):
  _flip(_largest(_steps(workdir / "train" / "found")[-1]))


def _lose_file_of_checkpoint(workdir):
  _largest(_steps(workdir / "train" / "uniform")[-1]).unlink()


def _lose_checkpoint(workdir):
  shutil.rmtree(_steps(workdir / "train" / "baseline_1x")[-1])


def _leave_half_a_save(workdir):
  for name in ("9.part", "9.part.orbax-checkpoint-tmp", "6.part-old"):
    (workdir / "pretrain" / name).mkdir()
    (workdir / "pretrain" / name / "leaves.json").write_text("{")


def _leave_a_lock(workdir):
  (workdir / "lock").write_text("4711\n")


def _cut_last_line(workdir):
  """A crash in the middle of robustness's last line, which is repeated."""
  path = workdir / "robustness" / "result.json"
  path.unlink()
  path = workdir / "metrics.jsonl"
  path.write_bytes(path.read_bytes()[:-20])


def _garbage_among_metrics(workdir):
  path = workdir / "metrics.jsonl"
  first, *rest = path.read_bytes().splitlines(keepends=True)
  odd = b'[1, 2]\n{"step": 3}\n\xff\xfe\n\n'
  path.write_bytes(first + odd + b"".join(rest))


def _leave_temporary_files(workdir):
  for name in ("config.json.77.tmp", "search/result.json.77.tmp"):
    (workdir / name).write_text("{")


def _lose_report(workdir):
  shutil.rmtree(workdir / "report")


@pytest.mark.parametrize(
  "harm",
  [
    _cut_checkpoint,
    _flip_checkpoint,
    _lose_file_of_checkpoint,
    _lose_checkpoint,
    _leave_half_a_save,
    _leave_a_lock,
    _cut_last_line,
    _garbage_among_metrics,
    _leave_temporary_files,
    _lose_report,
  ],
)
def test_recovers(run, finished, workdir, harm):
  """And ends with the same results, metrics and weights, to the bit."""
  harm(workdir)
  assert run(workdir) == 0
  expected, got = short_run.state(finished), short_run.state(workdir)
  for name in expected:
    assert got[name] == expected[name], name
  assert (workdir / "report" / "index.html").exists()
  assert not list(workdir.rglob("*.part*"))


def _cut_all_checkpoints(workdir):
  for step in _steps(workdir / "train" / "found"):
    _cut(_largest(step))
  return "train/found: got only damaged checkpoints, needed is one to go on"


def _cut_search(workdir):
  _cut(workdir / "search" / "result.json")
  return "search/result.json: got damaged JSON"


def _change_a_digit(path):
  """Of the first number after the middle."""
  text = path.read_text()
  place = next(
    i for i in range(len(text) // 2, len(text)) if text[i] in "123456789"
  )
  digit = str(int(text[place]) % 9 + 1)
  path.write_text(text[:place] + digit + text[place + 1 :])
  return f"{path.name}: got another content than was written there"


def _change_search(workdir):
  return _change_a_digit(workdir / "search" / "result.json")


def _change_robustness(workdir):
  return _change_a_digit(workdir / "robustness" / "result.json")


def _another_json(workdir):
  path = workdir / "robustness" / "result.json"
  path.write_text("[1, 2]")
  return "robustness/result.json: got another content than was written there"


def _change_partial(workdir):
  """Chips of a level that was interrupted."""
  path = workdir / "robustness" / "result.json"
  path.unlink()
  content = {"level": ["found", "stuck_off", 0.1], "hits": [], "image_hits": []}
  path.with_name("partial.json").write_text(json.dumps(content))
  return "partial.json: got another content than was written there"


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
  step = _steps(workdir / "train" / "baseline_1x")[-1]
  shutil.copytree(step, workdir / "train" / "found" / step.name)
  return "holds another state than this configuration's"


@pytest.mark.parametrize(
  "harm",
  [
    _cut_all_checkpoints,
    _cut_search,
    _change_search,
    _change_robustness,
    _another_json,
    _change_partial,
    _cut_config,
    _file_for_folder,
    _checkpoint_of_another_net,
  ],
)
def test_refuses_in_one_line(run, workdir, capsys, harm):
  """And leaves every file as it was."""
  message = harm(workdir)
  before = {
    path: path.read_bytes()
    for path in workdir.rglob("*")
    if path.is_file() and path.name != "lock"
  }
  capsys.readouterr()
  assert run(workdir) == 2
  error = capsys.readouterr().err
  assert error.startswith("error: ") and error.count("\n") == 1
  assert message in error and str(workdir) in error
  for path, content in before.items():
    assert path.read_bytes() == content, path
