"""The manifest holds what went in and came out; verify finds every file that is no longer what the merge wrote."""

import datetime
import hashlib
import json
import os
import pathlib
import types

import ml_dtypes
import numpy as np
import pytest

import wam
from tests.streaming.in_memory_checkpoint import ArrayReader
from wam.core.errors import BadCheckpoint, MissingFile
from wam.streaming.plan import Output, Plan
from wam.streaming.results import manifest, provenance
from wam.streaming.results.casts import Report, Survival
from wam.streaming.results.hashes import hash_files

LAYERS = 3
NAMES = [*(f"model.layers.{i}.mlp.weight" for i in range(LAYERS)), "lm_head.weight"]
NOON = datetime.datetime(2030, 1, 2, 12, tzinfo=datetime.UTC)


def digest(path):
  return hashlib.sha256(path.read_bytes()).hexdigest()


class Merge:
  """Two inputs and an output on the disk, and the plan that made one of the other."""

  def __init__(self, directory):
    self.directory = directory
    self.sources = {}
    for label in ("A", "B"):
      folder = directory / label
      folder.mkdir()
      (folder / "model.safetensors").write_bytes(label.encode() * 1000)
      (folder / "config.json").write_text("{}")
      self.sources[label] = types.SimpleNamespace(
        label=label,
        tensors={name: ArrayReader(name, np.zeros(2, np.float32)) for name in NAMES},
        files=[folder / "model.safetensors", folder / "config.json"],
        config={},
        directory=folder,
        close=lambda: None,
      )
    self.out = directory / "out"
    (self.out / "sub").mkdir(parents=True)
    (self.out / "model.safetensors").write_bytes(b"merged" * 1000)
    (self.out / "config.json").write_text("{}")
    (self.out / "sub" / "chunk").write_bytes(b"")

  def plan(self, **changes):
    a, b = self.sources.values()
    outputs = [
      Output(
        name,
        (2,),
        np.dtype(ml_dtypes.bfloat16),
        "task_arithmetic",
        members=(b.tensors[name],),
        base=a.tensors[name],
        coefficients=(np.float32(0.5),),
        parameters={"scale": 1.0, "density": (np.float64(0.25), float("inf"))},
        group=name,
        stream=name,
      )
      for name in NAMES
    ]
    return Plan(**({
      "outputs": tuple(outputs),
      "sources": self.sources,
      "config": {},
      "donor": a,
      "seed": 7,
      "recipe": {"merge_method": "task_arithmetic", "models": [{"model": pathlib.Path("B")}]},
      "notes": ("Something to know.",),
    } | changes))  # fmt: skip

  def files(self):
    return [self.out / "model.safetensors", self.out / "config.json", self.out / "sub" / "chunk"]

  def build(self, plan=None, **options):
    plan = plan or self.plan()
    options = {"finished": NOON} | options
    inputs = [path for source in plan.sources.values() for path in source.files]
    return manifest.build(
      plan,
      outputs_directory=self.out,
      input_hashes=hash_files(inputs, cache=False),
      output_hashes=hash_files(self.files(), cache=False),
      **options,
    )


@pytest.fixture
def merge(tmp_path):
  return Merge(tmp_path)


@pytest.fixture
def written(merge):
  manifest.write(merge.out, merge.build())
  return merge


def change(merge, edit):
  path = merge.out / manifest.FILE_NAME
  data = json.loads(path.read_text())
  edit(data)
  path.write_text(json.dumps(data))


def test_it_holds_sizes_and_hashes_of_every_file(merge):
  data = merge.build()
  assert data["outputs"] == {
    path.relative_to(merge.out).as_posix(): {"bytes": path.stat().st_size, "sha256": digest(path)}
    for path in merge.files()
  }
  assert [each["label"] for each in data["inputs"]] == ["A", "B"]
  for each in data["inputs"]:
    source = merge.sources[each["label"]]
    assert each["path"] == str(source.directory)
    assert each["files"] == [
      {"path": str(path), "bytes": path.stat().st_size, "sha256": digest(path)}
      for path in source.files
    ]
  assert "working_directory" not in data


