"""The main job from end to end on digits, shortened: run, resume, refuse."""

import ast
import functools
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import short_run

from hawis_jax import crossbar
from hawis_jax import data
from hawis_jax import errors
from hawis_jax import interop
from hawis_jax.config import fields
from hawis_jax.config import settings
from hawis_jax.networks import net_variables
from hawis_jax.pipeline import nets
from hawis_jax.pipeline import results
from hawis_jax.pipeline import stages
from hawis_jax.pipeline.experiment import prepare
from hawis_jax.robustness import evaluation
from hawis_jax.robustness import monte_carlo
from hawis_jax.runtime import storage
from hawis_jax.runtime.metrics import Metrics
from hawis_jax.runtime.metrics import Progress
from hawis_jax.search import update
from hawis_jax.training import fixed_net
from hawis_jax.training import supernet

# What each stage leaves.
_LEFT = {
  "pretrain": "pretrain/8",
  "search": "search/result.json",
  "train": "train/uniform/8",
  "robustness": "robustness/result.json",
  "report": "report/index.html",
}


@pytest.mark.parametrize("stage", fields.STAGES)
def test_every_stage_runs_alone_on_what_those_before_left(after, stage):
  workdir = after(stage)
  there = [each for each in fields.STAGES if (workdir / _LEFT[each]).exists()]
  assert there == list(fields.STAGES)[: len(there)] and there[-1] == stage
  stages = {line["stage"].split("/")[0] for line in short_run.metrics(workdir)}
  assert stages == set(there) - {"report"}


def test_a_finished_run_has_its_results_and_repeats_nothing(
  run, finished, capsys, monkeypatch
):
  page = (finished / "report" / "index.html").read_text()
  result = json.loads((finished / "search" / "result.json").read_text())
  nets = json.loads((finished / "robustness" / "result.json").read_text())
  assert set(nets["nets"]) == {"found", "uniform"}
  assert nets["nets"]["found"]["widths"] == result["found"]
  budget = result["budgets"][result["main_budget"]]
  assert nets["nets"]["found"]["arrays"] <= budget
  for net in nets["nets"].values():
    assert f"{net['arrays']}" in page
    for sweep in net["sweeps"]["fixed"].values():
      for entry in sweep:  # nothing random at severity 0
        assert len(entry["accuracy"]) == (4 if entry["severity"] else 1)
    ideal = net["sweeps"]["fixed"]["stuck_off"][0]
    assert ideal["mean"] == pytest.approx(net["clean"]) and ideal["std"] == 0
  before = {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()}
  before.pop(finished / "config.json")

  def refuse(*args, **kwargs):
    raise AssertionError("computed again")

  for module, name in ((supernet, "sandwich_step"), (fixed_net, "train_step")):
    monkeypatch.setattr(module, name, refuse)
  monkeypatch.setattr(update, "search_step", refuse)
  capsys.readouterr()
  assert run(finished) == 0
  again = capsys.readouterr().out
  assert "ETA" not in again and "begins" not in again
  assert before == {p: p.stat().st_mtime_ns for p in before}


def _run_with_stops(run, workdir, stops, monkeypatch, *arguments):
  """Cuts a run off at every one of (progress, step), then lets it finish."""
  report, left = Progress.report, list(stops)

  def interrupted(self, done, values):
    report(self, done, values)
    if left and (self._name, done) == left[0]:
      raise KeyboardInterrupt

  monkeypatch.setattr(Progress, "report", interrupted)
  while left:
    with pytest.raises(KeyboardInterrupt):
      run(workdir, *arguments)
    left.pop(0)
  assert run(workdir, *arguments) == 0


# Damaged checkpoints in tests/faults let pretraining and training go on, too,
# and test_loop.py stops a loop such as the search's anywhere.
@pytest.mark.parametrize(
  "before, place, step, arguments",
  [
    ("pretrain", "search/candidates", 8, ["--stages=search"]),
    # Half of a severity's chips; what is left to do runs in one go.
    pytest.param("search", "robustness", 3, [], marks=pytest.mark.slow),
  ],
)
def test_interrupted_and_resumed_equals_uninterrupted(
  run, after, monkeypatch, before, place, step, arguments
):
  """Cut off in a stage; results, metrics and weights equal to the bit."""
  workdir = after(before)
  _run_with_stops(run, workdir, [(place, step)], monkeypatch, *arguments)
  short_run.same(workdir, after("search" if arguments else "report"))


