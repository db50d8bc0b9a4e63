// One step of a Llama-like decoder in a single call: all layers, all adapters, one parallel region.
// Phases that follow each other are separated by the barrier at which the team meets (team.h). Matrix products are
// shared out by panels of columns, everything else by blocks of rows that belong to one adapter.
#pragma once
#include "step.h"

namespace graft {

template <class S>
class Model {
 public:
  explicit Model(Shape shape) : shape_(std::move(shape)), activation_(activation_of(shape_.activation)) {
    shape_.require_whole();
    number_taps();
  }

  // Each raises ValueError for what does not fit the shape.
  void add_layer(Layer<S> layer) {
    layer.require_fits(shape_);
    layers_.push_back(std::move(layer));
    number_taps();
  }

  void set_head(Floats norm, Linear<S> head) {
    TORCH_CHECK_VALUE((int64_t)norm.size() == shape_.hidden, "the final norm must have ", shape_.hidden, " numbers, not ",
                      norm.size());
    TORCH_CHECK_VALUE(head.in == shape_.hidden, "the output projection must read ", shape_.hidden, " values, not ", head.in);
    final_norm_ = std::move(norm), head_ = std::move(head);
    number_taps();
  }

  void set_rotations(std::vector<Rotation> rotations) {
    for (const Rotation& rotation : rotations) rotation.require_fits(shape_);
    rotations_ = std::move(rotations);
  }

  // Raises ValueError where an adapter has other taps, or matrices of other widths.
  // Called by loaders while the engine's thread steps with other adapters.
  void require_fits(const Adapter<S>& adapter) const { adapter.require_fits(taps_); }

  // What the largest step so far has taken.
  int64_t step_bytes() const { return buffers_.memory.bytes(); }

  // rows [T, hidden]; keys and values as server/cache/tensors.py lays them out. Returns the logits [n, vocabulary] and the
  // hidden states [m, hidden], as the final norm leaves them.
  // Raises ValueError for what does not fit together, MemoryError; either before anything has been written.
  std::pair<at::Tensor, at::Tensor> step(const at::Tensor& rows, const at::Tensor& keys, const at::Tensor& values,
                                         const std::vector<Run>& runs, const std::vector<std::vector<int32_t>>& tables,
                                         const std::vector<const Adapter<S>*>& adapters) {
    require_whole();
    const int64_t cached[] = {(int64_t)layers_.size(), -1, kPage, shape_.kv_heads, shape_.head_dim};
    require<S>(keys, "the cache's keys", cached);
    require<S>(values, "the cache's values", keys.sizes());
    for (const Adapter<S>* adapter : adapters) {
      TORCH_CHECK_VALUE(adapter, "None is no adapter");
      require_fits(*adapter);
    }
    Plan<S> plan = plan_of(runs, tables, adapters, {(int64_t)adapters.size() + 1, positions(), keys.size(1)});
    require<S>(rows, "rows", {plan.rows, shape_.hidden});
    at::Tensor logits = at::empty({plan.logit_rows, head_.out}, rows.options());
    at::Tensor hidden = at::empty({plan.hidden_rows, shape_.hidden}, rows.options());
    make_room(plan);
    std::memcpy(buffers_.stream, rows.data_ptr(), rows.nbytes());
    const Pages<S> k{(S*)keys.data_ptr(), shape_.kv_heads, shape_.head_dim};
    const Pages<S> v{(S*)values.data_ptr(), shape_.kv_heads, shape_.head_dim};
    run_team([&](Team::Member& team) {
      Step<S> step{plan, team, k, v, (S*)logits.data_ptr(), (S*)hidden.data_ptr()};
      walk(step, scratch_[omp_get_thread_num()], keys.stride(0));
    });
    return {logits, hidden};
  }

 private:
  void require_whole() const {
    TORCH_CHECK_VALUE(head_.packed && !layers_.empty(), "the model has no head or no layers yet");
    for (const Layer<S>& layer : layers_)
      TORCH_CHECK_VALUE(layer.rotation < (int64_t)rotations_.size(), "the model has no rotation ", layer.rotation, " yet");
  }

  int64_t positions() const {
    int64_t least = rotations_[0].positions();
    for (const Rotation& rotation : rotations_) least = std::min(least, rotation.positions());
    return least;
  }

  void number_taps() { taps_ = std::make_shared<const TapTable>(tap_table(shape_, layers_, head_)); }

