"""Templates of HTML pages, in which every inserted text is escaped."""

from __future__ import annotations

from importlib.resources import files

import jinja2


def load_template(name: str) -> jinja2.Template:
    """Return a template of this package; an undefined variable is an error."""

    def source(name: str) -> str:
        return files(__package__).joinpath(name).read_text("utf-8")

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        loader=jinja2.FunctionLoader(source),
    )  # fmt: skip
    return environment.get_template(name)
