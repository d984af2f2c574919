"""Results belong to what lies beside them, or are refused."""

import dataclasses
import shutil

import jax
import pytest
import short_run

from hawis_jax import crossbar
from hawis_jax import errors
from hawis_jax.pipeline import provenance
from hawis_jax.pipeline import results
from hawis_jax.pipeline.experiment import Experiment
from hawis_jax.runtime import storage


def _other_weights(use, patch):
  """Other weights, as another number of devices gives."""
  key = Experiment.key
  patch.setattr(
    Experiment,
    "key",
    lambda self, name: jax.random.fold_in(key(self, name), name == use),
  )


def _result(workdir):
  return storage.read_record(workdir / "robustness" / "result.json")["nets"]


@pytest.mark.slow
def test_accuracies_of_a_net_that_was_trained_again_are_not_its_own(
  run, finished, monkeypatch, capsys
):
  before = _result(finished)
  page = (finished / "report" / "index.html").read_bytes()
  shutil.rmtree(finished / "train" / "found")
  with monkeypatch.context() as patch:
    _other_weights("train_init", patch)
    assert run(finished) == 2
  assert "net found: it was made from another trained net (digest " in (
    short_run.one_line(capsys)
  )
  assert _result(finished) == before
  assert (finished / "report" / "index.html").read_bytes() == page
  # What no stage that is asked for makes is not removed.
  assert run(finished, "--remake", "--stages=report") == 2
  assert "--remake with --stages robustness" in short_run.one_line(capsys)
  assert run(finished, "--remake") == 0
  assert "net found: removed, to be made anew" in capsys.readouterr().out
  after = _result(finished)
  assert after["uniform"] == before["uniform"]
  assert after["found"]["inputs"] != before["found"]["inputs"]
  assert (finished / "report" / "index.html").read_bytes() != page


def test_a_search_with_another_super_net_is_not_gone_on_with(
  run, finished, monkeypatch, capsys
):
  shutil.rmtree(finished / "pretrain")
  with monkeypatch.context() as patch:
    _other_weights("pretrain_init", patch)
    assert run(finished, "--stages=pretrain") == 0
  capsys.readouterr()
  assert run(finished, "--stages=train") == 2
  error = short_run.one_line(capsys)
  assert "search: it was made from another super-net (digest " in error


@pytest.mark.parametrize(
  "fields, first",
  [
    ({"seed": 1}, "pretrain"),
    ({"robustness__batch_norm": ("chip",)}, "robustness"),
  ],
)
def test_another_runs_configuration_is_not_believed(
  finished, tmp_path, data_dir, fields, first
):
  """As where a config.json, or a stage's folder, is put back from elsewhere."""
  config = short_run.config(data__data_dir=str(data_dir), **fields)
  facts = results.open_run(finished).splits.facts()
  results.settle(config, tmp_path / "other", facts)
  shutil.copy(tmp_path / "other" / "config.json", finished)
  results.settle(config, finished, facts)
  message = f"{first}.*: it was made from another configuration"
  with pytest.raises(errors.InputError, match=message):
    provenance.check(results.open_run(finished), finished)


def test_a_state_that_was_best_in_another_training_is_not_kept(
  run, tmp_path, monkeypatch
):
  fields = {
    "train.nets": "('baseline_1x',)",
    "train.select": "best",
    "train.validate_every": 4,
  }
  assert run(tmp_path, "--stages=train", **fields) == 0
  folder = tmp_path / "train" / "baseline_1x"
  (kept,) = [path for path in (folder / "best").iterdir() if path.is_dir()]
  for path in folder.glob("[0-9]*"):
    shutil.rmtree(path)
  kept.rename(folder / "best" / "16")  # of more steps than there will be
  with monkeypatch.context() as patch:
    _other_weights("train_init", patch)
    assert run(tmp_path, "--stages=train", **fields) == 0
  assert {path.name for path in (folder / "best").iterdir()} <= {"4", "8"}


