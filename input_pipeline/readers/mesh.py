# SPDX-License-Identifier: Apache-2.0
"""A textured or plain mesh of a town as a map of renderings, asked by photos.

  ROOT/**.ply .obj .glb .gltf   one scene, or the file or folder `mesh`
  ROOT/poses.csv                perhaps: from where it is rendered
  ROOT/queries/**               perhaps: photos that ask

MeshVPR (Berton et al., 2024) renders its database so. Where a pose of the file
has the name of a photo below ROOT, its row has both, the photo and the
rendering from the same pose: what MeshVPR trains on.

Mesh, poses and positions of photos are of one frame: x east, y north, z up,
metres. Photos with GPS are placed in UTM: `origin` puts a local mesh there.
"""

from collections.abc import Sequence
import dataclasses
import pathlib

from absl import logging
import numpy as np

from i2ploc import image_files
from i2ploc.errors import InputError
from i2ploc.geometry import lens as lens_lib
from i2ploc.photos import album as album_lib
from input_pipeline import schema
from input_pipeline.readers import mesh_files
from input_pipeline.readers import mesh_poses
from input_pipeline.readers import mesh_rays
from input_pipeline.readers import mesh_renderer

# Metres that photos may be away from a mesh before they are of another frame.
_FAR = 10000.0


@dataclasses.dataclass(frozen=True, eq=False)
class Reader:
  """`schema.Dataset.read` over renderings and photos.

  Compared and hashed by identity, as the function that it stands for.

  Attributes:
    renderer: of the mesh.
    world_from_camera: [M, 4, 4] float64, of the first M rows.
    photos: of each row, its file; None without.
  """

  renderer: mesh_renderer.Renderer
  world_from_camera: np.ndarray
  photos: tuple[pathlib.Path | None, ...]

  def __call__(
    self, row: int, what: Sequence[str] = ('rendering',)
  ) -> dict[str, np.ndarray]:
    """Renders the mesh or reads a photo; see `schema.Dataset`.

    Raises:
      InputError: the row has not what is asked for, or a photo does not decode.
    """
    found = {}
    for sensor in what:
      photo = self.photos[row]
      if sensor == 'rendering' and row < len(self.world_from_camera):
        found[sensor] = self.renderer.render(self.world_from_camera[row])
      elif sensor == 'image' and photo is not None:
        found[sensor] = image_files.read_image(photo)
      else:
        raise InputError(
          f'Asked for {sensor!r} of row {row}; of a mesh the first '
          f'{len(self.world_from_camera)} rows have renderings, and some of '
          'them and all later ones have an image.'
        )
    return found


def load(
  root: str | pathlib.Path,
  split: str = album_lib.ALL,
  *,
  mesh: str = '',
  poses: str = '',
  spacing: float = 10.0,
  headings: int = 12,
  height: float = 1.6,
  rendering_size: Sequence[int] = (224, 224),
  field_of_view: float = 75.0,
  intrinsics: Sequence[float] = (),
  up: str = '',
  origin: Sequence[float] = (0.0, 0.0, 0.0),
  queries: str = album_lib.QUERIES,
  positions: str = '',
) -> schema.Dataset:
  """Loads a mesh and says from where it is seen; renders when a row is read.

  Args:
    root: the folder.
    split: 'all'.
    mesh: a file or folder below it; '' for all meshes below it, as one scene.
    poses: a file below it, see `mesh_poses`; '' for poses all over the ground.
    spacing: between places on the ground, metres.
    headings: directions at each place, or of each pose without one.
    height: of the camera above ground, where no file says it, metres.
    rendering_size: (H, W) of renderings, pixels.
    field_of_view: from left to right, degrees.
    intrinsics: fx, fy, cx, cy of renderings, pixels, instead of it; () for the
      field of view.
    up: the mesh's axis that points up; see `mesh_files.read_mesh`.
    origin: of the mesh in the world, metres.
    queries: name of the folder of photos that ask; a map alone if it is
      missing.
    positions: of these photos, see `i2ploc.photos.album`; a file lies in their
      folder.

  Returns:
    A dataset of one town with the drives 'database', renderings, and 'queries'.

  Raises:
    MissingFileError: a file is missing.
    InputError: an option, a mesh, poses or photos that cannot be used, or
      photos that are not where the mesh is.
  """
  root = pathlib.Path(root)
  if split != album_lib.ALL:
    raise InputError(f'{split!r} is not a split of a mesh; expected "all".')
  _check(spacing, headings, height)
  lens = _lens(rendering_size, field_of_view, intrinsics)
  scene = mesh_files.read_mesh(root / mesh, up=up, origin=tuple(origin))
  caster = mesh_rays.Caster(scene)
  if poses:
    found = mesh_poses.completed(
      mesh_poses.read_poses(root / poses), scene, caster,
      headings=headings, height=height,
    )  # fmt: skip
  else:
    found = mesh_poses.all_over(
      scene, caster, spacing=spacing, headings=headings, height=height
    )
  size = int(rendering_size[0]), int(rendering_size[1])
  world_from_camera = _matrices(found)
  maps, files = _rendered(root, found, world_from_camera)
  rig = schema.Rig(lens, size)
  if maps.has_image.any():  # photos of any size beside the renderings
    rig = schema.Rig(None, None)
  rigs, asks = {album_lib.DATABASE: rig}, None
  if (root / queries).is_dir():
    album = album_lib.open_album(root / queries, positions=positions)
    _check_frame(scene, album)
    photos = _asking(maps, album, queries)
    asks = np.arange(len(maps.town) + len(photos.town)) >= len(maps.town)
    maps = schema.concatenate([maps, photos])
    files += [root / queries / name for name in album.names]
    rigs[album_lib.QUERIES] = schema.Rig(None, None)
  logging.info(
    'Mesh of %d triangles: %d renderings, %d photos that ask.',
    len(scene.faces), len(found.names), len(maps.town) - len(found.names),
  )  # fmt: skip
  return schema.Dataset(
    name=f'mesh/{root.resolve().name}',
    frames=maps,
    rigs=rigs,
    read=Reader(
      mesh_renderer.Renderer(scene, caster, lens, size),
      world_from_camera,
      tuple(files),
    ),
    queries=asks,
  )


