# SPDX-License-Identifier: Apache-2.0
"""The page of messages quotes what the code says, and all that it warns of."""

import ast
from collections.abc import Iterator
import functools
import pathlib
import re

from absl.testing import absltest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE = ROOT / 'docs/troubleshooting.md'
# What stands for a value in `templates`, and what is between two of them.
VALUE, BETWEEN = '\0', '\1'
_PERCENT = re.compile(r'%[.\d,]*[sdfrg]')


def sources() -> list[pathlib.Path]:
  """The files whose messages users see."""
  folders = (ROOT / name for name in ('i2ploc', 'input_pipeline'))
  return [ROOT / 'main.py', *(p for f in folders for p in f.rglob('*.py'))]


def text_of(node: ast.AST) -> str | None:
  """A string of the code with VALUE in place of what is filled in."""
  if isinstance(node, ast.Constant) and isinstance(node.value, str):
    return _PERCENT.sub(VALUE, node.value)
  if isinstance(node, ast.JoinedStr):
    return ''.join(text_of(part) or VALUE for part in node.values)
  return None


@functools.cache
def templates() -> str:
  """Every string of the code but docstrings, and those inside of others."""
  found = []
  for path in sources():
    tree = ast.parse(path.read_text('utf-8'))
    said = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
    texts = (text_of(n) for n in ast.walk(tree) if id(n) not in said)
    found += [text for text in texts if text]
  return BETWEEN.join(found)


@functools.cache
def warnings() -> tuple[str, ...]:
  """The first argument of every `logging.warning`."""
  return tuple(
    text_of(node.args[0]) or ''
    for path in sources()
    for node in ast.walk(ast.parse(path.read_text('utf-8')))
    if isinstance(node, ast.Call)
    and ast.unparse(node.func) == 'logging.warning'
  )


def pattern(quote: str) -> re.Pattern[str]:
  """Finds a quote in templates; what differs is `...` in it."""
  return re.compile(f'[^{BETWEEN}]*'.join(map(re.escape, quote.split('...'))))


def rows() -> Iterator[list[str]]:
  """The cells of the rows of all tables, but for headers and rulers."""
  lines = PAGE.read_text('utf-8').splitlines()
  for line, after in zip(lines, [*lines[1:], ''], strict=True):
    if line.startswith('| ') and not after.startswith('|---'):
      yield [cell.strip() for cell in line.strip('|').split(' | ')]


def quotes() -> list[str]:
  """The messages in the first cells."""
  return [quote for row in rows() for quote in re.findall('`(.+?)`', row[0])]


class TroubleshootingTest(absltest.TestCase):
  def test_each_message_is_in_the_code(self):
    self.assertGreater(len(quotes()), 80)
    unsaid = [
      quote for quote in quotes() if not pattern(quote).search(templates())
    ]
    self.assertEqual(unsaid, [], 'no code says this: correct the rows')

  def test_each_warning_is_on_the_page(self):
    # One that is made of values alone has its words elsewhere.
    worded = [text for text in warnings() if re.search('[a-z]', text)]
    self.assertGreater(len(worded), 15)
    absent = [
      text
      for text in worded
      if not any(pattern(quote).search(text) for quote in quotes())
    ]
    self.assertEqual(absent, [], f'add a row to {PAGE.name}')

  def test_a_quote_tells_one_message_from_others(self):
    for quote in quotes():
      self.assertGreaterEqual(len(quote.replace('...', '')), 12, quote)

  def test_each_row_says_what_it_means_and_what_to_do(self):
    for row in rows():
      self.assertLen(row, 3, row)
      self.assertNotIn('', row)

  def test_what_nobody_says_is_not_found(self):
    for quote in ('the disk is made of cheese', 'Cannot write ... cheese'):
      self.assertIsNone(pattern(quote).search(templates()))

  def test_docstrings_and_values_are_no_messages(self):
    self.assertNotIn('Flags in, one of five verbs out', templates())
    node = ast.parse("f'{a} of {b!r} ' 'photos', '%s: %d of %5.1f m'").body[0]
    said = [text_of(n) for n in ast.walk(node)]
    self.assertIn('\0 of \0 photos', said)
    self.assertIn('\0: \0 of \0 m', said)

  def test_the_page_is_linked(self):
    self.assertIn('docs/troubleshooting.md', (ROOT / 'README.md').read_text())
    data = (ROOT / 'docs/data.md').read_text()
    self.assertIn('(troubleshooting.md)', data)

  def test_the_contents_name_all_groups(self):
    text = PAGE.read_text('utf-8')
    heads = re.findall(r'^## (.+)$', text, re.MULTILINE)
    named = re.findall(r'^- \[(.+)\]\(#(.+)\)$', text, re.MULTILINE)
    self.assertEqual(heads, [name for name, _ in named])
    for name, anchor in named:
      self.assertEqual(name.lower().replace(' ', '-'), anchor)


if __name__ == '__main__':
  absltest.main()
