// y = x W^T + bias with W packed once, for the few rows of decoding as well as for the many of prefill.
// Every row is added up in the same order whatever the other rows are, so a row's result never depends on them.
#pragma once
#include <ATen/ATen.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <type_traits>
#include <vector>

#include "amx.h"
#include "checks.h"
#include "memory.h"
#include "simd.h"
#include "region.h"

namespace graft {

// A tile of kTile rows times kVectors vectors of columns has all its sums in registers, beside a step's weights and one
// input. A panel's columns lie together, kLines lines of memory a step of depth.
template <class S>
struct Tile {
  static constexpr bool many = kRegisters == 32;
  static constexpr int kVectors = many && Packed<S>::kWords == 1 ? 3 : 2;
  static constexpr int kRows = many ? 8 : 7 - Packed<S>::kWords;
  static constexpr int kPanel = kVectors * kLanes;
  static constexpr int kLines = (kPanel * 4 + kLine - 1) / kLine;
  static constexpr int64_t kDepth = Packed<S>::kWords == 1 ? 1024 : 256;  // lanes at once: they stay in a near cache
  static_assert(kRows * kVectors + kVectors * Packed<S>::kWords + 1 <= kRegisters);
};
constexpr int64_t kFewRows = 32;            // up to which reading the weights is what takes the time
constexpr int64_t kRowChunk = 128;          // rows of one piece of work; their inputs stay in the L2 cache

// Panels of [lanes of depth][columns of the panel]; columns and depth beyond the matrix are zero.
template <class S>
struct Linear {
  static constexpr int kPanel = Tile<S>::kPanel;
  int64_t in = 0, out = 0, panels = 0, lanes = 0;
  std::shared_ptr<Memory> packed;  // int32 [panels, lanes, kPanel]
  Floats bias;  // empty: none

  Linear() = default;
  Linear(const at::Tensor& weight, const std::optional<at::Tensor>& offset);  // raises ValueError
  const int32_t* panel(int64_t index) const { return (const int32_t*)packed->data() + index * lanes * kPanel; }
};

template <class S>
Linear<S>::Linear(const at::Tensor& weight, const std::optional<at::Tensor>& offset) {
  constexpr int per = Packed<S>::per_lane;
  const at::Tensor rows = weight.contiguous();
  require<S>(rows, "a linear's weight", {-1, -1});
  out = rows.size(0), in = rows.size(1);
  TORCH_CHECK_VALUE(in > 0 && in % per == 0, "a bfloat16 linear needs an even number of inputs, not ", in);
  lanes = in / per, panels = (out + kPanel - 1) / kPanel;
  const int64_t bytes = panels * lanes * kPanel * (int64_t)sizeof(int32_t);
  packed = std::make_shared<Memory>(bytes);
  const S* from = (const S*)rows.data_ptr();
  int32_t* to = (int32_t*)packed->data();
  std::memset(to, 0, bytes);
  for (int64_t p = 0; p < panels; p++)
    for (int64_t k = 0; k < lanes; k++)
      for (int64_t c = 0; c < std::min<int64_t>(kPanel, out - p * kPanel); c++)
        std::memcpy(to + (p * lanes + k) * kPanel + c, from + (p * kPanel + c) * in + k * per, sizeof(int32_t));
  if (offset) {
    bias = floats(offset);
    TORCH_CHECK_VALUE((int64_t)bias.size() == out, "a linear's bias must have ", out, " numbers, not ", bias.size());
    bias.resize(panels * kPanel, 0.f);
  }
}

// One matrix product of a phase: all of its inputs and outputs are rows with a stride.
template <class S>
struct Product {
  const Linear<S>* weight;
  const S* in;
  int64_t in_stride;
  S* out;
  int64_t out_stride;