  // All memory that the threads will use.
  void make_room(Plan<S>& plan) {
    plan.pieces = attention_pieces(plan.table, plan.slot, shape_.kv_heads, shape_.group(), at::get_num_threads());
    plan.scratch.cover(attention_scratch<S>(plan.pieces, plan.slot, shape_.group(), shape_.head_dim));
    buffers_.lay_out(shape_, plan.rows);
    scratch_.resize(std::max<size_t>(scratch_.size(), at::get_num_threads()));
    for (Scratch<S>& scratch : scratch_) scratch.grow(plan.scratch);
  }

  void walk(Step<S>& step, Scratch<S>& scratch, int64_t layer_stride) {
    for (size_t l = 0; l < layers_.size(); l++) {
      const Layer<S>& layer = layers_[l];
      set_taps(step, layer, l);
      each(step, step.plan.blocks, [&](const Block& b) { enter(step, layer, l, b, scratch); });
      project(step, layer.queries, kQueryIn, kQueryOut);
      each(step, step.plan.blocks, [&](const Block& b) { write_keys(step, layer, l, b, scratch); });
      attention(step, layer, scratch);
      each_if(step, l, kAttended, [&](const Block& b) { visit_tap(step, l, kAttended, b, scratch); });
      project(step, layer.attn_out, kAttended, kAttnOut);
      each(step, step.plan.blocks, [&](const Block& b) { leave_attention(step, layer, l, b, scratch); });
      project(step, layer.mlp_in, kMlpIn, kMlpInOut);
      each(step, step.plan.blocks, [&](const Block& b) { gate(step, layer, l, b, scratch); });
      project(step, layer.mlp_out, kGated, kMlpOut);
      each(step, step.plan.blocks, [&](const Block& b) { leave(step, layer, l, b, scratch); });
      step.keys.data += layer_stride, step.values.data += layer_stride;
    }
    if (!step.plan.hidden_blocks.empty()) hidden_states(step, scratch);
    output(step, scratch);
  }

  template <class Work>
  static void each(const Step<S>& step, const std::vector<Block>& blocks, Work work) {
    step.team.share(blocks.size(), [&](int64_t i) { work(blocks[i]); });
  }

  template <class Work>
  void each_if(const Step<S>& step, size_t layer, int tap, Work work) {
    if (touched(step, layer, tap)) each(step, step.plan.blocks, work);
  }

  static bool touched(const Step<S>& step, size_t layer, int tap) {
    for (const Adapter<S>* adapter : step.plan.adapters)
      if (adapter->find(layer * kLayerTaps + tap)) return true;
    return false;
  }

  static void visit_tap(Step<S>& step, size_t layer, int tap, const Block& block, Scratch<S>& scratch) {
    if (block.owner < 0) return;
    if (const Detour<S>* detour = step.plan.adapters[block.owner]->find(layer * kLayerTaps + tap))
      visit(*detour, step.taps, tap, block, scratch);
  }

  void visit_head(Step<S>& step, Span<S>* taps, int tap, const Block& block, Scratch<S>& scratch) {
    if (block.owner < 0) return;
    if (const Detour<S>* detour = step.plan.adapters[block.owner]->find(layers_.size() * kLayerTaps + tap))
      visit(*detour, taps, tap, block, scratch);
  }

  // The final norm of a block of `rows`, each a row of the stream, into `taps`.
  void final_norm(Step<S>& step, const std::vector<int64_t>& rows, Span<S>* taps, const Block& block, Scratch<S>& scratch) {
    for (int64_t r = block.row; r < block.stop; r++)
      rms_norm(buffers_.stream + rows[r] * shape_.hidden, taps[kFinalNormed].row(r), final_norm_.data(), shape_.hidden,
               shape_.epsilon);
    visit_head(step, taps, kFinalNormed, block, scratch);
  }

  void hidden_states(Step<S>& step, Scratch<S>& scratch) {
    step.hidden_taps[kFinalNormed] = {step.hidden, shape_.hidden, shape_.hidden};
    each(step, step.plan.hidden_blocks,
         [&](const Block& block) { final_norm(step, step.plan.hidden_row, step.hidden_taps, block, scratch); });
  }

