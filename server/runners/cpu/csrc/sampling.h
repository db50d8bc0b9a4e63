// From a row of logits to a token and to log-probabilities, in float, one row at a time: what a row yields depends on that
// row and on what is asked of it alone. What is owed is written down in server/sampling/params.py; torch_sampler.py does the
// same for all rows at once, and is the reference.
#pragma once
#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <utility>
#include <vector>

#include "memory.h"
#include "rows.h"
#include "simd.h"

namespace graft {

// A change to one logit (params.EDIT).
struct Edit {
  int32_t id;
  float before, penalty, after;
};

struct Draw {
  int64_t row;
  bool greedy;
  float temperature, min_p;
  int64_t top_k;  // 0: no limit
  double top_p;
  uint64_t seed;
  int64_t position;
  const Edit* edits;
  int64_t edit_count;
  const uint32_t* allowed;  // a bit a token; null: all are
  int64_t logprobs;         // how many alternatives to report; -1: no report
};

struct Score {
  int64_t row;
  std::vector<int64_t> ids;
  int64_t top;
};

typedef std::vector<std::pair<int64_t, float>> Answer;  // (token, its log-probability); none for a row that is not finite

inline uint64_t mixed(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

// params.uniform
inline double uniform(uint64_t seed, uint64_t position) {
  return (double)(mixed(mixed(seed) + (position + 1) * 0x9E3779B97F4A7C15u) >> 11) * 0x1p-53;
}

// The work of one thread, whose memory is used again from row to row.
class Sampler {
 public:
  template <class S>
  Answer draw(const S* logits, int64_t size, const Draw& asked) {
    has_row_ = has_whole_ = false;
    const int64_t id = drawn(logits, size, asked);
    if (id < 0) return {};
    if (asked.logprobs < 0) return {{id, 0.f}};
    return has_row_ ? report({id}, asked.logprobs) : score(logits, size, {id}, asked.logprobs);
  }

  // The ids' log-probabilities, then the `top` most probable tokens.
  template <class S>
  Answer score(const S* logits, int64_t size, const std::vector<int64_t>& ids, int64_t top) {
    widen_row(logits, size);
    has_whole_ = false;
    return find_best() < 0 ? Answer{} : report(ids, top);
  }

 private:
  // Of the row as it is in x_.
  Answer report(const std::vector<int64_t>& ids, int64_t top) {
    const double whole = has_whole_ ? whole_ : weigh(x_[best_], 1.f, {kLowest, kNobody});
    const double total = x_[best_] + std::log(whole);
    Answer answer;
    for (int64_t id : ids) answer.push_back({id, (float)(x_[id] - total)});
    if (top <= 0) return answer;
    gather(top);  // fewer where the others have no chance at all
    for (const Token& one : first_) answer.push_back({one.id, (float)(one.value - total)});
    return answer;
  }

  struct Token {
    float value;
    int32_t id;
  };
  static constexpr int64_t kBlock = 16 * kLanes;
  static constexpr float kLowest = -std::numeric_limits<float>::infinity();
  static constexpr int32_t kNobody = std::numeric_limits<int32_t>::max();  // behind all tokens of its value
  static constexpr int64_t kFew = 128;

  // The more probable one, of equals the one with the lower id.
  static bool before(const Token& a, const Token& b) { return a.value > b.value || (a.value == b.value && a.id < b.id); }

  template <class S>
  int64_t drawn(const S* logits, int64_t size, const Draw& asked) {
    if (asked.greedy && !asked.edit_count && !asked.allowed) {
      const int64_t best = argmax(logits, size);
      return std::isfinite(to_float(logits[best])) ? best : -1;
    }
    widen_row(logits, size);
    edit(size, asked);
    has_row_ = !asked.edit_count && !asked.allowed;
    const int64_t best = find_best();
    if (best < 0 || asked.greedy) return best;
    const float peak = x_[best], sharpness = 1.f / asked.temperature;
    Token last{asked.min_p > 0 ? std::min(peak, peak + std::log(asked.min_p) / sharpness) : kLowest, kNobody};
    if (asked.top_k) {
      gather(asked.top_k);
      if (before(first_.back(), last)) last = first_.back();
    }
    double total = weigh(peak, sharpness, last);
    has_whole_ = has_row_ && sharpness == 1 && last.value == kLowest;
    whole_ = total;
    if (asked.top_p < 1) {
      // What is less probable than this weighs less than 1 - top_p in all, and so is beyond the nucleus.
      const float rest = std::log((size + 1) / std::max(1 - (float)asked.top_p, 1e-7f));
      last = nucleus(asked.top_p * total, peak, std::max(last.value, peak - std::min(rest, 88.f) / sharpness));
      total = clip(last);
    }
    return at_chance(uniform(asked.seed, asked.position) * total);
  }

  // Into x_, filled up to whole blocks.
  template <class S>
  void widen_row(const S* logits, int64_t size) {
    x_.assign((size + kBlock - 1) / kBlock * kBlock, kLowest);
    for (int64_t i = 0; i < size; i += kLanes) {
      const int n = (int)std::min<int64_t>(kLanes, size - i);
      narrow(&x_[i], widen(logits + i, n), n);
    }
  }

  void edit(int64_t size, const Draw& asked) {
    for (int64_t i = 0; i < asked.edit_count; i++) {
      const Edit& change = asked.edits[i];
      const float y = x_[change.id] + change.before;
      x_[change.id] = (y > 0 ? y / change.penalty : y * change.penalty) + change.after;
    }
    if (!asked.allowed) return;
    for (int64_t start = 0; start < size; start += 32) {
      const uint32_t word = asked.allowed[start / 32];
      if (word == ~0u) continue;
      for (int64_t i = start; i < std::min(start + 32, size); i++)
        if (!(word >> (i - start) & 1)) x_[i] = kLowest;
    }
  }

  // The first of the largest into best_, and peaks_ by block; -1 for a row with a NaN or an infinity, or with nothing allowed.
  int64_t find_best() {
    peaks_.clear();
    I nan = {};
    for (size_t start = 0; start < x_.size(); start += kBlock) {
      F most = splat(kLowest);
      for (size_t i = start; i < start + kBlock; i += kLanes) {
        const F value = load<F>(&x_[i]);
        nan |= value != value;
        most = choose(value > most, value, most);
      }
      peaks_.push_back(largest(most));
    }
    const auto block = std::max_element(peaks_.begin(), peaks_.end());
    if (any(nan) || !std::isfinite(*block)) return -1;
    return best_ = std::find(x_.begin() + (block - peaks_.begin()) * kBlock, x_.end(), *block) - x_.begin();
  }

  // The `most` most probable tokens into first_, in order. Needs peaks_.
  void gather(size_t most) {
    float least = kLowest;
    if (most <= peaks_.size()) {  // so many tokens at least are as large as the last of so many peaks
      highest_ = peaks_;
      std::nth_element(highest_.begin(), highest_.begin() + (most - 1), highest_.end(), std::greater<>());
      least = highest_[most - 1];
    }
    first_.clear();
    const auto shrink = [&] {
      if (first_.size() <= most) return;
      std::nth_element(first_.begin(), first_.begin() + (most - 1), first_.end(), before);
      first_.resize(most);
      least = first_.back().value;
    };
    for (size_t start = 0; start < x_.size(); start += kBlock) {
      if (peaks_[start / kBlock] < least) continue;
      for (size_t i = start; i < start + kBlock; i += kLanes) {
        const I enough = load<F>(&x_[i]) >= least;
        if (!any(enough)) continue;
        for (int lane = 0; lane < kLanes; lane++)
          if (enough[lane] && x_[i + lane] > kLowest) first_.push_back({x_[i + lane], (int32_t)(i + lane)});
        if (first_.size() >= 4 * most + 1024) shrink();
      }
    }
    shrink();
    std::sort(first_.begin(), first_.end(), before);
  }

  // weights_: e^((x - peak) * sharpness) of all tokens up to `last`, zeros for others; sums_ by block. Returns the total.
  double weigh(float peak, float sharpness, Token last) {
    weights_.resize(x_.size());
    return fill(last, [&](int64_t, F value) { return vexp((value - peak) * sharpness); });
  }

  // The same where the weights are there: only those after `last` become zeros.
  double clip(Token last) {
    return fill(last, [&](int64_t i, F) { return load<F>(&weights_[i]); });
  }

  template <class Weight>
  double fill(Token last, Weight weight_of) {
    sums_.clear();
    double total = 0;
    for (size_t start = 0; start < x_.size(); start += kBlock) {
      F block = {};
      if (peaks_[start / kBlock] < last.value) {
        std::fill_n(&weights_[start], kBlock, 0.f);
        sums_.push_back(0.f);
        continue;
      }
      for (size_t i = start; i < start + kBlock; i += kLanes) {
        const F value = load<F>(&x_[i]);
        const I kept = (value > last.value) | ((value == last.value) & (count_up() + (int32_t)i <= last.id));
        const F weight = choose(kept, weight_of(i, value), F{});
        narrow(&weights_[i], weight);
        block += weight;
      }
      sums_.push_back(sum(block));
      total += sums_.back();
    }
    return total;
  }

  // The last token, in order, before which the weights do not yet come to `limit`; it is not less than `low`. Bisection
  // over values, a pass of vectors each, until those that are left are few enough to be put in order.
  Token nucleus(double limit, float peak, float low) {
    float high = std::nextafter(peak, std::numeric_limits<float>::infinity());
    double passed = 0;  // the weight of values from `high` on
    for (int64_t left = between(low, high).second; left > kFew;) {
      const float middle = low + (high - low) / 2;
      if (middle <= low || middle >= high) break;
      const auto [more, count] = between(middle, high);
      if (passed + more >= limit) {
        low = middle, left = count;
      } else {
        passed += more, high = middle, left -= count;
      }
    }
    first_.clear();
    for (size_t start = 0; start < x_.size(); start += kBlock) {
      if (peaks_[start / kBlock] < low) continue;
      for (size_t i = start; i < start + kBlock; i += kLanes) {
        const F value = load<F>(&x_[i]);
        if (!any((value >= low) & (value < high))) continue;
        for (size_t j = i; j < i + kLanes; j++)
          if (x_[j] >= low && x_[j] < high && weights_[j] > 0) first_.push_back({x_[j], (int32_t)j});
      }
    }
    std::sort(first_.begin(), first_.end(), before);
    Token last{high, kNobody};
    for (const Token& one : first_) {
      if (passed >= limit && passed > 0) break;
      passed += weights_[one.id];
      last = one;
    }
    return last;
  }

  // The weight of the values in [low, high), and how many there are.
  std::pair<double, int64_t> between(float low, float high) const {
    double total = 0;
    I count = {};
    for (size_t start = 0; start < x_.size(); start += kBlock) {
      if (peaks_[start / kBlock] < low) continue;
      F block = {};
      for (size_t i = start; i < start + kBlock; i += kLanes) {
        const F value = load<F>(&x_[i]);
        const I inside = (value >= low) & (value < high);
        block += choose(inside, load<F>(&weights_[i]), F{});
        count -= inside;
      }
      total += sum(block);
    }
    int64_t all = 0;
    for (int lane = 0; lane < kLanes; lane++) all += count[lane];
    return {total, all};
  }

  // The token where the weight of all up to it passes `target`: first its block, then itself.
  int64_t at_chance(double target) const {
    double passed = 0;
    size_t block = 0;
    while (block + 1 < sums_.size() && passed + sums_[block] <= target) passed += sums_[block++];
    int64_t last = -1;
    for (size_t i = block * kBlock; i < x_.size(); i++) {
      if (weights_[i] <= 0) continue;
      last = i;
      if ((passed += weights_[i]) > target) return last;
    }
    // Rounding has left the whole a little short of the target: the last one with any weight.
    for (int64_t i = x_.size() - 1; last < 0; i--)
      if (weights_[i] > 0) last = i;
    return last;
  }

  static bool any(I mask) {
    uint64_t words[sizeof mask / 8], some = 0;
    std::memcpy(words, &mask, sizeof mask);
    for (uint64_t word : words) some |= word;
    return some;
  }

  Floats x_, weights_, peaks_, sums_, highest_;
  std::vector<Token> first_;
  int64_t best_ = -1;
  bool has_row_ = false;    // x_ is the row as it came, and peaks_ and best_ are its
  bool has_whole_ = false;  // whole_ is the weight of all its tokens at temperature 1
  double whole_ = 0;
};

}  // namespace graft
