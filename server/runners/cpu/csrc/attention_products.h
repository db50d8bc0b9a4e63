// The arithmetic of attention on pages of the cache: scores of a page's keys, weights of scores, sums of a page's values.
// Several rows that share a page are multiplied with it together, each added up as it would be alone.
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
  int64_t stride() const { return kv_heads * head_dim; }  // from token to token
  S* token(const int32_t* table, int64_t slot) const {
    return data + (table[slot / kPage] * kPage + slot % kPage) * stride();
  }
  // The same, whose first head is that one.
  Pages from_head(int64_t head) const { return {data + head * head_dim, kv_heads, head_dim}; }
};

struct AttentionShape {
  int64_t heads, kv_heads, head_dim;
  float scale;
  int64_t window;  // 0: none
  float softcap;   // 0: none
};

// What products of queries and keys become: scores. What lies outside [low, high) of these tokens is -inf.
inline F scores_of(F products, const AttentionShape& shape, int64_t low, int64_t high) {
  F score = products * shape.scale;
  if (shape.softcap > 0) score = vtanh(score / shape.softcap) * shape.softcap;
  if (low > 0 || high < kLanes) {
    const I index = count_up();
    score = choose((index >= (int32_t)low) & (index < (int32_t)high), score, splat(-INFINITY));
  }
  return score;
}

// A query times the keys of kLanes tokens: products by lanes of depth, whose sums are added up neighbour by neighbour.
template <class S>
inline F times_keys(const S* query, const S* keys, int64_t stride, int64_t dim) {
  typedef Packed<S> P;
  F total[kLanes] = {};
  for (int64_t d = 0; d < dim; d += kLanes * P::per_lane) {
    const int64_t bytes = (dim - d) * (int64_t)sizeof(S);
    const typename P::V q = load_lanes<S>(query + d, bytes);
#pragma GCC unroll 16
    for (int t = 0; t < kLanes; t++) total[t] = P::dp(total[t], q, load_lanes<S>(keys + t * stride + d, bytes));
  }
  return sums(total);
}

constexpr int kBlocks = kPage / kLanes;                  // vectors of a page's tokens
constexpr int kQueries = std::max<int>(1, 4 / kBlocks);  // rows multiplied together: their sums stay in registers

// Numbers of a page's keys for one kv head as `turn_keys` leaves them.
template <class S>
inline int64_t turned_size(int64_t head_dim) {
  return kPage * divide_up(head_dim, kLanes * Packed<S>::per_lane) * kLanes * Packed<S>::kWords;
}

// A page's keys, so that queries of several rows need no sums across a vector: to [lanes of depth, token], unpacked.
template <class S>
inline void turn_keys(const S* keys, int64_t stride, int64_t dim, float* to) {
  constexpr int64_t words = Packed<S>::kWords * kLanes;
  for (int64_t d = 0; d < dim; d += kLanes * Packed<S>::per_lane, to += kPage * words)
    for (int block = 0; block < kBlocks; block++) {
      F lanes[kLanes];
      for (int t = 0; t < kLanes; t++)
        lanes[t] = load_part<F>(keys + (block * kLanes + t) * stride + d, (dim - d) * (int64_t)sizeof(S));
      transpose(lanes);
      for (int k = 0; k < kLanes; k++) {
        const typename Packed<S>::V unpacked = Packed<S>::unpack((I)lanes[k]);
        std::memcpy(to + (k * kBlocks + block) * words, &unpacked, sizeof unpacked);
      }
    }
}

// Queries of kQueries rows times a page's turned keys, each added up in the order of `times_keys`: here of `count` lanes from
// `first` on.
template <class S, int first = 0, int count = kLanes>
inline void times_turned(const S* const (&query)[kQueries], const float* keys, int64_t lanes,
                         F (&total)[kQueries][kBlocks]) {
  if constexpr (count == 1) {
    typedef Packed<S> P;
#pragma GCC unroll 4
    for (int q = 0; q < kQueries; q++)
#pragma GCC unroll 4
      for (int b = 0; b < kBlocks; b++) total[q][b] = F{};
    for (int64_t lane = first; lane < lanes; lane += kLanes)
#pragma GCC unroll 4
      for (int q = 0; q < kQueries; q++) {
        const typename P::V x = splat_lane(query[q] + lane * P::per_lane);
#pragma GCC unroll 4
        for (int b = 0; b < kBlocks; b++)
          total[q][b] = P::dp(total[q][b], x, load<typename P::V>(keys + (lane * kBlocks + b) * P::kWords * kLanes));
      }
  } else {
    F rest[kQueries][kBlocks];
    times_turned<S, first, count / 2>(query, keys, lanes, total);
    times_turned<S, first + count / 2, count / 2>(query, keys, lanes, rest);
#pragma GCC unroll 4
    for (int q = 0; q < kQueries; q++)
#pragma GCC unroll 4
      for (int b = 0; b < kBlocks; b++) total[q][b] += rest[q][b];
  }
}

