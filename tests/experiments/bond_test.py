"""J-BOND on tables: its gradient against the exact one, its anchors, and the judgement on paths of known KL."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.bond import j_bond, run
from experiments.bond.j_bond import Path, Settings
from wam.evaluation import best_of_n_curves
from wam.report import ledgers


def exact_gradient(logits, anchor, rewards, settings):
  """Of (1 - β)·E_π[-r_J] + β·KL(best of two ‖ π) + γ·KL(π ‖ anchor), by summing over all answers."""
  held = np.asarray(jax.nn.softmax(anchor), np.float64)
  best = jnp.asarray(best_of_n_curves.distribution(held, np.asarray(rewards), 2))
  above = jnp.asarray([held[np.asarray(rewards) > r].sum() for r in np.asarray(rewards)])
  expected_r_j = j_bond.WORSE * above**2  # worse than both samples

  def loss(logits):
    logprobs = jax.nn.log_softmax(logits)
    backward = -jnp.exp(logprobs) @ expected_r_j
    forward = -best @ logprobs
    total = (1 - settings.forward) * backward + settings.forward * forward
    return total + settings.kl_coef * j_bond.divergence(logits, anchor)

  return jax.grad(loss)(logits)


@pytest.mark.parametrize("kl_coef", [0.0, 1.0])
def test_the_gradient_is_that_of_the_sum_over_all_answers(kl_coef):
  settings = Settings(num_answers=6, batch_size=400_000, kl_coef=kl_coef)
  draws = np.random.default_rng(0).normal(size=(3, 6))
  logits, anchor, rewards = map(jnp.asarray, draws)
  found = j_bond.gradient(logits, anchor, rewards, jax.random.key(1), settings)
  expected = exact_gradient(logits, anchor, rewards, settings)
  # A mean of 400 000 terms of size 1 to 3.
  np.testing.assert_allclose(found, expected, atol=0.008)
  assert np.abs(expected).max() > 0.1


def test_r_j_of_an_answer_at_the_median_is_worth_log_half():
  """E[r_J] = log p_≤ at p_≤ = ½ (paper, section 4): worse than both has the probability (1 - p_≤)² = ¼."""
  assert pytest.approx(np.log(0.5)) == 0.25 * j_bond.WORSE


def test_paths_begin_at_the_start_and_gain_reward():
  settings = Settings(num_answers=32, num_steps=60)
  for anchor in run.ANCHORS:
    path = j_bond.train(0, anchor, settings)
    assert len(path.kl) == 61 and path.kl[0] == 0
    assert path.reward[-1] > path.reward[0] + 0.3 and path.kl[-1] > 0.05


def test_an_anchor_that_is_replaced_every_step_is_the_moving_average_of_rate_one():
  settings = Settings(num_answers=16, num_steps=20, ema_rate=1.0, period=1)
  paths = [j_bond.train(3, anchor, settings) for anchor in run.ANCHORS]
  np.testing.assert_array_equal(paths[0].kl, paths[1].kl)


def test_kl_at_equal_reward():
  steps = np.linspace(0, 1, 11)
  cheap, dear = Path(steps, steps), Path(steps**2, 1.5 * steps**2)
  # At reward x the one has the KL x, the other 1.5·x: half of the mean of x over 0.1 to 0.9.
  assert run.excess(dear, cheap) == pytest.approx(0.25)
  assert run.excess(cheap, dear) == pytest.approx(-0.25)
  # A path that falls behind its peak counts where it rose.
  fallen = Path(np.append(cheap.reward, 0.2), np.append(cheap.kl, 3.0))
  assert run.excess(fallen, cheap) == pytest.approx(0.0)


@pytest.mark.parametrize(("dearer", "verdict"), [(1.5, "reproduced"), (0.5, "not reproduced")])
def test_the_verdict(dearer, verdict):
  steps = np.linspace(0, 1, 11)
  more = np.array([0.0, 0.01, 0.02])
  paths = {
    ("ema", 0.0): [Path(steps, steps) for _ in more],
    ("periodic", 0.0): [Path(steps, (dearer + m) * steps) for m in more],
  }
  assert run.judge(paths).verdict == verdict


def test_it_writes_ledger_table_and_figure(tmp_path, capsys):
  arguments = ["--seeds", "2", "--steps", "20", "--directory", str(tmp_path), "--hardware", "a CPU"]
  assert run.main(arguments) == 0
  (entry,) = ledgers.read(tmp_path)
  assert (entry.claim, entry.seeds, entry.hardware) == ("BOND-1", (0, 1), "a CPU")
  assert "BOND-1" in capsys.readouterr().out
  assert (tmp_path / "results" / "paths.png").read_bytes().startswith(b"\x89PNG")
  rows = (tmp_path / "results" / "paths.csv").read_text().splitlines()
  assert len(rows) == 1 + 4 * 2 * 2
