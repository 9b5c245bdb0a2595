// The one state of the page, and who hears of its changes.

export function createStore(initial) {
  let state = initial;
  const listeners = new Set();
  const store = {
    get state() {
      return state;
    },
    /** Merge `patch` and tell whoever watches what changed. */
    set(patch) {
      const changed = new Set(Object.keys(patch).filter((name) => patch[name] !== state[name]));
      if (!changed.size) return;
      state = { ...state, ...patch };
      for (const listener of [...listeners]) if (listeners.has(listener)) listener(changed);
    },
    /** Call `listener(state)` now and whenever one of `names` changes; returns how to stop that. */
    watch(names, listener) {
      const each = (changed) => names.some((name) => changed.has(name)) && listener(state);
      listeners.add(each);
      listener(state);
      return () => listeners.delete(each);
    },
    /** The same store for a part of the page that may be built anew: `end()` stops all that it watches, and what it told `atEnd`. */
    scope() {
      const stops = [];
      return {
        get state() {
          return state;
        },
        set: store.set,
        watch: (names, listener) => stops.push(store.watch(names, listener)),
        atEnd: (stop) => stops.push(stop),
        end: () => stops.splice(0).forEach((stop) => stop()),
      };
    },
  };
  return store;
}
