"use strict";

const root = document.documentElement;
const read = (element) => JSON.parse(element.textContent);

// Colours of figures follow the page's, so they are taken from its style.
function figureTemplate() {
  const style = getComputedStyle(root);
  const [ink, soft, grid, line, raised, type] = ["ink", "soft", "grid", "line", "raised", "type"].map((name) =>
    style.getPropertyValue(`--${name}`).trim(),
  );
  const axis = { gridcolor: grid, linecolor: line, zeroline: false, ticks: "outside", tickcolor: line, ticklen: 4,
    title: { standoff: 10 } };
  const bar = { outlinewidth: 0, tickcolor: line };
  return {
    layout: {
      font: { family: type, size: 12.5, color: soft }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      // Each in its own direction: labels at a corner would otherwise come and go with the margin that they ask for.
      xaxis: { ...axis, automargin: "height" }, yaxis: { ...axis, automargin: "width" }, legend: { font: { color: ink } },
      hoverlabel: { bgcolor: raised, bordercolor: line, font: { family: type, color: ink } },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: soft, activecolor: ink },
    },
    data: { heatmap: [{ colorbar: bar }] },
  };
}

function draw(plot) {
  const figure = plot.figure;
  const narrow = matchMedia("(max-width: 860px)").matches;
  const layout = {
    ...figure.layout, template: figureTemplate(), margin: { l: 8, r: 8, t: 8, b: 8 }, autosize: true, uirevision: "kept",
    legend: { orientation: "h", x: 0, y: narrow ? -0.36 : -0.2, yanchor: "top" },
    hovermode: "closest",
    // A finger on a figure scrolls the page; a mouse zooms.
    dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
  };
  const options = { responsive: true, displaylogo: false, displayModeBar: narrow ? false : "hover",
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] };
  Plotly.react(plot, figure.data, layout, options);
  plot.dataset.drawn = "";
}

// plotly.js is packed in the page; a figure is drawn when it comes into view.
async function drawFigures() {
  const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent), (c) => c.charCodeAt(0));
  const unpacked = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.text = await new Response(unpacked).text();
  document.head.append(script);
  const observer = new IntersectionObserver(
    (entries) => {
      for (const { isIntersecting, target } of entries) {
        if (!isIntersecting) continue;
        observer.unobserve(target);
        target.figure = read(target.parentElement.querySelector("script"));
        draw(target);
      }
    },
    { rootMargin: "400px" },
  );
  document.querySelectorAll(".plot").forEach((plot) => observer.observe(plot));
}

function setTheme(theme) {
  root.dataset.theme = theme;
  document.getElementById("theme").textContent = theme === "dark" ? "Light" : "Dark";
  document.querySelectorAll(".plot[data-drawn]").forEach(draw);
}

// Grey values or colours of one level, all samples side by side with a gap of one pixel for each twenty.
function paint(canvas, strip, values, level, samples) {
  const { height, width, colours } = strip;
  const sites = height * width;
  const gap = Math.ceil(width / 20);
  canvas.width = samples * (width + gap) - gap;
  canvas.height = height;
  const context = canvas.getContext("2d");
  for (let j = 0; j < samples; j++) {
    const image = context.createImageData(width, height);
    const first = (level * strip.samples + j) * colours * sites;
    for (let p = 0; p < sites; p++) {
      for (let c = 0; c < 3; c++) image.data[4 * p + c] = values[first + (c % colours) * sites + p];
      image.data[4 * p + 3] = 255;
    }
    context.putImageData(image, j * (width + gap), 0);
  }
}

function showStrip(section) {
  const strip = read(section.querySelector("script"));
  const [states, denoised] = [strip.states, strip.denoised].map((text) =>
    Uint8Array.from(atob(text), (c) => c.charCodeAt(0)),
  );
  const slider = section.querySelector("input");
  const film = section.querySelector(".film");
  const thumbnails = strip.levels.map((s, level) => {
    const canvas = document.createElement("canvas");
    paint(canvas, strip, states, level, 1);
    canvas.addEventListener("click", () => {
      slider.value = level;
      show();
    });
    film.append(canvas);
    return canvas;
  });
  function show() {
    const level = Number(slider.value);
    const s = strip.levels[level];
    section.querySelector("output").textContent = `s = ${s}`;
    slider.setAttribute("aria-valuetext", `s = ${s}`);
    for (const [name, values, what] of [["states", states, "States"], ["denoised", denoised, "Denoised images"]]) {
      const canvas = section.querySelector(`.${name}`);
      paint(canvas, strip, values, level, strip.samples);
      canvas.setAttribute("aria-label", `${what} of ${strip.samples} trajectories at noise level ${s}`);
    }
    thumbnails.forEach((canvas, i) => canvas.classList.toggle("at", i === level));
  }
  slider.addEventListener("input", show);
  show();
}

function showRun(tab) {
  for (const other of document.querySelectorAll("[role=tab]")) {
    other.setAttribute("aria-selected", String(other === tab));
    document.getElementById(other.getAttribute("aria-controls")).hidden = other !== tab;
  }
}

const dark = matchMedia("(prefers-color-scheme: dark)");
setTheme(dark.matches ? "dark" : "light");
dark.addEventListener("change", () => setTheme(dark.matches ? "dark" : "light"));
document.getElementById("theme").addEventListener("click", () => setTheme(root.dataset.theme === "dark" ? "light" : "dark"));
document.querySelectorAll("[role=tab]").forEach((tab) => tab.addEventListener("click", () => showRun(tab)));
document.querySelectorAll(".strip").forEach(showStrip);
if ("DecompressionStream" in window) {
  drawFigures();
} else {
  const notice = document.getElementById("unsupported");
  notice.textContent = "This browser cannot unpack the figures (it lacks DecompressionStream): use one of 2023 or later.";
  notice.hidden = false;
}
