// All operations, newest first, as they go.

import { olderOperations } from "./api.js";
import { badge, element, setText, toggles } from "./dom.js";
import { EventStream } from "./events.js";
import { FINAL, ago, duration, number, percent, plural, stateOf, troubleOf, whole } from "./format.js";
import { attempt } from "./notices.js";
import { headline, riskWords } from "./training_log.js";

const FILTERS = [
  ["all", "All"],
  ["active", "Active"],
  ["completed", "Completed"],
  ["stopped", "Stopped"],
];
const PASSES = {
  all: () => true,
  active: (state) => !FINAL.has(state),
  completed: (state) => state === "completed",
  stopped: (state) => state === "failed" || state === "cancelled",
};

class Row {
  constructor(operation, chosenChanged) {
    this.id = operation.operation_id;
    const href = `#/operations/${encodeURIComponent(this.id)}`;
    this.choice = element("input", { type: "checkbox", on: { change: chosenChanged } });
    this.name = element("a", { class: "name", href });
    this.detail = element("div", { class: "detail" });
    this.state = element("div");
    this.fill = element("span");
    this.bar = element("div", { class: "bar" }, this.fill);
    this.progress = element("span");
    this.figures = element("div", { class: "figures" });
    this.when = element("div", { class: "when" });
    this.node = element(
      "article",
      { class: "row", data: { operation: this.id } },
      this.choice,
      element("div", {}, this.name, this.detail),
      this.state,
      element("div", { class: "progress" }, this.bar, this.progress),
      this.figures,
      this.when,
    );
    this.update(operation);
  }

  update(operation) {
    this.operation = operation;
    const state = stateOf(operation);
    const position = operation.position ?? {};
    const fraction = number(position.fraction);
    setText(this.name, operation.display_name || this.id);
    this.choice.setAttribute("aria-label", `Compare ${operation.display_name || this.id}`);
    const labels = Object.entries(operation.labels ?? {}).map(([name, value]) =>
      element("span", { class: "label", text: value ? `${name}: ${value}` : name }),
    );
    this.detail.replaceChildren(element("span", { class: "mono", text: this.id }), ...labels);
    if (this.state.firstChild?.dataset.state !== state) this.state.replaceChildren(badge(state));
    this.fill.style.width = `${100 * fraction}%`;
    this.bar.dataset.state = state;
    setText(this.progress, progressWords(operation, state, position, fraction));
    setText(this.figures, figures(operation, state));
    this.tick();
  }

  tick() {
    const { end_time: end, create_time: created, position } = this.operation;
    const eta = position?.eta_seconds;
    const running = stateOf(this.operation) === "running";
    setText(this.when, running && eta !== undefined ? `${duration(eta)} left` : ago(end ?? created));
  }

  /** Whether a person who searches for these words means this one. */
  matches(filter, words) {
    const { display_name: name, labels = {} } = this.operation;
    const text = [this.id, name, ...Object.entries(labels).flat()].join(" ").toLowerCase();
    return PASSES[filter](stateOf(this.operation)) && words.every((word) => text.includes(word));
  }
}

function progressWords(operation, state, position, fraction) {
  if (state === "pending" && operation.waiting_for) return `waits for ${operation.waiting_for}`;
  const steps = number(position.total_steps)
    ? ` · step ${whole(position.step)} of ${whole(position.total_steps)}`
    : "";
  const trouble = troubleOf(operation);
  return `${trouble ? `${trouble} · ` : ""}${percent(fraction)}${steps}`;
}

function figures(operation, state) {
  if (state === "failed") return operation.error?.reason ?? "";
  const attempts = number(operation.attempts?.at(-1)?.number);
  const risk = state === "running" ? riskWords(operation.at_risk) : null;
  return [
    ...headline(operation.metrics),
    attempts > 1 ? plural(attempts, "attempt") : null,
    risk ? `${risk.main} at risk` : null,
  ].filter(Boolean).join(" · ");
}

