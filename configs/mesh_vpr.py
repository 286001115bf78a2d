# SPDX-License-Identifier: Apache-2.0
"""MeshVPR (Berton et al., ECCV 2024): photos against renderings of a mesh.

python main.py --mode=train --workdir=/tmp/gsv_cities \
  --config=configs/gsv_cities.py
python main.py --mode=train --workdir=/tmp/mesh_vpr \
  --config=configs/mesh_vpr.py:pretrained=/tmp/gsv_cities

A tower of photos that is trained already stays as it is; a copy of it learns to
describe a rendering as the former describes the photo from there. Maps are
rendered, queries photographed. Arguments: see `configs.images`, and

  pretrained=: workdir of a run on photos, whose tower both start from
  dataset=mesh: a map rendered of your own mesh, to evaluate, index and localize
    with --config.checkpoint=/tmp/mesh_vpr, see docs/data.md

ours: renderings without textures, weather and traffic.
released: Adam with 1e-5, 50,000 steps of 32 pairs.
"""

import ml_collections

from configs import common
from configs import images


def get_config(text: str | None = None) -> ml_collections.ConfigDict:
  """The config; see the module for the arguments."""
  arg = common.parse_arg(text, **images.ARGUMENTS)
  mesh = arg.dataset == 'mesh'
  if mesh:
    arg.dataset = 'photos'
  config = images.get_config('MeshVPR', arg)
  config.map_side = 'rendering'
  config.model.rendering = config.model.image.to_dict()
  config.evaluation.select = config.evaluation.select.replace(
    'image_to_image', 'image_to_rendering'
  )
  config.augmentation.update(mirror=False, color_jitter=0.0, frozen=('image',))
  config.optimizer.trainable = ('rendering*',)
  config.loss = dict(name='alignment', frozen='a')
  config.sampling = images.places()
  config.sampling.num_views = 1
  if arg.dataset == 'synthetic_city':
    config.data.renderings = True
  if arg.recipe == 'released':
    images.release(config, arg, pooling='gem', image_size='512x512')
    config.optimizer.trainable = ('rendering*',)
    config.train.update(
      batch_size=32, num_steps=50_000, eval_every=10_000, save_every=1_000
    )
  if mesh:
    size = config.data.image_size
    config.data = dict(
      name='mesh',
      train='',
      validation='',
      test='all',
      image_size=size,
      num_frames=1,
      frame_stride=1,
      mesh='',  # a file or folder; '' for all meshes of the folder
      poses='',  # a file; '' for poses all over the ground
      spacing=10.0,  # metres between these
      headings=12,
      height=1.6,
      rendering_size=size,
      field_of_view=75.0,  # degrees
      intrinsics=(),
      up='',
      origin=(0.0, 0.0, 0.0),
      queries='queries',
      positions='',
    )
  return config
