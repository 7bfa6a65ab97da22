// Merges: what each keeps of every task's own model, what it learned, and how the task vectors lie.

const scored = (run) => run.tasks.length > 0;
const kept = (x) => (isNumber(x) ? `${x.toFixed(1)} %` : "–");
const keptOf = (cell) => (isNumber(cell.gain) ? 100 + cell.gain : null);
const share = (x) => (isNumber(x) ? `${Math.round(100 * x)} %` : "–");
const difference = (cell, own) => (isNumber(cell.value) && isNumber(own.value) ? cell.value - own.value : null);
const plus = (x) => (isNumber(x) ? `${x > 0 ? "+" : ""}${fmt(x, 3)}` : "–");

function mergeTiles(run, best) {
  const vectors = run.maps?.meetings[0];
  const average = (packed) => { const known = [...cosines(packed)].filter((x) => x !== -128); return known.length ? known.reduce((a, b) => a + b, 0) / known.length / 100 : null; };
  const base = run.methods.find((m) => m.name === "base" && m.part);
  return h("dl", { class: "tiles" },
    best ? tile("Kept by the best merge", kept(best.kept), `${best.name}; individual models = 100 %`) : null,
    best?.worst ? tile("Its worst task", kept(best.worst.kept), best.worst.task) : null,
    best && isNumber(base?.kept) ? tile("Kept by the base", kept(base.kept), "with each task's own heads") : null,
    vectors ? tile("Cosine of task vectors", fmt(average(vectors.cosines), 2), "mean over pairs") : null,
    vectors ? tile("Opposite signs", share(average(vectors.conflicts)), "of what two models changed; mean over pairs") : null);
}

function mergeSections(run, id) {
  const parts = scored(run) ? [mergeResults(run, id), mergeGains(run, id)] : [];
  return [...parts, coefficientsSection(run, id), lossesSection(run, id), ...(run.maps ? [signsSection(run, id), vectorsSection(run, id)] : []), mergeNotes(run, id)];
}

function mergeResults(run, id) {
  const tasks = run.tasks.map((task, index) => ({ ...task, index }));
  const own = run.methods.find((m) => m.reference);
  const named = (m) => h("span", {}, swatch(styleOf(m.name)), " ", m.name, m.part ? h("span", { class: "under", text: { individual: "each task's own model", joint: "trained on all tasks", base: "not tuned, each task's heads" }[m.name] }) : null);
  const columns = [
    { name: "Model", left: true, value: (m) => m.name, cell: named },
    { name: "Normalised", note: "mean over tasks", value: (m) => m.kept, cell: (m) => kept(m.kept) },
    { name: "Worst task", note: "normalised", value: (m) => m.worst?.kept ?? null, cell: (m) => (m.worst && !m.reference ? h("span", {}, kept(m.worst.kept), h("span", { class: "under", text: clip(m.worst.task, 130), title: m.worst.task })) : "") },
    { name: "Mean score", value: (m) => m.mean, cell: (m) => fmt(m.mean, 4) },
    { name: "From base to individual", note: "of the mean score", value: (m) => m.way, cell: (m) => kept(m.way) },
  ].filter((column, k) => k < 3 || run.methods.some((m) => isNumber(column.value(m))));
  const head = { name: "Task", left: true, value: (t) => t.name, cell: (t) => h("span", {}, t.name, h("span", { class: "under", text: metricName(t) })) };
  const cells = run.methods.map((m) => ({
    name: m.name, value: (t) => m.cells[t.index].value,
    cell: (t) => {
      const cell = m.cells[t.index];
      if (m.reference) return fmt(cell.value, 4);
      return h("span", {}, fmt(cell.value, 4), h("span", { class: "under", text: plus(difference(cell, own.cells[t.index])) }), h("span", { class: "under", text: kept(keptOf(cell)) }));
    },
  }));
  return section(`${id}-results`, "Results", "Normalised: a model's score in % of the individual model's on the same task. Where lower is better it is 100 % less the relative increase, so that more is better everywhere. Tasks: the score, its difference from the individual model's, and normalised.",
    h("h3", { text: "Models" }),
    sortTable({ columns, rows: run.methods, label: "Models", tall: run.methods.length > 14, id: `${id}-methods-table` }),
    h("h3", { text: "Tasks" }),
    sortTable({ columns: [head, ...cells], rows: tasks, label: "Tasks by model", tall: tasks.length > 20, id: `${id}-tasks-table` }));
}

