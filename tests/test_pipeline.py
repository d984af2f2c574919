"""The main job from end to end on digits, shortened: run, resume, refuse."""

import json
import pathlib
import re
import shutil

import jax
import numpy as np
import pytest
import short_run

from hawis_jax import data
from hawis_jax import files
from hawis_jax import interop
from hawis_jax import metrics
from hawis_jax import pretrain
from hawis_jax import resnet
from hawis_jax import search
from hawis_jax import train
from hawis_jax.data import sources


def test_everything_runs_and_a_second_run_repeats_nothing(
  run, finished_dir, capsys, monkeypatch
):
  finished = finished_dir
  shutil.rmtree(finished)  # whichever test came first
  assert run(finished) == 0
  first = capsys.readouterr().out
  for stage in ("pretrain", "search", "train/found", "robustness"):
    assert re.search(rf"^{stage} .*ETA 0:00", first, re.MULTILINE), stage
  page = (finished / "report" / "index.html").read_text()
  result = json.loads((finished / "search" / "result.json").read_text())
  nets = json.loads((finished / "robustness" / "result.json").read_text())
  assert set(nets["nets"]) == {"found", "baseline_1x", "uniform"}
  assert nets["nets"]["found"]["widths"] == result["found"]
  budget = result["budgets"][result["main_budget"]]
  assert nets["nets"]["found"]["arrays"] <= budget
  for net in nets["nets"].values():
    assert f"{net['arrays']}" in page
    for sweep in net["sweeps"].values():
      for level in sweep:  # nothing random at level 0
        assert len(level["accuracy"]) == (4 if level["level"] else 1)
    ideal = net["sweeps"]["stuck_off"][0]
    assert ideal["mean"] == pytest.approx(net["clean"]) and ideal["std"] == 0
  files = {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()}
  files.pop(finished / "config.json")

  def refuse(*args, **kwargs):
    raise AssertionError("computed again")

  for module, name in ((pretrain, "sandwich_step"), (train, "train_step")):
    monkeypatch.setattr(module, name, refuse)
  monkeypatch.setattr(search, "search_step", refuse)
  assert run(finished) == 0
  again = capsys.readouterr().out
  assert "ETA" not in again and "begins" not in again
  assert files == {p: p.stat().st_mtime_ns for p in files}


def test_interrupted_and_resumed_equals_uninterrupted(
  run, finished, tmp_path, monkeypatch
):
  """Cut off in every stage; results, metrics and weights equal to the bit."""
  report = metrics.Progress.report
  for stage, step in (
    ("pretrain", 4),
    ("pretrain", 6),
    ("search", 2),
    ("search/finalists", 8),
    ("train/found", 4),
    ("train/uniform", 6),
    ("robustness", 3),  # half of a level's chips
    ("robustness", 16),
  ):

    def interrupted(self, done, values, stage=stage, step=step):
      report(self, done, values)
      if (self._name, done) == (stage, step):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
      patch.setattr(metrics.Progress, "report", interrupted)
      with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
  assert run(tmp_path) == 0
  expected, got = short_run.state(finished), short_run.state(tmp_path)
  for name in expected:
    assert got[name] == expected[name], name


@pytest.mark.slow
def test_fault_aware_pretraining_resumes_to_the_same_bits(
  run, tmp_path, monkeypatch, capsys
):
  fields = {"pretrain.faulty_widths": 1}
  report = metrics.Progress.report

  def interrupted(self, done, values):
    report(self, done, values)
    if done == 6:
      raise KeyboardInterrupt

  once, twice, ideal = (tmp_path / name for name in ("once", "twice", "ideal"))
  assert run(once, "--stages=pretrain", **fields) == 0
  assert "accuracy_faulty" in capsys.readouterr().out
  with monkeypatch.context() as patch:
    patch.setattr(metrics.Progress, "report", interrupted)
    with pytest.raises(KeyboardInterrupt):
      run(twice, "--stages=pretrain", **fields)
  assert run(twice, "--stages=pretrain", **fields) == 0
  assert run(ideal, "--stages=pretrain") == 0
  weights = [
    short_run.arrays(d / "pretrain" / "8") for d in (once, twice, ideal)
  ]
  assert weights[0] == weights[1] != weights[2]
  # What the super-net was trained on does not change under the search.
  fields["search.scenarios"] = "({'stuck_on': 0.01},)"
  capsys.readouterr()
  assert run(once, "--stages=search", **fields) == 2
  assert "config.pretrain.devices was" in capsys.readouterr().err


