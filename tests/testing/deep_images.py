# SPDX-License-Identifier: Apache-2.0
"""Image files of more than 8 bits, which Pillow reads and does not write."""

import struct
import zlib

import numpy as np

_PNG_KINDS = {1: 0, 2: 4, 3: 2, 4: 6}  # by channels


def png(values: np.ndarray) -> bytes:
  """A PNG of 16 bits.

  Args:
    values: [H, W, C] levels; grey, grey and alpha, RGB, RGB and alpha.
  """
  height, width, channels = values.shape
  rows = values.astype('>u2').view(np.uint8).reshape(height, -1)
  data = np.concatenate([np.zeros((height, 1), np.uint8), rows], 1).tobytes()
  kind = _PNG_KINDS[channels]
  head = struct.pack('>IIBBBBB', width, height, 16, kind, 0, 0, 0)
  return b'\x89PNG\r\n\x1a\n' + b''.join(
    struct.pack('>I', len(body)) + tag + body
    + struct.pack('>I', zlib.crc32(tag + body))
    for tag, body in ((b'IHDR', head), (b'IDAT', zlib.compress(data)),
                      (b'IEND', b''))
  )  # fmt: skip


def tiff(values: np.ndarray, order: str = '<', deflate: bool = False) -> bytes:
  """A TIFF of 16 bits in one strip.

  Args:
    values: [H, W, C] levels; grey or RGB.
    order: of its bytes, '<' or '>'.
    deflate: whether it is compressed; libtiff reads it then.
  """
  height, width, channels = values.shape
  data = values.astype(f'{order}u2').tobytes()
  data = zlib.compress(data) if deflate else data
  return _tiff(
    data, height, width, (16,) * channels, order, 8 if deflate else 1
  )


def tiff_of_12_bits(values: np.ndarray) -> bytes:
  """A TIFF of grey levels [H, W] with W even, two of them in three bytes."""
  first, second = np.moveaxis(values.reshape(-1, 2).astype(int), -1, 0)
  packed = [first >> 4, (first & 15) << 4 | second >> 8, second & 255]
  data = np.stack(packed, -1).astype(np.uint8).tobytes()
  return _tiff(data, *values.shape, (12,), '<', 1)


def _tiff(data, height, width, bits, order, compression):
  """Header, strip, the bits of each channel, then the table of tags."""
  short, long = 3, 4
  bits_at = 8 + len(data) + len(data) % 2
  table_at = bits_at + 2 * len(bits) + 2 * (len(bits) % 2)
  one = len(bits) == 1
  tags = [
    (256, long, 1, width), (257, long, 1, height),
    (258, short, len(bits), bits[0] if one else bits_at),
    (259, short, 1, compression), (262, short, 1, 1 if one else 2),
    (273, long, 1, 8), (277, short, 1, len(bits)), (278, long, 1, height),
    (279, long, 1, len(data)),
  ]  # fmt: skip
  table = struct.pack(f'{order}H', len(tags))
  for number, kind, count, value in tags:
    inline = kind == short and count == 1
    table += struct.pack(f'{order}HHI', number, kind, count)
    table += struct.pack(f'{order}HH' if inline else f'{order}I',
                         *((value, 0) if inline else (value,)))  # fmt: skip
  mark = b'II' if order == '<' else b'MM'
  head = mark + struct.pack(f'{order}HI', 42, table_at)
  depths = struct.pack(f'{order}{len(bits)}H', *bits).ljust(table_at - bits_at)
  return head + data.ljust(bits_at - 8, b'\0') + depths + table + bytes(4)
