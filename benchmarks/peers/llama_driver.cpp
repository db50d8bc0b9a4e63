// Drives libllama through a workload; peer_llama.py measures it.
//
//   peer_llama MODEL.gguf REQUESTS PROMPT_TOKENS NEW_TOKENS THREADS [LORA.gguf ...] < ids and commands
//
// stdin: REQUESTS x PROMPT_TOKENS token ids, then a word for every run. stdout: a JSON list a run, for each request
// the seconds, since the run began, at which its tokens were there. A context has one set of adapters, so requests
// of one adapter (request i is on adapter i mod their number) are decoded together, adapters one after another.

#include <llama.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <string>
#include <vector>

using Clock = std::chrono::steady_clock;

static void check(bool good, const char* what) {
  if (!good) {
    std::fprintf(stderr, "peer_llama: %s\n", what);
    std::exit(1);
  }
}

// The greedy token: a maximum the compiler makes vectors of, then its place.
static llama_token largest(const float* logits, int count) {
  float top = logits[0];
  for (int i = 1; i < count; ++i) top = logits[i] > top ? logits[i] : top;
  return std::find(logits, logits + count, top) - logits;
}

static void add(llama_batch& batch, llama_token id, int position, int sequence, bool wanted) {
  const int i = batch.n_tokens++;
  batch.token[i] = id;
  batch.pos[i] = position;
  batch.n_seq_id[i] = 1;
  batch.seq_id[i][0] = sequence;
  batch.logits[i] = wanted;
}

int main(int argc, char** argv) {
  check(argc >= 6, "too few arguments");
  const int requests = std::atoi(argv[2]), prompt = std::atoi(argv[3]), fresh = std::atoi(argv[4]);
  llama_log_set([](ggml_log_level level, const char* text, void*) {
    if (level == GGML_LOG_LEVEL_ERROR) std::fputs(text, stderr);
  }, nullptr);
  llama_backend_init();
  llama_model* model = llama_model_load_from_file(argv[1], llama_model_default_params());
  check(model, "can't load the model");
  std::vector<llama_adapter_lora*> adapters;
  for (int i = 6; i < argc; ++i) {
    adapters.push_back(llama_adapter_lora_init(model, argv[i]));
    check(adapters.back(), "can't load an adapter");
  }
  const int groups = std::max<int>(1, adapters.size());
  const int together = (requests + groups - 1) / groups;

  llama_context_params params = llama_context_default_params();
  params.n_ctx = together * ((prompt + fresh + 255) / 256) * 256;
  params.n_batch = std::max(2048, together * prompt);
  params.n_seq_max = together;
  params.n_threads = params.n_threads_batch = std::atoi(argv[5]);
  params.kv_unified = false;  // measured: 630 tokens/s against 449 for 32 sequences
  llama_context* context = llama_init_from_model(model, params);
  check(context, "can't make a context");
  const int vocabulary = llama_vocab_n_tokens(llama_model_get_vocab(model));

  std::vector<llama_token> ids(size_t(requests) * prompt);
  for (auto& id : ids) check(bool(std::cin >> id), "too few ids");
  llama_batch batch = llama_batch_init(params.n_batch, 0, 1);

  for (std::string command; std::cin >> command;) {
    std::vector<std::vector<double>> times(requests);
    const auto start = Clock::now();
    for (int group = 0; group < groups; ++group) {
      float scale = 1.0f;
      llama_memory_clear(llama_get_memory(context), false);
      if (!adapters.empty()) check(!llama_set_adapters_lora(context, &adapters[group], 1, &scale), "can't set it");
      std::vector<int> rows, last;  // requests of this adapter; where in the batch each one's logits are
      for (int request = group; request < requests; request += groups) rows.push_back(request);
      batch.n_tokens = 0;
      for (size_t row = 0; row < rows.size(); ++row) {
        for (int at = 0; at < prompt; ++at) add(batch, ids[rows[row] * prompt + at], at, row, at + 1 == prompt);
        last.push_back(batch.n_tokens - 1);
      }
      for (int step = 0; step < fresh; ++step) {
        check(!llama_decode(context, batch), "decoding failed");
        batch.n_tokens = 0;
        std::vector<llama_token> next;
        for (int place : last) next.push_back(largest(llama_get_logits_ith(context, place), vocabulary));
        const double now = std::chrono::duration<double>(Clock::now() - start).count();
        for (size_t row = 0; row < rows.size(); ++row) {
          times[rows[row]].push_back(now);
          last[row] = row;
          add(batch, next[row], prompt + step, row, true);
        }
      }
    }
    std::string out = "[";
    for (const auto& request : times) {
      out += out.size() > 1 ? ",[" : "[";
      for (double time : request) out += (out.back() == '[' ? "" : ",") + std::to_string(time);
      out += "]";
    }
    std::cout << out << "]" << std::endl;
  }
}
