"""Float64 twins of the merge methods, slow and straight from the papers, on flat dicts of unrolled leaves.

A twin takes (init, members, coefficients [M]) and returns the merge. Where a method works on vectors, `on_vectors`
makes a twin of a function of the concatenated task vectors (or weights) of every group.
"""

import numpy as np


def join(tree, names):
  return np.concatenate([tree[n].ravel() for n in names])


def layer_groups(flat):
  """Names of the leaves of a layer together, every other leaf alone."""
  groups = {}
  for name in flat:
    pieces = name.split("/")
    groups.setdefault(pieces[1] if pieces[0] == "layers" else name, []).append(name)
  return list(groups.values())


def leaf_groups(flat):
  return [[name] for name in flat]


def whole(flat):
  return [list(flat)]


def on_vectors(merge, groups=leaf_groups, *, of_weights=False):
  """A twin that applies merge(vectors, c), c of sum 1, to the task vectors of every group, or to its weights."""

  def twin(init, members, c):
    result = {}
    for names in groups(members[0]):
      start = 0.0 if of_weights else join(init, names)
      vector = start + merge([join(m, names) - start for m in members], c / c.sum())
      ends = np.cumsum([members[0][n].size for n in names])
      for n, piece in zip(names, np.split(vector, ends[:-1]), strict=True):
        result[n] = piece.reshape(members[0][n].shape)
    return result

  return twin


def on_rows(merge, *, along=-1, of_weights=False):
  """A twin that applies merge(vectors, c) to every row of every leaf [first axis, rest], or to every column."""

  def twin(init, members, c):
    result = {}
    for n, leaf in members[0].items():
      shape = leaf.shape
      rows = [m[n].reshape(shape[0] if len(shape) > 1 else 1, -1) for m in members]
      start = np.zeros_like(rows[0]) if of_weights else init[n].reshape(rows[0].shape)
      deltas = [r - start for r in rows]
      if along == 0 and len(shape) > 1:
        merged = np.stack(
          [merge([d[:, i] for d in deltas], c / c.sum()) for i in range(start.shape[1])], 1
        )
      else:
        merged = np.stack([merge([d[i] for d in deltas], c / c.sum()) for i in range(len(start))])
      result[n] = (start + merged).reshape(shape)
    return result

  return twin


def mean(init, members, c):
  del init
  return {n: sum(w * m[n] for w, m in zip(c / c.sum(), members, strict=True)) for n in members[0]}


def total(init, members, c):
  del init
  return {n: sum(w * m[n] for w, m in zip(c, members, strict=True)) for n in members[0]}


def liti(init, members, c, eta=0.5):
  del c
  return {n: (1 - eta) * init[n] + eta * members[0][n] for n in init}


def passthrough(init, members, c, scale=1.0):
  del init, c
  return {n: scale * x for n, x in members[0].items()}


def task_arithmetic(init, members, c, scale=1.0):
  return {
    n: init[n] + scale * sum(w * (m[n] - init[n]) for w, m in zip(c, members, strict=True))
    for n in init
  }


def nearswap(init, members, c, t):
  """Entry by entry: towards the member by t, or onto it where it is nearer than that."""
  del c
  (member,) = members
  result = {}
  for n, start in init.items():
    gap = member[n] - start
    result[n] = np.where(np.abs(gap) <= t, member[n], start + t * np.sign(gap))
  return result


def fisher(init, members, c, floor=1e-6):
  """Importances are the squares of the weights, as the contract test gives them."""
  del init
  result = {}
  for n in members[0]:
    weights = [w * np.maximum(m[n] ** 2, floor) for w, m in zip(c, members, strict=True)]
    result[n] = sum(w * m[n] for w, m in zip(weights, members, strict=True)) / sum(weights)
  return result


