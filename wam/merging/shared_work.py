"""A traced function that computes nothing twice.

Derivatives along several directions, taken one after the other, each compute the value again. XLA merges equal
operations only where they still look alike once it has simplified them, which in a decoder they do not: here they are
merged before, as JAX traced them. Leaves out loops (`scan`, `while`): two of them are never merged.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

# Calls that are looked into, and where their bodies are. Their own derivatives have been taken when this runs.
_CALLS = {
  "jit": "jaxpr",
  "closed_call": "call_jaxpr",
  "custom_jvp_call": "call_jaxpr",
  "custom_vjp_call": "call_jaxpr",
}


class Late:
  """An operand that is computed where it is first needed, and not before what it is needed with is there.

  A compiler that finds all weights of a network ready to be computed may compute them all first, and hold them all at
  once (XLA does).
  """

  def __init__(self, shape: jax.ShapeDtypeStruct, make: Callable[[Any], jax.Array]):
    """`make` is given a float32 scalar that is 1 and that is not known before; the result has to depend on it."""
    self.shape, self._make = shape, make
    self._made: jax.Array | None = None

  def made(self, one: Any) -> jax.Array:
    """The operand; computed at the first call."""
    if self._made is None:
      self._made = self._make(one)
    return self._made


def share(function: Callable[..., Any]) -> Callable[..., Any]:
  """The same function of arrays, equal operations on equal operands done once.

  For use under `jax.jit`, where the operands are traced; leaves of the arguments may be `Late`. The result cannot be
  differentiated with the rules of a `custom_jvp` or `custom_vjp` inside: take derivatives inside `function`.
  """

  def shared(*args: Any) -> Any:
    known = jax.tree.map(lambda x: x.shape if isinstance(x, Late) else x, args)
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*known)
    run = _Run()
    results = run(closed.jaxpr, closed.consts, jax.tree.leaves(args))
    results = [x.made(1.0) if isinstance(x, Late) else x for x in results]
    return jax.tree.unflatten(jax.tree.structure(shapes), results)

  return shared


class _Run:
  """One evaluation: what has been computed so far, by operation, parameters and operands."""

  def __init__(self) -> None:
    self._done: dict[Any, list[Any]] = {}
    self._ones: dict[int, jax.Array] = {}
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
        else self._once(jaxpr, equation, inputs)
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

  def _once(self, jaxpr: core.Jaxpr, equation: core.JaxprEqn, inputs: list[Any]) -> list[Any]:
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
    results = self._results(jaxpr, equation, inputs)
    if key is not None:
      self._done[key] = results
      self._alive.append(inputs)
    return results

  def _results(self, jaxpr: core.Jaxpr, equation: core.JaxprEqn, inputs: list[Any]) -> list[Any]:
    """Evaluates an equation; what depends on late operands only stays late itself."""
    late = [x for x in inputs if isinstance(x, Late)]
    there = [x for x in inputs if isinstance(x, jax.core.Tracer)]
    if late and not there and len(equation.outvars) == 1 and not equation.effects:
      aval: Any = equation.outvars[0].aval

      def make(one: Any) -> jax.Array:
        return _evaluate(jaxpr, equation, [_made(x, one) for x in inputs])[0]

      return [Late(jax.ShapeDtypeStruct(aval.shape, aval.dtype), make)]
    one = self._one(there) if late else 1.0
    return _evaluate(jaxpr, equation, [_made(x, one) for x in inputs])

  def _one(self, there: list[Any]) -> Any:
    """1, when the first of these operands that has an entry is there."""
    first = next((x for x in there if x.size and x.dtype != bool), None)
    if first is None:
      return 1.0
    if id(first) not in self._ones:
      entry = first[(0,) * first.ndim].astype(jnp.float32)
      # The compiler does not see that this is 1 whatever the entry is, even NaN, as outputs at padding may be.
      zero = jnp.where(entry == entry, jnp.minimum(jnp.abs(entry), 0.0), 0.0)
      self._ones[id(first)] = 1.0 + zero
      self._alive.append(first)
    return self._ones[id(first)]


def _made(operand: Any, one: Any) -> Any:
  return operand.made(one) if isinstance(operand, Late) else operand


def _evaluate(jaxpr: core.Jaxpr, equation: core.JaxprEqn, inputs: list[Any]) -> list[Any]:
  """The results of one equation of `jaxpr`."""
  pairs = zip(equation.invars, inputs, strict=True)
  own = {atom: x for atom, x in pairs if not isinstance(atom, core.Literal)}
  single = jaxpr.replace(constvars=[], invars=list(own), outvars=equation.outvars, eqns=[equation])
  return jax.core.eval_jaxpr(single, [], *own.values())


def _identity(operand: Any) -> Any:
  """What two operands have in common if and only if they are equal: for a constant its bytes."""
  if isinstance(operand, jax.core.Tracer | Late) or np.size(operand) > 2**16:
    return id(operand)
  if isinstance(operand, jax.Array) and jax.dtypes.issubdtype(operand.dtype, jax.dtypes.extended):
    return id(operand)
  weak = getattr(operand, "weak_type", not hasattr(operand, "dtype"))
  array = np.asarray(operand)
  return (weak, str(array.dtype), array.shape, array.tobytes())
