// Python's view of the kernels: a model, an adapter and argmax for each dtype, and each kernel by itself for tests.
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include "model.h"
#include "sampling.h"

namespace py = pybind11;
using namespace graft;
using at::Tensor;
typedef std::optional<Tensor> Maybe;
typedef std::pair<Tensor, Maybe> Weights;  // weight [out, in] and bias [out]

template <class S>
std::vector<Linear<S>> linears(const std::vector<Weights>& given) {
  std::vector<Linear<S>> made;
  for (const auto& [weight, bias] : given) made.emplace_back(weight, bias);
  return made;
}

template <class S>
void add_layer(Model<S>& model, const std::vector<Weights>& queries, const Weights& attn_out,
               const std::vector<Weights>& mlp_in, const Weights& mlp_out, const Tensor& attn_norm,
               const Maybe& attn_post, const Tensor& mlp_norm, const Maybe& mlp_post, const Maybe& query_norm,
               const Maybe& key_norm, int64_t window, int64_t rotation) {
  model.add_layer({linears<S>(queries), linears<S>(mlp_in), Linear<S>(attn_out.first, attn_out.second),
                   Linear<S>(mlp_out.first, mlp_out.second), floats(attn_norm), floats(attn_post), floats(mlp_norm),
                   floats(mlp_post), floats(query_norm), floats(key_norm), window, rotation});
}

template <class S>
Tensor argmax_rows(const Tensor& logits) {
  const Tensor rows = logits.contiguous();
  require<S>(rows, "logits", {-1, -1});
  TORCH_CHECK_VALUE(rows.size(1) > 0, "there is no largest of no logits");
  Tensor best = at::empty({rows.size(0)}, at::kLong);
  int64_t* to = best.data_ptr<int64_t>();
  at::parallel_for(0, rows.size(0), 1, [&](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; r++) to[r] = argmax((const S*)rows.data_ptr() + r * rows.size(1), rows.size(1));
  });
  return best;
}

// Draws first, then scores, in the order given.
template <class S>
std::vector<Answer> sample(const Tensor& logits, const std::vector<Draw>& draws, const std::vector<Score>& scores) {
  require<S>(logits, "logits", {-1, -1});
  const int64_t rows = logits.size(0), size = logits.size(1), first = draws.size(), all = first + scores.size();
  for (const Draw& draw : draws) {
    TORCH_CHECK_VALUE(draw.row >= 0 && draw.row < rows, "there is no row ", draw.row);
    for (int64_t i = 0; i < draw.edit_count; i++)
      TORCH_CHECK_VALUE(draw.edits[i].id >= 0 && draw.edits[i].id < size, "there is no token ", draw.edits[i].id);
  }
  for (const Score& score : scores) {
    TORCH_CHECK_VALUE(score.row >= 0 && score.row < rows, "there is no row ", score.row);
    for (int64_t id : score.ids) TORCH_CHECK_VALUE(id >= 0 && id < size, "there is no token ", id);
  }
  std::vector<Answer> answers(all);
  const S* const from = (const S*)logits.data_ptr();
  run_team([&](Team::Member& team) {
    Sampler sampler;
    team.share(all, [&](int64_t i) {
      if (i < first)
        answers[i] = sampler.draw(from + draws[i].row * size, size, draws[i]);
      else
        answers[i] = sampler.score(from + scores[i - first].row * size, size, scores[i - first].ids, scores[i - first].top);
    });
  });
  return answers;
}

// A view of what Python keeps alive; null for None.
template <class T>
std::pair<const T*, int64_t> view(const py::object& given) {
  if (given.is_none()) return {nullptr, 0};
  const py::buffer_info info = py::reinterpret_borrow<py::buffer>(given).request();
  TORCH_CHECK_VALUE(info.itemsize == sizeof(T) && info.ndim == 1 && (info.size == 0 || info.strides[0] == sizeof(T)),
              "an array of another kind");
  return {(const T*)info.ptr, info.size};
}

