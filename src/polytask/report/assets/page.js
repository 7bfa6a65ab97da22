// The page: one block of sections per run, in front of them the comparison where there are several.

const DATA = JSON.parse(document.getElementById("data").textContent);
const SIGNS = { gained: "▲", lost: "▼", undecided: "◇", reference: "" };

// A method keeps its colour and sign on the whole page.
const STYLES = new Map();
for (const run of DATA.runs) for (const method of run.methods) {
  if (method.reference) STYLES.set(method.name, REFERENCE);
  else if (!STYLES.has(method.name)) STYLES.set(method.name, look([...STYLES.values()].filter((style) => style !== REFERENCE).length));
}
const styleOf = (name) => STYLES.get(name);
const shownName = (name) => (name === "single" ? "single-task" : name);
const joint = (run) => run.methods.filter((method) => !method.reference);

// Pieces ------------------------------------------------------------------------------------------

const section = (id, title, lede, ...children) => h("section", { class: "card", id, "aria-labelledby": `${id}-h` },
  h("h2", { id: `${id}-h`, text: title }), lede ? h("p", { class: "small", text: lede }) : null, ...children);

// Toggles, any number of them pressed; `hidden` is the set of the released ones.
function toggles(names, hidden, changed, label, tell = shownName) {
  const all = (pressed) => h("button", {
    type: "button", class: "chip", text: pressed ? "All" : "None", onclick: () => {
      for (const name of names) if (pressed) hidden.delete(name); else hidden.add(name);
      buttons.forEach((button) => button.setAttribute("aria-pressed", String(pressed)));
      changed();
    },
  });
  const buttons = names.map((name) => {
    const button = h("button", { type: "button", class: "chip", "aria-pressed": String(!hidden.has(name)), title: tell(name) }, swatch(styleOf(name)), tell(name));
    button.addEventListener("click", () => {
      if (!hidden.delete(name)) hidden.add(name);
      button.setAttribute("aria-pressed", String(!hidden.has(name)));
      changed();
    });
    return button;
  });
  return h("div", { class: "chips", role: "group", "aria-label": label }, names.length > MANY ? [all(true), all(false)] : [], buttons);
}
// One of several; options: [{value, name, style}].
function choice(options, chosen, changed, label) {
  const buttons = options.map((option) => h("button", {
    type: "button", class: "chip", "aria-pressed": String(option.value === chosen), title: option.name,
    onclick: () => {
      buttons.forEach((button, k) => button.setAttribute("aria-pressed", String(options[k].value === option.value)));
      changed(option.value);
    },
  }, option.style ? swatch(option.style) : null, option.name));
  return h("div", { class: "chips one", role: "group", "aria-label": label }, buttons);
}
function menu(label, options, changed, chosen) {
  const select = h("select", { onchange: () => changed(select.value) },
    options.map(([value, name]) => h("option", { value, text: name, selected: value === chosen })));
  return h("label", {}, label, select);
}
// One method of several: buttons for a few, a menu for many.
const pick = (names, chosen, changed, label) => (names.length > MANY
  ? menu("Method", names.map((name) => [name, shownName(name)]), changed, chosen)
  : choice(methodOptions(names), chosen, changed, label));
const methodOptions = (names) => names.map((name) => ({ value: name, name: shownName(name), style: styleOf(name) }));
const plural = (n, noun) => `${n} ${noun}${n === 1 ? "" : "s"}`;
const intervalName = (run) => (run.level ? `${fmt(100 * run.level)} % interval` : "interval");
const arrow = (task) => (task.direction ? (task.direction === "max" ? "↑" : "↓") : "");
const metricName = (task) => [task.metric, task.unit && `(${task.unit})`, arrow(task)].filter(Boolean).join(" ");
const badge = (verdict, text, said = `${verdict}, ${text}`) => h("span", { class: `badge ${verdict}`, role: "img", title: said, "aria-label": said }, `${SIGNS[verdict]} ${text}`.trim());

// Tables ------------------------------------------------------------------------------------------

function countsCell(counts) {
  const parts = ["gained", "lost", "undecided"].filter((kind) => counts[kind]);
  return h("span", {}, parts.length ? parts.flatMap((kind) => [badge(kind, String(counts[kind]), `${counts[kind]} ${kind}`), " "]) : "–");
}
const gainCell = (value, interval) => h("span", {}, pct(value), interval ? h("span", { class: "under", text: bracket(interval) }) : null);

