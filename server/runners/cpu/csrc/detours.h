// What an adapter does to rows: the semantics of hub/adapters/batched_apply.py, for one block of rows of one adapter.
// An adapter is packed once, by itself; a step only points to it, so nothing is padded, gathered or restacked.
#pragma once
#include <ATen/ATen.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "memory.h"
#include "simd.h"

namespace graft {

constexpr int64_t kBlock = 16;     // most rows of one adapter that are handled together
constexpr int64_t kAhead = 4096;   // bytes of weights that are asked for before they are needed

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
    case kRelu: return choose(x > 0, x, F{});
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
constexpr int kDotRows = kLanes / 4 > 1 ? kLanes / 4 : 2;  // rows that `dots` multiplies with as many ranks as fit

// delta = act(x A^T + a) B + b, x the sum of the taps `reads`; the scale is folded into B and b.
// A and B lie in the order in which they are read, one after the other, in the adapter's one piece of memory.
template <class S>
struct LowRank {
  std::vector<int> reads;
  Activation activation;
  int64_t rank, depth, lanes;  // vectors of the input; lanes of the rank: pairs of ranks in bfloat16
  std::vector<float> a, b;     // empty: none
  const int32_t* A = nullptr;  // by groups of up to kLanes ranks: [depth, ranks of the group, vector]
  const int32_t* B = nullptr;  // by groups of up to kColumns columns: [lanes, columns of the group]
};

template <class S>
struct Detour {
  std::vector<float> scale, bias;  // y = y * scale + bias; empty: none
  std::vector<LowRank<S>> channels;
  int64_t lanes = 0;  // of all channels
};

inline std::vector<float> floats(const std::optional<at::Tensor>& given) {
  if (!given) return {};
  const at::Tensor wide = given->to(at::kFloat).contiguous();
  return {wide.data_ptr<float>(), wide.data_ptr<float>() + wide.numel()};
}

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

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
  int64_t of_A() const { return rank * depth * step; }
  int64_t of_B() const { return lanes * columns * per; }
};

// A [rank, in] as LowRank holds it; vectors are filled up with zeros. Returns the end.
template <class S>
S* pack_A(const S* A, const PackedSize<S>& size, S* to) {
  for (int64_t first = 0; first < size.rank; first += kLanes)
    for (int64_t at = 0; at < size.in; at += size.step)
      for (int64_t r = first; r < std::min<int64_t>(first + kLanes, size.rank); r++, to += size.step) {
        const int64_t count = std::min(size.step, size.in - at);
        std::copy_n(A + r * size.in + at, count, to);
        std::fill(to + count, to + size.step, S{});
      }
  return to;
}

// B [rank, out] as LowRank holds it; ranks and columns are filled up with zeros. Returns the end.
template <class S>
S* pack_B(const S* B, const PackedSize<S>& size, S* to) {
  for (int64_t first = 0; first < size.columns; first += kColumns)
    for (int64_t lane = 0; lane < size.lanes; lane++)
      for (int64_t column = first; column < std::min(first + kColumns, size.columns); column++)
        for (int64_t r = lane * size.per; r < (lane + 1) * size.per; r++)
          *to++ = r < size.rank && column < size.out ? B[r * size.out + column] : S{};
  return to;
}

template <class S>
class Adapter {
 public:
  Adapter(int64_t taps, const std::vector<GivenVector>& vectors, std::vector<GivenLowRank> low_ranks) : taps_(taps) {
    for (const GivenVector& given : vectors) {
      Detour<S>& detour = at(given.tap);
      TORCH_CHECK(detour.scale.empty() && detour.bias.empty(), "two Vectors at one tap");
      detour.scale = floats(given.scale), detour.bias = floats(given.bias);
      bytes_ += (detour.scale.size() + detour.bias.size()) * sizeof(float);
    }
    std::stable_sort(low_ranks.begin(), low_ranks.end(), [](const auto& x, const auto& y) { return x.tap < y.tap; });
    for (const GivenLowRank& given : low_ranks) {
      Detour<S>& detour = at(given.tap);
      const PackedSize<S> size(given);
      detour.channels.push_back({given.reads, activation_of(given.activation), size.rank, size.depth, size.lanes,
                                 floats(given.a), floats(given.b)});
      detour.lanes += size.lanes;
    }
    place(low_ranks);
  }

