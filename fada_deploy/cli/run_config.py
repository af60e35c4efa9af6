"""The settings of a run from the options of the commands that train one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fada_deploy.cli.console import log

if TYPE_CHECKING:
    from fada_deploy.training.config import RunConfig


def make_run_config(
    config_file: Path | None, settings: tuple[str, ...], options: dict[str, Any]
) -> RunConfig:
    """Return the settings of a run from the values of the options of `fada train`."""
    from fada_deploy.training.settings import (
        CLI_REMEDY,
        make_config,
        shared_options,
        source_options,
        stage_names,
    )

    options |= source_options(*(options.pop(n) for n in ("src", "src_root", "src_weight")))
    no_rendered = options.pop("no_rendered")
    options |= shared_options(**{n: options.pop(n) for n in ("batch", "size", "accumulate")})
    if options["stages"] is not None:
        options["stages"] = stage_names(options["stages"])
    recipe = options.pop("recipe")
    config = make_config(
        recipe=recipe, file=config_file, settings=settings, options=options, remedy=CLI_REMEDY,
        rendered=not no_rendered,
    )  # fmt: skip
    _check_rendered(config, options, no_rendered=no_rendered)
    return config


def _check_rendered(config: RunConfig, options: dict[str, Any], *, no_rendered: bool) -> None:
    """Raise `UsageError` if --no-rendered contradicts --src; warn if options have no effect."""
    from fada_deploy.common.errors import UsageError
    from fada_deploy.training.config import RENDERED

    has_rendered = any(source.name == RENDERED for source in config.sources)
    if no_rendered and has_rendered:
        reason = (
            "there is no other source"
            if len(config.sources) == 1
            else "rendered is one of the sources"
        )
        raise UsageError(f"--no-rendered: {reason}; name a labeled data set with --src")
    if options.get("rendered_scenes") is not None and not has_rendered:
        log("warning: --rendered-scenes has no effect: the run has no source rendered")