def test_training_at_other_widths_is_refused(finished, data_dir):
  config = short_run.config(data__data_dir=str(data_dir))
  experiment = results.open_run(finished)
  assert experiment.config.to_dict().keys() == config.to_dict().keys()
  path = finished / "train" / "found" / "inputs.json"
  saved = storage.read_record(path)
  assert saved["versions"] == [provenance.versions()]
  saved["inputs"]["widths"][0] += 1
  storage.write_record(path, saved)
  with pytest.raises(errors.InputError, match="made from another widths"):
    provenance.check(experiment, finished)
  path.unlink()
  with pytest.raises(errors.InputError, match="has no inputs.json"):
    provenance.check(experiment, finished)


def test_results_without_their_configuration_are_refused(run, finished, capsys):
  (finished / "config.json").unlink()
  assert run(finished, seed=1) == 2
  error = short_run.one_line(capsys)
  assert "config.json: missing beside pretrain, search, train, robus" in error


def test_metrics_of_another_run_are_not_drawn(run, finished, tmp_path, capsys):
  workdir = tmp_path / "new"
  workdir.mkdir()
  shutil.copy(finished / "metrics.jsonl", workdir)
  assert run(workdir) == 2
  assert "config.json: missing beside metrics" in short_run.one_line(capsys)


def test_a_teachers_file_is_known_by_its_content(tmp_path, data_dir):
  teacher = tmp_path / "teacher.npz"
  teacher.write_bytes(b"one")
  config = short_run.config(
    data__data_dir=str(data_dir),
    train__loss="teacher",
    train__teacher=str(teacher),
  )
  results.settle(config, tmp_path)
  (tmp_path / "train").mkdir()
  (tmp_path / "train" / "file").touch()
  results.settle(config, tmp_path)
  teacher.write_bytes(b"two")
  with pytest.raises(errors.InputError, match="train.teacher.resolved was"):
    results.settle(config, tmp_path)


def test_a_field_that_is_newer_than_a_run_has_its_default(finished, data_dir):
  path = finished / "config.json"
  saved = storage.read_record(path)
  del saved["device.resolved"]["telegraph_noise"]
  # Constants of drift that every device had, without any drift.
  saved["device.resolved"] |= {
    "drift_start": 20.0,
    "drift_mean": [0.0, 0.1, 0.1, 0.1],
    "drift_std": [0.0, 0.05, 0.05, 0.05],
  }
  del saved["log_every"], saved["train.teacher.resolved"]
  storage.write_record(path, saved)
  config = short_run.config(data__data_dir=str(data_dir))
  results.settle(config, finished)
  assert "log_every" in storage.read_record(path)


def test_fields_of_a_device_that_are_newer_change_no_digest(finished, tmp_path):
  """All that came after the first digests, numbers, words and tuples."""
  newer = [x.name for x in dataclasses.fields(crossbar.Device)]
  newer = newer[newer.index("adc_noise") + 1 :]
  newer += ["read_disturb", "disturb", "temperature_rise", "activation"]
  assert "gated" in newer
  saved = storage.read_record(finished / "config.json")
  devices = [saved["device.resolved"]]
  for stage in ("pretrain", "train", "robustness"):
    devices += saved[f"{stage}.devices"]
  for device in devices:
    for name in newer:
      del device[name]
    device |= results.FORMER_DRIFT
  storage.write_record(tmp_path / "config.json", saved)
  for stage in ("pretrain", "search", "train", "robustness"):
    before = provenance._configuration(tmp_path, stage)
    assert before == provenance._configuration(finished, stage)
    assert before  # and of another device another one
  saved["device.resolved"]["activation"] = [0.0, 0.1]
  storage.write_record(tmp_path / "config.json", saved)
  assert before != provenance._configuration(tmp_path, "robustness")


@pytest.mark.parametrize("name", ["report.json", "index.html"])
def test_a_report_that_was_changed_is_made_anew(run, finished, name):
  path = finished / "report" / name
  before = path.read_text()
  path.write_text(before.replace("found", "fount"))
  assert run(finished, "--stages=report") == 0
  assert "fount" not in path.read_text()


def test_a_table_of_evaluations_that_was_changed_is_refused(finished):
  path = finished / "search" / "evaluations.npz"
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)
  with pytest.raises(errors.InputError, match="evaluations.npz: got another"):
    results.load_search(finished)
  path.unlink()
  assert results.load_search(finished)["found"]
