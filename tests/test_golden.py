"""Whole networks against vectors computed with the published code.

All references are float64. float32 results may differ where a value lies closer
to a threshold than float32 rounds; every file states its smallest margin.

XLA's CPU convolution of float64 is slow, so the large nets' are products of
patches, as the library's own are on small maps (test_binary.py compares the two
ways); the slow tier repeats all with convolutions.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hawis_jax import interop
from hawis_jax.arithmetic import binary
from hawis_jax.networks import resnet

_FILES = ("g4_r20tiny", "g4_r20A", "g4_r18A")
_CONVOLVED = binary._SMALL_MAP  # what is larger is convolved
_in_float32 = pytest.mark.parametrize("golden", _FILES, indirect=True)
_in_float64 = pytest.mark.parametrize(
  "golden, small_map",
  [
    ("g4_r20tiny", _CONVOLVED),
    ("g4_r20A", np.inf),
    ("g4_r18A", np.inf),
    pytest.param("g4_r20A", _CONVOLVED, marks=pytest.mark.slow),
    pytest.param("g4_r18A", _CONVOLVED, marks=pytest.mark.slow),
  ],
  indirect=["golden"],
)


def _decode(golden, name):
  """An entry under `param/`, or under `param_e5m2/` with its upper byte."""
  if f"param/{name}" in golden:
    return golden[f"param/{name}"].astype(np.float64)
  upper = golden[f"param_e5m2/{name}"].astype(np.uint16)
  return (upper << 8).view(np.float16).astype(np.float64)


@pytest.fixture(scope="module")
def golden(request, shared):
  return dict(np.load(shared / "golden" / f"{request.param}.npz"))


@pytest.fixture(scope="module")
def network(golden):
  """(module, variables, bits), in float64 but for the bits."""
  widths = tuple(int(w) for w in golden["planes"])
  if len(widths) == 17:
    module = resnet.imagenet_resnet18(widths, 10, "7x7")
  else:
    module = resnet.cifar_resnet(len(widths) + 1, widths, 10)
  names = {name.split("/", 1)[1] for name in golden if name.startswith("param")}
  state = {f"module.{name}": _decode(golden, name) for name in names}
  with jax.enable_x64(True):
    variables = interop.from_torch_state_dict(state, module)
  if "thermo_planes_packed" in golden:
    # See test_ties_of_the_published_imagenet_input.
    planes = np.unpackbits(golden["thermo_planes_packed"], axis=-1)
    bits = planes.transpose(0, 2, 3, 1).astype(np.float32)
  else:
    bits = _thermometer_code(golden["rgb_uint8_nhwc"])
  return module, variables, bits


def _thermometer_code(images):
  return np.asarray(jax.jit(binary.thermometer_code)(images))


def _cast(network, dtype):
  module, *arrays = network
  return module, *jax.tree.map(lambda x: np.asarray(x, dtype), arrays)


def _evaluate(module, variables, bits):
  return jax.jit(lambda v, x: module.apply(v, x, train=False))(variables, bits)


@_in_float64
def test_evaluation(golden, network, small_map, monkeypatch):
  monkeypatch.setattr(binary, "_SMALL_MAP", small_map)
  with jax.enable_x64(True):
    logits = _evaluate(*_cast(network, np.float64))
  np.testing.assert_allclose(
    logits, golden["eval_logits_f64"], rtol=1e-12, atol=1e-14
  )


@_in_float32
def test_evaluation_in_float32(golden, network):
  logits = _evaluate(*_cast(network, np.float32))
  reference = golden["eval_logits_f64"]
  scale = np.abs(reference).max()
  np.testing.assert_allclose(logits, reference, rtol=0, atol=1e-5 * scale)


def _train(module, variables, bits, labels):
  """(loss, logits, gradients and running statistics) of one step."""

  @jax.jit
  def step(variables, bits):
    def loss(params):
      logits, updated = module.apply(
        {**variables, "params": params},
        bits,
        train=True,
        mutable=["batch_stats"],
      )
      picked = jax.nn.log_softmax(logits)[jnp.arange(len(labels)), labels]
      return -picked.mean(), (logits, updated)

    return jax.value_and_grad(loss, has_aux=True)(variables["params"])

  (loss, (logits, updated)), grads = jax.device_get(step(variables, bits))
  return loss, logits, {"params": grads, **updated}


@_in_float64
def test_training(golden, network, small_map, monkeypatch):
  """Logits, loss, running statistics and gradients of one step."""
  monkeypatch.setattr(binary, "_SMALL_MAP", small_map)
  with jax.enable_x64(True):
    loss, logits, got = _train(*_cast(network, np.float64), golden["labels"])
  np.testing.assert_allclose(
    logits, golden["train_logits_f64"], rtol=1e-12, atol=1e-14
  )
  np.testing.assert_allclose(loss, golden["train_loss_f64"], rtol=1e-12)
  published = interop.to_torch_state_dict(got)
  expected = _under(golden, "stats_after_f64/") | _under(golden, "grad_f64/")
  for name, array in expected.items():
    np.testing.assert_allclose(
      published[name], array, rtol=1e-9, atol=1e-11, err_msg=name
    )
  digests = _under(golden, "graddigest_f64/")
  for name, digest in digests.items():
    # [sum, L2 norm, first 16 entries]; a sum of many rounds more than they.
    array = published[name].ravel()
    scale = np.linalg.norm(array)
    np.testing.assert_allclose(
      [array.sum(), scale, *array[:16]],
      digest,
      rtol=1e-9,
      atol=1e-11 * max(1, np.abs(array).sum()),
      err_msg=name,
    )
  assert len(digests) or any(name.startswith("grad_f64/") for name in golden)


@_in_float32
def test_training_in_float32(golden, network):
  """Logits and running statistics within 1e-4 of the float64 ones."""
  module, variables, bits = _cast(network, np.float32)

  @jax.jit
  def forward(variables, bits):
    return module.apply(variables, bits, train=True, mutable=["batch_stats"])

  logits, updated = jax.device_get(forward(variables, bits))
  got = interop.to_torch_state_dict(updated)
  reference = golden["train_logits_f64"]
  scale = np.abs(reference).max()
  np.testing.assert_allclose(logits, reference, rtol=0, atol=1e-4 * scale)
  expected = _under(golden, "stats_after_f64/")
  for name, array in expected.items():
    np.testing.assert_allclose(
      got[name],
      array,
      rtol=1e-4,
      atol=1e-4 * np.abs(array).max(),
      err_msg=name,
    )


def _under(golden, prefix):
  return {
    name.removeprefix(prefix): value
    for name, value in golden.items()
    if name.startswith(prefix)
  }


def test_ties_of_the_published_imagenet_input(shared):
  """Ours differs from the published code's input only at exact ties.

  The published ImageNet path normalises a pixel and denormalises it in float32
  before it is compared, so that a pixel that equals a threshold may come out
  above it. We compare integers: such a pixel's bit is 0.
  """
  golden = np.load(shared / "golden" / "g4_r18A.npz")
  published = np.unpackbits(golden["thermo_planes_packed"], axis=-1)
  published = published.transpose(0, 2, 3, 1)
  images = golden["rgb_uint8_nhwc"]
  ours = _thermometer_code(images)
  thresholds = np.array(binary.thermometer_thresholds())
  tie = (images[..., None, :] == thresholds[:, None]).reshape(ours.shape)
  differs = ours != published
  assert differs.sum() == golden["thermo_tie_flips"] > 0
  assert tie[differs].all()
  np.testing.assert_array_equal(ours[tie], 0)
