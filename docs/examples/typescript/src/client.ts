/** Everstep's control plane for a Node.js program: a training is begun, and watched to its end. */

import { randomUUID } from "node:crypto";
import { setTimeout as pause } from "node:timers/promises";
import { credentials, Metadata, type ServiceError, status } from "@grpc/grpc-js";
import {
  type Operation,
  type OperationEvent,
  OperationServiceClient,
  OperationState,
} from "../generated/everstep/control/v1/operations.js";
import type { TrainingStrategy } from "../generated/everstep/training/v1/strategy.js";

const UNARY_DEADLINE_MILLISECONDS = 10_000;
const LONGEST_PAUSE_MILLISECONDS = 5_000;
/** The control plane says something every 15 seconds; a stream that says nothing so long is dead. */
const SILENCE_MILLISECONDS = 45_000;

export const FINAL_STATES: ReadonlySet<OperationState> = new Set([
  OperationState.OPERATION_STATE_COMPLETED,
  OperationState.OPERATION_STATE_FAILED,
  OperationState.OPERATION_STATE_CANCELLED,
]);

export class EverstepClient {
  readonly #operations: OperationServiceClient;

  /** @param address host:port of the control plane. */
  constructor(address: string) {
    this.#operations = new OperationServiceClient(address, credentials.createInsecure());
  }

  close(): void {
    this.#operations.close();
  }

  /** Begins a training; it is durable when this resolves. The same requestId gives the same one. */
  createOperation(strategy: TrainingStrategy, requestId = randomUUID()): Promise<Operation> {
    const request = {
      requestId,
      strategy,
      displayName: "",
      labels: {},
      restartPolicy: undefined,
      fromCheckpoint: "",
      priority: 0,
      trainerLabels: {},
    };
    const options = { deadline: Date.now() + UNARY_DEADLINE_MILLISECONDS };
    return new Promise((resolve, reject) => {
      this.#operations.createOperation(request, new Metadata(), options, (error, operation) =>
        error ? reject(error) : resolve(operation),
      );
    });
  }

  /**
   * Every durable event of an operation after a sequence, once and in order, to the end; of step
   * metrics (sequence 0) the newest. A stream that breaks is opened again after the last sequence.
   */
  async *watch(operationId: string, afterSequence = 0): AsyncGenerator<OperationEvent> {
    let cursor = afterSequence;
    let failures = 0;
    for (;;) {
      try {
        for await (const event of this.#watchOnce(operationId, cursor)) {
          failures = 0;
          if (event.sequence !== 0) {
            if (event.sequence <= cursor) continue;
            cursor = event.sequence;
          }
          yield event;
          if (event.event?.$case === "stateChanged" && FINAL_STATES.has(event.event.value.to)) {
            return;
          }
        }
      } catch (error) {
        if (!isPassing(error)) throw error;
      }
      // A stream that ended without a final state is opened again as one that broke.
      failures += 1;
      const longest = Math.min(LONGEST_PAUSE_MILLISECONDS, 100 * 2 ** Math.min(failures, 10));
      await pause(longest * (0.5 + Math.random() / 2));
    }
  }

  async *#watchOnce(operationId: string, afterSequence: number): AsyncGenerator<OperationEvent> {
    const stream = this.#operations.watchOperation({ operationId, afterSequence });
    const silence = setTimeout(() => stream.cancel(), SILENCE_MILLISECONDS);
    try {
      for await (const response of stream) {
        silence.refresh();
        if (response.message?.$case === "batch") yield* response.message.value.events;
      }
    } finally {
      clearTimeout(silence);
      stream.cancel();
    }
  }
}

/** Whether a watch outlives an error: the service stops, restarts or cannot be reached. */
function isPassing(error: unknown): boolean {
  const code = (error as Partial<ServiceError>).code;
  return code === status.UNAVAILABLE || code === status.CANCELLED;
}
