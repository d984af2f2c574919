import functools
import json
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hawis_jax import errors
from hawis_jax.runtime import checkpoint
from hawis_jax.runtime import storage


@flax.struct.dataclass
class State:
  params: dict
  opt_state: tuple
  key: jax.Array
  best: np.ndarray
  step: int
  score: float
  teacher: None = None


@functools.cache
def make_state(seed=0, width=3):
  """Not to be changed: it is made once."""
  key = jax.random.key(seed)
  params = {
    "conv": {"kernel": jax.random.normal(key, (3, width)).astype(jnp.bfloat16)},
    "alpha": jax.random.normal(key, (300,)),
  }
  return State(
    params=params,
    opt_state=optax.chain(optax.clip(1.0), optax.adam(1e-3)).init(params),
    key=jax.random.key_data(key),
    best=np.arange(5) + (1 << 40) * seed,
    step=seed,
    score=0.1 * seed,
  )


def assert_identical(got, expected):
  assert jax.tree.structure(got) == jax.tree.structure(expected)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
    assert isinstance(a, jax.Array) == isinstance(b, jax.Array)
    assert type(a) is type(b) or isinstance(a, jax.Array)
    a, b = np.asarray(a), np.asarray(b)
    assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


@pytest.fixture
def saved(tmp_path):
  """A folder with checkpoints 10 and 20, seeds 10 and 20."""
  folder = tmp_path / "pretrain"
  with checkpoint.Checkpoints(folder) as checkpoints:
    checkpoints.save(10, make_state(10))
    checkpoints.save(20, make_state(20))
  return folder


def restore(folder, like=None):
  with checkpoint.Checkpoints(folder) as checkpoints:
    return checkpoints.restore(make_state() if like is None else like)


def all_files(folder):
  return sorted(path for path in folder.rglob("*") if path.is_file())


def test_round_trip_is_bit_identical(tmp_path):
  state = make_state(7)
  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.latest_step() is None
    assert checkpoints.restore(state) is None
    checkpoints.save(3, state)
    shapes = jax.eval_shape(make_state.__wrapped__)
    shapes = shapes.replace(best=np.zeros(5, np.int64), step=0, score=0.0)
    for like in (make_state(), shapes):
      step, got = checkpoints.restore(like)
      assert step == 3
      assert_identical(got, state)


def test_restores_typed_keys_and_odd_values(tmp_path):
  state = {
    "key": jax.random.split(jax.random.key(3), 2),
    "odd": jnp.array([jnp.nan, -jnp.nan, jnp.inf, -0.0, 1e-45]),
    "flags": np.array([True, False]),
    "long": 2**62,
    "on": True,
    "name": "found",
    "empty": {},
  }
  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, state)
    _, got = checkpoints.restore(state)
  raw = jax.random.key_data
  np.testing.assert_array_equal(raw(got.pop("key")), raw(state.pop("key")))
  assert_identical(got, state)


def test_state_may_be_donated_while_it_is_saved(tmp_path):
  state = {"a": jax.random.normal(jax.random.key(0), (2_000_000,))}
  expected = np.array(state["a"])
  update = jax.jit(lambda s: {"a": s["a"] * 0 - 1}, donate_argnums=0)
  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, state)
    state = jax.block_until_ready(update(state))
    _, got = checkpoints.restore(state)
  np.testing.assert_array_equal(got["a"], expected)


