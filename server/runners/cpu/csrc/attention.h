// Attention of a few consecutive query rows over their sequence's pages: softmax(q k^T) v, straight from the block table.
// A page is read once for all rows of a tile, but every row is added up as it would be alone: decoding and prefill have
// the same results, however a prompt was chunked.
#pragma once
#include "rows.h"

namespace graft {

constexpr int64_t kPage = GRAFT_BLOCK_ROWS;  // tokens a block of the cache holds: build.py says how many
static_assert(kPage % kLanes == 0, "a block's tokens must fill whole vectors");

// One layer's keys or values: [blocks, kPage, kv_heads, head_dim].
template <class S>
struct Pages {
  S* data;
  int64_t kv_heads, head_dim;
  S* token(const int32_t* table, int64_t slot) const {
    return data + (table[slot / kPage] * kPage + slot % kPage) * kv_heads * head_dim;
  }
};

struct AttentionShape {
  int64_t heads, kv_heads, head_dim;
  float scale;
  int64_t window;  // 0: none
  float softcap;   // 0: none
};

// Scores of one query head for kLanes tokens of a page; what lies outside [low, high) is -inf.
template <class S>
inline F token_scores(const S* query, const S* keys, int64_t stride, const AttentionShape& shape, int64_t low,
                      int64_t high) {
  typedef Packed<S> P;
  F total[kLanes] = {};
  for (int64_t d = 0; d < shape.head_dim; d += kLanes * P::per_lane) {
    const int64_t bytes = (shape.head_dim - d) * (int64_t)sizeof(S);
    const typename P::V q = load_lanes<S>(query + d, bytes);
#pragma GCC unroll 16
    for (int t = 0; t < kLanes; t++) total[t] = P::dp(total[t], q, load_lanes<S>(keys + t * stride + d, bytes));
  }
  F score = sums(total) * shape.scale;
  if (shape.softcap > 0) score = vtanh(score / shape.softcap) * shape.softcap;
  if (low > 0 || high < kLanes) {
    const I index = count_up();
    score = choose((index >= (int32_t)low) & (index < (int32_t)high), score, splat(-INFINITY));
  }
  return score;
}

// Weights of one head from its scores, in place; returns their sum.
inline float softmax(float* scores, int64_t count) {
  F most = splat(-INFINITY), total = {};
  for (int64_t i = 0; i < count; i += kLanes) most = vmax(most, load<F>(scores + i));
  const F top = splat(largest(most));
  for (int64_t i = 0; i < count; i += kLanes) {
    const F weight = vexp(load<F>(scores + i) - top);
    std::memcpy(scores + i, &weight, sizeof weight);
    total += weight;
  }
  return sum(total);
}

// The cache slots that one row looks at: [low, high).
struct Sight {
  int64_t low, high;
  Sight(int64_t slot, int64_t window) : low(window > 0 ? std::max<int64_t>(0, slot + 1 - window) : 0), high(slot + 1) {}
  int64_t first_page() const { return low / kPage; }
  int64_t pages() const { return (high + kPage - 1) / kPage - first_page(); }
};

// sums[g] += weights[g] * values over the slots [low, high), for G heads that share their values.
template <class S, int G>
void mix(const float* weights, int64_t weight_stride, int64_t origin, const Pages<S>& values, int64_t kv_head,
         const int32_t* table, int64_t low, int64_t high, float* sums) {
  constexpr int vectors = kColumnVectors;
  const int64_t dim = values.head_dim;
  for (int64_t d = 0; d < dim; d += vectors * kLanes) {
    int left[vectors];
    for (int v = 0; v < vectors; v++) left[v] = (int)std::max<int64_t>(0, std::min<int64_t>(kLanes, dim - d - v * kLanes));
    F total[G][vectors];
    for (int g = 0; g < G; g++)
      for (int v = 0; v < vectors; v++) total[g][v] = left[v] ? widen(sums + g * dim + d + v * kLanes, left[v]) : F{};
    for (int64_t slot = low; slot < high;) {
      const S* value = values.token(table, slot) + kv_head * dim + d;
      const int64_t stop = std::min(high, (slot / kPage + 1) * kPage);
      for (; slot < stop; slot++, value += values.kv_heads * dim) {
        F x[vectors];
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) x[v] = left[v] ? widen(value + v * kLanes, left[v]) : F{};
#pragma GCC unroll 4
        for (int g = 0; g < G; g++) {
          const F weight = splat(weights[g * weight_stride + slot - origin]);
#pragma GCC unroll 4
          for (int v = 0; v < vectors; v++) total[g][v] += weight * x[v];
        }
      }
    }
    for (int g = 0; g < G; g++)
      for (int v = 0; v < vectors; v++)
        if (left[v]) narrow(sums + g * dim + d + v * kLanes, total[g][v], left[v]);
  }
}

template <class S>
inline void ask_page(const Pages<S>& pages, int64_t kv_head, const int32_t* table, int64_t slot) {
  const S* from = pages.token(table, slot) + kv_head * pages.head_dim;
  for (int64_t t = 0; t < kPage; t++, from += pages.kv_heads * pages.head_dim) ask(from, pages.head_dim * sizeof(S));
}

