"""`graft demo`: the whole story on real input, told with the same commands a user types."""

from graft.hub.demo.command import demo

__all__ = ["demo"]
