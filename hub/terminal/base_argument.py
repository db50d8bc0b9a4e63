"""The type of --base: a folder, a NAME or id that was imported here, or an id on a model hub."""

import click

from graft.hub.base.named_bases import base_source


class _Base(click.ParamType):
    name = "base"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return base_source(value)


BASE = _Base()