  const Detour<S>* find(int64_t tap) const { return taps_[tap].get(); }
  int64_t bytes() const { return bytes_; }

 private:
  Detour<S>& at(int64_t tap) {
    if (!taps_.at(tap)) taps_[tap] = std::make_unique<Detour<S>>();
    return *taps_[tap];
  }

  // Packs A and B of every LowRank into one piece of memory, in the order in which a step visits them.
  void place(const std::vector<GivenLowRank>& low_ranks) {
    int64_t total = 0;
    for (const GivenLowRank& given : low_ranks) total += PackedSize<S>(given).of_A() + PackedSize<S>(given).of_B();
    memory_ = Memory(total * sizeof(S));
    bytes_ += total * sizeof(S);
    S* next = (S*)memory_.data();
    std::vector<size_t> placed(taps_.size());
    for (const GivenLowRank& given : low_ranks) {
      LowRank<S>& form = taps_[given.tap]->channels[placed[given.tap]++];
      const at::Tensor A = given.A.contiguous(), B = given.B.contiguous();
      TORCH_CHECK_VALUE(A.element_size() == sizeof(S) && B.element_size() == sizeof(S), "A or B has another dtype");
      TORCH_CHECK_VALUE(A.size(0) == B.size(0), "A and B differ in rank");
      form.A = (const int32_t*)next;
      next = pack_A((const S*)A.data_ptr(), PackedSize<S>(given), next);
      form.B = (const int32_t*)next;
      next = pack_B((const S*)B.data_ptr(), PackedSize<S>(given), next);
    }
  }

  std::vector<std::unique_ptr<Detour<S>>> taps_;
  Memory memory_;
  int64_t bytes_ = 0;
};

// A thread's own memory for intermediate values.
template <class S>
struct Scratch {
  std::vector<S> ranks, sums;
  std::vector<float> wide;
  template <class T>
  static T* room(std::vector<T>& memory, int64_t size) {
    if ((int64_t)memory.size() < size) memory.resize(size);
    return memory.data();
  }
};

