// Asks every chosen adapter at once and writes the answers as they come. The form works without this file.
"use strict";
const form = document.getElementById("play");
const answers = document.getElementById("answers");

function column(name) {
  const article = document.createElement("article");
  const title = document.createElement("h2");
  const text = document.createElement("pre");
  const note = document.createElement("p");
  article.className = "answer";
  title.textContent = name;
  note.className = "dim";
  article.append(title, text, note);
  answers.append(article);
  return { article, text, note };
}

async function ask(model, prompt, tokens) {
  const { article, text, note } = column(model);
  const started = performance.now();
  let pieces = 0;
  try {
    const reply = await fetch(form.dataset.stream, {
      method: "POST",
      headers: { "Content-Type": "application/json", Accept: "application/json" },
      body: JSON.stringify({ model, prompt, max_tokens: tokens }),
    });
    if (!reply.ok) throw new Error((await reply.json()).error);
    for await (const event of events(reply.body)) {
      if (event === "[DONE]") break;
      const chunk = JSON.parse(event);
      if (chunk.error) throw new Error(chunk.error.message);
      text.textContent += chunk.choices[0]?.text ?? "";
      pieces += 1;
    }
    note.textContent = `${pieces} tokens in ${((performance.now() - started) / 1000).toFixed(1)} s`;
  } catch (error) {
    article.classList.add("failed");
    text.textContent += error.message;
  }
}

// The data of each server-sent event.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    const blocks = rest.split(/\r?\n\r?\n/);
    rest = blocks.pop();
    for (const block of blocks) {
      const data = block.split(/\r?\n/).filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trim());
      if (data.length) yield data.join("\n");
    }
  }
}

form?.addEventListener("submit", async (event) => {
  event.preventDefault();
  const given = new FormData(form);
  const models = given.getAll("model").slice(0, Number(form.dataset.most));
  if (!models.length) return;
  const button = form.querySelector("button");
  button.disabled = true;
  answers.replaceChildren();
  await Promise.all(models.map((model) => ask(model, given.get("prompt"), Number(given.get("max_tokens")))));
  button.disabled = false;
});
