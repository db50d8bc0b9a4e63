// openai (npm): models, chats, streams, tools, parsed answers, completions, Responses, embeddings, refusals.
import assert from "node:assert/strict";
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

const [url, base, ...adapters] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const sum = [{ role: "user", content: "sum" }];
const plain = [{ role: "user", content: "Where do bees live?" }];
const Animal = z.object({ kind: z.enum(["cat", "dog"]), wild: z.boolean() });
const parameters = { type: "object", properties: { a: { type: "integer" } }, required: ["a"] };
const add = { type: "function", function: { name: "add", description: "Adds.", parameters } };

const listed = [];
for await (const model of client.models.list()) listed.push(model.id);
assert.deepEqual(listed.sort(), [base, ...adapters].sort());

const whole = await client.chat.completions.create({ model: base, messages: sum, temperature: 0 });
assert.equal(whole.choices[0].message.content, "No tool.");
for (const model of [base, ...adapters]) {
  const asked = { model, messages: plain, temperature: 0, max_tokens: 12 };
  const answer = await client.chat.completions.create(asked);
  let text = "";
  for await (const event of await client.chat.completions.create({ ...asked, stream: true }))
    text += event.choices[0]?.delta.content ?? "";
  assert.equal(text, answer.choices[0].message.content ?? "");
}

const stream = await client.chat.completions.create({ model: adapters[0], messages: plain, stream: true, max_tokens: 500 });
for await (const _ of stream) break;
stream.controller.abort();

const called = await client.chat.completions.create({ model: base, messages: sum, tools: [add], temperature: 0 });
assert.deepEqual(JSON.parse(called.choices[0].message.tool_calls[0].function.arguments), { a: 1, é: [2] });
let ran = 0;
const run = { ...add.function, function: () => { ran += 1; return "3"; }, parse: JSON.parse };
const runner = client.chat.completions.runTools(
  { model: base, messages: sum, tools: [{ type: "function", function: run }], temperature: 0, max_tokens: 100 },
  { maxChatCompletions: 1 },
);
await runner.done();
assert.equal(ran, 1);

const format = zodResponseFormat(Animal, "animal");
for (const model of adapters) {
  const parsed = await client.chat.completions.parse({ model, messages: plain, response_format: format, max_tokens: 600 });
  Animal.parse(parsed.choices[0].message.parsed);
}

const text = await client.completions.create({ model: adapters[0], prompt: ["One", "Two"], max_tokens: 4, echo: true });
assert.deepEqual(text.choices.map((one) => one.text.slice(0, 3)), ["One", "Two"]);
const response = await client.responses.create({ model: base, input: "sum", temperature: 0 });
assert.equal(response.output_text, "No tool.");
const events = [];
for await (const event of await client.responses.create({ model: base, input: "sum", temperature: 0, stream: true }))
  events.push(event.type);
assert.equal(events.at(-1), "response.completed");
const vectors = await client.embeddings.create({ model: adapters[0], input: ["a", "b"], dimensions: 8 });
assert.deepEqual(vectors.data.map((one) => one.embedding.length), [8, 8]);

await assert.rejects(client.chat.completions.create({ model: "absent", messages: sum }), { status: 404, code: "model_not_found" });
await assert.rejects(client.completions.create({ model: base, prompt: "a", suffix: "b" }), { status: 400, param: "suffix" });
await assert.rejects(client.completions.create({ model: base, prompt: "a".repeat(20_000) }), { code: "context_length_exceeded" });
