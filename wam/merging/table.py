"""The table of merge methods: one rule each, what it needs, and what it promises.

`METHODS` is what the command line offers, what `methods.merge` runs on trees in memory, what wam/streaming runs on
files, and what the contract test walks over: a new method is a rule, a row here and a row in the test. Importing the
table does not import JAX.
"""

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal

from wam.core.types import PyTree
from wam.merging import combinations, consensus, directions, fusion, on_trees
from wam.merging.rules import Rule


@dataclasses.dataclass(frozen=True)
class Method:
  """A row of the table.

  Attributes:
    rule: what is done with the entries of a tensor; see rules.py.
    paper: where it comes from.
    init: whether the common start of the members is needed, may be given, or is not used.
    min_members: fewest members.
    max_members: most members; None is any number.
    coefficients: what is taken for a member: "trees" (numbers or trees that broadcast), "numbers", or "none".
    default_coefficient: of a member, where none are given; None is 1/M.
    symmetric: whether the order of the members (with their coefficients) does not matter.
    idempotent: whether equal members return themselves, bit for bit.
    affine: whether, where it is idempotent, that holds entry by entry, whatever the others are; where it does not, the
      rule sees to it itself.
    one_hot: whether coefficient 1 on one member and 0 on the others returns it bit for bit.
    sums: whether numbers of the result depend on sums over whole tensors, whose last bits depend on their order.
    draws: whether it draws at random and takes a seed.
    whole_rows: whether its entries depend on others of their row (the first axis; a tensor of rank 1 is one row).
    importances: whether it takes one tree of importances a member.
    defaults: the parameters, with their default values.
    per_member: parameters of which every member may have its own: a number, or a sequence of M.
    function: (members, init, coefficients, **parameters) -> Params, where a function on trees does more than the rule
      alone (traced coefficients with derivatives, groups); None runs the rule by in_memory.merge_trees.
  """

  rule: Rule
  paper: str
  init: Literal["needed", "optional", "unused"] = "unused"
  min_members: int = 1
  max_members: int | None = None
  coefficients: Literal["trees", "numbers", "none"] = "trees"
  default_coefficient: float | None = None
  symmetric: bool = True
  idempotent: bool = True
  affine: bool = True
  one_hot: bool = True
  sums: bool = False
  draws: bool = False
  whole_rows: bool = False
  importances: bool = False
  defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  per_member: tuple[str, ...] = ()
  function: Callable[..., PyTree] | None = None

  @property
  def needs_init(self) -> bool:
    """Whether it cannot do without the common start."""
    return self.init == "needed"


# What the methods of consensus.py have in common, with mergekit's defaults.
_THINNED = {"density": 1.0, "scale": 1.0, "normalize": "none", "rescale": "none"}
_ELECTED = {"elect": "weighted", "zero_sign": "positive"}

# Two names of one merge: LiTI of WARP, and WiSE-FT.
_LITI = Method(
  combinations.interpolation,
  "WiSE-FT, Wortsman et al. 2022, arXiv 2109.01903; WARP, arXiv 2406.16768; AMA, arXiv 2309.06256",
  init="needed",
  max_members=1,
  coefficients="none",
  idempotent=False,
  one_hot=False,
  defaults={"eta": 0.5, "extrapolate": False},
  function=on_trees.liti,
)