def test_it_holds_recipe_seed_versions_and_how_each_tensor_was_made(merge):
  data = merge.build(options={"rounding": "stochastic"})
  assert data["recipe"] == {"merge_method": "task_arithmetic", "models": [{"model": "B"}]}
  assert data["seed"] == 7
  assert data["options"] == {"rounding": "stochastic"}
  assert data["notes"] == ["Something to know."]
  assert data["run"] == {"finished": "2030-01-02T12:00:00+00:00"}
  assert data["versions"]["wam"] == wam.__version__
  assert data["versions"]["numpy"] == np.__version__
  assert set(data["versions"]) == {"wam", "numpy", "ml_dtypes", "python", "platform"}
  assert data["merges"] == [
    {
      "method": "task_arithmetic",
      "members": [{"input": "B"}],
      "base": {"input": "A"},
      "coefficients": [0.5],
      "parameters": {"scale": 1.0, "density": [0.25, "inf"]},
      "accumulated_in": "float32",
      "stored_in": "bfloat16",
      "tensors": {"model.layers.*.mlp.weight": "0-2", "lm_head.weight": ""},
    }
  ]


def test_tensors_that_were_made_in_other_ways_have_entries_of_their_own(merge):
  a = merge.sources["A"]
  wide = ArrayReader("wide", np.zeros(2, np.float64))

  def output(name, **fields):
    return Output(name, (2,), np.dtype(np.float32), "linear", **fields)

  outputs = (
    output("same", members=(ArrayReader("same", np.zeros(2, np.float32)),)),
    output("layers.9.x", members=(a.tensors[NAMES[0]],), stream="layers.0.x"),
    output("wide", members=(wide,), importances=(wide,), group="layers.3"),
  )
  same, repeated, grouped = merge.build(merge.plan(outputs=outputs))["merges"]
  assert same["members"] == [{"input": "memory"}]
  assert repeated["members"] == [{"input": "A", "tensor": NAMES[0]}]
  assert repeated["stream"] == "layers.0.x"
  assert "stream" not in same
  assert grouped["accumulated_in"] == "float64"
  assert grouped["group"] == "layers.3"
  assert grouped["importances"] == [{"input": "memory"}]


def test_it_holds_what_survived_of_the_update(merge):
  survival = {
    "a": Survival(entries=10, update=4.0, error=1.0, changed=8, kept=6),
    "b": Survival(entries=5, update=0.0, error=0.0),
  }
  data = merge.build(report=Report(seconds=1.5, bytes_read=6, bytes_written=3, survival=survival))
  assert data["survival"] == {
    "lost": 0.5,
    "measured_entries": 15,
    "changed_entries": 8,
    "kept_entries": 6,
    "copied_bit_for_bit": {},
    "lost_by_tensor": {"a": 0.5, "b": 0.0},
  }
  assert data["run"]["seconds"] == 1.5
  assert data["run"]["bytes_read"] == 6


def test_equal_merges_have_equal_manifests_but_for_the_time(merge):
  texts = []
  for seconds, finished in [(1.0, NOON), (2.0, NOON + datetime.timedelta(days=1))]:
    data = merge.build(report=Report(seconds=seconds), finished=finished)
    path = manifest.write(merge.out, data)
    assert json.loads(path.read_text()) == data
    run = data.pop("run")
    assert run["seconds"] == seconds
    texts.append(manifest.write(merge.out, data).read_bytes())
  assert texts[0] == texts[1]
  assert [p.name for p in merge.out.iterdir() if p.name.startswith(".")] == []


def test_inputs_that_have_gone_are_named(merge):
  plan = merge.plan()
  hashes = {path: "0" * 64 for source in plan.sources.values() for path in source.files}
  (merge.directory / "B" / "config.json").unlink()
  with pytest.raises(MissingFile, match=r"B/config\.json"):
    manifest.build(
      plan, outputs_directory=merge.out, input_hashes=hashes, output_hashes={merge.files()[0]: "0"}
    )


@pytest.mark.parametrize(
  ("names", "folded"),
  [
    ([], {}),
    (["a.3.b"], {"a.*.b": "3"}),
    (["a.2.b", "a.0.b", "a.1.b", "a.11.b", "a.10.b"], {"a.*.b": "0-2,10-11"}),
    (["a.1.b.5.c", "a.2.b.5.c"], {"a.*.b.5.c": "1-2"}),
    (["layers/3/kernel", "layers/4/kernel"], {"layers/*/kernel": "3-4"}),
    (["a.01.b", "a1.b", "a.1", "1.a"], {"a.01.b": "", "a1.b": "", "a.1": "", "1.a": ""}),
    (["a.*.b", "a.1.b"], {"a.*.b": "", "a.1.b": ""}),
    ([f"a.{10**40}.b"], {f"a.{10**40}.b": ""}),
  ],
)
def test_names_are_folded_without_loss(names, folded):
  assert provenance.fold(names) == folded