@pytest.mark.slow
def test_interrupted_in_every_stage_equals_uninterrupted(
  run, finished, tmp_path, capsys, monkeypatch
):
  stops = [
    ("pretrain", 4),
    ("pretrain", 6),
    ("search", 2),
    ("search/candidates", 8),
    ("train/found", 4),
    ("train/uniform", 6),
    ("robustness", 3),
    ("robustness", 8),
  ]
  _run_with_stops(run, tmp_path / "run", stops, monkeypatch)
  assert "train/uniform  8/8" in capsys.readouterr().out
  short_run.same(tmp_path / "run", finished)


def test_other_numbers_of_jax_are_ignored(run, after, finished, capsys):
  """The results are those without, and a line each says so."""
  workdir = after("train")
  others = {
    "jax_enable_x64": (True, False),
    "jax_default_prng_impl": ("rbg", "threefry2x32"),
    "jax_threefry_partitionable": (False, True),
    "jax_random_seed_offset": (7, 0),
  }
  for name, (value, _) in others.items():
    jax.config.update(name, value)
  status = run(workdir)
  left = {name: getattr(jax.config, name) for name in others}
  for name, (_, ours) in others.items():
    jax.config.update(name, ours)
  # What runs beside it goes on as before.
  assert status == 0 and left == {name: v for name, (v, _) in others.items()}
  lines = capsys.readouterr().err.splitlines()
  assert lines == [
    f"{name.upper()}: ignored, it is {ours} here"
    for name, (_, ours) in others.items()
  ]
  short_run.same(workdir, finished)


@pytest.mark.slow
def test_a_run_with_jax_enable_x64_is_the_same(data_dir, finished, tmp_path):
  values = {**short_run.SHORT, "data.data_dir": data_dir}
  overrides = [f"--config.{name}={value}" for name, value in values.items()]
  child = subprocess.run(
    [
      *(sys.executable, "-m", "hawis_jax.main"),
      *(f"--config={short_run.CONFIG}", f"--workdir={tmp_path / 'run'}"),
      *overrides,
    ],
    env={**os.environ, "JAX_ENABLE_X64": "1"},
    capture_output=True,
    text=True,
  )
  assert child.returncode == 0, child.stderr
  short_run.same(tmp_path / "run", finished)


def test_chips_that_are_not_finite_are_named(run, after, capsys, monkeypatch):
  def classify(*_, **__):
    raise errors.InputError("device: got chip 3, whose weights are not finite")

  workdir = after("train")
  monkeypatch.setattr(monte_carlo, "classify", classify)
  assert run(workdir, "--stages=robustness") == 2
  error = short_run.one_line(capsys)
  assert (
    "config.robustness.scenarios, stuck_off at 0.0, net found, fixed "
    "statistics: dev" in error
  )


@pytest.mark.slow
def test_fault_aware_pretraining_compiles_once_and_resumes_to_the_same_bits(
  run, finished, tmp_path, capsys, caplog
):
  fields = {"pretrain.faulty_widths": 1}
  with jax.log_compiles():
    assert run(tmp_path, "--stages=pretrain", **fields) == 0
  # All of its width vectors and chips have one program.
  for name in ("warm_up", "sandwich"):
    compiled = f"Finished XLA compilation of jit({name})"
    assert sum(compiled in message for message in caplog.messages) == 1
  assert "accuracy_faulty" in capsys.readouterr().out
  last = tmp_path / "pretrain" / "8"
  weights = short_run.arrays(last)
  assert weights != short_run.arrays(finished / "pretrain" / "8")
  last.rename(tmp_path / "away")
  assert run(tmp_path, "--stages=pretrain", **fields) == 0
  assert weights == short_run.arrays(last)
  # What the super-net was trained on does not change under the search.
  fields["search.scenarios"] = "({'stuck_on': 0.01},)"
  capsys.readouterr()
  assert run(tmp_path, "--stages=search", **fields) == 2
  assert "config.pretrain.devices was" in capsys.readouterr().err


