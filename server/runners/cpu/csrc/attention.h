// Attention of a few consecutive query rows over their sequence's pages: softmax(q k^T) v, straight from the block table.
// A page is read once for all rows of a tile, but every row is added up as it would be alone: decoding and prefill have
// the same results, however a prompt was chunked.
#pragma once
#include "attention_products.h"

namespace graft {

// The cache slots that one row looks at: [low, high).
struct Sight {
  int64_t low, high;
  Sight(int64_t slot, int64_t window) : low(window > 0 ? std::max<int64_t>(0, slot + 1 - window) : 0), high(slot + 1) {}
  int64_t first_page() const { return low / kPage; }
  int64_t pages() const { return (high + kPage - 1) / kPage - first_page(); }
};

constexpr int64_t kTogether = 16;        // most rows of a tile
constexpr int64_t kStretch = 8 * kPage;  // slots whose values stay in the nearest cache
constexpr int64_t kNear = 64 << 10;      // scores of a piece of work: they stay in a near cache
constexpr int64_t kPiecesEach = 4;       // of a thread: so many at least, that none waits long for another

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

// Attention of one piece. Its memory: a page's keys turned, then [kv heads, rows, group] of scores [width], at the front of whose
// room their weights come to lie, of sums [head_dim], and of totals.
template <class S>
class Attending {
 public:
  // `query` points to the first head of row 0; `slot` is the first row's.
  Attending(const Piece& piece, const S* query, int64_t query_stride, const Pages<S>& keys, const Pages<S>& values,
            const int32_t* table, int64_t slot, const AttentionShape& shape, Scratch<S>& scratch)
      : piece_(piece), keys_(keys.from_head(piece.kv_head)), values_(values.from_head(piece.kv_head)), table_(table),
        slot_(slot), shape_(shape), query_stride_(query_stride), group_(shape.heads / shape.kv_heads), dim_(shape.head_dim),
        first_(sight(0).first_page()), origin_(first_ * kPage), width_(width(slot + piece.count) - origin_),
        query_(query + piece.row * query_stride + piece.kv_head * group_ * dim_) {
    const int64_t queries = piece.count * piece.kv_heads * group_;
    turned_ = scratch.wide.data(), scores_ = turned_ + turned_size<S>(dim_);
    sums_ = scores_ + queries * width_, totals_ = sums_ + queries * dim_;
    std::fill(sums_, totals_, 0.f);
  }

  // Numbers of its memory, `queries` of so many slots at most.
  static int64_t size(int64_t queries, int64_t slots, int64_t head_dim) {
    return turned_size<S>(head_dim) + queries * (width(slots) + head_dim + 1);
  }

  // `out` points to the first head of row 0.
  void run(S* out, int64_t out_stride) {
    score();
    weigh();
    mix_values();
    write(out + piece_.row * out_stride + piece_.kv_head * group_ * dim_, out_stride);
  }

 private:
  static int64_t width(int64_t slots) { return divide_up(slots, kPage) * kPage; }
  Sight sight(int64_t row) const { return {slot_ + row, shape_.window}; }
  // Where a row's query heads of a kv head are among all of the piece.
  int64_t place(int64_t kv_head, int64_t row) const { return (kv_head * piece_.count + row) * group_; }
  float* scores(int64_t at) const { return scores_ + at * width_; }
  S* weights(int64_t at) const { return (S*)scores(at); }
  const S* query(int64_t kv_head, int64_t row, int64_t g) const {
    return query_ + row * query_stride_ + (kv_head * group_ + g) * dim_;
  }

  // All of a page's kv heads of the piece, which lie side by side.
  void ask_page(const Pages<S>& pages, int64_t start) const {
    const S* from = pages.token(table_, start);
    for (int64_t t = 0; t < kPage; t++, from += pages.stride()) ask(from, piece_.kv_heads * dim_ * sizeof(S));
  }

  void score() {
    ask_page(keys_, origin_);
    for (int64_t start = origin_; start < origin_ + width_; start += kPage) {
      if (start + kPage < origin_ + width_) ask_page(keys_, start + kPage);
      ask_page(values_, start);
      for (int64_t h = 0; h < piece_.kv_heads; h++) piece_.count == 1 ? score_row(h, start) : score_rows(h, start);
    }
  }

  void score_row(int64_t kv_head, int64_t start) {
    const S* keys = keys_.from_head(kv_head).token(table_, start);
    const int64_t low = sight(0).low - start, high = sight(0).high - start;
    for (int64_t g = 0; g < group_; g++) {
      float* to = scores(place(kv_head, 0) + g) + start - origin_;
      for (int64_t t = 0; t < kPage; t += kLanes)
        narrow(to + t, scores_of(times_keys(query(kv_head, 0, g), keys + t * keys_.stride(), keys_.stride(), dim_), shape_,
                                 low - t, high - t));
    }
  }

