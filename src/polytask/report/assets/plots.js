"use strict";
// Small plots, drawn as SVG at the width they have. No text ever passes through an HTML parser: all
// of it is set as textContent, so names from a file cannot become markup.

const SVG = "http://www.w3.org/2000/svg";

function put(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key === "text") node.textContent = value;
    else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}
const h = (tag, attributes = {}, ...children) => put(document.createElement(tag), attributes, children);
const s = (tag, attributes = {}, ...children) => put(document.createElementNS(SVG, tag), attributes, children);

// Numbers -----------------------------------------------------------------------------------------

const MINUS = "\u2212";
const isNumber = (x) => typeof x === "number" && Number.isFinite(x);

function fmt(x, figures = 3) {
  if (!isNumber(x)) return "–";
  const size = Math.abs(x);
  let text;
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) text = x.toExponential(Math.max(0, figures - 1)).replace(/\.?0+e/, "e");
  else if (size >= 10 ** (figures - 1)) text = String(Math.round(x * 10) / 10 === Math.round(x) || size >= 10 ** figures ? Math.round(x) : Math.round(x * 10) / 10);
  else text = String(Number(x.toPrecision(figures)));
  return text.replace(/-/g, MINUS);
}
function signed(x) {
  const text = Math.abs(x).toFixed(1);
  return Number(text) === 0 ? text : `${x < 0 ? MINUS : "+"}${text}`;
}
const pct = (x) => (isNumber(x) ? `${signed(x)} %` : "–");
const bracket = (ends) => (ends ? `[${ends.map(signed).join(", ")}]` : "");
const times = (x) => (isNumber(x) ? `${x < 0.1 && x > 0 ? x.toPrecision(2) : x.toFixed(2)} ×` : "–");
// Both with the same decimals, four significant digits for the mean, so that a column lines up.
function meanText(mean, spread) {
  if (!isNumber(mean)) return "–";
  const decimals = mean === 0 ? 3 : 3 - Math.floor(Math.log10(Math.abs(mean)));
  if (decimals < -2 || decimals > 6) return isNumber(spread) ? `${fmt(mean)} ± ${fmt(spread, 2)}` : fmt(mean);
  const text = (x) => x.toFixed(Math.max(0, decimals)).replace("-", MINUS);
  return isNumber(spread) ? `${text(mean)} ± ${text(spread)}` : text(mean);
}
function bytes(x) {
  if (!isNumber(x)) return "–";
  for (const unit of ["B", "kB", "MB", "GB"]) {
    if (Math.abs(x) < 1000 || unit === "GB") return `${fmt(x)} ${unit}`;
    x /= 1000;
  }
}
function count(x) {
  if (!isNumber(x)) return "–";
  if (x >= 1e9) return `${fmt(x / 1e9)} G`;
  if (x >= 1e6) return `${fmt(x / 1e6)} M`;
  return x >= 1e4 ? `${fmt(x / 1e3)} k` : String(Math.round(x));
}
function seconds(x) {
  if (!isNumber(x)) return "–";
  if (x < 120) return `${fmt(x)} s`;
  return x < 7200 ? `${fmt(x / 60)} min` : `${fmt(x / 3600)} h`;
}
// How wide a text will be in the page's own font, which differs from machine to machine.
const ruler = document.createElement("canvas").getContext("2d");
const FAMILY = getComputedStyle(document.body).fontFamily;
function widthOf(text, size = 12.5, weight = 400) {
  ruler.font = `${weight} ${size}px ${FAMILY}`;
  return ruler.measureText(text).width;
}
const widest = (texts, size, weight) => Math.ceil(Math.max(0, ...texts.map((text) => widthOf(text, size, weight))));
function clip(text, pixels, size, weight) {
  const wide = widthOf(text, size, weight);
  if (wide <= pixels) return text;
  let most = Math.max(3, Math.floor((text.length * pixels) / wide));
  while (most > 3 && widthOf(`${text.slice(0, most)}…`, size, weight) > pixels) most--;
  return `${text.slice(0, most)}…`;
}
const clipStart = (text, pixels, size, weight) => {
  const reversed = (said) => [...said].reverse().join("");
  return reversed(clip(reversed(text), pixels, size, weight));
};

