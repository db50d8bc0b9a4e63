// An adapter as the kernels hold it: packed once, by itself; a step only points to it, so nothing is padded, gathered or
// restacked.
#pragma once
#include <ATen/ATen.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "checks.h"
#include "memory.h"
#include "simd.h"

namespace graft {

constexpr int64_t kBlock = 16;     // most rows of one adapter that are handled together

enum Activation { kNone, kRelu, kSilu, kGelu, kGeluTanh, kTanh, kSigmoid, kLeakyRelu };

inline Activation activation_of(const std::string& name) {
  static const std::pair<const char*, Activation> known[] = {
      {"none", kNone}, {"relu", kRelu}, {"silu", kSilu}, {"swish", kSilu}, {"gelu", kGelu},
      {"gelu_new", kGeluTanh}, {"gelu_pytorch_tanh", kGeluTanh}, {"tanh", kTanh}, {"sigmoid", kSigmoid},
      {"leakyrelu", kLeakyRelu}};
  for (const auto& [key, value] : known)
    if (name == key) return value;
  TORCH_CHECK_VALUE(false, "unknown activation ", name);
}

inline F activate(F x, Activation kind) {
  switch (kind) {
    case kRelu: return choose(x < 0, F{}, x);  // a NaN stays one
    case kSilu: return x * vsigmoid(x);
    case kGelu:
      for (int i = 0; i < kLanes; i++) x[i] = 0.5f * x[i] * (1.f + std::erf(x[i] * 0.70710678f));
      return x;
    case kGeluTanh: return 0.5f * x * (1.f + vtanh(0.79788456f * (x + 0.044715f * x * x * x)));
    case kTanh: return vtanh(x);
    case kSigmoid: return vsigmoid(x);
    case kLeakyRelu: return choose(x > 0, x, x * 0.01f);
    default: return x;
  }
}

constexpr int kColumnVectors = kRegisters / 8;
constexpr int64_t kColumns = kColumnVectors * kLanes;  // columns of B that lie together

// Values as they lie in memory and are multiplied by S: as S itself, or, `halved`, floats as the bfloat16 that each of them is.
template <class S, bool halved>
struct Stored {
  typedef S T;
  static constexpr int64_t lane = sizeof(int32_t), vector = kLanes * lane;  // bytes
  static S put(S value) { return value; }
  static typename Packed<S>::V load(const char* from) { return load_lanes<S>(from); }
};

template <>
struct Stored<float, true> {
  typedef bf16 T;
  static constexpr int64_t lane = sizeof(bf16), vector = kLanes * lane;
  static bf16 put(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return {(uint16_t)(bits >> 16)};
  }
  static F load(const char* from) { return widen((const bf16*)from); }
};

// Whether nothing is lost where [rows, columns] are stored halved. `down`, `across`: from one element to the next.
inline bool fit_halved(const float* values, int64_t rows, int64_t columns, int64_t down, int64_t across) {
  for (int64_t row = 0; row < rows; row++)
    for (int64_t column = 0; column < columns; column++) {
      uint32_t bits;
      std::memcpy(&bits, values + row * down + column * across, sizeof bits);
      if (bits & 0xffffu) return false;
    }
  return true;
}
inline bool fit_halved(const bf16*, int64_t, int64_t, int64_t, int64_t) { return false; }

template <class S>
bool fit_halved(const at::Tensor& matrix) {
  const bool turned = matrix.stride(0) < matrix.stride(1);  // walk along memory
  const int outer = turned, inner = !turned;
  return fit_halved((const S*)matrix.data_ptr(), matrix.size(outer), matrix.size(inner), matrix.stride(outer), matrix.stride(inner));
}

// delta = act(x A^T + a) B + b, x the sum of the taps `reads`; the scale is folded into B and b.
// A and B lie in the order in which they are read, one after the other, in the adapter's one piece of memory.
template <class S>
struct LowRank {
  std::vector<int> reads;
  Activation activation;
  int64_t rank, depth, lanes;  // vectors of the input; lanes of the rank: pairs of ranks in bfloat16
  int64_t in, out;
  Floats a, b;                 // empty: none
  const char* A = nullptr;     // Stored, by groups of up to kLanes ranks: [depth, ranks of the group, vector]
  const char* B = nullptr;     // Stored, by groups of up to kColumns columns: [lanes, columns of the group]
};

template <class S>
struct Detour {
  Floats scale, bias;  // y = y * scale + bias; empty: none
  std::vector<LowRank<S>> channels;
  int64_t lanes = 0;  // of all channels
  bool halved_A = false, halved_B = false;  // how they are stored
};

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The taps of a model by number, `layer` of them a layer (the last layer's worth may have fewer: the head's).
struct TapTable {
  std::vector<int64_t> width;  // of a row; 0: there is no such tap
  std::vector<bool> changeable;
  int64_t layer;
};

// How much a step needs of a thread's memory.
struct ScratchSize {
  int64_t ranks = 0, sums = 0, wide = 0;
  void cover(const ScratchSize& other) {
    ranks = std::max(ranks, other.ranks), sums = std::max(sums, other.sums), wide = std::max(wide, other.wide);
  }
};

// As Python hands them over: A [rank, in] and B [rank, out] in the base's dtype, a [rank], b [out].
struct GivenVector {
  int64_t tap;
  std::optional<at::Tensor> scale, bias;
};
struct GivenLowRank {
  int64_t tap;
  std::vector<int> reads;
  at::Tensor A, B;
  std::optional<at::Tensor> a, b;
  std::string activation;
};

// Sizes of a packed A and B.
template <class S>
struct PackedSize {
  static constexpr int64_t per = Packed<S>::per_lane, step = kLanes * per;
  int64_t rank, in, out, depth, lanes, columns;
  explicit PackedSize(const GivenLowRank& given)
      : rank(given.A.size(0)), in(given.A.size(1)), out(given.B.size(1)), depth(divide_up(in, step)),
        lanes(divide_up(rank, per)), columns(divide_up(out, kLanes) * kLanes) {}
  int64_t padded() const { return lanes * per; }                           // ranks, with what fills up the last lane
  int64_t wide() const { return divide_up(padded(), kLanes) * kLanes; }  // of a row of sums
  int64_t of_A() const { return rank * depth * step; }
  int64_t of_B() const { return lanes * columns * per; }
};

// A [rank, in] as LowRank holds it; vectors are filled up with zeros. Returns the end.
template <class S, bool halved>
char* pack_A(const S* A, const PackedSize<S>& size, char* start) {
  auto* to = (typename Stored<S, halved>::T*)start;
  for (int64_t first = 0; first < size.rank; first += kLanes)
    for (int64_t at = 0; at < size.in; at += size.step)
      for (int64_t r = first; r < std::min<int64_t>(first + kLanes, size.rank); r++, to += size.step) {
        const int64_t count = std::min(size.step, size.in - at);
        std::transform(A + r * size.in + at, A + r * size.in + at + count, to, Stored<S, halved>::put);
        std::fill(to + count, to + size.step, typename Stored<S, halved>::T{});
      }
  return (char*)to;
}

// B [rank, out] as LowRank holds it; ranks and columns are filled up with zeros. `down`, `across`: from one element to the next of
// a column, of a row. As it is saved, and so as it comes, a column's elements lie side by side. Returns the end.
template <class S, bool halved>
char* pack_B(const S* B, int64_t down, int64_t across, const PackedSize<S>& size, char* start) {
  auto* to = (typename Stored<S, halved>::T*)start;
  for (int64_t first = 0; first < size.columns; first += kColumns)
    for (int64_t lane = 0; lane < size.lanes; lane++)
      for (int64_t column = first; column < std::min(first + kColumns, size.columns); column++) {
        const S* from = B + lane * size.per * down + column * across;
        const int64_t count = column < size.out ? std::min(size.per, size.rank - lane * size.per) : 0;
        for (int64_t r = 0; r < size.per; r++) *to++ = Stored<S, halved>::put(r < count ? from[r * down] : S{});
      }
  return (char*)to;
}

template <class S>
class Adapter {
 public:
  // Raises ValueError for tensors that do not belong together.
  Adapter(int64_t taps, const std::vector<GivenVector>& vectors, std::vector<GivenLowRank> low_ranks) : taps_(taps) {
    for (const GivenVector& given : vectors) {
      Detour<S>& detour = at(given.tap);
      TORCH_CHECK_VALUE(detour.scale.empty() && detour.bias.empty(), "two Vectors at tap ", given.tap);
      detour.scale = floats(given.scale), detour.bias = floats(given.bias);
      bytes_ += (detour.scale.size() + detour.bias.size()) * sizeof(float);
    }
    std::stable_sort(low_ranks.begin(), low_ranks.end(), [](const auto& x, const auto& y) { return x.tap < y.tap; });
    for (GivenLowRank& given : low_ranks) {
      given.A = given.A.contiguous();
      add(given);
    }
    place(low_ranks);
  }

