// Several operations in one chart for each metric.

import { getOperation } from "./api.js";
import { seriesColour } from "./charts.js";
import { badge, element, throttled, toggles } from "./dom.js";
import { EventStream } from "./events.js";
import { metric, metricName, number, percent, stateOf, whole } from "./format.js";
import { MetricCharts } from "./metric_charts.js";
import { TrainingLog } from "./training_log.js";

export class CompareView {
  #ids;
  #operations = new Map();
  #logs = new Map();
  #stream = null;
  #charts;
  #options = { by: "step", log: false };
  #setConnection;
  #closed = false;
  #redraw = throttled(() => this.#draw(), 250);

  constructor(host, ids, setConnection) {
    document.title = "Comparison · Everstep";
    this.#ids = [...new Set(ids)];
    this.#setConnection = setConnection;
    this.message = element("p", { class: "empty", text: "Loading …" });
    this.chosen = element("div", { class: "chosen" });
    this.table = element("section", { class: "card scrolls" });
    this.chartsHost = element("div", { class: "charts" });
    this.#charts = new MetricCharts(this.chartsHost);
    const change = (option) => (value) => {
      Object.assign(this.#options, option(value));
      this.#redraw();
    };
    this.body = element(
      "div",
      { class: "stack", hidden: true },
      element(
        "div",
        { class: "operation-head" },
        element("h1", { text: "Comparison" }),
        element(
          "div",
          { class: "buttons" },
          toggles("Scale of the loss", [["linear", "Linear"], ["log", "Log"]], "linear",
            change((value) => ({ log: value === "log" }))),
          toggles("Horizontal axis", [["step", "Steps"], ["epoch", "Epochs"]], "step",
            change((value) => ({ by: value }))),
        ),
      ),
      this.chosen,
      this.chartsHost,
      this.table,
    );
    host.replaceChildren(this.message, this.body);
    this.#load();
  }

  close() {
    this.#closed = true;
    this.#stream?.close();
    this.#charts.close();
    this.#redraw.cancel();
  }

  async #load() {
    try {
      const found = await Promise.all(this.#ids.map(getOperation));
      if (this.#closed) return;
      found.forEach((operation) => this.#operations.set(operation.operation_id, operation));
    } catch (error) {
      this.message.textContent = error.message;
      return;
    }
    this.#ids.forEach((id) => this.#logs.set(id, new TrainingLog()));
    this.message.hidden = true;
    this.body.hidden = false;
    this.#drawChosen();
    this.#follow();
  }

  #follow() {
    const begin = this.#ids.map((id) => `${id}=0`).join(" ");
    this.#stream = new EventStream(
      (lastId) => `events?after=${encodeURIComponent(lastId || begin)}`,
      {
        events: (events) => {
          for (const event of events) this.#logs.get(event.operation_id).apply(event);
          if (events.some((event) => event.state_changed)) this.#refresh(events[0].operation_id);
          this.#redraw();
        },
        compacted: ({ operation_id: id, first_sequence: first }) => {
          this.#logs.get(id).compacted(number(first));
        },
        refused: ({ error }) => {
          this.message.hidden = false;
          this.message.textContent = error.message;
        },
      },
      this.#setConnection,
    );
  }

  async #refresh(id) {
    const operation = await getOperation(id).catch(() => null);
    if (operation) this.#operations.set(id, operation);
    this.#redraw();
  }

  #name(id) {
    const name = this.#operations.get(id).display_name || id;
    const namesakes = [...this.#operations.values()].filter((other) => other.display_name === name);
    return namesakes.length > 1 ? `${name} (${id.slice(0, 7)})` : name;
  }

  #drawChosen() {
    this.chosen.replaceChildren(
      ...this.#ids.map((id, index) => {
        const dot = element("i");
        dot.style.background = `var(${seriesColour(index)})`;
        const others = this.#ids.filter((other) => other !== id).map(encodeURIComponent);
        return element(
          "span",
          { class: "chip" },
          dot,
          element("a", { href: `#/operations/${encodeURIComponent(id)}`, text: this.#name(id) }),
          element("button", {
            text: "×",
            "aria-label": `Leave out ${this.#name(id)}`,
            disabled: !others.length,
            on: { click: () => { location.hash = `#/compare/${others.join("/")}`; } },
          }),
        );
      }),
    );
  }

  #draw() {
    if (this.#closed) return;
    this.#charts.show(
      this.#ids.map((id) => ({ name: this.#name(id), curves: this.#logs.get(id).curves, marks: [] })),
      this.#options,
    );
    this.#drawTable();
  }

  #drawTable() {
    const metrics = new Map(
      this.#ids.map((id) => {
        const operation = this.#operations.get(id);
        const { lastEpoch } = this.#logs.get(id);
        return [id, { ...lastEpoch?.metrics, ...operation.result?.metrics }];
      }),
    );
    const names = [...new Set([...metrics.values()].flatMap(Object.keys))].sort();
    const heads = ["Operation", "State", "Done", "Step", ...names.map(metricName)];
    const rows = this.#ids.map((id) => {
      const { position } = this.#logs.get(id);
      return element(
        "tr",
        {},
        element("td", { text: this.#name(id) }),
        element("td", {}, badge(stateOf(this.#operations.get(id)))),
        element("td", { text: percent(number(position.fraction)) }),
        element("td", { text: whole(position.step) }),
        ...names.map((name) => element("td", { text: metric(metrics.get(id)[name]) })),
      );
    });
    this.table.replaceChildren(
      element(
        "table",
        {},
        element("thead", {}, element("tr", {}, ...heads.map((text) => element("th", { text })))),
        element("tbody", {}, ...rows),
      ),
    );
  }
}