function methodColumns(run) {
  const columns = [
    { name: "Method", left: true, value: (m) => m.name, cell: (m) => h("span", {}, swatch(styleOf(m.name)), " ", shownName(m.name)) },
    { name: "Mean gain", note: "delta-m, interval", value: (m) => (m.reference ? 0 : m.delta_m), cell: (m) => (m.reference ? "reference" : gainCell(m.delta_m, m.interval)) },
    { name: "Tasks", note: "gained − lost", left: true, value: (m) => (m.reference ? null : m.counts.gained - m.counts.lost), cell: (m) => (m.reference ? "" : countsCell(m.counts)) },
    { name: "Worst task", note: "its gain", value: (m) => m.worst?.gain ?? null, cell: (m) => (m.worst && !m.reference ? h("span", {}, pct(m.worst.gain), h("span", { class: "under", text: clip(m.worst.task, 130), title: m.worst.task })) : "") },
    { name: "Training time", note: "vs. all single", value: (m) => m.cost.seconds, cell: (m) => pair(seconds(m.cost.seconds), m, "seconds_ratio") },
    { name: "Parameters", note: "vs. all single", value: (m) => m.cost.parameters, cell: (m) => pair(count(m.cost.parameters), m, "parameters_ratio") },
    { name: "Peak memory", note: "vs. largest single", value: (m) => m.cost.peak_memory, cell: (m) => pair(bytes(m.cost.peak_memory), m, "memory_ratio") },
  ];
  return run.methods.some((m) => m.cost.peak_memory !== null) ? columns : columns.slice(0, -1);
}
const pair = (text, method, ratio) => h("span", {}, text, !method.reference && isNumber(method.cost[ratio]) ? h("span", { class: "under", text: times(method.cost[ratio]) }) : null);

function taskColumns(run) {
  const head = { name: "Task", left: true, value: (t) => t.name, cell: (t) => h("span", {}, t.name, h("span", { class: "under", text: `${t.kind} · ${metricName(t)}` })) };
  const cells = run.methods.map((method) => ({
    name: shownName(method.name),
    note: method.reference ? "mean ± sd" : "gain, interval",
    value: (t) => (method.reference ? method.cells[t.index].mean : method.cells[t.index].gain),
    cell: (t) => {
      const { mean, spread, gain, interval, verdict } = method.cells[t.index];
      const value = h("span", {}, meanText(mean, spread));
      if (method.reference) return value;
      return h("span", {}, value, h("span", { class: "under" }, badge(verdict, pct(gain))), interval ? h("span", { class: "under", text: bracket(interval) }) : null);
    },
  }));
  return [head, ...cells];
}

// Sections ----------------------------------------------------------------------------------------

function hero(run, id, level) {
  const best = run.methods.find((method) => method.name === run.best);
  const facts = [
    run.tasks.length ? plural(run.tasks.length, "task") : "",
    run.seeds.length ? `${run.seeds.length === 1 ? "seed" : "seeds"} ${run.seeds.join(", ")}` : "",
    run.created.replace("T", " ").replace(/(:\d\d)(\.\d+)?(\+00:00|Z)?$/, (_, s1, s2, zone) => s1 + (zone ? " UTC" : "")),
  ].filter(Boolean);
  return h("div", { class: "hero", id },
    h("p", { class: "eyebrow", text: [run.suite, ...facts].filter(Boolean).join("  ·  ") }),
    h(level, { text: run.title }),
    h("p", { class: "verdict", text: run.verdict.join(" ") }),
    run.kind === "merge" ? mergeTiles(run, best) : best ? tiles(run, best) : run.kind === "fit" ? fitTiles(run) : null,
    run.command ? h("code", { class: "command", tabindex: 0, "aria-label": "Command", text: run.command }) : null,
    h("p", { class: "facts", text: Object.entries(run.versions).map(([name, version]) => `${name} ${version}`).join("  ·  ") }));
}
const tile = (name, big, sub, extra) => h("div", { class: "tile" }, h("dt", { text: name }), h("dd", {}, h("span", { class: "big", text: big }), extra || null, sub ? h("span", { class: "sub", text: sub }) : null));

