"""Damaged safetensors files and indices for the fuzz tests: valid ones, changed in ways that damage or malice could.

Everything is drawn from a `random.Random`, so that a case is its seed.
"""

import json
import os
import struct

DTYPES = {
  "BOOL": 1,
  "U8": 1,
  "I8": 1,
  "I16": 2,
  "F16": 2,
  "BF16": 2,
  "I32": 4,
  "F32": 4,
  "F64": 8,
  "U64": 8,
  "F8_E4M3": 1,
}
NAMES = [
  "model.embed_tokens.weight",
  "model.layers.0.mlp.up_proj.weight",
  "lm_head.weight",
  "a",
  "",
  " ",
  "é世界😀",
  "layers/0/kernel",
  "../../evil",
  "/etc/passwd",
  "..",
  "C:\\evil",
  "a\\b",
  "model.safetensors",
  "%2e%2e%2f",
  "$(touch evil)",
  "x" * 300,
  "__metadata__ ",
]
HARMFUL_NAMES = ["a\0b", "a\nb", "a\x1b[2J", "\x7f", "\x9b31m", "\ud800", "a\udfffb", "\0"]
NUMBERS = [
  -1,
  0,
  1,
  2,
  7,
  8,
  2**31,
  2**32 - 1,
  2**53 + 1,
  2**62,
  2**63 - 1,
  2**63,
  2**64 - 1,
  2**64,
  10**400,
  -(2**63),
]
ODD = [None, True, False, 1.0, 0.5, 1e308, "1", "", [], {}, [[]], [1, [2]], {"a": 1}]
# Without -0, which is a size for JSON and for us, and none for the library.
LITERALS = [
  "NaN",
  "Infinity",
  "-Infinity",
  "1e999",
  "-0.0",
  "01",
  "+1",
  "0x10",
  "1.",
  "9" * 5000,
  "1E2",
]


def value(random):
  """Something that a number, a list or a text may be replaced with."""
  kind = random.randrange(4)
  if kind == 0:
    return random.choice(NUMBERS)
  if kind == 1:
    return random.choice(ODD)
  if kind == 2:
    return [random.choice(NUMBERS) for _ in range(random.choice([0, 1, 2, 3, 65, 300]))]
  return nested(random.choice([2, 10, 400]), random)


def nested(depth, random):
  found = random.choice(ODD)
  for _ in range(depth):
    found = [found] if random.random() < 0.5 else {"a": found}
  return found


def valid(random):
  """(header, bytes of data) of a file that every reader accepts."""
  header, position = {}, 0
  if random.random() < 0.3:
    header["__metadata__"] = {"format": "pt", "note": "a\nb"}
  for name in random.sample(NAMES, random.randrange(6)):
    dtype = random.choice(list(DTYPES))
    shape = [
      random.choice([0, 1, 1, 2, 3, 5]) for _ in range(random.choice([0, 1, 1, 2, 2, 3, 64]))
    ]
    while product(shape) > 1000:
      shape.pop()
    size = product(shape) * DTYPES[dtype]
    header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, position + size]}
    position += size
  return header, position


def product(shape):
  found = 1
  for size in shape:
    found *= size
  return found


# Changes of the header as an object: (random, header) -> None. `entry` is one of its tensors.


def entries(header):
  """The tensors that are still well formed."""
  return [x for x in header.values() if isinstance(x, dict) and is_intact(x)]


def is_intact(entry):
  shape, offsets = entry.get("shape"), entry.get("data_offsets")
  lists = isinstance(shape, list) and isinstance(offsets, list)
  return lists and len(offsets) == 2 and all(type(x) is int for x in offsets)


def with_entry(change):
  def changed(random, header):
    found = entries(header)
    if found:
      change(random, random.choice(found))

  changed.__name__ = change.__name__
  return changed