function mergeGains(run, id) {
  const methods = joint(run), names = methods.map((m) => m.name), tasks = run.tasks.map((task) => task.name);
  const shown = names.filter((name, k) => names.length <= MANY || k < MANY);
  const hidden = new Set(names.filter((name) => !shown.includes(name)));
  const text = (m, k) => { const cell = m.cells[k]; return [`${m.name} · ${tasks[k]}`, `score ${fmt(cell.value, 4)}`, `normalised ${kept(keptOf(cell))}`]; };
  const plot = figure({
    title: "Change per task", note: "against the task's own model, in %", tall: tasks.length > 24,
    draw: (width) => dotPlot({
      width, zeroName: "individual model", label: "Change per task and merge", dense: names.length - hidden.size > 6,
      rows: tasks.map((name, k) => ({ name, dots: methods.filter((m) => !hidden.has(m.name)).map((m) => ({ style: styleOf(m.name), value: m.cells[k].gain, interval: null, open: Boolean(m.part), text: text(m, k) })) })),
    }),
    data: () => ({ head: ["Task", ...names], rows: tasks.map((name, k) => [name, ...methods.map((m) => pct(m.cells[k].gain))]) }),
  });
  const across = tasks.length <= 24;
  const full = fullColour(methods.flatMap((m) => m.cells.map((cell) => cell.gain)));
  const cell = (m, k) => ({ value: methods[m].cells[k].gain, sure: true, shown: fmt(keptOf(methods[m].cells[k]), 3), text: text(methods[m], k) });
  const map = figure({
    title: "Normalised by model and task", note: "in % of the individual model", tall: !across,
    draw: (width) => gainMap({ width, rows: across ? names : tasks, columns: across ? tasks : names, top: full, label: "Normalised by model and task", cell: (i, j) => (across ? cell(i, j) : cell(j, i)) }),
    data: () => ({ head: ["Model", ...tasks], rows: methods.map((m) => [m.name, ...m.cells.map((one) => kept(keptOf(one)))]) }),
  });
  return section(`${id}-gain`, "Per task", "Right of the line: better than the model tuned for the task alone. Hollow: no merge, but an end to compare with.",
    h("div", { class: "controls" }, toggles(names, hidden, plot.redraw, "Models shown")), plot.node,
    map.node, h("p", { class: "scalebar" }, `${fmt(100 - full)} % or less`, h("i", { "aria-hidden": "true" }), `${fmt(100 + full)} % or more`));
}

function coefficientsSection(run, id) {
  const names = run.methods.map((m) => m.name).filter((name) => run.learned[name]);
  if (!names.length) return null;
  const tasks = run.tasks.map((task) => task.name);
  const state = { name: names[0], by: "layers" };
  const body = h("div");
  const fill = () => {
    const found = run.learned[state.name];
    const rows = found[state.by], values = state.by === "layers" ? found.means : found.values;
    const top = Math.max(1e-12, ...values.flat().filter(isNumber).map(Math.abs));
    const cell = (i, j) => ({ value: values[i][j], sure: true, shown: fmt(values[i][j], 2), text: [`${rows[i]} · ${tasks[j]}`, `coefficient ${fmt(values[i][j], 4)}`] });
    const map = figure({
      title: `Coefficients of ${state.name}`, note: [state.by === "layers" ? "mean over each layer's tensors" : "per tensor", found.parts > 1 ? `mean of ${found.parts} parts` : ""].filter(Boolean).join("; "), tall: rows.length > 32,
      draw: (width) => gainMap({ width, rows, columns: tasks, cell, top, label: `Coefficients of ${state.name}`, ends: true }),
      data: () => ({ head: [state.by === "layers" ? "Layer" : "Tensor", ...tasks], rows: rows.map((name, i) => [name, ...values[i].map((x) => fmt(x, 4))]) }),
    });
    body.replaceChildren(map.node, h("p", { class: "scalebar" }, `${MINUS}${fmt(top, 2)}`, h("i", { "aria-hidden": "true" }), `+${fmt(top, 2)}`));
  };
  fill();
  const byTensor = names.some((name) => run.learned[name].tensors.length > run.learned[name].layers.length);
  return section(`${id}-coefficients`, "Coefficients", "What was learned: how much of each task's change from the base the merged model takes.",
    h("div", { class: "controls" },
      names.length > 1 ? pick(names, state.name, (name) => { state.name = name; fill(); }, "Merge shown") : null,
      byTensor ? choice([{ value: "layers", name: "By layer" }, { value: "tensors", name: "By tensor" }], state.by, (value) => { state.by = value; fill(); }, "Rows") : null),
    body);
}

