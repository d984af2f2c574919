import functools
import pathlib
import shutil
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


def test_a_relative_directory_is_that_of_the_current_folder(
  tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  with checkpoint.Checkpoints("runs/x") as checkpoints:
    checkpoints.save(1, make_state(1))
  digest = checkpoint.saved_digest("runs/x")
  assert digest and digest == checkpoint.saved_digest(tmp_path / "runs/x", 1)
  assert checkpoint.saved_digest("runs/x", 2) is None
  _, state = restore(pathlib.Path("runs/x"))
  assert_identical(state, make_state(1))


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


def _damaged(content, damage, place):
  if damage == "cut":
    return content[:place]
  flipped = bytes([content[place] ^ 1])
  return content[:place] + flipped + content[place + 1 :]


def _needed(folder):
  """Files of a step that hold its state, or say what it is."""
  state = folder / "state"
  written = sorted(state.glob("ocdbt.process_0/d/*"), key=_size)
  return {
    folder / "_CHECKPOINT_METADATA",
    state / "_METADATA",
    state / "manifest.ocdbt",
    *state.glob("d/*"),
    written[-1],  # the others are what it was gathered from
  }


def _size(path):
  return path.stat().st_size


@pytest.mark.parametrize("damage", ["remove", "cut", "flip"])
def test_what_is_restored_was_saved(saved, damage, caplog, capfd):
  """Whatever file is damaged: some of Orbax's are redundant."""
  needed = _needed(saved / "20")
  with checkpoint.without_leftovers():
    for path in all_files(saved / "20"):
      content = path.read_bytes()
      if damage == "remove":
        path.unlink()
      elif content:
        path.write_bytes(_damaged(content, damage, len(content) // 2))
      caplog.clear()
      step, got = restore(saved)
      assert step == 10 if path in needed else step in (10, 20), path
      assert_identical(got, make_state(step))
      lines = [record.getMessage() for record in caplog.records]
      assert len(lines) == (step == 10), path
      for line in lines:
        assert line.startswith(f"skipping a damaged checkpoint: {saved}/20: ")
        assert "\n" not in line
      path.write_bytes(content)
    assert restore(saved)[0] == 20
  assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_whatever_byte_is_damaged(saved, rng):
  with checkpoint.without_leftovers():
    for path in all_files(saved / "20"):
      content = path.read_bytes()
      for place in rng.integers(len(content), size=16) if content else ():
        path.write_bytes(_damaged(content, "flip", int(place)))
        number, got = restore(saved)
        assert_identical(got, make_state(number))
      path.write_bytes(content)


def test_a_checkpoint_replaces_one_of_the_same_step(saved):
  with checkpoint.Checkpoints(saved) as checkpoints:
    checkpoints.save(20, make_state(21))
    step, got = checkpoints.restore(make_state())
  assert step == 20
  assert_identical(got, make_state(21))


def test_what_is_named_oddly_is_left_alone(saved):
  """A user's, or another program's: no start ends with it."""
  steps = "9.part", "step_30", "030", "20.bak", "best", str(2**31), str(2**70)
  for name in steps:
    shutil.copytree(saved / "20", saved / name)
  for name in ("notes", "３", "-3", "x.orbax-checkpoint-tmp"):
    (saved / name).mkdir()
    (saved / name / "mine.txt").write_text("mine")
  (saved / "25").write_text("a file")
  before = {path: path.read_bytes() for path in all_files(saved)}
  with checkpoint.Checkpoints(saved, keep=1) as checkpoints:
    assert checkpoints.latest_step() == 20
    assert checkpoints.restore(make_state())[0] == 20
    checkpoints.save(40, make_state(40))
  with checkpoint.Checkpoints(saved, keep=1) as checkpoints:
    assert checkpoints.restore(make_state())[0] == 40
  for path, content in before.items():
    if path.relative_to(saved).parts[0] not in ("10", "20"):
      assert path.read_bytes() == content, path


@pytest.mark.parametrize("step", [15, 25])
def test_damaged_checkpoints_do_not_count_as_kept(saved, step):
  """Neither above the next save nor below it."""
  (saved / "20" / "_CHECKPOINT_METADATA").unlink()
  with checkpoint.Checkpoints(saved) as checkpoints:
    assert checkpoints.restore(make_state())[0] == 10
    checkpoints.save(step, make_state(step))
    checkpoints.wait()
    assert sorted(path.name for path in saved.iterdir()) == ["10", f"{step}"]


def test_all_damaged_is_an_input_error(saved):
  for step in ("10", "20"):
    (saved / step / "state" / "manifest.ocdbt").write_bytes(b"")
  with checkpoint.without_leftovers():
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


def test_kill_while_orbax_writes(saved):
  process = run_python(
    """
    import pathlib, sys
    import jax.numpy as jnp
    from hawis_jax.runtime import checkpoint

    with checkpoint.Checkpoints(pathlib.Path(sys.argv[1])) as checkpoints:
      print("saving", flush=True)
      checkpoints.save(30, {str(i): jnp.ones(3_000_000) * i for i in range(16)})
    """,
    saved,
  )
  process.stdout.readline()
  deadline = time.monotonic() + 60
  while not any(saved.glob("30.orbax-checkpoint-tmp*/*/*/*")):
    assert time.monotonic() < deadline and process.poll() is None
    time.sleep(0.001)
  process.kill()
  process.communicate(timeout=60)
  assert not (saved / "30").exists()
  step, got = restore(saved)
  assert step == 20
  assert_identical(got, make_state(20))
  assert sorted(path.name for path in saved.iterdir()) == ["10", "20"]


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
