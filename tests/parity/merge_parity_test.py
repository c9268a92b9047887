"""The same recipe through mergekit and through wam: the same weights.

mergekit runs in an environment of its own (`make parity` makes it; WAM_MERGEKIT_PYTHON names another interpreter).
Models are float32 (stored as computed: every bit, or the last bits of sums) and bfloat16 (computed in float32 by both,
then rounded: one bfloat16 step at most).
"""

import os
import pathlib
import subprocess

import ml_dtypes
import numpy as np
import pytest
from safetensors import numpy as safetensors

from tests.parity.merge_cases import DETERMINISTIC, RANDOM, make_models
from wam.cli import merge
from wam.core.errors import WamError

ROOT = pathlib.Path(__file__).parents[2]
PYTHON = pathlib.Path(os.environ.get("WAM_MERGEKIT_PYTHON", ROOT / ".venv-mergekit/bin/python"))
DTYPES = ("float32", "bfloat16")

pytestmark = [
  pytest.mark.parity,
  pytest.mark.skipif(not PYTHON.exists(), reason="needs mergekit's environment: run `make parity`"),
]


@pytest.fixture(scope="module")
def merged(tmp_path_factory):
  """Every recipe, merged by both: folder by dtype; NAME.theirs and NAME.ours."""
  folders = {}
  for dtype in DTYPES:
    folder = tmp_path_factory.mktemp(dtype)
    models = make_models(folder / "models", dtype)
    tail = "dtype: float32\nout_dtype: bfloat16\n" if dtype == "bfloat16" else ""
    recipes = {n: text for n, (text, _) in DETERMINISTIC.items()} | RANDOM
    for name, text in recipes.items():
      (folder / f"{name}.yaml").write_text(text.format(**models) + tail)
    script = pathlib.Path(__file__).with_name("run_mergekit.py")
    subprocess.run([PYTHON, script, folder], check=True, capture_output=True, cwd=folder)
    for name in recipes:
      try:
        merge.main([str(folder / f"{name}.yaml"), str(folder / f"{name}.ours"), "--quiet"])
      except WamError as error:  # told to the test of this recipe
        (folder / f"{name}.refused").write_text(str(error))
    folders[dtype] = folder
  return folders


def tensors(directory):
  found = {}
  for path in sorted(directory.glob("*.safetensors")):
    found |= safetensors.load_file(path)
  return found


def both(merged, dtype, name):
  folder = merged[dtype]
  for error in (folder / f"{name}.error", folder / f"{name}.refused"):
    assert not error.exists(), error.read_text()
  theirs, ours = tensors(folder / f"{name}.theirs"), tensors(folder / f"{name}.ours")
  assert theirs.keys() == ours.keys()
  for key, value in theirs.items():
    assert (value.shape, value.dtype) == (ours[key].shape, ours[key].dtype), key
  return theirs, ours


def inputs(merged, dtype):
  """By tensor name, the size of the largest of the inputs."""
  every = [tensors(path) for path in (merged[dtype] / "models").iterdir()]
  return {n: np.max([np.abs(np.float64(x[n])) for x in every], axis=0) for n in every[0]}


def too_far_apart(theirs, ours, largest):
  """Entries that differ by more than float32 arithmetic on numbers of this size, and one step of the stored dtype."""
  a, b = np.float64(theirs), np.float64(ours)
  step = np.abs(np.spacing(theirs).astype(np.float64)) if theirs.dtype != np.float32 else 0.0
  return np.abs(a - b) > step + 1e-5 * np.abs(a) + 2e-6 * largest


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_float32_models(name, merged):
  theirs, ours = both(merged, "float32", name)
  largest = inputs(merged, "float32")
  kind = DETERMINISTIC[name][1]
  for key, value in theirs.items():
    if kind == "exact":
      assert value.tobytes() == ours[key].tobytes(), key
    elif kind == "rounding":
      assert not too_far_apart(value, ours[key], largest[key]).any(), key
    else:
      assert too_far_apart(value, ours[key], largest[key]).mean() < 2e-3, key


@pytest.mark.parametrize(
  "name", [n for n, (_, kind) in DETERMINISTIC.items() if kind == "rounding"]
)
def test_bfloat16_models_differ_by_one_step_at_most(name, merged):
  theirs, ours = both(merged, "bfloat16", name)
  largest = inputs(merged, "bfloat16")
  for key, value in theirs.items():
    assert value.dtype == ml_dtypes.bfloat16
    assert not too_far_apart(value, ours[key], largest[key]).any(), key


@pytest.mark.parametrize("name", ["task_arithmetic", "stacked_layers", "passthrough"])
def test_bfloat16_models_are_equal_bit_for_bit(name, merged):
  theirs, ours = both(merged, "bfloat16", name)
  for key, value in theirs.items():
    assert value.tobytes() == ours[key].tobytes(), key


def test_bfloat16_ties_differ_only_at_the_thresholds(merged):
  """Deltas of bfloat16 weights are quantised: many sit on the k-th magnitude, where we keep all and a sort some."""
  theirs, ours = both(merged, "bfloat16", "ties")
  models = {m: tensors(merged["bfloat16"] / "models" / m) for m in ("base", "a", "b", "c")}
  differing = 0
  for key, value in theirs.items():
    origin = np.float32(models["base"][key])
    on_edge = np.zeros(origin.shape, bool)
    for m in "abc":
      size = np.abs(np.float32(models[m][key]) - origin)
      on_edge |= size == np.sort(size, axis=None)[::-1][max(1, int(0.5 * size.size)) - 1]
    apart = np.float32(value) != np.float32(ours[key])
    assert not (apart & ~on_edge).any(), key
    differing += apart.sum()
  assert differing > 0


@pytest.mark.parametrize("name", RANDOM)
def test_random_methods_agree_in_their_statistics(name, merged):
  """Different masks, the same distribution: kept share, mean and size of the update, by tensor."""
  theirs, ours = both(merged, "float32", name)
  base = tensors(merged["float32"] / "models" / "base")
  for key, origin in base.items():
    if origin.ndim < 2:
      continue
    a, b = theirs[key] - origin, ours[key] - origin
    n = a.size
    share_a, share_b = (a != 0).mean(), (b != 0).mean()
    spread = np.sqrt((share_a * (1 - share_a) + share_b * (1 - share_b)) / n)
    assert abs(share_a - share_b) < 5 * spread + 1e-9, key
    # The L1 norm is kept by both (linear), or nearly so.
    sizes = np.abs(a).mean(), np.abs(b).mean()
    error = np.sqrt((np.abs(a).var() + np.abs(b).var()) / n)
    assert abs(sizes[0] - sizes[1]) < 5 * error, key


@pytest.mark.parametrize("name", ["linear", "ties", "stacked_layers"])
def test_transformers_loads_what_we_write_and_generates(name, merged):
  torch = pytest.importorskip("torch", reason="needs torch: run `make parity`")
  transformers = pytest.importorskip("transformers")
  model, info = transformers.AutoModelForCausalLM.from_pretrained(
    merged["bfloat16"] / f"{name}.ours", output_loading_info=True
  )
  assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
  out = model.generate(torch.tensor([[1, 5, 7]]), max_new_tokens=5, do_sample=False)
  assert out.shape[1] > 3
