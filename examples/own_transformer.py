"""A small transformer of your own on chips: attention's products too."""

from flax import linen as nn
import jax
import numpy as np
import optax
from sklearn import datasets

import hawis_jax as hx

digits = datasets.load_digits()
images = digits.images.astype(np.float32) / 16  # [N, 8, 8]: 8 rows of 8 pixels
train, test = slice(0, 1400), slice(1400, 1600)


class Transformer(nn.Module):
  """One block over the rows of an image, read out by their mean."""

  @nn.compact
  def __call__(self, x):
    """Returns logits `[B, 10]` of images `[B, 8, 8]`."""
    places = self.param("places", nn.initializers.normal(0.02), (8, 16))
    x = nn.Dense(16, name="embed")(x) + places[None]
    y = nn.LayerNorm(name="norm1")(x)
    x += nn.MultiHeadDotProductAttention(2, name="attention")(y)
    y = nn.LayerNorm(name="norm2")(x)
    x += nn.Dense(16, name="down")(nn.relu(nn.Dense(32, name="up")(y)))
    return nn.Dense(10, name="head")(x.mean(1))


transformer = Transformer()
variables = jax.jit(transformer.init)(jax.random.key(0), images[:1])
optimizer = optax.adam(1e-2)


@jax.jit
def step(variables, state, image, label):
  """Trains by one batch."""

  def loss_of(variables):
    logits = transformer.apply(variables, image)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, label)
    return loss.mean()

  updates, state = optimizer.update(jax.grad(loss_of)(variables), state)
  return optax.apply_updates(variables, updates), state


state, order = optimizer.init(variables), np.random.default_rng(0)
for _ in range(200):
  rows = order.integers(0, train.stop, 64)
  variables, state = step(variables, state, images[rows], digits.target[rows])

net = hx.any_flax(transformer, weights="int8")
device = hx.Device(stuck_off=0.01, variation=0.1)
accuracy = {}
for layers in (None, ("attention/*",), ("up", "down")):
  accuracy[layers] = hx.evaluate_chips(
    jax.random.key(1),
    net,
    variables,
    images[test],
    digits.target[test],
    device,
    num_chips=8,
    layers=layers,
  )
  mean, std = accuracy[layers].mean(), accuracy[layers].std()
  print(f"{layers or 'all'}: {mean:.1%}, standard deviation {std:.1%}")
