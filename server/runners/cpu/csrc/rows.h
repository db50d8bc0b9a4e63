// What happens to one row at a time between matrix products: norms, rotation, gated activation.
#pragma once
#include "detours.h"

namespace graft {

// y = x / rms(x) * weight; in place where x is y.
template <class S>
void rms_norm(const S* x, S* y, const float* weight, int64_t width, float epsilon) {
  F squares = {};
  for (int64_t c = 0; c < width; c += kLanes) {
    const F v = widen(x + c, (int)std::min<int64_t>(kLanes, width - c));
    squares += v * v;
  }
  const F inverse = splat(1.f / std::sqrt(sum(squares) / width + epsilon));
  for (int64_t c = 0; c < width; c += kLanes) {
    const int left = (int)std::min<int64_t>(kLanes, width - c);
    narrow(y + c, widen(x + c, left) * inverse * widen(weight + c, left), left);
  }
}

template <class S>
void add(const S* x, const S* y, S* to, int64_t width) {
  for (int64_t c = 0; c < width; c += kLanes) {
    const int left = (int)std::min<int64_t>(kLanes, width - c);
    narrow(to + c, widen(x + c, left) + widen(y + c, left), left);
  }
}

// One head's first 2 * half values, turned by the position's angles; what lies behind them stays.
template <class S>
void rotate(S* head, const float* cosine, const float* sine, int64_t half) {
  for (int64_t c = 0; c < half; c += kLanes) {
    const int left = (int)std::min<int64_t>(kLanes, half - c);
    const F x = widen(head + c, left), y = widen(head + half + c, left);
    narrow(head + c, x * widen(cosine + c, left) - y * widen(sine + c, left), left);
    narrow(head + half + c, y * widen(cosine + half + c, left) + x * widen(sine + half + c, left), left);
  }
}

template <class S>
void gated(const S* gate, const S* up, S* to, int64_t width, Activation kind) {
  for (int64_t c = 0; c < width; c += kLanes) {
    const int left = (int)std::min<int64_t>(kLanes, width - c);
    narrow(to + c, activate(widen(gate + c, left), kind) * widen(up + c, left), left);
  }
}

template <class S>
void soft_cap(S* row, int64_t width, float cap) {
  for (int64_t c = 0; c < width; c += kLanes) {
    const int left = (int)std::min<int64_t>(kLanes, width - c);
    narrow(row + c, vtanh(widen(row + c, left) / cap) * cap, left);
  }
}

// Index of the largest value, the first of equals; that of a NaN where there is one.
template <class S>
int64_t argmax(const S* row, int64_t width) {
  F most = splat(-INFINITY), zeros = {};  // x - x is zero but for a NaN or an infinity
  int64_t c = 0;
  for (; c + kLanes <= width; c += kLanes) {
    const F value = widen(row + c);
    most = vmax(most, value), zeros = zeros + (value - value);
  }
  float top = largest(most), zero = sum(zeros);
  for (; c < width; c++) {
    const float value = to_float(row[c]);
    top = std::max(top, value), zero += value - value;
  }
  for (int64_t i = 0; zero != 0 && i < width; i++)
    if (std::isnan(to_float(row[i]))) return i;
  for (int64_t i = 0; i < width; i++)
    if (to_float(row[i]) >= top) return i;
  return 0;
}

}  // namespace graft