@pytest.mark.slow
def test_nets_on_chips_compile_once_resume_and_have_statistics(
  run, after, tmp_path, caplog
):
  fields = {
    "train.nets": "('found_chips',)",
    "hardware_aware.ramp": (0.0, 0.5),
    "robustness.batch_norm": "('design',)",
    "robustness.calibration_images": 64,
    "robustness.design_chips": 3,
  }
  workdir = after("search")
  jax.config.update("jax_log_compiles", True)  # on all threads
  try:
    assert run(workdir, "--stages=train", **fields) == 0
  finally:
    jax.config.update("jax_log_compiles", False)
  compiled = "Finished XLA compilation of jit(step)"
  assert sum(compiled in message for message in caplog.messages) == 1
  folder = workdir / "train"
  weights = short_run.arrays(folder / "found_chips" / "8")
  (folder / "found_chips" / "8").rename(tmp_path / "away")
  assert run(workdir, "--stages=train,robustness", **fields) == 0
  assert weights == short_run.arrays(folder / "found_chips" / "8")
  # Of ideal weights, as loaded; on chips, the mean of chips'.
  experiment = results.open_run(workdir)
  module, variables = results.load_net("found_chips", experiment, workdir)
  images = nets.calibration_images(experiment)
  ideal = net_variables.recalibrate(module, variables, images)
  design = nets.design_statistics(module, variables, experiment)["batch_stats"]
  for tree, same in ((ideal, True), (design, False)):
    mean = tree["bn_head"]["mean"]
    close = np.allclose(mean, variables["batch_stats"]["bn_head"]["mean"], 1e-4)
    assert close == same
  measured = json.loads(results.robustness_path(workdir).read_text())
  sweeps = measured["nets"]["found_chips"]["sweeps"]
  severity = sweeps["design"]["stuck_off"][1]
  accuracy = evaluation.evaluate_chips(
    experiment.key("robustness"),
    module,
    {**variables, "batch_stats": design},
    *experiment.unpadded(experiment.splits.test, 100),
    crossbar.Device(stuck_off=0.1),
    4,
  )
  assert severity["mean"] == pytest.approx(accuracy.mean())


def test_chips_are_added_to_a_wanted_interval(run, finished):
  """The first chips are those of a run without; the rest goes on from them."""
  path = finished / "robustness" / "result.json"
  before = json.loads(path.read_text())["nets"]["found"]["sweeps"]["fixed"]
  shutil.rmtree(path.parent)
  fields = {
    "robustness.chips": 16,
    "robustness.target_ci": 1e-4,
    "robustness.max_chips": 18,
    "robustness.chips_per_step": 9,
  }
  assert run(finished, "--stages=robustness", **fields) == 0
  after = json.loads(path.read_text())["nets"]["found"]["sweeps"]["fixed"]
  assert list(after) == list(before)
  for scenario, entries in after.items():
    for first, second in zip(before[scenario], entries, strict=True):
      random = len(first["accuracy"]) > 1
      assert second["chips"] == (18 if random else 1)
      got = second["accuracy"][: len(first["accuracy"])]
      assert got == first["accuracy"]
  assert not path.with_name("partial.json").exists()


def test_only_what_cannot_matter_may_change(
  run, finished, data_dir, capsys, monkeypatch
):
  """Between the starts of a run: free fields, and stages yet to begin."""
  path = finished / "config.json"
  before = path.read_text()
  assert run(finished, seed=5, train__steps=9) == 2
  message = short_run.one_line(capsys)
  assert "config.seed was 0, is 5" in message
  assert "config.train.steps was 8, is 9" in message
  assert path.read_text() == before

  original = data.load(short_run.config(data__data_dir=str(data_dir)).data)

  def settle(facts=original.facts(), **fields):  # noqa: B008
    config = short_run.config(data__data_dir=str(data_dir), **fields)
    results.settle(config, finished, facts)

  settle(log_every=3, robustness__chips_per_step=3, data__damaged="skip")
  # `data.data_dir` may change, as on another machine; its content may not.
  fetch = type(original.train.images).fetch

  def others(self, numbers):
    return [{**r, "label": (r["label"] + 1) % 10} for r in fetch(self, numbers)]

  with monkeypatch.context() as patch:
    patch.setattr(type(original.train.images), "fetch", others)
    config = short_run.config(data__data_dir=str(data_dir)).data
    other = data.load(config).facts()
  with pytest.raises(errors.InputError, match="data.resolved was .*_digest"):
    settle(other)
  for stage in ("search", "train", "robustness"):
    (finished / stage).rename(finished.with_name(stage))
  settle(search__updates=7)
  with pytest.raises(errors.InputError, match="pretrain.steps was 8, is 9"):
    settle(pretrain__steps=9)