def test_chips_are_added_to_a_wanted_interval(run, finished, tmp_path, capsys):
  """The first chips are those of a run without; the rest goes on from them."""
  shutil.copytree(finished, tmp_path / "more")
  shutil.rmtree(tmp_path / "more" / "robustness")
  (tmp_path / "more" / "config.json").unlink()
  fields = {
    "robustness.chips": 16,
    "robustness.target_ci": 1e-4,
    "robustness.max_chips": 18,
    "robustness.chips_per_step": 9,
  }
  workdir = tmp_path / "more"
  assert run(workdir, "--stages=robustness", **fields) == 0
  before, after = (
    json.loads((folder / "robustness" / "result.json").read_text())["nets"]
    for folder in (finished, workdir)
  )
  for net, entry in after.items():
    for scenario, levels in entry["sweeps"].items():
      old = before[net]["sweeps"][scenario]
      for first, second in zip(old, levels, strict=True):
        spread = np.ptp(second["accuracy"][:16])
        random = len(first["accuracy"]) > 1
        assert second["chips"] == (18 if spread else 16 if random else 1)
        got = second["accuracy"][: len(first["accuracy"])]
        assert got == first["accuracy"]
  assert not (workdir / "robustness" / "partial.json").exists()
  fields["robustness.max_chips"] = 15
  assert run(tmp_path / "few", **fields) == 2
  message = capsys.readouterr().err
  assert "config.robustness.max_chips: got 15, allowed is at least" in message
  fields["robustness.chips"] = 15
  assert run(tmp_path / "few", **fields) == 2
  assert "config.robustness.chips: got 15, allowed" in capsys.readouterr().err


def test_results_of_other_chips_are_not_mixed(run, finished, tmp_path, capsys):
  """result.json of an earlier revision, whose chip numbers meant others."""
  shutil.copytree(finished, tmp_path / "old")
  path = tmp_path / "old" / "robustness" / "result.json"
  result = files.read_record(path)
  del result["format"]
  files.write_record(path, result)
  assert run(tmp_path / "old", "--stages=robustness") == 2
  message = capsys.readouterr().err
  assert "got results of format 1, allowed is 2" in message
  assert message.count("\n") == 1
  assert files.read_record(path) == result


def test_one_compilation_serves_all_width_vectors(run, tmp_path, monkeypatch):
  """The super-net is traced a fixed number of times, whatever the steps."""
  traces = []
  call = resnet.CifarResNet.__call__

  def counted(self, bits, widths=None, *, train):
    if isinstance(widths, jax.core.Tracer):
      traces.append(widths.shape)
    return call(self, bits, widths, train=train)

  counts = []
  for steps in (4, 9):
    traces.clear()
    with monkeypatch.context() as patch:
      patch.setattr(resnet.CifarResNet, "__call__", counted)
      arguments = ("--stages=pretrain",)
      fields = {"pretrain.steps": steps, "pretrain.warmup_steps": 1}
      assert run(tmp_path / str(steps), *arguments, **fields) == 0
    counts.append(len(traces))
  assert counts[0] == counts[1] > 0


def test_another_configuration_is_refused(run, finished, tmp_path, capsys):
  finished = shutil.copytree(finished, tmp_path / "run")
  before = (finished / "config.json").read_text()
  assert run(finished, seed=5, train__steps=9) == 2
  message = capsys.readouterr().err
  assert message.startswith("error: ") and message.count("\n") == 1
  assert "config.seed was 0, is 5" in message
  assert "config.train.steps was 8, is 9" in message
  assert (finished / "config.json").read_text() == before
  # What can't matter is not refused.
  assert run(finished, log_every=3, robustness__chips_per_step=3) == 0
  assert run(finished, data__damaged="skip") == 0


def test_another_data_set_in_the_folder_is_refused(
  run, finished, capsys, monkeypatch
):
  """`data.data_dir` may change, as on another machine; its content may not."""
  fetch = sources.Images.fetch

  def others(self, numbers):
    return [{**r, "label": (r["label"] + 1) % 10} for r in fetch(self, numbers)]

  monkeypatch.setattr(sources.Images, "fetch", others)
  assert run(finished) == 2
  error = capsys.readouterr().err
  assert "config.data.resolved was" in error and "'train_digest': '" in error


