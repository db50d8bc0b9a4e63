// Vercel's AI SDK: text, streams, tools, objects, embeddings, over chats, completions and Responses.
import assert from "node:assert/strict";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embed, generateText, jsonSchema, Output, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const [url, base, ...adapters] = process.argv.slice(2);
const baseURL = `${url}/v1`;
const graft = createOpenAICompatible({ name: "graft", baseURL, apiKey: "none", supportsStructuredOutputs: true });
const openai = createOpenAI({ baseURL, apiKey: "none" });
const once = { maxRetries: 0, temperature: 0 };
const Animal = z.object({ kind: z.enum(["cat", "dog"]), wild: z.boolean() });
const inputSchema = jsonSchema({ type: "object", properties: { a: { type: "integer" } }, required: ["a"] });

for (const model of [graft(base), openai.chat(base), openai(base)]) {
  const { text, usage } = await generateText({ ...once, model, prompt: "sum" });
  assert.equal(text, "No tool.");
  assert.equal(usage.outputTokens > 0, true);
  let streamed = "";
  for await (const part of streamText({ ...once, model, prompt: "sum" }).textStream) streamed += part;
  assert.equal(streamed, "No tool.");
}
for (const name of adapters) {
  const { text } = await generateText({ ...once, model: graft.completionModel(name), prompt: "One", maxOutputTokens: 5 });
  assert.equal(typeof text, "string");
  for (const model of [graft(name), openai.chat(name), openai(name)]) {
    const made = await generateText({ ...once, model, prompt: "x", output: Output.object({ schema: Animal }), maxOutputTokens: 600 });
    Animal.parse(made.output);
  }
}

let ran = 0;
const add = tool({ description: "Adds.", inputSchema, execute: async () => { ran += 1; return "3"; } });
const made = await generateText({
  ...once, model: graft(base), prompt: "sum", tools: { add }, stopWhen: stepCountIs(2), maxOutputTokens: 100,
});
assert.equal(ran, 1);
assert.deepEqual(made.steps[0].toolCalls[0].input, { a: 1, é: [2] });

const { embedding } = await embed({ model: graft.textEmbeddingModel(adapters[0]), value: "bees", maxRetries: 0 });
assert.equal(embedding.length, 32);

const abort = new AbortController();
const stream = streamText({ ...once, model: graft(adapters[0]), prompt: "x", maxOutputTokens: 500, abortSignal: abort.signal, onError() {} });
for await (const _ of stream.fullStream) abort.abort();
