"use strict";
(() => {
  const root = document.documentElement;
  const figures = JSON.parse(document.getElementById("figures").textContent);

  // var(--name) anywhere inside -> what the style sheet says now
  const coloured = (value, style) => {
    if (typeof value === "string" && value.startsWith("var(--")) return style.getPropertyValue(value.slice(4, -1)).trim();
    if (Array.isArray(value)) return value.map((v) => coloured(v, style));
    if (value && typeof value === "object")
      return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, coloured(v, style)]));
    return value;
  };

  const axis = { gridcolor: "var(--line)", linecolor: "var(--line)", zeroline: false, automargin: true, fixedrange: true };

  const draw = (width) => {
    const style = getComputedStyle(root);
    figures.forEach((figure, i) => {
      const layout = coloured({
        paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false, hovermode: "closest",
        dragmode: false, height: 340, margin: { l: 60, r: 24, t: 16, b: 52 },
        font: { family: style.getPropertyValue("--sans").trim(), size: 13, color: "var(--text)" },
        hoverlabel: { bgcolor: "var(--card)", bordercolor: "var(--line)", font: { color: "var(--text)" }, align: "left" },
        ...figure.layout, xaxis: { ...axis, ...figure.layout.xaxis }, yaxis: { ...axis, ...figure.layout.yaxis },
        ...(width ? { width, height: 320 } : { autosize: true }),
      }, style);
      Plotly.react("chart-" + i, coloured(figure.data, style), layout, { displayModeBar: false, responsive: true });
    });
  };

  draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draw());
  const closed = () => document.querySelectorAll("details:not([open])");
  addEventListener("beforeprint", () => {
    root.dataset.theme = "light";
    closed().forEach((d) => { d.open = true; d.dataset.printed = ""; });
    draw(640);
  });
  addEventListener("afterprint", () => {
    delete root.dataset.theme;
    document.querySelectorAll("details[data-printed]").forEach((d) => { d.open = false; delete d.dataset.printed; });
    draw();
  });
})();