def test_a_later_stage_may_change_before_it_begins(run, tmp_path, capsys):
  assert run(tmp_path, "--stages=pretrain") == 0
  assert run(tmp_path, "--stages=pretrain", search__updates=7) == 0
  assert run(tmp_path, "--stages=pretrain", pretrain__steps=9) == 2
  assert "config.pretrain.steps was 8, is 9" in capsys.readouterr().err


@pytest.mark.parametrize("stage", ["search", "train", "robustness", "report"])
def test_a_stage_without_its_input_says_what_to_run(
  run, tmp_path, capsys, stage
):
  assert run(tmp_path, f"--stages={stage}") == 2
  before = {"search": "pretrain", "report": "robustness"}.get(stage, "search")
  assert f"run --stages {before} first" in capsys.readouterr().err


def test_a_found_width_outside_the_choices_is_named(
  run, finished, tmp_path, capsys
):
  shutil.copytree(finished / "search", tmp_path / "search")
  path = tmp_path / "search" / "result.json"
  result = files.read_record(path)
  result["found"][2] = 5
  files.write_record(path, result)
  assert run(tmp_path, "--stages=train") == 2
  error = capsys.readouterr().err
  assert "search/result.json: found[2]: got 5, allowed are (4, 8)" in error


@pytest.mark.parametrize(
  "stage", ["pretrain", pytest.param("train", marks=pytest.mark.slow)]
)
def test_divergence_stops_with_the_last_good_checkpoint(
  run, tmp_path, capsys, monkeypatch, stage
):
  """From step 5 on the loss is NaN: step 4 is the last checkpoint."""
  module, name = {
    "pretrain": (pretrain, "sandwich_step"),
    "train": (train, "train_step"),
  }[stage]
  stages = "pretrain" if stage == "pretrain" else "pretrain,search,train"
  original = getattr(module, name)
  batches = data.train_batches

  def poisoned(source, *, start_step, **kwargs):
    stream = batches(source, start_step=start_step, **kwargs)
    for step, batch in enumerate(stream, start_step):
      bad = np.full(len(batch["label"]), np.nan if step >= 4 else 0)
      yield {**batch, "bad": bad.astype(np.float32)}

  def step_function(state, *args, **kwargs):
    batch = next(a for a in args if isinstance(a, dict))
    state, values = original(state, *args, **kwargs)
    return state, {**values, "loss": values["loss"] + batch["bad"].sum()}

  with monkeypatch.context() as patch:
    patch.setattr(module, name, step_function)
    if stage == "train":
      assert run(tmp_path, "--stages=pretrain,search") == 0
    patch.setattr(data, "train_batches", poisoned)
    assert run(tmp_path, f"--stages={stages}") == 2
  message = capsys.readouterr().err
  assert "loss is nan at step 5" in message
  folder = tmp_path / ("pretrain" if stage == "pretrain" else "train/found")
  assert f"last good checkpoint: step 4 in {folder}" in message
  # Nothing bad was saved: the healed run goes on from there.
  assert run(tmp_path, f"--stages={stages}") == 0


def test_a_corrupt_checkpoint_is_skipped_or_named(run, tmp_path, capsys):
  assert run(tmp_path, "--stages=pretrain") == 0
  steps = sorted(
    (tmp_path / "pretrain").glob("[0-9]*"), key=lambda p: int(p.name)
  )
  assert [p.name for p in steps] == ["6", "8"]

  def truncate(folder):
    for path in folder.rglob("*"):
      if path.is_file() and path.stat().st_size > 1000:
        path.write_bytes(path.read_bytes()[:-100])

  good = short_run.arrays(steps[1])
  truncate(steps[1])
  assert run(tmp_path, "--stages=pretrain") == 0  # from step 6 again
  assert short_run.arrays(steps[1]) == good
  for step in (tmp_path / "pretrain").glob("[0-9]*"):
    truncate(step)
  capsys.readouterr()
  assert run(tmp_path, "--stages=pretrain") == 2
  message = capsys.readouterr().err
  assert message.startswith("error: ") and str(tmp_path / "pretrain") in message
  assert message.count("\n") == 1