  void set_taps(Step<S>& step, const Layer<S>& layer, size_t l) {
    const Buffers<S>& b = buffers_;
    const int64_t h = shape_.hidden, i = shape_.intermediate, fused = shape_.fused_width();
    Span<S>* taps = step.taps;
    const auto own = [](S* data, int64_t width) { return Span<S>{data, width, width}; };
    taps[kStream] = own(b.stream, h), taps[kNormed] = own(b.normed, h);
    taps[kAttended] = own(b.attended, shape_.query_width()), taps[kAttnOut] = own(b.attn_out, h);
    taps[kAttnAdded] = layer.attn_post.empty() ? taps[kAttnOut] : own(b.attn_added, h);
    taps[kMlpStream] = own(b.middle, h), taps[kMlpNormed] = own(b.mlp_normed, h);
    taps[kGated] = own(b.gated, i), taps[kMlpOut] = own(b.mlp_out, h);
    taps[kMlpAdded] = layer.mlp_post.empty() ? taps[kMlpOut] : own(b.mlp_added, h);
    split(step, layer.queries, l, kQueryIn, kQueryOut, taps[kNormed], {b.fused, fused, fused}, b.query_in);
    split(step, layer.mlp_in, l, kMlpIn, kMlpInOut, taps[kMlpNormed], {b.gates, 2 * i, 2 * i}, b.mlp_in);
  }

  // Linears that read one value and write side by side. An input that an adapter changes gets rows of its own.
  static void split(Step<S>& step, const std::vector<Linear<S>>& linears, size_t l, int in, int out, const Span<S>& from,
                    const Span<S>& to, S* const* own) {
    int64_t column = 0;
    for (size_t n = 0; n < linears.size(); n++) {
      step.taps[in + n] = touched(step, l, in + n) ? Span<S>{own[n], from.width, from.width} : from;
      step.taps[out + n] = {to.data + column, to.stride, linears[n].out};
      column += linears[n].out;
    }
  }

  void project(Step<S>& step, const std::vector<Linear<S>>& linears, int in, int out) {
    Product<S> jobs[3];
    for (size_t n = 0; n < linears.size(); n++) {
      const Span<S>&x = step.taps[in + n], &y = step.taps[out + n];
      jobs[n] = {&linears[n], x.data, x.stride, y.data, y.stride};
    }
    multiply(step.team, jobs, (int)linears.size(), step.plan.rows);
  }

  void project(Step<S>& step, const Linear<S>& linear, int in, int out) {
    const Product<S> job{&linear, step.taps[in].data, step.taps[in].stride, step.taps[out].data, step.taps[out].stride};
    multiply(step.team, &job, 1, step.plan.rows);
  }

  void norm(const Step<S>& step, int from, int to, const Floats& weight, const Block& block) {
    for (int64_t r = block.row; r < block.stop; r++)
      rms_norm(step.taps[from].row(r), step.taps[to].row(r), weight.data(), shape_.hidden, shape_.epsilon);
  }

  // Visits the inputs of linears that share `from`, each on rows of its own.
  void visit_inputs(Step<S>& step, size_t count, size_t l, int from, int in, const Block& block, Scratch<S>& scratch) {
    for (size_t n = 0; n < count; n++) {
      const Span<S>&x = step.taps[from], &y = step.taps[in + n];
      if (x.data == y.data) continue;
      for (int64_t r = block.row; r < block.stop; r++) std::memcpy(y.row(r), x.row(r), x.width * sizeof(S));
      visit_tap(step, l, in + n, block, scratch);
    }
  }

  void enter(Step<S>& step, const Layer<S>& layer, size_t l, const Block& block, Scratch<S>& scratch) {
    norm(step, kStream, kNormed, layer.attn_norm, block);
    visit_tap(step, l, kNormed, block, scratch);
    visit_inputs(step, layer.queries.size(), l, kNormed, kQueryIn, block, scratch);
  }

  void write_keys(Step<S>& step, const Layer<S>& layer, size_t l, const Block& block, Scratch<S>& scratch) {
    for (size_t n = 0; n < layer.queries.size(); n++) visit_tap(step, l, kQueryOut + n, block, scratch);
    const Rotation& rotation = rotations_[layer.rotation];
    const int64_t dim = shape_.head_dim, keys = shape_.query_width(), width = shape_.key_width();
    for (int64_t r = block.row; r < block.stop; r++) {
      S* row = buffers_.fused + r * shape_.fused_width();
      const float* cosine = rotation.cosine.data_ptr<float>() + step.plan.position[r] * shape_.rotary;
      const float* sine = rotation.sine.data_ptr<float>() + step.plan.position[r] * shape_.rotary;
      for (int64_t head = 0; head < shape_.heads + shape_.kv_heads; head++) {
        const Floats& weight = head < shape_.heads ? layer.query_norm : layer.key_norm;
        if (!weight.empty()) rms_norm(row + head * dim, row + head * dim, weight.data(), dim, shape_.epsilon);
        rotate(row + head * dim, cosine, sine, shape_.rotary / 2);
      }
      std::memcpy(step.keys.token(step.plan.table[r], step.plan.slot[r]), row + keys, width * sizeof(S));
      std::memcpy(step.values.token(step.plan.table[r], step.plan.slot[r]), row + keys + width, width * sizeof(S));
    }
  }

