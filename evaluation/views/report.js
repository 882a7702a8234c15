// What a reader does: filters, the row that is looked at, sorting, keys, links, printing.
const form = byId("view");
const table = byId("rows");
const body = table.tBodies[0];
let selected = null;

function choice(name) {
  const input = document.querySelector(`input[name="${name}"]:checked`);
  return input ? input.value : "";
}

function kept(codes) {
  const wanted = data.filters.map((name) => data.values[name].indexOf(choice(name)));
  const fits = (code) => wanted.every((value, i) => value < 0 || code[i] === value);
  return codes.flatMap((code, number) => (fits(code) ? [number] : []));
}

function update() {
  const keep = new Set(kept(data.rows)), failed = new Set(kept(data.failures));
  data.rows.forEach((_, i) => { byId(`row-${i}`).hidden = !keep.has(i); });
  data.failures.forEach((_, i) => { byId(`failure-${i}`).hidden = !failed.has(i); });
  const total = data.rows.length + data.failures.length;
  byId("count").textContent = `${keep.size + failed.size} of ${total} rows`;
  if (selected !== null && !keep.has(selected)) forget();
  drawAll(keep);
  oneTabStop();
  remember();
}

// ---- a view as a link ----

const KEPT = [...data.filters, "cost", "measure"];

function remember() {
  const said = new URLSearchParams();
  for (const name of KEPT) {
    const first = document.querySelector(`input[name="${name}"]`);
    if (first && choice(name) !== first.value) said.set(name, choice(name));
  }
  if (selected !== null) said.set("row", selected);
  const fragment = said.toString();
  if (fragment !== location.hash.slice(1)) history.replaceState(null, "", `#${fragment}`);
}

function recall() {
  const said = new URLSearchParams(location.hash.slice(1));
  for (const name of KEPT) {
    const inputs = [...document.querySelectorAll(`input[name="${name}"]`)];
    const wanted = inputs.find((input) => input.value === said.get(name)) || inputs[0];
    if (wanted) wanted.checked = true;
  }
  selected = null;
  const row = said.has("row") ? Number(said.get("row")) : NaN;
  if (Number.isInteger(row) && row in data.rows) selected = row;
  update();
  if (selected !== null) show(selected);
}

// ---- the row that is looked at ----

function forget() {
  selected = null;
  for (const row of body.rows) row.removeAttribute("aria-current");
  if (byId("card")) byId("card").hidden = true;
}

function show(number) {
  const row = byId(`row-${number}`);
  for (const other of body.rows) other.removeAttribute("aria-current");
  row.setAttribute("aria-current", "true");
  // Inside the table's own box: the page itself stays where the reader is.
  const box = row.closest(".wide");
  box.scrollTop = row.offsetTop - box.clientHeight / 2;
  fillCard(row);
}

function select(number) {
  selected = number;
  show(number);
  drawScatter(new Set(kept(data.rows)));
  remember();
}

function fillCard(row) {
  const card = byId("card");
  if (!card) return;
  const heads = [...table.tHead.rows[0].cells].map((cell) => cell.textContent);
  const title = document.createElement("h3"), list = document.createElement("dl");
  title.textContent = row.cells[0].textContent;
  [...row.cells].slice(1).forEach((cell, i) => {
    const pair = document.createElement("div"), name = document.createElement("dt");
    const value = document.createElement("dd");
    name.textContent = heads[i + 1];
    value.textContent = cell.textContent;
    value.className = cell.className;
    pair.append(name, value);
    list.append(pair);
  });
  const go = document.createElement("button"), leave = document.createElement("button");
  go.type = leave.type = "button";
  go.textContent = "To its row in the table";
  leave.textContent = "Close";
  go.addEventListener("click", () => { row.scrollIntoView({ block: "center" }); focusRow(row); });
  leave.addEventListener("click", () => {
    forget();
    update();
    byId("scatter").focus();
  });
  card.replaceChildren(title, list, go, leave);
  card.hidden = false;
}

// ---- the table by pointer and by keys ----