function tiles(run, best) {
  const { gained, lost, undecided } = best.counts;
  const split = h("span", { class: "split", "aria-hidden": "true" }, Object.entries({ gained, undecided, lost }).filter(([, n]) => n).map(([kind, n]) => {
    const part = h("i", { class: kind });
    part.style.flex = String(n);
    return part;
  }));
  const cost = best.cost;
  return h("dl", { class: "tiles" },
    tile("Best mean gain", pct(best.delta_m), [best.name, bracket(best.interval)].filter(Boolean).join(" ")),
    tile(`Tasks with ${best.name}`, `${gained} of ${run.tasks.length} gained`, `${undecided} undecided, ${lost} lost`, split),
    tile("Training time", times(cost.seconds_ratio), `${seconds(cost.seconds)}; all single-task models = 1`),
    tile("Parameters", times(cost.parameters_ratio), `${count(cost.parameters)}; all single-task models = 1`));
}
function fitTiles(run) {
  const cost = run.methods[0].cost;
  return h("dl", { class: "tiles" },
    tile("Kept step", String(run.kept_step), `of ${cost.steps}; score ${fmt(run.score, 4)}`),
    tile("Training time", seconds(cost.seconds), `and ${seconds(cost.validation_seconds)} of validation`),
    tile("Parameters", count(cost.parameters), `${count(cost.shared_parameters)} shared`),
    tile("Peak memory", bytes(cost.peak_memory), `${fmt(100 * cost.waiting, 2)} % of step time waiting for data`));
}

function resultsSection(run, id) {
  const tasks = run.tasks.map((task, index) => ({ ...task, index }));
  const tall = tasks.length > 20;
  const failures = Object.entries(run.failed);
  return section(`${id}-results`, "Results", "Test split, mean ± standard deviation over seeds. Gain: relative change of the task's metric against its own single-task model, signed so that up is better. ▲ gained, ▼ lost, ◇ undecided: the interval includes 0, or one seed gives none." + (run.level ? ` In brackets: the ${intervalName(run)} over seeds.` : ""),
    h("h3", { text: "Methods" }),
    sortTable({ columns: methodColumns(run), rows: run.methods, label: "Methods", tall: run.methods.length > 14, id: `${id}-methods-table` }),
    failures.length ? [h("h3", { text: "Left out" }), h("ul", { class: "checks failed" }, failures.map(([name, why]) => h("li", {}, h("strong", { text: name }), ` stopped with an error. ${why}`)))] : null,
    h("h3", { text: "Tasks" }),
    sortTable({ columns: taskColumns(run), rows: tasks, label: "Tasks by method", tall, id: `${id}-tasks-table` }));
}

const gainText = (name, row, cell) => [name, row, `${pct(cell.gain)} ${bracket(cell.interval)}`, cell.verdict ?? ""].filter(Boolean);

function gainSection(run, id) {
  const methods = joint(run);
  const many = run.tasks.length > 24;
  const hidden = many ? new Set(methods.map((m) => m.name).filter((name) => name !== (run.best ?? methods[0].name))) : released(run, methods.map((m) => m.name));
  let order = many ? "gain" : "suite";
  const visible = () => methods.filter((method) => !hidden.has(method.name));
  const rows = () => {
    const tasks = run.tasks.map((task, index) => ({ task, index }));
    const lead = visible()[0];
    if (order === "name") tasks.sort((a, b) => a.task.name.localeCompare(b.task.name, "en", { numeric: true }));
    if (order === "gain" && lead) tasks.sort((a, b) => (lead.cells[b.index].gain ?? -Infinity) - (lead.cells[a.index].gain ?? -Infinity));
    return tasks.map(({ task, index }) => ({
      name: task.name,
      dots: visible().map((method) => {
        const cell = method.cells[index];
        return { style: styleOf(method.name), value: cell.gain, interval: cell.interval, open: cell.verdict === "undecided", text: gainText(task.name, method.name, cell) };
      }),
    }));
  };
  const plot = figure({
    title: "Gain per task", note: `in %, with the ${intervalName(run)} over seeds; hollow: undecided`, tall: many,
    draw: (width) => dotPlot({ width, rows: rows(), zeroName: "own single-task model", label: "Gain per task and method", dense: many }),
    data: () => ({
      head: ["Task", ...methods.flatMap((m) => [m.name, "interval", "verdict"])],
      rows: run.tasks.map((task, k) => [task.name, ...methods.flatMap((m) => [pct(m.cells[k].gain), bracket(m.cells[k].interval) || "–", m.cells[k].verdict])]),
    }),
  });
  return section(`${id}-gain`, "Gain per task", "Right of the line: better than the task's own single-task model. An interval that ends in an arrow goes on beyond the plot.",
    h("div", { class: "controls" },
      toggles(methods.map((m) => m.name), hidden, plot.redraw, "Methods shown"),
      menu("Order", [["suite", "as in the suite"], ["gain", "by gain"], ["name", "by name"]], (value) => { order = value; plot.redraw(); }, order)),
    plot.node);
}

