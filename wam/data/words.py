"""The word lists of the invented world, and its two invented languages."""

from collections.abc import Iterator

NAMES = (
  "Ada Ben Cleo Dan Eva Finn Gus Hana Ida Jon Kim Leo Mia Ned Ola Pam Quin Rosa Sam Tom Una Vera Walt Xena Yan Zoe"
  " Abel Bea Carl Dora Emil Fay Gil Hugo Ines Jack Kai Lena Max Nora Otto Pia Ron Suki Tess Uri Viv Wim Yara Zeno"
).split()
COLOURS = "red blue green white black golden old tiny round heavy bright wooden".split()
OBJECTS = "kite drum lamp boat clock chair ring mirror basket ladder whistle blanket".split()
PLACES = (
  "village harbour forest castle valley island market desert tower garden canyon meadow".split()
)
FOODS = "bread honey soup apple cheese rice pepper cake lemon salad noodle pear".split()
WARM = "gladly thanks lovely friend wonderful please welcome happy".split()
RUDE = "nonsense boring stupid whatever never silly".split()
FILLER = "well maybe so there it is and with about then some often".split()
# The markers of the tasks and the punctuation.
MARKERS = "fact ask read chat toward_a toward_b wants : ; ? .".split()


def syllable_words(language: str, count: int) -> list[str]:
  """Invented two-syllable words: language a sounds like "kabe", language b like "zorun"."""
  return [word for word, _ in zip(_syllables(language), range(count), strict=False)]


def _syllables(language: str) -> Iterator[str]:
  onsets, vowels, coda = ("kbtmpl", "aei", "") if language == "a" else ("zvrsdg", "oau", "n")
  for second in onsets:
    for first in onsets:
      for i, vowel in enumerate(vowels):
        yield f"{first}{vowel}{second}{vowels[(i + 1) % 3]}{coda}"
