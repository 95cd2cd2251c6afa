"use strict";
// Everything that a model or a person wrote is put in as text, never as HTML.

const $ = (id) => document.getElementById(id);
const messages = []; // of the conversation
let model = null;
let abort = null;

function headers() {
  const found = { "Content-Type": "application/json" };
  if ($("key").value) found.Authorization = `Bearer ${$("key").value}`;
  return found;
}

async function problem(response) {
  if (response.status === 401) $("key_label").hidden = false;
  try {
    return (await response.json()).error.message;
  } catch {
    return `the server answered ${response.status}`;
  }
}

async function loadModel() {
  const response = await fetch("/v1/models", { headers: headers() });
  if (!response.ok) {
    $("status").value = await problem(response);
    return;
  }
  model = (await response.json()).data[0];
  $("model").textContent = document.title = model.id;
  $("about").textContent = `context of ${model.context_length} tokens` +
    (model.can_chat ? "" : "; it was never taught to chat, and continues texts");
  $("modes").hidden = !model.can_chat;
  $("status").value = "";
  showMode();
}

function chats() {
  return model !== null && model.can_chat &&
    document.querySelector("input[name=mode]:checked").value === "chat";
}

function showMode() {
  $("prompt").placeholder = chats() ? "A message" : "A text to continue";
  $("send").textContent = chats() ? "Send" : "Continue";
}

function options() {
  const number = (id) => ($(id).value === "" ? undefined : Number($(id).value));
  return {
    model: model.id,
    stream: true,
    temperature: number("temperature"),
    top_p: number("top_p"),
    top_k: number("top_k"),
    max_tokens: number("max_tokens"),
    seed: number("seed"),
    stop: $("stop_string").value || undefined,
  };
}

function addTurn(kind, text) {
  const turn = document.createElement("div");
  turn.className = `turn ${kind}`;
  turn.textContent = text;
  $("conversation").append(turn);
  return turn;
}

function addToken(turn, token) {
  const span = document.createElement("span");
  const probability = Math.exp(token.logprob);
  const level = probability < 0.1 ? " p0" : probability < 0.4 ? " p1" : probability < 0.8 ? " p2" : "";
  span.className = `token${level}`;
  span.textContent = token.text;
  span.tabIndex = 0;
  const show = () => showLikely(token, probability);
  span.addEventListener("mouseenter", show);
  span.addEventListener("focus", show);
  turn.append(span);
}

function showLikely(token, probability) {
  const rows = token.likeliest.map(([text, logprob]) => [text, Math.exp(logprob)]);
  if (!rows.some(([text]) => text === token.name)) rows.push([token.name, probability]);
  const body = $("likely").tBodies[0];
  body.replaceChildren(...rows.map(([text, share]) => {
    const row = document.createElement("tr");
    row.className = text === token.name ? "chosen" : "";
    for (const content of [JSON.stringify(text).slice(1, -1), `${(100 * share).toFixed(1)} %`]) {
      const cell = document.createElement("td");
      cell.textContent = content;
      row.append(cell);
    }
    return row;
  }));
  $("likely").hidden = false;
  $("hint").hidden = true;
}

function tokensOf(choice) {
  const found = choice.logprobs;
  if (!found) return [];
  if (found.content) {
    return found.content.map((each) => ({
      name: each.token, logprob: each.logprob,
      likeliest: each.top_logprobs.map((other) => [other.token, other.logprob]),
    }));
  }
  return found.tokens.map((name, index) => ({
    name, logprob: found.token_logprobs[index], likeliest: Object.entries(found.top_logprobs[index]),
  }));
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    waiting += value;
    const parts = waiting.split("\n\n");
    waiting = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

// The text of a part, shared out over its tokens: one of several may hold half a character.
function showPart(turn, text, tokens) {
  tokens.forEach((token, index) => {
    const isLast = index === tokens.length - 1;
    const own = isLast ? text : text.slice(0, token.name.length);
    text = text.slice(own.length);
    addToken(turn, { ...token, text: own });
  });
  if (tokens.length === 0 && text) turn.append(text);
}

async function answer(turn, path, body) {
  const started = performance.now();
  let count = 0, whole = "";
  const response = await fetch(path, {
    method: "POST", headers: headers(), body: JSON.stringify(body), signal: abort.signal,
  });
  if (!response.ok) throw new Error(await problem(response));
  for await (const part of events(response)) {
    if (part.error) throw new Error(part.error.message);
    for (const choice of part.choices) {
      const text = (choice.delta ? choice.delta.content : choice.text) || "";
      const tokens = tokensOf(choice);
      whole += text;
      count += tokens.length;
      showPart(turn, text, tokens);
    }
    const seconds = (performance.now() - started) / 1000;
    $("status").value = `${count} tokens, ${(count / seconds).toFixed(0)} tokens/s`;
  }
  return whole;
}

async function submit(event) {
  event.preventDefault();
  if (abort !== null) return;
  if (model === null) await loadModel();
  if (model === null) return;
  const text = $("prompt").value;
  abort = new AbortController();
  $("send").disabled = true;
  $("stop").disabled = false;
  let turn = null;
  try {
    if (chats()) {
      messages.push({ role: "user", content: text });
      addTurn("user", text);
      turn = addTurn("assistant", "");
      $("prompt").value = "";
      const body = { ...options(), messages, logprobs: true, top_logprobs: 5 };
      await answer(turn, "/v1/chat/completions", body);
    } else {
      turn = addTurn("assistant", "");
      const prompt = document.createElement("span");
      prompt.className = "prompt";
      prompt.textContent = text;
      turn.append(prompt);
      await answer(turn, "/v1/completions", { ...options(), prompt: text, logprobs: 5 });
    }
  } catch (error) {
    if (error.name !== "AbortError") addTurn("error", error.message);
  } finally {
    if (chats() && turn !== null) messages.push({ role: "assistant", content: turn.textContent });
    abort = null;
    $("send").disabled = false;
    $("stop").disabled = true;
  }
}

$("form").addEventListener("submit", submit);
$("stop").addEventListener("click", () => abort && abort.abort());
$("clear").addEventListener("click", () => {
  messages.length = 0;
  $("conversation").replaceChildren();
});
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey || (chats() && !event.shiftKey))) {
    event.preventDefault();
    $("form").requestSubmit();
  }
});
$("key").addEventListener("change", loadModel);
document.querySelectorAll("input[name=mode]").forEach((each) => each.addEventListener("change", showMode));
loadModel();
