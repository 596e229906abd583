// One operation: its curves, its checkpoints, its attempts, and what can be done with it.

import { askToResume } from "./actions.js";
import { getOperation, listCheckpoints } from "./api.js";
import { CheckpointsPanel } from "./checkpoints_panel.js";
import { Children, element, throttled, toggles } from "./dom.js";
import { EventStream } from "./events.js";
import { FINAL, number, stateOf } from "./format.js";
import { MetricCharts } from "./metric_charts.js";
import { attemptsTable, headParts, historyLines, outcome, overview, tiles } from "./operation_panels.js";
import { TrainingLog } from "./training_log.js";

const REDRAW_MILLISECONDS = 200;
const REFRESH_MILLISECONDS = 400;
/** Seconds between looks at a running operation when its log says nothing. */
const REFRESH_TICKS = 5;

export class OperationView {
  #id;
  #operation = null;
  #kept = [];
  #log = new TrainingLog();
  #stream = null;
  #charts;
  #panel;
  #head;
  #history;
  #options = { by: "step", log: false };
  #clock;
  #ticks = 0;
  #setConnection;
  #closed = false;
  #redraw = throttled(() => this.#draw(), REDRAW_MILLISECONDS);
  #refresh = throttled(() => this.#load(), REFRESH_MILLISECONDS);

  constructor(host, operationId, setConnection) {
    this.#id = operationId;
    this.#setConnection = setConnection;
    const head = element("section", { class: "operation-head" });
    this.#head = new Children(head);
    this.overview = element("section", { class: "card overview" });
    this.tiles = element("dl", { class: "tiles", hidden: true });
    this.outcome = element("div", { hidden: true });
    this.chartsHost = element("div", { class: "charts" });
    this.#charts = new MetricCharts(this.chartsHost);
    this.attempts = element("div", { class: "scrolls" });
    const history = element("ul", { class: "history" });
    this.#history = new Children(history);
    this.strategy = element("pre");
    this.#panel = new CheckpointsPanel(
      () => this.#refresh(),
      (checkpointId) => askToResume(this.#operation, this.#kept, checkpointId),
    );
    this.message = element("p", { class: "empty", text: "Loading …" });
    this.body = element(
      "div",
      { class: "stack", hidden: true },
      head,
      this.overview,
      this.tiles,
      this.outcome,
      this.#chartTools(),
      this.chartsHost,
      this.#panel.node,
      element(
        "div",
        { class: "two" },
        element("section", { class: "card" }, element("h2", { text: "Attempts" }), this.attempts),
        element("section", { class: "card" }, element("h2", { text: "History" }), history),
      ),
      element("details", { class: "card" }, element("summary", { text: "Strategy" }), this.strategy),
    );
    host.replaceChildren(this.message, this.body);
    this.#clock = setInterval(() => this.#tick(), 1000);
    this.#load();
  }

  /** That a training says nothing is in no event. */
  #tick() {
    this.#redraw();
    this.#ticks += 1;
    const runs = this.#operation && !FINAL.has(stateOf(this.#operation));
    if (runs && !document.hidden && this.#ticks % REFRESH_TICKS === 0) this.#refresh();
  }