// Scales ------------------------------------------------------------------------------------------

function linear(low, high, from, to) {
  const span = high - low || 1;
  const scale = (x) => from + ((x - low) / span) * (to - from);
  scale.ticks = (n) => {
    const rough = span / Math.max(1, n);
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 2.5, 5, 10].map((k) => k * power).find((k) => k >= rough * 0.999);
    const ticks = [];
    for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) ticks.push(k * step);
    return ticks.map((x) => Number(x.toPrecision(12)));
  };
  return scale;
}
function logarithmic(low, high, from, to) {
  const inner = linear(Math.log10(low), Math.log10(high), from, to);
  const scale = (x) => inner(Math.log10(x));
  scale.ticks = (n) => {
    const ticks = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) {
      for (const k of [1, 2, 5]) ticks.push(Number((k * 10 ** power).toPrecision(6)));
    }
    const inside = ticks.filter((x) => x >= low * 0.999 && x <= high * 1.001);
    return inside.filter((_, k) => k % Math.ceil(inside.length / (n + 1)) === 0);
  };
  return scale;
}
function extent(values) {
  let low = Infinity, high = -Infinity;
  for (const x of values) if (isNumber(x)) { if (x < low) low = x; if (x > high) high = x; }
  return low > high ? null : [low, high];
}

// The range that is drawn: a few values far outside the middle half's would press all others together.
function fence(values) {
  const known = values.filter(isNumber).sort((a, b) => a - b);
  const quarter = (share) => known[Math.round(share * (known.length - 1))];
  const room = 4 * Math.max(quarter(.75) - quarter(.25), 1);
  return [Math.max(known[0], quarter(.25) - room), Math.min(known[known.length - 1], quarter(.75) + room)];
}

// Marks: a second sign beside colour ---------------------------------------------------------------

const SHAPES = [
  (x, y, r) => `M${x - r},${y}a${r},${r} 0 1,0 ${2 * r},0a${r},${r} 0 1,0 ${-2 * r},0Z`,
  (x, y, r) => `M${x - r * .9},${y - r * .9}h${r * 1.8}v${r * 1.8}h${-r * 1.8}Z`,
  (x, y, r) => `M${x},${y - r * 1.15}L${x + r * 1.1},${y + r * .85}H${x - r * 1.1}Z`,
  (x, y, r) => `M${x},${y - r * 1.3}L${x + r * 1.3},${y}L${x},${y + r * 1.3}L${x - r * 1.3},${y}Z`,
  (x, y, r) => `M${x},${y + r * 1.15}L${x + r * 1.1},${y - r * .85}H${x - r * 1.1}Z`,
  (x, y, r) => `M${x - r * 1.2},${y - r * .4}h${r * .8}v${-r * .8}h${r * .8}v${r * .8}h${r * .8}v${r * .8}h${-r * .8}v${r * .8}h${-r * .8}v${-r * .8}h${-r * .8}Z`,
];
const look = (index) => ({
  tone: `k${index % 8}`,
  shape: index % SHAPES.length,
  dash: ["", "7 4", "2 4", "9 3 2 3"][Math.floor(index / 8) % 4],
});
const REFERENCE = { tone: "ref", shape: 0, dash: "5 4" };
const mark = (style, x, y, r = 4.6, extra = "") => s("path", { class: `dot ${style.tone} ${extra}`, d: SHAPES[style.shape](x, y, r) });
const swatch = (style) => s("svg", { width: 24, height: 12, "aria-hidden": "true", viewBox: "0 0 24 12" },
  s("path", { class: `line ${style.tone}`, d: "M0,6H24", "stroke-dasharray": style.dash || null }), mark(style, 12, 6, 4));

// The pointer, the keyboard and the tooltip, the same for every plot ---------------------------------

const tip = document.getElementById("tip");
function showTip(lines, x, y) {
  tip.replaceChildren(h("b", { text: lines[0] }), ...lines.slice(1).map((line) => h("span", { text: line })));
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const left = Math.min(Math.max(6, x + 14), innerWidth - box.width - 6);
  const top = y + 16 + box.height > innerHeight ? y - box.height - 12 : y + 16;
  tip.style.left = `${left}px`;
  tip.style.top = `${Math.max(6, top)}px`;
}
const hideTip = () => { tip.hidden = true; };