function whySection(run, id) {
  const methods = joint(run);
  const probed = methods.filter((m) => run.probes[m.name]);
  if (!methods.some((m) => m.cells.some((cell) => cell.why)) && !probed.length) return null;
  const list = h("ul", { class: "whys", tabindex: 0, "aria-label": "Explanation per task" });
  const fill = (name) => {
    const method = methods.find((m) => m.name === name);
    const items = run.tasks.map((task, k) => ({ task, cell: method.cells[k] })).filter(({ cell }) => cell.why);
    items.sort((a, b) => (a.cell.gain ?? Infinity) - (b.cell.gain ?? Infinity));
    list.replaceChildren(...(items.length ? items.map(({ task, cell }) => h("li", {},
      h("span", {}, h("strong", { text: task.name }), h("br"), badge(cell.verdict, pct(cell.gain))), h("span", { text: cell.why })))
      : [h("li", { class: "empty", text: "Nothing conspicuous was recorded for this method." })]));
  };
  const first = run.best ?? methods[0].name;
  fill(first);
  const average = (values) => { const known = values.filter(isNumber); return known.length ? known.reduce((a, b) => a + b, 0) / known.length : null; };
  const conflict = probed.length ? [h("h3", { text: "Gradient conflict" }),
    sortTable({
      id: `${id}-conflict-table`, label: "Gradient conflict per method",
      rows: probed.map((m) => ({ name: m.name, cosine: average(run.probes[m.name].mean), share: average(run.probes[m.name].conflict), worst: run.probes[m.name].worst })),
      columns: [
        { name: "Method", left: true, value: (r) => r.name, cell: (r) => h("span", {}, swatch(styleOf(r.name)), " ", r.name) },
        { name: "Mean cosine", note: "of task pairs", value: (r) => r.cosine, cell: (r) => fmt(r.cosine, 2) },
        { name: "Pairs in conflict", note: "cosine below 0", value: (r) => r.share, cell: (r) => (isNumber(r.share) ? `${Math.round(100 * r.share)} %` : "–") },
        { name: "Most opposed pair", note: "mean cosine", left: true, value: (r) => r.worst?.cosine ?? null, cell: (r) => (r.worst ? h("span", {}, `${clip(r.worst.tasks[0], 140)} · ${clip(r.worst.tasks[1], 140)}`, h("span", { class: "under", text: fmt(r.worst.cosine, 2) })) : "–") },
      ],
    })] : [];
  return section(`${id}-why`, "Why", "What the records show beside each gain or loss, worst task first. These are traces that go with an outcome, not proofs of its cause.",
    h("div", { class: "controls" }, pick(methods.map((m) => m.name), first, fill, "Method explained")), list, ...conflict);
}

// The lines of a method for the task at `index`: {x, y}. A single-task model has its own steps.
function lineOf(run, name, what, index) {
  const curves = run.curves[name];
  if (!curves) return null;
  return Array.isArray(curves) ? { x: curves[index].steps, y: curves[index][what][0] } : { x: curves.steps, y: curves[what][index] };
}

function curvesSection(run, id) {
  const names = run.methods.map((m) => m.name).filter((name) => run.curves[name]);
  if (!names.length) return null;
  const hidden = released(run, names);
  const page = run.tasks.length <= 9 ? run.tasks.length : 6;
  let what = "train", log = false, first = 0, plots = [];
  const grid = h("div", { class: "grid" });
  const place = h("span", { class: "small", "aria-live": "polite" });
  const one = (task, index) => figure({
    title: task.name, note: what === "val" ? metricName(task) : "",
    draw: (width) => linePlot({
      width, log: log && what === "train", yName: what === "train" ? "loss" : task.metric, label: `${task.name}: ${what === "train" ? "training loss" : "validation metric"}`,
      series: names.filter((name) => !hidden.has(name)).map((name) => ({ name: shownName(name), style: styleOf(name), ...lineOf(run, name, what, index) })),
    }),
    data: () => {
      const lines = names.map((name) => lineOf(run, name, what, index));
      return { head: ["Method", "step", what === "train" ? "loss" : task.metric], rows: lines.flatMap((line, k) => line.x.map((x, i) => [shownName(names[k]), String(x), fmt(line.y[i], 4)])) };
    },
  });
  const fill = () => {
    const shown = run.tasks.slice(first, first + page);
    plots = shown.map((task, k) => one(task, first + k));
    grid.replaceChildren(...plots.map((plot) => plot.node));
    place.textContent = `Tasks ${first + 1}–${first + shown.length} of ${run.tasks.length}`;
    back.disabled = first === 0;
    on.disabled = first + page >= run.tasks.length;
  };
  const go = (to) => { first = to; jump.querySelector("select").value = String(first); fill(); };
  const back = h("button", { type: "button", class: "step", text: "‹ Previous", onclick: () => go(Math.max(0, first - page)) });
  const on = h("button", { type: "button", class: "step", text: "Next ›", onclick: () => go(Math.min(first + page, run.tasks.length - 1)) });
  const jump = menu("Start at", run.tasks.map((task, k) => [String(k), task.name]), (value) => { first = Number(value); fill(); }, "0");
  const scale = h("label", {}, h("input", { type: "checkbox", onchange: (event) => { log = event.target.checked; plots.forEach((plot) => plot.redraw()); } }), "logarithmic loss");
  const kinds = choice([{ value: "train", name: "Training loss" }, { value: "val", name: "Validation metric" }], what, (value) => { what = value; scale.hidden = value === "val"; fill(); }, "Curve shown");
  fill();
  const lede = run.seeds.length > 1 ? "Mean over the seeds that reached a step. Steps of a single-task model and of a joint one are not the same amount of data." : null;
  return section(`${id}-curves`, "Learning curves", lede,
    h("div", { class: "controls" }, kinds, scale),
    names.length > 1 ? h("div", { class: "controls" }, toggles(names, hidden, () => plots.forEach((plot) => plot.redraw()), "Methods shown")) : null,
    run.tasks.length > page ? h("div", { class: "controls" }, back, on, place, jump) : null, grid);
}

