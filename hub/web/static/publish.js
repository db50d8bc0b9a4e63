// Drag and drop, and the proof of what was chosen before it is sent. The form works without this file.
"use strict";
const form = document.getElementById("publish");
const input = document.getElementById("files");
const zone = document.getElementById("zone");
const verdict = document.getElementById("verdict");
let asked = 0;

function say(kind, lines) {
  const box = document.createElement("div");
  box.className = "notice " + kind;
  for (const line of lines) {
    const paragraph = document.createElement("p");
    paragraph.textContent = line;
    box.append(paragraph);
  }
  verdict.replaceChildren(box);
}

async function check() {
  const mine = ++asked;
  if (!input.files.length) return verdict.replaceChildren();
  say("fine", ["Checking " + input.files.length + " files ..."]);
  const body = new FormData();
  for (const file of input.files) body.append("files", file);
  let reply, answer;
  try {
    reply = await fetch(form.dataset.check, { method: "POST", body, headers: { Accept: "application/json" } });
    answer = await reply.json();
  } catch {
    answer = { error: "The hub did not answer; the files are checked again when you publish." };
  }
  if (mine !== asked) return;
  if (answer.error) return say("bad", [answer.error]);
  const size = (answer.bytes / 1048576).toFixed(1);
  say("fine", [
    `Sound: ${answer.variant || answer.method}, ${answer.parameters.toLocaleString()} parameters, ${size} MiB ${answer.dtype}, ` +
      `task ${answer.task}, base ${answer.base_id || "not named"}.`,
    ...answer.warnings,
  ]);
}

input.addEventListener("change", check);
for (const name of ["dragenter", "dragover"]) {
  zone.addEventListener(name, (event) => { event.preventDefault(); zone.classList.add("over"); });
}
for (const name of ["dragleave", "drop"]) zone.addEventListener(name, () => zone.classList.remove("over"));

zone.addEventListener("drop", async (event) => {
  event.preventDefault();
  const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry()).filter(Boolean);
  const chosen = new DataTransfer();
  for (const file of (await Promise.all(entries.map(filesOf))).flat()) chosen.items.add(file);
  input.files = chosen.files;
  check();
});

// A dropped folder is opened one level: an adapter's files lie flat.
function filesOf(entry) {
  if (entry.isFile) return new Promise((done, fail) => entry.file((file) => done([file]), fail));
  return new Promise((done, fail) => {
    entry.createReader().readEntries((inside) => {
      Promise.all(inside.filter((child) => child.isFile).map(filesOf)).then((files) => done(files.flat()), fail);
    }, fail);
  });
}