@pytest.fixture(scope="module")
def experiment(data_dir):
  config = short_run.config(data__data_dir=str(data_dir))
  return prepare(config)


def _run_stage(stage, experiment, workdir):
  with Metrics(workdir, stream=io.StringIO()) as metrics:
    stages.STAGES[stage](experiment, workdir, metrics)


@pytest.mark.parametrize(
  "stage, before",
  [
    ("search", "pretrain"),
    ("train", "search"),
    ("robustness", "search"),
    ("report", "robustness"),
  ],
)
def test_a_stage_without_its_input_says_what_to_run(
  experiment, tmp_path, stage, before
):
  with pytest.raises(errors.InputError, match=f"run --stages {before} first"):
    _run_stage(stage, experiment, tmp_path)
  # It has not fixed the configuration either.
  config = experiment.config
  results.settle(config, tmp_path)
  config = short_run.config(data__data_dir=config.data.data_dir, seed=1)
  results.settle(config, tmp_path)


def test_a_found_width_outside_the_choices_is_named(experiment, finished):
  path = finished / "search" / "result.json"
  result = storage.read_record(path)
  result["found"][2] = 5
  storage.write_record(path, result)
  message = r"search/result.json: found\[2\]: got 5, allowed are \(4, 8\)"
  with pytest.raises(errors.InputError, match=message):
    _run_stage("train", experiment, finished)


@pytest.mark.parametrize(
  "arguments, message",
  [
    (["--stages=serch"], "--stages: got 'serch', allowed are all, pretrain"),
    (["--stages=serch"], "report; did you mean 'search'?"),
    (
      ["--config.search.updates=x"],
      "config.search.updates: got 'x', allowed is",
    ),
    (["--config.device.preset=pcn"], "isaac; did you mean 'pcm'?"),
    (["--config.data.data_dir=None"], "config.data.data_dir: got 'None', all"),
    (["--seed=3"], "line flag 'seed'; did you mean --config.seed?"),
    (["--config=none.py"], "none.py: No such file or directory: 'none.py'"),
    (["--config.serch.budget=3"], "no field 'serch'; did you mean 'search'"),
    (["--config.seed=abc"], "config.seed: got 'abc', allowed is an integer"),
    (["digits"], "command line: got 'digits', allowed are only flags"),
    (["--cnfig=3"], "Unknown command line flag 'cnfig'"),
    (["--config=nowhere/none.py"], "nowhere/none.py"),
    (["--config.data.name=digitz"], "did you mean 'digits'"),
    (["--config.data.name=cifar10"], "no cifar10 in"),
  ],
)
def test_mistakes_get_one_clear_line_before_anything_is_written(
  run, tmp_path, capsys, arguments, message
):
  workdir = tmp_path / "run"
  assert run(workdir, *arguments) == 2
  assert message in short_run.one_line(capsys)
  assert not workdir.exists()


def test_a_stage_that_is_not_needed_is_refused(run, tmp_path, capsys):
  fields = {"train.nets": "('baseline_1x',)"}
  assert run(tmp_path / "run", "--stages=pretrain", **fields) == 2
  message = "--stages: got pretrain, allowed with config.train.nets that need n"
  assert message in short_run.one_line(capsys)


@pytest.mark.parametrize(
  "line, message",
  [
    ("c.serch.budget = 3", "no field 'serch'; did you mean 'search'"),
    ("c.seed = 1.5", "seed"),
    ("c.space.choices = (8, 16, 32)", "config.space.choices: got (8, 16, 32)"),
    ("1 / 0", "ZeroDivisionError: division by zero"),
  ],
)
def test_a_bad_config_file_gets_one_clear_line(
  run, tmp_path, capsys, line, message
):
  config = tmp_path / "bad.py"
  text = pathlib.Path(short_run.CONFIG).read_text()
  config.write_text(text.replace("  return c", f"  {line}\n  return c"))
  # No overrides: what the file says stands.
  assert run(tmp_path / "run", config=config, overrides=False) == 2
  assert message in short_run.one_line(capsys)