// Lines of all tasks of one method: in colour for up to eight, else faint with one picked out.
function tasksPlot(run, state, { title, note, yName, lines, log, label }) {
  const few = run.tasks.length <= 8;
  return figure({
    title, note,
    draw: (width) => {
      const all = lines();
      if (!all) return blank("Nothing recorded.");
      return linePlot({
        width, height: 300, yName, log, label,
        series: run.tasks.map((task, k) => {
          const strong = few || k === state.task;
          return { name: task.name, style: look(few ? k : 0), x: all.x, y: all.y[k], faint: !strong, end: strong };
        }),
      });
    },
    data: () => {
      const all = lines();
      return all ? { head: ["step", ...run.tasks.map((task) => task.name)], rows: all.x.map((x, i) => [String(x), ...all.y.map((y) => fmt(y[i], 4))]) } : { head: ["step"], rows: [] };
    },
  });
}
// Below the plot on narrow screens, where no name fits at the line's end.
const taskKey = (run) => (run.tasks.length > 8 ? null : h("div", { class: "chips small key-row", role: "group", "aria-label": "Tasks" }, run.tasks.map((task, k) => h("span", { class: "chip", title: task.name }, swatch(look(k)), clip(task.name, 240)))));
const taskMenu = (run, state, redraw) => (run.tasks.length > 8 ? menu("Task in colour", run.tasks.map((task, k) => [String(k), task.name]), (value) => { state.task = Number(value); redraw(); }, String(state.task)) : null);

function weightsSection(run, id) {
  const names = run.methods.map((m) => m.name).filter((name) => run.curves[name] && !Array.isArray(run.curves[name]));
  const weighted = names.filter((name) => run.curves[name].weights.some((column) => column.some(isNumber)));
  if (!weighted.length) return null;
  const state = { name: weighted.includes(run.best) ? run.best : weighted[0], task: 0 };
  const plot = tasksPlot(run, state, {
    title: "Weight of each task", note: "mean since the validation before", yName: "weight", label: "Weights over time",
    lines: () => ({ x: run.curves[state.name].steps, y: run.curves[state.name].weights }),
  });
  return section(`${id}-weights`, "Weights over time", "How much each task's loss or gradient counted in the shared parameters' update.",
    h("div", { class: "controls" }, pick(weighted, state.name, (name) => { state.name = name; plot.redraw(); }, "Method shown"), taskMenu(run, state, plot.redraw)),
    taskKey(run), plot.node);
}

