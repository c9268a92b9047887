"""How many programs are under way at once on the virtual devices of a CPU.

XLA runs no more than 32 at a time there. Where those that are let in differ from device to device, programs that sum
over the devices wait for each other for ever, and XLA ends the process after 40 s. Accelerators run them in order.
"""

from typing import Any

import jax

_MOST = 8


def keep(number: int, results: Any) -> None:
  """Waits for every 8th of the programs that a loop starts.

  Args:
    number: which one this is.
    results: its results, any tree of arrays; traced ones are left alone.
  """
  if number % _MOST != _MOST - 1:
    return
  for x in jax.tree.leaves(results):
    if isinstance(x, jax.core.Tracer) or not isinstance(x, jax.Array):
      continue
    devices: Any = x.sharding.device_set
    if len(devices) > 1 and next(iter(devices)).platform == "cpu":
      x.block_until_ready()
