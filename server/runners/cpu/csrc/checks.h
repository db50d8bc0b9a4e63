// What a caller hands in wrongly is refused with a sentence (ValueError in Python), before a kernel reads or writes by it.
#pragma once
#include <ATen/ATen.h>

#include <optional>
#include <vector>

#include "memory.h"
#include "simd.h"

namespace graft {

template <class S>
constexpr at::ScalarType kDtype = sizeof(S) == 4 ? at::kFloat : at::kBFloat16;

// `shape`: -1 for any size.
template <class S>
void require_like(const at::Tensor& given, const char* name, at::IntArrayRef shape) {
  bool fits = given.device().is_cpu() && given.scalar_type() == kDtype<S> && given.dim() == (int64_t)shape.size();
  for (size_t d = 0; fits && d < shape.size(); d++) fits = shape[d] < 0 || given.size(d) == shape[d];
  TORCH_CHECK_VALUE(fits, name, " must be ", kDtype<S>, " of shape ", shape, " on the CPU (-1: any size), not ",
                    given.scalar_type(), " of shape ", given.sizes(), " on ", given.device());
}

template <class S>
void require(const at::Tensor& given, const char* name, at::IntArrayRef shape) {
  require_like<S>(given, name, shape);
  TORCH_CHECK_VALUE(given.is_contiguous(), name, " must be contiguous, not with strides ", given.strides());
}

// The numbers of a vector in float; empty: none was given.
inline Floats floats(const std::optional<at::Tensor>& given) {
  if (!given) return {};
  const at::Tensor wide = given->to(at::kCPU, at::kFloat).contiguous();
  TORCH_CHECK_VALUE(wide.dim() == 1, "a vector must have one dimension, not the shape ", wide.sizes());
  return {wide.data_ptr<float>(), wide.data_ptr<float>() + wide.numel()};
}

// A vector of so many numbers, or none.
inline void require_size(const Floats& given, const char* name, int64_t size) {
  TORCH_CHECK_VALUE(given.empty() || (int64_t)given.size() == size, name, " must have ", size, " numbers, not ",
                    given.size());
}

}  // namespace graft
