"use strict";
// The app's own part in the browser: colour scheme, addresses out of clicks, tables behind figures.
(() => {
  const root = document.documentElement;
  const scheme = matchMedia("(prefers-color-scheme: dark)");
  const saved = () => { try { return localStorage.getItem("mpscape-theme"); } catch { return null; } };

  function current() {
    const first = root.dataset.firstTheme;
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
  // The cell's part comes after the address has changed: it is shown as soon as it is there, at once and without
  // gliding, which would be drawn frame by frame beside the figures.
  let cellWanted = false;
  function showCell() {
    const target = document.getElementById("cell");
    if (!cellWanted || !target || !target.hasAttribute("tabindex")) return;
    cellWanted = false;
    target.focus({ preventScroll: true });
    target.scrollIntoView();
  }
  function open(href) {
    go(href);
    cellWanted = true;
    showCell();
  }
  addEventListener("cell", (event) => open(event.detail));

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

  // The chosen cell is framed on the map and marked in the list of its cells.
  function mark() {
    document.querySelectorAll(".cells a").forEach((link) => {
      if (plots.isHere(link.getAttribute("href"))) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    });
    plots.frame();
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
    if (event.target.closest("#theme-button")) {
      root.dataset.theme = current() === "dark" ? "light" : "dark";
      try { localStorage.setItem("mpscape-theme", root.dataset.theme); } catch { /* the choice lasts for this page */ }
    }
    const link = event.target.closest("a[data-go]");
    if (link && !event.ctrlKey && !event.metaKey && !event.shiftKey && event.button === 0) {
      event.preventDefault();
      remember(link, link.textContent);
      if (link.dataset.go === "cell") open(link.getAttribute("href"));
      else go(link.getAttribute("href"), link.dataset.go === "stay" && Boolean(link.closest(".choices")));
      if (link.dataset.go === "page") scrollTo(0, 0);
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
    showCell();
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
