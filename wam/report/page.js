// Draws the figures in the colours of the theme, lets the shared legend hide lines, and sorts tables. Loads nothing.
"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const hover = window.matchMedia("(hover: hover)");
  const dark = window.matchMedia("(prefers-color-scheme: dark)");

  // INK and GRID stand for colours of the theme, wherever they occur as a whole value under a colour key.
  const painted = (node, key) => {
    if (Array.isArray(node)) return node.map((item) => painted(item, key));
    if (node && typeof node === "object") {
      return Object.fromEntries(Object.entries(node).map(([name, item]) => [name, painted(item, name)]));
    }
    if (typeof node === "string" && /color$/.test(key)) {
      if (node === "INK") return dark.matches ? "#e8eaed" : "#1d1f23";
      if (node === "#0072B2" && dark.matches) return "#3f9ede"; // the palette's blue is too dark there
      if (node === "GRID") return dark.matches ? "#32373e" : "#e6e8eb";
    }
    return node;
  };

  const drawOne = (id) => {
    const place = document.getElementById(id);
    if (place.closest("details:not([open])")) return; // it has no width yet
    const { data, layout } = painted(figures[id], "");
    if (hover.matches) layout.dragmode = "zoom"; // with a finger, dragging scrolls the page
    const options = { responsive: true, displaylogo: false, displayModeBar: false };
    Plotly.react(id, data, layout, options);
  };
  const draw = () => {
    Object.keys(figures).forEach(drawOne);
    for (const glyph of document.querySelectorAll(".glyph")) {
      glyph.style.color = painted(glyph.dataset.colour, "color");
    }
  };
  if (Object.keys(figures).length) {
    draw();
    dark.addEventListener("change", draw);
    for (const details of document.querySelectorAll("details")) {
      const inside = [...details.querySelectorAll(".plot")].map((place) => place.id);
      details.addEventListener("toggle", () => inside.forEach(drawOne));
    }
  }
  window.report = { figures };

  for (const button of document.querySelectorAll(".legend button")) {
    button.addEventListener("click", () => {
      const visible = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(visible));
      for (const [id, figure] of Object.entries(figures)) {
        if (!id.startsWith(`${button.parentNode.dataset.figures ?? "front"}-`)) continue;
        figure.data.forEach((trace) => {
          if (trace.meta === button.dataset.series) trace.visible = visible;
        });
      }
      draw();
    });
  }

  const valueOf = (cell) => {
    const raw = cell.dataset.value ?? cell.textContent.trim();
    const number = Number(raw);
    return raw !== "" && Number.isFinite(number) ? number : raw;
  };
  const compare = (a, b) => {
    if (a === "" || b === "") return (a === "") - (b === ""); // what was not measured stays last
    if (typeof a === "number" && typeof b === "number") return a - b;
    return String(a).localeCompare(String(b), "en", { numeric: true });
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      head.tabIndex = 0;
      const sort = () => {
        const sign = head.getAttribute("aria-sort") === "descending" ? 1 : -1;
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
        const rows = [...table.tBodies[0].rows];
        rows.sort((first, second) => {
          const [a, b] = [first, second].map((row) => valueOf(row.cells[column]));
          const order = compare(a, b);
          return a === "" || b === "" ? order : sign * order;
        });
        table.tBodies[0].append(...rows);
      };
      head.addEventListener("click", sort);
      head.addEventListener("keydown", (event) => {
        if (event.key === "Enter" || event.key === " ") { event.preventDefault(); sort(); }
      });
    });
  }
  document.body.dataset.ready = "true";
})();
