"""New tokens a second, prompts included: wam against transformers' generate and Tunix's sampler.

python benchmarks/sampling.py [--repeats 5] [--quick] [--only top-p]
"""

from alternate import System, run

SYSTEMS = (
  System("wam", "wam", "systems_wam:sampling"),
  System("wam, top-p 0.95", "wam", "systems_wam:sampling_top_p"),
  System("wam, top-k 50", "wam", "systems_wam:sampling_top_k"),
  System("transformers generate", "torch", "systems_torch:sampling"),
  System("transformers generate, top-p 0.95", "torch", "systems_torch:sampling_top_p"),
  System("Tunix sampler", "tunix", "systems_tunix:sampling"),
  System("Tunix sampler, top-p 0.95", "tunix", "systems_tunix:sampling_top_p"),
)

if __name__ == "__main__":
  run(SYSTEMS, __doc__ or "")