  const Detour<S>* find(int64_t tap) const { return taps_[tap].get(); }
  int64_t bytes() const { return bytes_; }
  const ScratchSize& scratch() const { return scratch_; }

  // Raises ValueError where a detour does not fit the taps. Looks only once at the same table.
  void require_fits(const std::shared_ptr<const TapTable>& table) const {
    if (fits_ == table) return;
    TORCH_CHECK_VALUE(taps_.size() == table->width.size(), "the adapter has ", taps_.size(), " taps, the model ",
                      table->width.size());
    for (size_t tap = 0; tap < taps_.size(); tap++)
      if (taps_[tap]) require_fits(*taps_[tap], tap, *table);
    fits_ = table;
  }

 private:
  Detour<S>& at(int64_t tap) {
    TORCH_CHECK_VALUE(0 <= tap && tap < (int64_t)taps_.size(), "there is no tap ", tap, " among ", taps_.size());
    if (!taps_[tap]) taps_[tap] = std::make_unique<Detour<S>>();
    return *taps_[tap];
  }

  void add(const GivenLowRank& given) {
    require<S>(given.A, "A", {-1, -1});
    require_like<S>(given.B, "B", {given.A.size(0), -1});
    TORCH_CHECK_VALUE(given.A.numel() && given.B.numel() && !given.reads.empty(), "a LowRank without rank, width or tap to read");
    const PackedSize<S> size(given);
    Detour<S>& detour = at(given.tap);
    detour.channels.push_back({given.reads, activation_of(given.activation), size.rank, size.depth, size.lanes, size.in,
                               size.out, floats(given.a), floats(given.b)});
    require_size(detour.channels.back().a, "a", size.rank);
    require_size(detour.channels.back().b, "b", size.out);
    detour.lanes += size.lanes;
    scratch_.cover({kBlock * detour.lanes * size.per, given.reads.size() > 1 ? kBlock * size.in : 0, kBlock * size.wide()});
  }

