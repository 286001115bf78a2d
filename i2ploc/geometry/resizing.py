# SPDX-License-Identifier: Apache-2.0
"""Images of another size, and the intrinsics that belong to them.

The one implementation for training, maps and queries: what a model sees must
not depend on who prepared it. Host code on numpy arrays, safe in loader
threads. How an image becomes one of another shape has a name, a policy:

  stretch       all of it, whatever its shape was ("hard resize")
  crop          its middle: scaled until it covers the size, the rest cut off
  five_crops    its corners and its middle, each as crop; a descriptor is the
                mean of the five, at unit length
  nearest_crop  the same five, each searched with; the most similar counts

A crop is as large as it can be, so it touches two opposite borders and two
corners are the same picture: the five are left, right, left, right and middle
of a wide image. They stay five, since the mean of the Deep VG benchmark counts
them so. That benchmark crops queries alone and stretches the database.
"""

import numpy as np
from PIL import Image

from i2ploc.errors import InputError
from i2ploc.geometry import lens as lens_lib

# Parts of the free width and height that lie left of and above each view.
_MIDDLE = (0.5, 0.5)
_FIVE = ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0), _MIDDLE)
# Factors within this part of 1: nobody makes images so little smaller, but the
# cameras of one project differ so, and what crops a border leaves this.
_NEAR_ONE = 0.1
STRETCH = 'stretch'
POLICIES = {
  STRETCH: (),
  'crop': (_MIDDLE,),
  'five_crops': _FIVE,
  'nearest_crop': _FIVE,
}


def num_views(policy: str) -> int:
  """V, how many pictures a policy makes of an image.

  >>> num_views('stretch'), num_views('five_crops')
  (1, 5)

  Raises:
    InputError: an unknown policy.
  """
  return len(_places(policy)) or 1


def _places(policy: str) -> tuple[tuple[float, float], ...]:
  if policy not in POLICIES:
    raise InputError(
      f'Unknown resize policy {policy!r}; expected one of {list(POLICIES)}.'
    )
  return POLICIES[policy]


def boxes(
  size_before: tuple[int, int], size_after: tuple[int, int], policy: str
) -> np.ndarray:
  """What each view shows of an image.

  Args:
    size_before: (H, W), pixels.
    size_after: (H, W), pixels.
    policy: of `POLICIES`.

  Returns:
    [V, 4] float64: left, top, right and bottom, pixels of the image before.

  Raises:
    InputError: an unknown policy.

  >>> boxes((20, 60), (10, 10), 'crop')
  array([[20.,  0., 40., 20.]])
  """
  height, width = size_before
  places = _places(policy)
  if not places:
    return np.array([[0.0, 0.0, width, height]])
  ratio = size_after[1] / size_after[0]
  shown = np.array([min(width, height * ratio), min(height, width / ratio)])
  corner = np.array(places) * (np.array([width, height]) - shown)
  return np.concatenate([corner, corner + shown], 1)


def is_resize(
  size_before: tuple[int, int], size_after: tuple[int, int]
) -> bool:
  """Whether one size is surely the other one times a factor.

  One factor explains both sides, each rounded up or down to a pixel. Otherwise
  something was cropped or stretched, and nobody knows which; or, where the
  factor is nearly 1, it is the size of another camera.

  Args:
    size_before: (H, W), pixels.
    size_after: (H, W), pixels.

  >>> is_resize((375, 1242), (187, 621)), is_resize((375, 1242), (352, 1216))
  (True, False)
  """
  if tuple(size_before) == tuple(size_after):
    return True
  before, after = np.asarray(size_before), np.asarray(size_after)
  low, high = ((after - 1) / before).max(), ((after + 1) / before).min()
  near = low < 1 + _NEAR_ONE and high > 1 - _NEAR_ONE
  return bool(low < high and not near)