_MISTAKES = [
  (["--stages=serch"], {}, "--stages: got 'serch', allowed are all, pretrain"),
  (["--config.serch.budget=3"], {}, "no field 'serch'; did you mean 'search'"),
  (["--config.search.budgt=3"], {}, "'budgt'; did you mean 'budget'"),
  (["digits"], {}, "command line: got 'digits', allowed are only flags"),
  (["--cnfig=3"], {}, "Unknown command line flag 'cnfig'"),
  ([], {"seed": "abc"}, "config.seed=abc"),
  ([], {"seed": -1}, "config.seed: got -1, allowed is an integer from 0"),
  ([], {"data.name": "digitz"}, "did you mean 'digits'"),
  ([], {"data.name": "cifar10"}, "no cifar10 in"),
  ([], {"data.levels": 7}, "config.data.levels: got 7, allowed is one of"),
  ([], {"data.validation_images": 2000}, "config.data.validation_images: got"),
  ([], {"search.images": 65}, "config.search.images: got 65, allowed is at"),
  ([], {"pretrain.batch_size": 9999}, "config.pretrain.batch_size: got 9999"),
  ([], {"network.depth": 9}, "config.network.depth: got 9, allowed is 8, 14"),
  ([], {"search.budget": 3}, "config.search.budget: got 3 arrays, allowed"),
  (
    [],
    {"search.budget_of": "resnet20_hawis_a"},
    "config.search.budget_of: got 'resnet20_hawis_a', allowed are numbers and",
  ),
  (
    [],
    {"search.front": "(0.01,)"},
    "config.search.front = (0.01,): got ",
  ),
  (
    [],
    {"search.limits": "(('power',1.0),)"},
    "config.search.limits: got (('power', 1.0),), allowed is a tuple of pairs",
  ),
  (
    [],
    {"search.limits": "(('energy',1e-15),)"},
    "config.search.limits: got energy 1e-15, allowed is at least",
  ),
  (
    [],
    {"search.limits": "(('area',1.0),('area',2.0))"},
    "config.search.limits: got (('area', 1.0), ('area', 2.0)), allowed is one",
  ),
  (
    [],
    {"search.limits": "(('energy',1.0),)", "search.penalty": 0.1},
    "config.search.limits: got (('energy', 1.0),), allowed is () with",
  ),
  (
    [],
    {"search.methods": "('policy',)"},
    "config.search.methods: got ('policy',), allowed is a tuple of distinct",
  ),
  ([], {"search.updates_per_call": 3}, "config.search.updates_per_call: got 3"),
  ([], {"space.cost": "interval"}, "config.space.cost: got 'interval'"),
  ([], {"space.technology": "22nm"}, "config.space.technology: got '22nm'"),
  ([], {"space.choices": "((8,8),(16,),(32,))"}, "config.space.choices, layer"),
  ([], {"space.choices": "((8,),(16,))"}, "config.space.choices: got 2 tuples"),
  ([], {"train.nets": "('found','best')"}, "config.train.nets: got"),
  ([], {"train.optimizer.name": "sdg"}, "config.train.optimizer.name: got"),
  (
    [],
    {"robustness.scenarios": "({'stuck_off':(0.5,1.5)},)"},
    "config.robustness.scenarios[0].stuck_off: got 1.5, allowed",
  ),
  ([], {"search.calibration_images": 65}, "a multiple of search.batch_size"),
  ([], {"pretrain.faulty_widths": 3}, "at most pretrain.random_widths = 2"),
  (
    [],
    {"pretrain.faulty_widths": 1, "search.scenarios": "({'adc_bits': 6},)"},
    "pretrain.faulty_widths: got 1, allowed is 0: no scenario of",
  ),
  ([], {"pretrain.warmup_steps": 99}, "at most pretrain.steps = 8"),
  ([], {"device.g_off": 1.0}, "config.device.g_off, g_on: got 1"),
  ([], {"train.nets": "('resnet18_1x',)"}, "config.train.nets: got"),
  ([], {"train.microbatches": 3}, "a divisor of train.batch_size = 16"),
  ([], {"train.ema": 1.0}, "config.train.ema: got 1.0, allowed is a number"),
  ([], {"train.loss": "teacher"}, "config.train.teacher: got '', allowed is"),
  (
    [],
    {"train.loss": "teacher", "train.teacher": "no/such.pth"},
    "config.train.teacher: got 'no/such.pth', allowed is a file",
  ),
  (
    [],
    {"train.int8": "quantized", "train.nets": "('baseline_1x_int8',)"},
    "a tuple with 'baseline_1x_float' before 'baseline_1x_int8'",
  ),
  (
    ["--stages=pretrain"],
    {"train.nets": "('baseline_1x',)"},
    "--stages: got pretrain, allowed with config.train.nets that need no",
  ),
  (
    [],
    {"train.use_validation": True, "train.validate_every": 2},
    "config.train.validate_every: got 2, allowed is 0 with",
  ),
  (
    [],
    {"network.family": "imagenet", "network.depth": 20},
    "config.network.depth: got 20, allowed is one of 18",
  ),
]


