// Values of the contract in words for people.

/** A number of the contract: 64-bit ones are strings, and 0 is left out. */
export const number = (value) => Number(value ?? 0);

const WHOLE = new Intl.NumberFormat("en");

export const whole = (value) => WHOLE.format(Math.round(number(value)));

/** A metric: four digits that matter. */
export function metric(value) {
  if (value === undefined || value === null) return "–";
  const given = Number(value);
  if (!Number.isFinite(given)) return String(given);
  const size = Math.abs(given);
  if (size !== 0 && (size < 1e-3 || size >= 1e5)) return given.toExponential(2).replace("e+", "e");
  return given.toPrecision(4).replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, "");
}

export const percent = (fraction) => `${(100 * fraction).toFixed(fraction < 0.1 && fraction > 0 ? 1 : 0)} %`;

export function bytes(value) {
  const given = number(value);
  const units = ["B", "kB", "MB", "GB", "TB"];
  let power = 0;
  while (given >= 1000 ** (power + 1) && power < units.length - 1) power += 1;
  const scaled = given / 1000 ** power;
  return `${scaled < 10 && power ? scaled.toFixed(1) : Math.round(scaled)} ${units[power]}`;
}

export function duration(seconds) {
  const given = number(seconds);
  if (given < 0.0995) return `${Math.round(given * 1000)} ms`;
  if (given < 9.95) return `${given.toFixed(1)} s`;
  if (given < 60) return `${Math.round(given)} s`;
  if (given < 3600) return `${Math.floor(given / 60)} min ${Math.floor(given % 60)} s`;
  if (given < 86400) return `${Math.floor(given / 3600)} h ${Math.floor((given % 3600) / 60)} min`;
  return `${Math.floor(given / 86400)} d ${Math.floor((given % 86400) / 3600)} h`;
}

/** How long ago, coarsely. */
export function ago(time) {
  const seconds = (Date.now() - Date.parse(time)) / 1000;
  if (seconds < 45) return "just now";
  if (seconds < 3600) return `${Math.round(seconds / 60)} min ago`;
  if (seconds < 86400) return `${Math.round(seconds / 3600)} h ago`;
  return new Date(time).toLocaleDateString(undefined, { day: "numeric", month: "short", year: "numeric" });
}

export const clock = (time) => new Date(time).toLocaleTimeString(undefined, { hour12: false });

/** A constant of an enumeration, as in `OPERATION_STATE_RUNNING`, without its prefix. */
export const word = (constant, prefix) =>
  (constant ?? "").replace(prefix, "").toLowerCase().replaceAll("_", " ");

export const stateOf = (operation) => word(operation.state, "OPERATION_STATE_");

/** What keeps a running operation from being heard: stalled, unreachable or dead; empty while all is well. */
export function troubleOf(operation) {
  const state = word(operation.liveness?.state, "LIVENESS_STATE_");
  return state === "heard" ? "" : state;
}

export const FINAL = new Set(["completed", "failed", "cancelled"]);

/** `train_loss` as `train loss`; names of metrics are the training's own. */
export const metricName = (name) => name.replaceAll("_", " ");

/** A metric's name as a heading; short ones are abbreviations, as in `MAE`. */
export const title = (name) =>
  metricName(name)
    .replace(/^./, (first) => first.toUpperCase())
    .replace(/\b([a-z0-9]{1,3}|rmse)$/i, (short) => short.toUpperCase());

export const plural = (count, what) => `${whole(count)} ${what}${count === 1 ? "" : "s"}`;
