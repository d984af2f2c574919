"""CIFAR-10, ResNet-20: HAWIS from the super-net on, or one published net.

All stages, with a search of its own (an accelerator's work):
python -m hawis_jax.main --config configs/cifar10_resnet20.py

One published width vector ("1x", "4x", "hawis_a" or "hawis_b") by the published
recipe, 400 epochs of all 50,000 training images:
python -m hawis_jax.main --config configs/cifar10_resnet20.py:hawis_a

The data set must be prepared (python -m hawis_jax.data prepare cifar10).
"""

from hawis_jax.config import settings

_IMAGES = 50_000
_EPOCHS = 400


def get_config(preset: str = "", depth: int = 20):
  """Returns the configuration; `preset` names a published width vector."""
  c = settings.default()
  c.data.name = "cifar10"
  c.data.augment = "flip_crop"
  c.data.validation_images = 5_000
  c.network.depth = depth
  c.pretrain.steps = 400 * (_IMAGES - 5_000) // 256
  c.pretrain.warmup_steps = c.pretrain.steps // 4
  c.train.batch_size = 128
  c.train.steps = _EPOCHS * _IMAGES // c.train.batch_size
  c.train.use_validation = True
  c.train.optimizer.name = "sgd"
  c.train.optimizer.learning_rate = 0.1
  c.train.optimizer.schedule = "multistep"
  c.train.optimizer.milestones = (0.5, 0.65, 0.8)  # epochs 200, 260, 320
  c.train.optimizer.momentum = 0.9
  c.train.optimizer.weight_decay = 1e-4
  c.train.nets = (
    "found",
    "uniform",
    "baseline_1x",
    "baseline_1x_int8",
    "baseline_1x_float",
  )
  if preset:
    c.train.nets = (f"resnet{depth}_{preset}",)
  return c
