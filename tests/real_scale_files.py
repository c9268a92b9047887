"""What the configs of 3 B and 7 B models find in WAM_DATA, in miniature: random models, and a few rows."""

import json
import pathlib

import jax

from wam import pretrained
from wam.data.tokenizers import eos_id, padding_id, word_tokenizer
from wam.models.config import DecoderConfig
from wam.models.decoder import LanguageModel

WORDS = "Human: Assistant: Question: Answer: what who where is in it a the cat dog yes no".split()
HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"


def write(directory: pathlib.Path) -> None:
  """Fills a directory."""
  tokenizer = word_tokenizer(WORDS)
  shape = {
    "vocab_size": 24,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_layers": 3,
    "num_heads": 2,
    "bos_token_id": tokenizer.bos_token_id,
    "eos_token_id": (eos_id(tokenizer),),
    "pad_token_id": padding_id(tokenizer),
  }
  for name, family in (
    ("open_llama_3b_v2", {}),
    ("Mistral-7B-v0.1", {"family": "mistral", "num_kv_heads": 1, "sliding_window": 8}),
  ):
    model = LanguageModel(DecoderConfig(**shape, **family))
    pretrained.save(directory / name, model, model.init(jax.random.key(0)), tokenizer)
  prompts = [f"{HUMAN} {word} is it{ASSISTANT}" for word in WORDS[4:14]]
  examples = [{"prompt": p, "completion": " the cat"} for p in prompts * 2]
  pairs = [{"prompt": p, "chosen": " a dog", "rejected": " it is it"} for p in prompts * 4]
  _rows(directory / "sharegpt/train.jsonl", examples)
  for split in ("train", "test"):
    _rows(directory / f"hh-rlhf-pairs/{split}.jsonl", pairs)
  choices = [
    {"query": f"Question: {w} is it\nAnswer:", "choices": ["yes", "no"], "gold": i % 2}
    for i, w in enumerate(WORDS[4:14])
  ]
  answers = [{"context": f"what is {w}", "answer": w, "aliases": []} for w in WORDS[4:14]]
  for name in ("arc_easy", "arc_challenge", "race", "piqa"):
    _rows(directory / f"tasks/{name}.jsonl", choices)
  for name in ("squad", "drop", "wmt14_fr_en"):
    _rows(directory / f"tasks/{name}.jsonl", answers)


def _rows(path: pathlib.Path, rows: list[dict]) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
