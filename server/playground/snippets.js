// The request on the page, ready to paste into a shell or a program. A key is named there, never shown.

import { address, hasKey } from "./api.js";
import { byId, h } from "./dom.js";
import { copyButton } from "./copying.js";
import { named, sampling, steering, subjectOf } from "./request.js";

const PLACEHOLDER = "What the client said.";
const LINE = 88;
const OF_THEIRS = ["top_p", "presence_penalty", "frequency_penalty", "seed"]; // what OpenAI's client has a name for

/** `{curl, Python, "OpenAI client"}` for a state of the page. `base`: the server's address. */
export function makeSnippets(state, base, withKey) {
  const subject = subjectOf(state, state.prompt.trim() || PLACEHOLDER);
  const body = { ...subject, ...steering(state), ...sampling(state) };
  return { curl: curl(body, base, withKey), Python: python(body, base, withKey), "OpenAI client": openai(state, subject, base, withKey) };
}

function curl(body, base, withKey) {
  const lines = [`curl -s ${base}/generate`, "-H 'Content-Type: application/json'"];
  if (withKey) lines.push('-H "Authorization: Bearer $API_KEY"');
  lines.push(`-d '${literal(body).replaceAll("'", "'\\''")}'`);
  return lines.join(" \\\n  ");
}

function python(body, base, withKey) {
  const headers = withKey ? '{"Content-Type": "application/json", "Authorization": "Bearer " + os.environ["API_KEY"]}' : '{"Content-Type": "application/json"}';
  return [
    "import json",
    ...(withKey ? ["import os"] : []),
    "import urllib.request",
    "",
    `body = ${literal(body)}`,
    `headers = ${headers}`,
    `request = urllib.request.Request("${base}/generate", json.dumps(body).encode(), headers)`,
    "print(json.load(urllib.request.urlopen(request))[\"text\"])",
  ].join("\n");
}

function openai(state, { prompt, messages }, base, withKey) {
  const { axes, weights, profile, model, options } = state;
  const { max_new_tokens: most, temperature: _, ...others } = sampling(state);
  const theirs = Object.entries(others).filter(([name]) => OF_THEIRS.includes(name));
  const ours = Object.fromEntries(Object.entries(others).filter(([name]) => !OF_THEIRS.includes(name)));
  const extra = { ...(profile === null ? { objective_weights: named(axes, weights) } : {}), ...ours };
  const fields = [
    ["model", profile === null ? model : `${model}:${profile}`],
    messages === undefined ? ["prompt", prompt] : ["messages", messages],
    ["max_tokens", most],
    ["temperature", options.temperature],
    ...theirs,
    ...(Object.keys(extra).length ? [["extra_body", extra]] : []),
  ];
  return [
    ...(withKey ? ["import os", ""] : []),
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url="${base}/v1", api_key=${withKey ? 'os.environ["API_KEY"]' : '"none"'})`,
    `done = client.${messages === undefined ? "completions" : "chat.completions"}.create(`,
    ...fields.map(([name, value]) => `    ${name}=${literal(value, 4)},`),
    ")",
    `print(done.choices[0].${messages === undefined ? "text" : "message.content"})`,
  ].join("\n");
}

/** A value as JSON, which here is Python too (no true, false or null occurs): on one line where it fits, else indented. */
function literal(value, indent = 0) {
  if (value === null || typeof value !== "object") return JSON.stringify(value);
  const isList = Array.isArray(value);
  const [open, close] = isList ? "[]" : "{}";
  const key = (name) => (isList ? "" : `${JSON.stringify(name)}: `);
  const entries = Object.entries(value);
  const flat = open + entries.map(([name, each]) => key(name) + literal(each)).join(", ") + close;
  if (!flat.includes("\n") && flat.length + indent <= LINE) return flat;
  const inner = " ".repeat(indent + 2);
  const lines = entries.map(([name, each]) => `${inner}${key(name)}${literal(each, indent + 2)}`);
  return `${open}\n${lines.join(",\n")}\n${" ".repeat(indent)}${close}`;
}

export function createSnippets(store) {
  const place = byId("snippets");
  const names = ["curl", "Python", "OpenAI client"];
  let chosen = names[0];
  const code = h("code", {});
  const panel = h("pre", { id: "snippet-panel", role: "tabpanel", tabindex: "0" }, code);
  const tabs = names.map((name, i) => h("button", {
    type: "button", role: "tab", id: `snippet-tab-${i}`, "aria-controls": "snippet-panel",
    on: { click: () => choose(name), keydown: (event) => byKey(event, i) },
  }, name));
  place.replaceChildren(
    h("div", { class: "panel-head" }, h("div", { class: "tabs", role: "tablist", "aria-label": "Snippets" }, tabs), copyButton(() => code.textContent)), panel);

  function byKey(event, i) {
    const to = { ArrowRight: i + 1, ArrowLeft: i - 1, Home: 0, End: names.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    const next = (to + names.length) % names.length;
    choose(names[next]);
    tabs[next].focus();
  }

  function choose(name) {
    chosen = name;
    paint();
  }

  function paint() {
    tabs.forEach((tab, i) => {
      tab.setAttribute("aria-selected", String(names[i] === chosen));
      tab.tabIndex = names[i] === chosen ? 0 : -1;
    });
    panel.setAttribute("aria-labelledby", `snippet-tab-${names.indexOf(chosen)}`);
    code.textContent = store.state.model === null ? "" : makeSnippets(store.state, address(), hasKey())[chosen];
  }
  store.watch(["weights", "profile", "prompt", "turns", "system", "options", "model", "axes"], paint);
}
