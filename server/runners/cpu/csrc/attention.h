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

// All of a page for kv heads that lie side by side.
template <class S>
inline void ask_page(const Pages<S>& pages, int64_t kv_head, int64_t kv_heads, const int32_t* table, int64_t slot) {
  const S* from = pages.token(table, slot) + kv_head * pages.head_dim;
  for (int64_t t = 0; t < kPage; t++, from += pages.kv_heads * pages.head_dim)
    ask(from, kv_heads * pages.head_dim * sizeof(S));
}

constexpr int64_t kTogether = 8;       // most rows of a tile
constexpr int64_t kHeads = 4;          // most query heads whose sums are in registers together
constexpr int64_t kNear = 64 << 10;    // scores of a piece of work: they stay in a near cache
constexpr int64_t kPiecesEach = 4;     // of a thread: so many at least, that none waits long for another

// Rows [row, row + count) of a step, one sequence's, in consecutive slots of its cache; and a piece of work on them: the
// query heads of kv heads [kv_head, kv_head + kv_heads). A page is read from end to end where those are all: that is what
// caches expect, and a third of it here and there takes twice as long.
struct Piece {
  int64_t row, count, kv_head = 0, kv_heads = 0;
};

// `table` and `slot` by row; rows of one table that follow each other in it go together.
inline std::vector<Piece> attention_pieces(const std::vector<const int32_t*>& table, const std::vector<int64_t>& slot,
                                           int64_t kv_heads, int64_t group, int threads) {
  std::vector<Piece> tiles, pieces;
  for (int64_t row = 0; row < (int64_t)slot.size(); row++) {
    const bool follows = row > 0 && table[row] == table[row - 1] && slot[row] == slot[row - 1] + 1;
    if (follows && tiles.back().count < kTogether)
      tiles.back().count++;
    else
      tiles.push_back({row, 1});
  }
  const bool many = (int64_t)tiles.size() >= kPiecesEach * threads;
  for (const Piece& tile : tiles) {
    const int64_t of_head = tile.count * group * (slot[tile.row] + tile.count);
    const int64_t most = many ? std::clamp<int64_t>(kNear / of_head, 1, kv_heads) : 1;
    for (int64_t head = 0; head < kv_heads; head += most)
      pieces.push_back({tile.row, tile.count, head, std::min(most, kv_heads - head)});
  }
  return pieces;
}

// What a thread needs for any of these pieces, `group` query heads to a kv head.
inline ScratchSize attention_scratch(const std::vector<Piece>& pieces, const std::vector<int64_t>& slot, int64_t group,
                                     int64_t head_dim) {
  ScratchSize size;
  for (const Piece& one : pieces)
    size.cover({.wide = one.count * one.kv_heads * group *
                        (divide_up(slot[one.row] + one.count, kPage) * kPage + head_dim + 1)});
  return size;
}

// sums += weights * values over the slots [low, high) for all query heads of one kv head.
template <class S>
void mix_group(const float* weights, int64_t weight_stride, int64_t origin, const Pages<S>& values, int64_t kv_head,
               const int32_t* table, int64_t low, int64_t high, float* sums, int64_t group) {
  const auto some = [&]<int G>(int64_t g) {
    mix<S, G>(weights + g * weight_stride, weight_stride, origin, values, kv_head, table, low, high, sums + g * values.head_dim);
  };
  int64_t g = 0;
  for (; g + kHeads <= group; g += kHeads) some.template operator()<kHeads>(g);
  switch (group - g) {
    case 3: some.template operator()<3>(g); break;
    case 2: some.template operator()<2>(g); break;
    case 1: some.template operator()<1>(g);
  }
}

// One piece. `query` and `out` point to the first head of row 0; `slot` is the first row's.
template <class S>
void attend(const Piece& piece, const S* query, int64_t query_stride, S* out, int64_t out_stride, const Pages<S>& keys,
            const Pages<S>& values, const int32_t* table, int64_t slot, const AttentionShape& shape, Scratch<S>& scratch) {
  const int64_t dim = shape.head_dim, stride = shape.kv_heads * dim, group = shape.heads / shape.kv_heads;
  const int64_t first = Sight(slot, shape.window).first_page(), origin = first * kPage, count = piece.count;
  const int64_t width = ((slot + count + kPage - 1) / kPage - first) * kPage, heads = piece.kv_heads * group;
  query += piece.row * query_stride + piece.kv_head * group * dim, out += piece.row * out_stride + piece.kv_head * group * dim;
  float* scores = scratch.wide.data();  // [rows, heads, width], then [rows, heads, dim], then [rows, heads]
  float *sums = scores + count * heads * width, *totals = sums + count * heads * dim;
  std::fill(sums, totals, 0.f);
  ask_page(keys, piece.kv_head, piece.kv_heads, table, origin);
  for (int64_t start = origin; start < origin + width; start += kPage) {
    if (start + kPage < origin + width) ask_page(keys, piece.kv_head, piece.kv_heads, table, start + kPage);
    ask_page(values, piece.kv_head, piece.kv_heads, table, start);
    const S* page = keys.token(table, start) + piece.kv_head * dim;
    for (int64_t r = 0; r < count; r++) {
      const Sight sight(slot + r, shape.window);
      if (start + kPage <= sight.low || start >= sight.high) continue;
      for (int64_t h = 0; h < heads; h++)
        for (int64_t t = 0; t < kPage; t += kLanes) {
          const F score = token_scores(query + r * query_stride + h * dim, page + h / group * dim + t * stride, stride, shape,
                                       sight.low - start - t, sight.high - start - t);
          std::memcpy(scores + (r * heads + h) * width + start - origin + t, &score, sizeof score);
        }
    }
  }
  for (int64_t r = 0; r < count; r++) {
    const Sight sight(slot + r, shape.window);
    const int64_t skipped = (sight.first_page() - first) * kPage;
    for (int64_t h = 0; h < heads; h++)
      totals[r * heads + h] = softmax(scores + (r * heads + h) * width + skipped, sight.pages() * kPage);
  }
  const int64_t at_once = count == 1 && piece.kv_heads == 1 ? width : kPage;  // slots: sums stay in registers meanwhile
  for (int64_t start = origin; start < origin + width; start += at_once)
    for (int64_t r = 0; r < count; r++) {
      const Sight sight(slot + r, shape.window);
      const int64_t low = std::max(start, sight.low), high = std::min(start + at_once, sight.high);
      for (int64_t h = 0; h < heads; h += group)
        mix_group(scores + (r * heads + h) * width, width, origin, values, piece.kv_head + h / group, table, low, high,
                  sums + (r * heads + h) * dim, group);
    }
  for (int64_t r = 0; r < count; r++)
    for (int64_t h = 0; h < heads; h++)
      for (int64_t d = 0; d < dim; d += kLanes) {
        const int left = (int)std::min<int64_t>(kLanes, dim - d);
        narrow(out + r * out_stride + h * dim + d, widen(sums + (r * heads + h) * dim + d, left) / totals[r * heads + h], left);
      }
}

}  // namespace graft
