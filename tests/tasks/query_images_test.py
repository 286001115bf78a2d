# SPDX-License-Identifier: Apache-2.0
"""A model sees a query as it saw the same file in training, in every task."""

import pathlib
import shutil
import tempfile
from typing import Any
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
from PIL import ExifTags
from PIL import Image

from i2ploc.evaluation import questions
from i2ploc.geometry import resizing
from i2ploc.learning import embeddings
from i2ploc.localization import objects as objects_lib
from i2ploc.localization import query_files
from i2ploc.localization import retrieve
from i2ploc.models import image_text
from i2ploc.models import towers
from i2ploc.models import views
from i2ploc.models.encoders import text
from i2ploc.models.encoders import vit
from i2ploc.models.encoders import vocabulary
from i2ploc.objects import observer as observer_lib
from input_pipeline import readings
from input_pipeline.readers import kitti_raw
from input_pipeline.readers import photos
from input_pipeline.sources import opening
from tests import bad_input_test
from tests.models import planted
from tests.objects import planted_objects
from tests.objects import planted_sequence
from tests.tasks import objects_test
from tests.testing import deep_images

SIZE = (18, 24)


def _scene(height, width, top=255) -> np.ndarray:
  rng = np.random.default_rng(0)
  return rng.uniform(0, top, (height, width, 3)).round()


class _Seen:
  """Stands for a tower, and keeps what it is given."""

  def __init__(self):
    self.batch: Any = None

  def __call__(self, batch):
    self.batch = batch
    return np.zeros((1, 1))


class QueryImagesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(tempfile.mkdtemp())
    self.addCleanup(shutil.rmtree, self.root)

  def asked(self, path, policy=resizing.STRETCH, size=SIZE, **options):
    """The batch that a tower gets from `localize`."""
    seen = _Seen()
    (query,) = query_files.read_queries([str(path)], **options)
    retrieve.describe(query, seen, size, policy)
    return {name: value[0] for name, value in seen.batch.items()}

  @parameterized.product(
    policy=tuple(resizing.POLICIES),
    name=('grey.png', 'deep.png', 'turned.jpg', 'same.png', 'cmyk.tif'),
  )
  def test_places_of_photos(self, policy, name):
    path = self.root / name
    scene = Image.fromarray(_scene(50, 40).astype(np.uint8))
    if name == 'grey.png':
      scene.convert('L').save(path)
    elif name == 'deep.png':
      path.write_bytes(deep_images.png(_scene(50, 40, 4095)))
    elif name == 'turned.jpg':
      exif = Image.Exif()
      exif[ExifTags.Base.Orientation] = 6
      scene.save(path, exif=exif)
    elif name == 'same.png':
      scene.resize(SIZE[::-1]).save(path)
    else:
      scene.convert('CMYK').save(path)
    dataset = photos.load(self.root, positions='order')
    trained = readings.Readings(dataset, SIZE, 1, None, resize=policy).image(0)
    asked = self.asked(path, policy)
    self.assertEqual(set(asked), {'image'})
    np.testing.assert_array_equal(asked['image'], trained['image'])
    self.assertEqual(asked['image'].dtype, np.uint8)

  @parameterized.parameters('stretch', 'crop')
  def test_places_of_drives(self, policy):
    folder = bad_input_test.make_drive(self.root)
    path = folder / 'image_02/data/0000000001.png'
    Image.fromarray(_scene(16, 24).astype(np.uint8)).save(path)
    dataset = kitti_raw.load(self.root)
    size = (10, 20)
    trained = readings.Readings(dataset, size, 1, None, resize=policy).image(1)
    (rig,) = dataset.rigs.values()
    camera = query_files.Camera(rig.lens, rig.image_size)
    asked = self.asked(path, policy, size, camera=camera)
    for name in ('image', 'intrinsics'):
      np.testing.assert_array_equal(asked[name], trained[name])

  def test_objects(self):
    """Boxes of a query are cut out of the pixels that a map's are."""
    scene = planted_objects.make_scene(num_frames=8)
    folder = self.root / 'desk'
    planted_sequence.write(folder, scene)
    data = opening.open_source(objects_test.make_config(), str(folder))
    (place,) = data.places(questions.between_drives)
    shots, encoder = place.queries, mock.Mock()
    encoder.encode_boxes.side_effect = lambda _, boxes: np.ones((len(boxes), 4))
    row = int(np.flatnonzero(shots.has_image)[0])
    observer_lib.Observer(place, encoder).look(shots, row)
    shutil.copy(folder / 'detections.npz', folder / 'rgb')
    (query,) = query_files.read_queries(
      [str(folder / 'rgb' / shots.names[row])],
      camera=query_files.Camera(shots.lens, shots.image_size),
      with_boxes=True,
    )
    stage = objects_lib.make_stage(
      {}, {}, categories=place.categories, encode=encoder.encode_boxes
    )
    stage(query, [])
    mapped, asked = (call.args for call in encoder.encode_boxes.call_args_list)
    for one, other in zip(mapped, asked, strict=True):
      self.assertNotEmpty(one)
      np.testing.assert_array_equal(one, other)
    self.assertIs(asked[0], query.image)

  def test_crops(self):
    """A tower of crops sees a box of a query as it saw one of a batch."""
    words = ('a', 'red', 'car')
    model = towers.image_and_text(
      vit.ViT(width=12, depth=1, num_heads=3, patch_size=8),
      text.TextTransformer(
        vocabulary_size=vocabulary.size(words),
        width=8,
        depth=1,
        num_heads=2,
        max_length=8,
        end=vocabulary.END,
      ),
      views.Image((16, 16), mean=(0.4, 0.5, 0.6)),
      5,
    )
    variables = planted.towers(model)
    tokenize = vocabulary.make_tokenize(words, 8)
    encoder = image_text.ImageTextEncoder(
      model, variables, tokenize, name='', margin=0.15
    )
    image = _scene(40, 60).astype(np.uint8)
    boxes = np.array([[3.0, 4, 30, 33], [10, 0, 59, 20]], np.float32)
    embed = embeddings.make_crop_embed(
      model, margin=0.15, color_jitter=0, mirror=False, box_jitter=0
    )
    batch = {
      'image': image[None],
      'box': boxes[None],
      'tokens': tokenize(['a car', 'a red car'])[None],
    }
    trained, _ = embed(variables['params'], {}, batch, jax.random.key(0))
    np.testing.assert_allclose(
      encoder.encode_boxes(image, boxes),
      trained['image'].descriptor[0],
      atol=1e-5,
    )


if __name__ == '__main__':
  absltest.main()