export class OperationsView {
  #rows = new Map();
  #filter = "all";
  #words = [];
  #older = null;
  #stream;
  #clock;

  constructor(host, setConnection) {
    document.title = "Operations · Everstep";
    const search = element("input", {
      type: "search",
      placeholder: "Name, label or id",
      "aria-label": "Search",
      on: {
        input: () => {
          this.#words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
          this.#choose();
        },
      },
    });
    this.count = element("span", { class: "soft small" });
    this.list = element("section", { class: "card rows", "aria-label": "Operations" });
    this.empty = element("p", { class: "empty", text: "Connecting …" });
    this.compare = element("a", { class: "button main", text: "Compare" });
    this.compareText = element("span");
    this.compareBar = element("div", { class: "compare-bar", hidden: true }, this.compareText, this.compare);
    this.olderButton = element("button", {
      class: "older",
      text: "Older operations",
      hidden: true,
      on: { click: () => this.#loadOlder() },
    });
    host.replaceChildren(
      element(
        "div",
        { class: "list-head" },
        element("h1", {}, "Operations ", this.count),
        toggles("Which operations", FILTERS, "all", (filter) => {
          this.#filter = filter;
          this.#choose();
        }),
        search,
      ),
      this.list,
      this.empty,
      this.olderButton,
      this.compareBar,
    );
    this.list.hidden = true;
    this.#stream = new EventStream(() => "./operations:watch", { operations: (news) => this.#take(news) }, setConnection);
    this.#clock = setInterval(() => this.#rows.forEach((row) => row.tick()), 15000);
  }

  close() {
    this.#stream.close();
    clearInterval(this.#clock);
  }

  #take({ changed, removed, next_page_token: token, complete }) {
    if (complete) {
      // After a break: what is not in the whole list is gone.
      const ids = new Set(changed.map((operation) => operation.operation_id));
      for (const id of this.#rows.keys()) if (!ids.has(id)) this.#drop(id);
    }
    removed.forEach((id) => this.#drop(id));
    this.#put(changed);
    if (token && !this.#older) {
      this.#older = token;
      this.olderButton.hidden = false;
    }
    this.#choose();
  }

  #put(operations) {
    for (const operation of operations) {
      const row = this.#rows.get(operation.operation_id);
      if (row) row.update(operation);
      else this.#insert(new Row(operation, () => this.#showCompare()));
    }
  }

  #insert(row) {
    const created = row.operation.create_time;
    const after = [...this.list.children].find(
      (node) => this.#rows.get(node.dataset.operation).operation.create_time < created,
    );
    this.#rows.set(row.id, row);
    this.list.insertBefore(row.node, after ?? null);
  }

  #drop(id) {
    this.#rows.get(id)?.node.remove();
    this.#rows.delete(id);
  }

  async #loadOlder() {
    const page = await attempt(() => olderOperations(this.#older));
    if (!page) return;
    this.#put(page.operations ?? []);
    this.#older = page.next_page_token;
    this.olderButton.hidden = !this.#older;
    this.#choose();
  }

  #choose() {
    let shown = 0;
    for (const row of this.#rows.values()) {
      const matches = row.matches(this.#filter, this.#words);
      row.node.hidden = !matches;
      shown += matches;
    }
    setText(this.count, this.#rows.size ? whole(shown) : "");
    this.list.hidden = !shown;
    this.empty.hidden = shown > 0;
    setText(
      this.empty,
      this.#rows.size
        ? "No operation fits this search."
        : "No operations yet. Start one with: everstep train STRATEGY.yaml",
    );
    this.#showCompare();
  }

  #showCompare() {
    const chosen = [...this.#rows.values()].filter((row) => row.choice.checked).map((row) => row.id);
    this.compareBar.hidden = chosen.length < 2;
    setText(this.compareText, `${chosen.length} chosen`);
    this.compare.setAttribute("href", `#/compare/${chosen.map(encodeURIComponent).join("/")}`);
  }
}