Draw draw_of(int64_t row, bool greedy, float temperature, float min_p, int64_t top_k, double top_p, uint64_t seed,
             int64_t position, const py::object& edits, const py::object& allowed, int64_t logprobs, int64_t vocabulary) {
  const auto [changes, count] = view<Edit>(edits);
  const auto [words, length] = view<uint32_t>(allowed);
  TORCH_CHECK_VALUE(!words || length * 32 >= vocabulary, "a mask of ", length * 32, " bits for ", vocabulary, " tokens");
  return {row, greedy, temperature, min_p, top_k, top_p, seed, position, changes, count, words, logprobs};
}

// ---- single kernels, as the tests and benchmarks call them ---------------------------------------------------

template <class S>
Tensor linear(const Linear<S>& weight, const Tensor& x) {
  require<S>(x, "x", {-1, weight.in});
  Tensor y = at::empty({x.size(0), weight.out}, x.options());
  const Product<S> job{&weight, (const S*)x.data_ptr(), weight.in, (S*)y.data_ptr(), weight.out};
  run_team([&](Team::Member& team) { multiply(team, &job, 1, x.size(0)); });
  return y;
}

// The taps in `values` are one layer's; the adapter's detour at `tap` is applied to blocks of `lengths` rows.
template <class S>
void detour(const std::vector<const Adapter<S>*>& adapters, std::vector<Tensor> values, int64_t tap,
            const std::vector<int64_t>& lengths) {
  TORCH_CHECK_VALUE(lengths.size() == adapters.size() + 1, "lengths are the bare base's and each adapter's");
  TORCH_CHECK_VALUE(0 <= tap && tap < (int64_t)values.size(), "there is no tap ", tap);
  int64_t rows = 0;
  for (int64_t length : lengths) {
    TORCH_CHECK_VALUE(length >= 0, "a length can't be negative");
    rows += length;
  }
  std::vector<Span<S>> taps;
  auto table = std::make_shared<TapTable>(TapTable{{}, {}, (int64_t)values.size()});
  for (const Tensor& value : values) {
    require<S>(value, "a tap", {rows, -1});
    taps.push_back({(S*)value.data_ptr(), value.size(1), value.size(1)});
    table->width.push_back(value.size(1));
    table->changeable.push_back(true);
  }
  ScratchSize size;
  for (const Adapter<S>* adapter : adapters) {
    TORCH_CHECK_VALUE(adapter, "None is no adapter");
    adapter->require_fits(table);
    size.cover(adapter->scratch());
  }
  std::vector<Scratch<S>> scratch(at::get_num_threads());
  for (Scratch<S>& one : scratch) one.grow(size);
  const std::vector<Block> blocks = blocks_of(lengths, at::get_num_threads());
  run_team([&](Team::Member& team) {
    team.share(blocks.size(), [&](int64_t i) {
      if (blocks[i].owner < 0) return;
      if (const Detour<S>* found = adapters[blocks[i].owner]->find(tap))
        visit(*found, taps.data(), (int)tap, blocks[i], scratch[omp_get_thread_num()]);
    });
  });
}

