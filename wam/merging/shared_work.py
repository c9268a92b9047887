"""A traced function that computes nothing twice.

Derivatives along several directions, taken one after the other, each compute the value again. XLA merges equal
operations only where they still look alike once it has simplified them, which in a decoder they do not: here they are
merged before, as JAX traced them. Leaves out loops (`scan`, `while`): two of them are never merged.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core

# Calls that are looked into, and where their bodies are. Their own derivatives have been taken when this runs.
_CALLS = {
  "jit": "jaxpr",
  "closed_call": "call_jaxpr",
  "custom_jvp_call": "call_jaxpr",
  "custom_vjp_call": "call_jaxpr",
}


def share(function: Callable[..., Any]) -> Callable[..., Any]:
  """The same function of arrays, equal operations on equal operands done once.

  For use under `jax.jit`, where the operands are traced. The result cannot be differentiated with the rules of a
  `custom_jvp` or `custom_vjp` inside: take derivatives inside `function`.
  """

  def shared(*args: Any) -> Any:
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
    results = _Run()(closed.jaxpr, closed.consts, jax.tree.leaves(args))
    return jax.tree.unflatten(jax.tree.structure(shapes), results)

  return shared


class _Run:
  """One evaluation: what has been computed so far, by operation, parameters and operands."""

  def __init__(self) -> None:
    self._done: dict[Any, list[Any]] = {}
    # Operands are told apart by their ids, which are theirs only as long as they live.
    self._alive: list[Any] = []

  def __call__(
    self, jaxpr: core.Jaxpr, consts: Sequence[Any], operands: Sequence[Any]
  ) -> list[Any]:
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *operands], strict=True))

    def read(atom: Any) -> Any:
      return atom.val if isinstance(atom, core.Literal) else values[atom]

    for equation in jaxpr.eqns:
      inputs = [read(atom) for atom in equation.invars]
      body = self._body(equation)
      results = (
        self(body.jaxpr, body.consts, inputs)
        if body is not None
        else self._once(jaxpr, equation, inputs, values)
      )
      values.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]

  def _body(self, equation: core.JaxprEqn) -> core.ClosedJaxpr | None:
    """The body of a call that says nothing but what to compute."""
    name = equation.primitive.name
    found = equation.params.get(_CALLS[name]) if name in _CALLS else None
    placed = [
      sharding
      for key in ("in_shardings", "out_shardings")
      for sharding in equation.params.get(key, ())
      if isinstance(sharding, jax.sharding.Sharding)
    ]
    return found if isinstance(found, core.ClosedJaxpr) and not placed else None

  def _once(
    self,
    jaxpr: core.Jaxpr,
    equation: core.JaxprEqn,
    inputs: list[Any],
    values: dict[Any, Any],
  ) -> list[Any]:
    """The results of an equation of `jaxpr`, from before where there are such."""
    parameters = tuple(sorted(equation.params.items(), key=lambda item: item[0]))
    key: Any = (equation.primitive, equation.ctx, parameters, tuple(_identity(x) for x in inputs))
    try:
      hash(key)
    except TypeError:
      key = None  # a parameter that cannot be compared
    if equation.effects:
      key = None
    if key is not None and key in self._done:
      return self._done[key]
    own = list(dict.fromkeys(v for v in equation.invars if not isinstance(v, core.Literal)))
    single = jaxpr.replace(constvars=[], invars=own, outvars=equation.outvars, eqns=[equation])
    results = jax.core.eval_jaxpr(single, [], *(values[v] for v in own))
    if key is not None:
      self._done[key] = results
      self._alive.append(inputs)
    return results


def _identity(operand: Any) -> Any:
  """What two operands have in common if and only if they are equal: for a constant its bytes."""
  if isinstance(operand, jax.core.Tracer) or np.size(operand) > 2**16:
    return id(operand)
  if isinstance(operand, jax.Array) and jax.dtypes.issubdtype(operand.dtype, jax.dtypes.extended):
    return id(operand)
  weak = getattr(operand, "weak_type", not hasattr(operand, "dtype"))
  array = np.asarray(operand)
  return (weak, str(array.dtype), array.shape, array.tobytes())
