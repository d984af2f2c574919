"""The commands: mistakes are cheap, runs follow each other, names, exports."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import types

from absl import flags
import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors
import short_run

from hawis_jax import __main__ as command
from hawis_jax import crossbar
from hawis_jax import errors
from hawis_jax import interop
from hawis_jax import main
from hawis_jax.config import fields
from hawis_jax.config import names
from hawis_jax.crossbar import cells
from hawis_jax.networks import width_vectors
from hawis_jax.pipeline import export
from hawis_jax.pipeline import results
from hawis_jax.report import style

_CONFIG = f"--config={short_run.CONFIG}"
# Seconds of imports each, which no mistake needs.
_HEAVY = {
  *("orbax", "grain", "tensorflow_datasets", "matplotlib", "pandas", "sklearn"),
  *("scipy.stats", "scipy.optimize", "hawis_jax.pipeline"),
}
_MISTAKES = (
  [_CONFIG, "--nope=1"],
  [_CONFIG, "--config.search.nope=1"],
  [_CONFIG, "--config.search.updates=0"],
  [_CONFIG, "--config.search.selection=0.001"],
  [_CONFIG, "--stages=nope"],
  ["--config=none.py"],
  ["digits"],
)


def _imported(program):
  """Modules that a program of its own has imported in the end."""
  program += "; import sys; print(*sys.modules, sep='\\n')"
  child = subprocess.run(
    [sys.executable, "-c", program], capture_output=True, text=True
  )
  return child.stderr, {*child.stdout.split("\n")}


def test_a_mistake_imports_no_stage_and_starts_no_backend():
  program = (
    "from hawis_jax import main; import jax._src.xla_bridge as bridge\n"
    f"for mistake in {[*_MISTAKES]}: assert main.run(['main', *mistake]) == 2\n"
    "assert not bridge.backends_are_initialized()"
  )
  error, modules = _imported(program)
  assert error.count("error: ") == error.count("\n") == len(_MISTAKES), error
  assert "jax" in modules and not modules & _HEAVY


def test_an_unknown_command_imports_not_even_jax():
  program = "from hawis_jax import __main__ as m; m.main(['hawis-jax', 'rum'])"
  error, modules = _imported(program)
  assert error == (
    "error: command: got 'rum', allowed are run, report, data, list, export; "
    "did you mean 'run'?\n"
  )
  assert not modules & {*_HEAVY, "jax", "numpy"}


def _state():
  """What a run might leave behind in its process."""
  handlers = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
  numbers = ("jax_enable_x64", "jax_default_prng_impl")
  jax_state = [getattr(jax.config, name) for name in numbers]
  return handlers, jax_state, dict(os.environ), [*sys.argv], {*flags.FLAGS}


def test_runs_follow_each_other_in_one_process(after, data_dir, capsys):
  """As in a notebook, whose own arguments are others."""
  base = {**short_run.SHORT, "data.data_dir": data_dir}
  workdir = after("train")

  def call(**changed):
    values = base | {name.replace("__", "."): v for name, v in changed.items()}
    overrides = [f"--config.{name}={value}" for name, value in values.items()]
    where = (f"--workdir={workdir}", "--stages=train")
    return main.run(["main", _CONFIG, *where, *overrides])

  config = workdir / "config.json"
  for every in (3, 4):
    assert call(log_every=every) == 0
    before = _state()  # packages of others may set theirs when imported
    assert json.loads(config.read_text())["log_every"] == every
  assert call(seed=1) == 2  # what is not given again is as in the file
  assert "config.seed was 0, is 1" in capsys.readouterr().err
  assert call() == 0
  assert json.loads(config.read_text())["log_every"] == base["log_every"]
  assert _state() == before
  assert not flags.FLAGS.is_parsed() or "config" not in flags.FLAGS


def test_the_end_of_a_run_says_how_nets_are_and_where_the_page_is(
  run, finished, capsys
):
  assert run(finished, "--stages=report") == 0
  lines = capsys.readouterr().out.splitlines()
  assert lines[-3] == f"report  {finished / 'report' / 'index.html'}"
  assert re.fullmatch(r"stage 1 of 1: report took \d+:\d\d", lines[-2])
  nets = results.load_robustness(finished)["nets"]
  columns, *rows = lines[-4 - len(nets) : -3]
  assert columns.split()[:3] == ["net", "clean", "[%]"]
  for row, net in zip(rows, nets.values(), strict=True):
    worst = min(
      (x for s in net["sweeps"]["fixed"].values() for x in s),
      key=lambda x: x["mean"],
    )
    assert f" {style.percent(net['clean'])} " in row
    assert f" {style.percent(worst['mean'])} [" in row
    assert f" {net['arrays']} " in row


def test_report_in_a_fresh_folder_leaves_nothing(run, tmp_path, capsys):
  for stage, needed in (("report", "robustness"), ("search", "pretrain")):
    assert run(tmp_path / "run", f"--stages={stage}") == 2
    error = short_run.one_line(capsys)
    assert f"holds no run, needed for --stages {stage} is one whose" in error
    assert f" {needed} has finished" in error
    assert not (tmp_path / "run").exists()


def test_help_of_all_packages_is_apart(capsys):
  assert main.run(["main", "--helpfull"]) == 0
  out = capsys.readouterr().out
  assert "--config:" in out and "--config.search.updates=100" in out
  assert "absl.logging" in out and "verbosity" in out


def test_flags_of_packages_are_taken(run, tmp_path, capsys):
  assert run(tmp_path / "run", "--verbosity=-1", "--stages=no") == 2
  assert "--stages: got 'no'" in short_run.one_line(capsys)


@pytest.mark.parametrize("kind", names.KINDS)
def test_names_of_a_kind_are_listed(capsys, monkeypatch, kind):
  monkeypatch.chdir(pathlib.Path(short_run.CONFIG).parents[1])
  assert command.main(["hawis-jax", "list", kind, "--json"]) == 0
  (found,) = json.loads(capsys.readouterr().out).values()
  some = {
    "presets": "reram_wan2022",
    "technologies": "isaac_32nm",
    "configs": "configs/digits.py",
    "methods": "policy",
    "vectors": "resnet20_hawis_a",
    "scenarios": "stuck_off",
  }
  assert some[kind] in found
  meaning = {
    "presets": "1 to 39.3 uS, tiles of 64 x 64; write_error 1",
    "technologies": "converter of 8 bits 1.66 pJ",
    "methods": "PPO with a learned reward model (DyNA-PPO); by default",
    "vectors": "19 layers of 64 to 216 channels",
  }
  assert found[some[kind]] == meaning.get(kind, found[some[kind]])
  assert all(found.values())


def test_configs_that_are_no_python_are_listed_as_such(
  tmp_path, monkeypatch, capsys
):
  (tmp_path / "configs").mkdir()
  for name, text in (("a", b"def (:"), ("b", b"\xff\xfe"), ("c", b'"""C."""')):
    (tmp_path / "configs" / f"{name}.py").write_bytes(text)
  monkeypatch.chdir(tmp_path)
  assert command.main(["hawis-jax", "list", "configs", "--json"]) == 0
  assert json.loads(capsys.readouterr().out)["configs"] == {
    "configs/a.py": "can't be read: SyntaxError",
    "configs/b.py": "can't be read: SyntaxError",
    "configs/c.py": "C.",
  }


def test_all_names_are_listed_and_the_command_explains_itself(capsys):
  assert command.main(["hawis-jax", "list"]) == 0
  out = capsys.readouterr().out
  assert all(name in out for name in width_vectors.PRESETS)
  assert command.main(["hawis-jax", "--help"]) == 0
  assert "hawis-jax export weights" in capsys.readouterr().out


def test_run_of_the_command_is_main(capsys):
  assert command.main(["hawis-jax", "run", "--help"]) == 0
  out = capsys.readouterr().out
  assert all(f"--config.{name}=" in out for name in fields.FIELDS)
  assert command.main(["hawis-jax", "run", _CONFIG, "--stages=no"]) == 2
  assert "--stages: got 'no'" in short_run.one_line(capsys)


def test_a_missing_run_is_told_before_seconds_of_imports(tmp_path):
  script = (
    "import sys; from hawis_jax import __main__ as command; status = "
    f"command.main(['x', 'export', 'weights', {str(tmp_path)!r}, 'a', 'b']); "
    "assert status == 2 and 'jax' not in sys.modules"
  )
  done = subprocess.run(
    [sys.executable, "-c", script], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  assert "which has no config.json, needed is the folder of" in done.stderr


def _export(*arguments):
  return command.main(["hawis-jax", "export", *map(str, arguments)])


def test_a_device_that_is_another_now_is_no_runs_device(after):
  """As where its file has changed, or another folder has one of its name."""
  workdir = after("train")
  config = results.open_run(workdir).config.copy_and_resolve_references()
  results.check_device(config, workdir)
  with config.unlocked():
    config.device.tile_shape = (32, 64)
  message = r"is another device now than .*'tile_shape': \[64, 64\]"
  with pytest.raises(errors.InputError, match=message):
    results.check_device(config, workdir)


def _unpacked(arrays, layer):
  shape = arrays[f"{layer}/shape"]
  bits = np.unpackbits(arrays[f"{layer}/signs"], axis=1, count=shape[-1])
  return (2.0 * bits - 1).reshape(shape)


def test_packed_weights_make_the_same_net(after, tmp_path, capsys):
  workdir, path = after("train"), tmp_path / "found.safetensors"
  assert _export("weights", workdir, "found", path) == 0
  arrays = safetensors.load_file(path)
  experiment = results.open_run(workdir)
  module, variables = results.load_net("found", experiment, workdir)
  params = jax.tree.map(np.asarray, variables["params"])
  for names_, kernel in cells.kernels_of(params).items():
    layer = "/".join(names_)
    signs = _unpacked(arrays, layer)
    np.testing.assert_array_equal(signs, np.sign(kernel))
    assert (
      arrays[f"{layer}/signs"].nbytes <= kernel.size / 8 + signs[..., 0].size
    )
    np.testing.assert_allclose(
      arrays[f"{layer}/scale"], np.abs(kernel).mean(), rtol=1e-5
    )
    inner = params
    for name in names_:
      inner = inner[name]
    inner["kernel"] = (signs * arrays[f"{layer}/scale"]).astype(np.float32)
  images, _ = experiment.unpadded(experiment.splits.test, 32)
  code = module.encode(images)
  expected = module.apply(variables, code, train=False)
  got = module.apply({**variables, "params": params}, code, train=False)
  np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-3)
  loaded = module.apply(interop.load_packed(path), code, train=False)
  np.testing.assert_allclose(loaded, got, rtol=1e-5, atol=1e-5)
  others = {n for n in arrays if n.startswith(("params/", "batch_stats/"))}
  assert "batch_stats/bn_head/mean" in others
  assert _export("weights", workdir, "found", path) == 2
  assert "which exists, needed is a new name" in short_run.one_line(capsys)
  other = tmp_path / "fund.safetensors"
  assert _export("weights", workdir, "fund", other) == 2
  assert "net: got 'fund', allowed are found, uni" in short_run.one_line(capsys)


def test_numbers_of_chips_that_no_key_has_are_refused(tmp_path, capsys):
  for number in (-1, 2**32, 99999999999):
    place = ("chip", tmp_path, "found", tmp_path / "c.npz", "--chip", number)
    assert _export(*place) == 2
    assert f"--chip: got {number}, allowed are 0 to" in short_run.one_line(
      capsys
    )


def test_a_float_nets_chip_has_analog_cells(tmp_path, monkeypatch, rng):
  weights = rng.normal(size=(5, 3)).astype(np.float32)
  variables = {"params": {"head": {"kernel": weights}}}
  net = types.SimpleNamespace(weight_bits=None, weight_scales="channel")
  device, key = crossbar.Device(), jax.random.key(0)
  monkeypatch.setattr(
    export, "_on_chip", lambda given: (net, variables, device, key)
  )
  assert _export("chip", "run", "float", tmp_path / "chip.npz") == 0
  with np.load(tmp_path / "chip.npz") as arrays:
    assert json.loads(str(arrays["metadata"]))["bits"] == 0
    positive, negative = arrays["head/actual"][0, 0, 0][:, :5, :3]
  share = (positive - negative) / (device.g_on - device.g_off)
  np.testing.assert_allclose(share, weights / np.abs(weights).max(0), rtol=1e-4)
  with pytest.raises(errors.InputError, match="one of float weights"):
    interop.export_packed(tmp_path / "a.npz", net, variables)
  np.savez(tmp_path / "foreign.npz", **{"params/head/kernel": weights})
  with pytest.raises(errors.InputError, match="no packed weights"):
    interop.load_packed(tmp_path / "foreign.npz")


def test_an_exported_chip_is_that_of_the_runs_measurements(
  after, tmp_path, capsys
):
  workdir, path = after("train"), tmp_path / "chip.npz"
  assert _export("chip", workdir, "found", path, "--chip", 3) == 0
  experiment = results.open_run(workdir)
  key = jax.random.fold_in(experiment.key("robustness"), 3)
  with np.load(path) as arrays:
    head, metadata = arrays["head/actual"], json.loads(str(arrays["metadata"]))
  assert (
    metadata["key"]["data"] == np.asarray(jax.random.key_data(key)).tolist()
  )
  assert metadata["device"]["stuck_off"] == 0.0904  # the preset's own
  netlist = tmp_path / "head.sp"
  place = ("--layer=head", "--array=negative", "--chip=3")
  assert _export("netlist", workdir, "found", netlist, *place) == 0
  text = netlist.read_text()
  title, described, *_ = text.splitlines()
  assert title == (
    f"* net found of {workdir}, chip 3, layer head, slice, row tile and column "
    "tile (0, 0, 0), negative array, device of the run"
  )
  assert described.startswith("* 64 x 64 crossbar, wire 0 ohm")
  lines = [line.split() for line in text.splitlines()]
  values = {line[0]: line[3] for line in lines if line[0].startswith("Rcell")}
  assert float(values["Rcell_2_5"]) == 1 / float(head[0, 0, 0, 1, 2, 5])
  capsys.readouterr()
  netlist = tmp_path / "other.sp"
  for wrong, message in (
    ("--layer=heat", "--layer: got 'heat', allowed are"),
    (
      "--row_tile=1",
      "--column_tile: got (0, 1, 0), allowed are below (1, 1, 1)",
    ),
    ("--device=nope", "config.device.preset: got 'nope'"),
    ("--chip=-1", "--chip: got -1"),
  ):
    assert _export("netlist", workdir, "found", netlist, *place, wrong) == 2
    assert message in short_run.one_line(capsys)