  void score_rows(int64_t kv_head, int64_t start) {
    turn_keys(keys_.from_head(kv_head).token(table_, start), keys_.stride(), dim_, turned_);
    const AttentionShape shape = shape_;  // of its own, or what is stored could be this, for all that the compiler knows
    const int64_t dim = dim_, width = width_, group = group_;
    for (int64_t row = 0; row < piece_.count; row += kQueries) {
      const int64_t last = std::min<int64_t>(row + kQueries, piece_.count) - 1;
      if (start >= sight(last).high || start + kPage <= sight(row).low) continue;
      const S* queries[kQueries];  // of rows beyond the last: that one's once more
      float* to[kQueries];
      int64_t low[kQueries], high[kQueries];
      for (int q = 0; q < kQueries; q++) {
        const int64_t r = std::min(row + q, last);
        queries[q] = query(kv_head, r, 0), to[q] = scores(place(kv_head, r)) + start - origin_;
        low[q] = sight(r).low - start, high[q] = sight(r).high - start;
      }
      for (int64_t g = 0; g < group; g++) {
        F products[kQueries][kBlocks];
        times_turned<S>(queries, turned_, dim / Packed<S>::per_lane, products);
        for (int q = 0; q < kQueries; queries[q] += dim, to[q] += width, q++)
          for (int b = 0, t = 0; b < kBlocks; b++, t += kLanes)
            narrow(to[q] + t, scores_of(products[q][b], shape, low[q] - t, high[q] - t));
      }
    }
  }

  void weigh() {
    for (int64_t h = 0; h < piece_.kv_heads; h++)
      for (int64_t r = 0; r < piece_.count; r++)
        for (int64_t at = place(h, r); at < place(h, r) + group_; at++) {
          const int64_t skipped = (sight(r).first_page() - first_) * kPage;
          totals_[at] = softmax(scores(at) + skipped, sight(r).pages() * kPage, weights(at) + skipped);
        }
  }

  // Sums stay in registers for a stretch of slots, as long as all rows see all of it. It ends with a page, so that slots
  // which share a lane are never parted. One row reads a page from end to end (see Piece); a prompt's lie in a near cache.
  void mix_values() {
    const int64_t shared_end = sight(0).high / kPage * kPage;
    const int64_t stretch = piece_.count > 1 || piece_.kv_heads == 1 ? kStretch : kPage;
    for (int64_t start = origin_, stop; start < origin_ + width_; start = stop) {
      stop = start + (start < shared_end ? std::min(stretch, shared_end - start) : kPage);
      for (int64_t h = 0; h < piece_.kv_heads; h++) mix_stretch(h, start, stop);
    }
  }

  // Rows that see the same of these slots go together.
  void mix_stretch(int64_t kv_head, int64_t start, int64_t stop) {
    const auto seen = [&](int64_t row) {
      return std::pair(std::max(start, sight(row).low), std::min(stop, sight(row).high));
    };
    for (int64_t row = 0, next; row < piece_.count; row = next) {
      for (next = row + 1; next < piece_.count && seen(next) == seen(row);) next++;
      const auto [low, high] = seen(row);
      const int64_t at = place(kv_head, row), of_weights = width_ * (int64_t)(sizeof(float) / sizeof(S));
      if (low < high)
        mix<S>({weights(at), of_weights, origin_, values_.from_head(kv_head), table_, low, high, sums_ + at * dim_},
               (next - row) * group_);
    }
  }

  void write(S* out, int64_t out_stride) const {
    for (int64_t h = 0; h < piece_.kv_heads; h++)
      for (int64_t r = 0; r < piece_.count; r++)
        for (int64_t g = 0; g < group_; g++) {
          const int64_t at = place(h, r) + g;
          S* to = out + r * out_stride + (h * group_ + g) * dim_;
          for (int64_t d = 0; d < dim_; d += kLanes) {
            const int left = (int)std::min<int64_t>(kLanes, dim_ - d);
            narrow(to + d, widen(sums_ + at * dim_ + d, left) / totals_[at], left);
          }
        }
  }

  const Piece& piece_;
  const Pages<S> keys_, values_;
  const int32_t* table_;
  const int64_t slot_;
  const AttentionShape& shape_;
  const int64_t query_stride_, group_, dim_, first_, origin_, width_;
  const S* query_;
  float *turned_, *scores_, *sums_, *totals_;
};

// What a thread needs for any of these pieces, `group` query heads to a kv head.
template <class S>
ScratchSize attention_scratch(const std::vector<Piece>& pieces, const std::vector<int64_t>& slot, int64_t group,
                              int64_t head_dim) {
  ScratchSize size;
  for (const Piece& one : pieces)
    size.cover({.wide = Attending<S>::size(one.count * one.kv_heads * group, slot[one.row] + one.count, head_dim)});
  return size;
}

}  // namespace graft
