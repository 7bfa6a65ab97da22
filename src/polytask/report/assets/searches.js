"use strict";
// What a search came to: what serves each task, and what was tried.

function searchSections(run, id) {
  return [servedSection(run, id), triedSection(run, id), failedRunsSection(run, id)];
}

function servedSection(run, id) {
  const number = (value) => (isNumber(value) ? fmt(value, 4) : "–");
  const plusMinus = (task) => (!isNumber(task.gain) ? "–" : task.gain === 0 && task.how.includes("all tasks") ? "" : `${pct(task.gain)}${isNumber(task.error) ? ` ± ${fmt(task.error, 2)}` : ""}`);
  const table = sortTable({
    id: `${id}-served-table`, label: "What serves each task", rows: run.served,
    columns: [
      { name: "Task", left: true, value: (task) => task.name, cell: (task) => task.name },
      { name: "Served by", left: true, value: (task) => task.how, cell: (task) => h("span", {}, task.how, h("span", { class: "under", text: task.run })) },
      { name: "Over shared", note: "on validation, in %", value: (task) => task.gain, cell: plusMinus },
      { name: "Alone", left: true, note: "against what serves it", value: (task) => task.alone, cell: (task) => task.alone },
      { name: "Test", note: "below: validation", value: (task) => task.test, cell: (task) => h("span", {}, `${number(task.test)} ${task.metric}`, h("span", { class: "under", text: number(task.validation) })) },
    ],
  });
  return section(`${id}-served`, "What serves each task", "Chosen on the validation split: the best model of all tasks, unless something else is expected to be better. ±: the standard error of the difference on the same rows.", table);
}

function triedSection(run, id) {
  const members = (one) => (one.tasks.length === run.tasks.length ? "all tasks" : one.tasks.length > 6 ? `${one.tasks.length} tasks` : one.tasks.join(", "));
  const table = sortTable({
    id: `${id}-tried-table`, label: "What was tried", rows: run.tried,
    columns: [
      { name: "Run", left: true, value: (one) => one.how, cell: (one) => h("span", {}, `${one.how}: ${one.recipe}`, h("span", { class: "under", text: `${members(one)}; ${one.setting}` }), one.default ? h("span", { class: "under", text: "serves a task unless something is better" }) : null) },
      { name: "Epochs", value: (one) => one.epochs, cell: (one) => h("span", {}, String(one.epochs), h("span", { class: "under", text: one.stopped })) },
      { name: "Cost", note: "every task alone: 1", value: (one) => one.work, cell: (one) => (isNumber(one.work) ? fmt(one.work, 2) : "–") },
      { name: "Seconds", value: (one) => one.seconds, cell: (one) => (isNumber(one.seconds) ? fmt(one.seconds, 2) : "–") },
      { name: "Mean gain", note: "over the first model of all, validation", value: (one) => one.delta_m, cell: (one) => (isNumber(one.delta_m) ? pct(one.delta_m) : "") },
    ],
  });
  return section(`${id}-tried`, "What was tried", "Cost is arithmetic, counted before training, so that the same is tried on every machine.", table);
}

function failedRunsSection(run, id) {
  const reasons = Object.entries(run.failed_runs);
  return reasons.length ? section(`${id}-failed`, "Failed", null, h("dl", { class: "about" }, reasons.flatMap(([name, why]) => [h("dt", { text: name }), h("dd", { text: why })]))) : null;
}
