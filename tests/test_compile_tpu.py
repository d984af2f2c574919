"""launch/compile_tpu.py: TPU programs, with libtpu and no TPU."""

import importlib.util
import os
import pathlib
import re
import subprocess
import sys

import pytest

from hawis_jax import errors
from hawis_jax import tpu

_ROOT = pathlib.Path(__file__).parents[1]
_TINY = {
  "data.levels": 4,
  "network.depth": 8,
  "network.base_widths": "(8,8,16)",
  "space.choices": "((8,16),(8,16),(16,32))",
  "pretrain.batch_size": 32,
  "pretrain.random_widths": 1,
  "search.budget_uniform": 1.0,
  "search.methods": "('random',)",
  "search.scenarios": "({'stuck_off':0.1},)",
  "search.proposals": 4,
  "search.chips": 2,
  "search.images": 32,
  "search.batch_size": 32,
  "search.calibration_images": 32,
  "train.nets": "('baseline_1x_float','baseline_1x_int8','baseline_1x')",
  "train.loss": "teacher",
  "train.teacher": "no_such_file.pth",
  "robustness.chips": 4,
  "robustness.images": 32,
  "robustness.scenarios": "({'stuck_off':(0.0,0.1)},{'variation':0.5})",
}
_needs_libtpu = pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None,
  reason="needs libtpu: pip install 'hawis_jax[tpu]'",
)


def _compile(*arguments, **fields):
  """Returns (exit status, {stage: line}, all that was printed)."""
  fields = _TINY | {k.replace("__", "."): v for k, v in fields.items()}
  run = subprocess.run(
    [
      sys.executable,
      _ROOT / "launch" / "compile_tpu.py",
      "--config=configs/digits.py",
      *arguments,
      *(f"--config.{name}={value}" for name, value in fields.items()),
    ],
    cwd=_ROOT,
    # Most of the time is XLA's: an eighth of it without its optimisations.
    env=os.environ | {"PYTHONPATH": _ROOT, "JAX_OPTIMIZATION_LEVEL": "O0"},
    capture_output=True,
    text=True,
    timeout=900,
  )
  lines = run.stdout.splitlines()
  rows = {line[:44].strip(): line[44:].split() for line in lines}
  return run.returncode, rows, run.stdout + run.stderr


@pytest.mark.tpu_compile
@_needs_libtpu
def test_every_stage_compiles():
  status, rows, output = _compile("--topology=v5e:2x2")
  assert status == 0, output
  assert "4 devices of 17.2 GB" in output
  state, step = float(rows["init"][2]), rows["pretrain"]
  weights = 16 * 9 * (16 * 3 + 3 * 32) + 32 * 9 * 32 * 2  # about
  assert state > 0 and float(step[0]) >= state
  reduced = re.search(r"all-reduce ([\d.]+) MB", " ".join(step))
  assert float(reduced[1]) * 1e6 > 4 * weights
  programs = [name for name in rows if name.startswith("baseline_1x, ")]
  assert len(programs) == 4  # of two kinds of chips
  trained = [name for name in rows if name.startswith("train/")]
  names = ("baseline_1x_float", "baseline_1x_int8", "baseline_1x", "found")
  assert trained == [f"train/{name}" for name in names]
  # The teacher, a ResNet-20 at least, is part of a binary net's step.
  assert float(rows[trained[2]][8]) > 2 * float(rows[trained[0]][8])
  for name in ("pretrain", "search", *trained, *programs):
    # Bytes, memory; operations of all that compute.
    assert float(rows[name][6]) >= 0
    assert float(rows[name][8]) > 0 or name.endswith("program"), output


@pytest.mark.tpu_compile
@_needs_libtpu
def test_what_does_not_fit_is_said():
  status, _, output = _compile(
    "--topology=v5e:1x1", "--stages=pretrain", pretrain__batch_size=2**21
  )
  assert status == 1, output
  assert re.search("pretrain: does not fit: .*15.75G", output), output
  status, _, output = _compile(
    "--topology=v5e:1x1", "--stages=robustness", robustness__memory_gb=1e-4
  )
  assert status == 1, output
  assert "robustness: does not fit: memory: got 0.0001 GB" in output
  status, _, output = _compile(
    "--topology=v5e:2x2", "--stages=train", train__batch_size=6
  )
  assert status == 1, output
  assert "train: does not fit: config.train.batch_size: got 6" in output


@pytest.mark.tpu_compile
@_needs_libtpu
def test_topologies_that_libtpu_has_not():
  with pytest.raises(errors.InputError) as info:
    tpu.topology("v5e:3x3")
  message = str(info.value)
  assert message.startswith("--topology: got 'v5e:3x3' (INVALID_ARGUMENT: ")
  assert message.endswith("e.g. v5e:16x16") and "\n" not in message


@pytest.mark.parametrize(
  "name", ["", "v5e", "v5e:", "v5e:2", "v5e:2x2x1", "v4:2x2", "v5e:0x2", "h1:1"]
)
def test_bad_topologies_are_one_line(name):
  with pytest.raises(errors.InputError) as info:
    tpu.topology(name)
  message = str(info.value)
  assert message.startswith(f"--topology: got {name!r}, allowed are v2:AxB, ")
  assert "v4:AxBxC" in message and "\n" not in message


def test_mistakes_are_one_line():
  status, _, output = _compile("--stages=report")
  assert status == 2
  line = (
    "error: --stages: got 'report', allowed are all, init, pretrain, search"
  )
  assert output.startswith(line) and output.count("\n") == 1


def test_without_libtpu(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
  with pytest.raises(errors.InputError, match="libtpu is missing: pip install"):
    tpu.topology("v5e:2x2")
