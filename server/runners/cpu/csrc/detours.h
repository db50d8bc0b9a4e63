// What an adapter does to rows: the semantics of hub/adapters/batched_apply.py, for one block of rows of one adapter.
#pragma once
#include "adapter.h"

namespace graft {

constexpr int64_t kAhead = 4096;                           // bytes of weights that are fetched before they are needed
constexpr int kDotRows = kLanes / 4 > 1 ? kLanes / 4 : 2;  // rows that `dots` multiplies with as many ranks as fit

// The rows of one tap; rows of neighbouring taps may share a line of memory (q, k, v), hence the stride.
template <class S>
struct Span {
  S* data = nullptr;
  int64_t stride = 0;
  int64_t width = 0;
  S* row(int64_t index) const { return data + index * stride; }
};

// Rows [row, stop) of the step belong to `owner` (-1: to the bare base).
struct Block {
  int64_t row, stop;
  int owner;
};

// A thread's own memory for intermediate values.
template <class S>
struct Scratch {
  Room<S> ranks, sums;
  Room<float> wide;
  // Throws bad_alloc; called before the threads begin.
  void grow(const ScratchSize& size) {
    ranks.grow(size.ranks), sums.grow(size.sums), wide.grow(size.wide);
  }
};

// R ranks times M rows of x A^T (R * M = kLanes, all sums in registers); rows and ranks beyond the end repeat the last.
template <class S, bool halved, int R, int M>
void dots(const LowRank<S>& form, const Span<S>& x, int64_t row, int64_t rows, float* to, int64_t to_stride) {
  typedef typename Packed<S>::V V;
  constexpr int64_t step = kLanes * Packed<S>::per_lane;
  static_assert(R * M == kLanes);
  const S* inputs[M];
  for (int m = 0; m < M; m++) inputs[m] = x.row(row + std::min<int64_t>(m, rows - 1));
  for (int64_t first = 0; first < form.rank; first += R) {
    const int64_t group = first / kLanes * kLanes, count = std::min<int64_t>(kLanes, form.rank - group);
    const char* weights = form.A + (group * form.depth + first - group) * Stored<S, halved>::vector;
    int64_t at[R];
    for (int r = 0; r < R; r++) at[r] = std::min<int64_t>(r, form.rank - first - 1) * Stored<S, halved>::vector;
    F total[kLanes] = {};
    for (int64_t k = 0; k < form.depth; k++, weights += count * Stored<S, halved>::vector) {
      V in[M];
#pragma GCC unroll 4
      for (int m = 0; m < M; m++) in[m] = load_lanes<S>(inputs[m] + k * step, (x.width - k * step) * (int64_t)sizeof(S));
#pragma GCC unroll 16
      for (int r = 0; r < R; r++) {
        fetch(weights + at[r], kAhead);
        const V w = Stored<S, halved>::load(weights + at[r]);
#pragma GCC unroll 4
        for (int m = 0; m < M; m++) total[m * R + r] = Packed<S>::dp(total[m * R + r], in[m], w);
      }
    }
    const F done = sums(total);
    for (int m = 0; m < std::min<int64_t>(M, rows); m++)
      for (int r = 0; r < std::min<int64_t>(R, form.rank - first); r++) to[m * to_stride + first + r] = done[m * R + r];
  }
}

// h = act(x A^T + a) of one channel for a block's rows, rounded to S as the matrix product's input.
template <class S, bool halved>
void shrink(const LowRank<S>& form, const Span<S>& x, const Block& block, S* h, int64_t h_stride, Scratch<S>& scratch) {
  const int64_t padded = form.lanes * Packed<S>::per_lane;
  const int64_t rows = block.stop - block.row, stride = (padded + kLanes - 1) / kLanes * kLanes;
  float* wide = scratch.wide.data();
  int64_t done = 0;
  for (; rows - done > kDotRows / 2; done += std::min<int64_t>(kDotRows, rows - done))
    dots<S, halved, kLanes / kDotRows, kDotRows>(form, x, block.row + done, rows - done, wide + done * stride, stride);
  for (; done < rows; done++) dots<S, halved, kLanes, 1>(form, x, block.row + done, 1, wide + done * stride, stride);
  for (int64_t row = 0; row < rows; row++) {
    float* line = wide + row * stride;
    for (int64_t r = 0; r < form.rank; r += kLanes) {
      const int left = (int)std::min<int64_t>(kLanes, form.rank - r);
      F value = widen(line + r, left);
      if (!form.a.empty()) value += widen(form.a.data() + r, left);
      narrow(h + row * h_stride + r, activate(value, form.activation), left);
    }
    if (padded > form.rank) std::memset(h + row * h_stride + form.rank, 0, sizeof(S));
  }
}

// y = y + sum of h B + b over all channels, for M rows and the columns from `column` on: kColumns where they are `whole`, else
// what is left of them.
template <class S, bool halved, int M, bool whole>
inline void expand_columns(const Detour<S>& detour, const S* h, int64_t h_stride, const Span<S>& y, int64_t row,
                           int64_t column) {
  typedef typename Packed<S>::V V;
  constexpr int per = Packed<S>::per_lane, vectors = kColumnVectors;
  const int64_t count = whole ? kColumns : divide_up(y.width - column, kLanes) * kLanes;
  const auto left = [&](int v) { return whole ? kLanes : (int)std::clamp<int64_t>(y.width - column - v * kLanes, 0, kLanes); };
  F total[M][vectors];
#pragma GCC unroll 4
  for (int m = 0; m < M; m++)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) total[m][v] = left(v) ? widen(y.row(row + m) + column + v * kLanes, left(v)) : F{};
  const S* from = h;
  for (const LowRank<S>& form : detour.channels) {
    const char* B = form.B + column * form.lanes * Stored<S, halved>::lane;
    for (int64_t lane = 0; lane < form.lanes; lane++, B += count * Stored<S, halved>::lane) {
      V w[vectors];
#pragma GCC unroll 4
      for (int v = 0; v < vectors; v++) {
        fetch(B + v * Stored<S, halved>::vector, kAhead);
        w[v] = left(v) ? Stored<S, halved>::load(B + v * Stored<S, halved>::vector) : V{};
      }
#pragma GCC unroll 4
      for (int m = 0; m < M; m++) {
        const V x = splat_lane(from + m * h_stride + lane * per);
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) total[m][v] = Packed<S>::dp(total[m][v], x, w[v]);
      }
    }
    if (!form.b.empty())
#pragma GCC unroll 4
      for (int v = 0; v < vectors; v++)
        if (left(v))
          for (int m = 0; m < M; m++) total[m][v] += widen(form.b.data() + column + v * kLanes, left(v));
    from += form.lanes * per;
  }
