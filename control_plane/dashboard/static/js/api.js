// Questions to the control plane, in the words of the contract.

/** What the service refused, with its reason. */
export class Refused extends Error {
  constructor(error) {
    super(error.message);
    this.reason = error.reason;
    this.violations = error.violations ?? [];
  }
}

async function ask(method, path, body) {
  let response;
  try {
    response = await fetch(path, {
      method,
      headers: body === undefined ? {} : { "Content-Type": "application/json" },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch {
    throw new Refused({
      reason: "SERVICE_UNAVAILABLE",
      message: "the control plane does not answer; trainings go on without it",
    });
  }
  const content = await response.json().catch(() => ({}));
  if (response.ok) return content;
  throw new Refused(
    content.error ?? { reason: "INTERNAL", message: `the service answered ${response.status}` },
  );
}

const one = (operationId) => `operations/${encodeURIComponent(operationId)}`;

export const getOperation = (operationId) => ask("GET", one(operationId));

export const olderOperations = (pageToken) =>
  ask("GET", `operations?page_size=100&page_token=${encodeURIComponent(pageToken)}`);

export const cancel = (operationId, discard) =>
  ask("POST", `${one(operationId)}:cancel`, { discard });

export const resume = (operationId, request) =>
  ask("POST", `${one(operationId)}:resume`, { request_id: requestId(), ...request });

export const takeCheckpoint = (operationId) => ask("POST", `${one(operationId)}:checkpoint`, {});

export const pin = (checkpointId, pinned) =>
  ask("PATCH", `checkpoints/${encodeURIComponent(checkpointId)}`, { pinned });

/** All checkpoints that are kept, newest first. */
export async function listCheckpoints(operationId) {
  const kept = [];
  let token = "";
  do {
    const page = await ask(
      "GET",
      `${one(operationId)}/checkpoints?page_token=${encodeURIComponent(token)}`,
    );
    kept.push(...(page.checkpoints ?? []));
    token = page.next_page_token ?? "";
  } while (token);
  return kept;
}

/** A UUID; crypto.randomUUID is missing where the page comes over plain HTTP from afar. */
function requestId() {
  const random = crypto.getRandomValues(new Uint8Array(16));
  random[6] = (random[6] & 0x0f) | 0x40;
  random[8] = (random[8] & 0x3f) | 0x80;
  const digits = [...random].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return digits.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");
}