  void attention(Step<S>& step, const Layer<S>& layer, Scratch<S>& scratch) {
    const AttentionShape shape{shape_.heads, shape_.kv_heads, shape_.head_dim, (float)shape_.scale, layer.window,
                               (float)shape_.softcap};
    const int64_t width = shape_.fused_width();
    const Span<S>& out = step.taps[kAttended];
    step.team.share(step.plan.pieces.size(), [&](int64_t item) {
      const Piece& piece = step.plan.pieces[item];
      Attending<S>(piece, buffers_.fused, width, step.keys, step.values, step.plan.table[piece.row], step.plan.slot[piece.row],
                   shape, scratch)
          .run(out.data, out.stride);
    });
  }

  void leave_attention(Step<S>& step, const Layer<S>& layer, size_t l, const Block& block, Scratch<S>& scratch) {
    visit_tap(step, l, kAttnOut, block, scratch);
    if (!layer.attn_post.empty()) {
      norm(step, kAttnOut, kAttnAdded, layer.attn_post, block);
      visit_tap(step, l, kAttnAdded, block, scratch);
    }
    for (int64_t r = block.row; r < block.stop; r++)
      add(step.taps[kStream].row(r), step.taps[kAttnAdded].row(r), step.taps[kMlpStream].row(r), shape_.hidden);
    norm(step, kMlpStream, kMlpNormed, layer.mlp_norm, block);
    visit_tap(step, l, kMlpNormed, block, scratch);
    visit_inputs(step, layer.mlp_in.size(), l, kMlpNormed, kMlpIn, block, scratch);
  }

  void gate(Step<S>& step, const Layer<S>& layer, size_t l, const Block& block, Scratch<S>& scratch) {
    for (size_t n = 0; n < layer.mlp_in.size(); n++) visit_tap(step, l, kMlpInOut + n, block, scratch);
    const int64_t width = shape_.intermediate;
    for (int64_t r = block.row; r < block.stop; r++) {
      const S* row = buffers_.gates + r * 2 * width;
      if (r == block.row) ask(row, 2 * width * sizeof(S));
      if (r + 1 < block.stop) ask(row + 2 * width, 2 * width * sizeof(S));
      gated(row, row + width, step.taps[kGated].row(r), width, activation_);
    }
    visit_tap(step, l, kGated, block, scratch);
  }

  void leave(Step<S>& step, const Layer<S>& layer, size_t l, const Block& block, Scratch<S>& scratch) {
    visit_tap(step, l, kMlpOut, block, scratch);
    if (!layer.mlp_post.empty()) {
      norm(step, kMlpOut, kMlpAdded, layer.mlp_post, block);
      visit_tap(step, l, kMlpAdded, block, scratch);
    }
    for (int64_t r = block.row; r < block.stop; r++)
      add(step.taps[kMlpStream].row(r), step.taps[kMlpAdded].row(r), step.taps[kStream].row(r), shape_.hidden);
  }

  void output(Step<S>& step, Scratch<S>& scratch) {
    const Buffers<S>& b = buffers_;
    const int64_t h = shape_.hidden;
    step.head_taps[kFinalNormed] = {b.final_normed, h, h};
    step.head_taps[kHeadIn] = {b.head_in, h, h};
    step.head_taps[kLogits] = {step.logits, head_.out, head_.out};
    each(step, step.plan.head_blocks, [&](const Block& block) {
      final_norm(step, step.plan.logit_row, step.head_taps, block, scratch);
      std::memcpy(b.head_in + block.row * h, b.final_normed + block.row * h, (block.stop - block.row) * h * sizeof(S));
      visit_head(step, step.head_taps, kHeadIn, block, scratch);
    });
    const Product<S> job{&head_, b.head_in, h, step.logits, head_.out};
    multiply(step.team, &job, 1, step.plan.logit_rows);
    each(step, step.plan.head_blocks, [&](const Block& block) {
      visit_head(step, step.head_taps, kLogits, block, scratch);
      if (shape_.final_softcap > 0)
        for (int64_t r = block.row; r < block.stop; r++) soft_cap(step.logits + r * head_.out, head_.out, shape_.final_softcap);
    });
  }

  Shape shape_;
  Activation activation_;
  std::vector<Layer<S>> layers_;
  std::vector<Rotation> rotations_;
  Floats final_norm_;
  Linear<S> head_;
  std::shared_ptr<const TapTable> taps_;
  Buffers<S> buffers_;
  std::vector<Scratch<S>> scratch_;
};

}  // namespace graft
