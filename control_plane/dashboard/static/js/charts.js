// One chart: uPlot, with a legend that follows the pointer and marks that say what happened.

import { element, setText } from "./dom.js";
import { metric, whole } from "./format.js";

const { uPlot } = globalThis;

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** The colour of the n-th series, which follows light and dark. */
export const seriesColour = (index) => `--series-${(index % 8) + 1}`;

const NEAR = 7;

export class Chart {
  #plot = null;
  #signature = "";
  #marks = [];
  #zoomed = false;
  #shown = null;
  #keys = [];
  #legend;
  #host;
  #at;
  #height;
  #resize;
  #scheme = matchMedia("(prefers-color-scheme: dark)");

  /**
   * @param {string} title shown above the chart
   * @param {{height?: number}} options height in CSS pixels
   */
  constructor(title, { height = 220 } = {}) {
    this.#height = height;
    this.#legend = element("div", { class: "legend-keys" });
    this.#host = element("div", { class: "plot" });
    this.#at = element("div", { class: "at" });
    this.#legend.style.display = "contents";
    this.figure = element(
      "figure",
      { class: "chart card", "aria-label": title, data: { chart: title } },
      element("figcaption", {}, element("h3", { text: title }), this.#legend),
      element("div", { class: "canvas" }, this.#host, this.#at),
    );
    this.#resize = new ResizeObserver(() => this.#fit());
    this.#resize.observe(this.#host);
    this.#scheme.addEventListener("change", this.#repaint);
  }

  /**
   * @param {{label: string, colour: string, x: number[], y: number[], dots?: boolean,
   *   thin?: boolean}[]} series with x rising
   * @param {{kind: string, x: number, text: string, label?: string}[]} marks
   * @param {{xName: string, log: boolean}} options
   */
  show(series, marks, { xName, log }) {
    this.#marks = marks;
    this.#shown = { series, xName };
    const tables = series.map(({ x, y }) => [
      x,
      y.map((value) => (Number.isFinite(value) && (!log || value > 0) ? value : null)),
    ]);
    const data = tables.length > 1 ? uPlot.join(tables) : (tables[0] ?? [[], []]);
    const signature = JSON.stringify([series.map(({ label, colour: c }) => [label, c]), xName, log]);
    if (signature !== this.#signature) {
      this.#signature = signature;
      this.#build(data, series, log);
    } else this.#plot.setData(data, !this.#zoomed);
    if (this.#zoomed) this.#plot.redraw();
    this.#describe();
    this.#readOut();
  }

  close() {
    this.#resize.disconnect();
    this.#scheme.removeEventListener("change", this.#repaint);
    this.#plot?.destroy();
  }

  #build(data, series, log) {
    this.#plot?.destroy();
    this.#zoomed = false;
    this.#keys = series.map(({ label, colour: name }) => {
      const value = element("b");
      const swatch = element("i");
      swatch.style.background = `var(${name})`;
      return { value, node: element("span", { class: "key" }, swatch, element("span", { text: label }), value) };
    });
    this.#legend.replaceChildren(...this.#keys.map(({ node }) => node));
    const axis = {
      stroke: () => colour("--faint"),
      grid: { stroke: () => colour("--line"), width: 1 },
      ticks: { show: false },
      font: "12px system-ui, sans-serif",
    };
    this.#plot = new uPlot(
      {
        width: Math.max(80, this.#host.clientWidth),
        height: this.#height,
        legend: { show: false },
        padding: [14, 22, 0, 0],
        cursor: { y: false, points: { size: 7 }, drag: { x: true, y: false } },
        scales: { x: { time: false }, y: { distr: log ? 3 : 1 } },
        axes: [
          { ...axis, size: 30, values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : brief(tick))) },
          { ...axis, size: wide, values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : metric(tick))) },
        ],
        series: [
          {},
          ...series.map(({ label, colour: name, dots, thin }) => ({
            label,
            stroke: () => colour(name),
            width: thin ? 1.25 : 2,
            spanGaps: true,
            points: dots
              ? { show: true, size: 5, fill: () => colour(name), stroke: () => colour(name) }
              : { show: (plot, index) => oneAlone(plot, index), size: 5 },
          })),
        ],
        hooks: {
          draw: [(plot) => this.#drawMarks(plot)],
          setCursor: [() => this.#readOut()],
          setSelect: [(plot) => { if (plot.select.width > 0) this.#zoomed = true; }],
          ready: [(plot) => plot.over.addEventListener("dblclick", () => { this.#zoomed = false; })],
        },
      },
      data,
      this.#host,
    );
  }

  #fit() {
    const width = this.#host.clientWidth;
    if (this.#plot && width && width !== this.#plot.width) {
      this.#plot.setSize({ width, height: this.#height });
    }
  }

  #repaint = () => this.#plot?.redraw();

  #drawMarks(plot) {
    const { ctx, bbox } = plot;
    const ratio = devicePixelRatio;
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left, 0, bbox.width + 1, bbox.top + bbox.height + 8 * ratio);
    ctx.clip();
    ctx.font = `${11 * ratio}px system-ui, sans-serif`;
    ctx.textAlign = "left";
    ctx.lineWidth = 1.5 * ratio;
    for (const mark of this.#marks) {
      const x = Math.round(plot.valToPos(mark.x, "x", true));
      if (x < bbox.left - 1 || x > bbox.left + bbox.width + 1) continue;
      if (mark.kind === "checkpoint") {
        ctx.fillStyle = colour("--good");
        const base = bbox.top + bbox.height;
        ctx.beginPath();
        ctx.moveTo(x, base - 7 * ratio);
        ctx.lineTo(x + 4 * ratio, base);
        ctx.lineTo(x - 4 * ratio, base);
        ctx.fill();
        continue;
      }
      const stroke = colour(mark.kind === "restart" ? "--warn" : "--soft");
      ctx.strokeStyle = stroke;
      ctx.fillStyle = stroke;
      ctx.setLineDash(mark.kind === "restart" ? [] : [4 * ratio, 4 * ratio]);
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
      if (mark.label) ctx.fillText(mark.label, x + 3 * ratio, bbox.top - 3 * ratio);
    }
    ctx.restore();
  }

  /** The values under the pointer, else the newest; and what a mark near the pointer says. */
  #readOut() {
    const plot = this.#plot;
    if (!plot) return;
    const index = plot.cursor.idx;
    const pointed = index !== null && index !== undefined && plot.cursor.left >= 0;
    this.#keys.forEach(({ value }, key) => {
      const values = plot.data[key + 1] ?? [];
      const end = pointed ? index : values.length - 1;
      let at = end;
      while (at >= 0 && (values[at] === null || values[at] === undefined)) at -= 1;
      setText(value, at >= 0 ? metric(values[at]) : "–");
    });
    if (!pointed) {
      setText(this.#at, "");
      return;
    }
    const near = this.#marks
      .map((mark) => ({ mark, distance: Math.abs(plot.valToPos(mark.x, "x") - plot.cursor.left) }))
      .filter(({ distance }) => distance <= NEAR)
      .sort((first, second) => first.distance - second.distance)
      .slice(0, 2)
      .map(({ mark }) => mark.text);
    const where = `${this.#shown.xName} ${brief(plot.data[0][index])}`;
    setText(this.#at, [where, ...near].join(" · "));
  }

  /** The chart in words, for those who cannot see it. */
  #describe() {
    const { series, xName } = this.#shown;
    const points = series.map(({ label, x, y }) =>
      x.length ? `${label}: ${x.length} points to ${xName} ${brief(x.at(-1))}, ${metric(y.at(-1))}` : `${label}: none`,
    );
    const counts = ["attempt", "restart", "checkpoint"].map((kind) => {
      const count = this.#marks.filter((mark) => mark.kind === kind).length;
      return `${count} ${kind} mark${count === 1 ? "" : "s"}`;
    });
    this.#host.setAttribute("role", "img");
    this.#host.setAttribute("aria-label", [...points, counts.join(", ")].join("; "));
  }
}

/** Room for the longest of an axis's values. */
const wide = (_, values) => 14 + 6.7 * Math.max(4, ...(values ?? []).map((value) => value.length));

/** A value of the x axis: steps are whole, epochs may be a part. */
const brief = (value) => (Number.isInteger(value) ? whole(value) : value.toFixed(2));

/** A point that stands alone would not be seen as a line. */
function oneAlone(plot, index) {
  return plot.data[index].filter((value) => value !== null && value !== undefined).length === 1;
}
