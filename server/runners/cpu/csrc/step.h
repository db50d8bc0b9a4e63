// What one call of `step` works on, planned and checked before the threads begin, so that they neither allocate nor check.
#pragma once
#include "layer.h"

namespace graft {

// Rows of one sequence, as server/cache/step.py describes them.
struct Run {
  int64_t owner, length, start, position, logits, hidden;
};

// The memory of a step: one row a token, kept between steps and grown when needed.
template <class S>
struct Buffers {
  S *stream, *middle, *normed, *fused, *attended, *attn_out, *attn_added, *mlp_normed, *gates, *gated, *mlp_out,
      *mlp_added, *query_in[3], *mlp_in[2], *final_normed, *head_in;
  Room<S> memory;

  // Throws bad_alloc.
  void lay_out(const Shape& shape, int64_t rows) {
    const int64_t h = shape.hidden, q = shape.query_width(), i = shape.intermediate;
    const std::pair<S**, int64_t> parts[] = {
        {&stream, h}, {&middle, h}, {&normed, h}, {&fused, shape.fused_width()}, {&attended, q}, {&attn_out, h},
        {&attn_added, h}, {&mlp_normed, h}, {&gates, 2 * i}, {&gated, i}, {&mlp_out, h}, {&mlp_added, h},
        {&query_in[0], h}, {&query_in[1], h}, {&query_in[2], h}, {&mlp_in[0], h}, {&mlp_in[1], h},
        {&final_normed, h}, {&head_in, h}};
    constexpr int64_t line = kLine / sizeof(S);
    int64_t total = 0;
    for (const auto& [_, width] : parts) total += divide_up(width * rows, line) * line;
    memory.grow(total);
    S* next = memory.data();
    for (const auto& [part, width] : parts) {
      *part = next;
      next += divide_up(width * rows, line) * line;
    }
  }
};

// Which rows a step has and whose they are, the same for all layers and threads.
template <class S>
struct Plan {
  int64_t rows = 0, logit_rows = 0, hidden_rows = 0;
  std::vector<Block> blocks, head_blocks, hidden_blocks;
  std::vector<const Adapter<S>*> adapters;
  std::vector<const int32_t*> table;               // by row
  std::vector<int64_t> slot, position;             // by row
  std::vector<int64_t> logit_row, hidden_row;      // by row of logits, by row whose hidden state is wanted
  std::vector<Piece> pieces;                       // of attention; the model makes them
  ScratchSize scratch;                             // of each thread
};

// One thread's way through the layers: taps and pages move from layer to layer, and every thread moves its own.
template <class S>
struct Step {
  const Plan<S>& plan;
  Team::Member& team;
  Pages<S> keys, values;
  S *logits, *hidden;
  Span<S> taps[kLayerTaps] = {}, head_taps[kHeadTaps] = {}, hidden_taps[kHeadTaps] = {};
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

// What a run may reach.
struct Reach {
  int64_t owners, positions, blocks;  // the bare base is an owner; lengths of the rotation tables and of the cache
};

// Raises ValueError for rows that would be read or written where there are none.
inline void require_run(const Run& run, const std::vector<int32_t>& table, const Reach& reach) {
  TORCH_CHECK_VALUE(0 <= run.owner && run.owner < reach.owners, "a run's owner is ", run.owner, " of ", reach.owners - 1,
                    " adapters");
  TORCH_CHECK_VALUE(run.length > 0 && 0 <= run.logits && run.logits <= run.length, "a run of ", run.length,
                    " rows can't have logits of ", run.logits);
  TORCH_CHECK_VALUE(0 <= run.hidden && run.hidden <= run.length, "a run of ", run.length, " rows can't have hidden states of ",
                    run.hidden);
  TORCH_CHECK_VALUE(0 <= run.position && run.position <= reach.positions - run.length, "a run's positions ", run.position,
                    " to ", run.position + run.length - 1, " are not all among the ", reach.positions, " of the rotations");
  TORCH_CHECK_VALUE(0 <= run.start && run.start <= (int64_t)table.size() * kPage - run.length, "a run lacks blocks: it has ",
                    table.size(), " for rows ", run.start, " to ", run.start + run.length - 1);
  for (int64_t i = 0; i * kPage < run.start + run.length; i++)
    TORCH_CHECK_VALUE(0 <= table[i] && table[i] < reach.blocks, "a run's block table names block ", table[i], " of ",
                      reach.blocks);
}

// `tables` must outlive the plan. Raises ValueError.
template <class S>
Plan<S> plan_of(const std::vector<Run>& runs, const std::vector<std::vector<int32_t>>& tables,
                const std::vector<const Adapter<S>*>& adapters, const Reach& reach) {
  TORCH_CHECK_VALUE(runs.size() == tables.size(), runs.size(), " runs have ", tables.size(), " block tables");
  Plan<S> plan;
  plan.adapters = adapters;
  std::vector<int64_t> lengths(reach.owners), logit_lengths(reach.owners), hidden_lengths(reach.owners);
  for (size_t i = 0; i < runs.size(); i++) {
    const Run& run = runs[i];
    require_run(run, tables[i], reach);
    TORCH_CHECK_VALUE(i == 0 || runs[i - 1].owner <= run.owner, "the runs must be sorted by owner");
    lengths[run.owner] += run.length;
    logit_lengths[run.owner] += run.logits;
    hidden_lengths[run.owner] += run.hidden;
    for (int64_t r = 0; r < run.length; r++) {
      if (r >= run.length - run.logits) plan.logit_row.push_back(plan.slot.size());
      if (r >= run.length - run.hidden) plan.hidden_row.push_back(plan.slot.size());
      plan.table.push_back(tables[i].data());
      plan.slot.push_back(run.start + r);
      plan.position.push_back(run.position + r);
    }
  }
  plan.rows = plan.slot.size(), plan.logit_rows = plan.logit_row.size(), plan.hidden_rows = plan.hidden_row.size();
  plan.blocks = blocks_of(lengths, at::get_num_threads());
  plan.head_blocks = blocks_of(logit_lengths, at::get_num_threads());
  plan.hidden_blocks = blocks_of(hidden_lengths, at::get_num_threads());
  for (const Adapter<S>* adapter : adapters) plan.scratch.cover(adapter->scratch());
  return plan;
}

}  // namespace graft