// A picker knows the marks as rows of marks {x, y, text}; arrow keys walk it, the pointer takes the nearest.
function picker(rows) {
  return {
    rows: rows.length,
    columns: (i) => rows[i].length,
    at: (i, j) => rows[i][j],
    near(x, y) {
      let best = null, least = 30 ** 2;
      rows.forEach((row, i) => row.forEach((item, j) => {
        const distance = (item.x - x) ** 2 + (item.y - y) ** 2;
        if (distance < least) { least = distance; best = [i, j]; }
      }));
      return best;
    },
  };
}

function listen(svg, pick) {
  if (!pick.rows) return;
  let place = null;
  const cursor = s("circle", { class: "cursor", r: 8, visibility: "hidden" });
  svg.append(cursor);
  const show = (found, byKey) => {
    place = found;
    const item = pick.at(...found);
    cursor.setAttribute("cx", item.x);
    cursor.setAttribute("cy", item.y);
    cursor.setAttribute("visibility", "visible");
    if (byKey) cursor.scrollIntoView({ block: "nearest", inline: "nearest" });
    const box = svg.getBoundingClientRect();
    showTip(item.text, box.left + item.x, box.top + item.y);
  };
  const leave = () => { cursor.setAttribute("visibility", "hidden"); hideTip(); };
  const point = (event) => {
    const box = svg.getBoundingClientRect();
    const found = pick.near(event.clientX - box.left, event.clientY - box.top);
    if (found) show(found, false);
    else leave();
  };
  svg.addEventListener("pointermove", point);
  svg.addEventListener("pointerdown", point);
  svg.addEventListener("pointerleave", leave);
  svg.addEventListener("blur", leave);
  svg.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { leave(); return; }
    const move = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0], Home: [0, -Infinity], End: [0, Infinity] }[event.key];
    if (!move) return;
    event.preventDefault();
    let [i, j] = place || [0, 0];
    if (place) {
      i = Math.min(Math.max(i + move[0], 0), pick.rows - 1);
      j = Math.min(Math.max(j + move[1], 0), pick.columns(i) - 1);
    }
    show([i, j], true);
  });
}

// A figure: title, plot, and the same numbers as a table -------------------------------------------

// draw(width) -> {nodes, target, pick, label}; data() -> {head, rows} | null, asked for when opened.
function figure({ title, note, draw, data, tall }) {
  const plot = h("div", { class: tall ? "plot tall" : "plot" });
  let width = 0;
  const redraw = () => {
    const now = plot.clientWidth;
    if (!now) return;
    width = now;
    const focused = plot.contains(document.activeElement);
    const { nodes, target, pick, label } = draw(width);
    plot.replaceChildren(...nodes);
    if (target && pick && pick.rows) {
      put(target, { class: "target", tabindex: 0, role: "group", "aria-roledescription": "plot", "aria-label": `${label}. Arrow keys read the values.` }, []);
      listen(target, pick);
      if (focused) target.focus();
    }
    if (details.open) fill();
  };
  const body = h("div");
  const fill = () => {
    const { head, rows } = data();
    body.replaceChildren(scroller(plainTable(head, rows), `Data: ${title}`, true));
  };
  const details = h("details", { class: "data", ontoggle: () => (details.open ? fill() : body.replaceChildren()) },
    h("summary", { text: "Data table" }), body);
  new ResizeObserver(() => { if (plot.clientWidth !== width) redraw(); }).observe(plot);
  const node = h("figure", {}, h("figcaption", { title }, title, note ? h("small", { text: ` ${note}` }) : null), plot, data ? details : null);
  return { node, redraw };
}
const blank = (why) => ({ nodes: [h("p", { class: "empty", text: why })], target: null, pick: null, label: why });

const scroller = (table, label, tall) =>
  h("div", { class: tall ? "scroll tall" : "scroll", tabindex: 0, role: "region", "aria-label": label }, table);
const plainTable = (head, rows) => h("table", {},
  h("thead", {}, h("tr", {}, head.map((text) => h("th", { scope: "col", class: "l" }, h("span", { text }))))),
  h("tbody", {}, rows.map((row) => h("tr", {}, row.map((cell, k) => (k ? h("td", { text: cell }) : h("th", { scope: "row", text: cell, title: cell })))))));

