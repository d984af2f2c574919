"""The same run on 1 device, on 8, and on 8 of two processes."""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import pytest
import short_run

from hawis_jax import errors
from hawis_jax.config import settings
from hawis_jax.pipeline.experiment import check_batches
from hawis_jax.runtime import distributed

_ROOT = pathlib.Path(__file__).parents[1]
_LAUNCH = _ROOT / "launch" / "local_multiprocess.sh"
_SECONDS = 300  # a child that takes longer hangs

_SHORT = short_run.SHORT | {
  "log_every": 1,
  "data.validation_images": 32,
  "pretrain.steps": 3,
  "pretrain.warmup_steps": 0,
  "pretrain.random_widths": 1,
  "search.methods": "('policy',)",
  # Processes take a second to agree on where to stop.
  "search.updates": 12,
  "search.candidates": 2,
  "search.candidate_chips": 2,
  "train.nets": "('found',)",
  "train.steps": 3,
  "train.validate_every": 3,
  "robustness.chips": 320,
  "robustness.chips_per_step": 1,
  "robustness.scenarios": "({'variation':(0.5,)},)",
}


def _start(command, **environment):
  """Starts a command, with more environment than this process's."""
  environment = os.environ | {
    "PYTHONPATH": f"{_ROOT}{os.pathsep}{_ROOT / 'tests'}",
    "PYTHON": sys.executable,
    "JAX_PLATFORMS": "cpu",
    **environment,
  }
  return subprocess.Popen(
    command,
    cwd=_ROOT,
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    start_new_session=True,
  )


def _ended(process):
  """Waits, and kills it and all that it started if it hangs.

  Returns:
    (exit status, stdout and stderr).
  """
  try:
    output, _ = process.communicate(timeout=_SECONDS)
  except subprocess.TimeoutExpired:
    # Hard: jax catches SIGTERM.
    os.killpg(process.pid, signal.SIGKILL)
    output, _ = process.communicate()
    pytest.fail(f"{process.args} hung:\n{output}")
  return process.returncode, output


_STEPS = """
import functools

from hawis_jax import backend

backend.configure()
import jax
import numpy as np
import optax

from hawis_jax import crossbar
from hawis_jax.networks import resnet
from hawis_jax.runtime import sharding
from hawis_jax.training import fixed_net, hardware_aware, optimization, supernet

sharding._SPLIT_BYTES = 1024
module = resnet.cifar_resnet(8, (8, 8, 8, 16, 16, 32, 32), 10, levels=4)
optimizer = optax.sgd(0.01, 0.9)
state = optimization.init_state(module, jax.random.key(0), (8, 8, 1), optimizer)
rng = np.random.default_rng(0)
# Fresh shifts of 0 put dead channels exactly on the binariser's edge, where
# the last bit of a sum decides.
shift = lambda x: x + rng.uniform(0.1, 0.4, x.shape).astype(np.float32)
state = state.replace(
  params=jax.tree.map(lambda x: shift(x) if x.ndim == 1 else x, state.params)
)
batches = [
  {
    "image": rng.integers(0, 256, (32, 8, 8, 1)).astype(np.uint8),
    "label": rng.integers(0, 10, 32).astype(np.int32),
  }
  for _ in range(3)
]
widths = np.array(
  [(8, 8, 8, 16, 16, 32, 32), (4, 4, 4, 8, 8, 16, 16), (4, 8, 5, 9, 16, 30, 16)]
)
steps = {
  "pretrain": lambda mesh: lambda state, batch: supernet.sandwich_step(
    state, widths, batch, module=module, optimizer=optimizer, distill=True,
    mesh=mesh,
  ),
  "train": lambda mesh: functools.partial(
    fixed_net.train_step, module=module, optimizer=optimizer,
    recipe=fixed_net.Recipe(microbatches=2), mesh=mesh,
  ),
  # Of cells that stick at most sums are whole numbers, and exact.
  "on chips": lambda mesh: functools.partial(
    fixed_net.train_step, module=module, optimizer=optimizer,
    recipe=fixed_net.Recipe(
      chips=hardware_aware.Settings(
        (crossbar.Device(stuck_on=0.1, stuck_off=0.2),), 2
      )
    ),
    key=jax.random.key(1), mesh=mesh,
  ),
}
for name, make in steps.items():
  results = []
  for devices in (1, 8):
    mesh = sharding.evaluation_mesh(1, jax.devices()[:devices])
    now = sharding.place(state, mesh, split=True)
    held = sum(
      shard.data.nbytes
      for leaf in jax.tree.leaves(now)
      for shard in leaf.addressable_shards
      if shard.device == jax.devices()[0]
    )
    jitted = jax.jit(
      make(mesh),
      out_shardings=(sharding.of(now), sharding.replicated(mesh)),
    )
    compiled = jitted.lower(now, sharding.batch(batches[0], mesh)).compile()
    losses = []
    for batch in batches:
      now, values = compiled(now, sharding.batch(batch, mesh))
      losses.append(float(jax.block_until_ready(values)["loss"]))
    flops = compiled.cost_analysis()["flops"]
    results.append((held, flops, losses, now))
  (whole, all_flops, losses, one), (part, flops, others, eight) = results
  # Memory and work of a device; small leaves are not split. XLA counts less of
  # a grouped convolution than of the one that it is made from.
  assert part < 0.2 * whole, (part, whole)
  if name != "on chips":  # which every device draws
    assert 0 < flops < 0.2 * all_flops, (flops, all_flops)
  np.testing.assert_allclose(others[0], losses[0], rtol=1e-5)
  np.testing.assert_allclose(others, losses, rtol=1e-3)
  for a, b in zip(*map(jax.tree.leaves, (one, eight)), strict=True):
    a, b = np.asarray(a), np.asarray(b)
    np.testing.assert_allclose(a, b, atol=1e-3 * max(1, np.abs(a).max()))
# A state is made where it stays, the same one.
make = functools.partial(
  optimization.make_init, module, (8, 8, 1), optimizer
)
whole = make()(jax.random.key(0))
split = make(mesh=mesh)(jax.random.key(0))
assert sharding.of(split) == sharding.split(whole, mesh)
assert not all(
  leaf.is_fully_replicated for leaf in jax.tree.leaves(split)
)
for a, b in zip(*map(jax.tree.leaves, (whole, split)), strict=True):
  np.testing.assert_allclose(a, b, rtol=1e-6)
print("same")
"""