@pytest.mark.parametrize(
  "fields, message",
  [
    ("network.depth=9", "config.network.depth: got 9, allowed is 8, 14"),
    ("network.family='imagenet'", "network.depth: got 8, allowed is one of 18"),
    ("space.choices=((8,8),(16,),(32,))", "config.space.choices, layer"),
    ("space.technology='22nm'", "config.space.technology: got '22nm'"),
    ("device.g_off=1.0", "config.device.g_off, g_on: got 1"),
    ("pretrain.warmup_steps=99", "at most pretrain.steps = 8"),
    ("pretrain.faulty_widths=3", "at most pretrain.random_widths = 2"),
    (
      "pretrain.faulty_widths=1;hardware_aware.scenarios=({'stuck_off':0.1,'"
      "wire_resistance':1.0},)",
      "config.hardware_aware.scenarios[0]: got {'stuck_off': 0.1, 'wire_",
    ),
    (
      "hardware_aware.scenarios=({'g_on':1e-4},)",
      "config.hardware_aware.scenarios[0]: got no effect, needed is one",
    ),
    (
      "hardware_aware.scenarios=({'adc_bits':1},)",
      "config.hardware_aware.scenarios[0].adc_bits: got 1, a sense amplifier",
    ),
    (
      "hardware_aware.scenarios=({'adc_bits':4,'adc_range':'calibrated'},)",
      "config.hardware_aware.scenarios[0].adc_range: got 'calibrated', allowed",
    ),
    (
      "hardware_aware.most_severity=10.0;hardware_aware.scenarios=("
      "{'stuck_off':0.2},)",
      "config.hardware_aware.most_severity = 10, hardware_aware.scenarios[0]."
      "stuck_off: got 2.0, allowed is a share",
    ),
    (
      "hardware_aware.ramp=(0.5,0.1)",
      "got (0.5, 0.1), allowed is a tuple of 2",
    ),
    (
      "hardware_aware.chips=3;train.nets=('found_chips',)",
      "config.hardware_aware.chips: got 3, allowed is a number that with",
    ),
    (
      "train.nets=('found_float_chips',);hardware_aware.scenarios=("
      "{'read_noise':1.0},)",
      "allowed is no float net on chips where scenarios have converters or",
    ),
    ("search.updates_per_call=3", "config.search.updates_per_call: got 3"),
    (
      "search.limits=(('power',1.0),)",
      "config.search.limits: got (('power', 1.0),), allowed is a tuple of pai",
    ),
    (
      "search.limits=(('area',1.0),('area',2.0))",
      "limits: got (('area', 1.0), ('area', 2.0)), allowed is one of each kind",
    ),
    (
      "search.limits=(('energy',1.0),);search.penalty=0.1",
      "config.search.limits: got (('energy', 1.0),), allowed is () with",
    ),
    (
      "search.methods=('bandit',)",
      "config.search.methods: got ('bandit',), allowed is a tuple of distinct",
    ),
    ("train.nets=('found','best')", "config.train.nets: got"),
    (
      "search.front=(0.7,);train.nets=('found_0.8',)",
      "got ('found_0.8',), allowed is a tuple of some of found_0.7, "
      "uniform_0.7, found, uniform, baseline_1x, front, each",
    ),
    ("train.microbatches=3", "a divisor of train.batch_size = 16"),
    (
      "train.use_validation=True;train.validate_every=2",
      "config.train.validate_every: got 2, allowed is 0 with",
    ),
    ("train.loss='teacher'", "config.train.teacher: got '', allowed is a file"),
    (
      "train.int8='quantized';train.nets=('baseline_1x_int8',)",
      "a tuple with 'baseline_1x_float' before 'baseline_1x_int8'",
    ),
    (
      "train.int8='quantized';train.nets=('found_float','found_int8_chips')",
      "a tuple with 'found_float_chips' before 'found_int8_chips'",
    ),
    (
      "robustness.scenarios=({'stuck_off':(0.5,1.5)},)",
      "config.robustness.scenarios[0].stuck_off: got 1.5, allowed",
    ),
    (
      "robustness.batch_norm=('chip',);robustness.calibration_images=16",
      "got 16, allowed is a multiple of robustness.calibration_batch = 64",
    ),
    (
      "robustness.batch_norm=('chip',);robustness.calibration_images=2048",
      "config.robustness.calibration_images: got 2048, allowed is at most",
    ),
    (
      "robustness.calibration_images=2048;robustness.scenarios=("
      "{'adc_bits':4,'adc_range':'calibrated'},)",
      "config.robustness.calibration_images: got 2048, allowed is at most",
    ),
    (
      "robustness.compensation='global';robustness.batch_norm=('chip',)",
      "config.robustness.compensation: got 'global', allowed is 'none' without",
    ),
    (
      "robustness.batch_norm=('chip','chip')",
      "config.robustness.batch_norm: got ('chip', 'chip'), allowed is a tuple "
      "of distinct ones of 'fixed', 'design', 'chip'",
    ),
    (
      "robustness.batch_norm='chip'",
      "config.robustness.batch_norm: got 'chip', allowed is a tuple of",
    ),
    (
      "robustness.target_ci=0.1;robustness.chips=15",
      "config.robustness.chips: got 15, allowed",
    ),
    (
      "robustness.target_ci=0.1;robustness.chips=16;robustness.max_chips=15",
      "config.robustness.max_chips: got 15, allowed is at least",
    ),
    # Of what the data and the nets' costs allow.
    ("data.validation_images=2000", "config.data.validation_images: got"),
    ("search.budget=3.0", "config.search.budget: got 3 arrays, allowed"),
    (
      "search.budget_of='resnet20_hawis_a'",
      "search.budget_of: got 'resnet20_hawis_a', allowed are numbers and",
    ),
    ("search.front=(0.01,)", "config.search.front = (0.01,): got "),
    (
      "search.limits=(('energy',1e-15),)",
      "config.search.limits: got energy 1e-15, allowed is at least",
    ),
  ],
)
def test_fields_that_do_not_go_together_are_named(data_dir, fields, message):
  config = short_run.config(data__data_dir=str(data_dir))
  fields = dict(field.split("=") for field in fields.split(";"))
  config.update_from_flattened_dict(
    {name: ast.literal_eval(value) for name, value in fields.items()}
  )
  with pytest.raises(errors.InputError) as info:
    settings.validate(config)
    prepare(config)
  assert message in str(info.value) and "\n" not in str(info.value)


