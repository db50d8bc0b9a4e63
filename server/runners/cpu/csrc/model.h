// One step of a Llama-like decoder in a single call: all layers, all adapters, one parallel region.
// Phases that follow each other are separated by the barrier at which the team meets (team.h). Matrix products are
// shared out by panels of columns, everything else by blocks of rows that belong to one adapter.
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
  std::vector<float> attn_norm, attn_post, mlp_norm, mlp_post, query_norm, key_norm;  // empty: none
  int64_t window;    // 0: none
  int64_t rotation;  // which of the model's tables
};

struct Rotation {
  at::Tensor cosine, sine;  // float [positions, rotary]
};

// Rows of one sequence, as server/cache/step.py describes them.
struct Run {
  int64_t owner, length, start, position, logits;
};

// The memory of a step: one row a token, kept between steps and grown when needed.
template <class S>
struct Buffers {
  S *stream, *middle, *normed, *fused, *attended, *attn_out, *attn_added, *mlp_normed, *gates, *gated, *mlp_out,
      *mlp_added, *query_in[3], *mlp_in[2], *final_normed, *head_in;
  std::vector<S> memory;

  void lay_out(const Shape& shape, int64_t rows) {
    const int64_t h = shape.hidden, q = shape.query_width(), i = shape.intermediate;
    const std::pair<S**, int64_t> parts[] = {
        {&stream, h}, {&middle, h}, {&normed, h}, {&fused, shape.fused_width()}, {&attended, q}, {&attn_out, h},
        {&attn_added, h}, {&mlp_normed, h}, {&gates, 2 * i}, {&gated, i}, {&mlp_out, h}, {&mlp_added, h},
        {&query_in[0], h}, {&query_in[1], h}, {&query_in[2], h}, {&mlp_in[0], h}, {&mlp_in[1], h},
        {&final_normed, h}, {&head_in, h}};
    int64_t total = kLanes;
    for (const auto& [_, width] : parts) total += width * rows + kLanes;
    Scratch<S>::room(memory, total);
    S* next = memory.data();
    for (const auto& [part, width] : parts) {
      *part = next;
      next += (width * rows + kLanes - 1) / kLanes * kLanes;
    }
  }
};

// What one call of `step` works on.
template <class S>
struct Step {
  Team::Member* team = nullptr;
  int64_t rows = 0, logit_rows = 0;
  std::vector<Block> blocks, head_blocks;
  std::vector<const Adapter<S>*> adapters;
  std::vector<const int32_t*> table;               // by row
  std::vector<int64_t> slot, position, logit_row;  // by row, by row, by row of logits
  std::vector<Together> tiles;                     // of attention
  Pages<S> keys, values;
  S* logits;
  Span<S> taps[kLayerTaps], head_taps[kHeadTaps];
};

// Blocks of rows with one owner each; small enough that all threads have work.
inline std::vector<Block> blocks_of(const std::vector<int64_t>& lengths, int threads) {
  int64_t total = 0, row = 0;
  for (int64_t length : lengths) total += length;
  const int64_t most = std::min(kBlock, std::max<int64_t>(1, total / (4 * threads)));
  std::vector<Block> blocks;
  for (size_t owner = 0; owner < lengths.size(); owner++)
    for (const int64_t stop = row + lengths[owner]; row < stop;) {
      const int64_t next = std::min(stop, row + most);
      blocks.push_back({row, next, (int)owner - 1});
      row = next;
    }
  return blocks;
}

template <class S>
class Model {
 public:
  explicit Model(Shape shape) : shape_(std::move(shape)), activation_(activation_of(shape_.activation)) {}

  std::vector<Layer<S>> layers;
  std::vector<Rotation> rotations;
  std::vector<float> final_norm;
  Linear<S> head;