@pytest.mark.slow
def test_steps_on_eight_devices_are_those_on_one():
  flags = os.environ.get("XLA_FLAGS", "")
  process = _start(
    [sys.executable, "-c", _STEPS],
    XLA_FLAGS=f"{flags} --xla_force_host_platform_device_count=8"
    " --xla_backend_optimization_level=0",
  )
  status, output = _ended(process)
  assert status == 0, output
  assert output.split()[-1] == "same"


def _launch(num_processes, devices, workdir, data_dir, kill=None, **fields):
  """Runs the launcher.

  Args:
    num_processes: of it.
    devices: of each process.
    workdir: of the run.
    data_dir: of the data.
    kill: (stage, signal, which process; None: the launcher). As soon as that
      stage has shown something.
    **fields: of the configuration.
  """
  values = _SHORT | {"data.data_dir": data_dir} | fields
  process = _start(
    [
      _LAUNCH,
      f"--processes={num_processes}",
      f"--devices={devices}",
      "--",
      "--config=configs/digits.py",
      f"--workdir={workdir}",
      *(f"--config.{name}={value}" for name, value in values.items()),
    ],
    # Most of the time is XLA's: half of it without LLVM's optimisations.
    XLA_FLAGS="--xla_backend_optimization_level=0",
  )
  if kill:
    _kill(process, workdir, *kill)
  return _ended(process)


def _kill(launcher, workdir, stage, number, victim):
  """Sends a signal when a stage has reported for the first time."""
  deadline = time.monotonic() + _SECONDS
  while launcher.poll() is None and time.monotonic() < deadline:
    if any(line["stage"] == stage for line in _metrics(workdir)):
      break
    time.sleep(0.05)
  pid = launcher.pid
  if victim is not None:
    listed = subprocess.run(
      ["pgrep", "-P", str(pid), "-f", "--", f"--process_id={victim}"],
      capture_output=True,
      text=True,
    )
    if not listed.stdout:  # it was faster
      return
    pid = int(listed.stdout)
  os.kill(pid, number)


def _metrics(workdir):
  path = workdir / "metrics.jsonl"
  lines = path.read_text().splitlines() if path.exists() else []
  return [json.loads(line) for line in lines if line.endswith("}")]


def _results(workdir):
  metrics = _metrics(workdir)
  for line in metrics:
    del line["time"], line["crc"]
  results = [
    json.loads((workdir / stage / "result.json").read_text())
    for stage in ("search", "robustness")
  ]
  return metrics, results


@pytest.fixture(scope="module")
def one(tmp_path_factory):
  """The whole way on 1 process x 8 devices: (data folder, its results)."""
  folder = tmp_path_factory.mktemp("one")
  status, output = _launch(1, 8, folder / "one", folder)
  assert status == 0, output
  return folder, _results(folder / "one")


_KILLS = (
  # (signal, which process) in pretrain, search and robustness.
  ((signal.SIGTERM, None), (signal.SIGKILL, 1), (signal.SIGTERM, 1)),
  ((signal.SIGKILL, 0), (signal.SIGTERM, 0), (signal.SIGKILL, 1)),
)


