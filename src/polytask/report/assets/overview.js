// All methods at one look: mean gains in order, gain by method and task, gain against cost.

const MANY = 8; // with more methods than this, sections of lines and dots begin with a few of them

// The methods a crowded plot begins with: the reference, equal weights, and those of the best mean.
function focus(run, names) {
  if (names.length <= MANY) return new Set(names);
  const ranked = joint(run).map((method) => method.name);
  return new Set(names.filter((name) => name === "single" || name === "equal" || ranked.indexOf(name) < 4));
}
const released = (run, names) => { const shown = focus(run, names); return new Set(names.filter((name) => !shown.has(name))); };

// Gains by row and column -------------------------------------------------------------------------

// cell(i, j) -> {value, sure, text, full, shown}; full, or else top: the gain at which the colour is
// full; shown: what the square says where there is room, or else the signed value. room: pixels that
// takes. ends: long names of rows are cut at their start, so that a layer keeps its number.
function gainMap({ width, rows, columns, cell, top, label, room = 38, ends }) {
  const side = Math.min(width * 0.34, 10 + widest(rows, 12.5));
  const high = Math.min(120, 8 + widest(columns, 11.5));
  const head = high * 0.87 + 12, lean = high * 0.5;
  const wide = Math.max(4, Math.min((width - side - lean - 4) / columns.length, 84)), tall = 22;
  const height = head + rows.length * tall + 4;
  const svg = s("svg", { width, height, viewBox: `0 0 ${width} ${height}` });
  const named = wide >= 9;
  if (named) columns.forEach((name, j) => {
    const x = side + (j + .5) * wide + 4, y = head - 6;
    svg.append(s("text", { x, y, transform: `rotate(-60 ${x} ${y})`, text: clip(name, high, 11.5) }));
  });
  const marks = rows.map((name, i) => {
    const y = head + i * tall;
    svg.append(s("text", { class: "name", x: side - 6, y: y + 15, "text-anchor": "end", text: (ends ? clipStart : clip)(name, side - 8) }));
    return columns.map((_, j) => {
      const { value, sure, text, full, shown } = cell(i, j);
      const x = side + j * wide;
      if (isNumber(value)) {
        const share = Math.max(-1, Math.min(1, value / (full ?? top)));
        const square = s("rect", { class: "gain-cell", x, y, width: wide - 1, height: tall - 1 });
        square.style.fill = `color-mix(in oklab, var(${share < 0 ? "--bad" : "--good"}) ${Math.round(Math.abs(share) * 100)}%, var(--mid))`;
        svg.append(square);
        if (wide >= room) svg.append(s("text", { class: Math.abs(share) > .62 ? "on" : "name", x: x + wide / 2 - .5, y: y + 15, "text-anchor": "middle", text: shown ?? `${sure ? "" : "("}${signed(value)}${sure ? "" : ")"}` }));
      }
      return { x: x + wide / 2, y: y + tall / 2, text };
    });
  });
  const pick = {
    rows: rows.length, columns: () => columns.length, at: (i, j) => marks[i][j],
    near: (x, y) => {
      const j = Math.floor((x - side) / wide), i = Math.floor((y - head) / tall);
      return i >= 0 && j >= 0 && i < rows.length && j < columns.length ? [i, j] : null;
    },
  };
  return { nodes: [svg], target: svg, pick, label };
}

// The 80th percentile of the sizes, so that a few huge ones do not leave the others without colour.
function fullColour(values) {
  const sizes = values.filter(isNumber).map(Math.abs).sort((a, b) => a - b);
  return Math.max(1, sizes[Math.floor(0.8 * (sizes.length - 1))] ?? 1);
}

// Gain against cost -------------------------------------------------------------------------------