@pytest.mark.parametrize("arguments, fields, message", _MISTAKES)
def test_mistakes_get_one_clear_line_before_anything_is_written(
  run, tmp_path, capsys, arguments, fields, message
):
  workdir = tmp_path / "run"
  assert run(workdir, *arguments, **fields) == 2
  error = capsys.readouterr().err
  assert error.startswith("error: ") and error.count("\n") == 1
  assert message in error
  assert not workdir.exists()


@pytest.mark.slow
def test_every_other_choice_runs_to_the_end(run, tmp_path, capsys):
  """MACs, two budgets, the super-net as teacher, chips' own BN..."""
  fields = {
    "space.cost": "macs",
    "search.methods": "('ppo','evolution')",
    "search.front": "(0.8,)",
    "search.updates_per_call": 2,
    "search.signal": "cross_entropy",
    "train.loss": "supernet",
    "train.optimizer.name": "sgd",
    "train.optimizer.schedule": "multistep",
    "train.optimizer.weight_decay": 1e-4,
    "train.nets": "('found',)",
    "robustness.batch_norm": "chip",
    "robustness.calibration_images": 64,
    "robustness.scenarios": "({'variation':(0.3,)},)",
    "pretrain.distill": False,
    "data.augment": "flip_crop",
  }
  assert run(tmp_path, **fields) == 0, capsys.readouterr().err
  result = json.loads((tmp_path / "search" / "result.json").read_text())
  assert len(result["budgets"]) == 2 and result["main_budget"] == 1
  for method in ("ppo", "evolution"):
    for entry in result["finalists"][method]:
      budget = result["budgets"][entry["budget"]]
      assert 0.95 * budget * 0.99 <= entry["cost"]["macs"] <= budget
  energy = [entry["energy_joule"] for entry in result["front"]]
  score = [entry["score"] for entry in result["front"]]
  assert energy == sorted(energy) and score == sorted(score)
  nets = json.loads((tmp_path / "robustness" / "result.json").read_text())
  assert list(nets["nets"]) == ["found"]


def test_counterparts_and_a_teacher_need_no_search(run, tmp_path, capsys):
  """Float teacher, binary students of it, the 8-bit net quantised from it."""
  fields = {
    "train.nets": "('baseline_1x_float','baseline_1x','baseline_1x_int8')",
    "train.loss": "teacher",
    "train.teacher": "baseline_1x_float",
    "train.int8": "quantized",
    "train.ema": 0.5,
    "train.microbatches": 2,
    "train.label_smoothing": 0.1,
    "train.weight_penalty": 1e-4,
    "train.validate_every": 4,
    "train.select": "best",
    "robustness.images": 100,
    "network.rprelu": True,
    "network.channel_scale": True,
    "network.learned_thresholds": True,
  }
  assert run(tmp_path, **fields) == 0, capsys.readouterr().err
  assert not (tmp_path / "search").exists()
  nets = json.loads((tmp_path / "robustness" / "result.json").read_text())
  nets = nets["nets"]
  assert not nets["baseline_1x_float"]["sweeps"]
  assert nets["baseline_1x_int8"]["sweeps"]["stuck_off"][1]["std"] >= 0
  bits = {name: net["weight_bits"] for name, net in nets.items()}
  assert bits == dict(zip(bits, (32, 1, 8), strict=True))
  for name in ("baseline_1x", "baseline_1x_int8"):
    ideal = nets[name]["sweeps"]["stuck_off"][0]
    assert ideal["mean"] == pytest.approx(nets[name]["clean"], abs=0.0101)
    assert nets[name]["test_images"] == 100
  curve = [
    (line["stage"], line["step"])
    for line in short_run.metrics(tmp_path)
    if "accuracy_validation" in line["values"]
  ]
  assert curve == [
    (f"train/{net}", step)
    for net in ("baseline_1x_float", "baseline_1x")
    for step in (4, 8)
  ]
  scores = {
    (line["stage"], line["step"]): line["values"]["accuracy_validation"]
    for line in short_run.metrics(tmp_path)
    if "accuracy_validation" in line["values"]
  }
  for net in nets:
    source = "baseline_1x_float" if net.endswith("_int8") else net
    place = f"train/{source}"
    best = 4 if scores[place, 4] >= scores[place, 8] else 8
    assert nets[net]["step"] == best
    (kept,) = (tmp_path / "train" / source / "best").iterdir()
    assert kept.name == str(best)
  page = (tmp_path / "report" / "index.html").read_text()
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
  error = capsys.readouterr().err
  assert "config.train.teacher" in error and "missing linear.weight" in error
  assert error.count("\n") == 1 and not (tmp_path / "run").exists()