@pytest.mark.slow
@pytest.mark.parametrize("kills", _KILLS)
def test_killed_in_every_stage_they_find_the_same(one, tmp_path, kills):
  """And ended by one process with 8 devices; results are equal to the bit."""
  data_dir, expected = one
  stages = "pretrain", "search", "robustness"
  for stage, (number, victim) in zip(stages, kills, strict=True):
    status, output = _launch(
      2, 4, tmp_path / "run", data_dir, (stage, number, victim)
    )
    if status == 0 and stage != "pretrain":
      continue  # it had ended before the signal told
    if number == signal.SIGTERM:
      assert status == 75, output
      assert output.count(f"stopped: {stage}, saved at") == 1
    else:
      assert status == 128 + signal.SIGKILL, output
  status, output = _launch(1, 8, tmp_path / "run", data_dir)
  assert status == 0, output
  assert _results(tmp_path / "run") == expected
  assert (tmp_path / "run" / "report" / "index.html").exists()


@pytest.mark.slow
def test_two_processes_find_what_one_finds(one, tmp_path):
  """The whole way on 2 processes x 4 devices: the same bits as on 1 x 8."""
  data_dir, (metrics, results) = one
  status, output = _launch(2, 4, tmp_path / "two", data_dir)
  assert status == 0, output
  assert output.count("done in") == 1  # only the first process shows anything
  assert _results(tmp_path / "two") == (metrics, results)
  stages = {line["stage"] for line in metrics}
  assert stages >= {"pretrain", "search", "train/found", "robustness"}
  assert (tmp_path / "two" / "report" / "index.html").exists()

  # What the first process alone finds wrong, all say, and end.
  before = (tmp_path / "two" / "metrics.jsonl").read_text()
  status, output = _launch(2, 4, tmp_path / "two", data_dir, seed=1)
  assert status == 2
  assert "config.seed was 0, is 1" in output
  assert (tmp_path / "two" / "metrics.jsonl").read_text() == before

  # Two processes go on from what one with 8 devices had; nothing is repeated
  # but the robustness stage, to the bit.
  shutil.copytree(data_dir / "one", tmp_path / "one")
  shutil.rmtree(tmp_path / "one" / "robustness")
  status, output = _launch(2, 4, tmp_path / "one", data_dir)
  assert status == 0, output
  assert "pretrain  begins" not in output
  assert "robustness  begins" in output
  assert _results(tmp_path / "one")[1] == results


@pytest.mark.parametrize(
  "cluster, message",
  [
    (("a:1", 2, None), "--process_id: missing, needed are --coordinator_addr"),
    (("a", 2, 0), "--coordinator_address: got 'a', allowed is host:port"),
    (("a:1", 0, 0), "--num_processes: got 0, allowed is at least 1"),
    (("a:1", 2, 2), "--process_id: got 2, allowed are 0 to 1"),
  ],
)
def test_bad_clusters(cluster, message):
  with pytest.raises(errors.InputError) as info:
    distributed.join(*cluster)
  assert message in str(info.value) and "\n" not in str(info.value)


def test_no_cluster_is_one_line(monkeypatch):
  def refuse(*_):
    raise ValueError("coordinator_address should\nbe defined.")

  monkeypatch.setattr(jax.distributed, "initialize", refuse)
  with pytest.raises(errors.InputError) as info:
    distributed.join(None, None, None)
  message = str(info.value)
  assert message.startswith("--distributed: coordinator_address should be def")
  assert "--num_processes" in message and "\n" not in message


def test_processes_that_were_started_differently_all_say_so(tmp_path):
  """Two meet, compare what they were given, and end before any work."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  started = [
    _start(
      [
        *(sys.executable, "-m", "hawis_jax.main", "--distributed"),
        *(f"--coordinator_address={address}", "--num_processes=2"),
        *(f"--process_id={number}", f"--workdir={tmp_path / 'run'}"),
        *("--config=configs/digits.py", f"--config.seed={number}"),
      ]
    )
    for number in range(2)
  ]
  for status, output in [_ended(process) for process in started]:
    assert status == 2, output
    message = "error: --config: got others on process 1 than on process 0"
    assert output.count(message) == 1
  assert not (tmp_path / "run").exists()


def test_a_cluster_needs_the_flag(run, tmp_path, capsys):
  assert run(tmp_path / "run", "--process_id=1") == 2
  message = "--process_id: got 1, allowed with --distributed"
  assert message in short_run.one_line(capsys)


@pytest.mark.parametrize(
  "field, size, allowed",
  [
    ("pretrain.batch_size", 20, "multiples of 8, the number of devices"),
    ("train.batch_size", 24, "multiples of 16, devices times train.microba"),
  ],
)
def test_batches_that_cannot_be_split(field, size, allowed):
  config = settings.default()
  config.train.microbatches = 2
  config.update_from_flattened_dict({field: size})
  with pytest.raises(
    errors.InputError, match=f"config.{field}: got {size}"
  ) as e:
    check_batches(config, devices=8)
  assert allowed in str(e.value)