// points: [{name, style, x, y, interval, text}]; x > 0, on a logarithmic axis.
function scatterPlot({ width, points, xName, yName, label }) {
  const known = points.filter((point) => isNumber(point.x) && point.x > 0 && isNumber(point.y));
  if (!known.length) return blank("No cost was recorded.");
  const height = Math.min(460, Math.max(300, width * 0.55)), left = 54, right = 20, head = 10, foot = 40;
  const [least, most] = extent(known.map((point) => point.x));
  const [bottom, top] = extent([0, ...fence(known.map((point) => point.y))]);
  const reach = Math.max(top - bottom, 1) * 0.12;
  const low = bottom - reach, high = top + reach;
  const x = logarithmic(least / 1.15, most * 1.35, left, width - right);
  const y = linear(low, high, height - foot, head);
  const svg = s("svg", { width, height, viewBox: `0 0 ${width} ${height}` });
  for (const tick of y.ticks(5)) svg.append(s("path", { class: "gridline", d: `M${left},${y(tick)}H${width - right}` }), s("text", { x: left - 6, y: y(tick) + 4, "text-anchor": "end", text: `${tick > 0 ? "+" : ""}${fmt(tick)} %` }));
  for (const tick of x.ticks(Math.max(3, Math.floor(width / 110)))) svg.append(s("path", { class: "gridline", d: `M${x(tick)},${head}V${height - foot}` }), s("text", { x: x(tick), y: height - foot + 16, "text-anchor": "middle", text: times(tick) }));
  svg.append(s("path", { class: "zero", d: `M${left},${y(0)}H${width - right}` }),
    s("text", { x: width - right, y: height - 4, "text-anchor": "end", text: xName }), s("text", { x: left + 4, y: head + 10, text: yName }));
  const inside = (value) => y(Math.min(high, Math.max(low, value)));
  const taken = known.map((point) => [x(point.x) - 6, inside(point.y) - 6, x(point.x) + 6, inside(point.y) + 6]);
  const free = (box) => box[0] > left && box[2] < width - 4 && !taken.some((other) => box[0] < other[2] && box[2] > other[0] && box[1] < other[3] && box[3] > other[1]);
  for (const point of known) {
    const px = x(point.x), py = inside(point.y), beyond = point.y < low || point.y > high;
    const name = beyond ? `${point.name} ${pct(point.y)}` : point.name;
    const group = s("g", { class: `point ${point.style.tone}` });
    if (beyond) group.append(s("path", { class: "dot", d: point.y < low ? `M${px},${py}l-5,-9h10Z` : `M${px},${py}l-5,9h10Z` }));
    else if (point.interval) group.append(s("path", { class: "whisker thin", d: `M${px},${y(Math.max(low, point.interval[0]))}V${y(Math.min(high, point.interval[1]))}` }));
    if (!beyond) group.append(mark(point.style, px, py, 5));
    svg.append(group);
    // A name where there is room for it; the others are read by pointer, key or table.
    const long = widthOf(name, 12.5);
    for (const [dx, dy, anchor] of [[9, 4, "start"], [-9, 4, "end"], [0, -10, "middle"], [0, 18, "middle"]]) {
      const from = px + dx - (anchor === "end" ? long : anchor === "middle" ? long / 2 : 0);
      const box = [from, py + dy - 10, from + long, py + dy + 2];
      if (!free(box)) continue;
      taken.push(box);
      svg.append(s("text", { class: "name halo label", x: px + dx, y: py + dy, "text-anchor": anchor, text: name }));
      break;
    }
  }
  return { nodes: [svg], target: svg, pick: picker([...known].sort((a, b) => a.x - b.x).map((point) => [{ x: x(point.x), y: inside(point.y), text: point.text }])), label };
}

// Section -----------------------------------------------------------------------------------------

