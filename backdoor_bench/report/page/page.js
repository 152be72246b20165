"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const PAGE = 200, NUMBERS = ["acc", "asr", "ra", "der", "arr", "rdr"];
  const byId = (id) => document.getElementById(id);
  const make = (tag, options = {}, ...children) => {
    const node = Object.assign(document.createElement(tag), options);
    node.append(...children);
    return node;
  };

  // Rows come as arrays; texts are indices into data.texts.
  const unpack = (row) => {
    const item = {};
    data.columns.forEach((name, at) => {
      const value = row[at];
      if (data.fields.includes(name)) item[name] = data.texts[value];
      else if (NUMBERS.includes(name)) {
        const [mean, std, low, high] = Array.isArray(value) ? value : [value];
        item[name] = mean; item[name + "_spread"] = std === undefined ? null : [std, low, high];
      } else item[name] = value;
    });
    return item;
  };
  const views = {means: data.cells.map(unpack), runs: data.runs ? data.runs.map(unpack) : null};
  const values = (field) => [...new Set(views.means.map((row) => row[field]))].sort((a, b) => a.localeCompare(b, "en", {numeric: true}));
  const varying = data.fields.filter((field) => field === "attack" || field === "defense" || values(field).length > 1);
  const state = {filters: {}, query: "", view: "means", sort: null, down: false, page: 0, x: "asr", y: "acc"};

  // -- address ---------------------------------------------------------------------------------------------------
  const fromAddress = () => {
    const parts = new URLSearchParams(location.hash.slice(1));
    state.filters = {};
    for (const field of data.fields) {
      const wanted = (parts.get(field) || "").split(",").filter(Boolean);
      if (wanted.length) state.filters[field] = new Set(wanted);
    }
    state.query = parts.get("q") || "";
    state.view = parts.get("view") === "runs" && views.runs ? "runs" : "means";
    const known = [...data.fields, "n", ...NUMBERS];
    const sort = parts.get("sort") || "";
    state.down = sort.startsWith("-");
    state.sort = known.includes(sort.replace("-", "")) ? sort.replace("-", "") : null;
    for (const axis of ["x", "y"]) if (NUMBERS.includes(parts.get(axis))) state[axis] = parts.get(axis);
    state.page = 0;
  };
  const toAddress = () => {
    const parts = new URLSearchParams();
    for (const [field, wanted] of Object.entries(state.filters)) if (wanted.size) parts.set(field, [...wanted].join(","));
    if (state.query) parts.set("q", state.query);
    if (state.view !== "means") parts.set("view", state.view);
    if (state.sort) parts.set("sort", (state.down ? "-" : "") + state.sort);
    if (state.x !== "asr") parts.set("x", state.x);
    if (state.y !== "acc") parts.set("y", state.y);
    history.replaceState(null, "", "#" + parts.toString());
  };

  // -- what is shown ---------------------------------------------------------------------------------------------
  const fits = (row) => {
    for (const [field, wanted] of Object.entries(state.filters)) if (!wanted.has(row[field])) return false;
    if (!state.query) return true;
    const words = data.fields.map((field) => row[field]).join(" ").toLowerCase();
    return state.query.toLowerCase().split(/\s+/).every((word) => words.includes(word));
  };
  const chosen = () => {
    const rows = views[state.view].filter(fits);
    if (state.sort) {
      const name = state.sort, sign = state.down ? -1 : 1;
      rows.sort((a, b) => {
        const [u, v] = [a[name], b[name]];
        if (u === null || v === null) return (u === null) - (v === null);
        return sign * (typeof u === "string" ? u.localeCompare(v, "en", {numeric: true}) : u - v);
      });
    }
    return rows;
  };
  let rows = [];
  const change = () => { state.page = 0; toAddress(); draw(); };
  const draw = () => {
    rows = chosen();
    drawFilters(); drawTable(); drawScatter();
    const runs = rows.reduce((sum, row) => sum + row.n, 0);
    const failed = rows.reduce((sum, row) => sum + row.failed, 0);
    const weak = rows.reduce((sum, row) => sum + row.weak, 0);
    const atChance = rows.reduce((sum, row) => sum + row.at_chance, 0);
    const what = state.view === "runs" ? "runs" : "cells";
    byId("count").textContent = `${rows.length.toLocaleString("en")} of ${views[state.view].length.toLocaleString("en")} ${what}` +
      (what === "cells" ? `, ${runs.toLocaleString("en")} measured networks` : "") +
      (weak ? `, ${weak.toLocaleString("en")} of a weak attack (†)` : "") +
      (atChance ? `, ${atChance.toLocaleString("en")} at chance (‡)` : "") + (failed ? `, ${failed.toLocaleString("en")} failed` : "");
  };

  // -- filters ---------------------------------------------------------------------------------------------------
  const boxes = new Map();
  const buildFilters = () => {
    const form = byId("filters");
    form.addEventListener("submit", (event) => event.preventDefault());
    for (const field of varying) {
      const fieldset = make("fieldset", {}, make("legend", {textContent: data.names[field]}));
      const details = make("details", {className: "filter"}, make("summary"), fieldset);
      boxes.set(field, details);
      for (const value of values(field)) {
        const box = make("input", {type: "checkbox", value});
        box.addEventListener("change", () => {
          const wanted = state.filters[field] || (state.filters[field] = new Set());
          if (box.checked) wanted.add(value); else wanted.delete(value);
          if (!wanted.size) delete state.filters[field];
          change();
        });
        fieldset.append(make("label", {}, box, " " + value));
      }
      form.append(details);
    }
    const search = make("input", {type: "search", id: "search", placeholder: "search"});
    search.setAttribute("aria-label", "Search");
    search.addEventListener("input", () => { state.query = search.value; change(); });
    form.append(search);
    if (views.runs) {
      const view = make("select", {id: "view"}, make("option", {value: "means", textContent: "means"}),
        make("option", {value: "runs", textContent: "single runs"}));
      view.addEventListener("change", () => { state.view = view.value; change(); });
      form.append(make("label", {}, "Show ", view));
    }
    const reset = make("button", {type: "button", textContent: "Reset"});
    reset.addEventListener("click", () => { history.replaceState(null, "", "#"); fromAddress(); draw(); });
    form.append(reset);
    for (const axis of ["x", "y"]) {
      for (const name of NUMBERS) byId(axis).append(make("option", {value: name, textContent: data.names[name]}));
      byId(axis).addEventListener("change", () => { state[axis] = byId(axis).value; change(); });
    }
    // One menu at a time; a click elsewhere or Escape closes it.
    const close = (but) => { for (const box of boxes.values()) if (box !== but) box.open = false; };
    document.addEventListener("click", (event) => close(event.target.closest(".filter")));
    document.addEventListener("keydown", (event) => { if (event.key === "Escape") close(null); });
  };
  const drawFilters = () => {
    for (const [field, details] of boxes) {
      const wanted = state.filters[field];
      details.classList.toggle("active", Boolean(wanted));
      const names = wanted ? [...wanted].join(", ") : "all";
      details.querySelector("summary").textContent = `${data.names[field]}: ${names.length > 34 ? wanted.size + " chosen" : names}`;
      for (const box of details.querySelectorAll("input")) box.checked = Boolean(wanted && wanted.has(box.value));
    }
    if (byId("search").value !== state.query) byId("search").value = state.query;
    if (byId("view")) byId("view").value = state.view;
    byId("x").value = state.x; byId("y").value = state.y;
    const same = data.fields.filter((field) => !varying.includes(field)).map((field) => `${data.names[field]}: ${values(field)[0]}`);
    byId("shared").textContent = same.length ? "Everywhere " + same.join("; ") : "";
  };

  // -- table -----------------------------------------------------------------------------------------------------
  const drawTable = () => {
    const table = byId("results"), head = make("tr"), body = table.tBodies[0];
    const own = state.view === "runs" ? data.own.filter((name) => rows.some((row) => row[name] !== null)) : [];
    for (const name of [...varying, "n", ...NUMBERS, ...own]) {
      const button = make("button", {type: "button", textContent: data.names[name] || name});
      button.addEventListener("click", () => {
        state.down = state.sort === name ? !state.down : false;
        state.sort = name;
        change();
      });
      const number = !data.fields.includes(name) && !own.includes(name);
      const cell = make("th", {scope: "col", className: number ? "number" : ""}, button);
      if (own.includes(name)) cell.replaceChildren(data.names[name] || name);
      if (state.sort === name) cell.setAttribute("aria-sort", state.down ? "descending" : "ascending");
      head.append(cell);
    }
    table.tHead.replaceChildren(head);
    const start = state.page * PAGE, shown = rows.slice(start, start + PAGE);
    body.replaceChildren(...shown.map((row) => {
      const line = make("tr");
      for (const field of varying) line.append(make("td", {textContent: row[field] ?? ""}));
      line.append(make("td", {className: "number", textContent: count(row)}));
      for (const name of NUMBERS) {
        const cell = make("td", {className: "number", textContent: text(row[name])}), spread = row[name + "_spread"];
        if (spread) {
          for (const line of [`± ${text(spread[0])}`, `[${text(spread[1])}, ${text(spread[2])}]`]) cell.append(make("br"), make("small", {textContent: line}));
        }
        line.append(cell);
      }
      for (const name of own) line.append(make("td", {textContent: row[name] ?? ""}));
      return line;
    }));
    const pages = Math.max(1, Math.ceil(rows.length / PAGE));
    byId("page").textContent = `Page ${state.page + 1} of ${pages}`;
    byId("previous").disabled = state.page === 0;
    byId("next").disabled = state.page + 1 >= pages;
    byId("previous").parentElement.hidden = pages === 1;
  };
  const text = (value) => (value === null || value === undefined ? "-" : value.toFixed(2));
  const marked = (row, count, mark) => (count ? (count === row.n ? mark : ` (${count}${mark})`) : "");
  const count = (row) => (row.n ? row.n + marked(row, row.weak, "†") + marked(row, row.at_chance, "‡") : "") +
    (row.failed ? `${row.n ? ", " : ""}${row.failed} failed` : "");

  // -- scatter ---------------------------------------------------------------------------------------------------
  // Colours and markers are those of the figures; black is the ink of the page.
  const PATHS = {o: "M5 0A5 5 0 1 1 4.99 0Z", s: "M.5 .5H9.5V9.5H.5Z", "^": "M5 0L10 9.5H0Z", v: "M0 .5H10L5 10Z",
    "<": "M0 5L9.5 0V10Z", ">": "M10 5L.5 10V0Z", D: "M5 0L10 5L5 10L0 5Z", P: "M3.3 0H6.7V3.3H10V6.7H6.7V10H3.3V6.7H0V3.3H3.3Z",
    X: "M2 0L5 3L8 0L10 2L7 5L10 8L8 10L5 7L2 10L0 8L3 5L0 2Z", "": "M5 0A5 5 0 1 1 4.99 0ZM5 2A3 3 0 1 0 5.01 2Z"};
  const defenses = values("defense");
  const look = (name) => {
    const [colour, shape] = data.looks[name] || ["#808080", "o"];
    return {colour: colour === "#000000" ? getComputedStyle(document.body).color : colour, shape};
  };
  const canvas = byId("scatter"), SIDE = {left: 58, right: 16, top: 12, bottom: 44};
  let points = [], selected = null;
  const extent = (name) => {
    const found = points.map((point) => point.row[name]);
    if (!points.length) return [0, 100];
    const [low, high] = minmax(found);
    const room = Math.max((high - low) * 0.06, 1);
    return [low - room, high + room];
  };
  const minmax = (list) => list.reduce(([a, b], v) => [v < a ? v : a, v > b ? v : b], [Infinity, -Infinity]);
  const drawScatter = () => {
    points = rows.filter((row) => row[state.x] !== null && row[state.y] !== null).map((row) => ({row}));
    const box = canvas.getBoundingClientRect(), ratio = window.devicePixelRatio || 1;
    const width = box.width || 800, height = box.height || 384;
    canvas.width = width * ratio; canvas.height = height * ratio;
    const pen = canvas.getContext("2d"), style = getComputedStyle(document.body);
    const ink = style.getPropertyValue("--soft").trim(), line = style.getPropertyValue("--line").trim();
    pen.scale(ratio, ratio);
    pen.clearRect(0, 0, width, height);
    pen.font = "13px " + style.fontFamily;
    const [x0, x1] = extent(state.x), [y0, y1] = extent(state.y);
    const toX = (v) => SIDE.left + (v - x0) / (x1 - x0) * (width - SIDE.left - SIDE.right);
    const toY = (v) => height - SIDE.bottom - (v - y0) / (y1 - y0) * (height - SIDE.top - SIDE.bottom);
    pen.strokeStyle = line; pen.fillStyle = ink; pen.lineWidth = 1;
    for (const v of ticks(x0, x1)) {
      pen.beginPath(); pen.moveTo(toX(v), SIDE.top); pen.lineTo(toX(v), height - SIDE.bottom); pen.stroke();
      pen.textAlign = "center"; pen.fillText(label(v), toX(v), height - SIDE.bottom + 17);
    }
    for (const v of ticks(y0, y1)) {
      pen.beginPath(); pen.moveTo(SIDE.left, toY(v)); pen.lineTo(width - SIDE.right, toY(v)); pen.stroke();
      pen.textAlign = "right"; pen.fillText(label(v), SIDE.left - 7, toY(v) + 4);
    }
    pen.textAlign = "center";
    pen.fillText(`${data.names[state.x]} %`, (SIDE.left + width - SIDE.right) / 2, height - 7);
    pen.save(); pen.translate(14, (SIDE.top + height - SIDE.bottom) / 2); pen.rotate(-Math.PI / 2);
    pen.fillText(`${data.names[state.y]} %`, 0, 0); pen.restore();
    const size = points.length > 2000 ? 6 : 9;
    pen.globalAlpha = points.length > 500 ? 0.55 : 0.9;
    const looks = new Map(defenses.map((name) => [name, look(name)]));
    for (const point of points) {
      point.x = toX(point.row[state.x]); point.y = toY(point.row[state.y]);
      const {colour, shape} = looks.get(point.row.defense);
      pen.save(); pen.translate(point.x - size / 2, point.y - size / 2); pen.scale(size / 10, size / 10);
      pen.fillStyle = colour; pen.fill(new Path2D(PATHS[shape]), "evenodd"); pen.restore();
    }
    pen.globalAlpha = 1;
    canvas.setAttribute("aria-label", `Scatter of ${data.names[state.y]} against ${data.names[state.x]}, ${points.length} points; the table below has the numbers`);
    const here = defenses.filter((name) => points.some((point) => point.row.defense === name));
    byId("legend").replaceChildren(...here.map((name) => {
      const {colour, shape} = looks.get(name), space = "http://www.w3.org/2000/svg";
      const svg = document.createElementNS(space, "svg"), path = document.createElementNS(space, "path");
      svg.setAttribute("viewBox", "0 0 10 10"); svg.setAttribute("aria-hidden", "true");
      path.setAttribute("d", PATHS[shape]); path.setAttribute("fill", colour); path.setAttribute("fill-rule", "evenodd");
      svg.append(path);
      return make("li", {}, svg, name);
    }));
    tip(null);
  };
  const ticks = (low, high) => {
    const rough = (high - low) / 6, unit = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((m) => m * unit).find((s) => s >= rough);
    const found = [];
    for (let v = Math.ceil(low / step) * step; v <= high; v += step) found.push(Math.abs(v) < step / 1e6 ? 0 : v);
    return found;
  };
  const label = (v) => String(Number(v.toFixed(6)));
  const tip = (point) => {
    const box = byId("tip");
    box.hidden = !point; selected = point;
    if (!point) return;
    const row = point.row, spread = (name) => (row[name + "_spread"] ? ` ± ${text(row[name + "_spread"][0])}` : "");
    box.textContent = [`${row.attack} / ${row.defense}`, ...varying.filter((f) => f !== "attack" && f !== "defense").map((f) => `${data.names[f]}: ${row[f]}`),
      ...NUMBERS.filter((name) => row[name] !== null).map((name) => `${data.names[name]} ${text(row[name])}${spread(name)}`), `n = ${count(row)}`].join("\n");
    const left = point.x > canvas.clientWidth / 2;
    box.style.left = left ? "" : point.x + 14 + "px"; box.style.right = left ? canvas.clientWidth - point.x + 14 + "px" : "";
    box.style.top = Math.min(point.y, canvas.clientHeight - 200) + "px";
  };
  canvas.addEventListener("mousemove", (event) => {
    let best = null, least = 225;
    for (const point of points) {
      const far = (point.x - event.offsetX) ** 2 + (point.y - event.offsetY) ** 2;
      if (far < least) [best, least] = [point, far];
    }
    tip(best);
  });
  canvas.addEventListener("mouseleave", () => tip(null));
  canvas.addEventListener("keydown", (event) => {
    const step = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1}[event.key];
    if (!step || !points.length) return;
    event.preventDefault();
    tip(points[(points.indexOf(selected) + step + points.length) % points.length]);
  });

  byId("previous").addEventListener("click", () => { state.page -= 1; drawTable(); });
  byId("next").addEventListener("click", () => { state.page += 1; drawTable(); });
  window.addEventListener("hashchange", () => { fromAddress(); draw(); });
  window.addEventListener("resize", drawScatter);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawScatter);
  buildFilters();
  fromAddress();
  draw();
  document.documentElement.dataset.ready = String(Math.round(performance.now())); // ms since the page was asked for
})();