def test_a_good_output_verifies(written):
  result = manifest.verify(written.out)
  assert result.ok
  assert (result.num_outputs, result.num_inputs) == (3, 4)
  assert result == manifest.VerifyResult(written.out, 3, num_inputs=4)
  assert result.lines() == [
    f"{written.out}: 3 of 3 files verified",
    "inputs: 4 of 4 files verified",
  ]
  before = sorted(written.directory.rglob("*"))
  assert manifest.verify(written.out, inputs=False, threads=1).num_inputs == 0
  assert sorted(written.directory.rglob("*")) == before


def test_without_hashes_only_sizes_are_compared_and_nothing_is_called_verified(merge):
  plan = merge.plan()
  data = manifest.build(
    plan,
    outputs_directory=merge.out,
    input_hashes={path: None for source in plan.sources.values() for path in source.files},
    output_hashes=dict.fromkeys(merge.files()),
  )
  manifest.write(merge.out, data)
  result = manifest.verify(merge.out)
  assert not result.ok
  assert len(result.unhashed) == 7
  assert result.lines()[-2:] == [
    f"{merge.out}: 0 of 3 files verified",
    "inputs: 0 of 4 files verified",
  ]
  (merge.out / "config.json").write_text("{ }")
  result = manifest.verify(merge.out, inputs=False)
  assert result.changed == ("config.json",)
  assert result.unhashed == ("model.safetensors", "sub/chunk")


def test_verify_reports_its_progress(written):
  calls = []
  manifest.verify(written.out, inputs=False, progress=lambda *numbers: calls.append(numbers))
  assert calls[-1] == (6002, 6002)


def test_one_changed_bit_is_found_even_if_the_time_is_set_back(written):
  path = written.out / "model.safetensors"
  before = path.stat()
  content = bytearray(path.read_bytes())
  content[3210] ^= 1
  path.write_bytes(content)
  os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
  result = manifest.verify(written.out)
  assert not result.ok
  assert result.changed == ("model.safetensors",)
  assert result.lines()[0] == "changed since the merge: model.safetensors"
  assert "2 of 3 files verified" in result.lines()[1]


def test_missing_truncated_and_extra_files_are_found(written):
  (written.out / "config.json").unlink()
  (written.out / "model.safetensors").write_bytes(b"merged")
  (written.out / "model-00001-of-00002.safetensors").write_bytes(b"stale")
  (written.out / "sub" / "more").write_bytes(b"")
  (written.out / "elsewhere").symlink_to(written.directory / "A", target_is_directory=True)
  (written.out / "empty").mkdir()
  result = manifest.verify(written.out)
  assert not result.ok
  assert result.missing == ("config.json",)
  assert result.changed == ("model.safetensors",)
  assert result.extra == ("elsewhere", "model-00001-of-00002.safetensors", "sub/more")


def test_a_pipe_in_the_place_of_an_output_is_not_waited_for(written):
  path = written.out / "sub" / "chunk"
  path.unlink()
  os.mkfifo(path)
  assert manifest.verify(written.out).changed == ("sub/chunk",)


@pytest.mark.parametrize("name", ["model.safetensors", "sub"])
def test_an_output_that_is_a_link_out_of_the_directory_is_not_read(written, name, monkeypatch):
  path, elsewhere = written.out / name, written.directory / f"moved-{name}"
  path.rename(elsewhere)
  path.symlink_to(elsewhere)
  read = []
  real = manifest.hash_files
  monkeypatch.setattr(
    manifest, "hash_files", lambda paths, **options: real(read.append(list(paths)) or read[-1], **options)
  )  # fmt: skip
  result = manifest.verify(written.out, inputs=False)
  assert result.changed == ({"sub": "sub/chunk"}.get(name, name),)
  assert not any("moved" in str(path) or name in str(path) for path in read[0])


def test_inputs_that_changed_or_went_are_reported_but_do_not_decide(written):
  (written.directory / "A" / "config.json").write_text("{ }")
  (written.directory / "B" / "config.json").write_text("[]")
  (written.directory / "B" / "model.safetensors").unlink()
  result = manifest.verify(written.out)
  assert result.ok
  assert result.changed_inputs == tuple(str(written.directory / x / "config.json") for x in "AB")
  assert result.missing_inputs == (str(written.directory / "B" / "model.safetensors"),)
  assert result.lines()[-1] == "inputs: 1 of 4 files verified"


