// Checkpoints as a timeline: how large each is, and how much of it had to travel.

import { setPinned } from "./actions.js";
import { Children, element, setText } from "./dom.js";
import { bytes, clock, duration, metric, metricName, number, percent, whole, word } from "./format.js";

const HEIGHT = 64;

export class CheckpointsPanel {
  #timeline;
  #columns;
  #body;
  #lines;
  #more;
  #all = false;
  #drawn = null;
  #summary;
  #changed;
  #resume;

  /**
   * @param {() => void} changed called after a checkpoint was pinned or unpinned
   * @param {(checkpointId: string) => void} resume asked for from a checkpoint
   */
  constructor(changed, resume) {
    this.#changed = changed;
    this.#resume = resume;
    this.#summary = element("span", { class: "soft small" });
    this.#timeline = element("div", { class: "timeline" });
    this.#columns = new Children(this.#timeline);
    this.#body = element("tbody");
    this.#lines = new Children(this.#body);
    this.#more = element("button", {
      class: "quiet",
      on: {
        click: () => {
          this.#all = !this.#all;
          this.#rows();
        },
      },
    });
    const heads = ["Step", "Epoch", "Taken", "Why", "Size", "Uploaded", "Saved", "Waited", "Upload", "Metric", ""];
    this.node = element(
      "section",
      { class: "card", id: "checkpoints", hidden: true },
      element("div", { class: "card-head" }, element("h2", { text: "Checkpoints" }), this.#summary),
      element("div", { class: "scrolls" }, this.#timeline),
      element(
        "div",
        { class: "timeline-key" },
        element("span", { class: "uploaded", text: "uploaded" }),
        element("span", { class: "shared", text: "in the store already" }),
        element("span", { class: "unkept", text: "not kept any more" }),
        element("span", { class: "held", text: "pinned" }),
      ),
      element(
        "div",
        { class: "scrolls" },
        element(
          "table",
          {},
          element("thead", {}, element("tr", {}, ...heads.map((text) => element("th", { text })))),
          this.#body,
        ),
      ),
      this.#more,
    );
  }

  /**
   * @param {Map} committed by id, as the log tells
   * @param {object[]} kept checkpoints that there are now, newest first
   */
  show(committed, kept, resumable) {
    const all = new Map(committed);
    for (const checkpoint of [...kept].reverse()) {
      const id = checkpoint.reference.checkpoint_id;
      all.set(id, { time: checkpoint.create_time, ...all.get(id), checkpoint, kept: true });
    }
    const entries = [...all.values()].sort(
      (first, second) => Date.parse(first.time) - Date.parse(second.time),
    );
    this.node.hidden = !entries.length;
    this.#sum(entries);
    const largest = Math.max(...entries.map(({ checkpoint }) => number(checkpoint.logical_bytes)), 1);
    const grown = entries.length > this.#timeline.childElementCount;
    this.#columns.show(
      entries.map((entry) => ({
        key: idOf(entry),
        content: [entry, largest],
        build: () => this.#column(entry, largest),
      })),
    );
    if (grown) this.#timeline.parentElement.scrollLeft = this.#timeline.scrollWidth;
    this.#drawn = { entries: entries.reverse(), resumable };
    this.#rows();
  }

  /** Those that are kept, or all that there ever were. */
  #rows() {
    const { entries, resumable } = this.#drawn;
    const shown = this.#all ? entries : entries.filter((entry) => entry.kept);
    this.#lines.show(
      shown.map((entry) => ({
        key: idOf(entry),
        content: [entry, resumable],
        build: () => this.#row(entry, resumable),
      })),
    );
    const gone = entries.filter((entry) => !entry.kept).length;
    this.#more.hidden = !gone;
    setText(this.#more, this.#all ? "Only those that are kept" : `And ${whole(gone)} that retention removed`);
  }

  #sum(entries) {
    const logical = entries.reduce((sum, { checkpoint }) => sum + number(checkpoint.logical_bytes), 0);
    const uploaded = entries.reduce((sum, { checkpoint }) => sum + number(checkpoint.uploaded_bytes), 0);
    const kept = entries.filter((entry) => entry.kept).length;
    setText(
      this.#summary,
      `${entries.length} committed, ${kept} kept · ${bytes(uploaded)} of ${bytes(logical)} had to travel` +
        (logical ? ` (${percent(saved(logical, uploaded))} saved)` : ""),
    );
  }

  #column({ checkpoint, kept }, largest) {
    const logical = number(checkpoint.logical_bytes);
    const size = element("span", { class: "size" }, element("span"));
    size.style.height = `${Math.max(4, (HEIGHT * logical) / largest)}px`;
    size.firstChild.style.height = `${logical ? (100 * number(checkpoint.uploaded_bytes)) / logical : 0}%`;
    const id = checkpoint.reference.checkpoint_id;
    return element(
      "button",
      {
        type: "button",
        class: [kept ? "" : "gone", checkpoint.pinned ? "pinned" : ""].join(" ").trim(),
        title: `Step ${whole(checkpoint.step)}: ${bytes(logical)}, ${bytes(checkpoint.uploaded_bytes)} uploaded`,
        on: { click: () => this.#body.querySelector(`[data-checkpoint="${CSS.escape(id)}"]`)?.scrollIntoView({ block: "center", behavior: "smooth" }) },
      },
      size,
      element("span", { text: whole(checkpoint.step) }),
    );
  }

  #row({ checkpoint, stall, upload, time, kept }, resumable) {
    const id = checkpoint.reference.checkpoint_id;
    const logical = number(checkpoint.logical_bytes);
    const uploaded = number(checkpoint.uploaded_bytes);
    const pinned = Boolean(checkpoint.pinned);
    const cell = (text) => element("td", { text });
    const value = checkpoint.monitor_value;
    return element(
      "tr",
      { class: kept ? "" : "gone", data: { checkpoint: id } },
      cell(whole(checkpoint.step)),
      cell(whole(checkpoint.epoch)),
      cell(clock(time)),
      cell(word(checkpoint.trigger, "CHECKPOINT_TRIGGER_")),
      cell(bytes(logical)),
      cell(bytes(uploaded)),
      cell(logical ? percent(saved(logical, uploaded)) : "–"),
      cell(stall === undefined ? "–" : duration(stall)),
      cell(upload === undefined ? "–" : duration(upload)),
      cell(value === undefined ? "–" : `${metricName(checkpoint.monitor)} ${metric(value)}`),
      kept
        ? element(
            "td",
            {},
            element(
              "div",
              { class: "buttons" },
              element("button", {
                class: "quiet",
                text: pinned ? "Unpin" : "Pin",
                title: pinned ? "Let retention remove it" : "Keep it until it is unpinned",
                "aria-pressed": String(pinned),
                on: { click: async () => { if (await setPinned(id, !pinned)) this.#changed(); } },
              }),
              resumable
                ? element("button", { class: "quiet", text: "Resume from here", on: { click: () => this.#resume(id) } })
                : null,
            ),
          )
        : element("td", { class: "small", text: "not kept" }),
    );
  }
}

const idOf = ({ checkpoint }) => checkpoint.reference.checkpoint_id;

const saved = (logical, uploaded) => Math.max(0, 1 - uploaded / logical);
