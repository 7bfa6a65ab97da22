"use strict";
// How tasks affect one another: a table of help by method, groups for each budget, and how sure they are.

function relationSections(run, id) {
  return [helpSection(run, id), groupsSection(run, id), leftOutSection(run, id)];
}

// One map for all methods; the chosen one is drawn.
function helpSection(run, id) {
  const names = run.methods.map((m) => m.name);
  const state = { name: names[0] };
  const body = h("div");
  const fill = () => {
    const { summary, tasks, values, errors, notes } = run.relations[state.name];
    const sizes = values.flatMap((row, i) => row.filter((x, j) => i !== j && isNumber(x)).map(Math.abs));
    const top = Math.max(1e-12, ...sizes);
    const cell = (i, j) => {
      const value = i === j ? null : values[i][j], error = errors[i][j];
      const sure = isNumber(value) && isNumber(error) && Math.abs(value) > 2 * error;
      const said = isNumber(value) ? `${fmt(value, 3)}${isNumber(error) ? ` ± ${fmt(error, 2)}` : ""}` : i === j ? "the task itself" : "not known";
      return { value, sure, shown: isNumber(value) ? (sure ? fmt(value, 2) : `(${fmt(value, 2)})`) : "–", text: [`${tasks[i]} → ${tasks[j]}`, said] };
    };
    const map = figure({
      title: `Help by ${state.name}`, note: "row: the task that trains; column: the one it helps", tall: tasks.length > 42,
      draw: (width) => gainMap({ width, rows: tasks, columns: tasks, cell, top, room: 46, label: `Help by ${state.name}` }),
      data: () => ({ head: ["Training", ...tasks], rows: tasks.map((name, i) => [name, ...tasks.map((_, j) => cell(i, j).text[1])]) }),
    });
    body.replaceChildren(h("p", { class: "small", text: [summary, ...notes].join("; ") }), map.node,
      h("p", { class: "scalebar" }, `${MINUS}${fmt(top, 2)}`, h("i", { "aria-hidden": "true" }), `+${fmt(top, 2)}`));
  };
  fill();
  return section(`${id}-help`, "Who helps whom", "How much training one task helps another, by each method's own measure. In brackets: within two standard errors of 0.",
    names.length > 1 ? h("div", { class: "controls" }, choice(names.map((name) => ({ value: name, name, style: styleOf(name) })), state.name, (name) => { state.name = name; fill(); }, "Method shown")) : null,
    body);
}

function groupsSection(run, id) {
  const names = run.methods.map((m) => m.name);
  const state = { name: names[0] };
  const body = h("div");
  const fill = () => {
    const { groups, together, tasks, draws } = run.relations[state.name];
    const members = (found, k) => found.groups[k].map((task) => (found.served[k].includes(task) ? task : `(${task})`)).join(", ");
    const table = sortTable({
      id: `${id}-groups-table`, label: `Groups by ${state.name}`, rows: groups,
      columns: [
        { name: "Models", value: (found) => found.budget, cell: (found) => String(found.budget) },
        { name: "Expected", note: "mean over tasks", value: (found) => found.score, cell: (found) => fmt(found.score, 3) },
        { name: "Trained together", left: true, value: (found) => found.groups.length, cell: (found) => h("span", {}, found.groups.map((_, k) => h("span", { class: "under", text: `${k + 1}: ${members(found, k)}` }))) },
        { name: "Best there is", left: true, value: (found) => found.optimal, cell: (found) => (found.optimal ? "proven" : "not proven") },
      ],
    });
    const cell = (i, j) => ({ value: i === j ? null : 2 * together[i][j] - 1, sure: true, shown: i === j ? "" : String(Math.round(100 * together[i][j])), text: [`${tasks[i]} · ${tasks[j]}`, i === j ? "the task itself" : `together in ${Math.round(100 * together[i][j])} % of ${draws} draws`] });
    const map = figure({
      title: "How often two tasks come together", note: `in % of ${draws} draws of the table within its errors`, tall: tasks.length > 42,
      draw: (width) => gainMap({ width, rows: tasks, columns: tasks, cell, top: 1, room: 26, label: "How often two tasks come together" }),
      data: () => ({ head: ["Task", ...tasks], rows: tasks.map((name, i) => [name, ...tasks.map((_, j) => cell(i, j).shown)]) }),
    });
    body.replaceChildren(table, map.node, h("p", { class: "scalebar" }, "never", h("i", { "aria-hidden": "true" }), "always"));
  };
  fill();
  return section(`${id}-groups`, "Groups", "Which tasks to train together with so many models. In brackets: a task that only helps there and is served by another model. Expected: the mean of the method's own measure, 0 where every task is alone.",
    names.length > 1 ? h("div", { class: "controls" }, choice(names.map((name) => ({ value: name, name, style: styleOf(name) })), state.name, (name) => { state.name = name; fill(); }, "Method of the groups")) : null,
    body);
}

function leftOutSection(run, id) {
  const reasons = Object.entries(run.left_out);
  return reasons.length ? section(`${id}-left`, "Left out", null, h("dl", { class: "about" }, reasons.flatMap(([name, why]) => [h("dt", { text: name }), h("dd", { text: why })]))) : null;
}