@pytest.mark.parametrize("damage", ["remove", "truncate", "flip"])
def test_every_damaged_file_is_noticed(saved, damage, caplog):
  for path in all_files(saved / "20"):
    content = path.read_bytes()
    if not content and damage != "remove":
      continue
    if damage == "remove":
      path.unlink()
    elif damage == "truncate":
      path.write_bytes(content[: len(content) // 2])
    else:
      middle = len(content) // 2
      flipped = bytes([content[middle] ^ 1])
      path.write_bytes(content[:middle] + flipped + content[middle + 1 :])
    caplog.clear()
    step, got = restore(saved)
    assert step == 10, path
    assert_identical(got, make_state(10))
    assert str(path) in caplog.text or path.name == "files.json"
    assert str(saved / "20") in caplog.text
    path.write_bytes(content)
  assert restore(saved)[0] == 20


@pytest.mark.parametrize("step", [15, 25])
def test_damaged_checkpoints_do_not_count_as_kept(saved, step):
  """Neither above the next save nor below it."""
  all_files(saved / "20")[0].unlink()
  with checkpoint.Checkpoints(saved) as checkpoints:
    assert checkpoints.restore(make_state())[0] == 10
    checkpoints.save(step, make_state(step))
    checkpoints.wait()
    assert sorted(path.name for path in saved.iterdir()) == ["10", f"{step}"]


def test_all_damaged_is_an_input_error(saved):
  for step in ("10", "20"):
    all_files(saved / step)[-1].write_bytes(b"")
  with pytest.raises(errors.InputError, match="delete this folder") as info:
    restore(saved)
  assert str(saved) in str(info.value)
  assert "\n" not in str(info.value)


def test_another_shape_or_structure_is_an_input_error(saved):
  like = make_state(width=4)
  with pytest.raises(errors.InputError) as info:
    restore(saved, like.replace(score=1))
  message = str(info.value)
  assert str(saved / "20") in message
  assert (
    "params.conv.kernel: got bfloat16[3, 3], expected bfloat16[3, 4]" in message
  )
  assert message.count("expected") == 3
  assert "and 1 more" in message
  like = make_state().replace(params={"conv": make_state().params["conv"]})
  with pytest.raises(
    errors.InputError, match=r"alpha: got float32\[300\], expected nothing"
  ):
    restore(saved, like)


@pytest.mark.parametrize("leaf", [np.float32(1), np.zeros((0, 2)), object()])
def test_unstorable_leaves_are_refused(tmp_path, leaf):
  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    with pytest.raises(TypeError, match=r"a\.b: got"):
      checkpoints.save(1, {"a": {"b": leaf}})


def run_python(code, folder):
  return subprocess.Popen(
    [sys.executable, "-c", textwrap.dedent(code), str(folder)],
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def test_kill_in_the_middle_of_a_save(saved):
  process = run_python(
    """
    import os, signal, sys
    import jax.numpy as jnp
    from hawis_jax import checkpoint, files

    storage.seal = lambda folder: os.kill(os.getpid(), signal.SIGKILL)
    with checkpoint.Checkpoints(sys.argv[1]) as checkpoints:
      checkpoints.save(30, {"a": jnp.ones(1000)})
    """,
    saved,
  )
  output, _ = process.communicate(timeout=60)
  assert process.returncode == -signal.SIGKILL, output
  assert (saved / "30.part").is_dir()
  step, got = restore(saved)
  assert step == 20
  assert_identical(got, make_state(20))
  assert sorted(path.name for path in saved.iterdir()) == ["10", "20"]


def test_kill_while_orbax_writes(saved):
  process = run_python(
    """
    import sys
    import jax.numpy as jnp
    from hawis_jax.runtime import checkpoint

    with checkpoint.Checkpoints(sys.argv[1]) as checkpoints:
      print("saving", flush=True)
      checkpoints.save(30, {str(i): jnp.ones(3_000_000) * i for i in range(16)})
    """,
    saved,
  )
  process.stdout.readline()
  deadline = time.monotonic() + 60
  while not any(saved.glob("30.part*/state/*/*")):
    assert time.monotonic() < deadline
    time.sleep(0.001)
  process.kill()
  process.communicate(timeout=60)
  assert not (saved / "30").exists()
  step, got = restore(saved)
  assert step == 20
  assert_identical(got, make_state(20))


def test_restores_to_other_shardings(tmp_path):
  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, {"a": jnp.arange(8.0), "b": jnp.ones((2, 2))})
  process = run_python(
    """
    import sys
    import jax, jax.numpy as jnp
    from jax.sharding import AxisType, NamedSharding, PartitionSpec
    from hawis_jax.runtime import checkpoint

    jax.config.update("jax_num_cpu_devices", 2)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    split = NamedSharding(mesh, PartitionSpec("data"))
    whole = NamedSharding(mesh, PartitionSpec())
    like = {
      "a": jax.ShapeDtypeStruct((8,), jnp.float32, sharding=split),
      "b": jax.device_put(jnp.zeros((2, 2)), whole),
    }
    with checkpoint.Checkpoints(sys.argv[1]) as checkpoints:
      step, state = checkpoints.restore(like)
      assert state["a"].sharding == split and state["b"].sharding == whole
      assert (state["a"] == jnp.arange(8.0)).all() and (state["b"] == 1).all()
      checkpoints.save(2, state)
    """,
    tmp_path,
  )
  output, _ = process.communicate(timeout=60)
  assert process.returncode == 0, output
  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    step, state = checkpoints.restore(
      {"a": jnp.zeros(8), "b": jnp.ones((2, 2))}
    )
  assert step == 2
  np.testing.assert_array_equal(state["a"], np.arange(8.0))


def test_json_errors_name_the_file(tmp_path):
  path = tmp_path / "result.json"
  with pytest.raises(errors.InputError, match=r"result\.json: No such file"):
    storage.read_json(path)
  path.write_text(json.dumps({"a": [1, 2, 3]})[:-3])
  with pytest.raises(errors.InputError, match=r"result\.json: got damaged"):
    storage.read_json(path)
  with pytest.raises(errors.InputError, match="can't write"):
    storage.write_json(path / "below.json", {})
  with pytest.raises(ValueError, match="not JSON compliant"):
    storage.write_json(path, {"a": float("nan")})


def test_a_failed_json_write_leaves_the_old_file(tmp_path, monkeypatch):
  path = tmp_path / "result.json"
  storage.write_json(path, 1)

  def refuse(*_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(pathlib.Path, "replace", refuse)
  with pytest.raises(errors.InputError, match="No space left"):
    storage.write_json(path, 2)
  assert storage.read_json(path) == 1
  assert list(tmp_path.iterdir()) == [path]