def _check(spacing, headings, height) -> None:
  if not spacing > 0:
    raise InputError(f'spacing={spacing}: expected metres above 0.')
  if headings < 1:
    raise InputError(f'headings={headings}: expected 1 and more.')
  if not height > 0:
    raise InputError(f'height={height}: expected metres above 0.')


def _lens(size, field_of_view, intrinsics) -> lens_lib.Lens:
  if len(size) != 2 or min(size) < 1:
    raise InputError(
      f'rendering_size must be (height, width) in pixels, not {size}.'
    )
  height, width = size
  if not intrinsics:
    if not 0 < field_of_view < 180:
      raise InputError(
        f'field_of_view={field_of_view}: expected degrees between 0 and 180.'
      )
    focal = width / 2 / np.tan(np.radians(field_of_view) / 2)
    intrinsics = focal, focal, width / 2, height / 2
  if len(intrinsics) != 4:
    raise InputError(f'intrinsics={intrinsics}: expected fx, fy, cx, cy.')
  fx, fy, cx, cy = intrinsics
  lens = lens_lib.Lens(
    'pinhole', np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]])
  )
  lens_lib.check_lens(lens)
  return lens


def _matrices(poses: mesh_poses.Poses) -> np.ndarray:
  matrices = np.tile(np.eye(4), (len(poses.names), 1, 1))
  matrices[:, :3, :3], matrices[:, :3, 3] = poses.rotation, poses.position
  return matrices


def _rendered(root, poses, world_from_camera):
  """The rows of renderings, and the photo of each."""
  count = len(poses.names)
  drive = np.full(count, album_lib.DATABASE)
  frame = np.arange(count)
  named = poses.names != ''
  names = np.where(named, poses.names, schema.frame_names(drive, frame))
  files = [
    root / name if known and (root / name).is_file() else None
    for name, known in zip(names.tolist(), named, strict=True)
  ]
  table = schema.FrameTable(
    town=np.full(count, root.resolve().name),
    drive=drive,
    frame=frame,
    timestamp=poses.timestamp,
    world_from_body=world_from_camera @ schema.CAMERA_AXES,
    has_image=np.array([file is not None for file in files], bool),
    has_points=np.zeros(count, bool),
    name=names,
    has_rendering=np.ones(count, bool),
  )
  return table, files


def _asking(maps, album, folder) -> schema.FrameTable:
  """The rows of photos that ask."""
  count = len(album.names)
  return schema.FrameTable(
    town=np.full(count, maps.town[0]),
    drive=np.full(count, album_lib.QUERIES),
    frame=album.frame,
    timestamp=np.full(count, np.nan),
    world_from_body=album_lib.poses(album.positions),
    has_image=np.ones(count, bool),
    has_points=np.zeros(count, bool),
    name=np.array([f'{folder}/{name}' for name in album.names], str),
    has_rendering=np.zeros(count, bool),
  )


def _check_frame(scene, album) -> None:
  """Raises InputError for photos of which none is near the mesh."""
  xy = album.positions.position[:, :2] - scene.origin[:2]
  xy = xy[np.isfinite(xy).all(axis=1)]
  reach = np.abs(scene.vertices[:, :2]).max(axis=0)
  away = np.linalg.norm(np.maximum(np.abs(xy) - reach, 0), axis=1)
  if len(xy) and away.min() > _FAR:
    east, north = album.positions.position[
      np.isfinite(album.positions.position[:, 0])
    ][0, :2]
    raise InputError(
      f'{album.root}: the photos, as at ({east:.0f}, {north:.0f}) m, are '
      f'{away.min() / 1000:.0f} km and more from the mesh around '
      f'({scene.origin[0]:.0f}, {scene.origin[1]:.0f}) m. Set data.origin to '
      'where (0, 0, 0) of the mesh lies.'
    )