  // rows [T, hidden]; keys and values as server/cache/tensors.py lays them out. Returns the logits [n, vocabulary].
  at::Tensor step(const at::Tensor& rows, const at::Tensor& keys, const at::Tensor& values,
                     const std::vector<Run>& runs, const std::vector<std::vector<int32_t>>& tables,
                     const std::vector<const Adapter<S>*>& adapters) {
    Step<S> step = plan(runs, tables, adapters);
    TORCH_CHECK(rows.is_contiguous() && rows.size(0) == step.rows, "rows must be contiguous and as many as the runs have");
    TORCH_CHECK(keys.is_contiguous() && values.is_contiguous(), "the cache must be contiguous");
    TORCH_CHECK(keys.itemsize() == sizeof(S) && rows.itemsize() == sizeof(S), "rows and cache must have the base's dtype");
    at::Tensor logits = at::empty({step.logit_rows, head.out}, rows.options());
    step.logits = (S*)logits.data_ptr();
    step.keys = {(S*)keys.data_ptr(), shape_.kv_heads, shape_.head_dim};
    step.values = {(S*)values.data_ptr(), shape_.kv_heads, shape_.head_dim};
    buffers_.lay_out(shape_, step.rows);
    scratch_.resize(at::get_num_threads());
    std::memcpy(buffers_.stream, rows.data_ptr(), rows.nbytes());
    const int64_t layer_bytes = keys.stride(0);
    Team::run([&](Team::Member& team) {
      Step<S> mine = step;  // taps and pages move from layer to layer; every thread moves its own
      mine.team = &team;
      walk(mine, scratch_[omp_get_thread_num()], layer_bytes);
    });
    return logits;
  }

 private:
  Step<S> plan(const std::vector<Run>& runs, const std::vector<std::vector<int32_t>>& tables,
               const std::vector<const Adapter<S>*>& adapters) {
    Step<S> step;
    step.adapters = adapters;
    std::vector<int64_t> lengths(adapters.size() + 1), logit_lengths(adapters.size() + 1);
    for (size_t i = 0; i < runs.size(); i++) {
      const Run& run = runs[i];
      lengths.at(run.owner) += run.length;
      logit_lengths.at(run.owner) += run.logits;
      TORCH_CHECK((run.start + run.length + kPage - 1) / kPage <= (int64_t)tables.at(i).size(), "a run lacks blocks");
      for (int64_t r = 0; r < run.length; r++) {
        if (r >= run.length - run.logits) step.logit_row.push_back(step.slot.size());
        step.table.push_back(tables[i].data());
        step.slot.push_back(run.start + r);
        step.position.push_back(run.position + r);
      }
    }
    step.rows = step.slot.size(), step.logit_rows = step.logit_row.size();
    step.blocks = blocks_of(lengths, at::get_num_threads());
    step.tiles = together(step.table, step.slot);
    step.head_blocks = blocks_of(logit_lengths, at::get_num_threads());
    return step;
  }

  void walk(Step<S>& step, Scratch<S>& scratch, int64_t layer_stride) {
    for (size_t l = 0; l < layers.size(); l++) {
      const Layer<S>& layer = layers[l];
      set_taps(step, layer, l);
      each(step, step.blocks, [&](const Block& b) { enter(step, layer, l, b, scratch); });
      project(step, layer.queries, kQueryIn, kQueryOut);
      each(step, step.blocks, [&](const Block& b) { write_keys(step, layer, l, b, scratch); });
      attention(step, layer, scratch);
      each_if(step, l, kAttended, [&](const Block& b) { visit_tap(step, l, kAttended, b, scratch); });
      project(step, layer.attn_out, kAttended, kAttnOut);
      each(step, step.blocks, [&](const Block& b) { leave_attention(step, layer, l, b, scratch); });
      project(step, layer.mlp_in, kMlpIn, kMlpInOut);
      each(step, step.blocks, [&](const Block& b) { gate(step, layer, l, b, scratch); });
      project(step, layer.mlp_out, kGated, kMlpOut);
      each(step, step.blocks, [&](const Block& b) { leave(step, layer, l, b, scratch); });
      step.keys.data += layer_stride, step.values.data += layer_stride;
    }
    output(step, scratch);
  }

  template <class Work>
  static void each(const Step<S>& step, const std::vector<Block>& blocks, Work work) {
    step.team->share(blocks.size(), [&](int64_t i) { work(blocks[i]); });
  }

  template <class Work>
  void each_if(const Step<S>& step, size_t layer, int tap, Work work) {
    if (touched(step, layer, tap)) each(step, step.blocks, work);
  }

  static bool touched(const Step<S>& step, size_t layer, int tap) {
    for (const Adapter<S>* adapter : step.adapters)
      if (adapter->find(layer * kLayerTaps + tap)) return true;
    return false;
  }

