"""What is read from compiled programs, against XLA's own account."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hawis_jax import compiled

_CONVOLUTIONS = [
  # images, kernel, strides, padding, groups
  ((4, 9, 7, 6), (3, 3, 6, 8), (1, 1), "SAME", 1),
  ((4, 9, 7, 6), (3, 5, 6, 8), (2, 3), "VALID", 1),
  ((2, 8, 8, 6), (3, 3, 3, 8), (2, 2), "SAME", 2),
  ((2, 8, 8, 6), (1, 1, 6, 8), (1, 1), "SAME", 1),
]


def _convolve(x, kernel, strides, padding, groups):
  return jax.lax.conv_general_dilated(
    x,
    kernel,
    strides,
    padding,
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=groups,
  )


@pytest.mark.parametrize("x, kernel, strides, padding, groups", _CONVOLUTIONS)
def test_operations_of_a_convolution_are_those_that_xla_counts(
  x, kernel, strides, padding, groups
):
  def call(x, kernel):
    return _convolve(x, kernel, strides, padding, groups)

  lowered = jax.jit(call).lower(jnp.zeros(x), jnp.zeros(kernel))
  expected = lowered.cost_analysis()["flops"]
  assert compiled.needs(lowered.compile()).flops == expected


def test_operations_of_gradients_are_those_that_xla_counts():
  """With padding and dilation, of which zeros are not counted."""
  x, kernel, *options = _CONVOLUTIONS[0]

  def call(x, kernel):
    return jax.grad(
      lambda *args: (_convolve(*args, (2, 2), *options[1:]) ** 2).sum(), (0, 1)
    )(x, kernel)

  executable = jax.jit(call).lower(jnp.zeros(x), jnp.zeros(kernel)).compile()
  text = executable.as_text()
  assert text.count(" convolution(") == 3
  # XLA counts sums and squares too.
  total = executable.cost_analysis()["flops"]
  assert 0.97 * total < compiled.work(text)[0] < total


def test_loops_count_every_round():
  x, w = jnp.ones((8, 16)), jnp.ones((5, 16, 16))

  def product(x, w):
    return jnp.tanh(x @ w), None

  def once(x, w):
    return product(x, w[0])[0]

  def five(x, w):
    return jax.lax.scan(product, x, w)[0]

  one, all_ = (
    compiled.needs(jax.jit(f).lower(x, w).compile()) for f in (once, five)
  )
  assert one.flops == 2 * 8 * 16 * 16
  assert all_.flops == 5 * one.flops
  sizes = x.nbytes + w.nbytes
  assert all_.arguments == sizes and all_.outputs == x.nbytes
  assert all_.memory == sizes + x.nbytes + all_.temporary


def test_donated_arguments_hold_their_outputs():
  x = np.ones(1000, np.float32)
  double = jax.jit(lambda x: 2 * x, donate_argnums=0).lower(x).compile()
  needs = compiled.needs(double)
  assert (needs.arguments, needs.outputs) == (4000, 0)


_TEXT = """
HloModule m

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%condition (p: (s32[], f32[4,8])) -> pred[] {
  %p = (s32[]{:T(128)}, f32[4,8]{1,0:T(8,128)}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %limit = s32[]{:T(128)} constant(3)
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

%body (p.1: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %p.1 = (s32[], f32[4,8]) parameter(0)
  %x = f32[4,8]{1,0:T(8,128)} get-tuple-element(%p.1), index=1
  %i.1 = s32[] get-tuple-element(%p.1), index=0
  %all = f32[4,8]{1,0} all-reduce(%x), replica_groups={}, to_apply=%add
  ROOT %t = (s32[], f32[4,8]) tuple(%i.1, %all)
}

ENTRY %main (x.1: f32[4,8], y: bf16[16]) -> f32[4,8] {
  %x.1 = f32[4,8]{1,0} parameter(0)
  %y = bf16[16]{0} parameter(1)
  %zero = s32[] constant(0)
  %start = (s32[], f32[4,8]) tuple(%zero, %x.1)
  %loop = (s32[], f32[4,8]) while(%start), condition=%condition, body=%body
  %gather = (bf16[16]{0}, bf16[64]{0}) all-gather-start(%y), dimensions={0}
  %done = bf16[64]{0} all-gather-done(%gather)
  %scatter = f32[1,8]{1,0} reduce-scatter(%x.1), to_apply=%add
  %two = (f32[4,8], bf16[16]) all-reduce(%x.1, %y), to_apply=%add
  ROOT %result = f32[4,8]{1,0} get-tuple-element(%loop), index=1
}
"""


def test_collectives_of_a_program():
  """As TPUs' programs say it: loops without a stated number of rounds."""
  flops, moved = compiled.work(_TEXT)
  assert flops == 0
  assert moved == {
    "all-gather": (1, 64 * 2),
    "all-reduce": (3 + 1, 3 * 4 * 8 * 4 + 4 * 8 * 4 + 16 * 2),
    "reduce-scatter": (1, 4 * 8 * 4),
  }
