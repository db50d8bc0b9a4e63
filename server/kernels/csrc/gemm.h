// y = x W^T + bias with W packed once, for the few rows of decoding as well as for the many of prefill.
// Every row is added up in the same order whatever the other rows are, so a row's result never depends on them.
#pragma once
#include <ATen/ATen.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <vector>

#include "memory.h"
#include "simd.h"
#include "team.h"

namespace graft {

constexpr int kVectors = 3;                 // vectors of columns in a panel
constexpr int kPanel = kVectors * kLanes;   // columns whose weights lie together
constexpr int kTile = 8;                    // rows whose sums fill the registers: 8 x 3 vectors
constexpr int64_t kRowChunk = 128;          // rows of one piece of work; their inputs stay in the L2 cache
constexpr int64_t kDepth = 1024;            // lanes of depth at once: a panel's part stays in the L2 cache too

// Panels of [lanes of depth][48 columns]; columns and depth beyond the matrix are zero.
template <class S>
struct Linear {
  int64_t in = 0, out = 0, panels = 0, lanes = 0;
  std::shared_ptr<Memory> packed;  // int32 [panels, lanes, 48]
  std::vector<float> bias;   // empty: none

  Linear() = default;
  Linear(const at::Tensor& weight, const std::optional<at::Tensor>& offset);
  const int32_t* panel(int64_t index) const { return (const int32_t*)packed->data() + index * lanes * kPanel; }
};

template <class S>
Linear<S>::Linear(const at::Tensor& weight, const std::optional<at::Tensor>& offset) {
  constexpr int per = Packed<S>::per_lane;
  const at::Tensor rows = weight.contiguous();
  out = rows.size(0), in = rows.size(1);
  TORCH_CHECK(in % per == 0, "a bfloat16 linear needs an even number of inputs, not ", in);
  lanes = in / per, panels = (out + kPanel - 1) / kPanel;
  const int64_t bytes = panels * lanes * kPanel * (int64_t)sizeof(int32_t);
  packed = std::make_shared<Memory>(bytes);
  const int32_t* from = (const int32_t*)rows.data_ptr();
  int32_t* to = (int32_t*)packed->data();
  std::memset(to, 0, bytes);
  for (int64_t p = 0; p < panels; p++)
    for (int64_t k = 0; k < lanes; k++)
      for (int64_t c = 0; c < std::min<int64_t>(kPanel, out - p * kPanel); c++)
        to[(p * lanes + k) * kPanel + c] = from[(p * kPanel + c) * lanes + k];
  if (offset) {
    const at::Tensor wide = offset->to(at::kFloat).contiguous();
    bias.assign(wide.data_ptr<float>(), wide.data_ptr<float>() + out);
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

// `Ahead` lines of memory from `next` on are asked for in every step: weights that this thread will need soon.
template <class S, int M, int Ahead>
inline void tile(const S* in, int64_t stride, const int32_t* panel, int64_t lanes, const char* next,
                 F (&total)[M][kVectors]) {
  typedef Packed<S> P;
  typedef typename P::V V;
  for (int64_t k = 0; k < lanes; k++, panel += kPanel) {
    for (int line = 0; line < Ahead; line++, next += 64) __builtin_prefetch(next);
    const V w0 = load<V>(panel), w1 = load<V>(panel + kLanes), w2 = load<V>(panel + 2 * kLanes);
#pragma GCC unroll 8
    for (int m = 0; m < M; m++) {
      const V x = splat_lane(in + m * stride + k * P::per_lane);
      total[m][0] = P::dp(total[m][0], x, w0);
      total[m][1] = P::dp(total[m][1], x, w1);
      total[m][2] = P::dp(total[m][2], x, w2);
    }
  }
}

// M rows of one panel over one part of the depth; sums of earlier parts wait in `waiting`.
template <class S, int M, int Ahead>
void tile_rows(const Product<S>& job, int64_t p, int64_t row, int64_t k0, int64_t k1, const char* next, F* waiting) {
  const Linear<S>& w = *job.weight;
  F total[M][kVectors] = {};
  if (k0 > 0) std::memcpy(total, waiting, sizeof total);
  tile<S, M, Ahead>(job.in + row * job.in_stride + k0 * Packed<S>::per_lane, job.in_stride, w.panel(p) + k0 * kPanel,
                    k1 - k0, next, total);
  if (k1 < w.lanes) {
    std::memcpy(waiting, total, sizeof total);
    return;
  }
  for (int m = 0; m < M; m++)
    for (int v = 0; v < kVectors; v++) {
      const int64_t column = p * kPanel + v * kLanes;
      const int left = (int)std::min<int64_t>(kLanes, w.out - column);
      if (left <= 0) break;
      const F offset = w.bias.empty() ? F{} : load<F>(w.bias.data() + column);
      narrow(job.out + (row + m) * job.out_stride + column, total[m][v] + offset, left);
    }
}

// One panel for rows [row, stop), asking for the panel after the next while it is at it (the team takes turns).
template <class S, int Ahead>
void panel_rows(const Product<S>& job, int64_t p, int64_t row, int64_t stop) {
  alignas(64) F waiting[kRowChunk / kTile][kTile * kVectors];
  const int64_t lanes = job.weight->lanes;
  const char* next = (const char*)job.weight->panel(std::min(p + 2, job.weight->panels - 1));
  for (int64_t k0 = 0; k0 < lanes; k0 += kDepth) {
    const int64_t k1 = std::min(lanes, k0 + kDepth);
    F(*kept)[kTile * kVectors] = waiting;
    for (int64_t r = row; r < stop; r += kTile, kept++, next += (k1 - k0) * Ahead * 64)
      switch (std::min<int64_t>(kTile, stop - r)) {
        case 8: tile_rows<S, 8, Ahead>(job, p, r, k0, k1, next, *kept); break;
        case 7: tile_rows<S, 7, Ahead>(job, p, r, k0, k1, next, *kept); break;
        case 6: tile_rows<S, 6, Ahead>(job, p, r, k0, k1, next, *kept); break;
        case 5: tile_rows<S, 5, Ahead>(job, p, r, k0, k1, next, *kept); break;
        case 4: tile_rows<S, 4, Ahead>(job, p, r, k0, k1, next, *kept); break;
        case 3: tile_rows<S, 3, Ahead>(job, p, r, k0, k1, next, *kept); break;
        case 2: tile_rows<S, 2, Ahead>(job, p, r, k0, k1, next, *kept); break;
        default: tile_rows<S, 1, Ahead>(job, p, r, k0, k1, next, *kept);
      }
  }
}

// A panel's lines are asked for once, spread over its row tiles; with many rows the wait does not matter.
template <class S>
void panel_rows(const Product<S>& job, int64_t p, int64_t row, int64_t stop) {
  if (stop - row <= kTile) return panel_rows<S, kVectors>(job, p, row, stop);
  if (stop - row <= 4 * kTile) return panel_rows<S, 1>(job, p, row, stop);
  panel_rows<S, 0>(job, p, row, stop);
}

// All products of a phase over `rows` rows, shared out among the team.
template <class S>
void multiply(Team& team, const Product<S>* jobs, int count, int64_t rows) {
  int64_t total = 0;
  for (int j = 0; j < count; j++) total += jobs[j].items(rows);
  if (rows <= 4 * kTile)  // the inputs lie in the caches of the threads that made them: ask for all of them at once
    for (int64_t r = 0; r < rows; r++) ask(jobs->in + r * jobs->in_stride, jobs->weight->in * sizeof(S));
  team.share(total, [&](int64_t rest) {
    const Product<S>* job = jobs;
    while (rest >= job->items(rows)) rest -= job++->items(rows);
    const int64_t row = rest / job->weight->panels * kRowChunk;
    panel_rows(*job, rest % job->weight->panels, row, std::min(rows, row + kRowChunk));
  });
}

}  // namespace graft
