// What a model is made of: its sizes, its taps and the weights of a layer, checked when they are handed in.
#pragma once
#include "attention.h"
#include "gemm.h"

namespace graft {

struct Shape {
  int64_t hidden, intermediate, heads, kv_heads, head_dim, rotary;
  double epsilon, scale, softcap, final_softcap;  // soft-caps: 0 for none
  std::string activation;
  int64_t query_width() const { return heads * head_dim; }
  int64_t key_width() const { return kv_heads * head_dim; }
  int64_t fused_width() const { return query_width() + 2 * key_width(); }
  int64_t group() const { return heads / kv_heads; }  // query heads of a kv head

  void require_whole() const {
    TORCH_CHECK_VALUE(hidden > 0 && intermediate > 0 && heads > 0 && kv_heads > 0 && head_dim > 0,
                      "every size of a model must be above zero");
    TORCH_CHECK_VALUE(heads % kv_heads == 0, heads, " query heads can't share ", kv_heads, " kv heads evenly");
    TORCH_CHECK_VALUE(head_dim % 2 == 0, "a head needs an even number of values, not ", head_dim);
    TORCH_CHECK_VALUE(0 < rotary && rotary <= head_dim && rotary % 2 == 0, "a head of ", head_dim,
                      " values can't have ", rotary, " of them turned");
  }
};

// Taps of a layer in the order in which they are passed; runners/cpu/taps.py names them in the same order.
enum Tap {
  kStream, kNormed, kQueryIn, kQueryOut = kQueryIn + 3, kAttended = kQueryOut + 3, kAttnOut, kAttnAdded,
  kMlpStream, kMlpNormed, kMlpIn, kMlpInOut = kMlpIn + 2, kGated = kMlpInOut + 2, kMlpOut, kMlpAdded, kLayerTaps
};
// Taps after the last layer.
enum HeadTap { kFinalNormed, kHeadIn, kLogits, kHeadTaps };

template <class S>
struct Layer {
  std::vector<Linear<S>> queries, mlp_in;  // q, k, v and gate, up; or one linear for all
  Linear<S> attn_out, mlp_out;
  Floats attn_norm, attn_post, mlp_norm, mlp_post, query_norm, key_norm;  // empty: none
  int64_t window;    // 0: none
  int64_t rotation;  // which of the model's tables

  // Raises ValueError where a weight's size is not what the shape asks for.
  void require_fits(const Shape& shape) const {
    const int64_t h = shape.hidden, i = shape.intermediate;
    TORCH_CHECK_VALUE(window >= 0 && rotation >= 0, "a layer's window and rotation can't be negative");
    TORCH_CHECK_VALUE(queries.size() == 1 || queries.size() == 3, "q, k and v are one linear or three, not ", queries.size());
    TORCH_CHECK_VALUE(mlp_in.size() == 1 || mlp_in.size() == 2, "gate and up are one linear or two, not ", mlp_in.size());
    require_linears(queries, "q, k and v", h, shape.fused_width());
    require_linears(mlp_in, "gate and up", h, 2 * i);
    if (queries.size() == 3)
      TORCH_CHECK_VALUE(queries[0].out == shape.query_width() && queries[1].out == shape.key_width(),
                        "q and k have ", queries[0].out, " and ", queries[1].out, " outputs, not ", shape.query_width(),
                        " and ", shape.key_width());
    if (mlp_in.size() == 2) TORCH_CHECK_VALUE(mlp_in[0].out == i, "the gate has ", mlp_in[0].out, " outputs, not ", i);
    require_linears({attn_out}, "attention's output", shape.query_width(), h);
    require_linears({mlp_out}, "the MLP's output", i, h);
    TORCH_CHECK_VALUE(!attn_norm.empty() && !mlp_norm.empty(), "a layer needs both norms");
    for (const auto* norm : {&attn_norm, &attn_post, &mlp_norm, &mlp_post}) require_size(*norm, "a norm", h);
    for (const auto* norm : {&query_norm, &key_norm}) require_size(*norm, "a head's norm", shape.head_dim);
  }

  // Width of each tap, in the order of Tap; 0 where this layer has none.
  std::vector<int64_t> tap_widths(const Shape& shape) const {
    std::vector<int64_t> width(kLayerTaps, 0);
    for (int tap : {kStream, kNormed, kAttnOut, kMlpStream, kMlpNormed, kMlpOut}) width[tap] = shape.hidden;
    width[kAttnAdded] = attn_post.empty() ? 0 : shape.hidden, width[kMlpAdded] = mlp_post.empty() ? 0 : shape.hidden;
    width[kAttended] = shape.query_width(), width[kGated] = shape.intermediate;
    for (size_t n = 0; n < queries.size(); n++)
      width[kQueryIn + n] = shape.hidden, width[kQueryOut + n] = queries[n].out;
    for (size_t n = 0; n < mlp_in.size(); n++)
      width[kMlpIn + n] = shape.hidden, width[kMlpInOut + n] = mlp_in[n].out;
    return width;
  }

 private:
  static void require_linears(const std::vector<Linear<S>>& linears, const char* name, int64_t in, int64_t out) {
    int64_t outs = 0;
    for (const Linear<S>& linear : linears) {
      TORCH_CHECK_VALUE(linear.in == in, name, " must read ", in, " values, not ", linear.in);
      outs += linear.out;
    }
    TORCH_CHECK_VALUE(outs == out, name, " must have ", out, " outputs, not ", outs);
  }
};

struct Rotation {
  at::Tensor cosine, sine;  // float [positions, rotary]
  int64_t positions() const { return cosine.size(0); }

  void require_fits(const Shape& shape) const {
    require<float>(cosine, "a rotation's cosines", {-1, shape.rotary});
    require<float>(sine, "a rotation's sines", {cosine.size(0), shape.rotary});
  }
};

// The taps of all layers and of the head, for what an adapter may read and change.
template <class S>
TapTable tap_table(const Shape& shape, const std::vector<Layer<S>>& layers, const Linear<S>& head) {
  TapTable table{{}, {}, kLayerTaps};
  for (const Layer<S>& layer : layers)
    for (const int64_t width : layer.tap_widths(shape)) {
      const int64_t tap = (int64_t)table.width.size() % kLayerTaps;
      table.width.push_back(width);
      table.changeable.push_back(tap != kStream && tap != kMlpStream);
    }
  for (const int64_t width : {shape.hidden, shape.hidden, head.out}) {
    table.width.push_back(width);
    table.changeable.push_back(true);
  }
  return table;
}

}  // namespace graft
