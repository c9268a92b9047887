"""Multi-objective decoding: one policy made, token by token, of several trained on different rewards.

Shi et al. 2024 (MOD, arXiv 2406.18853): policies π_i that are optimal for r_i under a common reference and an
f-divergence combine into the one for Σ λ_i r_i. Takes the place of a `LanguageModel` in generation, measurement and
tasks, and reads all policies in one program, whatever λ is. Costs as many passes as there are policies; weights are
those of `logit_mixture.join`.
"""

import dataclasses

import jax
import jax.numpy as jnp

from wam.core.errors import ConfigError
from wam.core.types import Params
from wam.models.logit_mixture import LogitMixture


@dataclasses.dataclass(frozen=True)
class PolicyMixture(LogitMixture):
  """π_λ of a token, from the policies π_i and λ on the simplex.

  With alpha = 0 (reverse KL, the one of RLHF): π_λ ∝ Π π_i^{λ_i}, which is the mixture of logits; exact where an answer
  is one token: with π_i = π_0·exp(r_i/β)/Z_i it is π_0·exp(Σ λ_i r_i/β)/Z. Of longer answers it is exact in each token
  given those before, not as a whole. Otherwise, the α-divergences: π_λ ∝ (Σ λ_i π_i^{-α})^{-1/α}; alpha = 1 is the
  forward KL, the harmonic mean.

  Attributes:
    config, member, count: as in `LogitMixture`.
    alpha: of the divergence that the policies were regularised with, at least 0.

  Raises:
    ConfigError: if alpha is below 0 or not finite.
  """

  alpha: float = 0.0

  def __post_init__(self) -> None:
    if not 0 <= self.alpha < float("inf"):
      raise ConfigError(
        f"decoding: alpha is {self.alpha}; expected 0 (reverse KL), 1 (forward KL) or another number above 0"
      )

  def logits(self, params: Params, hidden: jax.Array) -> jax.Array:
    """Hidden states [..., M·D] -> float32 [..., V]; log π_λ but for what is equal for all tokens."""
    if not self.alpha:
      return super().logits(params, hidden)
    members = params["layers"]
    own = jnp.split(hidden, len(members), axis=-1)
    logprobs = jnp.stack(
      [
        jax.nn.log_softmax(self.member.logits(members[str(i)], part), axis=-1)
        for i, part in enumerate(own)
      ]
    )
    coefficients = params["coefficients"].astype(jnp.float32)
    shares = coefficients.reshape(-1, *(1,) * (logprobs.ndim - 1))
    return -jax.nn.logsumexp(-self.alpha * logprobs, axis=0, b=shares) / self.alpha
