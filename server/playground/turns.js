// The conversation so far: what the client said, and what the counselor answered after a person took or changed a draft.

import { onEnter } from "./asking.js";
import { copyButton } from "./copying.js";
import { byId, h } from "./dom.js";
import { laneClass, percent } from "./lanes.js";

const SPEAKERS = { user: "Client", assistant: "Counselor" };

/**
 * A turn: {role, text} and, of a draft that was taken, `draft` {text, weights}: what the model had written. The last
 * turn is always the counselor's; what the client says next is `prompt`, outside of the list.
 */
export function createTurns(store) {
  const list = byId("turns");
  const title = byId("talk-title");
  let editing = null; // the turn that is being changed
  const seen = new WeakSet(); // turns that have stood there before
  let dropped = null; // what "Start over" took away, until something else happens
  const again = h("button", { type: "button", class: "quiet", on: { click: startOver } }, "Start over");
  const bring = h("button", { type: "button", class: "quiet", on: { click: () => store.set({ ...dropped }) } }, "Bring it back");
  const copy = copyButton(() => transcript(store.state), "Copy the conversation");
  copy.classList.add("quiet");
  byId("talk-actions").replaceChildren(copy, again, bring);

  store.watch(["chat", "turns", "objectives"], ({ chat, turns }) => {
    title.textContent = chat === null ? "What the client said" : "Conversation";
    if (!turns.includes(editing)) editing = null;
    list.hidden = !turns.length;
    copy.hidden = again.hidden = !turns.length;
    bring.hidden = dropped === null || turns.length > 0;
    paint();
  });

  function startOver() {
    const { turns, prompt } = store.state;
    dropped = { turns, prompt };
    store.set({ turns: [], prompt: "" });
    byId("prompt").focus();
  }

  function paint() {
    const { turns } = store.state;
    list.replaceChildren(...turns.map((turn, i) => (turn === editing ? editor(turn, i) : shown(turn, i, i === turns.length - 1))));
  }

  function shown(turn, i, isLast) {
    const edit = h("button", { type: "button", class: "quiet", "aria-label": `Edit turn ${i + 1}`, on: { click: () => open(turn) } }, "Edit");
    const back = isLast
      ? h("button", { type: "button", class: "quiet", on: { click: takeBack } }, "Take back")
      : null;
    const isNew = !seen.has(turn);
    seen.add(turn);
    return h("li", { class: `turn ${turn.role}${isNew ? " new" : ""}` },
      h("span", { class: "speaker" }, SPEAKERS[turn.role]),
      h("div", { class: "said" }, h("p", { class: "turn-text" }, turn.text), h("div", { class: "row turn-tools" }, origin(turn), edit, back)));
  }

  /** Which weights wrote a turn, and whether a person changed it since. */
  function origin({ text, draft }) {
    if (draft === undefined) return null;
    const { objectives } = store.state;
    const weights = Object.entries(draft.weights).filter(([, weight]) => weight > 0);
    return h("span", { class: "origin" },
      weights.map(([name, weight]) => h("span", { class: laneClass(name, objectives) }, h("span", { class: "swatch" }), `${name} ${percent(weight)}`)),
      h("span", { class: "tag" }, text === draft.text ? "as drafted" : "edited"));
  }

  function editor(turn, i) {
    const area = h("textarea", { rows: "2", value: turn.text, "aria-label": `Turn ${i + 1}, ${SPEAKERS[turn.role]}` });
    const save = () => {
      const text = area.value.trim();
      if (!text) return area.focus();
      editing = null;
      if (text === turn.text) return close(i);
      store.set({ turns: store.state.turns.map((each) => (each === turn ? { ...turn, text } : each)) });
      return focusOn(i);
    };
    const cancel = () => {
      editing = null;
      close(i);
    };
    onEnter(area, save);
    area.addEventListener("keydown", (event) => event.key === "Escape" && cancel());
    return h("li", { class: `turn ${turn.role}` },
      h("span", { class: "speaker" }, SPEAKERS[turn.role]),
      h("div", {}, area, h("div", { class: "row" },
        h("button", { type: "button", class: "strong", on: { click: save } }, "Save"),
        h("button", { type: "button", on: { click: cancel } }, "Cancel"))));
  }

  function open(turn) {
    editing = turn;
    paint();
    const area = list.querySelector("textarea");
    area.focus();
    area.setSelectionRange(area.value.length, area.value.length);
  }

  function close(i) {
    paint();
    focusOn(i);
  }

  const focusOn = (i) => list.children[i]?.querySelector("button")?.focus();

  /** The last exchange leaves the conversation; the client's words can be answered anew. */
  function takeBack() {
    const { turns } = store.state;
    store.set({ turns: turns.slice(0, -2), prompt: turns.at(-2).text });
    byId("prompt").focus();
  }

  /** The draft becomes the counselor's turn; `edit`: and is opened to be changed. */
  function take(edit) {
    const { draft, turns } = store.state;
    const client = { role: "user", text: draft.said };
    const counselor = { role: "assistant", text: draft.text, draft: { text: draft.text, weights: draft.answer.weights } };
    dropped = null;
    store.set({ turns: [...turns, client, counselor], prompt: "" });
    if (edit) open(counselor);
    else byId("prompt").focus();
  }

  /** A text that was chosen among drafts of what was said: the next turn, or where there are none, the page's draft. */
  function accept({ said, text, draft }) {
    const origin = { text: draft.text, weights: draft.weights };
    const { chat, turns, axes, weights, prompt } = store.state;
    if (chat === null) {
      const taken = { said, text, expected: text, tokens: [], answer: null, edited: text !== draft.text, state: "taken" };
      return store.set({ draft: { ...taken, topic: null, weights, axes, profile: null, repeats: false }, notice: null });
    }
    dropped = null;
    const still = prompt.trim() === said ? "" : prompt;
    store.set({ turns: [...turns, { role: "user", text: said }, { role: "assistant", text, draft: origin }], prompt: still });
    return byId("prompt").focus({ preventScroll: true });
  }

  return { take, accept };
}

/** The buttons under a draft that put it into the conversation. */
export function createTaking(store, { take }) {
  const buttons = [
    h("button", { type: "button", class: "strong", on: { click: () => take(false) } }, "Use this reply"),
    h("button", { type: "button", on: { click: () => take(true) } }, "Edit first"),
  ];
  const place = byId("taking");
  place.replaceChildren(...buttons);
  store.watch(["draft", "chat"], ({ draft, chat }) => {
    place.hidden = chat === null;
    for (const button of buttons) button.disabled = draft?.state !== "done" || !draft.text.trim();
  });
}

const transcript = ({ turns, prompt }) =>
  [...turns, { role: "user", text: prompt.trim() }].filter(({ text }) => text).map(({ role, text }) => `${SPEAKERS[role]}: ${text}`).join("\n\n");
