// Asks for an API key where the server wants one. It stays in memory and is gone with the page.

import { useKey } from "./api.js";
import { byId, h } from "./dom.js";

/** `onKey()` is called when a key was entered. */
export function createKeyForm(onKey) {
  const form = byId("key");
  const input = h("input", { type: "password", id: "key-text", autocomplete: "off", spellcheck: "false", required: true });
  const words = h("p", { role: "alert" });
  form.replaceChildren(words,
    h("div", { class: "row" }, h("label", { for: "key-text" }, "API key"), input, h("button", { type: "submit", class: "strong" }, "Use this key")),
    h("p", { class: "hint" }, "It is sent to this server only, kept in memory, and forgotten when the page is closed."));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    useKey(input.value.trim());
    input.value = "";
    form.hidden = true;
    onKey();
  });
  return {
    ask(message) {
      words.textContent = message;
      form.hidden = false;
      input.focus();
    },
  };
}
