"""The TFDS builders of 1906 emoji; imported only where TFDS is used."""

import io
import json
import tarfile

import tensorflow_datasets as tfds

from fractal_jax import paths
from fractal_jax.data import common, decode, prepared

CATEGORIES = (
  'Activities',
  'Animals & Nature',
  'Flags',
  'Food & Drink',
  'Objects',
  'People & Body',
  'Smileys & Emotion',
  'Symbols',
  'Travel & Places',
)
SUBGROUPS = (
  'alphanum, animal-amphibian, animal-bird, animal-bug, animal-mammal, '
  'animal-marine, animal-reptile, arrow, arts & crafts, av-symbol, '
  'award-medal, body-parts, book-paper, cat-face, clothing, computer, '
  'country-flag, currency, dishware, drink, emotion, event, face-affection, '
  'face-concerned, face-costume, face-glasses, face-hand, face-hat, '
  'face-negative, face-neutral-skeptical, face-sleepy, face-smiling, '
  'face-tongue, face-unwell, family, flag, food-asian, food-fruit, '
  'food-prepared, food-sweet, food-vegetable, game, gender, geometric, '
  'hand-fingers-closed, hand-fingers-open, hand-fingers-partial, hand-prop, '
  'hand-single-finger, hands, heart, hotel, household, keycap, light & '
  'video, lock, mail, math, medical, money, monkey-face, music, '
  'musical-instrument, office, other-object, other-symbol, person, '
  'person-activity, person-fantasy, person-gesture, person-resting, '
  'person-role, person-sport, person-symbol, phone, place-building, '
  'place-geographic, place-map, place-other, place-religious, plant-flower, '
  'plant-other, punctuation, religion, science, sky & weather, sound, '
  'sport, subdivision-flag, time, tool, transport-air, transport-ground, '
  'transport-sign, transport-water, warning, writing, zodiac'
).split(', ')


class Emoji(tfds.core.GeneratorBasedBuilder):
  """Google's Noto emoji (Apache-2.0) at 64x64, on white, in Unicode's groups.

  Base emoji only: no skin tones, no category "Component".
  """

  VERSION = tfds.core.Version('16.0.0')
  MANUAL_DOWNLOAD_INSTRUCTIONS = 'See fractal_jax.data.prepared.'
  KEY = 'category'  # of emoji.json: what an emoji's class is
  CLASSES = CATEGORIES

  def _info(self):
    return self.dataset_info_from_configs(
      features=tfds.features.FeaturesDict(
        {
          'image': tfds.features.Image(
            shape=(64, 64, 3), encoding_format='png'
          ),
          'label': tfds.features.ClassLabel(names=self.CLASSES),
          'file_name': tfds.features.Text(),
        }
      ),
      supervised_keys=('image', 'label'),
      homepage='https://github.com/iamcal/emoji-data',
    )

  def _split_generators(self, dl_manager):
    (archive,), _ = prepared.ARCHIVES[self.name]
    examples = list(_read(dl_manager.manual_dir / archive, self.KEY))
    return {
      split: [examples[i] for i in common.split_of(split, len(examples))]
      for split in common.SPLITS
    }

  def _generate_examples(self, examples):
    return examples


class EmojiSubgroups(Emoji):
  """The same emoji in Unicode's subgroups, such as face-smiling or heart."""

  KEY = 'subcategory'
  CLASSES = SUBGROUPS


def _read(archive, key):
  """Yields (file name, example) in the order of the Unicode charts."""
  images = {}
  with paths.local(archive) as copy, tarfile.open(copy) as tar:
    for member in tar:  # in one pass: the archive is compressed
      folder, _, file = member.name.rpartition('/')
      if member.name == 'package/emoji.json':
        emoji = json.load(tar.extractfile(member))
      elif folder == 'package/img/google/64':
        images[file] = tar.extractfile(member).read()
  for e in sorted(emoji, key=lambda e: e['sort_order']):
    if e['category'] in CATEGORIES and e['image'] in images:
      image = decode.load(io.BytesIO(images[e['image']]), e['image'])
      png = io.BytesIO()
      image.save(png, 'png')
      png.seek(0)
      yield (
        e['image'],
        dict(image=png, label=e[key], file_name=e['image']),
      )
