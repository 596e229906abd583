// Short words at the edge of the page, and questions before something is changed.

import { element } from "./dom.js";

const SECONDS = 6;

export function notice(text, kind = "info") {
  const shown = element("p", { class: "notice", text, data: { kind } });
  document.getElementById("notices").append(shown);
  setTimeout(() => shown.remove(), SECONDS * 1000);
}

/** Does something that may be refused; the refusal is shown. */
export async function attempt(work, done) {
  try {
    const result = await work();
    if (done) notice(done);
    return result;
  } catch (error) {
    notice(error.message, "error");
    return null;
  }
}

/**
 * Asks before something is done, and shows what the service says against it.
 *
 * @param {{title: string, text: string, fields?: Node[], action: string, danger?: boolean,
 *   confirmed: () => Promise<void>}} question
 */
export function ask({ title, text, fields = [], action, danger, confirmed }) {
  const alert = element("p", { class: "alert", role: "alert", hidden: true });
  const confirm = element("button", {
    type: "submit",
    class: danger ? "main danger" : "main",
    text: action,
    data: { confirm: "" },
  });
  const dialog = element(
    "dialog",
    { "aria-label": title },
    element(
      "form",
      {
        on: {
          submit: async (event) => {
            event.preventDefault();
            confirm.disabled = true;
            try {
              await confirmed();
              dialog.close();
            } catch (error) {
              alert.textContent = error.message;
              alert.hidden = false;
              confirm.disabled = false;
            }
          },
        },
      },
      element("h2", { text: title }),
      element("p", { class: "soft", text }),
      ...fields,
      alert,
      element(
        "div",
        { class: "buttons" },
        element("button", { type: "button", text: "Not now", on: { click: () => dialog.close() } }),
        confirm,
      ),
    ),
  );
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}
