// Charts with a line for each defence: leakage over a condition, measured and proven.
function lines(figure) {
  return figure.layout.yaxis.ticktext.length;
}

function listLayout(div, figure, changes) {
  const most = width(div) < 480 ? 22 : 32;
  const ticktext = figure.layout.yaxis.ticktext.map((name) => escaped(short(plain(name), most)));
  const left = 18 + 6.7 * Math.max(...ticktext.map((name) => plain(name).length), 4);
  const { margin, ...others } = changes;
  return layoutOf(figure, { ...others,
    height: LINE * lines(figure) + margin.t + 16,
    margin: { l: left, r: 18, b: 16, ...margin },
    xaxis: { side: "top", ...others.xaxis },
    yaxis: { ticktext, tickfont: { color: color("ink"), size: 12.5 } },
  });
}

// The worst kept row of each defence, in every trace.
function reduced(figure, keep) {
  return figure.data.map((trace) => {
    const kept = trace.customdata.map((_, i) => i).filter((i) => keep.has(trace.customdata[i]));
    return only(trace, worst(kept.map((i) => trace.customdata[i]), (i) => trace.x[kept[i]])
      .map((i) => kept[i]));
  });
}

function drawDots(axis, keep) {
  const div = byId(`dots-${axis}`), figure = data.charts.dots[axis][choice("measure") || "advantage"];
  const traces = reduced(figure, keep).filter((trace) => trace.customdata.length);
  byId(`panel-${axis}`).hidden = traces.length < 2;
  if (traces.length < 2) return null;
  const places = figure.layout.yaxis.tickvals, ends = places.map(() => []);
  for (const trace of traces) trace.y.forEach((y, i) => ends[y].push(trace.x[i]));
  if (interactive) {
    const spans = { type: "scatter", mode: "lines", hoverinfo: "skip", showlegend: false,
      line: { color: color("faint"), width: 2 },
      x: ends.flatMap((all) => (all.length ? [Math.min(...all), Math.max(...all), null] : [])),
      y: ends.flatMap((all, y) => (all.length ? [y, y, null] : [])) };
    const marks = traces.map((trace, k) => ({ ...trace,
      // Ever smaller, so that of equal values all can be seen.
      marker: { ...trace.marker, color: color(trace.meta), size: Math.max(14 - 2.2 * k, 6) },
      hoverinfo: "text",
      hovertext: trace.customdata.map((row, i) =>
        `${trace.text ? trace.text[i] : trace.name}<br>${data.hover[row]}`) }));
    plot(div, [spans, ...marks.map(({ text, ...mark }) => mark)],
      listLayout(div, figure, legendAbove(div, traces)));
  }
  const rows = places.map((y) => [plain(figure.layout.yaxis.ticktext[y]), ...traces.map((trace) =>
    trace.y.includes(y) ? trace.x[trace.y.indexOf(y)].toFixed(0) : "")]);
  return { head: ["defence", ...traces.map((trace) => plain(trace.name))], rows };
}

// The legend on top, and as much room as its entries take in the width that there is.
function legendAbove(div, traces) {
  const each = 55 + 7 * Math.max(...traces.map((trace) => plain(trace.name).length));
  const inLine = Math.max(Math.floor((width(div) * 0.72) / each), 1);
  const legend = { orientation: "h", x: 0, xref: "container", y: 1, yref: "container",
    yanchor: "top", font: { size: 12 }, itemclick: false, itemdoubleclick: false,
    entrywidth: each - 45 };
  return { legend, margin: { t: 62 + 20 * Math.ceil(traces.length / inLine) } };
}

function drawCertified(keep) {
  const div = byId("certified"), figure = data.charts.certified;
  if (!div) return;
  // All three marks of a defence belong to one row: that in which most is read.
  const [read] = reduced(figure, keep), rows = new Set(read.customdata);
  byId("proven").hidden = !rows.size;
  const traces = figure.data.map((trace) =>
    only(trace, trace.customdata.map((_, i) => i).filter((i) => rows.has(trace.customdata[i]))));
  if (interactive && rows.size) {
    const marks = traces.map((trace) => ({ ...trace, hoverinfo: "text",
      error_x: trace.error_x && { ...trace.error_x, color: color(trace.meta) },
      marker: { ...trace.marker, color: color(trace.meta),
        line: { ...trace.marker.line, color: color(trace.meta) } },
      hovertext: trace.customdata.map((row, i) =>
        `${trace.name}: ${trace.x[i].toFixed(1)} %<br>${data.hover[row]}`) }));
    plot(div, marks, listLayout(div, figure, legendAbove(div, traces)));
  }
}
