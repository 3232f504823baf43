"use strict";
// The app's own part in the browser: colour scheme, addresses out of clicks, tables behind figures.
(() => {
  const root = document.documentElement;
  const scheme = matchMedia("(prefers-color-scheme: dark)");
  const saved = () => { try { return localStorage.getItem("mpscape-theme"); } catch { return null; } };

  function current() {
    const button = document.getElementById("theme-button");
    const first = button ? button.dataset.first : "auto";
    const said = saved() || (first === "auto" ? null : first);
    return said || (scheme.matches ? "dark" : "light");
  }
  root.dataset.theme = current();

  // The map's own links do not say which cell is chosen: it is carried along.
  function go(href, keep = false) {
    const to = new URL(href, location.href);
    if (keep && to.pathname === "/" && location.pathname === "/" && !to.searchParams.has("model")) {
      const here = new URL(location.href).searchParams;
      ["model", "context"].forEach((name) => { if (here.has(name)) to.searchParams.set(name, here.get(name)); });
    }
    if (to.pathname === location.pathname && to.search === location.search) return;
    dash_clientside.set_props("url", { pathname: to.pathname, search: to.search });
  }
  // The cell's part is drawn after the address has changed: look for it until it is there.
  function show(id, left = 200) {
    const target = document.getElementById(id);
    if (target && target.hasAttribute("tabindex")) {
      target.focus({ preventScroll: true });
      target.scrollIntoView({ behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
    } else if (left > 0) setTimeout(() => show(id, left - 1), 50);
  }

  // Parts from here on are asked for when they come within this distance of the window.
  const FIRST_LAZY = 3, NEAR_PX = 150;
  const close = new Set();
  const sight = new IntersectionObserver((entries) => {
    entries.forEach((entry) => {
      const part = Number(entry.target.id.split("-")[1]);
      if (entry.isIntersecting) close.add(part); else close.delete(part);
    });
    dash_clientside.set_props("near", { data: [...close] });
  }, { rootMargin: `${NEAR_PX}px 0px` });

  // What a reader zoomed to, by what the zoom belongs to: put back when newer data are drawn.
  const zooms = new Map();
  function watch(plot) {
    plot.dataset.watched = "yes";
    plot.on("plotly_relayout", (change) => {
      const key = plot.layout.uirevision;
      const kept = { ...zooms.get(key) };
      Object.keys(change).forEach((name) => {
        const axis = name.split(".")[0];
        if (name.endsWith(".autorange")) delete kept[`${axis}.range`];
        if (name.endsWith(".range[0]")) kept[`${axis}.range`] = [change[name], change[`${axis}.range[1]`]];
      });
      if (Object.keys(kept).length) zooms.set(key, kept); else zooms.delete(key);
    });
    plot.on("plotly_afterplot", () => {
      const kept = zooms.get(plot.layout.uirevision);
      const away = kept && Object.keys(kept).some((name) => {
        const axis = plot.layout[name.split(".")[0]];
        return axis && String(axis.range) !== String(kept[name]);
      });
      if (away) Plotly.relayout(plot, kept);
    });
  }

  // A frame around the chosen cell, on the map and in the list of its cells.
  function mark() {
    const here = new URL(location.href).searchParams;
    const isHere = (href) => {
      const to = new URL(href, location.href).searchParams;
      return here.has("model") && to.get("model") === here.get("model") && to.get("context") === here.get("context");
    };
    document.querySelectorAll(".cells a").forEach((link) => {
      if (isHere(link.getAttribute("href"))) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    });
    const plot = document.querySelector("#panel-verdict-map .js-plotly-plot");
    if (!plot || !plot.layout || !plot.layout.meta || !plot.layout.meta.links) return;
    if (!plot.dataset.marking) {
      plot.dataset.marking = "yes";
      plot.on("plotly_afterplot", mark);
      plot.on("plotly_click", (event) => {
        const href = (plot.layout.meta.links[event.points[0].y] || [])[event.points[0].x];
        if (href) { go(href); show("cell"); }
      });
    }
    const frames = [];
    plot.layout.meta.links.forEach((line, y) => line.forEach((href, x) => {
      if (href && isHere(href)) {
        frames.push({ type: "rect", x0: x - 0.49, x1: x + 0.49, y0: y - 0.48, y1: y + 0.48, line: { width: 4, color: "#d6336c" } });
      }
    }));
    const drawn = (plot.layout.shapes || []).map((shape) => `${shape.x0} ${shape.y0}`).join();
    if (drawn !== frames.map((shape) => `${shape.x0} ${shape.y0}`).join()) Plotly.relayout(plot, { shapes: frames });
  }

  // What is replaced loses the focus: give it back to the link of the same words in the same group.
  let focused = null;
  function refocus() {
    if (!focused || document.activeElement !== document.body || Date.now() - focused.at > 5000) return;
    const group = focused.group && document.querySelector(`[aria-label="${CSS.escape(focused.group)}"]`);
    const links = [...(group || document).querySelectorAll("a[data-go], select")];
    const again = links.find((link) => (link.tagName === "SELECT" ? link.id : link.textContent) === focused.words);
    if (again) again.focus({ preventScroll: true });
  }
  function remember(element, words) {
    const group = element.closest("[role=group][aria-label], nav[aria-label]");
    focused = { group: group && group.getAttribute("aria-label"), words, at: Date.now() };
  }

  window.dash_clientside = Object.assign({}, window.dash_clientside, {
    mpscape: {
      theme(clicks) {
        if (clicks) {
          const next = current() === "dark" ? "light" : "dark";
          try { localStorage.setItem("mpscape-theme", next); } catch { /* the choice lasts for this page */ }
          root.dataset.theme = next;
          return next;
        }
        root.dataset.theme = current();
        return root.dataset.theme;
      },
      // The address of each part, where it shows another one: what does not change is not asked for, and what is far
      // below the window waits until it comes near.
      ask(pathname, search, near, ...shown) {
        const same = dash_clientside.no_update;
        document.querySelectorAll("#pages a").forEach((link) => {
          link.setAttribute("href", link.dataset.path + search);
          if (link.dataset.path === pathname) link.setAttribute("aria-current", "page");
          else link.removeAttribute("aria-current");
        });
        const map = new URLSearchParams(search);
        ["model", "context", "repeat"].forEach((name) => map.delete(name));
        const chosen = pathname === "/" && new URLSearchParams(search).has("model");
        return shown.map((before, part) => {
          if (chosen && part >= FIRST_LAZY && !near.includes(part)) return same;
          const now = [pathname, search];
          if (part === 0 && pathname === "/") now[1] = String(map) && `?${map}`;
          if (part > 0 && !chosen) now[1] = "";
          return String(before) === String(now) ? same : now;
        });
      },
      // What was clicked for comes first, the frame when there is time for it.
      mark() { requestIdleCallback(mark, { timeout: 1000 }); },
      amount(values, ids) {
        const to = new URL(location.href);
        values.forEach((value, i) => {
          if (value === null || value === undefined || value === "") to.searchParams.delete(ids[i].name);
          else to.searchParams.set(ids[i].name, value);
        });
        go(to.pathname + to.search);
      },
    },
  });

  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-go]");
    if (link && !event.ctrlKey && !event.metaKey && !event.shiftKey && event.button === 0) {
      event.preventDefault();
      remember(link, link.textContent);
      go(link.getAttribute("href"), link.dataset.go === "stay" && Boolean(link.closest(".choices")));
      if (link.dataset.go === "page") scrollTo(0, 0);
      if (link.dataset.go === "cell") show("cell");
    }
    const copy = event.target.closest("button[data-copy]");
    if (copy) {
      navigator.clipboard.writeText(document.getElementById(copy.dataset.copy).textContent)
        .then(() => { copy.textContent = "copied"; }, () => { copy.textContent = "select and copy by hand"; });
    }
    const heading = event.target.closest("table.sortable th button");
    if (heading) sort(heading.closest("th"));
  });

  document.addEventListener("change", (event) => {
    if (event.target.matches("select[data-pick]")) {
      remember(event.target, event.target.id);
      go(event.target.value, true);
    }
  });

  function load(holder) {
    const source = holder.dataset.src;
    if (!source || holder.dataset.loaded === source) return;
    holder.dataset.loaded = source;
    fetch(source).then((answer) => answer.text()).then((markup) => {
      if (holder.dataset.src === source) holder.querySelector(".rows").innerHTML = markup;
    });
  }
  const wanted = (holder) => holder.classList.contains("open") || holder.open;
  document.addEventListener("toggle", (event) => {
    if (event.target.matches && event.target.matches(".behind") && event.target.open) load(event.target);
  }, true);
  new MutationObserver(() => {
    document.querySelectorAll(".behind").forEach((holder) => { if (wanted(holder)) load(holder); });
    refocus();
    document.querySelectorAll("main > .part:not([data-sight])").forEach((part) => {
      part.dataset.sight = "yes";
      if (Number(part.id.split("-")[1]) >= FIRST_LAZY) sight.observe(part);
    });
    document.querySelectorAll(".js-plotly-plot:not([data-watched])").forEach((plot) => { if (plot.on) watch(plot); });
    if (document.querySelector("#panel-verdict-map .js-plotly-plot:not([data-marking])")) mark();
  }).observe(document, { childList: true, subtree: true, attributeFilter: ["data-src"] });

  function sort(head) {
    const body = head.closest("table").tBodies[0];
    const column = head.cellIndex;
    const up = head.getAttribute("aria-sort") !== "ascending";
    [...head.parentNode.cells].forEach((other) => other.setAttribute("aria-sort", "none"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const numeric = head.classList.contains("number");
    const key = (row) => (row.cells[column].dataset.value === undefined
      ? row.cells[column].textContent : row.cells[column].dataset.value);
    body.append(...[...body.rows].sort((a, b) => {
      const left = key(a), right = key(b);
      if (left === "" || right === "") return (left === "") - (right === "");
      const order = numeric ? Number(left) - Number(right) : left.localeCompare(right, "en", { numeric: true });
      return up ? order : -order;
    }));
  }
})();