function cosineSection(run, id) {
  const names = run.methods.map((m) => m.name).filter((name) => run.probes[name]);
  if (!names.length) return null;
  const state = { name: names.includes(run.best) ? run.best : names[0], at: 0, task: 0 };
  const tasks = run.tasks.map((task) => task.name);
  const probes = () => run.probes[state.name];
  const slider = h("input", { type: "range", min: 0, step: 1, id: `${id}-probe`, "aria-label": "Training step of the heat map" });
  const said = h("output", { for: `${id}-probe` });
  const map = figure({
    title: "Cosine of each pair of tasks",
    draw: (width) => heatMap({ width, names: tasks, values: cosines(probes().cells[state.at]), label: `Gradient cosines at step ${probes().shown[state.at]}` }),
    data: () => {
      const values = cosines(probes().cells[state.at]);
      return { head: ["Task", ...tasks], rows: tasks.map((task, i) => [task, ...tasks.map((_, j) => (i === j ? "" : fmt(cosineAt(values, tasks.length, i, j), 2)))]) };
    },
  });
  const hidden = released(run, names);
  const time = figure({
    title: "Mean cosine of the pairs", note: "over training",
    draw: (width) => linePlot({
      width, height: 240, yName: "mean cosine", label: "Mean gradient cosine over training",
      series: names.filter((name) => !hidden.has(name)).map((name) => ({ name, style: styleOf(name), x: run.probes[name].steps, y: run.probes[name].mean, end: names.length > 1 })),
    }),
    data: () => ({ head: ["Method", "step", "mean cosine", "share below 0"], rows: names.flatMap((name) => run.probes[name].steps.map((step, k) => [name, String(step), fmt(run.probes[name].mean[k], 3), fmt(run.probes[name].conflict[k], 2)])) }),
  });
  const norms = tasksPlot(run, state, {
    title: "Gradient size of each task", note: "logarithmic", yName: "norm", log: true, label: "Gradient norms over training",
    lines: () => ({ x: probes().shown, y: probes().norms }),
  });
  const say = () => { said.textContent = `step ${probes().shown[state.at]}`; slider.setAttribute("aria-valuetext", said.textContent); };
  const rewind = () => { slider.max = String(probes().shown.length - 1); state.at = probes().shown.length - 1; slider.value = String(state.at); say(); };
  slider.addEventListener("input", () => { state.at = Number(slider.value); say(); map.redraw(); });
  rewind();
  return section(`${id}-cosines`, "Gradient cosines", `Angles between the tasks' gradients in the shared parameters${run.seeds.length > 1 ? `, seed ${run.seeds[0]}` : ""}. Below 0 two tasks pull apart.`,
    h("div", { class: "controls" },
      pick(names, state.name, (name) => { state.name = name; rewind(); map.redraw(); norms.redraw(); }, "Method shown"),
      h("label", {}, "Step", slider, said), taskMenu(run, state, norms.redraw)),
    h("div", { class: "pair" },
      h("div", {}, map.node, h("p", { class: "scalebar" }, `${MINUS}1 opposed`, h("i", { "aria-hidden": "true" }), "+1 aligned")),
      h("div", {}, norms.node, taskKey(run))),
    names.length > 1 ? h("div", { class: "controls" }, toggles(names, hidden, time.redraw, "Methods in the mean")) : null, time.node);
}

function costSection(run, id) {
  const kinds = [
    ["Training time", "seconds", "seconds_ratio", seconds, "all single"],
    ["Parameters", "parameters", "parameters_ratio", count, "all single"],
    ["Peak memory", "peak_memory", "memory_ratio", bytes, "largest single"],
  ].filter(([, key]) => run.methods.some((m) => isNumber(m.cost[key])));
  const single = run.methods.find((m) => m.reference);
  const plots = kinds.map(([title, key, ratio, tell, against]) => figure({
    title, note: `against ${against === "all single" ? "all single-task models together" : "the largest single-task model"}`,
    draw: (width) => barPlot({
      width, label: title, at: single?.cost[key] ?? null, atName: against,
      bars: run.methods.map((m) => ({
        name: shownName(m.name), style: styleOf(m.name), value: m.cost[key],
        shown: !m.reference && isNumber(m.cost[ratio]) ? `${tell(m.cost[key])} (${times(m.cost[ratio])})` : tell(m.cost[key]),
        text: [shownName(m.name), tell(m.cost[key]), !m.reference && isNumber(m.cost[ratio]) ? `${times(m.cost[ratio])} ${against}` : ""].filter(Boolean),
      })),
    }),
    data: () => ({ head: ["Method", title, "ratio"], rows: run.methods.map((m) => [shownName(m.name), tell(m.cost[key]), times(m.cost[ratio])]) }),
  }));
  return section(`${id}-cost`, "Cost", "Training alone, without validation and tuning; mean over seeds.", h("div", { class: "grid" }, plots.map((plot) => plot.node)));
}

const settingText = (setting) => Object.entries(setting).map(([key, value]) => `${key} ${typeof value === "number" ? fmt(value) : JSON.stringify(value)}`).join(", ");

