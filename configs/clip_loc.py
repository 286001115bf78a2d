# SPDX-License-Identifier: Apache-2.0
"""Where a camera is, from named objects it sees and a map of them.

python main.py --config=configs/clip_loc.py --config.clip=/tmp/clip \
  --workdir=/tmp/objects --mode=index

Matsuzaki et al., CLIP-Loc, ICRA 2024. --mode=index makes an object map of every
place from posed images, --mode=evaluate asks it images of known pose,
--mode=localize answers files. `clip` is a workdir of configs/clip.py or a
published checkpoint; without one, --config.search.method='category'.

Expect 99 % of the odd frames of TUM fr2_desk within 0.5 m, 90 % within 0.1 m,
by categories alone; of the small images of synthetic_city 40 % within 2 m.
Measured 2026-11-22.

Arguments after the colon:
  data=synthetic_city: its towns; labels stand for a detector, the noise is ours
    tum_rgbd: a sequence of TUM RGB-D and a file of detections, by categories
  size=small (tiny, small, default, full), of synthetic_city
"""

import ml_collections

from configs import clip
from configs import common

DATA = ('synthetic_city', 'tum_rgbd')
# Detectors that were trained on COCO count its 80 categories from 0.
COCO = (
  *('person', 'bicycle', 'car', 'motorcycle', 'airplane', 'bus', 'train'),
  *('truck', 'boat', 'traffic light', 'fire hydrant', 'stop sign'),
  *('parking meter', 'bench', 'bird', 'cat', 'dog', 'horse', 'sheep', 'cow'),
  *('elephant', 'bear', 'zebra', 'giraffe', 'backpack', 'umbrella', 'handbag'),
  *('tie', 'suitcase', 'frisbee', 'skis', 'snowboard', 'sports ball', 'kite'),
  *('baseball bat', 'baseball glove', 'skateboard', 'surfboard'),
  *('tennis racket', 'bottle', 'wine glass', 'cup', 'fork', 'knife', 'spoon'),
  *('bowl', 'banana', 'apple', 'sandwich', 'orange', 'broccoli', 'carrot'),
  *('hot dog', 'pizza', 'donut', 'cake', 'chair', 'couch', 'potted plant'),
  *('bed', 'dining table', 'toilet', 'tv', 'laptop', 'mouse', 'remote'),
  *('keyboard', 'cell phone', 'microwave', 'oven', 'toaster', 'sink'),
  *('refrigerator', 'book', 'clock', 'vase', 'scissors', 'teddy bear'),
  *('hair drier', 'toothbrush'),
)


def get_config(text: str | None = None) -> ml_collections.ConfigDict:
  """The config; see the module for the arguments."""
  arg = common.parse_arg(text, data='synthetic_city', size='small')
  common.choice('data', arg.data, DATA)
  common.choice('size', arg.size, clip.IMAGE_SIZE)
  config = ml_collections.ConfigDict()
  config.task = 'objects'
  config.name = 'CLIP-Loc'
  config.seed = 0
  config.clip = ''
  config.leave_out = ('bus', 'car', 'pedestrian', 'van')  # what moves
  config.prompt = '{}'  # around a label, which takes the place of {}
  config.map = dict(
    labelled=False,  # take the landmarks of the labels, as if fitted by hand
    min_views=6,
    min_parallax=0.14,  # radians between the outermost of its rays
    calibrate=False,  # a turn common to all cameras
    rounds=3,
  )
  config.search = dict(
    method='hybrid',  # clip, paper, hybrid, category, brute_force
    k=3,  # texts per detection
    draws=0,  # triples at most; 0 for as many as are worth it
    sampler='auto',  # all there are, else b_prosac; or prosac, uniform
    prune=True,  # triples that sizes of boxes rule out
    radius=50.0,  # metres around a rough idea of the place; 0 for all the map
  )
  config.evaluation = dict(
    num_queries=240, num_examples=18
  )  # per place; of all
  if arg.data == 'synthetic_city':
    _use_city(config, arg.size)
  else:
    _use_tum(config)
  return config


def _use_city(config, size):
  own = clip.get_config(f'size={size}')
  config.data = own.data
  config.data.train = config.data.validation = ''
  config.map.labelled = True
  config.data.detector = dict(
    edge=0.03,  # deviation of a box's edge, of its side
    missed=0.1,  # objects that are not seen
    seed=0,
  )


def _use_tum(config):
  config.prompt = 'a photo of a {}'
  config.leave_out = ('person',)
  config.map.calibrate = True
  config.search.update(method='category', radius=0.0)
  config.data = dict(
    name='tum_rgbd',
    image_size=(480, 640),
    mapping='0::2',
    queries='1::2',
    detections='detections.json',
    lens='',  # file in the folder; '' for the published one
    categories=COCO,
  )
