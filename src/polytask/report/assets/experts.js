// Who uses which expert: a grid per level of a method's experts, numbers per reader, and warnings.

function expertsSection(run, id) {
  const names = run.methods.map((m) => m.name).filter((name) => run.experts[name]);
  if (!names.length) return null;
  let name = names.includes(run.best) ? run.best : names[0];
  const body = h("div");
  const fill = () => {
    const used = run.experts[name];
    const often = (warning) => (used.seeds > 1 ? ` (${warning.seeds} of ${used.seeds} seeds)` : "");
    body.replaceChildren(
      used.warnings.length
        ? h("ul", { class: "checks failed" }, used.warnings.map((warning) => h("li", { text: warning.text + often(warning) })))
        : h("p", { class: "small", text: "Nothing stands out: every expert is used, by more than one task where it is shared, and no task ignores its own." }),
      ...used.levels.map((level) => expertGrid(used, level, id)));
  };
  fill();
  return section(`${id}-experts`, "Experts", "What each task took from each expert: the gate's mean weight over validation rows, with the weights that were kept. Dead: nobody takes 1 % of it. Spread: 0 where a row takes a single expert, 1 where it takes all alike.",
    names.length > 1 ? h("div", { class: "controls" }, pick(names, name, (chosen) => { name = chosen; fill(); }, "Method shown")) : null, body);
}

function expertGrid(used, level, id) {
  const { readers, experts, mean } = level;
  const title = used.levels.length > 1 ? `Level ${level.level + 1}` : "Mean weight of each expert";
  const said = (value) => (isNumber(value) ? value.toFixed(2) : "–");
  const cell = (i, j) => ({
    value: mean[i][j], sure: true, full: 1, shown: said(mean[i][j]),
    text: [`${readers[i]} · ${experts[j]}`, isNumber(mean[i][j]) ? `mean weight ${said(mean[i][j])}` : "closed to it"],
  });
  const map = figure({
    title, note: used.seeds > 1 ? `seed ${used.seed}` : null, tall: readers.length > 24,
    draw: (width) => gainMap({ width, rows: readers, columns: experts, cell, top: 1, label: `${title}: mean weight by reader and expert` }),
    data: () => ({ head: ["Reader", ...experts], rows: readers.map((reader, i) => [reader, ...mean[i].map(said)]) }),
  });
  const open = (i) => mean[i].filter(isNumber).length;
  const rows = readers.map((reader, i) => ({
    reader, open: open(i), own: level.own[i], rows: level.rows[i],
    spread: open(i) > 1 && isNumber(level.entropy[i]) ? level.entropy[i] / Math.log(open(i)) : null,
  }));
  return h("div", { class: "level" }, map.node, sortTable({
    id: `${id}-experts-${level.level}`, label: `${title}: numbers per reader`, rows, tall: rows.length > 14,
    columns: [
      { name: "Reader", left: true, value: (r) => r.reader, cell: (r) => r.reader },
      { name: "Experts", note: "it can read", value: (r) => r.open, cell: (r) => String(r.open) },
      { name: "Spread", note: "0 one, 1 all", value: (r) => r.spread, cell: (r) => said(r.spread) },
      { name: "Its own", note: "share", value: (r) => r.own, cell: (r) => said(r.own) },
      { name: "Rows", value: (r) => r.rows, cell: (r) => r.rows.toLocaleString("en") },
    ],
  }));
}