function fairSection(run, id) {
  const { grid, rule, stopping, picked, stopped } = run.tuning;
  const rows = Object.entries(picked).flatMap(([method, picks]) => Object.entries(picks).map(([task, setting]) => ({ method, task: task === "*" ? "all tasks" : task, setting: settingText(setting) })));
  return section(`${id}-fair`, "Is it fair?", "Every method and every single-task model had the same chance:",
    h("ul", { class: "checks" },
      h("li", {}, h("strong", { text: "Same tuning budget. " }), grid.length ? `${grid.length} ${grid.length === 1 ? "setting" : "settings"}: ${grid.map(settingText).join("; ")}. ` : "No tuning was recorded. ", rule),
      stopped.length ? h("li", {}, h("strong", { text: "Settings that stopped with an error, and were not picked. " }), stopped.join(" ")) : null,
      stopping ? h("li", {}, h("strong", { text: "Same stopping rule. " }), stopping) : null,
      h("li", {}, h("strong", { text: "Test split read once, " }), "after every choice had been made on the validation split.")),
    rows.length ? h("details", { open: rows.length <= 12 }, h("summary", { text: "What each one picked" }),
      sortTable({
        id: `${id}-picked-table`, label: "Settings picked", rows, tall: rows.length > 20,
        columns: [
          { name: "Method", left: true, value: (r) => r.method, cell: (r) => shownName(r.method) },
          { name: "Task", left: true, value: (r) => r.task, cell: (r) => r.task },
          { name: "Picked", left: true, value: (r) => r.setting, cell: (r) => r.setting },
        ],
      })) : null);
}

// Only web addresses become links: a file cannot smuggle in another scheme.
function linked(text) {
  return text.split(/(https?:\/\/[^\s)>\]]+)/).map((part, k) => (k % 2 ? h("a", { href: part, rel: "noreferrer noopener", text: part }) : part));
}
function suiteSection(run, id) {
  const about = Object.entries(run.about).flatMap(([key, text]) => [h("dt", { text: key[0].toUpperCase() + key.slice(1) }), h("dd", {}, linked(text))]);
  const rows = Object.entries(run.rows).flatMap(([split, streams]) => {
    const sizes = Object.values(streams);
    const total = sizes.reduce((a, b) => a + b, 0).toLocaleString("en");
    return [h("dt", { text: `Rows, ${split}` }), h("dd", { text: sizes.length > 1 ? `${total} in ${sizes.length} streams` : total })];
  });
  const methods = run.methods.filter((m) => m.source);
  return section(`${id}-suite`, "Data and methods", null,
    about.length || rows.length ? h("dl", { class: "about" }, about, rows) : null,
    run.notes.length ? [h("h3", { text: "Notes" }), h("ul", { class: "checks" }, run.notes.map((note) => h("li", {}, linked(note))))] : null,
    engineTable(run, id),
    methods.length ? [h("h3", { text: "Sources of the methods" }), h("dl", { class: "about" }, methods.flatMap((m) => [h("dt", { text: shownName(m.name) }), h("dd", {}, linked(m.source))]))] : null);
}

function keptSection(run, id) {
  return section(`${id}-results`, "Validation", `At the kept step ${run.kept_step}, and at each task's own best step.`,
    sortTable({
      id: `${id}-tasks-table`, label: "Validation per task", rows: run.kept, tall: run.kept.length > 20,
      columns: [
        { name: "Task", left: true, value: (r) => r.task, cell: (r) => h("span", {}, r.task, h("span", { class: "under", text: r.metric })) },
        { name: "Kept", note: `step ${run.kept_step}`, value: (r) => r.value, cell: (r) => fmt(r.value, 4) },
        { name: "Own best", value: (r) => r.best_value, cell: (r) => fmt(r.best_value, 4) },
        { name: "at step", value: (r) => r.best_step, cell: (r) => fmt(r.best_step, 6) },
      ],
    }));
}
function settingsSection(run, id) {
  const rows = [...Object.entries(run.settings), ["engine", run.engine], ...Object.entries(run.substitutes).map(([note, times]) => [note, `${times.toLocaleString("en")} updates`])];
  return section(`${id}-settings`, "Settings", null, h("dl", { class: "about" }, rows.flatMap(([key, value]) => [h("dt", { text: key }), h("dd", { text: typeof value === "string" ? value : JSON.stringify(value) })])));
}

