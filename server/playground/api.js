// The server, spoken to; what goes wrong comes back in words. The API key lives in this module and nowhere else.

import { events } from "./sse.js";

// Where the server's paths begin: this file lies one folder below, whatever prefix a proxy puts before both.
const ROOT = new URL("../", import.meta.url);

/** The server's address, without a slash at its end. */
export const address = () => ROOT.href.replace(/\/$/, "");

let key = null;

export function useKey(text) {
  key = text || null;
}

export const hasKey = () => key !== null;

let asked = 0;
let heard = () => {};

/** `listener(count)`: requests under way that a person waits for, told before one is sent and after it has ended. */
export function watchAsked(listener) {
  heard = listener;
}

function count(by) {
  asked += by;
  heard(asked);
}

/**
 * A failure that a person can read. `kind`: key (one is needed or wrong), busy, away (shutting down, loading or not
 * reachable), refused (this request will not do), undrafted (the policy has no draft written; `message` is its notice),
 * failed. `retryAfterS`: when to try again, null when that is no use.
 */
export class Trouble extends Error {
  constructor(kind, message, { retryAfterS = null, param = null } = {}) {
    super(message);
    this.kind = kind;
    this.retryAfterS = retryAfterS;
    this.param = param;
  }
}

/** The JSON of a GET, or of a POST when there is a body. Throws `Trouble`, or `AbortError` by `signal`. */
export async function ask(path, { body, signal } = {}) {
  count(1);
  try {
    const response = await send(path, body, signal);
    return await response.json().catch((error) => {
      throw broken(error);
    });
  } finally {
    count(-1);
  }
}

/**
 * The events of a streamed POST, without the last one's envelope: an error event is thrown as `Trouble`.
 * `byItself`: no person waits for it.
 */
export async function* follow(path, body, signal, { byItself = false } = {}) {
  if (!byItself) count(1);
  try {
    const response = await send(path, { ...body, stream: true }, signal);
    yield* told(response);
  } finally {
    if (!byItself) count(-1);
  }
}

async function* told(response) {
  try {
    for await (const event of events(response.body)) {
      if (event.type === "error") throw inWords(503, event.error, null);
      yield event;
    }
  } catch (error) {
    throw broken(error);
  }
}

async function send(path, body, signal) {
  const headers = {};
  if (key !== null) headers.Authorization = `Bearer ${key}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(address() + path, {
      method: body === undefined ? "GET" : "POST",
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
      cache: "no-store",
      credentials: "omit",
      referrerPolicy: "no-referrer",
      redirect: "error",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Trouble("away", "The server cannot be reached.", { retryAfterS: 2 });
  }
  if (response.ok) return response;
  const answer = await response.json().catch(() => ({}));
  throw inWords(response.status, answer.error ?? {}, response.headers.get("Retry-After"));
}

function broken(error) {
  if (error instanceof Trouble || error.name === "AbortError") return error;
  return new Trouble("away", "The connection broke in the middle of the answer.", { retryAfterS: 1 });
}

function inWords(status, error, retryAfter) {
  const seconds = Number.parseInt(retryAfter ?? "", 10);
  const waits = (fallback) => ({ retryAfterS: Number.isNaN(seconds) ? fallback : Math.max(1, seconds) });
  const detail = error.message ? ` (${error.message})` : "";
  if (status === 401 || status === 403) {
    return new Trouble("key", key === null ? "This server asks for an API key." : "The server did not take this key.");
  }
  if (status === 429) return new Trouble("busy", `The server is full just now${detail}.`, waits(1));
  if (error.code === "shutting_down") {
    return new Trouble("away", "The server is shutting down; it finishes what it has and takes nothing new.", waits(5));
  }
  if (error.code === "queue_timeout") return new Trouble("busy", `The server is too busy${detail}.`, waits(2));
  if (error.code === "engine_restarted") return new Trouble("away", "The server's engine had to start again.", waits(1));
  if (error.code === "not_ready") return new Trouble("away", `The server is not ready yet${detail}.`, waits(2));
  if (error.code === "not_drafted") return new Trouble("undrafted", error.notice);
  if (status >= 400 && status < 500 && error.message) {
    return new Trouble("refused", `The server cannot take this: ${error.message}.`, { param: error.param });
  }
  const other = status === 503 ? waits(2) : {};
  return new Trouble("failed", `The server failed on this request${detail}.`, other);
}
