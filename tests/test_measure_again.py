"""Nets of a finished run, measured by another run on other chips."""

import json
import shutil

import jax
import pytest
import short_run

import hawis_jax as hx
from hawis_jax import errors
from hawis_jax.pipeline import provenance
from hawis_jax.pipeline import results
from hawis_jax.pipeline.experiment import Experiment
from hawis_jax.runtime import storage

# Another device, and scenarios that neither search nor training has met.
_OTHER = {
  "device.preset": "reram_wan2022",
  "robustness.scenarios": "({'device':1.0},{'variation':(0.5,)})",
}


def _bytes(folder):
  return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def _nets(workdir):
  return storage.read_record(workdir / "robustness" / "result.json")["nets"]


def _measure(run, source, workdir, *arguments, **fields):
  arguments = arguments or ("--stages=robustness,report",)
  return run(workdir, f"--from={source}", *arguments, **fields)


@pytest.mark.slow
def test_nets_are_measured_as_their_own_run_would(run, after, tmp_path, capsys):
  """To the bit; nothing is written there, and the report says where."""
  trained, again = after("train"), tmp_path / "again"
  fields = {"robustness.scenarios": "({'stuck_off':(0.05,)},{'variation':0.5})"}
  before = _bytes(trained)
  assert _measure(run, trained, again, **fields) == 0, capsys.readouterr().err
  assert _bytes(trained) == before
  assert not {*again.iterdir()} & {again / s for s in ("search", "train")}
  source = storage.read_record(again / "source.json")
  assert source["folder"] == str(trained)
  page = (again / "report" / "index.html").read_text()
  assert f"another run, in {trained}" in page
  assert all(digest[:12] in page for digest in source["nets"].values())
  # The folder is enough to open its nets, and to go on.
  net, _ = hx.load_net(again, "found")
  assert [*net.max_widths] == _nets(again)["found"]["widths"]
  capsys.readouterr()
  assert run(again, "--stages=report", **fields) == 0
  assert run(again, **fields) == 2
  assert "allowed are --from=" in short_run.one_line(capsys)
  # The same sweep where the nets were trained.
  assert run(trained, "--stages=robustness", **fields) == 0
  here, there = _nets(trained), _nets(again)
  assert here.keys() == there.keys()
  for net in here:
    assert here[net]["sweeps"] == there[net]["sweeps"]
    assert here[net]["inputs"] == there[net]["inputs"]


def test_another_device_needs_neither_search_nor_training_for_it(
  run, after, tmp_path
):
  trained, again = after("train"), tmp_path / "again"
  fields = {**_OTHER, "train.nets": "('uniform',)", "search.updates": 7}
  alone = ("--stages=robustness",)
  assert _measure(run, trained, again, *alone, **fields) == 0
  (net,) = _nets(again).values()
  assert list(net["sweeps"]["fixed"]) == ["device", "variation"]
  config = json.loads((again / "config.json").read_text())
  assert config["device.resolved"]["g_on"] == 39.26e-6
  assert config["search.updates"] == 4  # of the run that searched
  # Of a run that measures it is the nets' own that are measured.
  third = tmp_path / "third"
  fields["robustness.scenarios"] = "({'write_error':2.0},)"
  assert _measure(run, again, third, *alone, **fields) == 0
  assert storage.read_record(third / "source.json")["folder"] == str(trained)


@pytest.mark.parametrize(
  "change, fields, message",
  [
    ("", {"network.channel_scale": True}, "config.network.channel_scale is Tr"),
    ("", {"space.choices": "((4,),(8,),(16,))"}, "config.space.choices is [[4"),
    ("", {"train.steps": 9}, "config.train.steps is 9, there 8"),
    ("", {"data.levels": 4}, "config.data.levels is 4, there 8"),
    (
      "",
      {"train.nets": "('baseline_1x',)"},
      "config.train.nets has baseline_1x",
    ),
    ("train/uniform/8", {}, "in which the net uniform is missing, damaged or"),
    ("config.json", {}, "which has no config.json"),
  ],
)
def test_what_does_not_fit_is_refused_in_one_line(
  run, after, tmp_path, capsys, change, fields, message
):
  trained, again = after("train"), tmp_path / "again"
  if change:
    (trained / change).rename(tmp_path / "away")
  assert _measure(run, trained, again, **fields) == 2
  error = short_run.one_line(capsys)
  assert "error: --from: got " in error and message in error
  assert not again.exists()