def resize_image(
  image: np.ndarray, size: tuple[int, int], policy: str = STRETCH
) -> np.ndarray:
  """An image of another size, bicubic and antialiased.

  Args:
    image: uint8 [H, W, 3].
    size: (H, W) of the result.
    policy: of `POLICIES`.

  Returns:
    uint8 [H, W, 3]; the image itself if it has the size. [V, H, W, 3] of a
    policy of several views.

  Raises:
    InputError: an unknown policy.

  >>> image = np.full((4, 6, 3), 7, np.uint8)
  >>> resize_image(image, (2, 9)).shape
  (2, 9, 3)
  >>> resize_image(image, (2, 9), 'nearest_crop').shape
  (5, 2, 9, 3)
  """
  return _resize(image, size, policy, Image.Resampling.BICUBIC)


def resize_labels(
  labels: np.ndarray, size: tuple[int, int], policy: str = STRETCH
) -> np.ndarray:
  """Classes uint8 [H, W] of the resized image's pixels: of the nearest one."""
  return _resize(labels, size, policy, Image.Resampling.NEAREST)


def _resize(image, size, policy, resample):
  several = num_views(policy) > 1
  if image.shape[:2] == tuple(size) and not several:
    return image
  before = Image.fromarray(image)
  views = [
    np.asarray(before.resize(size[::-1], resample, tuple(box)))
    for box in boxes(image.shape[:2], size, policy).tolist()
  ]
  return np.stack(views) if several else views[0]


def join_views(descriptors: np.ndarray, policy: str) -> np.ndarray:
  """What an image is searched with, out of the descriptors of its views.

  Args:
    descriptors: [..., V, D], in the order of `resize_image`.
    policy: of `POLICIES`.

  Returns:
    [..., 1, D] of a single picture or of the mean; [..., V, D] where the most
    similar view counts.

  Raises:
    InputError: an unknown policy, or another number of views.

  >>> join_views(np.array([[1.0, 0]] * 3 + [[0, 1.0]] * 2), 'five_crops')
  array([[0.83205029, 0.5547002 ]])
  """
  if descriptors.shape[-2] != num_views(policy):
    raise InputError(
      f'{policy} makes {num_views(policy)} views of an image, not'
      f' {descriptors.shape[-2]}.'
    )
  if policy == 'five_crops':
    mean = descriptors.mean(-2, keepdims=True)
    norm = np.linalg.norm(mean, axis=-1, keepdims=True)
    return mean / np.maximum(norm, 1e-12)
  return descriptors


def resize_intrinsics(
  intrinsics: np.ndarray,
  size_before: tuple[int, int],
  size_after: tuple[int, int],
  policy: str = STRETCH,
) -> np.ndarray:
  """The intrinsics of a resized image.

  What is cut off at the left and at the top is taken from the principal point;
  then the first row is multiplied by the ratio of the widths, the second by
  that of the heights: enough, since pixels count from the image's corner.

  Args:
    intrinsics: [..., 3, 3] of the image before.
    size_before: (H, W), pixels.
    size_after: (H, W), pixels.
    policy: of `POLICIES`, of a single view.

  Returns:
    [..., 3, 3] of the same type.

  Raises:
    InputError: an unknown policy, or one of several views.

  >>> matrix = np.array([[50.0, 0, 40], [0, 60, 16], [0, 0, 1]])
  >>> resize_intrinsics(matrix, (32, 80), (16, 40))
  array([[25.,  0., 20.],
         [ 0., 30.,  8.],
         [ 0.,  0.,  1.]])
  """
  if num_views(policy) > 1:
    raise InputError(
      f'{policy} makes several pictures of an image, which no one camera took:'
      ' use stretch or crop where the calibration counts.'
    )
  intrinsics = np.asarray(intrinsics)
  ((left, top, right, bottom),) = boxes(size_before, size_after, policy)
  scale = np.array(
    [size_after[1] / (right - left), size_after[0] / (bottom - top), 1.0],
    intrinsics.dtype,
  )
  resized = intrinsics * scale[:, None]
  if left or top:
    cut = np.array([left * scale[0], top * scale[1], 0], intrinsics.dtype)
    resized[..., 2] -= cut
  return resized


def resize_lens(
  lens: lens_lib.Lens,
  size_before: tuple[int, int],
  size_after: tuple[int, int],
  policy: str = STRETCH,
) -> lens_lib.Lens:
  """The lens of a resized image; distortion does not depend on the size."""
  matrix = resize_intrinsics(lens.intrinsics, size_before, size_after, policy)
  return lens._replace(intrinsics=matrix)