@with_entry
def move_an_offset(random, entry):
  entry["data_offsets"][random.randrange(2)] += random.choice(
    [-8, -4, -1, 1, 2, 4, 8, 2**40, 2**63]
  )


@with_entry
def shift_both_offsets(random, entry):
  by = random.choice([-4, -1, 1, 4, 2**32])
  entry["data_offsets"] = [x + by for x in entry["data_offsets"]]


@with_entry
def swap_offsets(random, entry):
  entry["data_offsets"].reverse()


@with_entry
def replace_an_offset(random, entry):
  entry["data_offsets"][random.randrange(2)] = value(random)


@with_entry
def change_a_size(random, entry):
  if entry["shape"]:
    entry["shape"][random.randrange(len(entry["shape"]))] = value(random)


@with_entry
def add_sizes(random, entry):
  entry["shape"] += [random.choice([0, 1, 2, 2**32, 2**63])] * random.choice([1, 2, 64, 70])


@with_entry
def make_it_huge_and_empty(random, entry):
  entry["shape"] = random.choice(
    [[0, 2**62, 8], [2**62, 0, 8], [2**63, 0], [0, 2**64], [2**31, 2**31, 2, 0]]
  )
  entry["data_offsets"][1] = entry["data_offsets"][0]


@with_entry
def make_it_overflow(random, entry):
  # Products that are right in arithmetic of 64 bits.
  entry["shape"] = random.choice(
    [[2**32, 2**32], [2**63, 2], [2**64 + 2], [2**32, 2**32, 3], [-2, -2]]
  )


@with_entry
def replace_a_field(random, entry):
  entry[random.choice(["dtype", "shape", "data_offsets"])] = value(random)


@with_entry
def change_the_dtype(random, entry):
  entry["dtype"] = random.choice([*DTYPES, "F4", "F128", "f32", "F32 ", "C64", "F8_E8M0"])


@with_entry
def drop_a_field(random, entry):
  entry.pop(random.choice(["dtype", "shape", "data_offsets"]), None)


@with_entry
def add_a_field(random, entry):
  entry[random.choice(["path", "file", "dtype ", "__proto__"])] = value(random)


def replace_an_entry(random, header):
  if header:
    header[random.choice(list(header))] = value(random)


def copy_an_entry(random, header):
  if header:
    header["copy"] = header[random.choice(list(header))]


def drop_an_entry(random, header):
  if header:
    header.pop(random.choice(list(header)))


def change_the_metadata(random, header):
  header["__metadata__"] = random.choice(
    [value(random), {"a": value(random)}, {"a": "\ud800"}, {"\ud800": "a"}, {"x": "y" * 5000}]
  )


def give_a_harmful_name(random, header):
  position = max((e["data_offsets"][1] for e in entries(header)), default=0)
  name = random.choice(HARMFUL_NAMES)
  header[name] = {"dtype": "U8", "shape": [0], "data_offsets": [position, position]}


OBJECT_CHANGES = [
  move_an_offset,
  shift_both_offsets,
  swap_offsets,
  replace_an_offset,
  change_a_size,
  add_sizes,
  make_it_huge_and_empty,
  make_it_overflow,
  replace_a_field,
  change_the_dtype,
  drop_a_field,
  add_a_field,
  replace_an_entry,
  copy_an_entry,
  drop_an_entry,
  change_the_metadata,
  give_a_harmful_name,
]


# Changes of the header as a text: (random, text) -> bytes.


def put_a_literal(random, text):
  digits = [i for i, c in enumerate(text) if c in b"0123456789"]
  if not digits:
    return text
  at = random.choice(digits)
  return text[:at] + random.choice(LITERALS).encode() + text[at + 1 :]


def repeat_a_key(random, text):
  body = text.strip()[1:-1]
  return b"{" + body + (b"," if body else b"") + body + b"}" if body else b'{"a":1,"a":2}'