// R ranks times M rows of x A^T (R * M = kLanes, all sums in registers); rows and ranks beyond the end repeat the last.
template <class S, int R, int M>
void dots(const LowRank<S>& form, const Span<S>& x, int64_t row, int64_t rows, float* to, int64_t to_stride) {
  typedef typename Packed<S>::V V;
  constexpr int64_t step = kLanes * Packed<S>::per_lane;
  static_assert(R * M == kLanes);
  const S* inputs[M];
  for (int m = 0; m < M; m++) inputs[m] = x.row(row + std::min<int64_t>(m, rows - 1));
  for (int64_t first = 0; first < form.rank; first += R) {
    const int64_t group = first / kLanes * kLanes, count = std::min<int64_t>(kLanes, form.rank - group);
    const int32_t* weights = form.A + (group * form.depth + first - group) * kLanes;
    int64_t at[R];
    for (int r = 0; r < R; r++) at[r] = std::min<int64_t>(r, form.rank - first - 1) * kLanes;
    F total[kLanes] = {};
    for (int64_t k = 0; k < form.depth; k++, weights += count * kLanes) {
      V in[M];
#pragma GCC unroll 4
      for (int m = 0; m < M; m++) in[m] = load_lanes<S>(inputs[m] + k * step, (x.width - k * step) * (int64_t)sizeof(S));
#pragma GCC unroll 16
      for (int r = 0; r < R; r++) {
        __builtin_prefetch((const char*)(weights + at[r]) + kAhead);
        const V w = load_lanes<S>(weights + at[r]);
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
template <class S>
void shrink(const LowRank<S>& form, const Span<S>& x, const Block& block, S* h, int64_t h_stride, Scratch<S>& scratch) {
  const int64_t padded = form.lanes * Packed<S>::per_lane;
  const int64_t rows = block.stop - block.row, stride = (padded + kLanes - 1) / kLanes * kLanes;
  float* wide = Scratch<S>::room(scratch.wide, kBlock * stride);
  int64_t done = 0;
  for (; rows - done > kDotRows / 2; done += std::min<int64_t>(kDotRows, rows - done))
    dots<S, kLanes / kDotRows, kDotRows>(form, x, block.row + done, rows - done, wide + done * stride, stride);
  for (; done < rows; done++) dots<S, kLanes, 1>(form, x, block.row + done, 1, wide + done * stride, stride);
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

// y = y + sum of h B + b over all channels, for M rows and kColumns columns at a time.
template <class S, int M>
void expand(const Detour<S>& detour, const S* h, int64_t h_stride, const Span<S>& y, int64_t row) {
  typedef typename Packed<S>::V V;
  constexpr int per = Packed<S>::per_lane, vectors = kColumnVectors;
  for (int64_t column = 0; column < y.width; column += kColumns) {
    int left[vectors];
    F total[M][vectors];
    for (int v = 0; v < vectors; v++) {
      left[v] = (int)std::max<int64_t>(0, std::min<int64_t>(kLanes, y.width - column - v * kLanes));
      for (int m = 0; m < M; m++) total[m][v] = left[v] ? widen(y.row(row + m) + column + v * kLanes, left[v]) : F{};
    }
    const S* from = h;
    for (const LowRank<S>& form : detour.channels) {
      const int32_t* B = form.B + column * form.lanes;
      const int64_t count = std::min(kColumns, divide_up(y.width - column, kLanes) * kLanes);
      for (int64_t lane = 0; lane < form.lanes; lane++, B += count) {
        V w[vectors];
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) {
          __builtin_prefetch((const char*)(B + v * kLanes) + kAhead);
          w[v] = left[v] ? load_lanes<S>(B + v * kLanes) : V{};
        }
#pragma GCC unroll 4
        for (int m = 0; m < M; m++) {
          const V x = splat_lane(from + m * h_stride + lane * per);
#pragma GCC unroll 4
          for (int v = 0; v < vectors; v++) total[m][v] = Packed<S>::dp(total[m][v], x, w[v]);
        }
      }
      if (!form.b.empty())
        for (int v = 0; v < vectors; v++)
          if (left[v])
            for (int m = 0; m < M; m++) total[m][v] += widen(form.b.data() + column + v * kLanes, left[v]);
      from += form.lanes * per;
    }
    for (int v = 0; v < vectors; v++)
      if (left[v])
        for (int m = 0; m < M; m++) narrow(y.row(row + m) + column + v * kLanes, total[m][v], left[v]);
  }
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
  S* to = Scratch<S>::room(scratch.sums, kBlock * width);
  for (int64_t row = block.row; row < block.stop; row++)
    for (int64_t c = 0; c < width; c += kLanes) {
      const int left = (int)std::min<int64_t>(kLanes, width - c);
      F value = widen(taps[reads[0]].row(row) + c, left);
      for (size_t i = 1; i < reads.size(); i++) value += widen(taps[reads[i]].row(row) + c, left);
      narrow(to + (row - block.row) * width + c, value, left);
    }
  return {to - block.row * width, width, width};
}

// The value of one tap as the block's adapter leaves it: first Vector, then every LowRank.
template <class S>
void visit(const Detour<S>& detour, const Span<S>* taps, int tap, const Block& block, Scratch<S>& scratch) {
  const Span<S>& y = taps[tap];
  if (!detour.scale.empty() || !detour.bias.empty()) scale_and_shift(detour, y, block);
  if (detour.channels.empty()) return;
  const int64_t stride = detour.lanes * Packed<S>::per_lane;
  S* h = Scratch<S>::room(scratch.ranks, kBlock * stride);
  S* to = h;
  for (const LowRank<S>& form : detour.channels) {
    shrink(form, add_up(form.reads, taps, block, scratch), block, to, stride, scratch);
    to += form.lanes * Packed<S>::per_lane;
  }
  int64_t row = block.row;
  for (; row + 4 <= block.stop; row += 4) expand<S, 4>(detour, h + (row - block.row) * stride, stride, y, row);
  for (; row < block.stop; row++) expand<S, 1>(detour, h + (row - block.row) * stride, stride, y, row);
}

}  // namespace graft