// Row r of `query` looks at `tables[sequence[r]]` up to `slots[r]`.
template <class S>
Tensor paged_attention(const Tensor& query, const Tensor& keys, const Tensor& values,
                       const std::vector<std::vector<int32_t>>& tables, const std::vector<int64_t>& sequence,
                       const std::vector<int64_t>& slots, double scale, int64_t window, double softcap) {
  require<S>(query, "query", {(int64_t)slots.size(), -1, -1});
  const int64_t heads = query.size(1), dim = query.size(2);
  require<S>(keys, "keys", {-1, kPage, -1, dim});
  require<S>(values, "values", keys.sizes());
  const int64_t kv_heads = keys.size(2);
  TORCH_CHECK_VALUE(kv_heads > 0 && heads % kv_heads == 0, heads, " heads can't share ", kv_heads);
  TORCH_CHECK_VALUE(dim % 2 == 0, "a head needs an even number of values, not ", dim);
  TORCH_CHECK_VALUE(sequence.size() == slots.size(), slots.size(), " rows are of ", sequence.size(), " sequences");
  std::vector<const int32_t*> table;
  for (size_t r = 0; r < slots.size(); r++) {
    TORCH_CHECK_VALUE(0 <= sequence[r] && sequence[r] < (int64_t)tables.size(), "there is no table ", sequence[r]);
    require_run({0, 1, slots[r], 0, 0, 0}, tables[sequence[r]], {1, 1, keys.size(0)});
    table.push_back(tables[sequence[r]].data());
  }
  const int64_t group = heads / kv_heads;
  const std::vector<Piece> pieces = attention_pieces(table, slots, kv_heads, group, at::get_num_threads());
  const AttentionShape shape{heads, kv_heads, dim, (float)scale, window, (float)softcap};
  const Pages<S> k{(S*)keys.data_ptr(), kv_heads, dim}, v{(S*)values.data_ptr(), kv_heads, dim};
  std::vector<Scratch<S>> scratch(at::get_num_threads());
  for (Scratch<S>& one : scratch) one.grow(attention_scratch<S>(pieces, slots, group, dim));
  Tensor out = at::empty_like(query);
  run_team([&](Team::Member& team) {
    team.share(pieces.size(), [&](int64_t item) {
      const Piece& piece = pieces[item];
      Attending<S>(piece, (const S*)query.data_ptr(), heads * dim, k, v, table[piece.row], slots[piece.row], shape,
                   scratch[omp_get_thread_num()])
          .run((S*)out.data_ptr(), heads * dim);
    });
  });
  return out;
}

template <class S>
Tensor norm_rows(const Tensor& x, const Tensor& weight, double epsilon) {
  const Floats wide = floats(weight);
  require<S>(x, "x", {-1, (int64_t)wide.size()});
  Tensor y = at::empty_like(x);
  for (int64_t r = 0; r < x.size(0); r++)
    rms_norm((const S*)x.data_ptr() + r * x.size(1), (S*)y.data_ptr() + r * x.size(1), wide.data(), x.size(1), epsilon);
  return y;
}

template <class S>
void rotate_rows(Tensor heads, const Tensor& cosine, const Tensor& sine) {  // heads [T, heads, dim] in place
  require<S>(heads, "heads", {-1, -1, -1});
  require<float>(cosine, "cosine", {heads.size(0), -1});
  require<float>(sine, "sine", cosine.sizes());
  const int64_t count = heads.size(1), dim = heads.size(2), rotary = cosine.size(1);
  TORCH_CHECK_VALUE(rotary % 2 == 0 && rotary <= dim, "a head of ", dim, " values can't have ", rotary, " of them turned");
  for (int64_t i = 0; i < heads.size(0) * count; i++)
    rotate((S*)heads.data_ptr() + i * dim, cosine.data_ptr<float>() + i / count * rotary,
           sine.data_ptr<float>() + i / count * rotary, rotary / 2);
}

template <class S>
Tensor gated_rows(const Tensor& gate, const Tensor& up, const std::string& activation) {
  require<S>(gate, "gate", gate.sizes());
  require<S>(up, "up", gate.sizes());
  Tensor out = at::empty_like(gate);
  gated((const S*)gate.data_ptr(), (const S*)up.data_ptr(), (S*)out.data_ptr(), gate.numel(), activation_of(activation));
  return out;
}