// Weights of one head from its scores, rounded to S as a product's input; returns their sum. `to` may begin where the
// scores do, or before: it is never ahead of what is still to be read.
template <class S>
inline float softmax(const float* scores, int64_t count, S* to) {
  F most = splat(-INFINITY), total = {};
  for (int64_t i = 0; i < count; i += kLanes) most = vmax(most, load<F>(scores + i));
  const F top = splat(largest(most));
  for (int64_t i = 0; i < count; i += kLanes) {
    const F weight = vexp(load<F>(scores + i) - top);
    narrow(to + i, weight);
    total += widen(to + i);  // so that what is added up is an average
  }
  return sum(total);
}

// What weights do to the values of one kv head: sums[g] += weights[g] * values over the slots [low, high), for query heads g.
template <class S>
struct Mixing {
  const S* weights;  // [query heads, stride], from slot `origin` on
  int64_t stride, origin;
  Pages<S> values;  // their first head is the one that is mixed
  const int32_t* table;
  int64_t low, high;
  float* sums;  // [query heads, head_dim]
};

// G query heads from `first` on, columns from `d` on, as many as sums are in registers; `whole`: those are all there. Slots
// that share a lane are multiplied together, one out of sight as zeros.
template <class S, int G, bool whole>
void mix_columns(const Mixing<S>& m, int64_t first, int64_t d) {
  constexpr int vectors = kColumnVectors, per = Packed<S>::per_lane;
  alignas(kLine) static constexpr S zeros[kColumns] = {};
  const int64_t dim = m.values.head_dim, stride = m.values.stride(), low = m.low, high = m.high;
  const S* weights = m.weights + first * m.stride - m.origin;
  float* sums = m.sums + first * dim + d;
  const auto left = [&](int v) { return whole ? kLanes : (int)std::clamp<int64_t>(dim - d - v * kLanes, 0, kLanes); };
  F total[G][vectors];
#pragma GCC unroll 8
  for (int g = 0; g < G; g++)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) total[g][v] = left(v) ? widen(sums + g * dim + v * kLanes, left(v)) : F{};
  for (int64_t slot = low / per * per; slot < high;) {
    const S* value = m.values.token(m.table, slot) + d;
    const int64_t stop = std::min(high, (slot / kPage + 1) * kPage);
    for (; slot < stop; slot += per, value += per * stride) {
      const S* rows[per];
      for (int i = 0; i < per; i++) rows[i] = low <= slot + i && slot + i < high ? value + i * stride : zeros;
      typename Packed<S>::V x[vectors];
      side_by_side(rows, whole ? kColumns : dim - d, x);
#pragma GCC unroll 8
      for (int g = 0; g < G; g++) {
        const typename Packed<S>::V weight = splat_lane(weights + g * m.stride + slot);
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) total[g][v] = Packed<S>::dp(total[g][v], weight, x[v]);
      }
    }
  }
#pragma GCC unroll 8
  for (int g = 0; g < G; g++)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++)
      if (left(v)) narrow(sums + g * dim + v * kLanes, total[g][v], left(v));
}

// Query heads from `first` to `count`: as many at once as have their sums in registers.
template <class S, int most = Packed<S>::kWords == 1 ? 6 : 4>
void mix(const Mixing<S>& mixing, int64_t count, int64_t first = 0) {
  for (; first + most <= count; first += most) {
    int64_t d = 0;
    for (; d + kColumns <= mixing.values.head_dim; d += kColumns) mix_columns<S, most, true>(mixing, first, d);
    if (d < mixing.values.head_dim) mix_columns<S, most, false>(mixing, first, d);
  }
  if constexpr (most > 1)
    if (first < count) mix<S, most - 1>(mixing, count, first);
}

}  // namespace graft