  close() {
    this.#closed = true;
    this.#stream?.close();
    this.#charts.close();
    this.#redraw.cancel();
    this.#refresh.cancel();
    clearInterval(this.#clock);
  }

  #chartTools() {
    const change = (option) => (value) => {
      Object.assign(this.#options, option(value));
      this.#redraw();
    };
    this.tools = element(
      "div",
      { class: "card-head", hidden: true },
      element(
        "div",
        { class: "legend-of-marks" },
        element("span", { class: "attempt", text: "attempt" }),
        element("span", { class: "restart", text: "process restarted" }),
        element("span", { class: "checkpoint", text: "checkpoint" }),
      ),
      element(
        "div",
        { class: "buttons" },
        toggles("Scale of the loss", [["linear", "Linear"], ["log", "Log"]], "linear",
          change((value) => ({ log: value === "log" }))),
        toggles("Horizontal axis", [["step", "Steps"], ["epoch", "Epochs"]], "step",
          change((value) => ({ by: value }))),
      ),
    );
    return this.tools;
  }

  /** What is known beside the log: asked again whenever the log says that it may have changed. */
  async #load() {
    try {
      const [operation, kept] = await Promise.all([getOperation(this.#id), listCheckpoints(this.#id)]);
      if (this.#closed) return;
      this.#operation = operation;
      this.#kept = kept;
      if (!this.#log.atRisk && operation.at_risk) this.#log.atRisk = operation.at_risk;
    } catch (error) {
      if (this.#closed) return;
      if (error.reason === "SERVICE_UNAVAILABLE" && this.#operation) return;
      this.#fail(error);
      return;
    }
    this.message.hidden = true;
    this.body.hidden = false;
    this.#drawOperation();
    this.#redraw();
    if (!this.#stream) this.#follow();
  }

  #fail(error) {
    this.#stream?.close();
    this.body.hidden = true;
    this.message.hidden = false;
    this.message.textContent = error.message;
    if (error.reason === "SERVICE_UNAVAILABLE") setTimeout(() => !this.#closed && this.#load(), 2000);
  }

  #follow() {
    const path = `operations/${encodeURIComponent(this.#id)}/events`;
    this.#stream = new EventStream(
      (lastId) => `${path}?after_sequence=${lastId || 0}`,
      {
        events: (events) => this.#take(events),
        compacted: ({ first_sequence: first }) => {
          this.#log.compacted(number(first));
          this.#redraw();
        },
        refused: ({ error }) => this.#refused(error),
      },
      this.#setConnection,
    );
  }

  #take(events) {
    let durable = false;
    for (const event of events) {
      const stored = this.#log.apply(event);
      // Samples of the curve change nothing else.
      durable ||= stored && !event.progress?.step_metrics;
    }
    this.#redraw();
    if (durable) this.#refresh();
  }

  #refused(error) {
    this.#stream.close();
    this.#stream = null;
    // The log is shorter than it was (a restored database): begin again.
    this.#log = new TrainingLog();
    if (error.reason === "FUTURE_SEQUENCE") this.#load();
    else this.#fail(error);
  }

  #drawOperation() {
    const operation = this.#operation;
    const state = stateOf(operation);
    document.title = `${operation.display_name || this.#id} · Everstep`;
    this.resumable = Boolean(operation.resumable) || (state === "completed" && this.#kept.length > 0);
    this.#head.show(headParts(operation, this.#kept, this.resumable));
    const ended = outcome(operation);
    this.outcome.hidden = !ended;
    this.outcome.replaceChildren(...(ended ? [ended] : []));
    this.attempts.replaceChildren(attemptsTable(operation));
    this.strategy.textContent = JSON.stringify(operation.strategy ?? {}, null, 2);
  }

  #draw() {
    const operation = this.#operation;
    if (!operation || this.#closed) return;
    const state = stateOf(operation);
    this.overview.replaceChildren(...overview(operation, this.#log, state));
    const shown = tiles(operation, this.#log, state);
    this.tiles.hidden = !shown.length;
    this.tiles.replaceChildren(...shown);
    this.#history.show(historyLines(this.#log));
    this.#panel.show(this.#log.checkpoints, this.#kept, this.resumable);
    const { curves } = this.#log;
    const drawable = curves.bySteps.size + curves.byEpochs.size > 0;
    this.tools.hidden = !drawable;
    if (drawable) this.#charts.show([{ name: "", curves, marks: this.#marks() }], this.#options);
    this.body.dataset.sequence = String(this.#log.sequence);
  }

  #marks() {
    const attempts = (this.#operation.attempts ?? [])
      .filter((attempt) => attempt.number > 1)
      .map((attempt) => ({
        kind: "attempt",
        step: Math.max(0, number(attempt.first_step) - 1),
        label: String(attempt.number),
        text: `attempt ${attempt.number} on ${attempt.trainer_id}`,
      }));
    return [...this.#log.marks, ...attempts];
  }
}
