"use strict";
// Draws figures one by one, the nearest to what is in sight first; follows the colour scheme; sorts and filters tables.
(() => {
  const themes = JSON.parse(document.getElementById("themes").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const plots = [...document.querySelectorAll(".plot")];
  const drawn = new Set();
  let printing = false;
  const config = {
    responsive: true,
    displaylogo: false,
    modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
  };

  function draw(plot, choice = 0) {
    const figure = JSON.parse(document.getElementById(plot.id + "-data").textContent)[choice];
    figure.layout.template = dark.matches && !printing ? themes.dark : themes.light;
    plot.dataset.choice = choice;
    plot.setAttribute("aria-label", figure.layout.meta.summary);
    document.querySelector(`.said[data-for="${plot.id}"]`).textContent = figure.layout.meta.summary;
    drawn.add(plot);
    return Plotly.react(plot, figure.data, figure.layout, config).then(() => {
      document.body.dataset.drawn = drawn.size;
    });
  }

  function redraw() {
    drawn.forEach((plot) => draw(plot, Number(plot.dataset.choice)));
  }

  function distance(plot) {
    const box = plot.getBoundingClientRect();
    return Math.max(box.top - innerHeight, -box.bottom, 0);
  }
  function drawNext() {
    const left = plots.filter((plot) => !drawn.has(plot));
    if (left.length === 0) return;
    const nearest = left.reduce((best, plot) => (distance(plot) < distance(best) ? plot : best));
    draw(nearest).then(() => setTimeout(drawNext));
  }
  drawNext();

  dark.addEventListener("change", redraw);
  addEventListener("beforeprint", () => {
    printing = true;
    plots.forEach((plot) => draw(plot, Number(plot.dataset.choice || 0)));
  });
  addEventListener("afterprint", () => { printing = false; redraw(); });

  document.querySelectorAll("select[data-plot]").forEach((select) => {
    const plot = document.getElementById(select.dataset.plot);
    select.addEventListener("change", () => draw(plot, Number(select.value)));
  });

  function key(row, column) {
    const cell = row.cells[column];
    return cell.dataset.value === undefined ? cell.textContent : cell.dataset.value;
  }
  document.querySelectorAll("table.sortable").forEach((table) => {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((other) => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const numeric = head.classList.contains("number");
      const rows = [...table.tBodies[0].rows].sort((a, b) => {
        const left = key(a, column), right = key(b, column);
        if (left === "" || right === "") return (left === "") - (right === "");  // what is absent stays last
        const order = numeric ? Number(left) - Number(right) : left.localeCompare(right, "en", { numeric: true });
        return up ? order : -order;
      });
      table.tBodies[0].append(...rows);
    }));
  });
  document.querySelectorAll("input[data-filter]").forEach((input) => {
    const section = document.getElementById(input.dataset.filter);
    const rows = [...section.querySelectorAll("tbody tr")];
    const count = section.querySelector("output");
    const apply = () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      rows.forEach((row) => { row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word)); });
      count.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} rows`;
    };
    input.addEventListener("input", apply);
    apply();
  });
  document.querySelectorAll("button[data-copy]").forEach((button) => button.addEventListener("click", () => {
    navigator.clipboard.writeText(document.getElementById(button.dataset.copy).textContent)
      .then(() => { button.textContent = "copied"; }, () => { button.textContent = "select and copy by hand"; });
  }));
})();