// Columns: {name, note, left, wrap, value(row) -> number | string | null, cell(row) -> node | text}.
function sortTable({ columns, rows, label, tall, id }) {
  const body = h("tbody");
  const heads = columns.map((column, k) => {
    const button = h("button", { type: "button", onclick: () => sort(k) }, h("span", { class: "key", text: column.name }), column.note ? h("small", { text: column.note }) : null);
    return h("th", { scope: "col", class: column.left ? "l" : null, "aria-sort": "none" }, button);
  });
  const fill = (ordered) => body.replaceChildren(...ordered.map((row) => h("tr", {}, columns.map((column, k) => {
    const cell = column.cell(row);
    if (k === 0) return h("th", { scope: "row", title: String(column.value(row) ?? "") }, cell);
    return h("td", { class: column.wrap ? "wrap" : column.left ? "l" : null }, cell);
  }))));
  function sort(k) {
    const was = heads[k].getAttribute("aria-sort");
    const text = rows.some((row) => typeof columns[k].value(row) === "string");
    // Numbers first from the top, names from A.
    const down = was === "none" ? !text : was === "ascending";
    heads.forEach((head, i) => head.setAttribute("aria-sort", i === k ? (down ? "descending" : "ascending") : "none"));
    const sign = down ? -1 : 1;
    fill([...rows].sort((a, b) => {
      const x = columns[k].value(a), y = columns[k].value(b);
      if (x === null || y === null) return (x === null) - (y === null); // unknown ones stay last
      return sign * (typeof x === "string" ? x.localeCompare(y, "en", { numeric: true }) : x - y);
    }));
  }
  fill(rows);
  return scroller(h("table", { id }, h("thead", {}, h("tr", {}, heads)), body), label, tall);
}

// Line plot ---------------------------------------------------------------------------------------

// series: [{name, style, x: [], y: [], faint, end}]; end: its name is written at the right.
function linePlot({ width, height = 220, series, log, yName, xName = "step", fixed, label }) {
  const drawn = series.filter((one) => one.y.some((y) => isNumber(y) && (!log || y > 0)));
  if (!drawn.length) return blank("Nothing recorded.");
  const yRange = fixed || extent(drawn.flatMap((one) => one.y.filter((y) => !log || y > 0)));
  const xRange = extent(drawn.flatMap((one) => one.x));
  let [low, high] = yRange;
  if (low === high) { const room = Math.abs(low) * 0.1 || 1; low = log ? low / 2 : low - room; high = log ? high * 2 : high + room; }
  else if (!fixed && !log) { 
    // Room above and below, but a loss that stays positive keeps its floor at 0.
    const room = (high - low) * 0.05;
    low = low >= 0 ? Math.max(0, low - room) : low - room;
    high += room;
  }
  const named = width >= 420 ? drawn.filter((one) => one.end) : [];
  const right = named.length ? Math.min(190, 16 + widest(named.map((one) => one.name), 11.5, 600)) : 12;
  const left = 50, top = 8, bottom = 34;
  const make = log ? logarithmic : linear;
  const y = make(low, high, height - bottom, top);
  const x = linear(xRange[0], xRange[1], left, width - right);
  const svg = s("svg", { width, height, viewBox: `0 0 ${width} ${height}` });
  for (const tick of y.ticks(4)) {
    svg.append(s("path", { class: "gridline", d: `M${left},${y(tick)}H${width - right}` }),
      s("text", { x: left - 6, y: y(tick) + 4, "text-anchor": "end", text: fmt(tick, 4) }));
  }
  for (const tick of x.ticks(Math.max(2, Math.floor((width - left - right) / 65)))) {
    svg.append(s("text", { x: x(tick), y: height - bottom + 16, "text-anchor": "middle", text: count(tick).replace(" ", "") }));
  }
  svg.append(s("text", { x: width - right, y: height - 3, "text-anchor": "end", text: xName }));
  if (low < 0 && high > 0) svg.append(s("path", { class: "zero", d: `M${left},${y(0)}H${width - right}` }));
  const rows = [];
  for (const one of [...drawn].sort((a, b) => Boolean(b.faint) - Boolean(a.faint))) {
    let path = "", pen = false, last = null;
    const row = [];
    one.y.forEach((value, k) => {
      if (!isNumber(value) || (log && value <= 0)) { pen = false; return; }
      const px = x(one.x[k]), py = y(value);
      path += `${pen ? "L" : "M"}${px.toFixed(1)},${py.toFixed(1)}`;
      pen = true;
      last = [px, py];
      row.push({ x: px, y: py, text: [one.name, `${yName} ${fmt(value, 4)}`, `${xName} ${one.x[k]}`] });
    });
    const tone = one.faint ? "faint" : one.style.tone;
    svg.append(s("path", { class: `line ${tone}`, d: path, "stroke-dasharray": one.faint ? null : one.style.dash || null }));
    if (!one.faint) svg.append(mark(one.style, last[0], last[1], 4));
    one.last = last;
    rows.push(row);
  }
  // Names at the ends of the lines, pushed apart where they would touch.
  const ends = named.sort((a, b) => a.last[1] - b.last[1]);
  let floor = top + 4;
  const places = ends.map((one) => (floor = Math.max(one.last[1] + 4, floor)) && ((floor += 14), floor - 14));
  for (let k = places.length - 1, roof = height - bottom + 6; k >= 0; k--, roof -= 14) places[k] = Math.min(places[k], roof);
  ends.forEach((one, k) => svg.append(s("text", { class: `end ${one.style.tone}`, x: width - right + 9, y: places[k], text: clip(one.name, right - 12, 11.5, 600) })));
  return { nodes: [svg], target: svg, pick: picker(rows), label };
}