def test_two_runs_in_one_workdir_are_refused(run, finished, capsys):
  with files.locked(finished):
    assert run(finished) == 2
  assert "another process is running in it" in capsys.readouterr().err


def test_a_failed_stage_does_not_fix_the_configuration(run, tmp_path):
  assert run(tmp_path, "--stages=search") == 2
  assert run(tmp_path, "--stages=pretrain", pretrain__steps=4) == 0


@pytest.mark.parametrize(
  "line, message",
  [
    ("c.serch.budget = 3", "no field 'serch'; did you mean 'search'"),
    ("c.seed = 1.5", "seed"),
    ("c.space.choices = (8, 16, 32)", "config.space.choices: got (8, 16, 32)"),
    ("c.search.scenarios = (0.1,)", "config.search.scenarios: got (0.1,)"),
    ("c.search.scenarios = (dict(stuck_of=0.1),)", "did you mean 'stuck_off'"),
    ("c.train.nets = 'found'", "nets"),
    ("1 / 0", "ZeroDivisionError: division by zero"),
    ("undefined", "NameError: name 'undefined' is not defined"),
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
  error = capsys.readouterr().err
  assert error.startswith("error: ") and error.count("\n") == 1
  assert message in error


def test_a_missing_config_file_is_named(run, tmp_path, capsys):
  assert run(tmp_path / "run", config="nowhere/none.py") == 2
  assert "nowhere/none.py" in capsys.readouterr().err


def test_an_unwritable_workdir_is_named(run, tmp_path, capsys):
  (tmp_path / "file").write_text("in the way")
  assert run(tmp_path / "file" / "run") == 2
  assert f"can't write {tmp_path / 'file'}" in capsys.readouterr().err


_READ_OUT = (
  "({'wire_resistance':(0.0,5.0),'load_resistance':4.0},"
  "{'adc_bits':(4,),'adc_range':'calibrated'},"
  "{'read_noise':(50.0,),'adc_bits':6},"
  "{'name':'chip 7','fault_map':'FAULTS'})"
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
    levels = {key: entries for key, entries in net["sweeps"].items()}
    assert list(levels) == [
      "load_resistance = 4.0: wire_resistance",
      "adc_range = calibrated: adc_bits",
      "adc_bits = 6: read_noise",
      "chip 7: fault_map",
    ]
    chips = [[e["chips"] for e in entries] for entries in levels.values()]
    assert chips == [[1, 1], [1], [4], [1]]
    # A dead stem makes all images alike.
    (dead,) = levels["chip 7: fault_map"]
    assert dead["mean"] < 0.2
  page = (workdir / "report" / "index.html").read_text()
  assert "load_resistance = 4.0: wires of 5" in page
  assert "the measured faults" in page


def test_a_fault_map_that_does_not_fit_is_refused_first(run, tmp_path, capsys):
  fields = _fault_map(tmp_path / "small.npz", (1, 1, 1, 2, 64, 64))
  workdir = tmp_path / "run"
  assert run(workdir, **fields) == 2
  error = capsys.readouterr().err
  assert "net baseline_1x: faults of stem: got an array of shape (1, 1" in error
  assert error.count("\n") == 1
  assert not workdir.exists()