def flip_bits(random, text):
  found = bytearray(text)
  for _ in range(random.choice([1, 2, 8])):
    if found:
      found[random.randrange(len(found))] ^= 1 << random.randrange(8)
  return bytes(found)


def cut_the_text(random, text):
  return text[: random.randrange(len(text) + 1)]


def put_bytes(random, text):
  junk = random.choice(
    [b"\0", b"\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xc0\x80", b'"', b"{", b"}", b"[", b",", b"\\u0000",
     b"\\ud800", b"//x", b" ", b"\n"]
  )  # fmt: skip
  at = random.choice([0, len(text), random.randrange(len(text) + 1)])
  return text[:at] + junk * random.choice([1, 1, 50]) + text[at:]


def nest_deeply(random, text):
  depth = random.choice([50, 900, 940, 960, 980, 990, 1000, 5000, 50_000])
  opening, closing = random.choice([(b"[", b"]"), (b'{"a":', b"}")])
  deep = opening * depth + b"1" + closing * depth
  tensor = b'{"a":{"dtype":"F32","shape":%s,"data_offsets":[0,0]}}'
  form = random.choice([b"%s", b'{"a":%s}', b'{"__metadata__":%s}', tensor])
  return form.replace(b"%s", deep)


def not_an_object(random, text):
  return random.choice(
    [b"", b"null", b"3", b'"a"', b"[]", b"{}", b"{", b"[" + text + b"]", text + text]
  )


def in_another_encoding(random, text):
  name = random.choice(["utf-16", "utf-32", "utf-8-sig", "utf-16-le"])
  return text.decode("utf-8", "replace").encode(name)


def pad_the_text(random, text):
  return random.choice([text + b" " * 8, b" " + text, text + b"\0" * 8, text + b"\n\t"])


TEXT_CHANGES = [
  put_a_literal,
  repeat_a_key,
  flip_bits,
  cut_the_text,
  put_bytes,
  nest_deeply,
  not_an_object,
  in_another_encoding,
  pad_the_text,
]


def file_bytes(random):
  """(what was done, content) of a safetensors file; about one in ten is as good as new."""
  header, size = valid(random)
  done = []
  for _ in range(random.choice([0, 1, 1, 1, 2, 3])):
    change = random.choice(OBJECT_CHANGES)
    change(random, header)
    done.append(change.__name__)
  text = json.dumps(header, ensure_ascii=random.random() < 0.5 or has_halves(header)).encode()
  if random.random() < 0.35:
    change = random.choice(TEXT_CHANGES)
    text = change(random, text)
    done.append(change.__name__)
  length, data = len(text), random.randbytes(size)
  kind = random.random()
  if kind < 0.08:
    length = random.choice(
      [0, 1, length - 1, length + 1, length + size, length + size + 1, 2**40, 2**63, 2**64 - 1]
    )
    done.append("other length")
  elif kind < 0.12:
    data += bytes(random.choice([1, 8, 100]))
    done.append("more data")
  elif kind < 0.16:
    data = data[: random.randrange(len(data) + 1)]
    done.append("less data")
  content = struct.pack("<Q", max(length, 0) & (2**64 - 1)) + text + data
  if random.random() < 0.03:
    content = content[: random.randrange(len(content) + 1)]
    done.append("truncated")
  return done, content


def has_halves(header):
  try:
    json.dumps(header, ensure_ascii=False).encode()
  except UnicodeEncodeError:
    return True
  return False


# Directories.

SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
TARGETS = [
  "../outside.safetensors",
  "../../outside.safetensors",
  "/etc/passwd",
  "/dev/zero",
  "/dev/stdin",
  "sub/x.safetensors",
  "..",
  ".",
  "",
  "..\\outside.safetensors",
  "C:\\x.safetensors",
  "model.safetensors\0",
  "a\0.safetensors",
  "a\n.safetensors",
  "\ud800.safetensors",
  "x" * 300 + ".safetensors",
  "x" * 100_000 + ".safetensors",
  "pytorch_model.bin",
  "file:///etc/passwd.safetensors",
  "~/x.safetensors",
  ".safetensors",
  "MODEL-00001-OF-00002.SAFETENSORS",
  3,
  None,
  [],
  {},
  True,
]


