"""Whole networks against vectors computed with the published code.

All references are float64. float32 results may differ where a value lies closer
to a threshold than float32 rounds; every file states its smallest margin.
"""

import functools

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hawis_jax import binary
from hawis_jax import interop
from hawis_jax import resnet

_FILES = ("g4_r20tiny", "g4_r20A", "g4_r18A")


def _decode(golden, name):
  """An entry under `param/`, or under `param_e5m2/` with its upper byte."""
  if f"param/{name}" in golden:
    return golden[f"param/{name}"].astype(np.float64)
  upper = golden[f"param_e5m2/{name}"].astype(np.uint16)
  return (upper << 8).view(np.float16).astype(np.float64)


@pytest.fixture(scope="module", params=_FILES)
def golden(request, shared):
  return dict(np.load(shared / "golden" / f"{request.param}.npz"))


@pytest.fixture(scope="module")
def network(golden):
  """(module, variables, bits), in float64."""
  widths = tuple(int(w) for w in golden["planes"])
  if len(widths) == 17:
    module = resnet.imagenet_resnet18(widths, 10, "7x7")
  else:
    module = resnet.cifar_resnet(len(widths) + 1, widths, 10)
  names = {name.split("/", 1)[1] for name in golden if name.startswith("param")}
  state = {f"module.{name}": _decode(golden, name) for name in names}
  with jax.enable_x64(True):
    variables = interop.from_torch_state_dict(state, module)
  bits = binary.thermometer_code(jnp.asarray(golden["rgb_uint8_nhwc"]))
  if "thermo_planes_packed" in golden:
    # See test_ties_of_the_published_imagenet_input.
    planes = np.unpackbits(golden["thermo_planes_packed"], axis=-1)
    bits = jnp.asarray(planes.transpose(0, 2, 3, 1), jnp.float32)
  return module, variables, bits


def _single(tree):
  return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


def test_evaluation(golden, network):
  module, variables, bits = network
  apply = jax.jit(functools.partial(module.apply, train=False))
  single = apply(_single(variables), bits)
  with jax.enable_x64(True):
    double = apply(variables, bits.astype(jnp.float64))
  reference = golden["eval_logits_f64"]
  np.testing.assert_allclose(double, reference, rtol=1e-12, atol=1e-14)
  scale = np.abs(reference).max()
  np.testing.assert_allclose(single, reference, rtol=0, atol=1e-5 * scale)


def _train(network, labels):
  """(loss, logits, gradients and running statistics by path) of one step."""
  module, variables, bits = network

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

  (loss, (logits, updated)), grads = step(variables, bits)
  return loss, logits, traverse_util.flatten_dict({"params": grads, **updated})


def test_training(golden, network):
  """Logits, loss, running statistics and gradients of one step."""
  module = network[0]
  with jax.enable_x64(True):
    double = (*network[:2], network[2].astype(jnp.float64))
    loss, logits, got = _train(double, golden["labels"])
  np.testing.assert_allclose(
    logits, golden["train_logits_f64"], rtol=1e-12, atol=1e-14
  )
  np.testing.assert_allclose(loss, golden["train_loss_f64"], rtol=1e-12)
  expected = interop.rename(_under(golden, "stats_after_f64/"), module)
  expected |= interop.rename(_under(golden, "grad_f64/"), module)
  for path, array in expected.items():
    np.testing.assert_allclose(
      got[path], array, rtol=1e-9, atol=1e-11, err_msg=str(path)
    )
  published = interop.to_torch_state_dict(traverse_util.unflatten_dict(got))
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


def test_training_in_float32(golden, network):
  """Logits and running statistics within 1e-4 of the float64 ones."""
  module, variables, bits = network
  _, logits, got = _train((module, _single(variables), bits), golden["labels"])
  reference = golden["train_logits_f64"]
  scale = np.abs(reference).max()
  np.testing.assert_allclose(logits, reference, rtol=0, atol=1e-4 * scale)
  expected = interop.rename(_under(golden, "stats_after_f64/"), module)
  for path, array in expected.items():
    np.testing.assert_allclose(
      got[path],
      array,
      rtol=1e-4,
      atol=1e-4 * np.abs(array).max(),
      err_msg=str(path),
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
  ours = np.asarray(binary.thermometer_code(jnp.asarray(images)))
  thresholds = np.array(binary.thermometer_thresholds())
  tie = (images[..., None, :] == thresholds[:, None]).reshape(ours.shape)
  differs = ours != published
  assert differs.sum() == golden["thermo_tie_flips"] > 0
  assert tie[differs].all()
  np.testing.assert_array_equal(ours[tie], 0)
