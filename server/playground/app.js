// The page put together: what the server offers, one store, the parts that watch it.

import { ask, watchAsked } from "./api.js";
import { createAsking, createExamples } from "./asking.js";
import { createChoose } from "./choose.js";
import { createCompare, createDraftActions } from "./compare.js";
import { byId } from "./dom.js";
import { createDraft } from "./draft.js";
import { createKeyForm } from "./key.js";
import { mixStrip } from "./lanes.js";
import { createPace } from "./pace.js";
import { profileWeights, steer } from "./point.js";
import { bundleSystem, NEUTRAL } from "./request.js";
import { createSampling } from "./sampling.js";
import { createShares } from "./shares.js";
import { createSnippets } from "./snippets.js";
import { createSteering } from "./steering.js";
import { createStore } from "./store.js";
import { createSystem } from "./system.js";
import { createTheme } from "./theme.js";
import { createTrouble } from "./trouble.js";
import { createTaking, createTurns } from "./turns.js";
import { createWriter } from "./writer.js";

const BASE = "base";
const TOKENS = 64;

const store = createStore({
  model: null, version: null, limits: null, objectives: [], descriptions: {}, profiles: [],
  axes: [], weights: [], profile: null, // weights: in the order of the axes, sum 1
  chat: null, system: "", turns: [], prompt: "", // chat: of the bundle, null without; turns: before what the client says now
  options: { ...NEUTRAL, max_new_tokens: TOKENS },
  draft: null, notice: null, map: null, pins: [], reference: null,
  asked: 0, hidden: document.hidden, // asked: requests under way that a person waits for
  choices: null, user: "", region: null, // choices: what the server keeps of them; user: by whose label; region: see `pad.js`
});
const trouble = createTrouble();
const keyForm = createKeyForm(() => connect());
const writer = createWriter(store, { onTrouble: (problem, again) => onTrouble(problem, again, "draft") });
const actions = {
  trouble: (problem, again) => {
    // The notice stands where a draft would: over the page it would stay when other words are asked about.
    if (problem.kind === "undrafted") store.set({ draft: null, notice: problem.message });
    else onTrouble(problem, again, "map");
  },
  fine: () => trouble.clear("map"),
  needPrompt: () => byId("prompt").focus(),
  reload: () => connect(() => {}),
};

/** Ask what is served, build the panels for it, write the first draft. Also the way back after the server was away. */
async function connect(then = writer.write) {
  let facts;
  try {
    const [info, objectives, profiles] = await Promise.all([ask("/info"), ask("/objectives"), ask("/profiles")]);
    await ask("/readyz");
    facts = { info, objectives: objectives.objectives, profiles };
  } catch (error) {
    say("not connected", false);
    onTrouble(error, then, "server");
    return;
  }
  trouble.clear();
  writer.forget();
  const isNew = adopt(facts);
  (isNew ? writer.write : then)(); // a part that asked before may be gone with what the server served before
}

/** Build what depends on the bundle, unless it is the one that is there already; says whether it was new. */
function adopt({ info, objectives, profiles }) {
  const names = objectives.map(({ name }) => name).filter((name) => name !== BASE);
  // One objective alone is steered against the bare model.
  const axes = names.length > 1 ? names : [BASE, ...names];
  const told = ({ description, prompt }) => description || prompt?.system || prompt?.template || "";
  const descriptions = Object.fromEntries(objectives.map((each) => [each.name, told(each)]));
  const { state } = store;
  const known = JSON.stringify([state.model, state.axes, state.profiles, state.chat]);
  const isNew = known !== JSON.stringify([info.model, axes, profiles.profiles, info.chat]);
  say(`${info.model} · emorl ${info.version} · ${info.device}`, true);
  if (!isNew) return false;
  const most = Math.min(state.options.max_new_tokens, info.limits.max_new_tokens);
  const start = profiles.profiles.find(({ name }) => name === profiles.default);
  const kept = JSON.stringify(state.axes) === JSON.stringify(axes);
  const even = axes.map(() => 1 / axes.length);
  const weights = kept ? state.weights : ((start && profileWeights(start, axes)) ?? even);
  const ownSystem = state.chat !== null && state.system !== bundleSystem(state.chat); // what a person wrote stays
  store.set({
    choices: info.choices, region: kept ? state.region : null,
    model: info.model, version: info.version, limits: info.limits, objectives: names, descriptions, profiles: profiles.profiles,
    axes, weights, map: null, options: { ...state.options, max_new_tokens: most },
    chat: info.chat, turns: info.chat === null ? [] : state.turns, system: ownSystem ? state.system : bundleSystem(info.chat),
  });
  steer(store, weights, kept ? state.profile : profiles.default);
  createSystem(store);
  createExamples(store);
  createSampling(store);
  createSteering(store, actions);
  return true;
}

function say(text, connected) {
  const served = byId("served");
  served.textContent = text;
  served.classList.toggle("connected", connected);
}

/** `again`: what failed, to be tried again. After the server was away it is first asked what it serves now. */
function onTrouble(problem, again, whose) {
  const away = whose === "server" || problem.kind === "away";
  if (away) say("not connected", false);
  if (problem.kind === "key") {
    trouble.clear();
    keyForm.ask(problem.message);
    return;
  }
  trouble.show(problem, away ? () => connect(again) : again, away ? "server" : whose);
}

watchAsked((asked) => store.set({ asked }));
document.addEventListener("visibilitychange", () => store.set({ hidden: document.hidden }));
createTheme();
createAsking(store, writer);
createDraft(store);
createPace(store);
const turns = createTurns(store);
createTaking(store, turns);
createChoose(store, actions, (taken) => {
  writer.stop();
  turns.accept(taken);
});
createShares(store);
createDraftActions(store);
createCompare(store);
createSnippets(store);
store.watch(["draft", "notice"], ({ draft, notice }) => {
  if (notice === null && (draft === null || !["writing", "done"].includes(draft.state))) return;
  trouble.clear("draft");
  trouble.clear("server");
});
store.watch(["weights", "objectives"], ({ axes, weights, objectives }) => {
  document.documentElement.style.setProperty("--mix", mixStrip(axes, weights, objectives));
});
store.watch(["weights", "profile", "prompt", "turns", "system", "options"], ({ model }) => model !== null && writer.wish());
connect();