function lossesSection(run, id) {
  const names = run.methods.map((m) => m.name).filter((name) => run.losses[name]);
  if (!names.length) return null;
  const one = (name) => figure({
    title: name, note: "objective by round",
    draw: (width) => linePlot({ width, yName: "objective", xName: "round", label: `${name}: objective of the search`, series: [{ name, style: styleOf(name), x: run.losses[name].rounds, y: run.losses[name].values }] }),
    data: () => ({ head: ["round", "objective"], rows: run.losses[name].rounds.map((round, k) => [String(round), fmt(run.losses[name].values[k], 4)]) }),
  });
  return section(`${id}-losses`, "Search", "What each search made smaller. Objectives differ between methods, so each has its own scale.", h("div", { class: "grid" }, names.map((name) => one(name).node)));
}

// Maps of the task vectors: pairs of models by layer. Where pairs have no room, each model's mean.
const PAIR = 24; // least pixels of a pair's column
function pairsOf(labels) { return labels.flatMap((_, i) => labels.slice(i + 1).map((_, k) => [i, i + 1 + k])); }

// read(meeting) -> the pairs' packed bytes; shade(value): its colour, full at -1 and 1; room: pixels
// of its words; extra: {name, value(meeting)}, a first column of its own without colour.
function layerMap(run, { title, note, read, shade, room, tell, shown, extra, label }) {
  const { labels, meetings } = run.maps;
  const rows = meetings.map((one) => one.name), pairs = pairsOf(labels);
  const bytes = meetings.map((one) => cosines(read(one)));
  const value = (i, a, b) => cosineAt(bytes[i], labels.length, a, b);
  const averaged = (i, a) => { const known = labels.map((_, b) => value(i, a, b)).filter(isNumber); return known.length ? known.reduce((x, y) => x + y, 0) / known.length : null; };
  const first = extra ? [{ name: extra.name, plain: true, of: (i) => extra.value(meetings[i]) }] : [];
  const byPair = [...first, ...pairs.map(([a, b]) => ({ name: `${labels[a]} · ${labels[b]}`, of: (i) => value(i, a, b) }))];
  const byModel = [...first, ...labels.map((name, a) => ({ name, said: `${name}, mean with the others`, of: (i) => averaged(i, a) }))];
  return figure({
    title, note, tall: rows.length > 42,
    draw: (width) => {
      const left = width - Math.min(width * 0.34, 10 + widest(rows, 12.5)) - 64;
      const columns = labels.length < 3 || left / byPair.length >= PAIR ? byPair : byModel;
      const cell = (i, j) => {
        const x = columns[j].of(i);
        return { value: isNumber(x) ? (columns[j].plain ? 0 : shade(x)) : null, sure: true, shown: shown(x), text: [columns[j].said ?? columns[j].name, rows[i], isNumber(x) ? tell(x) : "undefined"] };
      };
      return gainMap({ width, rows, columns: columns.map((column) => column.name), cell, top: 1, label, room, ends: true });
    },
    data: () => ({ head: ["Layer", ...byPair.map((column) => column.name)], rows: rows.map((name, i) => [name, ...byPair.map((column) => (isNumber(column.of(i)) ? shown(column.of(i)) : "–"))]) }),
  });
}