// Dots with whiskers ------------------------------------------------------------------------------

// rows: [{name, dots: [{name, style, value, interval, text}]}]; zeroName: what the zero line stands for.
function dotPlot({ width, rows, zeroName, label, dense }) {
  const dots = rows.flatMap((row) => row.dots).filter((dot) => isNumber(dot.value));
  if (!dots.length) return blank("No gain is defined here.");
  const values = extent([...fence(dots.map((dot) => dot.value)), 0]);
  const all = extent([...dots.filter((dot) => dot.value >= values[0] && dot.value <= values[1]).flatMap((dot) => dot.interval || []), ...values]);
  // A few very wide intervals would press all dots together: they are cut off and end in an arrow.
  const reach = Math.max(values[1] - values[0], 1) * 1.2;
  let low = Math.max(all[0], values[0] - reach), high = Math.min(all[1], values[1] + reach);
  const room = (high - low) * 0.04;
  low -= room; high += room;
  const stacked = width < 520;
  const names = stacked ? 0 : Math.min(width * 0.32, 16 + widest(rows.map((row) => row.name)));
  const left = stacked ? 10 : names, right = 14, head = 34;
  const most = Math.max(1, ...rows.map((row) => row.dots.length));
  const gap = dense ? 11 : 14, padding = (dense ? 7 : 12) + (stacked ? 16 : 0);
  const rowHeight = most * gap + padding;
  const height = rows.length * rowHeight + 4;
  const x = linear(low, high, left, width - right);
  const axis = s("svg", { class: "axis", width, height: head, viewBox: `0 0 ${width} ${head}`, "aria-hidden": "true" });
  const svg = s("svg", { width, height, viewBox: `0 0 ${width} ${height}` });
  for (const tick of x.ticks(Math.max(3, Math.floor((width - left) / 90)))) {
    axis.append(s("text", { x: x(tick), y: head - 6, "text-anchor": "middle", text: `${tick > 0 ? "+" : ""}${fmt(tick)} %` }));
    svg.append(s("path", { class: "gridline", d: `M${x(tick)},0V${height}` }));
  }
  const anchor = x(0) < left + 110 ? "start" : x(0) > width - 120 ? "end" : "middle";
  axis.append(s("text", { class: "name", x: x(0), y: 13, "text-anchor": anchor, text: zeroName }));
  svg.append(s("path", { class: "zero", d: `M${x(0)},0V${height}` }));
  const marks = rows.map((row, i) => {
    const top = i * rowHeight;
    if (i) svg.append(s("path", { class: "rowline", d: `M0,${top}H${width}` }));
    svg.append(stacked
      ? s("text", { class: "name halo", x: 10, y: top + 15, text: clip(row.name, width - 20) })
      : s("text", { class: "name", x: names - 10, y: top + rowHeight / 2 + 4, "text-anchor": "end", text: clip(row.name, names - 12) }));
    const block = row.dots.length * gap;
    const start = top + (stacked ? 16 : 0) + (rowHeight - (stacked ? 16 : 0) - block) / 2 + gap / 2;
    return row.dots.map((dot, k) => {
      if (!isNumber(dot.value)) return null;
      const y = start + k * gap;
      const group = s("g", { class: `point ${dot.style.tone}` });
      if (dot.value < low || dot.value > high) { // beyond the plot: an arrow at its edge, and the number
        const right = dot.value > high, at = x(right ? high : low), back = right ? -1 : 1;
        group.append(s("path", { class: "dot", d: `M${at},${y}l${back * 9},-5v10Z` }),
          s("text", { class: "halo", x: at + back * 13, y: y + 4, "text-anchor": right ? "end" : "start", text: pct(dot.value) }));
        svg.append(group);
        return { x: at, y, text: dot.text };
      }
      if (dot.interval) {
        const from = Math.max(dot.interval[0], low), to = Math.min(dot.interval[1], high);
        let path = `M${x(from)},${y}H${x(to)}`;
        path += dot.interval[0] < low ? `M${x(from) + 6},${y - 4}L${x(from)},${y}L${x(from) + 6},${y + 4}` : `M${x(from)},${y - 3.5}v7`;
        path += dot.interval[1] > high ? `M${x(to) - 6},${y - 4}L${x(to)},${y}L${x(to) - 6},${y + 4}` : `M${x(to)},${y - 3.5}v7`;
        group.append(s("path", { class: "whisker", d: path }));
      }
      group.append(mark(dot.style, x(dot.value), y, dense ? 3.8 : 4.8, dot.open ? "open" : ""));
      svg.append(group);
      return { x: x(dot.value), y, text: dot.text };
    }).filter(Boolean);
  }).filter((row) => row.length);
  return { nodes: [axis, svg], target: svg, pick: picker(marks), label };
}

