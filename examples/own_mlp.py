"""Your own MLP, trained by your own loop, on chips and without."""

from flax import linen as nn
import jax
import numpy as np
import optax
from sklearn import datasets

import hawis_jax as hx

digits = datasets.load_digits()
images = digits.images.astype(np.float32) / 16  # [N, 8, 8]
train, test = slice(0, 1400), slice(1400, None)

mlp = nn.Sequential(
  [lambda x: x.reshape(len(x), -1), nn.Dense(64), nn.relu, nn.Dense(10)]
)
net = hx.any_flax(mlp, weights="int8")
device = hx.Device(stuck_off=0.1, variation=0.7)


def loss_fn(variables, batch):
  """Returns the cross-entropy of a batch."""
  logits = net.apply(variables, batch["image"], train=True)
  return optax.softmax_cross_entropy_with_integer_labels(
    logits, batch["label"]
  ).mean()


def trained(loss, steps=1000, batch_size=64):
  """Returns variables after Adam on a loss of (variables, key, batch)."""
  optimizer = optax.adam(3e-3)

  @jax.jit
  def step(variables, state, key, batch):
    grads = jax.grad(loss)(variables, key, batch)
    updates, state = optimizer.update(grads, state)
    return optax.apply_updates(variables, updates), state

  variables = jax.jit(mlp.init)(jax.random.key(0), images[:1])
  state, key = optimizer.init(variables), jax.random.key(1)
  order = np.random.default_rng(0)
  for i in range(steps):
    rows = order.integers(0, train.stop, batch_size)
    batch = {"image": images[rows], "label": digits.target[rows]}
    variables, state = step(variables, state, jax.random.fold_in(key, i), batch)
  return variables


nets = {
  "plain": trained(lambda variables, key, batch: loss_fn(variables, batch)),
  "on chips": trained(hx.train_on_chips(loss_fn, net, device, num_chips=4)),
}
accuracy = {
  name: hx.evaluate_chips(
    jax.random.key(2),
    net,
    variables,
    images[test],
    digits.target[test],
    device,
    num_chips=16,
  )
  for name, variables in nets.items()
}
for name, on_chips in accuracy.items():
  low, high = hx.summarize(on_chips)["ci95"]
  print(f"trained {name}: {on_chips.mean():.1%} ({low:.1%} to {high:.1%})")