@pytest.mark.slow
def test_every_other_choice_runs_to_the_end(run, tmp_path, capsys):
  """MACs, two budgets, the super-net as teacher, chips' own BN..."""
  fields = {
    "space.cost": "macs",
    "search.methods": "('policy','ppo','evolution')",
    "search.batch_norm": "chip",
    "search.selection": 3.0,
    "search.selected": 4,
    "search.front": "(0.8,)",
    "search.updates_per_call": 2,
    "search.reward": "cross_entropy",
    "train.loss": "supernet",
    "train.optimizer.name": "sgd",
    "train.optimizer.schedule": "multistep",
    "train.optimizer.weight_decay": 1e-4,
    "train.nets": "('found','front','uniform_0.8')",
    "robustness.batch_norm": "('chip','fixed')",
    "robustness.compensation": "global",
    "robustness.calibration_images": 64,
    "robustness.scenarios": "({'variation':(0.3,)},)",
    "pretrain.distill": False,
    "data.augment": "flip_crop",
  }
  assert run(tmp_path, **fields) == 0, capsys.readouterr().err
  path = tmp_path / "robustness" / "result.json"
  sweeps = json.loads(path.read_text())["nets"]["found"]["sweeps"]
  assert list(sweeps) == ["chip", "fixed"]
  chip, fixed = (sweep["variation"][0]["accuracy"] for sweep in sweeps.values())
  assert len(chip) == len(fixed) == 4 and chip != fixed
  result = json.loads((tmp_path / "search" / "result.json").read_text())
  assert len(result["budgets"]) == 2 and result["main_budget"] == 1
  for method in ("policy", "ppo", "evolution"):
    for entry in result["candidates"][method]:
      budget = result["budgets"][entry["budget"]]
      assert 0.95 * budget * 0.99 <= entry["cost"]["macs"] <= budget
  assert len(result["reports"]["policy"]["correlation"]) == 4
  first, last = result["selection"]["rounds"]
  uniform = result["best"]["uniform"][1]["widths"]
  assert first[0]["widths"] == last[0]["widths"] == uniform
  best = max(last, key=lambda entry: entry["mean"])
  assert result["found"] == best["widths"]
  (known,) = [
    entry["score"]
    for entry in result["candidates"]["uniform"]
    if entry["budget"] == 1
  ]
  assert last[0]["mean"] == (last[0]["score"] + known) / 2
  energy = [entry["energy_joule"] for entry in result["front"]]
  score = [entry["score"] for entry in result["front"]]
  assert energy == sorted(energy) and score == sorted(score)
  # One net of every budget, and the uniform one of the lesser.
  nets = json.loads(path.read_text())["nets"]
  assert list(nets) == ["found", "found_0.8", "uniform_0.8"]
  lesser = result["best"]["policy"][0]["widths"]
  assert nets["found_0.8"]["widths"] == lesser
  assert nets["uniform_0.8"]["macs"] <= result["budgets"][0]
  table = (tmp_path / "report" / "trained_front.csv").read_text()
  assert {line.split(",")[0] for line in table.splitlines()[1:]} == {*nets}


