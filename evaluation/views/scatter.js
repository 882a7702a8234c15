// The scatter: the worst case of each defence, its other rows pale, and the Pareto front.
function scatterFigure() {
  return data.charts.scatter[choice("cost") || "accuracy"][choice("measure") || "advantage"];
}

// The points of the scatter that are kept, the worst of each defence, and those on the front.
function overview(keep) {
  const points = scatterFigure().data.flatMap((trace) =>
    trace.customdata.map((row, i) => ({ row, x: trace.x[i], y: trace.y[i] })));
  const kept = points.filter((p) => keep.has(p.row)).sort((a, b) => a.row - b.row);
  const main = worst(kept.map((p) => p.row), (i) => kept[i].y).map((i) => kept[i]);
  const able = main.filter((p) => !data.diverged.includes(p.row));
  const sign = choice("cost") === "bytes" ? 1 : -1;
  const on = nondominated(able.map((p) => [sign * p.x, p.y]));
  const front = able.filter((_, i) => on[i]).sort((a, b) => a.x - b.x);
  return { kept, main, front };
}

function drawScatter(keep) {
  const div = byId("scatter");
  if (!div || !interactive) return;
  const figure = scatterFigure(), { kept, main, front } = overview(keep);
  const large = new Set(main.map((p) => p.row));
  const traces = [frontTrace(front)];
  for (const trace of figure.data) {
    const ink = color(trace.meta), rows = trace.customdata;
    const all = rows.map((_, i) => i).filter((i) => keep.has(rows[i]));
    const pale = only(trace, all.filter((i) => !large.has(rows[i])));
    const full = only(trace, all.filter((i) => large.has(rows[i])));
    delete pale.error_x;
    delete pale.error_y;
    traces.unshift({ ...pale, showlegend: false, opacity: 0.3,
      marker: { ...pale.marker, size: 7, color: ink } });
    const bar = (own) => own && { ...own, color: `${ink}99` }; // half through, for they cross
    traces.push({ ...full, error_x: bar(full.error_x), error_y: bar(full.error_y),
      marker: { ...full.marker, color: ink, line: { width: 2, color: ink } } });
  }
  traces.push(crosses(main.filter((p) => data.diverged.includes(p.row))));
  traces.push(ring(kept.find((p) => p.row === selected)));
  for (const trace of traces) {
    if (trace.customdata) trace.hovertext = trace.customdata.map((row) => data.hover[row]);
    trace.hoverinfo = trace.customdata ? "text" : "skip";
  }
  const named = width(div) >= 720;
  const size = { height: named ? 500 : 420,
    margin: { l: named ? 64 : 52, r: named ? 250 : 48, t: 64, b: 56 } };
  // Of names for points at one height, that of the rightmost comes first: fewer lines cross.
  const shown = [...(main.length <= MOST_NAMES ? main : front.slice(0, MOST_NAMES))]
    .sort((a, b) => b.y - a.y || b.x - a.x);
  const winners = new Set(front.map((p) => p.row));
  const labels = shown.map((p, i) => (named ? short(data.defenses[p.row], 30) : String(i + 1)));
  fillKey(named ? [] : shown, winners);
  plot(div, traces, layoutOf(figure, { ...size, shapes: [blindBand(main)],
    annotations: [blindWords(main), ...names(figure, shown, labels, winners, size, div)] }));
}

function frontTrace(front) {
  return { type: "scatter", mode: "lines", name: "Pareto front", x: front.map((p) => p.x),
    y: front.map((p) => p.y), showlegend: front.length > 0,
    line: { shape: choice("cost") === "bytes" ? "hv" : "vh", width: 2, dash: "dot",
      color: color("front") } };
}

// Over the marks of defences with which training diverged.
function crosses(points) {
  return { type: "scatter", mode: "markers", name: "diverged", showlegend: points.length > 0,
    x: points.map((p) => p.x), y: points.map((p) => p.y),
    marker: { symbol: "x-thin-open", size: 18, line: { width: 2 }, color: color("ink") } };
}

function ring(point) {
  return { type: "scatter", mode: "markers", showlegend: false, x: point ? [point.x] : [],
    y: point ? [point.y] : [],
    marker: { symbol: "circle-open", size: 24, line: { width: 3 }, color: color("ink") } };
}

function blindRange(main) {
  if (choice("measure") !== "labels") return [0, 0];
  const rates = main.map((p) => data.blind[p.row]);
  return [Math.min(...rates), Math.max(...rates)];
}

function blindBand(main) {
  const [low, high] = blindRange(main);
  return { type: "rect", xref: "paper", x0: 0, x1: 1, y0: low, y1: high, layer: "below",
    fillcolor: color("soft"), opacity: low === high ? 0.9 : 0.15,
    line: { width: low === high ? 1 : 0, dash: "dash", color: color("soft") } };
}

function blindWords(main) {
  return { text: "a blind guess", xref: "paper", x: 0, xanchor: "left", y: blindRange(main)[1],
    yanchor: "bottom", showarrow: false, font: { size: 11, color: color("soft") } };
}

// What the numbers stand for where there is no room for names beside the points.
function fillKey(shown, winners) {
  byId("key").hidden = shown.length === 0;
  byId("key").replaceChildren(...shown.map((p) => {
    const item = document.createElement("li");
    const name = document.createElement(winners.has(p.row) ? "b" : "span");
    name.textContent = data.defenses[p.row];
    item.append(name);
    return item;
  }));
}

// Labels in a column right of the points, with a line to each: beside them they would overlap.
function names(figure, shown, labels, winners, size, div) {
  const { margin, height } = size, log = figure.layout.xaxis.type === "log";
  const [[x0, x1], [y0, y1]] = [figure.layout.xaxis.range, figure.layout.yaxis.range];
  const across = width(div) - margin.l - margin.r, up = height - margin.t - margin.b;
  const px = (p) => (((log ? Math.log10(Math.max(p.x, 1)) : p.x) - x0) / (x1 - x0)) * across;
  const py = (p) => ((y1 - p.y) / (y1 - y0)) * up;
  const slots = spread(shown.map(py), 19, -40, up); // above the plot there is room as well
  return shown.map((p, i) => {
    const name = escaped(labels[i]);
    return { x: log ? Math.log10(Math.max(p.x, 1)) : p.x, y: p.y,
      text: winners.has(p.row) ? `<b>${name}</b>` : name,
      xanchor: "left", ax: across + 22 - px(p), ay: slots[i] - py(p), showarrow: true,
      arrowhead: 0, arrowwidth: 0.6, arrowcolor: color("faint"), standoff: 8,
      font: { size: 12.5, color: color("ink") }, captureevents: false };
  });
}
