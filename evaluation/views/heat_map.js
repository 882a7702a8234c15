// Which attacker reads how much behind which defence.
// Per defence and attack the highest value among the kept rows, and where it was.
function heat(keep) {
  const [trace] = data.charts.heat_map.data, { attacks, skipped } = trace.meta;
  const names = [...new Set(data.defenses)];
  const cells = names.map(() => attacks.map(() => ({ value: null, row: null, why: null })));
  for (const row of keep) {
    const line = cells[names.indexOf(data.defenses[row])];
    line.forEach((cell, a) => {
      const value = trace.z[row][a], why = (skipped[row] || {})[a];
      if (value !== null && (cell.value === null || value > cell.value)) {
        Object.assign(cell, { value, row });
      }
      if (why) cell.why = why;
    });
  }
  return { names, attacks, cells };
}

function heatHover(name, attack, cell) {
  const head = `<b>${escaped(name)}</b><br>`;
  if (cell.value === null) return `${head}${attack} was not run: ${cell.why || "not in this study"}`;
  const where = data.hover[cell.row].split("<br>")[1];
  return `${head}${attack} reads ${cell.value.toFixed(1)} % of the labels<br>${where}`;
}

function heatLayout(div, figure, attacks) {
  const grid = { showgrid: false, zeroline: false };
  const layout = listLayout(div, figure, { showlegend: false,
    margin: { t: 24 + 5.2 * Math.max(...attacks.map((name) => name.length)), r: 90 },
    xaxis: { ...grid, tickfont: { size: 12, color: color("ink") } } });
  return { ...layout, yaxis: { ...layout.yaxis, ...grid } };
}

function drawHeatMap(keep) {
  const div = byId("heat_map"), figure = data.charts.heat_map;
  if (!div) return null;
  const { names, attacks, cells } = heat(keep);
  // Where the page is too narrow for the numbers, the chart scrolls in its own box.
  div.style.minWidth = paper ? "" : `${Math.min(320 + 26 * attacks.length, 1400)}px`;
  if (interactive) {
    const holes = cells.flatMap((line, y) => line.flatMap((cell, x) =>
      cell.value === null && cell.why ? [{ x, y, text: heatHover(names[y], attacks[x], cell) }] : []));
    const [template] = figure.data, layout = heatLayout(div, figure, attacks);
    const room = width(div) - layout.margin.l - layout.margin.r;
    const many = names.length * attacks.length > MOST_NUMBERS || room / attacks.length < 22;
    const text = cells.map((line, y) => line.map((c, x) => heatHover(names[y], attacks[x], c)));
    const map = { ...template, z: cells.map((line) => line.map((cell) => cell.value)),
      customdata: cells.map((line) => line.map((cell) => cell.row)), hovertext: text,
      showscale: names.length > 4, // beside fewer lines there is no room, and the numbers say it
      colorbar: { ...template.colorbar, len: Math.min(240, LINE * names.length) },
      hoverinfo: "text", hoverongaps: false, texttemplate: many ? "" : "%{z:.0f}",
      textfont: { size: 11 } };
    const crosses = { type: "scatter", mode: "markers", showlegend: false, hoverinfo: "text",
      x: holes.map((h) => h.x), y: holes.map((h) => h.y), hovertext: holes.map((h) => h.text),
      marker: { symbol: "x-thin-open", size: 9, color: color("soft"), line: { width: 1.5 } } };
    plot(div, [map, crosses], layout);
  }
  const shown = (cell) => (cell.value === null ? "not run" : cell.value.toFixed(0));
  return { head: ["defence", ...attacks.map(plain)],
    rows: cells.map((line, y) => [names[y], ...line.map(shown)]) };
}
