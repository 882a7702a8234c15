// The Pareto front of [cost, leak] pairs, less being better in both: a mirror of
// gradguard.evaluation.search.front.nondominated, as the front changes with every filter.
function nondominated(points) {
  const beats = (a, b) => a[0] <= b[0] && a[1] <= b[1] && (a[0] < b[0] || a[1] < b[1]);
  return points.map((point) => !points.some((other) => beats(other, point)));
}

// Positions near those wanted, in the same order, at least `gap` apart, within bounds.
function spread(wanted, gap, low, high) {
  if (wanted.length > 1) gap = Math.min(gap, (high - low) / (wanted.length - 1));
  const order = wanted.map((_, i) => i).sort((a, b) => wanted[a] - wanted[b]);
  const placed = [];
  let floor = low;
  for (const i of order) {
    placed[i] = Math.max(wanted[i], floor);
    floor = placed[i] + gap;
  }
  let ceiling = high;
  for (const i of order.reverse()) {
    placed[i] = Math.min(placed[i], ceiling);
    ceiling = placed[i] - gap;
  }
  return placed;
}
