"""Tests a net with random weights on chips of a published device."""

import jax
import numpy as np

import hawis_jax as hx

rng = np.random.default_rng(0)
images = rng.integers(0, 256, (64, 8, 8, 1), np.uint8)
labels = rng.integers(0, 10, 64)
net = hx.cifar_resnet(8, (4, 4, 4, 6, 6, 8, 8), num_classes=10, levels=8)
variables = hx.init_variables(net, jax.random.key(0), images.shape[1:])
accuracy = hx.evaluate_chips(
  jax.random.key(1),
  net,
  variables,
  images,
  labels,
  hx.PRESETS["hawis_published"],
  num_chips=16,
)
summary = hx.summarize(accuracy)
print(f"{summary['mean']:.3f} of the images, 95 % over chips:", summary["ci95"])
