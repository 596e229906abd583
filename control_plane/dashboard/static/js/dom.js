// Elements from plain values. Text is always text: nothing a user named is ever read as markup.

/** An element; `attributes` may hold `text`, `data` (data-*), `on` (listeners) and attributes. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "text") made.textContent = value;
    else if (name === "data") Object.assign(made.dataset, value);
    else if (name === "on") {
      for (const [event, listener] of Object.entries(value)) made.addEventListener(event, listener);
    } else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** Sets the text only where it differs, so that a selection in it survives. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/**
 * Children that are built again only where what they show has changed: what a person is about to
 * press, or has selected, stays where it is.
 */
export class Children {
  #host;
  #built = new Map();

  constructor(host) {
    this.#host = host;
  }

  /** @param {{key: string, content: any, build: () => Node}[]} wanted in order */
  show(wanted) {
    const next = new Map();
    for (const { key, content, build } of wanted) {
      const signature = JSON.stringify(content);
      const before = this.#built.get(key);
      next.set(key, before?.signature === signature ? before : { signature, node: build() });
    }
    this.#built = next;
    const nodes = [...next.values()].map(({ node }) => node);
    const kept = new Set(nodes);
    for (const child of [...this.#host.childNodes]) if (!kept.has(child)) child.remove();
    nodes.forEach((node, index) => {
      const there = this.#host.childNodes[index];
      if (there !== node) this.#host.insertBefore(node, there ?? null);
    });
  }
}

/** A group of buttons of which one is pressed; `chosen` is called with its value. */
export function toggles(label, options, value, chosen) {
  const buttons = options.map(([key, text]) =>
    element("button", {
      type: "button",
      text,
      "aria-pressed": String(key === value),
      data: { value: key },
      on: {
        click: () => {
          for (const button of buttons) {
            button.setAttribute("aria-pressed", String(button.dataset.value === key));
          }
          chosen(key);
        },
      },
    }),
  );
  return element("div", { class: "toggles", role: "group", "aria-label": label }, ...buttons);
}

/** The state of an operation, as a coloured badge. */
export function badge(state) {
  return element("span", { class: "badge", text: state, data: { state } });
}

/** Calls `work` soon, at most every `milliseconds`, however often it is asked for. */
export function throttled(work, milliseconds) {
  let timer = 0;
  let last = 0;
  const schedule = () => {
    if (timer) return;
    timer = setTimeout(() => {
      timer = 0;
      last = performance.now();
      work();
    }, Math.max(0, last + milliseconds - performance.now()));
  };
  schedule.cancel = () => clearTimeout(timer);
  return schedule;
}