# A float teacher, a binary student of it, and the 8-bit net quantised from it.
_REFERENCES = {
  "train.nets": "('baseline_1x_float','baseline_1x','baseline_1x_int8')",
  "robustness.float_nets": "True",
  "train.loss": "teacher",
  "train.teacher": "baseline_1x_float",
  "train.int8": "quantized",
  "train.ema": 0.5,
  "train.microbatches": 2,
  "train.label_smoothing": 0.1,
  "train.weight_penalty": 1e-4,
  "train.validate_every": 4,
  "train.select": "best",
  "robustness.scenarios": "({'variation':(0.0,)},)",
  "robustness.calibration_images": 64,
  "network.rprelu": True,
  "network.channel_scale": True,
  "network.learned_thresholds": True,
}


@pytest.fixture
def references(after):
  """Returns a function: the work directory of reference nets after a stage."""
  stages = "train", "robustness", "report"
  return functools.partial(
    after, name="references", stages=stages, **_REFERENCES
  )


def _scores(workdir):
  """{(stage, step): accuracy on validation images}."""
  return {
    (line["stage"], line["step"]): line["values"]["accuracy_validation"]
    for line in short_run.metrics(workdir)
    if "accuracy_validation" in line["values"]
  }


def test_reference_nets_and_a_teacher_need_no_search(references):
  workdir = references("train")
  assert not (workdir / "search").exists()
  scores, nets = _scores(workdir), ("baseline_1x_float", "baseline_1x")
  assert list(scores) == [
    (f"train/{net}", step) for net in nets for step in (4, 8)
  ]
  for net in nets:
    place = f"train/{net}"
    best = 4 if scores[place, 4] >= scores[place, 8] else 8
    (kept,) = (workdir / place / "best").iterdir()
    assert kept.name == str(best)


def test_best_nets_are_measured_and_the_8_bit_one_is_the_teacher_quantised(
  references,
):
  workdir = references("report")
  nets = json.loads((workdir / "robustness" / "result.json").read_text())
  nets, scores = nets["nets"], _scores(workdir)
  bits = {name: net["weight_bits"] for name, net in nets.items()}
  assert bits == dict(zip(bits, (32, 1, 8), strict=True))
  for name in nets:
    (ideal,) = nets[name]["sweeps"]["fixed"]["variation"]
    assert ideal["mean"] == pytest.approx(nets[name]["clean"], abs=0.0101)
    assert nets[name]["test_images"] == 100
  for net in nets:
    source = "baseline_1x_float" if net.endswith("_int8") else net
    place = f"train/{source}"
    best = 4 if scores[place, 4] >= scores[place, 8] else 8
    assert nets[net]["step"] == best
  page = (workdir / "report" / "index.html").read_text()
  assert "8-bit" in page and "float" in page


def test_a_teacher_of_another_shape_stops_before_training(
  run, tmp_path, capsys
):
  np.savez(
    tmp_path / "teacher.npz", **{"conv1.weight": np.zeros((16, 1, 3, 3))}
  )
  fields = {
    "train.nets": "('baseline_1x',)",
    "train.loss": "teacher",
    "train.teacher": str(tmp_path / "teacher.npz"),
    "train.teacher_depth": 8,
  }
  assert run(tmp_path / "run", **fields) == 2
  error = short_run.one_line(capsys)
  assert "config.train.teacher" in error and "missing linear.weight" in error
  assert not (tmp_path / "run").exists()