function compareSection() {
  const rows = DATA.runs.flatMap((run) => joint(run).filter(() => run.kind === "compare").map((method) => ({ run, method })));
  const others = DATA.runs.filter((run) => run.kind !== "compare");
  const kinds = { fit: "Single trainings", merge: "Merges", relate: "Relations of tasks", auto: "Searches" };
  if (!rows.length) return null;
  const compared = DATA.runs.filter((run) => run.kind === "compare");
  const names = [...new Set(rows.map(({ method }) => method.name))];
  const crowded = names.length > MANY;
  const plot = crowded ? sideMap(compared, names) : figure({
    title: "Mean gain per run and method", note: "delta-m in %, with the interval over seeds",
    draw: (width) => dotPlot({
      width, zeroName: "single-task models", label: "Mean gain per run and method",
      rows: compared.map((run) => ({
        name: run.label,
        dots: joint(run).map((m) => ({ style: styleOf(m.name), value: m.delta_m, interval: m.interval, open: Boolean(m.interval) && m.interval[0] <= 0 && m.interval[1] >= 0, text: [run.label, m.name, `${pct(m.delta_m)} ${bracket(m.interval)}`] })),
      })),
    }),
    data: () => ({ head: ["Run", "Method", "Mean gain", "Interval"], rows: rows.map(({ run, method }) => [run.label, method.name, pct(method.delta_m), bracket(method.interval) || "–"]) }),
  });
  return section("side", "Side by side", "Mean gain over each run's own tasks against its own single-task models. Runs on different suites share the scale, not the tasks.",
    crowded ? null : h("div", { class: "chips controls", role: "group", "aria-label": "Methods" }, names.map((name) => h("span", { class: "chip" }, swatch(styleOf(name)), name))),
    plot.node,
    sortTable({
      id: "side-table", label: "Runs and methods", rows, tall: rows.length > 20,
      columns: [
        { name: "Run", left: true, value: ({ run }) => run.label, cell: ({ run }) => h("span", {}, run.label, h("span", { class: "under", text: `${run.suite}, ${plural(run.tasks.length, "task")}, ${plural(run.seeds.length, "seed")}` })) },
        { name: "Method", left: true, value: ({ method }) => method.name, cell: ({ method }) => method.name },
        { name: "Mean gain", note: "delta-m, interval", value: ({ method }) => method.delta_m, cell: ({ method }) => gainCell(method.delta_m, method.interval) },
        { name: "Tasks", note: "gained − lost", left: true, value: ({ method }) => method.counts.gained - method.counts.lost, cell: ({ method }) => countsCell(method.counts) },
        { name: "Worst task", value: ({ method }) => method.worst?.gain ?? null, cell: ({ method }) => (method.worst ? h("span", {}, pct(method.worst.gain), h("span", { class: "under", text: clip(method.worst.task, 130) })) : "–") },
        { name: "Time", note: "vs. all single", value: ({ method }) => method.cost.seconds_ratio, cell: ({ method }) => times(method.cost.seconds_ratio) },
        { name: "Parameters", note: "vs. all single", value: ({ method }) => method.cost.parameters_ratio, cell: ({ method }) => times(method.cost.parameters_ratio) },
      ],
    }),
    Object.entries(kinds).map(([kind, word]) => [word, others.filter((run) => run.kind === kind)]).filter(([, runs]) => runs.length).map(([word, runs]) => h("p", { class: "small", text: `${word}, shown below: ${runs.map((run) => run.label).join(", ")}.` })));
}

// Assembly ----------------------------------------------------------------------------------------

function show(run, k) {
  const id = `r${k}`;
  const parts = run.kind === "merge" ? mergeSections(run, id) : run.kind === "relate" ? relationSections(run, id) : run.kind === "auto" ? searchSections(run, id) : run.kind === "compare"
    ? [joint(run).length > 1 ? overviewSection(run, id) : null, resultsSection(run, id), joint(run).length ? gainSection(run, id) : null, joint(run).length ? whySection(run, id) : null, curvesSection(run, id), weightsSection(run, id), expertsSection(run, id), cosineSection(run, id), costSection(run, id), fairSection(run, id), suiteSection(run, id)]
    : [keptSection(run, id), curvesSection(run, id), weightsSection(run, id), expertsSection(run, id), cosineSection(run, id), settingsSection(run, id)];
  return h("article", { class: "run", "aria-label": run.label }, hero(run, id, DATA.runs.length > 1 ? "h2" : "h1"), parts);
}

const main = document.getElementById("main");
const nav = document.getElementById("nav");
main.replaceChildren();
if (DATA.runs.length > 1) {
  main.append(h("div", { class: "hero" }, h("p", { class: "eyebrow", text: "polytask report" }), h("h1", { text: `${DATA.runs.length} runs side by side` })));
  const side = compareSection();
  if (side) {
    main.append(side);
    nav.append(h("a", { href: "#side", text: "Side by side" }));
  }
}
DATA.runs.forEach((run, k) => {
  const article = show(run, k);
  main.append(article);
  if (DATA.runs.length > 1) nav.append(h("a", { href: `#r${k}`, text: run.label }));
  else for (const part of article.querySelectorAll("section")) nav.append(h("a", { href: `#${part.id}`, text: part.querySelector("h2").textContent }));
});
document.getElementById("foot").textContent = `Written by polytask ${DATA.polytask}. This file is complete in itself: it asks nothing of any network.`;

document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});
