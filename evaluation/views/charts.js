// Charts of the rows that the filters leave. Figures come from Python with a point for every row;
// here points are left out, a defence's rows are joined to its worst, and colours are put in.
const byId = (id) => document.getElementById(id);
const data = JSON.parse(byId("data").textContent);
const interactive = typeof Plotly !== "undefined";
const MOST_NAMES = 24, MOST_NUMBERS = 900, LINE = 24;
const drawing = []; // promises of what is being drawn
let paper = null; // the width of a printed page, while it is printed

// Colours come from the style sheet. Each is asked for once in a drawing: every question would make
// the browser work out the styles of the whole page anew.
let palette = new Map();
function color(name) {
  if (!palette.has(name)) {
    const styles = getComputedStyle(document.documentElement);
    palette.set(name, styles.getPropertyValue(`--${name}`).trim());
  }
  return palette.get(name);
}
const plain = (text) => // what Python escaped for plotly.js, for use anywhere else
  new DOMParser().parseFromString(text, "text/html").documentElement.textContent;
const escaped = (text) =>
  text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const short = (name, most = 32) => (name.length > most ? `${name.slice(0, most - 1)}…` : name);
const width = (div) => paper || div.clientWidth;

// A trace with only some of its points: every list as long as it has points is thinned out.
function only(trace, indices) {
  const length = trace.customdata.length;
  const thin = (value) => {
    if (Array.isArray(value)) return value.length === length ? indices.map((i) => value[i]) : value;
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([key, held]) => [key, thin(held)]));
  };
  return thin(trace);
}

// Of each defence, the place in `rows` with the highest value; the first of equal ones.
function worst(rows, value) {
  const found = new Map();
  rows.forEach((row, i) => {
    const name = data.defenses[row];
    if (!found.has(name) || value(i) > value(found.get(name))) found.set(name, i);
  });
  return [...found.values()];
}

function layoutOf(figure, changes) {
  const axis = (own) => ({
    gridcolor: color("line"), zerolinecolor: color("soft"), linecolor: color("line"),
    tickfont: { color: color("soft") }, fixedrange: true, ...own,
    title: { standoff: 12, font: { size: 13, color: color("soft") }, ...own.title },
  });
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", hovermode: "closest",
    font: { family: "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", size: 13,
      color: color("ink") },
    hoverlabel: { bgcolor: color("head"), bordercolor: color("line"), align: "left",
      font: { color: color("ink"), size: 13 } },
    legend: { orientation: "h", x: 0, y: 1, yanchor: "bottom", font: { size: 12 },
      itemclick: false, itemdoubleclick: false },
    showlegend: true, dragmode: false, ...changes,
    xaxis: axis({ ...figure.layout.xaxis, ...changes.xaxis }),
    yaxis: axis({ ...figure.layout.yaxis, ...changes.yaxis }),
  };
}

function plot(div, traces, layout) {
  const config = { displaylogo: false, displayModeBar: false };
  drawing.push(Plotly.react(div, traces, { ...layout, width: width(div) }, config));
  if (div.clicked) return;
  div.clicked = true;
  div.on("plotly_click", (event) => {
    const row = event.points[0].customdata;
    if (Number.isInteger(row)) select(row);
  });
}