METHODS: Mapping[str, Method] = MappingProxyType(
  {
    "arcee_fusion": Method(
      fusion.arcee_fusion,
      "Arcee fusion, as in mergekit",
      init="needed",
      max_members=1,
      coefficients="none",
      idempotent=False,
      one_hot=False,
      sums=True,
      whole_rows=True,
      defaults={"quantiles": "lower"},
    ),
    "breadcrumbs": Method(
      consensus.breadcrumbs,
      "Model breadcrumbs, Davari & Belilovsky 2023, arXiv 2312.06795",
      init="needed",
      default_coefficient=1.0,
      idempotent=False,
      one_hot=False,
      defaults=_THINNED | {"gamma": 0.01, "group": "leaf"},
      per_member=("density", "gamma"),
    ),
    "breadcrumbs_ties": Method(
      consensus.breadcrumbs_ties,
      "Model breadcrumbs, arXiv 2312.06795, with TIES, arXiv 2306.01708",
      init="needed",
      default_coefficient=1.0,
      idempotent=False,
      one_hot=False,
      defaults=_THINNED | _ELECTED | {"gamma": 0.01, "group": "leaf"},
      per_member=("density", "gamma"),
    ),
    "dare_linear": Method(
      consensus.dare_linear,
      "DARE, Yu et al. 2023, arXiv 2311.03099",
      init="needed",
      default_coefficient=1.0,
      symmetric=False,
      idempotent=False,
      one_hot=False,
      sums=True,
      draws=True,
      defaults=_THINNED | {"rescale": "l1"},
      per_member=("density",),
    ),
    "dare_ties": Method(
      consensus.dare_ties,
      "DARE, arXiv 2311.03099, with TIES, arXiv 2306.01708",
      init="needed",
      default_coefficient=1.0,
      symmetric=False,
      idempotent=False,
      one_hot=False,
      sums=True,
      draws=True,
      defaults=_THINNED | _ELECTED | {"rescale": "l1"},
      per_member=("density",),
    ),
    "della": Method(
      consensus.della,
      "DELLA, Deep et al. 2024, arXiv 2406.11617",
      init="needed",
      default_coefficient=1.0,
      symmetric=False,
      idempotent=False,
      one_hot=False,
      sums=True,
      draws=True,
      whole_rows=True,
      defaults=_THINNED | _ELECTED | {"epsilon": 0.15, "normalize": "weights", "rescale": "l1"},
      per_member=("density", "epsilon"),
    ),
    "della_linear": Method(
      consensus.della_linear,
      "DELLA without its election, arXiv 2406.11617",
      init="needed",
      default_coefficient=1.0,
      symmetric=False,
      idempotent=False,
      one_hot=False,
      sums=True,
      draws=True,
      whole_rows=True,
      defaults=_THINNED | {"epsilon": 0.15, "rescale": "l1"},
      per_member=("density", "epsilon"),
    ),
    "expo": Method(
      combinations.extrapolation,
      "ExPO, Zheng et al. 2024, arXiv 2404.16792",
      init="needed",
      max_members=1,
      coefficients="none",
      idempotent=False,
      one_hot=False,
      defaults={"alpha": 0.3},
    ),
    "fisher": Method(
      combinations.fisher,
      "Fisher-weighted averaging, Matena & Raffel 2022, arXiv 2111.09832",
      importances=True,
      defaults={"floor": 1e-6},
    ),
    "geometric_median": Method(
      directions.geometric_median,
      "Weiszfeld 1937; Kuhn 1973",
      coefficients="numbers",
      sums=True,
      defaults={"group": "leaf", "num_steps": 64},
    ),
    "karcher": Method(
      directions.karcher,
      "Karcher 1977; mergekit's, of weights, arXiv 2603.04972",
      init="optional",
      coefficients="numbers",
      affine=False,
      sums=True,
      defaults={"group": None, "num_steps": 20, "tolerance": 0.0},
      function=on_trees.karcher,
    ),
    "lerp": Method(
      combinations.linear,
      "Frankle et al. 2020, arXiv 1912.05671",
      min_members=2,
      max_members=2,
      defaults={"extrapolate": False},
      function=on_trees.lerp,
    ),
    "linear": Method(
      combinations.linear,
      "Model soups, arXiv 2203.05482; rewarded soups, arXiv 2306.04488",
      defaults={"normalize": True, "extrapolate": False},
      function=on_trees.linear,
    ),
    "liti": _LITI,
    "model_stock": Method(
      directions.model_stock,
      "Model stock, Jang et al. 2024, arXiv 2403.19522",
      init="needed",
      min_members=2,
      coefficients="none",
      one_hot=False,
      affine=False,
      sums=True,
      whole_rows=True,
      defaults={"filter_wise": False, "clip": False, "group": "leaf"},
    ),
    "multislerp": Method(
      directions.multislerp,
      "mergekit's Multi-SLERP, goddard.blog/posts/multislerp-wow-what-a-cool-idea",
      init="optional",
      coefficients="numbers",
      affine=False,
      sums=True,
      defaults={"normalize": True, "group": "leaf"},
    ),
    "nearswap": Method(
      combinations.nearswap,
      "Alchemonaut 2024, huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001",
      init="needed",
      max_members=1,
      coefficients="none",
      idempotent=False,
      one_hot=False,
      defaults={"t": 1e-4},
    ),
    "nuslerp": Method(
      directions.nuslerp,
      "mergekit's NuSLERP; of task vectors WARP's merge of two, arXiv 2406.16768",
      init="optional",
      min_members=2,
      max_members=2,
      coefficients="numbers",
      affine=False,
      sums=True,
      whole_rows=True,
      defaults={"flatten": True, "row_wise": False},
    ),
    "passthrough": Method(
      combinations.passthrough,
      "mergekit's, for stacks of layers",
      max_members=1,
      coefficients="none",
      defaults={"scale": 1.0},
    ),
    "sce": Method(
      consensus.sce,
      "SCE of FuseChat, Wan et al. 2024, arXiv 2408.07990",
      init="needed",
      coefficients="none",
      idempotent=False,
      one_hot=False,
      sums=True,
      defaults={"select_topk": 1.0, "group": "leaf"},
    ),
    "slerp": Method(
      directions.slerp,
      "WARP, Ramé et al. 2024, arXiv 2406.16768; without an init mergekit's, of weights",
      init="optional",
      min_members=2,
      coefficients="numbers",
      symmetric=False,
      affine=False,
      sums=True,
      defaults={"group": None, "dot_threshold": None},
      function=on_trees.slerp,
    ),
    "task_arithmetic": Method(
      combinations.task_arithmetic,
      "Ilharco et al. 2023, arXiv 2212.04089",
      init="needed",
      default_coefficient=1.0,
      idempotent=False,
      defaults={"scale": 1.0},
      function=on_trees.task_arithmetic,
    ),
    "ties": Method(
      consensus.ties,
      "TIES, Yadav et al. 2023, arXiv 2306.01708",
      init="needed",
      default_coefficient=1.0,
      idempotent=False,
      one_hot=False,
      defaults=_THINNED | _ELECTED | {"normalize": "weights", "group": "leaf"},
      per_member=("density",),
    ),
    "wise_ft": _LITI,
  }
)
