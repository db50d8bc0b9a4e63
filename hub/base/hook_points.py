"""Where an adapter may touch a base.

Everything an adapter does happens at a *tap*: the input or the output of one module of the frozen base that
takes and returns a single tensor. LINEAR sites are taps of a projection (or the output of a norm); BLOCK
sites (a sublayer's un-normed or normed input, what it adds to the stream, the stream after it) are
translated here to taps of the modules that carry those values. INPUT and CACHE sites are rows, not taps: see
`InputRows` and `CacheRows` in serving_forms.py. Torch-free.
"""

from dataclasses import dataclass
from typing import Literal

from graft.hub.base.manifest import BaseSpec


@dataclass(frozen=True, order=True)
class Tap:
    """One point of the base: the input or output of module `module`, rows of [d]."""

    module: str
    side: Literal["in", "out"]


def stream_in(spec: BaseSpec, layer: int, sublayer: str) -> Tap:
    """x: the residual stream that enters `sublayer` ("attention" | "mlp"), before its norm."""
    if not spec.norm_first:  # post-norm (OPT-350m): the sublayer reads the stream itself
        return normed_in(spec, layer, sublayer)
    parts = spec.parts
    # With a parallel residual both norms read the same stream.
    return Tap(spec.module(layer, parts.attn_norm if sublayer == "attention" else parts.mlp_norm), "in")


def normed_in(spec: BaseSpec, layer: int, sublayer: str) -> Tap:
    """The sublayer's input after its norm: what its first linears read."""
    parts = spec.parts
    first = parts.queries[0] if sublayer == "attention" else parts.mlp_in[0]
    return Tap(spec.module(layer, first), "in")


def sublayer_out(spec: BaseSpec, layer: int, sublayer: str) -> Tap:
    """d: what the base adds to the stream for `sublayer`, after a post-norm where the family has one."""
    parts = spec.parts
    post, last = (
        (parts.attn_post_norm, parts.attn_out) if sublayer == "attention" else (parts.mlp_post_norm, parts.mlp_out)
    )
    return Tap(spec.module(layer, post or last), "out")


def stream_out(spec: BaseSpec, layer: int, sublayer: str) -> tuple[Tap, ...]:
    """The stream after `sublayer` as a sum of taps: x + d (with a parallel residual, x + both d's)."""
    if sublayer == "mlp" and spec.parallel_residual:
        return (stream_in(spec, layer, "mlp"), sublayer_out(spec, layer, "attention"), sublayer_out(spec, layer, "mlp"))
    return (stream_in(spec, layer, sublayer), sublayer_out(spec, layer, sublayer))


def last_hidden(spec: BaseSpec) -> Tap:
    """The hidden states behind all layers, which the output projection reads."""
    narrowing = spec.parts.narrowing
    return Tap(narrowing if narrowing in spec.modules else spec.parts.final_norm, "out")