def make_directory(random, directory):
  """Fills a directory with two shards, an index and what may go wrong with them. Returns what was done."""
  weight_map = {}
  for shard in SHARDS:
    header, size = valid(random)
    header.pop("__metadata__", None)
    header = {f"{shard}/{name}": entry for name, entry in header.items()}
    weight_map |= dict.fromkeys(header, shard)
    text = json.dumps(header).encode()
    (directory / shard).write_bytes(struct.pack("<Q", len(text)) + text + bytes(size))
  done = []
  for _ in range(random.choice([0, 1, 1, 2])):
    change = random.choice(DIRECTORY_CHANGES)
    change(random, directory, weight_map)
    done.append(change.__name__)
  text = json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}).encode()
  if random.random() < 0.3:
    change = random.choice(TEXT_CHANGES)
    text = change(random, text)
    done.append(change.__name__)
  index = directory / "model.safetensors.index.json"
  if not os.path.lexists(index):
    index.write_bytes(text)
  if random.random() < 0.2:
    put_something(random, directory / random.choice([index.name, *SHARDS, "model.safetensors"]))
    done.append("something else there")
  return done


def point_elsewhere(random, directory, weight_map):
  name = random.choice([*weight_map, "new"])
  weight_map[name] = random.choice(TARGETS)


def point_all_elsewhere(random, directory, weight_map):
  target = random.choice(TARGETS)
  for name in weight_map:
    weight_map[name] = target


def swap_shards(random, directory, weight_map):
  for name, shard in weight_map.items():
    weight_map[name] = SHARDS[1 - SHARDS.index(shard)] if shard in SHARDS else shard


def rename_a_tensor(random, directory, weight_map):
  weight_map[random.choice(NAMES + HARMFUL_NAMES)] = random.choice(SHARDS)


def forget_tensors(random, directory, weight_map):
  for name in random.sample(list(weight_map), random.randrange(len(weight_map) + 1)):
    del weight_map[name]


def damage_a_shard(random, directory, weight_map):
  replace(directory / random.choice(SHARDS), lambda path: path.write_bytes(file_bytes(random)[1]))


def replace_a_shard(random, directory, weight_map):
  put_something(random, directory / random.choice(SHARDS))


def leave_an_old_file(random, directory, weight_map):
  name = random.choice(
    ["model.safetensors", "model-00001-of-00003.safetensors", "pytorch_model.bin"]
  )
  replace(directory / name, lambda path: path.write_bytes(b"old"))


def put_something(random, path):
  """A directory, a pipe, a device, a link to somewhere, a huge hole, or nothing in the place of a file."""
  outside = path.parent.parent / "outside.safetensors"
  choices = {
    "nothing": lambda p: None,
    "directory": lambda p: p.mkdir(),
    "pipe": os.mkfifo,
    "hole": lambda p: (p.touch(), os.truncate(p, 2**40)),
    "loop": lambda p: p.symlink_to(p.name),
    "dangling": lambda p: p.symlink_to("nowhere"),
    "device": lambda p: p.symlink_to("/dev/zero"),
    "outside": lambda p: p.symlink_to(outside),
    "above": lambda p: p.symlink_to(".."),
  }
  replace(path, random.choice(list(choices.values())))


def replace(path, put):
  if path.is_dir() and not path.is_symlink():
    path.rmdir()
  else:
    path.unlink(missing_ok=True)
  put(path)


DIRECTORY_CHANGES = [
  point_elsewhere,
  point_all_elsewhere,
  swap_shards,
  rename_a_tensor,
  forget_tensors,
  damage_a_shard,
  replace_a_shard,
  leave_an_old_file,
]