// Bars --------------------------------------------------------------------------------------------

// bars: [{name, style, value, shown, text}]; a line at `at` when given, named atName.
function barPlot({ width, bars, at, atName, label }) {
  const known = bars.filter((bar) => isNumber(bar.value));
  if (!known.length) return blank("Not recorded.");
  const high = Math.max(...known.map((bar) => bar.value), at || 0) || 1;
  const names = Math.min(width * 0.34, 14 + widest(bars.map((bar) => bar.name)));
  const after = 10 + widest(bars.map((bar) => bar.shown), 11.5);
  const rowHeight = 30, head = at ? 20 : 4;
  const height = head + bars.length * rowHeight;
  const x = linear(0, high, names, width - after);
  const svg = s("svg", { width, height, viewBox: `0 0 ${width} ${height}` });
  const texts = [];
  const marks = bars.map((bar, k) => {
    const y = head + k * rowHeight;
    svg.append(s("text", { class: "name", x: names - 8, y: y + 19, "text-anchor": "end", text: clip(bar.name, names - 10) }));
    const end = isNumber(bar.value) ? x(bar.value) : names;
    if (isNumber(bar.value)) svg.append(s("rect", { class: `bar-fill ${bar.style.tone}`, x: names, y: y + 6, width: Math.max(1.5, end - names), height: rowHeight - 12, rx: 3 }));
    texts.push(s("text", { class: "halo", x: end + 6, y: y + 19, text: bar.shown }));
    return [{ x: end, y: y + rowHeight / 2, text: bar.text }];
  });
  if (at) svg.append(s("path", { class: "zero", d: `M${x(at)},${head - 4}V${height}` }),
    s("text", { x: x(at), y: 11, "text-anchor": x(at) > width * 0.6 ? "end" : "middle", text: atName }));
  svg.append(...texts); // over the line, so that it does not cross them out
  return { nodes: [svg], target: svg, pick: picker(marks), label };
}

// Heat map of cosines -----------------------------------------------------------------------------

const BINS = 20; // an even number, so that 0 has a colour of its own