constexpr int64_t kTogether = 8;  // most rows of a tile
constexpr int64_t kHeads = 4;     // most query heads that are handled together

// Rows [row, row + count) of a step, one sequence's, in consecutive slots of its cache.
struct Together {
  int64_t row, count;
};

// `table` and `slot` by row; rows of one table that follow each other in it go together.
inline std::vector<Together> together(const std::vector<const int32_t*>& table, const std::vector<int64_t>& slot) {
  std::vector<Together> tiles;
  for (int64_t row = 0; row < (int64_t)slot.size(); row++) {
    const bool follows = row > 0 && table[row] == table[row - 1] && slot[row] == slot[row - 1] + 1;
    if (follows && tiles.back().count < kTogether)
      tiles.back().count++;
    else
      tiles.push_back({row, 1});
  }
  return tiles;
}

// What a thread needs for any of these tiles, `group` query heads to a kv head.
inline ScratchSize attention_scratch(const std::vector<Together>& tiles, const std::vector<int64_t>& slot, int64_t group,
                                     int64_t head_dim) {
  ScratchSize size;
  for (const auto& [row, count] : tiles)
    size.cover({.wide = count * std::min(kHeads, group) * (divide_up(slot[row] + count, kPage) * kPage + head_dim)});
  return size;
}

// G query heads of `count` rows, the first in cache slot `slot`; query and out point to its first head of the G.
template <class S, int G>
void attend_heads(const S* query, int64_t query_stride, S* out, int64_t out_stride, const Pages<S>& keys,
                  const Pages<S>& values, int64_t kv_head, const int32_t* table, int64_t slot, int64_t count,
                  const AttentionShape& shape, Scratch<S>& scratch) {
  const int64_t dim = shape.head_dim, stride = shape.kv_heads * dim, first = Sight(slot, shape.window).first_page();
  const int64_t pages = (slot + count + kPage - 1) / kPage - first, width = pages * kPage, origin = first * kPage;
  float* scores = scratch.wide.data();  // [rows, G, width], then [rows, G, dim]
  float* sums = scores + count * G * width;
  std::fill(sums, sums + count * G * dim, 0.f);
  ask_page(keys, kv_head, table, origin);
  for (int64_t start = origin; start < origin + width; start += kPage) {
    if (start + kPage < origin + width) ask_page(keys, kv_head, table, start + kPage);
    ask_page(values, kv_head, table, start);
    const S* page = keys.token(table, start) + kv_head * dim;
    for (int64_t r = 0; r < count; r++) {
      const Sight sight(slot + r, shape.window);
      if (start + kPage <= sight.low || start >= sight.high) continue;
      for (int g = 0; g < G; g++)
        for (int64_t t = 0; t < kPage; t += kLanes) {
          const F score = token_scores(query + r * query_stride + g * dim, page + t * stride, stride, shape,
                                       sight.low - start - t, sight.high - start - t);
          std::memcpy(scores + (r * G + g) * width + start - origin + t, &score, sizeof score);
        }
    }
  }
  float totals[kTogether * G];
  for (int64_t r = 0; r < count; r++) {
    const Sight sight(slot + r, shape.window);
    const int64_t skipped = (sight.first_page() - first) * kPage;
    for (int g = 0; g < G; g++)
      totals[r * G + g] = softmax(scores + (r * G + g) * width + skipped, sight.pages() * kPage);
  }
  const int64_t at_once = count == 1 ? width : kPage;  // slots: alone, sums stay in registers from end to end
  for (int64_t start = origin; start < origin + width; start += at_once)
    for (int64_t r = 0; r < count; r++) {
      const Sight sight(slot + r, shape.window);
      mix<S, G>(scores + r * G * width, width, origin, values, kv_head, table, std::max(start, sight.low),
                std::min(start + at_once, sight.high), sums + r * G * dim);
    }
  for (int64_t r = 0; r < count; r++)
    for (int g = 0; g < G; g++)
      for (int64_t d = 0; d < dim; d += kLanes) {
        const int left = (int)std::min<int64_t>(kLanes, dim - d);
        narrow(out + r * out_stride + g * dim + d, widen(sums + (r * G + g) * dim + d, left) / totals[r * G + g], left);
      }
}

// All query heads of one kv head for a tile's rows; query and out point to the first row's first head of the group.
template <class S>
void attend(const S* query, int64_t query_stride, S* out, int64_t out_stride, const Pages<S>& keys,
            const Pages<S>& values, int64_t kv_head, const int32_t* table, int64_t slot, int64_t count,
            const AttentionShape& shape, Scratch<S>& scratch) {
  const int64_t group = shape.heads / shape.kv_heads;
  const auto some = [&]<int G>(int64_t g) {
    attend_heads<S, G>(query + g * shape.head_dim, query_stride, out + g * shape.head_dim, out_stride, keys, values,
                       kv_head, table, slot, count, shape, scratch);
  };
  int64_t g = 0;
  for (; g + kHeads <= group; g += kHeads) some.template operator()<kHeads>(g);
  switch (group - g) {
    case 3: some.template operator()<3>(g); break;
    case 2: some.template operator()<2>(g); break;
    case 1: some.template operator()<1>(g);
  }
}

}  // namespace graft