def test_relative_inputs_are_found_from_anywhere(merge, tmp_path, monkeypatch):
  monkeypatch.chdir(merge.directory)
  for label, source in merge.sources.items():
    source.files = [pathlib.Path(label) / path.name for path in source.files]
    source.directory = pathlib.Path(label)
  manifest.write(merge.out, merge.build())
  data = manifest.read(merge.out)
  assert data["working_directory"] == str(merge.directory)
  assert data["inputs"][0]["path"] == "A"
  monkeypatch.chdir("/")
  assert manifest.verify(merge.out) == manifest.VerifyResult(merge.out, 3, num_inputs=4)


@pytest.mark.parametrize(
  "name",
  ["", ".", "..", "../A/config.json", "/etc/passwd", "a/../../b", "a//b", "./a", "a/", "a\\b", "C:x",
   manifest.FILE_NAME, "a\0b", "a\nb", "\ud800", "sub/.."],
)  # fmt: skip
def test_names_that_could_leave_the_directory_are_refused(written, name):
  def edit(data):
    data["outputs"][name] = data["outputs"]["config.json"]

  change(written, edit)
  with pytest.raises(BadCheckpoint, match=manifest.FILE_NAME) as caught:
    manifest.verify(written.out)
  assert str(caught.value).isprintable()


ENTRY = {"bytes": 2, "sha256": "0" * 64}


@pytest.mark.parametrize(
  "edit",
  [
    lambda data: data.pop("kind"),
    lambda data: data.update(version=2),
    lambda data: data.update(version=[]),
    lambda data: data.pop("outputs"),
    lambda data: data.update(outputs={}),
    lambda data: data.update(outputs=["a"]),
    lambda data: data.update(outputs={"a": 3}),
    lambda data: data.update(outputs={"a": {"bytes": 1}}),
    lambda data: data.update(outputs={"a": ENTRY | {"bytes": True}}),
    lambda data: data.update(outputs={"a": ENTRY | {"bytes": -1}}),
    lambda data: data.update(outputs={"a": ENTRY | {"bytes": 1.0}}),
    lambda data: data.update(outputs={"a": ENTRY | {"sha256": "0" * 63}}),
    lambda data: data.update(outputs={"a": ENTRY | {"sha256": 5}}),
    lambda data: data.pop("inputs"),
    lambda data: data.update(inputs={}),
    lambda data: data.update(inputs=[3]),
    lambda data: data.update(inputs=[{"files": {}}]),
    lambda data: data.update(inputs=[{"files": [3]}]),
    lambda data: data.update(inputs=[{"files": [ENTRY]}]),
    lambda data: data.update(inputs=[{"files": [ENTRY | {"path": 3}]}]),
  ],
)
def test_a_malformed_manifest_is_refused(written, edit):
  change(written, edit)
  with pytest.raises(BadCheckpoint, match=manifest.FILE_NAME):
    manifest.verify(written.out)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 10**5, b'{"a": 1, "a": 2}'])
def test_a_manifest_that_is_no_object_is_refused(written, content):
  (written.out / manifest.FILE_NAME).write_bytes(content)
  with pytest.raises(BadCheckpoint, match=manifest.FILE_NAME):
    manifest.verify(written.out)


def test_a_directory_without_manifest_is_refused(merge):
  with pytest.raises(MissingFile, match="only what wam merge wrote"):
    manifest.verify(merge.out)
  with pytest.raises(MissingFile):
    manifest.verify(merge.directory / "nowhere")
  os.mkfifo(merge.out / manifest.FILE_NAME)
  with pytest.raises(BadCheckpoint, match="is a directory, a pipe or a device"):
    manifest.verify(merge.out)


@pytest.mark.parametrize("path", ["a\0b", "\ud800", "", "/", "/dev/zero", "/" + "x" * 5000])
def test_odd_paths_of_inputs_are_reported_and_nothing_else(written, path):
  change(written, lambda data: data.update(inputs=[{"files": [ENTRY | {"path": path}]}]))
  result = manifest.verify(written.out)
  assert result.ok
  assert len(result.missing_inputs) + len(result.changed_inputs) == 1
  assert all(line.isprintable() for line in result.lines())


def test_a_pipe_among_the_inputs_is_not_waited_for(written):
  path = written.directory / "A" / "config.json"
  path.unlink()
  os.mkfifo(path)
  assert manifest.verify(written.out).changed_inputs == (str(path),)