  int64_t items(int64_t rows) const { return weight->panels * ((rows + kRowChunk - 1) / kRowChunk); }
};

// The rows of a tile, lane by lane.
template <class S, int M, int words = Packed<S>::kWords>
struct Inputs {
  const S* rows;
  int64_t stride;
  Inputs(const S* rows, int64_t stride, int64_t) : rows(rows), stride(stride) {}
  auto lane(int m, int64_t k) const { return splat_lane(rows + m * stride + k * Packed<S>::per_lane); }
};

// Lanes that have to be unpacked: once for all columns of the panel.
template <class S, int M>
struct Inputs<S, M, 2> {
  alignas(kLine) float low[M][Tile<S>::kDepth], high[M][Tile<S>::kDepth];
  Inputs(const S* rows, int64_t stride, int64_t lanes) {
    for (int m = 0; m < M; m++)
      for (int64_t k = 0; k < lanes; k += kLanes) {
        const auto both = load_lanes<S>(rows + m * stride + k * Packed<S>::per_lane, (lanes - k) * 4);
        std::memcpy(low[m] + k, &both.low, sizeof both.low);
        std::memcpy(high[m] + k, &both.high, sizeof both.high);
      }
  }
  typename Packed<S>::V lane(int m, int64_t k) const { return {splat(low[m][k]), splat(high[m][k])}; }
};

// Adds to the sums of earlier lanes, null where there are none. `Ahead` lines of memory from `next` on are asked for in every
// step: weights that this thread will need soon.
template <class S, int M, int Ahead>
inline void tile(const Inputs<S, M>& in, const int32_t* panel, int64_t lanes, uintptr_t next, const F* earlier,
                 F (&sums)[M][Tile<S>::kVectors]) {
  typedef Packed<S> P;
  constexpr int vectors = Tile<S>::kVectors;
  F total[M][vectors];  // each for itself: what begins or ends as a whole array begins and ends in memory
#pragma GCC unroll 8
  for (int m = 0; m < M; m++)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) total[m][v] = earlier ? earlier[m * vectors + v] : F{};
  for (int64_t k = 0; k < lanes; k++, panel += Tile<S>::kPanel) {
    for (int line = 0; line < Ahead; line++, next += kLine) fetch((const void*)next, 0);
    typename P::V w[vectors];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) w[v] = load_lanes<S>(panel + v * kLanes);
#pragma GCC unroll 8
    for (int m = 0; m < M; m++) {
      const typename P::V x = in.lane(m, k);
#pragma GCC unroll 4
      for (int v = 0; v < vectors; v++) total[m][v] = P::dp(total[m][v], x, w[v]);
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; m++)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) sums[m][v] = total[m][v];
}

// One row's sums over a panel's columns, where they go.
template <class S>
inline void finish_row(const Product<S>& job, int64_t p, int64_t row, const F (&total)[Tile<S>::kVectors]) {
  const Linear<S>& w = *job.weight;
  const int64_t begin = p * Tile<S>::kPanel;
  if (w.bias.empty() && begin + Tile<S>::kPanel <= w.out) {
    S* to = job.out + row * job.out_stride + begin;
#pragma GCC unroll 4
    for (int v = 0; v < Tile<S>::kVectors; v++) narrow(to + v * kLanes, total[v]);
    return;
  }
  for (int v = 0; v < Tile<S>::kVectors; v++) {
    const int64_t column = begin + v * kLanes;
    const int left = (int)std::min<int64_t>(kLanes, w.out - column);
    if (left <= 0) break;
    const F offset = w.bias.empty() ? F{} : load<F>(w.bias.data() + column);
    narrow(job.out + row * job.out_stride + column, total[v] + offset, left);
  }
}

// M rows of one panel over one part of the depth; sums of earlier parts wait in `waiting`.
template <class S, int M, int Ahead>
void tile_rows(const Product<S>& job, int64_t p, int64_t row, int64_t k0, int64_t k1, uintptr_t next, F* waiting) {
  constexpr int vectors = Tile<S>::kVectors, width = Tile<S>::kPanel;
  const Linear<S>& w = *job.weight;
  F total[M][vectors];
  const Inputs<S, M> in(job.in + row * job.in_stride + k0 * Packed<S>::per_lane, job.in_stride, k1 - k0);
  tile<S, M, Ahead>(in, w.panel(p) + k0 * width, k1 - k0, next, k0 > 0 ? waiting : nullptr, total);
  if (k1 < w.lanes) {
    std::memcpy(waiting, total, sizeof total);
    return;
  }
  for (int m = 0; m < M; m++) finish_row(job, p, row + m, total[m]);
}

// The tile for that many rows, at most M.
template <class S, int Ahead, int M = Tile<S>::kRows>
void tile_of(int64_t rows, const Product<S>& job, int64_t p, int64_t row, int64_t k0, int64_t k1, uintptr_t next,
             F* waiting) {
  if constexpr (M > 1)
    if (rows < M) return tile_of<S, Ahead, M - 1>(rows, job, p, row, k0, k1, next, waiting);
  tile_rows<S, M, Ahead>(job, p, row, k0, k1, next, waiting);
}

