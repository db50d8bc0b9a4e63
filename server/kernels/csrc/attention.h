// Attention of one query row over its sequence's pages: softmax(q k^T) v, straight from the block table.
// Decoding and prefill take the same path, so a row's result does not depend on how its prompt was chunked.
#pragma once
#include "rows.h"

namespace graft {

constexpr int64_t kPage = 16;  // tokens a block of the cache holds

// One layer's keys or values: [blocks, 16, kv_heads, head_dim].
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

// out[g] = sum of weights[g] * values for G heads that share their values.
template <class S, int G>
void mix(const float* weights, int64_t weight_stride, const float* totals, const Pages<S>& values, int64_t kv_head,
         const int32_t* table, int64_t low, int64_t high, S* out) {
  constexpr int vectors = kColumnVectors;
  const int64_t dim = values.head_dim, origin = low / kPage * kPage;
  for (int64_t d = 0; d < dim; d += vectors * kLanes) {
    int left[vectors];
    for (int v = 0; v < vectors; v++) left[v] = (int)std::max<int64_t>(0, std::min<int64_t>(kLanes, dim - d - v * kLanes));
    F total[G][vectors] = {};
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
        if (left[v]) narrow(out + g * dim + d + v * kLanes, total[g][v] / totals[g], left[v]);
  }
}

template <class S>
inline void ask_page(const Pages<S>& pages, int64_t kv_head, const int32_t* table, int64_t slot) {
  const S* from = pages.token(table, slot) + kv_head * pages.head_dim;
  for (int64_t t = 0; t < kPage; t++, from += pages.kv_heads * pages.head_dim) ask(from, pages.head_dim * sizeof(S));
}

// G query heads (query, out: [G, head_dim]) of the token in cache slot `slot` over slots 0..slot.
template <class S, int G>
void attend_heads(const S* query, S* out, const Pages<S>& keys, const Pages<S>& values, int64_t kv_head,
                  const int32_t* table, int64_t slot, const AttentionShape& shape, Scratch<S>& scratch) {
  const int64_t high = slot + 1, low = shape.window > 0 ? std::max<int64_t>(0, high - shape.window) : 0;
  const int64_t first = low / kPage, pages = (high + kPage - 1) / kPage - first, row = pages * kPage;
  float* scores = Scratch<S>::room(scratch.wide, G * row);
  float totals[G];
  ask_page(keys, kv_head, table, first * kPage);
  for (int64_t p = 0; p < pages; p++) {
    const int64_t start = (first + p) * kPage;
    if (p + 1 < pages) ask_page(keys, kv_head, table, start + kPage);
    ask_page(values, kv_head, table, start);
    const S* page = keys.token(table, start) + kv_head * shape.head_dim;
    const int64_t stride = shape.kv_heads * shape.head_dim;
    for (int g = 0; g < G; g++)
      for (int64_t t = 0; t < kPage; t += kLanes) {
        const F score = token_scores(query + g * shape.head_dim, page + t * stride, stride, shape, low - start - t,
                                     high - start - t);
        std::memcpy(scores + g * row + p * kPage + t, &score, sizeof score);
      }
  }
  for (int g = 0; g < G; g++) totals[g] = softmax(scores + g * row, row);
  mix<S, G>(scores, row, totals, values, kv_head, table, low, high, out);
}

// All query heads of one kv head for one row; query and out point to the row's first head of the group.
template <class S>
void attend(const S* query, S* out, const Pages<S>& keys, const Pages<S>& values, int64_t kv_head, const int32_t* table,
            int64_t slot, const AttentionShape& shape, Scratch<S>& scratch) {
  const int64_t group = shape.heads / shape.kv_heads;
  for (int64_t g = 0; g < group;) {
    const S* q = query + g * shape.head_dim;
    S* o = out + g * shape.head_dim;
    switch (std::min<int64_t>(4, group - g)) {
      case 4: attend_heads<S, 4>(q, o, keys, values, kv_head, table, slot, shape, scratch), g += 4; break;
      case 3: attend_heads<S, 3>(q, o, keys, values, kv_head, table, slot, shape, scratch), g += 3; break;
      case 2: attend_heads<S, 2>(q, o, keys, values, kv_head, table, slot, shape, scratch), g += 2; break;
      default: attend_heads<S, 1>(q, o, keys, values, kv_head, table, slot, shape, scratch), g += 1;
    }
  }
}

}  // namespace graft
