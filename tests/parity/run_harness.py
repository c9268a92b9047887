"""Runs lm-evaluation-harness on local files, in an environment of its own: FOLDER MODEL.

FOLDER/tasks.json names the harness's own task files (or holds tasks whole) by the name of a file of rows, NAME.jsonl;
what it answers and scores, item by item, goes to FOLDER/harness.json. Nothing is fetched.
"""

import json
import os
import pathlib
import sys


def main(folder: pathlib.Path, model: str) -> None:
  # Imported where it runs: elsewhere the harness is not installed.
  os.environ["HF_HUB_OFFLINE"] = "1"
  os.environ["DISABLE_MULTIPROC"] = "1"
  import lm_eval
  import yaml
  from lm_eval.models.huggingface import HFLM
  from lm_eval.tasks import TaskManager

  included = pathlib.Path(lm_eval.__file__).parent / "tasks"
  asked = json.loads((folder / "tasks.json").read_text())
  for name, task in asked.items():
    splits = dict.fromkeys(("training_split", "validation_split", "fewshot_split"))
    config = {
      "task": f"local_{name}",
      "tag": None,
      "dataset_path": "json",
      "dataset_name": None,
      "dataset_kwargs": {"data_files": {"test": str(folder / f"{name}.jsonl")}},
      "test_split": "test",
      "should_decontaminate": False,
      **splits,
      **task["settings"],
    }
    if "fewshot" in task:
      config["fewshot_split"] = "fewshot"
      config["dataset_kwargs"]["data_files"]["fewshot"] = str(folder / task["fewshot"])
      config["fewshot_config"] = {"sampler": "first_n"}
    if "include" in task:
      config["include"] = str(included / task["include"])
    (folder / f"local_{name}.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
  # Without its own BOS in front of the text, the harness scores a document's first token behind one BOS, not two.
  language_model = HFLM(pretrained=model, dtype="float32", batch_size=8, device="cpu")
  rolling = HFLM(pretrained=model, dtype="float32", batch_size=8, device="cpu", add_bos_token=False)
  manager = TaskManager(include_path=str(folder), include_defaults=False)
  found = {}
  for name, task in asked.items():
    results = lm_eval.simple_evaluate(
      model=rolling if task.get("rolling") else language_model,
      tasks=[f"local_{name}"],
      num_fewshot=task.get("num_fewshot", 0),
      task_manager=manager,
      bootstrap_iters=0,
    )
    samples = sorted(results["samples"][f"local_{name}"], key=lambda s: s["doc_id"])
    scores = results["results"][f"local_{name}"]
    metrics = {k.partition(",")[0]: v for k, v in scores.items() if "stderr" not in k}
    found[name] = {
      "prompts": [s["arguments"][0][0] for s in samples],
      "responses": [s["resps"] for s in samples],
      "items": [{m: s[m] for m in metrics if m in s} for s in samples],
      "metrics": {m: v for m, v in metrics.items() if isinstance(v, float | int)},
    }
  (folder / "harness.json").write_text(json.dumps(found, default=str))


if __name__ == "__main__":
  main(pathlib.Path(sys.argv[1]), sys.argv[2])