function squareMap(run, state, { title, read, tell, shown, shade }) {
  const { labels, meetings } = run.maps;
  const values = () => cosines(read(meetings[state.at]));
  return figure({
    title, note: meetings.length > 1 ? "of the layer chosen" : "",
    draw: (width) => heatMap({ width, names: labels, values: values(), label: `${title}: ${meetings[state.at].name}`, self: "the model itself", tell, shown, shade }),
    data: () => ({ head: ["Model", ...labels], rows: labels.map((name, i) => [name, ...labels.map((_, j) => { const x = cosineAt(values(), labels.length, i, j); return i === j ? "" : isNumber(x) ? shown(x) : "–"; })]) }),
  });
}
const layerMenu = (run, state, redraw) => menu("Layer", run.maps.meetings.map((one, k) => [String(k), one.name]), (value) => { state.at = Number(value); redraw(); }, String(state.at));

const sizesOf = (run, read, from) => run.maps.meetings.flatMap((one) => [...cosines(read(one))].filter((x) => x !== -128).map((x) => Math.abs(x / 100 - from)));

function signsSection(run, id) {
  const state = { at: 0 };
  const read = (one) => one.conflicts;
  // Independent changes have opposite signs half of the time: colour says how far from that.
  const full = Math.max(0.05, ...sizesOf(run, read, 0.5));
  const how = { read, tell: (x) => `opposite signs: ${share(x)}`, shown: (x) => (isNumber(x) ? String(Math.round(100 * x)) : "–"), shade: (x) => (0.5 - x) / full };
  const square = squareMap(run, state, { ...how, title: "Opposite signs of each pair" });
  const layers = layerMap(run, { ...how, title: "Opposite signs by layer", note: "in %", room: 20, label: "Opposite signs by layer and pair", extra: run.maps.labels.length > 2 ? { name: "any two", value: (one) => one.split } : null });
  const bar = () => h("p", { class: "scalebar" }, `${share(0.5 + full)}`, h("i", { "aria-hidden": "true" }), `${share(0.5 - full)}`);
  return section(`${id}-signs`, "Sign conflict", "Share of the elements that two models both changed, in opposite directions; changes that have nothing to do with each other give 50 %, where there is no colour. Any two: share of the changed elements on which at least two models disagree.",
    h("div", { class: "controls" }, layerMenu(run, state, square.redraw)), square.node, bar(), layers.node, bar());
}

function vectorsSection(run, id) {
  const state = { at: 0 };
  const { labels, meetings } = run.maps;
  const how = { read: (one) => one.cosines, tell: (x) => `cosine ${cosineText(x)}`, shown: (x) => (isNumber(x) ? cosineText(x) : "–"), shade: (x) => x / full };
  const full = Math.max(0.1, ...sizesOf(run, how.read, 0));
  const square = squareMap(run, state, { ...how, title: "Cosine of each pair" });
  const layers = layerMap(run, { ...how, title: "Cosine by layer", room: 34, label: "Cosine by layer and pair" });
  const bar = () => h("p", { class: "scalebar" }, `${MINUS}${fmt(full, 2)}`, h("i", { "aria-hidden": "true" }), `+${fmt(full, 2)}`);
  const sizes = sortTable({
    id: `${id}-sizes-table`, label: "Sizes by layer", rows: meetings.map((one, k) => ({ ...one, k })), tall: meetings.length > 14,
    columns: [
      { name: "Layer", left: true, value: (one) => one.name, cell: (one) => one.name },
      { name: "Elements", value: (one) => one.elements, cell: (one) => count(one.elements) },
      ...labels.map((name, m) => ({ name, note: "size of its change", value: (one) => one.norms[m], cell: (one) => fmt(one.norms[m], 3) })),
    ],
  });
  return section(`${id}-vectors`, "Task vectors", "A task vector is a model's change from the base. Cosine: 0 where two have nothing to do with each other, below 0 where they pull apart.",
    h("div", { class: "controls" }, layerMenu(run, state, square.redraw)), square.node,
    bar(), layers.node, bar(),
    h("details", {}, h("summary", { text: "Sizes by layer" }), sizes));
}

function mergeNotes(run, id) {
  const notes = Object.entries(run.notes);
  if (!notes.length) return null;
  return section(`${id}-notes`, "Notes", null, h("dl", { class: "about" }, notes.flatMap(([name, lines]) => [h("dt", { text: name }), h("dd", { text: lines.join(" ") })])));
}