// The pairs above the diagonal, row by row, as signed bytes of 100 x the cosine; -128: undefined.
function cosines(cells) {
  const raw = atob(cells);
  const values = new Int8Array(raw.length);
  for (let k = 0; k < raw.length; k++) values[k] = (raw.charCodeAt(k) << 24) >> 24;
  return values;
}
function cosineAt(values, size, i, j) {
  if (i === j) return null;
  const [a, b] = i < j ? [i, j] : [j, i];
  const value = values[a * size - (a * (a + 1)) / 2 + b - a - 1];
  return value === -128 ? null : value / 100;
}
// tell(value) -> its words; shown(value) -> what a square says; shade(value) -> -1 to 1, its colour.
const cosineText = (value) => value.toFixed(2).replace(/^-(?!0\.00$)/, MINUS).replace("-", "");
function heatMap({ width, names, values, label, most = 520, self: own = "the task itself", tell = (value) => `cosine ${cosineText(value)}`, shown = cosineText, shade = (value) => value }) {
  const size = names.length;
  const side = Math.min(width * 0.3, 8 + widest(names, 11.5));
  const named = size <= 40 && (width - side) / size >= 9;
  const left = named ? side : 4, top = named ? Math.max(22, Math.min(side, 110)) : 4;
  const cell = Math.max(0.5, Math.min((width - left - 4) / size, (most - 4) / size, 84));
  const length = cell * size;
  const svg = s("svg", { width, height: top + length + 4, viewBox: `0 0 ${width} ${top + length + 4}` });
  const paths = Array.from({ length: BINS + 1 }, () => []);
  const gap = cell > 6 ? 1 : 0, edge = (cell - gap).toFixed(2);
  const square = (i, j) => `M${(left + j * cell).toFixed(2)},${(top + i * cell).toFixed(2)}h${edge}v${edge}h-${edge}z`;
  const self = [];
  for (let i = 0; i < size; i++) {
    for (let j = 0; j < size; j++) {
      const value = cosineAt(values, size, i, j);
      if (value === null) { if (i === j) self.push(square(i, j)); continue; }
      const bin = Math.round(((shade(value) + 1) / 2) * BINS);
      paths[bin].push(square(i, j));
    }
  }
  svg.append(s("path", { class: "self", d: self.join("") }));
  paths.forEach((parts, bin) => {
    if (!parts.length) return;
    const share = bin / BINS * 2 - 1;
    const path = s("path", { class: "cells", d: parts.join("") });
    path.style.fill = `color-mix(in oklab, var(${share < 0 ? "--bad" : "--good"}) ${Math.round(Math.abs(share) * 100)}%, var(--mid))`;
    svg.append(path);
  });
  if (named) names.forEach((name, k) => {
    const middle = (k + .5) * cell + 4;
    svg.append(s("text", { class: cell < 12 ? "tiny" : null, x: left - 5, y: top + middle, "text-anchor": "end", text: clip(name, left - 6, 11.5) }));
    const x = left + middle, y = top - 6;
    svg.append(s("text", { x, y, transform: `rotate(-${cell > 54 ? 30 : 60} ${x} ${y})`, text: clip(name, top, 11.5) }));
  });
  if (cell >= 34) for (let i = 0; i < size; i++) for (let j = 0; j < size; j++) {
    const value = cosineAt(values, size, i, j);
    const strong = value !== null && Math.abs(shade(value)) > .62;
    svg.append(s("text", { class: strong ? "on" : "name", x: left + (j + .5) * cell - .5, y: top + (i + .5) * cell + 4, "text-anchor": "middle", text: i === j ? "" : value === null ? "–" : shown(value) }));
  }
  const item = (i, j) => {
    const value = cosineAt(values, size, i, j);
    const said = i === j ? own : value === null ? "undefined" : tell(value);
    return { x: left + (j + .5) * cell, y: top + (i + .5) * cell, text: [`${names[i]} · ${names[j]}`, said] };
  };
  const pick = {
    rows: size, columns: () => size, at: item,
    near: (x, y) => {
      const j = Math.floor((x - left) / cell), i = Math.floor((y - top) / cell);
      return i >= 0 && j >= 0 && i < size && j < size ? [i, j] : null;
    },
  };
  return { nodes: [svg], target: svg, pick, label };
}
