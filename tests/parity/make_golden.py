"""Writes tests/models/golden/logits.npz: logits of transformers' torch models on the tiny decoders of `cases.py`.

Run where torch is installed, from the root of the repository: python -m tests.parity.make_golden
"""

import pathlib
import tempfile

import numpy as np

from tests.parity.cases import CASES, tokens, weights
from wam import pretrained
from wam.models.decoder import LanguageModel

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "models" / "golden" / "logits.npz"


def main() -> None:
  """Every case, written by us, loaded and run by transformers."""
  # Here and not above: pytest imports every file for its doctests, with torch or without.
  import torch
  import transformers

  logits = {}
  for name, config in CASES.items():
    with tempfile.TemporaryDirectory() as directory:
      path = pathlib.Path(directory) / "model"
      pretrained.save(path, LanguageModel(config), weights(config))
      model = transformers.AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager")
      with torch.no_grad():
        found = model.eval()(torch.tensor(tokens(config))).logits.numpy()
    # Every third token of the vocabulary: enough to tell, and small.
    logits[name] = found[:, :, ::3].astype(np.float32)
  GOLDEN.parent.mkdir(exist_ok=True)
  np.savez_compressed(GOLDEN, **logits)
  print(f"{GOLDEN}: {GOLDEN.stat().st_size} bytes, torch {torch.__version__}")


if __name__ == "__main__":
  main()
