"use strict";
// Draws the figures that a page holds as JSON in `data-figure`, each once: what is in sight first, the rest when idle.
(() => {
  const root = document.documentElement;
  const templates = JSON.parse(document.getElementById("templates").textContent);
  const CONFIG = { displaylogo: false, modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]] };
  const NEAR_PX = 150;
  const known = new Map();  // what each plot shows, so that nothing is drawn twice
  const zooms = new Map();  // what a reader zoomed to, by what the zoom belongs to

  function far(plot) {
    const box = plot.getBoundingClientRect();
    return Math.max(box.top - innerHeight, -box.bottom, 0) > NEAR_PX;
  }
  const content = (plot) => `${root.dataset.theme} ${plot.dataset.figure}`;
  const stale = () => [...document.querySelectorAll(".plot[data-figure]")]
    .filter((plot) => plot.clientWidth > 0 && known.get(plot) !== content(plot));

  function draw(plot) {
    const figure = JSON.parse(plot.dataset.figure);
    const layout = Object.assign(figure.layout, { template: templates[root.dataset.theme], width: plot.clientWidth });
    Object.entries(zooms.get(layout.uirevision) || {}).forEach(([axis, range]) => {
      layout[axis] = { ...layout[axis], range, autorange: false };
    });
    margins.fit(figure);
    if (layout.meta.links) layout.shapes = [...(layout.shapes || []), ...frames(layout)];
    const first = !known.has(plot);
    known.set(plot, content(plot));
    Plotly.react(plot, figure.data, layout, CONFIG);
    if (first) follow(plot);
  }

  let library = null;
  function fetchLibrary() {
    if (library) return;
    library = document.createElement("script");
    library.src = document.getElementById("plotly").href;
    library.addEventListener("load", drawAll);
    document.head.append(library);
  }

  let idle = null;
  function drawAll() {
    if (!window.Plotly) return document.querySelector(".plot[data-figure]") && fetchLibrary();
    [...known.keys()].filter((plot) => !plot.isConnected).forEach((plot) => {
      Plotly.purge(plot);
      known.delete(plot);
    });
    const wanted = stale();
    wanted.filter((plot) => !far(plot)).forEach(draw);
    if (idle === null && wanted.some(far)) {
      idle = requestIdleCallback(() => {
        idle = null;
        const next = stale()[0];
        if (next) draw(next);
        drawAll();
      }, { timeout: 2000 });
    }
  }

  const widths = new ResizeObserver((entries) => entries.forEach(({ target }) => {
    if (known.has(target) && target.clientWidth && target.clientWidth !== target.layout.width) {
      draw(target);
    }
  }));
  function follow(plot) {
    widths.observe(plot);
    plot.on("plotly_relayout", (change) => {
      const kept = { ...zooms.get(plot.layout.uirevision) };
      Object.keys(change).forEach((name) => {
        const axis = name.split(".")[0];
        if (name.endsWith(".autorange")) delete kept[axis];
        if (name.endsWith(".range[0]")) kept[axis] = [change[name], change[`${axis}.range[1]`]];
      });
      zooms.set(plot.layout.uirevision, kept);
    });
    plot.on("plotly_click", (event) => {
      const links = plot.layout.meta.links;
      const href = links && (links[event.points[0].y] || [])[event.points[0].x];
      if (href) dispatchEvent(new CustomEvent("cell", { detail: href }));
    });
    plot.dataset.drawn = "yes";
  }

  // A frame around the cell that the address names, on a map whose cells lead to addresses.
  function frames(layout) {
    const found = [];
    layout.meta.links.forEach((line, y) => line.forEach((href, x) => {
      if (href && isHere(href)) {
        found.push({ type: "rect", x0: x - 0.49, x1: x + 0.49, y0: y - 0.48, y1: y + 0.48, line: { width: 4, color: "#d6336c" } });
      }
    }));
    return found;
  }
  function isHere(href) {
    const here = new URL(location.href).searchParams;
    const to = new URL(href, location.href).searchParams;
    return here.has("model") && ["model", "context"].every((name) => to.get(name) === here.get(name));
  }
  function frame() {
    known.forEach((_, plot) => {
      if (!plot.isConnected || !plot.layout.meta.links) return;
      const now = frames(plot.layout);
      if (JSON.stringify(now.map(({ x0, y0 }) => [x0, y0]))
        !== JSON.stringify((plot.layout.shapes || []).map(({ x0, y0 }) => [x0, y0]))) Plotly.relayout(plot, { shapes: now });
    });
  }

  window.plots = { frame, isHere };
  new MutationObserver((changes) => {
    if (changes.some((change) => change.type === "attributes" || ![...known.keys()].some((plot) => plot.contains(change.target)))) drawAll();
  }).observe(root, { childList: true, subtree: true, attributeFilter: ["data-figure", "data-theme"] });
})();