  static void require_fits(const Detour<S>& detour, int64_t tap, const TapTable& table) {
    const int64_t first = tap / table.layer * table.layer, width = table.width[tap];
    TORCH_CHECK_VALUE(width && table.changeable[tap], "the model has no tap ", tap, " that an adapter may change");
    require_size(detour.scale, "a Vector's scale", width);
    require_size(detour.bias, "a Vector's bias", width);
    for (const LowRank<S>& form : detour.channels) {
      TORCH_CHECK_VALUE(form.out == width, "B has ", form.out, " columns, tap ", tap, " has ", width);
      for (int read : form.reads) {
        TORCH_CHECK_VALUE(0 <= read && first + read <= tap, "at tap ", tap, " there is nothing yet at ", read, " to read");
        TORCH_CHECK_VALUE(form.in == table.width[first + read], "A has ", form.in, " columns, tap ", first + read, " has ",
                          table.width[first + read]);
      }
    }
  }

  // Packs A and B of every LowRank into one piece of memory, in the order in which a step visits them.
  void place(const std::vector<GivenLowRank>& low_ranks) {
    const auto halved = [&](at::Tensor GivenLowRank::*matrix) {
      return std::all_of(low_ranks.begin(), low_ranks.end(), [&](const auto& given) { return fit_halved<S>(given.*matrix); });
    };
    const bool halved_A = halved(&GivenLowRank::A), halved_B = halved(&GivenLowRank::B);
    int64_t total = 0;
    for (const GivenLowRank& given : low_ranks)
      total += PackedSize<S>(given).of_A() * (halved_A ? sizeof(bf16) : sizeof(S)) +
               PackedSize<S>(given).of_B() * (halved_B ? sizeof(bf16) : sizeof(S));
    memory_ = Memory(total);
    bytes_ += total;
    char* next = memory_.data();
    std::vector<size_t> placed(taps_.size());
    for (const GivenLowRank& given : low_ranks) {
      const PackedSize<S> size(given);
      Detour<S>& detour = *taps_[given.tap];
      LowRank<S>& form = detour.channels[placed[given.tap]++];
      detour.halved_A = halved_A, detour.halved_B = halved_B;
      form.A = next;
      next = (halved_A ? pack_A<S, true> : pack_A<S, false>)((const S*)given.A.data_ptr(), size, next);
      form.B = next;
      next = (halved_B ? pack_B<S, true> : pack_B<S, false>)((const S*)given.B.data_ptr(), given.B.stride(0), given.B.stride(1), size, next);
    }
  }

  std::vector<std::unique_ptr<Detour<S>>> taps_;
  Memory memory_;
  int64_t bytes_ = 0;
  ScratchSize scratch_;
  mutable std::shared_ptr<const TapTable> fits_;  // what it was found to fit
};

}  // namespace graft