  static void visit_tap(Step<S>& step, size_t layer, int tap, const Block& block, Scratch<S>& scratch) {
    if (block.owner < 0) return;
    if (const Detour<S>* detour = step.adapters[block.owner]->find(layer * kLayerTaps + tap))
      visit(*detour, step.taps, tap, block, scratch);
  }

  void visit_head(Step<S>& step, int tap, const Block& block, Scratch<S>& scratch) {
    if (block.owner < 0) return;
    if (const Detour<S>* detour = step.adapters[block.owner]->find(layers.size() * kLayerTaps + tap))
      visit(*detour, step.head_taps, tap, block, scratch);
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
    multiply(*step.team, jobs, (int)linears.size(), step.rows);
  }

  void project(Step<S>& step, const Linear<S>& linear, int in, int out) {
    const Product<S> job{&linear, step.taps[in].data, step.taps[in].stride, step.taps[out].data, step.taps[out].stride};
    multiply(*step.team, &job, 1, step.rows);
  }

  void norm(const Step<S>& step, int from, int to, const std::vector<float>& weight, const Block& block) {
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
    const Rotation& rotation = rotations[layer.rotation];
    const int64_t dim = shape_.head_dim, keys = shape_.query_width(), width = shape_.key_width();
    for (int64_t r = block.row; r < block.stop; r++) {
      S* row = buffers_.fused + r * shape_.fused_width();
      const float* cosine = rotation.cosine.data_ptr<float>() + step.position[r] * shape_.rotary;
      const float* sine = rotation.sine.data_ptr<float>() + step.position[r] * shape_.rotary;
      for (int64_t head = 0; head < shape_.heads + shape_.kv_heads; head++) {
        const std::vector<float>& weight = head < shape_.heads ? layer.query_norm : layer.key_norm;
        if (!weight.empty()) rms_norm(row + head * dim, row + head * dim, weight.data(), dim, shape_.epsilon);
        rotate(row + head * dim, cosine, sine, shape_.rotary / 2);
      }
      std::memcpy(step.keys.token(step.table[r], step.slot[r]), row + keys, width * sizeof(S));
      std::memcpy(step.values.token(step.table[r], step.slot[r]), row + keys + width, width * sizeof(S));
    }
  }

  void attention(Step<S>& step, const Layer<S>& layer, Scratch<S>& scratch) {
    const AttentionShape shape{shape_.heads, shape_.kv_heads, shape_.head_dim, (float)shape_.scale, layer.window,
                               (float)shape_.softcap};
    const int64_t group = shape_.heads / shape_.kv_heads * shape_.head_dim, width = shape_.fused_width();
    const Span<S>& out = step.taps[kAttended];
    step.team->share(step.tiles.size() * shape_.kv_heads, [&](int64_t item) {
      const auto [row, count] = step.tiles[item / shape_.kv_heads];
      const int64_t kv_head = item % shape_.kv_heads;
      attend(buffers_.fused + row * width + kv_head * group, width, out.row(row) + kv_head * group, out.stride, step.keys,
             step.values, kv_head, step.table[row], step.slot[row], count, shape, scratch);
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
    step.head_taps[kLogits] = {step.logits, head.out, head.out};
    each(step, step.head_blocks, [&](const Block& block) {
      for (int64_t r = block.row; r < block.stop; r++)
        rms_norm(b.stream + step.logit_row[r] * h, b.final_normed + r * h, final_norm.data(), h, shape_.epsilon);
      visit_head(step, kFinalNormed, block, scratch);
      std::memcpy(b.head_in + block.row * h, b.final_normed + block.row * h, (block.stop - block.row) * h * sizeof(S));
      visit_head(step, kHeadIn, block, scratch);
    });
    const Product<S> job{&head, b.head_in, h, step.logits, head.out};
    multiply(*step.team, &job, 1, step.logit_rows);
    each(step, step.head_blocks, [&](const Block& block) {
      visit_head(step, kLogits, block, scratch);
      if (shape_.final_softcap > 0)
        for (int64_t r = block.row; r < block.stop; r++) soft_cap(step.logits + r * head.out, head.out, shape_.final_softcap);
    });
  }

  Shape shape_;
  Activation activation_;
  Buffers<S> buffers_;
  std::vector<Scratch<S>> scratch_;
};

}  // namespace graft
