"""A shortened main job, and what of its results must never change."""

import ast
import importlib.util
import json
import pathlib
import warnings

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

CONFIG = str(pathlib.Path(__file__).parents[1] / "configs" / "digits.py")
SHORT = {
  "log_every": 2,
  "checkpoint_seconds": 0.0,
  "data.validation_images": 64,
  "space.choices": "((4,8),(8,16),(16,32))",
  "network.base_widths": "(4,8,16)",
  "search.budget_uniform": 1.5,
  "pretrain.steps": 8,
  "pretrain.warmup_steps": 3,
  "pretrain.batch_size": 16,
  "pretrain.faulty_widths": 0,
  "search.methods": "('predictor','random')",
  "search.updates": 4,
  "search.proposals": 4,
  "search.scenarios": "({'stuck_off':0.1},)",
  "search.chips": 2,
  "search.images": 32,
  "search.batch_size": 32,
  "search.calibration_images": 32,
  "search.candidates": 3,
  "search.candidate_chips": 3,
  "search.selection": 0.0,
  "train.nets": "('found','uniform')",
  "train.steps": 8,
  "train.batch_size": 16,
  "robustness.chips": 4,
  "robustness.chips_per_step": 2,
  "robustness.images": 100,
  "robustness.batch_norm": "('fixed',)",
  "robustness.scenarios": "({'stuck_off':(0.0,0.1)},)",
}


def config(**fields):
  """The shortened configuration itself; `__` in names stands for a dot."""
  spec = importlib.util.spec_from_file_location("short_config", CONFIG)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config()
  values = {
    name: ast.literal_eval(value) if isinstance(value, str) else value
    for name, value in SHORT.items()
  }
  values |= {name.replace("__", "."): v for name, v in fields.items()}
  config.update_from_flattened_dict(values)
  return config


def same(workdir, other):
  """Asserts that two runs left the same."""
  got, expected = state(workdir), state(other)
  assert got.keys() == expected.keys()
  for name in expected:
    assert got[name] == expected[name], name


def one_line(capsys):
  """The error that a command has ended with, which is one line."""
  error = capsys.readouterr().err
  assert error.startswith("error: ") and error.count("\n") == 1, error
  return error


def metrics(workdir):
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return [
    {k: v for k, v in json.loads(line).items() if k not in ("time", "crc")}
    for line in lines
  ]


def state(workdir):
  """{path: content} of all results that must not depend on interruptions."""
  by_step = lambda line: (line["stage"], line["step"])  # noqa: E731
  state = {"metrics": sorted(metrics(workdir), key=by_step)}
  for path in sorted(workdir.rglob("result.json")):
    state[str(path.relative_to(workdir))] = path.read_text()
  for stage in ("pretrain", "search", "train/found", "train/uniform"):
    steps = sorted(int(p.name) for p in (workdir / stage).glob("[0-9]*"))
    if steps:
      state[stage] = steps[-1], arrays(workdir / stage / str(steps[-1]))
  return state


def arrays(folder):
  with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="Sharding info not provided")
    loaded = ocp.load(folder)
  return [np.asarray(x).tobytes() for x in jax.tree.leaves(loaded)]
