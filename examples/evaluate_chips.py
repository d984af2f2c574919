"""How often chips of a published device agree with the net they should hold."""

import jax
import numpy as np

import hawis_jax as hx

images = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 1), np.uint8)
net = hx.cifar_resnet(8, (4, 4, 4, 6, 6, 8, 8), num_classes=10, levels=8)
variables = hx.init_variables(net, jax.random.key(0), images.shape[1:])
apply = jax.jit(net.apply, static_argnames="train")
logits = apply(variables, net.encode(images), train=False)
device = hx.PRESETS["hawis_published"]  # 9.04 % stuck off, 1.75 % stuck on
agreement = hx.evaluate_chips(
  jax.random.key(1), net, variables, images, logits.argmax(-1), device, 16
)
low, high = hx.summarize(agreement)["ci95"]
print(f"{agreement.mean():.1%} of the images ({low:.1%} to {high:.1%})")
