"""The runs behind the claims: the world of configs/alignment_tax/tiny.py, by algorithm and seed.

Mitigations are compared as the paper does it: each is fine-tuned from θ_0 on the best-of-n samples that the run of RSF
kept on its way, for equally many updates; KL penalties are runs of their own. The strengths of every mitigation are
spread over decades, so that none is helped or hindered by a narrow grid.
"""

from typing import Any

from experiments import studies

# Where the tax sets in along equal ratios; below, all skills are whole (the paper's 0.2 to 0.4 are there).
ALPHAS = [0.4, 0.6, 0.8]
ALGORITHMS = ("rsf", "ppo", "dpo")
DISTILLED = {
  "batch_size": 32,
  "epochs": 2,
  "optimizer": {"learning_rate": 1.5e-3, "schedule": "constant"},
}
# Mitigations by family, with their strengths. The scales of l1 and l2 are those of the authors' code.
STRENGTHS: dict[str, dict[str, dict[str, Any]]] = {
  "L1": {f"{c:g}": {"l1": {"coefficient": c}} for c in (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)},
  "L2": {f"{c:g}": {"l2": {"coefficient": c}} for c in (1e-8, 1e-7, 1e-6, 1e-5, 1e-4)},
  "distillation": {f"{c:g}": {"distillation": {"coefficient": c}} for c in (0.01, 0.1, 1.0, 10.0)},
  "LoRA": {
    f"{targets}, rank {rank}": {"lora": {"rank": rank, "targets": targets}}
    for targets in ("mlp", "mlp+attention")
    for rank in (2, 8, 32)
  },
  "replay": {f"{p:g}": {"replay": {"proportion": p}} for p in (0.25, 0.5, 1.0, 2.0, 4.0)},
  "none": {"none": {}},
}
# Beside the main run's 0.05.
KL_COEFS = (0.0, 0.02, 0.1, 0.2)


def config(algorithm: str, seed: int) -> dict[str, Any]:
  """The config of a run, as nested plain data."""
  made = studies.config(f"alignment_tax/tiny.py:{algorithm}", seed)
  made["averaging"]["patterns"] = [[0.0, 0.0, -0.1], [0.0, -0.1, -0.1]]
  made["averaging"]["pattern_alphas"] = ALPHAS
  made["adaptive"] = {
    "alphas": ALPHAS,
    # Equal ratios are then the points of model averaging.
    "parts": {"scope": "all"},
    "num_parts": [3, 2, 6] if algorithm == "rsf" else [3],
    "anchors": ["none", "samples", "corpus"] if algorithm == "rsf" else ["none"],
    "grid": {"alpha": 0.6, "step": 0.2},
    "examples": {"num_prompts": 1024, "samples_per_prompt": 4, "pool": 1000, "size": 400},
    "num_starts": 2,
    "rows_per_call": 200,
  }
  if algorithm == "rsf":
    made["rsf"]["keep_samples"] = True
    made["comparisons"] = {
      family: {
        label: {"algorithm": "distillation", "settings": DISTILLED, "mitigation": mitigation}
        for label, mitigation in strengths.items()
      }
      for family, strengths in STRENGTHS.items()
    }
  if algorithm == "ppo":
    made["comparisons"] = {"KL penalty": {f"{c:g}": {"settings": {"kl_coef": c}} for c in KL_COEFS}}
  return made
