# SPDX-License-Identifier: Apache-2.0
"""A TUM RGB-D folder of planted objects, with a file of detections."""

import pathlib

import numpy as np
from PIL import Image
from scipy.spatial import transform

from i2ploc.objects import files
from tests.objects import planted_objects

# Pixels of the file count from the centre of the first one.
LENS = """Camera.fx: 520.0
Camera.fy: 520.0
Camera.cx: 319.5
Camera.cy: 239.5
"""


def write(folder: pathlib.Path, scene: planted_objects.Scene) -> None:
  """Writes a scene: images every 0.2 s, `lens.yaml`, `detections.npz`."""
  (folder / 'rgb').mkdir(parents=True)
  (folder / 'lens.yaml').write_text(LENS)
  height, width = planted_objects.SIZE
  lists, poses, frames = [], [], {}
  for i, (pose, seen) in enumerate(zip(scene.poses, scene.frames, strict=True)):
    stamp = f'{100 + 0.2 * i:.6f}'
    name = f'{stamp}.png'
    lists.append(f'{stamp} rgb/{name}')
    turn = transform.Rotation.from_matrix(pose[:3, :3]).as_quat()
    numbers = ' '.join(f'{x:.9f}' for x in (*pose[:3, 3], *turn))
    poses.append(f'{stamp} {numbers}')
    picture = np.full((height, width, 3), 40 + i, np.uint8)
    Image.fromarray(picture).save(folder / 'rgb' / name, compress_level=1)
    frames[name] = seen
  (folder / 'rgb.txt').write_text('\n'.join(lists) + '\n')
  (folder / 'groundtruth.txt').write_text('\n'.join(poses) + '\n')
  files.save_detections(frames, folder / 'detections.npz', (height, width))
