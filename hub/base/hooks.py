"""The only file that hooks a base.

`Attachment` puts forward hooks on the modules whose taps a step touches, the first time it touches them. A
hook asks the active `Visitor` (a `Step`) for the tap's value and is silent when there is none, so a base without an active
step runs as transformers wrote it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from torch import Tensor, nn

from graft.hub.base.hook_points import Tap


class Visitor(Protocol):
    """What the hooks ask during a forward: detours.Step, or what a device has in its place."""

    @property
    def taps(self) -> frozenset[Tap]:
        """Where it wants to be asked."""
        ...

    def visit(self, tap: Tap, value: Tensor) -> Tensor:
        """The value of `tap` as the step's adapters leave it. value: [..., d], rows packed."""
        ...

    def release(self) -> None:
        """The forward is over."""
        ...


class Attachment:
    """Detours on one base. Used by one thread at a time: whoever runs the base."""

    def __init__(self, model: nn.Module):
        self._model = model
        self._hooked: set[Tap] = set()
        self._step: Visitor | None = None

    @contextmanager
    def activate(self, step: Visitor | None) -> Iterator[None]:
        """Within the context every forward (and recomputation in a backward) of the base takes `step`."""
        if step is not None:
            for tap in step.taps - self._hooked:
                self._hook(tap)
        self._step = step
        try:
            yield
        finally:
            if step is not None:
                step.release()
            self._step = None

    def _hook(self, tap: Tap) -> None:
        module = self._model.get_submodule(tap.module)
        if tap.side == "in":
            module.register_forward_pre_hook(self._before(tap))
        else:
            module.register_forward_hook(self._after(tap))
        self._hooked.add(tap)

    def _before(self, tap: Tap) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...] | None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            step = self._step
            if step is None or tap not in step.taps:
                return None
            return (step.visit(tap, args[0]), *args[1:])

        return hook

    def _after(self, tap: Tap) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor | None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            step = self._step
            if step is None or tap not in step.taps:
                return None
            return step.visit(tap, output)

        return hook