// One panel for rows [row, stop). Its first tiles ask for the panel after the next (the team takes turns), `Ahead` lines
// a step each, until it has been asked for once.
template <class S, int Ahead>
void panel_rows(const Product<S>& job, int64_t p, int64_t row, int64_t stop) {
  constexpr int rows = Tile<S>::kRows, askers = Ahead ? (Tile<S>::kLines + Ahead - 1) / Ahead : 0;
  alignas(64) F waiting[(kRowChunk + rows - 1) / rows][rows * Tile<S>::kVectors];
  const int64_t lanes = job.weight->lanes;
  uintptr_t next = (uintptr_t)job.weight->panel(std::min(p + 2, job.weight->panels - 1));
  for (int64_t k0 = 0; k0 < lanes; k0 += Tile<S>::kDepth) {
    const int64_t k1 = std::min(lanes, k0 + Tile<S>::kDepth);
    int64_t r = row;
    F(*kept)[rows * Tile<S>::kVectors] = waiting;
    for (int asker = 0; asker < askers && r < stop; asker++, r += rows, kept++, next += (k1 - k0) * Ahead * kLine)
      tile_of<S, Ahead>(stop - r, job, p, r, k0, k1, next, *kept);
    for (; r < stop; r += rows, kept++) tile_of<S, 0>(stop - r, job, p, r, k0, k1, next, *kept);
  }
}

#ifdef GRAFT_AMX
// The first rows of a panel ask for the panel after the next, as above; with matrices even many rows wait for memory. Depth
// that fills no matrix is added by vectors. The last rows may be computed twice: a matrix has as many as the others.
inline void panel_matrices(const Product<bf16>& job, int64_t p, int64_t row, int64_t stop) {
  constexpr int width = Tile<bf16>::kPanel, ahead = kMatrixLanes * Tile<bf16>::kLines;
  static_assert(Tile<bf16>::kVectors == 3);
  const Linear<bf16>& w = *job.weight;
  const int rows = (int)std::min<int64_t>(kMatrixRows, stop - row);
  const int64_t steps = w.lanes / kMatrixLanes, last = stop - rows;
  const int32_t* panel = w.panel(p);
  const uintptr_t next = (uintptr_t)w.panel(std::min(p + 2, w.panels - 1));
  alignas(kLine) F sums[2 * kMatrixRows][Tile<bf16>::kVectors];
  const Matrices matrices(rows);
  for (int64_t r = row; r < stop; r += 2 * kMatrixRows) {
    const int64_t first = std::min(r, last), second = std::min(r + kMatrixRows, last) - first;
    const bf16* in = job.in + first * job.in_stride;
    const auto multiply = second > 0 ? (r == row ? multiply_matrices<2, ahead> : multiply_matrices<2, 0>)
                                     : (r == row ? multiply_matrices<1, ahead> : multiply_matrices<1, 0>);
    multiply(in, job.in_stride, second * job.in_stride, panel, steps, next, (float*)sums);
    for (int64_t m = 0; m < (second > 0 ? 2 : 1) * rows; m++) {
      const int64_t at = m < rows ? m : second + m - rows;
      F(&total)[Tile<bf16>::kVectors] = sums[m < rows ? m : kMatrixRows + m - rows];
      for (int64_t k = steps * kMatrixLanes; k < w.lanes; k++)
        for (int v = 0; v < Tile<bf16>::kVectors; v++)
          total[v] = Packed<bf16>::dp(total[v], splat_lane(in + at * job.in_stride + k * 2), load<I>(panel + k * width + v * kLanes));
      finish_row(job, p, first + at, total);
    }
  }
}
#endif

// With many rows the wait for memory does not matter.
template <class S>
void panel_rows(const Product<S>& job, int64_t p, int64_t row, int64_t stop) {
#ifdef GRAFT_AMX
  if constexpr (std::is_same_v<S, bf16>)
    if (has_matrices()) return panel_matrices(job, p, row, stop);
#endif
  if (stop - row <= Tile<S>::kRows) return panel_rows<S, Tile<S>::kLines>(job, p, row, stop);
  if (stop - row <= kFewRows) return panel_rows<S, 1>(job, p, row, stop);
  panel_rows<S, 0>(job, p, row, stop);
}

// All products of a phase over `rows` rows, shared out among the team.
template <class S>
void multiply(Team::Member& team, const Product<S>* jobs, int count, int64_t rows) {
  int64_t total = 0;
  for (int j = 0; j < count; j++) total += jobs[j].items(rows);
  if (rows <= kFewRows)  // the inputs lie in the caches of the threads that made them: ask for all of them at once
    for (int64_t r = 0; r < rows; r++) ask(jobs->in + r * jobs->in_stride, jobs->weight->in * sizeof(S));
  team.share(total, [&](int64_t rest) {
    const Product<S>* job = jobs;
    while (rest >= job->items(rows)) rest -= job++->items(rows);
    const int64_t row = rest / job->weight->panels * kRowChunk;
    panel_rows(*job, rest % job->weight->panels, row, std::min(rows, row + kRowChunk));
  });
}

}  // namespace graft
