"""benchmarks/accelerator.py, at small sizes on the CPU."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

_ROOT = pathlib.Path(__file__).parents[1]
_METHODS = ("loop", "matmul", "grouped")


def _run(*arguments):
  """(Exit status, stdout, stderr)."""
  result = subprocess.run(
    [sys.executable, "benchmarks/accelerator.py", "test", *arguments],
    cwd=_ROOT,
    env=os.environ | {"PYTHONPATH": str(_ROOT)},
    capture_output=True,
    text=True,
    timeout=1800,
  )
  return result.returncode, result.stdout, result.stderr


@pytest.mark.slow
def test_every_piece_runs_once_and_a_lost_one_again(tmp_path):
  small = "--small", f"--folder={tmp_path}"
  status, output, error = _run(*small)
  assert status == 0, output + error
  path = tmp_path / "test.json"
  first = json.loads(path.read_text())["pieces"]
  monte_carlo = {
    f"monte carlo, tiny, {device}, {way}"
    for device in ("stuck", "variation")
    for way in (*_METHODS, "loop, parts")
  } - {"monte carlo, tiny, stuck, loop, parts"}
  others = {"cpu", "correct", "peak", "search", "train", "IR drop", "sampler"}
  assert set(first) == monte_carlo | others
  for piece in first.values():
    assert "cpu" in piece["machine"] and piece["seconds"] > 0
  # On the CPU: the very programs of the reference, and other sums' order.
  correct = first["correct"]["figures"]
  for way in _METHODS:
    assert correct[f"stuck, {way}: of 128 images differ"] == 0
  assert correct["variation, loop: of 128 images differ"] == 0
  for name in (*monte_carlo, "peak", "search", "train", "IR drop", "sampler"):
    assert all(value > 0 for value in first[name]["figures"].values()), name
  found = json.loads(path.read_text())
  found["pieces"].pop("IR drop")
  path.write_text(json.dumps(found))
  status, output, _ = _run(*small)
  again = json.loads(path.read_text())["pieces"]
  assert status == 0 and output.splitlines()[0] == "IR drop: done"
  assert output.count(": done") == 1
  assert again | {"IR drop": 0} == first | {"IR drop": 0}


@pytest.mark.slow
def test_a_cpu_has_no_results(tmp_path):
  status, _, error = _run(f"--folder={tmp_path}", "--piece=peak")
  assert status == 1 and "the backend is a CPU" in error
  status, _, error = _run("--small")
  assert status == 2 and "--small needs --folder" in error
  assert not list(tmp_path.iterdir())
