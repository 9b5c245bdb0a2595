// The request on the page, ready to paste into a shell or a program. A key is named there, never shown.

import { address, hasKey } from "./api.js";
import { byId, h } from "./dom.js";
import { copyButton } from "./copying.js";
import { named, plainRequest } from "./request.js";

const PLACEHOLDER = "What the client said.";

/** `{curl, Python, "OpenAI client"}` for a state of the page. `base`: the server's address. */
export function makeSnippets(state, base, withKey) {
  const body = plainRequest(state);
  body.prompt ||= PLACEHOLDER;
  return { curl: curl(body, base, withKey), Python: python(body, base, withKey), "OpenAI client": openai(state, body, base, withKey) };
}

function curl(body, base, withKey) {
  const lines = [`curl -s ${base}/generate`, "-H 'Content-Type: application/json'"];
  if (withKey) lines.push('-H "Authorization: Bearer $API_KEY"');
  lines.push(`-d '${JSON.stringify(body).replaceAll("'", "'\\''")}'`);
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

function openai(state, body, base, withKey) {
  const { axes, weights, profile, model, options } = state;
  const lines = [
    ...(withKey ? ["import os", ""] : []),
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url="${base}/v1", api_key=${withKey ? 'os.environ["API_KEY"]' : '"none"'})`,
    "done = client.completions.create(",
    `    model=${literal(profile === null ? model : `${model}:${profile}`)},`,
    `    prompt=${literal(body.prompt)},`,
    `    max_tokens=${options.maxTokens},`,
    `    temperature=${options.temperature},`,
  ];
  if (body.seed !== undefined) lines.push(`    seed=${body.seed},`);
  if (profile === null) lines.push(`    extra_body={"objective_weights": ${literal(named(axes, weights))}},`);
  return [...lines, ")", "print(done.choices[0].text)"].join("\n");
}

/** JSON is Python but for three words, which do not occur here unquoted. */
const literal = (value) => JSON.stringify(value).replaceAll('":', '": ').replaceAll(',"', ', "');

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
  store.watch(["weights", "profile", "prompt", "options", "model", "axes"], paint);
}