def test_two_runs_in_one_workdir_are_refused(run, finished, capsys):
  with storage.locked(finished):
    assert run(finished) == 2
  assert "another process is running in it" in short_run.one_line(capsys)


def test_an_unwritable_workdir_is_named(run, tmp_path, capsys):
  (tmp_path / "file").write_text("in the way")
  assert run(tmp_path / "file" / "run") == 2
  assert f"can't write {tmp_path / 'file'}" in short_run.one_line(capsys)


_READ_OUT = (
  "({'wire_resistance':(0.0,5.0),'load_resistance':4.0},"
  "{'adc_bits':(4,),'adc_range':'calibrated'},"
  "{'read_noise':(50.0,),'adc_bits':6},"
  "{'name':'chip 7','fault_map':'FAULTS'},"
  "{'stuck_off':0.1,'placing':('polarity','permutation'),'copies':2})"
)


def _fault_map(path, shape):
  """A measured chip whose stem has no current at all."""
  interop.save_faults(path, {"stem": np.full(shape, -1, np.int8)})
  return {
    "train.nets": "('baseline_1x','baseline_1x_int8')",
    "robustness.calibration_images": 64,
    "robustness.scenarios": _READ_OUT.replace("FAULTS", str(path)),
  }


@pytest.mark.slow
def test_every_way_of_read_out_runs_to_the_end(run, tmp_path, capsys):
  """Binary and 8-bit nets; one chip where nothing is random."""
  fields = _fault_map(tmp_path / "chip7.npz", (1, 5, 1, 2, 64, 64))
  workdir = tmp_path / "run"
  assert run(workdir, **fields) == 0, capsys.readouterr().err
  result = json.loads((workdir / "robustness" / "result.json").read_text())
  for net in result["nets"].values():
    sweeps = net["sweeps"]["fixed"]
    assert list(sweeps) == [
      "load_resistance = 4.0: wire_resistance",
      "adc_range = calibrated: adc_bits",
      "adc_bits = 6: read_noise",
      "chip 7: fault_map",
      "polarity and permutation, copies = 2: stuck_off",
    ]
    chips = [[e["chips"] for e in entries] for entries in sweeps.values()]
    assert chips == [[1, 1], [1], [4], [1], [4]]
    # A dead stem makes all images alike.
    (dead,) = sweeps["chip 7: fault_map"]
    assert dead["mean"] < 0.2
    clipped = [e[0].get("clipped") for e in sweeps.values()]
    are_counted = [False, True, True, False, False]
    assert [bool(shares) for shares in clipped] == are_counted
    assert set(clipped[1]) == set(clipped[2]) and "stem" in clipped[1]
    # A calibrated range clips a thousandth of some tile's, full scale nothing.
    assert max(clipped[1].values()) > 0 == max(clipped[2].values())
  page = (workdir / "report" / "index.html").read_text()
  assert "wires of 5 Ω a cell, loads of 4 Ω" in page
  assert "the measured faults" in page and "Conversions that clip" in page


def test_a_fault_map_that_does_not_fit_is_refused_first(run, tmp_path, capsys):
  fields = _fault_map(tmp_path / "small.npz", (1, 1, 1, 2, 64, 64))
  workdir = tmp_path / "run"
  assert run(workdir, **fields) == 2
  error = short_run.one_line(capsys)
  assert "net baseline_1x: faults of stem: got an array of shape (1, 1" in error
  assert not workdir.exists()


def test_a_fault_map_has_the_copies_too(run, tmp_path, capsys):
  fields = _fault_map(tmp_path / "chip7.npz", (1, 5, 1, 2, 64, 64))
  scenarios = fields["robustness.scenarios"].replace(
    "'fault_map'", "'copies':2,'fault_map'"
  )
  fields["robustness.scenarios"] = scenarios
  assert run(tmp_path / "run", **fields) == 2
  error = short_run.one_line(capsys)
  assert "faults of stem: got an array of shape (1, 5, 1, 2, 64, 64)" in error
  assert "needed is at least (2, 2, 1" in error