template <class S>
void bind(py::module_ m, const std::string& dtype) {
  const auto free = py::call_guard<py::gil_scoped_release>();
  py::class_<Linear<S>>(m, ("Linear_" + dtype).c_str())
      .def(py::init<const Tensor&, const Maybe&>(), py::arg("weight"), py::arg("bias") = py::none())
      .def("__call__", &linear<S>, free);
  py::class_<Adapter<S>>(m, ("Adapter_" + dtype).c_str())
      .def(py::init<int64_t, std::vector<GivenVector>, std::vector<GivenLowRank>>(), py::kw_only(), py::arg("taps"),
           py::arg("vectors"), py::arg("low_ranks"), free)
      .def_property_readonly("bytes", &Adapter<S>::bytes);
  py::class_<Model<S>>(m, ("Model_" + dtype).c_str())
      .def(py::init<Shape>())
      .def("add_layer", &add_layer<S>, py::kw_only(), py::arg("queries"), py::arg("attn_out"), py::arg("mlp_in"),
           py::arg("mlp_out"), py::arg("attn_norm"), py::arg("attn_post"), py::arg("mlp_norm"), py::arg("mlp_post"),
           py::arg("query_norm"), py::arg("key_norm"), py::arg("window"), py::arg("rotation"))
      .def("set_head", [](Model<S>& model, const Tensor& norm, const Weights& head) {
        model.set_head(floats(norm), Linear<S>(head.first, head.second));
      })
      .def("set_rotations", [](Model<S>& model, const std::vector<std::pair<Tensor, Tensor>>& tables) {
        std::vector<Rotation> rotations;
        for (const auto& [cosine, sine] : tables)
          rotations.push_back({cosine.to(at::kFloat).contiguous(), sine.to(at::kFloat).contiguous()});
        model.set_rotations(std::move(rotations));
      })
      .def("require_fits", &Model<S>::require_fits)
      .def_property_readonly("step_bytes", &Model<S>::step_bytes)
      .def("step", &Model<S>::step, free);
  m.def(("argmax_" + dtype).c_str(), &argmax_rows<S>, free);
  m.def(("sample_" + dtype).c_str(), &sample<S>, free);
  m.def(("detour_" + dtype).c_str(), &detour<S>, free);
  m.def(("attention_" + dtype).c_str(), &paged_attention<S>, free);
  m.def(("rms_norm_" + dtype).c_str(), &norm_rows<S>, free);
  m.def(("rotate_" + dtype).c_str(), &rotate_rows<S>, free);
  m.def(("gated_" + dtype).c_str(), &gated_rows<S>, free);
}

PYBIND11_MODULE(graft_kernels, m) {
  py::class_<Shape>(m, "Shape")
      .def(py::init([](int64_t hidden, int64_t intermediate, int64_t heads, int64_t kv_heads, int64_t head_dim,
                       int64_t rotary, double epsilon, double scale, double softcap, double final_softcap,
                       std::string activation) {
             return Shape{hidden, intermediate, heads, kv_heads, head_dim, rotary,
                          epsilon, scale, softcap, final_softcap, std::move(activation)};
           }),
           py::kw_only(), py::arg("hidden"), py::arg("intermediate"), py::arg("heads"), py::arg("kv_heads"),
           py::arg("head_dim"), py::arg("rotary"), py::arg("epsilon"), py::arg("scale"), py::arg("softcap"),
           py::arg("final_softcap"), py::arg("activation"));
  py::class_<Run>(m, "Run").def(py::init([](int64_t owner, int64_t length, int64_t start, int64_t position,
                                            int64_t logits, int64_t hidden) {
    return Run{owner, length, start, position, logits, hidden};
  }));
  py::class_<GivenVector>(m, "Vector")
      .def(py::init([](int64_t tap, Maybe scale, Maybe bias) { return GivenVector{tap, scale, bias}; }), py::kw_only(),
           py::arg("tap"), py::arg("scale"), py::arg("bias"));
  py::class_<GivenLowRank>(m, "LowRank")
      .def(py::init([](int64_t tap, std::vector<int> reads, Tensor A, Tensor B, Maybe a, Maybe b, std::string activation) {
             return GivenLowRank{tap, std::move(reads), A, B, a, b, std::move(activation)};
           }),
           py::kw_only(), py::arg("tap"), py::arg("reads"), py::arg("A"), py::arg("B"), py::arg("a"), py::arg("b"),
           py::arg("activation"));
  py::class_<Draw>(m, "Draw").def(py::init(&draw_of));
  py::class_<Score>(m, "Score").def(
      py::init([](int64_t row, std::vector<int64_t> ids, int64_t top) { return Score{row, std::move(ids), top}; }));
  m.def("uniform", &uniform);
  m.def("give_back", &give_back);
  m.attr("BLOCK_ROWS") = kPage;
  m.attr("LAYER_TAPS") = (int)kLayerTaps;
  m.attr("HEAD_TAPS") = (int)kHeadTaps;
  bind<float>(m, "float32");
  bind<bf16>(m, "bfloat16");
}
