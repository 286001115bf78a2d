# SPDX-License-Identifier: Apache-2.0
"""The table of published weights, and what a name may be."""

import os
import pathlib
import re
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import huggingface_hub

from i2ploc.models.weights import downloads
from i2ploc.models.weights import sources
from tests import shared

SOURCES = sources.SOURCES


class FindTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = self.enterContext(tempfile.TemporaryDirectory())
    self.folder = pathlib.Path(folder)
    self.enterContext(
      mock.patch.dict(os.environ, {downloads.VARIABLE: str(self.folder)})
    )

  def test_a_folder_and_a_file_are_themselves(self):
    path = self.folder / 'net.pth'
    path.write_bytes(b'weights')
    self.assertEqual(sources.find(self.folder), self.folder)
    self.assertEqual(sources.find(str(path)), path)

  @parameterized.parameters('salad', 'mixvpr_512', 'focus_vit_s14')
  def test_a_name_of_the_table_is_looked_for_at_its_place(self, name):
    with self.assertRaisesRegex(FileNotFoundError, f'{name}.*does not exist'):
      sources.find(name, fetch=False)

  @parameterized.parameters(
    ('dinov2_small', 'facebook/dinov2-small', 'dinov2_small, or run'),
    ('some/encoder', 'some/encoder', 'a folder, name that folder, or run'),
  )
  def test_names_of_the_hub(self, name, repository, place):
    with mock.patch.object(
      huggingface_hub, 'snapshot_download', side_effect=OSError('no network')
    ) as download:
      with self.assertRaises(FileNotFoundError) as caught:
        sources.find(name)
    self.assertEqual(download.mock_calls[0].args, (repository,))
    self.assertIn(place, str(caught.exception))

  def test_unknown_names_are_told_the_known_ones(self):
    with self.assertRaisesRegex(
      FileNotFoundError, "no weights 'dinov3'.*dinov2_small.*focus_vit_s14"
    ):
      sources.find('dinov3')


class TableTest(parameterized.TestCase):
  def test_every_source_says_what_it_is_and_its_licence(self):
    for name, source in SOURCES.items():
      with self.subTest(name):
        self.assertTrue(source.what and source.licence)
        self.assertRegex(name, r'^[a-z0-9_]+$')

  def test_digests_are_whole_or_the_eight_digits_of_a_name(self):
    for name, source in SOURCES.items():
      place = source.place
      if isinstance(place, downloads.Wheel):
        self.assertLen(place.sha256, 64, name)
        self.assertLen(place.member_sha256, 64, name)
      elif isinstance(place, downloads.Url) and place.sha256:
        self.assertLen(place.sha256, 8, name)
        self.assertIn(f'-{place.sha256}.', place.url)

  @parameterized.parameters(
    # As the loaders of the authors write them.
    (
      'cosplace_resnet50_2048',
      'gmberton/CosPlace/releases/download/v1.0/ResNet50_2048_cosplace.pth',
    ),
    (
      'eigenplaces_resnet18_512',
      'gmberton/EigenPlaces/releases/download/v1.0/ResNet18_512_eigenplaces.pth',
    ),
    ('salad', 'serizba/salad/releases/download/v1.0.0/dino_salad.ckpt'),
    (
      'boq_dinov2',
      'amaralibey/Bag-of-Queries/releases/download/v1.0/dinov2_12288.pth',
    ),
  )
  def test_released_networks_come_from_their_release(self, name, url):
    self.assertEqual(SOURCES[name].place.url, f'https://github.com/{url}')

  def test_the_documentation_has_every_family(self):
    text = (shared.GOLDEN.parents[1] / 'docs' / 'weights.md').read_text()
    for name, source in SOURCES.items():
      letters = re.match('[a-z]+', name)
      self.assertIn(f'| `{letters.group()}', text)
      self.assertIn(source.licence, text)

  def test_every_released_method_is_in_the_table(self):
    methods = {name.partition('_')[0] for name in SOURCES}
    for method in ('cosplace', 'eigenplaces', 'mixvpr', 'boq', 'netvlad'):
      self.assertIn(method, methods)
    for depth in (18, 34, 50, 101, 152):
      hub = SOURCES[f'resnet{depth}'].place.repository
      self.assertEqual(hub, f'timm/resnet{depth}.a1_in1k')
      self.assertIn(f'torchvision_resnet{depth}', SOURCES)


if __name__ == '__main__':
  absltest.main()
