# SPDX-License-Identifier: Apache-2.0
"""What a page says lies in templates/; every value is escaped on its way in."""

import pathlib

import jinja2
import markupsafe

Markup = markupsafe.Markup
escape = markupsafe.escape
NOTHING = '–'


def fixed(value: float | None, digits: int = 1) -> str:
  """A number with so many decimals, a dash for None."""
  return NOTHING if value is None else f'{value:.{digits}f}'


def _environment() -> jinja2.Environment:
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent / 'templates'),
    autoescape=True,
    extensions=['jinja2.ext.loopcontrols'],
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.filters['fixed'] = fixed
  return environment


_ENVIRONMENT = _environment()


def render(template: str, **values) -> Markup:
  """Fills a template.

  Args:
    template: name of a file in templates/.
    **values: what it names. Text is escaped, `Markup` is taken as it is.

  Returns:
    HTML, which another template takes as it is.
  """
  return Markup(_ENVIRONMENT.get_template(template).render(**values))