const visible = () => [...body.rows].filter((row) => !row.hidden);
const numberOf = (row) => (row.id.startsWith("row-") ? Number(row.id.slice(4)) : null);

function oneTabStop() {
  // One stop for the whole table: a thousand would bury what comes after it.
  for (const row of body.rows) row.tabIndex = -1;
  const [first] = visible();
  if (first) first.tabIndex = 0;
}

function focusRow(row) {
  for (const other of body.rows) other.tabIndex = -1;
  row.tabIndex = 0;
  row.focus();
}

body.addEventListener("click", (event) => {
  const row = event.target.closest("tr");
  if (numberOf(row) !== null && !String(getSelection())) select(numberOf(row));
});

body.addEventListener("keydown", (event) => {
  const row = event.target.closest("tr"), rows = visible(), at = rows.indexOf(row);
  const goal = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: rows.length - 1 }[event.key];
  if (event.key === "Enter" && numberOf(row) !== null) select(numberOf(row));
  else if (goal !== undefined && rows[goal]) focusRow(rows[goal]);
  else return;
  event.preventDefault();
});

for (const button of table.tHead.querySelectorAll("button")) {
  button.addEventListener("click", () => {
    const head = button.parentElement, column = head.cellIndex;
    const up = head.getAttribute("aria-sort") !== "ascending";
    const numeric = head.classList.contains("number");
    const value = (row) => {
      const cell = row.cells[column];
      return numeric ? Number(cell.dataset.v ?? -Infinity) : cell.textContent;
    };
    const compare = (a, b) => (numeric ? value(a) - value(b) || 0 : value(a).localeCompare(value(b)));
    for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const made = [...body.rows].filter((row) => numberOf(row) !== null);
    made.sort((a, b) => (up ? compare(a, b) : compare(b, a)));
    // What could not be made has no value to be sorted by, and stays at the end.
    body.append(...made, ...[...body.rows].filter((row) => numberOf(row) === null));
    oneTabStop();
  });
}

// ---- the scatter by keys ----

let looking = -1;
byId("scatter")?.addEventListener("keydown", (event) => {
  const marks = overview(new Set(kept(data.rows))).main.sort((a, b) => a.x - b.x || a.y - b.y);
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  if (event.target !== byId("scatter") || !marks.length) return;
  if (step) {
    looking = (looking + step + marks.length) % marks.length;
    select(marks[looking].row);
  } else if (event.key === "Enter" && selected !== null) {
    const row = byId(`row-${selected}`);
    row.scrollIntoView({ block: "center" });
    focusRow(row);
  } else return;
  event.preventDefault();
});

// ---- everything else ----

document.addEventListener("change", (event) => {
  if (event.target.form === form) update();
});
form.addEventListener("reset", () => setTimeout(update));
form.addEventListener("submit", (event) => event.preventDefault());
for (const details of document.querySelectorAll("details.same")) {
  details.addEventListener("toggle", () => drawAll(new Set(kept(data.rows))));
}
addEventListener("hashchange", recall);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", update);
let waiting = null;
addEventListener("resize", () => {
  cancelAnimationFrame(waiting);
  waiting = requestAnimationFrame(() => drawAll(new Set(kept(data.rows))));
});

let closed = [];
addEventListener("beforeprint", () => {
  paper = 690;
  document.documentElement.dataset.scheme = "light";
  closed = [...document.querySelectorAll("details:not([open], .same)")];
  for (const details of closed) details.open = true;
  drawAll(new Set(kept(data.rows)));
});
addEventListener("afterprint", () => {
  paper = null;
  delete document.documentElement.dataset.scheme;
  for (const details of closed) details.open = false;
  drawAll(new Set(kept(data.rows)));
});

if (!interactive) {
  for (const chart of document.querySelectorAll(".tall")) chart.hidden = true;
  for (const details of document.querySelectorAll("details.same")) details.open = true;
}
recall();
// For whoever waits for the page: milliseconds until every chart was drawn and painted.
Promise.all(drawing).then(() => requestAnimationFrame(() => setTimeout(() => {
  document.documentElement.dataset.ready = Math.round(performance.now());
})));
