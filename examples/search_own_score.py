"""Searches widths by a score function of one's own, within a budget of MACs."""

import jax

import hawis_jax as hx

space = hx.width_space(((4, 8, 16), (8, 16, 32), (16, 32, 64)), num_layers=7)
geometry = hx.cifar_geometry(8, (8, 8, 1), levels=16, num_classes=10)
costs = hx.cost_tables(space.table, geometry, "macs")
ok = hx.feasible_set(space, costs, budget_range=(0.0, 1.5e6))
best = hx.search_widths(
  jax.random.key(0),
  lambda widths: (widths**0.5).sum(-1),  # [P, L] -> [P]
  ok,
  method=hx.policy(proposals=16),
  num_updates=40,
)
print(best.widths, best.score, hx.network_cost(best.widths, geometry).macs)
