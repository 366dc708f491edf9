"use strict";

// Charts. Their colours are names of CSS variables, looked up whenever the theme changes.
const probe = document.body.appendChild(document.createElement("span"));
probe.hidden = true;

function coloured(value) {
  if (typeof value === "string" && value.startsWith("var(")) {
    probe.style.color = value;
    return getComputedStyle(probe).color;
  }
  if (Array.isArray(value)) return value.map(coloured);
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, coloured(item)]));
}

const finger = matchMedia("(pointer: coarse)").matches;
const OPTIONS = {
  responsive: true,
  displaylogo: false,
  displayModeBar: finger ? false : "hover",
  modeBarButtons: [["toImage", "resetScale2d"]],
};

function draw(plot) {
  const figure = coloured(JSON.parse(plot.nextElementSibling.textContent));
  figure.layout.dragmode = finger ? false : "zoom"; // a finger on a chart scrolls the page
  Plotly.react(plot, figure.data, figure.layout, OPTIONS);
}

function drawVisible(root) {
  for (const plot of root.querySelectorAll(".plot")) if (!plot.closest("details:not([open])")) draw(plot);
}

drawVisible(document);
document.addEventListener("toggle", (event) => event.target.open && drawVisible(event.target), true);

// Theme: of the system, or chosen; forgotten when the page is closed.
const THEMES = ["auto", "light", "dark"];
const button = document.getElementById("theme");

button.addEventListener("click", () => {
  const theme = THEMES[(THEMES.indexOf(document.documentElement.dataset.theme) + 1) % THEMES.length];
  document.documentElement.dataset.theme = theme;
  button.textContent = `Theme: ${theme}`;
  drawVisible(document);
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawVisible(document));

// Tables: a click on a heading sorts, numbers from the largest; what has no number comes last.
function compare(one, other, column, sign) {
  const [a, b] = [one, other].map((row) => row.cells[column]);
  if (a.dataset.value === undefined) return sign * a.textContent.localeCompare(b.textContent, "en", { numeric: true });
  if (!a.dataset.value || !b.dataset.value) return !a.dataset.value - !b.dataset.value;
  return sign * (a.dataset.value - b.dataset.value);
}

function sortBy(heading) {
  const table = heading.closest("table");
  const numeric = heading.classList.contains("number");
  const before = heading.ariaSort;
  const descending = before === "none" ? numeric : before === "ascending";
  for (const other of heading.parentElement.cells) other.ariaSort = "none";
  heading.ariaSort = descending ? "descending" : "ascending";
  const rows = [...table.tBodies[0].rows];
  rows.sort((one, other) => compare(one, other, heading.cellIndex, descending ? -1 : 1));
  table.tBodies[0].append(...rows);
}

for (const heading of document.querySelectorAll(".sortable th[aria-sort]"))
  heading.firstElementChild.addEventListener("click", () => sortBy(heading));

for (const box of document.querySelectorAll(".modules")) {
  const rows = [...box.querySelectorAll("tbody tr")];
  box.querySelector("input").addEventListener("input", (event) => {
    const wanted = event.target.value.toLowerCase();
    for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
    box.querySelector("output").textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length}`;
  });
}
