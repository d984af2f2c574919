"""Your own CNN of Flax NNX on chips: 1-bit, 8-bit and analog weights."""

from flax import nnx
import jax
import numpy as np
import optax
from sklearn import datasets

import hawis_jax as hx

digits = datasets.load_digits()
images = digits.images[..., None].astype(np.float32) / 16  # [N, 8, 8, 1]
train, test = slice(0, 1400), slice(1400, 1600)


class Cnn(nnx.Module):
  """Two convolutions with batch normalisation, and a linear layer."""

  def __init__(self, rngs):
    self.conv1 = nnx.Conv(1, 8, (3, 3), use_bias=False, rngs=rngs)
    self.norm1 = nnx.BatchNorm(8, momentum=0.9, rngs=rngs)
    self.conv2 = nnx.Conv(8, 16, (3, 3), 2, padding="VALID", rngs=rngs)
    self.norm2 = nnx.BatchNorm(16, momentum=0.9, rngs=rngs)
    self.head = nnx.Linear(16, 10, rngs=rngs)

  def __call__(self, x):
    """Returns logits `[B, 10]` of images `[B, 8, 8, 1]`."""
    x = nnx.relu(self.norm1(self.conv1(x)))
    x = nnx.relu(self.norm2(self.conv2(x)))
    return self.head(x.mean((1, 2)))


cnn = Cnn(nnx.Rngs(0))
optimizer = nnx.Optimizer(cnn, optax.adam(1e-2), wrt=nnx.Param)


@nnx.jit
def step(cnn, optimizer, image, label):
  """Trains by one batch."""

  def loss_of(cnn):
    loss = optax.softmax_cross_entropy_with_integer_labels(cnn(image), label)
    return loss.mean()

  optimizer.update(cnn, nnx.grad(loss_of)(cnn))


order = np.random.default_rng(0)
for _ in range(300):
  rows = order.integers(0, train.stop, 64)
  step(cnn, optimizer, images[rows], digits.target[rows])

device = hx.Device(stuck_off=0.02, variation=0.1)
accuracy = {}
for weights in ("binary", "int8", "analog"):
  # The first layer stays digital: it has few weights, and all depend on them.
  net = hx.any_flax(cnn, weights=weights, layers=("conv2", "head"))
  for name, chips in ("no defects", hx.Device()), ("chips", device):
    accuracy[weights, name] = hx.evaluate_chips(
      jax.random.key(1),
      net,
      net.variables,
      images[test],
      digits.target[test],
      chips,
      num_chips=8,
    )
    print(f"{weights}, {name}: {accuracy[weights, name].mean():.1%}")