def test_a_damaged_net_is_not_measured(run, after, tmp_path, capsys):
  trained, again = after("train"), tmp_path / "again"
  data = max(
    (trained / "train" / "uniform" / "8").rglob("*"),
    key=lambda path: path.stat().st_size if path.is_file() else 0,
  )
  content = bytearray(data.read_bytes())
  content[len(content) // 2] ^= 1
  data.write_bytes(content)
  assert _measure(run, trained, again) == 2
  assert "train/uniform" in short_run.one_line(capsys)
  nets = again / "robustness" / "result.json"
  assert not nets.exists() or "uniform" not in _nets(again)


def test_a_folder_is_not_measured_in_itself(run, after, tmp_path, capsys):
  trained = after("train")
  for workdir in (trained, trained / "again"):
    assert _measure(run, trained, workdir) == 2
    assert "another folder, outside of it" in short_run.one_line(capsys)
  other = shutil.copytree(trained, tmp_path / "other")
  assert _measure(run, trained, other) == 2
  assert "has its own pretrain and search and tr" in short_run.one_line(capsys)
  assert _measure(run, trained, tmp_path / "new", "--stages=train") == 2
  assert "allowed with --from are robustness, rep" in short_run.one_line(capsys)
  assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_a_folder_that_was_moved_is_named(run, after, tmp_path, capsys):
  trained, again = after("train"), tmp_path / "again"
  fields = {"robustness.scenarios": "({'stuck_off':(0.05,)},)"}
  assert _measure(run, trained, again, **fields) == 0
  moved = trained.rename(tmp_path / "moved")
  capsys.readouterr()
  assert run(again, "--stages=report", **fields) == 2
  assert "where no run is any more; say where" in short_run.one_line(capsys)
  assert _measure(run, moved, again, **fields) == 0


def test_nets_that_were_measured_are_not_taken_for_another_runs(
  tmp_path, monkeypatch
):
  workdir, before, other = (tmp_path / name for name in ("w", "s0", "s1"))
  for folder in (workdir / "robustness", before, other):
    folder.mkdir(parents=True)
  (before / "config.json").touch()
  trained = {(before, "a"): "0a", (before, "b"): "0b", (other, "a"): "1a"}

  def digest(net, experiment, folder):
    return trained.get((before if folder == workdir else folder, net))

  monkeypatch.setattr(results, "net_digest", digest)
  made = {net: {"inputs": {"trained net": f"0{net}"}} for net in "ab"}
  format_ = results.ROBUSTNESS_FORMAT
  results.write_robustness(workdir, {"format": format_, "nets": made})
  results.write_source(workdir, before, {"a": "0a"})

  def check(source, names="ab", is_remade=False):
    provenance.check_measured(workdir, names, None, source, is_remade)

  check(before)
  check(other, is_remade=True)
  for wrong in ({}, {"names": "b"}, {"names": "a", "is_remade": True}):
    with pytest.raises(errors.InputError, match="another than .*w has measu"):
      check(other, **wrong)
  del trained[before, "b"]  # gone there, which is no other net
  check(before)
  # A net that was trained again, since it was measured, is not opened.
  for known in ({"a": "0a"}, {}):
    results.write_source(workdir, before, known)
    trained[before, "a"] = "2a"
    with pytest.raises(errors.InputError, match="another now than was measu"):
      results.load_net("a", None, workdir)


@pytest.mark.slow
def test_a_refused_source_leaves_the_folder_as_it_was(
  run, after, tmp_path, monkeypatch, capsys
):
  trained, again = after("train"), tmp_path / "again"
  other = shutil.copytree(trained, tmp_path / "other")
  shutil.rmtree(other / "train")
  key = Experiment.key
  with monkeypatch.context() as patch:
    patch.setattr(
      Experiment,
      "key",
      lambda self, use: jax.random.fold_in(key(self, use), use == "train_init"),
    )
    assert run(other, "--stages=train") == 0
  assert _measure(run, trained, again) == 0
  before = _bytes(again)
  capsys.readouterr()
  assert _measure(run, other, again) == 2
  assert "is another than" in short_run.one_line(capsys)
  after_it = _bytes(again)
  del before[again / "lock"], after_it[again / "lock"]
  assert after_it == before
  remade = ("--stages=robustness,report", "--remake")
  assert _measure(run, other, again, *remade) == 0
  source = storage.read_record(again / "source.json")
  assert source["folder"] == str(other)
  for net, entry in _nets(again).items():
    assert entry["inputs"]["trained net"] == source["nets"][net]