#pragma GCC unroll 4
  for (int m = 0; m < M; m++)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++)
      if (left(v)) narrow(y.row(row + m) + column + v * kLanes, total[m][v], left(v));
}

// The same for all columns.
template <class S, bool halved, int M>
void expand(const Detour<S>& detour, const S* h, int64_t h_stride, const Span<S>& y, int64_t row) {
  int64_t column = 0;
  for (; column + kColumns <= y.width; column += kColumns) expand_columns<S, halved, M, true>(detour, h, h_stride, y, row, column);
  if (column < y.width) expand_columns<S, halved, M, false>(detour, h, h_stride, y, row, column);
}

template <class S>
void scale_and_shift(const Detour<S>& detour, const Span<S>& y, const Block& block) {
  for (int64_t row = block.row; row < block.stop; row++)
    for (int64_t c = 0; c < y.width; c += kLanes) {
      const int left = (int)std::min<int64_t>(kLanes, y.width - c);
      F value = widen(y.row(row) + c, left);
      if (!detour.scale.empty()) value = value * widen(detour.scale.data() + c, left);
      if (!detour.bias.empty()) value = value + widen(detour.bias.data() + c, left);
      narrow(y.row(row) + c, value, left);
    }
}

// The sum of several taps for a block's rows, as a tap of its own.
template <class S>
Span<S> add_up(const std::vector<int>& reads, const Span<S>* taps, const Block& block, Scratch<S>& scratch) {
  if (reads.size() == 1) return taps[reads[0]];
  const int64_t width = taps[reads[0]].width;
  S* to = scratch.sums.data();
  for (int64_t row = block.row; row < block.stop; row++)
    for (int64_t c = 0; c < width; c += kLanes) {
      const int left = (int)std::min<int64_t>(kLanes, width - c);
      F value = widen(taps[reads[0]].row(row) + c, left);
      for (size_t i = 1; i < reads.size(); i++) value += widen(taps[reads[i]].row(row) + c, left);
      narrow(to + (row - block.row) * width + c, value, left);
    }
  return {to - block.row * width, width, width};
}

// The same for all rows of a block.
template <class S, bool halved>
void expand_all(const Detour<S>& detour, const S* h, int64_t h_stride, const Span<S>& y, const Block& block) {
  int64_t row = block.row;
  for (; row + 4 <= block.stop; row += 4) expand<S, halved, 4>(detour, h + (row - block.row) * h_stride, h_stride, y, row);
  for (; row < block.stop; row++) expand<S, halved, 1>(detour, h + (row - block.row) * h_stride, h_stride, y, row);
}

// The value of one tap as the block's adapter leaves it: first Vector, then every LowRank.
template <class S>
void visit(const Detour<S>& detour, const Span<S>* taps, int tap, const Block& block, Scratch<S>& scratch) {
  const Span<S>& y = taps[tap];
  if (!detour.scale.empty() || !detour.bias.empty()) scale_and_shift(detour, y, block);
  if (detour.channels.empty()) return;
  const int64_t stride = detour.lanes * Packed<S>::per_lane;
  S* h = scratch.ranks.data();
  S* to = h;
  for (const LowRank<S>& form : detour.channels) {
    (detour.halved_A ? shrink<S, true> : shrink<S, false>)(form, add_up(form.reads, taps, block, scratch), block, to, stride, scratch);
    to += form.lanes * Packed<S>::per_lane;
  }
  (detour.halved_B ? expand_all<S, true> : expand_all<S, false>)(detour, h, stride, y, block);
}

}  // namespace graft
