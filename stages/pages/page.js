"use strict";
(() => {
  const root = document.documentElement;
  const plots = [...document.querySelectorAll(".plot")].map((place) => ({
    place,
    spec: JSON.parse(place.parentElement.querySelector("script").textContent),
  }));

  // Light and dark.
  const button = document.querySelector("header button");
  const asked = matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  try { chosen = localStorage.getItem("headstart-theme"); } catch { /* a page from a file may have no storage */ }
  const setTheme = (theme) => {
    root.dataset.theme = theme;
    button.textContent = theme === "dark" ? "Light" : "Dark";
    button.setAttribute("aria-label", `Show this page ${theme === "dark" ? "light" : "dark"}`);
  };
  const themeNow = () => chosen ?? (asked.matches ? "dark" : "light");
  button.hidden = false;
  button.addEventListener("click", () => {
    chosen = root.dataset.theme === "dark" ? "light" : "dark";
    try { localStorage.setItem("headstart-theme", chosen); } catch { /* as above */ }
    setTheme(chosen);
    draw();
  });
  asked.addEventListener("change", () => { setTheme(themeNow()); draw(); });
  addEventListener("beforeprint", () => { setTheme("light"); draw(); });
  addEventListener("afterprint", () => { setTheme(themeNow()); draw(); });

  // Plots. Colours are names of the style sheet; they stand in these fields alone, so no text of the data is taken for one.
  const colored = new Set(["color", "fillcolor", "colorscale"]);
  const withColors = (value, style, key) => {
    if (typeof value === "string") {
      return colored.has(key) && value[0] === "@" ? style.getPropertyValue(`--${value.slice(1)}`).trim() : value;
    }
    if (Array.isArray(value)) {
      return colored.has(key) || typeof value[0] === "object" ? value.map((item) => withColors(item, style, key)) : value;
    }
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, withColors(item, style, name)]));
  };
  const fine = matchMedia("(pointer: fine)").matches;
  const layoutOf = (layout, style) => {
    const color = (name) => style.getPropertyValue(`--${name}`).trim();
    const axis = { gridcolor: color("line"), zerolinecolor: color("line"), linecolor: color("line"), automargin: true };
    const full = {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: style.fontFamily, size: 13, color: color("ink") },
      margin: { l: 52, r: 14, t: 14, b: 44 },
      hovermode: "closest",
      hoverlabel: { bgcolor: color("paper"), bordercolor: color("line"), font: { color: color("ink"), size: 13 }, align: "left" },
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" },
      ...withColors(layout, style),
    };
    full.dragmode = fine && layout.dragmode ? layout.dragmode : false;
    for (const name of ["xaxis", "yaxis", "yaxis2"]) if (full[name]) full[name] = { ...axis, ...full[name] };
    return full;
  };
  const config = { responsive: true, displayModeBar: false, displaylogo: false, showTips: false, doubleClick: "reset" };
  let turn = 0;
  const draw = async () => {
    const mine = ++turn;
    root.dataset.plots = "drawing";
    for (const { place, spec } of plots) {
      const style = getComputedStyle(document.body);
      await Plotly.react(place, withColors(structuredClone(spec.data), style), layoutOf(structuredClone(spec.layout), style), config);
      if (mine !== turn) return;
    }
    performance.mark("plots-drawn");
    root.dataset.plots = "drawn";
  };

  // Tables that are sorted and filtered.
  const valueOf = (cell) => cell.dataset.value ?? cell.textContent;
  const numberOf = (text) => (text.trim() === "" ? NaN : Number(text.replaceAll(",", "")));
  const compare = (a, b) => {
    const [x, y] = [numberOf(a), numberOf(b)];
    if (Number.isNaN(x) !== Number.isNaN(y)) return Number.isNaN(x) ? 1 : -1;
    return Number.isNaN(x) ? a.localeCompare(b) : x - y;
  };
  for (const board of document.querySelectorAll(".board")) {
    const body = board.querySelector("tbody"), heads = [...board.querySelectorAll("thead th")];
    const rows = [...body.rows], output = board.querySelector("output"), input = board.querySelector("input");
    heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const empty = (row) => valueOf(row.cells[column]).trim() === "";
      rows.sort((a, b) => empty(a) - empty(b) || (down ? -1 : 1) * compare(valueOf(a.cells[column]), valueOf(b.cells[column])));
      body.append(...rows);
    }));
    const names = heads.map((head) => head.textContent.trim().toLowerCase().replaceAll(" ", "_"));
    const holds = (row, word) => {
      const at = word.indexOf("="), column = at > 0 ? names.indexOf(word.slice(0, at)) : -1;
      if (column < 0) return row.textContent.toLowerCase().includes(word);
      const own = row.cells[column].textContent.trim().toLowerCase(), asked = word.slice(at + 1);
      return own === asked || (asked !== "" && numberOf(own) === numberOf(asked));
    };
    const filter = () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const row of rows) { row.hidden = !words.every((word) => holds(row, word)); shown += !row.hidden; }
      output.textContent = words.length ? `${shown} of ${rows.length} rows` : `${rows.length} rows`;
    };
    input.addEventListener("input", filter);
    filter();
  }

  // The part of the page that is read now.
  const links = new Map([...document.querySelectorAll("nav a")].map((link) => [link.hash.slice(1), link]));
  const seen = new Set();
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) seen[entry.isIntersecting ? "add" : "delete"](entry.target.id);
    const first = [...links.keys()].find((id) => seen.has(id));
    if (first) for (const [id, link] of links) id === first ? link.setAttribute("aria-current", "true") : link.removeAttribute("aria-current");
  }, { rootMargin: "0px 0px -60% 0px" });
  for (const id of links.keys()) watcher.observe(document.getElementById(id));
  const menu = document.querySelector("nav details"), narrow = matchMedia("(max-width: 60rem)");
  const fit = () => { menu.open = !narrow.matches; };
  narrow.addEventListener("change", fit);
  fit();

  setTheme(themeNow());
  draw();
})();
