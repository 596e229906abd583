// One stream of server-sent events that always comes back.

const LONGEST_PAUSE = 5000;

/**
 * Listens until `close()`. The browser opens a broken stream again with Last-Event-ID; what it
 * gives up (an HTTP error) or what was closed while the page was hidden is opened again here.
 */
export class EventStream {
  #source = null;
  #lastId = "";
  #failures = 0;
  #timer = 0;
  #url;
  #handlers;
  #status;
  #closed = false;

  /**
   * @param {(lastId: string) => string} url of the stream after an id (empty: from the beginning)
   * @param {Object<string, (content: any) => void>} handlers by the name of the event
   * @param {(status: "live" | "connecting" | "lost") => void} status told of the connection
   */
  constructor(url, handlers, status) {
    this.#url = url;
    this.#handlers = handlers;
    this.#status = status;
    document.addEventListener("visibilitychange", this.#onVisibility);
    this.#open();
  }

  close() {
    this.#closed = true;
    document.removeEventListener("visibilitychange", this.#onVisibility);
    this.#shut();
  }

  #open() {
    this.#shut();
    if (this.#closed || document.hidden) return;
    const source = new EventSource(this.#url(this.#lastId));
    this.#source = source;
    source.onopen = () => {
      this.#failures = 0;
      this.#status("live");
    };
    source.onerror = () => {
      this.#status(this.#failures ? "lost" : "connecting");
      this.#failures += 1;
      if (source.readyState === EventSource.CLOSED) this.#openLater();
    };
    for (const [name, handle] of Object.entries(this.#handlers)) {
      source.addEventListener(name, (message) => {
        if (this.#source !== source) return;
        this.#lastId = message.lastEventId;
        handle(JSON.parse(message.data));
      });
    }
  }

  #openLater() {
    clearTimeout(this.#timer);
    const pause = Math.min(LONGEST_PAUSE, 500 * 2 ** Math.min(this.#failures, 8));
    this.#timer = setTimeout(() => this.#open(), pause * (0.5 + Math.random() / 2));
  }

  #shut() {
    clearTimeout(this.#timer);
    this.#source?.close();
    this.#source = null;
  }

  // A hidden page needs no stream, and a browser has only six connections for all its tabs.
  #onVisibility = () => {
    if (document.hidden) this.#shut();
    else this.#open();
  };
}