function overviewSection(run, id) {
  const methods = joint(run);
  const tasks = run.tasks.map((task) => task.name);
  const names = methods.map((method) => method.name);
  const means = figure({
    title: "Mean gain", note: `delta-m in %, with the ${intervalName(run)} over seeds; hollow: the interval includes 0`,
    draw: (width) => dotPlot({
      width, zeroName: "single-task models", label: "Mean gain per method", dense: methods.length > 12,
      rows: methods.map((m) => ({ name: m.name, dots: [{ style: styleOf(m.name), value: m.delta_m, interval: m.interval, open: Boolean(m.interval) && m.interval[0] <= 0 && m.interval[1] >= 0, text: [m.name, `${pct(m.delta_m)} ${bracket(m.interval)}`] }] })),
    }),
    data: () => ({ head: ["Method", "Mean gain", "Interval"], rows: methods.map((m) => [m.name, pct(m.delta_m), bracket(m.interval) || "–"]) }),
  });
  // The longer side runs down the page.
  const across = tasks.length <= 24;
  const cellOf = (m, t) => { const cell = methods[m].cells[t]; return { value: cell.gain, sure: cell.verdict !== "undecided", text: gainText(tasks[t], names[m], cell) }; };
  const full = fullColour(methods.flatMap((m) => m.cells.map((cell) => cell.gain)));
  const map = tasks.length < 2 ? null : figure({
    title: "Gain by method and task", note: "in %; in parentheses: undecided", tall: !across,
    draw: (width) => gainMap({
      width, rows: across ? names : tasks, columns: across ? tasks : names, top: full, label: "Gain by method and task",
      cell: (i, j) => (across ? cellOf(i, j) : cellOf(j, i)),
    }),
    data: () => ({ head: ["Method", ...tasks], rows: methods.map((m) => [m.name, ...m.cells.map((cell) => pct(cell.gain))]) }),
  });
  const cost = methods.some((m) => isNumber(m.cost.seconds_ratio)) ? figure({
    title: "Mean gain against training time", note: "up and to the left is better",
    draw: (width) => scatterPlot({
      width, xName: "training time against all single-task models together", yName: "mean gain", label: "Mean gain against training time",
      points: methods.map((m) => ({ name: m.name, style: styleOf(m.name), x: m.cost.seconds_ratio, y: m.delta_m, interval: m.interval, text: [m.name, `${pct(m.delta_m)} ${bracket(m.interval)}`, `${times(m.cost.seconds_ratio)} the time`] })),
    }),
    data: () => ({ head: ["Method", "Time", "Mean gain"], rows: methods.map((m) => [m.name, times(m.cost.seconds_ratio), pct(m.delta_m)]) }),
  }) : null;
  return section(`${id}-overview`, "Overview", "Every method's mean over the tasks, the tasks it is made of, and what it cost. The single-task models stand at 0.",
    means.node,
    h("div", { class: tasks.length <= 6 ? "pair" : "" },
      map ? h("div", {}, map.node, h("p", { class: "scalebar" }, `${MINUS}${fmt(full)} % or less`, h("i", { "aria-hidden": "true" }), `+${fmt(full)} % or more`)) : null, cost?.node));
}

// Many methods on several runs: a row per method, best mean rank first, a column per run. A run has a
// scale of its own, since suites differ in what can be gained at all.
function sideMap(runs, names) {
  const cells = runs.map((run) => new Map(joint(run).map((method) => [method.name, method])));
  const places = (name) => runs.map((run, j) => (cells[j].has(name) ? joint(run).findIndex((m) => m.name === name) : names.length));
  const rank = (name) => places(name).reduce((a, b) => a + b, 0);
  const rows = [...names].sort((a, b) => rank(a) - rank(b));
  const full = runs.map((run) => fullColour(joint(run).map((method) => method.delta_m)));
  const cell = (i, j) => {
    const method = cells[j].get(rows[i]);
    if (!method) return { value: null, text: [rows[i], `not in ${runs[j].label}`] };
    const sure = Boolean(method.interval) && (method.interval[0] > 0 || method.interval[1] < 0);
    return { value: method.delta_m, full: full[j], sure, text: [rows[i], runs[j].label, `${pct(method.delta_m)} ${bracket(method.interval)}`] };
  };
  return figure({
    title: "Mean gain by method and run", note: "delta-m in %; in parentheses: the interval includes 0; full colour at a level of each run's own",
    draw: (width) => gainMap({ width, rows, columns: runs.map((run) => run.label), cell, top: 1, label: "Mean gain by method and run" }),
    data: () => ({ head: ["Method", ...runs.map((run) => run.label)], rows: rows.map((name) => [name, ...cells.map((of) => (of.has(name) ? `${pct(of.get(name).delta_m)} ${bracket(of.get(name).interval)}` : "–"))]) }),
  });
}

// How each method's gradients were formed, and what it used in place of what its source asks.
function engineTable(run, id) {
  const methods = joint(run).filter((method) => method.engine);
  if (!methods.length) return null;
  const updates = (method) => Math.round((method.cost.steps ?? 0) * run.seeds.length).toLocaleString("en");
  const said = (method) => Object.entries(method.notes).map(([note, times]) => `${note}: ${times.toLocaleString("en")} of ${updates(method)} updates`);
  return [h("h3", { text: "How it was computed" }),
    h("p", { class: "small", text: "Engine: how the tasks' gradients were formed. Substitutes: what a method used where its source asks for something that did not exist or was not found, such as a solver that did not settle; updates of all seeds together." }),
    sortTable({
      id: `${id}-engine-table`, label: "Engine and substitutes per method", rows: methods, tall: methods.length > 14,
      columns: [
        { name: "Method", left: true, value: (m) => m.name, cell: (m) => m.name },
        { name: "Engine", left: true, value: (m) => m.engine, cell: (m) => m.engine },
        { name: "Substitutes", left: true, wrap: true, value: (m) => said(m).join(" "), cell: (m) => h("span", {}, said(m).map((text) => h("span", { class: "under", text }))) },
      ],
    })];
}
