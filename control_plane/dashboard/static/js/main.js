// The page: which view the address names, and whether the control plane is heard.

import { CompareView } from "./compare_view.js";
import { OperationView } from "./operation_view.js";
import { OperationsView } from "./operations_view.js";

const CONNECTION = { live: "Live", connecting: "Connecting", lost: "Not connected; it is tried again" };

const host = document.getElementById("view");
const indicator = document.getElementById("connection");
let view = null;

function setConnection(status) {
  indicator.dataset.status = status;
  indicator.textContent = CONNECTION[status];
}

function route() {
  view?.close();
  setConnection("connecting");
  const [name, ...ids] = location.hash.replace(/^#\/?/, "").split("/").map(decodeURIComponent);
  if (name === "operations" && ids[0]) view = new OperationView(host, ids[0], setConnection);
  else if (name === "compare" && ids[0]) view = new CompareView(host, ids, setConnection);
  else view = new OperationsView(host, setConnection);
  scrollTo(0, 0);
}

addEventListener("hashchange", route);
route();
