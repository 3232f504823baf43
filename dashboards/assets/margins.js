"use strict";
// Margins of a figure with one pair of axes, from the widths of its words: plotly finds them by drawing, twice and more.
(() => {
  const LINE = 17, LEGEND_ROW = 20, SWATCH = 45, TICK = 8, TITLE = 26, NUMBER = 46, WIDEST = 0.42, TOP = 54, APART = 64, LOG_APART = 105, GROUP_GAP = 14;
  const pen = document.createElement("canvas").getContext("2d");
  const lines = (words) => String(words).split(/<br\s*\/?>/);

  function wide(words, size) {
    pen.font = `${size}px ${getComputedStyle(document.body).fontFamily}`;
    const bare = (line) => line.replace(/<[^>]*>/g, "").replace(/&[a-z]+;/g, "&");
    return Math.max(0, ...lines(words).map((line) => pen.measureText(bare(line)).width));
  }
  const titled = (axis) => (axis.title && axis.title.text ? TITLE : 0);
  const named = (axis, values) => axis.ticktext || (values.some((value) => typeof value === "string") ? [...new Set(values)] : null);

  // A label that would leave the figure too little room, in two lines.
  function wrapped(words, most, size) {
    const parts = words.split(", ");
    if (wide(words, size) <= most || parts.length < 2) return words;
    const half = Math.ceil(parts.length / 2);
    return `${parts.slice(0, half).join(", ")},<br>${parts.slice(half).join(", ")}`;
  }

  function legendRows(data, layout, room, size) {
    const shown = data.filter((trace) => trace.showlegend !== false && trace.name);
    if (layout.showlegend === false || (shown.length < 2 && !layout.showlegend)) return 0;
    const groups = new Map();  // members of a group stand below each other
    shown.forEach((trace, i) => {
      const key = trace.legendgroup || `alone ${i}`;
      groups.set(key, [...(groups.get(key) || []), wide(trace.name, size) + SWATCH]);
    });
    const columns = [...groups.values()];
    const widest = Math.max(...columns.flat());
    const all = columns.reduce((sum, column) => sum + Math.max(...column), 0);
    const perRow = all < room ? columns.length : Math.max(1, Math.floor(room / (widest + GROUP_GAP)));
    let rows = 0;
    for (let i = 0; i < columns.length; i += perRow) {
      rows += Math.max(...columns.slice(i, i + perRow).map((column) => column.length));
    }
    return rows;
  }

  // The margins, or null for a figure of another build, which plotly may then measure itself.
  function margins({ data, layout }, size = 13) {
    if (!data.length || ["xaxis2", "yaxis2"].some((name) => layout[name])) return null;
    const own = layout.margin || {}, x = layout.xaxis || {}, y = layout.yaxis || {}, legend = layout.legend || {};
    const values = (letter) => data.flatMap((trace) => (Array.isArray(trace[letter]) ? trace[letter] : []));
    let down = named(y, values("y"));
    const along = named(x, values("x"));
    if (x.type === "date" || (along && !x.ticktext)) return null;
    if (down && y.ticktext) down = y.ticktext = down.map((words) => wrapped(words, WIDEST * layout.width, size));
    const left = TICK + titled(y) + (down ? Math.max(...down.map((words) => wide(words, size))) : NUMBER);
    const bar = layout.coloraxis && layout.coloraxis.showscale && layout.coloraxis.colorbar;
    const right = bar ? 44 + Math.max(...bar.ticktext.map((words) => wide(words, size))) : own.r || 20;
    const room = layout.width - left - right;
    if (along && along.some((words) => wide(words, size) > room / along.length)) return null;
    const below = legend.y < 0;
    const rows = legendRows(data, layout, room, size) * LEGEND_ROW;
    const top = TOP + (lines(layout.title.text).length - 1) * LINE;
    const ticks = TICK + titled(x) + LINE * (along ? Math.max(...along.map((words) => lines(words).length)) : 1);
    return {
      l: Math.ceil(left) + 6,
      r: Math.ceil(right),
      t: Math.max(below ? 0 : own.t || 0, top + (below ? 0 : rows) + 6),
      b: Math.ceil(ticks + (below ? rows + 16 : 6)),
      ticks,
      room,
      autoexpand: false,
    };
  }

  // Sets them, and places a legend that stands below right under the axis.
  function fit(figure) {
    const found = margins(figure);
    if (!found) return;
    const { ticks, room, ...margin } = found;
    const { layout } = figure;
    layout.margin = margin;
    ["xaxis", "yaxis"].forEach((name) => { layout[name] = { ...layout[name], automargin: false }; });
    const x = layout.xaxis;
    if (!x.tickvals) x.nticks = Math.max(3, Math.min(x.nticks || 12, Math.floor(room / (x.type === "log" ? LOG_APART : APART))));
    layout.legend = { ...layout.legend, x: -margin.l / Math.max(1, room) };
    if (layout.legend.y < 0) {
      layout.legend.y = -(ticks + 8) / Math.max(1, layout.height - margin.t - margin.b);
    }
  }

  window.margins = { fit };
})();