def slerp(threshold=None):
  """Of vectors, one after the other; linear beyond a cosine where there is a threshold."""

  def merge(vectors, c):
    merged = vectors[0]
    for m in range(1, len(vectors)):
      if not c[: m + 1].sum():
        continue
      t = c[m] / c[: m + 1].sum()
      cosine = merged @ vectors[m] / (np.linalg.norm(merged) * np.linalg.norm(vectors[m]))
      if threshold is not None and abs(cosine) > threshold:
        merged = (1 - t) * merged + t * vectors[m]
        continue
      omega = np.arccos(np.clip(cosine, -1, 1))
      merged = (np.sin((1 - t) * omega) * merged + np.sin(t * omega) * vectors[m]) / np.sin(omega)
    return merged

  return merge


def multislerp(vectors, c):
  """As mergekit spells it out: through the tangent space at the normalised mean of the unit vectors."""
  norms = [np.linalg.norm(v) for v in vectors]
  units = [v / n for v, n in zip(vectors, norms, strict=True)]
  center = sum(w * u for w, u in zip(c, units, strict=True))
  center /= np.linalg.norm(center)
  tangent = sum(w * (u - (u @ center) * center) for w, u in zip(c, units, strict=True))
  size = np.linalg.norm(tangent)
  moved = np.cos(size) * center + (np.sin(size) / size * tangent if size else 0)
  return moved * sum(w * n for w, n in zip(c, norms, strict=True))


def karcher(vectors, c):
  norms = [np.linalg.norm(d) for d in vectors]
  units = [d / n for d, n in zip(vectors, norms, strict=True)]
  center = sum(w * u for w, u in zip(c, units, strict=True))
  center /= np.linalg.norm(center)
  for _ in range(200):
    logs = []
    for u in units:
      angle = np.arccos(np.clip(u @ center, -1, 1))
      logs.append(angle / np.sin(angle) * (u - (u @ center) * center) if angle > 1e-9 else 0 * u)
    tangent = sum(w * x for w, x in zip(c, logs, strict=True))
    size = np.linalg.norm(tangent)
    if size < 1e-15:
      break
    center = np.cos(size) * center + np.sin(size) * tangent / size
  return center * (c @ np.array(norms))


def model_stock(vectors, c, clip=False):
  del c
  count = len(vectors)
  cosines = [
    a @ b / (np.linalg.norm(a) * np.linalg.norm(b))
    for i, a in enumerate(vectors)
    for b in vectors[:i]
  ]
  t = count * np.mean(cosines) / (1 + (count - 1) * np.mean(cosines))
  return (np.clip(t, 0, 1) if clip else t) * sum(vectors) / count


def geometric_median(vectors, c):
  """By gradient descent with the step of Weiszfeld, on the vectors themselves, until nothing moves."""
  point = sum(w * v for w, v in zip(c, vectors, strict=True))
  for _ in range(3000):
    weights = np.array(
      [w / max(np.linalg.norm(v - point), 1e-300) for w, v in zip(c, vectors, strict=True)]
    )
    moved = sum(w * v for w, v in zip(weights / weights.sum(), vectors, strict=True))
    if np.linalg.norm(moved - point) <= 1e-15 * np.linalg.norm(point):
      break
    point = moved
  return point


def arcee_fusion(init, members, c, quantiles="lower"):
  """Divergences from logarithms of softmax, quantiles from sorting."""
  del c
  (member,) = members
  result = {}
  for n, start in init.items():
    shape = start.shape
    rows = [x.reshape(shape[0] if len(shape) > 1 else 1, -1) for x in (member[n], start)]
    logs = [x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in rows]
    divergence = (np.exp(logs[0]) * (logs[0] - logs[1])).sum(-1, keepdims=True)
    scores = np.abs(rows[0] - rows[1]) * divergence
    low, median, high = np.quantile(scores, [0.25, 0.5, 0.75], method=quantiles)
    kept = scores >= median + 1.5 * (high - low)
    result[n] = np.where(kept, rows[0], rows[1]).reshape(shape)
  return result
