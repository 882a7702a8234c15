// Every chart, and its content as a table for those who cannot or will not look at it.
function fillTable(name, content) {
  const details = document.querySelector(`details[data-chart="${name}"]`);
  if (!details) return;
  details.querySelector(".wide")?.remove();
  if (!content || !details.open) return;
  const table = document.createElement("table"), head = table.createTHead().insertRow();
  const body = table.createTBody();
  const cell = (line, kind, text, i) => {
    const made = document.createElement(kind);
    made.textContent = text;
    if (i === 0) made.className = "text";
    if (kind === "th") made.scope = line === head ? "col" : "row";
    line.append(made);
  };
  content.head.forEach((text, i) => cell(head, "th", text, i));
  for (const row of content.rows) {
    const line = body.insertRow();
    row.forEach((text, i) => cell(line, i ? "td" : "th", text, i));
  }
  const box = document.createElement("div");
  box.className = "wide";
  box.append(table);
  details.append(box);
}

function drawAll(keep) {
  palette = new Map();
  drawScatter(keep);
  fillTable("heat_map", drawHeatMap(keep));
  for (const axis of Object.keys(data.charts.dots)) fillTable(`dots-${axis}`, drawDots(axis, keep));
  drawCertified(keep);
  for (const box of document.querySelectorAll(".tall")) {
    box.classList.toggle("cut", box.scrollWidth > box.clientWidth);
  }
}
